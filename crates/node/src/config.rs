//! Reads the configuration file of NVIDIA's device plugin.
//!
//! Source: NVIDIA k8s-device-plugin, README, "Configuring the NVIDIA device plugin binary" and "Shared Access to GPUs".
//! Settings for other programs (GFD's output file, IMEX) are ignored; settings that upstream itself ignores are ignored with a
//! warning.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::NodeError;

/// The node label that selects one of several configuration files.
pub const CHOICE_LABEL: &str = "nvidia.com/device-plugin.config";

/// How MIG devices are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MigStrategy {
    /// GPUs are offered as a whole, regardless of MIG.
    #[default]
    None,
    /// All MIG devices have the same profile and are offered as `nvidia.com/gpu`.
    Single,
    /// Each profile is a separate resource, such as `nvidia.com/mig-1g.10gb`.
    Mixed,
}

impl MigStrategy {
    /// The value in the configuration file and in GFD's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Single => "single",
            Self::Mixed => "mixed",
        }
    }
}

/// How the allocated devices are passed to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListStrategy {
    /// The variable `NVIDIA_VISIBLE_DEVICES`, for NVIDIA's container runtime.
    Envvar,
    /// Mounts of `/dev/null` below `/var/run/nvidia-container-devices`, for NVIDIA's container runtime if it does not trust the variable.
    VolumeMounts,
    /// CDI names in annotations, for runtimes without CDI in the CRI.
    CdiAnnotations,
    /// CDI names in the CRI.
    CdiCri,
}

/// How a device is identified in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdStrategy {
    /// By UUID.
    #[default]
    Uuid,
    /// By index, `GPU:MIG` for MIG devices.
    Index,
}

/// The preference among replicas of shared devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SharedPolicy {
    /// Prefer the device with the fewest replicas in use.
    #[default]
    Distributed,
    /// Prefer the device with the most replicas in use.
    Packed,
}

/// How devices are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharingStrategy {
    /// Processes alternate on the GPU.
    TimeSlicing,
    /// Processes run concurrently under CUDA's multi-process service.
    Mps,
}

impl SharingStrategy {
    /// The value in GFD's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::TimeSlicing => "time-slicing",
            Self::Mps => "mps",
        }
    }
}

/// A resource whose devices are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replicated {
    /// Resource name, such as `nvidia.com/gpu`.
    pub name: String,
    /// Number of replicas per device; 0 and 1 mean not shared.
    pub replicas: u32,
}

/// The sharing configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharing {
    /// The sharing strategy.
    pub strategy: SharingStrategy,
    /// Whether shared resources get the suffix `.shared`.
    pub rename: bool,
    /// Whether requests for more than one replica are rejected.
    pub one_only: bool,
    /// The shared resources.
    pub resources: Vec<Replicated>,
}

