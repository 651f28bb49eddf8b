//! Reads and writes mig-parted's configuration file (`version: v1`, `mig-configs`).
//! Source: NVIDIA/mig-parted, README and `api/spec/v1`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::GpuError;

/// A configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Format version; only `v1` is supported.
    pub version: String,
    /// Layouts by name; each is a list of rules.
    #[serde(rename = "mig-configs")]
    pub configs: BTreeMap<String, Vec<DeviceRule>>,
}

/// The desired state of some of the GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRule {
    /// PCI ids (`0x233010DE`) of the GPUs that the rule applies to; `None` means all.
    #[serde(rename = "device-filter", default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<OneOrMany>,
    /// The GPUs that the rule applies to.
    pub devices: Devices,
    /// Whether MIG is enabled.
    #[serde(rename = "mig-enabled")]
    pub enabled: bool,
    /// Number of instances of each profile on every GPU of the rule.
    #[serde(rename = "mig-devices", default)]
    pub instances: BTreeMap<String, u32>,
}

/// A string or a list of strings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// A single string.
    One(String),
    /// A list.
    Many(Vec<String>),
}

/// The word `all`, or GPU indices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Devices {
    /// Only `all` is valid.
    Word(String),
    /// GPU indices.
    Indices(Vec<u32>),
}

impl DeviceRule {
    /// Whether the rule applies to the GPU with this index and PCI id.
    pub fn covers(&self, index: u32, pci_id: u32) -> bool {
        let same = |text: &String| {
            u32::from_str_radix(text.trim_start_matches("0x").trim_start_matches("0X"), 16).is_ok_and(|id| id == pci_id)
        };
        let filtered = match &self.filter {
            None => true,
            Some(OneOrMany::One(text)) => same(text),
            Some(OneOrMany::Many(texts)) => texts.iter().any(same),
        };
        filtered
            && match &self.devices {
                Devices::Word(_) => true,
                Devices::Indices(list) => list.contains(&index),
            }
    }
}

impl Config {
    /// Parses and validates the YAML text of a file.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] with the position or the layout that is invalid.
    pub fn parse(text: &str) -> Result<Self, GpuError> {
        let config: Self = serde_saphyr::from_str(text)
            .map_err(|e| GpuError::Invalid(format!("the mig-parted configuration: {e}")))?;
        if config.version != "v1" {
            return Err(GpuError::Invalid(format!(
                "unsupported configuration version '{}': expected v1",
                config.version
            )));
        }
        for (name, rules) in &config.configs {
            for rule in rules {
                if matches!(&rule.devices, Devices::Word(word) if word != "all") {
                    return Err(GpuError::Invalid(format!("{name}: devices must be 'all' or a list of indices")));
                }
                if let Some(partial) = rule.instances.keys().find(|p| p.split('.').count() > 2) {
                    return Err(GpuError::Invalid(format!(
                        "{name}: '{partial}' requests a part of an instance's compute; slipway creates whole instances only"
                    )));
                }
                if !rule.enabled && !rule.instances.is_empty() {
                    return Err(GpuError::Invalid(format!(
                        "{name}: mig-devices must be empty if mig-enabled is false"
                    )));
                }
            }
        }
        Ok(config)
    }

    /// The rules of the layout with this name.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] with the existing names if there is no such layout.
    pub fn layout(&self, name: &str) -> Result<&[DeviceRule], GpuError> {
        self.configs.get(name).map(Vec::as_slice).ok_or_else(|| {
            let names = self.configs.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            GpuError::Invalid(format!("the file has no layout '{name}'; it has {names}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "version: v1
mig-configs:
  all-disabled:
    - devices: all
      mig-enabled: false
  custom:
    - devices: [0, 1]
      mig-enabled: true
      mig-devices: {\"1g.10gb\": 2, \"2g.20gb\": 1, \"3g.40gb\": 1}
    - device-filter: [\"0x233010DE\"]
      devices: all
      mig-enabled: true
      mig-devices: {\"7g.80gb\": 1}
";

    #[test]
    fn mig_parted_file_is_parsed() {
        let config = Config::parse(FILE).unwrap();
        let custom = config.layout("custom").unwrap();
        assert!(custom[0].covers(1, 0) && !custom[0].covers(2, 0));
        assert!(custom[1].covers(5, 0x2330_10de) && !custom[1].covers(5, 0x20b0_10de));
        assert!(config.layout("none").unwrap_err().to_string().contains("it has all-disabled, custom"));
    }

    #[test]
    fn errors_name_the_invalid_value() {
        let error = |from: &str, to: &str| Config::parse(&FILE.replace(from, to)).unwrap_err().to_string();
        assert!(error("version: v1", "version: v2").contains("'v2'"));
        assert!(error("[0, 1]", "some").contains("must be 'all'"));
        assert!(error("2g.20gb", "1c.2g.20gb").contains("whole instances"));
        assert!(error("mig-enabled: false", "mig-on: false").contains("mig-on"));
    }
}
