//! Implements the executors' [`Tracker`] with the tracking store: each submitted run has one tracked (MLflow) run.
//!
//! Invariant: with isolated namespaces, a run only changes tracked runs and experiments of its own namespace.

use futures_util::future::BoxFuture;
use slipway_core::clock::now_ms;
use slipway_core::ids::RUN_TAG;
use slipway_exec::{GpuUse, Phase, RunStatus, Tracked, Tracker};
use slipway_track::model::{Experiment, KeyValue, Run, stage};
use slipway_track::service::metrics::NewMetric;
use slipway_track::service::{ATTEMPT_TAG, ATTEMPTS_TAG, NAMESPACE_TAG, NewRun};
use slipway_track::{Error, ErrorCode, Tracking};

use crate::data;

/// MLflow's statuses of an unfinished run.
const ACTIVE_STATUSES: [&str; 2] = ["RUNNING", "SCHEDULED"];

/// The metrics of a tracked run with what its GPUs did, next to the system metrics of MLflow's clients.
pub(crate) const GPU_BUSY_SECONDS: &str = "system/gpu_busy_seconds";
pub(crate) const GPU_IDLE_SECONDS: &str = "system/gpu_idle_seconds";
pub(crate) const GPU_ENERGY_JOULES: &str = "system/gpu_energy_joules";

/// A [`Tracker`] on top of [`Tracking`].
pub(crate) struct RunTracker {
    pub(crate) tracking: Tracking,
    /// Whether namespaces are tenants, so that runs and experiments are tagged with their namespace and isolated.
    pub(crate) isolated: bool,
}

impl RunTracker {
    /// Id of the experiment for a run; created if necessary. Runs without an experiment use the default one.
    async fn experiment_id(&self, name: Option<String>, namespace: &str) -> Result<String, Error> {
        let Some(name) = name else { return Ok("0".into()) };
        if let Ok(found) = self.tracking.experiment_by_name(&name) {
            return self.check_owner(&found, namespace).map(|()| found.experiment_id);
        }
        let owner = KeyValue { key: NAMESPACE_TAG.into(), value: namespace.to_owned() };
        let tags = if self.isolated { vec![owner] } else { Vec::new() };
        match self.tracking.create_experiment(name.clone(), None, tags).await {
            // Another run created it concurrently.
            Err(e) if e.code == ErrorCode::ResourceAlreadyExists => {
                let found = self.tracking.experiment_by_name(&name)?;
                self.check_owner(&found, namespace).map(|()| found.experiment_id)
            }
            created => created,
        }
    }

    /// Fails if the experiment belongs to another namespace.
    fn check_owner(&self, experiment: &Experiment, namespace: &str) -> Result<(), Error> {
        match experiment.namespace() {
            Some(owner) if self.isolated && owner != namespace => {
                let name = &experiment.name;
                let text =
                    format!("experiment \"{name}\" belongs to namespace \"{owner}\", and the run to \"{namespace}\"");
                Err(Error::new(ErrorCode::PermissionDenied, text))
            }
            _ => Ok(()),
        }
    }

    async fn begin_run(&self, mut run: Tracked) -> Result<(), Error> {
        let (run_id, data) = (run.run_id.clone(), std::mem::take(&mut run.data));
        self.create_or_continue(run).await?;
        if data.is_empty() {
            return Ok(());
        }
        let datasets = data.into_iter().map(data::dataset).collect();
        match self.tracking.log_inputs(run_id, datasets, Vec::new()).await {
            // A deleted run cannot be changed.
            Err(error) if error.code == ErrorCode::InvalidParameterValue => {
                tracing::warn!(%error, "the data of the run is not recorded");
                Ok(())
            }
            logged => logged,
        }
    }

    async fn create_or_continue(&self, run: Tracked) -> Result<(), Error> {
        if self.isolated && run.namespace.is_empty() {
            let text = format!("run \"{}\" has no namespace; the run controller has a different version", run.name);
            return Err(Error::new(ErrorCode::InvalidParameterValue, text));
        }
        if let Ok(tracked) = self.tracking.run(&run.run_id) {
            return self.begin_attempt(&run, &tracked).await;
        }
        let experiment_id = self.experiment_id(run.experiment, &run.namespace).await?;
        let owner = self.isolated.then(|| KeyValue { key: NAMESPACE_TAG.into(), value: run.namespace.clone() });
        let tags = run.tags.into_iter().map(|(key, value)| KeyValue { key, value }).chain(owner).collect();
        let new = NewRun {
            run_id: Some(run.run_id),
            experiment_id,
            user_id: run.user,
            start_time: now_ms(),
            run_name: run.name,
            tags,
        };
        self.tracking.create_run(new).await.map(drop)
    }

