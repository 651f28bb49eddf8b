//! The errors of this crate.

use std::path::{Path, PathBuf};

use slipway_core::Explain;
use slipway_store::StoreError;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum DataError {
    #[error("you are not inside of a DVC repository (checked up to the mount point or the root folder from {})", .0.display())]
    NoProject(PathBuf),
    #[error("{0}")]
    Init(String),
    #[error("{}: {reason}{}", file.display(), match .line { 0 => String::new(), n => format!(" (line {n})") })]
    File { file: PathBuf, line: usize, reason: String },
    #[error("configuration error: {0}")]
    Config(String),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Invalid(String),
    #[error(".dvcignore file should not be in collected dir path: '{}'", .0.display())]
    NestedRules(PathBuf),
    #[error("output '{0}' does not exist")]
    Missing(String),
    #[error("'{path}' is not in the repository {url}")]
    NotInRepository { path: String, url: String },
    #[error("'{0}' exists already")]
    Exists(String),
    #[error("'{0}' is neither a tracked file or folder, nor a .dvc file, nor a stage")]
    Target(String),
    #[error("{0}")]
    Plot(String),
    #[error("{0}")]
    Overlap(String),
    #[error("'{0}' is already tracked by Git")]
    TrackedByGit(String),
    #[error("git: {0}")]
    Git(String),
    #[error("these files are not saved in the cache, so they are not removed without confirmation:\n{}", list(.0))]
    Unsaved(Vec<PathBuf>),
    #[error("these folders are outside of the project and would be changed through a link in it:\n{}", list(.0))]
    LinkedOut(Vec<PathBuf>),
    #[error("'{}' is in a folder of Git or DVC, where data is never put", .0.display())]
    Reserved(PathBuf),
    #[error("unable to commit changed '{0}'")]
    Changed(String),
    #[error("checkout failed, because the cache lacks files of:\n{}", .0.join("\n"))]
    NotInCache(Vec<String>),
    #[error("the object {oid} in {} does not have the content of its name", place.display())]
    Corrupt { oid: String, place: PathBuf },
    #[error("none of the link types {links} works from the cache to {}", path.display())]
    Links { links: String, path: PathBuf },
    #[error("{0}")]
    NoRemote(String),
    #[error("{failed} of {total} files could not be {verb}; the first: {first}")]
    Transfer { failed: usize, total: usize, verb: &'static str, first: String },
    #[error("'{0}' cannot be the name of a remote or namespace on a server")]
    HostedName(String),
    #[error("'{0}' is not the path of an object or run")]
    ItemName(String),
    #[error("the batch of objects is invalid: {0}")]
    Batch(&'static str),
    #[error("{0}: the received content is not that of this digest; nothing was stored")]
    Mismatch(String),
    #[error("{message}")]
    Access { message: String, code: &'static str, hint: Option<String> },
    #[error("{url}: {reason}")]
    Remote { url: String, reason: String },
    #[error("failed to run: {command}, exited with {code}")]
    Command { command: String, code: i32 },
    #[error("{0}")]
    Reproduction(String),
    #[error("limit exceeded: {0}")]
    Limit(String),
    #[error("the server reads as many repositories as it may at the same time")]
    TooManyReaders,
    #[error("there is no repository named '{0}' here")]
    UnknownRepository(String),
    #[error("{repo}: {reason}")]
    Repository { repo: String, reason: String },
    #[error("{repo} does not track '{path}' at commit {}{hint}", short(commit))]
    Untracked { path: String, repo: String, commit: String, hint: String },
    #[error(
        "{missing} of {total} objects of '{path}' (commit {}) cannot be received; the first is {oid}: {why}",
        short(commit)
    )]
    Unavailable { path: String, commit: String, missing: usize, total: usize, oid: String, why: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

impl DataError {
    /// Wraps an I/O error of an operation on `path`.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { path, source }
    }

    /// An error at a line of a file, counted from 1; 0 for the whole file.
    pub(crate) fn file(file: &Path, line: usize, reason: impl Into<String>) -> Self {
        Self::File { file: file.to_owned(), line, reason: reason.into() }
    }

    /// The exit code of the original program for such a failure: 251 for the configuration, 253 outside of a repository, 255 for errors that
    /// it handles at the top, 1 for those that a command handles itself (`handled`).
    pub fn original_exit_code(&self, handled: bool) -> u8 {
        match self {
            Self::Config(_) | Self::NoRemote(_) if !handled => 251,
            Self::NoProject(_) => 253,
            Self::Usage(_) => 254,
            Self::NestedRules(_) | Self::Plot(_) => 255,
            Self::Init(_) => 1,
            _ if handled => 1,
            _ => 255,
        }
    }
}

/// As many digits of a commit as Git shows.
fn short(commit: &str) -> &str {
    commit.get(..10).unwrap_or(commit)
}

fn list(paths: &[PathBuf]) -> String {
    const SHOWN: usize = 20;
    let mut lines: Vec<String> = paths.iter().take(SHOWN).map(|path| path.display().to_string()).collect();
    if paths.len() > SHOWN {
        lines.push(format!("… and {} more", paths.len() - SHOWN));
    }
    lines.join("\n")
}

impl Explain for DataError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoProject(_) => "data.no_project",
            Self::Init(_) => "data.init",
            Self::File { .. } => "data.file",
            Self::Config(_) => "data.config",
            Self::Usage(_) => "data.usage",
            Self::Invalid(_) | Self::Plot(_) => "data.invalid",
            Self::NestedRules(_) => "data.nested_rules",
            Self::Missing(_) => "data.missing",
            Self::NotInRepository { .. } => "data.not_in_repository",
            Self::Exists(_) => "data.exists",
            Self::Target(_) => "data.target",
            Self::Overlap(_) => "data.overlap",
            Self::TrackedByGit(_) => "data.tracked_by_git",
            Self::Git(_) => "data.git",
            Self::Unsaved(_) => "data.unsaved",
            Self::LinkedOut(_) => "data.linked_out",
            Self::Reserved(_) => "data.reserved",
            Self::Changed(_) => "data.changed",
            Self::NotInCache(_) => "data.not_in_cache",
            Self::Corrupt { .. } => "data.corrupt",
            Self::Links { .. } => "data.links",
            Self::NoRemote(_) => "data.no_remote",
            Self::Transfer { .. } => "data.transfer",
            Self::HostedName(_) => "data.hosted_name",
            Self::ItemName(_) => "data.item_name",
            Self::Batch(_) => "data.batch",
            Self::Mismatch(_) => "data.mismatch",
            Self::Access { code, .. } => code,
            Self::Remote { .. } => "data.remote",
            Self::Command { .. } => "data.command",
            Self::Reproduction(_) => "data.reproduction",
            Self::Limit(_) => "data.limit",
            Self::TooManyReaders => "data.busy",
            Self::UnknownRepository(_) => "data.unknown_repository",
            Self::Repository { .. } => "data.repository",
            Self::Untracked { .. } => "data.untracked",
            Self::Unavailable { .. } => "data.unavailable",
            Self::Store(error) => error.code(),
            Self::Io { .. } => "data.io",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::TrackedByGit(path) => Some(format!(
                "Stop tracking it with Git first:\n  git rm -r --cached '{path}'\n  git commit -m \"stop tracking {path}\""
            )),
            Self::Access { hint, .. } => hint.clone(),
            _ => slipway_core::explain::find(self.code()).map(|topic| topic.remedy.to_owned()),
        }
    }
}
