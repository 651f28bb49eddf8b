//! The speed of serving by the roofline, and how many sequences the memory has capacity for.

use schemars::JsonSchema;
use serde::Serialize;

use super::layout::Layout;
use super::memory::{self, Formats, Part};
use super::request::Request;
use super::targets::Target;
use crate::transformer::cost::{Cost, Step};
use crate::transformer::{FeedForward, Transformer};

/// What a layout serves at best.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "ServingEstimate")]
pub struct Serving {
    /// Generated tokens per second of all sequences, an upper bound.
    pub tokens_per_second: f64,
    /// Seconds between two tokens of a sequence, a lower bound.
    pub seconds_per_token: f64,
    /// Seconds until the first token of a prompt as long as the sequences, a lower bound.
    pub seconds_to_first_token: f64,
    /// Tokens that the caches of all copies have capacity for: what vLLM reports as "GPU KV cache size".
    pub cache_tokens: f64,
    /// Sequences of the requested length that fit at the same time: vLLM's "Maximum concurrency".
    pub concurrency: f64,
    /// Sequences per step from which products with the weights are limited by arithmetic instead of memory.
    pub ridge_batch: f64,
    /// US dollars per hour, if the price of a GPU is known.
    pub dollars_per_hour: Option<f64>,
    /// US dollars per 10^6 generated tokens at `tokens_per_second`.
    pub dollars_per_million_tokens: Option<f64>,
    /// How the figures come about.
    pub formulas: Vec<String>,
}

/// What a step takes, and what it takes for.
struct Time {
    seconds: f64,
    words: String,
}

/// The step of a layout.
fn step(formats: Formats, layout: Layout, batch: f64, tokens: u64) -> Step {
    Step {
        batch,
        tokens,
        replicas: layout.data as f64,
        format: formats.weights,
        cache: formats.cache,
        split: layout.split(),
    }
}

/// Bytes that a GPU sends in a step of `tokens` tokens: two sums over the tensor-parallel group per layer in 16 bits, each of which
/// moves 2 (t - 1) / t of the hidden state (ring all-reduce), and the tokens of spread experts, there and back.
fn communication(shape: &Transformer, layout: Layout, tokens: f64, target: &Target, request: &Request) -> f64 {
    let h = shape.hidden as f64 * 2.0;
    let stage = layout.split().stage(shape.depth()) as f64;
    let t = layout.tensor as f64;
    let linked = target.linked(request).min(layout.gpus()) as f64;
    let rate = |group: f64| if group > linked { request.network } else { target.link.0 } * 1e9;
    let sums = if layout.tensor > 1 { stage * 2.0 * tokens * h * 2.0 * (t - 1.0) / t / rate(t) } else { 0.0 };
    let group = (layout.tensor * layout.data) as f64;
    let experts = shape.layers.iter().map(|l| match l.feed_forward {
        FeedForward::Experts { active, .. } if layout.expert => active as f64 * l.count as f64,
        _ => 0.0,
    });
    let share = stage / shape.depth().max(1) as f64;
    let sent = 2.0 * tokens * h * (group - 1.0) / group / t * experts.sum::<f64>() * share;
    sums + if layout.expert { sent / rate(group) } else { 0.0 }
}

fn time(cost: Cost, communication: f64, formats: Formats, target: &Target) -> Option<Time> {
    let precision = formats.weights.arithmetic(|p| target.roof.has(p));
    let tera = target.roof.ceiling(precision)?.tera;
    let bandwidth = target.roof.main_memory()?.gigabytes;
    let (compute, read) = (cost.operations / (tera * 1e12), cost.bytes / (bandwidth * 1e9));
    Some(Time {
        seconds: compute.max(read) + communication,
        words: format!(
            "max({:.3e} operations / {tera:.0}e12 in {precision}, {:.3e} B / {bandwidth:.0}e9) + {communication:.2e} s on links",
            cost.operations, cost.bytes
        ),
    })
}

