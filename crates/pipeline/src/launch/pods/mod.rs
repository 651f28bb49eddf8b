//! Executes the steps of pipelines as pods: one pod for each attempt, by the executor of runs.
//!
//! | module | contents |
//! |---|---|
//! | [`step`] | what a pod needs |
//! | `manifest` | the run of the executor for an attempt |
//! | [`artifacts`] | artifacts in the object store |
//! | `http` | what a pod fetches and delivers |
//! | `volumes` | claims, and the workspace of a run |
//! | [`pool`] | workers that execute several small tasks |
//!
//! The name of the executor's run follows from the attempt, and what its pod delivers is stored. So a server that was restarted finds every
//! attempt again, and a step whose success is stored is never executed again. The executor restarts a pod that was disrupted; only a
//! failure of the program is one of the task.

pub(crate) mod artifacts;
pub(crate) mod http;
mod manifest;
pub(crate) mod pool;
pub(crate) mod step;
#[cfg(test)]
mod tests;
mod volumes;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use serde_json::Value;
use slipway_exec::{ExecError, Executor, LogQuery, LogStream, Manifest, Mint, Phase, Submitted};
use slipway_store::sql::Connection;
use slipway_store::{Database, Objects};
use tokio::sync::Notify;

use self::pool::Pools;
pub use self::step::FOLDER;
use self::step::Step;
use super::{ArtifactStream, AttemptId, Launcher, buckets, claims};
use crate::error::Error;
use crate::model::{Artifact, Failure, Launch, Outcome, Outputs, RunInfo};
use crate::platform::pod_settings;
use crate::repo::steps;

/// Interval at which the end of a pod is looked for after something has happened, and after a long time without news.
const MIN_INTERVAL: Duration = Duration::from_millis(200);
const MAX_INTERVAL: Duration = Duration::from_secs(5);
/// Lines and bytes of a log in the message of a failure.
const MESSAGE_LINES: u64 = 20;
const MESSAGE_BYTES: usize = 2000;
/// Maximum time for reading the log for the message of a failure.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Root of the artifacts' URIs of runs that give none.
pub const PIPELINE_ROOT: &str = artifacts::SCHEME;

/// Settings of [`PodLauncher`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// The image with slipway's program, from which pods get it.
    pub image: String,
    /// When the image is pulled, as in a container.
    pub pull_policy: String,
    /// Names of secrets in the namespaces of runs with which images are pulled, in addition to those that a task sets.
    pub pull_secrets: Vec<String>,
    /// The words that start slipway's program in a pod.
    pub program: Vec<String>,
}

pub use super::claims::CLAIM_LABEL;

/// Creates and deletes persistent volume claims.
pub trait Claims: std::fmt::Debug + Send + Sync {
    /// Creates a claim. It is not an error if it exists.
    fn create(&self, claim: Value) -> BoxFuture<'_, Result<(), ExecError>>;
    /// Deletes a claim that has the label [`CLAIM_LABEL`]. It is not an error if it does not exist.
    fn delete<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), ExecError>>;
}

/// Executes attempts as pods; cheap to clone.
#[derive(Debug, Clone)]
pub struct PodLauncher {
    inner: Arc<Inner>,
}

struct Inner {
    executor: Arc<dyn Executor>,
    claims: Arc<dyn Claims>,
    database: Database,
    objects: Objects,
    settings: Settings,
    mint: Mint,
    pools: Pools,
    /// Attempts that a future of this process waits for.
    active: Mutex<HashMap<Key, Weak<Active>>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Namespace and name of a run of the executor.
type Key = (String, String);

/// An attempt that a future of this process waits for.
#[derive(Debug, Default)]
struct Active {
    is_stopped: AtomicBool,
    /// Notified when the attempt is stopped, and when its pod has delivered an outcome.
    changed: Notify,
}

impl Active {
    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Acquire)
    }

    /// Waits for news, or for the next look.
    async fn wait(&self, interval: &mut Duration) {
        let is_news = tokio::time::timeout(*interval, self.changed.notified()).await.is_ok();
        *interval = if is_news { MIN_INTERVAL } else { (*interval * 2).min(MAX_INTERVAL) };
    }
}

fn permanent(message: impl Into<String>) -> Failure {
    Failure { message: message.into(), exit_code: None, is_permanent: true }
}

fn failed(message: String, exit_code: Option<i32>) -> Outcome {
    Outcome::Failed(Failure { message, exit_code, is_permanent: false })
}

