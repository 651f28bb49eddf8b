//! `cluster.yaml`: the desired cluster in one file.
//!
//! The doc comments of the types become the descriptions of the JSON schema. [`Cluster::parse`] validates all values, because names,
//! addresses and paths become part of commands and files on the machines.

pub(crate) mod addresses;
mod advice;
pub mod cloud;
pub mod edit;
pub mod gpu;
pub mod gpu_settings;
mod network;
mod nodes;
mod public_key;
pub mod releases;
pub mod secret;
pub mod ssh;
pub mod system;
mod validate;
pub mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::cloud::{Group, Provider};
pub use self::gpu::Gpu;
pub(crate) use self::network::Cidr;
pub use self::network::{Network, NetworkPlugin, Proxy, Registry};
pub use self::nodes::{Effect, Taint};
use self::secret::{SecretSource, TrustedCommands};
pub use self::ssh::Ssh;
pub(crate) use self::ssh::{check_address, check_ssh};
use self::system::System;
pub(crate) use self::validate::is_plain;
use self::workloads::{Addon, Platform, Share, Smoke, Storage};
use crate::ClusterError;

/// A cluster of machines with MicroK8s, K3s, RKE2 or kubeadm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// Always `slipway.dev/v1`.
    pub api_version: String,
    /// Always `Cluster`.
    pub kind: String,
    /// Name of the cluster.
    pub metadata: Metadata,
    /// The desired cluster.
    pub spec: Spec,
    /// Commands of this file that may run on this machine. None after parsing, until the user's agreements are applied.
    #[serde(skip)]
    pub trusted: TrustedCommands,
}

/// Metadata of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Name of the cluster: lower-case letters, digits and dashes.
    pub name: String,
}

/// The desired cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// SSH settings of all machines. Machines and groups may override them.
    #[serde(default)]
    pub ssh: Ssh,
    /// Cloud providers, by names of your choice.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub providers: BTreeMap<String, Provider>,
    /// Groups of machines that a cloud provider creates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// Existing machines. The cluster is created on the first machine with the role `control-plane`, here or in a group.
    #[serde(default)]
    pub machines: Vec<Machine>,
    /// Networks of pods and services, and a proxy.
    #[serde(default)]
    pub network: Network,
    /// Registries of images, with their mirrors, certificates and credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registries: Vec<Registry>,
    /// The operating system of the machines: host names, kernel settings, updates, packages, and your own files and users.
    #[serde(default)]
    pub system: System,
    /// The Kubernetes distribution, its version and its add-ons.
    pub kubernetes: Kubernetes,
    /// GPUs of machines with the role `gpu`.
    #[serde(default)]
    pub gpu: Gpu,
    /// Shared storage.
    #[serde(default)]
    pub storage: Storage,
    /// slipway in the cluster; not installed if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Smoke tests that run after an apply.
    #[serde(default)]
    pub smoke: Smoke,
}

/// A role of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Runs the Kubernetes control plane, and pods.
    ControlPlane,
    /// Runs only pods.
    Worker,
    /// Has NVIDIA GPUs. An additional role of a control plane or a worker.
    Gpu,
}

/// An existing machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Machine {
    /// Name in the cluster, which is also the name of its Kubernetes node.
    pub name: String,
    /// IP address or DNS name for SSH.
    pub address: String,
    /// Address in the cluster's private network; the same as `address` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_address: Option<String>,
    /// Roles of the machine; either `control-plane` or `worker` is among them. A control plane runs pods too.
    pub roles: BTreeSet<Role>,
    /// Labels of its Kubernetes node. A label that is removed here is removed from the node too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Taints of its Kubernetes node, which keep pods without a toleration away: `KEY=VALUE:EFFECT` or `KEY:EFFECT`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
    /// SSH settings that override `spec.ssh`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<Ssh>,
    /// Set if the machine belongs to a group, and comes from a provider. It is not part of the file: [`crate::fleet::resolved`] sets it. It
    /// stays with the machine, because a caller that forgot to look it up would connect without the machine's pinned host key, and would
    /// undo changes on a machine that is to be deleted.
    #[serde(skip)]
    pub provisioned: Option<Provisioned>,
}

/// The provider's data of a machine that belongs to a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provisioned {
    /// The provider's identifier.
    pub id: String,
    /// The machine was created outside of slipway, so slipway never deletes it.
    pub adopted: bool,
}

impl Machine {
    /// Whether the machine has a role.
    pub fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// The address at which other machines of the cluster reach it.
    pub fn internal(&self) -> &str {
        self.internal_address.as_deref().unwrap_or(&self.address)
    }
}

/// A Kubernetes distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// Canonical's MicroK8s.
    Microk8s,
    /// SUSE's K3s.
    K3s,
    /// SUSE's RKE2.
    Rke2,
    /// Kubernetes' own packages, with `kubeadm` and containerd.
    Kubeadm,
}

