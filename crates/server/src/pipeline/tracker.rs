//! Pipelines in the tracking store: a run of a pipeline is a tracked run, with one child for each task that executed something.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::{BoxFuture, join4};
use parking_lot::Mutex;
use serde_json::Value;
use slipway_core::clock::now_ms;
use slipway_pipeline::engine::{TaskKind, TaskRecord};
use slipway_pipeline::model::{Artifact, Launch, RunInfo, RunState, TaskPath, TaskState};
use slipway_pipeline::tracker::{Tracker, tracked_id};
use slipway_pipeline::value;
use slipway_track::model::{Dataset, DatasetInput, KeyValue, Run};
use slipway_track::service::metrics::NewMetric;
use slipway_track::service::{ATTEMPTS_TAG, NAMESPACE_TAG, NewRun};
use slipway_track::{Error, ErrorCode, Tracking};

use crate::auth::RunStates;
use crate::tracker::PARENT_TAG;

/// The tag with the id of a run of a pipeline.
const RUN_TAG: &str = "slipway.pipeline.run";
/// The tag with the path of a task.
const TASK_TAG: &str = "slipway.pipeline.task";
/// The beginning of the tags with the URIs of artifacts; the name of the output follows.
const ARTIFACT_TAG: &str = "slipway.artifact.";
/// Types of artifacts whose numeric metadata are metrics.
const METRICS_TYPE: &str = "system.Metrics";
/// Type of artifacts that are data sets.
const DATASET_TYPE: &str = "system.Dataset";
/// Maximum characters of a parameter's name and of a data set's name and digest in MLflow.
const MAX_PARAMETER_CHARS: usize = 250;
const MAX_DATASET_NAME_CHARS: usize = 500;
const MAX_DIGEST_CHARS: usize = 36;

/// A [`Tracker`] on top of [`Tracking`]. It also decides which tokens of steps are valid: those of the attempts that execute.
pub(crate) struct PipelineTracker {
    tracking: Tracking,
    /// Whether namespaces are tenants, so that runs and experiments are tagged with their namespace.
    isolated: bool,
    /// The attempts that execute, by the id of their tracked run.
    active: Mutex<HashMap<String, Active>>,
}

/// An attempt that executes.
#[derive(Clone)]
struct Active {
    run: Arc<RunInfo>,
    experiment: Arc<str>,
    path: TaskPath,
    attempt: u32,
    started_at: i64,
}

impl std::fmt::Debug for PipelineTracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PipelineTracker").field("isolated", &self.isolated).finish_non_exhaustive()
    }
}

fn tag(key: impl Into<String>, value: impl Into<String>) -> KeyValue {
    KeyValue { key: key.into(), value: value.into() }
}

fn shortened(text: &str, limit: usize) -> String {
    text.chars().take(limit).collect()
}

fn parameters<'a>(values: impl Iterator<Item = (&'a String, &'a Value)>) -> Vec<KeyValue> {
    values.map(|(name, value)| tag(shortened(name, MAX_PARAMETER_CHARS), value::to_text(value))).collect()
}

/// The numbers of an artifact of type `system.Metrics`, and of output parameters.
fn metrics(task: &TaskRecord, at: i64) -> Vec<NewMetric> {
    let of_artifacts = task
        .outputs
        .artifacts
        .values()
        .flatten()
        .filter(|artifact| artifact.schema_title == METRICS_TYPE)
        .flat_map(|artifact| &artifact.metadata);
    of_artifacts
        .chain(&task.outputs.parameters)
        .filter_map(|(key, value)| Some((key, value.as_f64()?)))
        .map(|(key, value)| NewMetric {
            key: shortened(key, MAX_PARAMETER_CHARS),
            value,
            timestamp: at,
            step: 0,
            model_id: None,
            dataset_name: None,
            dataset_digest: None,
        })
        .collect()
}

fn dataset(name: &str, artifact: &Artifact) -> DatasetInput {
    let digest = artifact.digest.as_deref().unwrap_or(&artifact.id);
    let dataset = Dataset {
        name: shortened(name, MAX_DATASET_NAME_CHARS),
        digest: shortened(digest, MAX_DIGEST_CHARS),
        source_type: "pipeline".into(),
        source: serde_json::json!({ "uri": artifact.uri, "artifact": artifact.id }).to_string(),
        schema: None,
        profile: None,
    };
    DatasetInput { tags: vec![tag("mlflow.data.context", "input")], dataset: Some(dataset) }
}

/// The tags that link a tracked run to its task.
fn of_task(run: &RunInfo, path: &TaskPath) -> Vec<KeyValue> {
    vec![tag(RUN_TAG, &run.run_id), tag(TASK_TAG, &path.0)]
}

