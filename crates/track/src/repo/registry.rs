//! Registered models, their versions, tags and aliases.

use std::collections::HashMap;

use slipway_store::sql::{Connection, Result as Read, Row, Value, params};

use super::{dynamic, execute, first, key_value, rows};
use crate::filter::entities::Conditions;
use crate::model::{Alias, KeyValue, ModelVersion, RegisteredModel};
use crate::{Error, ErrorCode};

/// The stage of deleted versions. Their rows are kept, so that a version number is never reused.
const DELETED: &str = "Deleted_Internal";
/// Condition that excludes prompts, which MLflow stores as registered models with a tag.
const NO_PROMPTS: &str = "NOT EXISTS (SELECT 1 FROM registered_model_tags p
     WHERE p.name = {alias}.name AND p.key = 'mlflow.prompt.is_prompt' AND p.value = 'true')";

const VERSION: &str = "v.name, v.version, v.creation_time, v.last_updated_time, v.user_id, v.current_stage, \
     v.description, v.source, v.run_id, v.run_link, v.storage_location";

fn version(row: &Row<'_>) -> Read<ModelVersion> {
    Ok(ModelVersion {
        name: row.get(0)?,
        version: row.get::<i64>(1)?.to_string(),
        creation_timestamp: row.get(2)?,
        last_updated_timestamp: row.get(3)?,
        user_id: row.get(4)?,
        current_stage: row.get(5)?,
        description: row.get(6)?,
        source: row.get(7)?,
        run_id: row.get(8)?,
        status: "READY",
        run_link: row.get(9)?,
        tags: Vec::new(),
        aliases: Vec::new(),
        storage_location: row.get(10)?,
    })
}

fn with_tags(c: &Connection, mut version: ModelVersion) -> Result<ModelVersion, Error> {
    let number: i64 = version.version.parse().unwrap_or_default();
    version.tags = rows(
        c,
        "SELECT key, value FROM model_version_tags WHERE name = ?1 AND version = ?2 ORDER BY key",
        params![version.name, number],
        key_value,
    )?;
    Ok(version)
}

fn with_aliases(c: &Connection, mut version: ModelVersion) -> Result<ModelVersion, Error> {
    let number: i64 = version.version.parse().unwrap_or_default();
    version.aliases = rows(
        c,
        "SELECT alias FROM model_aliases WHERE name = ?1 AND version = ?2 ORDER BY alias",
        params![version.name, number],
        |r| r.get(0),
    )?;
    Ok(version)
}

/// Inserts a model; returns false if the name is taken.
pub(crate) fn insert_model(c: &Connection, name: &str, description: &str, now: i64) -> Result<bool, Error> {
    let added = execute(
        c,
        "INSERT INTO registered_models VALUES (?1, ?2, ?2, ?3) ON CONFLICT DO NOTHING",
        params![name, now, description],
    )?;
    Ok(added == 1)
}

/// Fails unless the model exists.
pub(crate) fn require_model(c: &Connection, name: &str) -> Result<(), Error> {
    first(c, "SELECT 1 FROM registered_models WHERE name = ?1", [name], |_| Ok(()))?
        .ok_or_else(|| Error::missing(format!("Registered Model with name={name} not found")))
}

fn model(row: &Row<'_>) -> Read<RegisteredModel> {
    Ok(RegisteredModel {
        name: row.get(0)?,
        creation_timestamp: row.get(1)?,
        last_updated_timestamp: row.get(2)?,
        // Protocol buffers omit an empty description.
        description: row.get::<Option<String>>(3)?.filter(|d| !d.is_empty()),
        latest_versions: Vec::new(),
        tags: Vec::new(),
        aliases: Vec::new(),
    })
}

const MODEL: &str = "m.name, m.creation_time, m.last_updated_time, m.description";

