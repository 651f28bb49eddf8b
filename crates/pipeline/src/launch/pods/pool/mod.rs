//! Pools of workers: pods that live on and execute the small tasks of pipelines one after the other, for tasks that ask for it with the
//! annotation [`WORKERS`] of their pod.
//!
//! Tasks whose pods would be equal, and which install the same packages, share a pool. A worker is a run of the executor, which asks for the
//! next step (`http`), executes it in a process of its own with a token of its own, and ends when there was nothing to do for a while.
//!
//! Invariant: the store knows which attempt of which worker executes a step, so a step is given to one worker at a time, also over restarts of
//! the control plane. A step whose worker is lost waits for another one, as a pod that is evicted is started again. What is in memory is which
//! steps wait and which workers exist; both are found again after a restart, because attempts and workers go on to ask.

mod http;
mod log;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use serde_json::json;
use slipway_core::{hex, ids};
use slipway_exec::{ExecError, Manifest, Phase, Submitted};
use slipway_store::sql::Connection;
use tokio::sync::Notify;

pub(crate) use self::http::{Ended, Next, Report};
pub(super) use self::http::{is_current, routes, step_of};
pub(super) use self::log::Part;
pub(crate) use self::log::{begin_line, end_line};
use super::step::Step;
use super::{Active, Inner, Key, MIN_INTERVAL, Settings, failed, manifest, permanent};
use crate::error::Error;
use crate::launch::local::command::Command;
use crate::model::{Launch, Outcome};
use crate::platform::PodSettings;
use crate::repo::steps::{self, Worker};

/// Annotation of a task's pod with the maximum number of workers of its pool.
const WORKERS: &str = "slipway.dev/workers";
/// Maximum number of workers of a pool.
const MAX_WORKERS: usize = 100;
/// What the names of pools begin with; those of workers are `POOL-RANDOM`.
const PREFIX: &str = "workers-";

/// The pool that a task asks for.
pub(super) struct Request {
    /// Name, which follows from what its tasks have in common.
    name: String,
    /// Maximum number of workers.
    size: usize,
    /// The run of a worker, without a name.
    worker: Manifest,
}

impl Request {
    /// The pool of an attempt; `None` if it gets a pod of its own: because it does not ask for a pool, or because it has a time limit, which
    /// the kubelet enforces for pods.
    ///
    /// # Errors
    /// The annotation is not a number of workers.
    pub(super) fn new(
        launch: &Launch,
        pod: &PodSettings,
        step: &Step,
        settings: &Settings,
    ) -> Result<Option<Self>, String> {
        let Some(size) = pod.annotations.get(WORKERS) else { return Ok(None) };
        let size = size.parse().ok().filter(|size| (1..=MAX_WORKERS).contains(size)).ok_or_else(|| {
            format!(
                "the annotation {WORKERS} of task '{}' is '{size}'; expected a number from 1 to {MAX_WORKERS}",
                launch.path
            )
        })?;
        if pod.spec.active_deadline_seconds.is_some() {
            return Ok(None);
        }
        let mut pod = pod.clone();
        pod.annotations.remove(WORKERS);
        let run = &launch.run;
        let common = json!([
            run.namespace,
            run.service_account,
            pod.spec,
            pod.init_containers,
            pod.labels,
            pod.annotations,
            Command::new(step.command.clone()).installs,
        ]);
        let digest = digest(&SHA256, common.to_string().as_bytes());
        let name = format!("{PREFIX}{}", hex::encode(&digest.as_ref()[..8]));
        let worker = manifest::of_worker(run, &name, pod, settings)?;
        Ok(Some(Self { name, size, worker }))
    }
}

/// The pool of the worker with this name; `None` if it is not one.
fn pool_of(worker: &str) -> Option<&str> {
    let (pool, _) = worker.rsplit_once('-')?;
    (pool.len() > PREFIX.len() && pool.starts_with(PREFIX)).then_some(pool)
}

/// What a worker does, as far as this process knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    /// It starts, or waits for a step.
    Idle,
    /// It executes a step.
    Busy,
}

#[derive(Debug, Default)]
struct Pool {
    /// Names of the steps that wait for a worker, in order.
    waiting: VecDeque<String>,
    workers: BTreeMap<String, Activity>,
    /// Notified for each step that begins to wait.
    added: Arc<Notify>,
}

/// The pools by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Pools(Mutex<HashMap<Key, Pool>>);

impl Pools {
    fn with<T>(&self, namespace: &str, pool: &str, change: impl FnOnce(&mut Pool) -> T) -> T {
        let mut pools = self.0.lock();
        let key = (namespace.to_owned(), pool.to_owned());
        let pool = pools.entry(key.clone()).or_default();
        let done = change(pool);
        if pool.waiting.is_empty() && pool.workers.is_empty() {
            pools.remove(&key);
        }
        done
    }