/// Whether the end of this attempt is recorded already. The status is recorded last.
fn is_recorded(run: &Run, attempt: u32) -> bool {
    let attempt = attempt.to_string();
    run.info.end_time.is_some() && run.data.tags.iter().any(|tag| tag.key == ATTEMPTS_TAG && tag.value == attempt)
}

impl PipelineTracker {
    pub(crate) fn new(tracking: Tracking, isolated: bool) -> Self {
        Self { tracking, isolated, active: Mutex::default() }
    }

    /// The id of the experiment of a run; created if necessary. An experiment of this name that belongs to another tenant is not used.
    async fn experiment_id(&self, name: &str, namespace: &str) -> Result<String, Error> {
        let of_tenant = format!("{namespace}/{name}");
        let is_foreign = self
            .tracking
            .experiment_by_name(name)
            .is_ok_and(|found| self.isolated && found.namespace().is_some_and(|owner| owner != namespace));
        let name = if is_foreign { &of_tenant } else { name };
        if let Ok(found) = self.tracking.experiment_by_name(name) {
            return Ok(found.experiment_id);
        }
        let tags = if self.isolated { vec![tag(NAMESPACE_TAG, namespace)] } else { Vec::new() };
        match self.tracking.create_experiment(name.to_owned(), None, tags).await {
            Err(error) if error.code == ErrorCode::ResourceAlreadyExists => {
                Ok(self.tracking.experiment_by_name(name)?.experiment_id)
            }
            created => created,
        }
    }

    /// Creates a tracked run; does nothing if it exists.
    async fn create(
        &self,
        id: String,
        run: &RunInfo,
        experiment: &str,
        name: &str,
        start_time: i64,
        mut tags: Vec<KeyValue>,
    ) -> Result<bool, Error> {
        if self.tracking.run_info(&id).is_ok() {
            return Ok(false);
        }
        if self.isolated {
            tags.push(tag(NAMESPACE_TAG, &run.namespace));
        }
        let experiment_id = self.experiment_id(experiment, &run.namespace).await?;
        let new = NewRun {
            run_id: Some(id),
            experiment_id,
            user_id: String::new(),
            start_time,
            run_name: name.to_owned(),
            tags,
        };
        self.tracking.create_run(new).await.map(|_| true)
    }

    async fn start(&self, run: &RunInfo, experiment: &str, values: &[(String, Value)]) -> Result<(), Error> {
        let id = tracked_id(&run.run_id, None);
        let tags = vec![tag(RUN_TAG, &run.run_id), tag("slipway.pipeline", &run.pipeline_name)];
        if self.create(id.clone(), run, experiment, &run.display_name, run.created_at, tags).await? {
            let parameters = parameters(values.iter().map(|(name, value)| (name, value)));
            self.tracking.log_batch(id, Vec::new(), parameters, Vec::new()).await?;
        }
        Ok(())
    }

    /// Creates the tracked run of a task; does nothing if it exists.
    async fn create_task(
        &self,
        id: String,
        run: &RunInfo,
        experiment: &str,
        path: &TaskPath,
        start_time: i64,
    ) -> Result<bool, Error> {
        let parent = tracked_id(&run.run_id, None);
        let mut tags = of_task(run, path);
        tags.push(tag(PARENT_TAG, parent));
        self.create(id, run, experiment, &path.0, start_time, tags).await
    }

