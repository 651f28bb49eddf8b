//! The identity of a file or folder in the workspace.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use rayon::prelude::*;

use crate::cache::Cache;
use crate::error::DataError;
use crate::hash::hash_file;
use crate::ignore::Rules;
use crate::manifest::{Entry, Manifest, digest_of_files};
use crate::model::{Digest, HashName, Meta};
use crate::stat::{Kind, Stat};
use crate::state::State;
use crate::walk::{FileState, Files, Found, walk};

/// What a path of the workspace contains.
#[derive(Debug)]
pub struct Snapshot {
    /// The digest of the file or folder.
    pub digest: Digest,
    /// Size, number of files, permission.
    pub meta: Meta,
    /// The files of a folder.
    pub manifest: Option<Manifest>,
    /// The states of the files, in the order of the manifest; one for a file.
    pub files: Vec<FileState>,
}

impl Snapshot {
    /// The files with their digests; a file has one with an empty path.
    pub fn entries(&self) -> Vec<(&str, Digest)> {
        match &self.manifest {
            Some(manifest) => manifest.entries.iter().map(|entry| (entry.path.as_str(), entry.digest)).collect(),
            None => vec![("", self.digest)],
        }
    }

    /// The identity of a copy of it, which, as in DVC, is not executable.
    pub fn into_copy(mut self) -> Self {
        self.meta.is_exec = false;
        self
    }
}

/// Computes the identity of what is at `path`; `None` if there is nothing. Files that `state` knows are not read. With a cache, each file is
/// also stored in it, and then the manifest of a folder.
///
/// # Errors
/// If a file cannot be read or stored.
pub fn take(
    path: &Path,
    rules: &Arc<Rules>,
    state: &State,
    hash: HashName,
    store: Option<&Cache>,
) -> Result<Option<Snapshot>, DataError> {
    let Some(stat) = Stat::of_path(path).map_err(DataError::io(path))? else { return Ok(None) };
    let is_folder = match stat.kind() {
        Kind::File => false,
        Kind::Folder => true,
        _ => return Err(DataError::Invalid(format!("'{}' is neither a file nor a folder", path.display()))),
    };
    let files = if is_folder {
        walk(path, rules)?
    } else {
        let is_link = Stat::of_entry(path).map_err(DataError::io(path))?.is_some_and(|stat| stat.kind() == Kind::Link);
        vec![Found { path: String::new(), state: FileState { stat, is_link } }]
    };
    let now = SystemTime::now();
    // Each digest, and whether it was known before.
    let digests: Vec<([u8; 16], bool)> = files
        .par_iter()
        .map(|file| {
            let known = if hash == HashName::Md5 { state.get(&file.state.stat) } else { None };
            let full = || if file.path.is_empty() { path.to_owned() } else { path.join(&file.path) };
            let md5 = match (store, known) {
                (Some(cache), known) => cache.store(&full(), &file.state.stat, known)?,
                (None, Some(md5)) => md5,
                (None, None) => hash_file(&full(), hash)?,
            };
            Ok((md5, known.is_some()))
        })
        .collect::<Result<_, DataError>>()?;
    if hash == HashName::Md5 {
        let unknown = files.iter().zip(&digests).filter(|(_, (_, is_known))| !is_known);
        state.record(unknown.map(|(file, (md5, _))| (file.state.stat, *md5)), now);
    }
    if !is_folder {
        let digest = Digest::of_file(digests.first().copied().unwrap_or_default().0);
        let meta = Meta { size: Some(stat.size), nfiles: None, is_exec: stat.is_executable() };
        let files = files.into_iter().map(|file| file.state).collect();
        return Ok(Some(Snapshot { digest, meta, manifest: None, files }));
    }
    let (states, paths): (Vec<_>, Vec<_>) = files.into_iter().map(|file| (file.state, file.path)).unzip();
    let entries = paths.into_iter().zip(&states).zip(digests).map(|((path, state), (md5, _))| Entry {
        path,
        digest: Digest::of_file(md5),
        size: Some(state.stat.size),
    });
    let manifest = Manifest { entries: entries.collect() }; // The walk is sorted by path, as a manifest is.
    let meta = Meta { size: manifest.size(), nfiles: Some(manifest.entries.len() as u64), is_exec: false };
    let digest = match store {
        Some(cache) => cache.put_manifest(&manifest)?,
        None => manifest.digest(),
    };
    Ok(Some(Snapshot { digest, meta, manifest: Some(manifest), files: states }))
}

