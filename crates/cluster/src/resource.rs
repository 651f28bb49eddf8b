//! What can be wanted of a machine.
//!
//! There are few kinds on purpose: a repository is two files, a mount is a file and a service, a user or a kernel module is a command
//! that knows whether it is needed (see the constructors in [`crate::layers`]).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::kinds;
use crate::probe::Facts;

/// Parts of a machine, in the order in which they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// Names, limits, held updates.
    System,
    /// Programs that people and the layers above need.
    HostTools,
    /// MicroK8s itself.
    Kubernetes,
    /// Driver, container toolkit, containerd's configuration.
    Gpu,
    /// Membership. Has no resources: it is between machines.
    Join,
    /// MicroK8s' add-ons.
    Addons,
    /// Drivers of shared storage, and storage classes.
    Storage,
    /// Who tells the kubelet of GPUs, and how they are shared.
    DevicePlugin,
    /// slipway in the cluster.
    Platform,
    /// Tries. Has no resources.
    Smoke,
}

impl Layer {
    /// As written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::HostTools => "host-tools",
            Self::Kubernetes => "kubernetes",
            Self::Gpu => "gpu",
            Self::Join => "join",
            Self::Addons => "addons",
            Self::Storage => "storage",
            Self::DevicePlugin => "device-plugin",
            Self::Platform => "platform",
            Self::Smoke => "smoke",
        }
    }
}

/// One thing that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    /// Unique on its machine: `kubernetes/snap`. Lower-case letters, digits and `/.-`.
    pub id: String,
    /// Which part of the machine it belongs to.
    pub layer: Layer,
    /// What it is.
    pub what: What,
    /// Run in a shell after a change. Until it has succeeded the resource counts as changed, even after a crash in between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<String>,
    /// Resources without which this one is not tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// Seconds after which a change is given up.
    pub timeout: u64,
    /// What a person should know before: `restarts containerd`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub effects: Vec<String>,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum What {
    /// A package of apt.
    Package {
        /// Its name.
        name: String,
        /// This version and no other; any without.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
        /// Upgrades leave it alone.
        #[serde(default)]
        hold: bool,
    },
    /// A snap.
    Snap {
        /// Its name.
        name: String,
        /// `1.32/stable`.
        channel: String,
        /// Without confinement.
        classic: bool,
        /// Refreshes leave it alone.
        hold: bool,
    },
    /// A file with this content and no other.
    File {
        /// Where.
        path: String,
        /// All of it.
        content: Text,
        /// Octal: `0644`.
        mode: String,
    },
    /// A part of a file that others write too.
    Edit {
        /// Where.
        path: String,
        /// Which parts, one after the other.
        edits: Vec<Edit>,
    },
    /// A unit of systemd that is enabled and runs.
    Service {
        /// With or without `.service`.
        name: String,
    },
    /// Anything else: a question in the shell, and a command for when its answer is no.
    Command {
        /// Succeeds when nothing is to be done. It must change nothing.
        check: String,
        /// Makes it so.
        run: String,
        /// Takes it back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        undo: Option<String>,
        /// For people: what is missing when the check fails.
        missing: String,
    },
    /// The machine is started anew when this succeeds.
    Reboot {
        /// Succeeds when a new start is needed.
        when: String,
        /// For people.
        reason: String,
    },
}

/// A text, of which it may be that nobody should see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Text {
    /// It.
    pub text: String,
    /// Not shown in plans, logs and records.
    #[serde(default)]
    pub secret: bool,
}

/// Part of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Edit {
    /// These lines, between two marks.
    Block {
        /// Names the marks.
        name: String,
        /// What stands between them.
        text: String,
    },
    /// This line, in place of lines that begin so, or at the end.
    Line {
        /// The line.
        line: String,
        /// What lines that it replaces begin with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        begins: Option<String>,
    },
    /// A value in a TOML file; comments and order stay.
    Toml {
        /// Names of tables and the key.
        path: Vec<String>,
        /// The value, as TOML writes it.
        value: String,
    },
    /// A value in a file of one document of YAML; comments and order stay.
    Yaml {
        /// Names of mappings and the key.
        path: Vec<String>,
        /// The value.
        value: serde_json::Value,
    },
}

