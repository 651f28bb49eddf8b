//! `status`: how the workspace differs from what is recorded.

use super::record::parameter_file;
use super::source_versions;
use crate::error::DataError;
use crate::model::{Digest, HashName};
use crate::pipeline::value::equal;
use crate::project::{Project, Selected};
use crate::snapshot;
use crate::stage::{Import, Output, Parameters, Stage};
use crate::yaml::Value;

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
    /// The parameter files that changed, each with its path for the user.
    pub params: Vec<(String, ParametersChange)>,
    /// Whether it counts as changed in any case.
    pub is_always_changed: bool,
    /// Whether its command changed.
    pub is_command_changed: bool,
    /// Whether the file of an import was edited, so that its own digest is not as recorded.
    pub is_unsealed: bool,
}

impl StageStatus {
    /// Whether the stage is up to date.
    pub fn is_clean(&self) -> bool {
        let are_recorded = self.deps.is_empty() && self.outs.is_empty() && self.params.is_empty();
        are_recorded && !self.is_always_changed && !self.is_command_changed && !self.is_unsealed
    }
}

/// How parameters of a file differ from the recorded ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParametersChange {
    /// The file does not exist, or nothing is recorded.
    File(Change),
    /// Some parameters differ.
    Keys(Vec<(String, Change)>),
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
    let (all, total) = statuses(project, targets, recursive)?;
    Ok((all.into_iter().map(|(_, status)| status).filter(|status| !status.is_clean()).collect(), total))
}

/// As [`status`]; the repositories and buckets of imports are queried for newer versions.
///
/// # Errors
/// As [`status`], or if one of them cannot be reached.
pub async fn status_with_updates(
    project: &mut Project,
    targets: &[String],
    recursive: bool,
) -> Result<(Vec<StageStatus>, usize), DataError> {
    let (all, total) = statuses(project, targets, recursive)?;
    let mut found = Vec::new();
    for (stage, mut status) in all {
        status.deps.extend(match stage.import() {
            Some(Import::Url(_)) => source_versions::change(project, &stage).await?,
            _ => update_of(project, &stage).await?,
        });
        found.extend((!status.is_clean()).then_some(status));
    }
    Ok((found, total))
}

/// The status of each target, or of all stages, and the number of all stages.
fn statuses(
    project: &mut Project,
    targets: &[String],
    recursive: bool,
) -> Result<(Vec<(Stage, StageStatus)>, usize), DataError> {
    let stages = project.stages()?;
    let selected = project.select(&stages, targets, recursive)?.into_iter();
    let found = selected.map(|selected| Ok((selected.stage.clone(), stage_status(project, &selected)?)));
    let found = found.collect::<Result<_, DataError>>()?;
    project.state.save()?;
    Ok((found, stages.len()))
}

/// How the dependencies, parameters, outputs and the command of a stage differ from its record.
pub(crate) fn stage_status(project: &Project, selected: &Selected<'_>) -> Result<StageStatus, DataError> {
    let stage = selected.stage;
    let mut status = StageStatus {
        address: stage.address(&project.current),
        deps: Vec::new(),
        outs: outputs(project, selected)?,
        params: Vec::new(),
        is_always_changed: stage.is_always_changed(),
        is_command_changed: stage.recipe.as_ref().is_some_and(|recipe| recipe.command_changed),
        is_unsealed: stage.import().is_some() && stage.is_unsealed(),
    };
    if !stage.frozen {
        status.deps = match stage.import() {
            Some(Import::Repository { .. }) => Vec::new(),
            Some(Import::Url(_)) => location_change(project, stage)?,
            None => dependencies(project, stage)?,
        };
        for parameters in stage.recipe.iter().flat_map(|recipe| &recipe.params) {
            let change = parameters_change(parameters)?;
            status.params.extend(change.map(|change| (parameters.display(&project.current), change)));
        }
    }
    Ok(status)
}

