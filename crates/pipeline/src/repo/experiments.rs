//! Experiments.

use slipway_store::sql::{Connection, Result as Read, Row, params};

use super::page::{Page, Source, page};
use super::{state, state_name};
use crate::Error;
use crate::entity::{Experiment, StorageState};
use crate::listing::{Fields, Listing, text, time};

/// Fields of experiments.
pub(crate) const FIELDS: Fields = Fields {
    object: "Experiment",
    key: "experiment_id",
    fields: &[
        text("experiment_id", "experiment_id"),
        text("id", "experiment_id"),
        text("name", "name"),
        text("display_name", "name"),
        time("created_at", "created_at"),
        time("last_run_created_at", "last_run_created_at"),
        text("description", "description"),
        text("namespace", "namespace"),
        text("storage_state", "storage_state"),
    ],
    has_tags: false,
};

const COLUMNS: &str = "experiment_id, namespace, name, description, created_at, last_run_created_at, storage_state";

fn experiment(row: &Row<'_>) -> Read<Experiment> {
    Ok(Experiment {
        experiment_id: row.get(0)?,
        namespace: row.get(1)?,
        name: row.get(2)?,
        description: row.get(3)?,
        created_at: row.get(4)?,
        last_run_created_at: row.get(5)?,
        storage_state: state(row, 6, StorageState::Available)?,
    })
}

/// Inserts an experiment.
pub(crate) fn insert(c: &Connection, e: &Experiment) -> Result<(), Error> {
    let inserted = c.execute(
        "INSERT INTO pipeline_experiments VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            e.experiment_id,
            e.namespace,
            e.name,
            e.description,
            e.created_at,
            e.last_run_created_at,
            state_name(e.storage_state)
        ],
    );
    match inserted {
        Ok(_) => Ok(()),
        Err(error) if error.is_duplicate() => Err(Error::Exists(format!(
            "Failed to create a new experiment. The name {} already exists. Please specify a new name",
            e.name
        ))),
        Err(error) => Err(error.into()),
    }
}

/// The experiment with this id.
pub(crate) fn find(c: &Connection, id: &str) -> Result<Experiment, Error> {
    let sql = format!("SELECT {COLUMNS} FROM pipeline_experiments WHERE experiment_id = ?1");
    c.first(&sql, [id], experiment)?.ok_or_else(|| Error::NotFound(format!("Experiment {id} not found")))
}

/// The experiment with this name.
pub(crate) fn find_by_name(c: &Connection, namespace: &str, name: &str) -> Result<Option<Experiment>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM pipeline_experiments WHERE namespace = ?1 AND name = ?2");
    Ok(c.first(&sql, [namespace, name], experiment)?)
}

/// Experiments of a namespace.
pub(crate) fn list(c: &Connection, namespace: &str, listing: &Listing) -> Result<Page<Experiment>, Error> {
    let scope = [("namespace", namespace)];
    let source = Source { table: "pipeline_experiments", columns: COLUMNS, width: 7, scope: &scope };
    page(c, &source, &FIELDS, listing, experiment)
}

/// Archives an experiment with its runs, and disables its recurring runs.
pub(crate) fn archive(c: &Connection, id: &str, now: i64) -> Result<(), Error> {
    set_storage_state(c, id, StorageState::Archived)?;
    let archived = state_name(StorageState::Archived);
    c.execute("UPDATE pipeline_runs SET storage_state = ?2 WHERE experiment_id = ?1", params![id, archived])?;
    c.execute(
        "UPDATE pipeline_recurring_runs SET enabled = 0, updated_at = ?2 WHERE experiment_id = ?1 AND enabled = 1",
        params![id, now],
    )?;
    Ok(())
}

/// Unarchives an experiment; its runs stay archived.
pub(crate) fn unarchive(c: &Connection, id: &str) -> Result<(), Error> {
    set_storage_state(c, id, StorageState::Available)
}

fn set_storage_state(c: &Connection, id: &str, to: StorageState) -> Result<(), Error> {
    find(c, id)?;
    c.execute(
        "UPDATE pipeline_experiments SET storage_state = ?2 WHERE experiment_id = ?1",
        params![id, state_name(to)],
    )?;
    Ok(())
}

/// Records that a run was created.
pub(crate) fn run_created(c: &Connection, id: &str, now: i64) -> Result<(), Error> {
    c.execute("UPDATE pipeline_experiments SET last_run_created_at = ?2 WHERE experiment_id = ?1", params![id, now])?;
    Ok(())
}

/// Deletes an experiment; its runs stay.
pub(crate) fn delete(c: &Connection, id: &str) -> Result<(), Error> {
    find(c, id)?;
    c.execute("DELETE FROM pipeline_experiments WHERE experiment_id = ?1", [id])?;
    Ok(())
}
