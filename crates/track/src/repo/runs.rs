//! Runs, their tags, parameters, datasets and models.

use slipway_store::sql::{Connection, Result as Read, Row, Value, params};

use super::{dynamic, execute, first, key_value, placeholders, rows};
use crate::Error;
use crate::filter::runs::Query;
use crate::model::{
    Dataset, DatasetInput, KeyValue, Metric, ModelInput, ModelOutput, Run, RunData, RunInfo, RunInputs, RunOutputs,
    stage,
};

const COLUMNS: &str = "r.run, r.run_id, r.experiment_id, r.name, r.user_id, r.status, r.start_time, r.end_time, \
     r.artifact_uri, r.lifecycle_stage";

/// A row of the table `runs`.
pub(crate) struct RunRow {
    /// The integer key of the run, which other tables refer to.
    pub(crate) run: i64,
    pub(crate) info: RunInfo,
}

fn info(row: &Row<'_>) -> Read<RunRow> {
    let run_id: String = row.get(1)?;
    Ok(RunRow {
        run: row.get(0)?,
        info: RunInfo {
            run_uuid: run_id.clone(),
            run_id,
            experiment_id: row.get::<i64>(2)?.to_string(),
            run_name: row.get(3)?,
            user_id: row.get(4)?,
            status: row.get(5)?,
            start_time: row.get(6)?,
            end_time: row.get(7)?,
            artifact_uri: row.get(8)?,
            lifecycle_stage: row.get(9)?,
        },
    })
}

/// Inserts a run with its tags.
pub(crate) fn insert(c: &Connection, info: &RunInfo, tags: &[KeyValue]) -> Result<(), Error> {
    let experiment_id: i64 = info.experiment_id.parse().unwrap_or_default();
    let run: Option<i64> = c.first(
        "INSERT INTO runs (run_id, experiment_id, name, user_id, status, start_time, lifecycle_stage, artifact_uri)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'active', ?7) RETURNING run",
        params![
            info.run_id,
            experiment_id,
            info.run_name,
            info.user_id,
            info.status,
            info.start_time,
            info.artifact_uri
        ],
        |row| row.get(0),
    )?;
    set_tags(c, run.unwrap_or_default(), tags)
}

/// Finds a run by its id.
pub(crate) fn find(c: &Connection, run_id: &str) -> Result<RunRow, Error> {
    first(c, &format!("SELECT {COLUMNS} FROM runs r WHERE r.run_id = ?1"), [run_id], info)?
        .ok_or_else(|| Error::missing(format!("Run with id={run_id} not found")))
}

/// The values of two tags of a run; `None` if the run does not exist or is deleted.
pub(crate) fn tags_of_active(
    c: &Connection,
    run_id: &str,
    [one, two]: [&str; 2],
) -> Result<Option<[Option<String>; 2]>, Error> {
    let query = "SELECT r.lifecycle_stage, (SELECT t.value FROM tags t WHERE t.run = r.run AND t.key = ?2),
         (SELECT t.value FROM tags t WHERE t.run = r.run AND t.key = ?3) FROM runs r WHERE r.run_id = ?1";
    let found = first(c, query, [run_id, one, two], |row| Ok((row.get::<String>(0)?, [row.get(1)?, row.get(2)?])))?;
    Ok(found.and_then(|(stage, tags)| (stage == stage::ACTIVE).then_some(tags)))
}

/// The integer key and the experiment id of an active run. A deleted run is an error, because it must not be changed.
pub(crate) fn active(c: &Connection, run_id: &str) -> Result<(i64, i64), Error> {
    let found = first(c, "SELECT run, experiment_id, lifecycle_stage FROM runs WHERE run_id = ?1", [run_id], |row| {
        Ok((row.get::<i64>(0)?, row.get::<i64>(1)?, row.get::<String>(2)?))
    })?;
    match found {
        None => Err(Error::missing(format!("Run with id={run_id} not found"))),
        Some((run, experiment, stage)) if stage == stage::ACTIVE => Ok((run, experiment)),
        Some((_, _, stage)) => {
            Err(Error::invalid(format!("The run {run_id} must be in the 'active' state. Current state is {stage}.")))
        }
    }
}

