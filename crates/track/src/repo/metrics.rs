//! Metric points and newest values.

use slipway_store::rusqlite::{Connection, params};

use super::{execute, rows};
use crate::points::{Point, unpack};
use crate::{Error, ErrorCode};

/// Adds a row of packed points.
pub(crate) fn append(c: &Connection, run: i64, packed: &[u8]) -> Result<(), Error> {
    execute(c, "INSERT INTO metric_points (run, points) VALUES (?1, ?2)", params![run, packed])?;
    Ok(())
}

/// Makes `point` the newest value of `key` unless a newer one stands: by step, then time, then value.
pub(crate) fn set_latest(c: &Connection, run: i64, key: &str, point: &Point) -> Result<(), Error> {
    execute(
        c,
        "INSERT INTO latest_metrics VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO UPDATE
         SET value = excluded.value, is_nan = excluded.is_nan, step = excluded.step, timestamp = excluded.timestamp
         WHERE (excluded.step, excluded.timestamp, excluded.value) > (step, timestamp, value)",
        params![run, key, point.sortable(), point.value.is_nan(), point.step, point.timestamp],
    )?;
    Ok(())
}

/// All points of `key` in the order they were logged; a point logged twice may stand twice.
pub(crate) fn points(c: &Connection, run: i64, key: &str) -> Result<Vec<Point>, Error> {
    let mut found = Vec::new();
    let mut statement = c.prepare_cached("SELECT points FROM metric_points WHERE run = ?1")?;
    let mut packed = statement.query([run])?;
    while let Some(row) = packed.next()? {
        let bytes = row.get_ref(0)?.as_blob().map_err(|e| Error::new(ErrorCode::InternalError, e.to_string()))?;
        unpack(bytes, key, &mut found)
            .ok_or_else(|| Error::new(ErrorCode::InternalError, format!("metric points of run {run} are damaged")))?;
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
