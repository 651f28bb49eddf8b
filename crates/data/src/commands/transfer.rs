//! `push`, `fetch` and the comparison of the cache with a remote.

use super::exchange::{Exchange, Outcomes, by_remote, split_cached};
use super::used::{Object, Scope, used_objects};
use super::{Talk, import, partial, versioned};
use crate::error::DataError;
use crate::project::Project;
use crate::remote::versioned::is_versioned;
use crate::remote::{Remote, known};

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

/// Sends the objects of the targets, or of all outputs, that the remote lacks, and returns their number.
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
    let runs = if options.run_cache { transfer_runs(project, options, true, talk).await? } else { 0 };
    let mut sent = 0;
    for (name, objects) in by_remote(objects.objects, options.remote.as_deref()) {
        if is_versioned(&project.config, name.as_deref())? {
            sent += versioned::push(project, name.as_deref(), targets, options, talk).await?;
            continue;
        }
        let exchange = Exchange::open(project, name.as_deref(), objects, options.jobs, "push").await?;
        let (files, missing) = exchange.send(project).await?;
        warn_missing(&missing, talk);
        sent += files;
    }
    if sent > 0 {
        known::forget(&project.tmp())?;
    }
    Ok(runs + sent)
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
    let mut outcomes = Outcomes::default();
    outcomes.join(Ok(runs + manifests))?;
    let has_partial = match options.scope.commits {
        None => partial::fetch(project, targets, options, &mut outcomes, talk).await?,
        Some(_) => false,
    };
    let has_remote = require_remote(project, options, "fetch").is_ok();
    // What is imported is in its repository, so that no remote is needed.
    let wanted = used.objects.iter().filter(|object| has_remote || !object.is_imported).collect();
    let lacking: Vec<Object> = split_cached(project, wanted)?.1.into_iter().cloned().collect();
    if lacking.is_empty() && runs + manifests == 0 && used.imports.is_empty() && !has_partial {
        require_remote(project, options, "fetch")?;
    }
    for (name, objects) in by_remote(lacking, options.remote.as_deref()) {
        if is_versioned(&project.config, name.as_deref())? {
            outcomes.join(versioned::fetch(project, name.as_deref(), &objects, options).await)?;
            continue;
        }
        let exchange = Exchange::open(project, name.as_deref(), objects, options.jobs, "fetch").await?;
        let missing: Vec<&Object> = exchange.lacking.iter().filter(|object| !object.is_imported).collect();
        warn_missing(&missing, talk);
        outcomes.join(exchange.receive(project).await)?;
    }
    import::fetch(project, &used.imports, options.jobs, &mut outcomes).await?;
    let fetched = outcomes.finish("fetched")?;
    if fetched > runs + manifests {
        known::forget(&project.tmp())?;
    }
    Ok(fetched)
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
    for (name, objects) in by_remote(needed, options.remote.as_deref()) {
        if is_versioned(&project.config, name.as_deref())? {
            continue; // The records of its folders list their files.
        }
        let exchange = Exchange::open(project, name.as_deref(), objects, options.jobs, "fetch").await?;
        received += exchange.receive(project).await?;
    }
    Ok(received)
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
    require_remote(project, options, "status")?;
    let missing = used_objects(project, targets, options.recursive, &options.scope, false)?.missing_manifests;
    fetch_manifests(project, &missing, options).await?;
    let used = used_objects(project, targets, options.recursive, &options.scope, true)?;
    let objects: Vec<Object> = used.objects.into_iter().filter(|object| object.remote.is_none()).collect();
    let exchange = Exchange::open(project, options.remote.as_deref(), objects, options.jobs, "status").await?;
    let mut list = Vec::new();
    for (objects, is_there) in [(exchange.existing, true), (exchange.lacking, false)] {
        for object in objects {
            let change = match (project.cache_of(object.hash).contains(&object.digest)?, is_there) {
                (true, true) => continue,
                (false, true) => CloudChange::Deleted,
                (true, false) => CloudChange::New,
                (false, false) => CloudChange::Missing,
            };
            list.push((object.name, change));
        }
    }
    list.sort_by(|a, b| (a.1 as u8, &a.0).cmp(&(b.1 as u8, &b.0)));
    Ok((list, exchange.remote.name))
}