/// Loads the metrics, parameters, tags, inputs and outputs of a run.
pub(crate) fn load(c: &Connection, row: RunRow) -> Result<Run, Error> {
    let run = row.run;
    let metrics = rows(
        c,
        "SELECT key, value, is_nan, timestamp, step FROM latest_metrics WHERE run = ?1 ORDER BY key",
        [run],
        |r| {
            let nan: bool = r.get(2)?;
            Ok(Metric {
                key: r.get(0)?,
                value: if nan { f64::NAN } else { r.get(1)? },
                timestamp: r.get(3)?,
                step: r.get(4)?,
                run_id: None,
                model_id: None,
                dataset_name: None,
                dataset_digest: None,
            })
        },
    )?;
    let params = rows(c, "SELECT key, value FROM params WHERE run = ?1 ORDER BY key", [run], key_value)?;
    let tags = rows(c, "SELECT key, value FROM tags WHERE run = ?1 ORDER BY key", [run], key_value)?;
    let dataset_inputs = rows(
        c,
        "SELECT i.tags, d.name, d.digest, d.source_type, d.source, d.schema, d.profile
         FROM run_datasets i JOIN datasets d USING (dataset) WHERE i.run = ?1 ORDER BY i.dataset",
        [run],
        |r| {
            Ok(DatasetInput {
                tags: serde_json::from_str(&r.get::<String>(0)?).unwrap_or_default(),
                dataset: Some(Dataset {
                    name: r.get(1)?,
                    digest: r.get(2)?,
                    source_type: r.get(3)?,
                    source: r.get(4)?,
                    schema: r.get(5)?,
                    profile: r.get(6)?,
                }),
            })
        },
    )?;
    let model_inputs = rows(c, "SELECT model_id FROM run_model_inputs WHERE run = ?1 ORDER BY model_id", [run], |r| {
        Ok(ModelInput { model_id: r.get(0)? })
    })?;
    let model_outputs =
        rows(c, "SELECT model_id, step FROM run_model_outputs WHERE run = ?1 ORDER BY model_id, step", [run], |r| {
            Ok(ModelOutput { model_id: r.get(0)?, step: r.get(1)? })
        })?;
    Ok(Run {
        info: row.info,
        data: RunData { metrics, params, tags },
        inputs: RunInputs { dataset_inputs, model_inputs },
        outputs: Some(RunOutputs { model_outputs }),
    })
}

/// Searches the runs of these experiments in these lifecycle stages.
pub(crate) fn search(
    c: &Connection,
    experiments: &[i64],
    stages: &str,
    query: &Query,
    limit: i64,
    offset: i64,
) -> Result<Vec<RunRow>, Error> {
    let placeholders = placeholders(experiments.len());
    let sql = format!(
        "SELECT {COLUMNS} FROM runs r{} WHERE r.experiment_id IN ({placeholders}) AND r.lifecycle_stage IN ({stages}){} \
         ORDER BY {} LIMIT ? OFFSET ?",
        query.joins, query.conditions, query.order
    );
    let mut values = query.join_params.clone();
    values.extend(experiments.iter().map(|id| Value::from(*id)));
    values.extend(query.condition_params.iter().cloned());
    values.extend([Value::from(limit), offset.into()]);
    rows(c, &sql, dynamic(&values).as_slice(), info)
}

/// Sets status, end time and name where given. The name is also stored in the tag `mlflow.runName`.
pub(crate) fn update(
    c: &Connection,
    run: i64,
    status: Option<&str>,
    end_time: Option<i64>,
    name: Option<&str>,
) -> Result<(), Error> {
    execute(
        c,
        "UPDATE runs SET status = coalesce(?2, status), end_time = coalesce(?3, end_time), name = coalesce(?4, name)
         WHERE run = ?1",
        params![run, status, end_time, name],
    )?;
    if let Some(name) = name {
        set_tag(c, run, "mlflow.runName", name)?;
    }
    Ok(())
}

/// Moves the run to another lifecycle stage.
pub(crate) fn set_stage(c: &Connection, run_id: &str, to: &str, now: i64) -> Result<(), Error> {
    let deleted = (to == stage::DELETED).then_some(now);
    let changed = execute(
        c,
        "UPDATE runs SET lifecycle_stage = ?2, deleted_time = ?3 WHERE run_id = ?1",
        params![run_id, to, deleted],
    )?;
    if changed == 0 { Err(Error::missing(format!("Run with id={run_id} not found"))) } else { Ok(()) }
}

const SET_TAG: &str = "INSERT INTO tags VALUES (?1, ?2, ?3) ON CONFLICT (run, key) DO UPDATE SET value = ?3";

/// Sets a tag.
pub(crate) fn set_tag(c: &Connection, run: i64, key: &str, value: &str) -> Result<(), Error> {
    execute(c, SET_TAG, params![run, key, value])?;
    Ok(())
}

