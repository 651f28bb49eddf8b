//! `cluster.yaml`: the desired cluster in one file.
//!
//! The doc comments of the types become the descriptions of the JSON schema. [`Cluster::parse`] validates all values, because names,
//! addresses and paths become part of commands and files on the machines.

pub(crate) mod addresses;
pub mod cloud;
pub mod edit;
pub mod gpu;
pub mod secret;
pub mod system;
pub mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::addresses::{Conflict, Index};
use self::cloud::{Group, Provider};
pub use self::gpu::Gpu;
use self::secret::{SecretSource, TrustedCommands};
use self::system::System;
use self::workloads::{Addon, Platform, Share, Smoke, Storage};
use crate::ClusterError;

/// A cluster of machines with MicroK8s.
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

/// How to connect to a machine. The settings of OpenSSH's own configuration also apply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ssh {
    /// User to log in as; chosen by OpenSSH if absent.
    pub user: Option<String>,
    /// Port of the SSH server; 22 if absent.
    pub port: Option<u16>,
    /// Path of a private key.
    pub identity_file: Option<String>,
    /// Path of the file with known host keys.
    pub known_hosts: Option<String>,
    /// Accept and store the host key of a host that is not known yet. A changed key is always rejected.
    pub accept_new_host_keys: bool,
    /// Password for sudo, for a user that needs one to become root.
    pub sudo_password: Option<SecretSource>,
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
    /// Roles of the machine; either `control-plane` or `worker` is among them.
    pub roles: BTreeSet<Role>,
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
}

/// The Kubernetes distribution, its version and its add-ons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kubernetes {
    /// The distribution.
    pub distribution: Distribution,
    /// The snap's channel with a fixed minor version, such as `1.32/stable`.
    pub channel: String,
    /// Hold automatic refreshes of the snap, so that Kubernetes only changes with `slipway cluster upgrade`.
    #[serde(default = "yes")]
    pub hold: bool,
    /// Additional names and addresses in the API server's certificate.
    #[serde(default)]
    pub extra_sans: Vec<String>,
    /// MicroK8s' add-ons.
    #[serde(default)]
    pub addons: Vec<Addon>,
    /// Lifetime of a join token in seconds.
    #[serde(default = "token_seconds")]
    pub token_seconds: u32,
}

fn yes() -> bool {
    true
}

fn token_seconds() -> u32 {
    600
}

/// Whether a text only has ASCII letters, digits, dashes and the characters of `extra`, and does not begin with a dash. Such a text is safe
/// in commands and files.
fn is_plain(text: &str, extra: &str) -> bool {
    !text.is_empty()
        && text.len() < 254
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || extra.contains(c))
        && !text.starts_with('-')
}

/// Checks that a text is a name or an address of a machine, and that `ssh` cannot take it for an option.
///
/// # Errors
/// A message with the invalid text.
pub(crate) fn check_address(address: &str) -> Result<(), String> {
    if is_plain(address, ".:_") { Ok(()) } else { Err(format!("{address:?} is not a valid address")) }
}

/// Checks that SSH settings are safe as arguments of `ssh`: no value can be taken for an option, and the user has no special characters of
/// the shell, because OpenSSH's own configuration may insert the user into a command (`%r` in a `ProxyCommand`).
///
/// # Errors
/// A message with the invalid value.
pub(crate) fn check_ssh(ssh: &Ssh) -> Result<(), String> {
    if let Some(user) = ssh.user.as_ref().filter(|user| !is_plain(user, "._@+")) {
        return Err(format!("ssh.user {user:?}: use letters, digits and ._@+-, and do not begin with a dash"));
    }
    for (name, path) in [("identityFile", &ssh.identity_file), ("knownHosts", &ssh.known_hosts)] {
        if let Some(path) = path.as_ref().filter(|p| p.is_empty() || p.starts_with('-') || p.contains(char::is_control))
        {
            return Err(format!("ssh.{name} {path:?}: use a path that does not begin with a dash"));
        }
    }
    Ok(())
}

