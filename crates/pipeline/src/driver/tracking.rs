//! What is passed on to the tracking store: in order, and in the background, so that it delays no task.
//!
//! A run is marked when all of it was passed on. A server that starts passes on again what it knows of its other runs, because its earlier
//! process may have been killed before it did.

use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::mpsc;

use super::{Inner, TaskRecord};
use crate::engine::TaskKind;
use crate::entity::Run;
use crate::launch::AttemptId;
use crate::model::{Launch, RunInfo, RunState, TaskState};
use crate::repo;
use crate::tracker::Tracker;

/// Maximum number of tasks that are passed on at the same time.
const MAX_BATCH: usize = 64;

enum News {
    TaskEnded(Box<TaskRecord>),
    RunEnded(RunState),
}

/// Passes on what happens in a run.
pub(super) struct Tracked {
    news: mpsc::UnboundedSender<News>,
    tracker: Arc<dyn Tracker>,
    experiment: Arc<str>,
}

impl Tracked {
    /// Passes on that an attempt is handed to the launcher; at once, because its program may use its tracked run immediately.
    pub(super) fn attempt_started(&self, launch: &Launch) {
        self.tracker.attempt_started(&self.experiment, launch);
    }

    /// Passes on the end of a task.
    pub(super) fn task_ended(&self, record: &TaskRecord) {
        // The receiver ends after the sender, so the result can be ignored.
        let _ = self.news.send(News::TaskEnded(Box::new(record.clone())));
    }

    /// Passes on the ends of tasks that were recorded earlier, some of which may have been passed on.
    pub(super) fn again<'a>(&self, records: impl IntoIterator<Item = &'a TaskRecord>) {
        for record in records.into_iter().filter(|record| record.state.is_final()) {
            self.task_ended(record);
        }
    }

    /// Passes on the end of the run.
    pub(super) fn run_ended(&self, state: RunState) {
        let _ = self.news.send(News::RunEnded(state));
    }
}

/// Begins to track a run.
pub(super) fn begin(inner: &Arc<Inner>, run: &Run, info: Arc<RunInfo>, experiment: String) -> Tracked {
    let (sender, mut news) = mpsc::unbounded_channel();
    let experiment: Arc<str> = experiment.into();
    let tracked = Tracked { news: sender, tracker: Arc::clone(&inner.tracker), experiment: Arc::clone(&experiment) };
    let (tracker, launcher, database) =
        (Arc::clone(&inner.tracker), Arc::clone(&inner.launcher), inner.database.clone());
    let parameters: Vec<(String, Value)> = run.config.parameters.clone().into_iter().collect();
    tokio::spawn(async move {
        tracker.run_started(&info, &experiment, &parameters).await;
        while let Some(first) = news.recv().await {
            let (mut ended, mut state, mut next) = (Vec::new(), None, Some(first));
            while let Some(one) = next.take() {
                match one {
                    News::TaskEnded(record) => ended.push(record),
                    News::RunEnded(end) => state = Some(end),
                }
                if state.is_none() && ended.len() < MAX_BATCH {
                    next = news.try_recv().ok();
                }
            }
            // Together, so that they share the cost of a commit.
            let record_end = async |record: &TaskRecord| {
                let tracked = match executed(&info, record) {
                    Some(attempt) => launcher.tracked(attempt).await,
                    None => None,
                };
                tracker.task_ended(&info, &experiment, record, tracked).await;
            };
            join_all(ended.iter().map(|record| record_end(record))).await;
            if let Some(state) = state {
                tracker.run_changed(&info, state).await;
                let run_id = info.run_id.clone();
                if let Err(error) = database.write(move |c| repo::runs::set_tracked(c, &run_id)).await {
                    tracing::warn!(run = info.run_id, %error, "the pipeline run will be tracked again when the server starts");
                }
            }
        }
    });
    tracked
}

/// The last attempt of a task; `None` if it executed none in this run.
fn executed(run: &RunInfo, record: &TaskRecord) -> Option<AttemptId> {
    let executes = record.kind == TaskKind::Container && record.state != TaskState::Cached && record.attempt > 0;
    executes.then(|| AttemptId {
        namespace: run.namespace.clone(),
        run_id: run.run_id.clone(),
        path: record.path.clone(),
        attempt: record.attempt,
    })
}
