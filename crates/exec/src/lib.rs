//! Executors of runs. A [`Manifest`] (`kind: Run`) describes a run; an [`Executor`] runs it, either as processes of this machine
//! ([`LocalProcesses`]) or as pods of a cluster (`slipway-operator`). All executors share one state machine, [`lifecycle`].
//!
//! | module | contents |
//! |---|---|
//! | [`manifest`] | the specification of a run: program, environment, resources, retries, deadline |
//! | [`status`] | the state of a run and the result of each attempt |
//! | [`lifecycle`] | the next action for a run: a pure function, shared by all executors |
//! | [`queueing`] | queues of batch systems, and placement by topology |
//! | [`data`] | versions of data that a run needs |
//! | [`quantity`] | resource quantities: `500m`, `4Gi` |
//! | [`pod`] | names and labels of the pods of attempts |
//! | [`queue`] | the work queue of controllers |
//! | [`local`] | the executor for this machine; its processes outlive the server |
//! | [`token`] | requests for the tokens of runs |
//!
//! ```
//! use slipway_exec::Manifest;
//! let run = Manifest::parse("apiVersion: slipway.dev/v1\nkind: Run\nmetadata: {name: train}\nspec: {command: [python, train.py]}")?;
//! assert_eq!(run.spec.command, ["python", "train.py"]);
//! # Ok::<(), slipway_exec::ExecError>(())
//! ```

pub mod data;
pub mod error;
pub mod lifecycle;
pub mod local;
pub mod manifest;
#[cfg(test)]
mod parsers;
pub mod pod;
pub mod quantity;
pub mod queue;
pub mod queueing;
pub mod status;
pub mod token;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use data::{DataSource, DataVolume, FetchedData, UsedData};
pub use error::ExecError;
pub use local::LocalProcesses;
pub use manifest::{Manifest, RunSpec};
pub use queueing::{QueueRequest, QueueStatus, QueueSystem, Topology};
pub use status::{Attempt, GpuUse, Phase, RunStatus};
pub use token::{Mint, TokenRequest};

/// A submitted run: its manifest and its status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Run")]
pub struct Submitted {
    /// The manifest as submitted, with name and namespace filled in.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// Current status, written by the executor.
    #[serde(default)]
    pub status: RunStatus,
}

/// Which part of a run's log to return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogQuery {
    /// Number of the attempt, from 1; the newest attempt if unset.
    pub attempt: Option<u32>,
    /// Continue until the attempt ends.
    pub follow: bool,
    /// Number of lines from the end; the whole log if unset.
    pub tail: Option<u64>,
    /// Only lines that were written at this time or later, in milliseconds since the Unix epoch; all if unset.
    pub since: Option<i64>,
    /// Begin each line with the time at which it was written.
    pub timestamps: bool,
}

/// The future that an executor's methods return.
pub type ExecFuture<'a, T> = BoxFuture<'a, Result<T, ExecError>>;
/// Chunks of a log; the stream ends with the attempt if the log is followed.
pub type LogStream = BoxStream<'static, Result<Bytes, ExecError>>;

/// A backend that executes runs. A run that was accepted survives a restart of the server.
pub trait Executor: std::fmt::Debug + Send + Sync {
    /// Accepts a run, which starts as soon as there is capacity. `by` is the name of the user who submits it, if known.
    fn submit<'a>(&'a self, run: Manifest, by: Option<&'a str>) -> ExecFuture<'a, Submitted>;
    /// Lists the runs of a namespace, or of all namespaces, oldest first.
    fn list<'a>(&'a self, namespace: Option<&'a str>) -> ExecFuture<'a, Vec<Submitted>>;
    /// Returns one run.
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> ExecFuture<'a, Submitted>;
    /// Cancels a run. Does nothing if the run has already ended.
    fn cancel<'a>(&'a self, namespace: &'a str, name: &'a str) -> ExecFuture<'a, Submitted>;
    /// Deletes a run with its logs. A run that has not ended is cancelled first.
    fn remove<'a>(&'a self, namespace: &'a str, name: &'a str) -> ExecFuture<'a, ()>;
    /// Streams what an attempt wrote to standard output and standard error.
    fn logs<'a>(&'a self, namespace: &'a str, name: &'a str, query: LogQuery) -> ExecFuture<'a, LogStream>;
}

