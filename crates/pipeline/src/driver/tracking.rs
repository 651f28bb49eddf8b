//! What is passed on to the tracking store: in order, and in the background, so that it delays no task.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc;

use super::{Inner, TaskRecord};
use crate::entity::Run;
use crate::model::{RunInfo, RunState};

enum News {
    TaskEnded(Box<TaskRecord>),
    RunEnded(RunState),
}

/// Passes on what happens in a run.
pub(super) struct Tracked(mpsc::UnboundedSender<News>);

impl Tracked {
    /// Passes on the end of a task.
    pub(super) fn task_ended(&self, record: &TaskRecord) {
        // The receiver ends after the sender, so the result can be ignored.
        let _ = self.0.send(News::TaskEnded(Box::new(record.clone())));
    }

    /// Passes on the end of the run.
    pub(super) fn run_ended(&self, state: RunState) {
        let _ = self.0.send(News::RunEnded(state));
    }
}

/// Begins to track a run.
pub(super) fn begin(inner: &Arc<Inner>, run: &Run, info: Arc<RunInfo>, experiment: String) -> Tracked {
    let (sender, mut news) = mpsc::unbounded_channel();
    let tracker = Arc::clone(&inner.tracker);
    let parameters: Vec<(String, Value)> = run.config.parameters.clone().into_iter().collect();
    tokio::spawn(async move {
        tracker.run_started(&info, &experiment, &parameters).await;
        while let Some(news) = news.recv().await {
            match news {
                News::TaskEnded(record) => tracker.task_ended(&info, &experiment, &record).await,
                News::RunEnded(state) => tracker.run_changed(&info, state).await,
            }
        }
    });
    Tracked(sender)
}
