//! Walking a folder with all cores.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use crate::error::DataError;
use crate::ignore::{DVCIGNORE, Rules};
use crate::stat::{Kind, Stat};

/// A file below the walked folder.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// The path below the folder, with `/` as separator.
    pub(crate) path: String,
    pub(crate) state: FileState,
}

/// The state of a file of the workspace.
#[derive(Debug, Clone, Copy)]
pub struct FileState {
    /// The state of the file; of the target, if it is a symbolic link.
    pub stat: Stat,
    /// Whether it is a symbolic link.
    pub is_link: bool,
}

/// The files below a folder that are data, sorted by path. As in DVC, ignored entries, links to folders and other projects are left out.
///
/// # Errors
/// If a folder cannot be read, a name is not UTF-8, a link is broken, or the folder contains a `.dvcignore`.
pub(crate) fn walk(folder: &Path, rules: &Arc<Rules>) -> Result<Vec<Found>, DataError> {
    let results = Mutex::new(Results::default());
    rayon::scope(|scope| visit(scope, folder.to_owned(), String::new(), rules.clone(), &results));
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    match results.error.take() {
        Some(error) => Err(error),
        None => {
            // The parts are sorted, so that this sort has little to do: only files beside folders may be in another place.
            results.found.sort_unstable_by(|a, b| by_path(&a[0], &b[0]));
            let mut found = Vec::with_capacity(results.found.iter().map(Vec::len).sum());
            results.found.into_iter().for_each(|mut part| found.append(&mut part));
            found.sort_by(by_path);
            Ok(found)
        }
    }
}

fn by_path(a: &Found, b: &Found) -> std::cmp::Ordering {
    a.path.cmp(&b.path)
}

#[derive(Default)]
struct Results {
    /// The files of each folder that has some, sorted.
    found: Vec<Vec<Found>>,
    error: Option<DataError>,
}

fn visit<'s>(
    scope: &rayon::Scope<'s>,
    folder: PathBuf,
    prefix: String,
    rules: Arc<Rules>,
    results: &'s Mutex<Results>,
) {
    let finish = |outcome: Result<Vec<Found>, DataError>| {
        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(found) if found.is_empty() => {}
            Ok(found) => results.found.push(found),
            Err(error) => drop(results.error.get_or_insert(error)),
        }
    };
    match entries(&folder, &prefix, &rules) {
        Ok((mut found, folders)) => {
            found.sort_unstable_by(by_path);
            finish(Ok(found));
            for name in folders {
                let below = folder.join(&name);
                let prefix = format!("{prefix}{name}/");
                let rules = rules.clone();
                scope.spawn(move |scope| match rules.enter(&below) {
                    Ok(rules) => visit(scope, below, prefix, rules, results),
                    Err(error) => {
                        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                        results.error.get_or_insert(error);
                    }
                });
            }
        }
        Err(error) => finish(Err(error)),
    }
}

/// The files of a folder, and the names of the folders in it.
fn entries(folder: &Path, prefix: &str, rules: &Rules) -> Result<(Vec<Found>, Vec<String>), DataError> {
    let open = || rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let descriptor = open().map_err(|e| DataError::io(folder)(e.into()))?;
    let mut listing = Dir::read_from(&descriptor).map_err(|e| DataError::io(folder)(e.into()))?;
    let (mut found, mut folders) = (Vec::new(), Vec::new());
    while let Some(entry) = listing.read() {
        let entry = entry.map_err(|e| DataError::io(folder)(e.into()))?;
        let raw = entry.file_name();
        if raw == c"." || raw == c".." {
            continue;
        }
        let Ok(name) = raw.to_str() else {
            let name = raw.to_string_lossy();
            return Err(DataError::Invalid(format!("{}: the name '{name}' is not valid UTF-8", folder.display())));
        };
        let path = folder.join(name);
        let mut kind = entry.file_type();
        let mut stat = None;
        if kind == FileType::Unknown {
            stat = Stat::at(&descriptor, raw, AtFlags::SYMLINK_NOFOLLOW).map_err(DataError::io(&path))?;
            kind = stat.map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.mode));
        }
        let is_link = kind == FileType::Symlink;
        if kind == FileType::Directory {
            if !rules.is_ignored(&path, true) && !path.join(".dvc").is_dir() {
                folders.push(name.to_owned());
            }
            continue;
        }
        if rules.is_ignored(&path, false) {
            continue;
        }
        if name == DVCIGNORE {
            return Err(DataError::NestedRules(folder.to_owned()));
        }
        if is_link || stat.is_none() {
            stat = Stat::at(&descriptor, raw, AtFlags::empty()).map_err(DataError::io(&path))?;
        }
        let Some(stat) = stat else {
            if is_link {
                return Err(DataError::Invalid(format!("{} is a broken symbolic link", path.display())));
            }
            continue; // It was removed in the meantime.
        };
        match stat.kind() {
            Kind::File => found.push(Found { path: format!("{prefix}{name}"), state: FileState { stat, is_link } }),
            Kind::Folder => {}
            _ => return Err(DataError::Invalid(format!("{} is not a regular file", path.display()))),
        }
    }
    Ok((found, folders))
}

/// Opens a file for reading.
///
/// # Errors
/// An I/O error with the path.
pub(crate) fn open(path: &Path) -> Result<File, DataError> {
    File::open(path).map_err(DataError::io(path))
}

/// The entries of a folder; none if it does not exist.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn read_folder(folder: &Path) -> Result<Vec<std::fs::DirEntry>, DataError> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.collect::<Result<_, _>>().map_err(DataError::io(folder)),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(DataError::io(folder)(error)),
    }
}
