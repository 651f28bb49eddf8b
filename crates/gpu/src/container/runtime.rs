//! Edits container runtime configuration (containerd 1.x and 2.x, Docker, MicroK8s) for GPUs. Only what is new is added: comments, order
//! and layout are preserved.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use toml_edit::{DocumentMut, Item, Table, value};

use super::{json_edit, replace};
use crate::GpuError;

/// A container runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// containerd as a system service.
    Containerd,
    /// The Docker daemon.
    Docker,
    /// The containerd of MicroK8s, which is configured through a template.
    Microk8s,
}

impl Runtime {
    /// Default path of the configuration file.
    pub fn default_path(self) -> PathBuf {
        match self {
            Self::Containerd => "/etc/containerd/config.toml",
            Self::Docker => "/etc/docker/daemon.json",
            Self::Microk8s => "/var/snap/microk8s/current/args/containerd-template.toml",
        }
        .into()
    }

    /// The command that restarts the runtime, so that changes take effect.
    pub fn restart(self) -> &'static str {
        match self {
            Self::Containerd => "systemctl restart containerd",
            Self::Docker => "systemctl restart docker",
            Self::Microk8s => "snap restart microk8s.daemon-containerd",
        }
    }
}

/// How containers get access to GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Path of `nvidia-container-runtime`; `None` configures only CDI, which does not need it.
    pub nvidia_runtime: Option<String>,
    /// Whether NVIDIA's runtime becomes the default runtime.
    pub default: bool,
}

/// A planned edit of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Path of the file.
    pub path: PathBuf,
    /// Current content; empty if the file does not exist.
    pub before: String,
    /// Content after the edit.
    pub after: String,
}

impl Edit {
    /// Whether the edit changes nothing.
    pub fn is_empty(&self) -> bool {
        self.before == self.after
    }

    /// The change as a unified diff.
    pub fn diff(&self) -> String {
        let name = self.path.display().to_string();
        slipway_core::diff::unified(&self.before, &self.after, 3, Some(name.as_str()))
    }

    /// Path of the backup file.
    pub fn backup(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".slipway-backup");
        name.into()
    }

    /// Writes the new content atomically, after saving the previous content to the backup file with the same permissions. A file without
    /// content is removed, because it did not exist before the edit that is undone.
    ///
    /// # Errors
    /// [`GpuError::Io`] if a file cannot be written.
    pub fn write(&self) -> Result<(), GpuError> {
        // An empty backup records that there was no file. Without it, `undo` would restore the backup of an earlier edit.
        let backup = self.backup();
        match std::fs::metadata(&self.path) {
            Ok(file) => {
                let mode = file.permissions().mode() & 0o7777;
                slipway_core::files::replace_as(&backup, self.before.as_bytes(), mode)
                    .map_err(GpuError::io(format!("writing {}", backup.display())))?;
            }
            Err(_) => replace(&backup, &self.before)?,
        }
        if self.after.is_empty() {
            return slipway_core::files::remove(&self.path)
                .map_err(GpuError::io(format!("removing {}", self.path.display())));
        }
        replace(&self.path, &self.after)
    }
}

/// The content of a configuration file; empty if it does not exist.
fn read(path: &Path) -> Result<String, GpuError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(GpuError::io(path.display().to_string())(e)),
    }
}

/// Plans an edit that restores the content from before the last [`Edit::write`].
///
/// # Errors
/// [`GpuError::Invalid`] if there is no backup, [`GpuError::Io`] if the file cannot be read.
pub fn undo(path: &Path) -> Result<Edit, GpuError> {
    let edit = Edit { path: path.to_owned(), before: read(path)?, after: String::new() };
    let backup = edit.backup();
    let after = std::fs::read_to_string(&backup)
        .map_err(|_| GpuError::Invalid(format!("nothing to undo: there is no {}", backup.display())))?;
    Ok(Edit { after, ..edit })
}

/// Plans the edit of a runtime's configuration at `path`.
///
/// # Errors
/// [`GpuError::Invalid`] if the configuration cannot be parsed, [`GpuError::Io`] if it cannot be read.
pub fn plan(runtime: Runtime, path: &Path, options: &Options) -> Result<Edit, GpuError> {
    let before = read(path)?;
    let after = match runtime {
        Runtime::Docker => docker(&before, options)?,
        Runtime::Containerd | Runtime::Microk8s => containerd(&before, options)?,
    };
    Ok(Edit { path: path.to_owned(), before, after })
}

