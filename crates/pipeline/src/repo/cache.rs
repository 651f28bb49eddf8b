//! Outputs of tasks that succeeded, by the fingerprint of the task.

use slipway_store::sql::{Connection, Value, params};

use super::{json, to_json};
use crate::Error;
use crate::model::{Outputs, TaskPath};

/// Outputs of an earlier execution.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The run that executed the task.
    pub run_id: String,
    /// The task in that run.
    pub task: TaskPath,
    /// Its outputs.
    pub outputs: Outputs,
    /// When it ended, in milliseconds since the Unix epoch.
    pub created_at: i64,
}

/// Records the outputs of a task.
pub fn insert(
    c: &Connection,
    namespace: &str,
    pipeline_name: &str,
    fingerprint: &str,
    entry: &Entry,
) -> Result<(), Error> {
    c.execute(
        "INSERT INTO pipeline_cache (namespace, pipeline_name, fingerprint, run_id, task, outputs, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            namespace,
            pipeline_name,
            fingerprint,
            entry.run_id,
            entry.task.0,
            to_json(&entry.outputs),
            entry.created_at
        ],
    )?;
    Ok(())
}

/// The newest outputs with this fingerprint that are not older than `since`, in milliseconds since the Unix epoch.
pub fn find(
    c: &Connection,
    namespace: &str,
    pipeline_name: &str,
    fingerprint: &str,
    since: i64,
) -> Result<Option<Entry>, Error> {
    Ok(c.first(
        "SELECT run_id, task, outputs, created_at FROM pipeline_cache
         WHERE namespace = ?1 AND pipeline_name = ?2 AND fingerprint = ?3 AND created_at >= ?4 ORDER BY entry DESC LIMIT 1",
        params![namespace, pipeline_name, fingerprint, since],
        |row| {
            Ok(Entry {
                run_id: row.get(0)?,
                task: TaskPath(row.get(1)?),
                outputs: json(row, 2)?,
                created_at: row.get(3)?,
            })
        },
    )?)
}

/// Deletes the entries of a task, as when its outputs are found to be missing.
pub fn forget(c: &Connection, run_id: &str, task: &TaskPath) -> Result<(), Error> {
    c.execute(
        "DELETE FROM pipeline_cache WHERE run_id = ?1 AND task = ?2",
        [Value::from(run_id.to_owned()), task.0.clone().into()],
    )?;
    Ok(())
}
