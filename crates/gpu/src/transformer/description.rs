//! What a user says about a model: a name, a size, a `config.json`, single sizes, or a mixture of those.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::assumption::{self, Attention, Size};
use super::{Transformer, config, published};
use crate::GpuError;

/// A description of a model. At least one of `model`, `params`, `config`, or `layers`, `hidden` and `heads` together.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "ModelDescription")]
pub struct Description {
    /// Name of a published model, such as `llama-3.1-70b`, or of its repository.
    pub model: Option<String>,
    /// Number of parameters: `7b`, `8x7b`, `235b-a22b`.
    pub params: Option<String>,
    /// Number of parameters that a token uses, in a mixture of experts of which only the size is known.
    pub active: Option<String>,
    /// Attention to assume if only the size is known.
    pub attention: Option<Attention>,
    /// A `config.json` that has been read.
    #[serde(skip)]
    #[schemars(skip)]
    pub config: Option<Config>,
    /// Number of layers.
    pub layers: Option<u64>,
    /// Width of the hidden state.
    pub hidden: Option<u64>,
    /// Number of query heads.
    pub heads: Option<u64>,
    /// Number of heads of keys and values.
    pub kv_heads: Option<u64>,
    /// Width of a head.
    pub head_dim: Option<u64>,
    /// Width of the feed-forward part.
    pub intermediate: Option<u64>,
    /// Number of tokens in the vocabulary.
    pub vocab: Option<u64>,
    /// Number of experts per layer.
    pub experts: Option<u64>,
    /// Number of experts that a token uses.
    pub experts_per_token: Option<u64>,
}

/// A configuration and the place it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file or the model version.
    pub source: String,
    /// Its contents.
    pub value: Value,
}

/// Hidden width per width of the feed-forward part of a model of which neither is given: Llama 3 (Dubey et al. 2024, table 3).
const FEED_FORWARD_WIDTH: f64 = 3.5;

impl Description {
    /// A description by size alone.
    pub fn of_size(params: impl Into<String>) -> Self {
        Self { params: Some(params.into()), ..Self::default() }
    }

    /// A published model.
    pub fn of_model(name: impl Into<String>) -> Self {
        Self { model: Some(name.into()), ..Self::default() }
    }

    /// The single sizes, with the keys that they have in a `config.json`.
    fn sizes(&self) -> [(&'static str, Option<u64>); 9] {
        [
            ("num_hidden_layers", self.layers),
            ("hidden_size", self.hidden),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate),
            ("vocab_size", self.vocab),
            ("num_experts", self.experts),
            ("num_experts_per_tok", self.experts_per_token),
        ]
    }

    /// The shape that is described.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] if the description is contradictory or names an unknown model.
    pub fn transformer(&self) -> Result<Transformer, GpuError> {
        let given = [self.model.is_some(), self.params.is_some(), self.config.is_some()];
        if given.iter().filter(|g| **g).count() > 1 {
            return Err(GpuError::Invalid("give one of --model, --params and --config, not several".into()));
        }
        let (mut value, name, mut source, assumed) = self.base()?;
        let changed: Vec<String> = self.sizes().iter().filter_map(|(k, n)| n.map(|n| format!("{k} {n}"))).collect();
        if !changed.is_empty() && given.contains(&true) {
            source = format!("{source}, with {}", changed.join(", "));
        }
        let text = value.as_object().map(config::text_path).unwrap_or_default();
        for (key, n) in self.sizes() {
            let target = text.iter().try_fold(&mut value, |v, k| v.get_mut(*k)).and_then(Value::as_object_mut);
            if let (Some(object), Some(n)) = (target, n) {
                object.insert(key.into(), n.into());
            }
        }
        let mut shape = config::transformer(&value, &name, &source)?;
        shape.assumed = assumed;
        Ok(shape)
    }

