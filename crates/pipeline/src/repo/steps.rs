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
    /// The worker that executes it, or has executed it.
    pub(crate) worker: Option<Worker>,
}

/// An attempt of a worker of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Worker {
    /// Name of the executor's run.
    pub(crate) run: String,
    /// Number of the run's attempt, from 1.
    pub(crate) attempt: u32,
}

impl Worker {
    /// How tokens of steps name it.
    pub(crate) fn id(&self) -> String {
        format!("{}.{}", self.run, self.attempt)
    }
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
        "SELECT step, outcome, worker, worker_attempt FROM pipeline_steps WHERE namespace = ?1 AND name = ?2",
        params![namespace, name],
        |row| {
            let outcome: Option<String> = row.get(1)?;
            let worker =
                Some(Worker { run: row.get(2)?, attempt: row.get(3)? }).filter(|worker| !worker.run.is_empty());
            // The column is written by `set_outcome` below, so it can be read, except in a database that was edited by hand.
            let outcome = outcome.and_then(|text| serde_json::from_str(&text).ok());
            Ok(StepRow { step: row.get(0)?, outcome, worker })
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

/// Gives a step that waits to a worker. Returns whether it was waiting.
pub(crate) fn assign(c: &Connection, namespace: &str, name: &str, worker: &Worker) -> Result<bool, Error> {
    let changed = c.execute(
        "UPDATE pipeline_steps SET worker = ?3, worker_attempt = ?4 WHERE namespace = ?1 AND name = ?2 AND worker = '' AND outcome IS NULL",
        params![namespace, name, worker.run, worker.attempt],
    )?;
    Ok(changed == 1)
}

/// Takes a step away from a worker that is lost, unless its outcome is known.
pub(crate) fn release(c: &Connection, namespace: &str, name: &str, worker: &Worker) -> Result<(), Error> {
    c.execute(
        "UPDATE pipeline_steps SET worker = '', worker_attempt = 0
         WHERE namespace = ?1 AND name = ?2 AND worker = ?3 AND worker_attempt = ?4 AND outcome IS NULL",
        params![namespace, name, worker.run, worker.attempt],
    )?;
    Ok(())
}

/// The name of the step that a worker was given and that has no outcome.
pub(crate) fn held_by(c: &Connection, namespace: &str, worker: &Worker) -> Result<Option<String>, Error> {
    Ok(c.first(
        "SELECT name FROM pipeline_steps WHERE namespace = ?1 AND worker = ?2 AND worker_attempt = ?3 AND outcome IS NULL",
        params![namespace, worker.run, worker.attempt],
        |row| row.get(0),
    )?)
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
