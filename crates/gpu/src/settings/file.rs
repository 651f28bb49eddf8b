//! The file with the desired settings:
//!
//! ```yaml
//! version: v1
//! gpuSettings:
//!   - gpus: all                 # or 0-3, GPU-<uuid>, H100, or a list of them
//!     powerLimit: 80%           # of the default; or 350W, or default
//!     lockedClocks: {graphics: 1200-1410, memory: default}
//!     persistence: true
//!     ecc: true
//!     computeMode: default      # or exclusive-process, prohibited
//! ```
//!
//! Where several entries select a GPU, later ones override earlier ones, setting by setting. A setting that no entry has is not managed.

use serde_saphyr::Spanned;
use slipway_core::gpu_settings::{ClockRange, Gpus, Power, Selector, Written};

use super::{ComputeMode, Value};
use crate::GpuError;

/// Maximum size of a file in bytes, that of a Kubernetes ConfigMap.
pub const MAX_BYTES: usize = 1 << 20;
/// Maximum number of entries; each is compared with every GPU.
const MAX_RULES: usize = 256;

/// The desired value of a setting, which can depend on the card.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Desired {
    /// A power limit.
    Power(Power),
    /// Any other setting.
    Value(Value),
}

/// Desired settings of some of the GPUs.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Where the selection is defined, for messages.
    pub place: String,
    /// The GPUs.
    pub gpus: Selector,
    /// The settings, each with the place where it is defined.
    pub settings: Vec<(String, Desired)>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    version: Spanned<String>,
    gpu_settings: Vec<Entry>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    gpus: Spanned<Gpus>,
    power_limit: Option<Spanned<Written<Power>>>,
    locked_clocks: Option<Locks>,
    persistence: Option<Spanned<bool>>,
    ecc: Option<Spanned<bool>>,
    compute_mode: Option<Spanned<Written<ComputeMode>>>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Locks {
    graphics: Option<Spanned<Written<ClockRange>>>,
    memory: Option<Spanned<Written<ClockRange>>>,
}

/// The settings of an entry, each with its place.
fn settings(index: usize, entry: Entry) -> Rule {
    let place = |line: u64, key: &str| format!("line {line}: gpuSettings[{index}].{key}");
    let mut settings = Vec::new();
    let mut add = |line: u64, key: &str, desired| settings.push((place(line, key), desired));
    if let Some(found) = entry.power_limit {
        add(found.referenced.line(), "powerLimit", Desired::Power(found.value.value));
    }
    if let Some(locks) = entry.locked_clocks {
        if let Some(found) = locks.graphics {
            let value = Value::GraphicsClocks(found.value.value.0);
            add(found.referenced.line(), "lockedClocks.graphics", Desired::Value(value));
        }
        if let Some(found) = locks.memory {
            let value = Value::MemoryClocks(found.value.value.0);
            add(found.referenced.line(), "lockedClocks.memory", Desired::Value(value));
        }
    }
    if let Some(found) = entry.persistence {
        add(found.referenced.line(), "persistence", Desired::Value(Value::Persistence(found.value)));
    }
    if let Some(found) = entry.ecc {
        add(found.referenced.line(), "ecc", Desired::Value(Value::Ecc(found.value)));
    }
    if let Some(found) = entry.compute_mode {
        add(found.referenced.line(), "computeMode", Desired::Value(Value::ComputeMode(found.value.value)));
    }
    Rule { place: place(entry.gpus.referenced.line(), "gpus"), gpus: entry.gpus.value.0.value, settings }
}

