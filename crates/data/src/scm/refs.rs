//! References: listing, changing, sending and receiving them.

use super::{Git, lines};
use crate::error::DataError;

/// A change of a reference.
#[derive(Debug, Clone)]
pub enum RefChange {
    /// It points to a commit, whatever it pointed to before.
    Set(String, String),
    /// It points to a commit, and must not exist before.
    Create(String, String),
    /// It is deleted.
    Delete(String),
}

/// A commit.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The object id.
    pub id: String,
    /// The time of the commit: seconds since the epoch, and in local time in ISO 8601 without a zone.
    pub time: (i64, String),
}

/// What happened to a reference that was sent or received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transfer {
    /// The other side has it now.
    Done,
    /// The other side had it.
    UpToDate,
    /// The other side has another commit, which is kept.
    Diverged,
}

impl Git {
    /// The references below a namespace with the commits to which they point, sorted by name.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn references(&self, namespace: &str) -> Result<Vec<(String, String)>, DataError> {
        let output = self.run(&["for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", namespace])?;
        let parse = |line: String| {
            let mut words = line.split(' ');
            let (name, id, peeled) = (words.next()?, words.next()?, words.next().filter(|id| !id.is_empty()));
            Some((name.to_owned(), peeled.unwrap_or(id).to_owned()))
        };
        Ok(lines(&output).into_iter().filter_map(parse).collect())
    }

    /// The references below a namespace of another repository (name of a remote, or URL).
    ///
    /// # Errors
    /// If the repository cannot be reached.
    pub fn remote_references(&self, remote: &str, namespace: &str) -> Result<Vec<(String, String)>, DataError> {
        let output = self.run(&["ls-remote", "--refs", "--", check(remote)?, &format!("{namespace}/*")])?;
        let parse = |line: String| line.split_once('\t').map(|(id, name)| (name.to_owned(), id.to_owned()));
        Ok(lines(&output).into_iter().filter_map(parse).collect())
    }

    /// Changes references, all or none.
    ///
    /// # Errors
    /// If git refuses one of the changes.
    pub fn change_references(&self, changes: &[RefChange]) -> Result<(), DataError> {
        let mut input = String::new();
        for change in changes {
            match change {
                RefChange::Set(name, id) => input.push_str(&format!("update {name}\0{id}\0\0")),
                RefChange::Create(name, id) => input.push_str(&format!("create {name}\0{id}\0")),
                RefChange::Delete(name) => input.push_str(&format!("delete {name}\0\0")),
            }
        }
        self.run_with_input(&["update-ref", "--no-deref", "--stdin", "-z"], input.into_bytes()).map(drop)
    }

    /// Whether a name of a reference is allowed.
    pub fn is_reference_name(&self, name: &str) -> bool {
        !name.contains('\n') && self.run(&["check-ref-format", name]).is_ok()
    }

    /// The branch that is checked out.
    pub fn branch(&self) -> Option<String> {
        let output = self.run(&["symbolic-ref", "--quiet", "--short", "HEAD"]).ok()?;
        Some(String::from_utf8_lossy(&output).trim().to_owned())
    }

    /// The commits that are reachable from one and not from the other, newest first.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn commits_between(&self, tip: &str, base: &str) -> Result<Vec<String>, DataError> {
        Ok(lines(&self.run(&["rev-list", tip, &format!("^{base}"), "--"])?))
    }

    /// The time of a commit.
    ///
    /// # Errors
    /// If there is no such commit.
    pub fn commit_info(&self, id: &str) -> Result<Commit, DataError> {
        let output =
            self.run(&["show", "--no-patch", "--format=%ct %cd", "--date=format-local:%Y-%m-%dT%H:%M:%S", id, "--"])?;
        let text = String::from_utf8_lossy(&output);
        let parsed = text.trim().split_once(' ').and_then(|(seconds, local)| Some((seconds.parse().ok()?, local)));
        let (seconds, local) =
            parsed.ok_or_else(|| DataError::Git(format!("git show gave an unexpected output for {id}")))?;
        Ok(Commit { id: id.to_owned(), time: (seconds, local.to_owned()) })
    }

    /// Sends references to another repository, or deletes them there (`delete`). With `force`, other commits are replaced.
    ///
    /// # Errors
    /// If the repository cannot be reached.
    pub fn send_references(
        &self,
        remote: &str,
        names: &[String],
        force: bool,
        delete: bool,
    ) -> Result<Vec<(String, Transfer)>, DataError> {
        let source = |name: &String| if delete { String::new() } else { name.clone() };
        let specs: Vec<String> = names.iter().map(|name| format!("{}:{name}", source(name))).collect();
        let mut arguments = vec!["push", "--porcelain", "--no-verify"];
        arguments.extend(force.then_some("--force"));
        arguments.extend(["--", check(remote)?]);
        arguments.extend(specs.iter().map(String::as_str));
        let output = self.output(&arguments)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut outcomes = Vec::new();
        for line in text.lines() {
            // `FLAG<tab>FROM:TO<tab>SUMMARY`
            let mut parts = line.split('\t');
            let (Some(flag), Some(spec), Some(_)) = (parts.next(), parts.next(), parts.next()) else { continue };
            let Some((_, name)) = spec.rsplit_once(':') else { continue };
            let outcome = match flag {
                "=" => Transfer::UpToDate,
                "!" => Transfer::Diverged,
                _ => Transfer::Done,
            };
            outcomes.push((name.to_owned(), outcome));
        }
        if outcomes.is_empty() && !names.is_empty() {
            return Err(DataError::Git(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        Ok(outcomes)
    }

    /// Receives references from another repository. With `force`, other commits are replaced.
    ///
    /// # Errors
    /// If the repository cannot be reached.
    pub fn receive_references(
        &self,
        remote: &str,
        names: &[(String, String)],
        force: bool,
    ) -> Result<Vec<(String, Transfer)>, DataError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let specs: Vec<String> = names.iter().map(|(name, _)| name.clone()).collect();
        let mut arguments = vec!["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", check(remote)?];
        arguments.extend(specs.iter().map(String::as_str));
        self.run(&arguments)?;
        let mut outcomes = Vec::new();
        let mut changes = Vec::new();
        for (name, id) in names {
            let present = self.resolve(name).ok().flatten();
            let outcome = match present {
                Some(present) if present == *id => Transfer::UpToDate,
                Some(present) if !force && !self.is_ancestor(&present, id) => Transfer::Diverged,
                _ => Transfer::Done,
            };
            if outcome == Transfer::Done {
                changes.push(RefChange::Set(name.clone(), id.clone()));
            }
            outcomes.push((name.clone(), outcome));
        }
        self.change_references(&changes)?;
        Ok(outcomes)
    }

    fn is_ancestor(&self, older: &str, newer: &str) -> bool {
        self.run(&["merge-base", "--is-ancestor", older, newer]).is_ok()
    }
}

/// The name or URL of another repository, unless it would be an option.
fn check(remote: &str) -> Result<&str, DataError> {
    if remote.starts_with('-') || remote.is_empty() {
        return Err(DataError::Git(format!("'{remote}' is not a valid Git remote or URL")));
    }
    Ok(remote)
}
