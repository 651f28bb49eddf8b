//! The memory of one GPU for training a model: weights, gradients, the optimizer's state, activations and logits.

use super::layout::Layout;
use super::memory::{Part, overhead, short};
use super::request::{Method, Recompute, Request, Training};
use crate::sheet::Precision;
use crate::transformer::{FeedForward, Format, Layers, Mixer, Transformer};

/// All parts of the memory of a GPU that trains.
pub fn training(shape: &Transformer, format: Format, layout: Layout, request: &Request, train: &Training) -> Vec<Part> {
    let own = layout.split().census(shape);
    let group = layout.zero_group() as f64;
    let divided = |stage: u32| if layout.zero >= stage { group } else { 1.0 };
    let by = |stage: u32| if layout.zero >= stage && group > 1.0 { format!(" / {group} GPUs") } else { String::new() };
    let mut parts = Vec::new();
    let weights = format.bytes(&own);
    let (bits, _) = format.bits();
    parts.push(Part {
        what: "weights",
        bytes: weights / divided(3),
        formula: "parameters on this GPU x bytes, divided among the copies with ZeRO 3".into(),
        numbers: format!("{} x {:.3} B{}", short(own.total()), weights / own.total().max(1.0), by(3)),
    });
    if layout.zero >= 3 && group > 1.0 {
        // While a layer is computed its weights are whole, and those of the next one are on their way.
        let layers = layout.split().stage(shape.depth()).max(1) as f64;
        let gathered = 2.0 * format.bytes(&crate::transformer::Census { embedding: 0.0, head: 0.0, ..own }) / layers
            + (own.embedding.max(own.head)) * format.plain_bytes();
        parts.push(Part {
            what: "gathered weights",
            bytes: gathered,
            formula:
                "two whole layers and the embedding or output layer, which ZeRO 3 gathers while it computes with them"
                    .into(),
            numbers: format!(
                "2 x {} of {layers} layers x {:.3} B + {} x {} B",
                short(own.body()),
                bits / 8.0,
                short(own.embedding.max(own.head)),
                format.plain_bytes()
            ),
        });
    }
    let (trained, what) = if train.method.adapters() {
        let adapters = adapters(shape, layout, train.lora_rank);
        parts.push(Part {
            what: "adapters",
            bytes: adapters * 2.0 / divided(3),
            formula:
                "rank x (inputs + outputs) of every matrix of the layers, in 16 bits (Hu et al. 2021, section 4.1)"
                    .into(),
            numbers: format!("{} x 2 B{}", short(adapters), by(3)),
        });
        (adapters, "adapters")
    } else {
        (own.total(), "parameters")
    };
    let mixed = train.method.adapters() || format != Format::Fp32;
    let gradient = if mixed { train.gradients.bytes() } else { Precision::Fp32.bytes() };
    parts.push(Part {
        what: "gradients",
        bytes: trained * gradient / divided(2),
        formula: format!("{what} x bytes, divided among the copies with ZeRO 2"),
        numbers: format!("{} x {gradient} B{}", short(trained), by(2)),
    });
    let (moments, words) = match train.method {
        Method::Adam | Method::Lora | Method::Qlora => (8.0, "two moments in fp32"),
        Method::Adam8bit => (2.0 + 8.0 / 256.0, "two moments of 8 bits with an fp32 scale for each 256"),
        // A matrix of n x m has n + m sums.
        Method::Adafactor => (8.0 / shape.hidden as f64, "sums over rows and columns in fp32"),
        Method::Momentum => (4.0, "one moment in fp32"),
        Method::Sgd => (0.0, "no state"),
    };
    let master = if mixed && train.master_weights { 4.0 } else { 0.0 };
    parts.push(Part {
        what: "optimizer",
        bytes: trained * (moments + master) / divided(1),
        formula: format!(
            "{what} x ({words}, and fp32 weights beside 16-bit ones), divided among the copies with ZeRO 1 (Rajbhandari et al. 2020, section 3.1)"
        ),
        numbers: format!("{} x ({moments:.3} + {master}) B{}", short(trained), by(1)),
    });
    parts.push(activations(shape, layout, request, train));
    let tokens = (request.seq.div_ceil(layout.context) * request.batch) as f64;
    let (v, t) = (shape.vocabulary as f64, layout.tensor as f64);
    parts.push(Part {
        what: "logits",
        bytes: tokens * v * 8.0 / t,
        formula: "sequences x tokens x vocabulary x (4 B of fp32 logits + 4 B of their gradient), divided by tensor parallelism".into(),
        numbers: format!("{tokens} x {v} x 8 B / {t}"),
    });
    parts.extend(overhead(shape, layout, request));
    parts
}

