//! Which outputs `checkout` created. When an output is no longer tracked, for example after a change of the Git branch, `checkout` removes what it
//! had created for it, if nobody has changed it since.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use md5::{Digest as _, Md5};

use crate::error::DataError;
use crate::project::Project;
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

    /// The outputs that are not used any more, and unchanged.
    pub(crate) fn unused(&mut self, project: &Project, used: &BTreeSet<PathBuf>) -> Result<Vec<PathBuf>, DataError> {
        let mut unused = Vec::new();
        for (name, recorded) in &self.outputs {
            let path = project.root.join(name);
            let overlaps = used.iter().any(|other| other.starts_with(&path) || path.starts_with(other));
            if !overlaps && fingerprint_of(project, &path, path.is_dir())?.as_ref() == Some(recorded) {
                unused.push(path);
            }
        }
        Ok(unused)
    }

    /// Removes an unused output from the workspace and from the record.
    pub(crate) fn remove(&mut self, project: &Project, path: &Path) -> Result<(), DataError> {
        let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        removed.map_err(DataError::io(path))?;
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
