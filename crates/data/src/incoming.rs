//! Unfinished files of the cache: their names, those that are written at once, and those that are being received. A large one of the latter
//! stays when the transfer breaks off or the process is killed, and the next transfer of the same object continues it.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::error::DataError;
use crate::hash::{Hasher, fill, with_buffer};
use crate::model::Digest;

/// The permissions of a finished object.
pub(crate) const OBJECT_MODE: u32 = 0o444;
/// Names of unfinished files begin with this.
pub(crate) const TEMPORARY: &str = ".slipway-";
/// Files from this size on stay for the next transfer.
const KEEP_BYTES: u64 = 1 << 20;

/// A unique name for an unfinished file of this process.
pub(crate) fn temporary_name() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    static PROCESS: OnceLock<u32> = OnceLock::new();
    let process = PROCESS.get_or_init(std::process::id);
    format!("{TEMPORARY}{process}-{}.tmp", COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// An unfinished file, removed unless it is published.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    file: File,
    mode: u32,
    published: bool,
}

impl Temporary {
    /// Creates the file in a folder.
    pub(crate) fn create(folder: &Path, mode: u32) -> Result<Self, DataError> {
        let path = folder.join(temporary_name());
        let create = || OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(&path);
        let file = match create() {
            // A process with the same number was killed.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                std::fs::remove_file(&path).and_then(|()| create())
            }
            created => created,
        };
        Ok(Self { file: file.map_err(DataError::io(&path))?, path, mode, published: false })
    }

    /// The path of the unfinished file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, and the permissions `mode` if it was created with others.
    ///
    /// # Errors
    /// An I/O error.
    pub fn publish(mut self, target: &Path, mode: Option<u32>) -> Result<(), DataError> {
        if let Some(mode) = mode
            && (mode != self.mode || mode != OBJECT_MODE || umask_hides(OBJECT_MODE))
        {
            self.file.set_permissions(Permissions::from_mode(mode)).map_err(DataError::io(&self.path))?;
        }
        std::fs::rename(&self.path, target).map_err(DataError::io(target))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_file(&self.path); // Best effort; `gc` removes it otherwise.
        }
    }
}

/// Copies the content of a file. Small files go through this thread's buffer, others through the kernel.
pub(crate) fn copy(source: &Path, mut target: &File) -> std::io::Result<()> {
    let mut file = File::open(source)?;
    let whole = with_buffer(|buffer| {
        let length = fill(&mut file, buffer)?;
        target.write_all(&buffer[..length])?;
        Ok::<_, std::io::Error>(length < buffer.len())
    })?;
    if !whole {
        std::io::copy(&mut file, &mut target)?; // On Linux, this is copy_file_range where the file systems support it.
    }
    Ok(())
}

/// Whether the process's umask removes one of these permissions of new files.
fn umask_hides(mode: u32) -> bool {
    umask() & mode != 0
}

/// The umask of the process, read without changing it.
pub(crate) fn umask() -> u32 {
    static UMASK: OnceLock<u32> = OnceLock::new();
    *UMASK.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        line.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o022)
    })
}

/// An unfinished file that is being received. While it is open, it is locked, so that two processes never write the same one.
#[derive(Debug)]
pub struct Incoming {
    path: PathBuf,
    file: File,
    size: u64,
    published: bool,
}

impl Incoming {
    /// Opens the unfinished file of an object in a folder.
    ///
    /// # Errors
    /// If it cannot be created.
    pub(crate) fn open(folder: &Path, digest: &Digest) -> Result<Self, DataError> {
        let path = folder.join(format!("{TEMPORARY}{digest}.part"));
        let open = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o644);
            options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path).map_err(DataError::io(path))
        };
        let file = open(&path)?;
        let is_locked = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        let metadata = file.metadata().map_err(DataError::io(&path))?;
        // Another process may have published the file between the two calls.
        let is_named = std::fs::metadata(&path).is_ok_and(|named| named.ino() == metadata.ino());
        if is_locked && is_named {
            return Ok(Self { path, file, size: metadata.len(), published: false });
        }
        let path = folder.join(temporary_name());
        Ok(Self { file: open(&path)?, path, size: 0, published: false })
    }

    /// Adds the bytes of an earlier transfer to a digest, and returns their number.
    pub(crate) fn rehash(&mut self, hasher: &mut Hasher) -> Result<u64, DataError> {
        if self.size == 0 {
            return Ok(0);
        }
        self.file.seek(SeekFrom::Start(0)).map_err(DataError::io(&self.path))?;
        with_buffer(|buffer| {
            loop {
                let length = fill(&mut self.file, buffer).map_err(DataError::io(&self.path))?;
                hasher.update(&buffer[..length]);
                if length < buffer.len() {
                    return Ok(self.size);
                }
            }
        })
    }

    /// Appends a chunk.
    pub(crate) fn write(&mut self, chunk: &[u8]) -> Result<(), DataError> {
        self.file.write_all(chunk).map_err(DataError::io(&self.path))?;
        self.size += chunk.len() as u64;
        Ok(())
    }

    /// Removes the content.
    pub(crate) fn clear(&mut self) -> Result<(), DataError> {
        self.size = 0;
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(DataError::io(&self.path))
    }

    /// Gives the file its name, read-only.
    pub(crate) fn publish(mut self, target: &Path) -> Result<(), DataError> {
        self.file.set_permissions(Permissions::from_mode(OBJECT_MODE)).map_err(DataError::io(&self.path))?;
        std::fs::rename(&self.path, target).map_err(DataError::io(target))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.published && self.size < KEEP_BYTES {
            let _ = std::fs::remove_file(&self.path); // Best effort; `gc` removes it otherwise.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HashName;

    #[test]
    fn large_files_are_continued_by_one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::parse("d41d8cd98f00b204e9800998ecf8427e").unwrap();
        let open = || Incoming::open(folder.path(), &digest).unwrap();
        let chunk = vec![7; usize::try_from(KEEP_BYTES).unwrap()];
        let mut first = open();
        first.write(&chunk).unwrap();
        let second = open();
        assert_ne!((&first.path, 0), (&second.path, 1));
        assert_eq!(second.size, 0, "the locked file of another process is not continued");
        drop((first, second));

        let mut continued = open();
        let mut hasher = Hasher::new(HashName::Md5);
        assert_eq!(continued.rehash(&mut hasher).unwrap(), KEEP_BYTES);
        continued.write(b"end").unwrap();
        hasher.update(b"end");
        let target = folder.path().join("object");
        continued.publish(&target).unwrap();
        assert_eq!(hasher.finish(), crate::hash::hash_file(&target, HashName::Md5).unwrap());

        open().write(b"small").unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the object is left");
    }
}
