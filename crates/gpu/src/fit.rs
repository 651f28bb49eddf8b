//! Estimates how much memory a model needs for serving or training, and lists the cards and MIG slices it fits on.
//!
//! The estimate is a sum of parts; each part carries its formula and source.

use serde::Serialize;

use crate::mig::Geometry;
use crate::roofline::{Memory, Roofline};
use crate::sheet::{self, Precision};
use crate::work::{Transformer, Work};
use crate::{GpuError, mig};

/// The model and the way it will be run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Request {
    /// Number of parameters, such as 7e9.
    pub parameters: f64,
    /// Number format of weights and key-value cache.
    pub precision: Precision,
    /// Tokens per sequence, from 1 to 2^24.
    pub sequence: u32,
    /// Sequences processed together, from 1 to 2^20.
    pub batch: u32,
    /// The optimizer for training; `None` means inference.
    pub optimizer: Option<Optimizer>,
    /// Whether activations are recomputed in the backward pass (activation checkpointing).
    pub checkpointing: bool,
}

/// An optimizer, distinguished by the state that it keeps per parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// Two moments in fp32.
    Adam,
    /// One moment in fp32.
    Momentum,
    /// No state.
    Sgd,
}

impl std::str::FromStr for Optimizer {
    type Err = GpuError;
    fn from_str(text: &str) -> Result<Self, GpuError> {
        match text {
            "adam" | "adamw" => Ok(Self::Adam),
            "momentum" => Ok(Self::Momentum),
            "sgd" => Ok(Self::Sgd),
            _ => Err(GpuError::Invalid(format!("unknown optimizer '{text}': expected adam, momentum or sgd"))),
        }
    }
}

/// One part of the memory estimate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// What the memory holds, such as `weights` or `key-value cache`.
    pub what: &'static str,
    /// Size in bytes.
    pub bytes: f64,
    /// The formula with its source.
    pub formula: String,
}

/// A card or slice that the model fits on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fit {
    /// The card, and the MIG profile where it is a slice.
    pub name: String,
    /// Number of cards needed, from 1 to 8.
    pub count: u32,
    /// Memory of each card or slice in bytes.
    pub memory: f64,
    /// Upper bound on generated tokens per second from the roofline; `None` for training.
    pub tokens_per_second: Option<f64>,
}

/// The result of [`fit`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// The request that was estimated.
    pub question: Request,
    /// The model's shape, published or estimated.
    pub shape: Transformer,
    /// The parts of the memory.
    pub parts: Vec<Part>,
    /// Total memory in bytes: the sum of `parts`.
    pub bytes: f64,
    /// Cards and slices that the model fits on, smallest first.
    pub fits: Vec<Fit>,
}

/// Bytes used by CUDA, its libraries and allocator fragmentation before a model is loaded. This is an observation, not a
/// formula: about 0.5 GiB for a context with cuBLAS, and 0.5 GiB for workspaces.
const OVERHEAD_BYTES: f64 = 1.0 * GIB;
const GIB: f64 = 1_073_741_824.0;