    /// Lets a step wait for a worker, unless it does already.
    fn enter(&self, (namespace, step): &Key, pool: &str) {
        self.with(namespace, pool, |pool| {
            if !pool.waiting.contains(step) {
                pool.waiting.push_back(step.clone());
                pool.added.notify_one();
            }
        });
    }

    fn leave(&self, (namespace, step): &Key, pool: &str) {
        self.with(namespace, pool, |pool| pool.waiting.retain(|other| other != step));
    }

    fn set(&self, namespace: &str, worker: &str, activity: Activity) {
        if let Some(pool) = pool_of(worker) {
            self.with(namespace, pool, |pool| pool.workers.insert(worker.to_owned(), activity));
        }
    }

    fn remove(&self, namespace: &str, worker: &str) {
        if let Some(pool) = pool_of(worker) {
            self.with(namespace, pool, |pool| pool.workers.remove(worker));
        }
    }

    /// The name of a worker to add, if more steps wait than workers are idle.
    fn another(&self, namespace: &str, request: &Request) -> Option<String> {
        self.with(namespace, &request.name, |pool| {
            let idle = pool.workers.values().filter(|activity| **activity == Activity::Idle).count();
            let is_needed = idle < pool.waiting.len() && pool.workers.len() < request.size;
            let name = format!("{}-{}", request.name, &ids::hex32()[..8]);
            is_needed.then(|| {
                pool.workers.insert(name.clone(), Activity::Idle);
                name
            })
        })
    }

    /// The idle workers of a pool, if this step is the first that waits, so that only one step observes them.
    fn observed_by(&self, (namespace, step): &Key, pool: &str) -> Vec<String> {
        self.with(namespace, pool, |pool| {
            if pool.waiting.front() != Some(step) {
                return Vec::new();
            }
            let idle = pool.workers.iter().filter(|(_, activity)| **activity == Activity::Idle);
            idle.map(|(name, _)| name.clone()).collect()
        })
    }
}

impl Inner {
    /// Executes an attempt by a worker of a pool.
    pub(super) async fn run_in_pool(
        &self,
        launch: &Launch,
        key: &Key,
        active: &Active,
        step: &Step,
        request: &Request,
    ) -> Outcome {
        let mut interval = MIN_INTERVAL;
        let outcome = loop {
            if active.is_stopped() {
                break self.leave(key, active).await;
            }
            match self.advance(launch, key, step, request).await {
                Ok(Some(outcome)) => break outcome,
                Ok(None) => {}
                Err(error @ (Error::Executor(ExecError::Unreachable(_)) | Error::Store(_))) => {
                    tracing::warn!(namespace = key.0, step = key.1, %error, "the step cannot be given to a worker; retrying");
                }
                Err(error) => break Outcome::Failed(permanent(error.to_string())),
            }
            active.wait(&mut interval).await;
        };
        self.pools.leave(key, &request.name);
        outcome
    }

    /// One look at an attempt: its outcome, or its next worker.
    async fn advance(
        &self,
        launch: &Launch,
        key: &Key,
        step: &Step,
        request: &Request,
    ) -> Result<Option<Outcome>, Error> {
        let (namespace, name) = key.clone();
        let row = self.database.read(move |c| steps::find(c, &namespace, &name)).await?;
        let (outcome, worker) = row.map_or((None, None), |row| (row.outcome, row.worker));
        match (outcome, worker) {
            (Some(Outcome::Failed(mut failure)), _) => {
                failure.message = self.with_log(key, failure.message).await;
                Ok(Some(Outcome::Failed(failure)))
            }
            (Some(outcome), _) => Ok(Some(outcome)),
            (None, Some(worker)) => self.watch(key, &worker).await,
            (None, None) => {
                self.record(launch, key, step).await?;
                self.pools.enter(key, &request.name);
                self.provide(key, request).await
            }
        }
    }

    /// Looks after the worker of a step. A step whose worker is lost waits again; one whose worker failed has failed, because it may have
    /// ended the worker, as when memory is exhausted.
    async fn watch(&self, key: &Key, worker: &Worker) -> Result<Option<Outcome>, Error> {
        let found = self.observe(&key.0, &worker.run).await?;
        let is_lost = found.as_ref().is_none_or(|run| {
            let attempts = &run.status.attempts;
            run.status.phase.is_final()
                || attempts.iter().any(|attempt| attempt.number == worker.attempt && attempt.finished_at.is_some())
        });
        if !is_lost {
            self.pools.set(&key.0, &worker.run, Activity::Busy);
            return Ok(None);
        }
        if let Some(run) = found.filter(|run| run.status.phase == Phase::Failed) {
            // Read again: the worker delivers before it ends.
            if self.delivered(key).await?.is_none() {
                let exit_code = run.status.current().and_then(|attempt| attempt.exit_code);
                return Ok(Some(failed(self.with_log(key, message(&run)).await, exit_code)));
            }
        }
        let ((namespace, name), worker) = (key.clone(), worker.clone());
        self.database.write(move |c: &Connection| steps::release(c, &namespace, &name, &worker)).await?;
        Ok(None)
    }

