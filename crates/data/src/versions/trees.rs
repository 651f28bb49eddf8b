//! Read-only trees of hard links to the objects of a cache, which of them are in use, and which were used last.
//!
//! ```text
//! trees/NAME/tree        the files of a version; a single file is named `file`
//! trees/NAME/manifest    the manifest that lists the files, so that it stays in the cache as long as they do
//! trees/NAME/used        changed when the tree is used
//! holders/HOLDER/NAME    the holder uses the tree
//! ```

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rayon::prelude::*;
use slipway_core::data_volume::FILE;

use super::locate::Content;
use crate::cache::Cache;
use crate::error::DataError;
use crate::ignore::is_reserved;
use crate::incoming::{TEMPORARY, temporary_name};
use crate::model::{Digest, HashName};

/// The permissions of folders in a tree.
const FOLDER_MODE: u32 = 0o555;

/// The trees of a depot. The caller excludes other changes.
#[derive(Debug)]
pub(super) struct Trees {
    trees: PathBuf,
    holders: PathBuf,
}

impl Trees {
    /// Opens the trees below a folder, and removes what killed processes left.
    pub(super) fn open(root: &Path) -> Result<Self, DataError> {
        let opened = Self { trees: root.join("trees"), holders: root.join("holders") };
        for folder in [&opened.trees, &opened.holders] {
            std::fs::create_dir_all(folder).map_err(DataError::io(folder))?;
        }
        for name in names(&opened.trees)?.into_iter().filter(|name| name.starts_with(TEMPORARY)) {
            remove(&opened.trees.join(name))?;
        }
        Ok(opened)
    }

    /// The folder of all trees.
    pub(super) fn folder(&self) -> &Path {
        &self.trees
    }

    /// The name of the tree of a content.
    pub(super) fn name(content: &Content) -> String {
        let legacy = if content.hash == HashName::Dos2Unix { "-legacy" } else { "" };
        let executable = if content.is_exec { "-exec" } else { "" };
        format!("{}{legacy}{executable}", content.digest)
    }

    /// The path of the tree's files: a folder, or the file of a single file.
    pub(super) fn path(&self, name: &str, content: &Content) -> PathBuf {
        let tree = self.trees.join(name).join("tree");
        if content.digest.is_dir { tree } else { tree.join(FILE) }
    }

