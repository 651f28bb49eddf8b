//! Tasks of a run as `task_details`.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::wire::{Status, StatusMessage, Time};
use crate::model::{Artifact, Failure, Inputs, Outputs, RunState, TaskPath, TaskState};
use crate::repo::tasks::StoredTask;
use crate::service::task_id;

/// What the API shows of a record of the engine.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Record {
    parent: Option<TaskPath>,
    task_name: String,
    display_name: String,
    inputs: Inputs,
    outputs: Outputs,
    created_at: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    failure: Option<Failure>,
    history: Vec<(i64, TaskState)>,
}

#[derive(Serialize)]
struct ArtifactList {
    artifact_ids: Vec<String>,
}

#[derive(Serialize)]
struct Child<'a> {
    task_id: &'a str,
}

#[derive(Serialize)]
pub(super) struct TaskDetail<'a> {
    run_id: &'a str,
    task_id: &'a str,
    display_name: String,
    create_time: Time,
    start_time: Time,
    end_time: Time,
    state: RunState,
    execution_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Status>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    inputs: BTreeMap<String, ArtifactList>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    outputs: BTreeMap<String, ArtifactList>,
    #[serde(skip_serializing_if = "str::is_empty")]
    parent_task_id: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    state_history: Vec<StatusMessage>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    child_tasks: Vec<Child<'a>>,
}

/// The state of a task in the API, which has none for "from the cache" and calls both that and "not triggered" skipped.
fn api_state(state: TaskState) -> RunState {
    match state {
        TaskState::Pending => RunState::Pending,
        TaskState::Running => RunState::Running,
        TaskState::Succeeded => RunState::Succeeded,
        TaskState::Cached | TaskState::Skipped => RunState::Skipped,
        TaskState::Failed => RunState::Failed,
        TaskState::Canceled => RunState::Canceled,
    }
}

/// The ids of artifacts that are recorded, which are numbers.
fn artifact_lists(artifacts: BTreeMap<String, Vec<Artifact>>) -> BTreeMap<String, ArtifactList> {
    let ids = |list: Vec<Artifact>| ArtifactList {
        artifact_ids: list.into_iter().map(|artifact| artifact.id).filter(|id| id.parse::<i64>().is_ok()).collect(),
    };
    artifacts.into_iter().map(|(name, list)| (name, ids(list))).collect()
}

/// The ids of all tasks by their paths.
#[derive(Debug)]
pub(super) struct Ids(HashMap<TaskPath, String>);

impl Ids {
    pub(super) fn new(run_id: &str, tasks: &[StoredTask]) -> Self {
        Self(tasks.iter().map(|task| (task.row.path.clone(), task_id(run_id, &task.row.path))).collect())
    }

    fn of(&self, path: &TaskPath) -> &str {
        self.0.get(path).map_or("", String::as_str)
    }
}

/// All tasks of a run.
pub(super) fn task_details<'a>(run_id: &'a str, tasks: &[StoredTask], ids: &'a Ids) -> Vec<TaskDetail<'a>> {
    let records: Vec<Record> =
        tasks.iter().map(|task| serde_json::from_str(&task.row.record).unwrap_or_default()).collect();
    let mut children: HashMap<&str, Vec<Child<'a>>> = HashMap::new();
    for (task, record) in tasks.iter().zip(&records) {
        if let Some(parent) = &record.parent {
            children.entry(ids.of(parent)).or_default().push(Child { task_id: ids.of(&task.row.path) });
        }
    }
    let detail = |(task, record): (&StoredTask, Record)| {
        let id = ids.of(&task.row.path);
        let name =
            [&record.display_name, &record.task_name, &task.row.path.0].into_iter().find(|name| !name.is_empty());
        TaskDetail {
            run_id,
            task_id: id,
            display_name: name.cloned().unwrap_or_else(|| "root".into()),
            create_time: Time(record.created_at),
            start_time: Time(record.started_at.unwrap_or(0)),
            end_time: Time(record.finished_at.unwrap_or(0)),
            state: api_state(task.row.state),
            execution_id: task.execution_id.to_string(),
            error: record.failure.as_ref().and_then(|failure| Status::of_failure(&failure.message)),
            inputs: artifact_lists(record.inputs.artifacts),
            outputs: artifact_lists(record.outputs.artifacts),
            parent_task_id: record.parent.as_ref().map_or("", |parent| ids.of(parent)),
            state_history: record
                .history
                .iter()
                .map(|(at, state)| StatusMessage { update_time: Time(*at), state: api_state(*state), error: None })
                .collect(),
            child_tasks: children.remove(id).unwrap_or_default(),
        }
    };
    tasks.iter().zip(records).map(detail).collect()
}
