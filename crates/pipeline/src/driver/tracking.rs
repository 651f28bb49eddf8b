//! What is passed on to the tracking store: in order, and in the background, so that it delays no task.

use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::mpsc;

use super::{Inner, TaskRecord};
use crate::entity::Run;
use crate::model::{Launch, RunInfo, RunState};
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
    let tracker = Arc::clone(&inner.tracker);
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
            join_all(ended.iter().map(|record| tracker.task_ended(&info, &experiment, record))).await;
            if let Some(state) = state {
                tracker.run_changed(&info, state).await;
            }
        }
    });
    tracked
}
