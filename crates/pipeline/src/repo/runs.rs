//! Runs.

use slipway_store::sql::{Connection, Result as Read, Row, params};

use super::page::{Page, Source, page};
use super::{json, specs, state, state_name, to_json};
use crate::Error;
use crate::entity::{Run, RuntimeConfig, Source as SpecSource, StateChange, StorageState};
use crate::listing::{Fields, Listing, text, time};
use crate::model::RunState;

/// Fields of runs.
pub(crate) const FIELDS: Fields = Fields {
    object: "Run",
    key: "run_id",
    fields: &[
        text("run_id", "run_id"),
        text("id", "run_id"),
        text("display_name", "display_name"),
        text("name", "display_name"),
        time("created_at", "created_at"),
        time("finished_at", "finished_at"),
        time("scheduled_at", "scheduled_at"),
        text("description", "description"),
        text("storage_state", "storage_state"),
        text("state", "state"),
        text("status", "state"),
        text("namespace", "namespace"),
        text("experiment_id", "experiment_id"),
        text("recurring_run_id", "recurring_run_id"),
        text("pipeline_id", "pipeline_id"),
        text("pipeline_version_id", "version_id"),
        text("pipeline_name", "pipeline_name"),
    ],
    has_tags: false,
};

const COLUMNS: &str = "run_id, namespace, experiment_id, display_name, description, service_account, storage_state, state, created_at, \
     scheduled_at, finished_at, pipeline_name, pipeline_id, version_id, spec, parameters, pipeline_root, recurring_run_id, history, error, \
     task_changes";
const WIDTH: usize = 21;
/// The states of runs that are not finished, in SQL.
pub(super) const UNFINISHED: &str = "'PENDING', 'RUNNING', 'CANCELING', 'PAUSED'";

fn run(row: &Row<'_>) -> Read<Run> {
    let (pipeline_id, version_id, spec): (String, String, String) = (row.get(12)?, row.get(13)?, row.get(14)?);
    let source = if version_id.is_empty() {
        SpecSource::Inline { spec: spec.clone() }
    } else {
        SpecSource::Version { pipeline_id, version_id }
    };
    Ok(Run {
        run_id: row.get(0)?,
        namespace: row.get(1)?,
        experiment_id: row.get(2)?,
        display_name: row.get(3)?,
        description: row.get(4)?,
        service_account: row.get(5)?,
        storage_state: state(row, 6, StorageState::Available)?,
        state: state(row, 7, RunState::Pending)?,
        created_at: row.get(8)?,
        scheduled_at: row.get(9)?,
        finished_at: row.get(10)?,
        pipeline_name: row.get(11)?,
        source,
        spec,
        config: RuntimeConfig { parameters: json(row, 15)?, pipeline_root: row.get(16)? },
        recurring_run_id: row.get(17)?,
        history: json(row, 18)?,
        error: row.get(19)?,
        task_changes: row.get(20)?,
    })
}

/// Inserts a run, whose specification is stored already, and whose owner carries it out. `false` if a run with this id exists.
pub(crate) fn insert(c: &Connection, r: &Run, owner: &str) -> Result<bool, Error> {
    let (pipeline_id, version_id) = match &r.source {
        SpecSource::Version { pipeline_id, version_id } => (pipeline_id.as_str(), version_id.as_str()),
        SpecSource::Inline { .. } | SpecSource::Newest { .. } => ("", ""),
    };
    let inserted = c.execute(
        "INSERT INTO pipeline_runs (run_id, namespace, experiment_id, display_name, description, service_account, storage_state, state,
           created_at, scheduled_at, finished_at, pipeline_name, pipeline_id, version_id, spec, parameters, pipeline_root,
           recurring_run_id, history, error, task_changes, owner, is_tracked)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, 0)
         ON CONFLICT (run_id) DO NOTHING",
        params![
            r.run_id,
            r.namespace,
            r.experiment_id,
            r.display_name,
            r.description,
            r.service_account,
            state_name(r.storage_state),
            state_name(r.state),
            r.created_at,
            r.scheduled_at,
            r.finished_at,
            r.pipeline_name,
            pipeline_id,
            version_id,
            r.spec,
            to_json(&r.config.parameters),
            r.config.pipeline_root,
            r.recurring_run_id,
            to_json(&r.history),
            r.error,
            r.task_changes,
            owner
        ],
    )?;
    Ok(inserted == 1)
}

/// The run with this id.
pub fn find(c: &Connection, id: &str) -> Result<Run, Error> {
    let sql = format!("SELECT {COLUMNS} FROM pipeline_runs WHERE run_id = ?1");
    c.first(&sql, [id], run)?.ok_or_else(|| not_found(id))
}

fn not_found(id: &str) -> Error {
    Error::NotFound(format!("Run {id} not found"))
}

/// The number of the run's row, which the tables of tasks and artifacts carry.
pub(super) fn row(c: &Connection, id: &str) -> Result<i64, Error> {
    let found = c.first("SELECT run FROM pipeline_runs WHERE run_id = ?1", [id], |row| row.get(0))?;
    found.ok_or_else(|| not_found(id))
}

