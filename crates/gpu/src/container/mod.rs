//! GPUs in containers: CDI specifications, container runtime configuration, and a trial container that verifies them.

pub mod cdi;
pub mod runtime;
pub mod trial;

use std::path::Path;

use crate::GpuError;

/// Replaces a file atomically and keeps its permissions: a concurrent reader sees the old or the new content.
///
/// # Errors
/// [`GpuError::Io`] if the file cannot be written.
pub fn replace(path: &Path, text: &str) -> Result<(), GpuError> {
    slipway_core::files::replace(path, text.as_bytes()).map_err(GpuError::io(format!("writing {}", path.display())))
}