/// A larger count is probably a typing error, and would be expensive.
const MAX_GROUP_SIZE: u32 = 1000;

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

    /// Validates all values. `text` is the file, of which errors name lines.
    fn validate(&self, text: &str) -> Result<(), String> {
        if self.api_version != "slipway.dev/v1" || self.kind != "Cluster" {
            return Err(format!(
                "apiVersion '{}' and kind '{}' are not supported; use slipway.dev/v1 and Cluster",
                self.api_version, self.kind
            ));
        }
        let name = |what: &str, text: &str| {
            let lower = text == text.to_lowercase();
            if is_plain(text, "") && lower {
                Ok(())
            } else {
                Err(format!("{what} '{text}': use lower-case letters, digits and dashes"))
            }
        };
        name("metadata.name", &self.metadata.name)?;
        let spec = &self.spec;
        let ssh = |place: &str, ssh: Option<&Ssh>| {
            ssh.map_or(Ok(()), check_ssh).map_err(|reason| format!("{place}: {reason}"))
        };
        ssh("spec", Some(&spec.ssh))?;
        let mut names = BTreeSet::new();
        let check_roles = |place: &str, name: &str, roles: &BTreeSet<Role>| {
            if roles.contains(&Role::ControlPlane) == roles.contains(&Role::Worker) {
                return Err(format!("{place}: {name}: roles must have either control-plane or worker"));
            }
            Ok(())
        };
        for machine in &spec.machines {
            name("spec.machines: name", &machine.name)?;
            if !names.insert(machine.name.clone()) {
                let lines = addresses::lines_of(text, &[&machine.name]);
                return Err(format!("spec.machines: duplicate name '{}'{lines}", machine.name));
            }
            for address in [&machine.address].into_iter().chain(&machine.internal_address) {
                check_address(address).map_err(|e| format!("spec.machines: {}: {e}", machine.name))?;
            }
            ssh(&format!("spec.machines: {}", machine.name), machine.ssh.as_ref())?;
            check_roles("spec.machines", &machine.name, &machine.roles)?;
        }
        if let (_, Some(Conflict { first, second, reason })) = Index::new(self) {
            let (first, second) = (first.name.as_str(), second.name.as_str());
            let lines = addresses::lines_of(text, &[first, second]);
            return Err(format!(
                "spec.machines: '{first}' and '{second}'{lines} have {reason}, so they would overwrite each other's state; remove one of \
                 them. Two machines behind one address need different ssh.port and internalAddress"
            ));
        }
        let mut group_names = BTreeSet::new();
        for group in &spec.groups {
            name("spec.groups: name", &group.name)?;
            if !group_names.insert(&group.name) {
                return Err(format!("spec.groups: duplicate group '{}'", group.name));
            }
            ssh(&format!("spec.groups: {}", group.name), group.ssh.as_ref())?;
            check_roles("spec.groups", &group.name, &group.roles)?;
            if !spec.providers.contains_key(&group.provider) {
                return Err(format!("spec.groups: {}: there is no '{}' in spec.providers", group.name, group.provider));
            }
            if group.count > MAX_GROUP_SIZE {
                return Err(format!("spec.groups: {}: count must not exceed {MAX_GROUP_SIZE}", group.name));
            }
            if let Some(duplicate) = group.names().find(|n| !names.insert(n.clone())) {
                let lines = addresses::lines_of(text, &[&duplicate]);
                return Err(format!("spec.groups: {}: duplicate machine name '{duplicate}'{lines}", group.name));
            }
        }
        let is_control_plane = |roles: &BTreeSet<Role>| roles.contains(&Role::ControlPlane);
        if !spec.machines.iter().any(|m| is_control_plane(&m.roles))
            && !spec.groups.iter().any(|g| g.count > 0 && is_control_plane(&g.roles))
        {
            return Err("spec.machines: no machine has the role control-plane".into());
        }
        self.validate_kubernetes()?;
        spec.system.validate()?;
        self.validate_workloads()
    }

    fn validate_kubernetes(&self) -> Result<(), String> {
        let kubernetes = &self.spec.kubernetes;
        if !is_plain(&kubernetes.channel, "./") || minor(&kubernetes.channel).is_none() {
            return Err(format!(
                "spec.kubernetes.channel '{}': write the minor version, such as 1.32/stable; 'latest' would change over time",
                kubernetes.channel
            ));
        }
        for addon in &kubernetes.addons {
            if !is_plain(addon.name(), ":./,=") {
                return Err(format!("spec.kubernetes.addons: '{}' is not a valid add-on name", addon.name()));
            }
        }
        if let Some(san) = kubernetes.extra_sans.iter().find(|s| !is_plain(s, ".:*_")) {
            return Err(format!("spec.kubernetes.extraSans: '{san}' is not a valid name or address"));
        }
        Ok(())
    }

    fn validate_workloads(&self) -> Result<(), String> {
        let spec = &self.spec;
        spec.gpu.validate(self)?;
        let mut defaults = 0;
        for class in &spec.storage.classes {
            defaults += usize::from(class.default);
            let parts = match &class.share {
                Share::Nfs(nfs) => [&nfs.server, &nfs.path],
                Share::Smb(smb) => [&smb.source, &smb.user],
            };
            if !is_plain(&class.name, ".") || !parts.iter().all(|p| is_plain(p, "./_:@")) {
                return Err(format!(
                    "spec.storage.classes: {}: use names, addresses and paths without spaces",
                    class.name
                ));
            }
        }
        if defaults > 1 {
            return Err("spec.storage.classes: only one class may be the default".into());
        }
        if let Some(platform) = &spec.platform
            && !(is_plain(&platform.image, "./:@_") && is_plain(&platform.namespace, ""))
        {
            return Err("spec.platform: image or namespace is not a valid name".into());
        }
        Ok(())
    }

    /// The first control plane, on which the cluster is created.
    pub fn first(&self) -> Option<&Machine> {
        self.spec.machines.iter().find(|m| m.is(Role::ControlPlane))
    }

    /// The SSH settings of a machine: its own, completed with those of `spec.ssh`.
    pub fn ssh(&self, machine: &Machine) -> Ssh {
        let (all, own) = (&self.spec.ssh, machine.ssh.clone().unwrap_or_default());
        Ssh {
            user: own.user.or_else(|| all.user.clone()),
            port: own.port.or(all.port),
            identity_file: own.identity_file.or_else(|| all.identity_file.clone()),
            known_hosts: own.known_hosts.or_else(|| all.known_hosts.clone()),
            accept_new_host_keys: own.accept_new_host_keys || all.accept_new_host_keys,
            sudo_password: own.sudo_password.or_else(|| all.sudo_password.clone()),
        }
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
        for invalid_ssh in ["user: -oProxyCommand=x", "user: 'a;id'", "identityFile: -x", "knownHosts: '-'"] {
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
