//! The seam to execution. The service records what is desired and tells the runner, which does it.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use slipway_exec::LogStream;

use crate::Error;
use crate::ir::Document;
pub use crate::launch::ArtifactStream;
use crate::model::{Artifact, TaskPath};

/// Executes runs. `start`, `cancel` and `retry` return at once; the change is in the database before they are called, so that a server
/// that is killed before it finds what is to be done when it starts again.
pub trait Runner: std::fmt::Debug + Send + Sync {
    /// Fails with the reason if runs cannot be started.
    ///
    /// # Errors
    /// Why.
    fn ready(&self) -> Result<(), Error>;
    /// The name of this server, to which the runs belong that it accepts.
    fn owner(&self) -> String;
    /// Starts a run of this server, whose state is `PENDING`. `document` is its specification.
    fn start(&self, run_id: String, document: Arc<Document>);
    /// Stops the tasks of a run, whose state is `CANCELING`, and then sets it to `CANCELED`.
    fn cancel(&self, run_id: String);
    /// Continues a run that failed or was canceled, whose state is `PENDING` again.
    fn retry(&self, run_id: String);
    /// Stops a run that was deleted, and deletes what is kept of it: logs, working folders and artifacts.
    fn forget(&self, namespace: String, run_id: String) -> BoxFuture<'static, Result<(), Error>>;
    /// What a task wrote to standard output and standard error; of its newest attempt unless `attempt` (from 1) names another.
    fn log(
        &self,
        run_id: String,
        task: TaskPath,
        attempt: Option<u32>,
        follow: bool,
    ) -> BoxFuture<'static, Result<LogStream, Error>>;
    /// The content of an artifact. [`Error::NotFound`] if it has none, as one that is a folder.
    fn read_artifact(&self, namespace: String, artifact: Artifact)
    -> BoxFuture<'static, Result<ArtifactStream, Error>>;
}