fn invalid(reason: impl std::fmt::Display) -> GpuError {
    GpuError::Invalid(format!("invalid runtime configuration: {reason}"))
}

/// The table `key` in `parent`. A missing table is created and written as `[a.b.c]`.
fn table<'t>(parent: &'t mut Table, key: &str) -> Result<&'t mut Table, GpuError> {
    let item = parent.entry(key).or_insert_with(|| {
        let mut new = Table::new();
        new.set_implicit(true);
        Item::Table(new)
    });
    item.as_table_mut().ok_or_else(|| invalid(format!("'{key}' is not a table")))
}

/// Edits containerd's configuration. Version 2 (containerd 1.x) and version 3 (2.x) differ in the name of the plugin.
///
/// The template of MicroK8s contains `${...}` only in strings, so it is valid TOML.
fn containerd(text: &str, options: &Options) -> Result<String, GpuError> {
    let mut document: DocumentMut = text.parse().map_err(invalid)?;
    let version = match document.get("version") {
        // An empty file gets version 2, which containerd 1.7 and 2.x both accept.
        None if document.is_empty() => {
            document["version"] = value(2);
            2
        }
        None => 1,
        Some(item) => item.as_integer().ok_or_else(|| invalid("'version' is not a number"))?,
    };
    let plugin: &[&str] = match version {
        1 => {
            return Err(invalid(
                "containerd 2 does not support version 1; convert the file with `containerd config migrate`",
            ));
        }
        2 => &["io.containerd.grpc.v1.cri"],
        3 => &["io.containerd.cri.v1.runtime"],
        n => return Err(invalid(format!("unsupported version {n}"))),
    };
    let mut at = table(document.as_table_mut(), "plugins")?;
    for key in plugin {
        at = table(at, key)?;
    }
    // CDI is enabled by default in containerd 2, but not in 1.7.
    if at.get("enable_cdi").and_then(Item::as_bool) != Some(true) && version == 2
        || at.get("enable_cdi").and_then(Item::as_bool) == Some(false)
    {
        at["enable_cdi"] = value(true);
    }
    if version == 2 && !at.contains_key("cdi_spec_dirs") {
        at["cdi_spec_dirs"] = value(toml_edit::Array::from_iter(["/etc/cdi", "/var/run/cdi"]));
    }
    if let Some(binary) = &options.nvidia_runtime {
        let containerd = table(at, "containerd")?;
        if options.default {
            containerd["default_runtime_name"] = value("nvidia");
        }
        let nvidia = table(table(containerd, "runtimes")?, "nvidia")?;
        nvidia["runtime_type"] = value("io.containerd.runc.v2");
        table(nvidia, "options")?["BinaryName"] = value(binary.as_str());
    }
    Ok(document.to_string())
}

