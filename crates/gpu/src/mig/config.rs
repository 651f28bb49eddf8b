//! Reads and writes mig-parted's configuration file (`version: v1`, `mig-configs`), alone or in a ConfigMap as the GPU operator ships it.
//!
//! The structure of the whole file is checked, as mig-parted does; what the rules of a layout request is checked only for the layout
//! that is used, so that one file can serve cards of several generations. Source: NVIDIA/mig-parted, `api/spec/v1`, `pkg/types`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::apply::Layout;
use super::name::ProfileName;
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
    /// PCI ids (`0x233010DE`, or `0x2BB310DE:0x204D10DE` with the subsystem) of the GPUs that the rule applies to; `None` means all.
    #[serde(rename = "device-filter", default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<OneOrMany>,
    /// The GPUs that the rule applies to.
    pub devices: Devices,
    /// Whether MIG is enabled.
    #[serde(rename = "mig-enabled")]
    pub enabled: bool,
    /// Number of MIG devices of each profile on every GPU of the rule; must be given, if only as `{}`, where MIG is enabled.
    #[serde(rename = "mig-devices", default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub instances: Option<BTreeMap<String, u32>>,
}

/// A key without a value counts as an empty map; only a missing key is `None`.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BTreeMap<String, u32>>, D::Error> {
    Ok(Some(Option::deserialize(deserializer)?.unwrap_or_default()))
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

/// The PCI id of a filter, and the id of the subsystem if it has one.
fn pci_ids(text: &str) -> Option<(u32, Option<u32>)> {
    let number = |text: &str| match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once(':') {
        Some((device, subsystem)) => Some((number(device)?, Some(number(subsystem)?))),
        None => Some((number(text)?, None)),
    }
}

impl DeviceRule {
    /// A rule without a filter.
    pub fn new(devices: Devices, enabled: bool, instances: BTreeMap<String, u32>) -> Self {
        Self { filter: None, devices, enabled, instances: (enabled || !instances.is_empty()).then_some(instances) }
    }

    fn filters(&self) -> &[String] {
        match &self.filter {
            Some(OneOrMany::One(text)) if !text.is_empty() => std::slice::from_ref(text),
            Some(OneOrMany::Many(texts)) => texts,
            _ => &[],
        }
    }

    /// The requested MIG devices by profile.
    pub fn devices(&self) -> &BTreeMap<String, u32> {
        static NONE: BTreeMap<String, u32> = BTreeMap::new();
        self.instances.as_ref().unwrap_or(&NONE)
    }

    /// Whether the rule applies to a GPU.
    pub fn covers(&self, layout: &Layout) -> bool {
        self.covers_ids(layout.gpu, layout.pci_id, layout.subsystem_id)
    }

    fn covers_ids(&self, index: u32, pci_id: u32, subsystem_id: u32) -> bool {
        let filters = self.filters();
        let same = |text: &String| {
            pci_ids(text).is_some_and(|(id, subsystem)| id == pci_id && subsystem.is_none_or(|s| s == subsystem_id))
        };
        (filters.is_empty() || filters.iter().any(same))
            && match &self.devices {
                Devices::Word(_) => true,
                Devices::Indices(list) => list.contains(&index),
            }
    }

    /// Why mig-parted refuses the rule; `None` if it does not.
    fn refusal(&self) -> Option<String> {
        if matches!(&self.devices, Devices::Word(word) if word != "all") {
            return Some("devices must be 'all' or a list of indices".into());
        }
        if let Some(filter) = self.filters().iter().find(|f| pci_ids(f).is_none()) {
            return Some(format!("device-filter '{filter}' is not a PCI id such as 0x233010DE"));
        }
        match &self.instances {
            None if self.enabled => {
                Some("mig-devices is required if mig-enabled is true; {} stands for no instances".into())
            }
            Some(instances) if !self.enabled && !instances.is_empty() => {
                Some("mig-devices must be empty if mig-enabled is false".into())
            }
            Some(instances) => {
                if let Some(error) = instances.keys().find_map(|p| p.parse::<ProfileName>().err()) {
                    return Some(error.to_string());
                }
                let all_zero = !instances.is_empty() && instances.values().all(|n| *n == 0);
                all_zero.then(|| "all counts of mig-devices are 0; {} stands for no instances".into())
            }
            None => None,
        }
    }
}

