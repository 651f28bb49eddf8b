//! Language models as shapes: how many parameters of which kind they have, and what a sequence leaves in their cache.
//!
//! A shape comes from a `config.json` in Hugging Face's format ([`config`]): of a file, of a published model ([`published`]), or
//! of an assumption about a model of which only the size is known ([`assumption`]). Every figure of this module is derived from
//! that one description.

pub mod assumption;
mod census;
pub mod config;
pub mod cost;
pub mod description;
pub mod format;
pub mod published;
pub mod split;

use schemars::JsonSchema;
use serde::Serialize;

pub use census::Census;
pub use description::Description;
pub use format::Format;
pub use split::Split;

/// The shape of a decoder-only transformer, or of a hybrid of attention and recurrent layers.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "ModelShape")]
pub struct Transformer {
    /// Name of the model, such as `Llama 3.1 8B`.
    pub name: String,
    /// The publication that gives the shape, the file it was read from, or the assumption that estimates it.
    pub source: String,
    /// Whether the shape is an assumption derived from the number of parameters.
    pub assumed: bool,
    /// Width of the hidden state.
    pub hidden: u64,
    /// Number of tokens in the vocabulary.
    pub vocabulary: u64,
    /// Whether the output layer uses the weights of the input embedding.
    pub tied: bool,
    /// Parameters of learned position embeddings.
    pub positions: u64,
    /// Whether dropout is applied during training; its masks are part of the activations.
    pub dropout: bool,
    /// The layers, as runs of equal ones.
    pub layers: Vec<Layers>,
    /// Encoders of images or sound, with their parameters.
    pub towers: Vec<Tower>,
    /// The number format of the weights that the description declares.
    pub format: Option<Format>,
    /// What the description leaves open, and how it was read.
    pub notes: Vec<String>,
}

/// A number of equal layers.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "ModelLayers")]
pub struct Layers {
    /// How many of them the model has.
    pub count: u64,
    /// The part that mixes tokens.
    pub mixer: Mixer,
    /// The part that works on each token alone.
    pub feed_forward: FeedForward,
}

/// The part of a layer that mixes tokens, and keeps something of every sequence.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[schemars(rename = "LayerMixer")]
pub enum Mixer {
    /// Attention with keys and values per head: multi-head, grouped-query or multi-query.
    Attention {
        /// Query heads.
        heads: u64,
        /// Heads of keys and values: equal to `heads`, or fewer.
        kv_heads: u64,
        /// Width of a head.
        head_dim: u64,
        /// Tokens that a token can see; `None` for all.
        window: Option<u64>,
        /// Whether the output has a gate as wide as the queries (Qwen3-Next).
        gate: bool,
        /// Whether the projections have biases.
        bias: bool,
    },
    /// Multi-head latent attention: one compressed vector per token for all heads (DeepSeek-V2, section 2.1).
    Latent {
        /// Query heads.
        heads: u64,
        /// Width of the compressed query; `None` if queries are not compressed.
        query_rank: Option<u64>,
        /// Width of the compressed keys and values, which are cached.
        rank: u64,
        /// Width of the part of a head without positions.
        nope_dim: u64,
        /// Width of the part of a head with positions, which is cached once for all heads.
        rope_dim: u64,
        /// Width of a head's values.
        value_dim: u64,
        /// Width of the keys of a sparse attention's indexer (DeepSeek-V3.2); 0 without one.
        index_dim: u64,
    },
    /// A recurrent layer, whose state has a fixed size: Mamba, Mamba-2 or gated delta rule.
    Recurrent {
        /// Parameters that tensor parallelism can split.
        parameters: u64,
        /// Numbers of state per sequence.
        state: u64,
    },
    /// No mixing: the layer consists of the feed-forward part.
    None,
}

/// The part of a layer that works on each token alone.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[schemars(rename = "LayerFeedForward")]
pub enum FeedForward {
    /// One network that all tokens use.
    Dense {
        /// Width of the inner state.
        inner: u64,
        /// 3 matrices with a gate (SwiGLU), 2 without.
        matrices: u64,
    },
    /// Experts, of which a router chooses some for each token.
    Experts {
        /// Number of routed experts.
        experts: u64,
        /// Experts that a token uses.
        active: u64,
        /// Width of one expert's inner state.
        inner: u64,
        /// Total width of the experts that all tokens use; 0 if there are none.
        shared: u64,
        /// 3 matrices with a gate, 2 without.
        matrices: u64,
        /// Whether the experts have biases.
        bias: bool,
    },
    /// No feed-forward part.
    None,
}

/// An encoder of images or sound.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "ModelTower")]
pub struct Tower {
    /// What it encodes: `vision` or `audio`.
    pub what: &'static str,
    /// Number of parameters.
    pub parameters: u64,
}

/// Numbers as they are computed with: products of sizes exceed 64 bits.
pub(crate) fn real(n: u64) -> f64 {
    n as f64
}