/// Edits Docker's configuration, which is JSON without comments.
fn docker(text: &str, options: &Options) -> Result<String, GpuError> {
    let set = |text: &str, path: &[&str], value: Value| json_edit::set(text, path, &value).map_err(invalid);
    let mut after = set(text, &["features", "cdi"], true.into())?;
    if let Some(binary) = &options.nvidia_runtime {
        let document: Value = serde_json::from_str(&after).map_err(invalid)?;
        after = set(&after, &["runtimes", "nvidia", "path"], binary.as_str().into())?;
        // The arguments of a runtime that is configured already are the user's.
        if document["runtimes"]["nvidia"].is_null() {
            after = set(&after, &["runtimes", "nvidia", "args"], Value::Array(Vec::new()))?;
        }
        if options.default {
            after = set(&after, &["default-runtime"], "nvidia".into())?;
        }
    }
    Ok(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NVIDIA: &str = "/usr/bin/nvidia-container-runtime";

    fn options(default: bool) -> Options {
        Options { nvidia_runtime: Some(NVIDIA.into()), default }
    }

    #[test]
    fn comments_and_order_are_preserved() {
        let text = "# ours, do not touch\nversion = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  # a mirror\n  sandbox_image = \"pause:3.9\" # pinned\n";
        let after = containerd(text, &options(false)).unwrap();
        assert!(after.starts_with("# ours, do not touch\nversion = 2\n"));
        assert!(after.contains("  # a mirror\n  sandbox_image = \"pause:3.9\" # pinned\n"), "{after}");
        assert!(after.contains("enable_cdi = true"));
        assert!(
            after.contains("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.nvidia.options]\nBinaryName"),
            "{after}"
        );
        assert!(!after.contains("default_runtime_name"));
        assert_eq!(containerd(&after, &options(false)).unwrap(), after, "the edit is idempotent");
    }

    #[test]
    fn containerd_2_uses_its_plugin_name_and_default_cdi() {
        let after = containerd("version = 3\n", &Options { nvidia_runtime: None, default: false }).unwrap();
        assert_eq!(after, "version = 3\n");
        let after = containerd("version = 3\n", &options(true)).unwrap();
        assert!(
            after.contains("[plugins.\"io.containerd.cri.v1.runtime\".containerd]\ndefault_runtime_name = \"nvidia\""),
            "{after}"
        );
    }

    #[test]
    fn invalid_configuration_is_rejected() {
        for bad in ["version = [", "disabled_plugins = []\n", "version = 9\n", "version = 2\nplugins = 3\n"] {
            assert!(containerd(bad, &options(false)).is_err(), "{bad}");
        }
        assert!(docker("[]", &options(false)).is_err());
    }

    #[test]
    fn other_docker_settings_are_preserved() {
        let after = docker("{\"log-driver\": \"journald\"}", &options(true)).unwrap();
        let read: Value = serde_json::from_str(&after).unwrap();
        assert_eq!(read["log-driver"], "journald");
        assert_eq!(
            (read["features"]["cdi"].clone(), read["runtimes"]["nvidia"]["path"].clone()),
            (true.into(), NVIDIA.into())
        );
        assert_eq!(docker(&after, &options(true)).unwrap(), after);
    }

    #[test]
    fn docker_edit_adds_only_what_is_new() {
        let text = "{\r\n\t\"runtimes\": {\"nvidia\": {\"path\": \"/old\", \"args\": [\"--x\"]}},\r\n\t\"bip\": \"10.9.0.1/24\"\r\n}";
        let cdi = ",\r\n\t\"features\": {\r\n\t\t\"cdi\": true\r\n\t}\r\n}";
        let expected = format!("{}{cdi}", text.replace("/old", NVIDIA).trim_end_matches("\r\n}"));
        assert_eq!(docker(text, &options(false)).unwrap(), expected);
        let unchanged = " {\"features\" :{\"cdi\":true} }";
        assert_eq!(docker(unchanged, &Options { nvidia_runtime: None, default: false }).unwrap(), unchanged);
    }

    #[test]
    fn undo_restores_docker_configuration_byte_for_byte() {
        let folder = temporary_folder();
        let path = folder.join("daemon.json");
        for before in ["{\n\t\"z\": 1,\n\t\"a\": {}\n}", "{\"z\":1}\r\n", "{}"] {
            std::fs::write(&path, before).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            let edit = plan(Runtime::Docker, &path, &options(true)).unwrap();
            edit.write().unwrap();
            assert_eq!(std::fs::metadata(edit.backup()).unwrap().permissions().mode() & 0o777, 0o600);
            undo(&path).unwrap().write().unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
        }
        // A file that did not exist does not exist afterwards, although there is a backup of an earlier file.
        std::fs::remove_file(&path).unwrap();
        plan(Runtime::Docker, &path, &options(true)).unwrap().write().unwrap();
        undo(&path).unwrap().write().unwrap();
        assert!(!path.exists());
        std::fs::write(&path, b"\xff").unwrap();
        assert!(undo(&path).is_err(), "a file that cannot be backed up is not replaced");
        std::fs::remove_dir_all(folder).unwrap();
    }

    fn temporary_folder() -> PathBuf {
        let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn undo_restores_previous_content() {
        let folder = std::env::temp_dir().join(format!("slipway-runtime-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("config.toml");
        std::fs::write(&path, "version = 2 # mine\n").unwrap();
        let edit = plan(Runtime::Containerd, &path, &options(false)).unwrap();
        assert!(edit.diff().contains("+BinaryName") || edit.diff().contains("BinaryName"));
        edit.write().unwrap();
        assert!(plan(Runtime::Containerd, &path, &options(false)).unwrap().is_empty());
        undo(&path).unwrap().write().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "version = 2 # mine\n");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