    /// Records that a holder uses a tree, whether or not the tree exists yet.
    pub(super) fn hold(&self, holder: &str, name: &str) -> Result<(), DataError> {
        let folder = self.holders.join(holder);
        std::fs::create_dir_all(&folder).map_err(DataError::io(&folder))?;
        let file = folder.join(name);
        File::create(&file).map(drop).map_err(DataError::io(&file))?;
        let used = self.trees.join(name).join("used");
        match File::options().write(true).open(&used).and_then(|used| used.set_modified(SystemTime::now())) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DataError::io(&used)(error)),
            _ => Ok(()),
        }
    }

    /// Records that a holder uses no trees.
    pub(super) fn release(&self, holder: &str) -> Result<(), DataError> {
        let folder = self.holders.join(holder);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DataError::io(&folder)(error)),
            _ => Ok(()),
        }
    }

    /// The holders.
    pub(super) fn holders(&self) -> Result<Vec<String>, DataError> {
        names(&self.holders)
    }

    /// The files of a tree whose content may have changed since it was created; `None` if there is no such tree. The owner of a hard link can
    /// change the object, and root can although it is read-only.
    pub(super) fn changed(&self, name: &str, content: &Content) -> Result<Option<Vec<Digest>>, DataError> {
        let root = self.trees.join(name);
        let Ok(created) = std::fs::symlink_metadata(root.join("tree")).and_then(|tree| tree.modified()) else {
            return Ok(None);
        };
        let is_changed = |(path, digest): &(String, Digest)| {
            let path = self.file(&root.join("tree"), path);
            let metadata = std::fs::symlink_metadata(&path);
            let intact = metadata.is_ok_and(|file| file.is_file() && file.modified().is_ok_and(|time| time <= created));
            (!intact).then_some(*digest)
        };
        Ok(Some(content.files.par_iter().filter_map(is_changed).collect()))
    }

    fn file(&self, tree: &Path, path: &str) -> PathBuf {
        tree.join(if path.is_empty() { FILE } else { path })
    }

    /// Creates the tree of a content whose objects are in the cache. A tree that exists is replaced.
    pub(super) fn create(&self, name: &str, content: &Content, cache: &Cache) -> Result<(), DataError> {
        let unfinished = self.trees.join(temporary_name());
        let tree = unfinished.join("tree");
        let mut folders = BTreeSet::from([tree.clone()]);
        for (path, _) in &content.files {
            if is_reserved(Path::new(path)) {
                return Err(DataError::Reserved(path.into()));
            }
            let file = self.file(&tree, path);
            folders.extend(file.ancestors().skip(1).take_while(|folder| *folder != tree).map(Path::to_owned));
        }
        for folder in &folders {
            std::fs::create_dir_all(folder).map_err(DataError::io(folder))?;
        }
        content.files.par_iter().try_for_each(|(path, digest)| {
            let (object, target) = (cache.path(digest), self.file(&tree, path));
            link(&object, &target, content.is_exec).map_err(DataError::io(&target))
        })?;
        if let Some(manifest) = &content.manifest {
            let target = unfinished.join("manifest");
            link(&cache.path(manifest), &target, false).map_err(DataError::io(&target))?;
        }
        for folder in &folders {
            std::fs::set_permissions(folder, Permissions::from_mode(FOLDER_MODE)).map_err(DataError::io(folder))?;
        }
        let used = unfinished.join("used");
        File::create(&used).map_err(DataError::io(&used))?;
        // Its time is that of the tree's creation, with which the times of the files are compared.
        let created = File::open(&tree).and_then(|folder| folder.set_modified(SystemTime::now()));
        created.map_err(DataError::io(&tree))?;
        self.remove(name)?;
        let target = self.trees.join(name);
        std::fs::rename(&unfinished, &target).map_err(DataError::io(&target))
    }

    /// Removes a tree: first its name, so that no part of a tree has the name.
    fn remove(&self, name: &str) -> Result<(), DataError> {
        let (path, removed) = (self.trees.join(name), self.trees.join(temporary_name()));
        match std::fs::rename(&path, &removed) {
            Ok(()) => remove(&removed),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(DataError::io(&path)(error)),
        }
    }

    /// Removes the tree that no holder uses and whose last use is the longest ago. False if there is none.
    pub(super) fn evict_oldest(&self) -> Result<bool, DataError> {
        let mut in_use = BTreeSet::new();
        for holder in self.holders()? {
            in_use.extend(names(&self.holders.join(holder))?);
        }
        let unused = names(&self.trees)?.into_iter().filter(|name| !in_use.contains(name));
        let last_use = |name: &String| std::fs::metadata(self.trees.join(name).join("used"))?.modified();
        let oldest = unused.min_by_key(|name| last_use(name).unwrap_or(SystemTime::UNIX_EPOCH));
        oldest.map_or(Ok(false), |name| self.remove(&name).map(|()| true))
    }
}

/// Gives an object a second name. A file that must be executable, or has too many names, is copied.
fn link(object: &Path, target: &Path, is_exec: bool) -> std::io::Result<()> {
    if !is_exec {
        match std::fs::hard_link(object, target) {
            Err(error) if error.kind() == std::io::ErrorKind::TooManyLinks => {}
            linked => return linked,
        }
    }
    std::fs::copy(object, target)?;
    std::fs::set_permissions(target, Permissions::from_mode(if is_exec { 0o555 } else { 0o444 }))
}

fn names(folder: &Path) -> Result<Vec<String>, DataError> {
    let entries = std::fs::read_dir(folder).map_err(DataError::io(folder))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    names.collect::<Result<_, _>>().map_err(DataError::io(folder))
}

/// Removes a tree with its read-only folders.
fn remove(path: &Path) -> Result<(), DataError> {
    make_writable(path).and_then(|()| std::fs::remove_dir_all(path)).map_err(DataError::io(path))
}

fn make_writable(folder: &Path) -> std::io::Result<()> {
    std::fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_writable(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_no_folder_of_git() {
        let folder = tempfile::tempdir().unwrap();
        let trees = Trees::open(folder.path()).unwrap();
        let cache = Cache::new(&folder.path().join("cache"), HashName::Md5, false);
        let digest = Digest::of_file([7; 16]);
        cache.put(&digest, b"x").unwrap();
        let create = |path: &str| {
            let files = vec![(path.to_owned(), digest)];
            let content = Content { digest, hash: HashName::Md5, is_exec: false, files, manifest: None, bytes: None };
            trees.create("a", &content, &cache)
        };
        create("sub/file").unwrap();
        assert!(matches!(create("sub/.git/config"), Err(DataError::Reserved(_))));
    }
}
