//! The machine below Kubernetes, with what people want of it themselves.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::secret::SecretSource;
use super::{Role, plain};
use crate::resource::Edit;

/// The machine below Kubernetes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct System {
    /// Every machine knows the others by name (`/etc/hosts`).
    pub hosts: bool,
    /// Unattended upgrades are off: nothing changes below a running cluster unless it is asked for.
    pub hold_updates: bool,
    /// Sources of packages besides the distribution's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<Repository>,
    /// Packages on every machine; `jq=1.6-2.1` is this version, held.
    pub packages: Vec<String>,
    /// Settings of the kernel.
    pub sysctl: BTreeMap<String, String>,
    /// Modules of the kernel, now and after each start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<String>,
    /// People.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<User>,
    /// Files, whole or in part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<OwnFile>,
    /// File systems, now and after each start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Seconds after which a machine that starts anew counts as lost. Large servers check their memory for many minutes.
    pub restart_seconds: u64,
}

impl Default for System {
    fn default() -> Self {
        let sysctl = [("fs.inotify.max_user_instances", "1024"), ("fs.inotify.max_user_watches", "1048576")];
        Self {
            hosts: true,
            hold_updates: true,
            repositories: Vec::new(),
            packages: ["ca-certificates", "curl", "jq"].map(String::from).into(),
            sysctl: sysctl.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            modules: Vec::new(),
            users: Vec::new(),
            files: Vec::new(),
            mounts: Vec::new(),
            restart_seconds: 900,
        }
    }
}

/// A source of packages, in apt's form deb822, that only its own key can sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Repository {
    /// Names its files.
    pub name: String,
    /// `https://download.example.org/linux/ubuntu`.
    pub uri: String,
    /// `noble`; `./` where there are none.
    pub suites: Vec<String>,
    /// `main`.
    #[serde(default)]
    pub components: Vec<String>,
    /// Where its key comes from, armored.
    pub key: SecretSource,
}

/// Somebody who works on the machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct User {
    /// The name to log in with.
    pub name: String,
    /// Groups to be in as well: `sudo`, `microk8s`. One that is missing is made.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Public keys to log in with.
    #[serde(default)]
    pub authorized_keys: Vec<String>,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// `/dev/disk/by-label/models`, `files.example.org:/export`.
    pub what: String,
    /// `/data`.
    #[serde(rename = "where")]
    pub path: String,
    /// `ext4`, `nfs4`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `noatime`.
    #[serde(default)]
    pub options: Vec<String>,
    /// Only on machines with one of these roles; on all without.
    #[serde(default)]
    pub roles: BTreeSet<Role>,
}

/// A file: all of it (`content`, `template` or `secret`), or parts (`lines`, `block`, `toml`, `yaml`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OwnFile {
    /// Where.
    pub path: String,
    /// All of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// All of it, with `{{machine}}`, `{{address}}`, `{{internalAddress}}` and `{{cluster}}` replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// All of it, and nobody sees it; for root only unless `mode` says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretSource>,
    /// Lines that are there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<Line>,
    /// Lines between two marks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<String>,
    /// Values by key, as TOML writes keys: `plugins."io.containerd.grpc.v1.cri".enable_cdi`. Comments and order stay.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub toml: BTreeMap<String, Value>,
    /// Values by key, written as for `toml`. Comments and order stay.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub yaml: BTreeMap<String, Value>,
    /// Octal: `0644`. A file that is edited keeps its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// A command after a change: `systemctl restart ssh`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<String>,
    /// Only on machines with one of these roles; on all without.
    #[serde(default)]
    pub roles: BTreeSet<Role>,
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Line {
    /// The line.
    pub line: String,
    /// What lines that it replaces begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begins: Option<String>,
}

/// A path from the root, without ways back and without what a line of a unit or a shell would take for something else.
fn is_path(text: &str) -> bool {
    text.len() > 1
        && text.starts_with('/')
        && text.split('/').all(|part| part != "..")
        && text.chars().all(|c| !c.is_control() && !c.is_whitespace() && !"\"'\\".contains(c))
}