/// The digest of what is at `path`, like that of [`take`], in much less memory; `None` if there is nothing.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn identify(
    path: &Path,
    rules: &Arc<Rules>,
    state: &State,
    hash: HashName,
) -> Result<Option<Digest>, DataError> {
    let stat = Stat::of_path(path).map_err(DataError::io(path))?;
    if stat.is_none_or(|stat| stat.kind() != Kind::Folder) {
        return Ok(take(path, rules, state, hash, None)?.map(|snapshot| snapshot.digest));
    }
    let mut files = Files::below(path, rules, &|file| known(state, hash, file))?;
    hash_all(path, &mut files, state, hash, None)?;
    Ok(Some(digest_of_files(hashed(&files))))
}

/// Stores a folder in the cache, and returns what it is, in much less memory than [`take`]; `None` if there is no folder, or if it contains
/// links, which may have to be replaced one by one.
///
/// # Errors
/// If a file cannot be read or stored.
pub(crate) fn store_folder(
    path: &Path,
    rules: &Arc<Rules>,
    state: &State,
    cache: &Cache,
) -> Result<Option<(Digest, Meta)>, DataError> {
    let stat = Stat::of_path(path).map_err(DataError::io(path))?;
    if stat.is_none_or(|stat| stat.kind() != Kind::Folder) {
        return Ok(None);
    }
    let (bytes, has_links) = (AtomicU64::new(0), AtomicBool::new(false));
    let keep = |file: &FileState| {
        bytes.fetch_add(file.stat.size, Ordering::Relaxed);
        if file.is_link || file.stat.links > 1 {
            has_links.store(true, Ordering::Relaxed);
        }
        known(state, HashName::Md5, file)
    };
    let mut files = Files::below(path, rules, &keep)?;
    if has_links.into_inner() {
        return Ok(None);
    }
    hash_all(path, &mut files, state, HashName::Md5, Some(cache))?;
    let digest = cache.put_manifest_of(hashed(&files))?;
    let meta = Meta { size: Some(bytes.into_inner()), nfiles: Some(files.len() as u64), is_exec: false };
    Ok(Some((digest, meta)))
}

/// The files of a folder, each with its digest if it is known.
type Hashed = Files<Option<[u8; 16]>>;

/// The files of a folder of which all are hashed.
fn hashed(files: &Hashed) -> impl Iterator<Item = (&str, &str, [u8; 16])> {
    files.iter().map(|(folder, name, md5)| (folder, name, md5.unwrap_or_default()))
}

fn known(state: &State, hash: HashName, file: &FileState) -> Option<[u8; 16]> {
    if hash == HashName::Md5 { state.get(&file.stat) } else { None }
}

/// Hashes the files of a folder whose digests are not known, and records these. With a cache, each file is stored in it.
fn hash_all(
    path: &Path,
    files: &mut Hashed,
    state: &State,
    hash: HashName,
    cache: Option<&Cache>,
) -> Result<(), DataError> {
    let now = SystemTime::now();
    files.try_each_mut(|folder, name, md5| {
        let is_done = match (cache, &md5) {
            (Some(cache), Some(md5)) => cache.contains(&Digest::of_file(*md5))?,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if is_done {
            return Ok(());
        }
        let full = path.join(format!("{folder}{name}"));
        let stat = Stat::of_path(&full).map_err(DataError::io(&full))?;
        let stat = stat.ok_or_else(|| DataError::Missing(full.display().to_string()))?;
        let found = match cache {
            Some(cache) => cache.store(&full, &stat, None)?,
            None => hash_file(&full, hash)?,
        };
        *md5 = Some(found);
        if hash == HashName::Md5 {
            state.record([(stat, found)], now);
        }
        Ok(())
    })
}
