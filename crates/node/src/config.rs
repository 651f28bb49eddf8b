//! NVIDIA's device plugin configuration file, read as it is.
//!
//! Source: NVIDIA k8s-device-plugin, README, "Configuring the NVIDIA device plugin binary" and "Shared Access to GPUs".
//! What the file holds for other programs (GFD's output file, IMEX) is read over with a warning, as are settings that upstream
//! itself ignores.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::NodeError;

/// The label by which a node chooses one of several configuration files.
pub const CHOICE_LABEL: &str = "nvidia.com/device-plugin.config";

/// How MIG devices are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MigStrategy {
    /// GPUs are offered whole, whatever MIG says.
    #[default]
    None,
    /// All MIG devices are of one profile and are offered as `nvidia.com/gpu`.
    Single,
    /// Each profile is a resource of its own, `nvidia.com/mig-1g.10gb`.
    Mixed,
}

impl MigStrategy {
    /// As the file and the label write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Single => "single",
            Self::Mixed => "mixed",
        }
    }
}

/// How a container is told which devices are its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListStrategy {
    /// `NVIDIA_VISIBLE_DEVICES`, for NVIDIA's container runtime.
    Envvar,
    /// Empty mounts below `/var/run/nvidia-container-devices`, for the same runtime without privileges by environment.
    VolumeMounts,
    /// CDI names in annotations, for runtimes before CDI in the CRI.
    CdiAnnotations,
    /// CDI names in the CRI.
    CdiCri,
}

/// What stands for a device in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdStrategy {
    /// Its UUID.
    #[default]
    Uuid,
    /// Its index, `GPU:MIG` for MIG devices.
    Index,
}

/// Which replicas of shared devices are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SharedPolicy {
    /// Of the device with the fewest replicas in use.
    #[default]
    Distributed,
    /// Of the device with the most replicas in use.
    Packed,
}

/// How devices are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharingStrategy {
    /// Processes take turns.
    TimeSlicing,
    /// Processes run together below CUDA's multi-process service.
    Mps,
}

impl SharingStrategy {
    /// As GFD's label writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TimeSlicing => "time-slicing",
            Self::Mps => "mps",
        }
    }
}

/// A resource that is offered several times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replicated {
    /// `nvidia.com/gpu`.
    pub name: String,
    /// How often each device is offered.
    pub replicas: u32,
}

/// How and what is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharing {
    /// How.
    pub strategy: SharingStrategy,
    /// Shared resources get the ending `.shared`.
    pub rename: bool,
    /// A container that asks for more than one replica is refused.
    pub one_only: bool,
    /// What.
    pub resources: Vec<Replicated>,
}

/// The configuration in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How MIG devices are offered.
    pub mig: MigStrategy,
    /// How containers are told; `None` leaves it to the agent: CDI where the specification could be written, else the variable.
    pub list: Option<Vec<ListStrategy>>,
    /// What stands for a device in the list.
    pub ids: IdStrategy,
    /// Device nodes are named too, for kubelets that reset a container's device cgroup.
    pub device_specs: bool,
    /// Which replicas are preferred.
    pub shared_policy: SharedPolicy,
    /// Begins the keys of CDI annotations.
    pub annotation_prefix: String,
    /// Time slices or MPS.
    pub sharing: Option<Sharing>,
    /// What was read over.
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

/// The most that a node's pods could use; a slip of the pen is not turned into a million devices.
const MOST_REPLICAS: i64 = 1024;

impl Config {
    /// Reads a file's text.
    ///
    /// # Errors
    /// What is wrong, in words that name the place.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        if file.version != "v1" {
            return Err(format!("version '{}' is not known; known is v1", file.version));
        }
        let mut config = Self::default();
        if file.resources.is_some() {
            // Upstream: "Customizing the 'resources' field is not yet supported in the config. Ignoring...".
            config.warnings.push("'resources' is read over, as by upstream: names of resources are fixed".into());
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
            (Some(_), Some(_)) => return Err("sharing names both timeSlicing and mps; a node can have one".into()),
            (Some(slices), None) => Some(sharing(SharingStrategy::TimeSlicing, slices, &mut config.warnings)?),
            (None, Some(mps)) => Some(sharing(SharingStrategy::Mps, mps, &mut config.warnings)?),
            (None, None) => None,
        };
        Ok(config)
    }

    /// How often devices of a resource are offered, if they are shared.
    pub fn replicas(&self, resource: &str) -> Option<(&Sharing, u32)> {
        let sharing = self.sharing.as_ref()?;
        let found = sharing.resources.iter().find(|r| r.name == resource)?;
        (found.replicas > 1).then_some((sharing, found.replicas))
    }
}

