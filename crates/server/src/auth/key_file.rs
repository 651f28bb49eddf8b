//! Secret keys in files of the state folder.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ring::rand::SecureRandom;

use super::home_token::{RequiredOwner, open_secret};

/// A new key.
pub(super) fn random_key() -> std::io::Result<[u8; 32]> {
    let mut key = [0; 32];
    let failed = |_| std::io::Error::other("the operating system has no random numbers");
    ring::rand::SystemRandom::new().fill(&mut key).map_err(failed)?;
    Ok(key)
}

/// Reads a key from a file, which is created if it is missing.
///
/// # Errors
/// I/O errors, and [`std::io::ErrorKind::PermissionDenied`] for a file whose content other users may know.
pub(crate) fn key_from_file(path: &Path) -> std::io::Result<[u8; 32]> {
    let mut bytes = Vec::new();
    match open_secret(path, RequiredOwner::CurrentUser) {
        Ok(file) => {
            file.take(64).read_to_end(&mut bytes)?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Ok(key) = bytes.try_into() {
        return Ok(key);
    }
    let key = random_key()?;
    let _ = std::fs::remove_file(path); // A file of another length was left by a killed process before it used the key.
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&key)?;
    file.sync_all()?;
    Ok(key)
}
