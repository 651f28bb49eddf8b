//! The ways to lay a model out over GPUs: tensor, pipeline, expert, context and data parallelism, and ZeRO.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::request::Request;
use crate::transformer::{Format, Split, Transformer};

/// A layout: the product of the four factors is the number of GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ParallelLayout")]
pub struct Layout {
    /// GPUs that share every matrix.
    pub tensor: u64,
    /// Stages of layers.
    pub pipeline: u64,
    /// GPUs that share the tokens of a sequence.
    pub context: u64,
    /// Copies of the model.
    pub data: u64,
    /// Whether whole experts are spread over tensor x data GPUs.
    pub expert: bool,
    /// ZeRO's stage (Rajbhandari et al. 2020): 1 divides the optimizer's state among the copies, 2 also gradients, 3 also weights.
    pub zero: u32,
}

impl Layout {
    /// One GPU.
    pub const SINGLE: Self = Self { tensor: 1, pipeline: 1, context: 1, data: 1, expert: false, zero: 0 };

    /// Number of GPUs.
    pub fn gpus(self) -> u64 {
        self.tensor * self.pipeline * self.context * self.data
    }

    /// The split of one copy.
    pub fn split(self) -> Split {
        let expert = if self.expert { self.tensor * self.data } else { 1 };
        Split { tensor: self.tensor, pipeline: self.pipeline, expert }
    }

    /// GPUs among which ZeRO divides what a copy has: data and context parallelism hold the same weights.
    pub fn zero_group(self) -> u64 {
        self.data * self.context
    }

    /// Why a model cannot be laid out in this way; `None` if it can. `linked` GPUs work together without the network between machines.
    pub fn obstacle(self, shape: &Transformer, format: Format, request: &Request, linked: u64) -> Option<String> {
        if let Some(why) = self.split().obstacle(shape, format) {
            return Some(why);
        }
        if request.tp.is_none() && self.tensor > linked {
            return Some(format!(
                "tensor parallelism {} is more than the {linked} GPUs that are linked without the network: every layer would wait for the network (--tp {} allows it)",
                self.tensor, self.tensor
            ));
        }
        if request.train.is_none() && self.data > request.batch {
            return Some(format!("a batch of {} cannot be spread over {} copies", request.batch, self.data));
        }
        if self.context > request.seq {
            return Some(format!("{} tokens cannot be spread over {} GPUs", request.seq, self.context));
        }
        if self.expert && !shape.has_experts() {
            return Some("the model has no experts".into());
        }
        if self.expert && self.zero == 3 {
            return Some("expert parallelism with ZeRO 3 is not planned: the experts are divided already".into());
        }
        None
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [("TP", self.tensor), ("PP", self.pipeline), ("CP", self.context), ("DP", self.data)]
            .map(|(name, n)| if n > 1 { Some(format!("{name}{n}")) } else { None });
        let mut words: Vec<String> = named.into_iter().flatten().collect();
        if self.expert {
            words.push(format!("EP{}", self.tensor * self.data));
        }
        if self.zero > 0 {
            words.push(format!("ZeRO-{}", self.zero));
        }
        f.write_str(&if words.is_empty() { "single".into() } else { words.join(" ") })
    }
}

/// The numbers that divide `n`, smallest first.
fn divisors(n: u64) -> Vec<u64> {
    (1..=n).filter(|d| n.is_multiple_of(*d)).collect()
}

/// All layouts for a number of GPUs that the request allows. Context parallelism is proposed for training only, where long
/// sequences need it; a request can name it.
pub fn layouts(request: &Request, shape: &Transformer, gpus: u64) -> Vec<Layout> {
    let mut all = Vec::new();
    let named = |wish: Option<u64>, n: u64| wish.is_none_or(|w| w == n);
    let contexts = |rest: u64| match (request.cp, &request.train) {
        (Some(cp), _) => divisors(rest).into_iter().filter(|n| *n == cp).collect(),
        (None, Some(_)) => divisors(rest).into_iter().filter(|n| *n <= 16).collect(),
        (None, None) => vec![1],
    };
    for tensor in divisors(gpus).into_iter().filter(|n| named(request.tp, *n)) {
        for pipeline in divisors(gpus / tensor).into_iter().filter(|n| named(request.pp, *n)) {
            let rest = gpus / tensor / pipeline;
            for context in contexts(rest) {
                let data = rest / context;
                if !named(request.dp, data) {
                    continue;
                }
                let experts: &[bool] = match request.ep {
                    Some(true) => &[true],
                    Some(false) => &[false],
                    None if shape.has_experts() && tensor * data > 1 => &[false, true],
                    None => &[false],
                };
                let stages: Vec<u32> = match &request.train {
                    None => vec![0],
                    Some(train) => match train.zero {
                        Some(stage) => vec![stage],
                        None if data * context > 1 => vec![0, 1, 2, 3],
                        None => vec![0],
                    },
                };
                for expert in experts {
                    for zero in &stages {
                        all.push(Layout { tensor, pipeline, context, data, expert: *expert, zero: *zero });
                    }
                }
            }
        }
    }
    all
}
