//! Sizes that Transformers' configuration classes have by default. A model of several parts, such as one that reads images, is saved without
//! those values of its parts that are the default of their class (`PretrainedConfig.to_diff_dict`), so the files of Gemma 3 and Pixtral
//! do not mention all of their heads. A model of one part is saved with all of its sizes.

/// Families with the defaults of their class.
const DEFAULTS: [(&str, &[(&str, u64)]); 7] = [
    (
        "llama",
        &[
            ("vocab_size", 32_000),
            ("hidden_size", 4096),
            ("intermediate_size", 11_008),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
        ],
    ),
    (
        "mistral",
        &[
            ("vocab_size", 32_000),
            ("hidden_size", 4096),
            ("intermediate_size", 14_336),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("num_key_value_heads", 8),
        ],
    ),
    (
        "mixtral",
        &[
            ("vocab_size", 32_000),
            ("hidden_size", 4096),
            ("intermediate_size", 14_336),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("num_key_value_heads", 8),
            ("num_local_experts", 8),
            ("num_experts_per_tok", 2),
        ],
    ),
    (
        "qwen2",
        &[
            ("vocab_size", 151_936),
            ("hidden_size", 4096),
            ("intermediate_size", 22_016),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("num_key_value_heads", 32),
        ],
    ),
    (
        "gemma",
        &[
            ("vocab_size", 256_000),
            ("hidden_size", 3072),
            ("intermediate_size", 24_576),
            ("num_hidden_layers", 28),
            ("num_attention_heads", 16),
            ("num_key_value_heads", 16),
            ("head_dim", 256),
        ],
    ),
    (
        "gemma2",
        &[
            ("vocab_size", 256_000),
            ("hidden_size", 2304),
            ("intermediate_size", 9216),
            ("num_hidden_layers", 26),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 256),
            ("sliding_window", 4096),
        ],
    ),
    (
        "gemma3_text",
        &[
            ("vocab_size", 262_208),
            ("hidden_size", 2304),
            ("intermediate_size", 9216),
            ("num_hidden_layers", 26),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 256),
            ("sliding_window", 4096),
        ],
    ),
];

/// The default of the first of these keys that has one in the class of a family.
pub(super) fn of(family: &str, keys: &[&str]) -> Option<u64> {
    let (_, sizes) = DEFAULTS.iter().find(|(name, _)| *name == family)?;
    keys.iter().find_map(|key| sizes.iter().find(|(name, _)| name == key).map(|(_, size)| *size))
}
