//! `push`, `fetch` and the comparison of the cache with a remote.

use std::collections::{BTreeMap, HashMap};

use futures_util::StreamExt;
use rayon::prelude::*;

use super::used::{Object, Scope, used_objects};
use super::{Talk, versioned};
use crate::error::DataError;
use crate::model::{Digest, HashName};
use crate::project::Project;
use crate::remote::Remote;
use crate::remote::versioned::is_versioned;

/// How to transfer.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The remote; the default one if it is not given.
    pub remote: Option<String>,
    /// Number of concurrent transfers.
    pub jobs: Option<usize>,
    /// The targets are folders with stages.
    pub recursive: bool,
    /// The recorded results of stages are transferred, too.
    pub run_cache: bool,
    /// Which versions of the project are concerned beside the workspace.
    pub scope: Scope,
}

/// The objects of each remote: outputs may name their own.
pub(super) fn by_remote(objects: Vec<Object>, options: &Options) -> BTreeMap<Option<String>, Vec<Object>> {
    let mut groups: BTreeMap<Option<String>, Vec<Object>> = BTreeMap::new();
    for object in objects {
        if let (Some(own), Some(wanted)) = (&object.remote, &options.remote)
            && own != wanted
        {
            continue;
        }
        let name = object.remote.clone().or_else(|| options.remote.clone());
        groups.entry(name).or_default().push(object);
    }
    groups
}

/// Sends the objects of the targets, or of all outputs, that the remote lacks, and returns their number. A folder's manifest is sent after its
/// files, so that it is never there without them.
///
/// # Errors
/// [`DataError::NoRemote`], or [`DataError::Transfer`] if objects could not be sent.
pub async fn push(
    project: &mut Project,
    targets: &[String],
    options: &Options,
    talk: &dyn Talk,
) -> Result<u64, DataError> {
    let objects = used_objects(project, targets, options.recursive, &options.scope, true)?;
    if objects.objects.is_empty() {
        require_remote(project, options, "push")?;
    }
    let mut sent = if options.run_cache { transfer_runs(project, options, true, talk).await? } else { 0 };
    for (name, objects) in by_remote(objects.objects, options) {
        if is_versioned(&project.config, name.as_deref())? {
            sent += versioned::push(project, name.as_deref(), targets, options, talk).await?;
            continue;
        }
        let remote = Remote::open(&project.config, name.as_deref(), "push")?;
        let jobs = remote.concurrency(options.jobs);
        let ids: Vec<_> = objects.iter().map(|object| (object.hash, object.digest)).collect();
        let existing = remote.existing(&ids, jobs).await?;
        let lacking = objects.iter().filter(|object| !existing.contains(&(object.hash, object.digest))).collect();
        let (cached, missing) = split_cached(project, lacking)?;
        warn_missing(&missing, talk);
        let (manifests, files): (Vec<_>, Vec<_>) = cached.into_iter().partition(|object| object.digest.is_dir);
        for group in [files, manifests] {
            sent += transfer(project, &remote, &group, jobs, true).await?;
        }
    }
    Ok(sent)
}

/// Receives the objects of the targets, or of all outputs, that the cache lacks, and returns their number.
///
/// # Errors
/// [`DataError::NoRemote`], or [`DataError::Transfer`] if objects could not be received.
pub async fn fetch(
    project: &mut Project,
    targets: &[String],
    options: &Options,
    talk: &dyn Talk,
) -> Result<u64, DataError> {
    let runs = if options.run_cache { transfer_runs(project, options, false, talk).await? } else { 0 };
    let mut used = used_objects(project, targets, options.recursive, &options.scope, false)?;
    let manifests = fetch_manifests(project, &used.missing_manifests, options).await?;
    if manifests > 0 {
        // Now the files of their folders are known.
        used = used_objects(project, targets, options.recursive, &options.scope, false)?;
    }
    let partial = match options.scope.commits {
        None => super::partial::fetch(project, targets, options.recursive, options.jobs).await?,
        Some(_) => None,
    };
    let mut received = runs + manifests + partial.unwrap_or(0);
    let has_remote = require_remote(project, options, "fetch").is_ok();
    // What is imported is in its repository, so that no remote is needed.
    let wanted = used.objects.iter().filter(|object| has_remote || !object.is_imported).collect();
    let lacking: Vec<Object> = split_cached(project, wanted)?.1.into_iter().cloned().collect();
    if lacking.is_empty() && received == 0 && used.imports.is_empty() && partial.is_none() {
        require_remote(project, options, "fetch")?;
    }
    for (name, objects) in by_remote(lacking, options) {
        if is_versioned(&project.config, name.as_deref())? {
            received += versioned::fetch(project, name.as_deref(), &objects, options).await?;
            continue;
        }
        let remote = Remote::open(&project.config, name.as_deref(), "fetch")?;
        let jobs = remote.concurrency(options.jobs);
        let ids: Vec<_> = objects.iter().map(|object| (object.hash, object.digest)).collect();
        let existing = remote.existing(&ids, jobs).await?;
        let (found, missing): (Vec<_>, Vec<_>) =
            objects.iter().partition(|object| existing.contains(&(object.hash, object.digest)));
        let missing: Vec<&Object> = missing.into_iter().filter(|object| !object.is_imported).collect();
        warn_missing(&missing, talk);
        received += transfer(project, &remote, &found, jobs, false).await?;
    }
    received += super::import::fetch(project, &used.imports, options.jobs).await?;
    Ok(received)
}

