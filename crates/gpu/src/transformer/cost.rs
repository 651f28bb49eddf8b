//! Operations and bytes of a step of generation and of the reading of prompts, on one of the GPUs that share the model.
//!
//! Every operand is moved once. Sources: 2 operations per parameter and token (Kaplan et al. 2020, table 1); weights and cache
//! are read once per step (Pope et al. 2022, section 3.3); the experts that a batch touches are those of a router that
//! spreads tokens evenly.

use serde::Serialize;

use super::split::Split;
use super::{FeedForward, Format, Layers, Mixer, Transformer, real};
use crate::sheet::Precision;

/// Operations and bytes moved on one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Cost {
    /// Arithmetic operations; a multiply-add counts as two.
    pub operations: f64,
    /// Bytes moved between memory and chip.
    pub bytes: f64,
    /// The share of the experts that is read, from 0 to 1; 1 for a dense model.
    pub touched: f64,
}

/// What a step works on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Sequences of one copy of the model.
    pub batch: f64,
    /// Tokens per sequence: those in the cache for generation, those of the prompt for reading.
    pub tokens: u64,
    /// Copies of the model whose tokens share the experts.
    pub replicas: f64,
    /// Format of the weights.
    pub format: Format,
    /// Format of the cache.
    pub cache: Precision,
    /// The split.
    pub split: Split,
}

impl Step {
    /// Generation of one token for each sequence.
    pub fn decode(&self, shape: &Transformer) -> Cost {
        let mut cost = self.weights(shape, self.batch, self.batch);
        let stage = real(self.split.stage(shape.depth())) / real(shape.depth().max(1));
        for l in &shape.layers {
            let n = real(l.count) * stage * self.batch;
            cost.operations += n * attention(l, true, self.split.tensor) * real(l.mixer.visible(self.tokens));
            if let Mixer::Recurrent { state, .. } = l.mixer {
                // The state is read and written, and every number of it takes part in two multiply-adds.
                let own = real(state) / real(self.split.tensor);
                cost.operations += n * 4.0 * own;
                cost.bytes += n * 4.0 * own;
            }
        }
        cost.bytes += self.batch * stage * shape.cache(self.tokens, self.split.tensor, 1).bytes(self.cache.bytes());
        cost
    }

    /// The reading of prompts, which makes the first token.
    pub fn prefill(&self, shape: &Transformer) -> Cost {
        let s = real(self.tokens);
        let mut cost = self.weights(shape, self.batch * s, self.batch);
        let stage = real(self.split.stage(shape.depth())) / real(shape.depth().max(1));
        for l in &shape.layers {
            let w = real(l.mixer.visible(self.tokens));
            // Token i sees min(i, window) tokens.
            let seen = w * s - w * w / 2.0;
            cost.operations += self.batch * real(l.count) * stage * attention(l, false, self.split.tensor) * seen;
            if let Mixer::Recurrent { state, .. } = l.mixer {
                cost.operations += self.batch * real(l.count) * stage * s * 4.0 * real(state) / real(self.split.tensor);
            }
        }
        cost.bytes += self.batch * stage * shape.cache(self.tokens, self.split.tensor, 1).bytes(self.cache.bytes());
        cost
    }

    /// The products of `tokens` tokens with the weights of a GPU; the output layer works on `last` of them.
    fn weights(&self, shape: &Transformer, tokens: f64, last: f64) -> Cost {
        let own = self.split.census(shape);
        let everywhere = tokens * self.replicas;
        let (mut used, mut touched_experts, mut experts) = (0.0, 0.0, 0.0);
        for l in &shape.layers {
            if matches!(l.feed_forward, FeedForward::Experts { .. }) {
                let all = real(l.count) * l.census_of(shape.hidden).experts;
                experts += all;
                used += all * l.active_share();
                touched_experts += all * l.touched_share(everywhere);
            }
        }
        let touched = if experts > 0.0 { touched_experts / experts } else { 1.0 };
        let used = if experts > 0.0 { own.experts * used / experts } else { 0.0 };
        // A tied embedding is also the output layer; an embedding of its own is a table, of which a row per token is read.
        let head = match (self.split.pipeline > 1, shape.tied) {
            (true, _) | (_, true) => own.embedding,
            _ => own.head,
        };
        let matrices = own.linear + own.key_value + own.replicated + own.router;
        let read = super::Census { embedding: 0.0, head, towers: 0.0, experts: own.experts * touched, ..own };
        // The copies of the model bring their tokens to the experts that this GPU has.
        let to_experts = if self.split.expert > 1 { everywhere } else { tokens };
        Cost {
            operations: 2.0 * tokens * matrices + 2.0 * to_experts * used + 2.0 * last * head,
            bytes: self.format.bytes(&read),
            touched,
        }
    }
}

/// Operations of attention per pair of a token and a token that it sees, on one of `split` GPUs: scores and sum.
fn attention(l: &Layers, absorbed: bool, split: u64) -> f64 {
    match l.mixer {
        Mixer::Attention { heads, head_dim, .. } => 4.0 * real(heads) / real(split) * real(head_dim),
        // In generation, the projections of keys and values are multiplied with the query and the output instead, so that
        // attention works on the latent vectors (DeepSeek-V2, section 2.1.2).
        Mixer::Latent { heads, rank, rope_dim, .. } if absorbed => {
            2.0 * real(heads) / real(split) * (2.0 * real(rank) + real(rope_dim))
        }
        Mixer::Latent { heads, nope_dim, rope_dim, value_dim, .. } => {
            2.0 * real(heads) / real(split) * real(nope_dim + rope_dim + value_dim)
        }
        Mixer::Recurrent { .. } | Mixer::None => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transformer::Description;

    fn step(batch: f64, tokens: u64) -> Step {
        Step { batch, tokens, replicas: 1.0, format: Format::Bf16, cache: Precision::Bf16, split: Split::default() }
    }

    #[test]
    fn a_mixture_reads_the_experts_that_a_batch_touches() {
        let shape = Description::of_model("mixtral-8x7b").transformer().unwrap();
        let one = step(1.0, 1).decode(&shape);
        assert!((one.touched - 0.25).abs() < 1e-9, "2 of 8");
        assert!((one.bytes / 25.5e9 - 1.0).abs() < 0.01, "{one:?}");
        // 1 - (6/8)^8 = 0.9.
        assert!((step(8.0, 1).decode(&shape).touched - 0.8999).abs() < 0.001);
    }

    #[test]
    fn windows_and_latents_bound_what_is_read() {
        let cache = |name: &str, tokens| {
            let shape = Description::of_model(name).transformer().unwrap();
            step(1.0, tokens).decode(&shape).bytes - step(1.0, 0).decode(&shape).bytes
        };
        assert!((cache("mistral-7b-v0.1", 32_768) / (4096.0 * 131_072.0) - 1.0).abs() < 1e-6, "the window has 4096");
        assert!((cache("deepseek-v3", 1000) / (1000.0 * 70_272.0) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn reading_a_prompt_computes_half_a_square_of_attention() {
        let shape = Description::of_model("llama-2-7b").transformer().unwrap();
        let cost = step(1.0, 4096).prefill(&shape);
        let products = 2.0 * 4096.0 * 6.476e9 + 2.0 * 131e6;
        let attention = 32.0 * 4.0 * 4096.0 * 4096.0 * 4096.0 / 2.0;
        assert!((cost.operations / (products + attention) - 1.0).abs() < 0.01, "{cost:?}");
    }
}
