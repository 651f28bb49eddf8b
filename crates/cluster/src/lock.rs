//! Exclusive file locks.
//!
//! The kernel releases the lock when its process ends in any way, so there are no stale locks.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::ClusterError;

/// A held lock. It is released when it is dropped, or when the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Locks this file, and waits up to `wait` if another process holds the lock. The process id of the holder is written into the file.
    ///
    /// # Errors
    /// [`ClusterError::Locked`] with the holder's process id, or [`ClusterError::Io`].
    pub fn acquire(path: &Path, wait: Duration) -> Result<Self, ClusterError> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(ClusterError::io(path.display().to_string()))?;
        let deadline = Instant::now() + wait;
        while rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= deadline {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder); // only for the message
                return Err(ClusterError::Locked(format!("process {} ({})", holder.trim(), path.display())));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        // Best effort: the process id is only shown in error messages.
        let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}