/// Sets tags; if a key occurs twice, the last value wins.
pub(crate) fn set_tags<'a>(
    c: &Connection,
    run: i64,
    tags: impl IntoIterator<Item = &'a KeyValue>,
) -> Result<(), Error> {
    let all =
        tags.into_iter().map(|tag| -> [Value; 3] { [run.into(), tag.key.clone().into(), tag.value.clone().into()] });
    Ok(c.execute_each(SET_TAG, all)?)
}

/// The value of a tag.
pub(crate) fn tag(c: &Connection, run: i64, key: &str) -> Result<Option<String>, Error> {
    first(c, "SELECT value FROM tags WHERE run = ?1 AND key = ?2", params![run, key], |r| r.get(0))
}

/// Removes a tag; returns whether it existed.
pub(crate) fn delete_tag(c: &Connection, run: i64, key: &str) -> Result<bool, Error> {
    Ok(execute(c, "DELETE FROM tags WHERE run = ?1 AND key = ?2", params![run, key])? > 0)
}

/// Inserts a parameter. If the key exists, returns its unchanged value; otherwise `None`.
pub(crate) fn add_param(c: &Connection, run: i64, param: &KeyValue) -> Result<Option<String>, Error> {
    let added = execute(
        c,
        "INSERT INTO params VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
        params![run, param.key, param.value],
    )?;
    if added == 1 {
        return Ok(None);
    }
    first(c, "SELECT value FROM params WHERE run = ?1 AND key = ?2", params![run, param.key], |r| r.get(0))
}

/// Records a dataset as an input of the run. If it is recorded already, the first record is kept.
pub(crate) fn add_dataset(
    c: &Connection,
    run: i64,
    experiment_id: i64,
    dataset: &Dataset,
    tags: &[KeyValue],
) -> Result<(), Error> {
    execute(
        c,
        "INSERT INTO datasets (experiment_id, name, digest, source_type, source, schema, profile)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
        params![
            experiment_id,
            dataset.name,
            dataset.digest,
            dataset.source_type,
            dataset.source,
            dataset.schema,
            dataset.profile
        ],
    )?;
    let context = tags.iter().find(|t| t.key == "mlflow.data.context").map(|t| t.value.as_str());
    let tags = serde_json::to_string(tags).unwrap_or_else(|_| "[]".into());
    execute(
        c,
        "INSERT INTO run_datasets SELECT ?1, dataset, ?5, ?6 FROM datasets
         WHERE experiment_id = ?2 AND name = ?3 AND digest = ?4 ON CONFLICT DO NOTHING",
        params![run, experiment_id, dataset.name, dataset.digest, tags, context],
    )?;
    Ok(())
}

/// Records a logged model as an input of the run.
pub(crate) fn add_model_input(c: &Connection, run: i64, model_id: &str) -> Result<(), Error> {
    execute(c, "INSERT INTO run_model_inputs VALUES (?1, ?2) ON CONFLICT DO NOTHING", params![run, model_id])?;
    Ok(())
}

/// Records a logged model as an output of the run.
pub(crate) fn add_model_output(c: &Connection, run: i64, model_id: &str, step: i64) -> Result<(), Error> {
    execute(
        c,
        "INSERT INTO run_model_outputs VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
        params![run, model_id, step],
    )?;
    Ok(())
}

/// A dataset with the experiment and the context in which it was used.
pub(crate) struct DatasetSummary {
    pub(crate) experiment_id: i64,
    pub(crate) name: String,
    pub(crate) digest: String,
    pub(crate) context: Option<String>,
}

/// The datasets that are used in these experiments, at most 1000.
pub(crate) fn dataset_summaries(c: &Connection, experiments: &[i64]) -> Result<Vec<DatasetSummary>, Error> {
    let placeholders = placeholders(experiments.len());
    let sql = format!(
        "SELECT DISTINCT d.experiment_id, d.name, d.digest, i.context FROM datasets d JOIN run_datasets i USING (dataset)
         JOIN experiments e ON e.experiment_id = d.experiment_id
         WHERE d.experiment_id IN ({placeholders}) LIMIT 1000"
    );
    let values: Vec<Value> = experiments.iter().map(|id| Value::from(*id)).collect();
    rows(c, &sql, dynamic(&values).as_slice(), |r| {
        Ok(DatasetSummary { experiment_id: r.get(0)?, name: r.get(1)?, digest: r.get(2)?, context: r.get(3)? })
    })
}