/// The number of the run's row, its namespace, and the name of its pipeline.
pub(super) fn identity(c: &Connection, id: &str) -> Result<(i64, String, String), Error> {
    let sql = "SELECT run, namespace, pipeline_name FROM pipeline_runs WHERE run_id = ?1";
    c.first(sql, [id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.ok_or_else(|| not_found(id))
}

/// Which runs a list has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// Those of a namespace.
    Namespace(&'a str),
    /// Those of an experiment.
    Experiment(&'a str),
}

/// A page of runs.
pub(crate) fn list(c: &Connection, scope: Scope<'_>, listing: &Listing) -> Result<Page<Run>, Error> {
    let scope = match scope {
        Scope::Namespace(namespace) => [("namespace", namespace)],
        Scope::Experiment(experiment) => [("experiment_id", experiment)],
    };
    let source = Source { table: "pipeline_runs", columns: COLUMNS, width: WIDTH, scope: &scope };
    page(c, &source, &FIELDS, listing, run)
}

/// The unfinished runs of an owner with their states, oldest first.
pub(crate) fn unfinished_of_owner(c: &Connection, owner: &str) -> Result<Vec<(String, RunState)>, Error> {
    let sql =
        format!("SELECT run_id, state FROM pipeline_runs WHERE owner = ?1 AND state IN ({UNFINISHED}) ORDER BY run");
    Ok(c.rows(&sql, [owner], |row| Ok((row.get(0)?, state(row, 1, RunState::Pending)?)))?)
}

/// The runs of an owner that have ended, and of which not everything was passed on to the tracking store.
pub(crate) fn untracked_of_owner(c: &Connection, owner: &str) -> Result<Vec<String>, Error> {
    let sql = format!(
        "SELECT run_id FROM pipeline_runs WHERE owner = ?1 AND is_tracked = 0 AND state NOT IN ({UNFINISHED}) ORDER BY run"
    );
    Ok(c.rows(&sql, [owner], |row| row.get(0))?)
}

/// Records that everything that happened in a run was passed on to the tracking store, unless the run goes on.
pub(crate) fn set_tracked(c: &Connection, id: &str) -> Result<(), Error> {
    let sql = format!("UPDATE pipeline_runs SET is_tracked = 1 WHERE run_id = ?1 AND state NOT IN ({UNFINISHED})");
    c.execute(&sql, [id])?;
    Ok(())
}

/// The owner of a run.
pub(crate) fn owner(c: &Connection, id: &str) -> Result<String, Error> {
    let found = c.first("SELECT owner FROM pipeline_runs WHERE run_id = ?1", [id], |row| row.get(0))?;
    found.ok_or_else(|| not_found(id))
}

/// Makes a server the owner of a run that nothing carries out.
pub(crate) fn set_owner(c: &Connection, id: &str, owner: &str) -> Result<(), Error> {
    c.execute("UPDATE pipeline_runs SET owner = ?2 WHERE run_id = ?1", [id, owner])?;
    Ok(())
}

/// Begins to record progress of a run: counts a change of its tasks, so that cached views of them are read again. Returns the number of its
/// row, and its state.
///
/// # Errors
/// [`Error::NotFound`] if it was deleted, [`Error::Conflict`] if another server carries it out.
pub(crate) fn advance(c: &Connection, id: &str, owner: &str) -> Result<(i64, RunState), Error> {
    let sql = "UPDATE pipeline_runs SET task_changes = task_changes + 1 WHERE run_id = ?1 RETURNING run, state, owner";
    let row = |row: &Row<'_>| Ok((row.get(0)?, state(row, 1, RunState::Pending)?, row.get::<String>(2)?));
    let (run, state, found) = c.first(sql, [id], row)?.ok_or_else(|| not_found(id))?;
    if found == owner {
        Ok((run, state))
    } else {
        Err(Error::Conflict(format!("run {id} is carried out by another server")))
    }
}

/// Number of unfinished runs of a recurring run.
pub(crate) fn unfinished_of(c: &Connection, recurring_run_id: &str) -> Result<i64, Error> {
    let sql = format!("SELECT COUNT(*) FROM pipeline_runs WHERE state IN ({UNFINISHED}) AND recurring_run_id = ?1");
    Ok(c.first(&sql, [recurring_run_id], |row| row.get(0))?.unwrap_or(0))
}

/// Changes the state of a run, if it is in one of the states `from`; an empty list means any. Returns whether it was changed.
pub fn set_state(
    c: &Connection,
    id: &str,
    from: &[RunState],
    to: RunState,
    error: &str,
    now: i64,
) -> Result<bool, Error> {
    let found = find(c, id)?;
    if found.state == to || !(from.is_empty() || from.contains(&found.state)) {
        return Ok(false);
    }
    let mut history = found.history;
    history.push(StateChange { at: now, state: to, error: error.to_owned() });
    let finished_at = if to.is_final() { now } else { 0 };
    c.execute(
        "UPDATE pipeline_runs SET state = ?2, history = ?3, error = ?4, finished_at = ?5, is_tracked = 0 WHERE run_id = ?1",
        params![id, state_name(to), to_json(&history), error, finished_at],
    )?;
    Ok(true)
}

/// Archives or unarchives a run.
pub(crate) fn set_storage_state(c: &Connection, id: &str, to: StorageState) -> Result<(), Error> {
    let changed =
        c.execute("UPDATE pipeline_runs SET storage_state = ?2 WHERE run_id = ?1", params![id, state_name(to)])?;
    if changed == 0 { Err(not_found(id)) } else { Ok(()) }
}

/// Deletes a run with its tasks, artifacts and cache entries.
pub(crate) fn delete(c: &Connection, id: &str) -> Result<(), Error> {
    let found = find(c, id)?;
    c.execute("DELETE FROM pipeline_cache WHERE run_id = ?1", [id])?;
    c.execute("DELETE FROM pipeline_runs WHERE run_id = ?1", [id])?;
    specs::delete_unused(c, &found.spec)
}
