//! All SQL of this crate. Functions take the connection of the transaction they run in.

pub(crate) mod experiments;
pub(crate) mod logged_models;
pub(crate) mod metrics;
pub(crate) mod registry;
pub(crate) mod runs;

use slipway_store::rusqlite::{self, Connection, Params, Row, ToSql};

use crate::Error;
use crate::model::KeyValue;

/// All rows of a cached statement.
pub(crate) fn rows<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, Error> {
    Ok(connection.prepare_cached(sql)?.query_map(params, map)?.collect::<Result<_, _>>()?)
}

/// The first row of a cached statement, if any.
pub(crate) fn first<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>, Error> {
    use rusqlite::OptionalExtension;
    Ok(connection.prepare_cached(sql)?.query_row(params, map).optional()?)
}

/// Runs a cached statement; how many rows it changed.
pub(crate) fn execute(connection: &Connection, sql: &str, params: impl Params) -> Result<usize, Error> {
    Ok(connection.prepare_cached(sql)?.execute(params)?)
}

/// A row of `key, value`.
pub(crate) fn key_value(row: &Row<'_>) -> rusqlite::Result<KeyValue> {
    Ok(KeyValue { key: row.get(0)?, value: row.get(1)? })
}

/// Parameters of any types.
pub(crate) fn dynamic(values: &[rusqlite::types::Value]) -> Vec<&dyn ToSql> {
    values.iter().map(|v| v as &dyn ToSql).collect()
}

/// Whether the error is a violated UNIQUE or PRIMARY KEY constraint.
pub(crate) fn is_duplicate(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::SqliteFailure(e, _) if e.code == rusqlite::ErrorCode::ConstraintViolation)
}