/// The file in a Kubernetes ConfigMap.
#[derive(Deserialize)]
struct ConfigMap {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

impl Config {
    /// Parses the YAML text of a file, or of a ConfigMap with the file as its only entry; other objects of a manifest are passed over.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] with the position that is invalid.
    pub fn parse(text: &str) -> Result<Self, GpuError> {
        let objects: Vec<ConfigMap> = serde_saphyr::from_multiple(text).unwrap_or_default();
        let Some(map) = objects.into_iter().find(|o| o.kind == "ConfigMap") else {
            return Self::parse_file(text, "the mig-parted configuration");
        };
        let mut files: Vec<(&String, &String)> =
            map.data.iter().filter(|(name, _)| name.ends_with(".yaml") || name.ends_with(".yml")).collect();
        if files.is_empty() {
            files = map.data.iter().collect();
        }
        match files.as_slice() {
            [(name, file)] => Self::parse_file(file, &format!("the mig-parted configuration in data.{name}")),
            [] => Err(GpuError::Invalid("the ConfigMap has no data with a mig-parted configuration".into())),
            several => {
                let names: Vec<&str> = several.iter().map(|(name, _)| name.as_str()).collect();
                let names = names.join(", ");
                Err(GpuError::Invalid(format!("the ConfigMap has several files; save one of them: data.{names}")))
            }
        }
    }

    fn parse_file(text: &str, what: &str) -> Result<Self, GpuError> {
        let config: Self = serde_saphyr::from_str(text).map_err(|e| GpuError::Invalid(format!("{what}: {e}")))?;
        if config.version != "v1" {
            let version = &config.version;
            return Err(GpuError::Invalid(format!("unsupported configuration version '{version}': expected v1")));
        }
        if config.configs.is_empty() {
            return Err(GpuError::Invalid(format!("{what}: mig-configs needs at least one entry")));
        }
        Ok(config)
    }

