//! The history of files.

use std::path::Path;

use super::{Git, split_nul};
use crate::error::DataError;

/// A commit with what is shown of it in lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The object id.
    pub id: String,
    /// The time of the commit in seconds since the epoch.
    pub time: i64,
    /// The name of the author.
    pub author: String,
    /// The first line of the message.
    pub subject: String,
}

impl Git {
    /// The newest `count` commits that are reachable from a commit and change one of the paths (relative to the root), or any path if there are
    /// none.
    ///
    /// # Errors
    /// If there is no such commit.
    pub fn changes_of(&self, commit: &str, paths: &[&Path], count: usize) -> Result<Vec<Described>, DataError> {
        let (limit, paths) = (format!("--max-count={count}"), paths.iter().map(|path| path.to_string_lossy()));
        let paths: Vec<_> = paths.collect();
        let format = "--format=tformat:%H%x1f%ct%x1f%an%x1f%s";
        let mut arguments = vec!["--literal-pathspecs", "log", "-z", "--no-color", "--no-show-signature", format];
        arguments.extend([limit.as_str(), commit, "--"]);
        arguments.extend(paths.iter().map(|path| &**path));
        let output = self.run(&arguments)?;
        let parse = |line: &std::ffi::OsStr| {
            let line = line.to_string_lossy();
            let mut fields = line.trim_start().splitn(4, '\u{1f}').map(str::to_owned);
            let (id, time) = (fields.next()?, fields.next()?.parse().ok()?);
            Some(Described { id, time, author: fields.next()?, subject: fields.next().unwrap_or_default() })
        };
        Ok(split_nul(&output).filter_map(parse).collect())
    }
}
