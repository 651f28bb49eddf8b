//! The shape of a model of which only the size is known: an assumption that is named wherever the shape is shown.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::GpuError;

/// A number of parameters as people write it: `7b`, `350m`, `8x7b` or `235b-a22b`.
#[derive(Debug, Clone, PartialEq)]
pub struct Size {
    /// The text in lower case.
    pub text: String,
    /// All parameters; `None` for `8x7b`, which does not say how many the experts share.
    pub total: Option<f64>,
    /// Parameters that a token uses, from `235b-a22b`.
    pub active: Option<f64>,
}

/// Parses a parameter count such as `7b`, `350m` or `1.5b`.
///
/// # Errors
/// [`GpuError::Invalid`] if the text is not a number from 1 to 1e14 with an optional suffix k, m, b or t.
pub fn parameters(text: &str) -> Result<f64, GpuError> {
    let lower = text.trim().to_ascii_lowercase();
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

impl FromStr for Size {
    type Err = GpuError;
    fn from_str(text: &str) -> Result<Self, GpuError> {
        let text = text.trim().to_ascii_lowercase();
        if let Some((count, each)) = text.split_once('x')
            && count.parse::<u32>().is_ok()
        {
            parameters(each)?;
            return Ok(Self { text, total: None, active: None });
        }
        if let Some((total, active)) = text.split_once("-a") {
            let (total, active) = (parameters(total)?, parameters(active)?);
            if active >= total {
                return Err(GpuError::Invalid(format!("'{text}': the active parameters must be fewer than all")));
            }
            return Ok(Self { text, total: Some(total), active: Some(active) });
        }
        Ok(Self { total: Some(parameters(&text)?), active: None, text })
    }
}

/// The kind of attention that is assumed for a model of which only the size is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "AttentionKind")]
pub enum Attention {
    /// Multi-head: keys and values for every head.
    Mha,
    /// Grouped-query: 8 heads of keys and values.
    #[default]
    Gqa,
    /// Multi-query: one head of keys and values.
    Mqa,
    /// Multi-head latent attention with DeepSeek-V3's widths.
    Mla,
}

impl FromStr for Attention {
    type Err = GpuError;
    fn from_str(text: &str) -> Result<Self, GpuError> {
        match text.to_ascii_lowercase().as_str() {
            "mha" => Ok(Self::Mha),
            "gqa" => Ok(Self::Gqa),
            "mqa" => Ok(Self::Mqa),
            "mla" => Ok(Self::Mla),
            _ => Err(GpuError::Invalid(format!("unknown attention '{text}': expected mha, gqa, mqa or mla"))),
        }
    }
}

/// Experts of an assumed model: the first number that allows so few active parameters. Qwen3 has 128, DeepSeek-V3 256, Qwen3-Next 512.
const EXPERTS: [f64; 3] = [128.0, 256.0, 512.0];
/// Experts that a token uses, as in Qwen3 and DeepSeek-V3.
const CHOSEN: f64 = 8.0;
/// Vocabulary of an assumed model: Llama 3's.
const VOCABULARY: u64 = 128_256;

/// A configuration with `total` parameters, and the words that name the assumption.
///
/// Depth and width follow Llama 3 (Dubey et al. 2024, table 3): heads of 128, hidden = 128 x layers; the width of the
/// feed-forward part makes up the number of parameters.
///
/// # Errors
/// [`GpuError::Invalid`] if no model of this form has so many parameters, or so few active ones.
pub fn config(total: f64, active: Option<f64>, attention: Attention) -> Result<(Value, String), GpuError> {
    let kv_heads = |heads: u64| match attention {
        Attention::Mha | Attention::Mla => heads,
        Attention::Gqa => heads.min(8),
        Attention::Mqa => 1,
    };
    // Grouped heads must divide the query heads, so the number of heads is a multiple of 8 where there are that many.
    let heads_of = |layers: u64| if layers >= 8 { layers / 8 * 8 } else { layers };
    // Models of less than 2 x 10^9 parameters tie their embeddings, and small ones have a small vocabulary.
    let (vocabulary, tied) = (if total < 3e8 { 32_000 } else { VOCABULARY }, total < 2e9);
    let per_layer = |h: f64, heads: u64| match attention {
        // DeepSeek-V3's projections: queries by 1536, keys and values by 512, 128 + 64 wide heads.
        Attention::Mla => {
            h * 1536.0
                + 1536.0 * heads as f64 * 192.0
                + h * 576.0
                + 512.0 * heads as f64 * 256.0
                + heads as f64 * 128.0 * h
        }
        _ => 2.0 * h * h + 2.0 * h * kv_heads(heads) as f64 * 128.0,
    };
    let table = |h: f64| h * vocabulary as f64 * if tied { 1.0 } else { 2.0 };
    // A mixture is as deep as a dense model between its two sizes, nearer to the active parameters: DeepSeek-V3, with 671 x 10^9
    // parameters of which 37 x 10^9 are active, is as deep as a dense model of 65 x 10^9.
    let like = active.map_or(total, |a| a.powf(0.8) * total.powf(0.2));
    let mut best = (1, f64::INFINITY);
    for layers in 1..=512u64 {
        let heads = heads_of(layers);
        let h = heads as f64 * 128.0;
        let size = layers as f64 * (per_layer(h, heads) + 3.0 * h * 3.5 * h) + table(h);
        if (size / like - 1.0).abs() < best.1 {
            best = (layers, (size / like - 1.0).abs());
        }
    }
    let layers = best.0;
    // A model too small for heads of 128 has narrower ones.
    let heads = heads_of(layers);
    let mut hidden = heads * 128;
    while hidden > 64 && layers as f64 * per_layer(hidden as f64, heads) + table(hidden as f64) > total * 0.7 {
        hidden = (hidden / 2).div_ceil(heads).max(1) * heads;
        if hidden <= heads {
            break;
        }
    }
    let h = hidden as f64;
    let rest = total - table(h) - layers as f64 * (per_layer(h, heads) + 2.0 * h);
    let mut value = json!({
        "model_type": "assumed",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads(heads),
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    });
    if attention == Attention::Mla {
        for (key, n) in [
            ("q_lora_rank", 1536),
            ("kv_lora_rank", 512),
            ("qk_nope_head_dim", 128),
            ("qk_rope_head_dim", 64),
            ("v_head_dim", 128),
        ] {
            value[key] = n.into();
        }
    }
    let name = match attention {
        Attention::Mha => "multi-head attention",
        Attention::Gqa => "grouped-query attention with 8 heads of keys and values",
        Attention::Mqa => "multi-query attention",
        Attention::Mla => "multi-head latent attention with DeepSeek-V3's widths",
    };
    let impossible = |why: String| GpuError::Invalid(format!("{why}; give --config, or --layers, --hidden and so on"));
    let words = match active {
        None => {
            let inner = (rest / (layers as f64 * 3.0 * h)).round();
            if inner < 1.0 {
                return Err(impossible(format!("no assumed shape has {total:.0} parameters")));
            }
            value["intermediate_size"] = (inner as u64).into();
            format!("assumed: dense, {name}, as deep and wide as Llama 3 of this size (Dubey et al. 2024, table 3)")
        }
        Some(active) => {
            if active >= total {
                return Err(GpuError::Invalid(
                    "the active parameters must be fewer than all; leave --active out for a dense model".into(),
                ));
            }
            // total = rest + all experts; active = rest + all experts x chosen / experts.
            let shape = EXPERTS.into_iter().find_map(|experts| {
                let all = (total - active) / (1.0 - CHOSEN / experts);
                let inner = (all / (layers as f64 * 3.0 * h * experts)).round();
                let shared = ((rest - all) / (layers as f64 * 3.0 * h)).round();
                (inner >= 1.0 && shared >= 0.0).then_some((experts, inner, shared))
            });
            let Some((experts, inner, shared)) = shape else {
                return Err(impossible(format!(
                    "no assumed mixture of at most 512 experts has {active:.3e} of {total:.3e} parameters active"
                )));
            };
            value["num_experts"] = (experts as u64).into();
            value["num_experts_per_tok"] = (CHOSEN as u64).into();
            value["moe_intermediate_size"] = (inner as u64).into();
            value["shared_expert_intermediate_size"] = (shared as u64).into();
            format!("assumed: {experts} experts of which a token uses {CHOSEN}, {name}")
        }
    };
    Ok((value, words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transformer::config as file;

    #[test]
    fn assumed_shapes_have_the_requested_number_of_parameters() {
        for attention in [Attention::Mha, Attention::Gqa, Attention::Mqa, Attention::Mla] {
            for total in [3.5e7, 3.5e8, 1.7e9, 18.6e9, 40e9, 130e9, 900e9] {
                if attention == Attention::Mla && total < 1e9 {
                    continue;
                }
                let (value, words) = config(total, None, attention).unwrap();
                let shape = file::transformer(&value, "x", &words).unwrap();
                assert!((shape.parameters() / total - 1.0).abs() < 0.01, "{attention:?} {total:e}: {value}");
                assert!(words.starts_with("assumed: "));
            }
        }
    }

    #[test]
    fn assumed_mixtures_have_the_requested_active_parameters() {
        for (total, active) in [(300e9, 15e9), (50e9, 6e9), (1e12, 32e9)] {
            let (value, _) = config(total, Some(active), Attention::Gqa).unwrap();
            let shape = file::transformer(&value, "x", "x").unwrap();
            assert!((shape.parameters() / total - 1.0).abs() < 0.02, "{total:e} {}", shape.parameters());
            assert!((shape.published_active() / active - 1.0).abs() < 0.05, "{total:e} {}", shape.published_active());
        }
        assert!(config(10e9, Some(10e9), Attention::Gqa).is_err());
        assert!(config(1000e9, Some(1e9), Attention::Gqa).is_err());
    }

    #[test]
    fn sizes_are_parsed() {
        assert_eq!("235b-a22b".parse::<Size>().unwrap().active, Some(22e9));
        assert_eq!("8x7b".parse::<Size>().unwrap().total, None);
        for bad in ["", "x", "b", "0b", "-7b", "nanb", "1e99", "7b-a8b", "8xb"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
