//! The depot of a machine: mirrors of repositories, one cache for all versions, and their trees.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt;
use rayon::prelude::*;

use super::locate::{Content, Tracked, locate};
use super::repository::Repository;
use super::trees::Trees;
use super::{Progress, Version};
use crate::cache::Cache;
use crate::config::Config;
use crate::error::DataError;
use crate::model::{Digest, HashName};
use crate::project::{DVC_DIR, cache_dir};
use crate::remote::versioned::open_source;
use crate::stage::Output;

/// Number of objects that are requested between two reports of progress.
const BATCH: usize = 200;

/// A version that is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The URL or path of the repository, without credentials.
    pub repo: String,
    /// The commit.
    pub commit: String,
    /// The path, from the root of the repository.
    pub path: String,
    /// The `.dvc` file or `dvc.yaml` that tracks the path, from the root of the repository; empty if Git tracks it.
    pub file: String,
    /// The digest: MD5 of the file, or of the folder's manifest with the suffix `.dir`.
    pub digest: String,
    /// Bytes of all files, if it is recorded.
    pub size: Option<u64>,
    /// Number of files.
    pub files: u64,
    /// Number of files that were received for this request; the others were on this machine.
    pub received: u64,
    /// The read-only file or folder.
    pub location: PathBuf,
}

/// The data on this machine. Cheap to share; its methods may be called concurrently.
#[derive(Debug)]
pub struct Depot {
    root: PathBuf,
    current: Cache,
    legacy: Cache,
    trees: Trees,
    /// Maximum bytes of the cache, beyond what is in use; no limit if unset.
    limit: Option<u64>,
    /// Whether repositories, remotes and credentials of this machine are rejected.
    only_remote: bool,
    /// Held for each change of trees and holders, and while objects are evicted. Contains the objects that are being received, by the
    /// number of requests for them.
    receiving: Mutex<HashMap<(HashName, Digest), usize>>,
    /// Requests for the same content or repository are served one after the other, so that it is received once.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// Objects that are not evicted while this exists.
struct Receiving<'a> {
    depot: &'a Depot,
    objects: Vec<(HashName, Digest)>,
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        let mut receiving = self.depot.lock();
        for object in &self.objects {
            if let Some(count) = receiving.get_mut(object) {
                *count -= 1;
                if *count == 0 {
                    receiving.remove(object);
                }
            }
        }
    }
}

impl Depot {
    /// Opens the depot in a folder, which is created if it is missing. When the cache has more than `limit` bytes, the data that was used the
    /// longest time ago is removed, unless it is in use.
    ///
    /// # Errors
    /// If the folder cannot be created or read.
    pub fn open(root: &Path, limit: Option<u64>) -> Result<Self, DataError> {
        let cache = root.join("cache");
        Ok(Self {
            trees: Trees::open(root)?,
            current: Cache::new(&cache, HashName::Md5, false),
            legacy: Cache::new(&cache, HashName::Dos2Unix, false),
            root: root.to_owned(),
            limit,
            only_remote: false,
            receiving: Mutex::default(),
            turns: Mutex::default(),
        })
    }

    /// Rejects repositories and remotes that are folders of this machine, and ignores credentials in its files: for requests of users who may
    /// not read these.
    #[must_use]
    pub fn only_remote(self) -> Self {
        Self { only_remote: true, ..self }
    }

