//! Stores benchmark reports in the metadata database. This module contains all SQL of the crate.

use slipway_store::sql::{Connection, params};
use slipway_store::{Migration, StoreError};

use crate::bench::Report;

/// The tables of this crate.
pub const MIGRATION: Migration = Migration {
    domain: "gpu",
    steps: &["CREATE TABLE gpu_benchmarks (id INTEGER PRIMARY KEY, time INTEGER NOT NULL, host TEXT NOT NULL, report TEXT NOT NULL);
      CREATE INDEX gpu_benchmarks_by_host ON gpu_benchmarks (host, time);"],
};

/// Adds a report and returns its number.
///
/// # Errors
/// [`StoreError`] if the database fails.
pub fn add(c: &Connection, report: &Report) -> Result<i64, StoreError> {
    let text = serde_json::to_string(report).unwrap_or_default();
    let number = c.first(
        "INSERT INTO gpu_benchmarks (time, host, report) VALUES (?1, ?2, ?3) RETURNING id",
        params![report.time, report.host, text],
        |r| r.get(0),
    )?;
    Ok(number.unwrap_or_default())
}

fn parse(number: i64, text: &str) -> Option<(i64, Report)> {
    Some((number, serde_json::from_str(text).ok()?))
}

/// Lists at most `limit` reports with their numbers, newest first.
///
/// # Errors
/// [`StoreError`] if the database fails.
pub fn list(c: &Connection, limit: usize) -> Result<Vec<(i64, Report)>, StoreError> {
    let rows: Vec<(i64, String)> = c.rows(
        "SELECT id, report FROM gpu_benchmarks ORDER BY time DESC, id DESC LIMIT ?1",
        [i64::try_from(limit).unwrap_or(i64::MAX)],
        |r| Ok((r.get(0)?, r.get(1)?)),
    )?;
    Ok(rows.iter().filter_map(|(n, text)| parse(*n, text)).collect())
}

/// The report with this number, if it exists.
///
/// # Errors
/// [`StoreError`] if the database fails.
pub fn get(c: &Connection, number: i64) -> Result<Option<(i64, Report)>, StoreError> {
    let text: Option<String> = c.first("SELECT report FROM gpu_benchmarks WHERE id = ?1", [number], |r| r.get(0))?;
    Ok(text.and_then(|t| parse(number, &t)))
}