/// Loads the tags, aliases and newest versions of a model.
fn load(c: &Connection, mut model: RegisteredModel) -> Result<RegisteredModel, Error> {
    model.tags =
        rows(c, "SELECT key, value FROM registered_model_tags WHERE name = ?1 ORDER BY key", [&model.name], key_value)?;
    model.aliases =
        rows(c, "SELECT alias, version FROM model_aliases WHERE name = ?1 ORDER BY alias", [&model.name], |r| {
            Ok(Alias { alias: r.get(0)?, version: r.get::<i64>(1)?.to_string() })
        })?;
    model.latest_versions = latest(c, &model.name)?;
    Ok(model)
}

/// Finds a model by its name.
pub(crate) fn find_model(c: &Connection, name: &str) -> Result<RegisteredModel, Error> {
    let found = first(c, &format!("SELECT {MODEL} FROM registered_models m WHERE m.name = ?1"), [name], model)?
        .ok_or_else(|| Error::missing(format!("Registered Model with name={name} not found")))?;
    load(c, found)
}

/// The newest version of each stage.
pub(crate) fn latest(c: &Connection, name: &str) -> Result<Vec<ModelVersion>, Error> {
    let sql = format!(
        "SELECT {VERSION} FROM model_versions v WHERE v.name = ?1 AND v.current_stage <> '{DELETED}' AND v.version =
         (SELECT max(version) FROM model_versions w WHERE w.name = v.name AND w.current_stage = v.current_stage)
         ORDER BY v.version"
    );
    rows(c, &sql, [name], version)?.into_iter().map(|v| with_tags(c, v)).collect()
}

/// Searches registered models.
pub(crate) fn search_models(
    c: &Connection,
    conditions: &Conditions,
    order: &str,
    limit: i64,
    offset: i64,
) -> Result<Vec<RegisteredModel>, Error> {
    let prompts = if conditions.prompts { "NOT " } else { "" };
    let sql = format!(
        "SELECT {MODEL} FROM registered_models m WHERE {prompts}{}{} ORDER BY {order} LIMIT ? OFFSET ?",
        NO_PROMPTS.replace("{alias}", "m"),
        conditions.sql
    );
    let mut values = conditions.params.clone();
    values.extend([Value::from(limit), offset.into()]);
    rows(c, &sql, dynamic(&values).as_slice(), model)?.into_iter().map(|m| load(c, m)).collect()
}

/// Sets the description.
pub(crate) fn describe_model(c: &Connection, name: &str, description: &str, now: i64) -> Result<(), Error> {
    execute(
        c,
        "UPDATE registered_models SET description = ?2, last_updated_time = ?3 WHERE name = ?1",
        params![name, description, now],
    )?;
    Ok(())
}

/// Renames the model. Its versions, tags and aliases follow by `ON UPDATE CASCADE`.
pub(crate) fn rename_model(c: &Connection, name: &str, new_name: &str, now: i64) -> Result<(), Error> {
    let renamed = c.execute(
        "UPDATE registered_models SET name = ?2, last_updated_time = ?3 WHERE name = ?1",
        params![name, new_name, now],
    );
    match renamed {
        Ok(_) => {}
        Err(e) if e.is_duplicate() => {
            return Err(Error::new(
                ErrorCode::ResourceAlreadyExists,
                format!(
                    "Registered Model (name={new_name}) already exists. Error: UNIQUE constraint failed: registered_models.name"
                ),
            ));
        }
        Err(e) => return Err(e.into()),
    }
    execute(c, "UPDATE model_versions SET last_updated_time = ?2 WHERE name = ?1", params![new_name, now])?;
    Ok(())
}

/// Deletes the model. Its versions, tags and aliases are deleted by `ON DELETE CASCADE`.
pub(crate) fn delete_model(c: &Connection, name: &str) -> Result<(), Error> {
    execute(c, "DELETE FROM registered_models WHERE name = ?1", [name])?;
    Ok(())
}

/// Updates the model's time of the last change.
pub(crate) fn touch_model(c: &Connection, name: &str, now: i64) -> Result<(), Error> {
    execute(c, "UPDATE registered_models SET last_updated_time = ?2 WHERE name = ?1", params![name, now])?;
    Ok(())
}

