//! Experiments: commits that need neither a branch nor a clean work tree, and that `git push` sends only on request. References, messages and
//! stashes are those of DVC, so that both programs see the same experiments.

pub mod apply;
mod hydra;
pub mod names;
pub mod overrides;
pub mod queue;
pub mod run;
pub mod save;
pub mod share;
pub mod show;
pub mod table;

use crate::error::DataError;
use crate::revision::{Experiment, all, find, reference, resolve};
use crate::scm::{Git, RefChange};

/// The commit on which the last experiment was run or saved.
const EXEC_HEAD: &str = "refs/exps/exec/EXEC_HEAD";
/// The experiment that was applied last.
const EXEC_APPLY: &str = "refs/exps/exec/EXEC_APPLY";

/// Creates a branch for an experiment, and returns its name and that of the experiment.
///
/// # Errors
/// [`DataError::Invalid`] if there is no such experiment, or the branch exists.
pub fn branch(git: &Git, revision: &str, name: Option<&str>) -> Result<(String, String), DataError> {
    let commit = resolve(git, revision)?;
    let of_commit: Vec<Experiment> =
        all(git, None)?.into_iter().filter(|experiment| experiment.commit == commit).collect();
    let experiment = match of_commit.as_slice() {
        [] => return Err(DataError::Invalid(format!("'{revision}' is not an experiment"))),
        [one] => one.clone(),
        [first, ..] => find(git, &[revision.to_owned()], None)?.pop().unwrap_or_else(|| first.clone()),
    };
    let branch = name.map_or_else(|| format!("{}-branch", experiment.name), str::to_owned);
    let reference = format!("refs/heads/{branch}");
    if !git.is_reference_name(&reference) {
        return Err(DataError::Invalid(format!("'{branch}' is not a valid name of a Git branch")));
    }
    if !git.references(&reference)?.is_empty() {
        return Err(DataError::Invalid(format!("the Git branch '{branch}' already exists")));
    }
    git.change_references(&[RefChange::Create(reference, experiment.commit)])?;
    Ok((branch, experiment.name))
}

/// Deletes experiments, here or in another repository. An applied experiment may be deleted; the workspace keeps its files.
///
/// # Errors
/// If git refuses it.
pub fn remove(git: &Git, experiments: &[Experiment], remote: Option<&str>) -> Result<(), DataError> {
    let names: Vec<String> = experiments.iter().map(Experiment::reference).collect();
    if names.is_empty() {
        return Ok(());
    }
    if let Some(remote) = remote {
        return git.send_references(remote, &names, false, true).map(drop);
    }
    let mut changes: Vec<RefChange> = names.into_iter().map(RefChange::Delete).collect();
    let applied = git.references(EXEC_APPLY)?;
    if applied.iter().any(|(_, commit)| experiments.iter().any(|experiment| experiment.commit == *commit)) {
        changes.push(RefChange::Delete(EXEC_APPLY.into()));
    }
    git.change_references(&changes)
}

/// Gives an experiment another name.
///
/// # Errors
/// [`DataError::Invalid`] if the name is not valid, or is that of another experiment and not `force`.
pub fn rename(git: &Git, name: &str, new: &str, force: bool) -> Result<(), DataError> {
    let Some(experiment) = find(git, &[name.to_owned()], None)?.pop() else { return Ok(()) };
    names::check(git, &experiment.baseline, new)?;
    let target = reference(&experiment.baseline, new);
    let exists = !git.references(&target)?.is_empty();
    if exists && !force {
        return Err(exists_error(new));
    }
    git.change_references(&[RefChange::Delete(experiment.reference()), RefChange::Set(target, experiment.commit)])
}

fn exists_error(name: &str) -> DataError {
    DataError::Invalid(format!("an experiment of this commit already has the name '{name}'; -f replaces it"))
}
