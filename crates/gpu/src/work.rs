//! The cost of a workload (matrix product, attention, text generation): operations, bytes moved, and their ratio.

use serde::Serialize;

use crate::GpuError;
use crate::sheet::Precision;

/// The shape of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Transformer {
    /// Number of parameters.
    pub parameters: f64,
    /// Number of layers.
    pub layers: f64,
    /// Width of the hidden state.
    pub hidden: f64,
    /// Width of the keys, and of the values: equal to `hidden`, or smaller with grouped-query attention.
    pub key_value: f64,
    /// Number of attention heads.
    pub heads: f64,
    /// The publication that gives the shape, or the formula that estimates it.
    pub source: &'static str,
}

/// Published shapes: parameters in 10^9, layers, hidden, key/value width, heads, source.
const SHAPES: [(f64, f64, f64, f64, f64, &str); 6] = [
    (1.0, 16.0, 2048.0, 512.0, 32.0, "Llama 3.2 1B model card"),
    (3.0, 28.0, 3072.0, 1024.0, 24.0, "Llama 3.2 3B model card"),
    (7.0, 32.0, 4096.0, 4096.0, 32.0, "Llama 2 7B (Touvron et al. 2023)"),
    (8.0, 32.0, 4096.0, 1024.0, 32.0, "Llama 3 8B (Dubey et al. 2024, table 3)"),
    (13.0, 40.0, 5120.0, 5120.0, 40.0, "Llama 2 13B (Touvron et al. 2023)"),
    (70.0, 80.0, 8192.0, 1024.0, 64.0, "Llama 3 70B (Dubey et al. 2024, table 3)"),
];

/// Parses a parameter count such as `7b`, `350m` or `1.5b`.
///
/// # Errors
/// [`GpuError::Invalid`] if the text is not a number from 1 to 1e14 with an optional suffix k, m, b or t.
pub fn parameters(text: &str) -> Result<f64, GpuError> {
    let lower = text.to_ascii_lowercase();
    let (digits, scale) = match lower.as_bytes().last() {
        Some(b't') => (&lower[..lower.len() - 1], 1e12),
        Some(b'b') => (&lower[..lower.len() - 1], 1e9),
        Some(b'm') => (&lower[..lower.len() - 1], 1e6),
        Some(b'k') => (&lower[..lower.len() - 1], 1e3),
        _ => (lower.as_str(), 1.0),
    };
    digits.parse::<f64>().ok().map(|n| n * scale).filter(|n| (1.0..=1e14).contains(n)).ok_or_else(|| {
        GpuError::Invalid(format!("invalid parameter count '{text}': expected a number such as 7b or 350m"))
    })
}

impl Transformer {
    /// The shape for a parameter count: a published shape within 5 %, otherwise an estimate from
    /// parameters = 12 x layers x hidden^2 (Kaplan et al. 2020, section 2.1) with hidden = 128 x layers.
    pub fn from_parameters(parameters: f64) -> Self {
        if let Some(&(_, layers, hidden, key_value, heads, source)) =
            SHAPES.iter().find(|s| (parameters / (s.0 * 1e9) - 1.0).abs() < 0.05)
        {
            return Self { parameters, layers, hidden, key_value, heads, source };
        }
        let layers = (parameters / (12.0 * 128.0 * 128.0)).cbrt().round().max(1.0);
        let hidden = ((parameters / (12.0 * layers)).sqrt() / 64.0).round().max(1.0) * 64.0;
        let source = "estimated: 12 x layers x hidden^2 parameters (Kaplan et al. 2020), hidden = 128 x layers";
        Self { parameters, layers, hidden, key_value: hidden, heads: (hidden / 128.0).max(1.0), source }
    }

    /// Key-value cache size per token in bytes: 2 x layers x key/value width x bytes.
    pub fn cache_bytes_per_token(&self, precision: Precision) -> f64 {
        2.0 * self.layers * self.key_value * precision.bytes()
    }
}

/// A workload and its cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Work {
    /// The text it was parsed from, such as `gemm:4096,4096,4096,bf16`.
    pub name: String,
    /// The number format.
    pub precision: Precision,
    /// Arithmetic operations; a multiply-add counts as two.
    pub operations: f64,
    /// Bytes moved between memory and chip if every operand is moved once.
    pub bytes: f64,
    /// The formulas of operations and bytes, with a source.
    pub formula: String,
    /// M, N and K of a matrix product that can be benchmarked.
    pub gemm: Option<(usize, usize, usize)>,
    /// Tokens generated per step, for text generation.
    pub tokens: Option<f64>,
}

