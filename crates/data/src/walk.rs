//! Walking a folder with all cores.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
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
    let parts = parts(folder, rules, &|state| *state)?;
    let mut found = Vec::with_capacity(parts.iter().map(|part| part.files.len()).sum());
    for part in parts {
        let full =
            |file: &Name<FileState>| Found { path: format!("{}{}", part.folder, part.name(file)), state: file.kept };
        found.extend(part.files.iter().map(full));
    }
    // The parts are sorted, so that this sort has little to do: only files beside folders may be in another place.
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Files like those of [`walk`], for millions of them: each takes the bytes of its name and of what is kept of it.
#[derive(Debug)]
pub(crate) struct Files<T> {
    parts: Vec<Part<T>>,
    /// The numbers of part and file, sorted by path.
    order: Vec<(u32, u32)>,
}

impl<T: Send> Files<T> {
    /// Keeps `keep` of each file below a folder.
    ///
    /// # Errors
    /// As [`walk`].
    pub(crate) fn below(
        folder: &Path,
        rules: &Arc<Rules>,
        keep: &(dyn Fn(&FileState) -> T + Sync),
    ) -> Result<Self, DataError> {
        let parts = parts(folder, rules, keep)?;
        let mut order = Vec::with_capacity(parts.iter().map(|part| part.files.len()).sum());
        for (number, part) in (0..).zip(&parts) {
            order.extend((0..).zip(&part.files).map(|(i, _)| (number, i)));
        }
        let mut files = Self { parts, order: Vec::new() };
        order.sort_by(|a, b| match a.0 == b.0 {
            true => a.1.cmp(&b.1),
            false => {
                let path = |at| {
                    let (folder, name, _) = files.at(at);
                    folder.bytes().chain(name.bytes())
                };
                path(*a).cmp(path(*b))
            }
        });
        files.order = order;
        Ok(files)
    }

    fn at(&self, (part, file): (u32, u32)) -> (&str, &str, &T) {
        let part = &self.parts[part as usize];
        let file = &part.files[file as usize];
        (&part.folder, part.name(file), &file.kept)
    }

    /// The number of files.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// The files, sorted by path. Each is the path of its folder, which is empty or ends with `/`, its name, and what was kept of it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str, &T)> {
        self.order.iter().map(|at| self.at(*at))
    }

    /// Calls `change` with the folder and name, as [`Self::iter`] returns them, and what was kept of each file, on all cores.
    ///
    /// # Errors
    /// The first error of `change`.
    pub(crate) fn try_each_mut<E: Send>(
        &mut self,
        change: impl Fn(&str, &str, &mut T) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        self.parts.par_iter_mut().try_for_each(|part| {
            let (folder, names) = (&part.folder, &part.names);
            part.files
                .par_iter_mut()
                .try_for_each(|file| change(folder, &names[file.start as usize..file.end as usize], &mut file.kept))
        })
    }
}

/// The files of a folder, sorted by name.
#[derive(Debug)]
struct Part<T> {
    /// The path of the folder below the walked one, empty or with `/` at its end.
    folder: String,
    names: String,
    files: Vec<Name<T>>,
}

/// A file of a folder.
#[derive(Debug)]
struct Name<T> {
    /// Where its name begins in the names of the folder, and where it ends.
    start: u32,
    end: u32,
    kept: T,
}

impl<T> Part<T> {
    fn name(&self, file: &Name<T>) -> &str {
        &self.names[file.start as usize..file.end as usize]
    }

    fn add(&mut self, name: &str, kept: T) -> Result<(), DataError> {
        let position = |bytes: usize| {
            u32::try_from(bytes).map_err(|_| DataError::Invalid(format!("'{}' has too many files", self.folder)))
        };
        let (start, end) = (position(self.names.len())?, position(self.names.len() + name.len())?);
        self.names.push_str(name);
        self.files.push(Name { start, end, kept });
        Ok(())
    }

    fn finish(&mut self) {
        let names = std::mem::take(&mut self.names);
        let name = |file: &Name<T>| &names[file.start as usize..file.end as usize];
        self.files.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        self.files.shrink_to_fit();
        self.names = names;
        self.names.shrink_to_fit();
    }
}

/// The files of all folders with files, sorted by folder.
fn parts<T: Send>(
    folder: &Path,
    rules: &Arc<Rules>,
    keep: &(dyn Fn(&FileState) -> T + Sync),
) -> Result<Vec<Part<T>>, DataError> {
    let walk = Walk { keep, results: Mutex::new(Ok(Vec::new())) };
    rayon::scope(|scope| visit(scope, folder.to_owned(), String::new(), rules.clone(), &walk));
    let mut parts = walk.results.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    parts.sort_unstable_by(|a, b| a.folder.cmp(&b.folder));
    Ok(parts)
}

/// A walk with all cores.
struct Walk<'a, T> {
    keep: &'a (dyn Fn(&FileState) -> T + Sync),
    /// What was found, or the first error.
    results: Mutex<Result<Vec<Part<T>>, DataError>>,
}

impl<T> Walk<'_, T> {
    fn finish(&self, outcome: Result<Part<T>, DataError>) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        match (results.as_mut(), outcome) {
            (Ok(parts), Ok(part)) if !part.files.is_empty() => parts.push(part),
            (Ok(_), Err(error)) => *results = Err(error),
            _ => {}
        }
    }
}

fn visit<'s, T: Send>(
    scope: &rayon::Scope<'s>,
    folder: PathBuf,
    prefix: String,
    rules: Arc<Rules>,
    walk: &'s Walk<'_, T>,
) {
    match entries(&folder, &prefix, &rules, walk.keep) {
        Ok((part, folders)) => {
            walk.finish(Ok(part));
            for name in folders {
                let below = folder.join(&name);
                let prefix = format!("{prefix}{name}/");
                let rules = rules.clone();
                scope.spawn(move |scope| match rules.enter(&below) {
                    Ok(rules) => visit(scope, below, prefix, rules, walk),
                    Err(error) => walk.finish(Err(error)),
                });
            }
        }
        Err(error) => walk.finish(Err(error)),
    }
}

/// The files of a folder, and the names of the folders in it.
fn entries<T>(
    folder: &Path,
    prefix: &str,
    rules: &Rules,
    keep: &(dyn Fn(&FileState) -> T + Sync),
) -> Result<(Part<T>, Vec<String>), DataError> {
    let open = || rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let descriptor = open().map_err(|e| DataError::io(folder)(e.into()))?;
    let mut listing = Dir::read_from(&descriptor).map_err(|e| DataError::io(folder)(e.into()))?;
    let mut part = Part { folder: prefix.to_owned(), names: String::new(), files: Vec::new() };
    let mut folders = Vec::new();
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
            Kind::File => part.add(name, keep(&FileState { stat, is_link }))?,
            Kind::Folder => {}
            _ => return Err(DataError::Invalid(format!("{} is not a regular file", path.display()))),
        }
    }
    part.finish();
    Ok((part, folders))
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