    /// The folder that contains all locations.
    pub fn locations(&self) -> &Path {
        self.trees.folder()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(HashName, Digest), usize>> {
        self.receiving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self, hash: HashName) -> &Cache {
        match hash {
            HashName::Md5 => &self.current,
            HashName::Dos2Unix => &self.legacy,
        }
    }

    /// Finds what a version is, and receives no more than the list of its files.
    async fn resolve(&self, version: &Version, progress: Progress<'_>) -> Result<Resolved<'_>, DataError> {
        progress(format!("reading {}", super::without_credentials(&version.repo)));
        let repository = {
            let turn = self.turn(&version.repo);
            let _turn = turn.lock().await;
            Repository::open(version, &self.root.join("mirrors"), self.only_remote).await?
        };
        let path = version.path.trim_matches('/').to_owned();
        let tracked = locate(&repository, &path)?;
        let name = Name { repo: repository.name.clone(), commit: repository.commit.clone(), path };
        let (output, part, file, project) = match tracked {
            Tracked::Git(files) => {
                let content = Content::of_git(files, &self.current)?;
                return Ok(Resolved { name, file: String::new(), content, sources: None, kept: None });
            }
            Tracked::Output { output, part, file, project } => (output, part, file, project),
        };
        let path_in_project = |path: &Path| {
            path.strip_prefix(repository.git.root().join(&project)).ok().map(|path| path.to_string_lossy().into_owned())
        };
        let in_project = output.path.as_deref().and_then(path_in_project).unwrap_or_default();
        let local = version.credentials.config.as_deref();
        let mut config = repository.config(&project, &self.root.join("configs"), local)?.load()?;
        if self.only_remote {
            config.remove_local_files();
        }
        let dvc_dir = repository.work_tree.as_ref().map(|root| root.join(&project).join(DVC_DIR));
        let local = dvc_dir.map(|dvc_dir| Cache::new(&cache_dir(&config, &dvc_dir), output.hash, false));
        let listed = output.manifest();
        let sources = Sources { config, local, output: (in_project, *output) };
        let output = &sources.output.1;
        let digest = output.digest.ok_or_else(|| name.untracked("; its digest is not recorded yet"))?;
        // A manifest is kept until it is linked into the tree.
        let kept = self.keep(vec![(output.hash, digest)]);
        if let Some(listed) = &listed {
            self.cache(output.hash).put_manifest(listed)?;
        } else if digest.is_dir && !self.cache(output.hash).contains(&digest)? {
            self.receive(&sources, &[digest], &name, &|_| ()).await?;
        }
        let content = Content::of_output(output, &part, self.cache(output.hash))?;
        let content = content.ok_or_else(|| name.untracked("; the tracked folder does not contain it"))?;
        Ok(Resolved { name, file, content, sources: Some(sources), kept: Some(kept) })
    }

    /// The commit and the digest of a version, without receiving its files.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub async fn identify(&self, version: &Version) -> Result<(String, String), DataError> {
        let resolved = self.resolve(version, &|_| ()).await?;
        Ok((resolved.name.commit, resolved.content.digest.to_string()))
    }

    /// Brings a version to this machine. It stays as long as `holder` (a file name) holds it.
    ///
    /// # Errors
    /// [`DataError::Repository`], [`DataError::Untracked`], or [`DataError::Unavailable`] if the bytes are neither on this machine nor in the
    /// remote; and errors of the file system.
    pub async fn fetch(&self, version: &Version, holder: &str, progress: Progress<'_>) -> Result<Fetched, DataError> {
        let Resolved { name: version, file, content, sources, kept } = self.resolve(version, progress).await?;
        let name = Trees::name(&content);
        let turn = self.turn(&name);
        let _turn = turn.lock().await;
        let _kept = self.keep(content.files.iter().map(|(_, digest)| (content.hash, *digest)).collect());
        let changed = {
            let _exclusive = self.lock();
            self.trees.hold(holder, &name)?;
            self.trees.changed(&name, &content)?
        };
        let mut received = 0;
        if changed.as_ref().is_none_or(|changed| !changed.is_empty()) {
            let cache = self.cache(content.hash);
            for digest in changed.into_iter().flatten() {
                if cache.verify(&digest).is_err() {
                    cache.remove(&digest)?;
                }
            }
            let all: BTreeSet<Digest> = content.files.iter().map(|(_, digest)| *digest).collect();
            let mut lacking = Vec::new();
            for digest in &all {
                if !cache.contains(digest)? {
                    lacking.push(*digest);
                }
            }
            if let Some(sources) = &sources {
                let total = content.bytes;
                let report = |done: usize| {
                    let size = total.map_or(String::new(), |bytes| format!(" ({})", slipway_core::units::bytes(bytes)));
                    progress(format!("fetching {}: {done} of {} files{size}", version.path, lacking.len()));
                };
                self.receive(sources, &lacking, &version, &report).await?;
            }
            received = lacking.len() as u64;
            let _exclusive = self.lock();
            self.trees.create(&name, &content, cache)?;
        }
        drop(kept);
        if received > 0 {
            self.evict()?;
        }
        Ok(Fetched {
            repo: version.repo,
            commit: version.commit,
            path: version.path,
            file,
            digest: content.digest.to_string(),
            size: content.bytes,
            files: content.files.len() as u64,
            received,
            location: self.trees.path(&name, &content),
        })
    }

    /// The lock for a content or repository.
    fn turn(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(key.to_owned()).or_default())
    }

