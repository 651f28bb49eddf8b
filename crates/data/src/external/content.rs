//! How files of another repository get into a cache or a folder here.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, TryStreamExt};
use md5::{Digest as _, Md5};
use rayon::prelude::*;

use super::repository::{Kind, Node, Repository, Source, child};
use crate::cache::Cache;
use crate::error::DataError;
use crate::model::{Digest, HashName};
use crate::remote::versioned::open_source;
use crate::stat::Stat;

/// Files of a commit up to this size are stored without a temporary file.
const SMALL_BYTES: u64 = 1 << 20;

/// A file of a repository.
#[derive(Debug, Clone)]
pub struct Tracked {
    /// The path below the folder that was requested; empty if the file itself was.
    pub path: String,
    /// The file.
    pub node: Node,
}

impl Repository {
    /// Whether a path is a folder, and the files at or below it, sorted by path; `None` if there is nothing.
    ///
    /// # Errors
    /// If a file or manifest cannot be read.
    pub async fn files(&self, path: &str) -> Result<Option<(bool, Vec<Tracked>)>, DataError> {
        let Some(node) = self.node(path).await? else { return Ok(None) };
        if !node.is_folder() {
            return Ok(Some((false, vec![Tracked { path: String::new(), node }])));
        }
        let mut files = Vec::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            let full = if folder.is_empty() { path.to_owned() } else { child(path, &folder) };
            for (name, node) in self.children(&full, false).await? {
                let below = child(&folder, &name);
                if node.is_folder() { folders.push(below) } else { files.push(Tracked { path: below, node }) }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Some((true, files)))
    }

