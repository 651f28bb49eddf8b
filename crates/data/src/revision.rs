//! Names of commits: revisions of Git, and experiments, which are commits below `refs/exps/` with the commit from which they were derived, their
//! baseline.

use std::collections::BTreeMap;

use crate::error::DataError;
use crate::scm::Git;

/// The namespace of all references.
pub const NAMESPACE: &str = "refs/exps";
/// The stash of experiments that wait or run in the queue.
pub const QUEUE: &str = "refs/exps/celery/stash";
/// Parts of the namespace that do not contain experiments.
const RESERVED: &[&str] = &["apply/", "celery/", "exec/", "temp/"];

/// An experiment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Experiment {
    /// The commit from which it was derived.
    pub baseline: String,
    /// The name, which is unique among those of its baseline.
    pub name: String,
    /// Its commit.
    pub commit: String,
}

impl Experiment {
    /// The name of the reference.
    pub fn reference(&self) -> String {
        reference(&self.baseline, &self.name)
    }

    fn parse(reference: &str, commit: &str) -> Option<Self> {
        let path = reference.strip_prefix(NAMESPACE)?.strip_prefix('/')?;
        if RESERVED.iter().any(|prefix| path.starts_with(prefix)) {
            return None;
        }
        let mut parts = path.split('/');
        let (Some(first), Some(rest), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        Some(Self { baseline: format!("{first}{rest}"), name: name.to_owned(), commit: commit.to_owned() })
    }
}

/// The name of an experiment's reference.
pub fn reference(baseline: &str, name: &str) -> String {
    let (first, rest) = baseline.split_at(baseline.len().min(2));
    format!("{NAMESPACE}/{first}/{rest}/{name}")
}

/// The project's Git work tree.
///
/// # Errors
/// If the project does not use Git, or there is no commit yet.
pub fn repository(git: Option<&Git>) -> Result<(&Git, String), DataError> {
    let git = git.ok_or_else(|| DataError::Git("experiments need a project in a Git repository".into()))?;
    let head = git.resolve("HEAD")?;
    head.map(|head| (git, head))
        .ok_or_else(|| DataError::Git("there is no commit yet, from which experiments derive".into()))
}

/// All experiments here or, with `remote`, in another Git repository, by reference.
///
/// # Errors
/// If git cannot be run, or the repository cannot be reached.
pub fn all(git: &Git, remote: Option<&str>) -> Result<Vec<Experiment>, DataError> {
    let references = match remote {
        Some(remote) => git.remote_references(remote, NAMESPACE)?,
        None => git.references(NAMESPACE)?,
    };
    Ok(references.iter().filter_map(|(name, commit)| Experiment::parse(name, commit)).collect())
}

/// Which experiments a command is about.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Those of all commits.
    pub all_commits: bool,
    /// Those of these commits.
    pub revisions: Vec<String>,
    /// The number of commits from each of these commits back; a negative number stands for all.
    pub number: i64,
}

impl Selection {
    /// The commits of the selection; `None` for all. Without any, `HEAD` is selected.
    ///
    /// # Errors
    /// If a revision does not exist.
    pub fn baselines(&self, git: &Git) -> Result<Option<Vec<String>>, DataError> {
        if self.all_commits {
            return Ok(None);
        }
        let head = ["HEAD".to_owned()];
        let revisions = if self.revisions.is_empty() { &head[..] } else { &self.revisions };
        let mut commits = Vec::new();
        for revision in revisions {
            let count = usize::try_from(self.number).unwrap_or(usize::MAX >> 1);
            for commit in git.history(&resolve(git, revision)?, count)? {
                if !commits.contains(&commit) {
                    commits.push(commit);
                }
            }
        }
        Ok(Some(commits))
    }
}

