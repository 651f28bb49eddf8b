//! `exp run`: changes parameters, runs the pipeline in the workspace, and saves the result as an experiment.

use std::path::PathBuf;

use super::hydra::Hydra;
use super::names;
use super::overrides::{self, Override};
use super::queue::Queue;
use super::save::{self, record};
use crate::commands::Talk;
use crate::commands::repro::{self, Say, repro};
use crate::error::DataError;
use crate::project::Project;
use crate::revision::{Experiment, repository};
use crate::scm::Git;
use crate::stage::LOCK_FILE;

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The name; a random one if it is not given.
    pub name: Option<String>,
    /// The message of the commit.
    pub message: Option<String>,
    /// The parameters to change.
    pub params: Vec<Override>,
    /// The stages; all by default.
    pub targets: Vec<String>,
    /// Files and folders that Git does not track, to copy for an experiment that runs outside of the workspace.
    pub copy_paths: Vec<String>,
    /// Change `params.yaml` itself, also in a project that composes it with Hydra.
    pub no_hydra: bool,
    /// The commit after which the result comes; the baseline if it is not given.
    pub parent: Option<String>,
    /// How to run them. `force` also replaces an experiment with the same name.
    pub repro: repro::Options,
}

impl Request {
    /// How Hydra composes the parameters, if it does.
    pub(super) fn hydra(&self, project: &Project) -> Option<Hydra> {
        if self.no_hydra { None } else { Hydra::of(&project.config, &project.root) }
    }
}

/// Runs an experiment in the workspace. If a stage fails, the workspace keeps the new parameters.
///
/// # Errors
/// If the name exists, a parameter is not known, or a stage fails.
pub async fn run(project: &mut Project, request: &Request, talk: &dyn Talk, say: Say) -> Result<Experiment, DataError> {
    let git = project.git.clone();
    let (git, head) = repository(git.as_ref())?;
    let name = names::choose(git, &head, request.name.as_deref(), request.repro.force)?;
    let files = overrides::apply(&project.current, &request.params, request.hydra(project).as_ref())?;
    let _recorded = Queue::of(project)?.record_workspace(&head, Some(&name))?;
    let variables = vec![("DVC_EXP_BASELINE_REV".into(), head.clone()), ("DVC_EXP_NAME".into(), name.clone())];
    let repro = repro::Options { variables, ..request.repro.clone() };
    let request = Request { name: Some(name), repro, ..request.clone() };
    reproduce(project, head, &request, files, talk, say).await
}

/// Runs the stages of a request in the present folder, and stores the result as an experiment, also with the files `files`.
///
/// # Errors
/// If a stage fails, or git cannot store the result.
pub(super) async fn reproduce(
    project: &mut Project,
    baseline: String,
    request: &Request,
    mut files: Vec<PathBuf>,
    talk: &dyn Talk,
    say: Say,
) -> Result<Experiment, DataError> {
    repro(project, &request.targets, &request.repro, talk, say).await?;
    let git = project.git.clone();
    let (git, _) = repository(git.as_ref())?;
    files.extend(files_of_stages(project, git)?);
    let options = save::Options {
        untracked: files,
        message: request.message.clone(),
        parent: request.parent.clone(),
        ..save::Options::default()
    };
    let name = match &request.name {
        Some(name) => name.clone(),
        None => names::free(git, &baseline)?,
    };
    record(project, git, Experiment { baseline, name, commit: String::new() }, &options, talk)
}

/// The files that belong to stages and that Git may track: pipelines, lock files, dependencies, outputs that are not in the cache.
fn files_of_stages(project: &Project, git: &Git) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for stage in project.stages()?.iter().filter(|stage| stage.name.is_some()) {
        files.extend([stage.file.clone(), stage.file.with_file_name(LOCK_FILE)]);
        files.extend(stage.deps.iter().filter_map(|dep| dep.path.clone()));
        files.extend(stage.outs.iter().filter(|out| !out.cached).filter_map(|out| out.path.clone()));
    }
    files.retain(|path| path.exists());
    files.sort();
    files.dedup();
    let paths: Vec<_> = files.iter().map(PathBuf::as_path).collect();
    let ignored = git.ignored(&paths)?;
    files.retain(|path| !ignored.contains(path));
    Ok(files)
}