/// Parses the YAML text of a file.
///
/// # Errors
/// [`GpuError::Invalid`] with the line that is invalid.
pub fn parse(text: &str) -> Result<Vec<Rule>, GpuError> {
    let invalid = |message: String| GpuError::Invalid(format!("the GPU settings: {message}"));
    if text.len() > MAX_BYTES {
        return Err(invalid(format!("the file has {} bytes; at most {MAX_BYTES} are read", text.len())));
    }
    let file: File = serde_saphyr::from_str(text).map_err(|e| invalid(e.to_string()))?;
    if file.version.value != "v1" {
        let line = file.version.referenced.line();
        return Err(invalid(format!("line {line}: version: '{}' is not supported; use v1", file.version.value)));
    }
    if file.gpu_settings.len() > MAX_RULES {
        return Err(invalid(format!("gpuSettings has {} entries; use at most {MAX_RULES}", file.gpu_settings.len())));
    }
    let rules: Vec<Rule> = file.gpu_settings.into_iter().enumerate().map(|(i, entry)| settings(i, entry)).collect();
    match rules.iter().find(|r| r.settings.is_empty()) {
        Some(rule) => Err(invalid(format!(
            "{}: the entry has no settings; use powerLimit, lockedClocks, persistence, ecc or computeMode",
            rule.place
        ))),
        None => Ok(rules),
    }
}

#[cfg(test)]
mod tests {
    use slipway_core::gpu_settings::Clocks;

    use super::*;

    #[test]
    fn values_have_units_and_places() {
        let text = "version: v1\ngpuSettings:\n- gpus: [0-3, GPU-aa]\n  powerLimit: 80%\n  lockedClocks:\n    graphics: 1200-1410\n    memory: default\n- gpus: H100\n  powerLimit: 350\n  persistence: true\n  computeMode: exclusive-process\n- {gpus: 5, powerLimit: 350.5 W, ecc: false}\n";
        let rules = parse(text).unwrap();
        let [first, second, third] = rules.as_slice() else { panic!("{rules:?}") };
        assert_eq!(first.place, "line 3: gpuSettings[0].gpus");
        assert_eq!(
            first.settings[0],
            ("line 4: gpuSettings[0].powerLimit".into(), Desired::Power(Power::Percent(80.0)))
        );
        let clocks = Value::GraphicsClocks(Some(Clocks { min: 1200, max: 1410 }));
        assert_eq!(first.settings[1], ("line 6: gpuSettings[0].lockedClocks.graphics".into(), Desired::Value(clocks)));
        assert_eq!(first.settings[2].1, Desired::Value(Value::MemoryClocks(None)));
        assert_eq!(second.settings[0].1, Desired::Power(Power::Milliwatts(350_000)));
        assert_eq!(second.settings[2].1, Desired::Value(Value::ComputeMode(ComputeMode::ExclusiveProcess)));
        assert_eq!(third.settings[0].1, Desired::Power(Power::Milliwatts(350_500)));
        assert_eq!(third.settings[1].1, Desired::Value(Value::Ecc(false)));
    }

    #[test]
    fn invalid_files_are_rejected_with_line_and_hint() {
        let error = |entry: &str| {
            parse(&format!("version: v1\ngpuSettings:\n- gpus: all\n  {entry}\n")).unwrap_err().to_string()
        };
        for (entry, hint) in [
            ("powerLimit: fast", "'fast' is not a power limit such as 350W, 80% or default"),
            ("powerLimit: -5W", "'-5W' is not a power limit"),
            ("powerLimit: 0", "'0' is not a power limit"),
            ("powerLimit: .inf", "non-finite"),
            ("lockedClocks: {graphics: 1410-1200}", "'1410-1200' is not a range of clocks"),
            ("lockedClocks: {sm: 1410}", "sm"),
            ("computeMode: exclusive", "use default, exclusive-process, prohibited"),
            ("persistence: maybe", "bool"),
            ("powerlimit: 300W", "powerLimit"),
        ] {
            let message = error(entry);
            assert!(message.contains(hint) && message.contains("line 4"), "{entry}: {message}");
        }
        let message = parse("version: v1\ngpuSettings:\n- gpus: 3-1\n  ecc: true\n").unwrap_err().to_string();
        assert!(message.contains("'3-1' selects no GPUs") && message.contains("line 3"), "{message}");
        let message = parse("version: v2\ngpuSettings: []\n").unwrap_err().to_string();
        assert!(message.contains("line 1: version: 'v2' is not supported; use v1"), "{message}");
        let message = parse("version: v1\ngpuSettings: [{gpus: all}]\n").unwrap_err().to_string();
        assert!(message.contains("gpuSettings[0].gpus: the entry has no settings"), "{message}");
        assert!(parse("").is_err());
        assert!(parse("version: v1\ngpuSettings: []\n").unwrap().is_empty());
    }
}
