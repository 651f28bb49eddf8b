//! What a user asks: a model, how it is run, and on what.

use std::collections::BTreeMap;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::GpuError;
use crate::sheet::Precision;
use crate::transformer::{Description, Format};

/// The share of a card's memory that may be planned with. The rest is what the driver keeps for itself, and fragmentation.
pub const DEFAULT_UTILIZATION: f64 = 0.97;
/// Tokens per block of the key-value cache in vLLM on NVIDIA GPUs.
pub const DEFAULT_BLOCK: u64 = 16;
/// Bandwidth between machines for each GPU, in GB/s: one 400 Gbit/s port per GPU, as in DGX H100.
pub const DEFAULT_NETWORK: f64 = 50.0;
/// GPUs of one machine that are planned with, if the GPU is not built into a machine of its own ([`crate::sheet::Card::machine`]): as in
/// HGX machines, and in servers for PCIe cards.
pub const DEFAULT_GPUS_PER_NODE: u64 = 8;
/// Maximum number of GPUs that a layout is sought for.
pub const MAX_GPUS: u64 = 16_384;

/// A model, the way it will be run, and the GPUs that it may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "FitRequest")]
pub struct Request {
    /// The model.
    #[serde(flatten)]
    pub model: Description,
    /// Format of the weights; by default the one that `config.json` declares, otherwise bf16.
    pub dtype: Option<Format>,
    /// Format of the key-value cache; by default fp8 if `dtype` is fp8, otherwise that of the activations: bf16, or fp16 or fp32 with
    /// weights in these.
    pub kv_dtype: Option<Precision>,
    /// Tokens per sequence, from 1 to 2^24; in training with packed sequences the length of a pack.
    pub seq: u64,
    /// Sequences that are served together, or that each copy of the model is trained with at a time; from 1 to 2^20.
    pub batch: u64,
    /// Tokens per block of the key-value cache.
    pub block: u64,
    /// How the model is trained; `None` means that it is served.
    pub train: Option<Training>,
    /// The share of a card's memory that may be used, from 0.1 to 1.
    pub utilization: f64,
    /// The card or MIG slice to consider; all if `None`.
    pub card: Option<String>,
    /// Number of GPUs; as few as possible if `None`.
    pub gpus: Option<u64>,
    /// Number of machines; as few as possible if `None`.
    pub nodes: Option<u64>,
    /// GPUs per machine; by default those of the machine that the GPU is built into, otherwise 8.
    pub gpus_per_node: Option<u64>,
    /// Whether each GPU is shared by so many processes with equal memory limits (MPS).
    pub share: Option<u64>,
    /// Bandwidth between machines for each GPU, in GB/s and direction.
    pub network: f64,
    /// US dollars per GPU and hour, of every card.
    pub price: Option<f64>,
    /// US dollars per GPU and hour by the name of the card, for cards that `price` does not give.
    pub prices: BTreeMap<String, f64>,
    /// Tensor parallelism.
    pub tp: Option<u64>,
    /// Pipeline stages.
    pub pp: Option<u64>,
    /// Context parallelism: GPUs that share the tokens of a sequence.
    pub cp: Option<u64>,
    /// Data parallelism: copies of the model.
    pub dp: Option<u64>,
    /// Whether whole experts are spread over the GPUs of all copies (expert parallelism).
    pub ep: Option<bool>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            model: Description::default(),
            dtype: None,
            kv_dtype: None,
            seq: 4096,
            batch: 1,
            block: DEFAULT_BLOCK,
            train: None,
            utilization: DEFAULT_UTILIZATION,
            card: None,
            gpus: None,
            nodes: None,
            gpus_per_node: None,
            share: None,
            network: DEFAULT_NETWORK,
            price: None,
            prices: BTreeMap::new(),
            tp: None,
            pp: None,
            cp: None,
            dp: None,
            ep: None,
        }
    }
}

/// How a model is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "FitTraining")]
pub struct Training {
    /// The optimizer, and which weights it changes.
    pub method: Method,
    /// Rank of the adapters of LoRA and QLoRA.
    pub lora_rank: u64,
    /// Which activations are recomputed in the backward pass.
    pub recompute: Recompute,
    /// Format of the gradients: bf16 or fp32.
    pub gradients: Precision,
    /// Whether the optimizer keeps fp32 weights beside 16-bit ones.
    pub master_weights: bool,
    /// How much is divided among the copies of the model; the least that fits if `None`.
    pub zero: Option<u32>,
    /// Whether attention keeps its scores, as it does without FlashAttention.
    pub keep_scores: bool,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            method: Method::Adam,
            lora_rank: 16,
            recompute: Recompute::None,
            gradients: Precision::Bf16,
            master_weights: true,
            zero: None,
            keep_scores: false,
        }
    }
}

/// An optimizer with the weights that it changes, distinguished by the state that it keeps per parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "TrainingMethod")]
pub enum Method {
    /// Adam or AdamW: two moments in fp32.
    Adam,
    /// Adam with 8-bit moments in blocks of 256 (Dettmers et al. 2022).
    Adam8bit,
    /// Adafactor: sums over rows and columns instead of the second moment (Shazeer and Stern 2018).
    Adafactor,
    /// One moment in fp32: SGD with momentum, Lion, Muon.
    Momentum,
    /// No state.
    Sgd,
    /// Adapters of low rank with Adam, beside frozen weights (Hu et al. 2021).
    Lora,
    /// As LoRA, beside frozen weights in NF4 (Dettmers et al. 2023).
    Qlora,
}