impl Transformer {
    /// Number of layers.
    pub fn depth(&self) -> u64 {
        self.layers.iter().map(|l| l.count).sum()
    }

    /// Number of parameters.
    pub fn parameters(&self) -> f64 {
        self.census().total()
    }

    /// Parameters that one token is multiplied with: those of the chosen experts only, and not the input embedding, which is a
    /// table. Twice this number is the number of operations per token without attention (Kaplan et al. 2020, table 1).
    pub fn active_parameters(&self) -> f64 {
        let census = self.census();
        let head = if self.tied { census.embedding } else { census.head };
        let active_experts: f64 =
            self.layers.iter().map(|l| real(l.count) * l.census_of(self.hidden).experts * l.active_share()).sum();
        head + census.linear + census.key_value + census.replicated + census.router + active_experts
    }

    /// Parameters that publications call active: with the input embedding.
    pub fn published_active(&self) -> f64 {
        let embedding = if self.tied { 0.0 } else { self.census().embedding };
        self.active_parameters() + embedding
    }

    /// Whether any layer has experts.
    pub fn has_experts(&self) -> bool {
        self.layers.iter().any(|l| matches!(l.feed_forward, FeedForward::Experts { .. }))
    }

    /// The numbers that one sequence of `tokens` leaves in the cache of one GPU, if heads are split over `split` GPUs.
    pub fn cache(&self, tokens: u64, split: u64, block: u64) -> Cache {
        self.layers.iter().fold(Cache::default(), |sum, l| {
            let one = l.mixer.cache(tokens, split, block);
            let n = real(l.count);
            Cache { values: sum.values + n * one.values, state: sum.state + n * one.state }
        })
    }

    /// Query heads that tensor parallelism must divide, and heads of keys and values (0 where all heads share one).
    pub fn heads(&self) -> Vec<(u64, u64)> {
        let mut found: Vec<(u64, u64)> = self
            .layers
            .iter()
            .filter_map(|l| match l.mixer {
                Mixer::Attention { heads, kv_heads, .. } => Some((heads, kv_heads)),
                Mixer::Latent { heads, .. } => Some((heads, 0)),
                _ => None,
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// What a sequence leaves in the cache, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Cache {
    /// Keys and values, in the format of the cache.
    pub values: f64,
    /// State of recurrent layers, which engines keep in fp32.
    pub state: f64,
}

impl Cache {
    /// Size in bytes, with `width` bytes per key or value.
    pub fn bytes(self, width: f64) -> f64 {
        self.values * width + self.state * 4.0
    }
}

impl Mixer {
    /// The tokens that attention sees of a sequence of `tokens`.
    pub fn visible(&self, tokens: u64) -> u64 {
        match self {
            Self::Attention { window: Some(window), .. } => tokens.min(*window),
            Self::Attention { .. } | Self::Latent { .. } => tokens,
            Self::Recurrent { .. } | Self::None => 0,
        }
    }

    /// The numbers that a sequence leaves in this layer's cache on one of `split` GPUs. The cache is handed out in blocks of
    /// `block` tokens. Heads of keys and values that are fewer than the GPUs are kept several times, the latent vector of
    /// multi-head latent attention on every GPU.
    fn cache(&self, tokens: u64, split: u64, block: u64) -> Cache {
        let block = block.max(1);
        let stored = real(self.visible(tokens).div_ceil(block) * block);
        match self {
            Self::Attention { kv_heads, head_dim, .. } => {
                Cache { values: stored * 2.0 * real(kv_heads.div_ceil(split).max(1) * head_dim), state: 0.0 }
            }
            Self::Latent { rank, rope_dim, index_dim, .. } => {
                Cache { values: stored * real(rank + rope_dim + index_dim), state: 0.0 }
            }
            Self::Recurrent { state, .. } => Cache { values: 0.0, state: real(*state) / real(split) },
            Self::None => Cache::default(),
        }
    }
}

impl Layers {
    /// The share of the experts that a token uses.
    pub fn active_share(&self) -> f64 {
        match self.feed_forward {
            FeedForward::Experts { experts, active, .. } => real(active) / real(experts),
            _ => 1.0,
        }
    }

    /// The share of the experts that at least one of `tokens` tokens uses, if the router spreads them evenly:
    /// 1 - (1 - active / experts)^tokens.
    pub fn touched_share(&self, tokens: f64) -> f64 {
        1.0 - (1.0 - self.active_share()).powf(tokens)
    }
}

impl Transformer {
    /// The widest inner state that a token has in a feed-forward part, with all experts that it uses.
    pub fn widest(&self) -> f64 {
        let widths = self.layers.iter().map(|l| match l.feed_forward {
            FeedForward::Dense { inner, .. } => real(inner),
            FeedForward::Experts { active, inner, shared, .. } => real(active * inner + shared),
            FeedForward::None => 0.0,
        });
        widths.fold(0.0, f64::max)
    }
}
