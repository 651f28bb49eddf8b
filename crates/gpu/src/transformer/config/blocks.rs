//! The parts of a layer, with the sizes that a configuration gives them.

use serde_json::{Map, Value};

use super::kinds::{EXPERTS, Kind, MixerKind};
use super::{Reader, number_of};
use crate::GpuError;
use crate::transformer::{FeedForward, Mixer};

/// The part of a layer that mixes tokens.
pub(super) fn mixer(r: &Reader<'_>, kind: &Kind, hidden: u64) -> Result<Mixer, GpuError> {
    match kind.mixer {
        MixerKind::None => Ok(Mixer::None),
        MixerKind::Mamba => mamba(r, hidden),
        MixerKind::Mamba2 => mamba2(r, hidden),
        MixerKind::Delta => delta(r, hidden),
        MixerKind::Lightning => lightning(r, hidden),
        MixerKind::Convolution => {
            let width = r.number(&["conv_L_cache"])?.unwrap_or(3);
            Ok(Mixer::Recurrent { parameters: 4 * hidden * hidden + width * hidden, state: width * hidden })
        }
        MixerKind::Full => attention(r, hidden, None),
        MixerKind::Window(tokens) => attention(r, hidden, Some(tokens)),
    }
}

fn attention(r: &Reader<'_>, hidden: u64, window: Option<u64>) -> Result<Mixer, GpuError> {
    let heads = r.need(&["num_attention_heads", "n_head", "n_heads", "num_heads"])?;
    if let Some(rank) = r.number(&["kv_lora_rank"])?.filter(|n| *n > 0) {
        return Ok(Mixer::Latent {
            heads,
            query_rank: r.number(&["q_lora_rank"])?.filter(|n| *n > 0),
            rank,
            nope_dim: r.need(&["qk_nope_head_dim"])?,
            rope_dim: r.need(&["qk_rope_head_dim"])?,
            value_dim: r.need(&["v_head_dim"])?,
            index_dim: r.number(&["index_head_dim"])?.unwrap_or(0),
        });
    }
    let kv_heads = match r.number(&["num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"])? {
        Some(n) if n > 0 => n,
        _ if r.flag("multi_query")?.unwrap_or(false) => 1,
        // DBRX and MPT keep it in an object of their own.
        _ => match r.object("attn_config").map(|o| number_of(o, "kv_n_heads")).transpose()?.flatten() {
            Some(n) if n > 0 => n,
            _ => heads,
        },
    };
    let head_dim = match r.number(&["head_dim", "kv_channels"])?.filter(|n| *n > 0) {
        Some(n) => n,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(GpuError::Invalid(format!(
                "hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and head_dim is missing"
            )));
        }
    };
    if heads % kv_heads != 0 {
        return Err(GpuError::Invalid(format!(
            "num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )));
    }
    let gate = r.family() == "qwen3_next" || r.flag("attn_output_gate")?.unwrap_or(false);
    Ok(Mixer::Attention { heads, kv_heads, head_dim, window, gate, bias: r.bias()? })
}

/// Lightning attention (MiniMax-01 2025, section 2.2): queries, keys, values, an output gate and the output.
fn lightning(r: &Reader<'_>, hidden: u64) -> Result<Mixer, GpuError> {
    let heads = r.need(&["num_attention_heads"])?;
    let dim = r.number(&["head_dim"])?.unwrap_or(hidden / heads);
    Ok(Mixer::Recurrent { parameters: 5 * hidden * heads * dim, state: heads * dim * dim })
}

/// Mamba (Gu and Dao 2023): the sizes of Transformers' JambaMambaMixer.
fn mamba(r: &Reader<'_>, hidden: u64) -> Result<Mixer, GpuError> {
    let inner = r.number(&["mamba_expand", "expand"])?.unwrap_or(2) * hidden;
    let state = r.number(&["mamba_d_state", "state_size"])?.unwrap_or(16);
    let conv = r.number(&["mamba_d_conv", "conv_kernel"])?.unwrap_or(4);
    let rank = r.text.get("mamba_dt_rank").and_then(Value::as_u64).unwrap_or(hidden.div_ceil(16));
    let parameters =
        hidden * 2 * inner + inner * conv + inner * (rank + 2 * state) + rank * inner + inner * state + inner * hidden;
    Ok(Mixer::Recurrent { parameters, state: inner * state + inner * conv })
}

/// Mamba-2 (Dao and Gu 2024): the sizes of Transformers' BambaMixer.
fn mamba2(r: &Reader<'_>, hidden: u64) -> Result<Mixer, GpuError> {
    let heads = r.need(&["mamba_n_heads", "mamba_num_heads", "num_heads"])?;
    let dim = match r.number(&["mamba_d_head", "mamba_head_dim"])?.filter(|n| *n > 0) {
        Some(dim) => dim,
        None => (r.number(&["mamba_expand", "expand"])?.unwrap_or(2) * hidden).div_ceil(heads),
    };
    let inner = heads * dim;
    let state = r.number(&["mamba_d_state", "ssm_state_size", "state_size"])?.unwrap_or(128);
    let groups = r.number(&["mamba_n_groups", "n_groups"])?.unwrap_or(1);
    let conv = r.number(&["mamba_d_conv", "conv_kernel"])?.unwrap_or(4);
    let convolved = inner + 2 * groups * state;
    let parameters = hidden * (inner + convolved + heads) + convolved * conv + inner * hidden;
    Ok(Mixer::Recurrent { parameters, state: inner * state + convolved * conv })
}

/// The gated delta rule (Yang et al. 2024): the sizes of Transformers' Qwen3NextGatedDeltaNet.
fn delta(r: &Reader<'_>, hidden: u64) -> Result<Mixer, GpuError> {
    let (keys, values) = (r.need(&["linear_num_key_heads"])?, r.need(&["linear_num_value_heads"])?);
    let (key_dim, value_dim) = (r.need(&["linear_key_head_dim"])?, r.need(&["linear_value_head_dim"])?);
    let conv = r.number(&["linear_conv_kernel_dim"])?.unwrap_or(4);
    let (key, value) = (keys * key_dim, values * value_dim);
    let convolved = 2 * key + value;
    let parameters = hidden * (2 * key + 2 * value + 2 * values) + convolved * conv + value * hidden;
    Ok(Mixer::Recurrent { parameters, state: values * key_dim * value_dim + convolved * conv })
}

/// The part of a layer that works on each token alone.
pub(super) fn feed_forward(r: &Reader<'_>, kind: &Kind, hidden: u64) -> Result<FeedForward, GpuError> {
    let Some(with_experts) = kind.experts else { return Ok(FeedForward::None) };
    let matrices = r.matrices();
    if !with_experts {
        return dense(r, hidden, matrices);
    }
    let nested = |key: &str| r.object("ffn_config").map(|o| number_of(o, key)).transpose().map(Option::flatten);
    let experts = match r.number(EXPERTS)? {
        Some(n) => n,
        None => nested("moe_num_experts")?.unwrap_or(0),
    };
    let active = match r.number(&["num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k"])? {
        Some(n) => n,
        None => match nested("moe_top_k")? {
            Some(n) => n,
            None => r.need(&["num_experts_per_tok"])?,
        },
    };
    if active == 0 || active > experts {
        return Err(GpuError::Invalid(format!("num_experts_per_tok is {active}: expected 1 to {experts}")));
    }
    let inner = match r.number(&["moe_intermediate_size", "expert_ffn_hidden_size"])?.filter(|n| *n > 0) {
        Some(n) => n,
        None => match nested("ffn_hidden_size")? {
            Some(n) => n,
            None => r.need(&["intermediate_size"])?,
        },
    };
    let shared = match r.number(&["shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"])? {
        Some(width) => width,
        None if r.family().starts_with("llama4") => inner,
        None => match r.number(&["shared_intermediate_size"])? {
            Some(width) => width,
            None => r.number(&["n_shared_experts", "num_shared_experts"])?.unwrap_or(0) * inner,
        },
    };
    Ok(FeedForward::Experts { experts, active, inner, shared, matrices, bias: r.family() == "gpt_oss" })
}

fn dense(r: &Reader<'_>, hidden: u64, matrices: u64) -> Result<FeedForward, GpuError> {
    if matches!(r.family(), "mamba" | "mamba2" | "falcon_mamba") {
        return Ok(FeedForward::None);
    }
    let keys = ["intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff"];
    let inner = match r.number(&["intermediate_size_mlp"])? {
        Some(n) => n,
        None => match r.number(&keys)? {
            Some(n) => n,
            None if matrices == 2 => 4 * hidden,
            None => r.need(&keys)?,
        },
    };
    // The first Qwen gives the width of gate and value together.
    let inner = if r.family() == "qwen" { inner / 2 } else { inner };
    Ok(FeedForward::dense(inner, matrices))
}

/// Parameters of an encoder of images or sound with its projection to the language model; `None` if the object does not give its size.
pub(super) fn tower(c: &Map<String, Value>, hidden: u64) -> Result<Option<u64>, GpuError> {
    let first = |keys: &[&str]| keys.iter().find_map(|k| number_of(c, k).transpose()).transpose();
    let Some(width) = first(&["embed_dim", "d_model", "hidden_size", "width"])? else { return Ok(None) };
    let Some(depth) = first(&["depth", "num_hidden_layers", "encoder_layers", "layers"])? else { return Ok(None) };
    let inner = match first(&["intermediate_size", "encoder_ffn_dim"])? {
        Some(n) => n,
        None => width * c.get("mlp_ratio").and_then(Value::as_f64).map_or(4, |ratio| ratio.clamp(1.0, 64.0) as u64),
    };
    let family = c.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let matrices = if matches!(family, "qwen2_5_vl" | "pixtral") { 3 } else { 2 };
    let patch = first(&["patch_size"])?.unwrap_or(0);
    let channels = first(&["num_channels", "in_channels", "in_chans"])?.unwrap_or(3);
    let per_layer = u128::from(4 * width) * u128::from(width) + u128::from(matrices * width) * u128::from(inner);
    let patches = u128::from(patch * patch * channels) * u128::from(width);
    let all = u128::from(depth) * per_layer + patches + u128::from(width) * u128::from(hidden);
    u64::try_from(all).map(Some).map_err(|_| GpuError::Invalid("the encoder's sizes are too large".into()))
}