impl Method {
    const NAMES: [(&'static str, Self); 11] = [
        ("adam", Self::Adam),
        ("adamw", Self::Adam),
        ("adam8bit", Self::Adam8bit),
        ("adamw8bit", Self::Adam8bit),
        ("adafactor", Self::Adafactor),
        ("momentum", Self::Momentum),
        ("lion", Self::Momentum),
        ("muon", Self::Momentum),
        ("sgd", Self::Sgd),
        ("lora", Self::Lora),
        ("qlora", Self::Qlora),
    ];

    /// Whether only adapters are trained.
    pub fn adapters(self) -> bool {
        matches!(self, Self::Lora | Self::Qlora)
    }
}

impl FromStr for Method {
    type Err = GpuError;
    fn from_str(text: &str) -> Result<Self, GpuError> {
        let found = Self::NAMES.iter().find(|n| n.0 == text.to_ascii_lowercase()).map(|n| n.1);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::NAMES.iter().map(|n| n.0).collect();
            GpuError::Invalid(format!("unknown optimizer '{text}': expected one of {}", names.join(", ")))
        })
    }
}

/// Which activations are recomputed in the backward pass (Korthikanti et al. 2022, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "ActivationRecompute")]
pub enum Recompute {
    /// None: all activations are kept.
    None,
    /// The scores of attention.
    Selective,
    /// All but the input of each layer.
    Full,
}

impl FromStr for Recompute {
    type Err = GpuError;
    fn from_str(text: &str) -> Result<Self, GpuError> {
        match text {
            "none" => Ok(Self::None),
            "selective" => Ok(Self::Selective),
            "full" => Ok(Self::Full),
            _ => Err(GpuError::Invalid(format!("unknown checkpointing '{text}': expected none, selective or full"))),
        }
    }
}

impl Request {
    /// Checks the ranges and the combinations of the request, for weights in `format`.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] with the value and what is expected.
    pub fn check(&self, format: Format) -> Result<(), GpuError> {
        let invalid = |why: String| Err(GpuError::Invalid(why));
        if !(1..=1 << 24).contains(&self.seq) || !(1..=1 << 20).contains(&self.batch) {
            return invalid("sequence must be from 1 to 16777216 and batch from 1 to 1048576".into());
        }
        if !(0.1..=1.0).contains(&self.utilization) {
            return invalid(format!("utilization is {}: expected a share from 0.1 to 1", self.utilization));
        }
        if !(1..=4096).contains(&self.block) {
            return invalid(format!("block size is {}: expected 1 to 4096 tokens", self.block));
        }
        let counts = [self.gpus, self.nodes, self.tp, self.pp, self.cp, self.dp, self.share, self.gpus_per_node];
        if let Some(n) = counts.into_iter().flatten().find(|n| !(1..=MAX_GPUS).contains(n)) {
            return invalid(format!("{n} GPUs, machines or parts: expected 1 to {MAX_GPUS}"));
        }
        if let (Some(gpus), Some(nodes)) = (self.gpus, self.nodes)
            && gpus % nodes != 0
        {
            return invalid(format!("{gpus} GPUs cannot be divided among {nodes} machines"));
        }
        let invalid_price = self.price.iter().chain(self.prices.values()).any(|p| !(0.0..=1e6).contains(p));
        if invalid_price || !(self.network > 0.0 && self.network.is_finite()) {
            return invalid("bandwidth of the network and price must be positive numbers".into());
        }
        if self.kv_dtype.is_some_and(|p| matches!(p, Precision::Fp64 | Precision::Tf32 | Precision::Fp6)) {
            return invalid("a key-value cache has fp32, bf16, fp16, fp8, int8 or fp4".into());
        }
        let Some(train) = self.train else { return Ok(()) };
        match train.method {
            Method::Qlora if !matches!(format, Format::Nf4) => {
                return invalid(format!("QLoRA keeps the frozen weights in nf4, not in {format}: leave --dtype out"));
            }
            Method::Lora | Method::Qlora => {}
            method if !format.trainable() => {
                return invalid(format!(
                    "{method:?} cannot train weights in {format}: use fp32, bf16 or fp16, or train adapters beside frozen weights with lora or qlora"
                ));
            }
            _ => {}
        }
        if !(1..=65_536).contains(&train.lora_rank) {
            return invalid(format!("LoRA rank is {}: expected 1 to 65536", train.lora_rank));
        }
        if train.zero.is_some_and(|z| z > 3) {
            return invalid("ZeRO has the stages 0 to 3; FSDP is stage 3".into());
        }
        if !matches!(train.gradients, Precision::Bf16 | Precision::Fp16 | Precision::Fp32) {
            return invalid(format!("gradients in {}: expected bf16, fp16 or fp32", train.gradients));
        }
        if self.kv_dtype.is_some() {
            return invalid("training has no key-value cache: leave the format of the cache out".into());
        }
        Ok(())
    }
}