    /// The rules of the layout with this name.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] with the existing names if there is no such layout, or with the rule that is invalid.
    pub fn layout(&self, name: &str) -> Result<&[DeviceRule], GpuError> {
        let rules = self.configs.get(name).ok_or_else(|| {
            let names = self.configs.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            GpuError::Invalid(format!("the file has no layout '{name}'; it has {names}"))
        })?;
        if rules.is_empty() {
            return Err(GpuError::Invalid(format!("layout '{name}': at least one entry is required")));
        }
        let refused = rules.iter().enumerate().find_map(|(i, rule)| Some((i + 1, rule.refusal()?)));
        match refused {
            Some((number, reason)) => Err(GpuError::Invalid(format!("layout '{name}', entry {number}: {reason}"))),
            None => Ok(rules),
        }
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
      mig-devices: {\"1g.10gb\": 2, \"2g.20gb\": 1, \"1c.3g.40gb\": 3}
    - device-filter: [\"0x233010DE\", \"0x2BB310DE:0x204D10DE\"]
      devices: all
      mig-enabled: true
      mig-devices: {\"7g.80gb\": 1}
  other-card:
    - devices: all
      mig-enabled: true
      mig-devices: {\"1g.24gb+me.all\": 1, \"1g.24gb-me\": 3, \"4g.96gb+gfx\": 0}
";

    #[test]
    fn mig_parted_file_is_parsed() {
        let config = Config::parse(FILE).unwrap();
        let custom = config.layout("custom").unwrap();
        assert!(custom[0].covers_ids(1, 0, 0) && !custom[0].covers_ids(2, 0, 0));
        assert!(custom[1].covers_ids(5, 0x2330_10de, 7) && !custom[1].covers_ids(5, 0x20b0_10de, 7));
        assert!(custom[1].covers_ids(5, 0x2bb3_10de, 0x204d_10de) && !custom[1].covers_ids(5, 0x2bb3_10de, 7));
        assert!(config.layout("other-card").is_ok());
        assert!(config.layout("none").unwrap_err().to_string().contains("it has all-disabled, custom"));
    }

    #[test]
    fn config_map_with_one_file_is_read() {
        let indented = FILE.replace('\n', "\n    ");
        let map = |more: &str| {
            format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata:\n{more}  config.yaml: |\n    {indented}\n"
            )
        };
        assert_eq!(Config::parse(&map("")).unwrap(), Config::parse(FILE).unwrap());
        assert_eq!(Config::parse(&map("  README: text\n")).unwrap(), Config::parse(FILE).unwrap());
        let manifest = format!("---\nkind: ServiceAccount\nmetadata: {{name: s}}\n---\n{}", map(""));
        assert_eq!(Config::parse(&manifest).unwrap(), Config::parse(FILE).unwrap());
        let error = |text: &str| Config::parse(text).unwrap_err().to_string();
        assert!(error(&map("  a.yaml: text\n")).contains("data.a.yaml, config.yaml"));
        assert!(error("kind: ConfigMap\n").contains("has no data"));
        assert!(error(&map("").replace("version: v1\n ", "version: v2\n ")).contains("'v2'"));
    }

    #[test]
    fn errors_name_the_invalid_value() {
        let error = |from: &str, to: &str| {
            let config = Config::parse(&FILE.replace(from, to));
            let error =
                config.and_then(|c| c.layout("custom").map(drop).and_then(|()| c.layout("all-disabled").map(drop)));
            error.unwrap_err().to_string()
        };
        assert!(error("version: v1", "version: v2").contains("'v2'"));
        assert!(error("[0, 1]", "some").contains("must be 'all'"));
        assert!(error("mig-enabled: false", "mig-on: false").contains("mig-on"));
        assert!(error("1c.3g.40gb", "4c.3g.40gb").contains("'4c.3g.40gb' is not a MIG profile"));
        assert!(error("0x233010DE", "H100").contains("'H100' is not a PCI id"));
        assert!(
            error("mig-devices: {\"7g.80gb\": 1}", "").contains("layout 'custom', entry 2: mig-devices is required")
        );
        assert!(error("{\"7g.80gb\": 1}", "{\"7g.80gb\": 0}").contains("all counts of mig-devices are 0"));
        let one = "    - devices: all\n      mig-enabled: false\n";
        assert!(error(one, "      []\n").contains("layout 'all-disabled': at least one entry is required"));
        assert!(
            Config::parse("version: v1\nmig-configs: {}\n").unwrap_err().to_string().contains("at least one entry")
        );
        let empty = Config::parse(&FILE.replace("{\"7g.80gb\": 1}", "{}")).unwrap();
        assert!(empty.layout("custom").unwrap()[1].devices().is_empty());
    }

    /// Every profile name and filter form of mig-parted's `deployments/systemd/config-default.yaml` and `examples/config.yaml`.
    #[test]
    fn profiles_of_upstream_files_are_accepted() {
        let mut file =
            "version: v1\nmig-configs:\n  all-enabled: [{devices: all, mig-enabled: true, mig-devices: {}}]\n"
                .to_owned();
        for profile in "1g.5gb 1g.5gb+me 2g.10gb 3g.20gb 4g.20gb 7g.40gb 1g.24gb+gfx 1g.24gb+me.all 1g.24gb-me 2g.48gb 2g.48gb+gfx \
                        2g.48gb+me.all 2g.48gb-me 4g.96gb 4g.96gb+gfx 1g.10gb 1g.6gb 2g.12gb+me 4g.24gb 1g.12gb 3g.47gb 7g.94gb \
                        3g.48gb 7g.96gb 1g.18gb 3g.71gb 7g.141gb 1g.23gb 2g.47gb 3g.93gb 7g.186gb 7g.189gb 3g.90gb 3g.135gb \
                        7g.269gb 3g.139gb 7g.278gb 1c.2g.10gb"
            .split_whitespace()
        {
            file.push_str(&format!(
                "  all-{profile}:\n    - device-filter: \"0x20B710DE\"\n      devices: all\n      mig-enabled: true\n      \
                 mig-devices:\n        \"{profile}\": 2\n"
            ));
        }
        let config = Config::parse(&file).unwrap();
        assert_eq!(config.configs.len(), 39);
        for name in config.configs.keys() {
            config.layout(name).unwrap();
        }
    }
}