    /// [`Self::fetch`] on a thread that may block, as much of it does. When the returned future is dropped, the work ends at its next transfer.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub async fn fetch_in_background(
        self: Arc<Self>,
        version: Version,
        holder: String,
        progress: Box<dyn Fn(String) + Send + Sync>,
    ) -> Result<Fetched, DataError> {
        let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
        let runtime = tokio::runtime::Handle::current();
        let work = move || {
            runtime.block_on(async {
                tokio::select! {
                    fetched = self.fetch(&version, &holder, &*progress) => fetched,
                    _ = dropped => Err(DataError::Invalid("the transfer was stopped".into())),
                }
            })
        };
        let outcome = tokio::task::spawn_blocking(work).await;
        drop(alive);
        outcome.unwrap_or_else(|error| Err(DataError::Invalid(format!("the transfer failed: {error}"))))
    }

    /// Keeps objects from being evicted.
    fn keep(&self, objects: Vec<(HashName, Digest)>) -> Receiving<'_> {
        let mut receiving = self.lock();
        for object in &objects {
            *receiving.entry(*object).or_default() += 1;
        }
        drop(receiving);
        Receiving { depot: self, objects }
    }

    /// Receives objects from the first source that has them. All of them are looked for before the first is received, so that a version that is
    /// not complete costs no traffic.
    async fn receive(
        &self,
        sources: &Sources,
        objects: &[Digest],
        version: &Name,
        report: &(dyn Fn(usize) + Sync),
    ) -> Result<(), DataError> {
        let (path, output) = &sources.output;
        let cache = self.cache(output.hash);
        let (mut near, mut far) = (Vec::new(), Vec::new());
        for digest in objects {
            match &sources.local {
                Some(local) if local.contains(digest)? => near.push(*digest),
                _ => far.push(*digest),
            }
        }
        let mut remote = None;
        if let Some(first) = far.first().map(Digest::to_string) {
            let unavailable = |why: String| version.unavailable(far.len(), objects.len(), &first, why);
            let opened = open_source(
                &sources.config,
                output.remote.as_deref(),
                "fetch",
                std::iter::once((path.clone(), output)),
            );
            let opened = opened.map_err(|error| unavailable(error.to_string()))?;
            if self.only_remote && opened.is_folder() {
                return Err(unavailable(format!("remote '{}' is a folder of another machine", opened.name)));
            }
            let ids: Vec<_> = far.iter().map(|digest| (output.hash, *digest)).collect();
            let existing = opened.existing(&ids, opened.concurrency(None)).await;
            let existing = existing.map_err(|error| unavailable(error.to_string()))?;
            let lacking: Vec<_> = far.iter().filter(|digest| !existing.contains(&(output.hash, **digest))).collect();
            if let Some(first) = lacking.first() {
                let why = format!("remote '{}' does not have it", opened.name);
                return Err(version.unavailable(lacking.len(), objects.len(), &first.to_string(), why));
            }
            remote = Some(opened);
        }
        let mut done = 0;
        report(done);
        if let Some(local) = &sources.local {
            for batch in near.chunks(BATCH) {
                batch.par_iter().try_for_each(|digest| cache.copy_from(local, digest, true))?;
                done += batch.len();
                report(done);
            }
        }
        let Some(remote) = remote else { return Ok(()) };
        if remote.is_folder() {
            for batch in far.chunks(BATCH) {
                batch.par_iter().try_for_each(|digest| remote.copy(cache, digest, false))?;
                done += batch.len();
                report(done);
            }
            return Ok(());
        }
        let transfers = far.iter().map(|digest| remote.download(cache, digest));
        let mut transfers = futures_util::stream::iter(transfers).buffer_unordered(remote.concurrency(None));
        while let Some(outcome) = transfers.next().await {
            outcome?;
            done += 1;
            report(done);
        }
        Ok(())
    }

    /// Ends the use of all data by a holder.
    ///
    /// # Errors
    /// If the record cannot be changed.
    pub fn release(&self, holder: &str) -> Result<(), DataError> {
        let _exclusive = self.lock();
        self.trees.release(holder)
    }

    /// Ends the use of data by all holders that `exists` does not know.
    ///
    /// # Errors
    /// If the records cannot be read or changed.
    pub fn release_unknown(&self, exists: impl Fn(&str) -> bool) -> Result<(), DataError> {
        let _exclusive = self.lock();
        let unknown = self.trees.holders()?.into_iter().filter(|holder| !exists(holder));
        unknown.into_iter().try_for_each(|holder| self.trees.release(&holder))
    }

    /// Removes data that is in no tree, and then unused trees, the longest unused first, until the cache is not larger than its limit.
    fn evict(&self) -> Result<(), DataError> {
        let Some(limit) = self.limit else { return Ok(()) };
        let mut size = self.size()?;
        while size > limit {
            let receiving = self.lock();
            let mut freed = 0;
            for cache in [&self.current, &self.legacy] {
                freed += remove_unlinked(cache, &receiving)?;
            }
            size = size.saturating_sub(freed);
            if size > limit && !self.trees.evict_oldest()? {
                break; // All of it is in use.
            }
        }
        Ok(())
    }

    /// Bytes of all objects.
    ///
    /// # Errors
    /// If the cache cannot be read.
    pub fn size(&self) -> Result<u64, DataError> {
        let mut sum = 0;
        for cache in [&self.current, &self.legacy] {
            let sizes = |digest: &Digest| std::fs::metadata(cache.path(digest)).map_or(0, |object| object.len());
            sum += objects(cache)?.iter().map(sizes).sum::<u64>();
        }
        Ok(sum)
    }
}

