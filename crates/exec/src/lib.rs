//! Where work runs. A [`Manifest`] (`kind: Run`) says what; an [`Executor`] carries it out: as processes of this machine
//! ([`LocalProcesses`]), or as pods of a cluster (`slipway-operator`). Both follow the same rules, which are [`lifecycle`].
//!
//! | module | what it is for |
//! |---|---|
//! | [`manifest`] | what a run is to do: program, environment, resources, retries, deadline |
//! | [`status`] | how far it is, and how its attempts ended |
//! | [`lifecycle`] | what happens next: a function without side effects, shared by every executor |
//! | [`quantity`] | `500m`, `4Gi` |
//! | [`local`] | processes that outlive the server |
//! | [`token`] | what a run's token is made for |
//!
//! ```
//! use slipway_exec::Manifest;
//! let run = Manifest::parse("apiVersion: slipway.dev/v1\nkind: Run\nmetadata: {name: train}\nspec: {command: [python, train.py]}")?;
//! assert_eq!(run.spec.command, ["python", "train.py"]);
//! # Ok::<(), slipway_exec::ExecError>(())
//! ```

pub mod error;
pub mod lifecycle;
pub mod local;
pub mod manifest;
pub mod quantity;
pub mod status;
pub mod token;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use error::ExecError;
pub use local::LocalProcesses;
pub use manifest::{Manifest, RunSpec};
pub use status::{Attempt, GpuUse, Phase, RunStatus};
pub use token::{Mint, TokenRequest};

/// A run that was handed over, and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Run")]
pub struct Submitted {
    /// As it was handed over; its name and namespace are filled in.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// What became of it so far.
    #[serde(default)]
    pub status: RunStatus,
}

/// Which part of a run's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogQuery {
    /// Which attempt, from 1; the newest if unset.
    pub attempt: Option<u32>,
    /// Go on until the attempt ends.
    pub follow: bool,
    /// So many of its last lines; all if unset.
    pub tail: Option<u64>,
}

/// What comes of a call.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ExecError>>;
/// A log as it grows.
pub type LogStream = BoxStream<'static, Result<Bytes, ExecError>>;

/// A place where runs are carried out. What it has accepted it keeps over a restart.
pub trait Executor: std::fmt::Debug + Send + Sync {
    /// Takes a run in; it starts when there is room. `by` is who asked, if that is known.
    fn submit<'a>(&'a self, run: Manifest, by: Option<&'a str>) -> Answer<'a, Submitted>;
    /// Runs of a namespace, or of all, oldest first.
    fn list<'a>(&'a self, namespace: Option<&'a str>) -> Answer<'a, Vec<Submitted>>;
    /// One run.
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> Answer<'a, Submitted>;
    /// Ends a run; no error when it has ended.
    fn cancel<'a>(&'a self, namespace: &'a str, name: &'a str) -> Answer<'a, Submitted>;
    /// Forgets a run; one that goes on is ended first.
    fn remove<'a>(&'a self, namespace: &'a str, name: &'a str) -> Answer<'a, ()>;
    /// What it wrote to standard output and standard error.
    fn logs<'a>(&'a self, namespace: &'a str, name: &'a str, query: LogQuery) -> Answer<'a, LogStream>;
}

/// A tracked run to be begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    /// 32 hexadecimal digits.
    pub run_id: String,
    /// The namespace of the run, to which an experiment that is new belongs where namespaces are tenants.
    #[serde(default)]
    pub namespace: String,
    /// The experiment's name; the default one if unset.
    pub experiment: Option<String>,
    /// For people.
    pub name: String,
    /// Who submitted it.
    pub user: String,
    /// Key and value.
    pub tags: Vec<(String, String)>,
}

impl Tracked {
    /// Of a manifest that has a unique id.
    pub fn of(run: &Manifest) -> Self {
        let metadata = &run.metadata;
        Self {
            run_id: tracked_id(&metadata.uid),
            namespace: metadata.namespace.clone(),
            experiment: run.spec.experiment.clone(),
            name: metadata.name.clone(),
            user: metadata.annotations.get(manifest::SUBMITTED_BY).cloned().unwrap_or_default(),
            tags: vec![
                ("mlflow.source.type".into(), "JOB".into()),
                ("mlflow.source.name".into(), run.spec.command.join(" ")),
                (slipway_core::ids::RUN_TAG.into(), format!("{}/{}", metadata.namespace, metadata.name)),
            ],
        }
    }
}

/// Where runs are tracked. Declared here and implemented by what knows the tracking store.
pub trait Tracker: Send + Sync {
    /// Begins a tracked run; no error when it was begun before.
    fn begin(&self, run: Tracked) -> BoxFuture<'_, Result<(), String>>;
    /// Ends a tracked run that the program itself has not ended, and attaches what its GPUs did. Calling it again changes nothing.
    /// `namespace` is the namespace of the run; a tracked run that belongs to another is left as it is, without an error.
    fn end<'a>(
        &'a self,
        namespace: &'a str,
        run_id: &'a str,
        status: &'a RunStatus,
    ) -> BoxFuture<'a, Result<(), String>>;
}

/// The tracked run of a submitted one: its object's unique id without dashes, so that beginning it twice is the same once.
pub fn tracked_id(uid: &str) -> String {
    uid.replace('-', "")
}
