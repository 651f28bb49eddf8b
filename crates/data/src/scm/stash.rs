//! Stashes: references whose logs list commits with states of the work tree, as `git stash` and DVC's queue of experiments keep them.

use super::{Git, RefChange, lines};
use crate::error::DataError;

/// An entry of a stash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stashed {
    /// The commit with the state of the work tree.
    pub commit: String,
    /// The message in the log.
    pub message: String,
}

impl Git {
    /// The entries of a stash, newest first.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn stashed(&self, reference: &str) -> Result<Vec<Stashed>, DataError> {
        if self.references(reference)?.is_empty() {
            return Ok(Vec::new());
        }
        let output = self.run(&["reflog", "show", "--format=%H %gs", reference, "--"])?;
        let parse = |line: String| {
            line.split_once(' ').map(|(commit, message)| Stashed { commit: commit.into(), message: message.into() })
        };
        Ok(lines(&output).into_iter().filter_map(parse).collect())
    }

    /// Adds an entry to a stash.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn stash(&self, reference: &str, commit: &str, message: &str) -> Result<(), DataError> {
        self.run(&["update-ref", "--create-reflog", "-m", message, reference, commit]).map(drop)
    }

    /// Removes an entry of a stash, if there is one with this commit. The caller excludes other changes of the stash, because Git names its
    /// entries by their number.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn unstash(&self, reference: &str, commit: &str) -> Result<(), DataError> {
        let entries = self.stashed(reference)?;
        let Some(place) = entries.iter().position(|entry| entry.commit == commit) else { return Ok(()) };
        if entries.len() == 1 {
            return self.change_references(&[RefChange::Delete(reference.into())]);
        }
        let entry = format!("{reference}@{{{place}}}");
        self.run(&["reflog", "delete", "--updateref", "--rewrite", &entry]).map(drop)
    }

    /// The message of a commit.
    ///
    /// # Errors
    /// If there is no such commit.
    pub fn commit_message(&self, commit: &str) -> Result<String, DataError> {
        let output = self.run(&["show", "--no-patch", "--format=%B", commit, "--"])?;
        Ok(String::from_utf8_lossy(&output).trim().to_owned())
    }

    /// The content of a file in a commit; `None` if the commit does not have it.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn file_at(&self, commit: &str, path: &str) -> Result<Option<Vec<u8>>, DataError> {
        Ok(self.read(commit, |name| name == path)?.into_values().next())
    }
}
