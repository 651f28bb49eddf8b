//! One run, from its start or restart to its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use slipway_core::clock::now_ms;
use tokio::sync::mpsc;

use super::tracking::Tracked;
use super::{Effect, Event, Inner, Machine};
use crate::launch::AttemptId;
use crate::model::{RunInfo, RunState};

/// Maximum number of events that are applied before their records are written: a burst of them costs one transaction.
const MAX_BATCH: usize = 512;
/// Maximum number of attempts that are prepared while their start is recorded. Others wait for a place in any case.
const MAX_PREPARED: usize = 4;

/// A request to a run that is being carried out.
#[derive(Debug, Clone, Copy)]
pub(super) enum Command {
    /// Stop it; its exit tasks still run.
    Cancel,
    /// Stop everything: the run was deleted.
    Abandon,
    /// The same, and delete its files: it was deleted by another server.
    Forget,
    /// Do nothing more: another server carries it out.
    Leave,
}

/// A run that is being carried out.
pub(super) struct Drive {
    inner: Arc<Inner>,
    run: Arc<RunInfo>,
    machine: Arc<Mutex<Machine>>,
    /// What will happen: ends of attempts, results of look-ups.
    pending: FuturesUnordered<BoxFuture<'static, Event>>,
    /// When the engine wants to be asked again, in milliseconds since the Unix epoch.
    wake_at: Option<i64>,
    tracked: Tracked,
}

impl Drive {
    pub(super) fn new(inner: Arc<Inner>, run: Arc<RunInfo>, machine: Machine, tracked: Tracked) -> Self {
        let machine = Arc::new(Mutex::new(machine));
        Self { inner, run, machine, pending: FuturesUnordered::new(), wake_at: None, tracked }
    }

    /// Carries out the run until it has ended. `effects` are those that its machine gave when it was made.
    pub(super) async fn carry_out(mut self, effects: Vec<Effect>, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut is_forgotten = false;
        let mut ended = self.perform(effects).await;
        while !ended {
            let event = tokio::select! {
                Some(command) = commands.recv() => match command {
                    Command::Cancel => Event::Cancel,
                    Command::Abandon => Event::CancelEverything,
                    Command::Forget => {
                        is_forgotten = true;
                        Event::CancelEverything
                    }
                    Command::Leave => return,
                },
                Some(event) = self.pending.next(), if !self.pending.is_empty() => event,
                () = sleep_until(self.wake_at), if self.wake_at.is_some() => {
                    self.wake_at = None;
                    Event::Time
                }
            };
            let mut events = vec![event];
            while events.len() < MAX_BATCH {
                let Some(Some(event)) = self.pending.next().now_or_never() else { break };
                events.push(event);
            }
            // Artifacts get their ids before the engine hands them on.
            let Some(events) = self.inner.record_artifacts(&self.run, events).await else { return };
            let Some(effects) = self.apply(events).await else { return };
            ended = self.perform(effects).await;
        }
        if is_forgotten {
            let (namespace, run_id) = (self.run.namespace.clone(), self.run.run_id.clone());
            if let Err(error) = self.inner.launcher.forget(namespace, run_id).await {
                tracing::warn!(run = self.run.run_id, %error, "the files of a deleted pipeline run remain");
            }
        }
    }

    /// What the engine decides after these events; `None` while the server stops.
    async fn apply(&mut self, events: Vec<Event>) -> Option<Vec<Effect>> {
        let machine = Arc::clone(&self.machine);
        let apply = move || {
            let (mut machine, now) = (machine.lock(), now_ms());
            events.into_iter().flat_map(|event| machine.apply(event, now)).collect()
        };
        blocking(apply).await
    }

    /// Records what the engine decided, then performs it. Returns whether nothing follows: the run has ended, or it is another server's.
    async fn perform(&mut self, effects: Vec<Effect>) -> bool {
        // Only the newest record of a task is written.
        let mut records = BTreeMap::new();
        let mut others = Vec::new();
        let mut finished = None;
        for effect in effects {
            match effect {
                Effect::Record(record) => drop(records.insert(record.path.clone(), record)),
                Effect::Finished { state, failure } => finished = Some((state, failure)),
                other => others.push(other),
            }
        }
        let records = Arc::new(records.into_values().collect::<Vec<_>>());
        let prepare = async {
            let launches = others
                .iter()
                .filter_map(|effect| if let Effect::Launch(launch) = effect { Some(launch) } else { None });
            launches.take(MAX_PREPARED).for_each(|launch| self.inner.launcher.prepare(launch));
        };
        // The records are handed to the writer first, and are written while the launches are prepared.
        if !tokio::join!(self.inner.record_progress(&self.run, &records, finished.as_ref()), prepare).0 {
            return true;
        }
        for record in records.iter().filter(|record| record.state.is_final()) {
            self.tracked.task_ended(record);
        }
        for effect in others {
            self.perform_one(effect);
        }
        if let Some((state, _)) = &finished {
            self.tracked.run_ended(*state);
            if *state == RunState::Succeeded {
                tokio::spawn(self.inner.launcher.release(Arc::clone(&self.run)));
            }
        }
        finished.is_some()
    }

    fn perform_one(&mut self, effect: Effect) {
        let (inner, run) = (Arc::clone(&self.inner), Arc::clone(&self.run));
        let event: BoxFuture<'static, Event> = match effect {
            Effect::Launch(launch) => {
                self.tracked.attempt_started(&launch);
                let (path, attempt) = (launch.path.clone(), launch.attempt);
                let ended = self.inner.launcher.execute(launch);
                Box::pin(async move { Event::Ended { path, attempt, outcome: ended.await } })
            }
            Effect::LookUpCache { path, fingerprint, max_staleness } => {
                Box::pin(async move { inner.look_up(&run, path, fingerprint, max_staleness).await })
            }
            Effect::Import { path, request } => Box::pin(async move { inner.import(&run, path, request).await }),
            Effect::Stop { path, attempt } => {
                let (namespace, run_id) = (run.namespace.clone(), run.run_id.clone());
                tokio::spawn(inner.launcher.stop(AttemptId { namespace, run_id, path, attempt }));
                return;
            }
            Effect::WakeAt(at) => {
                self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
                return;
            }
            // Handled by the caller.
            Effect::Record(_) | Effect::Finished { .. } => return,
        };
        self.pending.push(event);
    }
}

/// Does work that may take long, as the conditions of a pipeline can, on a thread for such work. `None` while the server stops.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(error) => error.try_into_panic().map_or(None, |panic| std::panic::resume_unwind(panic)),
    }
}

/// Sleeps until a time in milliseconds since the Unix epoch.
async fn sleep_until(at: Option<i64>) {
    let wait = at.map_or(0, |at| at.saturating_sub(now_ms()));
    tokio::time::sleep(Duration::from_millis(u64::try_from(wait).unwrap_or(0))).await;
}
