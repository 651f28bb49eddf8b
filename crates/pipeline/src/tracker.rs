//! The seam to the tracking store: a run of a pipeline is a tracked run, with one child for each task that executed something.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;
use slipway_core::ids;

use crate::engine::TaskRecord;
use crate::model::{Launch, RunInfo, RunState, TaskPath};

/// The id of the tracked run of a run, or of one of its tasks: a function of their own ids, so that recording them again has no effect.
pub fn tracked_id(run_id: &str, task: Option<&TaskPath>) -> String {
    match task {
        None => slipway_exec::tracked_id(run_id),
        Some(path) => ids::derived(&[run_id, &path.0]),
    }
}

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
    /// Notes that a program of a task is about to start, or still executes after a restart of the server. From now until the end of the task
    /// the program may use the task's tracked run. Must not block.
    fn attempt_started(&self, experiment: &Arc<str>, launch: &Launch);
    /// Records a task that has ended, with its parameters, metrics and artifacts. Does nothing if it is recorded already. `tracked` is the id
    /// of the tracked run of its last attempt, if the executor tracks attempts itself ([`Launcher::tracked`](crate::launch::Launcher)):
    /// then it becomes that of the task.
    fn task_ended<'a>(
        &'a self,
        run: &'a RunInfo,
        experiment: &'a str,
        task: &'a TaskRecord,
        tracked: Option<String>,
    ) -> BoxFuture<'a, ()>;
    /// Records the end of a run, or that it goes on after a retry.
    fn run_changed<'a>(&'a self, run: &'a RunInfo, state: RunState) -> BoxFuture<'a, ()>;
}