const SYNTAX: &str = "gemm:M,N,K,bf16, linear:BATCH,IN,OUT,bf16, attention:BATCH,HEADS,SEQUENCE,DIMENSION,bf16 or decode:model=7b,batch=1";

impl Work {
    /// Arithmetic intensity: operations per byte.
    pub fn intensity(&self) -> f64 {
        self.operations / self.bytes
    }

    /// Parses `gemm:m,n,k,bf16`, `linear:batch,in,out,bf16`, `attention:batch,heads,sequence,dimension,bf16` or
    /// `decode:model=7b,batch=1,context=4096,dtype=bf16`.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] with the expected syntax.
    pub fn parse(text: &str) -> Result<Self, GpuError> {
        let invalid = |why: &str| GpuError::Invalid(format!("'{text}': {why}; expected {SYNTAX}"));
        let (kind, rest) =
            text.split_once(':').ok_or_else(|| invalid("the kind of workload and a colon are missing"))?;
        let fields: Vec<&str> = rest.split(',').map(str::trim).collect();
        if kind == "decode" {
            return Self::decode(text, &fields);
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
            operations,
            bytes,
            formula: formula.into(),
            gemm,
            tokens: None,
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

    fn decode(text: &str, fields: &[&str]) -> Result<Self, GpuError> {
        let invalid = |why: String| GpuError::Invalid(format!("'{text}': {why}; expected {SYNTAX}"));
        let (mut model, mut batch, mut context, mut precision) = (None, 1.0, 2048.0, Precision::Bf16);
        for field in fields {
            let (key, value) = field.split_once('=').ok_or_else(|| invalid(format!("'{field}' is not KEY=VALUE")))?;
            let number = || value.parse::<u32>().ok().filter(|n| (1..=1 << 24).contains(n)).map(f64::from);
            match key {
                "model" => model = Some(parameters(value)?),
                "batch" => batch = number().ok_or_else(|| invalid(format!("batch '{value}' is not a number")))?,
                "context" => context = number().ok_or_else(|| invalid(format!("context '{value}' is not a number")))?,
                "dtype" => precision = value.parse()?,
                _ => return Err(invalid(format!("unknown key '{key}'"))),
            }
        }
        let shape = Transformer::from_parameters(model.ok_or_else(|| invalid("model=... is missing".into()))?);
        let cache = batch * context * shape.cache_bytes_per_token(precision);
        Ok(Self {
            name: text.into(),
            precision,
            operations: batch * (2.0 * shape.parameters + 4.0 * shape.layers * shape.hidden * context),
            bytes: shape.parameters * precision.bytes() + cache,
            formula: format!(
                "a step computes 2 x parameters + 4 x layers x hidden x context operations for each of {batch} sequences (Kaplan et al. 2020, table 1), and reads all weights and the key-value cache once (Pope et al. 2022); shape: {}",
                shape.source
            ),
            gemm: None,
            tokens: Some(batch),
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
    fn decoding_one_token_of_7b_reads_14_gb() {
        let work = Work::parse("decode:model=7b,batch=1,context=1").unwrap();
        assert!((work.bytes / 14e9 - 1.0).abs() < 0.01 && (work.operations / 14e9 - 1.0).abs() < 0.01);
        let shape = Transformer::from_parameters(7e9);
        assert!((shape.cache_bytes_per_token(Precision::Fp16) - 524_288.0).abs() < 1.0, "half a MiB per token");
    }

    #[test]
    fn estimated_shapes_match_parameter_count() {
        for billions in [0.35, 1.5, 30.0, 175.0, 405.0] {
            let s = Transformer::from_parameters(billions * 1e9);
            let counted = 12.0 * s.layers * s.hidden * s.hidden;
            assert!((counted / (billions * 1e9) - 1.0).abs() < 0.1, "{billions}: {counted}");
        }
    }

    #[test]
    fn invalid_workloads_are_rejected() {
        for bad in [
            "gemm",
            "gemm:1,2",
            "gemm:0,1,1",
            "gemm:a,b,c",
            "gemm:1,1,1,fp3",
            "conv:1",
            "decode:batch=1",
            "decode:model=x",
            "decode:7b",
        ] {
            assert!(matches!(Work::parse(bad), Err(GpuError::Invalid(_))), "{bad}");
        }
    }
}
