//! Estimates how much memory a model needs on each GPU for serving or training, and finds the cards, MIG slices and layouts that it fits.
//!
//! The estimate is a sum of parts; each part carries its formula with its source, and the numbers put in. The tests compare it
//! with published measurements.

pub mod layout;
#[cfg(test)]
mod measurements;
pub mod memory;
pub mod request;
pub mod serving;
pub mod targets;
#[cfg(test)]
mod tests;
pub mod training;

use schemars::JsonSchema;
use serde::Serialize;

use crate::GpuError;
use crate::transformer::{Format, Transformer};
use layout::{Layout, layouts};
use memory::{Formats, GIB, Part};
pub use request::{Method, Recompute, Request, Training};
use serving::Serving;
use targets::{Target, targets};

/// Numbers of GPUs that are tried, smallest first, if the request names none.
const COUNTS: [u64; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];

/// A target that the model fits on.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "ModelFit")]
pub struct Fit {
    /// The card, and the MIG profile or part where it is not whole.
    pub name: String,
    /// Number of GPUs.
    pub count: u64,
    /// Number of machines.
    pub nodes: u64,
    /// Memory of each card or slice in bytes.
    pub memory: f64,
    /// How the model is laid out.
    pub layout: Layout,
    /// The layout in words: `TP4 PP2`.
    pub layout_name: String,
    /// Memory that each GPU needs, in bytes.
    pub bytes_per_gpu: f64,
    /// The parts of it.
    pub parts: Vec<Part>,
    /// Upper bound on generated tokens per second from the roofline; `None` for training.
    pub tokens_per_second: Option<f64>,
    /// What it serves; `None` for training.
    pub serving: Option<Serving>,
}

/// A layout that was considered.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "ConsideredLayout")]
pub struct Considered {
    /// The card.
    pub name: String,
    /// The layout.
    pub layout: Layout,
    /// The layout in words.
    pub layout_name: String,
    /// Memory that each GPU needs, in bytes; `None` if the model cannot be laid out so.
    pub bytes_per_gpu: Option<f64>,
    /// Why it is impossible; `None` if it fits.
    pub reason: Option<String>,
}

/// The result of [`fit`].
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "FitEstimate")]
pub struct Estimate {
    /// The request that was estimated.
    pub question: Request,
    /// The model's shape, published, read or assumed.
    pub shape: Transformer,
    /// Number of parameters.
    pub parameters: f64,
    /// Parameters that one token is multiplied with.
    pub active_parameters: f64,
    /// Number formats.
    pub formats: Formats,
    /// The parts of the memory on a single GPU.
    pub parts: Vec<Part>,
    /// Memory on a single GPU in bytes: the sum of `parts`.
    pub bytes: f64,
    /// Cards and slices that the model fits on, fewest and smallest first.
    pub fits: Vec<Fit>,
    /// The layouts that were considered, with the reason of each that is impossible; only if the request names a card and a number of
    /// GPUs.
    pub considered: Vec<Considered>,
    /// What was assumed because the request does not name it.
    pub assumptions: Vec<String>,
    /// If nothing fits: the layout that comes nearest, and why it does not fit.
    pub nearest: Option<String>,
}

/// The formats of a request for a model.
fn formats(request: &Request, shape: &Transformer) -> Formats {
    let default = match &request.train {
        Some(train) if train.method == Method::Qlora => Format::Nf4,
        // What a file declares is how it is served; training keeps 16 bits.
        Some(_) => shape.format.filter(|f| f.trainable()).unwrap_or(Format::Bf16),
        None => shape.format.unwrap_or(Format::Bf16),
    };
    let weights = request.dtype.unwrap_or(default);
    let cache =
        request.kv_dtype.unwrap_or_else(|| request.dtype.map_or_else(|| weights.cache(), Format::requested_cache));
    Formats { weights, cache }
}