/// One difference between what is and what is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `+` comes, `~` changes, `-` goes.
    pub sign: char,
    /// In words; several lines for a diff of texts.
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
    /// A resource of a layer; it may take ten minutes.
    pub fn new(layer: Layer, name: &str, what: What) -> Self {
        Self {
            id: format!("{}/{name}", layer.name()),
            layer,
            what,
            then: None,
            needs: Vec::new(),
            timeout: 600,
            effects: Vec::new(),
        }
    }

    /// With a command after changes.
    #[must_use]
    pub fn then(mut self, command: impl Into<String>) -> Self {
        self.then = Some(command.into());
        self
    }

    /// With resources that it needs, by id.
    #[must_use]
    pub fn needs(mut self, ids: &[&str]) -> Self {
        self.needs = ids.iter().map(|i| (*i).to_owned()).collect();
        self
    }

    /// With what a person should know.
    #[must_use]
    pub fn effect(mut self, text: impl Into<String>) -> Self {
        self.effects.push(text.into());
        self
    }

    /// With another limit of time, in seconds.
    #[must_use]
    pub fn within(mut self, seconds: u64) -> Self {
        self.timeout = seconds;
        self
    }

    /// What differs; nothing when the machine is as wanted. A pure function of what a probe found.
    pub fn check(&self, facts: &Facts) -> Vec<Change> {
        let mut changes = match &self.what {
            What::Package { name, version, hold } => kinds::apt::check(facts, name, version.as_deref(), *hold),
            What::Snap { name, channel, hold, .. } => kinds::snap::check(facts, name, channel, *hold),
            What::File { path, content, mode } => kinds::file::check(facts, &self.id, path, content, mode),
            What::Edit { path, edits } => kinds::edit::check(facts, &self.id, path, edits),
            What::Service { name } => kinds::service::check(facts, name),
            What::Command { missing, .. } => {
                if facts.succeeded(&self.id) {
                    Vec::new()
                } else {
                    vec![Change::alter(missing.clone())]
                }
            }
            What::Reboot { reason, .. } => {
                if facts.succeeded(&self.id) {
                    vec![Change::alter(format!("start anew: {reason}"))]
                } else {
                    Vec::new()
                }
            }
        };
        if let (true, Some(then), true) = (changes.is_empty(), &self.then, facts.pending(&self.id)) {
            changes.push(Change::alter(format!("what follows a change was not done yet: {then}")));
        }
        changes
    }
}

/// All that is wanted of one machine, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    /// In order.
    pub resources: Vec<Resource>,
}

impl Wanted {
    /// What differs, by resource, in order.
    pub fn check(&self, facts: &Facts) -> Vec<(&Resource, Vec<Change>)> {
        self.resources.iter().map(|r| (r, r.check(facts))).filter(|(_, c)| !c.is_empty()).collect()
    }

    /// Only these layers; all when none is named.
    #[must_use]
    pub fn only(mut self, layers: &[Layer]) -> Self {
        self.resources.retain(|r| layers.is_empty() || layers.contains(&r.layer));
        self
    }

    /// Whether every id is of the right form and there once.
    ///
    /// # Errors
    /// Which is wrong.
    pub fn validate(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for resource in &self.resources {
            let id = &resource.id;
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "/.-".contains(c);
            if id.is_empty() || !id.chars().all(fits) {
                return Err(format!("'{id}' is no id: lower-case letters, digits and /.-"));
            }
            if !seen.insert(id) {
                return Err(format!("'{id}' is there twice"));
            }
        }
        Ok(())
    }
}
