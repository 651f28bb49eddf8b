//! What a piece of work asks of a machine: operations, bytes, and their ratio.

use serde::Serialize;

use crate::GpuError;
use crate::sheet::Precision;

/// The shape of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Transformer {
    /// Parameters.
    pub parameters: f64,
    /// Layers.
    pub layers: f64,
    /// Width of the hidden state.
    pub hidden: f64,
    /// Width of keys and of values: all of `hidden`, or less with grouped queries.
    pub key_value: f64,
    /// Attention heads.
    pub heads: f64,
    /// How the shape is known.
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

/// A number of parameters: `7b`, `350m`, `1.5b`.
///
/// # Errors
/// [`GpuError::Invalid`].
pub fn parameters(text: &str) -> Result<f64, GpuError> {
    let lower = text.to_ascii_lowercase();
    let (digits, scale) = match lower.as_bytes().last() {
        Some(b't') => (&lower[..lower.len() - 1], 1e12),
        Some(b'b') => (&lower[..lower.len() - 1], 1e9),
        Some(b'm') => (&lower[..lower.len() - 1], 1e6),
        Some(b'k') => (&lower[..lower.len() - 1], 1e3),
        _ => (lower.as_str(), 1.0),
    };
    digits
        .parse::<f64>()
        .ok()
        .map(|n| n * scale)
        .filter(|n| (1.0..=1e14).contains(n))
        .ok_or_else(|| GpuError::Invalid(format!("'{text}' is no number of parameters; write 7b or 350m")))
}

impl Transformer {
    /// The shape of so many parameters: a published one within 5 %, else one estimated from
    /// parameters = 12 x layers x hidden^2 (Kaplan et al. 2020, section 2.1) with hidden = 128 x layers.
    pub fn of(parameters: f64) -> Self {
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

    /// Bytes of keys and values that one token leaves behind: 2 x layers x key/value width x bytes.
    pub fn cache_bytes_per_token(&self, precision: Precision) -> f64 {
        2.0 * self.layers * self.key_value * precision.bytes()
    }
}

/// A piece of work.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Work {
    /// As it was asked for.
    pub name: String,
    /// The number format.
    pub precision: Precision,
    /// Operations; a multiply-add counts two.
    pub operations: f64,
    /// Bytes between memory and chip if every operand moves once.
    pub bytes: f64,
    /// How both are computed, with a source.
    pub formula: String,
    /// Rows, columns and depth, where it is a matrix product that can be measured.
    pub gemm: Option<(usize, usize, usize)>,
    /// Tokens that one step yields, where it is text generation.
    pub tokens: Option<f64>,
}

const FORMS: &str = "gemm:M,N,K,bf16, linear:BATCH,IN,OUT,bf16, attention:BATCH,HEADS,SEQUENCE,DIMENSION,bf16 or decode:model=7b,batch=1";

impl Work {
    /// Operations a byte.
    pub fn intensity(&self) -> f64 {
        self.operations / self.bytes
    }

    /// Reads `gemm:m,n,k,bf16`, `linear:batch,in,out,bf16`, `attention:batch,heads,sequence,dimension,bf16` or
    /// `decode:model=7b,batch=1,context=4096,dtype=bf16`.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] that says what is expected.
    pub fn parse(text: &str) -> Result<Self, GpuError> {
        let wrong = |why: &str| GpuError::Invalid(format!("'{text}': {why}; write {FORMS}"));
        let (kind, rest) = text.split_once(':').ok_or_else(|| wrong("a kind of work and a colon are missing"))?;
        let fields: Vec<&str> = rest.split(',').map(str::trim).collect();
        if kind == "decode" {
            return Self::decode(text, &fields);
        }
        let numbers = match kind {
            "gemm" | "linear" => 3,
            "attention" => 4,
            _ => return Err(wrong("an unknown kind of work")),
        };
        if fields.len() < numbers || fields.len() > numbers + 1 {
            return Err(wrong(&format!("{kind} takes {numbers} numbers and a number format")));
        }
        let mut sizes = Vec::new();
        for field in &fields[..numbers] {
            let n: u32 = field
                .parse()
                .ok()
                .filter(|n| (1..=1 << 24).contains(n))
                .ok_or_else(|| wrong(&format!("'{field}' is no size")))?;
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
        let whole = |i: usize| sizes[i] as usize;
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
                // A linear layer is a product of batch x in with in x out.
                let (m, n, k, at) = if kind == "gemm" {
                    (sizes[0], sizes[1], sizes[2], [0, 1, 2])
                } else {
                    (sizes[0], sizes[2], sizes[1], [0, 2, 1])
                };
                work(
                    2.0 * m * n * k,
                    (m * k + k * n + m * n) * b,
                    "2 x m x n x k operations; (m k + k n + m n) numbers move once",
                    Some((whole(at[0]), whole(at[1]), whole(at[2]))),
                )
            }
        })
    }

    fn decode(text: &str, fields: &[&str]) -> Result<Self, GpuError> {
        let wrong = |why: String| GpuError::Invalid(format!("'{text}': {why}; write {FORMS}"));
        let (mut model, mut batch, mut context, mut precision) = (None, 1.0, 2048.0, Precision::Bf16);
        for field in fields {
            let (key, value) = field.split_once('=').ok_or_else(|| wrong(format!("'{field}' is not KEY=VALUE")))?;
            let number = || value.parse::<u32>().ok().filter(|n| (1..=1 << 24).contains(n)).map(f64::from);
            match key {
                "model" => model = Some(parameters(value)?),
                "batch" => batch = number().ok_or_else(|| wrong(format!("batch '{value}' is no number")))?,
                "context" => context = number().ok_or_else(|| wrong(format!("context '{value}' is no number")))?,
                "dtype" => precision = value.parse()?,
                _ => return Err(wrong(format!("unknown '{key}'"))),
            }
        }
        let shape = Transformer::of(model.ok_or_else(|| wrong("model=... is missing".into()))?);
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
    fn matrix_products_are_counted() {
        let work = Work::parse("gemm:4096,4096,4096,bf16").unwrap();
        assert!((work.operations - 137_438_953_472.0).abs() < 1.0);
        assert!((work.intensity() - 4096.0 / 3.0).abs() < 0.01);
        let linear = Work::parse("linear:1,4096,11008").unwrap();
        assert_eq!(linear.gemm, Some((1, 11008, 4096)));
        assert!(linear.intensity() < 1.0);
    }

    #[test]
    fn one_token_of_7b_reads_14_gigabytes() {
        let work = Work::parse("decode:model=7b,batch=1,context=1").unwrap();
        assert!((work.bytes / 14e9 - 1.0).abs() < 0.01 && (work.operations / 14e9 - 1.0).abs() < 0.01);
        let shape = Transformer::of(7e9);
        assert!((shape.cache_bytes_per_token(Precision::Fp16) - 524_288.0).abs() < 1.0, "half a MiB a token");
    }

    #[test]
    fn estimated_shapes_have_the_parameters() {
        for billions in [0.35, 1.5, 30.0, 175.0, 405.0] {
            let s = Transformer::of(billions * 1e9);
            let counted = 12.0 * s.layers * s.hidden * s.hidden;
            assert!((counted / (billions * 1e9) - 1.0).abs() < 0.1, "{billions}: {counted}");
        }
    }

    #[test]
    fn mistakes_say_what_is_expected() {
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