    /// The configuration without the single sizes, the model's name, its source, and whether it is an assumption.
    fn base(&self) -> Result<(Value, String, String, bool), GpuError> {
        if let Some(config) = &self.config {
            let name = config.value.get("_name_or_path").and_then(Value::as_str).filter(|n| !n.is_empty());
            let name = name.unwrap_or(&config.source).to_owned();
            return Ok((config.value.clone(), name, config.source.clone(), false));
        }
        let of = |m: &published::Published| (m.config.clone(), m.name.clone(), m.source.clone(), false);
        if let Some(name) = &self.model {
            let found = published::by_name(name).or_else(|| published::by_size(&name.parse().ok()?));
            return found.map(of).ok_or_else(|| {
                let names: Vec<&str> = published::models().iter().map(|m| m.name.as_str()).collect();
                GpuError::Invalid(format!("unknown model '{name}': expected one of {}", names.join(", ")))
            });
        }
        let Some(params) = &self.params else { return self.by_sizes() };
        let size: Size = params.parse()?;
        let active = self.active.as_deref().map(assumption::parameters).transpose()?.or(size.active);
        let published = published::by_size(&size).filter(|m| {
            // A published model is taken only if it has the active parameters and the attention that are asked for.
            self.attention.is_none()
                && active.is_none_or(|a| {
                    let own = m.active.as_deref().and_then(|t| assumption::parameters(t).ok());
                    own.is_some_and(|own| (own / a - 1.0).abs() < 0.05)
                })
        });
        if let Some(found) = published {
            return Ok(of(found));
        }
        let Some(total) = size.total else {
            return Err(GpuError::Invalid(format!(
                "'{params}' is no published model: give the number of all parameters and --active"
            )));
        };
        let (value, words) = assumption::config(total, active, self.attention.unwrap_or_default())?;
        Ok((value, size.text, words, true))
    }

    fn by_sizes(&self) -> Result<(Value, String, String, bool), GpuError> {
        let (Some(layers), Some(hidden), Some(_)) = (self.layers, self.hidden, self.heads) else {
            return Err(GpuError::Invalid(
                "describe the model: --model llama-3.1-70b, --params 70b, --config FILE, or --layers, --hidden and --heads"
                    .into(),
            ));
        };
        let mut value = serde_json::json!({ "model_type": "described", "vocab_size": 128_256 });
        let mut source = format!("described: {layers} layers of width {hidden}");
        if self.intermediate.is_none() {
            let inner = (hidden.min(1 << 32) as f64 * FEED_FORWARD_WIDTH).round() as u64;
            value["intermediate_size"] = inner.into();
            source.push_str(", assumed: feed-forward part 3.5 times as wide");
        }
        if self.vocab.is_none() {
            source.push_str(", assumed: vocabulary of 128256");
        }
        Ok((value, "described".into(), source, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transformer::Mixer;

    #[test]
    fn single_sizes_change_a_published_model() {
        let wide = Description { kv_heads: Some(64), ..Description::of_size("70b") }.transformer().unwrap();
        assert!(matches!(wide.layers[0].mixer, Mixer::Attention { kv_heads: 64, .. }), "{wide:?}");
        assert!(wide.source.contains("num_key_value_heads 64"), "{}", wide.source);
        let nested = serde_json::json!({ "text_config": { "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 100 } });
        let config = Some(Config { source: "x".into(), value: nested });
        let deep = Description { config, layers: Some(7), ..Description::default() }.transformer().unwrap();
        assert_eq!(deep.depth(), 7);
    }

    #[test]
    fn sizes_alone_describe_a_model() {
        let sizes = Description { layers: Some(32), hidden: Some(4096), heads: Some(32), ..Description::default() };
        let shape = Description { kv_heads: Some(8), ..sizes.clone() }.transformer().unwrap();
        assert!((shape.parameters() / 8.03e9 - 1.0).abs() < 0.01, "{}", shape.parameters());
        assert!(shape.source.contains("assumed: feed-forward part"), "{}", shape.source);
        assert!(Description { heads: None, ..sizes }.transformer().is_err());
    }

    #[test]
    fn contradictory_descriptions_are_rejected() {
        for bad in [
            Description::default(),
            Description { params: Some("7b".into()), ..Description::of_model("llama-3.1-8b") },
            Description::of_model("no-such-model"),
            Description::of_size("8x3b"),
            Description { kv_heads: Some(5), ..Description::of_size("70b") },
        ] {
            assert!(bad.transformer().is_err(), "{bad:?}");
        }
    }
}
