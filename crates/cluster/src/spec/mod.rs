//! `cluster.yaml`: what is wanted, in one file.

pub mod cloud;
pub mod edit;
pub mod system;
pub mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::cloud::{Group, Provider};
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

/// Where a secret comes from. It goes into no state and no log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum SecretSource {
    /// An environment variable.
    Env(String),
    /// A file, without the line's end.
    File(String),
    /// What a command prints, without the line's end.
    Command(String),
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
                if !plain(address, ".:_") {
                    return Err(format!("spec.machines: {}: '{address}' is no address", machine.name));
                }
            }
            either("spec.machines", &machine.name, &machine.roles)?;
        }
        for group in &spec.groups {
            name("spec.groups: name", &group.name)?;
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

    /// The schema that editors check the file with.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

impl SecretSource {
    /// The secret itself.
    ///
    /// # Errors
    /// [`ClusterError::Secret`], without the secret.
    pub fn read(&self) -> Result<String, ClusterError> {
        let wrong = |reason: String| ClusterError::Secret { name: format!("{self:?}"), reason };
        let text = match self {
            Self::Env(name) => std::env::var(name).map_err(|e| wrong(e.to_string()))?,
            Self::File(path) => std::fs::read_to_string(home(path)).map_err(|e| wrong(e.to_string()))?,
            Self::Command(command) => {
                let done = std::process::Command::new("sh")
                    .args(["-c", command])
                    .output()
                    .map_err(|e| wrong(e.to_string()))?;
                if !done.status.success() {
                    return Err(wrong(format!("{}", done.status)));
                }
                String::from_utf8_lossy(&done.stdout).into_owned()
            }
        };
        Ok(text.trim_end_matches(['\n', '\r']).to_owned())
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
