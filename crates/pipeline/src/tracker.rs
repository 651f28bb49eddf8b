//! The seam to the tracking store: a run of a pipeline is a tracked run, with one child for each task that executed something.

use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::engine::TaskRecord;
use crate::model::{RunInfo, RunState};

/// Records runs and their tasks in the tracking store. Failures are logged by the implementation: a run does not fail because it cannot be
/// tracked.
pub trait Tracker: std::fmt::Debug + Send + Sync {
    /// Records that a run has started, in the experiment with this name. Does nothing if it is recorded already.
    fn run_started<'a>(
        &'a self,
        run: &'a RunInfo,
        experiment: &'a str,
        parameters: &'a [(String, Value)],
    ) -> BoxFuture<'a, ()>;
    /// Records a task that has ended, with its parameters, metrics and artifacts. Does nothing if it is recorded already.
    fn task_ended<'a>(&'a self, run: &'a RunInfo, experiment: &'a str, task: &'a TaskRecord) -> BoxFuture<'a, ()>;
    /// Records the end of a run, or that it goes on after a retry.
    fn run_changed<'a>(&'a self, run: &'a RunInfo, state: RunState) -> BoxFuture<'a, ()>;
}
