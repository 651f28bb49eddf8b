//! What runs in the cluster and belongs to it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::SecretSource;

/// An add-on of MicroK8s: its name with what follows it after a colon, or that and options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Addon {
    /// `dns`, `metallb:10.0.0.10-10.0.0.20`.
    Name(String),
    /// With options.
    More(AddonOptions),
}

/// An add-on with options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddonOptions {
    /// `observability`.
    pub name: String,
    /// `--kube-prometheus-stack-version=62.7.0`; the way to pin what an add-on brings.
    #[serde(default)]
    pub options: Vec<String>,
}

impl Addon {
    /// As `microk8s enable` takes it.
    pub fn name(&self) -> &str {
        match self {
            Self::Name(name) | Self::More(AddonOptions { name, .. }) => name,
        }
    }

    /// Options of `microk8s enable`.
    pub fn options(&self) -> &[String] {
        match self {
            Self::Name(_) => &[],
            Self::More(more) => &more.options,
        }
    }
}

/// Who tells the kubelet of GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DevicePlugin {
    /// slipway's node agent, a part of `spec.platform`.
    #[default]
    Slipway,
    /// NVIDIA's.
    Nvidia,
    /// Nobody from here.
    None,
}

/// How a GPU is shared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Sharing {
    /// So many pods take turns on a GPU.
    TimeSlices(u32),
    /// So many pods use a GPU at once, by MPS.
    Mps(u32),
    /// Every GPU is divided into these MIG devices: `{1g.10gb: 4, 3g.40gb: 1}`.
    Mig(std::collections::BTreeMap<String, u32>),
}

/// Shared storage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Storage {
    /// Storage classes.
    pub classes: Vec<StorageClass>,
}

/// A storage class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StorageClass {
    /// Its name.
    pub name: String,
    /// Claims that name none get this one.
    #[serde(default)]
    pub default: bool,
    /// Where the files are.
    pub share: Share,
}

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Share {
    /// An export of NFS.
    Nfs(Nfs),
    /// A share of SMB.
    Smb(Smb),
}

/// An export of NFS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Nfs {
    /// Name or address.
    pub server: String,
    /// The path that it exports.
    pub path: String,
}

/// A share of SMB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Smb {
    /// `//server/share`.
    pub source: String,
    /// The user.
    pub user: String,
    /// The password. Kubernetes keeps it as a secret.
    pub password: SecretSource,
}

/// slipway in the cluster, as `slipway up --kube` puts it there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Platform {
    /// Its image, `registry.example/slipway:0.1.0`.
    pub image: String,
    /// Where it goes.
    #[serde(default = "namespace")]
    pub namespace: String,
    /// Tracking, registry, deployments, gateway and UI.
    #[serde(default = "super::yes")]
    pub server: bool,
    /// Values of the chart beside those that follow from this file.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub values: serde_json::Map<String, serde_json::Value>,
}

fn namespace() -> String {
    "slipway-system".into()
}

/// What is tried after an apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Smoke {
    /// Off, when somebody wants no pod of ours.
    pub enabled: bool,
    /// A small image with a shell, `nslookup` and `cat`.
    pub image: String,
    /// An image that computes with CUDA and ends with 0 when that went well.
    pub cuda_image: String,
    /// What it is told to run; its own command when empty.
    pub cuda_command: Vec<String>,
    /// A pod that has not ended after so many seconds has failed.
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
