//! Statements and rows with one interface for SQLite and PostgreSQL.
//!
//! Statements use the SQL that both databases understand, with SQLite's numbered parameters (`?1`). Values have SQLite's five
//! types (NULL, integer, real, text, blob); a boolean is 0 or 1.

pub use rusqlite::params;
pub use rusqlite::types::{FromSql, ToSql, Value};

use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;

use super::postgres::{self, Session};
pub use crate::error::Result;

/// A database connection, inside the transaction of a change or a query.
pub struct Connection(pub(super) Kind);

pub(super) enum Kind {
    Sqlite(rusqlite::Connection),
    Postgres(Session),
}

/// A row of a query result.
pub struct Row<'a>(RowKind<'a>);

enum RowKind<'a> {
    Sqlite(&'a rusqlite::Row<'a>),
    Postgres(&'a tokio_postgres::Row),
}

/// Values for a statement's parameters: `params![a, b]`, an array `[a, b]` of one type, or a slice built at run time.
pub trait Params {
    /// Calls `run` with the values.
    fn with<R>(&self, run: impl FnOnce(&[&dyn ToSql]) -> R) -> R;
}

impl<T: ToSql, const N: usize> Params for [T; N] {
    fn with<R>(&self, run: impl FnOnce(&[&dyn ToSql]) -> R) -> R {
        run(&self.each_ref().map(|value| value as &dyn ToSql))
    }
}

impl Params for &[&dyn ToSql] {
    fn with<R>(&self, run: impl FnOnce(&[&dyn ToSql]) -> R) -> R {
        run(self)
    }
}

impl Connection {
    /// Runs a statement and returns the number of rows it changed.
    ///
    /// # Errors
    /// The error of the database; [`crate::StoreError::is_duplicate`] is true for a violated unique key.
    pub fn execute(&self, sql: &str, params: impl Params) -> Result<usize> {
        params.with(|values| match &self.0 {
            Kind::Sqlite(c) => Ok(c.prepare_cached(sql)?.execute(values)?),
            Kind::Postgres(session) => session.execute(sql, values),
        })
    }

    /// Runs one statement once for each set of parameters. No execution may depend on the result of another: PostgreSQL gets them
    /// as a pipeline.
    ///
    /// # Errors
    /// The error of the first execution that failed.
    pub fn execute_each<P: Params>(&self, sql: &str, all: impl IntoIterator<Item = P>) -> Result<()> {
        match &self.0 {
            Kind::Sqlite(c) => {
                let mut statement = c.prepare_cached(sql)?;
                for params in all {
                    params.with(|values| statement.execute(values))?;
                }
                Ok(())
            }
            Kind::Postgres(session) => {
                let bound =
                    all.into_iter().map(|params| params.with(postgres::bind_owned)).collect::<Result<Vec<_>>>()?;
                session.execute_each(sql, &bound)
            }
        }
    }

    /// Runs a query and returns all rows, converted by `map`.
    ///
    /// # Errors
    /// The error of the database, or of `map`.
    pub fn rows<T>(
        &self,
        sql: &str,
        params: impl Params,
        mut map: impl FnMut(&Row<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        params.with(|values| match &self.0 {
            Kind::Sqlite(c) => {
                let _unstable = sql.contains(" LIKE ").then(|| UnstablePlans::allow(c)).transpose()?;
                let mut statement = c.prepare_cached(sql)?;
                let mut rows = statement.query(values)?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    found.push(map(&Row(RowKind::Sqlite(row)))?);
                }
                Ok(found)
            }
            Kind::Postgres(session) => {
                session.query(sql, values)?.iter().map(|row| map(&Row(RowKind::Postgres(row)))).collect()
            }
        })
    }