/// The objects that the cache has, and those that it lacks.
pub(super) fn split_cached<'a>(
    project: &Project,
    objects: Vec<&'a Object>,
) -> Result<(Vec<&'a Object>, Vec<&'a Object>), DataError> {
    let (mut cached, mut missing) = (Vec::new(), Vec::new());
    for hash in [HashName::Md5, HashName::Dos2Unix] {
        let digests = |object: &&&Object| object.hash == hash;
        let of_hash: Vec<&Object> = objects.iter().filter(digests).copied().collect();
        let digests: Vec<Digest> = of_hash.iter().map(|object| object.digest).collect();
        for (object, exists) in of_hash.into_iter().zip(project.cache_of(hash).contains_all(&digests)?) {
            if exists { &mut cached } else { &mut missing }.push(object);
        }
    }
    Ok((cached, missing))
}

/// Fails if there is no remote that can be used.
fn require_remote(project: &Project, options: &Options, command: &str) -> Result<(), DataError> {
    if is_versioned(&project.config, options.remote.as_deref())? {
        return Ok(());
    }
    Remote::open(&project.config, options.remote.as_deref(), command).map(drop)
}

/// Receives the recorded results of stages, if there is a remote that has them.
pub(crate) async fn fetch_runs(project: &Project, talk: &dyn Talk) -> Result<(), DataError> {
    match transfer_runs(project, &Options::default(), false, talk).await {
        Err(DataError::NoRemote(_)) => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// Transfers the recorded results of stages that the other side lacks, and returns their number.
pub(super) async fn transfer_runs(
    project: &Project,
    options: &Options,
    send: bool,
    talk: &dyn Talk,
) -> Result<u64, DataError> {
    let command = if send { "push --run-cache" } else { "fetch --run-cache" };
    if is_versioned(&project.config, options.remote.as_deref())? {
        return Ok(0); // As with DVC, runs are not shared there.
    }
    let remote = Remote::open(&project.config, options.remote.as_deref(), command)?;
    if !remote.shares_runs() {
        talk.note(&format!("the run cache is not shared, because remote '{}' cannot list its files", remote.name));
        return Ok(0);
    }
    let (cache, jobs) = (project.legacy_cache.root(), remote.concurrency(options.jobs));
    if send { remote.push_runs(cache, jobs).await } else { remote.fetch_runs(cache, jobs).await }
}

/// Receives manifests that the cache lacks, and returns their number. Without them the files of folders are not known.
async fn fetch_manifests(project: &Project, missing: &[Object], options: &Options) -> Result<u64, DataError> {
    let has_remote = require_remote(project, options, "fetch").is_ok();
    let needed = missing.iter().filter(|object| has_remote || !object.is_imported).cloned().collect();
    let mut received = 0;
    for (name, objects) in by_remote(needed, options) {
        if is_versioned(&project.config, name.as_deref())? {
            continue; // The records of its folders list their files.
        }
        let remote = Remote::open(&project.config, name.as_deref(), "fetch")?;
        let jobs = remote.concurrency(options.jobs);
        let ids: Vec<_> = objects.iter().map(|object| (object.hash, object.digest)).collect();
        let existing = remote.existing(&ids, jobs).await?;
        let found: Vec<_> = objects.iter().filter(|object| existing.contains(&(object.hash, object.digest))).collect();
        received += transfer(project, &remote, &found, jobs, false).await?;
    }
    Ok(received)
}

/// Transfers objects concurrently, all of them also after a failure.
pub(super) async fn transfer(
    project: &Project,
    remote: &Remote,
    objects: &[&Object],
    jobs: usize,
    send: bool,
) -> Result<u64, DataError> {
    let outcomes: Vec<(&Object, Result<(), DataError>)> = if remote.is_folder() {
        let copy = |object: &&'_ Object| remote.copy(project.cache_of(object.hash), &object.digest, send);
        let outcomes: Vec<_> = objects.par_iter().map(copy).collect();
        objects.iter().copied().zip(outcomes).collect()
    } else {
        let ids: Vec<_> = objects.iter().map(|object| (object.hash, object.digest)).collect();
        let mut batched = remote.transfer_batches(|hash| project.cache_of(hash), &ids, jobs, send).await;
        let mut outcomes = Vec::with_capacity(objects.len());
        let mut single = Vec::new();
        for (object, id) in objects.iter().zip(&ids) {
            match batched.remove(id) {
                Some(outcome) => outcomes.push((*object, outcome)),
                None => single.push(*object),
            }
        }
        let transfers = single.into_iter().map(|object| async move {
            let cache = project.cache_of(object.hash);
            let outcome = match send {
                true => remote.upload(cache, &object.digest).await,
                false => remote.download(cache, &object.digest).await,
            };
            (object, outcome)
        });
        let transfers: Vec<_> = futures_util::stream::iter(transfers).buffer_unordered(jobs).collect().await;
        outcomes.extend(transfers);
        outcomes
    };
    let (mut done, mut failed, mut first) = (0_u64, 0, None);
    for (object, outcome) in outcomes {
        match outcome {
            Ok(()) => done += 1,
            Err(error) => {
                failed += 1;
                first.get_or_insert_with(|| format!("{}: {error}", object.name));
            }
        }
    }
    let verb = if send { "pushed" } else { "fetched" };
    match first {
        Some(first) => Err(DataError::Transfer { failed, total: objects.len(), verb, first }),
        None => Ok(done),
    }
}

fn warn_missing(missing: &[&Object], talk: &dyn Talk) {
    /// Number of objects that are named.
    const SHOWN: usize = 20;
    if missing.is_empty() {
        return;
    }
    let mut lines: Vec<String> =
        missing.iter().take(SHOWN).map(|object| format!("md5: {} ({})", object.digest, object.name)).collect();
    if missing.len() > SHOWN {
        lines.push(format!("… and {} more", missing.len() - SHOWN));
    }
    let lines = lines.join("\n");
    talk.note(&format!(
        "Some of the cache files do not exist neither locally nor on remote. Missing cache files:\n{lines}"
    ));
}

/// How an object of the cache differs from the remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloudChange {
    /// Only the remote has it.
    Deleted,
    /// Only the cache has it.
    New,
    /// Neither has it.
    Missing,
}

impl CloudChange {
    /// DVC's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::New => "new",
            Self::Missing => "missing",
        }
    }
}

