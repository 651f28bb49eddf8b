//! Which outputs `checkout` created. When an output is no longer tracked, for example after a change of the Git branch, `checkout` removes what it
//! had created for it, if nobody has changed it since.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use md5::{Digest as _, Md5};

use crate::error::DataError;
use crate::ignore::is_reserved;
use crate::project::Project;
use crate::removal::remove_data;
use crate::stat::Stat;
use crate::walk::walk;

/// Maximum bytes read of the file.
const MAX_BYTES: u64 = 64 << 20;

/// The outputs by their path below the project, each with a fingerprint of the states of its files.
#[derive(Debug)]
pub(crate) struct Links {
    file: PathBuf,
    outputs: BTreeMap<String, String>,
    changed: bool,
}

impl Links {
    /// Reads the record in the project's `.dvc/tmp`. A missing or damaged one is empty.
    pub(crate) fn open(tmp: &Path) -> Self {
        let file = tmp.join("slipway-links.json");
        let small = std::fs::metadata(&file).is_ok_and(|metadata| metadata.len() <= MAX_BYTES);
        let bytes = if small { std::fs::read(&file).unwrap_or_default() } else { Vec::new() };
        Self { outputs: serde_json::from_slice(&bytes).unwrap_or_default(), file, changed: false }
    }

    /// Records an output that is now as recorded in its `.dvc` file, with the fingerprint of its files; `None` if it has none.
    pub(crate) fn record(&mut self, project: &Project, path: &Path, fingerprint: Option<String>) {
        let (Some(name), Some(fingerprint)) = (key(project, path), fingerprint) else { return };
        if self.outputs.get(&name) != Some(&fingerprint) {
            self.outputs.insert(name, fingerprint);
            self.changed = true;
        }
    }

    /// The outputs that are not used any more, and unchanged. The record may have come with a cloned repository, so that none of it is trusted.
    pub(crate) fn unused(&self, project: &Project, used: &BTreeSet<PathBuf>) -> Result<Vec<PathBuf>, DataError> {
        let mut unused = Vec::new();
        for (name, recorded) in self.outputs.iter().filter(|(name, _)| is_name(Path::new(name))) {
            let path = project.root.join(name);
            let overlaps = used.iter().any(|other| other.starts_with(&path) || path.starts_with(other));
            if overlaps || !is_here(&project.root, Path::new(name)) {
                continue;
            }
            let present = fingerprint_of(project, &path, path.is_dir())?;
            // Of a folder without data, everybody knows the fingerprint.
            if present.as_ref() == Some(recorded) && *recorded != fingerprint([].into_iter()) {
                unused.push(path);
            }
        }
        if let (Some(git), false) = (&project.git, unused.is_empty())
            && git.first_tracked(&[&self.file])?.is_some()
        {
            unused.clear();
        }
        Ok(unused)
    }

    /// Removes an unused output from the workspace and from the record.
    pub(crate) fn remove(&mut self, project: &Project, path: &Path) -> Result<(), DataError> {
        remove_data(path, &project.rules)?;
        if let Some(name) = key(project, path) {
            self.outputs.remove(&name);
            self.changed = true;
        }
        Ok(())
    }

    /// Writes the record.
    pub(crate) fn save(&self) -> Result<(), DataError> {
        if !self.changed {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&self.outputs).unwrap_or_default();
        slipway_core::files::replace(&self.file, &bytes).map_err(DataError::io(&self.file))
    }
}

/// Whether a path is that of data in the project: without `..` and what is ignored.
fn is_name(name: &Path) -> bool {
    let is_normal = name.components().all(|part| matches!(part, Component::Normal(_)));
    is_normal && name.components().next().is_some() && !is_reserved(name)
}

/// Whether no link is on the way to a path of the project.
fn is_here(root: &Path, name: &Path) -> bool {
    let above = name.ancestors().skip(1).map(|folder| root.join(folder));
    above
        .filter(|folder| folder != root)
        .all(|folder| std::fs::symlink_metadata(folder).is_ok_and(|metadata| metadata.is_dir()))
}

