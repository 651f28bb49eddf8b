//! mig-parted's configuration file, read and written (`version: v1`, `mig-configs`).
//! Source: NVIDIA/mig-parted, README and `api/spec/v1`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::GpuError;

/// A configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `v1`.
    pub version: String,
    /// Named layouts.
    #[serde(rename = "mig-configs")]
    pub configs: BTreeMap<String, Vec<DeviceRule>>,
}

/// What some of the GPUs are to look like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRule {
    /// PCI ids (`0x233010DE`) that the rule is for; all without one.
    #[serde(rename = "device-filter", default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<OneOrMany>,
    /// Which GPUs.
    pub devices: Devices,
    /// Whether MIG is on.
    #[serde(rename = "mig-enabled")]
    pub enabled: bool,
    /// Profiles and how many of each, on every GPU of the rule.
    #[serde(rename = "mig-devices", default)]
    pub instances: BTreeMap<String, u32>,
}

/// A text or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// `all`, or indices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Devices {
    /// `all`.
    Word(String),
    /// Indices.
    Indices(Vec<u32>),
}

impl DeviceRule {
    /// Whether the rule is for the GPU of this index and PCI id.
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
    /// Reads a file's text.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] that says where the text is wrong.
    pub fn parse(text: &str) -> Result<Self, GpuError> {
        let config: Self = serde_saphyr::from_str(text)
            .map_err(|e| GpuError::Invalid(format!("the mig-parted configuration: {e}")))?;
        if config.version != "v1" {
            return Err(GpuError::Invalid(format!("the configuration's version is '{}', known is v1", config.version)));
        }
        for (name, rules) in &config.configs {
            for rule in rules {
                if matches!(&rule.devices, Devices::Word(word) if word != "all") {
                    return Err(GpuError::Invalid(format!("{name}: devices is neither 'all' nor a list of indices")));
                }
                if let Some(partial) = rule.instances.keys().find(|p| p.split('.').count() > 2) {
                    return Err(GpuError::Invalid(format!(
                        "{name}: '{partial}' asks for a part of an instance's compute; slipway makes whole instances"
                    )));
                }
                if !rule.enabled && !rule.instances.is_empty() {
                    return Err(GpuError::Invalid(format!(
                        "{name}: mig-devices are listed where mig-enabled is false"
                    )));
                }
            }
        }
        Ok(config)
    }

    /// The layout of that name.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] with the names there are.
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
    fn upstreams_form_is_read() {
        let config = Config::parse(FILE).unwrap();
        let custom = config.layout("custom").unwrap();
        assert!(custom[0].covers(1, 0) && !custom[0].covers(2, 0));
        assert!(custom[1].covers(5, 0x2330_10de) && !custom[1].covers(5, 0x20b0_10de));
        assert!(config.layout("none").unwrap_err().to_string().contains("it has all-disabled, custom"));
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |from: &str, to: &str| Config::parse(&FILE.replace(from, to)).unwrap_err().to_string();
        assert!(wrong("version: v1", "version: v2").contains("'v2'"));
        assert!(wrong("[0, 1]", "some").contains("neither 'all'"));
        assert!(wrong("2g.20gb", "1c.2g.20gb").contains("whole instances"));
        assert!(wrong("mig-enabled: false", "mig-on: false").contains("mig-on"));
    }
}
