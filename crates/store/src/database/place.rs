//! Where a database is, and how its connections begin and end transactions.

use std::path::PathBuf;

use rusqlite::OpenFlags;

use super::migrate::{self, Migration};
use super::postgres;
use super::sql::{Connection, Kind};
use crate::error::Result;

/// The key of PostgreSQL's advisory lock that lets only one of several servers write at a time (`slipway` in ASCII).
const WRITER_LOCK: i64 = 0x0073_6c69_7077_6179;

/// Where the data is.
pub(super) enum Place {
    File(PathBuf),
    Server(Box<postgres::Server>),
}

impl Place {
    fn connect(&self, flags: OpenFlags, settings: &str) -> Result<Connection> {
        match self {
            Self::File(path) => {
                let connection = rusqlite::Connection::open_with_flags(path, flags)?;
                connection.execute_batch(settings)?;
                connection.set_prepared_statement_cache_capacity(256);
                Ok(Connection(Kind::Sqlite(connection)))
            }
            Self::Server(server) => Ok(Connection(Kind::Postgres(server.connect()?))),
        }
    }

    pub(super) fn writer(&self) -> Result<Connection> {
        self.connect(
            OpenFlags::default(),
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;
             PRAGMA busy_timeout=10000; PRAGMA temp_store=MEMORY; PRAGMA cache_size=-8000;
             PRAGMA wal_autocheckpoint=4000; PRAGMA journal_size_limit=67108864;",
        )
    }

    pub(super) fn reader(&self) -> Result<Connection> {
        self.connect(
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            "PRAGMA busy_timeout=10000; PRAGMA temp_store=MEMORY; PRAGMA cache_size=-4000; PRAGMA query_only=ON;
             PRAGMA case_sensitive_like=ON;
             PRAGMA mmap_size=268435456;",
        )
    }
}

impl Connection {
    /// Tables in memory, for a test of statements alone.
    ///
    /// # Errors
    /// [`crate::StoreError::Sql`].
    pub fn in_memory(migrations: &[Migration]) -> Result<Self> {
        let connection = Self(Kind::Sqlite(rusqlite::Connection::open_in_memory()?));
        migrate::migrate(&connection, migrations)?;
        Ok(connection)
    }

    /// Whether the connection has ended; a file's never does.
    pub(super) fn is_closed(&self) -> bool {
        match &self.0 {
            Kind::Sqlite(_) => false,
            Kind::Postgres(session) => session.is_closed(),
        }
    }

    /// Whether a statement failed and the database will refuse all others until a rollback. SQLite undoes a failed statement alone.
    pub(super) fn is_aborted(&self) -> bool {
        match &self.0 {
            Kind::Sqlite(_) => false,
            Kind::Postgres(session) => session.is_aborted(),
        }
    }

    /// Begins a transaction in which nobody else writes.
    pub(super) fn begin_writing(&self) -> Result<()> {
        match &self.0 {
            Kind::Sqlite(_) => self.batch("BEGIN IMMEDIATE"),
            Kind::Postgres(_) => self.batch(&format!("BEGIN; SELECT pg_advisory_xact_lock({WRITER_LOCK})")),
        }
    }

    /// Begins a transaction that sees one state of everything.
    pub(super) fn begin_reading(&self) -> Result<()> {
        match &self.0 {
            Kind::Sqlite(_) => self.batch_later("BEGIN"),
            Kind::Postgres(_) => self.batch_later("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
        }
    }

    /// Gives up a transaction that failed; whether the connection can be used again. The one to PostgreSQL cannot: the server rolls
    /// back what a connection leaves open when it ends.
    pub(super) fn abandon(&self) -> bool {
        match &self.0 {
            Kind::Sqlite(c) => {
                // After some errors (a full disk among them) SQLite has rolled back by itself.
                let _ = c.execute_batch("ROLLBACK"); // is_autocommit tells whether the transaction is over
                c.is_autocommit()
            }
            Kind::Postgres(_) => false,
        }
    }

    /// Moves what is in SQLite's write-ahead log into the database file, so that a closed database is one file.
    pub(super) fn checkpoint(&self) {
        if let Kind::Sqlite(c) = &self.0
            && let Err(error) = c.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        {
            tracing::debug!(%error, "the write-ahead log stays beside the database; the next start reads it");
        }
    }
}
