//! Submitted runs as tracked runs: the executors' [`Tracker`] on top of tracking.

use futures_util::future::BoxFuture;
use slipway_core::clock::now_ms;
use slipway_core::ids::RUN_TAG;
use slipway_exec::{GpuUse, Phase, RunStatus, Tracked, Tracker};
use slipway_track::model::{Experiment, KeyValue};
use slipway_track::service::metrics::NewMetric;
use slipway_track::service::{ATTEMPTS_TAG, NAMESPACE_TAG, NewRun};
use slipway_track::{Error, ErrorCode, Tracking};

/// MLflow's states of a run that go on.
const OPEN: [&str; 2] = ["RUNNING", "SCHEDULED"];

pub(crate) struct InTracking {
    pub(crate) tracking: Tracking,
    /// Whether namespaces are tenants, whose runs and experiments are marked as theirs.
    pub(crate) isolated: bool,
}

impl InTracking {
    /// The experiment in which a run is tracked, created if it is new; the default one if the run names none.
    async fn experiment(&self, name: Option<String>, namespace: &str) -> Result<String, Error> {
        let Some(name) = name else { return Ok("0".into()) };
        if let Ok(found) = self.tracking.experiment_by_name(&name) {
            return self.may_use(&found, namespace).map(|()| found.experiment_id);
        }
        let owner = KeyValue { key: NAMESPACE_TAG.into(), value: namespace.to_owned() };
        let tags = if self.isolated { vec![owner] } else { Vec::new() };
        match self.tracking.create_experiment(name.clone(), None, tags).await {
            // Another run created it at the same moment.
            Err(e) if e.code == ErrorCode::ResourceAlreadyExists => {
                let found = self.tracking.experiment_by_name(&name)?;
                self.may_use(&found, namespace).map(|()| found.experiment_id)
            }
            created => created,
        }
    }

