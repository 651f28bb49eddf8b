//! Submitted runs as tracked runs: the executors' [`Tracker`] on top of tracking.

use futures_util::future::BoxFuture;
use slipway_core::clock::now_ms;
use slipway_exec::{GpuUse, Phase, RunStatus, Tracked, Tracker};
use slipway_track::model::KeyValue;
use slipway_track::service::metrics::NewMetric;
use slipway_track::service::{NAMESPACE_TAG, NewRun};
use slipway_track::{Error, ErrorCode, Tracking};

/// MLflow's states of a run that go on.
const OPEN: [&str; 2] = ["RUNNING", "SCHEDULED"];

pub(crate) struct InTracking {
    pub(crate) tracking: Tracking,
    /// Whether namespaces are tenants, whose runs and experiments are marked as theirs.
    pub(crate) isolated: bool,
}

impl InTracking {
    /// The experiment of this name, made with these tags if it is new; the default one without a name.
    async fn experiment(&self, name: Option<String>, tags: Vec<KeyValue>) -> Result<String, Error> {
        let Some(name) = name else { return Ok("0".into()) };
        if let Ok(found) = self.tracking.experiment_by_name(&name) {
            return Ok(found.experiment_id);
        }
        match self.tracking.create_experiment(name.clone(), None, tags).await {
            // Somebody else was quicker.
            Err(e) if e.code == ErrorCode::ResourceAlreadyExists => {
                Ok(self.tracking.experiment_by_name(&name)?.experiment_id)
            }
            made => made,
        }
    }

    async fn begun(&self, run: Tracked) -> Result<(), Error> {
        if self.tracking.run_info(&run.run_id).is_ok() {
            return Ok(());
        }
        let owner = self.isolated.then(|| KeyValue { key: NAMESPACE_TAG.into(), value: run.namespace.clone() });
        let experiment_id = self.experiment(run.experiment, owner.clone().into_iter().collect()).await?;
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

    async fn ended(&self, run_id: &str, status: &RunStatus) -> Result<(), Error> {
        let info = match self.tracking.run_info(run_id) {
            Ok(info) => info,
            // It ended before it was begun, or somebody purged it.
            Err(_) => return Ok(()),
        };
        let at = status.completion_time.map_or_else(now_ms, |t| t.0);
        let (metrics, mut tags) = attribution(status, at);
        let attempts = status.attempts.last().map_or(0, |a| a.number).to_string();
        for (key, value) in
            [("slipway.reason", &status.reason), ("slipway.node", &status.node), ("slipway.attempts", &attempts)]
        {
            if !value.is_empty() {
                tags.push(KeyValue { key: key.into(), value: value.clone() });
            }
        }
        self.tracking.log_batch(run_id.to_owned(), metrics, Vec::new(), tags).await?;
        let open = OPEN.contains(&info.status.as_str());
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

/// What all tries' GPUs did, as metrics beside those that MLflow's own clients take of a system, and which GPUs they were.
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

    fn end<'a>(&'a self, run_id: &'a str, status: &'a RunStatus) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            match self.ended(run_id, status).await {
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
    use slipway_core::home::Home;
    use slipway_serve::runtime::Preference;

    use crate::{Platform, Stores};

    /// In a cluster, an experiment that a run makes by naming it belongs to the namespace of the run; one that is there keeps its owner.
    #[tokio::test]
    async fn submitted_runs_and_the_experiments_that_they_make_belong_to_their_namespace() {
        let home = Home::at(std::env::temp_dir().join(slipway_core::ids::hex32()));
        let platform = Platform::open(&home, &Stores::default(), Preference::Tract, None).await.unwrap();
        let tracker = InTracking { tracking: platform.tracking.clone(), isolated: true };
        for (run_id, namespace) in [("a".repeat(32), "team-a"), ("b".repeat(32), "team-b")] {
            let run = Tracked {
                run_id: run_id.clone(),
                experiment: Some("digits".into()),
                name: "train".into(),
                namespace: namespace.into(),
                user: String::new(),
                tags: Vec::new(),
            };
            tracker.begin(run).await.unwrap();
            let tags = platform.tracking.run(&run_id).unwrap().data.tags;
            assert!(tags.iter().any(|t| t.key == NAMESPACE_TAG && t.value == namespace), "{tags:?}");
        }
        let tags = platform.tracking.experiment_by_name("digits").unwrap().tags;
        assert_eq!(tags, [KeyValue { key: NAMESPACE_TAG.into(), value: "team-a".into() }]);
        std::fs::remove_dir_all(home.root()).unwrap();
    }
}
