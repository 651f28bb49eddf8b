//! Files that are never half written.

use std::io::Write;
use std::path::Path;

/// Writes a file whole or not at all, with the permissions it had: who reads just now sees the old bytes or the new. Folders that are
/// missing are made.
///
/// # Errors
/// The operating system's.
pub fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("slipway-new");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = std::fs::File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    if let Ok(old) = std::fs::metadata(path) {
        std::fs::set_permissions(&new, old.permissions())?;
    }
    std::fs::rename(&new, path)
}
