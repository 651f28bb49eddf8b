//! Experiments and their tags.

use slipway_store::sql::{Connection, Result as Read, Row, Value, params};

use super::{dynamic, execute, first, key_value, rows};
use crate::model::{Experiment, KeyValue, stage};
use crate::{Error, ErrorCode};

const COLUMNS: &str =
    "e.experiment_id, e.name, e.artifact_location, e.lifecycle_stage, e.last_update_time, e.creation_time";

fn experiment(row: &Row<'_>) -> Read<Experiment> {
    Ok(Experiment {
        experiment_id: row.get::<i64>(0)?.to_string(),
        name: row.get(1)?,
        artifact_location: row.get(2)?,
        lifecycle_stage: row.get(3)?,
        last_update_time: row.get(4)?,
        creation_time: row.get(5)?,
        tags: Vec::new(),
        workspace: "default",
    })
}

fn with_tags(c: &Connection, mut experiment: Experiment) -> Result<Experiment, Error> {
    let id: i64 = experiment.experiment_id.parse().unwrap_or_default();
    experiment.tags =
        rows(c, "SELECT key, value FROM experiment_tags WHERE experiment_id = ?1 ORDER BY key", [id], key_value)?;
    Ok(experiment)
}

/// Creates experiment 0, `Default`, unless it exists.
pub(crate) fn ensure_default(c: &Connection, now: i64) -> Result<(), Error> {
    execute(
        c,
        "INSERT INTO experiments VALUES (0, 'Default', 'mlflow-artifacts:/0', 'active', ?1, ?1) ON CONFLICT DO NOTHING",
        [now],
    )?;
    Ok(())
}

/// Inserts an experiment and returns its id. Without `location` its artifacts are stored in this server's object store.
pub(crate) fn insert(
    c: &Connection,
    name: &str,
    location: Option<&str>,
    tags: &[KeyValue],
    now: i64,
) -> Result<i64, Error> {
    // Check for a duplicate first, because a failed insertion would consume an id.
    if first(c, "SELECT 1 FROM experiments WHERE name = ?1", [name], |_| Ok(()))?.is_some() {
        return Err(Error::new(
            ErrorCode::ResourceAlreadyExists,
            format!("Experiment(name={name}) already exists. Error: UNIQUE constraint failed: experiments.name"),
        ));
    }
    let id = first(
        c,
        "INSERT INTO experiments (name, artifact_location, lifecycle_stage, creation_time, last_update_time)
         VALUES (?1, ?2, 'active', ?3, ?3) RETURNING experiment_id",
        params![name, location.unwrap_or_default(), now],
        |row| row.get(0),
    )?
    .unwrap_or_default();
    if location.is_none() {
        execute(
            c,
            "UPDATE experiments SET artifact_location = 'mlflow-artifacts:/' || experiment_id WHERE experiment_id = ?1",
            [id],
        )?;
    }
    for tag in tags {
        set_tag(c, id, &tag.key, &tag.value)?;
    }
    Ok(id)
}

/// Finds an experiment by its id.
pub(crate) fn find(c: &Connection, id: i64) -> Result<Experiment, Error> {
    let sql = format!("SELECT {COLUMNS} FROM experiments e WHERE e.experiment_id = ?1");
    let found = first(c, &sql, [id], experiment)?
        .ok_or_else(|| Error::missing(format!("No Experiment with id={id} exists")))?;
    with_tags(c, found)
}

/// Artifact location and lifecycle stage of an experiment: all that is needed to create a run in it.
pub(crate) fn location(c: &Connection, id: i64) -> Result<(String, String), Error> {
    first(c, "SELECT artifact_location, lifecycle_stage FROM experiments WHERE experiment_id = ?1", [id], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?
    .ok_or_else(|| Error::missing(format!("No Experiment with id={id} exists")))
}

/// Finds an experiment by its name, deleted ones included.
pub(crate) fn find_by_name(c: &Connection, name: &str) -> Result<Option<Experiment>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM experiments e WHERE e.name = ?1");
    first(c, &sql, [name], experiment)?.map(|e| with_tags(c, e)).transpose()
}

/// Searches experiments in these lifecycle stages.
pub(crate) fn search(
    c: &Connection,
    stages: &str,
    conditions: &super::super::filter::entities::Conditions,
    order: &str,
    limit: i64,
    offset: i64,
) -> Result<Vec<Experiment>, Error> {
    let sql = format!(
        "SELECT {COLUMNS} FROM experiments e WHERE e.lifecycle_stage IN ({stages}){} ORDER BY {order} LIMIT ? OFFSET ?",
        conditions.sql
    );
    let mut values = conditions.params.clone();
    values.extend([Value::from(limit), offset.into()]);
    let found = rows(c, &sql, dynamic(&values).as_slice(), experiment)?;
    found.into_iter().map(|e| with_tags(c, e)).collect()
}

/// Moves the experiment and its runs to another lifecycle stage.
pub(crate) fn set_stage(c: &Connection, id: i64, to: &str, now: i64) -> Result<(), Error> {
    let deleted = (to == stage::DELETED).then_some(now);
    execute(
        c,
        "UPDATE experiments SET lifecycle_stage = ?2, last_update_time = ?3 WHERE experiment_id = ?1",
        params![id, to, now],
    )?;
    execute(
        c,
        "UPDATE runs SET lifecycle_stage = ?2, deleted_time = ?3 WHERE experiment_id = ?1",
        params![id, to, deleted],
    )?;
    Ok(())
}

/// Renames the experiment.
pub(crate) fn rename(c: &Connection, id: i64, name: &str, now: i64) -> Result<(), Error> {
    let renamed = c.execute(
        "UPDATE experiments SET name = ?2, last_update_time = ?3 WHERE experiment_id = ?1",
        params![id, name, now],
    );
    match renamed {
        Ok(_) => Ok(()),
        Err(e) if e.is_duplicate() => {
            Err(Error::new(ErrorCode::BadRequest, format!("Experiment(name={name}) already exists.")))
        }
        Err(e) => Err(e.into()),
    }
}

/// Sets a tag.
pub(crate) fn set_tag(c: &Connection, id: i64, key: &str, value: &str) -> Result<(), Error> {
    execute(
        c,
        "INSERT INTO experiment_tags VALUES (?1, ?2, ?3) ON CONFLICT (experiment_id, key) DO UPDATE SET value = ?3",
        params![id, key, value],
    )?;
    Ok(())
}

/// Removes a tag; returns whether it existed.
pub(crate) fn delete_tag(c: &Connection, id: i64, key: &str) -> Result<bool, Error> {
    Ok(execute(c, "DELETE FROM experiment_tags WHERE experiment_id = ?1 AND key = ?2", params![id, key])? > 0)
}