/// Whether the repository of an import has a newer commit than the recorded one.
async fn update_of(project: &Project, stage: &Stage) -> Result<Option<(String, Change)>, DataError> {
    let Some(Import::Repository { url, path, revision, commit, .. }) = stage.import() else { return Ok(None) };
    let newest = super::import::open_source(project, stage, revision.as_deref()).await?.commit;
    let is_newer = commit.is_some() && newest.is_some() && newest != commit;
    let shown = format!("{path} ({})", crate::external::redact(&url));
    Ok(is_newer.then_some((shown, Change::UpdateAvailable)))
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
    // The digest of an import is that of its source, which may be elsewhere.
    let is_known = |dep: &&Output| dep.location.is_some() && (stage.recipe.is_some() || dep.digest.is_some());
    for dep in stage.deps.iter().filter(is_known) {
        if let Some(change) = workspace_change(project, dep)? {
            changes.push((dep.display(&project.current, &project.root), change));
        }
    }
    Ok(changes)
}

/// How the parameters of a file differ from the recorded ones, if they do.
///
/// # Errors
/// If the file cannot be read or understood.
pub(crate) fn parameters_change(parameters: &Parameters) -> Result<Option<ParametersChange>, DataError> {
    Ok(difference_of(parameters, parameter_file(&parameters.path)?.as_ref()))
}

/// How these values of a parameter file differ from the recorded ones, if they do.
pub(crate) fn difference_of(parameters: &Parameters, values: Option<&Value>) -> Option<ParametersChange> {
    let Some(values) = values else { return Some(ParametersChange::File(Change::Deleted)) };
    let Some(recorded) = &parameters.recorded else { return Some(ParametersChange::File(Change::New)) };
    let present = parameters.select(values);
    let find =
        |list: &[(String, Value)], key: &String| list.iter().find(|(name, _)| name == key).map(|(_, v)| v.clone());
    let mut keys = parameters.keys.clone();
    if keys.is_empty() {
        keys.extend(present.iter().chain(recorded).map(|(key, _)| key.clone()));
    }
    let mut changes: Vec<(String, Change)> = Vec::new();
    for key in keys {
        let change = match (find(&present, &key), find(recorded, &key)) {
            (None, _) => Change::Deleted,
            (Some(_), None) => Change::New,
            (Some(present), Some(recorded)) if !equal(&present, &recorded) => Change::Modified,
            _ => continue,
        };
        if !changes.iter().any(|(known, _)| *known == key) {
            changes.push((key, change));
        }
    }
    (!changes.is_empty()).then_some(ParametersChange::Keys(changes))
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
    if out.location.is_none() {
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

/// How a file or folder of the workspace differs from the record of an output or dependency.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn workspace_change(project: &Project, out: &Output) -> Result<Option<Change>, DataError> {
    let Some(path) = &out.location else { return Ok(None) };
    if project.is_ignored(path)? {
        return Ok(Some(Change::Deleted));
    }
    let Some(present) = snapshot::identify(path, &project.rules, &project.state, out.hash)? else {
        return Ok(Some(Change::Deleted));
    };
    Ok(match out.digest {
        Some(digest) if digest == present => None,
        // As in DVC: what has no digest differs from the workspace's.
        Some(_) | None => Some(Change::Modified),
    })
}

/// Whether the cache has a file, or a folder with all its files.
///
/// # Errors
/// If the cache cannot be read.
pub(crate) fn in_cache(project: &Project, hash: HashName, digest: &Digest) -> Result<bool, DataError> {
    let cache = project.cache_of(hash);
    if !cache.contains(digest)? {
        return Ok(false);
    }
    if !digest.is_dir {
        return Ok(true);
    }
    let digests = match cache.digests_in(digest) {
        Ok(Some(digests)) => digests,
        Ok(None) | Err(DataError::File { .. }) => return Ok(false), // A damaged manifest counts as missing.
        Err(error) => return Err(error),
    };
    Ok(cache.contains_all(&digests)?.into_iter().all(|exists| exists))
}
