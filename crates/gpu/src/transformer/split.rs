//! How a model is split over GPUs, and what each of them holds of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Census, FeedForward, Format, Mixer, Transformer, real};

/// The split of one copy of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Split {
    /// GPUs that share every matrix (Megatron-LM, Shoeybi et al. 2019).
    pub tensor: u64,
    /// Stages of layers, one after the other.
    pub pipeline: u64,
    /// GPUs over which whole experts are spread; 1 if the experts are split like the other matrices.
    pub expert: u64,
}

impl Default for Split {
    fn default() -> Self {
        Self { tensor: 1, pipeline: 1, expert: 1 }
    }
}

impl Split {
    /// Tensor parallelism alone.
    pub fn tensor(tensor: u64) -> Self {
        Self { tensor, ..Self::default() }
    }

    /// The layers of the longest stage.
    pub fn stage(self, depth: u64) -> u64 {
        depth.div_ceil(self.pipeline)
    }

    /// Why a model cannot be split in this way; `None` if it can. The rules are those of vLLM and Megatron-LM: heads and widths are
    /// divided without rest, heads of keys and values divide the GPUs or are divided by them, and columns that share a
    /// scale stay together.
    pub fn obstacle(self, shape: &Transformer, format: Format) -> Option<String> {
        let t = self.tensor;
        for (heads, kv_heads) in shape.heads() {
            if heads % t != 0 {
                return Some(format!("{heads} attention heads are not divisible by tensor parallelism {t}"));
            }
            if kv_heads > 0 && kv_heads % t != 0 && !t.is_multiple_of(kv_heads) {
                return Some(format!(
                    "{kv_heads} heads of keys and values neither divide tensor parallelism {t} nor are divided by it"
                ));
            }
        }
        let width = |what: &str, inner: u64| {
            if !inner.is_multiple_of(t) {
                return Some(format!("{what} of width {inner} is not divisible by tensor parallelism {t}"));
            }
            let group = format.group().filter(|_| t > 1)?;
            (!(inner / t).is_multiple_of(group)).then(|| {
                format!("{what} of width {inner} over {t} GPUs is {}, which is no multiple of the {group} columns that share a scale in {format}", inner / t)
            })
        };
        for l in &shape.layers {
            let found = match l.feed_forward {
                FeedForward::Dense { inner, .. } => width("a feed-forward part", inner),
                FeedForward::Experts { experts, inner, shared, .. } => {
                    let spread = (self.expert > experts)
                        .then(|| format!("{experts} experts cannot be spread over {} GPUs", self.expert));
                    let own = if self.expert > 1 { None } else { width("an expert", inner) };
                    spread.or(own).or_else(|| if shared > 0 { width("a shared expert", shared) } else { None })
                }
                FeedForward::None => None,
            };
            if found.is_some() {
                return found;
            }
        }
        (self.pipeline > shape.depth()).then(|| format!("{} layers cannot be {} stages", shape.depth(), self.pipeline))
    }

    /// The parameters on the GPU that has most of them.
    pub fn census(self, shape: &Transformer) -> Census {
        let t = real(self.tensor);
        let mut own = Census { towers: shape.census().towers / t, small: real(shape.hidden), ..Census::default() };
        let share = real(self.stage(shape.depth())) / real(shape.depth().max(1));
        for l in &shape.layers {
            let n = real(l.count) * share;
            let all = l.census_of(shape.hidden);
            let kv = match l.mixer {
                Mixer::Attention { kv_heads, .. } => real(kv_heads.div_ceil(self.tensor)) / real(kv_heads),
                _ => 1.0 / t,
            };
            let experts = match l.feed_forward {
                FeedForward::Experts { experts, .. } if self.expert > 1 => {
                    real(experts.div_ceil(self.expert)) / real(experts)
                }
                _ => 1.0 / t,
            };
            own.linear += n * all.linear / t;
            own.key_value += n * all.key_value * kv;
            own.replicated += n * all.replicated;
            own.experts += n * all.experts * experts;
            own.router += n * all.router;
            own.small += n * (all.small + 2.0 * real(shape.hidden));
        }
        let table = shape.census();
        if self.pipeline > 1 {
            // The first stage has the embedding, the last one the output layer.
            own.embedding = table.embedding.max(table.head) / t;
        } else {
            own.embedding = table.embedding / t;
            own.head = table.head / t;
        }
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transformer::Description;

    fn shape(name: &str) -> Transformer {
        Description::of_model(name).transformer().unwrap()
    }

    #[test]
    fn only_splits_that_servers_start_with_are_possible() {
        let llama = shape("llama-3.1-70b");
        let possible = |t| Split::tensor(t).obstacle(&llama, Format::Bf16).is_none();
        assert_eq!((1..=16).filter(|t| possible(*t)).collect::<Vec<_>>(), [1, 2, 4, 8, 16]);
        let reason = Split::tensor(6).obstacle(&llama, Format::Bf16).unwrap();
        assert_eq!(reason, "64 attention heads are not divisible by tensor parallelism 6");
        // Qwen2.5 7B has 28 heads, 4 of keys and values, and a feed-forward part of width 18944.
        let qwen = shape("qwen2.5-7b");
        let possible: Vec<u64> =
            (1..=28).filter(|t| Split::tensor(*t).obstacle(&qwen, Format::Bf16).is_none()).collect();
        assert_eq!(possible, [1, 2, 4]);
    }

    /// vLLM refuses both: the groups of Qwen2.5 72B in GPTQ over 8 GPUs, the blocks of Qwen3 235B in fp8 over 8 GPUs.
    #[test]
    fn columns_that_share_a_scale_stay_together() {
        let dense = shape("qwen2.5-72b");
        assert!(Split::tensor(8).obstacle(&dense, Format::Gptq).unwrap().contains("3696"));
        assert!(Split::tensor(8).obstacle(&dense, Format::Bf16).is_none());
        let experts = shape("qwen3-235b-a22b");
        assert!(Split::tensor(8).obstacle(&experts, Format::Fp8).unwrap().contains("192"));
        assert!(Split::tensor(4).obstacle(&experts, Format::Fp8).is_none());
        let spread = Split { expert: 8, ..Split::tensor(8) };
        // The dense width of the shape is not used: all its layers have experts.
        assert!(spread.obstacle(&experts, Format::Fp8).is_none());
    }

    #[test]
    fn heads_of_keys_and_values_are_copied_beyond_their_number() {
        let llama = shape("llama-3.1-70b");
        let on = |t| Split::tensor(t).census(&llama).key_value;
        assert!((on(8) * 8.0 / on(1) - 1.0).abs() < 1e-9);
        assert!((on(16) / on(8) - 1.0).abs() < 1e-9, "8 heads are kept twice on 16 GPUs");
        let all = Split { tensor: 4, pipeline: 2, expert: 1 }.census(&llama).total() * 8.0;
        assert!((all / llama.parameters() - 1.0).abs() < 0.02, "{all}");
    }
}
