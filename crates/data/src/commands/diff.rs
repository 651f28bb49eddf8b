//! `diff`: the difference of the data between commits, or between a commit and the workspace.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::Path;

use crate::error::DataError;
use crate::model::{Digest, HashName};
use crate::project::Project;
use crate::project::committed::stages_at;
use crate::snapshot;
use crate::stage::Stage;

/// An entry of a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path below the project, with `/` after a folder; the old and the new one for a renamed file.
    pub path: (String, Option<String>),
    /// The digest; the old and the new one if it changed.
    pub digest: (Digest, Option<Digest>),
}

/// The difference, each list sorted by path.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Only the newer version has them.
    pub added: Vec<Entry>,
    /// Only the older version has them.
    pub deleted: Vec<Entry>,
    /// Both have them, with another content.
    pub modified: Vec<Entry>,
    /// The newer version has the same content under another name.
    pub renamed: Vec<Entry>,
    /// The older version's data is not in the cache.
    pub not_in_cache: Vec<Entry>,
}

impl Diff {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }
}

/// The data of a version: digests by path, folders with `/` at the end.
#[derive(Default)]
pub(super) struct Version {
    pub(super) entries: BTreeMap<String, (HashName, Digest)>,
    /// Folders whose files are not known, because the cache lacks their manifest.
    unknown: Vec<String>,
    /// The outputs themselves among the entries.
    pub(super) outputs: BTreeSet<String>,
}

impl Version {
    fn add_folder(&mut self, name: &str, hash: HashName, digest: Digest, files: Option<Vec<(String, Digest)>>) {
        self.entries.insert(format!("{name}/"), (hash, digest));
        self.outputs.insert(format!("{name}/"));
        match files {
            Some(files) => {
                self.entries.extend(files.into_iter().map(|(path, digest)| (format!("{name}/{path}"), (hash, digest))))
            }
            None => self.unknown.push(format!("{name}/")),
        }
    }

    fn add_file(&mut self, name: String, hash: HashName, digest: Digest) {
        self.outputs.insert(name.clone());
        self.entries.insert(name, (hash, digest));
    }

    pub(super) fn knows(&self, path: &str) -> bool {
        !self.unknown.iter().any(|folder| path.len() > folder.len() && path.starts_with(folder))
    }
}

/// Compares two commits, or a commit and the workspace if `new` is not given. With targets, only the data at or below these paths.
///
/// # Errors
/// If there is no such commit, or a file cannot be read.
pub fn diff(project: &mut Project, old: &str, new: Option<&str>, targets: &[String]) -> Result<Diff, DataError> {
    let git = project
        .git
        .clone()
        .ok_or_else(|| DataError::Git("the project does not use Git, so there are no commits".into()))?;
    if git.resolve("HEAD")?.is_none() {
        return Ok(Diff::default());
    }
    let unknown = |revision: &str| DataError::Git(format!("unknown Git revision '{revision}'"));
    let old_commit = git.resolve(old)?.ok_or_else(|| unknown(old))?;
    let old_version = recorded(project, &stages_at(project, &old_commit)?)?;
    let new_version = match new {
        Some(new) => {
            let commit = git.resolve(new)?.ok_or_else(|| unknown(new))?;
            if commit == old_commit {
                return Ok(Diff::default());
            }
            recorded(project, &stages_at(project, &commit)?)?
        }
        None => present(project, &project.stages()?)?,
    };
    project.state.save()?;
    let wanted: Vec<String> = targets
        .iter()
        .map(|target| {
            crate::config::relative_path(&project.absolute(target), &project.root).to_string_lossy().into_owned()
        })
        .collect();
    let is_wanted = |path: &str| wanted.is_empty() || wanted.iter().any(|target| Path::new(path).starts_with(target));
    if let Some(target) = wanted.iter().find(|target| {
        let has = |version: &Version| version.entries.keys().any(|path| Path::new(path).starts_with(target));
        !has(&old_version) && !has(&new_version)
    }) {
        return Err(DataError::Missing(target.clone()));
    }
    compare(project, &old_version, &new_version, new.is_none(), &is_wanted)
}

