//! Files and folders of the workspace while they are unfinished: they are created in `.dvc/tmp` and get their name when they are complete, so
//! that a killed process leaves nothing among the data.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::DataError;
use crate::incoming::{copy, temporary_name, umask};
use crate::stat::Stat;
use crate::state::RACY;
use crate::walk::read_folder;

/// Files from this size on are settled; to hash them takes longer than that.
const SETTLE_BYTES: u64 = 16 << 20;

/// The folder in `.dvc/tmp` for unfinished files of the workspace.
#[derive(Debug)]
pub struct Staging {
    folder: PathBuf,
    other_file_system: AtomicBool,
    folders: Mutex<HashSet<PathBuf>>,
}

impl Staging {
    /// Creates the folder in the project's `.dvc/tmp`, and removes what killed processes left. The caller holds the project's lock.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create_in(tmp: &Path) -> Result<Self, DataError> {
        let folder = tmp.join("slipway-staging");
        for leftover in read_folder(&folder)? {
            // Best effort; it is only in the way.
            let is_folder = leftover.file_type().is_ok_and(|kind| kind.is_dir());
            let _ = if is_folder {
                std::fs::remove_dir_all(leftover.path())
            } else {
                std::fs::remove_file(leftover.path())
            };
        }
        std::fs::create_dir_all(&folder).map_err(DataError::io(&folder))?;
        Ok(Self { folder, other_file_system: AtomicBool::new(false), folders: Mutex::default() })
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// Replaces `target` by what `make` creates at a path.
    pub(crate) fn replace(&self, target: &Path, make: impl Fn(&Path) -> std::io::Result<()>) -> std::io::Result<()> {
        let parent = target.parent().unwrap_or(Path::new("/"));
        self.make_folder(parent)?;
        let elsewhere = self.other_file_system.load(Ordering::Relaxed);
        let temporary = if elsewhere { parent } else { &self.folder }.join(temporary_name());
        if let Err(error) = make(&temporary).and_then(|()| std::fs::rename(&temporary, target)) {
            let _ = std::fs::remove_file(&temporary); // The error below is the one to report.
            if error.kind() == std::io::ErrorKind::CrossesDevices && !elsewhere {
                // The target is on another file system than `.dvc`.
                self.other_file_system.store(true, Ordering::Relaxed);
                return self.replace(target, make);
            }
            return Err(error);
        }
        Ok(())
    }

    /// Begins a folder that will appear at `target`, where nothing is; `None` if that is on another file system.
    ///
    /// # Errors
    /// An I/O error.
    pub(crate) fn tree(&self, target: &Path) -> std::io::Result<Option<Tree>> {
        let parent = target.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(parent)?;
        if std::fs::metadata(parent)?.dev() != std::fs::metadata(&self.folder)?.dev() {
            return Ok(None);
        }
        let path = self.folder.join(temporary_name());
        std::fs::create_dir(&path)?;
        Ok(Some(Tree { path, published: false }))
    }

    fn make_folder(&self, folder: &Path) -> std::io::Result<()> {
        let mut known = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(folder) {
            std::fs::create_dir_all(folder)?;
            known.insert(folder.to_owned());
        }
        Ok(())
    }
}

/// A new folder of the workspace, removed unless it is published. Its files need no names of their own while they are unfinished, which makes
/// it the fastest way to create many.
#[derive(Debug)]
pub(crate) struct Tree {
    path: PathBuf,
    published: bool,
}

impl Tree {
    /// The unfinished folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the folders of files with these paths below it; paths of the same folder follow each other.
    pub(crate) fn make_folders<'a>(&self, files: impl Iterator<Item = &'a str>) -> std::io::Result<()> {
        let mut last = "";
        for file in files {
            let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
            if folder != last {
                std::fs::create_dir_all(self.path.join(folder))?;
                last = folder;
            }
        }
        Ok(())
    }

    /// Gives the folder its name, and returns whether it could: not if the target proves to be on another file system.
    pub(crate) fn publish(mut self, target: &Path) -> std::io::Result<bool> {
        match std::fs::rename(&self.path, target) {
            Ok(()) => self.published = true,
            Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {}
            Err(error) => return Err(error),
        }
        Ok(self.published)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_dir_all(&self.path); // Best effort; the next command removes it otherwise.
        }
    }
}

/// Creates a file of the workspace for writing.
pub(crate) fn new_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o666).open(path)
}

