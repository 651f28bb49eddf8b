//! `data status`: what changed between the last commit, the `.dvc` files and the workspace, in one report.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use super::diff::{Version, present, recorded};
use crate::error::DataError;
use crate::model::{Digest, HashName};
use crate::project::Project;
use crate::project::committed::stages_at;
use crate::remote::Remote;
use crate::scm::WorkTree;
use crate::stage::{Import, Stage};

/// What to compare.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Show files in folders, not only the outputs.
    pub granular: bool,
    /// Show files that neither Git nor DVC tracks.
    pub untracked: bool,
    /// Compare with a remote.
    pub not_in_remote: bool,
    /// Compare with what is known of the remote, without asking it.
    pub no_remote_refresh: bool,
    /// The remote; the default one if it is not given.
    pub remote: Option<String>,
}

/// Changes between two versions; paths of folders end with `/`.
#[derive(Debug, Default)]
pub struct Changes {
    /// With another content.
    pub modified: Vec<String>,
    /// Only in the newer version.
    pub added: Vec<String>,
    /// Only in the older version.
    pub deleted: Vec<String>,
    /// With the same content under another name: the old and the new one.
    pub renamed: Vec<(String, String)>,
    /// In folders whose older content is not known.
    pub unknown: Vec<String>,
}

/// The report.
#[derive(Debug, Default)]
pub struct Status {
    /// Recorded data that the cache lacks.
    pub not_in_cache: Vec<String>,
    /// Recorded data that the remote lacks.
    pub not_in_remote: Vec<String>,
    /// Changes of the `.dvc` files since the last commit.
    pub committed: Changes,
    /// Changes of the workspace that the `.dvc` files do not have.
    pub uncommitted: Changes,
    /// Files that nothing tracks.
    pub untracked: Vec<String>,
    /// Data without changes.
    pub unchanged: Vec<String>,
    /// The state of the Git work tree; `None` without Git.
    pub git: Option<WorkTree>,
}

/// Compares the last commit, the `.dvc` files and the workspace.
///
/// # Errors
/// If a file cannot be read, or the remote cannot be reached.
pub async fn data_status(project: &mut Project, targets: &[String], options: &Options) -> Result<Status, DataError> {
    let stages = project.stages()?;
    let index = recorded(project, &stages)?;
    let workspace = present(project, &stages)?;
    project.state.save()?;
    let targets: Vec<String> = targets
        .iter()
        .map(|target| {
            crate::config::relative_path(&project.absolute(target), &project.root).to_string_lossy().into_owned()
        })
        .collect();
    let is_wanted = |path: &str| targets.is_empty() || targets.iter().any(|target| Path::new(path).starts_with(target));
    let (uncommitted, mut unchanged) = compare(&index, &workspace, options.granular, &is_wanted);
    let mut status = Status { uncommitted, ..Status::default() };
    if let Some(git) = &project.git {
        let head = match git.resolve("HEAD")? {
            Some(commit) => recorded(project, &stages_at(project, &commit)?)?,
            None => Version::default(),
        };
        let (committed, same) = compare(&head, &index, options.granular, &is_wanted);
        unchanged.retain(|path| same.contains(path));
        status.committed = committed;
        let tree = git.work_tree(options.untracked)?;
        let inside = tree.untracked.iter().filter(|path| path.starts_with(&project.root)).filter(|path| {
            let relative = crate::config::relative_path(path, &project.root);
            targets.is_empty() || targets.iter().any(|target| relative.starts_with(target))
        });
        status.untracked = inside.map(|path| project.display(path)).collect();
        status.git = Some(tree);
    }
    status.unchanged = unchanged.into_iter().collect();
    let shown = |path: &&String| is_wanted(path) && (options.granular || index.outputs.contains(*path));
    for (path, (hash, digest)) in index.entries.iter().filter(|(path, _)| shown(path)) {
        if !project.cache_of(*hash).contains(digest)? {
            status.not_in_cache.push(path.clone());
        }
    }
    if options.not_in_remote {
        let pushed: Vec<Stage> = stages.iter().filter(|stage| is_pushed(stage)).cloned().collect();
        let pushed = recorded(project, &pushed)?;
        let remote = Remote::open(&project.config, options.remote.as_deref(), "data status")?;
        let entries: Vec<(&String, (HashName, Digest))> =
            pushed.entries.iter().filter(|(path, _)| shown(path)).map(|(path, object)| (path, *object)).collect();
        let objects: Vec<(HashName, Digest)> = entries.iter().map(|(_, object)| *object).collect();
        let existing = if options.no_remote_refresh {
            remote.known(&project.tmp(), &objects)
        } else {
            let existing = remote.existing(&objects, remote.concurrency(None)).await?;
            remote.set_known(&project.tmp(), &objects, &existing)?;
            existing
        };
        let missing = entries.into_iter().filter(|(_, object)| !existing.contains(object));
        status.not_in_remote = missing.map(|(path, _)| path.clone()).collect();
    }
    Ok(status)
}

/// Whether `push` sends the outputs of a stage: not those of another repository.
fn is_pushed(stage: &Stage) -> bool {
    !matches!(stage.import(), Some(Import::Repository { .. })) && stage.outs.iter().all(|out| out.can_push)
}

/// The changes, and the paths without one.
fn compare(
    old: &Version,
    new: &Version,
    granular: bool,
    is_wanted: &dyn Fn(&str) -> bool,
) -> (Changes, BTreeSet<String>) {
    let paths: BTreeSet<&String> = old.entries.keys().chain(new.entries.keys()).collect();
    let (mut changes, mut unchanged) = (Changes::default(), BTreeSet::new());
    for path in paths {
        let is_output = old.outputs.contains(path) || new.outputs.contains(path);
        if !is_wanted(path) || !(granular || is_output) {
            continue;
        }
        match (old.entries.get(path), new.entries.get(path)) {
            _ if !(is_output || old.knows(path) && new.knows(path)) => {
                changes.unknown.extend(new.entries.contains_key(path).then(|| path.clone()));
            }
            (Some(a), Some(b)) if a == b => drop(unchanged.insert(path.clone())),
            (Some(_), Some(_)) => changes.modified.push(path.clone()),
            (None, _) => changes.added.push(path.clone()),
            (_, None) => changes.deleted.push(path.clone()),
        }
    }
    find_renames(&mut changes, old, new);
    (changes, unchanged)
}

/// Turns pairs of an added and a deleted path with the same content into renamed ones.
fn find_renames(changes: &mut Changes, old: &Version, new: &Version) {
    let mut deleted: BTreeMap<(bool, Digest), VecDeque<String>> = BTreeMap::new();
    let key = |object: &(HashName, Digest)| (object.0 == HashName::Md5, object.1);
    for path in std::mem::take(&mut changes.deleted) {
        if let Some(object) = old.entries.get(&path) {
            deleted.entry(key(object)).or_default().push_back(path);
        }
    }
    for path in std::mem::take(&mut changes.added) {
        let object = new.entries.get(&path);
        match object.and_then(|object| deleted.get_mut(&key(object))).and_then(VecDeque::pop_front) {
            Some(old) => changes.renamed.push((old, path)),
            None => changes.added.push(path),
        }
    }
    changes.deleted = deleted.into_values().flatten().collect();
    changes.deleted.sort();
}
