//! The cost of a workload (matrix product, attention, text generation): operations, bytes moved, and their ratio.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::GpuError;
use crate::sheet::Precision;
use crate::transformer::cost::Step;
use crate::transformer::{Description, Format, Split};

/// A workload and its cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Work {
    /// The text it was parsed from, such as `gemm:4096,4096,4096,bf16`.
    pub name: String,
    /// The number format of the operands.
    pub precision: Precision,
    /// The format of the weights of a model: the format in which a machine computes with them depends on the machine.
    pub weights: Option<Format>,
    /// Arithmetic operations; a multiply-add counts as two.
    pub operations: f64,
    /// Bytes moved between memory and chip if every operand is moved once.
    pub bytes: f64,
    /// The formulas of operations and bytes, with a source.
    pub formula: String,
    /// M, N and K of a matrix product that can be benchmarked.
    pub gemm: Option<(usize, usize, usize)>,
    /// Tokens generated or read per step, for language models.
    pub tokens: Option<f64>,
    /// GPUs that share the work; operations and bytes are those of one of them.
    pub gpus: u64,
}

const SYNTAX: &str = "gemm:M,N,K,bf16, linear:BATCH,IN,OUT,bf16, attention:BATCH,HEADS,SEQUENCE,DIMENSION,bf16, decode:model=7b,batch=1 or prefill:model=7b,prompt=2048; decode and prefill also take active=, dtype=, kv= and tp=, decode context=";

impl Work {
    /// Arithmetic intensity: operations per byte.
    pub fn intensity(&self) -> f64 {
        self.operations / self.bytes
    }

    /// Parses `gemm:m,n,k,bf16`, `linear:batch,in,out,bf16`, `attention:batch,heads,sequence,dimension,bf16`,
    /// `decode:model=47b,active=12.9b,batch=1,context=4096,dtype=fp8,kv=fp8,tp=2` or `prefill:model=7b,batch=1,prompt=2048`.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] with the expected syntax.
    pub fn parse(text: &str) -> Result<Self, GpuError> {
        let invalid = |why: &str| GpuError::Invalid(format!("'{text}': {why}; expected {SYNTAX}"));
        let (kind, rest) =
            text.split_once(':').ok_or_else(|| invalid("the kind of workload and a colon are missing"))?;
        let fields: Vec<&str> = rest.split(',').map(str::trim).collect();
        if kind == "decode" || kind == "prefill" {
            return Self::language_model(text, kind == "decode", &fields);
        }
        let numbers = match kind {
            "gemm" | "linear" => 3,
            "attention" => 4,
            _ => return Err(invalid("unknown kind of workload")),
        };
        if fields.len() < numbers || fields.len() > numbers + 1 {
            return Err(invalid(&format!("{kind} takes {numbers} numbers and a number format")));
        }
        let mut sizes = Vec::new();
        for field in &fields[..numbers] {
            let n: u32 = field
                .parse()
                .ok()
                .filter(|n| (1..=1 << 24).contains(n))
                .ok_or_else(|| invalid(&format!("invalid size '{field}'")))?;
            sizes.push(f64::from(n));
        }
        let precision: Precision = fields.get(numbers).map_or(Ok(Precision::Bf16), |f| f.parse())?;
        let b = precision.bytes();
        let work = |operations, bytes, formula: &str, gemm| Self {
            name: text.into(),
            precision,
            weights: None,
            operations,
            bytes,
            formula: formula.into(),
            gemm,
            tokens: None,
            gpus: 1,
        };
        let integer = |i: usize| sizes[i] as usize;
        Ok(match kind {
            "attention" => {
                let [batch, heads, s, d] = [sizes[0], sizes[1], sizes[2], sizes[3]];
                work(
                    4.0 * batch * heads * s * s * d,
                    4.0 * batch * heads * s * d * b,
                    "4 x batch x heads x sequence^2 x dimension operations; queries, keys, values and output move once (FlashAttention, Dao et al. 2022)",
                    None,
                )
            }
            _ => {
                // A linear layer multiplies a batch x in matrix by an in x out matrix.
                let (m, n, k, at) = if kind == "gemm" {
                    (sizes[0], sizes[1], sizes[2], [0, 1, 2])
                } else {
                    (sizes[0], sizes[2], sizes[1], [0, 2, 1])
                };
                work(
                    2.0 * m * n * k,
                    (m * k + k * n + m * n) * b,
                    "2 x m x n x k operations; (m k + k n + m n) numbers move once",
                    Some((integer(at[0]), integer(at[1]), integer(at[2]))),
                )
            }
        })
    }

