//! Which kind each layer of a model has. Families say it with a list, with a period, or with a pattern of letters.

use serde_json::Value;

use super::{Reader, number_of};
use crate::GpuError;

/// The kind of one layer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kind {
    pub(super) mixer: MixerKind,
    /// Whether the feed-forward part consists of experts; `None` if the layer has no feed-forward part.
    pub(super) experts: Option<bool>,
}

/// The kind of the part that mixes tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum MixerKind {
    Full,
    /// Attention to this many tokens.
    Window(u64),
    Mamba,
    /// Mamba-2, with heads and groups.
    Mamba2,
    /// The gated delta rule.
    Delta,
    /// Lightning attention, whose state does not grow (MiniMax-01).
    Lightning,
    /// A short convolution (LFM2).
    Convolution,
    None,
}

/// The kinds of all layers.
pub(super) fn kinds(r: &Reader<'_>, depth: u64) -> Result<Vec<Kind>, GpuError> {
    if let Some(pattern) = r.text.get("hybrid_override_pattern").and_then(Value::as_str) {
        return nemotron(pattern, depth);
    }
    let mixers = mixers(r, depth)?;
    let experts = r.number(EXPERTS)?.is_some_and(|n| n > 1) || r.object("ffn_config").is_some();
    mixers
        .into_iter()
        .enumerate()
        .map(|(i, mixer)| Ok(Kind { mixer, experts: Some(experts && has_experts(r, i as u64)?) }))
        .collect()
}

/// The keys of the number of routed experts.
pub(super) const EXPERTS: &[&str] = &["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"];

/// Nemotron-H: M is Mamba-2, * attention, - a feed-forward part, E experts; each is a layer.
fn nemotron(pattern: &str, depth: u64) -> Result<Vec<Kind>, GpuError> {
    let kind = |c| match c {
        'M' => Ok(Kind { mixer: MixerKind::Mamba2, experts: None }),
        '*' => Ok(Kind { mixer: MixerKind::Full, experts: None }),
        '-' => Ok(Kind { mixer: MixerKind::None, experts: Some(false) }),
        'E' => Ok(Kind { mixer: MixerKind::None, experts: Some(true) }),
        other => Err(GpuError::Invalid(format!("hybrid_override_pattern has the unknown letter '{other}'"))),
    };
    let kinds: Vec<Kind> = pattern.chars().map(kind).collect::<Result<_, _>>()?;
    if kinds.len() as u64 != depth {
        let found = kinds.len();
        return Err(GpuError::Invalid(format!("hybrid_override_pattern has {found} letters for {depth} layers")));
    }
    Ok(kinds)
}

fn mixers(r: &Reader<'_>, depth: u64) -> Result<Vec<MixerKind>, GpuError> {
    let window = window(r)?;
    let recurrent = recurrent(r);
    if let Some(list) = r.list("layer_types").or_else(|| r.list("layers_block_type")) {
        if list.len() as u64 != depth {
            let found = list.len();
            return Err(GpuError::Invalid(format!("layer_types has {found} entries for {depth} layers")));
        }
        return list
            .iter()
            .map(|v| match v.as_str().unwrap_or_default() {
                "full_attention" | "attention" | "global" => Ok(MixerKind::Full),
                "sliding_attention" | "chunked_attention" | "local" => window
                    .map(MixerKind::Window)
                    .ok_or_else(|| GpuError::Invalid("layer_types has windows, but sliding_window is missing".into())),
                "linear_attention" => Ok(MixerKind::Delta),
                "mamba" | "mamba2" => Ok(recurrent),
                "conv" => Ok(MixerKind::Convolution),
                _ => Err(GpuError::Invalid(format!("layer_types has the unknown entry {v}"))),
            })
            .collect();
    }
    if let Some(list) = r.numbers("attn_type_list") {
        if list.len() as u64 != depth {
            let found = list.len();
            return Err(GpuError::Invalid(format!("attn_type_list has {found} entries for {depth} layers")));
        }
        let kind = |full: &u64| if *full == 0 { MixerKind::Lightning } else { MixerKind::Full };
        return Ok(list.iter().map(kind).collect());
    }
    let layers = 0..depth;
    if let Some(cross) = r.numbers("cross_attention_layers").filter(|_| r.family().starts_with("mllama")) {
        // These layers attend to the tokens of the images alone.
        let images = MixerKind::Window(image_tokens(r)?);
        return Ok(layers.map(|i| if cross.contains(&i) { images } else { MixerKind::Full }).collect());
    }
    if let Some(period) = positive(r, "attn_layer_period")? {
        let offset = r.number(&["attn_layer_offset"])?.unwrap_or(0);
        return Ok(layers.map(|i| if i % period == offset { MixerKind::Full } else { recurrent }).collect());
    }
    if let Some(attention) = r.numbers("attn_layer_indices") {
        return Ok(layers.map(|i| if attention.contains(&i) { MixerKind::Full } else { recurrent }).collect());
    }
    if let Some(interval) = positive(r, "full_attention_interval")? {
        let full = |i| (i + 1) % interval == 0;
        return Ok(layers.map(|i| if full(i) { MixerKind::Full } else { MixerKind::Delta }).collect());
    }
    if matches!(r.family(), "mamba" | "mamba2" | "falcon_mamba") {
        return Ok(layers.map(|_| recurrent).collect());
    }
    let Some(window) = window else { return Ok(layers.map(|_| MixerKind::Full).collect()) };
    // One layer in so many sees everything; 1 in none if every layer has a window.
    let default = match r.family() {
        "gemma3" | "gemma3_text" => Some(6),
        "gemma3n_text" => Some(5),
        "cohere2" | "llama4" | "llama4_text" | "exaone4" => Some(4),
        "gemma2" | "gpt_oss" => Some(2),
        _ => None,
    };
    let pattern = positive(r, "sliding_window_pattern")?.or(default);
    // Qwen2 counts the layers without a window from the front.
    let first = match r.family() {
        "qwen2" | "qwen2_moe" => r.number(&["max_window_layers"])?.unwrap_or(0),
        _ => 0,
    };
    let full = |i: u64| i < first || pattern.is_some_and(|p| (i + 1).is_multiple_of(p));
    Ok(layers.map(|i| if full(i) { MixerKind::Full } else { MixerKind::Window(window) }).collect())
}