/// What a version is.
struct Resolved<'a> {
    name: Name,
    /// The file that tracks it; empty if Git does.
    file: String,
    content: Content,
    /// Where its objects are; `None` if they are in the cache.
    sources: Option<Sources>,
    /// Keeps the manifest.
    kept: Option<Receiving<'a>>,
}

/// A version as it is named in messages.
struct Name {
    repo: String,
    commit: String,
    path: String,
}

impl Name {
    fn untracked(&self, hint: &str) -> DataError {
        let Self { repo, commit, path } = self;
        DataError::Untracked { path: path.clone(), repo: repo.clone(), commit: commit.clone(), hint: hint.to_owned() }
    }

    fn unavailable(&self, missing: usize, total: usize, oid: &str, why: String) -> DataError {
        let (path, commit) = (self.path.clone(), self.commit.clone());
        DataError::Unavailable { path, commit, missing, total, oid: oid.to_owned(), why }
    }
}

/// Where the objects of a project are.
struct Sources {
    config: Config,
    /// The project's own cache, if the project is on this machine.
    local: Option<Cache>,
    /// The output, which names the algorithm, its remote and the versions in a bucket, with its path from the root of the project.
    output: (String, Output),
}

fn objects(cache: &Cache) -> Result<HashSet<Digest>, DataError> {
    Ok(cache.list()?.objects)
}

/// Removes the objects that have only one name, so that they are in no tree, and returns their bytes.
fn remove_unlinked(cache: &Cache, kept: &HashMap<(HashName, Digest), usize>) -> Result<u64, DataError> {
    use std::os::unix::fs::MetadataExt;
    let mut freed = 0;
    for digest in objects(cache)? {
        let Ok(object) = std::fs::metadata(cache.path(&digest)) else { continue };
        if object.nlink() == 1 && !kept.contains_key(&(cache.hash(), digest)) {
            cache.remove(&digest)?;
            freed += object.len();
        }
    }
    Ok(freed)
}