    /// Records a new attempt of a tracked run that exists.
    async fn begin_attempt(&self, run: &Tracked, tracked: &Run) -> Result<(), Error> {
        let tags = &tracked.data.tags;
        let current = tags.iter().find(|t| t.key == ATTEMPT_TAG).and_then(|t| t.value.parse().ok()).unwrap_or(1);
        let is_foreign = self.isolated && !belongs_to(tags, &run.namespace);
        // A deleted run cannot be changed, and all its tokens are invalid already.
        let is_deleted = tracked.info.lifecycle_stage != stage::ACTIVE;
        if run.attempt <= current || is_foreign || is_deleted {
            return Ok(());
        }
        let tag = KeyValue { key: ATTEMPT_TAG.into(), value: run.attempt.to_string() };
        self.tracking.log_batch(run.run_id.clone(), Vec::new(), Vec::new(), vec![tag]).await
    }

    async fn end_run(&self, namespace: &str, run_id: &str, status: &RunStatus) -> Result<(), Error> {
        let run = match self.tracking.run(run_id) {
            Ok(run) => run,
            // The run ended before it was tracked, or the tracked run was purged.
            Err(_) => return Ok(()),
        };
        if self.isolated && !belongs_to(&run.data.tags, namespace) {
            // The run id comes from a pod label, which the pod's creator can set to any run.
            tracing::warn!(run_id, namespace, "not ending a tracked run that belongs to another namespace");
            return Ok(());
        }
        let at = status.completion_time.map_or_else(now_ms, |t| t.0);
        let (metrics, mut tags) = gpu_usage(status, at);
        let attempts = status.attempts.last().map_or(0, |a| a.number).to_string();
        for (key, value) in
            [("slipway.reason", &status.reason), ("slipway.node", &status.node), (ATTEMPTS_TAG, &attempts)]
        {
            if !value.is_empty() {
                tags.push(KeyValue { key: key.into(), value: value.clone() });
            }
        }
        self.tracking.log_batch(run_id.to_owned(), metrics, Vec::new(), tags).await?;
        let is_active = ACTIVE_STATUSES.contains(&run.info.status.as_str());
        let final_status = match status.phase {
            Phase::Cancelled => "KILLED",
            // A failure overrides the status that the program itself has set.
            Phase::Failed => "FAILED",
            _ if is_active => "FINISHED",
            _ => return Ok(()),
        };
        self.tracking.update_run(run_id.to_owned(), Some(final_status.into()), Some(at), None).await.map(drop)
    }
}

/// Whether a tracked run with these tags belongs to a submitted run in this namespace.
fn belongs_to(tags: &[KeyValue], namespace: &str) -> bool {
    let run = tags.iter().find(|t| t.key == RUN_TAG);
    run.and_then(|t| t.value.split_once('/')).is_some_and(|(owner, _)| owner == namespace)
}

/// The GPU usage of all attempts as metrics, and a tag with the GPUs.
fn gpu_usage(status: &RunStatus, at: i64) -> (Vec<NewMetric>, Vec<KeyValue>) {
    let gpus: Vec<&GpuUse> = status.attempts.iter().flat_map(|a| &a.gpus).collect();
    if gpus.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let sum = |field: fn(&GpuUse) -> f64| gpus.iter().map(|g| field(g)).sum::<f64>();
    let (busy, idle) = (sum(|g| g.busy_seconds), sum(|g| g.idle_seconds));
    let mut values = vec![(GPU_ENERGY_JOULES, sum(|g| g.joules)), (GPU_BUSY_SECONDS, busy), (GPU_IDLE_SECONDS, idle)];
    if busy + idle > 0.0 {
        values.push(("system/gpu_busy_percent", 100.0 * busy / (busy + idle)));
    }
    let metric = |(key, value): (&str, f64)| NewMetric {
        key: key.to_owned(),
        value,
        timestamp: at,
        step: 0,
        model_id: None,
        dataset_name: None,
        dataset_digest: None,
    };
    let mut devices: Vec<&str> = gpus.iter().map(|g| g.device.as_str()).collect();
    devices.sort_unstable();
    devices.dedup();
    let tag = KeyValue { key: "slipway.gpus".into(), value: devices.join(" ") };
    (values.into_iter().map(metric).collect(), vec![tag])
}

