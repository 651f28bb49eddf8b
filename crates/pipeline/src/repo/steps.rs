//! Steps that run as pods: what their pods need, and how they ended.

use slipway_store::sql::{Connection, Value, params};

use super::to_json;
use crate::Error;
use crate::model::Outcome;

/// A step as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct StepRow {
    /// JSON of what the pod needs; empty once the step has succeeded.
    pub(crate) step: String,
    /// How the program ended; `None` until the pod has delivered it.
    pub(crate) outcome: Option<Outcome>,
}

/// Records a step before its pod is created. Does nothing if it is recorded.
pub(crate) fn insert(c: &Connection, namespace: &str, name: &str, run_id: &str, step: &str) -> Result<(), Error> {
    c.execute(
        "INSERT INTO pipeline_steps (namespace, name, run_id, step) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
        params![namespace, name, run_id, step],
    )?;
    Ok(())
}

/// The step of a pod; `None` if it is not recorded.
pub(crate) fn find(c: &Connection, namespace: &str, name: &str) -> Result<Option<StepRow>, Error> {
    Ok(c.first(
        "SELECT step, outcome FROM pipeline_steps WHERE namespace = ?1 AND name = ?2",
        params![namespace, name],
        |row| {
            let outcome: Option<String> = row.get(1)?;
            // The column is written by `set_outcome` below, so it can be read, except in a database that was edited by hand.
            Ok(StepRow { step: row.get(0)?, outcome: outcome.and_then(|text| serde_json::from_str(&text).ok()) })
        },
    )?)
}

/// Records how the program of a step ended. A recorded success is final: what a superseded pod delivers later has no effect.
pub(crate) fn set_outcome(c: &Connection, namespace: &str, name: &str, outcome: &Outcome) -> Result<(), Error> {
    let Some(recorded) = find(c, namespace, name)? else {
        return Err(Error::NotFound(format!("there is no step '{name}' in namespace '{namespace}'")));
    };
    if matches!(recorded.outcome, Some(Outcome::Succeeded(_))) {
        return Ok(());
    }
    // Another pod of this step may follow a failure, but not a success.
    let step = if matches!(outcome, Outcome::Succeeded(_)) { "" } else { &recorded.step };
    c.execute(
        "UPDATE pipeline_steps SET step = ?3, outcome = ?4 WHERE namespace = ?1 AND name = ?2",
        params![namespace, name, step, to_json(outcome)],
    )?;
    Ok(())
}

/// Namespaces and names of the steps of a run.
pub(crate) fn of_run(c: &Connection, run_id: &str) -> Result<Vec<(String, String)>, Error> {
    let sql = "SELECT namespace, name FROM pipeline_steps WHERE run_id = ?1";
    Ok(c.rows(sql, [Value::from(run_id.to_owned())], |row| Ok((row.get(0)?, row.get(1)?)))?)
}

/// Deletes the steps of a run.
pub(crate) fn forget(c: &Connection, run_id: &str) -> Result<(), Error> {
    c.execute("DELETE FROM pipeline_steps WHERE run_id = ?1", [Value::from(run_id.to_owned())])?;
    Ok(())
}
