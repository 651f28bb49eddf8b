//! Files that are never half written.

use std::fs::{File, Permissions};
use std::io::{Result, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Writes a file whole or not at all, with the owner and the permissions it had: who reads just now sees the old bytes or the new. Folders
/// that are missing are made; a link stays one, and what it points to is replaced.
///
/// # Errors
/// The operating system's.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    put(path, bytes, None)
}

/// The same with these permissions; nobody who lacks them can look into it meanwhile.
///
/// # Errors
/// The operating system's.
pub fn replace_as(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    put(path, bytes, Some(mode))
}

fn put(path: &Path, bytes: &[u8], mode: Option<u32>) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let new = path.with_file_name(format!(".{}.slipway", path.file_name().unwrap_or_default().to_string_lossy()));
    let old = std::fs::metadata(&path).ok();
    let mode = mode.or_else(|| old.as_ref().map(|old| old.mode() & 0o7777));
    let first = if mode.is_some() { 0o600 } else { 0o666 };
    let written = (|| {
        // What a killed process left, or a link that somebody put there, is not written to.
        drop(std::fs::remove_file(&new));
        let mut file = File::options().write(true).create_new(true).mode(first).open(&new)?;
        file.write_all(bytes)?;
        if let Some(mode) = mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        let ours = file.metadata()?;
        if let Some(old) = old.filter(|old| (old.uid(), old.gid()) != (ours.uid(), ours.gid())) {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.sync_all()?;
        std::fs::rename(&new, &path)
    })();
    if written.is_err() {
        drop(std::fs::remove_file(&new));
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_with_what_it_was_but_its_bytes() {
        let folder = std::env::temp_dir().join(crate::ids::hex32());
        let (file, link) = (folder.join("sub/file.json"), folder.join("link"));
        replace(&file, b"1").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        replace(&link, b"2").unwrap();
        let mode = || std::fs::metadata(&file).unwrap().mode() & 0o7777;
        assert!(std::fs::read(&file).unwrap() == b"2" && mode() == 0o640 && link.is_symlink());
        replace_as(&file, b"3", 0o600).unwrap();
        assert!(std::fs::read(&file).unwrap() == b"3" && mode() == 0o600);
        std::os::unix::fs::symlink(&file, file.with_file_name(".other.slipway")).unwrap();
        let other = file.with_file_name("other");
        replace(&other, b"5").unwrap();
        assert!(std::fs::read(&file).unwrap() == b"3" && std::fs::read(&other).unwrap() == b"5" && !other.is_symlink());
        std::fs::remove_file(other).unwrap();
        assert!(replace(&folder, b"4").is_err());
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