fn key(project: &Project, path: &Path) -> Option<String> {
    path.strip_prefix(&project.root).ok().and_then(Path::to_str).map(str::to_owned)
}

/// A digest of the states of the files at a path; `None` if there is nothing.
pub(crate) fn fingerprint_of(project: &Project, path: &Path, is_folder: bool) -> Result<Option<String>, DataError> {
    let Some(stat) = Stat::of_entry(path).map_err(DataError::io(path))? else { return Ok(None) };
    Ok(Some(match is_folder {
        true => fingerprint(walk(path, &project.rules)?.iter().map(|file| (file.path.as_str(), &file.state.stat))),
        false => fingerprint([("", &stat)].into_iter()),
    }))
}

/// A digest of the states of files, each with its path, in the order of the paths.
pub(crate) fn fingerprint<'a>(files: impl Iterator<Item = (&'a str, &'a Stat)>) -> String {
    let mut hasher = Md5::new();
    for (name, stat) in files {
        hasher.update(name.as_bytes());
        for number in [stat.inode, stat.size, stat.mtime.cast_unsigned()] {
            hasher.update(number.to_le_bytes());
        }
    }
    let md5: [u8; 16] = hasher.finalize().into();
    crate::model::Digest::of_file(md5).to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_record_of_others_names_no_data_outside_of_the_project() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap().join("outer/project");
        for name in [".dvc/tmp", "empty/.git", "data", "real"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        for file in ["data/a", "real/a", "../a", ".dvc/config"] {
            std::fs::write(root.join(file), "").unwrap();
        }
        std::fs::write(root.join(".dvc/config"), "[core]\n    no_scm = true\n").unwrap();
        symlink("../..", root.join("link")).unwrap();
        let project = Project::open(&root, &|_| {}).unwrap();
        let nothing = "d41d8cd98f00b204e9800998ecf8427e".to_owned();
        assert_eq!(fingerprint([].into_iter()), nothing);
        let outside = folder.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("a"), "").unwrap();
        let absolute = outside.to_str().unwrap();
        let names =
            ["..", "../a", "", ".", "empty", ".dvc", ".dvc/config", "link/outer", "real/../data", "data", absolute];
        let mut outputs = BTreeMap::new();
        for name in names {
            let path = root.join(name);
            let present = fingerprint_of(&project, &path, path.is_dir()).unwrap();
            outputs.insert(name.to_owned(), present.unwrap_or(nothing.clone()));
        }
        let file = project.tmp().join("slipway-links.json");
        std::fs::write(&file, serde_json::to_vec(&outputs).unwrap()).unwrap();
        let mut links = Links::open(&project.tmp());
        let unused = links.unused(&project, &BTreeSet::new()).unwrap();
        assert_eq!(unused, [root.join("data")]);
        links.remove(&project, &unused[0]).unwrap();
        assert!(!root.join("data").exists() && root.join("empty/.git").exists() && root.join("../a").exists());
        assert!(outside.join("a").exists());
    }

    #[test]
    fn a_record_in_git_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join(".dvc/tmp")).unwrap();
        std::fs::write(root.join(".dvc/config"), "").unwrap();
        std::fs::write(root.join("data"), "x").unwrap();
        let git = |arguments: &[&str]| {
            let done = std::process::Command::new("git").arg("-C").arg(&root).args(arguments).status();
            assert!(done.unwrap().success(), "{arguments:?}");
        };
        git(&["init", "--quiet"]);
        let project = Project::open(&root, &|_| {}).unwrap();
        let present = fingerprint_of(&project, &root.join("data"), false).unwrap().unwrap();
        let record = serde_json::to_vec(&BTreeMap::from([("data", present)])).unwrap();
        std::fs::write(project.tmp().join("slipway-links.json"), record).unwrap();
        let unused = || Links::open(&project.tmp()).unused(&project, &BTreeSet::new()).unwrap();
        assert_eq!(unused(), [root.join("data")]);
        git(&["add", "--force", ".dvc/tmp/slipway-links.json"]);
        assert!(unused().is_empty());
    }
}
