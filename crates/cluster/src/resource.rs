//! Resources: the units of a machine's desired state.
//!
//! There are few kinds on purpose: a package repository is two files, a mount is a file and a service, a user or a kernel module is a
//! command with a check (see the constructors in [`crate::layers`]). [`crate::kinds`] compares a resource with a machine.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Groups of resources and steps, in the order in which they are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// Host names, kernel settings, held updates and custom resources.
    System,
    /// Packages on every machine.
    HostTools,
    /// The distribution of Kubernetes itself.
    Kubernetes,
    /// NVIDIA's driver and containerd's CDI support.
    Gpu,
    /// Joining the cluster. It has steps instead of resources, because it involves two machines.
    Join,
    /// Labels and taints of nodes.
    Nodes,
    /// MicroK8s' add-ons.
    Addons,
    /// Drivers of shared storage, and storage classes.
    Storage,
    /// The device plugin, which advertises GPUs to the kubelet, and GPU sharing.
    DevicePlugin,
    /// slipway in the cluster.
    Platform,
    /// Smoke tests. It has steps instead of resources.
    Smoke,
}

impl Layer {
    /// All layers, in the order in which they are applied.
    pub const ALL: [Self; 11] = [
        Self::System,
        Self::HostTools,
        Self::Kubernetes,
        Self::Gpu,
        Self::Join,
        Self::Nodes,
        Self::Addons,
        Self::Storage,
        Self::DevicePlugin,
        Self::Platform,
        Self::Smoke,
    ];

    /// The name on the command line and in resource ids, such as `host-tools`.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::HostTools => "host-tools",
            Self::Kubernetes => "kubernetes",
            Self::Gpu => "gpu",
            Self::Join => "join",
            Self::Nodes => "nodes",
            Self::Addons => "addons",
            Self::Storage => "storage",
            Self::DevicePlugin => "device-plugin",
            Self::Platform => "platform",
            Self::Smoke => "smoke",
        }
    }

    /// What the layer consists of, in a few words for the help of the command line.
    pub fn summary(self) -> &'static str {
        match self {
            Self::System => "Host names, limits, held updates",
            Self::HostTools => "Tools on every machine",
            Self::Kubernetes => "Kubernetes",
            Self::Gpu => "Driver and containerd",
            Self::Join => "Cluster membership",
            Self::Nodes => "Labels and taints",
            Self::Addons => "MicroK8s add-ons",
            Self::Storage => "Storage drivers and storage classes",
            Self::DevicePlugin => "The device plugin and GPU sharing",
            Self::Platform => "slipway in the cluster",
            Self::Smoke => "Smoke tests",
        }
    }
}

impl std::str::FromStr for Layer {
    type Err = String;

    /// Parses a layer's [`name`](Layer::name).
    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|l| l.name() == name).ok_or_else(|| format!("there is no layer '{name}'"))
    }
}

/// A package manager, which tells families of operating systems apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackageManager {
    /// apt of Debian and Ubuntu.
    Apt,
    /// dnf of RHEL and its relatives.
    Dnf,
}

impl PackageManager {
    /// The name of its program.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Apt => "apt",
            Self::Dnf => "dnf",
        }
    }
}

/// One unit of desired state, such as a package or a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    /// Unique on its machine, such as `kubernetes/microk8s`. Lower-case letters, digits and `/.-`.
    pub id: String,
    /// The layer that it belongs to.
    pub layer: Layer,
    /// Its kind and desired state.
    pub what: ResourceKind,
    /// Follow-up shell command, run after a change. The resource differs until the command has succeeded, even after a crash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<String>,
    /// Ids of resources that must not have failed before this one is attempted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// The resource belongs only to machines with this package manager; to all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_with: Option<PackageManager>,
    /// Timeout of each command of a change, in seconds.
    pub timeout: u64,
    /// Side effects of a change that the user should know before, such as `restarts containerd`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub effects: Vec<String>,
}

/// The kind of a resource, and its desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ResourceKind {
    /// A package of apt or dnf.
    Package {
        /// Name of the package.
        name: String,
        /// The exact version, with dnf `VERSION-RELEASE`; any version if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
        /// Whether the package is held, so that upgrades skip it.
        #[serde(default)]
        hold: bool,
    },
    /// A snap.
    Snap {
        /// Name of the snap.
        name: String,
        /// Channel to install from, such as `1.32/stable`.
        channel: String,
        /// Whether the snap has classic confinement, that is, no confinement.
        classic: bool,
        /// Whether refreshes of the snap are held.
        hold: bool,
    },
    /// A file with exactly this content.
    File {
        /// Absolute path.
        path: String,
        /// The whole content.
        content: Text,
        /// Octal permissions, such as `0644`.
        mode: String,
    },
    /// Parts of a file that other programs or people write too.
    Edit {
        /// Absolute path.
        path: String,
        /// The parts, applied one after the other.
        edits: Vec<Edit>,
    },
    /// A systemd unit that is enabled and active.
    Service {
        /// Name of the unit; `.service` may be omitted.
        name: String,
    },
    /// Anything else: a shell command that checks the state, and one that changes it.
    Command {
        /// Exits with 0 if nothing needs to be done. It must not change anything.
        check: String,
        /// Brings the machine into the desired state.
        run: String,
        /// Undoes `run`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        undo: Option<String>,
        /// Text of the change that a plan shows if the check fails.
        missing: String,
    },
    /// A reboot of the machine under a condition.
    Reboot {
        /// Shell command that exits with 0 if a reboot is needed.
        when: String,
        /// Why the reboot is needed, for plans and logs.
        reason: String,
    },
}

