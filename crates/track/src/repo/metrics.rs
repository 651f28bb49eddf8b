//! Metric points and the newest value of each metric.
//!
//! `metric_points` has one row per request. Compaction moves the points of older rows to `metric_chunks` (one key per row) and
//! `metric_mixed` (several keys per row).

use slipway_store::sql::{Connection, Value, params};

use super::{execute, first, rows};
use crate::points::{Point, unpack};
use crate::{Error, ErrorCode};

/// Appends a row with the packed points of a request.
pub(crate) fn append(c: &Connection, run: i64, packed: &[u8]) -> Result<(), Error> {
    execute(c, "INSERT INTO metric_points (run, points) VALUES (?1, ?2)", params![run, packed])?;
    Ok(())
}

/// Stores each point as the newest value of its key, unless the stored one is newer (by step, then timestamp, then value).
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

/// All points of `key` in no particular order, and the size of the uncompacted rows that were read. A point that was logged twice
/// may occur twice.
pub(crate) fn points(c: &Connection, run: i64, key: &str) -> Result<(Vec<Point>, Size), Error> {
    let mut found = Vec::new();
    let uncompacted = for_each_row(c, run, key, |row| unpack(row, key, &mut found))?;
    Ok((found, uncompacted))
}

/// Number and total size of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
}

impl Size {
    /// Adds a row of this many bytes.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.rows += 1;
        self.bytes += bytes;
    }
}

/// Calls `read` with every row that may contain points of `key`: its own chunks, the mixed chunks whose range of keys includes it, and
/// all uncompacted rows of the run, whose size is returned. `read` returns `None` for a corrupt row.
pub(crate) fn for_each_row(
    c: &Connection,
    run: i64,
    key: &str,
    mut read: impl FnMut(&[u8]) -> Option<()>,
) -> Result<Size, Error> {
    const CHUNKS: &str = "SELECT points FROM metric_chunks WHERE run = ?1 AND key = ?2";
    const MIXED: &str = "SELECT points FROM metric_mixed WHERE run = ?1 AND first_key <= ?2 AND last_key >= ?2";
    const UNCOMPACTED: &str = "SELECT points FROM metric_points WHERE run = ?1";
    let mut is_valid = true;
    let mut uncompacted = Size::default();
    for sql in [CHUNKS, MIXED] {
        rows(c, sql, params![run, key], |row| {
            is_valid &= read(row.get_bytes(0)?).is_some();
            Ok(())
        })?;
    }
    rows(c, UNCOMPACTED, [run], |row| {
        let packed = row.get_bytes(0)?;
        is_valid &= read(packed).is_some();
        uncompacted.add(packed.len());
        Ok(())
    })?;
    if is_valid { Ok(uncompacted) } else { Err(corrupt(run)) }
}

/// The error for a row of the run that cannot be decoded.
pub(crate) fn corrupt(run: i64) -> Error {
    Error::new(ErrorCode::InternalError, format!("metric points of run {run} are corrupt"))
}

/// The number of compactions of the run; `None` if there is no such run.
pub(crate) fn compactions(c: &Connection, run: i64) -> Result<Option<i64>, Error> {
    first(c, "SELECT compactions FROM runs WHERE run = ?1", [run], |row| row.get(0))
}

/// Increments the number of compactions. Returns false if it is no longer `before`, because another process has compacted the run, or
/// if the run does not exist.
pub(crate) fn count_compaction(c: &Connection, run: i64, before: i64) -> Result<bool, Error> {
    let sql = "UPDATE runs SET compactions = compactions + 1 WHERE run = ?1 AND compactions = ?2";
    Ok(execute(c, sql, [run, before])? == 1)
}

/// Ids and sizes in bytes of up to `limit` rows to compact together: on level 0 the oldest rows of requests, on a higher level the
/// mixed chunks with the first keys.
pub(crate) fn oldest(c: &Connection, run: i64, level: i64, limit: i64) -> Result<Vec<(i64, i64)>, Error> {
    let id_and_bytes = |row: &slipway_store::sql::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    if level == 0 {
        let sql = "SELECT id, length(points) FROM metric_points WHERE run = ?1 ORDER BY id LIMIT ?2";
        return rows(c, sql, [run, limit], id_and_bytes);
    }
    let sql = "SELECT id, length(points) FROM metric_mixed WHERE run = ?1 AND level = ?2
               ORDER BY first_key, last_key, id LIMIT ?3";
    rows(c, sql, [run, level, limit], id_and_bytes)
}

