//! How much memory a model needs, and where it fits.

use serde::Serialize;

use crate::mig::Geometry;
use crate::roofline::{Memory, Roofline};
use crate::sheet::{self, Precision};
use crate::work::{Transformer, Work};
use crate::{GpuError, mig};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Question {
    /// Parameters of the model.
    pub parameters: f64,
    /// Number format of weights and cache.
    pub precision: Precision,
    /// Tokens of a sequence.
    pub sequence: u32,
    /// Sequences at once.
    pub batch: u32,
    /// The optimizer, when it is trained.
    pub optimizer: Option<Optimizer>,
    /// Whether activations are computed again in the backward pass.
    pub checkpointing: bool,
}

/// What an optimizer keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// Two moments in fp32.
    Adam,
    /// One moment in fp32.
    Momentum,
    /// Nothing.
    Sgd,
}

impl std::str::FromStr for Optimizer {
    type Err = GpuError;
    fn from_str(text: &str) -> Result<Self, GpuError> {
        match text {
            "adam" | "adamw" => Ok(Self::Adam),
            "momentum" => Ok(Self::Momentum),
            "sgd" => Ok(Self::Sgd),
            _ => Err(GpuError::Invalid(format!("'{text}' is no optimizer; known are adam, momentum, sgd"))),
        }
    }
}

/// A part of the memory and how it is computed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// What it is for.
    pub what: &'static str,
    /// Bytes.
    pub bytes: f64,
    /// The formula and its source.
    pub formula: String,
}

/// A card or slice that the model fits on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fit {
    /// The card, and the MIG profile where it is a slice.
    pub name: String,
    /// How many of them, where one is not enough.
    pub count: u32,
    /// Bytes of each.
    pub memory: f64,
    /// Tokens a second that the roofline allows when generating text.
    pub tokens_per_second: Option<f64>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// What was asked.
    pub question: Question,
    /// The model's shape and where it is known from.
    pub shape: Transformer,
    /// The memory's parts.
    pub parts: Vec<Part>,
    /// Their sum.
    pub bytes: f64,
    /// Where it fits, the smallest first.
    pub fits: Vec<Fit>,
}

/// Bytes that CUDA, its libraries and the allocator's gaps take before a model is loaded. Not from a formula: about
/// half a GiB is seen for a context with cuBLAS, and as much again for workspaces.
const OVERHEAD: f64 = 1.0 * GIB;
const GIB: f64 = 1_073_741_824.0;

/// Computes the answer.
///
/// # Errors
/// [`GpuError::Invalid`] when a size is out of all reason.
pub fn fit(question: &Question) -> Result<Answer, GpuError> {
    if question.sequence == 0 || question.batch == 0 || question.sequence > 1 << 24 || question.batch > 1 << 20 {
        return Err(GpuError::Invalid("sequence must be from 1 to 16777216 and batch from 1 to 1048576".into()));
    }
    let shape = Transformer::of(question.parameters);
    let (p, b) = (question.parameters, question.precision.bytes());
    let (s, n) = (f64::from(question.sequence), f64::from(question.batch));
    let mut parts = vec![Part { what: "weights", bytes: p * b, formula: format!("parameters x {b} bytes") }];
    if let Some(optimizer) = question.optimizer {
        let mixed = b < 4.0;
        parts.push(Part { what: "gradients", bytes: p * b, formula: format!("parameters x {b} bytes") });
        let moments = match optimizer {
            Optimizer::Adam => 8.0,
            Optimizer::Momentum => 4.0,
            Optimizer::Sgd => 0.0,
        };
        let master = if mixed { 4.0 } else { 0.0 };
        parts.push(Part {
            what: "optimizer",
            bytes: p * (moments + master),
            formula: format!(
                "parameters x ({moments} bytes of moments + {master} of fp32 weights), ZeRO (Rajbhandari et al. 2020, section 3.1)"
            ),
        });
        let (bytes, how) = if question.checkpointing {
            (
                shape.layers * 2.0 * s * n * shape.hidden + 34.0 * s * n * shape.hidden,
                "layers x 2 s b h, and one layer's 34 s b h while it is computed again",
            )
        } else {
            (shape.layers * 34.0 * s * n * shape.hidden, "layers x 34 s b h with attention computed in tiles")
        };
        let scale = b / 2.0;
        parts.push(Part {
            what: "activations",
            bytes: bytes * scale,
            formula: format!("{how} (Korthikanti et al. 2022, section 4; 16-bit, scaled by {scale})"),
        });
    } else {
        parts.push(Part {
            what: "key-value cache",
            bytes: n * s * shape.cache_bytes_per_token(question.precision),
            formula: "batch x sequence x 2 x layers x key/value width x bytes (Pope et al. 2022, section 3.3)".into(),
        });
    }
    parts.push(Part { what: "CUDA and workspaces", bytes: OVERHEAD, formula: "1 GiB, an allowance".into() });
    let bytes: f64 = parts.iter().map(|part| part.bytes).sum();
    let fits = places(question, bytes)?;
    Ok(Answer { question: question.clone(), shape, parts, bytes, fits })
}

