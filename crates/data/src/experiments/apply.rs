//! `exp apply`: the files of an experiment in the workspace, on top of the current commit.

use std::path::Path;

use super::EXEC_APPLY;
use crate::commands::{Talk, checkout};
use crate::error::DataError;
use crate::project::Project;
use crate::revision::{find, repository, resolve};
use crate::scm::{Git, Index, RefChange};

/// The commit on which the last experiment was applied.
const APPLY_HEAD: &str = "refs/exps/apply/ORIG_HEAD";
/// The state of the workspace before that, which `git stash apply` restores.
const APPLY_STASH: &str = "refs/exps/apply/stash";

/// Replaces the files in the workspace by those of an experiment, and restores its data. Files that the experiment does not have are kept.
/// The state before is stored as a stash.
///
/// # Errors
/// If there is no such experiment, a file cannot be written, or the cache lacks data.
pub fn apply(project: &mut Project, revision: &str, talk: &dyn Talk) -> Result<(), DataError> {
    let git = project.git.clone();
    let (git, head) = repository(git.as_ref())?;
    let commit = match resolve(git, revision) {
        Ok(commit) => commit,
        // This error says that it is not an experiment, not that it is not a revision of Git.
        Err(_) => find(git, &[revision.to_owned()], None)?.pop().map(|found| found.commit).unwrap_or_default(),
    };
    let temporary = project.staging.path().to_owned();
    stash(git, &head, &commit, revision, &temporary)?;
    let index = Index::copy(git, temporary.join("apply-index"))?;
    index.read(&commit)?;
    index.check_out()?;
    // The rules of `.dvcignore` may be others now.
    project.rules = crate::ignore::Rules::dvcignore(&project.root)?;
    let options = checkout::Options { force: true, ..checkout::Options::default() };
    let report = checkout::checkout(project, &[], options, talk)?;
    if !report.failed.is_empty() {
        return Err(DataError::NotInCache(report.failed));
    }
    git.change_references(&[RefChange::Set(EXEC_APPLY.into(), commit)])
}

/// Stores the work tree in the form of `git stash --include-untracked`: a commit of the tracked files, whose parents are the current commit,
/// the index, and the untracked files.
fn stash(git: &Git, head: &str, commit: &str, name: &str, temporary: &Path) -> Result<(), DataError> {
    let mut changes = vec![RefChange::Set(APPLY_HEAD.into(), head.to_owned())];
    if !git.references(APPLY_STASH)?.is_empty() {
        git.change_references(&[RefChange::Delete(APPLY_STASH.into())])?;
    }
    let untracked = git.untracked()?;
    if git.has_changes()? || !untracked.is_empty() {
        let staged = Index::copy(git, temporary.join("stash-index"))?;
        let of_index = staged.commit(&[head], &format!("index on {head}"))?;
        staged.update()?;
        let others = Index::empty(git, temporary.join("stash-untracked"));
        others.add(&untracked)?;
        let of_untracked = others.commit(&[], &format!("untracked files on {head}"))?;
        let branch = git.branch().unwrap_or_else(|| "(no branch)".into());
        let message = format!("On {branch}: dvc-exp-apply:{head}:{commit}:{name}");
        let stash = staged.commit(&[head, &of_index, &of_untracked], &message)?;
        changes.push(RefChange::Set(APPLY_STASH.into(), stash));
    }
    git.change_references(&changes)
}
