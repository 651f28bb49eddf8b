//! Reads `config.json`, the description of a model in Hugging Face's format.
//!
//! The keys are those of the configuration classes of Transformers (`src/transformers/models/*/configuration_*.py`); families
//! use different names for the same size, and leave out values that are the default of their class. A value that has the wrong
//! type or is missing is an error that names the key, never a guess; `config/defaults.rs` has the defaults of the classes.

mod blocks;
mod defaults;
mod kinds;

use serde_json::{Map, Value};

use super::{FeedForward, Format, Layers, Tower, Transformer};
use crate::GpuError;

/// Maximum size of a file in bytes; real ones have a few kilobytes.
pub const MAX_BYTES: u64 = 1 << 20;
/// Maximum number of layers; the deepest published models have a few hundred.
const MAX_LAYERS: u64 = 4096;
/// Maximum of any other size: products of three of them, as recurrent layers have, then fit 64 bits.
const MAX_SIZE: u64 = 1 << 20;

/// Families whose feed-forward part has no gate.
const WITHOUT_GATE: [&str; 14] = [
    "gpt2",
    "gpt_neox",
    "gpt_neo",
    "gptj",
    "gpt_bigcode",
    "opt",
    "bloom",
    "falcon",
    "mpt",
    "phi",
    "starcoder2",
    "nemotron",
    "nemotron_h",
    "codegen",
];
/// Families whose output layer is the embedding unless their file says otherwise.
const TIED: [&str; 17] = [
    "gpt2",
    "gpt_neo",
    "gpt_bigcode",
    "opt",
    "bloom",
    "falcon",
    "mpt",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gemma3n_text",
    "cohere",
    "cohere2",
    "starcoder2",
    "lfm2",
    "granite",
];
/// Families with biases on queries, keys and values that their files do not mention.
const WITH_BIAS: [&str; 8] =
    ["qwen", "qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl", "qwen2_vl_text", "qwen2_5_vl_text", "gpt2"];

/// The part of a file that describes the language model, and the whole file.
pub(super) struct Reader<'a> {
    text: &'a Map<String, Value>,
    outer: &'a Map<String, Value>,
    /// The family, such as `llama`.
    family: &'a str,
}

/// Reads the text of a `config.json`; `source` is the name of the file, for messages.
///
/// # Errors
/// [`GpuError::Invalid`] if it is not JSON, too large, or does not describe a language model.
pub fn parse(text: &str, source: &str) -> Result<Value, GpuError> {
    if text.len() as u64 > MAX_BYTES {
        return Err(GpuError::Invalid(format!("{source} has more than {MAX_BYTES} bytes and is no config.json")));
    }
    serde_json::from_str(text).map_err(|e| GpuError::Invalid(format!("{source} is not JSON: {e}")))
}

/// Reads the shape of a model from its configuration.
///
/// # Errors
/// [`GpuError::Invalid`] with the key that is missing or has an invalid value.
pub fn transformer(value: &Value, name: &str, source: &str) -> Result<Transformer, GpuError> {
    let at = |e: GpuError| GpuError::Invalid(format!("{source}: {e}"));
    let outer = value.as_object().ok_or_else(|| GpuError::Invalid(format!("{source}: expected a JSON object")))?;
    read(outer, name, source).map_err(at)
}

/// The keys under which models with several parts keep their language model.
const TEXT_KEYS: [&str; 5] = ["text_config", "llm_config", "language_config", "thinker_config", "llm"];

/// The keys that lead to the object that describes the language model inside a configuration; JSON's own limit on nesting bounds them.
pub(super) fn text_path(outer: &Map<String, Value>) -> Vec<&'static str> {
    let (mut path, mut at) = (Vec::new(), outer);
    while let Some((key, inner)) = TEXT_KEYS.iter().find_map(|k| Some((*k, at.get(*k)?.as_object()?))) {
        path.push(key);
        at = inner;
    }
    path
}

