//! The two kinds of database (an SQLite file, a PostgreSQL server), and how connections to them begin and end transactions.

use std::path::PathBuf;

use rusqlite::OpenFlags;

use super::migrate::{self, Migration};
use super::postgres;
use super::sql::{self, Connection, Kind};
use crate::error::Result;

/// Key of the PostgreSQL advisory lock that lets only one server write at a time (`slipway` in ASCII).
const WRITER_LOCK: i64 = 0x0073_6c69_7077_6179;

/// The location of a database.
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
                sql::stabilize_plans(&connection)?;
                connection.set_prepared_statement_cache_capacity(256);
                Ok(Connection(Kind::Sqlite(connection)))
            }
            Self::Server(server) => Ok(Connection(Kind::Postgres(server.connect()?))),
        }
    }

    /// Opens a connection that may write.
    pub(super) fn writer(&self) -> Result<Connection> {
        self.connect(
            OpenFlags::default(),
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;
             PRAGMA busy_timeout=10000; PRAGMA temp_store=MEMORY; PRAGMA cache_size=-8000;
             PRAGMA wal_autocheckpoint=4000; PRAGMA journal_size_limit=67108864;",
        )
    }

    /// Opens a read-only connection.
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
    /// An SQLite database in memory with these tables, for tests of SQL statements.
    ///
    /// # Errors
    /// [`crate::StoreError::Sql`].
    pub fn in_memory(migrations: &[Migration]) -> Result<Self> {
        let connection = Self(Kind::Sqlite(rusqlite::Connection::open_in_memory()?));
        migrate::migrate(&connection, migrations)?;
        Ok(connection)
    }

    /// Whether the database is an SQLite file.
    pub(super) fn is_sqlite(&self) -> bool {
        matches!(self.0, Kind::Sqlite(_))
    }

    /// Whether the connection is closed; SQLite's never is.
    pub(super) fn is_closed(&self) -> bool {
        match &self.0 {
            Kind::Sqlite(_) => false,
            Kind::Postgres(session) => session.is_closed(),
        }
    }

    /// Whether a statement failed, so that PostgreSQL rejects all others until a rollback. SQLite rolls back only the failed statement.
    pub(super) fn is_aborted(&self) -> bool {
        match &self.0 {
            Kind::Sqlite(_) => false,
            Kind::Postgres(session) => session.is_aborted(),
        }
    }

    /// Begins a write transaction; until it ends, no other connection or server can write.
    pub(super) fn begin_write(&self) -> Result<()> {
        match &self.0 {
            Kind::Sqlite(_) => self.statement("BEGIN IMMEDIATE"),
            Kind::Postgres(_) => self.batch(&format!("BEGIN; SELECT pg_advisory_xact_lock({WRITER_LOCK})")),
        }
    }

    /// Begins a read transaction: all its statements see the same snapshot.
    pub(super) fn begin_read(&self) -> Result<()> {
        match &self.0 {
            Kind::Sqlite(_) => self.batch_deferred("BEGIN"),
            Kind::Postgres(_) => self.batch_deferred("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
        }
    }

    /// Abandons a failed transaction. Returns whether the connection can be used again. A connection to PostgreSQL cannot: it is
    /// closed, and the server then rolls back its transaction.
    pub(super) fn abandon(&self) -> bool {
        match &self.0 {
            Kind::Sqlite(c) => {
                // After some errors, such as a full disk, SQLite has already rolled back.
                let _ = c.execute_batch("ROLLBACK"); // is_autocommit reports whether the transaction has ended
                c.is_autocommit()
            }
            Kind::Postgres(_) => false,
        }
    }

    /// Moves the contents of SQLite's write-ahead log into the database file, so that a closed database is a single file.
    pub(super) fn checkpoint(&self) {
        if let Kind::Sqlite(c) = &self.0
            && let Err(error) = c.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        {
            tracing::debug!(%error, "cannot merge the write-ahead log into the database file; the next start reads it");
        }
    }
}
