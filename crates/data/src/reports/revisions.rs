//! The revisions that a report covers.

use std::path::Path;

use super::{Failure, Files, Revision};
use crate::config::relative_path;
use crate::error::DataError;
use crate::project::Project;
use crate::revision::resolve;
use crate::scm::Blobs;
use crate::tree::Tree;

/// The name of the workspace among revisions.
pub const WORKSPACE: &str = "workspace";

/// Which revisions a report covers beside the workspace.
#[derive(Debug, Clone, Default)]
pub struct Covered {
    /// These revisions of Git, or experiments. `workspace` is that.
    pub named: Vec<String>,
    /// The last commits of all branches.
    pub all_branches: bool,
    /// The commits of all tags.
    pub all_tags: bool,
    /// All commits.
    pub all_commits: bool,
}

impl Covered {
    fn is_empty(&self) -> bool {
        self.named.is_empty() && !self.all_branches && !self.all_tags && !self.all_commits
    }

    /// The commits with the names for which they are covered.
    fn commits(&self, project: &Project) -> Result<Vec<(String, Vec<String>)>, DataError> {
        let Some(git) = &project.git else { return Ok(Vec::new()) };
        let mut names: Vec<(String, String)> = Vec::new();
        for revision in self.named.iter().filter(|name| *name != WORKSPACE) {
            names.push((resolve(git, revision)?, revision.clone()));
        }
        if self.all_commits {
            names.extend(git.commits(false, false, true)?.into_iter().map(|commit| (commit.clone(), commit)));
        }
        for (covered, namespace) in [(self.all_branches, "refs/heads/"), (self.all_tags, "refs/tags/")] {
            if covered && !self.all_commits {
                let references = git.references(namespace)?.into_iter();
                names.extend(references.map(|(name, commit)| (commit, name[namespace.len()..].to_owned())));
            }
        }
        let mut grouped: Vec<(String, Vec<String>)> = Vec::new();
        for (commit, name) in names {
            match grouped.iter_mut().find(|(known, _)| *known == commit) {
                Some((_, names)) if names.contains(&name) => {}
                Some((_, names)) => names.push(name),
                None => grouped.push((commit, vec![name])),
            }
        }
        Ok(grouped)
    }
}

/// What was read of each revision, by its name.
pub type Results<T> = Vec<(String, Result<T, Failure>)>;

/// Calls `read` for the workspace and the covered commits, in this order.
///
/// # Errors
/// If a revision does not exist; failures of `read` are part of the result.
pub fn each<T>(
    project: &Project,
    covered: &Covered,
    read: impl Fn(&Tree<'_>) -> Result<T, DataError>,
) -> Result<Results<T>, DataError> {
    let failure = |error: &DataError| Failure::from_error(error, "dvc.yaml");
    let workspace = Tree::workspace(project).and_then(|tree| read(&tree)).map_err(|error| failure(&error));
    if covered.is_empty() {
        return Ok(vec![(String::new(), workspace)]);
    }
    let mut results = vec![(WORKSPACE.to_owned(), workspace)];
    let Some(git) = &project.git else { return Ok(results) };
    let commits = covered.commits(project)?;
    let blobs = Blobs::open(git)?;
    let root = relative_path(&project.root, git.root());
    for (commit, names) in commits {
        // Commits from before the project was created in a folder of the repository are left out.
        if root != Path::new(".") && !root.as_os_str().is_empty() && blobs.get(&commit, &project.root)?.is_none() {
            continue;
        }
        let result = Tree::at(project, commit, &blobs).and_then(|tree| read(&tree)).map_err(|error| failure(&error));
        results.push((names.join(","), result));
    }
    Ok(results)
}

/// Calls `read` for one revision: the workspace, a commit, or an experiment.
///
/// # Errors
/// If the revision does not exist; failures of `read` are part of the result.
pub fn at<T>(
    project: &Project,
    revision: &str,
    read: impl Fn(&Tree<'_>) -> Result<T, DataError>,
) -> Result<Result<T, Failure>, DataError> {
    let result = match &project.git {
        Some(git) if revision != WORKSPACE => {
            let commit = resolve(git, revision)?;
            let blobs = Blobs::open(git)?;
            Tree::at(project, commit, &blobs).and_then(|tree| read(&tree))
        }
        _ => Tree::workspace(project).and_then(|tree| read(&tree)),
    };
    Ok(result.map_err(|error| Failure::from_error(&error, "dvc.yaml")))
}

/// The values of files in the covered revisions. The workspace is left out if it equals the current branch (`hide_equal`).
///
/// # Errors
/// If a revision does not exist.
pub fn values(
    project: &Project,
    covered: &Covered,
    hide_equal: bool,
    read: impl Fn(&Tree<'_>) -> Result<Files, DataError>,
) -> Result<Vec<Revision>, DataError> {
    let results = each(project, covered, read)?;
    let mut revisions: Vec<Revision> = results.into_iter().map(|(name, files)| Revision { name, files }).collect();
    let branch = project.git.as_ref().and_then(crate::scm::Git::branch);
    let current = revisions.iter().find(|revision| Some(&revision.name) == branch.as_ref());
    let is_equal = current.is_some_and(|current| revisions.first().is_some_and(|first| first.files == current.files));
    if hide_equal && is_equal {
        revisions.remove(0);
    }
    Ok(revisions)
}
