//! What the file system reports about a file.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType};

/// The identity and the state of a file. Equal values mean an unchanged file, if the times are old enough (see [`crate::state`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The device of the file system.
    pub device: u64,
    /// The number of the file in the file system.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Time of the last change of the content, in nanoseconds since 1970.
    pub mtime: i64,
    /// Time of the last change of content or metadata, in nanoseconds since 1970.
    pub ctime: i64,
    /// Type and permissions.
    pub mode: u32,
    /// Number of names.
    pub links: u64,
}

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link, if it was not followed.
    Link,
    /// A device, socket or pipe.
    Other,
}

impl Stat {
    /// The state of an open file.
    ///
    /// # Errors
    /// An I/O error.
    pub fn of_file(file: impl AsFd) -> std::io::Result<Self> {
        Ok(Self::from_raw(&rustix::fs::fstat(file)?))
    }

    /// The state of the file at a path, following links; `None` if there is none.
    ///
    /// # Errors
    /// An I/O error.
    pub fn of_path(path: &Path) -> std::io::Result<Option<Self>> {
        Self::at(CWD, path, AtFlags::empty())
    }

    /// Like [`Self::of_path`], but a link is not followed.
    ///
    /// # Errors
    /// An I/O error.
    pub fn of_entry(path: &Path) -> std::io::Result<Option<Self>> {
        Self::at(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The state of an entry of an open folder.
    ///
    /// # Errors
    /// An I/O error.
    pub fn at(folder: impl AsFd, name: impl rustix::path::Arg, flags: AtFlags) -> std::io::Result<Option<Self>> {
        match rustix::fs::statat(folder, name, flags) {
            Ok(stat) => Ok(Some(Self::from_raw(&stat))),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    #[allow(clippy::unnecessary_cast)] // The types differ between architectures.
    fn from_raw(stat: &rustix::fs::Stat) -> Self {
        let nanoseconds =
            |seconds: i64, nanoseconds: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
        Self {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: nanoseconds(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            ctime: nanoseconds(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
            mode: stat.st_mode,
            links: stat.st_nlink as u64,
        }
    }

    /// The type.
    pub fn kind(&self) -> Kind {
        match FileType::from_raw_mode(self.mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Folder,
            FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        }
    }

    /// Whether the owner may execute the file.
    pub fn is_executable(&self) -> bool {
        self.mode & 0o100 != 0
    }
}
