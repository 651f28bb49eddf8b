//! GPUs in containers: CDI specifications, the runtimes' configuration, and a container to try them.

pub mod cdi;
pub mod runtime;
pub mod trial;

use std::path::Path;

use crate::GpuError;

/// Writes a file whole or not at all, with the permissions it had: who reads just now sees the old text or the new.
///
/// # Errors
/// [`GpuError::Io`].
pub fn replace(path: &Path, text: &str) -> Result<(), GpuError> {
    slipway_core::files::replace(path, text.as_bytes()).map_err(GpuError::io(format!("writing {}", path.display())))
}