impl OwnFile {
    /// What is wanted of parts of it.
    ///
    /// # Errors
    /// A key or a value that cannot be written.
    pub(crate) fn parts(&self) -> Result<Vec<Edit>, String> {
        // Names of tables and a key: `a."b.c".d`.
        let keys = |path: &str| {
            let keys = toml_edit::Key::parse(path);
            let keys = keys.map_err(|_| format!("{}: '{path}' is no key; names with dots in quotes", self.path))?;
            Ok::<Vec<String>, String>(keys.iter().map(|k| k.get().to_owned()).collect())
        };
        let line = |l: &Line| Edit::Line { line: l.line.clone(), begins: l.begins.clone() };
        let mut out: Vec<Edit> = self.lines.iter().map(line).collect();
        out.extend(
            self.block.iter().map(|text| Edit::Block { name: "slipway system.files".into(), text: text.clone() }),
        );
        for (key, value) in &self.toml {
            let text = value.serialize(toml_edit::ser::ValueSerializer::new());
            let text = text.map_err(|e| format!("{}: {key}: {e}", self.path))?.to_string();
            out.push(Edit::Toml { path: keys(key)?, value: text });
        }
        for (key, value) in &self.yaml {
            out.push(Edit::Yaml { path: keys(key)?, value: value.clone() });
        }
        Ok(out)
    }

    fn validate(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("spec.system.files: {}: {what}", self.path));
        if !is_path(&self.path) {
            return wrong("it is no path");
        }
        let whole =
            [self.content.is_some(), self.template.is_some(), self.secret.is_some()].iter().filter(|w| **w).count();
        let parts = !self.parts().map_err(|why| format!("spec.system.files: {why}"))?.is_empty();
        if whole + usize::from(parts) != 1 {
            return wrong("one of content, template and secret, or parts of it: lines, block, toml, yaml");
        }
        if let Some(mode) = &self.mode {
            if parts {
                return wrong("a file that is edited keeps its mode");
            }
            if !(3..=4).contains(&mode.len()) || u32::from_str_radix(mode, 8).is_err() {
                return wrong(&format!("'{mode}' is no mode such as 0644"));
            }
        }
        if self.lines.iter().any(|l| l.line.contains('\n')) {
            return wrong("a line is one line");
        }
        Ok(())
    }
}

/// Whether all of these are plain, but for some characters more.
fn words<'a>(place: &str, all: impl IntoIterator<Item = &'a String>, more: &str, what: &str) -> Result<(), String> {
    let wrong = all.into_iter().find(|word| !plain(word, more));
    wrong.map_or(Ok(()), |word| Err(format!("spec.system.{place}: '{word}' is no {what}")))
}

impl System {
    pub(super) fn validate(&self) -> Result<(), String> {
        words("packages", &self.packages, ".+:=~_", "package")?;
        words("modules", &self.modules, "_", "module")?;
        for (key, value) in &self.sysctl {
            if !plain(key, "._/") || !value.chars().all(|c| c.is_ascii_alphanumeric() || " -._".contains(c)) {
                return Err(format!("spec.system.sysctl: '{key} = {value}' is no setting"));
            }
        }
        for repository in &self.repositories {
            words("repositories", [&repository.name], "_", "name")?;
            let place = format!("repositories: {}", repository.name);
            let all = [&repository.uri].into_iter().chain(&repository.suites).chain(&repository.components);
            words(&place, all, "./:_~+%@", "address or name")?;
            if repository.suites.is_empty() {
                return Err(format!("spec.system.repositories: {}: suites are missing", repository.name));
            }
        }
        for user in &self.users {
            words("users", [&user.name], "_", "name")?;
            words(&format!("users: {}: groups", user.name), &user.groups, "_", "name")?;
            if user.authorized_keys.iter().any(|k| k.contains('\n') || k.split_whitespace().count() < 2) {
                return Err(format!("spec.system.users: {}: a key is one line, its kind and itself", user.name));
            }
        }
        for mount in &self.mounts {
            let place = format!("spec.system.mounts: {}", mount.path);
            let what = mount.what.chars().all(|c| !c.is_control() && !c.is_whitespace());
            if !is_path(&mount.path) || mount.what.is_empty() || !what {
                return Err(format!("{place}: what and where are paths or addresses without spaces"));
            }
            if !plain(&mount.kind, "._") || !mount.options.iter().all(|o| plain(o, "._=:/+@")) {
                return Err(format!("{place}: type and options are words"));
            }
        }
        self.files.iter().try_for_each(OwnFile::validate)
    }
}
