//! `status`: how the workspace differs from what is recorded.

use crate::error::DataError;
use crate::manifest::Manifest;
use crate::model::{Digest, HashName};
use crate::project::{Project, Selected};
use crate::snapshot;
use crate::stage::{Import, Output, Stage};

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
    /// Its source has a newer version.
    UpdateAvailable,
}

impl Change {
    /// DVC's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Modified => "modified",
            Self::New => "new",
            Self::NotInCache => "not in cache",
            Self::UpdateAvailable => "update available",
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
    /// Whether the file of an import was edited, so that its own digest is not as recorded.
    pub is_unsealed: bool,
}

/// The stages that are not up to date, and the number of all. With `check_updates`, the repositories of imports are queried for newer versions.
///
/// # Errors
/// If a target does not exist, or a file cannot be read.
pub fn status(
    project: &mut Project,
    targets: &[String],
    recursive: bool,
    check_updates: bool,
) -> Result<(Vec<StageStatus>, usize), DataError> {
    let stages = project.stages()?;
    let mut found = Vec::new();
    for selected in project.select(&stages, targets, recursive)? {
        let outs = outputs(project, &selected)?;
        let deps = match selected.stage.import() {
            Some(import @ Import::Repository { .. }) if check_updates => update_of(project, selected.stage, &import)?,
            Some(Import::Repository { .. }) => Vec::new(),
            Some(Import::Url(_)) if !selected.stage.frozen => location_change(project, selected.stage)?,
            _ if selected.stage.frozen => Vec::new(),
            _ => dependencies(project, selected.stage)?,
        };
        let is_unsealed = selected.stage.import().is_some() && selected.stage.is_unsealed();
        if !outs.is_empty() || !deps.is_empty() || is_unsealed {
            found.push(StageStatus { address: selected.stage.address(&project.current), deps, outs, is_unsealed });
        }
    }
    project.state.save()?;
    Ok((found, stages.len()))
}

/// Whether the repository of an import has a newer commit than the recorded one.
fn update_of(project: &Project, stage: &Stage, import: &Import) -> Result<Vec<(String, Change)>, DataError> {
    let Import::Repository { url, path, revision, commit, .. } = import else { return Ok(Vec::new()) };
    let newest = super::import::open_source(project, stage, revision.as_deref())?.commit;
    let is_newer = commit.is_some() && newest.is_some() && newest != *commit;
    let shown = format!("{path} ({})", crate::external::redact(url));
    Ok(if is_newer { vec![(shown, Change::UpdateAvailable)] } else { Vec::new() })
}

/// Whether a path on this machine that is imported differs from the record. What is elsewhere is compared by `update` only.
fn location_change(project: &Project, stage: &Stage) -> Result<Vec<(String, Change)>, DataError> {
    let location = super::import::open_location(project, stage)?;
    let Some(path) = location.local() else { return Ok(Vec::new()) };
    let taken = snapshot::take(path, &project.rules, &project.state, HashName::Md5, None)?;
    let recorded = stage.dependency("md5").and_then(crate::yaml::Value::as_str);
    let change = match taken {
        None => Change::Deleted,
        Some(taken) if Some(taken.digest.to_string().as_str()) == recorded => return Ok(Vec::new()),
        Some(_) => Change::Modified,
    };
    let shown = if path.starts_with(&project.root) { project.display(path) } else { path.display().to_string() };
    Ok(vec![(shown, change)])
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