/// A tracked run to create in the tracking store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    /// Id of the tracked run: 32 hexadecimal digits.
    pub run_id: String,
    /// Namespace of the run. Where namespaces are tenants, a new experiment is created in this one.
    #[serde(default)]
    pub namespace: String,
    /// Name of the experiment; the default experiment if unset.
    pub experiment: Option<String>,
    /// Display name of the tracked run.
    pub name: String,
    /// Name of the user who submitted the run; empty if unknown.
    pub user: String,
    /// Tags as pairs of key and value.
    pub tags: Vec<(String, String)>,
    /// Number of the attempt that begins, from 1.
    #[serde(default = "first_attempt")]
    pub attempt: u32,
    /// The data that the run uses.
    #[serde(default)]
    pub data: Vec<UsedData>,
}

/// The attempt of controllers of earlier versions, which create the tracked run before the first attempt only.
fn first_attempt() -> u32 {
    1
}

impl Tracked {
    /// The tracked run of a run whose `metadata.uid` is set, at the start of an attempt.
    pub fn new(run: &Submitted, attempt: u32) -> Self {
        let Submitted { manifest: run, status } = run;
        let metadata = &run.metadata;
        let source = run.spec.source.as_ref();
        let mut tags = vec![
            ("mlflow.source.type".into(), "JOB".into()),
            ("mlflow.source.name".into(), run.spec.command.join(" ")),
            (slipway_core::ids::RUN_TAG.into(), format!("{}/{}", metadata.namespace, metadata.name)),
        ];
        tags.extend(source.iter().flat_map(|source| source.tags()));
        let parent = metadata.annotations.get(manifest::PARENT_RUN);
        tags.extend(parent.map(|id| ("mlflow.parentRunId".to_owned(), id.clone())));
        // What the run needs is listed first: a dataset that is recorded twice keeps its first record.
        let data = status.data.iter().chain(source.iter().flat_map(|source| &source.data)).cloned().collect();
        Self {
            run_id: tracked_id(&metadata.uid),
            namespace: metadata.namespace.clone(),
            experiment: run.spec.experiment.clone(),
            name: metadata.name.clone(),
            user: metadata.annotations.get(manifest::SUBMITTED_BY).cloned().unwrap_or_default(),
            tags,
            attempt,
            data,
        }
    }
}

/// The tracking store, as executors see it. The server implements this trait.
pub trait Tracker: Send + Sync {
    /// Creates a tracked run before its first attempt, and records the number of each later one, which makes the tokens of earlier
    /// attempts invalid. Idempotent.
    fn begin(&self, run: Tracked) -> BoxFuture<'_, Result<(), String>>;
    /// Ends a tracked run unless the program has already ended it, and attaches the usage of its GPUs. Idempotent. `namespace` is the
    /// namespace of the run; a tracked run that belongs to another namespace is left unchanged, without an error.
    fn end<'a>(
        &'a self,
        namespace: &'a str,
        run_id: &'a str,
        status: &'a RunStatus,
    ) -> BoxFuture<'a, Result<(), String>>;
}

/// A metric of an executor's controllers, without labels.
#[derive(Debug, Clone, Copy)]
pub struct ControllerMetric {
    /// Name, without the suffix `_total` of counters.
    pub name: &'static str,
    /// Help text.
    pub help: &'static str,
    /// Whether the metric is a counter; otherwise it is a gauge.
    pub is_counter: bool,
    /// Current value.
    pub value: u64,
}

/// The id of the tracked run: the `uid` of the run without dashes, so that creating the tracked run again has no effect.
pub fn tracked_id(uid: &str) -> String {
    uid.replace('-', "")
}
