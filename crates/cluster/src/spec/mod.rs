//! `cluster.yaml`: what is wanted, in one file.

pub mod cloud;
pub mod edit;
pub mod secret;
pub mod system;
pub mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::cloud::{Group, Provider};
use self::secret::{SecretSource, TrustedCommands};
use self::system::System;
use self::workloads::{Addon, DevicePlugin, Platform, Share, Sharing, Smoke, Storage};
use crate::ClusterError;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// `slipway.dev/v1`.
    pub api_version: String,
    /// `Cluster`.
    pub kind: String,
    /// Its name.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: Spec,
    /// The commands of this file that may run here. A file that was only read may run none.
    #[serde(skip)]
    pub trusted: TrustedCommands,
}

/// The name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Lower-case letters, digits and dashes.
    pub name: String,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// How machines are reached, unless they say otherwise.
    #[serde(default)]
    pub ssh: Ssh,
    /// Who makes machines, by names of your choice.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub providers: BTreeMap<String, Provider>,
    /// Machines that a provider makes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// Machines that are there. The first with the role `control-plane`, here or in a group, founds the cluster.
    #[serde(default)]
    pub machines: Vec<Machine>,
    /// The machine below Kubernetes: names, limits, updates, packages, and what else you want of it.
    #[serde(default)]
    pub system: System,
    /// Kubernetes itself.
    pub kubernetes: Kubernetes,
    /// GPUs of machines with the role `gpu`.
    #[serde(default)]
    pub gpu: Gpu,
    /// Shared storage.
    #[serde(default)]
    pub storage: Storage,
    /// slipway in the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// What is tried after an apply.
    #[serde(default)]
    pub smoke: Smoke,
}

/// How a machine is reached. What OpenSSH's own configuration says of a host holds too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ssh {
    /// The user; OpenSSH's choice without.
    pub user: Option<String>,
    /// The port; 22 without.
    pub port: Option<u16>,
    /// A private key.
    pub identity_file: Option<String>,
    /// The file of known host keys.
    pub known_hosts: Option<String>,
    /// Hosts that are not known yet are taken as they are, once; a changed key is always refused.
    pub accept_new_host_keys: bool,
    /// The password for sudo, where sudo asks. Users other than root become root by sudo.
    pub sudo_password: Option<SecretSource>,
}

/// What a machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Holds the cluster's state.
    ControlPlane,
    /// Runs pods only.
    Worker,
    /// Has GPUs.
    Gpu,
}

/// A machine that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Machine {
    /// Its name in the cluster.
    pub name: String,
    /// Address or name by which it is reached.
    pub address: String,
    /// Address in the cluster's own network, where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_address: Option<String>,
    /// What it is for.
    pub roles: BTreeSet<Role>,
    /// Where it is reached otherwise than the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<Ssh>,
    /// Set when a provider made it.
    #[serde(skip)]
    pub made: Option<Made>,
}

/// A machine that a provider made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The provider's name for it.
    pub id: String,
    /// It was there before us, and stays after us.
    pub adopted: bool,
}

impl Machine {
    /// Whether it has a role.
    pub fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// The address at which other machines reach it.
    pub fn internal(&self) -> &str {
        self.internal_address.as_deref().unwrap_or(&self.address)
    }
}

/// Which Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// Canonical's MicroK8s.
    Microk8s,
}

/// Kubernetes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kubernetes {
    /// Which.
    pub distribution: Distribution,
    /// The snap's channel, `1.32/stable`; always a certain minor version.
    pub channel: String,
    /// Refreshes are held: a cluster is upgraded when somebody says so.
    #[serde(default = "yes")]
    pub hold: bool,
    /// More names and addresses in the API server's certificate.
    #[serde(default)]
    pub extra_sans: Vec<String>,
    /// MicroK8s' add-ons.
    #[serde(default)]
    pub addons: Vec<Addon>,
    /// Seconds for which a token to join is good.
    #[serde(default = "token_seconds")]
    pub token_seconds: u32,
}

fn yes() -> bool {
    true
}

fn token_seconds() -> u32 {
    600
}

/// GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Gpu {
    /// The driver's branch (`570`), `recommended`, or `none` where the machine brings one.
    pub driver: String,
    /// Containerd reads CDI specifications.
    pub cdi: bool,
    /// Who tells the kubelet of GPUs.
    pub device_plugin: DevicePlugin,
    /// How a GPU is shared; a pod has it for itself without. `slipway gpu share plan` helps to choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sharing: Option<Sharing>,
}

impl Default for Gpu {
    fn default() -> Self {
        Self { driver: "recommended".into(), cdi: true, device_plugin: DevicePlugin::default(), sharing: None }
    }
}

/// Names of hosts, clusters and channels end up in commands and files.
fn plain(text: &str, more: &str) -> bool {
    !text.is_empty()
        && text.len() < 254
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || more.contains(c))
        && !text.starts_with('-')
}

/// Whether a text is a name or an address of a machine, and cannot be taken for an option of `ssh`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_address(address: &str) -> Result<(), String> {
    if plain(address, ".:_") { Ok(()) } else { Err(format!("{address:?} is no address")) }
}

