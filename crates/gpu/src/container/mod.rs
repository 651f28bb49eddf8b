//! GPUs in containers: CDI specifications, the runtimes' configuration, and a container to try them.

pub mod cdi;
pub mod runtime;
pub mod trial;

use std::io::Write;
use std::path::Path;

use crate::GpuError;

/// Writes a file whole or not at all, with the permissions it had: who reads just now sees the old text or the new.
///
/// # Errors
/// [`GpuError::Io`].
pub fn replace(path: &Path, text: &str) -> Result<(), GpuError> {
    let new = path.with_extension("slipway-new");
    let write = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = std::fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if let Ok(old) = std::fs::metadata(path) {
            std::fs::set_permissions(&new, old.permissions())?;
        }
        std::fs::rename(&new, path)
    };
    write().map_err(GpuError::io(format!("writing {}", path.display())))
}