fn compare(
    project: &Project,
    old: &Version,
    new: &Version,
    with_missing: bool,
    is_wanted: &dyn Fn(&str) -> bool,
) -> Result<Diff, DataError> {
    let mut diff = Diff::default();
    let entry = |path: &str, digest| Entry { path: (path.to_owned(), None), digest: (digest, None) };
    for (path, (hash, digest)) in old.entries.iter().filter(|(path, _)| is_wanted(path)) {
        match new.entries.get(path) {
            Some((_, other)) if other == digest => {}
            Some((_, other)) => diff.modified.push(Entry { digest: (*digest, Some(*other)), ..entry(path, *digest) }),
            None if new.knows(path) => diff.deleted.push(entry(path, *digest)),
            None => {}
        }
        if with_missing && !project.cache_of(*hash).contains(digest)? {
            diff.not_in_cache.push(entry(path, *digest));
        }
    }
    let added =
        new.entries.iter().filter(|(path, _)| is_wanted(path) && !old.entries.contains_key(*path) && old.knows(path));
    let mut deleted: HashMap<Digest, VecDeque<Entry>> = HashMap::new();
    for entry in std::mem::take(&mut diff.deleted) {
        deleted.entry(entry.digest.0).or_default().push_back(entry);
    }
    for (path, (_, digest)) in added {
        match deleted.get_mut(digest).and_then(VecDeque::pop_front) {
            Some(old) => diff.renamed.push(Entry { path: (old.path.0, Some(path.clone())), digest: (*digest, None) }),
            None => diff.added.push(entry(path, *digest)),
        }
    }
    diff.deleted = deleted.into_values().flatten().collect();
    for list in [&mut diff.added, &mut diff.deleted, &mut diff.modified, &mut diff.renamed, &mut diff.not_in_cache] {
        list.sort_by(|a, b| a.path.0.cmp(&b.path.0));
    }
    Ok(diff)
}

fn name_of(project: &Project, path: &Path) -> String {
    crate::config::relative_path(path, &project.root).to_string_lossy().into_owned()
}

/// The data that stages record.
pub(super) fn recorded(project: &Project, stages: &[Stage]) -> Result<Version, DataError> {
    let mut version = Version::default();
    for out in stages.iter().flat_map(|stage| &stage.outs) {
        let (Some(path), Some(digest)) = (&out.path, out.digest) else { continue };
        let name = name_of(project, path);
        if digest.is_dir {
            let manifest = match project.recorded_files(out) {
                Ok(manifest) => manifest,
                Err(DataError::File { .. }) => None, // A damaged manifest counts as missing.
                Err(error) => return Err(error),
            };
            let files = manifest.map(|m| m.entries.into_iter().map(|entry| (entry.path, entry.digest)).collect());
            version.add_folder(&name, out.hash, digest, files);
        } else {
            version.add_file(name, out.hash, digest);
        }
    }
    Ok(version)
}

/// The data that the workspace has now at the paths of the stages' outputs.
pub(super) fn present(project: &Project, stages: &[Stage]) -> Result<Version, DataError> {
    let mut version = Version::default();
    for out in stages.iter().flat_map(|stage| &stage.outs) {
        let Some(path) = &out.path else { continue };
        let Some(snapshot) = snapshot::take(path, &project.rules, &project.state, out.hash, None)? else { continue };
        let name = name_of(project, path);
        match snapshot.manifest {
            Some(manifest) => {
                let files = manifest.entries.into_iter().map(|entry| (entry.path, entry.digest)).collect();
                version.add_folder(&name, out.hash, snapshot.digest, Some(files));
            }
            None => version.add_file(name, out.hash, snapshot.digest),
        }
    }
    Ok(version)
}