impl PodLauncher {
    /// Creates the launcher. `objects` are the store of pipelines ([`Objects::pipelines`]); `mint` creates the tokens of steps that workers
    /// execute.
    pub fn new(
        executor: Arc<dyn Executor>,
        claims: Arc<dyn Claims>,
        database: Database,
        objects: Objects,
        settings: Settings,
        mint: Mint,
    ) -> Self {
        let (pools, active) = (Pools::default(), Mutex::default());
        Self { inner: Arc::new(Inner { executor, claims, database, objects, settings, mint, pools, active }) }
    }
}

fn key(id: &AttemptId) -> Key {
    (id.namespace.clone(), manifest::name(id))
}

impl Inner {
    fn enter(&self, key: &Key) -> Arc<Active> {
        let mut active = self.active.lock();
        active.retain(|_, active| active.strong_count() > 0);
        if let Some(active) = active.get(key).and_then(Weak::upgrade) {
            return active;
        }
        let new = Arc::new(Active::default());
        active.insert(key.clone(), Arc::downgrade(&new));
        new
    }

    fn active(&self, key: &Key) -> Option<Arc<Active>> {
        self.active.lock().get(key).and_then(Weak::upgrade)
    }

    /// How the program of a step ended, as its pod delivered it. A store that fails now is asked again at the next look.
    async fn delivered(&self, key: &Key) -> Result<Option<Outcome>, Error> {
        let (namespace, name) = key.clone();
        Ok(self.database.read(move |c| steps::find(c, &namespace, &name)).await?.and_then(|row| row.outcome))
    }

    /// Records a step, after which its pod can fetch it.
    async fn record(&self, launch: &Launch, key: &Key, step: &Step) -> Result<(), Error> {
        let ((namespace, name), run_id) = (key.clone(), launch.run.run_id.clone());
        let text = serde_json::to_string(step).map_err(|error| Error::Invalid(error.to_string()))?;
        self.database.write(move |c: &Connection| steps::insert(c, &namespace, &name, &run_id, &text)).await
    }

    async fn execute(&self, launch: &Launch) -> Outcome {
        let key = key(&launch.into());
        let active = self.enter(&key);
        self.run(launch, &key, &active).await.unwrap_or_else(Outcome::Failed)
    }

    async fn run(&self, launch: &Launch, key: &Key, active: &Active) -> Result<Outcome, Failure> {
        let pod = pod_settings(launch).map_err(permanent)?;
        if let Some(request) = claims::request(pod.spec.image.as_deref().unwrap_or_default(), launch) {
            return self.change_claim(&request.map_err(permanent)?, launch, active).await;
        }
        if pod.uses_workspace && !self.create_workspace(launch, active).await? {
            return Ok(Outcome::Canceled);
        }
        let step = Step::new(launch).map_err(permanent)?;
        let pod = manifest::completed(launch, pod).map_err(permanent)?;
        if let Some(request) = pool::Request::new(launch, &pod, &step, &self.settings).map_err(permanent)? {
            return Ok(self.run_in_pool(launch, key, active, &step, &request).await);
        }
        let manifest = manifest::of_attempt(launch, &key.1, pod, &self.settings).map_err(permanent)?;
        let mut interval = MIN_INTERVAL;
        loop {
            if active.is_stopped() {
                return Ok(self.cancel(key, active).await);
            }
            match self.begin(launch, key, &step, &manifest).await {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => break,
                // What is away now can be back soon; any other answer would be the same again.
                Err(error @ (Error::Executor(ExecError::Unreachable(_)) | Error::Store(_))) => {
                    tracing::warn!(namespace = key.0, step = key.1, %error, "the step cannot be started; retrying");
                }
                Err(error) => return Err(permanent(error.to_string())),
            }
            active.wait(&mut interval).await;
        }
        Ok(self.wait(key, active).await)
    }

