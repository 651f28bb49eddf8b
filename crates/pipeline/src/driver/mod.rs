//! Carries runs out: performs what the engine decides, and tells the engine what came of it.
//!
//! Invariant: what the engine decides is recorded before it is performed. After a crash, a task that was started is recorded as running,
//! and the launcher finds its attempt again or starts it; a task that is not recorded as running has not been started.
//!
//! | module | contents |
//! |---|---|
//! | `drive` | one run, from its start or restart to its end |
//! | `ownership` | which runs are this server's |
//! | `progress` | what is written to the store |
//! | `tracking` | what is passed on to the tracking store |

mod drive;
mod ownership;
mod progress;
mod tracking;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message;
use slipway_core::clock::now_ms;
use slipway_exec::LogStream;
use slipway_store::Database;
use tokio::sync::{Notify, mpsc};

use crate::Error;
use crate::engine::{Effect, Event, Limits, Machine, Plan, TaskRecord};
use crate::entity::Run;
use crate::heap;
use crate::ir::Document;
use crate::launch::{AttemptId, Launcher};
use crate::model::{Artifact, RunState, TaskPath};
use crate::repo;
use crate::service::{ArtifactStream, RunContext, Runner};
use crate::tracker::Tracker;

use drive::{Command, Drive, blocking};

/// Settings of a driver.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of this server among those that share the database, which it keeps over restarts.
    pub owner: String,
    /// Root of the artifacts' URIs of runs and pipelines that give none.
    pub pipeline_root: String,
    /// Attempts of one run that are handed to the launcher at the same time.
    pub max_parallel_tasks: usize,
}

/// Carries out all runs of a server; cheap to clone.
#[derive(Clone)]
pub struct Driver {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    launcher: Arc<dyn Launcher>,
    tracker: Arc<dyn Tracker>,
    settings: Settings,
    /// The runs that are being carried out, by id.
    active: Mutex<HashMap<String, mpsc::UnboundedSender<Command>>>,
    /// Wakes the scheduler of recurring runs, which may wait for the end of a run.
    schedules: OnceLock<Arc<Notify>>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

/// Why a run is taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// It is new, or the server that carried it out has stopped.
    Resume,
    /// It ended, and goes on.
    Retry,
}

impl Driver {
    /// A driver without runs.
    pub fn new(database: Database, launcher: Arc<dyn Launcher>, tracker: Arc<dyn Tracker>, settings: Settings) -> Self {
        let (active, schedules) = (Mutex::default(), OnceLock::new());
        Self { inner: Arc::new(Inner { database, launcher, tracker, settings, active, schedules }) }
    }

    /// Notifies the scheduler of recurring runs of each end of a run.
    pub fn notify_at_ends(&self, scheduler: Arc<Notify>) {
        // Called once, before the first run is taken up, so the result can be ignored.
        let _ = self.inner.schedules.set(scheduler);
    }

    /// Begins to carry out a run, in the background. Does nothing if it is being carried out.
    /// `document` is its specification, if that was just read.
    fn take_up(&self, run_id: String, reason: Reason, document: Option<Arc<Document>>) {
        let (commands, received) = mpsc::unbounded_channel();
        {
            let mut active = self.inner.active.lock();
            if active.contains_key(&run_id) {
                return;
            }
            active.insert(run_id.clone(), commands);
        }
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            if let Err(error) = carry_out(&inner, &run_id, reason, document, received).await {
                tracing::error!(run = run_id, %error, "the pipeline run cannot be carried out");
                inner.fail(&run_id, error.to_string()).await;
            }
            inner.active.lock().remove(&run_id);
            if let Some(schedules) = inner.schedules.get() {
                schedules.notify_one();
            }
        });
    }

    fn command(&self, run_id: &str, command: Command) -> bool {
        self.inner.active.lock().get(run_id).is_some_and(|commands| commands.send(command).is_ok())
    }
}