fn sharing(strategy: SharingStrategy, file: FileReplicas, warnings: &mut Vec<String>) -> Result<Sharing, String> {
    let mut resources: Vec<Replicated> = Vec::new();
    for resource in file.resources {
        // Upstream puts its own domain before a name without one.
        let name = match resource.name.as_str() {
            "" => return Err("a shared resource has no name".into()),
            name if name.contains('/') => name.to_owned(),
            name => format!("nvidia.com/{name}"),
        };
        if name.len() > 63 {
            return Err(format!("the resource name '{name}' has more than 63 characters"));
        }
        if resource.replicas < 0 || resource.replicas > MOST_REPLICAS {
            return Err(format!("{name}: replicas is {}, and must be 0 to {MOST_REPLICAS}", resource.replicas));
        }
        if resource.rename.is_some() {
            warnings.push(format!("{name}: 'rename' is read over, as by upstream; renameByDefault is there"));
        }
        if resource.devices.as_ref().is_some_and(|d| d != "all") {
            warnings.push(format!("{name}: 'devices' is read over, as by upstream: all are shared"));
        }
        if resources.iter().any(|r| r.name == name) {
            return Err(format!("{name} is named twice"));
        }
        resources.push(Replicated { name, replicas: u32::try_from(resource.replicas).unwrap_or(0) });
    }
    // With MPS a container's part is one replica; upstream refuses more whatever the file says.
    let one_only = file.fail_requests_greater_than_one || strategy == SharingStrategy::Mps;
    Ok(Sharing { strategy, rename: file.rename_by_default, one_only, resources })
}

/// Where configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// One file for all nodes.
    pub file: Option<PathBuf>,
    /// A folder of named files (a ConfigMap); the node's label chooses one.
    pub folder: Option<PathBuf>,
    /// In place of what the file says.
    pub mig: Option<MigStrategy>,
}

impl Source {
    /// The configuration for a node with these labels. Without a label the file `default` of the folder counts, or the only one.
    ///
    /// # Errors
    /// [`NodeError::Config`] that names the file and the mistake.
    pub fn read(&self, labels: &BTreeMap<String, String>) -> Result<Config, NodeError> {
        let mut config = match self.choose(labels)? {
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

    fn choose(&self, labels: &BTreeMap<String, String>) -> Result<Option<PathBuf>, NodeError> {
        let Some(folder) = &self.folder else { return Ok(self.file.clone()) };
        let names = files(folder)?;
        if let Some(name) = labels.get(CHOICE_LABEL).filter(|n| !n.is_empty()) {
            if names.iter().any(|n| n == name) {
                return Ok(Some(folder.join(name)));
            }
            return Err(NodeError::Config {
                file: folder.display().to_string(),
                reason: format!("the node's label {CHOICE_LABEL} asks for '{name}'; there is {}", names.join(", ")),
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

/// Names of the files in a folder; a ConfigMap's own bookkeeping begins with two dots.
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

    /// The examples of NVIDIA's README, in content.
    const SLICES: &str = "version: v1
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
    fn upstreams_file_is_read() {
        let config = Config::parse(SLICES).unwrap();
        assert_eq!(config.list, Some(vec![ListStrategy::Envvar]));
        let (sharing, replicas) = config.replicas("nvidia.com/gpu").unwrap();
        assert_eq!((replicas, sharing.rename, sharing.one_only), (10, true, true));
        assert!(config.replicas("nvidia.com/mig-1g.10gb").is_none());
        let many = SLICES.replace("deviceListStrategy: envvar", "deviceListStrategy: [envvar, cdi-cri]");
        assert_eq!(Config::parse(&many).unwrap().list, Some(vec![ListStrategy::Envvar, ListStrategy::CdiCri]));
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |from: &str, to: &str| Config::parse(&SLICES.replace(from, to)).unwrap_err();
        assert!(wrong("version: v1", "version: v2").contains("'v2'"));
        assert!(wrong("replicas: 10", "replicas: -1").contains("0 to 1024"));
        assert!(wrong("migStrategy: none", "migStrategy: some").contains("some"));
        assert!(wrong("sharing:", "sharing:\n  mps: {}").contains("both"));
        let renamed = SLICES.replace("replicas: 10", "replicas: 10\n      rename: mine");
        assert_eq!(Config::parse(&renamed).unwrap().warnings.len(), 1);
    }

    #[test]
    fn the_label_chooses_the_file() {
        let folder = std::env::temp_dir().join(format!("slipway-node-config-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("default"), "version: v1").unwrap();
        std::fs::write(folder.join("slices"), SLICES).unwrap();
        let source = Source { folder: Some(folder.clone()), ..Source::default() };
        let label = |name: &str| BTreeMap::from([(CHOICE_LABEL.to_owned(), name.to_owned())]);
        assert!(source.read(&BTreeMap::new()).unwrap().sharing.is_none());
        assert!(source.read(&label("slices")).unwrap().sharing.is_some());
        assert!(source.read(&label("none")).unwrap_err().to_string().contains("there is default, slices"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
