//! Statements and rows, the same over SQLite and PostgreSQL.
//!
//! Statements are written in the SQL that both understand, with SQLite's numbered parameters (`?1`). Values are SQLite's five
//! types (NULL, integer, real, text, blob); a boolean is 0 or 1.

pub use rusqlite::params;
pub use rusqlite::types::{FromSql, ToSql, Value};

use rusqlite::types::ValueRef;

use super::postgres::{self, Session};
pub use crate::error::Result;

/// A connection, inside the transaction of a change or of a query.
pub struct Connection(pub(super) Kind);

pub(super) enum Kind {
    Sqlite(rusqlite::Connection),
    Postgres(Session),
}

/// A row of an answer.
pub struct Row<'a>(RowKind<'a>);

enum RowKind<'a> {
    Sqlite(&'a rusqlite::Row<'a>),
    Postgres(&'a tokio_postgres::Row),
}

/// Values for a statement's parameters: `params![a, b]`, `[a, b]` of one type, or a slice made at run time.
pub trait Params {
    /// Hands the values to `run`.
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
    /// Runs a statement; how many rows it changed.
    ///
    /// # Errors
    /// [`crate::StoreError::is_duplicate`] tells whether a unique key is taken.
    pub fn execute(&self, sql: &str, params: impl Params) -> Result<usize> {
        params.with(|values| match &self.0 {
            Kind::Sqlite(c) => Ok(c.prepare_cached(sql)?.execute(values)?),
            Kind::Postgres(session) => session.execute(sql, values),
        })
    }

    /// Runs one statement with each of the parameters. No run may depend on the outcome of another: over a network they are sent
    /// together.
    ///
    /// # Errors
    /// The error of the first run that failed.
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
                let bound = all.into_iter().map(|params| params.with(postgres::owned)).collect::<Result<Vec<_>>>()?;
                session.execute_each(sql, &bound)
            }
        }
    }

    /// All rows of a statement's result.
    ///
    /// # Errors
    /// The database's, or `map`'s.
    pub fn rows<T>(
        &self,
        sql: &str,
        params: impl Params,
        mut map: impl FnMut(&Row<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        params.with(|values| match &self.0 {
            Kind::Sqlite(c) => {
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

    /// The first row of a statement's result, if there is one.
    ///
    /// # Errors
    /// The database's, or `map`'s.
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
                // A statement that changes rows and returns them (RETURNING) has to be run to its end.
                while found.is_some() && rows.next()?.is_some() {}
                Ok(found)
            }
            Kind::Postgres(session) => {
                session.query(sql, values)?.first().map(|row| map(&Row(RowKind::Postgres(row)))).transpose()
            }
        })
    }

    /// Runs statements that have no parameters, separated by `;`.
    pub(super) fn batch(&self, sql: &str) -> Result<()> {
        match &self.0 {
            Kind::Sqlite(c) => Ok(c.execute_batch(sql)?),
            Kind::Postgres(session) => session.batch(sql),
        }
    }

    /// Runs such a statement together with the next one, which fails if this one does.
    pub(super) fn batch_later(&self, sql: &'static str) -> Result<()> {
        match &self.0 {
            Kind::Sqlite(c) => {
                c.prepare_cached(sql)?.execute([])?;
                Ok(())
            }
            Kind::Postgres(session) => {
                session.later(sql);
                Ok(())
            }
        }
    }
}

impl Row<'_> {
    /// The bytes of the column at `index`, not copied.
    ///
    /// # Errors
    /// When there is no such column, or it is of another type.
    pub fn get_bytes(&self, index: usize) -> Result<&[u8]> {
        let wrong = |e| rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Blob, Box::new(e));
        let value = match self.0 {
            RowKind::Sqlite(row) => row.get_ref(index)?,
            RowKind::Postgres(row) => postgres::column(row, index)?.unwrap_or(ValueRef::Null),
        };
        Ok(value.as_blob().map_err(wrong)?)
    }

    /// The value of the column at `index`, counted from 0.
    ///
    /// # Errors
    /// When there is no such column, or it is of another type.
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
