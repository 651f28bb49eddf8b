//! The memory of one GPU for serving a model, part by part, each with its formula and the numbers put in.

use schemars::JsonSchema;
use serde::Serialize;

use super::layout::Layout;
use super::request::Request;
use crate::sheet::Precision;
use crate::transformer::{Census, Format, Mixer, Transformer};

/// GiB in bytes.
pub const GIB: f64 = 1_073_741_824.0;

/// Bytes that the CUDA context with cuBLAS and the engine's code take on each GPU before a model is loaded. An observation: 0.4 to
/// 0.6 GiB on cards from T4 to H100.
const CONTEXT_BYTES: f64 = 0.5 * GIB;
/// Bytes of captured CUDA graphs on each GPU. An observation: vLLM reports 0.2 to 0.6 GiB ("Graph capturing finished ... took").
const GRAPH_BYTES: f64 = 0.4 * GIB;
/// Bytes of NCCL's buffers on each of several GPUs. An observation: 0.2 to 0.5 GiB with 2 to 8 GPUs.
const COMMUNICATION_BYTES: f64 = 0.3 * GIB;
/// Tokens of prompts that vLLM reads in one step, `max_num_batched_tokens`: at least 2048, and 8192 on cards of 70 GiB and more.
const BATCHED_TOKENS: (u64, u64) = (2048, 8192);
/// Sequences that vLLM reserves memory to sample for, `max_num_seqs`.
const SAMPLED_SEQUENCES: f64 = 256.0;

/// One part of the memory of a GPU.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "MemoryPart")]
pub struct Part {
    /// What the memory holds, such as `weights` or `key-value cache`.
    pub what: &'static str,
    /// Size in bytes.
    pub bytes: f64,
    /// The formula with its source.
    pub formula: String,
    /// The formula with the numbers of this model and layout.
    pub numbers: String,
}

/// The number formats of a model that is run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "ModelFormats")]
pub struct Formats {
    /// Of the weights.
    pub weights: Format,
    /// Of the key-value cache.
    pub cache: Precision,
}

/// A count of parameters for people: `8.03e9`.
pub fn short(n: f64) -> String {
    if n >= 1e9 {
        format!("{:.4}e9", n / 1e9)
    } else if n >= 1e6 {
        format!("{:.2}e6", n / 1e6)
    } else {
        format!("{n:.0}")
    }
}

/// The weights on the GPU of a layout that has most of them.
pub fn weights(shape: &Transformer, format: Format, layout: Layout) -> Part {
    let own = layout.split().census(shape);
    Part {
        what: "weights",
        bytes: format.bytes(&own),
        formula: "parameters on this GPU x bits of their format with its scales / 8; embeddings, output layer, routers and normalisations stay in 16 bits".into(),
        numbers: numbers(&own, format),
    }
}

fn numbers(own: &Census, format: Format) -> String {
    let (bits, sum) = format.bits();
    let plain = own.embedding + own.head + own.router + own.small + own.towers;
    let matrices = own.linear + own.key_value + own.replicated;
    let mut text = format!("{} x {} B", short(plain), format.plain_bytes());
    let linear = if own.experts == 0.0 { format.expert_bytes() } else { format.linear_bytes() };
    text.push_str(&format!(" + {} x {linear:.4} B", short(matrices)));
    if own.experts > 0.0 {
        text.push_str(&format!(" + {} x {:.4} B of experts", short(own.experts), format.expert_bytes()));
    }
    if bits != bits.round() {
        text.push_str(&format!(", {format} having {sum} bits"));
    }
    text
}

/// The key-value cache of one sequence on a GPU of a layout, in bytes.
pub fn cache_of_sequence(shape: &Transformer, formats: Formats, layout: Layout, request: &Request) -> f64 {
    let tokens = request.seq.div_ceil(layout.context);
    let stage = layout.split().stage(shape.depth()) as f64 / shape.depth().max(1) as f64;
    stage * shape.cache(tokens, layout.tensor, request.block).bytes(formats.cache.bytes())
}

