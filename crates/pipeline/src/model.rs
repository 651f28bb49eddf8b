//! Types that several modules share: states, task paths, artifacts, and what goes into and comes out of a task.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::proto::kfp_kubernetes::KubernetesExecutorConfig;
use crate::proto::ml_pipelines::ComponentSpec;
use crate::proto::ml_pipelines::pipeline_deployment_config::ExecutorSpec;

/// State of a run, with the names of `RuntimeState` in Kubeflow's API v2beta1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RunState {
    /// Accepted, and no task has started.
    Pending,
    /// At least one task has started.
    Running,
    /// All tasks succeeded or were skipped.
    Succeeded,
    /// Nothing was executed.
    Skipped,
    /// A task failed.
    Failed,
    /// Tasks are being stopped.
    Canceling,
    /// Stopped by a user.
    Canceled,
    /// No task is started until it is resumed.
    Paused,
}

impl RunState {
    /// Whether the state never changes any more, unless the run is retried.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Skipped | Self::Failed | Self::Canceled)
    }
}

/// State of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskState {
    /// Its inputs are known, and it waits for its turn, its backoff or its cache.
    Pending,
    /// It is executing.
    Running,
    /// It has ended, and its outputs are recorded.
    Succeeded,
    /// Its outputs are those of an earlier execution.
    Cached,
    /// It was not triggered: its condition is false, or a task that it depends on was not triggered.
    Skipped,
    /// It failed, after all its retries.
    Failed,
    /// It was stopped with its run.
    Canceled,
}

impl TaskState {
    /// Whether the state never changes any more, unless the run is retried.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }

    /// Whether the task has outputs.
    pub fn has_outputs(self) -> bool {
        matches!(self, Self::Succeeded | Self::Cached)
    }
}

/// Where a task is in its run: the names of the tasks from the root's, separated by `/`; an iteration of a loop adds its index, as in
/// `for-loop-2[3]/train`. The root itself has the empty path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskPath(pub String);

impl TaskPath {
    /// The path of the task `name` in the graph at this path.
    #[must_use]
    pub fn task(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { Self(format!("{}/{name}", self.0)) }
    }

    /// The path of an iteration of the loop at this path, counted from 0.
    #[must_use]
    pub fn iteration(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// The path of the enclosing graph: for an iteration that of its loop. `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.0.is_empty() {
            return None;
        }
        if let Some(at) = self.0.strip_suffix(']').and_then(|path| path.rfind('[')) {
            return Some(Self(self.0[..at].to_owned()));
        }
        Some(Self(self.0.rfind('/').map_or(String::new(), |at| self.0[..at].to_owned())))
    }
}

impl fmt::Display for TaskPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An artifact: a file or folder that a task produced or imported.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Artifact {
    /// Id in the store, which is also the name that tasks see; empty until the artifact is recorded.
    pub id: String,
    /// Type, as in `system.Model`.
    pub schema_title: String,
    /// Version of the type, as in `0.0.1`.
    pub schema_version: String,
    /// Where its content is.
    pub uri: String,
    /// Metadata: JSON values by key.
    pub metadata: Map<String, Value>,
    /// Digest of its content, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// The inputs of a task, with their values.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Inputs {
    /// Values of parameters. An optional parameter without a value is absent.
    pub parameters: BTreeMap<String, Value>,
    /// Artifacts; an input that is not a list has one.
    pub artifacts: BTreeMap<String, Vec<Artifact>>,
}

/// The outputs of a task.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Outputs {
    /// Values of parameters.
    pub parameters: BTreeMap<String, Value>,
    /// Artifacts; an output that is not a list has one.
    pub artifacts: BTreeMap<String, Vec<Artifact>>,
}

/// What a run knows about itself: the values of `{{$.pipeline_job_name}}` and its like.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunInfo {
    /// Id of the run.
    pub run_id: String,
    /// Namespace of the run.
    pub namespace: String,
    /// Name that users see (`{{$.pipeline_job_name}}`).
    pub display_name: String,
    /// Name of the run as a resource (`{{$.pipeline_job_resource_name}}`): unique and valid as a name in Kubernetes.
    pub resource_name: String,
    /// Name of the pipeline, `pipelineInfo.name`.
    pub pipeline_name: String,
    /// Root of the artifacts' URIs.
    pub pipeline_root: String,
    /// Service account of its pods; that of the namespace if empty.
    pub service_account: String,
    /// `spec` of the persistent volume claim of its workspace, if the pipeline has one.
    pub workspace: Option<Value>,
    /// When the run was created, in milliseconds since the Unix epoch.
    pub created_at: i64,
    /// When the run was due, in milliseconds since the Unix epoch.
    pub scheduled_at: i64,
}

/// One attempt of a task that executes something, with all its inputs resolved.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The run.
    pub run: Arc<RunInfo>,
    /// The task.
    pub path: TaskPath,
    /// Name in `taskInfo`.
    pub task_name: String,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// The component: its declared inputs and outputs.
    pub component: Arc<ComponentSpec>,
    /// What it executes.
    pub executor: Arc<ExecutorSpec>,
    /// Settings for Kubernetes, if there are any. References to parameters in them are resolved by the launcher, from `inputs` and
    /// `platform_inputs`.
    pub platform: Option<Arc<KubernetesExecutorConfig>>,
    /// Its inputs.
    pub inputs: Inputs,
    /// Values that the settings for Kubernetes refer to and that are not inputs of the component: outputs of other tasks of the graph by
    /// `TASK/OUTPUT`, and the graph's inputs by name.
    pub platform_inputs: BTreeMap<String, Value>,
}

/// How an attempt of a task ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// It succeeded.
    Succeeded(Outputs),
    /// It failed.
    Failed(Failure),
    /// It was stopped.
    Canceled,
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Failure {
    /// A sentence with the reason, and the end of the program's output where that helps.
    pub message: String,
    /// Exit code of the program, if it ran.
    pub exit_code: Option<i32>,
    /// Whether another attempt cannot succeed either, as with an image that cannot be run here. Such attempts are not retried.
    pub is_permanent: bool,
}