/// Parameters of the adapters on one GPU.
fn adapters(shape: &Transformer, layout: Layout, rank: u64) -> f64 {
    let (h, r, t) = (shape.hidden as f64, rank as f64, layout.tensor as f64);
    let stage = layout.split().stage(shape.depth()) as f64 / shape.depth().max(1) as f64;
    let widths = |l: &Layers| {
        let mixer = match l.mixer {
            Mixer::Attention { heads, kv_heads, head_dim, .. } => {
                let (q, kv) = ((heads * head_dim) as f64, (kv_heads * head_dim) as f64);
                (h + q) + 2.0 * (h + kv) + (q + h)
            }
            Mixer::Latent { heads, query_rank, rank, nope_dim, rope_dim, value_dim, .. } => {
                let (q, v) = ((heads * (nope_dim + rope_dim)) as f64, (heads * value_dim) as f64);
                let query = query_rank.map_or(h + q, |k| h + 2.0 * k as f64 + q);
                let kv = (heads * (nope_dim + value_dim)) as f64;
                query + h + (rank + rope_dim) as f64 + rank as f64 + kv + v + h
            }
            Mixer::Recurrent { parameters, .. } => 2.0 * (parameters as f64).sqrt(),
            Mixer::None => 0.0,
        };
        let feed_forward = match l.feed_forward {
            FeedForward::Dense { inner, matrices } => matrices as f64 * (h + inner as f64),
            FeedForward::Experts { experts, inner, shared, matrices, .. } => {
                let shared = if shared > 0 { h + shared as f64 } else { 0.0 };
                matrices as f64 * (experts as f64 * (h + inner as f64) + shared)
            }
            FeedForward::None => 0.0,
        };
        l.count as f64 * (mixer + feed_forward)
    };
    // One of the two factors of an adapter is split with its matrix, the other is copied: between the two the half is counted.
    let split = (1.0 + 1.0 / t) / 2.0;
    r * stage * split * shape.layers.iter().map(widths).sum::<f64>()
}

/// 16-bit activations of one token of a layer in bytes, and how many of them tensor parallelism divides, without the scores of attention.
///
/// The terms are those of Korthikanti et al. 2022, section 4.1, for any widths: a 16-bit input of each matrix and of each
/// normalisation, queries, keys and values, the inner state before and after the activation, and a byte per mask of dropout. For GPT's
/// widths they make its 34 x hidden.
fn per_token(l: &Layers, hidden: f64, dropout: bool) -> f64 {
    let mask = if dropout { hidden } else { 0.0 };
    let norms = 4.0 * hidden;
    let mixer = match l.mixer {
        Mixer::Attention { heads, kv_heads, head_dim, .. } => {
            let (q, kv) = ((heads * head_dim) as f64, (kv_heads * head_dim) as f64);
            2.0 * hidden + 2.0 * q + 4.0 * kv + 2.0 * q + mask
        }
        Mixer::Latent { heads, rank, nope_dim, rope_dim, value_dim, query_rank, .. } => {
            let (qk, v) = ((heads * (nope_dim + rope_dim)) as f64, (heads * value_dim) as f64);
            2.0 * hidden + 4.0 * qk + 4.0 * v + 2.0 * (rank + rope_dim + query_rank.unwrap_or(0)) as f64
        }
        // Input, both halves of the projection, the convolved one, and the output.
        Mixer::Recurrent { parameters, .. } => 2.0 * hidden + 6.0 * (parameters as f64 / hidden),
        Mixer::None => 0.0,
    };
    let inner = |width: f64, matrices: u64| 2.0 * hidden + 2.0 * matrices as f64 * width;
    let feed_forward = match l.feed_forward {
        FeedForward::Dense { inner: width, matrices } => inner(width as f64, matrices) + mask,
        FeedForward::Experts { active, inner: width, shared, matrices, .. } => {
            active as f64 * inner(width as f64, matrices)
                + if shared > 0 { inner(shared as f64, matrices) } else { 0.0 }
        }
        FeedForward::None => 0.0,
    };
    norms + mixer + feed_forward
}

