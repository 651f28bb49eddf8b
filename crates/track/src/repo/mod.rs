//! All SQL of this crate. Functions take the connection of the transaction they run in.

pub(crate) mod experiments;
pub(crate) mod keys;
pub(crate) mod logged_models;
pub(crate) mod metrics;
pub(crate) mod registry;
pub(crate) mod runs;

use slipway_store::sql::{Connection, Params, Result as Read, Row, ToSql, Value};

use crate::Error;
use crate::model::KeyValue;

/// All rows of a statement.
pub(crate) fn rows<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    map: impl FnMut(&Row<'_>) -> Read<T>,
) -> Result<Vec<T>, Error> {
    Ok(connection.rows(sql, params, map)?)
}

/// The first row of a statement, if any.
pub(crate) fn first<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    map: impl FnOnce(&Row<'_>) -> Read<T>,
) -> Result<Option<T>, Error> {
    Ok(connection.first(sql, params, map)?)
}

/// Runs a statement; how many rows it changed.
pub(crate) fn execute(connection: &Connection, sql: &str, params: impl Params) -> Result<usize, Error> {
    Ok(connection.execute(sql, params)?)
}

/// A row of `key, value`.
pub(crate) fn key_value(row: &Row<'_>) -> Read<KeyValue> {
    Ok(KeyValue { key: row.get(0)?, value: row.get(1)? })
}

/// Parameters for a list of `count` values; a list of none, in which nothing is, can only be said this way.
pub(crate) fn marks(count: usize) -> String {
    if count == 0 { "NULL".to_owned() } else { vec!["?"; count].join(",") }
}

/// Parameters of any types.
pub(crate) fn dynamic(values: &[Value]) -> Vec<&dyn ToSql> {
    values.iter().map(|v| v as &dyn ToSql).collect()
}