    /// Starts another worker if it is needed. Returns the failure of a step if the workers of its pool cannot start.
    async fn provide(&self, key: &Key, request: &Request) -> Result<Option<Outcome>, Error> {
        let namespace = &key.0;
        for name in self.pools.observed_by(key, &request.name) {
            if let Some(run) = self.observe(namespace, &name).await?
                && run.status.phase == Phase::Failed
            {
                return Ok(Some(failed(format!("the worker {name} of the step failed: {}", message(&run)), None)));
            }
        }
        while let Some(name) = self.pools.another(namespace, request) {
            let mut worker = request.worker.clone();
            worker.metadata.name.clone_from(&name);
            if let Err(error) = self.executor.submit(worker, None).await {
                self.pools.remove(namespace, &name);
                return Err(error.into());
            }
        }
        Ok(None)
    }

    /// The run of a worker; `None` if it was deleted. A worker that has ended is not one of its pool any more.
    async fn observe(&self, namespace: &str, worker: &str) -> Result<Option<Submitted>, Error> {
        let found = match self.executor.get(namespace, worker).await {
            Ok(run) => Some(run),
            Err(ExecError::NotFound(_)) => None,
            Err(error) => return Err(error.into()),
        };
        if found.as_ref().is_none_or(|run| run.status.phase.is_final()) {
            self.pools.remove(namespace, worker);
        }
        Ok(found)
    }

    /// Cancels an attempt. A worker that executes it is cancelled with it, which ends its processes.
    async fn leave(&self, key: &Key, active: &Active) -> Outcome {
        let mut interval = MIN_INTERVAL;
        loop {
            match self.cancel_worker(key).await {
                Ok(()) => return Outcome::Canceled,
                Err(error) => {
                    tracing::warn!(namespace = key.0, step = key.1, %error, "the step cannot be cancelled; retrying");
                }
            }
            active.wait(&mut interval).await;
        }
    }

    /// Cancels the worker that executes a step, if there is one.
    pub(super) async fn cancel_worker(&self, key: &Key) -> Result<(), Error> {
        let (namespace, name) = key.clone();
        let row = self.database.read(move |c| steps::find(c, &namespace, &name)).await?;
        let Some(worker) = row.filter(|row| row.outcome.is_none()).and_then(|row| row.worker) else { return Ok(()) };
        self.pools.remove(&key.0, &worker.run);
        match self.executor.cancel(&key.0, &worker.run).await {
            Ok(_) | Err(ExecError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Why a run of the executor ended.
fn message(run: &Submitted) -> String {
    let status = &run.status;
    if status.message.is_empty() { status.reason.clone() } else { status.message.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_follows_from_the_name_of_a_worker() {
        assert_eq!(pool_of("workers-0123-ab"), Some("workers-0123"));
        for other in ["workers-0123", "train-0123-ab", "workers--ab", ""] {
            assert_eq!(pool_of(other), None, "{other}");
        }
    }

    #[test]
    fn workers_are_added_for_steps_that_wait_up_to_the_size_of_the_pool() {
        let pools = Pools::default();
        let request = Request { name: "workers-1".into(), size: 2, worker: Manifest::new("w", ["a"]) };
        let key = |name: &str| ("team".to_owned(), name.to_owned());
        assert_eq!(pools.another("team", &request), None, "nothing waits");
        for step in ["a", "b", "c", "a"] {
            pools.enter(&key(step), &request.name);
        }
        let first = pools.another("team", &request).unwrap();
        pools.set("team", &first, Activity::Busy);
        let second = pools.another("team", &request).unwrap();
        assert_eq!(pools.another("team", &request), None, "two is the maximum");
        assert_eq!(pools.observed_by(&key("a"), &request.name), std::slice::from_ref(&second));
        assert!(pools.observed_by(&key("b"), &request.name).is_empty(), "only the first observes the workers");
        for worker in [&first, &second] {
            pools.remove("team", worker);
        }
        for step in ["a", "b", "c"] {
            pools.leave(&key(step), &request.name);
        }
        assert!(pools.0.lock().is_empty(), "an unused pool is forgotten");
    }
}