impl Distribution {
    /// The networks of pods and of services that the distribution uses if no others are set.
    ///
    /// Source: MicroK8s, "Services and ports"; K3s, "K3s Server"; RKE2, "Server Configuration Reference"; Kubernetes, "kubeadm init"
    /// (`--service-cidr`).
    pub(crate) fn default_networks(self) -> (&'static str, &'static str) {
        match self {
            Self::Microk8s => ("10.1.0.0/16", "10.152.183.0/24"),
            Self::K3s | Self::Rke2 => ("10.42.0.0/16", "10.43.0.0/16"),
            // The network of pods is that of Flannel's manifest; kubeadm itself has none.
            Self::Kubeadm => ("10.244.0.0/16", "10.96.0.0/12"),
        }
    }
}

/// The Kubernetes distribution, its version and its add-ons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kubernetes {
    /// The distribution.
    pub distribution: Distribution,
    /// The snap's channel of MicroK8s with a fixed minor version, such as `1.36/stable`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub channel: String,
    /// The exact version of K3s, RKE2 or kubeadm, such as `v1.36.2+k3s1`, `v1.36.2+rke2r1` or `v1.36.2`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// URL of a mirror. For K3s and RKE2: of their releases at GitHub, with a folder for each version. For kubeadm: of
    /// `https://pkgs.k8s.io/core:/stable:`, with a folder for each minor version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Hold automatic refreshes of the snap, and upgrades of kubeadm's packages, so that Kubernetes only changes with
    /// `slipway cluster upgrade`.
    #[serde(default = "yes")]
    pub hold: bool,
    /// Additional names and addresses in the API server's certificate.
    #[serde(default)]
    pub extra_sans: Vec<String>,
    /// MicroK8s' add-ons.
    #[serde(default)]
    pub addons: Vec<Addon>,
    /// Command-line arguments of the kubelet on every machine, without leading dashes: `{max-pods: "250"}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kubelet_args: BTreeMap<String, String>,
    /// Lifetime of a join token in seconds. K3s and RKE2 join with a token that stays valid.
    #[serde(default = "token_seconds")]
    pub token_seconds: u32,
    /// Address of a load balancer or a virtual IP in front of the API servers of kubeadm's control planes, as `HOST` or `HOST:PORT`. The
    /// first control plane's address if absent. Fixed when the cluster is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

impl Kubernetes {
    /// The channel or version, by the distribution.
    pub fn release(&self) -> &str {
        match self.distribution {
            Distribution::Microk8s => &self.channel,
            Distribution::K3s | Distribution::Rke2 | Distribution::Kubeadm => &self.version,
        }
    }
}

impl Kubernetes {
    /// Whether a node with this version of the kubelet must be upgraded on its own, after it was drained: for another minor version, and with
    /// kubeadm for every other version, because its nodes are upgraded in a fixed order.
    pub(crate) fn is_upgrade_from(&self, kubelet: &str) -> bool {
        match self.distribution {
            Distribution::Kubeadm => kubelet != self.version,
            _ => minor(kubelet) != minor(self.release()),
        }
    }
}

fn yes() -> bool {
    true
}

fn token_seconds() -> u32 {
    600
}

/// Major and minor version of a channel or a version: `(1, 32)` for `1.32/stable` and `v1.32.1`.
pub fn minor(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.trim_start_matches('v').split_once('.')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..digits].parse().ok()?))
}

impl Cluster {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`ClusterError::Io`], or [`ClusterError::Spec`] with the invalid field.
    pub fn read(path: &Path) -> Result<Self, ClusterError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(ClusterError::io(file.clone()))?;
        Self::parse(&text).map_err(|reason| ClusterError::Spec { file, reason })
    }

    /// Parses and validates the text of a file.
    ///
    /// # Errors
    /// A message that names the invalid field.
    pub fn parse(text: &str) -> Result<Self, String> {
        let cluster: Self = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        cluster.validate(text)?;
        Ok(cluster)
    }

    /// The first control plane, on which the cluster is created.
    pub fn first(&self) -> Option<&Machine> {
        self.spec.machines.iter().find(|m| m.is(Role::ControlPlane))
    }

    /// The SSH settings of a machine: its own, completed with those of `spec.ssh`.
    pub fn ssh(&self, machine: &Machine) -> Ssh {
        machine.ssh.clone().unwrap_or_default().or(&self.spec.ssh)
    }

    /// Every secret of the file: its field in the file, and its source.
    pub fn secrets(&self) -> Vec<(String, &SecretSource)> {
        let spec = &self.spec;
        let mut out = Vec::new();
        let mut add = |place: String, source: Option<_>| out.extend(source.map(|s| (place, s)));
        add("spec.ssh.sudoPassword".into(), spec.ssh.sudo_password.as_ref());
        for (name, provider) in &spec.providers {
            add(format!("spec.providers.{name}.token"), Some(provider.token()));
        }
        for group in &spec.groups {
            let password = group.ssh.as_ref().and_then(|ssh| ssh.sudo_password.as_ref());
            add(format!("spec.groups: {}: ssh.sudoPassword", group.name), password);
        }
        for machine in &spec.machines {
            let password = machine.ssh.as_ref().and_then(|ssh| ssh.sudo_password.as_ref());
            add(format!("spec.machines: {}: ssh.sudoPassword", machine.name), password);
        }
        for registry in &spec.registries {
            add(format!("spec.registries: {}: ca", registry.host), registry.ca.as_ref());
            add(format!("spec.registries: {}: password", registry.host), registry.password.as_ref());
        }
        for repository in &spec.system.repositories {
            add(format!("spec.system.repositories: {}: key", repository.name), Some(&repository.key));
        }
        for file in &spec.system.files {
            add(format!("spec.system.files: {}: secret", file.path), file.secret.as_ref());
        }
        for class in &spec.storage.classes {
            if let Share::Smb(smb) = &class.share {
                add(format!("spec.storage.classes: {}: password", class.name), Some(&smb.password));
            }
        }
        out
    }

    /// The JSON schema of the file, for editors.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

