//! Starts the runs that recurring runs make due.
//!
//! Invariant: a slot gives at most one run, however many servers see it, because the run's id follows from the slot, and because the run
//! and the schedule's progress are written in one transaction.

use std::sync::Arc;
use std::time::Duration;

use slipway_core::clock::now_ms;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::runs::{Resolved, insert};
use super::{NewSource, Service, ids, parameters, specification};
use crate::Error;
use crate::entity::{RecurringRun, Run, RuntimeConfig, Source, StateChange, StorageState};
use crate::model::RunState;
use crate::repo;
use crate::schedule::macros::Macros;

/// Maximum time between two looks at the clock, which may be changed meanwhile.
const MAX_INTERVAL: Duration = Duration::from_secs(30);
/// Time between two attempts for a recurring run whose maximum number of runs is not finished.
const BUSY_INTERVAL: Duration = Duration::from_secs(1);
/// Seconds by which the clocks of two servers may differ. A newest slot beyond it means that the clock was set back.
const CLOCK_TOLERANCE: i64 = 60;

impl Service {
    /// Starts the scheduler, which lives as long as the task.
    #[must_use]
    pub fn spawn_scheduler(&self) -> JoinHandle<()> {
        let service = self.clone();
        tokio::spawn(async move {
            loop {
                let wait = service.trigger_due(now_ms()).await.unwrap_or_else(|error| {
                    tracing::error!(%error, "recurring runs could not be started; the next attempt follows");
                    BUSY_INTERVAL
                });
                // A timeout is the usual case; a notification only shortens it.
                let _ = tokio::time::timeout(wait, service.schedules_changed.notified()).await;
            }
        })
    }

    /// What lets the scheduler look again at once: to be notified when a run finished.
    pub fn schedules_changed(&self) -> Arc<Notify> {
        Arc::clone(&self.schedules_changed)
    }

    /// Lets the scheduler look again at once, because a recurring run was changed.
    pub(super) fn wake_scheduler(&self) {
        self.schedules_changed.notify_one();
    }

    /// Starts all runs that are due at `now`, in milliseconds since the Unix epoch, and returns the time until the next look.
    ///
    /// # Errors
    /// An error of the store. A recurring run whose runs cannot be created records why, and the others go on.
    pub async fn trigger_due(&self, now: i64) -> Result<Duration, Error> {
        let seconds = now.div_euclid(1000);
        let due = self
            .db
            .read(move |c| {
                let mut due = repo::recurring::due(c, seconds)?;
                due.extend(repo::recurring::ahead(c, seconds.saturating_add(CLOCK_TOLERANCE))?);
                Ok::<_, Error>(due)
            })
            .await?;
        let mut is_busy = false;
        for recurring in due {
            is_busy |= self.trigger(recurring, now).await?.is_some_and(|next| next <= seconds);
        }
        if is_busy {
            return Ok(BUSY_INTERVAL);
        }
        let next = self.db.read_now(|c| repo::recurring::next_slot(c, seconds))?;
        let wait = next.map_or(i64::MAX, |next| next.saturating_mul(1000).saturating_sub(now).max(0));
        Ok(Duration::from_millis(wait.unsigned_abs()).min(MAX_INTERVAL))
    }

    /// Starts the runs of a recurring run that are due, and returns its next slot.
    async fn trigger(&self, mut recurring: RecurringRun, now: i64) -> Result<Option<i64>, Error> {
        let id = recurring.recurring_run_id.clone();
        let unfinished = self.db.read_now(|c| repo::runs::unfinished_of(c, &id))?;
        let capacity = usize::try_from(recurring.max_concurrency - unfinished).unwrap_or(0);
        let zone = &self.options.time_zone;
        let due = recurring.schedule.due(recurring.last_slot, now.div_euclid(1000), capacity, zone);
        for slot in due.slots {
            recurring.last_slot = Some(slot);
            recurring.next_slot = recurring.schedule.next(Some(slot), zone);
            match self.scheduled_run(&recurring, slot, now).await {
                Ok((run, Resolved { spec, document, .. })) => {
                    recurring.triggered += 1;
                    recurring.error.clear();
                    let (progress, run_id, owner) = (recurring.clone(), run.run_id.clone(), self.runner.owner());
                    let inserted = self
                        .db
                        .write(move |c| {
                            repo::recurring::set_progress(c, &progress)?;
                            insert(c, &run, &spec, &owner)
                        })
                        .await?;
                    if inserted {
                        self.runner.start(run_id, document);
                    }
                }
                Err(Error::Store(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(recurring_run = id, slot, %error, "a recurring run could not start a run");
                    recurring.error = error.to_string();
                    self.record(&recurring).await?;
                }
            }
        }
        if (recurring.last_slot, recurring.next_slot) != (due.last, due.next) {
            (recurring.last_slot, recurring.next_slot) = (due.last, due.next);
            self.record(&recurring).await?;
        }
        Ok(due.next)
    }

    async fn record(&self, recurring: &RecurringRun) -> Result<(), Error> {
        let progress = recurring.clone();
        self.db.write(move |c| repo::recurring::set_progress(c, &progress)).await
    }

    /// The run for a slot, and its specification.
    async fn scheduled_run(&self, recurring: &RecurringRun, slot: i64, now: i64) -> Result<(Run, Resolved), Error> {
        let reference = |pipeline_id: &str, version_id: &str| NewSource::Reference {
            pipeline_id: pipeline_id.to_owned(),
            version_id: version_id.to_owned(),
        };
        let source = match &recurring.source {
            Source::Inline { spec } => {
                let spec = self.db.read_now(|c| repo::specs::find(c, spec))?;
                let text = serde_json::from_str(&spec.text).unwrap_or_default();
                NewSource::Inline(text)
            }
            Source::Version { pipeline_id, version_id } => reference(pipeline_id, version_id),
            Source::Newest { pipeline_id } => reference(pipeline_id, ""),
        };
        let resolved = self.resolve(source, recurring.namespace.clone()).await?;
        parameters::check(&resolved.document, &recurring.config.parameters)?;
        let run_id = ids::scheduled_run_id(&recurring.recurring_run_id, slot);
        let index = recurring.triggered + 1;
        let macros = Macros { run_id: run_id.clone(), now: now.div_euclid(1000), slot: Some((slot, index)) };
        let run = Run {
            run_id,
            namespace: recurring.namespace.clone(),
            experiment_id: recurring.experiment_id.clone(),
            display_name: format!("{}-{index}", recurring.display_name),
            description: recurring.description.clone(),
            service_account: recurring.service_account.clone(),
            storage_state: StorageState::Available,
            state: RunState::Pending,
            created_at: now,
            scheduled_at: slot.saturating_mul(1000),
            finished_at: 0,
            pipeline_name: specification::name(&resolved.document),
            source: resolved.source.clone(),
            spec: resolved.spec.digest.clone(),
            config: RuntimeConfig {
                parameters: macros.in_parameters(recurring.config.parameters.clone()),
                pipeline_root: recurring.config.pipeline_root.clone(),
            },
            recurring_run_id: recurring.recurring_run_id.clone(),
            history: vec![StateChange { at: now, state: RunState::Pending, error: String::new() }],
            error: String::new(),
            task_changes: 0,
        };
        Ok((run, resolved))
    }
}