    /// Makes objects of a project available in the cache `target`, from a cache on this machine or from the project's remote.
    ///
    /// # Errors
    /// [`DataError::NotInCache`] if neither has an object, or an error of the remote.
    pub(super) async fn receive(
        &self,
        number: usize,
        target: &Cache,
        digests: &[Digest],
        jobs: Option<usize>,
    ) -> Result<(), DataError> {
        let data = &self.projects[number];
        let mut missing = Vec::new();
        for digest in digests {
            if target.contains(digest)? {
                continue;
            }
            let mut source = None;
            for cache in data.caches.iter().filter(|cache| cache.hash() == target.hash()) {
                if source.is_none() && cache.contains(digest)? {
                    source = Some(cache);
                }
            }
            match source {
                Some(cache) => target.copy_from(cache, digest, true)?,
                None => missing.push(*digest),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let remote = match open_source(&data.config, None, "fetch", data.outputs()) {
            Err(DataError::NoRemote(_)) if !data.caches.is_empty() => {
                return Err(DataError::NotInCache(missing.iter().map(Digest::to_string).collect()));
            }
            opened => opened?,
        };
        let downloads = missing.iter().map(|digest| remote.download(target, digest));
        let received: Result<Vec<()>, DataError> =
            futures_util::stream::iter(downloads).buffer_unordered(remote.concurrency(jobs)).try_collect().await;
        received.map(drop)
    }

    /// Receives the objects among the files.
    async fn receive_files(&self, files: &[Tracked], jobs: Option<usize>) -> Result<(), DataError> {
        for number in 0..self.projects.len() {
            for hash in [HashName::Md5, HashName::Dos2Unix] {
                let wanted = files.iter().filter_map(|file| match file.node.kind {
                    Kind::Object(n, h, digest) if (n, h) == (number, hash) => Some(digest),
                    _ => None,
                });
                let mut wanted: Vec<Digest> = wanted.collect();
                wanted.sort_unstable();
                wanted.dedup();
                if !wanted.is_empty() {
                    self.receive(number, self.received(hash), &wanted, jobs).await?;
                }
            }
        }
        Ok(())
    }

    /// The place on this machine of a file that is not a blob of Git, after [`Self::receive_files`].
    fn place(&self, file: &Tracked) -> Option<PathBuf> {
        match &file.node.kind {
            Kind::Disk(path) => Some(path.clone()),
            Kind::Object(_, hash, digest) => Some(self.received(*hash).path(digest)),
            Kind::Blob(_) | Kind::Folder => None,
        }
    }

    /// The blobs among the files, with their numbers.
    fn blobs<'a>(&self, files: &'a [Tracked]) -> (Vec<usize>, Vec<&'a str>) {
        let blob = |(i, file): (usize, &'a Tracked)| match &file.node.kind {
            Kind::Blob(id) => Some((i, id.as_str())),
            _ => None,
        };
        files.iter().enumerate().filter_map(blob).unzip()
    }

    /// Stores the files in a cache, and returns their digests and sizes.
    ///
    /// # Errors
    /// If a file cannot be received or stored.
    pub async fn store(
        &self,
        files: &[Tracked],
        cache: &Cache,
        jobs: Option<usize>,
    ) -> Result<Vec<(Digest, u64)>, DataError> {
        self.receive_files(files, jobs).await?;
        let mut stored: Vec<Option<(Digest, u64)>> = files
            .par_iter()
            .map(|file| {
                let Some(path) = self.place(file) else { return Ok(None) };
                let stat = Stat::of_path(&path).map_err(DataError::io(&path))?;
                let stat = stat.ok_or_else(|| DataError::Missing(path.display().to_string()))?;
                let known = match file.node.kind {
                    Kind::Object(_, HashName::Md5, digest) => Some(digest.md5),
                    _ => None,
                };
                Ok(Some((Digest::of_file(cache.store(&path, &stat, known)?), stat.size)))
            })
            .collect::<Result<_, DataError>>()?;
        let (numbers, ids) = self.blobs(files);
        if let Source::Commit { git, .. } = &self.source {
            git.read_blobs(&ids, |i, content| {
                let file = &files[numbers[i]];
                let size = file.node.size.unwrap_or(0);
                let digest = if size <= SMALL_BYTES {
                    let mut bytes = Vec::new();
                    std::io::Read::read_to_end(content, &mut bytes).map_err(DataError::io(&file.path))?;
                    let digest = Digest::of_file(Md5::digest(&bytes).into());
                    if !cache.contains(&digest)? {
                        cache.put(&digest, &bytes)?;
                    }
                    digest
                } else {
                    let folder = cache.root();
                    std::fs::create_dir_all(folder).map_err(DataError::io(folder))?;
                    let mut whole = tempfile::NamedTempFile::new_in(folder).map_err(DataError::io(folder))?;
                    std::io::copy(content, &mut whole).map_err(DataError::io(whole.path()))?;
                    let stat = Stat::of_path(whole.path()).map_err(DataError::io(whole.path()))?;
                    let stat = stat.ok_or_else(|| DataError::Missing(whole.path().display().to_string()))?;
                    Digest::of_file(cache.store(whole.path(), &stat, None)?)
                };
                stored[numbers[i]] = Some((digest, size));
                Ok(())
            })?;
        }
        let all: Option<Vec<(Digest, u64)>> = stored.into_iter().collect();
        all.ok_or_else(|| DataError::Invalid("a file of the repository has no content".into()))
    }

    /// Writes the files to a new path `target`; below it, if they are those of a folder. They appear there when they are complete. Files that exist are
    /// replaced.
    ///
    /// # Errors
    /// If a file cannot be received or written.
    pub async fn write(
        &self,
        files: &[Tracked],
        is_folder: bool,
        target: &Path,
        jobs: Option<usize>,
    ) -> Result<(), DataError> {
        // The names come from the repository: in the worst case, `.git` with hooks.
        let is_reserved = |path: &Path| crate::ignore::is_reserved(path);
        let name = Path::new(target.file_name().unwrap_or_default());
        if let Some(path) = files.iter().map(|file| Path::new(&file.path)).chain([name]).find(|path| is_reserved(path))
        {
            return Err(DataError::Reserved(path.to_owned()));
        }
        self.receive_files(files, jobs).await?;
        place_complete(target, is_folder, |root| {
            let create = |path: &str| -> Result<File, DataError> {
                let full = if path.is_empty() { root.to_owned() } else { root.join(path) };
                let folder = full.parent().unwrap_or(Path::new("/"));
                std::fs::create_dir_all(folder).map_err(DataError::io(folder))?;
                File::create(&full).map_err(DataError::io(&full))
            };
            files.par_iter().try_for_each(|file| {
                let Some(path) = self.place(file) else { return Ok(()) };
                let mut source = File::open(&path).map_err(DataError::io(&path))?;
                std::io::copy(&mut source, &mut create(&file.path)?).map(drop).map_err(DataError::io(target))
            })?;
            let (numbers, ids) = self.blobs(files);
            if let Source::Commit { git, .. } = &self.source {
                git.read_blobs(&ids, |i, content| {
                    let mut out = create(&files[numbers[i]].path)?;
                    std::io::copy(content, &mut out).and_then(|_| out.flush()).map_err(DataError::io(target))
                })?;
            }
            Ok(())
        })
    }
}

/// Lets `make` create a file or folder beside `target`, and then gives it that name. If a folder is there already, its files are replaced one by one.
///
/// # Errors
/// An error of `make` or of the file system; nothing is at `target` then that was not there before.
pub(super) fn place_complete(
    target: &Path,
    is_folder: bool,
    make: impl FnOnce(&Path) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let parent = target.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent).map_err(DataError::io(parent))?;
    let staging = tempfile::Builder::new().prefix(crate::incoming::TEMPORARY).tempdir_in(parent);
    let staging = staging.map_err(DataError::io(parent))?;
    let made = staging.path().join("data");
    if is_folder {
        std::fs::create_dir(&made).map_err(DataError::io(&made))?;
    }
    make(&made)?;
    let existing = Stat::of_entry(target).map_err(DataError::io(target))?;
    match existing.map(|stat| stat.kind()) {
        Some(crate::stat::Kind::Folder) if is_folder => merge_into(&made, target),
        Some(crate::stat::Kind::Folder) => Err(DataError::Invalid(format!("'{}' is a folder", target.display()))),
        Some(_) if is_folder => Err(DataError::Invalid(format!("'{}' is not a folder", target.display()))),
        _ => std::fs::rename(&made, target).map_err(DataError::io(target)),
    }
}

fn merge_into(from: &Path, to: &Path) -> Result<(), DataError> {
    for entry in std::fs::read_dir(from).map_err(DataError::io(from))? {
        let entry = entry.map_err(DataError::io(from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() && target.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            merge_into(&source, &target)?;
        } else {
            std::fs::rename(&source, &target).map_err(DataError::io(&target))?;
        }
    }
    Ok(())
}