/// Replaces a leading `~/` with the home folder.
pub(crate) fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const FILE: &str = "apiVersion: slipway.dev/v1
kind: Cluster
metadata: {name: lab}
spec:
  machines:
    - {name: cp1, address: 10.0.0.1, roles: [control-plane]}
    - {name: cp2, address: 10.0.0.2, roles: [control-plane]}
    - {name: gpu1, address: 10.0.0.3, roles: [worker, gpu]}
  kubernetes: {distribution: microk8s, channel: 1.32/stable, addons: [dns, metrics-server]}
";

    #[test]
    fn minimal_file_is_parsed_with_defaults() {
        let cluster = Cluster::parse(FILE).unwrap();
        assert_eq!(cluster.first().unwrap().name, "cp1");
        assert!(cluster.spec.kubernetes.hold && cluster.spec.system.hosts);
    }

    #[test]
    fn invalid_values_are_rejected() {
        let error_of = |from: &str, to: &str| Cluster::parse(&FILE.replace(from, to)).unwrap_err();
        assert!(error_of("1.32/stable", "latest/stable").contains("write the minor version"));
        assert!(error_of("name: cp2", "name: cp1").contains("duplicate name"));
        assert!(error_of("[worker, gpu]", "[gpu]").contains("either control-plane or worker"));
        assert!(error_of("10.0.0.3", "'-oProxyCommand=x'").contains("not a valid address"));
        for invalid_ssh in
            ["user: -oProxyCommand=x", "user: 'a b'", "user: 'a;id'", "identityFile: -x", "knownHosts: '-'"]
        {
            for place in ["spec:", "name: cp2,", "name: cp1,"] {
                let to = if place == "spec:" {
                    format!("spec:\n  ssh: {{{invalid_ssh}}}")
                } else {
                    format!("{place} ssh: {{{invalid_ssh}}},")
                };
                assert!(error_of(place, &to).contains("dash"), "{to}");
            }
        }
        assert!(Cluster::parse(&FILE.replace("spec:", "spec:\n  ssh: {user: 'First.Last@example.com'}")).is_ok());
        assert!(error_of("[dns,", "['dns; rm -rf /',").contains("not a valid add-on"));
        assert!(error_of("channel:", "chanel:").contains("chanel"));
        let group = "groups: [{name: gpu, provider: do, size: s, image: i, count: 2, roles: [worker]}]\n  machines:";
        assert!(error_of("machines:", group).contains("there is no 'do' in spec.providers"));
        assert!(error_of("kubernetes:", "gpu: {sharing: {timeSlices: 1}}\n  kubernetes:").contains("2 to 48"));
    }

    #[test]
    fn groups_and_workloads_are_parsed() {
        let more = "providers: {do: {digitalocean: {token: {env: T}, region: nyc2, sshKeys: ['1']}}}
  groups: [{name: gpu, provider: do, size: gpu-h100x1-80gb, image: ubuntu-24-04-x64, count: 2, roles: [worker, gpu]}]
  storage: {classes: [{name: shared, share: {nfs: {server: 10.0.0.9, path: /export}}, default: true}]}
  platform: {image: 'slipway:0.1.0'}
  gpu: {sharing: {mig: {1g.10gb: 7}}}
  machines:";
        let text = FILE
            .replace("machines:", more)
            .replace("[dns, metrics-server]", "[dns, {name: observability, options: ['--x=1']}]");
        let cluster = Cluster::parse(&text).unwrap();
        assert_eq!(cluster.spec.groups[0].names().collect::<Vec<_>>(), ["gpu-1", "gpu-2"]);
        assert_eq!(cluster.spec.kubernetes.addons[1].options(), ["--x=1"]);
        assert_eq!((minor("1.32/stable"), minor("v1.33.4-rc"), minor("latest")), (Some((1, 32)), Some((1, 33)), None));
    }

    #[test]
    fn schema_has_the_fields_of_the_file() {
        let schema = Cluster::schema().to_string();
        assert!(["controlPlane", "extraSans", "sudoPassword"].iter().filter(|w| schema.contains(**w)).count() == 2);
        assert!(schema.contains("control-plane"));
    }
}
