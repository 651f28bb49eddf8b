//! The part of `cluster.yaml` about the operating system of the machines: `spec.system`.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::secret::SecretSource;
use super::{Role, is_plain};
use crate::resource::Edit;

/// The operating system of the machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct System {
    /// Add all machines of the cluster to `/etc/hosts` of each machine.
    pub hosts: bool,
    /// Disable unattended upgrades, so that packages do not change below a running cluster.
    pub hold_updates: bool,
    /// Package repositories in addition to the distribution's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<Repository>,
    /// Packages on every machine. `jq=1.6-2.1` pins the version and holds the package; with dnf the version is `VERSION-RELEASE`.
    pub packages: Vec<String>,
    /// Kernel settings, such as `vm.swappiness: "10"`.
    pub sysctl: BTreeMap<String, String>,
    /// Kernel modules to load, now and at every boot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<String>,
    /// Users to create on every machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<User>,
    /// Files to write or to edit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<OwnFile>,
    /// File systems to mount, now and at every boot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Timeout of a reboot in seconds. Large servers test their memory for many minutes.
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

/// A repository of apt, or without `suites` of dnf, whose packages must be signed with the given key. It is configured on the machines with
/// that package manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Repository {
    /// Name of the repository's files on the machine.
    pub name: String,
    /// URL of the repository, such as `https://download.example.org/linux/ubuntu`.
    pub uri: String,
    /// Suites of a repository of apt, such as `noble`; `./` for one without suites. A repository of dnf has none.
    #[serde(default)]
    pub suites: Vec<String>,
    /// Components, such as `main`.
    #[serde(default)]
    pub components: Vec<String>,
    /// Source of the repository's public key, ASCII-armored.
    pub key: SecretSource,
}

/// A user account on the machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct User {
    /// Login name.
    pub name: String,
    /// Additional groups, such as `sudo` or `microk8s`. A missing group is created.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Public SSH keys that may log in.
    #[serde(default)]
    pub authorized_keys: Vec<String>,
}

/// A file system to mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// Device or remote file system: `/dev/disk/by-label/models`, `files.example.org:/export`.
    pub what: String,
    /// Mount point, such as `/data`.
    #[serde(rename = "where")]
    pub path: String,
    /// File system type: `ext4`, `nfs4`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Mount options, such as `noatime`.
    #[serde(default)]
    pub options: Vec<String>,
    /// Mount it only on machines with one of these roles; on all machines if empty.
    #[serde(default)]
    pub roles: BTreeSet<Role>,
}

/// A file. Set either its whole content (`content`, `template` or `secret`) or parts of it (`lines`, `block`, `toml`, `yaml`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OwnFile {
    /// Absolute path of the file.
    pub path: String,
    /// The whole content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The whole content, in which `{{machine}}`, `{{address}}`, `{{internalAddress}}` and `{{cluster}}` are replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Source of the whole content, which is not shown in plans and logs. Only root can read the file, unless `mode` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretSource>,
    /// Lines that the file must have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<Line>,
    /// A block of lines, which is written between two marks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<String>,
    /// Values by key in TOML syntax, such as `plugins."io.containerd.grpc.v1.cri".enable_cdi`. Comments and order are kept.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub toml: BTreeMap<String, Value>,
    /// Values by key, with the same key syntax as `toml`. Comments and order are kept.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub yaml: BTreeMap<String, Value>,
    /// Octal permissions, such as `0644`. Not allowed for edited files, which keep their permissions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Command to run after a change, such as `systemctl restart ssh`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<String>,
    /// Write it only on machines with one of these roles; on all machines if empty.
    #[serde(default)]
    pub roles: BTreeSet<Role>,
}

/// A line that a file must have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Line {
    /// The line, without a line break.
    pub line: String,
    /// Prefix of the lines that it replaces; it is appended if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begins: Option<String>,
}

/// Whether a text is an absolute path without `..`, white space, quotes and backslashes, so that it is safe in systemd units and shell
/// commands.
fn is_path(text: &str) -> bool {
    text.len() > 1
        && text.starts_with('/')
        && text.split('/').all(|part| part != "..")
        && text.chars().all(|c| !c.is_control() && !c.is_whitespace() && !"\"'\\".contains(c))
}

