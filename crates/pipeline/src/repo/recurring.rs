//! Recurring runs.

use slipway_store::sql::{Connection, Result as Read, Row, params};

use super::page::{Page, Source, page};
use super::{json, specs, to_json};
use crate::Error;
use crate::entity::{RecurringRun, RuntimeConfig, Source as SpecSource};
use crate::listing::{Fields, Listing, text, time};
use crate::repo::runs::Scope;

/// Fields of recurring runs.
pub(crate) const FIELDS: Fields = Fields {
    object: "Job",
    key: "recurring_run_id",
    fields: &[
        text("recurring_run_id", "recurring_run_id"),
        text("id", "recurring_run_id"),
        text("name", "display_name"),
        text("display_name", "display_name"),
        time("created_at", "created_at"),
        time("updated_at", "updated_at"),
        text("description", "description"),
    ],
    has_tags: false,
};

const COLUMNS: &str = "recurring_run_id, namespace, experiment_id, display_name, description, service_account, enabled, created_at, \
     updated_at, max_concurrency, no_catchup, schedule, pipeline_id, version_id, spec, parameters, pipeline_root, last_slot, triggered, \
     next_slot, error";
const WIDTH: usize = 21;

fn recurring_run(row: &Row<'_>) -> Read<RecurringRun> {
    let (pipeline_id, version_id): (String, String) = (row.get(12)?, row.get(13)?);
    let source = match row.get::<Option<String>>(14)? {
        Some(spec) => SpecSource::Inline { spec },
        None if version_id.is_empty() => SpecSource::Newest { pipeline_id },
        None => SpecSource::Version { pipeline_id, version_id },
    };
    Ok(RecurringRun {
        recurring_run_id: row.get(0)?,
        namespace: row.get(1)?,
        experiment_id: row.get(2)?,
        display_name: row.get(3)?,
        description: row.get(4)?,
        service_account: row.get(5)?,
        enabled: row.get::<i64>(6)? != 0,
        created_at: row.get(7)?,
        updated_at: row.get(8)?,
        max_concurrency: row.get(9)?,
        schedule: json(row, 11)?,
        source,
        config: RuntimeConfig { parameters: json(row, 15)?, pipeline_root: row.get(16)? },
        last_slot: row.get(17)?,
        triggered: row.get(18)?,
        next_slot: row.get(19)?,
        error: row.get(20)?,
    })
}

/// Inserts a recurring run, whose specification is stored already.
pub(crate) fn insert(c: &Connection, r: &RecurringRun) -> Result<(), Error> {
    let (pipeline_id, version_id, spec) = match &r.source {
        SpecSource::Inline { spec } => ("", "", Some(spec.as_str())),
        SpecSource::Version { pipeline_id, version_id } => (pipeline_id.as_str(), version_id.as_str(), None),
        SpecSource::Newest { pipeline_id } => (pipeline_id.as_str(), "", None),
    };
    c.execute(
        "INSERT INTO pipeline_recurring_runs VALUES
           (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)",
        params![
            r.recurring_run_id,
            r.namespace,
            r.experiment_id,
            r.display_name,
            r.description,
            r.service_account,
            i64::from(r.enabled),
            r.created_at,
            r.updated_at,
            r.max_concurrency,
            i64::from(!r.schedule.catch_up),
            to_json(&r.schedule),
            pipeline_id,
            version_id,
            spec,
            to_json(&r.config.parameters),
            r.config.pipeline_root,
            r.last_slot,
            r.triggered,
            r.next_slot,
            r.error
        ],
    )?;
    Ok(())
}

/// The recurring run with this id.
pub(crate) fn find(c: &Connection, id: &str) -> Result<RecurringRun, Error> {
    let sql = format!("SELECT {COLUMNS} FROM pipeline_recurring_runs WHERE recurring_run_id = ?1");
    c.first(&sql, [id], recurring_run)?.ok_or_else(|| Error::NotFound(format!("Job {id} not found")))
}

/// A page of recurring runs.
pub(crate) fn list(c: &Connection, scope: Scope<'_>, listing: &Listing) -> Result<Page<RecurringRun>, Error> {
    let scope = match scope {
        Scope::Namespace(namespace) => [("namespace", namespace)],
        Scope::Experiment(experiment) => [("experiment_id", experiment)],
    };
    let source = Source { table: "pipeline_recurring_runs", columns: COLUMNS, width: WIDTH, scope: &scope };
    page(c, &source, &FIELDS, listing, recurring_run)
}

/// The enabled recurring runs with a slot until `now`, in seconds since the Unix epoch.
pub(crate) fn due(c: &Connection, now: i64) -> Result<Vec<RecurringRun>, Error> {
    let sql = format!(
        "SELECT {COLUMNS} FROM pipeline_recurring_runs WHERE enabled = 1 AND next_slot <= ?1 ORDER BY next_slot, recurring_run_id"
    );
    Ok(c.rows(&sql, [now], recurring_run)?)
}

/// The ids of the enabled recurring runs whose newest slot is after `now`: the clock was set back.
pub(crate) fn ahead(c: &Connection, now: i64) -> Result<Vec<RecurringRun>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM pipeline_recurring_runs WHERE enabled = 1 AND last_slot > ?1");
    Ok(c.rows(&sql, [now], recurring_run)?)
}

/// The next slot of all enabled recurring runs after `now`, in seconds since the Unix epoch.
pub(crate) fn next_slot(c: &Connection, now: i64) -> Result<Option<i64>, Error> {
    let sql = "SELECT MIN(next_slot) FROM pipeline_recurring_runs WHERE enabled = 1 AND next_slot > ?1";
    Ok(c.first(sql, [now], |row| row.get::<Option<i64>>(0))?.flatten())
}

/// Records where the schedule is.
pub(crate) fn set_progress(c: &Connection, r: &RecurringRun) -> Result<(), Error> {
    c.execute(
        "UPDATE pipeline_recurring_runs SET last_slot = ?2, triggered = ?3, next_slot = ?4, error = ?5 WHERE recurring_run_id = ?1",
        params![r.recurring_run_id, r.last_slot, r.triggered, r.next_slot, r.error],
    )?;
    Ok(())
}

/// Enables or disables a recurring run.
pub(crate) fn set_enabled(c: &Connection, id: &str, enabled: bool, now: i64) -> Result<(), Error> {
    let changed = c.execute(
        "UPDATE pipeline_recurring_runs SET enabled = ?2, updated_at = ?3 WHERE recurring_run_id = ?1",
        params![id, i64::from(enabled), now],
    )?;
    if changed == 0 { Err(Error::NotFound(format!("Job {id} not found"))) } else { Ok(()) }
}

/// Deletes a recurring run; its runs stay.
pub(crate) fn delete(c: &Connection, id: &str) -> Result<(), Error> {
    let found = find(c, id)?;
    c.execute("DELETE FROM pipeline_recurring_runs WHERE recurring_run_id = ?1", [id])?;
    if let SpecSource::Inline { spec } = &found.source {
        specs::delete_unused(c, spec)?;
    }
    Ok(())
}