    fn may_use(&self, experiment: &Experiment, namespace: &str) -> Result<(), Error> {
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

    async fn begun(&self, run: Tracked) -> Result<(), Error> {
        if self.isolated && run.namespace.is_empty() {
            let text = format!("run \"{}\" names no namespace; the controller of runs is of another version", run.name);
            return Err(Error::new(ErrorCode::InvalidParameterValue, text));
        }
        if self.tracking.run_info(&run.run_id).is_ok() {
            return Ok(());
        }
        let experiment_id = self.experiment(run.experiment, &run.namespace).await?;
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

    async fn ended(&self, namespace: &str, run_id: &str, status: &RunStatus) -> Result<(), Error> {
        let run = match self.tracking.run(run_id) {
            Ok(run) => run,
            // It ended before it was begun, or somebody purged it.
            Err(_) => return Ok(()),
        };
        if self.isolated && !is_of(&run.data.tags, namespace) {
            // A pod's labels are its creator's, and may name any run.
            tracing::warn!(run_id, namespace, "a tracked run was not ended, since it belongs to another namespace");
            return Ok(());
        }
        let at = status.completion_time.map_or_else(now_ms, |t| t.0);
        let (metrics, mut tags) = attribution(status, at);
        let attempts = status.attempts.last().map_or(0, |a| a.number).to_string();
        for (key, value) in
            [("slipway.reason", &status.reason), ("slipway.node", &status.node), (ATTEMPTS_TAG, &attempts)]
        {
            if !value.is_empty() {
                tags.push(KeyValue { key: key.into(), value: value.clone() });
            }
        }
        self.tracking.log_batch(run_id.to_owned(), metrics, Vec::new(), tags).await?;
        let open = OPEN.contains(&run.info.status.as_str());
        let verdict = match status.phase {
            Phase::Cancelled => "KILLED",
            // What failed did, whatever it said of itself before.
            Phase::Failed => "FAILED",
            _ if open => "FINISHED",
            _ => return Ok(()),
        };
        self.tracking.update_run(run_id.to_owned(), Some(verdict.into()), Some(at), None).await.map(drop)
    }
}

/// Whether a tracked run with these tags is one of a run in this namespace.
fn is_of(tags: &[KeyValue], namespace: &str) -> bool {
    let run = tags.iter().find(|t| t.key == RUN_TAG);
    run.and_then(|t| t.value.split_once('/')).is_some_and(|(of, _)| of == namespace)
}

/// What the GPUs of all attempts did, as metrics beside those that MLflow's own clients take of a system, and which GPUs they were.
fn attribution(status: &RunStatus, at: i64) -> (Vec<NewMetric>, Vec<KeyValue>) {
    let gpus: Vec<&GpuUse> = status.attempts.iter().flat_map(|a| &a.gpus).collect();
    if gpus.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let sum = |of: fn(&GpuUse) -> f64| gpus.iter().map(|g| of(g)).sum::<f64>();
    let (busy, idle) = (sum(|g| g.busy_seconds), sum(|g| g.idle_seconds));
    let mut figures = vec![("energy_joules", sum(|g| g.joules)), ("busy_seconds", busy), ("idle_seconds", idle)];
    if busy + idle > 0.0 {
        figures.push(("busy_percent", 100.0 * busy / (busy + idle)));
    }
    let metric = |(name, value): (&str, f64)| NewMetric {
        key: format!("system/gpu_{name}"),
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
    (figures.into_iter().map(metric).collect(), vec![tag])
}

impl Tracker for InTracking {
    fn begin(&self, run: Tracked) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { self.begun(run).await.map_err(|e| e.to_string()) })
    }

    fn end<'a>(
        &'a self,
        namespace: &'a str,
        run_id: &'a str,
        status: &'a RunStatus,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            match self.ended(namespace, run_id, status).await {
                // Somebody deleted the tracked run: then there is nothing to end.
                Err(e) if e.code == ErrorCode::InvalidParameterValue => {
                    tracing::debug!(run_id, error = %e, "the tracked run is not ended");
                    Ok(())
                }
                done => done.map_err(|e| e.to_string()),
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
    async fn a_run_is_ended_by_its_own_namespace_alone() {
        let (tracking, folder) = tracking().await;
        let tracker = InTracking { tracking: tracking.clone(), isolated: true };
        let state = |id: &str| tracking.run(id).unwrap().info.status;
        let cancelled = RunStatus { phase: Phase::Cancelled, ..RunStatus::default() };
        let id = "a".repeat(32);
        tracker.begin(run('a', "team-a", "ocr")).await.unwrap();
        for namespace in ["team-b", "team", "team-a/train", ""] {
            tracker.end(namespace, &id, &cancelled).await.unwrap();
            assert_eq!(state(&id), "RUNNING", "{namespace}");
        }
        // A run that a person tracks has no run of a namespace behind it.
        let by_hand = NewRun {
            run_id: None,
            experiment_id: "0".into(),
            user_id: String::new(),
            start_time: 0,
            run_name: "by hand".into(),
            tags: Vec::new(),
        };
        let by_hand = tracking.create_run(by_hand).await.unwrap().info.run_id;
        tracker.end("team-b", &by_hand, &cancelled).await.unwrap();
        assert_eq!(state(&by_hand), "RUNNING");
        tracker.end("team-a", &id, &cancelled).await.unwrap();
        assert_eq!(state(&id), "KILLED");
        let nowhere = tracker.begin(run('c', "", "ocr")).await.unwrap_err();
        assert!(nowhere.contains("names no namespace"), "{nowhere}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn runs_of_a_tenant_track_to_no_experiment_of_another() {
        let (tracking, folder) = tracking().await;
        let tracker = InTracking { tracking: tracking.clone(), isolated: true };
        tracker.begin(run('a', "team-a", "ocr")).await.unwrap();
        tracker.begin(run('b', "team-a", "ocr")).await.unwrap();
        let tags = tracking.run(&"b".repeat(32)).unwrap().data.tags;
        assert!(tags.iter().any(|t| t.key == NAMESPACE_TAG && t.value == "team-a"), "{tags:?}");
        let refused = tracker.begin(run('c', "team-b", "ocr")).await.unwrap_err();
        assert!(refused.contains("belongs to namespace \"team-a\""), "{refused}");
        assert!(tracking.run_info(&"c".repeat(32)).is_err());
        // An experiment that a person created belongs to all.
        tracking.create_experiment("shared".into(), None, Vec::new()).await.unwrap();
        tracker.begin(run('d', "team-b", "shared")).await.unwrap();
        let one_owner = InTracking { tracking, isolated: false };
        one_owner.begin(run('e', "default", "ocr")).await.unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }
}
