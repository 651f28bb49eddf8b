//! The seam to what executes tasks: processes of this machine, or pods.

pub mod local;

use futures_util::future::BoxFuture;
use slipway_exec::LogStream;

use crate::error::Error;
use crate::model::{Launch, Outcome, TaskPath};

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
    /// Executes an attempt and waits for its end. An attempt that an earlier process started is not started again: the future waits for
    /// the end of that one. Dropping the future does not stop the attempt.
    fn execute(&self, launch: Launch) -> BoxFuture<'static, Outcome>;
    /// Stops an attempt; its future ends with [`Outcome::Canceled`]. Does nothing if the attempt has ended or does not exist.
    fn stop(&self, attempt: AttemptId) -> BoxFuture<'static, ()>;
    /// What the attempt wrote to standard output and standard error, until its end if `follow`.
    fn log(&self, attempt: AttemptId, follow: bool) -> BoxFuture<'static, Result<LogStream, Error>>;
    /// Deletes what is kept of the attempts of a run: logs and working folders.
    fn forget(&self, namespace: String, run_id: String) -> BoxFuture<'static, Result<(), Error>>;
}