fn tokens(question: &Question, roof: &Roofline) -> Result<Option<f64>, GpuError> {
    if question.optimizer.is_some() {
        return Ok(None);
    }
    let text = format!(
        "decode:model={},batch={},context={},dtype={}",
        question.parameters, question.batch, question.sequence, question.precision
    );
    Ok(roof.place(&Work::parse(&text)?).and_then(|p| p.tokens_per_second))
}

/// Cards, slices, and several of the largest cards where one is not enough; the smallest memory first.
fn places(question: &Question, bytes: f64) -> Result<Vec<Fit>, GpuError> {
    let mut fits = Vec::new();
    for card in sheet::cards() {
        let memory = card.memory_gb as f64 * 1e9;
        // Activations and optimizer states can be shared out over cards, so several are counted by memory alone.
        let count = (bytes / (memory * 0.95)).ceil().max(1.0);
        if count > 8.0 {
            continue;
        }
        let mut roof = Roofline::of_card(&card);
        for m in &mut roof.memory {
            m.gigabytes *= count;
        }
        for c in &mut roof.compute {
            c.tera *= count;
        }
        fits.push(Fit {
            name: card.name.into(),
            count: count as u32,
            memory,
            tokens_per_second: tokens(question, &roof)?,
        });
    }
    for family in mig::families() {
        let Some(geometry) = Geometry::family(family) else { continue };
        let (kind, size) = family.split_once('-').unwrap_or_default();
        let gigabytes: u64 = size.trim_end_matches("gb").parse().unwrap_or(0);
        let mut cards = sheet::cards().into_iter().filter(|c| c.name.to_ascii_lowercase().contains(kind));
        let Some(card) = cards.find(|c| c.memory_gb == gigabytes) else { continue };
        for profile in geometry.profiles.iter().filter(|p| p.size < geometry.memory && !p.media()) {
            let memory = profile.memory_mib as f64 * 1_048_576.0;
            if bytes > memory * 0.95 {
                continue;
            }
            let mut roof = Roofline::of_card(&card);
            let (compute, share) = (
                f64::from(profile.multiprocessors) / f64::from(card.multiprocessors),
                f64::from(profile.size) / f64::from(geometry.memory),
            );
            roof.compute.iter_mut().for_each(|c| c.tera *= compute);
            roof.memory = roof.memory.into_iter().map(|m| Memory { gigabytes: m.gigabytes * share, ..m }).collect();
            fits.push(Fit {
                name: format!("{} of {}", profile.name, card.name),
                count: 1,
                memory,
                tokens_per_second: tokens(question, &roof)?,
            });
        }
    }
    fits.sort_by(|a, b| (a.count, a.memory).partial_cmp(&(b.count, b.memory)).unwrap_or(std::cmp::Ordering::Equal));
    Ok(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(parameters: f64) -> Question {
        Question {
            parameters,
            precision: Precision::Bf16,
            sequence: 4096,
            batch: 1,
            optimizer: None,
            checkpointing: false,
        }
    }

    #[test]
    fn serving_7b_needs_14_gigabytes_and_a_cache() {
        let answer = fit(&question(7e9)).unwrap();
        assert!((answer.parts[0].bytes - 14e9).abs() < 1.0);
        assert!((answer.parts[1].bytes - 2.0 * GIB).abs() < 1e6);
        let single = |name: &str| answer.fits.iter().any(|f| f.name == name && f.count == 1);
        assert!(single("L4") && single("2g.20gb of H100 PCIe") && !single("RTX A4000"));
    }

    #[test]
    fn training_with_adam_takes_sixteen_bytes_a_parameter() {
        let answer = fit(&Question { optimizer: Some(Optimizer::Adam), checkpointing: true, ..question(7e9) }).unwrap();
        let state: f64 = answer
            .parts
            .iter()
            .filter(|p| matches!(p.what, "weights" | "gradients" | "optimizer"))
            .map(|p| p.bytes)
            .sum();
        assert!((state - 16.0 * 7e9).abs() < 1.0);
        assert!(answer.fits.iter().all(|f| !(f.name == "H100 80GB HBM3" && f.count == 1)));
        assert!(answer.fits.iter().any(|f| f.name == "H200" && f.count == 1));
    }

    #[test]
    fn unreasonable_sizes_are_refused() {
        assert!(fit(&Question { batch: 0, ..question(7e9) }).is_err());
    }
}
