//! Counts of parameters by kind: tensor parallelism splits some and copies others, and number formats leave some in 16 bits.

use serde::Serialize;

use super::{FeedForward, Layers, Mixer, Transformer, real};

/// Numbers of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Census {
    /// The input embedding, and position embeddings.
    pub embedding: f64,
    /// The output layer, if it has weights of its own.
    pub head: f64,
    /// Matrices of attention, recurrent layers, dense feed-forward parts and shared experts.
    pub linear: f64,
    /// Projections to keys and values, of which each GPU needs at least one head.
    pub key_value: f64,
    /// Projections to latent vectors, which every GPU of a tensor-parallel group has whole.
    pub replicated: f64,
    /// Routed experts.
    pub experts: f64,
    /// Routers.
    pub router: f64,
    /// Normalisations and biases.
    pub small: f64,
    /// Encoders of images and sound.
    pub towers: f64,
}

impl Census {
    /// All parameters.
    pub fn total(self) -> f64 {
        self.embedding + self.head + self.body() + self.towers
    }

    /// The parameters of the layers.
    pub fn body(self) -> f64 {
        self.linear + self.key_value + self.replicated + self.experts + self.router + self.small
    }

    fn add(&mut self, n: f64, other: Self) {
        self.linear += n * other.linear;
        self.key_value += n * other.key_value;
        self.replicated += n * other.replicated;
        self.experts += n * other.experts;
        self.router += n * other.router;
        self.small += n * other.small;
    }
}

impl Transformer {
    /// Counts the parameters.
    pub fn census(&self) -> Census {
        let table = real(self.vocabulary) * real(self.hidden);
        let mut all = Census {
            embedding: table + real(self.positions),
            head: if self.tied { 0.0 } else { table },
            small: real(self.hidden),
            towers: self.towers.iter().map(|t| real(t.parameters)).sum(),
            ..Census::default()
        };
        for l in &self.layers {
            let mut one = l.census_of(self.hidden);
            one.small += 2.0 * real(self.hidden);
            all.add(real(l.count), one);
        }
        all
    }
}

impl Layers {
    /// Counts the parameters of one layer of a model with this hidden width, without normalisations.
    pub fn census_of(&self, hidden: u64) -> Census {
        let h = real(hidden);
        let mut c = Census::default();
        match self.mixer {
            Mixer::Attention { heads, kv_heads, head_dim, gate, bias, .. } => {
                let (q, kv) = (real(heads) * real(head_dim), real(kv_heads) * real(head_dim));
                c.linear += h * q * if gate { 3.0 } else { 2.0 };
                c.key_value += 2.0 * h * kv;
                c.small += if bias { q + 2.0 * kv } else { 0.0 };
            }
            Mixer::Latent { heads, query_rank, rank, nope_dim, rope_dim, value_dim, .. } => {
                let (heads, query) = (real(heads), real(nope_dim + rope_dim));
                match query_rank {
                    Some(q) => {
                        c.replicated += h * real(q);
                        c.linear += real(q) * heads * query;
                    }
                    None => c.linear += h * heads * query,
                }
                c.replicated += h * real(rank + rope_dim);
                c.linear += real(rank) * heads * real(nope_dim + value_dim) + heads * real(value_dim) * h;
            }
            Mixer::Recurrent { parameters, .. } => c.linear += real(parameters),
            Mixer::None => {}
        }
        match self.feed_forward {
            FeedForward::Dense { inner, matrices } => c.linear += real(matrices) * h * real(inner),
            FeedForward::Experts { experts, inner, shared, matrices, bias, .. } => {
                c.experts += real(experts) * real(matrices) * h * real(inner);
                c.linear += real(matrices) * h * real(shared);
                c.router += h * real(experts);
                c.small += if bias { real(experts) * (h + real(matrices - 1) * real(inner)) } else { 0.0 };
            }
            FeedForward::None => {}
        }
        c
    }
}
