//! All SQL of this crate. Each function runs in the transaction of the connection that it gets.

pub(crate) mod experiments;
pub(crate) mod keys;
pub(crate) mod logged_models;
pub(crate) mod metrics;
pub(crate) mod registry;
pub(crate) mod runs;

use slipway_store::sql::{Connection, Params, Result as Read, Row, ToSql, Value};

use crate::Error;
use crate::model::KeyValue;

/// All rows of a query, converted by `map`.
pub(crate) fn rows<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    map: impl FnMut(&Row<'_>) -> Read<T>,
) -> Result<Vec<T>, Error> {
    Ok(connection.rows(sql, params, map)?)
}

/// The first row of a query, converted by `map`; `None` if there are no rows.
pub(crate) fn first<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    map: impl FnOnce(&Row<'_>) -> Read<T>,
) -> Result<Option<T>, Error> {
    Ok(connection.first(sql, params, map)?)
}

/// Runs a statement and returns the number of changed rows.
pub(crate) fn execute(connection: &Connection, sql: &str, params: impl Params) -> Result<usize, Error> {
    Ok(connection.execute(sql, params)?)
}

/// Converts a row of the columns `key, value`.
pub(crate) fn key_value(row: &Row<'_>) -> Read<KeyValue> {
    Ok(KeyValue { key: row.get(0)?, value: row.get(1)? })
}

/// The placeholders of a list of `count` values for `IN (…)`. `IN ()` is not valid SQL, so an empty list becomes `IN (NULL)`, which
/// matches nothing.
pub(crate) fn placeholders(count: usize) -> String {
    if count == 0 { "NULL".to_owned() } else { vec!["?"; count].join(",") }
}

/// Statement parameters from values of different types.
pub(crate) fn dynamic(values: &[Value]) -> Vec<&dyn ToSql> {
    values.iter().map(|v| v as &dyn ToSql).collect()
}