/// The width of the window of attention, if any layer has one.
fn window(r: &Reader<'_>) -> Result<Option<u64>, GpuError> {
    // Qwen's files have the width of a window that is off.
    if r.family().starts_with("qwen") && !r.flag("use_sliding_window")?.unwrap_or(false) {
        return Ok(None);
    }
    let found = r.number(&["sliding_window", "attention_chunk_size", "sliding_window_size"])?;
    Ok(found.filter(|w| *w > 0))
}

/// Tokens of one image in the cross-attention of Llama 3.2 Vision: its tiles, each with its patches and a token for the class.
fn image_tokens(r: &Reader<'_>) -> Result<u64, GpuError> {
    let vision = r.outer.get("vision_config").and_then(Value::as_object);
    let size = |key: &str, default: u64| {
        let found = vision.map(|config| number_of(config, key)).transpose()?.flatten();
        Ok::<u64, GpuError>(found.unwrap_or(default))
    };
    let side = size("image_size", 448)? / size("patch_size", 14)?.max(1);
    Ok(size("max_num_tiles", 4)? * (side * side + 1))
}

fn recurrent(r: &Reader<'_>) -> MixerKind {
    let heads =
        r.text.contains_key("mamba_n_heads") || r.text.contains_key("mamba_num_heads") || r.family() == "mamba2";
    if heads { MixerKind::Mamba2 } else { MixerKind::Mamba }
}

fn positive(r: &Reader<'_>, key: &str) -> Result<Option<u64>, GpuError> {
    Ok(r.number(&[key])?.filter(|n| *n > 0))
}

/// Whether the layer with this index has experts, in a model that has some.
fn has_experts(r: &Reader<'_>, i: u64) -> Result<bool, GpuError> {
    if r.numbers("mlp_only_layers").is_some_and(|dense| dense.contains(&i)) {
        return Ok(false);
    }
    if let Some(with) = r.numbers("moe_layers") {
        return Ok(with.contains(&i));
    }
    if i < r.number(&["first_k_dense_replace"])?.unwrap_or(0) {
        return Ok(false);
    }
    if let Some(list) = r.numbers("moe_layer_freq") {
        return Ok(list.get(i as usize).is_none_or(|n| *n > 0));
    }
    if let Some(period) = positive(r, "expert_layer_period")? {
        return Ok(i % period == r.number(&["expert_layer_offset"])?.unwrap_or(0));
    }
    if let Some(step) = positive(r, "moe_layer_freq")? {
        return Ok(i.is_multiple_of(step));
    }
    let step = positive(r, "interleave_moe_layer_step")?.or(positive(r, "decoder_sparse_step")?);
    Ok(step.is_none_or(|s| (i + 1).is_multiple_of(s)))
}