/// Generated tokens per second of a layout; `None` if the target lacks a rate.
fn generation(
    shape: &Transformer,
    formats: Formats,
    layout: Layout,
    request: &Request,
    target: &Target,
) -> Option<(f64, Time)> {
    // A pipeline works on as many parts of the batch as it has stages, or on one sequence at a time.
    let own = (request.batch as f64 / layout.data as f64).ceil();
    let part = (own / layout.pipeline as f64).max(1.0);
    let cost = step(formats, layout, part, request.seq.div_ceil(layout.context)).decode(shape);
    let sent = communication(shape, layout, part, target, request);
    let mut time = time(cost, sent, formats, target)?;
    time.seconds *= layout.pipeline as f64;
    Some((request.batch as f64 / time.seconds, time))
}

/// The best speed of a layout, for choosing among layouts; 0 if the target lacks a rate.
pub fn rate(shape: &Transformer, formats: Formats, layout: Layout, request: &Request, target: &Target) -> f64 {
    generation(shape, formats, layout, request, target).map_or(0.0, |(rate, _)| rate)
}

/// What a layout serves; `None` if the target lacks a rate.
pub fn serving(
    shape: &Transformer,
    formats: Formats,
    layout: Layout,
    request: &Request,
    target: &Target,
    parts: &[Part],
) -> Option<Serving> {
    let (tokens_per_second, generation) = generation(shape, formats, layout, request, target)?;
    let prompt = step(formats, layout, 1.0, request.seq.div_ceil(layout.context));
    let sent = communication(shape, layout, prompt.tokens as f64, target, request);
    let alone = Step { replicas: 1.0, ..prompt };
    let first = time(alone.prefill(shape), sent, formats, target)?;
    let first_seconds = first.seconds * layout.pipeline as f64;

    let one = memory::cache_of_sequence(shape, formats, layout, request);
    let fixed: f64 = parts.iter().filter(|p| p.what != "key-value cache").map(|p| p.bytes).sum();
    let free = (target.memory * request.utilization - fixed).max(0.0);
    let concurrency = if one > 0.0 { free / one * layout.data as f64 } else { f64::from(u32::MAX) };

    let precision = formats.weights.arithmetic(|p| target.roof.has(p));
    let peak = target.roof.ceiling(precision)?.tera * 1e12;
    let bandwidth = target.roof.main_memory()?.gigabytes * 1e9;
    let weights = formats.weights.bytes(&shape.census());
    let ridge_batch = weights * peak / (2.0 * shape.active_parameters() * bandwidth);

    let gpus = layout.gpus() as f64;
    let dollars_per_hour = target.price(request).map(|p| p * gpus);
    let formulas = vec![
        format!("tokens per second: {} sequences / ({} stages x {})", request.batch, layout.pipeline, generation.words),
        format!("time to the first token of {} tokens: {} stages x {}", request.seq, layout.pipeline, first.words),
        format!(
            "sequences that fit: ({:.2} GiB x {} - {:.2} GiB) / {:.4} GiB per sequence x {} copies",
            target.memory / memory::GIB,
            request.utilization,
            fixed / memory::GIB,
            one / memory::GIB,
            layout.data
        ),
        format!(
            "batch at the ridge: {weights:.3e} B of weights x {peak:.3e} operations/s / (2 x {:.3e} active parameters x {bandwidth:.3e} B/s)",
            shape.active_parameters()
        ),
    ];
    Some(Serving {
        tokens_per_second,
        seconds_per_token: generation.seconds,
        seconds_to_first_token: first_seconds,
        cache_tokens: concurrency * request.seq as f64,
        concurrency,
        ridge_batch,
        dollars_per_hour,
        dollars_per_million_tokens: dollars_per_hour.map(|d| d / 3600.0 / tokens_per_second * 1e6),
        formulas,
    })
}
