//! Metric points and newest values.

use slipway_store::sql::{Connection, Value, params};

use super::{execute, rows};
use crate::points::{Point, unpack};
use crate::{Error, ErrorCode};

/// Adds a row of packed points.
pub(crate) fn append(c: &Connection, run: i64, packed: &[u8]) -> Result<(), Error> {
    execute(c, "INSERT INTO metric_points (run, points) VALUES (?1, ?2)", params![run, packed])?;
    Ok(())
}

/// Makes each point the newest value of its key unless a newer one stands: by step, then time, then value.
pub(crate) fn set_latest<'a>(
    c: &Connection,
    run: i64,
    newest: impl IntoIterator<Item = (&'a str, &'a Point)>,
) -> Result<(), Error> {
    c.execute_each(
        "INSERT INTO latest_metrics VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (run, key) DO UPDATE
         SET value = excluded.value, is_nan = excluded.is_nan, step = excluded.step, timestamp = excluded.timestamp
         WHERE (excluded.step, excluded.timestamp, excluded.value) > (latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)",
        newest.into_iter().map(|(key, point)| -> [Value; 6] {
            [
                run.into(),
                key.to_owned().into(),
                point.sortable().into(),
                point.value.is_nan().into(),
                point.step.into(),
                point.timestamp.into(),
            ]
        }),
    )?;
    Ok(())
}

/// All points of `key` in the order they were logged; a point logged twice may stand twice.
pub(crate) fn points(c: &Connection, run: i64, key: &str) -> Result<Vec<Point>, Error> {
    let mut found = Vec::new();
    let whole = rows(c, "SELECT points FROM metric_points WHERE run = ?1 ORDER BY id", [run], |row| {
        Ok(unpack(row.get_bytes(0)?, key, &mut found).is_some())
    })?;
    if whole.contains(&false) {
        return Err(Error::new(ErrorCode::InternalError, format!("metric points of run {run} are damaged")));
    }
    Ok(found)
}

/// The small integers of the runs that exist, with their ids, in the order of the ids.
pub(crate) fn existing(c: &Connection, run_ids: &[String]) -> Result<Vec<(String, i64)>, Error> {
    let mut found = Vec::new();
    for run_id in run_ids {
        found.extend(rows(c, "SELECT run FROM runs WHERE run_id = ?1", [run_id], |r| Ok((run_id.clone(), r.get(0)?)))?);
    }
    Ok(found)
}
