//! Artifacts that tasks produced or imported.

use slipway_store::sql::{Connection, Result as Read, Row, Value, params};

use super::{json, runs, to_json};
use crate::Error;
use crate::model::{Artifact, TaskPath};

const COLUMNS: &str = "artifact, schema_title, schema_version, uri, metadata, digest";

fn artifact(row: &Row<'_>) -> Read<Artifact> {
    Ok(Artifact {
        id: row.get::<i64>(0)?.to_string(),
        schema_title: row.get(1)?,
        schema_version: row.get(2)?,
        uri: row.get(3)?,
        metadata: json(row, 4)?,
        digest: row.get(5)?,
    })
}

/// Records the artifacts of an output of a task, and gives each its id. Those of an earlier attempt are replaced.
pub fn insert(
    c: &Connection,
    run_id: &str,
    task: &TaskPath,
    name: &str,
    artifacts: &mut [Artifact],
    now: i64,
) -> Result<(), Error> {
    let (run, namespace, pipeline_name) = runs::identity(c, run_id)?;
    c.execute("DELETE FROM pipeline_artifacts WHERE run = ?1 AND task = ?2 AND name = ?3", params![run, task.0, name])?;
    for (position, item) in (0_i64..).zip(artifacts) {
        let id: Option<i64> = c.first(
            "INSERT INTO pipeline_artifacts (run, task, name, position, namespace, pipeline_name, schema_title, schema_version, uri,
               metadata, digest, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) RETURNING artifact",
            params![
                run,
                task.0,
                name,
                position,
                namespace,
                pipeline_name,
                item.schema_title,
                item.schema_version,
                item.uri,
                to_json(&item.metadata),
                item.digest,
                now
            ],
            |row| row.get(0),
        )?;
        item.id = id.unwrap_or_default().to_string();
    }
    Ok(())
}

/// The artifacts of an output of a task, in their order.
pub fn of_output(c: &Connection, run_id: &str, task: &TaskPath, name: &str) -> Result<Vec<Artifact>, Error> {
    let run = runs::row(c, run_id)?;
    let sql = format!(
        "SELECT {COLUMNS} FROM pipeline_artifacts WHERE run = ?1 AND task = ?2 AND name = ?3 ORDER BY position"
    );
    Ok(c.rows(&sql, params![run, task.0, name], artifact)?)
}

/// The artifact with this id and its namespace.
pub fn find(c: &Connection, id: &str) -> Result<Option<(String, Artifact)>, Error> {
    let Ok(id) = id.parse::<i64>() else { return Ok(None) };
    let sql = format!("SELECT {COLUMNS}, namespace FROM pipeline_artifacts WHERE artifact = ?1");
    Ok(c.first(&sql, [Value::from(id)], |row| Ok((row.get(6)?, artifact(row)?)))?)
}

/// An artifact of this pipeline with the same type, URI and metadata, which an importer reuses; the newest one.
pub fn find_same(
    c: &Connection,
    namespace: &str,
    pipeline_name: &str,
    wanted: &Artifact,
) -> Result<Option<Artifact>, Error> {
    let sql = format!(
        "SELECT {COLUMNS} FROM pipeline_artifacts
         WHERE uri = ?1 AND namespace = ?2 AND pipeline_name = ?3 AND schema_title = ?4 ORDER BY artifact DESC"
    );
    let found = c.rows(&sql, params![wanted.uri, namespace, pipeline_name, wanted.schema_title], artifact)?;
    Ok(found.into_iter().find(|found| found.metadata == wanted.metadata))
}