/// Loads a run and carries it out to its end; of a run that has ended, what happened is passed on to the tracking store. Does nothing if it
/// is another server's.
async fn carry_out(
    inner: &Arc<Inner>,
    run_id: &str,
    reason: Reason,
    document: Option<Arc<Document>>,
    commands: mpsc::UnboundedReceiver<Command>,
) -> Result<(), Error> {
    let (id, root, own) = (run_id.to_owned(), inner.settings.pipeline_root.clone(), inner.settings.owner.clone());
    let loaded = inner.database.read(move |c| {
        if repo::runs::owner(c, &id)? != own {
            return Ok(None);
        }
        let context = RunContext::load(c, &id, &root, document)?;
        let experiment = repo::experiments::find(c, &context.run.experiment_id).map(|found| found.name);
        Ok::<_, Error>(Some((context, experiment.unwrap_or_default(), repo::tasks::records(c, &id)?)))
    });
    let Some((RunContext { run, mut info, document }, experiment, records)) = loaded.await? else { return Ok(()) };
    if run.state.is_final() {
        let tracked = tracking::begin(inner, &run, Arc::new(info), experiment);
        tracked.again(&records);
        tracked.run_ended(run.state);
        return Ok(());
    }
    if run.config.pipeline_root.is_empty() && !inner.launcher.reaches(&info.pipeline_root) {
        info.pipeline_root.clone_from(&inner.settings.pipeline_root);
    }
    let limits = Limits { max_parallel_tasks: inner.settings.max_parallel_tasks, ..Limits::default() };
    let info = Arc::new(info);
    let parameters = run.config.parameters.clone().into_iter().collect();
    let (is_retry, is_canceling) = (is_retry(&run, reason, &records), run.state == RunState::Canceling);
    let tracked = tracking::begin(inner, &run, Arc::clone(&info), experiment);
    tracked.again(&records);
    let machine_info = Arc::clone(&info);
    let begin = move || {
        let bytes = document.spec.encoded_len();
        let (plan, info, now) = (Arc::new(Plan::new(document)?), machine_info, now_ms());
        let (mut machine, mut effects) = if is_retry {
            Machine::retry(plan, info, parameters, limits, records, now)
        } else if records.is_empty() {
            Machine::start(plan, info, parameters, limits, now)
        } else {
            Machine::restore(plan, info, parameters, limits, records, now)
        };
        if is_canceling {
            effects.extend(machine.apply(Event::Cancel, now));
        }
        heap::release_after(bytes);
        Ok::<_, Error>((machine, effects))
    };
    // It ends with the server.
    let Some(begun) = blocking(begin).await else { return Ok(()) };
    // Tracking has begun, so it is told that the run cannot be carried out.
    let (machine, effects) = begun.inspect_err(|_| tracked.run_ended(RunState::Failed))?;
    Drive::new(Arc::clone(inner), info, machine, tracked).carry_out(effects, commands).await;
    Ok(())
}

/// Whether a run that ended is to go on. A server that was killed between the request and the first record finds the run pending and its
/// root ended.
fn is_retry(run: &Run, reason: Reason, records: &[TaskRecord]) -> bool {
    let root_ended = records.iter().any(|record| record.path == TaskPath::default() && record.state.is_final());
    root_ended && (reason == Reason::Retry || run.state == RunState::Pending)
}

impl Inner {
    /// Records that a run failed because it could not be carried out.
    async fn fail(&self, run_id: &str, message: String) {
        let id = run_id.to_owned();
        let written =
            self.database.write(move |c| repo::runs::set_state(c, &id, &[], RunState::Failed, &message, now_ms()));
        if let Err(error) = written.await {
            tracing::error!(run = run_id, %error, "the failure of the pipeline run cannot be recorded");
        }
    }
}

impl Runner for Driver {
    fn ready(&self) -> Result<(), Error> {
        Ok(())
    }

    fn owner(&self) -> String {
        self.inner.settings.owner.clone()
    }

    fn start(&self, run_id: String, document: Arc<Document>) {
        self.take_up(run_id, Reason::Resume, Some(document));
    }

    fn cancel(&self, run_id: String) {
        // A run that is not being carried out is taken up again, and ends as canceled, because that is its recorded state.
        if !self.command(&run_id, Command::Cancel) {
            self.take_up(run_id, Reason::Resume, None);
        }
    }

    fn retry(&self, run_id: String) {
        self.take_up(run_id, Reason::Retry, None);
    }

    fn forget(&self, namespace: String, run_id: String) -> BoxFuture<'static, Result<(), Error>> {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            let commands = inner.active.lock().get(&run_id).cloned();
            if let Some(commands) = commands {
                // An error means that the run has just ended. Its steps write into the files that are deleted, so they end first.
                let _ = commands.send(Command::Abandon);
                commands.closed().await;
            }
            inner.launcher.forget(namespace, run_id).await
        })
    }

    fn log(
        &self,
        run_id: String,
        task: TaskPath,
        attempt: Option<u32>,
        follow: bool,
    ) -> BoxFuture<'static, Result<LogStream, Error>> {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            let (id, path) = (run_id.clone(), task.clone());
            let found = inner.database.read(move |c| {
                let namespace = repo::runs::find(c, &id)?.namespace;
                Ok::<_, Error>((namespace, repo::tasks::record(c, &id, &path)?))
            });
            let (namespace, record) = found.await?;
            let record = record.ok_or_else(|| Error::NotFound(format!("run {run_id} has no task '{task}'")))?;
            let attempt = attempt.unwrap_or(record.attempt);
            if attempt == 0 {
                return Ok(futures_util::stream::empty().boxed());
            }
            inner.launcher.log(AttemptId { namespace, run_id, path: task, attempt }, follow).await
        })
    }

    fn read_artifact(
        &self,
        namespace: String,
        artifact: Artifact,
    ) -> BoxFuture<'static, Result<ArtifactStream, Error>> {
        self.inner.launcher.read(namespace, artifact)
    }
}