/// Estimates the memory of `request` and finds where it fits.
///
/// # Errors
/// [`GpuError::Invalid`] if a value is out of range, the combination is impossible, or the model or card is not known.
pub fn fit(request: &Request) -> Result<Estimate, GpuError> {
    let shape = request.model.transformer()?;
    let formats = formats(request, &shape);
    request.check(formats.weights)?;
    let parts = parts(&shape, formats, Layout::SINGLE, request);
    let mut search = Search { request, shape: &shape, formats, considered: Vec::new(), nearest: None, blocked: None };
    let mut fits = Vec::new();
    let considered_targets = targets(request)?;
    for target in &considered_targets {
        fits.extend(search.smallest(target));
    }
    fits.sort_by(|a, b| a.count.cmp(&b.count).then(a.memory.total_cmp(&b.memory)));
    let nearest = if fits.is_empty() { Some(search.nearest()) } else { None };
    Ok(Estimate {
        question: request.clone(),
        parameters: shape.parameters(),
        active_parameters: shape.active_parameters(),
        formats,
        bytes: memory::total(&parts),
        parts,
        fits,
        considered: search.considered,
        assumptions: assumptions(request, formats, &considered_targets),
        nearest,
        shape,
    })
}

/// What the estimate assumes about the cache and about machines, in words.
fn assumptions(request: &Request, formats: Formats, targets: &[Target]) -> Vec<String> {
    let mut all = Vec::new();
    if request.train.is_none() && request.kv_dtype.is_none() {
        let cache = formats.cache;
        all.push(if cache == formats.weights.cache() {
            format!("the key-value cache is in {cache}, as with vLLM's --kv-cache-dtype auto; --kv-dtype names another format")
        } else {
            format!("the key-value cache is in {cache} as the weights, which vLLM does with --kv-cache-dtype {cache}; --kv-dtype names another format")
        });
    }
    let mut machines: Vec<_> = targets.iter().filter_map(|t| t.machine.map(|m| (t.card, m))).collect();
    machines.dedup_by_key(|(card, _)| *card);
    // With all cards considered, only the assumption about the others would be news.
    if let ([(card, machine)], None) = (machines.as_slice(), request.gpus_per_node)
        && request.card.is_some()
    {
        let gpus = if machine.gpus == 1 { "GPU" } else { "GPUs" };
        all.push(format!("a machine with {card} has {} {gpus}: {}", machine.gpus, machine.name));
    }
    all
}

fn parts(shape: &Transformer, formats: Formats, layout: Layout, request: &Request) -> Vec<Part> {
    match &request.train {
        Some(train) => training::training(shape, formats.weights, layout, request, train),
        None => memory::serving(shape, formats, layout, request),
    }
}

/// The search for layouts, with what it saw.
struct Search<'a> {
    request: &'a Request,
    shape: &'a Transformer,
    formats: Formats,
    considered: Vec<Considered>,
    /// The layout whose memory exceeds that of its GPUs by the smallest factor, and that factor.
    nearest: Option<(f64, String)>,
    /// The first layout that is impossible whatever the memory, and why.
    blocked: Option<String>,
}

