//! The parts of `cluster.yaml` about what runs in the cluster: add-ons, GPU sharing, storage, slipway itself and smoke tests.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::SecretSource;

/// A MicroK8s add-on: its name, or an object with options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Addon {
    /// Name of the add-on, with an optional argument after a colon: `dns`, `metallb:10.0.0.10-10.0.0.20`.
    Name(String),
    /// An add-on with command-line options.
    More(AddonOptions),
}

/// An add-on with command-line options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddonOptions {
    /// Name of the add-on, such as `observability`.
    pub name: String,
    /// Options of `microk8s enable`, for example to pin a version: `--kube-prometheus-stack-version=62.7.0`.
    #[serde(default)]
    pub options: Vec<String>,
}

impl Addon {
    /// The argument of `microk8s enable`, such as `dns` or `metallb:10.0.0.10-10.0.0.20`.
    pub fn name(&self) -> &str {
        match self {
            Self::Name(name) | Self::More(AddonOptions { name, .. }) => name,
        }
    }

    /// The command-line options of `microk8s enable`.
    pub fn options(&self) -> &[String] {
        match self {
            Self::Name(_) => &[],
            Self::More(addon) => &addon.options,
        }
    }
}

/// The device plugin, which advertises GPUs to the kubelet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DevicePlugin {
    /// slipway's node agent, a part of `spec.platform`.
    #[default]
    Slipway,
    /// NVIDIA's device plugin.
    Nvidia,
    /// No device plugin is installed.
    None,
}

/// How pods share a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Sharing {
    /// Number of pods per GPU, which use it in turns (time-slicing).
    TimeSlices(u32),
    /// Number of pods per GPU, which use it at the same time (MPS).
    Mps(u32),
    /// MIG devices per GPU, as the number of each profile: `{1g.10gb: 4, 3g.40gb: 1}`.
    Mig(std::collections::BTreeMap<String, u32>),
}

/// Shared storage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Storage {
    /// Storage classes of shared file systems.
    pub classes: Vec<StorageClass>,
}

/// A storage class for a shared file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StorageClass {
    /// Name of the class.
    pub name: String,
    /// Use this class for claims that name no class.
    #[serde(default)]
    pub default: bool,
    /// The shared file system.
    pub share: Share,
}

/// A shared file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Share {
    /// An NFS export.
    Nfs(Nfs),
    /// An SMB share.
    Smb(Smb),
}

/// An NFS export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Nfs {
    /// Name or address of the server.
    pub server: String,
    /// Path that the server exports.
    pub path: String,
}

/// An SMB share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Smb {
    /// Address of the share: `//server/share`.
    pub source: String,
    /// User name for the share.
    pub user: String,
    /// Password of the user. It is stored as a Kubernetes secret.
    pub password: SecretSource,
}

/// slipway in the cluster, as `slipway up --kube` installs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Platform {
    /// Container image, such as `registry.example/slipway:0.1.0`.
    pub image: String,
    /// Namespace to install into; `slipway-system` by default.
    #[serde(default = "namespace")]
    pub namespace: String,
    /// Install the server: tracking, model registry, deployments, gateway and UI.
    #[serde(default = "super::yes")]
    pub server: bool,
    /// Additional values of the chart. They override the values that follow from this file.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub values: serde_json::Map<String, serde_json::Value>,
}

fn namespace() -> String {
    "slipway-system".into()
}

/// Smoke tests that run after an apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Smoke {
    /// Run smoke tests. They create pods in the cluster.
    pub enabled: bool,
    /// Image of the DNS and storage tests, with a shell, `nslookup` and `cat`.
    pub image: String,
    /// Image of the GPU test, which computes with CUDA and exits with 0 on success.
    pub cuda_image: String,
    /// Command of the GPU test; the image's own command if empty.
    pub cuda_command: Vec<String>,
    /// Timeout of each test pod in seconds.
    pub timeout_seconds: u64,
}

impl Default for Smoke {
    fn default() -> Self {
        Self {
            enabled: true,
            image: "docker.io/library/busybox:1.37".into(),
            cuda_image: "nvcr.io/nvidia/k8s/cuda-sample:vectoradd-cuda12.5.0".into(),
            cuda_command: ["sh", "-c", "nvidia-smi -L; exec /cuda-samples/vectorAdd"].map(String::from).into(),
            timeout_seconds: 300,
        }
    }
}
