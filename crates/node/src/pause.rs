//! A file lock with which another program asks the agent to close the GPUs for a while. A GPU can only be reset while no program has it
//! open. The kernel releases the lock when that program ends, however it ends, and the agent then opens the GPUs again.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::NodeError;

/// The lock in the agent's state folder.
pub fn path(state_folder: &Path) -> PathBuf {
    state_folder.join("gpu-pause.lock")
}

/// Keeps the agent's GPUs closed until it is dropped.
#[derive(Debug)]
pub struct Request {
    _file: File,
}

/// Asks the agent with this state folder to close the GPUs. It does so within a second; without an agent nothing happens.
///
/// # Errors
/// [`NodeError::Io`] if the lock cannot be created; [`NodeError::Invalid`] if another program holds it.
pub fn request(state_folder: &Path) -> Result<Request, NodeError> {
    let path = path(state_folder);
    std::fs::create_dir_all(state_folder).map_err(NodeError::io(state_folder.display().to_string()))?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    let file = options.open(&path).map_err(NodeError::io(path.display().to_string()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| NodeError::Invalid(format!("another program resets GPUs (it holds {})", path.display())))?;
    Ok(Request { _file: file })
}

/// Whether a program holds the lock.
pub fn is_requested(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_ends_with_its_holder() {
        let folder = std::env::temp_dir().join(format!("slipway-pause-{}", slipway_core::ids::hex32()));
        assert!(!is_requested(&path(&folder)));
        let held = request(&folder).unwrap();
        assert!(is_requested(&path(&folder)));
        assert!(request(&folder).unwrap_err().to_string().contains("another program resets GPUs"));
        drop(held);
        assert!(!is_requested(&path(&folder)));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