impl Search<'_> {
    /// The numbers of GPUs to try on a target.
    fn counts(&self, target: &Target) -> Vec<u64> {
        let factors = [self.request.tp, self.request.pp, self.request.cp, self.request.dp];
        let least: u64 = factors.into_iter().flatten().product();
        let per_node = target.per_machine(self.request);
        let all: Vec<u64> = match (self.request.gpus, self.request.nodes) {
            (Some(gpus), _) => vec![gpus],
            (None, Some(nodes)) => vec![nodes * per_node],
            (None, None) if factors.iter().all(Option::is_some) => vec![least],
            (None, None) => {
                let most = if target.clustered { u64::MAX } else { per_node };
                let multiples = COUNTS.iter().map(|n| n * least.max(1));
                let counts = if least > 1 { multiples.collect() } else { COUNTS.to_vec() };
                counts.into_iter().filter(|n| *n <= most.max(least)).collect()
            }
        };
        all.into_iter().filter(|n| target.many || *n == 1).collect()
    }

    /// The best layout with the fewest GPUs of a target.
    fn smallest(&mut self, target: &Target) -> Option<Fit> {
        for gpus in self.counts(target) {
            let nodes = self.request.nodes.unwrap_or(1).max(gpus.div_ceil(target.per_machine(self.request)));
            let linked = gpus.div_ceil(nodes).max(target.linked(self.request).min(gpus));
            let mut best: Option<(Layout, Vec<Part>, f64)> = None;
            for layout in layouts(self.request, self.shape, gpus) {
                let Some(parts) = self.consider(target, layout, linked) else { continue };
                let score = self.score(target, layout, &parts);
                if best.as_ref().is_none_or(|(_, _, s)| score > *s) {
                    best = Some((layout, parts, score));
                }
            }
            if let Some((layout, parts, _)) = best {
                return Some(self.fit(target, layout, parts, nodes));
            }
        }
        None
    }

    /// The parts of a layout's memory if it is possible and fits.
    fn consider(&mut self, target: &Target, layout: Layout, linked: u64) -> Option<Vec<Part>> {
        let limit = target.memory * self.request.utilization;
        let obstacle = layout.obstacle(self.shape, self.formats.weights, self.request, linked);
        let parts = if obstacle.is_some() { Vec::new() } else { parts(self.shape, self.formats, layout, self.request) };
        let bytes = memory::total(&parts);
        let reason = obstacle.clone().or_else(|| {
            let largest = parts.iter().max_by(|a, b| a.bytes.total_cmp(&b.bytes))?;
            (bytes > limit).then(|| {
                format!(
                    "needs {:.1} GiB of {:.1} GiB per GPU, {:.1} GiB of it {}",
                    bytes / GIB,
                    limit / GIB,
                    largest.bytes / GIB,
                    largest.what
                )
            })
        });
        if let (Some(why), None) = (&obstacle, &self.blocked) {
            self.blocked = Some(format!("{} x {} as {layout}: {why}", layout.gpus(), target.name));
        }
        if let (None, Some(why)) = (&obstacle, &reason) {
            let factor = bytes / limit;
            if self.nearest.as_ref().is_none_or(|(f, _)| factor < *f) {
                self.nearest = Some((factor, format!("{} x {} as {layout}: {why}", layout.gpus(), target.name)));
            }
        }
        let fits = reason.is_none();
        if self.request.card.is_some() && self.request.gpus.is_some() {
            self.considered.push(Considered {
                name: target.name.clone(),
                layout,
                layout_name: layout.to_string(),
                bytes_per_gpu: obstacle.is_none().then_some(bytes),
                reason,
            });
        }
        fits.then_some(parts)
    }

    /// Serving: the fastest. Training: the one that sends least, which is the lowest stage of ZeRO and little but data
    /// parallelism; of those the one with most memory left.
    fn score(&self, target: &Target, layout: Layout, parts: &[Part]) -> f64 {
        if self.request.train.is_none() {
            return serving::rate(self.shape, self.formats, layout, self.request, target);
        }
        let pipeline = (layout.pipeline as f64).log2() * 4.0;
        let context = (layout.context as f64).log2() * 3.0;
        let tensor = (layout.tensor as f64).log2() * 2.0;
        let left = 1.0 - memory::total(parts) / target.memory;
        left - f64::from(layout.zero) - pipeline - context - tensor - f64::from(u32::from(layout.expert))
    }

    fn fit(&self, target: &Target, layout: Layout, parts: Vec<Part>, nodes: u64) -> Fit {
        let serving = match self.request.train {
            Some(_) => None,
            None => serving::serving(self.shape, self.formats, layout, self.request, target, &parts),
        };
        Fit {
            name: target.name.clone(),
            count: layout.gpus(),
            nodes,
            memory: target.memory,
            layout,
            layout_name: layout.to_string(),
            bytes_per_gpu: memory::total(&parts),
            parts,
            tokens_per_second: serving.as_ref().map(|s| s.tokens_per_second),
            serving,
        }
    }

    /// What comes nearest, in words.
    fn nearest(&self) -> String {
        if let Some((_, words)) = &self.nearest {
            return words.clone();
        }
        self.blocked.clone().unwrap_or_else(|| {
            "no layout has the requested number of GPUs: it is the product of tensor, pipeline, context and data parallelism".into()
        })
    }
}
