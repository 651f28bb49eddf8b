//! What Git says of the work tree, and its configuration and hooks.

use std::path::{Path, PathBuf};

use super::{Git, split_nul};
use crate::error::DataError;

/// Changes of the work tree that are not committed.
#[derive(Debug, Default)]
pub struct WorkTree {
    /// Whether there is a commit.
    pub has_commits: bool,
    /// Whether tracked files differ from the last commit, or there are untracked ones among those that were requested.
    pub is_dirty: bool,
    /// Untracked files (absolute), without ignored ones.
    pub untracked: Vec<PathBuf>,
}

impl Git {
    /// The changes of the work tree, with the untracked files if they are requested.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn work_tree(&self, untracked: bool) -> Result<WorkTree, DataError> {
        let files = if untracked { "--untracked-files=all" } else { "--untracked-files=no" };
        let output = self.run(&["status", "--porcelain=v1", "-z", "--no-renames", files])?;
        let mut found = WorkTree { has_commits: self.resolve("HEAD")?.is_some(), ..WorkTree::default() };
        for line in split_nul(&output) {
            found.is_dirty = true;
            if let Some(path) = line.as_encoded_bytes().strip_prefix(b"?? ") {
                use std::os::unix::ffi::OsStrExt;
                found.untracked.push(self.root.join(std::ffi::OsStr::from_bytes(path)));
            }
        }
        Ok(found)
    }

    /// The annotated tags, sorted by time, with their commits.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn annotated_tags(&self) -> Result<Vec<(String, String)>, DataError> {
        let format = "--format=%(objecttype) %(*objectname) %(refname:strip=2)";
        let output = self.run(&["for-each-ref", "--sort=creatordate", format, "refs/tags"])?;
        let tag = |line: String| {
            let (commit, name) = line.strip_prefix("tag ")?.split_once(' ')?;
            Some((name.to_owned(), commit.to_owned()))
        };
        Ok(super::lines(&output).into_iter().filter_map(tag).collect())
    }

    /// Sets an option in the configuration of the repository.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn configure(&self, option: &str, value: &str) -> Result<(), DataError> {
        self.run(&["config", "--local", option, value]).map(drop)
    }

    /// The folder of the hooks.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn hooks(&self) -> Result<PathBuf, DataError> {
        let output = self.run(&["rev-parse", "--git-path", "hooks"])?;
        Ok(self.root.join(Path::new(String::from_utf8_lossy(&output).trim_end_matches('\n'))))
    }
}