/// The value of a model's tag.
pub(crate) fn model_tag(c: &Connection, name: &str, key: &str) -> Result<Option<String>, Error> {
    first(c, "SELECT value FROM registered_model_tags WHERE name = ?1 AND key = ?2", [name, key], |r| r.get(0))
}

/// Sets a model's tag.
pub(crate) fn set_model_tag(c: &Connection, name: &str, tag: &KeyValue) -> Result<(), Error> {
    execute(
        c,
        "INSERT INTO registered_model_tags VALUES (?1, ?2, ?3) ON CONFLICT (name, key) DO UPDATE SET value = ?3",
        params![name, tag.key, tag.value],
    )?;
    Ok(())
}

/// Removes a model's tag.
pub(crate) fn delete_model_tag(c: &Connection, name: &str, key: &str) -> Result<(), Error> {
    execute(c, "DELETE FROM registered_model_tags WHERE name = ?1 AND key = ?2", [name, key])?;
    Ok(())
}

/// The columns of a new model version.
pub(crate) struct NewVersion<'a> {
    pub(crate) name: &'a str,
    pub(crate) source: &'a str,
    pub(crate) storage_location: &'a str,
    pub(crate) run_id: &'a str,
    pub(crate) run_link: &'a str,
    pub(crate) description: &'a str,
    pub(crate) model_id: &'a str,
}

/// Inserts a version with the next number, and returns the number.
pub(crate) fn insert_version(c: &Connection, new: &NewVersion<'_>, now: i64) -> Result<i64, Error> {
    let number: i64 =
        first(c, "SELECT coalesce(max(version), 0) + 1 FROM model_versions WHERE name = ?1", [new.name], |r| r.get(0))?
            .unwrap_or(1);
    execute(
        c,
        "INSERT INTO model_versions VALUES (?1, ?2, ?3, ?3, ?4, NULL, 'None', ?5, ?6, ?7, ?8, ?9)",
        params![
            new.name,
            number,
            now,
            new.description,
            new.source,
            new.storage_location,
            new.run_id,
            new.run_link,
            new.model_id
        ],
    )?;
    Ok(number)
}

/// Finds a version by model name and number.
pub(crate) fn find_version(c: &Connection, name: &str, number: i64) -> Result<ModelVersion, Error> {
    let sql = format!(
        "SELECT {VERSION} FROM model_versions v WHERE v.name = ?1 AND v.version = ?2 AND v.current_stage <> '{DELETED}'"
    );
    let found = first(c, &sql, params![name, number], version)?
        .ok_or_else(|| Error::missing(format!("Model Version (name={name}, version={number}) not found")))?;
    with_aliases(c, with_tags(c, found)?)
}

/// The id of the logged model from which the version was created; empty if there is none.
pub(crate) fn version_model_id(c: &Connection, name: &str, number: i64) -> Result<String, Error> {
    Ok(first(
        c,
        "SELECT coalesce(model_id, '') FROM model_versions WHERE name = ?1 AND version = ?2",
        params![name, number],
        |r| r.get(0),
    )?
    .unwrap_or_default())
}

/// Searches model versions.
pub(crate) fn search_versions(
    c: &Connection,
    conditions: &Conditions,
    order: &str,
    limit: i64,
    offset: i64,
) -> Result<Vec<ModelVersion>, Error> {
    let prompts = if conditions.prompts { "NOT " } else { "" };
    let sql = format!(
        "SELECT {VERSION} FROM model_versions v WHERE v.current_stage <> '{DELETED}' AND {prompts}{}{}
         ORDER BY {order} LIMIT ? OFFSET ?",
        NO_PROMPTS.replace("{alias}", "v"),
        conditions.sql
    );
    let mut values = conditions.params.clone();
    values.extend([Value::from(limit), offset.into()]);
    rows(c, &sql, dynamic(&values).as_slice(), version)?.into_iter().map(|v| with_tags(c, v)).collect()
}

/// Sets the description.
pub(crate) fn describe_version(
    c: &Connection,
    name: &str,
    number: i64,
    description: Option<&str>,
    now: i64,
) -> Result<(), Error> {
    execute(
        c,
        "UPDATE model_versions SET description = ?3, last_updated_time = ?4 WHERE name = ?1 AND version = ?2",
        params![name, number, description, now],
    )?;
    Ok(())
}

