//! Logged models (MLflow 3).

use slipway_store::sql::{Connection, Result as Read, Row, Value, params};

use super::{dynamic, execute, first, key_value, placeholders, rows};
use crate::Error;
use crate::model::{KeyValue, LoggedModel, LoggedModelData, LoggedModelInfo, Metric};

const COLUMNS: &str = "m.model_id, m.experiment_id, m.name, m.creation_timestamp_ms, m.last_updated_timestamp_ms, \
     m.artifact_location, m.status, m.model_type, m.source_run_id, m.status_message, m.lifecycle_stage";

/// Names of the statuses, indexed by number (`LoggedModelStatus` in `service.proto`).
const STATUS: [&str; 4] =
    ["LOGGED_MODEL_STATUS_UNSPECIFIED", "LOGGED_MODEL_PENDING", "LOGGED_MODEL_READY", "LOGGED_MODEL_UPLOAD_FAILED"];

/// The number of a status name; `None` if it is unknown.
pub(crate) fn status_number(name: &str) -> Option<i64> {
    STATUS.iter().position(|s| *s == name).and_then(|n| i64::try_from(n).ok())
}

fn model(row: &Row<'_>) -> Read<(LoggedModel, String)> {
    let status: usize = row.get::<i64>(6)?.try_into().unwrap_or(0);
    Ok((
        LoggedModel {
            info: LoggedModelInfo {
                model_id: row.get(0)?,
                experiment_id: row.get::<i64>(1)?.to_string(),
                name: row.get(2)?,
                creation_timestamp_ms: row.get(3)?,
                last_updated_timestamp_ms: row.get(4)?,
                artifact_uri: row.get(5)?,
                status: STATUS.get(status).copied().unwrap_or(STATUS[0]),
                model_type: row.get(7)?,
                source_run_id: row.get(8)?,
                status_message: row.get(9)?,
                tags: Vec::new(),
            },
            data: LoggedModelData::default(),
        },
        row.get(10)?,
    ))
}

/// Loads the tags, parameters and metrics of a logged model.
fn load(c: &Connection, mut model: LoggedModel) -> Result<LoggedModel, Error> {
    let id = &model.info.model_id;
    model.info.tags =
        rows(c, "SELECT key, value FROM logged_model_tags WHERE model_id = ?1 ORDER BY key", [id], key_value)?;
    model.data.params =
        rows(c, "SELECT key, value FROM logged_model_params WHERE model_id = ?1 ORDER BY key", [id], key_value)?;
    model.data.metrics = rows(
        c,
        "SELECT key, value, timestamp, step, run_id, dataset_name, dataset_digest
         FROM logged_model_metrics WHERE model_id = ?1 ORDER BY key, timestamp, step, run_id",
        [id],
        |r| {
            Ok(Metric {
                key: r.get(0)?,
                value: r.get(1)?,
                timestamp: r.get(2)?,
                step: r.get(3)?,
                run_id: r.get(4)?,
                model_id: Some(id.clone()),
                dataset_name: r.get(5)?,
                dataset_digest: r.get(6)?,
            })
        },
    )?;
    Ok(model)
}

/// Inserts a logged model with the status pending.
pub(crate) fn insert(c: &Connection, info: &LoggedModelInfo) -> Result<(), Error> {
    let experiment: i64 = info.experiment_id.parse().unwrap_or_default();
    execute(
        c,
        "INSERT INTO logged_models VALUES (?1, ?2, ?3, ?4, ?5, ?5, 1, 'active', ?6, ?7, NULL)",
        params![
            info.model_id,
            experiment,
            info.name,
            info.artifact_uri,
            info.creation_timestamp_ms,
            info.model_type,
            info.source_run_id
        ],
    )?;
    Ok(())
}

/// Finds a logged model by its id. Deleted ones are found only with `include_deleted`.
pub(crate) fn find(c: &Connection, id: &str, include_deleted: bool) -> Result<LoggedModel, Error> {
    let sql = format!("SELECT {COLUMNS} FROM logged_models m WHERE m.model_id = ?1");
    match first(c, &sql, [id], model)? {
        Some((found, stage)) if include_deleted || stage != "deleted" => load(c, found),
        _ => Err(Error::missing(format!("Logged model with ID '{id}' not found."))),
    }
}

/// Sets the status; returns false if there is no such model.
pub(crate) fn set_status(c: &Connection, id: &str, status: i64, now: i64) -> Result<bool, Error> {
    let sql = "UPDATE logged_models SET status = ?2, last_updated_timestamp_ms = ?3 WHERE model_id = ?1";
    Ok(execute(c, sql, params![id, status, now])? > 0)
}

/// Marks the model as deleted; returns false if there is no such model.
pub(crate) fn delete(c: &Connection, id: &str, now: i64) -> Result<bool, Error> {
    let sql =
        "UPDATE logged_models SET lifecycle_stage = 'deleted', last_updated_timestamp_ms = ?2 WHERE model_id = ?1";
    Ok(execute(c, sql, params![id, now])? > 0)
}

/// Sets a tag.
pub(crate) fn set_tag(c: &Connection, id: &str, tag: &KeyValue) -> Result<(), Error> {
    execute(
        c,
        "INSERT INTO logged_model_tags VALUES (?1, ?2, ?3) ON CONFLICT (model_id, key) DO UPDATE SET value = ?3",
        params![id, tag.key, tag.value],
    )?;
    Ok(())
}

/// Removes a tag; returns whether it existed.
pub(crate) fn delete_tag(c: &Connection, id: &str, key: &str) -> Result<bool, Error> {
    Ok(execute(c, "DELETE FROM logged_model_tags WHERE model_id = ?1 AND key = ?2", [id, key])? > 0)
}

/// Inserts a parameter; returns false if the key exists already.
pub(crate) fn add_param(c: &Connection, id: &str, param: &KeyValue) -> Result<bool, Error> {
    let sql = "INSERT INTO logged_model_params VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    Ok(execute(c, sql, params![id, param.key, param.value])? > 0)
}

/// Inserts a point of a metric; a duplicate is ignored.
pub(crate) fn add_metric(c: &Connection, model_id: &str, run_id: &str, metric: &Metric) -> Result<(), Error> {
    let value = if metric.value.is_nan() { 0.0 } else { metric.value };
    execute(
        c,
        "INSERT INTO logged_model_metrics VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING",
        params![
            model_id,
            metric.key,
            metric.timestamp,
            metric.step,
            run_id,
            value,
            metric.dataset_name,
            metric.dataset_digest
        ],
    )?;
    Ok(())
}

/// Searches the logged models of these experiments.
pub(crate) fn search(
    c: &Connection,
    experiments: &[i64],
    (conditions, condition_params): (&str, &[Value]),
    (order, order_params): (&str, &[Value]),
    limit: i64,
    offset: i64,
) -> Result<Vec<LoggedModel>, Error> {
    let placeholders = placeholders(experiments.len());
    let sql = format!(
        "SELECT {COLUMNS} FROM logged_models m WHERE m.lifecycle_stage <> 'deleted' AND m.experiment_id IN ({placeholders}){conditions}
         ORDER BY {order} LIMIT ? OFFSET ?"
    );
    let mut values: Vec<Value> = experiments.iter().map(|id| Value::from(*id)).collect();
    values.extend_from_slice(condition_params);
    values.extend_from_slice(order_params);
    values.extend([Value::from(limit), offset.into()]);
    let found = rows(c, &sql, dynamic(&values).as_slice(), model)?;
    found.into_iter().map(|(m, _)| load(c, m)).collect()
}