fn activations(shape: &Transformer, layout: Layout, request: &Request, train: &Training) -> Part {
    let tokens = request.seq.div_ceil(layout.context);
    let (s, b, t) = (tokens as f64, request.batch as f64, layout.tensor as f64);
    let h = shape.hidden as f64;
    let stage = layout.split().stage(shape.depth()) as f64 / shape.depth().max(1) as f64;
    // The first stage of a pipeline holds as many batches as there are stages (1F1B, Narayanan et al. 2021), so all layers' worth.
    let in_flight = layout.pipeline as f64;
    let scores = |l: &Layers| match l.mixer {
        Mixer::Attention { heads, .. } | Mixer::Latent { heads, .. } => {
            5.0 * heads as f64 * l.mixer.visible(request.seq) as f64
        }
        _ => 0.0,
    };
    let keep_scores = train.keep_scores && train.recompute == Recompute::None;
    let one = |l: &Layers, with_scores: bool| {
        s * b * (per_token(l, h, shape.dropout) + if with_scores { scores(l) } else { 0.0 })
    };
    let depth = shape.depth() as f64 * stage * in_flight;
    let (bytes, formula) = if train.recompute == Recompute::Full {
        let widest = shape.layers.iter().map(|l| one(l, train.keep_scores)).fold(0.0, f64::max);
        let inputs = depth * 2.0 * s * b * h;
        (inputs / t + widest / t, "layers x 2 s b h of inputs, and one layer while it is recomputed")
    } else {
        let all: f64 = shape.layers.iter().map(|l| l.count as f64 * stage * in_flight * one(l, keep_scores)).sum();
        (
            all / t,
            if keep_scores {
                "each layer's activations and 5 a s^2 b of scores"
            } else {
                "each layer's activations; scores are computed in tiles (FlashAttention) or again"
            },
        )
    };
    let scale = if request.dtype == Some(Format::Fp32) { 2.0 } else { 1.0 };
    Part {
        what: "activations",
        bytes: bytes * scale,
        formula: format!(
            "{formula} (Korthikanti et al. 2022, sections 4 and 5, with sequence parallelism; 34 s b h for GPT's widths), x {scale} for their format"
        ),
        numbers: format!(
            "{depth} layers x {s} x {b} x {:.1} h of {h}, by tensor parallelism {t}",
            shape.layers.iter().map(|l| l.count as f64 * per_token(l, h, shape.dropout)).sum::<f64>()
                / (shape.depth().max(1) as f64 * h)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transformer::Description;

    fn parts(name: &str, train: Training) -> Vec<Part> {
        let shape = Description::of_model(name).transformer().unwrap();
        let request = Request { seq: 2048, train: Some(train), ..Request::default() };
        training(&shape, Format::Bf16, Layout::SINGLE, &request, &train)
    }

    /// Korthikanti et al. 2022: 34 s b h for a layer of GPT, and 5 a s / h = 80 of it for the scores of GPT-3.
    #[test]
    fn activations_of_gpt_are_34_sbh() {
        let of = |keep_scores, recompute| {
            let train = Training { keep_scores, recompute, ..Training::default() };
            let part = parts("gpt-3-175b", train).into_iter().find(|p| p.what == "activations").unwrap();
            part.bytes / (96.0 * 2048.0 * 12288.0)
        };
        assert!((of(false, Recompute::None) - 34.0).abs() < 0.01, "{}", of(false, Recompute::None));
        assert!((of(true, Recompute::None) - 114.0).abs() < 0.01, "{}", of(true, Recompute::None));
        assert!((of(true, Recompute::Selective) - 34.0).abs() < 0.01);
        assert!((of(false, Recompute::Full) - (2.0 + 34.0 / 96.0)).abs() < 0.01);
    }

    #[test]
    fn adapters_have_the_published_number_of_parameters() {
        // Qwen's README, and LoRA on all matrices of Llama 2 7B with rank 16: 39,976,960 (PEFT's print_trainable_parameters).
        let shape = Description::of_model("llama-2-7b").transformer().unwrap();
        assert!((adapters(&shape, Layout::SINGLE, 16) - 39_976_960.0).abs() < 1.0);
    }
}
