//! The CDI specification of a node: one file, written anew whenever the devices change, before the kubelet hears of them.

use std::path::{Path, PathBuf};

use slipway_gpu::container::{
    self,
    cdi::{self, Spec},
};
use slipway_gpu::inventory::Inventory;

use crate::NodeError;

/// The kind of the agent's devices. NVIDIA's own kind is left to NVIDIA's toolkit, which may run beside.
pub const KIND: &str = "slipway.dev/gpu";
/// The file's name, by the convention of the CDI libraries: vendor, class.
const FILE: &str = "slipway.dev-gpu.json";

/// A device's full name, as kubelet and runtime take it.
pub fn name(device: &str) -> String {
    format!("{KIND}={device}")
}

/// Writes the file.
#[derive(Debug)]
pub struct Writer {
    /// `/var/run/cdi`.
    pub folder: PathBuf,
    /// The driver's root as this process sees it.
    pub root: PathBuf,
    /// The same folder as the container runtime sees it.
    pub host_root: PathBuf,
    written: Option<String>,
}

impl Writer {
    /// Writes to a folder, for a driver that lies at `root` here and at `host_root` on the host.
    pub fn new(folder: PathBuf, root: PathBuf, host_root: PathBuf) -> Self {
        Self { folder, root, host_root, written: None }
    }

    /// Makes the file say what there is. A reader never sees half of it.
    ///
    /// # Errors
    /// When the driver's files are not where they should be, or the folder cannot be written.
    pub fn write(&mut self, inventory: &Inventory) -> Result<(), NodeError> {
        let hook = ["usr/bin/nvidia-cdi-hook", "usr/bin/nvidia-ctk"].iter().find(|p| self.root.join(p).exists());
        let hook = hook.map(|p| self.host_root.join(p));
        let mut spec = cdi::generate(inventory, &self.root, hook.as_deref())?;
        spec.kind = KIND.into();
        let root = std::fs::canonicalize(&self.root).map_err(NodeError::io(self.root.display().to_string()))?;
        rebase(&mut spec, &root, &self.host_root);
        let text = serde_json::to_string(&spec).map_err(|e| NodeError::Invalid(e.to_string()))?;
        let path = self.folder.join(FILE);
        if self.written.as_deref() == Some(text.as_str()) && path.exists() {
            return Ok(());
        }
        container::replace(&path, &text)?;
        self.written = Some(text);
        Ok(())
    }
}

/// Makes host paths of paths that this process sees.
fn rebase(spec: &mut Spec, from: &Path, to: &Path) {
    let moved = |path: &str| match Path::new(path).strip_prefix(from) {
        Ok(rest) => to.join(rest).display().to_string(),
        Err(_) => path.to_owned(),
    };
    for edits in spec.devices.iter_mut().map(|d| &mut d.container_edits).chain([&mut spec.container_edits]) {
        for node in &mut edits.device_nodes {
            let host = moved(node.host_path.as_ref().unwrap_or(&node.path));
            node.host_path = (host != node.path).then_some(host);
        }
        for mount in &mut edits.mounts {
            mount.host_path = moved(&mount.host_path);
        }
    }
}