/// Compares the cache with the remote: the names of the objects that differ, and the name of the remote.
///
/// # Errors
/// If the remote cannot be reached.
pub async fn cloud_status(
    project: &mut Project,
    targets: &[String],
    options: &Options,
) -> Result<(Vec<(String, CloudChange)>, String), DataError> {
    let remote = Remote::open(&project.config, options.remote.as_deref(), "status")?;
    let missing = used_objects(project, targets, options.recursive, &options.scope, false)?.missing_manifests;
    fetch_manifests(project, &missing, options).await?;
    let used = used_objects(project, targets, options.recursive, &options.scope, true)?;
    let objects: Vec<Object> = used.objects.into_iter().filter(|object| object.remote.is_none()).collect();
    let ids: Vec<(HashName, Digest)> = objects.iter().map(|object| (object.hash, object.digest)).collect();
    let existing = remote.existing(&ids, remote.concurrency(options.jobs)).await?;
    let mut changes: HashMap<u8, Vec<(String, CloudChange)>> = HashMap::new();
    for object in objects {
        let local = project.cache_of(object.hash).contains(&object.digest)?;
        let change = match (local, existing.contains(&(object.hash, object.digest))) {
            (true, true) => continue,
            (false, true) => CloudChange::Deleted,
            (true, false) => CloudChange::New,
            (false, false) => CloudChange::Missing,
        };
        changes.entry(change as u8).or_default().push((object.name, change));
    }
    let mut list: Vec<(String, CloudChange)> =
        (0..3).flat_map(|order| changes.remove(&order).unwrap_or_default()).collect();
    list.sort_by(|a, b| (a.1 as u8, &a.0).cmp(&(b.1 as u8, &b.0)));
    Ok((list, remote.name))
}