    fn language_model(text: &str, decode: bool, fields: &[&str]) -> Result<Self, GpuError> {
        let invalid = |why: String| GpuError::Invalid(format!("'{text}': {why}; expected {SYNTAX}"));
        let tokens = if decode { "context" } else { "prompt" };
        let mut given: BTreeMap<&str, &str> = BTreeMap::new();
        for field in fields {
            let (key, value) = field.split_once('=').ok_or_else(|| invalid(format!("'{field}' is not KEY=VALUE")))?;
            if !["model", "active", "batch", tokens, "dtype", "kv", "tp"].contains(&key) {
                return Err(invalid(format!("unknown key '{key}'")));
            }
            if given.insert(key, value).is_some() {
                return Err(invalid(format!("{key} is given twice")));
            }
        }
        let number = |key: &str, default: u64| match given.get(key) {
            None => Ok(default),
            Some(v) => v
                .parse::<u64>()
                .ok()
                .filter(|n| (1..=1 << 24).contains(n))
                .ok_or_else(|| invalid(format!("{key} '{v}' is not a number from 1 to {}", 1 << 24))),
        };
        let model = *given.get("model").ok_or_else(|| invalid("model=... is missing".into()))?;
        let active = given.get("active").map(ToString::to_string);
        // A name or a size: only names have further letters.
        let description = match Description::of_size(model).transformer() {
            Ok(_) => Description { active, ..Description::of_size(model) },
            Err(_) if active.is_none() => Description::of_model(model),
            Err(e) => return Err(invalid(e.to_string())),
        };
        let shape = description.transformer().map_err(|e| invalid(e.to_string()))?;
        let format: Format = match given.get("dtype") {
            Some(name) => name.parse()?,
            None => shape.format.unwrap_or(Format::Bf16),
        };
        let cache: Precision = given.get("kv").map_or(Ok(format.cache()), |name| name.parse())?;
        let (batch, gpus) = (number("batch", 1)?, number("tp", 1)?);
        let split = Split::tensor(gpus);
        if let Some(why) = split.obstacle(&shape, format) {
            return Err(invalid(why));
        }
        let step = Step { batch: batch as f64, tokens: number(tokens, 2048)?, replicas: 1.0, format, cache, split };
        let cost = if decode { step.decode(&shape) } else { step.prefill(&shape) };
        let experts = if shape.has_experts() {
            format!(" {:.0} % of the experts are read.", cost.touched * 100.0)
        } else {
            String::new()
        };
        let count = if decode { step.batch } else { step.batch * step.tokens as f64 };
        Ok(Self {
            name: text.into(),
            precision: format.arithmetic(|_| true),
            weights: Some(format),
            operations: cost.operations,
            bytes: cost.bytes,
            formula: format!(
                "2 operations for each of {:.3e} active parameters and token, and attention (Kaplan et al. 2020, table 1); the weights and the key-value cache move once (Pope et al. 2022).{experts} Shape: {}, {}",
                shape.active_parameters(),
                shape.name,
                shape.source
            ),
            gemm: None,
            tokens: Some(count),
            gpus,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrix_product_operations_and_intensity() {
        let work = Work::parse("gemm:4096,4096,4096,bf16").unwrap();
        assert!((work.operations - 137_438_953_472.0).abs() < 1.0);
        assert!((work.intensity() - 4096.0 / 3.0).abs() < 0.01);
        let linear = Work::parse("linear:1,4096,11008").unwrap();
        assert_eq!(linear.gemm, Some((1, 11008, 4096)));
        assert!(linear.intensity() < 1.0);
    }

    #[test]
    fn decoding_one_token_of_7b_reads_13_gb() {
        let work = Work::parse("decode:model=7b,batch=1,context=1").unwrap();
        // Llama 2 7B without the input embedding, of which a token reads one row.
        assert!((work.bytes / 13.2e9 - 1.0).abs() < 0.01, "{work:?}");
        assert!((work.operations / 13.2e9 - 1.0).abs() < 0.01, "{work:?}");
        let context = Work::parse("decode:model=7b,batch=1,context=4097").unwrap();
        assert!((context.bytes - work.bytes - 4096.0 * 524_288.0).abs() < 1.0, "half a MiB per token");
    }

    #[test]
    fn active_parameters_and_splits_are_read() {
        let one = Work::parse("decode:model=47b,active=12.9b,batch=1,context=1").unwrap();
        assert_eq!(one.bytes, Work::parse("decode:model=mixtral-8x7b,context=1").unwrap().bytes);
        let two = Work::parse("decode:model=47b,active=12.9b,batch=1,context=1,tp=2").unwrap();
        assert!((two.bytes / one.bytes - 0.5).abs() < 0.01 && two.gpus == 2, "{two:?}");
        let four_bits = Work::parse("decode:model=70b,dtype=int4,context=1").unwrap();
        assert!((four_bits.bytes / 37.7e9 - 1.0).abs() < 0.02, "{four_bits:?}");
        let prompt = Work::parse("prefill:model=8b,prompt=8192").unwrap();
        assert_eq!(prompt.tokens, Some(8192.0));
    }

    #[test]
    fn invalid_workloads_are_rejected() {
        for bad in [
            "gemm",
            "gemm:1,2",
            "gemm:0,1,1",
            "gemm:-1,1,1",
            "gemm:16777217,1,1",
            "gemm:a,b,c",
            "gemm:1,1,1,fp3",
            "conv:1",
            "decode:batch=1",
            "decode:model=x",
            "decode:7b",
            "decode:model=7b,model=8b",
            "decode:model=7b,dtype=fp64",
            "decode:model=7b,dtype=fp3",
            "decode:model=7b,kv=fp3",
            "decode:model=70b,tp=3",
            "decode:model=70b,active=80b",
            "decode:model=7b,prompt=3",
            "prefill:model=7b,context=3",
            "prefill:model=7b,prompt=0",
        ] {
            assert!(matches!(Work::parse(bad), Err(GpuError::Invalid(_))), "{bad}");
        }
    }
}
