//! Removing data from the workspace. Only the files that a walk finds are removed, and then the folders that are empty: what is ignored, such as the
//! repositories of Git in a folder, is not part of any data.

use std::collections::BTreeSet;
use std::io::ErrorKind::{DirectoryNotEmpty, NotADirectory, NotFound};
use std::path::Path;
use std::sync::Arc;

use crate::error::DataError;
use crate::ignore::{Rules, is_reserved};
use crate::walk::walk;

/// Removes a file, or a folder of data. A folder stays if it has other files.
///
/// # Errors
/// If something cannot be read or removed.
pub(crate) fn remove_data(path: &Path, rules: &Arc<Rules>) -> Result<(), DataError> {
    let is_folder = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    if !is_folder {
        return remove_file(path);
    }
    for file in walk(path, rules)? {
        remove_file(&path.join(&file.path))?;
    }
    remove_empty_folders(path, Path::new(""), &BTreeSet::new())?;
    match std::fs::remove_dir(path) {
        Err(error) if !matches!(error.kind(), NotFound | DirectoryNotEmpty) => Err(DataError::io(path)(error)),
        _ => Ok(()),
    }
}

/// Removes a file, if it exists.
///
/// # Errors
/// If it cannot be removed.
pub(crate) fn remove_file(path: &Path) -> Result<(), DataError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != NotFound => Err(DataError::io(path)(error)),
        _ => Ok(()),
    }
}

/// Removes the folders below a folder that are empty and not kept, and returns their number.
///
/// # Errors
/// If a folder cannot be read.
pub(crate) fn remove_empty_folders(root: &Path, relative: &Path, kept: &BTreeSet<&Path>) -> Result<u64, DataError> {
    let folder = root.join(relative);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(0),
        Err(error) => return Err(DataError::io(&folder)(error)),
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(DataError::io(&folder))?;
        let below = relative.join(entry.file_name());
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || is_reserved(Path::new(&entry.file_name())) {
            continue;
        }
        removed += remove_empty_folders(root, &below, kept)?;
        if !kept.contains(below.as_path()) && std::fs::remove_dir(root.join(&below)).is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_are_data_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for file in ["data/a", "data/sub/b", "data/.git/config", "data/.git/refs/x", "only/a", "only/sub/b"] {
            std::fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            std::fs::write(root.join(file), "x").unwrap();
        }
        std::fs::create_dir_all(root.join("data/.git/objects")).unwrap();
        std::fs::create_dir_all(root.join("only/empty/folder")).unwrap();
        let rules = Rules::dvcignore(root).unwrap();
        for name in ["data", "only", "missing"] {
            remove_data(&root.join(name), &rules).unwrap();
        }
        assert!(!root.join("only").exists() && !root.join("data/a").exists() && !root.join("data/sub").exists());
        assert!(root.join("data/.git/config").exists() && root.join("data/.git/objects").exists());
    }
}
