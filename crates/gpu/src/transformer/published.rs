//! Published models: their `config.json` without what does not change their size, found by name or by number of parameters.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

use super::assumption::Size;

/// A published model.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Published {
    /// Name, such as `Llama 3.1 8B`.
    pub name: String,
    /// Other names and nominal sizes that select it.
    pub aliases: Vec<String>,
    /// The published number of parameters, such as `8.03b`.
    pub parameters: String,
    /// The published number of parameters that a token uses, if they are fewer.
    #[serde(default)]
    pub active: Option<String>,
    /// Where the shape is published.
    pub source: String,
    /// The configuration, in the format of `config.json`.
    pub config: Value,
}

static MODELS: LazyLock<Vec<Published>> = LazyLock::new(|| {
    // A test parses the file, so that an invalid one cannot be released.
    serde_json::from_str(include_str!("published.json")).unwrap_or_default()
});

/// All published models; of several with one size the first is the one that the size selects.
pub fn models() -> &'static [Published] {
    &MODELS
}

/// Endings of names that do not change the shape.
const ENDINGS: [&str; 9] = ["instruct", "chat", "base", "hf", "it", "fp8", "bf16", "thinking", "2507"];

/// A name without owner, separators, and endings that do not change the shape: `meta-llama/Llama-3.1-8B-Instruct` is `llama3.18b`.
fn plain(name: &str) -> String {
    let name = name.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let words: Vec<&str> = name.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '+')).collect();
    let words = words.iter().filter(|w| !ENDINGS.contains(w) && **w != "meta");
    words.copied().collect()
}

/// The model with this name, which may be that of its repository.
pub fn by_name(name: &str) -> Option<&'static Published> {
    let wanted = plain(name);
    let same = |m: &&Published| plain(&m.name) == wanted || m.aliases.iter().any(|a| plain(a) == wanted);
    models().iter().find(same)
}

/// The model that a size selects: one with this nominal size, otherwise the one whose published number of parameters is nearest, within 0.5 %.
pub fn by_size(size: &Size) -> Option<&'static Published> {
    if let Some(found) = models().iter().find(|m| m.aliases.contains(&size.text)) {
        return Some(found);
    }
    let total = size.total?;
    let nominal = |text: &String| text.parse::<Size>().ok().filter(|s| s.active.is_none())?.total;
    let off = |n: Option<f64>| n.map_or(f64::INFINITY, |n| (n / total - 1.0).abs());
    let exact = models().iter().find(|m| m.aliases.iter().any(|a| off(nominal(a)) < 1e-9));
    exact.or_else(|| {
        let distance = |m: &Published| off(nominal(&m.parameters));
        let nearest = models().iter().min_by(|a, b| distance(a).total_cmp(&distance(b)))?;
        (distance(nearest) <= 0.005).then_some(nearest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transformer::config;

    /// The number of parameters that the shape gives is the published one. Published numbers are rounded, to one digit in the
    /// case of Kimi K2.
    #[test]
    fn shapes_have_the_published_number_of_parameters() {
        let parsed: Vec<Published> = serde_json::from_str(include_str!("published.json")).unwrap();
        assert!(parsed.len() >= 60, "{}", parsed.len());
        let size = |text: &str| text.parse::<Size>().unwrap().total.unwrap();
        let mut wrong = Vec::new();
        for m in &parsed {
            let shape = config::transformer(&m.config, &m.name, &m.source).unwrap();
            let tolerance = if m.parameters == "1t" { 0.03 } else { 0.01 };
            if (shape.parameters() / size(&m.parameters) - 1.0).abs() > tolerance {
                wrong.push(format!("{}: {:.3e} is not {}", m.name, shape.parameters(), m.parameters));
            }
            // Publications round the active parameters more, and differ in whether they count the embedding and the output layer.
            let head = shape.published_active() - shape.active_parameters();
            let (low, high) = (shape.active_parameters() - head, shape.published_active());
            if let Some(active) = &m.active {
                // Half a unit of the last digit, or 5 %.
                let rounding = if active.contains('.') { 0.05e9 } else { 0.5e9 };
                let published = size(active);
                let tolerance = (0.05 * published).max(rounding);
                if published < low - tolerance || published > high + tolerance {
                    wrong.push(format!("{}: {low:.3e} to {high:.3e} active is not {active}", m.name));
                }
            }
            assert_eq!(m.active.is_some(), shape.has_experts(), "{}", m.name);
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn sizes_and_names_select_published_models() {
        let by_size = |text: &str| by_size(&text.parse().unwrap()).map(|m| m.name.as_str());
        for (text, name) in [
            ("7b", "Llama 2 7B"),
            // v0.1 has the same size and a window of 4,096 tokens; the size selects the one that needs more memory.
            ("7.24b", "Mistral 7B v0.2"),
            ("7.62b", "Qwen2.5 7B"),
            ("70b", "Llama 3.1 70B"),
            ("70000000000", "Llama 3.1 70B"),
            ("8x7b", "Mixtral 8x7B"),
            ("47b", "Mixtral 8x7B"),
            ("405b", "Llama 3.1 405B"),
            ("671b", "DeepSeek V3"),
            ("32b", "Qwen2.5 32B"),
            ("14b", "Qwen2.5 14B"),
            ("72b", "Qwen2.5 72B"),
            ("235b-a22b", "Qwen3 235B-A22B"),
            ("235b", "Qwen3 235B-A22B"),
        ] {
            assert_eq!(by_size(text), Some(name), "{text}");
        }
        assert_eq!(by_size("18.6b"), None);
        for (text, name) in [
            ("meta-llama/Llama-3.1-70B-Instruct", "Llama 3.1 70B"),
            ("llama-3.1-70b", "Llama 3.1 70B"),
            ("deepseek-ai/DeepSeek-R1", "DeepSeek V3"),
            ("google/gemma-3-27b-it", "Gemma 3 27B"),
            ("openai/gpt-oss-20b", "gpt-oss 20b"),
            ("Qwen3-235B-A22B-Instruct-2507", "Qwen3 235B-A22B"),
        ] {
            assert_eq!(by_name(text).map(|m| m.name.as_str()), Some(name), "{text}");
        }
        assert!(by_name("llama-9").is_none());
    }
}