fn read(outer: &Map<String, Value>, name: &str, source: &str) -> Result<Transformer, GpuError> {
    let text = text_path(outer).iter().fold(outer, |at, k| at.get(*k).and_then(Value::as_object).unwrap_or(at));
    let family = |m: &'_ Map<String, Value>| m.get("model_type").and_then(Value::as_str).map(str::to_owned);
    let family = family(text).or_else(|| family(outer)).unwrap_or_default();
    let reader = Reader { text, outer, family: &family };
    if reader.flag("is_encoder_decoder")?.unwrap_or(false) {
        return Err(GpuError::Invalid("encoder-decoder models are not supported: expected a decoder".into()));
    }
    let mut notes = Vec::new();
    let hidden = reader.need(&["hidden_size", "n_embd", "d_model", "dim"])?;
    let depth = reader.need(&["num_hidden_layers", "n_layer", "n_layers", "num_layers"])?;
    if depth > MAX_LAYERS {
        return Err(GpuError::Invalid(format!("num_hidden_layers is {depth}: at most {MAX_LAYERS} are supported")));
    }
    let vocabulary = reader.need(&["vocab_size", "padded_vocab_size"])?;
    let mut layers: Vec<Layers> = Vec::new();
    for kind in kinds::kinds(&reader, depth)? {
        let mixer = blocks::mixer(&reader, &kind, hidden)?;
        let feed_forward = blocks::feed_forward(&reader, &kind, hidden)?;
        match layers.iter_mut().find(|l| l.mixer == mixer && l.feed_forward == feed_forward) {
            Some(same) => same.count += 1,
            None => layers.push(Layers { count: 1, mixer, feed_forward }),
        }
    }
    let tied = match reader.flag("tie_word_embeddings")? {
        Some(tied) => tied,
        None => TIED.contains(&reader.family),
    };
    let with_positions = matches!(reader.family, "gpt2" | "gpt_neo" | "gpt_bigcode" | "opt");
    let positions = if with_positions {
        reader.number(&["n_positions", "max_position_embeddings"])?.unwrap_or(0) * hidden
    } else {
        0
    };
    let mut towers = Vec::new();
    for (key, what) in [("vision_config", "vision"), ("audio_config", "audio")] {
        let Some(config) = reader.outer.get(key).or_else(|| reader.text.get(key)).and_then(Value::as_object) else {
            continue;
        };
        match blocks::tower(config, hidden)? {
            Some(parameters) => towers.push(Tower { what, parameters }),
            None => notes.push(format!("{key} does not give the size of the {what} encoder, which is not counted")),
        }
    }
    if reader.number(&["num_nextn_predict_layers"])?.is_some_and(|n| n > 0) {
        notes.push(
            "layers that predict further tokens are not counted: engines load them for speculative decoding only"
                .into(),
        );
    }
    let format = declared_format(&reader, &mut notes);
    Ok(Transformer {
        name: name.into(),
        source: source.into(),
        assumed: false,
        hidden,
        vocabulary,
        tied,
        positions,
        dropout: WITHOUT_GATE.contains(&reader.family),
        layers,
        towers,
        format,
        notes,
    })
}

