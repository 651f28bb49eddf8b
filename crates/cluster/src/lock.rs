//! One at a time: a file that a process holds as long as it lives.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::ClusterError;

/// Held until it is dropped, or the process ends in any way.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of this file, in which the holder's process stands; waits for it so long.
    ///
    /// # Errors
    /// [`ClusterError::Locked`] with who has it.
    pub fn take(path: &Path, wait: Duration) -> Result<Self, ClusterError> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(ClusterError::io(path.display().to_string()))?;
        let until = Instant::now() + wait;
        while rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= until {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder); // only for the message
                return Err(ClusterError::Locked(format!("process {} ({})", holder.trim(), path.display())));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        // Who holds it is for people; the lock is the kernel's.
        let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}
