//! Versions of data outside of a workspace: what a repository tracks at a path in a revision. A [`Depot`] brings the bytes of a version to this
//! machine, into a content-addressed cache, and shows them as a read-only tree of hard links.
//!
//! Invariant: a tree appears under its name when it is complete, and is not evicted while a holder uses it.

mod depot;
mod locate;
mod repository;
mod trees;

pub use crate::scm::without_credentials;
pub use depot::{Depot, Fetched};
pub use locate::digests_at;

/// Reports progress in a sentence.
pub type Progress<'a> = &'a (dyn Fn(String) + Send + Sync);

/// A version of data, as a user names it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Version {
    /// The URL of the Git repository, or the absolute path of one on this machine.
    pub repo: String,
    /// A commit, tag or branch; the last commit of the default branch if it is not given.
    pub rev: Option<String>,
    /// The path of the file or folder from the root of the repository.
    pub path: String,
    /// Credentials that only this request uses.
    pub credentials: Credentials,
}

/// Credentials for a repository and its remote.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// Lines for Git's credential store: `https://USER:PASSWORD@HOST`.
    pub git: Option<String>,
    /// Configuration of the project beside `.dvc/config`, as in a `.dvc/config.local`.
    pub config: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { git, config } = self;
        f.debug_struct("Credentials").field("git", &git.is_some()).field("config", &config.is_some()).finish()
    }
}
