//! Benchmark reports in the metadata database. All SQL of this crate.

use slipway_store::rusqlite::{Connection, OptionalExtension, params};
use slipway_store::{Migration, StoreError};

use crate::bench::Report;

/// The tables.
pub const MIGRATION: Migration = Migration {
    domain: "gpu",
    steps: &["CREATE TABLE gpu_benchmarks (id INTEGER PRIMARY KEY, time INTEGER NOT NULL, host TEXT NOT NULL, report TEXT NOT NULL);
      CREATE INDEX gpu_benchmarks_by_host ON gpu_benchmarks (host, time);"],
};

/// Adds a report; its number.
///
/// # Errors
/// The store's.
pub fn add(c: &Connection, report: &Report) -> Result<i64, StoreError> {
    let text = serde_json::to_string(report).unwrap_or_default();
    Ok(c.prepare_cached("INSERT INTO gpu_benchmarks (time, host, report) VALUES (?1, ?2, ?3)")?.insert(params![
        report.time,
        report.host,
        text
    ])?)
}

fn parse(number: i64, text: &str) -> Option<(i64, Report)> {
    Some((number, serde_json::from_str(text).ok()?))
}

/// Reports, newest first.
///
/// # Errors
/// The store's.
pub fn list(c: &Connection, limit: usize) -> Result<Vec<(i64, Report)>, StoreError> {
    let mut statement =
        c.prepare_cached("SELECT id, report FROM gpu_benchmarks ORDER BY time DESC, id DESC LIMIT ?1")?;
    let rows = statement
        .query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, String>(1)?)))?;
    let rows: Vec<(i64, String)> = rows.collect::<Result<_, _>>()?;
    Ok(rows.iter().filter_map(|(n, text)| parse(*n, text)).collect())
}

/// The report of that number.
///
/// # Errors
/// The store's.
pub fn get(c: &Connection, number: i64) -> Result<Option<(i64, Report)>, StoreError> {
    let text: Option<String> = c
        .prepare_cached("SELECT report FROM gpu_benchmarks WHERE id = ?1")?
        .query_row([number], |r| r.get(0))
        .optional()?;
    Ok(text.and_then(|t| parse(number, &t)))
}
