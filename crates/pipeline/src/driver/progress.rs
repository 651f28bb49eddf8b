//! What is written to the store: records of tasks, artifacts, the cache, and the state of the run.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use slipway_core::clock::now_ms;
use slipway_store::sql::Connection;

use super::{Event, Inner, TaskRecord};
use crate::Error;
use crate::engine::{ImportRequest, TaskKind};
use crate::model::{Artifact, Failure, Outcome, Outputs, RunInfo, RunState, TaskPath, TaskState};
use crate::repo;
use crate::repo::cache::Entry;
use crate::repo::tasks::NewTask;

/// Pause before a transaction that failed is repeated; it doubles up to the maximum.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Artifacts of a task by the name of their output.
type NewArtifacts = Vec<(TaskPath, String, Vec<Artifact>)>;

impl Inner {
    /// Repeats a transaction until it succeeds: what the engine decided is only performed when it is recorded. For a run that was deleted
    /// there is nothing to record, and it goes on to its end, which stops its steps. `None` if another server carries the run out.
    async fn write_until_done<T: Default + Send + 'static>(
        &self,
        run: &RunInfo,
        change: impl Fn(&Connection) -> Result<T, Error> + Send + Sync + Clone + 'static,
    ) -> Option<T> {
        let mut backoff = FIRST_BACKOFF;
        loop {
            match self.database.write(change.clone()).await {
                Ok(done) => return Some(done),
                Err(Error::NotFound(_)) => return Some(T::default()),
                Err(Error::Conflict(reason)) => {
                    tracing::warn!(reason, "a pipeline run was taken over by another server");
                    return None;
                }
                Err(error) => {
                    tracing::error!(run = run.run_id, %error, "the pipeline run cannot be recorded; retrying");
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
            }
        }
    }

    /// Records artifacts, which gives them their ids.
    async fn record_new(&self, run: &Arc<RunInfo>, new: NewArtifacts) -> Option<NewArtifacts> {
        let (info, new, own) = (Arc::clone(run), Arc::new(new), self.settings.owner.clone());
        let change = move |c: &Connection| {
            repo::runs::advance(c, &info.run_id, &own)?;
            let mut recorded = NewArtifacts::clone(&new);
            for (path, name, artifacts) in &mut recorded {
                repo::artifacts::insert(c, &info.run_id, path, name, artifacts, now_ms())?;
            }
            Ok(recorded)
        };
        self.write_until_done(run, change).await
    }

    /// Records the artifacts of attempts that succeeded, which gives them their ids.
    /// `None` if another server carries the run out.
    pub(super) async fn record_artifacts(&self, run: &Arc<RunInfo>, mut events: Vec<Event>) -> Option<Vec<Event>> {
        let mut new = NewArtifacts::new();
        for event in &mut events {
            if let Event::Ended { path, outcome: Outcome::Succeeded(Outputs { artifacts, .. }), .. } = event {
                new.extend(std::mem::take(artifacts).into_iter().map(|(name, all)| (path.clone(), name, all)));
            }
        }
        if new.is_empty() {
            return Some(events);
        }
        let mut recorded: HashMap<TaskPath, BTreeMap<String, Vec<Artifact>>> = HashMap::new();
        for (path, name, artifacts) in self.record_new(run, new).await? {
            recorded.entry(path).or_default().insert(name, artifacts);
        }
        for event in &mut events {
            if let Event::Ended { path, outcome: Outcome::Succeeded(Outputs { artifacts, .. }), .. } = event {
                *artifacts = recorded.remove(path).unwrap_or_default();
            }
        }
        Some(events)
    }

    /// Records tasks, outputs for the cache, and the state of the run. `false` if another server carries the run out.
    pub(super) async fn record_progress(
        &self,
        run: &Arc<RunInfo>,
        records: &Arc<Vec<TaskRecord>>,
        finished: Option<&(RunState, Option<Failure>)>,
    ) -> bool {
        if records.is_empty() && finished.is_none() {
            return true;
        }
        // Encoded here, because all changes of the server wait for a transaction.
        let rows: Arc<Vec<NewTask>> =
            Arc::new(records.iter().map(|record| NewTask::new(&record.path, record.state, record)).collect());
        let (info, records, finished) = (Arc::clone(run), Arc::clone(records), finished.cloned());
        let own = self.settings.owner.clone();
        let change = move |c: &Connection| {
            let now = now_ms();
            let (row, state) = repo::runs::advance(c, &info.run_id, &own)?;
            if state == RunState::Pending {
                repo::runs::set_state(c, &info.run_id, &[], RunState::Running, "", now)?;
            }
            repo::tasks::upsert(c, row, &rows)?;
            for record in records.iter() {
                remember(c, &info, record, now)?;
            }
            if let Some((state, failure)) = &finished {
                let reason = failure.as_ref().map_or("", |failure| &failure.message);
                repo::runs::set_state(c, &info.run_id, &[], *state, reason, now)?;
            }
            Ok(())
        };
        self.write_until_done(run, change).await.is_some()
    }

    /// Looks for an earlier execution with the same fingerprint. A cache that cannot be read is a miss.
    pub(super) async fn look_up(
        &self,
        run: &RunInfo,
        path: TaskPath,
        fingerprint: String,
        max_staleness: Option<Duration>,
    ) -> Event {
        let (namespace, pipeline) = (run.namespace.clone(), run.pipeline_name.clone());
        let age = max_staleness.map(|age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        let since = age.map_or(0, |age| now_ms().saturating_sub(age));
        let found = self.database.read(move |c| repo::cache::find(c, &namespace, &pipeline, &fingerprint, since)).await;
        match found {
            Ok(Some(entry)) if self.launcher.has(entry.outputs.clone()).await => {
                let cached_from = format!("{}/{}", entry.run_id, entry.task);
                Event::CacheFound { path, outputs: entry.outputs, cached_from }
            }
            Ok(_) => Event::CacheMissed { path },
            Err(error) => {
                tracing::warn!(run = run.run_id, %error, "the cache of pipeline tasks cannot be read");
                Event::CacheMissed { path }
            }
        }
    }

    /// Imports an artifact: the one of this pipeline with the same type, URI and metadata, unless a new one is requested.
    pub(super) async fn import(&self, run: &Arc<RunInfo>, path: TaskPath, request: ImportRequest) -> Event {
        let artifact = Artifact {
            schema_title: request.schema_title,
            schema_version: request.schema_version,
            uri: request.uri,
            metadata: request.metadata,
            ..Artifact::default()
        };
        if !request.reimport {
            let (namespace, pipeline, wanted) = (run.namespace.clone(), run.pipeline_name.clone(), artifact.clone());
            let same = self.database.read(move |c| repo::artifacts::find_same(c, &namespace, &pipeline, &wanted)).await;
            match same {
                Ok(Some(found)) => return Event::Imported { path, result: Ok(found) },
                Ok(None) => {}
                Err(error) => {
                    let failure = Failure { message: error.to_string(), ..Failure::default() };
                    return Event::Imported { path, result: Err(failure) };
                }
            }
        }
        let recorded = self.record_new(run, vec![(path.clone(), request.output, vec![artifact.clone()])]).await;
        // Without it the run is another server's, and nothing that happens here is recorded.
        let recorded =
            recorded.unwrap_or_default().into_iter().flat_map(|(_, _, artifacts)| artifacts).next().unwrap_or(artifact);
        Event::Imported { path, result: Ok(recorded) }
    }
}

/// Records the outputs of a task that has executed, for tasks with the same fingerprint.
fn remember(c: &Connection, run: &RunInfo, record: &TaskRecord, now: i64) -> Result<(), Error> {
    let Some(fingerprint) = &record.fingerprint else { return Ok(()) };
    if record.state != TaskState::Succeeded || record.kind == TaskKind::Importer {
        return Ok(());
    }
    let entry = Entry {
        run_id: run.run_id.clone(),
        task: record.path.clone(),
        outputs: Outputs::clone(&record.outputs),
        created_at: now,
    };
    repo::cache::insert(c, &run.namespace, &run.pipeline_name, fingerprint, &entry)
}