impl OwnFile {
    /// The edits of parts of the file; empty if the file is written as a whole.
    ///
    /// # Errors
    /// When a key is not valid, or a value cannot be written as TOML.
    pub(crate) fn parts(&self) -> Result<Vec<Edit>, String> {
        // A key is a dotted path of table names and the last key: `a."b.c".d`.
        let keys = |path: &str| {
            let keys = toml_edit::Key::parse(path);
            let keys =
                keys.map_err(|_| format!("{}: '{path}' is not a valid key; put names with dots in quotes", self.path))?;
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
        let invalid = |why: &str| Err(format!("spec.system.files: {}: {why}", self.path));
        if !is_path(&self.path) {
            return invalid("the path must be absolute, without '..', spaces and quotes");
        }
        let contents =
            [self.content.is_some(), self.template.is_some(), self.secret.is_some()].iter().filter(|w| **w).count();
        let has_parts = !self.parts().map_err(|why| format!("spec.system.files: {why}"))?.is_empty();
        if contents + usize::from(has_parts) != 1 {
            return invalid("set one of content, template and secret, or parts: lines, block, toml, yaml");
        }
        if let Some(mode) = &self.mode {
            if has_parts {
                return invalid("mode is not allowed, because an edited file keeps its mode");
            }
            if !(3..=4).contains(&mode.len()) || u32::from_str_radix(mode, 8).is_err() {
                return invalid(&format!("'{mode}' is not an octal mode such as 0644"));
            }
        }
        if self.lines.iter().any(|l| l.line.contains('\n')) {
            return invalid("a line must not contain a line break");
        }
        Ok(())
    }
}

/// Checks that all words are plain texts, in which the characters of `extra` are allowed too. `what` names the kind of word in the error.
fn check_words<'a>(
    place: &str,
    words: impl IntoIterator<Item = &'a String>,
    extra: &str,
    what: &str,
) -> Result<(), String> {
    let invalid = words.into_iter().find(|word| !is_plain(word, extra));
    invalid.map_or(Ok(()), |word| Err(format!("spec.system.{place}: '{word}' is not a valid {what}")))
}

impl System {
    pub(super) fn validate(&self) -> Result<(), String> {
        check_words("packages", &self.packages, ".+:=~_", "package")?;
        check_words("modules", &self.modules, "_", "module")?;
        for (key, value) in &self.sysctl {
            if !is_plain(key, "._/") || !value.chars().all(|c| c.is_ascii_alphanumeric() || " -._".contains(c)) {
                return Err(format!("spec.system.sysctl: '{key} = {value}' is not a valid setting"));
            }
        }
        for repository in &self.repositories {
            check_words("repositories", [&repository.name], "_", "name")?;
            let place = format!("repositories: {}", repository.name);
            let all = [&repository.uri].into_iter().chain(&repository.suites).chain(&repository.components);
            check_words(&place, all, "./:_~+%@", "address or name")?;
            if repository.suites.is_empty() && !repository.components.is_empty() {
                return Err(format!(
                    "spec.system.repositories: {}: components need suites; a repository of dnf has neither",
                    repository.name
                ));
            }
        }
        for user in &self.users {
            check_words("users", [&user.name], "_", "name")?;
            check_words(&format!("users: {}: groups", user.name), &user.groups, "_", "name")?;
            for key in &user.authorized_keys {
                super::public_key::check(key)
                    .map_err(|reason| format!("spec.system.users: {}: authorizedKeys: {reason}", user.name))?;
            }
        }
        for mount in &self.mounts {
            let place = format!("spec.system.mounts: {}", mount.path);
            let is_valid = mount.what.chars().all(|c| !c.is_control() && !c.is_whitespace());
            if !is_path(&mount.path) || mount.what.is_empty() || !is_valid {
                return Err(format!("{place}: what and where must be paths or addresses without spaces"));
            }
            if !is_plain(&mount.kind, "._") || !mount.options.iter().all(|o| is_plain(o, "._=:/+@")) {
                return Err(format!("{place}: type and options must be words without spaces"));
            }
        }
        self.files.iter().try_for_each(OwnFile::validate)
    }
}