    /// Runs a query and returns the first row, converted by `map`; `None` if there are no rows.
    ///
    /// # Errors
    /// The error of the database, or of `map`.
    pub fn first<T>(
        &self,
        sql: &str,
        params: impl Params,
        map: impl FnOnce(&Row<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        params.with(|values| match &self.0 {
            Kind::Sqlite(c) => {
                let mut statement = c.prepare_cached(sql)?;
                let mut rows = statement.query(values)?;
                let found = rows.next()?.map(|row| map(&Row(RowKind::Sqlite(row)))).transpose()?;
                // A statement with RETURNING must be stepped to its end, or SQLite does not complete the change.
                while found.is_some() && rows.next()?.is_some() {}
                Ok(found)
            }
            Kind::Postgres(session) => {
                session.query(sql, values)?.first().map(|row| map(&Row(RowKind::Postgres(row)))).transpose()
            }
        })
    }

    /// Runs a statement without parameters.
    pub(super) fn statement(&self, sql: &'static str) -> Result<()> {
        match &self.0 {
            Kind::Sqlite(c) => {
                c.prepare_cached(sql)?.execute([])?;
                Ok(())
            }
            Kind::Postgres(session) => session.batch(sql),
        }
    }

    /// Runs statements without parameters, separated by `;`.
    pub(super) fn batch(&self, sql: &str) -> Result<()> {
        match &self.0 {
            Kind::Sqlite(c) => Ok(c.execute_batch(sql)?),
            Kind::Postgres(session) => session.batch(sql),
        }
    }

    /// Runs a statement without parameters. PostgreSQL gets it together with the next statement, which fails if this one fails.
    pub(super) fn batch_deferred(&self, sql: &'static str) -> Result<()> {
        match &self.0 {
            Kind::Sqlite(_) => self.statement(sql),
            Kind::Postgres(session) => {
                session.defer(sql);
                Ok(())
            }
        }
    }
}

/// Makes the query plans of a connection independent of the values of parameters (SQLite's "query planner stability guarantee").
/// Otherwise SQLite plans a cached statement again on every use: since version 3.54 a plan may depend on whether a parameter is 0 or 1,
/// and rusqlite clears the parameters of a statement when it returns to the cache, which counts as a change.
pub(super) fn stabilize_plans(connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// Lets plans depend on the values of parameters while it exists, because `LIKE` can use an index only if the pattern is known.
struct UnstablePlans<'c>(&'c rusqlite::Connection);

impl<'c> UnstablePlans<'c> {
    fn allow(connection: &'c rusqlite::Connection) -> rusqlite::Result<Self> {
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, false)?;
        Ok(Self(connection))
    }
}

impl Drop for UnstablePlans<'_> {
    fn drop(&mut self) {
        if let Err(error) = stabilize_plans(self.0) {
            tracing::debug!(%error, "query plans of a connection stay unstable, which makes its queries slower");
        }
    }
}

impl Row<'_> {
    /// The bytes of the column at `index` (counted from 0), borrowed from the row.
    ///
    /// # Errors
    /// When there is no such column, or it has another type.
    pub fn get_bytes(&self, index: usize) -> Result<&[u8]> {
        let not_a_blob = |e| rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Blob, Box::new(e));
        let value = match self.0 {
            RowKind::Sqlite(row) => row.get_ref(index)?,
            RowKind::Postgres(row) => postgres::column(row, index)?.unwrap_or(ValueRef::Null),
        };
        Ok(value.as_blob().map_err(not_a_blob)?)
    }

    /// The value of the column at `index`, counted from 0.
    ///
    /// # Errors
    /// When there is no such column, or it has another type.
    pub fn get<T: FromSql>(&self, index: usize) -> Result<T> {
        match self.0 {
            RowKind::Sqlite(row) => Ok(row.get(index)?),
            RowKind::Postgres(row) => {
                let value = postgres::column(row, index)?;
                let kind = value.as_ref().map_or(rusqlite::types::Type::Null, ValueRef::data_type);
                T::column_result(value.unwrap_or(ValueRef::Null))
                    .map_err(|e| rusqlite::Error::FromSqlConversionFailure(index, kind, Box::new(e)).into())
            }
        }
    }
}