/// The content of a file, which may be secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Text {
    /// The content.
    pub text: String,
    /// The content is not shown in plans and logs.
    #[serde(default)]
    pub secret: bool,
}

/// An edit of a part of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Edit {
    /// Lines between the marks `# BEGIN name` and `# END name`. An empty text removes the block with its marks.
    Block {
        /// Name in the marks.
        name: String,
        /// The lines between the marks.
        text: String,
    },
    /// A line. It replaces lines with the prefix `begins`, or is appended at the end.
    Line {
        /// The line, without a line break.
        line: String,
        /// Prefix of the lines that it replaces.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        begins: Option<String>,
    },
    /// A value in a TOML file. Comments and order are kept.
    Toml {
        /// Names of the tables, and the key.
        path: Vec<String>,
        /// The value in TOML syntax, such as `true` or `"text"`.
        value: String,
    },
    /// A value in a YAML file with a single document. Comments and order are kept.
    Yaml {
        /// Names of the mappings, and the key.
        path: Vec<String>,
        /// The value.
        value: serde_json::Value,
    },
}

/// One difference between the actual and the desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `+` is added, `~` is changed, `-` is removed.
    pub sign: char,
    /// Description of the difference; has several lines if it contains a diff.
    pub text: String,
}

impl Change {
    pub(crate) fn add(text: impl Into<String>) -> Self {
        Self { sign: '+', text: text.into() }
    }

    pub(crate) fn remove(text: impl Into<String>) -> Self {
        Self { sign: '-', text: text.into() }
    }

    pub(crate) fn alter(text: impl Into<String>) -> Self {
        Self { sign: '~', text: text.into() }
    }
}

impl Resource {
    /// A resource of a layer, with a timeout of ten minutes. Its id is the layer's name, a slash and `name`.
    pub fn new(layer: Layer, name: &str, what: ResourceKind) -> Self {
        Self {
            id: format!("{}/{name}", layer.name()),
            layer,
            what,
            then: None,
            needs: Vec::new(),
            only_with: None,
            timeout: 600,
            effects: Vec::new(),
        }
    }

    /// Sets the follow-up command that is run after a change.
    #[must_use]
    pub fn then(mut self, command: impl Into<String>) -> Self {
        self.then = Some(command.into());
        self
    }

    /// Sets the resources that this one needs, by id. It replaces those set before.
    #[must_use]
    pub fn needs(mut self, ids: &[&str]) -> Self {
        self.needs = ids.iter().map(|i| (*i).to_owned()).collect();
        self
    }

    /// Adds a side effect that a plan shows.
    #[must_use]
    pub fn effect(mut self, text: impl Into<String>) -> Self {
        self.effects.push(text.into());
        self
    }

    /// Limits the resource to machines with this package manager.
    #[must_use]
    pub fn only_with(mut self, manager: PackageManager) -> Self {
        self.only_with = Some(manager);
        self
    }

    /// Sets the timeout, in seconds.
    #[must_use]
    pub fn with_timeout(mut self, seconds: u64) -> Self {
        self.timeout = seconds;
        self
    }
}

/// The desired state of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DesiredState {
    /// The resources, in the order in which they are applied.
    pub resources: Vec<Resource>,
}

impl DesiredState {
    /// Keeps only the resources of these layers; keeps all if `layers` is empty.
    #[must_use]
    pub fn only(mut self, layers: &[Layer]) -> Self {
        self.resources.retain(|r| layers.is_empty() || layers.contains(&r.layer));
        self
    }

    /// Checks that every resource id is valid and unique.
    ///
    /// # Errors
    /// The first id that is not.
    pub fn validate(&self) -> Result<(), String> {
        let mut ids = BTreeSet::new();
        for resource in &self.resources {
            let id = &resource.id;
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "/.-".contains(c);
            if id.is_empty() || !id.chars().all(allowed) {
                return Err(format!("invalid resource id '{id}': use lower-case letters, digits and /.-"));
            }
            if !ids.insert(id) {
                return Err(format!("duplicate resource id '{id}'"));
            }
        }
        Ok(())
    }
}