/// Waits until a change of a large file that was just written will give it another modification time, so that its digest can be recorded (see
/// [`crate::state`]) and the file need not be read again. Only this process knows the file yet.
pub(crate) fn settle(file: &File) -> std::io::Result<()> {
    let metadata = file.metadata()?;
    if metadata.len() >= SETTLE_BYTES {
        let age = metadata.modified()?.elapsed().unwrap_or_default();
        std::thread::sleep(RACY.saturating_sub(age));
    }
    Ok(())
}

/// Makes a file of the workspace independent of the cache and writable. As in DVC, it gets the permissions of a new file.
///
/// # Errors
/// An I/O error.
pub(crate) fn unprotect(path: &Path, staging: &Staging) -> Result<(), DataError> {
    let Some(stat) = Stat::of_entry(path).map_err(DataError::io(path))? else { return Ok(()) };
    let is_link = stat.kind() == crate::stat::Kind::Link;
    if is_link || stat.links > 1 {
        return staging.replace(path, |new| copy(path, &new_file(new)?)).map_err(DataError::io(path));
    }
    let mode = 0o666 & !umask();
    if stat.mode & 0o777 != mode {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(DataError::io(path))?;
    }
    Ok(())
}

/// Lets the owner execute a file.
///
/// # Errors
/// An I/O error.
pub(crate) fn set_executable(path: &Path) -> Result<(), DataError> {
    let mode = std::fs::metadata(path).map_err(DataError::io(path))?.permissions().mode();
    if mode & 0o100 == 0 {
        std::fs::set_permissions(path, Permissions::from_mode(mode | 0o100)).map_err(DataError::io(path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::config::LinkType;
    use crate::model::{Digest, HashName};

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            read_folder(folder).unwrap().iter().map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_appears_complete_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let staging = Staging::create_in(&root.path().join("tmp")).unwrap();
        let target = root.path().join("work/data");
        let tree = staging.tree(&target).unwrap().unwrap();
        tree.make_folders(["a/b/x", "a/b/y", "c/x", "z"].into_iter()).unwrap();
        std::fs::write(tree.path().join("a/b/x"), "x").unwrap();
        assert!(!target.exists());
        assert!(tree.publish(&target).unwrap());
        assert_eq!((names(&target), names(&target.join("a/b"))), (vec!["a".into(), "c".into()], vec!["x".into()]));

        // What failed leaves nothing, and neither replaces what is there.
        let other = staging.tree(&target).unwrap().unwrap();
        std::fs::write(other.path().join("x"), "x").unwrap();
        assert!(other.publish(&target).is_err());
        drop(staging.tree(&target).unwrap().unwrap());
        assert!(names(staging.path()).is_empty() && names(&target) == ["a", "c"]);

        // A killed process leaves its folder, which the next command removes.
        let killed = staging.tree(&target).unwrap().unwrap();
        std::fs::create_dir(killed.path().join("a")).unwrap();
        std::mem::forget(killed);
        assert_eq!(names(staging.path()).len(), 1);
        let staging = Staging::create_in(&root.path().join("tmp")).unwrap();
        assert!(names(staging.path()).is_empty());
    }

    #[test]
    fn every_kind_of_link_replaces_the_others_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let staging = Staging::create_in(&root.path().join("tmp")).unwrap();
        let cache = Cache::new(&root.path().join("cache"), HashName::Md5, false);
        let digest = Digest::parse("5d41402abc4b2a76b9719d911017c592").unwrap();
        cache.put(&digest, b"hello").unwrap();
        let target = root.path().join("work/x");
        let all = [LinkType::Hardlink, LinkType::Symlink, LinkType::Copy];
        for link in all.iter().flat_map(|first| all.iter().flat_map(move |second| [first, second])) {
            cache.link(&digest, &target, &[*link], &staging).unwrap();
            let metadata = target.symlink_metadata().unwrap();
            let found = match metadata.is_symlink() {
                true => LinkType::Symlink,
                false if metadata.nlink() > 1 => LinkType::Hardlink,
                false => LinkType::Copy,
            };
            assert_eq!(found, *link);
            assert_eq!(std::fs::read(&target).unwrap(), b"hello");
            assert!(names(staging.path()).is_empty(), "{link:?}");
        }
        // In a new folder, a type that does not work leaves no file in the way of the next one.
        let fresh = root.path().join("work/fresh");
        cache.link_new(&digest, &fresh, &[LinkType::Reflink, LinkType::Copy]).unwrap();
        assert_eq!(std::fs::read(&fresh).unwrap(), b"hello");
        let missing = Digest::parse("d41d8cd98f00b204e9800998ecf8427e").unwrap();
        assert!(cache.link_new(&missing, &root.path().join("work/missing"), &[LinkType::Copy]).is_err());
        assert_eq!(names(&root.path().join("work")), ["fresh", "x"]);
    }
}