/// The effective configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How MIG devices are offered.
    pub mig: MigStrategy,
    /// How devices are passed to containers; `None` means CDI if the specification could be written, otherwise the variable.
    pub list: Option<Vec<ListStrategy>>,
    /// How devices are identified in the list.
    pub ids: IdStrategy,
    /// Whether device nodes are also passed, for kubelets that reset a container's device cgroup.
    pub device_specs: bool,
    /// The preference among replicas of shared devices.
    pub shared_policy: SharedPolicy,
    /// Prefix of the keys of CDI annotations.
    pub annotation_prefix: String,
    /// Sharing by time slicing or MPS; `None` means no sharing.
    pub sharing: Option<Sharing>,
    /// Warnings about ignored settings.
    pub warnings: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mig: MigStrategy::None,
            list: None,
            ids: IdStrategy::Uuid,
            device_specs: false,
            shared_policy: SharedPolicy::Distributed,
            annotation_prefix: "cdi.k8s.io/".into(),
            sharing: None,
            warnings: Vec::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    version: String,
    #[serde(default)]
    flags: Flags,
    resources: Option<serde_json::Value>,
    #[serde(default)]
    sharing: FileSharing,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Flags {
    mig_strategy: Option<MigStrategy>,
    plugin: PluginFlags,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PluginFlags {
    pass_device_specs: Option<bool>,
    device_list_strategy: Option<OneOrMany>,
    #[serde(rename = "deviceIDStrategy")]
    device_id_strategy: Option<IdStrategy>,
    cdi_annotation_prefix: Option<String>,
    shared_devices_allocation_policy: Option<SharedPolicy>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(ListStrategy),
    Many(Vec<ListStrategy>),
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct FileSharing {
    time_slicing: Option<FileReplicas>,
    mps: Option<FileReplicas>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct FileReplicas {
    rename_by_default: bool,
    fail_requests_greater_than_one: bool,
    resources: Vec<FileResource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileResource {
    name: String,
    replicas: i64,
    rename: Option<serde_json::Value>,
    devices: Option<serde_json::Value>,
}

/// Maximum number of replicas per device. It rejects typos that would create a huge number of devices.
const MAX_REPLICAS: i64 = 1024;

impl Config {
    /// Parses the YAML text of a file.
    ///
    /// # Errors
    /// A message that names the invalid setting.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        if file.version != "v1" {
            return Err(format!("unsupported version '{}': expected v1", file.version));
        }
        let mut config = Self::default();
        if file.resources.is_some() {
            // Upstream: "Customizing the 'resources' field is not yet supported in the config. Ignoring...".
            config.warnings.push("'resources' is ignored, as by upstream: resource names are fixed".into());
        }
        config.mig = file.flags.mig_strategy.unwrap_or_default();
        let plugin = file.flags.plugin;
        config.list = plugin.device_list_strategy.map(|l| match l {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        });
        config.ids = plugin.device_id_strategy.unwrap_or_default();
        config.device_specs = plugin.pass_device_specs.unwrap_or(false);
        config.shared_policy = plugin.shared_devices_allocation_policy.unwrap_or_default();
        if let Some(prefix) = plugin.cdi_annotation_prefix {
            config.annotation_prefix = prefix;
        }
        config.sharing = match (file.sharing.time_slicing, file.sharing.mps) {
            (Some(_), Some(_)) => {
                return Err("sharing has both timeSlicing and mps, but a node supports only one of them".into());
            }
            (Some(slices), None) => Some(sharing(SharingStrategy::TimeSlicing, slices, &mut config.warnings)?),
            (None, Some(mps)) => Some(sharing(SharingStrategy::Mps, mps, &mut config.warnings)?),
            (None, None) => None,
        };
        Ok(config)
    }

    /// The sharing configuration and the number of replicas of a resource; `None` if it is not shared.
    pub fn replicas(&self, resource: &str) -> Option<(&Sharing, u32)> {
        let sharing = self.sharing.as_ref()?;
        let found = sharing.resources.iter().find(|r| r.name == resource)?;
        (found.replicas > 1).then_some((sharing, found.replicas))
    }
}

fn sharing(strategy: SharingStrategy, file: FileReplicas, warnings: &mut Vec<String>) -> Result<Sharing, String> {
    let mut resources: Vec<Replicated> = Vec::new();
    for resource in file.resources {
        // As upstream, add the default domain to a name without one.
        let name = match resource.name.as_str() {
            "" => return Err("a shared resource has no name".into()),
            name if name.contains('/') => name.to_owned(),
            name => format!("nvidia.com/{name}"),
        };
        if name.len() > 63 {
            return Err(format!("the resource name '{name}' has more than 63 characters"));
        }
        if resource.replicas < 0 || resource.replicas > MAX_REPLICAS {
            return Err(format!("{name}: replicas is {}, but must be from 0 to {MAX_REPLICAS}", resource.replicas));
        }
        if resource.rename.is_some() {
            warnings.push(format!("{name}: 'rename' is ignored, as by upstream: use renameByDefault"));
        }
        if resource.devices.as_ref().is_some_and(|d| d != "all") {
            warnings.push(format!("{name}: 'devices' is ignored, as by upstream: all devices are shared"));
        }
        if resources.iter().any(|r| r.name == name) {
            return Err(format!("{name} is listed twice"));
        }
        resources.push(Replicated { name, replicas: u32::try_from(resource.replicas).unwrap_or(0) });
    }
    // With MPS a container may use only one replica; upstream rejects larger requests regardless of the setting.
    let one_only = file.fail_requests_greater_than_one || strategy == SharingStrategy::Mps;
    Ok(Sharing { strategy, rename: file.rename_by_default, one_only, resources })
}

/// The source of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// One file for all nodes.
    pub file: Option<PathBuf>,
    /// A folder of files (a mounted ConfigMap), from which the node's label selects one.
    pub folder: Option<PathBuf>,
    /// Overrides the MIG strategy of the file.
    pub mig: Option<MigStrategy>,
}

impl Source {
    /// Reads the configuration for a node with these labels. Without a label the only file of the folder is used, or the one named
    /// `default`.
    ///
    /// # Errors
    /// [`NodeError::Config`] with the file and the reason.
    pub fn read(&self, labels: &BTreeMap<String, String>) -> Result<Config, NodeError> {
        let mut config = match self.select_file(labels)? {
            None => Config::default(),
            Some(path) => {
                let failed = |reason: String| NodeError::Config { file: path.display().to_string(), reason };
                let text = std::fs::read_to_string(&path).map_err(|e| failed(e.to_string()))?;
                Config::parse(&text).map_err(failed)?
            }
        };
        if let Some(mig) = self.mig {
            config.mig = mig;
        }
        Ok(config)
    }

    fn select_file(&self, labels: &BTreeMap<String, String>) -> Result<Option<PathBuf>, NodeError> {
        let Some(folder) = &self.folder else { return Ok(self.file.clone()) };
        let names = files(folder)?;
        if let Some(name) = labels.get(CHOICE_LABEL).filter(|n| !n.is_empty()) {
            if names.iter().any(|n| n == name) {
                return Ok(Some(folder.join(name)));
            }
            return Err(NodeError::Config {
                file: folder.display().to_string(),
                reason: format!(
                    "the node label {CHOICE_LABEL} selects '{name}', but the folder has {}",
                    names.join(", ")
                ),
            });
        }
        Ok(match names.as_slice() {
            [] => None,
            [only] => Some(folder.join(only)),
            many if many.iter().any(|n| n == "default") => Some(folder.join("default")),
            _ => None,
        })
    }
}

/// Names of the files in a folder, without those that Kubernetes adds to mounted ConfigMaps, which begin with two dots.
fn files(folder: &Path) -> Result<Vec<String>, NodeError> {
    let entries = std::fs::read_dir(folder).map_err(NodeError::io(folder.display().to_string()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| !n.starts_with("..") && folder.join(n).is_file())
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Based on the examples in NVIDIA's README.
    const TIME_SLICING: &str = "version: v1
flags:
  migStrategy: none
  failOnInitError: true
  nvidiaDriverRoot: /
  plugin:
    passDeviceSpecs: false
    deviceListStrategy: envvar
    deviceIDStrategy: uuid
sharing:
  timeSlicing:
    renameByDefault: true
    failRequestsGreaterThanOne: true
    resources:
    - name: nvidia.com/gpu
      replicas: 10
";

    #[test]
    fn upstream_file_is_parsed() {
        let config = Config::parse(TIME_SLICING).unwrap();
        assert_eq!(config.list, Some(vec![ListStrategy::Envvar]));
        let (sharing, replicas) = config.replicas("nvidia.com/gpu").unwrap();
        assert_eq!((replicas, sharing.rename, sharing.one_only), (10, true, true));
        assert!(config.replicas("nvidia.com/mig-1g.10gb").is_none());
        let many = TIME_SLICING.replace("deviceListStrategy: envvar", "deviceListStrategy: [envvar, cdi-cri]");
        assert_eq!(Config::parse(&many).unwrap().list, Some(vec![ListStrategy::Envvar, ListStrategy::CdiCri]));
    }

    #[test]
    fn errors_name_the_invalid_setting() {
        let error = |from: &str, to: &str| Config::parse(&TIME_SLICING.replace(from, to)).unwrap_err();
        assert!(error("version: v1", "version: v2").contains("'v2'"));
        assert!(error("replicas: 10", "replicas: -1").contains("0 to 1024"));
        assert!(error("migStrategy: none", "migStrategy: some").contains("some"));
        assert!(error("sharing:", "sharing:\n  mps: {}").contains("both"));
        let renamed = TIME_SLICING.replace("replicas: 10", "replicas: 10\n      rename: mine");
        assert_eq!(Config::parse(&renamed).unwrap().warnings.len(), 1);
    }

    #[test]
    fn node_label_selects_the_file() {
        let folder = std::env::temp_dir().join(format!("slipway-node-config-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("default"), "version: v1").unwrap();
        std::fs::write(folder.join("slices"), TIME_SLICING).unwrap();
        let source = Source { folder: Some(folder.clone()), ..Source::default() };
        let label = |name: &str| BTreeMap::from([(CHOICE_LABEL.to_owned(), name.to_owned())]);
        assert!(source.read(&BTreeMap::new()).unwrap().sharing.is_none());
        assert!(source.read(&label("slices")).unwrap().sharing.is_some());
        assert!(source.read(&label("none")).unwrap_err().to_string().contains("the folder has default, slices"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
