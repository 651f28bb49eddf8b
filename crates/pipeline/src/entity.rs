//! What is stored: pipelines and their versions, experiments, runs and recurring runs. All times are milliseconds since the Unix epoch
//! unless they are named otherwise; 0 means "not yet".

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::RunState;
use crate::schedule::Schedule;

/// Tags of a pipeline or version.
pub type Tags = BTreeMap<String, String>;

/// Whether an object is shown or put away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StorageState {
    /// In use.
    Available,
    /// Put away: clients hide it in lists.
    Archived,
}

/// A pipeline: a name for a series of versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipeline {
    /// Id, a UUID.
    pub pipeline_id: String,
    /// Namespace.
    pub namespace: String,
    /// Name, unique in the namespace.
    pub name: String,
    /// Name that users see.
    pub display_name: String,
    /// Description.
    pub description: String,
    /// When it was created.
    pub created_at: i64,
    /// Tags.
    pub tags: Tags,
}

/// A version of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Id, a UUID.
    pub version_id: String,
    /// Its pipeline.
    pub pipeline_id: String,
    /// Name, unique in the pipeline.
    pub name: String,
    /// Name that users see.
    pub display_name: String,
    /// Description.
    pub description: String,
    /// When it was created.
    pub created_at: i64,
    /// URL of the compiled pipeline; empty if it was uploaded.
    pub package_url: String,
    /// URL of its source code; may be empty.
    pub code_source_url: String,
    /// Digest of the specification.
    pub spec: String,
    /// Tags.
    pub tags: Tags,
}

/// An experiment: a group of runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Experiment {
    /// Id, a UUID.
    pub experiment_id: String,
    /// Namespace.
    pub namespace: String,
    /// Name, unique in the namespace.
    pub name: String,
    /// Description.
    pub description: String,
    /// When it was created.
    pub created_at: i64,
    /// When its newest run was created.
    pub last_run_created_at: i64,
    /// Whether it is archived.
    pub storage_state: StorageState,
}

/// A change of a run's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateChange {
    /// When it changed.
    pub at: i64,
    /// The new state.
    pub state: RunState,
    /// Why, for a failure.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// Where the specification of a run or recurring run comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// It came with the request.
    Inline {
        /// Digest of the specification.
        spec: String,
    },
    /// A version of a pipeline.
    Version {
        /// The pipeline.
        pipeline_id: String,
        /// The version.
        version_id: String,
    },
    /// The version that is newest when a run starts; only for recurring runs.
    Newest {
        /// The pipeline.
        pipeline_id: String,
    },
}

/// Parameters and root of a run, as its creator gave them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RuntimeConfig {
    /// Values of the root's parameters.
    pub parameters: Map<String, Value>,
    /// Root of the artifacts' URIs; empty: that of the pipeline or the server.
    pub pipeline_root: String,
}

/// A run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Id, a UUID.
    pub run_id: String,
    /// Namespace.
    pub namespace: String,
    /// Its experiment, which may have been deleted.
    pub experiment_id: String,
    /// Name that users see; need not be unique.
    pub display_name: String,
    /// Description.
    pub description: String,
    /// Service account of its pods; may be empty.
    pub service_account: String,
    /// Whether it is archived.
    pub storage_state: StorageState,
    /// State.
    pub state: RunState,
    /// When it was created.
    pub created_at: i64,
    /// When it was due.
    pub scheduled_at: i64,
    /// When it finished; 0 before.
    pub finished_at: i64,
    /// Name of the pipeline in the specification.
    pub pipeline_name: String,
    /// Where the specification comes from.
    pub source: Source,
    /// Digest of the specification.
    pub spec: String,
    /// Parameters and root.
    pub config: RuntimeConfig,
    /// The recurring run that started it; may be empty.
    pub recurring_run_id: String,
    /// Its states, oldest first.
    pub history: Vec<StateChange>,
    /// Why it failed, or empty.
    pub error: String,
    /// Number of changes of its tasks: unchanged means that its tasks are unchanged.
    pub task_changes: i64,
}

/// A run that is started again and again.
#[derive(Debug, Clone, PartialEq)]
pub struct RecurringRun {
    /// Id, a UUID.
    pub recurring_run_id: String,
    /// Namespace.
    pub namespace: String,
    /// Experiment of its runs.
    pub experiment_id: String,
    /// Name that users see.
    pub display_name: String,
    /// Description.
    pub description: String,
    /// Service account of the pods; may be empty.
    pub service_account: String,
    /// Whether it starts runs.
    pub enabled: bool,
    /// When it was created.
    pub created_at: i64,
    /// When it was last changed.
    pub updated_at: i64,
    /// Maximum number of its unfinished runs, from 1 to 10.
    pub max_concurrency: i64,
    /// When it starts runs.
    pub schedule: Schedule,
    /// Where the specification comes from.
    pub source: Source,
    /// Parameters, with macros such as `[[ScheduledTime]]`, and root.
    pub config: RuntimeConfig,
    /// Newest slot that was triggered, in seconds since the Unix epoch.
    pub last_slot: Option<i64>,
    /// Number of runs started.
    pub triggered: i64,
    /// Next slot, in seconds since the Unix epoch.
    pub next_slot: Option<i64>,
    /// Why the newest slot gave no run, or empty.
    pub error: String,
}

/// A specification as it is stored.
#[derive(Debug, Clone)]
pub struct StoredSpec {
    /// SHA-256 of the text, in hexadecimal digits.
    pub digest: String,
    /// JSON as the API returns it.
    pub text: Arc<str>,
}