/// The format of the weights by `quantization_config` (the names of Transformers' quantizers), otherwise by the data type.
fn declared_format(reader: &Reader<'_>, notes: &mut Vec<String>) -> Option<Format> {
    let plain = ["torch_dtype", "dtype"].iter().find_map(|k| {
        let name = reader.text.get(*k).or_else(|| reader.outer.get(*k))?.as_str()?;
        name.trim_start_matches("torch.").parse::<Format>().ok()
    });
    let quantization = reader.outer.get("quantization_config").or_else(|| reader.text.get("quantization_config"));
    let Some(config) = quantization.and_then(Value::as_object) else { return plain };
    let word = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
    let bits = |c: &Map<String, Value>, key: &str| c.get(key).and_then(Value::as_u64);
    let method = word("quant_method");
    let found = match method.as_str() {
        "fp8" | "fbgemm_fp8" => Some(Format::Fp8),
        "awq" => Some(Format::Awq),
        "gptq" if bits(config, "bits") == Some(8) => Some(Format::GptqInt8),
        "gptq" => Some(Format::Gptq),
        "mxfp4" => Some(Format::Mxfp4),
        "bitsandbytes" if config.get("load_in_8bit").and_then(Value::as_bool) == Some(true) => Some(Format::Int8),
        "bitsandbytes" => Some(Format::Nf4),
        "modelopt" | "nvfp4" if word("quant_algo").contains("fp4") || method == "nvfp4" => Some(Format::Nvfp4),
        "modelopt" => Some(Format::Fp8),
        "compressed-tensors" => {
            let groups = config.get("config_groups").and_then(Value::as_object);
            let weights = groups.and_then(|g| g.values().next()?.get("weights")?.as_object());
            weights.and_then(|w| {
                let float = w.get("type").and_then(Value::as_str) == Some("float");
                match (bits(w, "num_bits")?, float) {
                    (8, true) => Some(Format::Fp8),
                    (8, false) => Some(Format::Int8),
                    (4, true) => Some(Format::Nvfp4),
                    (4, false) => Some(Format::Awq),
                    _ => None,
                }
            })
        }
        _ => None,
    };
    if found.is_none() {
        notes.push(format!("quantization_config has the unknown method '{method}': the weights are taken as 16-bit"));
    }
    found.or(plain)
}

impl Reader<'_> {
    /// The first of these keys that has a value, as a size.
    pub(super) fn number(&self, keys: &[&str]) -> Result<Option<u64>, GpuError> {
        let written = keys.iter().find_map(|k| number_of(self.text, k).transpose()).transpose()?;
        // Only parts of a model are saved without the defaults of their class; a key with null has no value.
        let is_part = !std::ptr::eq(self.text, self.outer);
        let is_absent = is_part && keys.iter().all(|k| !self.text.contains_key(*k));
        Ok(written.or_else(|| defaults::of(self.family, keys).filter(|_| is_absent)))
    }

    /// As [`Self::number`]; the absence of all keys is an error.
    pub(super) fn need(&self, keys: &[&str]) -> Result<u64, GpuError> {
        match self.number(keys)? {
            Some(n) if n > 0 => Ok(n),
            Some(_) => Err(GpuError::Invalid(format!("{} is 0", keys[0]))),
            None => Err(GpuError::Invalid(format!(
                "{} is missing; a config.json of a language model has it (slipway gpu fit takes --layers, --hidden, --heads and so on)",
                keys[0]
            ))),
        }
    }

    /// A boolean, of the language model or else of the whole file.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, GpuError> {
        match self.text.get(key).or_else(|| self.outer.get(key)) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(GpuError::Invalid(format!("{key} is {other}: expected true or false"))),
        }
    }

    /// A list.
    pub(super) fn list(&self, key: &str) -> Option<&Vec<Value>> {
        self.text.get(key)?.as_array()
    }

    /// A list of numbers, such as the layers that something applies to.
    pub(super) fn numbers(&self, key: &str) -> Option<Vec<u64>> {
        Some(self.list(key)?.iter().filter_map(Value::as_u64).collect())
    }

    /// A nested object.
    pub(super) fn object(&self, key: &str) -> Option<&Map<String, Value>> {
        self.text.get(key)?.as_object()
    }

    /// The family, such as `llama`.
    pub(super) fn family(&self) -> &str {
        self.family
    }

    /// Number of matrices of a feed-forward part.
    pub(super) fn matrices(&self) -> u64 {
        if WITHOUT_GATE.contains(&self.family) { 2 } else { 3 }
    }

    /// Whether queries, keys and values have biases.
    pub(super) fn bias(&self) -> Result<bool, GpuError> {
        Ok(self.flag("attention_bias")?.unwrap_or_else(|| WITH_BIAS.contains(&self.family)))
    }
}

