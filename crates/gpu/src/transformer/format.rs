//! Number formats of stored weights, with the scales that block formats carry, and the matrices that each format leaves in 16 bits.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Census;
use crate::GpuError;
use crate::sheet::Precision;

/// The format in which weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "WeightFormat")]
pub enum Format {
    /// 32 bits.
    Fp32,
    /// 16 bits, 8 of exponent.
    Bf16,
    /// 16 bits, 5 of exponent.
    Fp16,
    /// 8-bit floats; a scale per output channel, or per 128 x 128 block (DeepSeek-V3, section 3.3.2).
    Fp8,
    /// 8-bit integers with a scale per output channel (LLM.int8, W8A8).
    Int8,
    /// AWQ: 4-bit integers in groups of 128, each with an fp16 scale and a 4-bit zero point (Lin et al. 2023).
    Awq,
    /// GPTQ: as AWQ (Frantar et al. 2022; group size 128).
    Gptq,
    /// GPTQ with 8-bit integers in groups of 128.
    #[serde(rename = "gptq-int8")]
    GptqInt8,
    /// bitsandbytes: 4-bit floats in blocks of 64 with doubly quantised scales (QLoRA, Dettmers et al. 2023, section 3).
    Nf4,
    /// OCP Microscaling: 4-bit floats in blocks of 32 with 8-bit scales, for the experts only, as gpt-oss has them.
    Mxfp4,
    /// NVIDIA: 4-bit floats in blocks of 16 with fp8 scales.
    Nvfp4,
    /// OCP Microscaling: 6-bit floats in blocks of 32 with 8-bit scales.
    Mxfp6,
}

/// Names that stand for another format.
const ALIASES: [(&str, Format); 8] = [
    ("int4", Format::Awq),
    ("fp4", Format::Nvfp4),
    ("fp6", Format::Mxfp6),
    ("float32", Format::Fp32),
    ("float16", Format::Fp16),
    ("bfloat16", Format::Bf16),
    ("tf32", Format::Fp32),
    ("half", Format::Fp16),
];

impl Format {
    /// All formats, widest first.
    pub const ALL: [Self; 12] = [
        Self::Fp32,
        Self::Bf16,
        Self::Fp16,
        Self::Fp8,
        Self::Int8,
        Self::GptqInt8,
        Self::Mxfp6,
        Self::Nvfp4,
        Self::Mxfp4,
        Self::Awq,
        Self::Gptq,
        Self::Nf4,
    ];