    /// `tracked` is the id of the tracked run that the executor has made for the task's last attempt, if it has.
    async fn end_task(
        &self,
        run: &RunInfo,
        experiment: &str,
        task: &TaskRecord,
        tracked: Option<String>,
    ) -> Result<(), Error> {
        let executes = matches!(task.kind, TaskKind::Container | TaskKind::Importer);
        if !executes || task.state == TaskState::Skipped {
            return Ok(());
        }
        let own_id = tracked_id(&run.run_id, Some(&task.path));
        {
            let mut active = self.active.lock();
            // The end may be one from before the run was retried; then another attempt executes.
            if active.get(&own_id).is_some_and(|active| active.attempt <= task.attempt) {
                active.remove(&own_id);
            }
        }
        let name = tracked.is_some().then(|| task.path.0.clone());
        let id = tracked.unwrap_or(own_id);
        let end = task.finished_at.unwrap_or_else(now_ms);
        let start = task.started_at.unwrap_or(end);
        let mut values = parameters(task.inputs.parameters.iter());
        // A program that used its token has a tracked run already. What it has logged itself stays as it is.
        let found = self.tracking.run(&id).ok();
        if found.as_ref().is_some_and(|found| is_recorded(found, task.attempt)) {
            return Ok(());
        }
        let logged = found.map(|run| run.data.params);
        values.retain(|value| !logged.iter().flatten().any(|known| known.key == value.key));
        // The number of attempts marks the end of the task: tokens of a run that has it are invalid.
        let mut tags = of_task(run, &task.path);
        tags.push(tag(ATTEMPTS_TAG, task.attempt.to_string()));
        for (name, artifacts) in &task.outputs.artifacts {
            for artifact in artifacts {
                tags.push(tag(format!("{ARTIFACT_TAG}{name}"), &artifact.uri));
            }
        }
        tags.dedup_by(|left, right| left.key == right.key);
        let inputs = task.inputs.artifacts.iter().flat_map(|(name, all)| all.iter().map(move |one| (name, one)));
        let datasets: Vec<DatasetInput> = inputs
            .filter(|(_, artifact)| artifact.schema_title == DATASET_TYPE)
            .map(|(name, artifact)| dataset(name, artifact))
            .collect();
        let status = match task.state {
            TaskState::Failed => "FAILED",
            TaskState::Canceled => "KILLED",
            _ => "FINISHED",
        };
        // All are queued at once, in this order, which the store keeps: so they share a commit.
        let create = async {
            match logged {
                Some(_) => Ok(()),
                None => self.create_task(id.clone(), run, experiment, &task.path, start).await.map(drop),
            }
        };
        let log = self.tracking.log_batch(id.clone(), metrics(task, end), values, tags);
        let log_inputs = async {
            if datasets.is_empty() {
                return Ok(());
            }
            self.tracking.log_inputs(id.clone(), datasets, Vec::new()).await
        };
        let finish = self.tracking.update_run(id.clone(), Some(status.into()), Some(end), name);
        let (created, logged, inputs, finished) = join4(create, log, log_inputs, finish).await;
        created.and(logged).and(inputs).and(finished.map(drop))
    }

    async fn change(&self, run: &RunInfo, state: RunState) -> Result<(), Error> {
        let (status, end) = match state {
            RunState::Succeeded | RunState::Skipped => ("FINISHED", Some(now_ms())),
            RunState::Failed => ("FAILED", Some(now_ms())),
            RunState::Canceled => ("KILLED", Some(now_ms())),
            RunState::Pending | RunState::Running | RunState::Canceling | RunState::Paused => ("RUNNING", None),
        };
        self.tracking.update_run(tracked_id(&run.run_id, None), Some(status.into()), end, None).await.map(drop)
    }
}

/// Logs a failure of tracking, which does not fail the run.
fn logged(run: &RunInfo, result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::warn!(run = run.run_id, %error, "the pipeline run is not tracked");
    }
}

impl Tracker for PipelineTracker {
    fn run_started<'a>(
        &'a self,
        run: &'a RunInfo,
        experiment: &'a str,
        parameters: &'a [(String, Value)],
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move { logged(run, self.start(run, experiment, parameters).await) })
    }

    fn attempt_started(&self, experiment: &Arc<str>, launch: &Launch) {
        let active = Active {
            run: Arc::clone(&launch.run),
            experiment: Arc::clone(experiment),
            path: launch.path.clone(),
            attempt: launch.attempt,
            started_at: now_ms(),
        };
        self.active.lock().insert(tracked_id(&launch.run.run_id, Some(&launch.path)), active);
    }

    fn task_ended<'a>(
        &'a self,
        run: &'a RunInfo,
        experiment: &'a str,
        task: &'a TaskRecord,
        tracked: Option<String>,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move { logged(run, self.end_task(run, experiment, task, tracked).await) })
    }

    fn run_changed<'a>(&'a self, run: &'a RunInfo, state: RunState) -> BoxFuture<'a, ()> {
        Box::pin(async move { logged(run, self.change(run, state).await) })
    }
}

impl RunStates for PipelineTracker {
    /// The attempt that executes. Its tracked run is created here, when the program first uses its token, because most programs never do.
    fn current_attempt<'a>(&'a self, run_id: &'a str) -> BoxFuture<'a, Result<Option<u32>, String>> {
        let active = self.active.lock().get(run_id).cloned();
        let Some(active) = active else { return RunStates::current_attempt(&self.tracking, run_id) };
        Box::pin(async move {
            let Active { run, experiment, path, attempt, started_at } = active;
            let id = tracked_id(&run.run_id, Some(&path));
            let created = self.create_task(id, &run, &experiment, &path, started_at).await;
            created.map(|_| Some(attempt)).map_err(|error| error.to_string())
        })
    }
}