/// Moves the version to a stage. With `archive`, moves the other versions of this stage to `Archived`.
pub(crate) fn set_version_stage(
    c: &Connection,
    name: &str,
    number: i64,
    stage: &str,
    archive: bool,
    now: i64,
) -> Result<(), Error> {
    if archive {
        execute(
            c,
            "UPDATE model_versions SET current_stage = 'Archived', last_updated_time = ?4
             WHERE name = ?1 AND version <> ?2 AND current_stage = ?3",
            params![name, number, stage, now],
        )?;
    }
    execute(
        c,
        "UPDATE model_versions SET current_stage = ?3, last_updated_time = ?4 WHERE name = ?1 AND version = ?2",
        params![name, number, stage, now],
    )?;
    touch_model(c, name, now)
}

/// Marks the version as deleted and redacts its fields, as MLflow does.
pub(crate) fn delete_version(c: &Connection, name: &str, number: i64, now: i64) -> Result<(), Error> {
    execute(c, "DELETE FROM model_aliases WHERE name = ?1 AND version = ?2", params![name, number])?;
    execute(
        c,
        "UPDATE model_versions SET current_stage = 'Deleted_Internal', last_updated_time = ?3, description = NULL,
         user_id = NULL, source = 'REDACTED-SOURCE-PATH', storage_location = '', run_id = 'REDACTED-RUN-ID',
         run_link = 'REDACTED-RUN-LINK' WHERE name = ?1 AND version = ?2",
        params![name, number, now],
    )?;
    touch_model(c, name, now)
}

/// Sets a version's tag.
pub(crate) fn set_version_tag(c: &Connection, name: &str, number: i64, tag: &KeyValue) -> Result<(), Error> {
    execute(
        c,
        "INSERT INTO model_version_tags VALUES (?1, ?2, ?3, ?4) ON CONFLICT (name, version, key) DO UPDATE SET value = ?4",
        params![name, number, tag.key, tag.value],
    )?;
    Ok(())
}

/// Removes a version's tag.
pub(crate) fn delete_version_tag(c: &Connection, name: &str, number: i64, key: &str) -> Result<(), Error> {
    execute(
        c,
        "DELETE FROM model_version_tags WHERE name = ?1 AND version = ?2 AND key = ?3",
        params![name, number, key],
    )?;
    Ok(())
}

/// Sets an alias to a version.
pub(crate) fn set_alias(c: &Connection, name: &str, alias: &str, number: i64) -> Result<(), Error> {
    execute(
        c,
        "INSERT INTO model_aliases VALUES (?1, ?2, ?3) ON CONFLICT (name, alias) DO UPDATE SET version = ?3",
        params![name, alias, number],
    )?;
    Ok(())
}

/// Removes an alias.
pub(crate) fn delete_alias(c: &Connection, name: &str, alias: &str) -> Result<(), Error> {
    execute(c, "DELETE FROM model_aliases WHERE name = ?1 AND alias = ?2", [name, alias])?;
    Ok(())
}

/// The number of the version to which an alias points.
pub(crate) fn alias(c: &Connection, name: &str, alias: &str) -> Result<Option<i64>, Error> {
    first(c, "SELECT version FROM model_aliases WHERE name = ?1 AND alias = ?2", [name, alias], |r| r.get(0))
}

/// The model versions created from these runs, as `(name, version)` keyed by run id.
pub(crate) fn versions_of_runs(
    c: &Connection,
    run_ids: &[String],
) -> Result<HashMap<String, Vec<(String, i64)>>, Error> {
    let mut found: HashMap<String, Vec<(String, i64)>> = HashMap::new();
    for run_id in run_ids {
        let versions = rows(
            c,
            "SELECT name, version FROM model_versions WHERE run_id = ?1 AND current_stage <> 'Deleted_Internal' ORDER BY name, version",
            [run_id],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )?;
        if !versions.is_empty() {
            found.insert(run_id.clone(), versions);
        }
    }
    Ok(found)
}