/// Whether what a file says of SSH can be said to `ssh`: nothing is an option, and a user has nothing in it that means something to a
/// shell, since OpenSSH's own configuration may put it into a command (`%r` in a `ProxyCommand`).
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_ssh(ssh: &Ssh) -> Result<(), String> {
    if let Some(user) = ssh.user.as_ref().filter(|user| !plain(user, "._@+")) {
        return Err(format!("ssh.user {user:?}: letters, digits and ._@+-, not beginning with a dash"));
    }
    for (name, path) in [("identityFile", &ssh.identity_file), ("knownHosts", &ssh.known_hosts)] {
        if let Some(path) = path.as_ref().filter(|p| p.is_empty() || p.starts_with('-') || p.contains(char::is_control))
        {
            return Err(format!("ssh.{name} {path:?}: a path that does not begin with a dash"));
        }
    }
    Ok(())
}

/// More machines of one kind are a slip of the pen.
const MOST_OF_A_GROUP: u32 = 1000;

/// The minor version of a channel or a version: `1.32/stable`, `v1.32.1`.
pub fn minor(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.trim_start_matches('v').split_once('.')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..digits].parse().ok()?))
}

impl Cluster {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ClusterError::Spec`] with the place of what is wrong.
    pub fn read(path: &Path) -> Result<Self, ClusterError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(ClusterError::io(file.clone()))?;
        Self::parse(&text).map_err(|reason| ClusterError::Spec { file, reason })
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let cluster: Self = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        cluster.validate()?;
        Ok(cluster)
    }

    fn validate(&self) -> Result<(), String> {
        if self.api_version != "slipway.dev/v1" || self.kind != "Cluster" {
            return Err(format!(
                "'{}' '{}' is not known; known is slipway.dev/v1 Cluster",
                self.api_version, self.kind
            ));
        }
        let name = |what: &str, text: &str| {
            let lower = text == text.to_lowercase();
            if plain(text, "") && lower {
                Ok(())
            } else {
                Err(format!("{what} '{text}': lower-case letters, digits and dashes"))
            }
        };
        name("metadata.name", &self.metadata.name)?;
        let spec = &self.spec;
        let ssh = |place: &str, ssh: Option<&Ssh>| {
            ssh.map_or(Ok(()), check_ssh).map_err(|reason| format!("{place}: {reason}"))
        };
        ssh("spec", Some(&spec.ssh))?;
        let mut seen = BTreeSet::new();
        let either = |place: &str, name: &str, roles: &BTreeSet<Role>| {
            if roles.contains(&Role::ControlPlane) == roles.contains(&Role::Worker) {
                return Err(format!("{place}: {name}: it is either control-plane or worker"));
            }
            Ok(())
        };
        for machine in &spec.machines {
            name("spec.machines: name", &machine.name)?;
            if !seen.insert(machine.name.clone()) {
                return Err(format!("spec.machines: '{}' is there twice", machine.name));
            }
            for address in [&machine.address].into_iter().chain(&machine.internal_address) {
                check_address(address).map_err(|e| format!("spec.machines: {}: {e}", machine.name))?;
            }
            ssh(&format!("spec.machines: {}", machine.name), machine.ssh.as_ref())?;
            either("spec.machines", &machine.name, &machine.roles)?;
        }
        for group in &spec.groups {
            name("spec.groups: name", &group.name)?;
            ssh(&format!("spec.groups: {}", group.name), group.ssh.as_ref())?;
            either("spec.groups", &group.name, &group.roles)?;
            if !spec.providers.contains_key(&group.provider) {
                return Err(format!("spec.groups: {}: there is no '{}' in spec.providers", group.name, group.provider));
            }
            if group.count > MOST_OF_A_GROUP {
                return Err(format!("spec.groups: {}: no more than {MOST_OF_A_GROUP}", group.name));
            }
            if let Some(twice) = group.names().find(|n| !seen.insert(n.clone())) {
                return Err(format!("spec.groups: '{twice}' is there twice"));
            }
        }
        let control = |roles: &BTreeSet<Role>| roles.contains(&Role::ControlPlane);
        if !spec.machines.iter().any(|m| control(&m.roles))
            && !spec.groups.iter().any(|g| g.count > 0 && control(&g.roles))
        {
            return Err("spec.machines: none has the role control-plane".into());
        }
        self.validate_kubernetes()?;
        spec.system.validate()?;
        self.validate_workloads()
    }

    fn validate_kubernetes(&self) -> Result<(), String> {
        let kubernetes = &self.spec.kubernetes;
        if !plain(&kubernetes.channel, "./") || minor(&kubernetes.channel).is_none() {
            return Err(format!(
                "spec.kubernetes.channel '{}': write the minor version, such as 1.32/stable; 'latest' would move",
                kubernetes.channel
            ));
        }
        for addon in &kubernetes.addons {
            if !plain(addon.name(), ":./,=") {
                return Err(format!("spec.kubernetes.addons: '{}' is no add-on", addon.name()));
            }
        }
        if let Some(san) = kubernetes.extra_sans.iter().find(|s| !plain(s, ".:*_")) {
            return Err(format!("spec.kubernetes.extraSans: '{san}' is no name or address"));
        }
        Ok(())
    }

    fn validate_workloads(&self) -> Result<(), String> {
        let spec = &self.spec;
        let driver = &spec.gpu.driver;
        if !matches!(driver.as_str(), "recommended" | "none") && driver.parse::<u32>().is_err() {
            return Err(format!("spec.gpu.driver '{driver}': a branch such as 570, recommended, or none"));
        }
        match &spec.gpu.sharing {
            Some(Sharing::TimeSlices(n) | Sharing::Mps(n)) if !(2..=48).contains(n) => {
                return Err(format!("spec.gpu.sharing: {n}: a GPU is shared by 2 to 48"));
            }
            Some(Sharing::Mig(devices)) => {
                if devices.is_empty() || !devices.iter().all(|(name, n)| plain(name, ".+") && (1..=7).contains(n)) {
                    return Err("spec.gpu.sharing.mig: names of profiles with 1 to 7 of each".into());
                }
                if spec.gpu.device_plugin == DevicePlugin::Nvidia {
                    return Err(
                        "spec.gpu.sharing.mig: GPUs are divided by slipway's agent; devicePlugin: slipway".into()
                    );
                }
            }
            _ => {}
        }
        let mut defaults = 0;
        for class in &spec.storage.classes {
            defaults += usize::from(class.default);
            let parts = match &class.share {
                Share::Nfs(nfs) => [&nfs.server, &nfs.path],
                Share::Smb(smb) => [&smb.source, &smb.user],
            };
            if !plain(&class.name, ".") || !parts.iter().all(|p| plain(p, "./_:@")) {
                return Err(format!("spec.storage.classes: {}: names, addresses and paths without spaces", class.name));
            }
        }
        if defaults > 1 {
            return Err("spec.storage.classes: more than one is the default".into());
        }
        if let Some(platform) = &spec.platform
            && !(plain(&platform.image, "./:@_") && plain(&platform.namespace, ""))
        {
            return Err("spec.platform: image or namespace are no names".into());
        }
        Ok(())
    }

    /// The machine that founds the cluster.
    pub fn first(&self) -> Option<&Machine> {
        self.spec.machines.iter().find(|m| m.is(Role::ControlPlane))
    }

    /// How a machine is reached: what it says, then what holds for all.
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

    /// Every place of the file that takes a secret from somewhere, and from where.
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

    /// The schema that editors check the file with.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

/// A path in which `~` is the home folder.
pub(crate) fn home(path: &str) -> PathBuf {
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
    fn a_file_is_read() {
        let cluster = Cluster::parse(FILE).unwrap();
        assert_eq!(cluster.first().unwrap().name, "cp1");
        assert!(cluster.spec.kubernetes.hold && cluster.spec.system.hosts);
    }

    #[test]
    fn what_is_wrong_is_told() {
        let wrong = |from: &str, to: &str| Cluster::parse(&FILE.replace(from, to)).unwrap_err();
        assert!(wrong("1.32/stable", "latest/stable").contains("write the minor version"));
        assert!(wrong("name: cp2", "name: cp1").contains("twice"));
        assert!(wrong("[worker, gpu]", "[gpu]").contains("either control-plane or worker"));
        assert!(wrong("10.0.0.3", "'-oProxyCommand=x'").contains("no address"));
        for wrong_ssh in ["user: -oProxyCommand=x", "user: 'a;id'", "identityFile: -x", "knownHosts: '-'"] {
            for place in ["spec:", "name: cp2,", "name: cp1,"] {
                let to = if place == "spec:" {
                    format!("spec:\n  ssh: {{{wrong_ssh}}}")
                } else {
                    format!("{place} ssh: {{{wrong_ssh}}},")
                };
                assert!(wrong(place, &to).contains("dash"), "{to}");
            }
        }
        assert!(Cluster::parse(&FILE.replace("spec:", "spec:\n  ssh: {user: 'First.Last@example.com'}")).is_ok());
        assert!(wrong("[dns,", "['dns; rm -rf /',").contains("no add-on"));
        assert!(wrong("channel:", "chanel:").contains("chanel"));
        let group = "groups: [{name: gpu, provider: do, size: s, image: i, count: 2, roles: [worker]}]\n  machines:";
        assert!(wrong("machines:", group).contains("there is no 'do' in spec.providers"));
        assert!(wrong("kubernetes:", "gpu: {sharing: {timeSlices: 1}}\n  kubernetes:").contains("2 to 48"));
    }

    #[test]
    fn groups_and_workloads_are_read() {
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
    fn the_schema_names_what_the_file_has() {
        let schema = Cluster::schema().to_string();
        assert!(["controlPlane", "extraSans", "sudoPassword"].iter().filter(|w| schema.contains(**w)).count() == 2);
        assert!(schema.contains("control-plane"));
    }
}
