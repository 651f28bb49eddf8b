//! How a worker gets its next step: `POST /api/v1/pipelines/worker/next`, which waits for a step for a while.
//!
//! Invariant: the token that a step gets is valid for this step and only while this worker executes it. A worker that was lost, and that goes
//! on nevertheless, cannot deliver.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, State};
use serde::{Deserialize, Serialize};
use slipway_access::rule::RunTokenUse;
use slipway_access::{Access, Caller, Routes};
use slipway_core::clock::now_ms;
use slipway_exec::{TokenRequest, token};
use slipway_store::sql::Connection;
use tokio::time::Instant;

use super::super::http::{Refused, run_of};
use super::super::step::Step;
use super::super::{Inner, Key};
use super::{Activity, Pools, pool_of};
use crate::error::Error;
use crate::model::{Failure, Outcome};
use crate::repo::steps::{self, StepRow, Worker};
use crate::tracker::tracked_id;

/// How long a request waits for a step. Shorter than the timeouts of proxies.
const WAIT: Duration = Duration::from_secs(20);
/// How long a worker without steps lives on.
const IDLE: Duration = Duration::from_secs(300);

/// What a worker reports when it asks for the next step.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The step that it has executed.
    pub(crate) ended: Option<Ended>,
    /// For how long it had nothing to do, in seconds.
    pub(crate) idle_seconds: u64,
}

/// A step whose process has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Name of the step.
    pub(crate) step: String,
    /// Exit code of the process that executed it.
    pub(crate) code: i32,
}

/// What a worker is to do next.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Next {
    /// Execute a step.
    Execute {
        /// Name of the step.
        step: String,
        /// Token of the step.
        token: String,
        /// Id of the tracked run of its task.
        tracked_run: String,
    },
    /// Ask again: no step waits.
    Wait,
    /// End: there was nothing to do for a while.
    End,
}

/// The routes for workers.
pub(in super::super) fn routes(inner: &Arc<Inner>) -> Routes {
    let access = Access::Authenticated(RunTokenUse::Scoped);
    Routes::new().post("/api/v1/pipelines/worker/next", access, next).with_state(Arc::clone(inner))
}

/// The name in the token of a step: that of the step, and of the attempt of the worker that executes it.
fn name_of(step: &str, worker: &Worker) -> String {
    format!("{step}@{}", worker.id())
}

/// The name of the step of a token, and what its row must say about the worker.
pub(in super::super) fn step_of(name: &str) -> (&str, Option<&str>) {
    match name.split_once('@') {
        Some((step, worker)) => (step, Some(worker)),
        None => (name, None),
    }
}

/// Whether the worker in the token of a step is the one that executes it.
pub(in super::super) fn is_current(worker: Option<&str>, row: &StepRow) -> bool {
    let current = row.worker.as_ref().map(Worker::id);
    worker == current.as_deref()
}

async fn next(
    State(inner): State<Arc<Inner>>,
    Extension(caller): Extension<Caller>,
    Json(report): Json<Report>,
) -> Result<Json<Next>, Refused> {
    let run = run_of(&caller)?;
    let worker = Worker { run: run.name.clone(), attempt: run.attempt };
    let namespace = &run.namespace;
    let pool =
        pool_of(&worker.run).ok_or_else(|| Error::Forbidden("only a worker of a pool may use this route".into()))?;
    if let Some(ended) = report.ended {
        inner.end_of(namespace, ended, &worker).await?;
    }
    // A step that was given with a response that the worker did not receive.
    let (of, holder) = (namespace.clone(), worker.clone());
    if let Some(step) = inner.database.read(move |c| steps::held_by(c, &of, &holder)).await? {
        return Ok(Json(inner.order_of((namespace.clone(), step), &worker).await?));
    }
    inner.pools.set(namespace, &worker.run, Activity::Idle);
    let deadline = Instant::now() + WAIT;
    loop {
        let added = inner.pools.with(namespace, pool, |pool| Arc::clone(&pool.added));
        let mut added = std::pin::pin!(added.notified());
        // Registered before the queue is read, so that no step between them is missed.
        added.as_mut().enable();
        if let Some(step) = inner.pools.take(namespace, &worker.run, pool) {
            let key = (namespace.clone(), step);
            let ((of, name), holder) = (key.clone(), worker.clone());
            if inner.database.write(move |c: &Connection| steps::assign(c, &of, &name, &holder)).await? {
                return Ok(Json(inner.order_of(key, &worker).await?));
            }
            inner.pools.set(namespace, &worker.run, Activity::Idle);
            continue;
        }
        if report.idle_seconds >= IDLE.as_secs() {
            inner.pools.remove(namespace, &worker.run);
            return Ok(Json(Next::End));
        }
        if tokio::time::timeout_at(deadline, added).await.is_err() {
            return Ok(Json(Next::Wait));
        }
    }
}

impl Pools {
    /// Takes the step that waits for the longest time.
    fn take(&self, namespace: &str, worker: &str, pool: &str) -> Option<String> {
        self.with(namespace, pool, |pool| {
            let step = pool.waiting.pop_front()?;
            pool.workers.insert(worker.to_owned(), Activity::Busy);
            Some(step)
        })
    }
}

impl Inner {
    /// The order to execute a step, for the worker that it is given to.
    async fn order_of(&self, (namespace, name): Key, worker: &Worker) -> Result<Next, Error> {
        let (of, step) = (namespace.clone(), name.clone());
        let row = self.database.read(move |c| steps::find(c, &of, &step)).await?;
        let row =
            row.ok_or_else(|| Error::NotFound(format!("there is no step '{name}' in namespace '{namespace}'")))?;
        let step = Step::parse(&row.step)?;
        let tracked_run = tracked_id(step.run_id(), Some(step.path()));
        let token = (self.mint)(&TokenRequest {
            namespace,
            run_id: tracked_run.clone(),
            run: name_of(&name, worker),
            experiment: None,
            attempt: step.attempt(),
            expires_at: now_ms().saturating_add(token::DEFAULT_LIFETIME_MS),
        });
        Ok(Next::Execute { step: name, token, tracked_run })
    }

    /// Records the end of a step whose process did not deliver an outcome.
    async fn end_of(&self, namespace: &str, ended: Ended, worker: &Worker) -> Result<(), Error> {
        let key = (namespace.to_owned(), ended.step.clone());
        let ((of, name), worker) = (key.clone(), worker.clone());
        let change = move |c: &Connection| {
            let row = steps::find(c, &of, &name)?;
            if row.is_some_and(|row| row.outcome.is_none() && row.worker.as_ref() == Some(&worker)) {
                let message = format!("the step ended with code {} before it delivered its outputs", ended.code);
                let failure = Failure { message, exit_code: Some(ended.code), is_permanent: false };
                steps::set_outcome(c, &of, &name, &Outcome::Failed(failure))?;
            }
            Ok::<_, Error>(())
        };
        self.database.write(change).await?;
        if let Some(active) = self.active(&key) {
            active.changed.notify_one();
        }
        Ok(())
    }
}
