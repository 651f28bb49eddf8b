//! `status`: how the workspace differs from what is recorded.

use crate::error::DataError;
use crate::manifest::Manifest;
use crate::model::{Digest, HashName};
use crate::project::{Project, Selected};
use crate::snapshot;
use crate::stage::{Output, Stage};

/// The state of an output or dependency that is not as recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It does not exist.
    Deleted,
    /// Its content differs.
    Modified,
    /// No digest is recorded.
    New,
    /// The cache lacks it, or a file in it.
    NotInCache,
}

impl Change {
    /// DVC's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Modified => "modified",
            Self::New => "new",
            Self::NotInCache => "not in cache",
        }
    }
}

/// The status of a stage that is not up to date.
#[derive(Debug)]
pub struct StageStatus {
    /// The name of the stage for the user.
    pub address: String,
    /// The dependencies and outputs that changed, each with its path for the user. Outputs come last.
    pub deps: Vec<(String, Change)>,
    /// See `deps`.
    pub outs: Vec<(String, Change)>,
}

/// The stages that are not up to date, and the number of all.
///
/// # Errors
/// If a target does not exist, or a file cannot be read.
pub fn status(
    project: &mut Project,
    targets: &[String],
    recursive: bool,
) -> Result<(Vec<StageStatus>, usize), DataError> {
    let stages = project.stages()?;
    let mut found = Vec::new();
    for selected in project.select(&stages, targets, recursive)? {
        let outs = outputs(project, &selected)?;
        let deps = if selected.stage.frozen { Vec::new() } else { dependencies(project, selected.stage)? };
        if !outs.is_empty() || !deps.is_empty() {
            found.push(StageStatus { address: selected.stage.address(&project.current), deps, outs });
        }
    }
    project.state.save()?;
    Ok((found, stages.len()))
}

fn dependencies(project: &Project, stage: &Stage) -> Result<Vec<(String, Change)>, DataError> {
    let mut changes = Vec::new();
    for dep in stage.deps.iter().filter(|dep| dep.path.is_some() && dep.digest.is_some()) {
        if let Some(change) = workspace_change(project, dep)? {
            changes.push((dep.display(&project.current, &project.root), change));
        }
    }
    Ok(changes)
}

fn outputs(project: &Project, selected: &Selected<'_>) -> Result<Vec<(String, Change)>, DataError> {
    let mut changes = Vec::new();
    for (out, _) in selected.outputs() {
        if let Some(change) = output_change(project, out)? {
            changes.push((out.display(&project.current, &project.root), change));
        }
    }
    Ok(changes)
}

/// How an output differs from its record, if it does.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn output_change(project: &Project, out: &Output) -> Result<Option<Change>, DataError> {
    if out.path.is_none() {
        return Ok(None);
    }
    if let Some(digest) = &out.digest
        && out.cached
        && !in_cache(project, out.hash, digest)?
    {
        return Ok(Some(Change::NotInCache));
    }
    workspace_change(project, out)
}

fn workspace_change(project: &Project, out: &Output) -> Result<Option<Change>, DataError> {
    let Some(path) = &out.path else { return Ok(None) };
    if project.is_ignored(path)? {
        return Ok(Some(Change::Deleted));
    }
    let Some(snapshot) = snapshot::take(path, &project.rules, &project.state, out.hash, None)? else {
        return Ok(Some(Change::Deleted));
    };
    Ok(match out.digest {
        Some(digest) if digest == snapshot.digest => None,
        // As in DVC: what has no digest differs from the workspace's.
        Some(_) | None => Some(Change::Modified),
    })
}

/// Whether the cache has a file, or a folder with all its files.
///
/// # Errors
/// If the cache cannot be read.
pub(crate) fn in_cache(project: &Project, hash: HashName, digest: &Digest) -> Result<bool, DataError> {
    use rayon::prelude::*;
    let cache = project.cache_of(hash);
    if !cache.contains(digest)? {
        return Ok(false);
    }
    if !digest.is_dir {
        return Ok(true);
    }
    let manifest: Option<Manifest> = match cache.manifest(digest) {
        Ok(manifest) => manifest,
        Err(DataError::File { .. }) => None, // A damaged manifest counts as missing.
        Err(error) => return Err(error),
    };
    let Some(manifest) = manifest else { return Ok(false) };
    let missing = manifest
        .entries
        .par_iter()
        .map(|entry| cache.contains(&entry.digest))
        .find_any(|found| !matches!(found, Ok(true)));
    missing.unwrap_or(Ok(true))
}
