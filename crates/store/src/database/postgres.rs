//! A connection to PostgreSQL, as blocking calls: changes and queries are closures that run on a thread of their own.
//!
//! Statements are prepared once per connection. Savepoints are sent with the statement that follows, and statements that do not
//! depend on each other are sent together, so a change costs about as many round trips as it has results to wait for.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::{join, try_join_all};
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use slipway_core::tls::{self, Trust};
use tokio::runtime::{Handle, Runtime};
use tokio_postgres::config::SslMode;
use tokio_postgres::types::{IsNull, Kind, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Config, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::dialect;
use crate::error::{Result, StoreError, describe_postgres};

/// The most time a statement may take; a connection without an answer for longer is given up.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// The most time that opening a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Statements kept prepared in a connection. There is no end of different ones: a search builds its own.
const MAX_PREPARED: usize = 512;
/// Rows of one statement that are sent together.
const PIPELINED: usize = 256;

/// Where the database is and how it is reached; the password in it is never shown.
pub(super) struct Server {
    config: Config,
    tls: MakeRustlsConnect,
    /// Handles the connections' messages; taken when the server is left.
    runtime: Option<Runtime>,
    /// Hosts and name, for messages.
    shown: String,
    max_readers: Option<usize>,
}

impl Server {
    /// Reads a `postgres://` URL (PostgreSQL's documentation, *Connection URIs*). `sslrootcert` names a file with the authorities
    /// to trust in place of the system's; a certificate is always checked. `max_readers` is slipway's own: the most connections
    /// that read at the same time.
    pub(super) fn of_url(url: &str) -> Result<Self> {
        let bad = |reason: String| StoreError::Url(reason);
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        let mut authorities = None;
        let mut mode = None;
        let mut max_readers = None;
        let mut kept = Vec::new();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            match pair.split_once('=') {
                Some(("sslrootcert", file)) => authorities = Some(PathBuf::from(file)),
                Some(("sslmode", value)) => mode = Some(value),
                Some(("max_readers", value)) => match value.parse() {
                    Ok(n) if (1..=1000).contains(&n) => max_readers = Some(n),
                    _ => return Err(bad(format!("max_readers is '{value}', not a number from 1 to 1000"))),
                },
                _ => kept.push(pair),
            }
        }
        // The parser's own message may quote the password.
        let mut config = Config::from_str(&format!("{address}?{}", kept.join("&")))
            .map_err(|_| bad("it is not of the form postgres://USER:PASSWORD@HOST:PORT/NAME".into()))?;
        config.ssl_mode(match mode {
            None | Some("prefer" | "allow") => SslMode::Prefer,
            Some("disable") => SslMode::Disable,
            Some("require" | "verify-ca" | "verify-full") => SslMode::Require,
            Some(other) => return Err(bad(format!("'{other}' is no sslmode"))),
        });
        config.application_name("slipway").connect_timeout(CONNECT_TIMEOUT).keepalives_idle(Duration::from_secs(30));
        config.tcp_user_timeout(STATEMENT_TIMEOUT);
        config.options(format!(
            "{} -c client_min_messages=warning -c statement_timeout={}ms -c idle_in_transaction_session_timeout={}ms -c lock_timeout={}ms",
            config.get_options().unwrap_or_default(),
            STATEMENT_TIMEOUT.as_millis(),
            STATEMENT_TIMEOUT.as_millis(),
            STATEMENT_TIMEOUT.as_millis()
        ));
        let hosts: Vec<String> = config
            .get_hosts()
            .iter()
            .map(|host| match host {
                tokio_postgres::config::Host::Tcp(name) => name.clone(),
                tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
            })
            .collect();
        let shown = format!("{}/{}", hosts.join(","), config.get_dbname().or(config.get_user()).unwrap_or_default());
        let trust = authorities.as_deref().map_or(Trust::System, Trust::Only);
        let tls = tls::client(trust).map_err(|e| StoreError::Url(format!("TLS to the database: {e}")))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("slipway-postgres")
            .enable_all()
            .build()
            .map_err(StoreError::io("starting the database's thread"))?;
        Ok(Self { config, tls: MakeRustlsConnect::new(tls), runtime: Some(runtime), shown, max_readers })
    }

    /// What the URL says of the number of connections that read.
    pub(super) fn max_readers(&self) -> Option<usize> {
        self.max_readers
    }

    /// Opens a connection.
    pub(super) fn connect(&self) -> Result<Session> {
        let runtime = self.runtime.as_ref().ok_or(StoreError::Closed)?.handle();
        // Made inside the runtime, which the writer's thread is not.
        let connecting = async { tokio::time::timeout(CONNECT_TIMEOUT, self.config.connect(self.tls.clone())).await };
        let (client, connection) = wait(runtime, connecting)
            .map_err(|_| StoreError::Unreachable(format!("{} did not answer within {CONNECT_TIMEOUT:?}", self.shown)))?
            .map_err(|e| StoreError::Unreachable(format!("{}: {}", self.shown, describe_postgres(&e))))?;
        runtime.spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(error = describe_postgres(&error), "a connection to the database ended");
            }
        });
        Ok(Session {
            client,
            runtime: runtime.clone(),
            statements: RefCell::default(),
            pending: Cell::default(),
            aborted: Cell::new(false),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A runtime that is dropped inside another one panics, unless it need not be waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Waits on this thread, which may be one of a runtime's.
fn wait<F: Future>(runtime: &Handle, future: F) -> F::Output {
    match Handle::try_current() {
        Ok(_) => tokio::task::block_in_place(|| runtime.block_on(future)),
        Err(_) => runtime.block_on(future),
    }
}

/// A connection. Used by one thread at a time.
pub(super) struct Session {
    client: Client,
    runtime: Handle,
    statements: RefCell<HashMap<String, Statement>>,
    /// What is run with the next statement.
    pending: Cell<String>,
    /// Whether a statement failed since the last rollback: the server refuses all others of the transaction, and answers a COMMIT
    /// of it with success although it rolls back.
    aborted: Cell<bool>,
}

impl Session {
    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Whether a statement failed since the last rollback, so that the transaction cannot be committed.
    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.get()
    }

    /// Sends `sql` with the next statement.
    pub(super) fn later(&self, sql: &'static str) {
        let mut pending = self.pending.take();
        // A savepoint around nothing need not be sent at all.
        if sql == "RELEASE change" && pending.ends_with("SAVEPOINT change;") {
            pending.truncate(pending.len() - "SAVEPOINT change;".len());
        } else {
            pending.push_str(sql);
            pending.push(';');
        }
        self.pending.set(pending);
    }

    pub(super) fn batch(&self, sql: &str) -> Result<()> {
        let all = format!("{}{sql}", self.pending.take());
        self.within_limit(self.client.batch_execute(&all))?;
        if sql == "COMMIT" || sql.starts_with("ROLLBACK") {
            self.aborted.set(false);
        }
        Ok(())
    }

    pub(super) fn execute(&self, sql: &str, values: &[&dyn rusqlite::types::ToSql]) -> Result<usize> {
        let (statement, bound) = (self.statement(sql)?, bind(values)?);
        let params: Vec<&(dyn ToSql + Sync)> = bound.iter().map(|b| b as &(dyn ToSql + Sync)).collect();
        let changed = self.with_pending(self.client.execute(&statement, &params))?;
        Ok(usize::try_from(changed).unwrap_or(usize::MAX))
    }

    pub(super) fn execute_each(&self, sql: &str, all: &[Vec<Bound<'static>>]) -> Result<()> {
        let statement = self.statement(sql)?;
        for some in all.chunks(PIPELINED) {
            let running = some.iter().map(|bound| {
                let params: Vec<&(dyn ToSql + Sync)> = bound.iter().map(|b| b as &(dyn ToSql + Sync)).collect();
                let statement = &statement;
                async move { self.client.execute(statement, &params).await }
            });
            self.with_pending(try_join_all(running))?;
        }
        Ok(())
    }

    pub(super) fn query(&self, sql: &str, values: &[&dyn rusqlite::types::ToSql]) -> Result<Vec<tokio_postgres::Row>> {
        let (statement, bound) = (self.statement(sql)?, bind(values)?);
        let params: Vec<&(dyn ToSql + Sync)> = bound.iter().map(|b| b as &(dyn ToSql + Sync)).collect();
        self.with_pending(self.client.query(&statement, &params))
    }

    fn statement(&self, sql: &str) -> Result<Statement> {
        if let Some(known) = self.statements.borrow().get(sql) {
            return Ok(known.clone());
        }
        let text = dialect::parameters(sql);
        // After what is pending: if this fails, the savepoint that it is to be undone to has to be there.
        let made = self.with_pending(self.client.prepare(&text))?;
        let mut statements = self.statements.borrow_mut();
        if statements.len() >= MAX_PREPARED {
            statements.clear();
        }
        statements.insert(sql.to_owned(), made.clone());
        Ok(made)
    }

    /// Sends what is pending before `next`, and waits for both at once.
    fn with_pending<T>(&self, next: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>) -> Result<T> {
        let pending = self.pending.take();
        if pending.is_empty() {
            return self.within_limit(next);
        }
        self.within_limit(async {
            let (before, done) = join(self.client.batch_execute(&pending), next).await;
            before.and(done)
        })
    }

    fn within_limit<T>(&self, work: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>) -> Result<T> {
        // The server ends a statement that takes too long; this is for a server that does not answer at all any more.
        let limit = STATEMENT_TIMEOUT + Duration::from_secs(5);
        let result = match wait(&self.runtime, async { tokio::time::timeout(limit, work).await }) {
            Err(_) => Err(StoreError::Unreachable("the database does not answer".into())),
            Ok(Err(error)) if error.is_closed() || self.client.is_closed() => {
                Err(StoreError::Unreachable(describe_postgres(&error)))
            }
            Ok(done) => done.map_err(StoreError::from),
        };
        if result.is_err() {
            self.aborted.set(true);
        }
        result
    }
}

/// A value for a statement's parameter.
#[derive(Debug)]
pub(super) struct Bound<'a>(ToSqlOutput<'a>);

fn bind<'a>(values: &[&'a dyn rusqlite::types::ToSql]) -> Result<Vec<Bound<'a>>> {
    values.iter().map(|value| Ok(Bound(value.to_sql()?))).collect()
}