    /// The name, such as `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::Awq => "awq",
            Self::Gptq => "gptq",
            Self::GptqInt8 => "gptq-int8",
            Self::Nf4 => "nf4",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp6 => "mxfp6",
        }
    }

    /// Bits per stored weight with its share of the scales, and the sum that they come from.
    pub fn bits(self) -> (f64, &'static str) {
        match self {
            Self::Fp32 => (32.0, "32"),
            Self::Bf16 | Self::Fp16 => (16.0, "16"),
            Self::Fp8 => (8.0 + 32.0 / 16_384.0, "8 + 32/16384"),
            Self::Int8 => (8.0, "8"),
            Self::Awq | Self::Gptq => (4.0 + 20.0 / 128.0, "4 + (16 + 4)/128"),
            Self::GptqInt8 => (8.0 + 24.0 / 128.0, "8 + (16 + 8)/128"),
            Self::Nf4 => (4.0 + 8.0 / 64.0 + 32.0 / 16_384.0, "4 + 8/64 + 32/16384"),
            Self::Mxfp4 => (4.0 + 8.0 / 32.0, "4 + 8/32"),
            Self::Nvfp4 => (4.0 + 8.0 / 16.0, "4 + 8/16"),
            Self::Mxfp6 => (6.0 + 8.0 / 32.0, "6 + 8/32"),
        }
    }

    /// Whether training can keep its weights in this format.
    pub fn trainable(self) -> bool {
        matches!(self, Self::Fp32 | Self::Bf16 | Self::Fp16)
    }

    /// Bytes of a weight that the format leaves alone: embeddings, output layer, routers, normalisations.
    pub fn plain_bytes(self) -> f64 {
        if self == Self::Fp32 { 4.0 } else { 2.0 }
    }

    /// Bytes of a weight of the routed experts.
    pub fn expert_bytes(self) -> f64 {
        self.bits().0 / 8.0
    }

    /// Bytes of a weight of the other matrices of the layers.
    pub fn linear_bytes(self) -> f64 {
        if self == Self::Mxfp4 { 2.0 } else { self.bits().0 / 8.0 }
    }

    /// Bytes of all parameters of a census. MXFP4 quantises only the experts; a model without any has its matrices quantised.
    pub fn bytes(self, c: &Census) -> f64 {
        let linear = if c.experts == 0.0 { self.expert_bytes() } else { self.linear_bytes() };
        c.experts * self.expert_bytes()
            + (c.linear + c.key_value + c.replicated) * linear
            + (c.embedding + c.head + c.router + c.small + c.towers) * self.plain_bytes()
    }

    /// The columns of a matrix that share a scale, and that a split across GPUs must keep together; `None` if there is no such limit.
    pub fn group(self) -> Option<u64> {
        match self {
            Self::Fp8 | Self::Awq | Self::Gptq | Self::GptqInt8 => Some(128),
            Self::Mxfp4 | Self::Mxfp6 => Some(32),
            Self::Nvfp4 => Some(16),
            _ => None,
        }
    }

    /// The format in which the matrix products are computed. Formats of integers and NF4 are expanded to 16 bits; 4- and 6-bit
    /// floats are, unless `has` says that the machine multiplies them.
    pub fn arithmetic(self, has: impl Fn(Precision) -> bool) -> Precision {
        let native = |p| if has(p) { p } else { Precision::Bf16 };
        match self {
            Self::Fp32 => Precision::Fp32,
            Self::Fp16 => Precision::Fp16,
            Self::Bf16 | Self::Awq | Self::Gptq | Self::GptqInt8 | Self::Nf4 => Precision::Bf16,
            Self::Fp8 => native(Precision::Fp8),
            Self::Int8 => native(Precision::Int8),
            Self::Mxfp4 | Self::Nvfp4 => native(Precision::Fp4),
            Self::Mxfp6 => native(Precision::Fp6),
        }
    }

    /// The format of the key-value cache of a model with weights in this format: that of the activations, which quantized weights leave in bf16. vLLM does
    /// so with `--kv-cache-dtype auto`, its default (`vllm/config/cache.py`).
    pub fn cache(self) -> Precision {
        match self {
            Self::Fp32 => Precision::Fp32,
            Self::Fp16 => Precision::Fp16,
            _ => Precision::Bf16,
        }
    }

    /// The format of the key-value cache if a user requests weights in this format and no format of the cache: the same, where caches have
    /// it without scales for each block.
    pub fn requested_cache(self) -> Precision {
        if self == Self::Fp8 { Precision::Fp8 } else { self.cache() }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = GpuError;
    fn from_str(text: &str) -> Result<Self, GpuError> {
        let text = text.to_ascii_lowercase();
        let known = Self::ALL.into_iter().find(|f| f.name() == text);
        known.or_else(|| ALIASES.iter().find(|a| a.0 == text).map(|a| a.1)).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            GpuError::Invalid(format!(
                "unknown weight format '{text}': expected one of {names}, or int4 (AWQ), fp4 (NVFP4), fp6 (MXFP6)"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_part_of_the_size() {
        // QLoRA, section 3: double quantisation leaves 0.127 bits of scales per parameter.
        assert!((Format::Nf4.bits().0 - 4.127).abs() < 0.001);
        assert!((Format::Awq.bits().0 - 4.15625).abs() < 1e-9);
        let census = Census { embedding: 1000.0, linear: 8000.0, ..Census::default() };
        assert!((Format::Nvfp4.bytes(&census) - (2000.0 + 4500.0)).abs() < 1e-9);
        assert!((Format::Mxfp4.bytes(&census) - (2000.0 + 4250.0)).abs() < 1e-9, "without experts: all matrices");
        let experts = Census { experts: 8000.0, linear: 1000.0, ..Census::default() };
        assert!((Format::Mxfp4.bytes(&experts) - (4250.0 + 2000.0)).abs() < 1e-9, "with experts: only those");
    }

    #[test]
    fn names_are_parsed_back() {
        for format in Format::ALL {
            assert_eq!(format.name().parse::<Format>().unwrap(), format);
            assert_eq!(serde_json::to_value(format).unwrap(), format.name());
        }
        assert_eq!("int4".parse::<Format>().unwrap(), Format::Awq);
        assert!("int3".parse::<Format>().is_err());
    }
}