/// A size in an object; `null` and absence are the same.
pub(super) fn number_of(object: &Map<String, Value>, key: &str) -> Result<Option<u64>, GpuError> {
    let invalid = |v: &Value| {
        GpuError::Invalid(format!(
            "{key} is {}: expected a number from 0 to {MAX_SIZE}",
            v.to_string().chars().take(40).collect::<String>()
        ))
    };
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(v) => {
            match v.as_u64().or_else(|| v.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0).map(|f| f as u64)) {
                Some(n) if n <= MAX_SIZE => Ok(Some(n)),
                _ => Err(invalid(v)),
            }
        }
    }
}

impl FeedForward {
    /// A dense part, or none if it has no width.
    pub(super) fn dense(inner: u64, matrices: u64) -> Self {
        if inner == 0 { Self::None } else { Self::Dense { inner, matrices } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transformer::Mixer;
    use serde_json::json;

    fn read(value: &Value) -> Result<Transformer, GpuError> {
        transformer(value, "x", "config.json")
    }

    fn base() -> Value {
        json!({ "model_type": "llama", "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 1024, "vocab_size": 1000 })
    }

    fn with(changes: Value) -> Value {
        let mut value = base();
        for (key, change) in changes.as_object().unwrap() {
            value[key] = change.clone();
        }
        value
    }

    #[test]
    fn invalid_values_are_named() {
        for (changes, word) in [
            (json!({"hidden_size": null}), "hidden_size is missing"),
            (json!({"num_hidden_layers": "4"}), "num_hidden_layers is"),
            (json!({"num_hidden_layers": 100_000}), "at most 4096"),
            (json!({"num_hidden_layers": 0}), "num_hidden_layers is 0"),
            (json!({"vocab_size": 1e30}), "vocab_size is"),
            (json!({"hidden_size": -1}), "hidden_size is"),
            (json!({"num_key_value_heads": 3}), "not a multiple of num_key_value_heads 3"),
            (json!({"num_attention_heads": 7}), "head_dim is missing"),
            (json!({"layer_types": ["full_attention"]}), "layer_types has 1 entries for 4 layers"),
            (json!({"num_local_experts": 8, "num_experts_per_tok": 9}), "expected 1 to 8"),
            (json!({"is_encoder_decoder": true}), "encoder-decoder"),
            (json!({"tie_word_embeddings": "yes"}), "expected true or false"),
        ] {
            let refused = read(&with(changes)).unwrap_err().to_string();
            assert!(refused.contains(word), "{refused} does not say {word}");
        }
        assert!(read(&json!([])).is_err() && parse("{", "x").is_err());
    }

    #[test]
    fn kinds_of_layers_are_read_from_lists_periods_and_patterns() {
        let windows = |changes| {
            let shape = read(&with(changes)).unwrap();
            let windows = shape.layers.iter().filter(|l| matches!(l.mixer, Mixer::Attention { window: Some(_), .. }));
            windows.map(|l| l.count).sum::<u64>()
        };
        assert_eq!(windows(json!({"model_type": "mistral", "sliding_window": 64})), 4);
        assert_eq!(windows(json!({"model_type": "gpt_oss", "sliding_window": 64})), 2);
        assert_eq!(windows(json!({"model_type": "gemma3_text", "sliding_window": 64, "sliding_window_pattern": 4})), 3);
        assert_eq!(windows(json!({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": false})), 0);
        let kinds = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"];
        assert_eq!(windows(json!({"layer_types": kinds, "sliding_window": 64})), 3);
        let state = |changes| read(&with(changes)).unwrap().cache(1000, 1, 16);
        let jamba = state(json!({"model_type": "jamba", "attn_layer_period": 4, "attn_layer_offset": 1}));
        assert!((jamba.values - 1008.0 * 2.0 * 512.0).abs() < 1.0 && jamba.state > 0.0, "{jamba:?}");
    }

    #[test]
    fn layers_whose_cache_does_not_grow_are_not_counted_as_attention() {
        let kinds: Vec<u64> = (1..=80).map(|i| u64::from(i % 8 == 0)).collect();
        let minimax = json!({"model_type": "minimax_m1", "hidden_size": 6144, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 9216, "num_local_experts": 32, "num_experts_per_tok": 2,
            "vocab_size": 200_064, "attn_type_list": kinds});
        let shape = read(&minimax).unwrap();
        assert!((shape.parameters() / 456e9 - 1.0).abs() < 0.01, "{}", shape.parameters());
        assert!((shape.cache(32_768, 1, 16).values - 32_768.0 * 10.0 * 2.0 * 1024.0).abs() < 1.0);
        let llama = with(json!({"model_type": "mllama_text_model", "cross_attention_layers": [1]}));
        let vision = json!({"model_type": "mllama", "text_config": llama, "vision_config": {"image_size": 560, "patch_size": 14}});
        let images = |l: &Layers| matches!(l.mixer, Mixer::Attention { window: Some(6404), .. });
        assert_eq!(read(&vision).unwrap().layers.iter().filter(|l| images(l)).map(|l| l.count).sum::<u64>(), 1);
    }

    #[test]
    fn part_of_a_model_has_the_defaults_of_its_class() {
        let gemma = |changes: Value| {
            let mut text = json!({"model_type": "gemma3_text"});
            for (key, change) in changes.as_object().unwrap() {
                text[key] = change.clone();
            }
            json!({"model_type": "gemma3", "text_config": text})
        };
        // The published files of Gemma 3 4B and 27B: 3.88 and 27.0 billion parameters without the encoder.
        let small = gemma(
            json!({"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}),
        );
        let large = gemma(
            json!({"hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62, "num_attention_heads": 32,
            "num_key_value_heads": 16, "head_dim": 128, "sliding_window": 1024}),
        );
        for (file, billions, layers) in [(&small, 3.88, 34), (&large, 27.0, 62)] {
            let shape = read(file).unwrap();
            let parameters = shape.parameters() / 1e9;
            assert!((parameters / billions - 1.0).abs() < 0.01, "{parameters}");
            let windows = |l: &Layers| matches!(l.mixer, Mixer::Attention { window: Some(1024), .. });
            let local: u64 = shape.layers.iter().filter(|l| windows(l)).map(|l| l.count).sum();
            assert_eq!(local, layers - layers / 6);
        }
        let pixtral = json!({"model_type": "llava", "text_config": {"model_type": "mistral", "head_dim": 128, "hidden_size": 5120,
            "num_hidden_layers": 40, "sliding_window": null, "vocab_size": 131_072}});
        let attention = read(&pixtral).unwrap().layers[0].mixer.clone();
        assert!(matches!(attention, Mixer::Attention { heads: 32, kv_heads: 8, window: None, .. }), "{attention:?}");
        let alone = read(&json!({"model_type": "mistral", "hidden_size": 4096})).unwrap_err().to_string();
        assert!(alone.contains("num_hidden_layers is missing"), "{alone}");
    }

    #[test]
    fn quantization_and_vision_are_read_from_the_whole_file() {
        let nested = json!({
            "model_type": "gemma3", "torch_dtype": "bfloat16",
            "text_config": with(json!({"model_type": "gemma3_text", "head_dim": 64})),
            "vision_config": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "patch_size": 14},
        });
        let shape = read(&nested).unwrap();
        assert!(shape.tied && shape.format == Some(Format::Bf16) && shape.towers[0].parameters > 2 * 4 * 64 * 64);
        for (config, format) in [
            (json!({"quant_method": "fp8"}), Format::Fp8),
            (json!({"quant_method": "gptq", "bits": 8}), Format::GptqInt8),
            (json!({"quant_method": "awq", "bits": 4}), Format::Awq),
            (json!({"quant_method": "mxfp4"}), Format::Mxfp4),
            (json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}), Format::Nvfp4),
            (json!({"quant_method": "bitsandbytes", "load_in_4bit": true}), Format::Nf4),
            (
                json!({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}}),
                Format::Fp8,
            ),
        ] {
            assert_eq!(read(&with(json!({"quantization_config": config}))).unwrap().format, Some(format));
        }
        let unknown = read(&with(json!({"quantization_config": {"quant_method": "new"}}))).unwrap();
        assert!(unknown.notes[0].contains("unknown method 'new'"), "{unknown:?}");
    }
}
