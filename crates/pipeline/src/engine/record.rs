//! What the engine exchanges with its driver: records of tasks, events that happened, and effects to perform.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::{Artifact, Failure, Inputs, Launch, Outcome, Outputs, RunState, TaskPath, TaskState};

/// What a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskKind {
    /// The graph of the whole pipeline.
    Root,
    /// A nested graph.
    Dag,
    /// A loop over items; its tasks are its iterations.
    Loop,
    /// The graph of one iteration of a loop. An iteration that executes a container has the kind of the container.
    Iteration,
    /// An execution.
    Container,
    /// An import of an artifact.
    Importer,
}

/// How far a run is being canceled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Cancellation {
    /// It is not.
    #[default]
    No,
    /// Everything but exit tasks is stopped.
    Graceful,
    /// Exit tasks are stopped too.
    Everything,
}

/// All that is kept of a task: one row of the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskRecord {
    /// The task.
    pub path: TaskPath,
    /// The graph that it belongs to; an iteration belongs to its loop.
    pub parent: Option<TaskPath>,
    /// Its name in its graph.
    pub task_name: String,
    /// The name in `taskInfo`.
    pub display_name: String,
    /// What it is.
    pub kind: TaskKind,
    /// Its state.
    pub state: TaskState,
    /// Number of the last attempt that was started, from 1; 0 before the first.
    #[serde(default)]
    pub attempt: u32,
    /// Attempts before the run was last retried. They do not count for the task's retry policy.
    #[serde(default)]
    pub earlier_attempts: u32,
    /// Its inputs.
    #[serde(default, with = "shared")]
    pub inputs: Arc<Inputs>,
    /// Its outputs.
    #[serde(default, with = "shared")]
    pub outputs: Arc<Outputs>,
    /// When its inputs were known, in milliseconds since the Unix epoch, as all times.
    pub created_at: i64,
    /// When its first attempt started.
    #[serde(default)]
    pub started_at: Option<i64>,
    /// When it reached its final state.
    #[serde(default)]
    pub finished_at: Option<i64>,
    /// Why it failed, or why its last attempt did.
    #[serde(default)]
    pub failure: Option<Failure>,
    /// Fingerprint for the cache, where caching is enabled for the task.
    #[serde(default)]
    pub fingerprint: Option<String>,
    /// The execution that its outputs are from, as the driver named it in [`Event::CacheFound`].
    #[serde(default)]
    pub cached_from: Option<String>,
    /// Every state that it had, with the time since when.
    #[serde(default)]
    pub history: Vec<(i64, TaskState)>,
    /// Index in its loop, if it is an iteration.
    #[serde(default)]
    pub iteration: Option<usize>,
    /// Number of iterations, if it is a loop.
    #[serde(default)]
    pub iterations: Option<usize>,
    /// When its next attempt is due, if the last one failed and is retried.
    #[serde(default)]
    pub next_attempt_at: Option<i64>,
    /// Only of the root: whether the run is being canceled.
    #[serde(default)]
    pub cancel: Cancellation,
}

impl TaskRecord {
    /// Changes the state and notes the time of the change.
    pub(super) fn enter(&mut self, state: TaskState, now: i64) {
        if self.state != state || self.history.is_empty() {
            self.history.push((now, state));
        }
        self.state = state;
        if state.is_final() {
            self.finished_at = Some(now);
            self.next_attempt_at = None;
        }
    }
}

/// Serializes an [`Arc`] as what it points to.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
        T::serialize(value, serializer)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(deserializer).map(Arc::new)
    }
}

/// Limits and settings of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Attempts that run at the same time; at least 1.
    pub max_parallel_tasks: usize,
    /// Whether cached outputs may be used where tasks allow it.
    pub use_cache: bool,
    /// Age of the oldest execution whose outputs may be used. A task's own setting can only shorten it.
    pub max_cache_staleness: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_parallel_tasks: 100, use_cache: true, max_cache_staleness: None }
    }
}

/// An artifact to be imported.
#[derive(Debug, Clone, PartialEq)]
pub struct ImportRequest {
    /// Name of the output that it becomes.
    pub output: String,
    /// Where its content is.
    pub uri: String,
    /// Its type, as in `system.Dataset`.
    pub schema_title: String,
    /// Version of the type.
    pub schema_version: String,
    /// Its metadata, with all placeholders resolved.
    pub metadata: Map<String, Value>,
    /// Whether a new artifact is made even if this pipeline has already imported one with the same type, URI and metadata.
    pub reimport: bool,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// The cache has outputs with the fingerprint of the task.
    CacheFound {
        /// The task.
        path: TaskPath,
        /// The outputs.
        outputs: Outputs,
        /// The execution that made them.
        cached_from: String,
    },
    /// The cache has none.
    CacheMissed {
        /// The task.
        path: TaskPath,
    },
    /// An attempt ended.
    Ended {
        /// The task.
        path: TaskPath,
        /// The attempt.
        attempt: u32,
        /// How it ended.
        outcome: Outcome,
    },
    /// An import ended.
    Imported {
        /// The task.
        path: TaskPath,
        /// The artifact, with its id.
        result: Result<Artifact, Failure>,
    },
    /// The run is canceled: what runs is stopped, then exit tasks run. Safe to repeat.
    Cancel,
    /// The run is canceled, and its exit tasks are stopped too. Safe to repeat.
    CancelEverything,
    /// Time has passed, as requested by [`Effect::WakeAt`].
    Time,
}

/// Something that the driver has to do. All records of one list of effects are written in one transaction before any other of them.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Write the record of a task, in place of an earlier one with the same path.
    Record(TaskRecord),
    /// Look for cached outputs; the result is an event.
    LookUpCache {
        /// The task.
        path: TaskPath,
        /// What to look for, within the namespace of the run.
        fingerprint: String,
        /// Age of the oldest execution that may be used.
        max_staleness: Option<Duration>,
    },
    /// Execute an attempt; its end is an event.
    Launch(Launch),
    /// Import an artifact; the result is an event.
    Import {
        /// The task.
        path: TaskPath,
        /// What to import.
        request: ImportRequest,
    },
    /// Stop an attempt. Its end is still an event.
    Stop {
        /// The task.
        path: TaskPath,
        /// The attempt.
        attempt: u32,
    },
    /// Send [`Event::Time`] at this time, in milliseconds since the Unix epoch.
    WakeAt(i64),
    /// The run has ended. Nothing follows.
    Finished {
        /// Its state.
        state: RunState,
        /// Why it failed.
        failure: Option<Failure>,
    },
}

/// Values of the parameters of a run by name.
pub type Parameters = BTreeMap<String, Value>;
