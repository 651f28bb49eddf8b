//! Edits container runtime configuration for GPUs. Only what is new is added: comments, order, layout and line ends are preserved.
//!
//! What is written for NVIDIA's runtime is what `nvidia-ctk runtime configure` writes (NVIDIA Container Toolkit, `pkg/config/engine`).

mod containerd;
mod crio;
mod docker;
mod json_edit;
mod layers;
mod podman;
mod template;
mod toml;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::replace;
use crate::GpuError;

/// The folders for which slipway writes CDI specifications: `gpu cdi generate --write` the first, `node run` the second.
const CDI_FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// The name of NVIDIA's runtime in every configuration file, which a `RuntimeClass` selects.
const NVIDIA: &str = "nvidia";
/// Maximum size of a configuration file in bytes; the largest that `containerd config default` writes has about 12 KB.
const MAX_BYTES: u64 = 1 << 20;

/// A container runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// containerd as a system service.
    Containerd,
    /// The Docker daemon. Mirantis Container Runtime (MKE 3) reads the same file.
    Docker,
    /// CRI-O, which is configured through a file of its own in `crio.conf.d`.
    Crio,
    /// Podman, which is configured through a file of its own in `containers.conf.d`.
    Podman,
    /// The containerd of MicroK8s, which is configured through a template.
    Microk8s,
    /// The containerd of k3s, which is configured through a Go template.
    K3s,
    /// The containerd of RKE2, which is configured as that of k3s.
    Rke2,
    /// The containerd of k0s and MKE 4, which is configured through a file of its own in `containerd.d`.
    K0s,
}

impl Runtime {
    /// All runtimes with their names on the command line, and what each name stands for.
    pub const NAMES: [(&'static str, Self, &'static str); 8] = [
        ("containerd", Self::Containerd, "containerd 1.x and 2.x"),
        ("docker", Self::Docker, "Docker, also as Mirantis Container Runtime (MKE 3)"),
        ("crio", Self::Crio, "CRI-O"),
        ("podman", Self::Podman, "Podman"),
        ("microk8s", Self::Microk8s, "MicroK8s"),
        ("k3s", Self::K3s, "k3s"),
        ("rke2", Self::Rke2, "RKE2"),
        ("k0s", Self::K0s, "k0s, also as MKE 4"),
    ];

    /// Default path of the configuration file.
    pub fn default_path(self) -> PathBuf {
        match self {
            Self::Containerd => "/etc/containerd/config.toml".into(),
            Self::Docker => "/etc/docker/daemon.json".into(),
            Self::Crio => "/etc/crio/crio.conf.d/99-nvidia.conf".into(),
            Self::Podman => "/etc/containers/containers.conf.d/99-nvidia.conf".into(),
            Self::Microk8s => "/var/snap/microk8s/current/args/containerd-template.toml".into(),
            Self::K3s => template::path(Path::new("/var/lib/rancher/k3s/agent/etc/containerd")),
            Self::Rke2 => template::path(Path::new("/var/lib/rancher/rke2/agent/etc/containerd")),
            Self::K0s => "/etc/k0s/containerd.d/nvidia.toml".into(),
        }
    }

    /// The next command, with which changes take effect.
    pub fn next(self) -> &'static str {
        match self {
            Self::Containerd => "systemctl restart containerd",
            Self::Docker => "systemctl restart docker",
            Self::Crio => "systemctl restart crio",
            Self::Podman => "podman run --rm --device nvidia.com/gpu=all IMAGE nvidia-smi",
            Self::Microk8s => "snap restart microk8s.daemon-containerd",
            Self::K3s => "systemctl restart k3s (on an agent: k3s-agent)",
            Self::Rke2 => "systemctl restart rke2-server (on an agent: rke2-agent)",
            Self::K0s => "journalctl -fu k0sworker (k0s reloads containerd by itself)",
        }
    }
}

impl FromStr for Runtime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, ..)| *name == text).map(|(_, runtime, _)| *runtime);
        found.ok_or_else(|| format!("there is no container runtime '{text}'"))
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
    /// What else the user has to know or do for GPUs to work: one sentence each.
    pub notes: Vec<String>,
}

/// The new content of a file, and notes for the user.
struct Change {
    text: String,
    notes: Vec<String>,
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
    let io = || GpuError::io(path.display().to_string());
    match std::fs::metadata(path) {
        Ok(file) if file.len() > MAX_BYTES => Err(GpuError::Invalid(format!(
            "{} has {} bytes, but a configuration file has at most {MAX_BYTES}",
            path.display(),
            file.len()
        ))),
        Ok(_) => std::fs::read_to_string(path).map_err(io()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(io()(e)),
    }
}

/// Plans an edit that restores the content from before the last [`Edit::write`].
///
/// # Errors
/// [`GpuError::Invalid`] if there is no backup, [`GpuError::Io`] if the file cannot be read.
pub fn undo(path: &Path) -> Result<Edit, GpuError> {
    let edit = Edit { path: path.to_owned(), before: read(path)?, after: String::new(), notes: Vec::new() };
    let backup = edit.backup();
    let after = std::fs::read_to_string(&backup)
        .map_err(|_| GpuError::Invalid(format!("nothing to undo: there is no {}", backup.display())))?;
    Ok(Edit { after, ..edit })
}

/// Plans the edit of a runtime's configuration at `path`.
///
/// # Errors
/// [`GpuError::Invalid`] if the configuration cannot be parsed or changed as requested, [`GpuError::Io`] if it cannot be read.
pub fn plan(runtime: Runtime, path: &Path, options: &Options) -> Result<Edit, GpuError> {
    let before = read(path)?;
    let change = match runtime {
        Runtime::Docker => docker::edit(&before, options),
        Runtime::Crio => crio::edit(path, &before, options),
        Runtime::Podman => podman::edit(&before, options),
        Runtime::Containerd | Runtime::Microk8s | Runtime::K0s => containerd::edit(runtime, path, &before, options),
        Runtime::K3s | Runtime::Rke2 => template::edit(runtime, path, &before, options),
    }?;
    Ok(Edit { path: path.to_owned(), before, after: change.text, notes: change.notes })
}

fn invalid(reason: impl std::fmt::Display) -> GpuError {
    GpuError::Invalid(format!("invalid runtime configuration: {reason}"))
}

/// A note if a runtime looks for CDI specifications only in other folders than those that slipway writes to.
fn note_on_cdi_folders(setting: &str, folders: &[String]) -> Option<String> {
    // `/var/run` is a link to `/run` on every distribution with systemd.
    let is_read = |folder: &&str| {
        folders
            .iter()
            .any(|f| f.trim_end_matches('/') == *folder || format!("/var{}", f.trim_end_matches('/')) == **folder)
    };
    let [ours, agents] = CDI_FOLDERS;
    match CDI_FOLDERS.iter().filter(|folder| is_read(folder)).count() {
        2 => None,
        1 if is_read(&agents) => Some(format!(
            "{setting} does not list {ours}, to which `slipway gpu cdi generate --write` writes: add it, or write to {agents}/nvidia.yaml"
        )),
        1 => Some(format!(
            "{setting} does not list {agents}, to which `slipway node run` writes: add it, or use `--cdi-dir {ours}`"
        )),
        _ => Some(format!(
            "{setting} lists neither {ours} (`slipway gpu cdi generate --write`) nor {agents} (`slipway node run`), so no CDI device of \
             slipway is found: add both"
        )),
    }
}

#[cfg(test)]
mod tests;