/// As [`bind`], copied.
pub(super) fn owned(values: &[&dyn rusqlite::types::ToSql]) -> Result<Vec<Bound<'static>>> {
    let keep = |value: &&dyn rusqlite::types::ToSql| {
        let value = match value.to_sql()? {
            ToSqlOutput::Owned(value) => value,
            ToSqlOutput::Borrowed(value) => Value::try_from(value)
                .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, value.data_type(), Box::new(e)))?,
            _ => Value::Null,
        };
        Ok(Bound(ToSqlOutput::Owned(value)))
    };
    values.iter().map(keep).collect()
}

type BoxError = Box<dyn std::error::Error + Sync + Send>;

impl ToSql for Bound<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> std::result::Result<IsNull, BoxError> {
        let value = match &self.0 {
            ToSqlOutput::Borrowed(value) => *value,
            ToSqlOutput::Owned(value) => value.into(),
            _ => return Err("a value of no known type".into()),
        };
        match value {
            ValueRef::Null => Ok(IsNull::Yes),
            ValueRef::Integer(i) => match *ty {
                Type::INT8 => i.to_sql(ty, out),
                Type::INT4 => i32::try_from(i)?.to_sql(ty, out),
                Type::INT2 => i16::try_from(i)?.to_sql(ty, out),
                #[allow(clippy::cast_precision_loss)] // as SQLite compares them
                Type::FLOAT8 => (i as f64).to_sql(ty, out),
                Type::BOOL => (i != 0).to_sql(ty, out),
                _ => i.to_string().to_sql(&Type::TEXT, out),
            },
            ValueRef::Real(f) => f.to_sql(ty, out),
            ValueRef::Text(text) => match *ty {
                Type::INT8 => std::str::from_utf8(text)?.parse::<i64>()?.to_sql(ty, out),
                _ => std::str::from_utf8(text)?.to_sql(&Type::TEXT, out),
            },
            ValueRef::Blob(bytes) => bytes.to_sql(ty, out),
        }
    }

    fn accepts(ty: &Type) -> bool {
        matches!(ty.kind(), Kind::Simple)
    }

    to_sql_checked!();
}

