//! The configuration of the device plugin, in the format of NVIDIA's device plugin.
//!
//! Source: NVIDIA k8s-device-plugin v0.20, `api/config/v1`, and README, "Configuring the NVIDIA device plugin binary" and "Shared Access to
//! GPUs". A setting without effect is reported as a warning, whether upstream ignores it too or only this agent does.

mod file;
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::NodeError;

/// The node label that selects one of several configuration files.
pub const CHOICE_LABEL: &str = "nvidia.com/device-plugin.config";

/// How MIG devices are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IdStrategy {
    /// By UUID.
    #[default]
    Uuid,
    /// By index, `GPU:MIG` for MIG devices.
    Index,
}

/// The preference among replicas of shared devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
    /// Number of replicas per device, at least 2.
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

/// The IMEX channel for containers with GPUs: channel 0, which lets the nodes of an NVLink domain share memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imex {
    /// Whether a container must not start without the channel.
    pub required: bool,
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
    /// Variables that ask NVIDIA's container runtime for GDRCopy, GPUDirect Storage and Mellanox devices.
    pub extra_devices: Vec<&'static str>,
    /// The IMEX channel that containers with GPUs get; `None` means no channel.
    pub imex: Option<Imex>,
    /// Warnings about settings without effect, with their place in the file.
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
            extra_devices: Vec::new(),
            imex: None,
            warnings: Vec::new(),
        }
    }
}

impl Config {
    /// Parses the YAML text of a file.
    ///
    /// # Errors
    /// A message that names the invalid setting and its line.
    pub fn parse(text: &str) -> Result<Self, String> {
        file::read(text)
    }

    /// The sharing configuration and the number of replicas of a resource; `None` if it is not shared.
    pub fn replicas(&self, resource: &str) -> Option<(&Sharing, u32)> {
        let sharing = self.sharing.as_ref()?;
        let found = sharing.resources.iter().find(|r| r.name == resource)?;
        (found.replicas > 1).then_some((sharing, found.replicas))
    }
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

/// Maximum size of a configuration file in bytes, that of a Kubernetes ConfigMap.
const MAX_BYTES: u64 = 1 << 20;

impl Source {
    /// Reads the configuration for a node with these labels. Without a label the only file of the folder is used, or the one named
    /// `default`.
    ///
    /// # Errors
    /// [`NodeError::Config`] with the file and the reason.
    pub fn read(&self, labels: &BTreeMap<String, String>) -> Result<Config, NodeError> {
        let selected = match &self.folder {
            Some(folder) => select_file(folder, CHOICE_LABEL, labels)?,
            None => self.file.clone(),
        };
        let mut config = match selected {
            None => Config::default(),
            Some(path) => Config::parse(&read_text(&path)?)
                .map_err(|reason| NodeError::Config { file: path.display().to_string(), reason })?,
        };
        if let Some(mig) = self.mig {
            config.mig = mig;
        }
        let is_mps = config.sharing.as_ref().is_some_and(|sharing| sharing.strategy == SharingStrategy::Mps);
        if is_mps && config.mig == MigStrategy::Mixed {
            return Err(NodeError::Invalid("sharing by MPS is not possible with the MIG strategy mixed".into()));
        }
        Ok(config)
    }
}

/// Reads a configuration file of limited size.
///
/// # Errors
/// [`NodeError::Config`] with the file and the reason.
pub(crate) fn read_text(path: &Path) -> Result<String, NodeError> {
    let failed = |reason: String| NodeError::Config { file: path.display().to_string(), reason };
    let size = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(failed(format!("the file has {size} bytes, but at most {MAX_BYTES} are read")));
    }
    std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))
}

/// The file in a folder that the node's label `label` selects. Without the label it is the only file of the folder, or the one named
/// `default`.
///
/// # Errors
/// [`NodeError::Config`] with the existing names if there is no such file.
pub(crate) fn select_file(
    folder: &Path,
    label: &str,
    labels: &BTreeMap<String, String>,
) -> Result<Option<PathBuf>, NodeError> {
    let names = files(folder)?;
    if let Some(name) = labels.get(label).filter(|n| !n.is_empty()) {
        if names.iter().any(|n| n == name) {
            return Ok(Some(folder.join(name)));
        }
        return Err(NodeError::Config {
            file: folder.display().to_string(),
            reason: format!("the node label {label} selects '{name}', but the folder has {}", names.join(", ")),
        });
    }
    Ok(match names.as_slice() {
        [] => None,
        [only] => Some(folder.join(only)),
        many if many.iter().any(|n| n == "default") => Some(folder.join("default")),
        _ => None,
    })
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

    #[test]
    fn node_label_selects_the_file() {
        let folder = std::env::temp_dir().join(format!("slipway-node-config-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let slices = "version: v1\nsharing: {timeSlicing: {resources: [{name: gpu, replicas: 4}]}}\n";
        std::fs::write(folder.join("default"), "version: v1").unwrap();
        std::fs::write(folder.join("slices"), slices).unwrap();
        std::fs::write(folder.join("mps"), slices.replace("timeSlicing", "mps")).unwrap();
        let source = Source { folder: Some(folder.clone()), ..Source::default() };
        let label = |name: &str| BTreeMap::from([(CHOICE_LABEL.to_owned(), name.to_owned())]);
        assert!(source.read(&BTreeMap::new()).unwrap().sharing.is_none());
        assert!(source.read(&label("slices")).unwrap().sharing.is_some());
        assert!(source.read(&label("none")).unwrap_err().to_string().contains("the folder has default, mps, slices"));
        let mixed = Source { mig: Some(MigStrategy::Mixed), ..source };
        assert!(mixed.read(&label("slices")).is_ok());
        assert!(mixed.read(&label("mps")).unwrap_err().to_string().contains("MPS"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