/// The selected experiments, by baseline.
///
/// # Errors
/// If a revision does not exist, or the repository cannot be reached.
pub fn list(
    git: &Git,
    selection: &Selection,
    remote: Option<&str>,
) -> Result<BTreeMap<String, Vec<Experiment>>, DataError> {
    let baselines = selection.baselines(git)?;
    let mut found: BTreeMap<String, Vec<Experiment>> = BTreeMap::new();
    for experiment in all(git, remote)? {
        if baselines.as_ref().is_none_or(|baselines| baselines.contains(&experiment.baseline)) {
            found.entry(experiment.baseline.clone()).or_default().push(experiment);
        }
    }
    Ok(found)
}

/// The experiments with these names or references, here or in another repository. One name may be that of several experiments: that of the
/// current commit is preferred.
///
/// # Errors
/// [`DataError::Invalid`] if there is none, or if several are as good.
pub fn find(git: &Git, names: &[String], remote: Option<&str>) -> Result<Vec<Experiment>, DataError> {
    let known = all(git, remote)?;
    let head = git.resolve("HEAD")?;
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in names {
        let matching: Vec<&Experiment> = known.iter().filter(|e| e.name == *name || e.reference() == *name).collect();
        let of_head = matching.iter().find(|experiment| Some(&experiment.baseline) == head.as_ref());
        match (matching.as_slice(), of_head) {
            ([], _) => missing.push(name.as_str()),
            ([one], _) | (_, Some(one)) => found.push((*one).clone()),
            (several, None) => {
                let references: Vec<String> = several.iter().map(|experiment| experiment.reference()).collect();
                return Err(DataError::Invalid(format!(
                    "'{name}' is the name of several experiments. Give one of these references instead:\n{}",
                    references.join("\n")
                )));
            }
        }
    }
    match (missing.as_slice(), remote) {
        ([], _) => Ok(found),
        (missing, Some(remote)) => {
            Err(DataError::Invalid(format!("the experiments '{}' do not exist in '{remote}'", missing.join("', '"))))
        }
        (missing, None) => {
            Err(DataError::Invalid(format!("'{}' is not the name of an experiment", missing.join("', '"))))
        }
    }
}

/// The commit that a revision of Git or the name of an experiment stands for.
///
/// # Errors
/// If it is neither.
pub fn resolve(git: &Git, revision: &str) -> Result<String, DataError> {
    let error = match git.resolve(revision) {
        Ok(Some(commit)) => return Ok(commit),
        Ok(None) => DataError::Git("there is no commit yet".into()),
        Err(error) => error,
    };
    let known = find(git, &[revision.to_owned()], None);
    known.ok().and_then(|mut found| found.pop()).map(|experiment| experiment.commit).ok_or(error)
}

/// How commits are named for users: the current branch, a tag, a branch.
///
/// # Errors
/// If git cannot be run.
pub fn describe(git: &Git) -> Result<BTreeMap<String, String>, DataError> {
    let mut names = BTreeMap::new();
    for namespace in ["refs/heads/", "refs/tags/"] {
        // Among several, the first counts; tags replace branches.
        for (name, commit) in git.references(namespace)?.into_iter().rev() {
            names.insert(commit, name[namespace.len()..].to_owned());
        }
    }
    if let (Some(branch), Some(head)) = (git.branch(), git.resolve("HEAD")?) {
        names.insert(head, branch);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_those_of_dvc() {
        let experiment = Experiment { baseline: "0123456789".into(), name: "e1".into(), commit: "c".into() };
        assert_eq!(experiment.reference(), "refs/exps/01/23456789/e1");
        assert_eq!(Experiment::parse("refs/exps/01/23456789/e1", "c"), Some(experiment));
        for other in [
            "refs/exps/stash",
            "refs/exps/apply/stash",
            "refs/exps/celery/failed",
            "refs/exps/exec/EXEC_HEAD",
            "refs/exps/01/23456789",
            "refs/exps/01/23456789/a/b",
            "refs/heads/01/23456789/e1",
        ] {
            assert_eq!(Experiment::parse(other, "c"), None, "{other}");
        }
    }
}