/// What a GPU needs beside weights and cache.
pub fn overhead(shape: &Transformer, layout: Layout, request: &Request) -> Vec<Part> {
    let mut context = CONTEXT_BYTES;
    let mut words = "observed: 0.5 GiB of CUDA context and libraries on each GPU".to_owned();
    if request.train.is_none() {
        context += GRAPH_BYTES;
        words.push_str(", 0.4 GiB of CUDA graphs");
    }
    if layout.gpus() > 1 {
        context += COMMUNICATION_BYTES;
        words.push_str(", 0.3 GiB of NCCL's buffers");
    }
    let mut parts = vec![Part {
        what: "CUDA context, graphs and communication",
        bytes: context,
        numbers: format!("{:.1} GiB", context / GIB),
        formula: words,
    }];
    if request.train.is_none() {
        let tokens = request.seq.saturating_mul(request.batch).clamp(BATCHED_TOKENS.0, BATCHED_TOKENS.1) as f64;
        let sampled = SAMPLED_SEQUENCES;
        let (h, v, t) = (shape.hidden as f64, shape.vocabulary as f64, layout.tensor as f64);
        let inner = shape.widest() / t;
        parts.push(Part {
            what: "workspace",
            bytes: tokens * 2.0 * (4.0 * h + 2.0 * inner) + sampled * v * 4.0 * 2.0,
            formula: "16-bit activations of a step of 2048 to 8192 tokens: tokens x 2 B x (4 x hidden + 2 x width), and fp32 logits with their probabilities for 256 sequences, as vLLM reserves them: sequences x vocabulary x 8 B".into(),
            numbers: format!("{tokens} x 2 x (4 x {h} + 2 x {inner}) + {sampled} x {v} x 8"),
        });
    }
    parts
}

/// All parts of the memory of a GPU that serves.
pub fn serving(shape: &Transformer, formats: Formats, layout: Layout, request: &Request) -> Vec<Part> {
    let one = cache_of_sequence(shape, formats, layout, request);
    let sequences = request.batch.div_ceil(layout.data) as f64;
    let mut parts = vec![
        weights(shape, formats.weights, layout),
        Part {
            what: "key-value cache",
            bytes: sequences * one,
            formula: format!(
                "sequences x tokens in blocks of {} x numbers per token x bytes, by layer: 2 x heads x width of keys and values (Pope et al. 2022, section 3.3), latent vectors (DeepSeek-V2, section 2.1), windows, fixed states in fp32",
                request.block
            ),
            numbers: cache_numbers(shape, formats, layout, request, sequences),
        },
    ];
    parts.extend(overhead(shape, layout, request));
    parts
}

fn cache_numbers(shape: &Transformer, formats: Formats, layout: Layout, request: &Request, sequences: f64) -> String {
    let tokens = request.seq.div_ceil(layout.context);
    let block = request.block.max(1);
    // Layers that differ in their feed-forward part only have one kind of cache.
    let mut kinds: Vec<(u64, &Mixer)> = Vec::new();
    for l in &shape.layers {
        match kinds.iter_mut().find(|(_, mixer)| **mixer == l.mixer) {
            Some((count, _)) => *count += l.count,
            None => kinds.push((l.count, &l.mixer)),
        }
    }
    let terms: Vec<String> = kinds
        .into_iter()
        .filter_map(|(count, mixer)| {
            let stored = mixer.visible(tokens).div_ceil(block) * block;
            match mixer {
                Mixer::Attention { kv_heads, head_dim, .. } => Some(format!(
                    "{} layers x {stored} x 2 x {} x {head_dim} x {} B",
                    count,
                    kv_heads.div_ceil(layout.tensor),
                    formats.cache.bytes()
                )),
                Mixer::Latent { rank, rope_dim, index_dim, .. } => Some(format!(
                    "{} layers x {stored} x {} x {} B",
                    count,
                    rank + rope_dim + index_dim,
                    formats.cache.bytes()
                )),
                Mixer::Recurrent { state, .. } => Some(format!("{count} layers x {state} x 4 B")),
                Mixer::None => None,
            }
        })
        .collect();
    let stages = if layout.pipeline > 1 { format!(" / {} stages", layout.pipeline) } else { String::new() };
    format!("{sequences} x ({}){stages}", terms.join(" + "))
}

/// The sum of parts.
pub fn total(parts: &[Part]) -> f64 {
    parts.iter().map(|p| p.bytes).sum()
}