/// A column's value; nothing for NULL.
pub(super) fn column(row: &tokio_postgres::Row, index: usize) -> Result<Option<ValueRef<'_>>> {
    let Some(column) = row.columns().get(index) else {
        return Err(rusqlite::Error::InvalidColumnIndex(index).into());
    };
    Ok(match *column.type_() {
        Type::INT8 => row.try_get::<_, Option<i64>>(index)?.map(ValueRef::Integer),
        Type::INT4 => row.try_get::<_, Option<i32>>(index)?.map(|i| ValueRef::Integer(i.into())),
        Type::INT2 => row.try_get::<_, Option<i16>>(index)?.map(|i| ValueRef::Integer(i.into())),
        Type::BOOL => row.try_get::<_, Option<bool>>(index)?.map(|b| ValueRef::Integer(b.into())),
        Type::FLOAT8 => row.try_get::<_, Option<f64>>(index)?.map(ValueRef::Real),
        Type::BYTEA => row.try_get::<_, Option<&[u8]>>(index)?.map(ValueRef::Blob),
        _ => row.try_get::<_, Option<&str>>(index)?.map(|t| ValueRef::Text(t.as_bytes())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_and_its_password_never_shown() {
        let server = Server::of_url("postgres://me:secret@db.example:5433/runs?sslmode=disable").unwrap();
        assert_eq!(server.shown, "db.example/runs");
        assert_eq!(server.max_readers(), None);
        let server = Server::of_url("postgres://me:secret@db.example/runs?max_readers=40&sslmode=disable").unwrap();
        assert_eq!(server.max_readers(), Some(40));
        for wrong in [
            "postgres://me:secret@db:port/x",
            "postgres://me:secret@db/x?sslmode=loud",
            "postgres://me:secret@db/x?max_readers=0",
            "postgres://me:secret@db/x?max_readers=many",
            "mysql://me:secret@db/x",
        ] {
            let error = Server::of_url(wrong).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(!error.is_empty() && !error.contains("secret"), "{wrong}: {error}");
        }
    }
}
