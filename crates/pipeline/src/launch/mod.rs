//! The seam to what executes tasks: processes of this machine, or pods.

pub(crate) mod buckets;
mod claims;
pub(crate) mod content;
pub mod local;
pub mod pods;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use slipway_exec::LogStream;

use crate::error::Error;
use crate::model::{Artifact, Launch, Outcome, Outputs, RunInfo, TaskPath};

/// Content of an artifact, in pieces.
pub type ArtifactStream = BoxStream<'static, Result<Bytes, Error>>;

/// Identifies an attempt of a task over restarts of the server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    /// Namespace of the run.
    pub namespace: String,
    /// Id of the run.
    pub run_id: String,
    /// The task.
    pub path: TaskPath,
    /// Number of the attempt, from 1.
    pub attempt: u32,
}

impl From<&Launch> for AttemptId {
    fn from(launch: &Launch) -> Self {
        Self {
            namespace: launch.run.namespace.clone(),
            run_id: launch.run.run_id.clone(),
            path: launch.path.clone(),
            attempt: launch.attempt,
        }
    }
}

/// Executes attempts of tasks.
pub trait Launcher: std::fmt::Debug + Send + Sync {
    /// Does what an attempt needs and what has no effect if it is never executed, while its start is being recorded. Best effort:
    /// [`Launcher::execute`] does the rest. Must be fast.
    fn prepare(&self, _launch: &Launch) {}
    /// Executes an attempt and waits for its end. An attempt that an earlier process started is not started again: the future waits for
    /// the end of that one. Dropping the future does not stop the attempt.
    fn execute(&self, launch: Launch) -> BoxFuture<'static, Outcome>;
    /// Stops an attempt; its future ends with [`Outcome::Canceled`]. Does nothing if the attempt has ended or does not exist.
    fn stop(&self, attempt: AttemptId) -> BoxFuture<'static, ()>;
    /// What the attempt wrote to standard output and standard error, until its end if `follow`.
    fn log(&self, attempt: AttemptId, follow: bool) -> BoxFuture<'static, Result<LogStream, Error>>;
    /// Id of the tracked run of an attempt, if the executor behind this launcher tracks attempts itself.
    fn tracked(&self, _attempt: AttemptId) -> BoxFuture<'static, Option<String>> {
        async { None }.boxed()
    }
    /// Whether artifacts can be kept below a root that the author of a pipeline chose, who may not know this installation. Otherwise they are
    /// kept below the root of the server.
    fn reaches(&self, _root: &str) -> bool {
        true
    }
    /// Whether the content of all artifacts among the outputs is still there, so that another task can use it.
    fn has(&self, outputs: Outputs) -> BoxFuture<'static, bool>;
    /// The content of an artifact that a task of this launcher made, for a caller who may read those of this namespace. [`Error::NotFound`] if it has none, as one that is a folder.
    fn read(&self, namespace: String, artifact: Artifact) -> BoxFuture<'static, Result<ArtifactStream, Error>>;
    /// Deletes what a run that succeeded needs no more. Best effort: [`Launcher::forget`] deletes the rest.
    fn release(&self, _run: Arc<RunInfo>) -> BoxFuture<'static, ()> {
        async {}.boxed()
    }
    /// Deletes what is kept of the attempts of a run: logs and working folders.
    fn forget(&self, namespace: String, run_id: String) -> BoxFuture<'static, Result<(), Error>>;
}

/// Maximum characters of a text in the name of a file.
const MAX_NAME_LENGTH: usize = 60;

/// A text as the name of a file or folder. Different texts can have the same name.
pub(crate) fn file_name(text: &str) -> String {
    let name: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
        .take(MAX_NAME_LENGTH)
        .collect();
    let name = name.trim_start_matches('.');
    if name.is_empty() { "-".to_owned() } else { name.to_owned() }
}

/// The name of the file or folder at a URI.
pub(crate) fn file_at(uri: &str) -> String {
    let path = uri.split(['?', '#']).next().unwrap_or_default();
    file_name(path.trim_end_matches('/').rsplit('/').next().unwrap_or_default())
}

/// The last bytes of a text, from the start of a line where possible.
pub(crate) fn end_of(text: &str, bytes: usize) -> &str {
    let mut at = text.len().saturating_sub(bytes);
    while !text.is_char_boundary(at) {
        at += 1;
    }
    let end = &text[at..];
    if at == 0 { end } else { end.split_once('\n').map_or(end, |(_, lines)| lines) }
}
