//! `exp save`: the present state of the workspace becomes an experiment. Neither the work tree nor the index changes, except for the digests
//! that `commit` records.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{EXEC_HEAD, names};
use crate::commands::{Talk, commit};
use crate::error::DataError;
use crate::pipeline::value::to_sorted_json;
use crate::project::{Project, is_stage_file};
use crate::reports::definitions::Definitions;
use crate::revision::{Experiment, repository};
use crate::scm::{Git, Index, RefChange};
use crate::stage::LOCK_FILE;
use crate::tree::Tree;
use crate::yaml::{self, Value};

/// How to save.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The name; a random one if it is not given.
    pub name: Option<String>,
    /// Replace an experiment with the same name.
    pub force: bool,
    /// The targets are folders with stages.
    pub recursive: bool,
    /// Files that Git does not track and that belong to the experiment.
    pub untracked: Vec<PathBuf>,
    /// The message of the commit.
    pub message: Option<String>,
    /// The commit after which it comes; the baseline if it is not given.
    pub parent: Option<String>,
}

/// Saves the workspace as an experiment. The outputs of the targets, or all, are stored in the cache.
///
/// # Errors
/// [`DataError::Invalid`] if the name is not valid or exists, or an error of `commit` or of git.
pub fn save(
    project: &mut Project,
    targets: &[String],
    options: &Options,
    talk: &dyn Talk,
) -> Result<Experiment, DataError> {
    let git = project.git.clone();
    let (git, head) = repository(git.as_ref())?;
    let name = names::choose(git, &head, options.name.as_deref(), options.force)?;
    for path in &options.untracked {
        if !path.exists() {
            return Err(DataError::Missing(project.display(path)));
        }
    }
    let how = commit::Options { force: true, recursive: options.recursive, no_relink: true };
    commit::commit(project, targets, how, talk)?;
    record(project, git, Experiment { baseline: head, name, commit: String::new() }, options, talk)
}

/// Stores the commit of an experiment with the present files, and its reference.
///
/// # Errors
/// If git cannot store it.
pub(crate) fn record(
    project: &Project,
    git: &Git,
    mut experiment: Experiment,
    options: &Options,
    talk: &dyn Talk,
) -> Result<Experiment, DataError> {
    let message = match &options.message {
        Some(message) => message.clone(),
        None => format!("dvc: commit experiment {}", identity(project)?),
    };
    let index = Index::copy(git, project.staging.path().join("experiment-index"))?;
    index.update()?;
    let untracked = git.untracked()?;
    let (included, left_out) = split_untracked(project, options, untracked)?;
    index.add(&included)?;
    experiment.commit = index.commit(&[options.parent.as_ref().unwrap_or(&experiment.baseline)], &message)?;
    git.change_references(&[
        RefChange::Set(experiment.reference(), experiment.commit.clone()),
        RefChange::Set(EXEC_HEAD.into(), experiment.baseline.clone()),
    ])?;
    if !left_out.is_empty() {
        let names: Vec<String> = left_out.iter().map(|path| project.display(path)).collect();
        talk.note(&format!(
            "Git does not track these files, so they are not a part of the experiment (-I includes them):\n\t{}",
            names.join("\n\t")
        ));
    }
    Ok(experiment)
}

/// The files to add beside those that Git tracks: those that the user names, those that `dvc.yaml` names and that no stage writes into the
/// cache, and new lock files. Second, the untracked files that are left out.
fn split_untracked(
    project: &Project,
    options: &Options,
    untracked: Vec<PathBuf>,
) -> Result<(Vec<PathBuf>, Vec<PathBuf>), DataError> {
    let mut included: BTreeSet<PathBuf> = options.untracked.iter().cloned().collect();
    let definitions = Definitions::read(&Tree::workspace(project)?)?;
    included.extend(definitions.top_level_files().into_iter().filter(|path| path.exists()));
    included.extend(untracked.iter().filter(|path| path.file_name().is_some_and(|name| name == LOCK_FILE)).cloned());
    let left_out = untracked.into_iter().filter(|path| !included.iter().any(|root| path.starts_with(root))).collect();
    Ok((included.into_iter().collect(), left_out))
}

/// The SHA-256 of what `dvc.lock` records of all stages, which DVC writes into the message.
pub(super) fn identity(project: &Project) -> Result<String, DataError> {
    let mut stages: Vec<(String, Value)> = Vec::new();
    let mut locks: Vec<PathBuf> = project.stages()?.into_iter().filter(|s| s.name.is_some()).map(|s| s.file).collect();
    locks.dedup();
    for file in locks.iter().filter(|file| is_stage_file(file)) {
        let lock = file.with_file_name(LOCK_FILE);
        let text = std::fs::read_to_string(&lock).map_err(DataError::io(&lock))?;
        let value = yaml::parse(&text).map_err(|error| DataError::file(&lock, error.line, error.reason))?;
        let value = crate::pipeline::value::canonical(value);
        for (name, stage) in value.get("stages").map_or(&[][..], Value::entries) {
            stages.retain(|(known, _)| known != name);
            stages.push((name.clone(), stage.clone()));
        }
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, &to_sorted_json(&Value::Map(stages)));
    Ok(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}
