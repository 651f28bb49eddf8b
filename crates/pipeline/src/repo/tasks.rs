//! Tasks of runs: one row for each record of the engine.

use serde::Serialize;
use slipway_store::sql::{Connection, Result as Read, Row, Value};

use super::{runs, state, state_name, to_json};
use crate::Error;
use crate::engine::TaskRecord;
use crate::model::{TaskPath, TaskState};

/// A task as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRow {
    /// Where it is in its run.
    pub path: TaskPath,
    /// State.
    pub state: TaskState,
    /// JSON of the engine's record, which has path and state, too.
    pub record: String,
}

/// A task with its number in the API.
#[derive(Debug, Clone)]
pub struct StoredTask {
    /// `execution_id` in the API.
    pub execution_id: i64,
    /// The task.
    pub row: TaskRow,
}

const COLUMNS: &str = "task, path, state, record";

fn task(row: &Row<'_>) -> Read<StoredTask> {
    Ok(StoredTask {
        execution_id: row.get(0)?,
        row: TaskRow { path: TaskPath(row.get(1)?), state: state(row, 2, TaskState::Pending)?, record: row.get(3)? },
    })
}

/// A task to be stored.
#[derive(Debug, Clone)]
pub(crate) struct NewTask {
    path: TaskPath,
    state: TaskState,
    /// JSON of the engine's record.
    text: String,
}

impl NewTask {
    /// A task with a record.
    pub(crate) fn new(path: &TaskPath, state: TaskState, record: &impl Serialize) -> Self {
        Self { path: path.clone(), state, text: to_json(record) }
    }
}

/// Inserts or replaces tasks of a run, whose row is `run`.
pub(crate) fn upsert(c: &Connection, run: i64, tasks: &[NewTask]) -> Result<(), Error> {
    let rows = tasks.iter().map(|task| {
        [Value::from(run), task.path.0.clone().into(), state_name(task.state).into(), task.text.clone().into()]
    });
    c.execute_each(
        "INSERT INTO pipeline_tasks (run, path, state, record) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (run, path) DO UPDATE SET state = ?3, record = ?4",
        rows,
    )?;
    Ok(())
}

/// All tasks of a run, in the order in which they were first recorded.
pub fn list(c: &Connection, run_id: &str) -> Result<Vec<StoredTask>, Error> {
    let run = runs::row(c, run_id)?;
    let sql = format!("SELECT {COLUMNS} FROM pipeline_tasks WHERE run = ?1 ORDER BY task");
    Ok(c.rows(&sql, [Value::from(run)], task)?)
}

/// The task at this path; `None` if there is none.
pub fn find(c: &Connection, run_id: &str, path: &TaskPath) -> Result<Option<StoredTask>, Error> {
    let run = runs::row(c, run_id)?;
    let sql = format!("SELECT {COLUMNS} FROM pipeline_tasks WHERE run = ?1 AND path = ?2");
    Ok(c.first(&sql, [Value::from(run), path.0.clone().into()], task)?)
}

fn decode(stored: StoredTask) -> Result<TaskRecord, Error> {
    let unreadable =
        |error| Error::Conflict(format!("task '{}' was recorded by another version: {error}", stored.row.path));
    serde_json::from_str(&stored.row.record).map_err(unreadable)
}

/// What the engine recorded of the tasks of a run, in the order in which they were first recorded.
pub(crate) fn records(c: &Connection, run_id: &str) -> Result<Vec<TaskRecord>, Error> {
    list(c, run_id)?.into_iter().map(decode).collect()
}

/// What the engine recorded of a task.
pub(crate) fn record(c: &Connection, run_id: &str, path: &TaskPath) -> Result<Option<TaskRecord>, Error> {
    find(c, run_id, path)?.map(decode).transpose()
}

/// The paths of all tasks of a run.
pub(crate) fn paths(c: &Connection, run_id: &str) -> Result<Vec<TaskPath>, Error> {
    let run = runs::row(c, run_id)?;
    Ok(c.rows("SELECT path FROM pipeline_tasks WHERE run = ?1", [Value::from(run)], |row| Ok(TaskPath(row.get(0)?)))?)
}