/// The packed points of the rows that [`oldest`] returned.
pub(crate) fn packed(c: &Connection, run: i64, level: i64, ids: &[i64]) -> Result<Vec<Vec<u8>>, Error> {
    if level == 0 {
        let last = ids.last().copied().unwrap_or_default();
        let sql = "SELECT points FROM metric_points WHERE run = ?1 AND id <= ?2 ORDER BY id";
        return rows(c, sql, [run, last], |row| row.get(0));
    }
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        found.extend(first(c, "SELECT points FROM metric_mixed WHERE id = ?1", [*id], |row| row.get(0))?);
    }
    Ok(found)
}

/// Removes the rows that [`oldest`] returned.
pub(crate) fn remove(c: &Connection, run: i64, level: i64, ids: &[i64]) -> Result<(), Error> {
    if level == 0 {
        let last = ids.last().copied().unwrap_or_default();
        let removed = execute(c, "DELETE FROM metric_points WHERE run = ?1 AND id <= ?2", [run, last])?;
        return if removed == ids.len() { Ok(()) } else { Err(corrupt(run)) };
    }
    Ok(c.execute_each("DELETE FROM metric_mixed WHERE id = ?1", ids.iter().map(|id| [*id]))?)
}

/// The number of mixed chunks of the run on each level, as `(level, count)`.
pub(crate) fn mixed_rows(c: &Connection, run: i64) -> Result<Vec<(i64, i64)>, Error> {
    rows(c, "SELECT level, count(*) FROM metric_mixed WHERE run = ?1 GROUP BY level ORDER BY level", [run], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
}

/// Inserts chunks, each with the points of one key.
pub(crate) fn add_chunks(c: &Connection, run: i64, chunks: Vec<(String, Vec<u8>)>) -> Result<(), Error> {
    let rows = chunks.into_iter().map(|(key, points)| -> [Value; 3] { [run.into(), key.into(), points.into()] });
    Ok(c.execute_each("INSERT INTO metric_chunks (run, key, points) VALUES (?1, ?2, ?3)", rows)?)
}

/// A row with the points of several consecutive keys.
#[derive(Debug)]
pub(crate) struct Mixed {
    pub(crate) first_key: String,
    pub(crate) last_key: String,
    pub(crate) points: Vec<u8>,
}

/// Inserts mixed chunks, each with the points of several keys.
pub(crate) fn add_mixed(c: &Connection, run: i64, level: i64, chunks: Vec<Mixed>) -> Result<(), Error> {
    let rows = chunks.into_iter().map(|chunk| -> [Value; 5] {
        [run.into(), level.into(), chunk.first_key.into(), chunk.last_key.into(), chunk.points.into()]
    });
    let sql = "INSERT INTO metric_mixed (run, level, first_key, last_key, points) VALUES (?1, ?2, ?3, ?4, ?5)";
    Ok(c.execute_each(sql, rows)?)
}

/// Runs with at least this many uncompacted rows.
pub(crate) fn runs_with_rows(c: &Connection, at_least: i64) -> Result<Vec<i64>, Error> {
    rows(c, "SELECT run FROM metric_points GROUP BY run HAVING count(*) >= ?1", [at_least], |row| row.get(0))
}

/// The ids and integer keys of those runs that exist, in the order of `run_ids`.
pub(crate) fn find_runs(c: &Connection, run_ids: &[String]) -> Result<Vec<(String, i64)>, Error> {
    let mut found = Vec::new();
    for run_id in run_ids {
        found.extend(rows(c, "SELECT run FROM runs WHERE run_id = ?1", [run_id], |r| Ok((run_id.clone(), r.get(0)?)))?);
    }
    Ok(found)
}
