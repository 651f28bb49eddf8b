//! Writes the CDI specification of a node: one file, rewritten whenever the devices change, before they are offered to the kubelet.

use std::path::{Path, PathBuf};

use slipway_gpu::container::{
    self,
    cdi::{self, Spec},
};
use slipway_gpu::inventory::Inventory;

use crate::NodeError;

/// The CDI kind of the agent's devices. It differs from NVIDIA's kind, because NVIDIA's toolkit may run on the same node.
pub const KIND: &str = "slipway.dev/gpu";
/// File name, by the convention of the CDI libraries: vendor and class.
const FILE: &str = "slipway.dev-gpu.json";

/// The fully qualified CDI name of a device, such as `slipway.dev/gpu=GPU-...`.
pub fn name(device: &str) -> String {
    format!("{KIND}={device}")
}

/// Writes the specification if it has changed.
#[derive(Debug)]
pub struct Writer {
    /// Folder of CDI specifications, usually `/var/run/cdi`.
    pub folder: PathBuf,
    /// Root folder of the driver as this process sees it.
    pub root: PathBuf,
    /// The same folder on the host, where the container runtime sees it.
    pub host_root: PathBuf,
    /// The content written last.
    written: Option<String>,
}

impl Writer {
    /// Creates a writer for a driver that is at `root` in this process and at `host_root` on the host.
    pub fn new(folder: PathBuf, root: PathBuf, host_root: PathBuf) -> Self {
        Self { folder, root, host_root, written: None }
    }

    /// Writes the specification of the current devices atomically.
    ///
    /// # Errors
    /// If the driver's files are missing, or the file cannot be written.
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

/// Replaces the prefix `from` of host paths by `to`, so that they are valid on the host.
fn rebase(spec: &mut Spec, from: &Path, to: &Path) {
    let rebased = |path: &str| match Path::new(path).strip_prefix(from) {
        Ok(rest) => to.join(rest).display().to_string(),
        Err(_) => path.to_owned(),
    };
    for edits in spec.devices.iter_mut().map(|d| &mut d.container_edits).chain([&mut spec.container_edits]) {
        for node in &mut edits.device_nodes {
            let host = rebased(node.host_path.as_ref().unwrap_or(&node.path));
            node.host_path = (host != node.path).then_some(host);
        }
        for mount in &mut edits.mounts {
            mount.host_path = rebased(&mount.host_path);
        }
    }
}