impl Tracker for RunTracker {
    fn begin(&self, run: Tracked) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { self.begin_run(run).await.map_err(|e| e.to_string()) })
    }

    fn end<'a>(
        &'a self,
        namespace: &'a str,
        run_id: &'a str,
        status: &'a RunStatus,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            match self.end_run(namespace, run_id, status).await {
                // The tracked run was deleted, so there is nothing to end.
                Err(e) if e.code == ErrorCode::InvalidParameterValue => {
                    tracing::debug!(run_id, error = %e, "the tracked run was deleted");
                    Ok(())
                }
                result => result.map_err(|e| e.to_string()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_store::{Database, Objects};

    fn run(id: char, namespace: &str, experiment: &str) -> Tracked {
        Tracked {
            run_id: id.to_string().repeat(32),
            namespace: namespace.into(),
            experiment: Some(experiment.into()),
            name: "train".into(),
            user: String::new(),
            tags: vec![(RUN_TAG.into(), format!("{namespace}/train"))],
            attempt: 1,
            data: Vec::new(),
        }
    }

    async fn tracking() -> (Tracking, std::path::PathBuf) {
        let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
        std::fs::create_dir_all(&folder).unwrap();
        let db = Database::open(&folder.join("t.db"), &[slipway_track::MIGRATION]).unwrap();
        let tracking = Tracking::open(db, Objects::open(folder.join("objects")).unwrap()).await.unwrap();
        (tracking, folder)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn run_is_ended_only_by_its_own_namespace() {
        let (tracking, folder) = tracking().await;
        let tracker = RunTracker { tracking: tracking.clone(), isolated: true };
        let run_status = |id: &str| tracking.run(id).unwrap().info.status;
        let cancelled = RunStatus { phase: Phase::Cancelled, ..RunStatus::default() };
        let id = "a".repeat(32);
        tracker.begin(run('a', "team-a", "ocr")).await.unwrap();
        for namespace in ["team-b", "team", "team-a/train", ""] {
            tracker.end(namespace, &id, &cancelled).await.unwrap();
            assert_eq!(run_status(&id), "RUNNING", "{namespace}");
        }
        // A run that a user tracks directly belongs to no namespace.
        let untagged = NewRun {
            run_id: None,
            experiment_id: "0".into(),
            user_id: String::new(),
            start_time: 0,
            run_name: "untagged".into(),
            tags: Vec::new(),
        };
        let untagged = tracking.create_run(untagged).await.unwrap().info.run_id;
        tracker.end("team-b", &untagged, &cancelled).await.unwrap();
        assert_eq!(run_status(&untagged), "RUNNING");
        tracker.end("team-a", &id, &cancelled).await.unwrap();
        assert_eq!(run_status(&id), "KILLED");
        let error = tracker.begin(run('c', "", "ocr")).await.unwrap_err();
        assert!(error.contains("has no namespace"), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn run_cannot_track_to_an_experiment_of_another_namespace() {
        let (tracking, folder) = tracking().await;
        let tracker = RunTracker { tracking: tracking.clone(), isolated: true };
        tracker.begin(run('a', "team-a", "ocr")).await.unwrap();
        tracker.begin(run('b', "team-a", "ocr")).await.unwrap();
        let tags = tracking.run(&"b".repeat(32)).unwrap().data.tags;
        assert!(tags.iter().any(|t| t.key == NAMESPACE_TAG && t.value == "team-a"), "{tags:?}");
        let error = tracker.begin(run('c', "team-b", "ocr")).await.unwrap_err();
        assert!(error.contains("belongs to namespace \"team-a\""), "{error}");
        assert!(tracking.run_info(&"c".repeat(32)).is_err());
        // An experiment without a namespace is shared.
        tracking.create_experiment("shared".into(), None, Vec::new()).await.unwrap();
        tracker.begin(run('d', "team-b", "shared")).await.unwrap();
        let not_isolated = RunTracker { tracking, isolated: false };
        not_isolated.begin(run('e', "default", "ocr")).await.unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }
}