/// Estimates the memory of `request` and finds where it fits.
///
/// # Errors
/// [`GpuError::Invalid`] if sequence or batch is out of range.
pub fn fit(request: &Request) -> Result<Estimate, GpuError> {
    if request.sequence == 0 || request.batch == 0 || request.sequence > 1 << 24 || request.batch > 1 << 20 {
        return Err(GpuError::Invalid("sequence must be from 1 to 16777216 and batch from 1 to 1048576".into()));
    }
    let shape = Transformer::from_parameters(request.parameters);
    let (p, b) = (request.parameters, request.precision.bytes());
    let (s, n) = (f64::from(request.sequence), f64::from(request.batch));
    let mut parts = vec![Part { what: "weights", bytes: p * b, formula: format!("parameters x {b} bytes") }];
    if let Some(optimizer) = request.optimizer {
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
        let (bytes, formula) = if request.checkpointing {
            (
                shape.layers * 2.0 * s * n * shape.hidden + 34.0 * s * n * shape.hidden,
                "layers x 2 s b h, and one layer's 34 s b h while it is recomputed",
            )
        } else {
            (shape.layers * 34.0 * s * n * shape.hidden, "layers x 34 s b h with attention computed in tiles")
        };
        let scale = b / 2.0;
        parts.push(Part {
            what: "activations",
            bytes: bytes * scale,
            formula: format!("{formula} (Korthikanti et al. 2022, section 4; 16-bit, scaled by {scale})"),
        });
    } else {
        parts.push(Part {
            what: "key-value cache",
            bytes: n * s * shape.cache_bytes_per_token(request.precision),
            formula: "batch x sequence x 2 x layers x key/value width x bytes (Pope et al. 2022, section 3.3)".into(),
        });
    }
    parts.push(Part { what: "CUDA and workspaces", bytes: OVERHEAD_BYTES, formula: "fixed allowance of 1 GiB".into() });
    let bytes: f64 = parts.iter().map(|part| part.bytes).sum();
    let fits = candidates(request, bytes)?;
    Ok(Estimate { question: request.clone(), shape, parts, bytes, fits })
}

fn tokens_per_second(request: &Request, roof: &Roofline) -> Result<Option<f64>, GpuError> {
    if request.optimizer.is_some() {
        return Ok(None);
    }
    let text = format!(
        "decode:model={},batch={},context={},dtype={}",
        request.parameters, request.batch, request.sequence, request.precision
    );
    Ok(roof.place(&Work::parse(&text)?).and_then(|p| p.tokens_per_second))
}

/// Cards (up to eight of a kind) and MIG slices with enough memory, ordered by count and then by memory.
fn candidates(request: &Request, bytes: f64) -> Result<Vec<Fit>, GpuError> {
    let mut fits = Vec::new();
    for card in sheet::cards() {
        let memory = card.memory_gb as f64 * 1e9;
        // Weights, activations and optimizer state can be sharded over cards, so only the total memory counts.
        let count = (bytes / (memory * 0.95)).ceil().max(1.0);
        if count > 8.0 {
            continue;
        }
        let mut roof = Roofline::from_card(&card);
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
            tokens_per_second: tokens_per_second(request, &roof)?,
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
            let mut roof = Roofline::from_card(&card);
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
                tokens_per_second: tokens_per_second(request, &roof)?,
            });
        }
    }
    fits.sort_by(|a, b| (a.count, a.memory).partial_cmp(&(b.count, b.memory)).unwrap_or(std::cmp::Ordering::Equal));
    Ok(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(parameters: f64) -> Request {
        Request {
            parameters,
            precision: Precision::Bf16,
            sequence: 4096,
            batch: 1,
            optimizer: None,
            checkpointing: false,
        }
    }

    #[test]
    fn serving_7b_needs_14_gb_and_key_value_cache() {
        let estimate = fit(&request(7e9)).unwrap();
        assert!((estimate.parts[0].bytes - 14e9).abs() < 1.0);
        assert!((estimate.parts[1].bytes - 2.0 * GIB).abs() < 1e6);
        let single = |name: &str| estimate.fits.iter().any(|f| f.name == name && f.count == 1);
        assert!(single("L4") && single("2g.20gb of H100 80GB HBM3") && !single("RTX A4000"));
    }

    #[test]
    fn adam_training_needs_16_bytes_per_parameter() {
        let estimate = fit(&Request { optimizer: Some(Optimizer::Adam), checkpointing: true, ..request(7e9) }).unwrap();
        let state: f64 = estimate
            .parts
            .iter()
            .filter(|p| matches!(p.what, "weights" | "gradients" | "optimizer"))
            .map(|p| p.bytes)
            .sum();
        assert!((state - 16.0 * 7e9).abs() < 1.0);
        assert!(estimate.fits.iter().all(|f| !(f.name == "H100 80GB HBM3" && f.count == 1)));
        assert!(estimate.fits.iter().any(|f| f.name == "H200" && f.count == 1));
    }

    #[test]
    fn out_of_range_batch_is_rejected() {
        assert!(fit(&Request { batch: 0, ..request(7e9) }).is_err());
    }
}