    /// Submits the run of an attempt, unless its success is stored already. The attempt of an earlier process is found again by its name.
    async fn begin(
        &self,
        launch: &Launch,
        key: &Key,
        step: &Step,
        manifest: &Manifest,
    ) -> Result<Option<Outcome>, Error> {
        if let Some(outcome @ Outcome::Succeeded(_)) = self.delivered(key).await? {
            return Ok(Some(outcome));
        }
        self.record(launch, key, step).await?;
        match self.executor.submit(manifest.clone(), None).await {
            Ok(_) | Err(ExecError::Exists(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the end of an attempt. While the cluster or the store cannot be reached, it goes on to wait.
    async fn wait(&self, key: &Key, active: &Active) -> Outcome {
        let mut interval = MIN_INTERVAL;
        loop {
            if active.is_stopped() {
                return self.cancel(key, active).await;
            }
            match self.look(key).await {
                Ok(Some(outcome)) => return outcome,
                Ok(None) => {}
                Err(error) => tracing::debug!(namespace = key.0, step = key.1, %error, "the step cannot be observed"),
            }
            active.wait(&mut interval).await;
        }
    }

    /// The outcome of an attempt, if it has ended.
    async fn look(&self, key: &Key) -> Result<Option<Outcome>, Error> {
        if let Some(outcome @ Outcome::Succeeded(_)) = self.delivered(key).await? {
            return Ok(Some(outcome));
        }
        let run = match self.executor.get(&key.0, &key.1).await {
            Ok(run) => run,
            Err(ExecError::NotFound(_)) => return Ok(Some(failed("the run of the step was deleted".into(), None))),
            Err(error) => return Err(error.into()),
        };
        if !run.status.phase.is_final() {
            return Ok(None);
        }
        // Read again: the pod delivers before it ends.
        let delivered = self.delivered(key).await?;
        Ok(Some(self.outcome(key, &run, delivered).await))
    }

    /// The outcome of an attempt whose run has ended.
    async fn outcome(&self, key: &Key, run: &Submitted, delivered: Option<Outcome>) -> Outcome {
        let status = &run.status;
        let exit_code = status.current().and_then(|attempt| attempt.exit_code);
        match (delivered, status.phase) {
            (Some(outcome @ Outcome::Succeeded(_)), _) => outcome,
            (Some(Outcome::Failed(failure)), Phase::Failed) => {
                let message = self.with_log(key, failure.message).await;
                Outcome::Failed(Failure { message, ..failure })
            }
            (_, Phase::Cancelled) => failed("the run of the step was cancelled".into(), exit_code),
            (_, Phase::Succeeded) => failed("the pod ended without delivering its outputs".into(), exit_code),
            _ => {
                let message = if status.message.is_empty() { &status.reason } else { &status.message };
                failed(self.with_log(key, message.clone()).await, exit_code)
            }
        }
    }

    /// The log of a step: that of its pod, or its part of the log of a worker.
    async fn log(&self, namespace: &str, name: &str, query: LogQuery) -> Result<LogStream, Error> {
        let (of, step) = (namespace.to_owned(), name.to_owned());
        let row = self.database.read(move |c| steps::find(c, &of, &step)).await?;
        let Some(worker) = row.and_then(|row| row.worker) else {
            return Ok(self.executor.logs(namespace, name, query).await?);
        };
        // The lines of a step are not the last ones of its worker.
        let query = LogQuery { attempt: Some(worker.attempt), follow: query.follow, ..LogQuery::default() };
        let pieces = self.executor.logs(namespace, &worker.run, query).await?;
        let part = pool::Part::new(name);
        let found = futures_util::stream::unfold((pieces, part), |(mut pieces, mut part)| async move {
            if part.is_over() {
                return None;
            }
            let piece = pieces.next().await?.map(|piece| part.push(&piece));
            Some((piece, (pieces, part)))
        });
        Ok(found.boxed())
    }

    /// A message with the end of the log. Best effort: a message without it is better than none.
    async fn with_log(&self, (namespace, name): &Key, message: String) -> String {
        let query = LogQuery { tail: Some(MESSAGE_LINES), ..LogQuery::default() };
        let read = async {
            let mut pieces = self.log(namespace, name, query).await.ok()?;
            let mut log = Vec::new();
            while let Some(Ok(piece)) = pieces.next().await {
                log.extend_from_slice(&piece);
                log.drain(..log.len().saturating_sub(2 * MESSAGE_BYTES));
            }
            Some(String::from_utf8_lossy(&log).trim_end().to_owned())
        };
        match tokio::time::timeout(MESSAGE_TIMEOUT, read).await {
            Ok(Some(log)) if !log.is_empty() => format!("{message}:\n{}", super::end_of(&log, MESSAGE_BYTES)),
            _ => message,
        }
    }

    /// Cancels the run of an attempt, which deletes its pod. Returns once the cluster has accepted that.
    async fn cancel(&self, key: &Key, active: &Active) -> Outcome {
        let mut interval = MIN_INTERVAL;
        loop {
            match self.executor.cancel(&key.0, &key.1).await {
                Ok(_) | Err(ExecError::NotFound(_)) => return Outcome::Canceled,
                Err(error) => {
                    tracing::warn!(namespace = key.0, step = key.1, %error, "the step cannot be cancelled; retrying");
                }
            }
            active.wait(&mut interval).await;
        }
    }

    async fn stop(&self, key: &Key) {
        if let Some(active) = self.active(key) {
            active.is_stopped.store(true, Ordering::Release);
            active.changed.notify_one();
            return;
        }
        let cancelled = match self.executor.cancel(&key.0, &key.1).await {
            Err(ExecError::NotFound(_)) => self.cancel_worker(key).await,
            cancelled => cancelled.map(drop).map_err(Error::from),
        };
        if let Err(error) = cancelled {
            tracing::error!(namespace = key.0, step = key.1, %error, "the step cannot be cancelled");
        }
    }

    /// Deletes the executor's runs of a pipeline run, with their pods and logs, and its workspace.
    async fn forget(&self, namespace: String, run_id: String) -> Result<(), Error> {
        self.delete_workspace(&namespace, &run_id).await?;
        let id = run_id.clone();
        for (namespace, name) in self.database.read(move |c| steps::of_run(c, &id)).await? {
            match self.executor.remove(&namespace, &name).await {
                Ok(()) | Err(ExecError::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.database.write(move |c: &Connection| steps::forget(c, &run_id)).await
    }
}

impl Launcher for PodLauncher {
    fn execute(&self, launch: Launch) -> BoxFuture<'static, Outcome> {
        let inner = Arc::clone(&self.inner);
        // Entered at once, so that a stop that follows finds the attempt.
        let active = inner.enter(&key(&AttemptId::from(&launch)));
        async move {
            let outcome = inner.execute(&launch).await;
            drop(active);
            outcome
        }
        .boxed()
    }

    fn stop(&self, attempt: AttemptId) -> BoxFuture<'static, ()> {
        let inner = Arc::clone(&self.inner);
        async move { inner.stop(&key(&attempt)).await }.boxed()
    }

    fn log(&self, attempt: AttemptId, follow: bool) -> BoxFuture<'static, Result<LogStream, Error>> {
        let inner = Arc::clone(&self.inner);
        async move {
            let (namespace, name) = key(&attempt);
            inner.log(&namespace, &name, LogQuery { follow, ..LogQuery::default() }).await
        }
        .boxed()
    }

    fn tracked(&self, attempt: AttemptId) -> BoxFuture<'static, Option<String>> {
        let inner = Arc::clone(&self.inner);
        async move {
            let (namespace, name) = key(&attempt);
            // Without an answer the task gets a tracked run of its own, which is better than none.
            let run = inner.executor.get(&namespace, &name).await.ok()?;
            Some(slipway_exec::tracked_id(&run.manifest.metadata.uid)).filter(|id| !id.is_empty())
        }
        .boxed()
    }

    fn reaches(&self, root: &str) -> bool {
        // Whether the pods of a namespace have credentials for a bucket is known to its tenant only, who gives each run its root.
        !buckets::is_bucket(root)
    }

    fn has(&self, outputs: Outputs) -> BoxFuture<'static, bool> {
        let inner = Arc::clone(&self.inner);
        async move {
            for artifact in outputs.artifacts.values().flatten() {
                if !artifacts::is_there(&inner.objects, artifact).await {
                    return false;
                }
            }
            true
        }
        .boxed()
    }

    fn read(&self, namespace: String, artifact: Artifact) -> BoxFuture<'static, Result<ArtifactStream, Error>> {
        let inner = Arc::clone(&self.inner);
        async move { artifacts::read(&inner.objects, &namespace, &artifact).await }.boxed()
    }

    fn release(&self, run: Arc<RunInfo>) -> BoxFuture<'static, ()> {
        let inner = Arc::clone(&self.inner);
        async move { inner.release_workspace(&run).await }.boxed()
    }

    fn forget(&self, namespace: String, run_id: String) -> BoxFuture<'static, Result<(), Error>> {
        let inner = Arc::clone(&self.inner);
        async move { inner.forget(namespace, run_id).await }.boxed()
    }
}
