//! A connection to PostgreSQL with a blocking interface, because changes and queries are closures that run on threads of their own.
//!
//! Statements are prepared once per connection. A savepoint is sent together with the next statement, and independent statements are
//! pipelined, so a change needs about one round trip for each result that it uses.

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

/// Timeout of a statement. A connection without a response for longer is considered lost.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of prepared statements per connection. A limit is needed because each search builds its own SQL.
const MAX_PREPARED: usize = 512;
/// Maximum number of executions of one statement that are sent as one pipeline.
const MAX_PIPELINED: usize = 256;

/// The address of a database and how to connect to it. The password in it is never displayed.
pub(super) struct Server {
    config: Config,
    tls: MakeRustlsConnect,
    /// Drives the connections. `None` only while the server is being dropped.
    runtime: Option<Runtime>,
    /// Hosts and name of the database, without credentials, for messages.
    display_name: String,
    max_readers: Option<usize>,
}

impl Server {
    /// Parses a `postgres://` URL (PostgreSQL's documentation, *Connection URIs*). `sslrootcert` names a file with the certificate
    /// authorities to trust instead of the system's; certificates are always verified. `max_readers` is slipway's own parameter:
    /// the maximum number of read connections, from 1 to 1000.
    pub(super) fn from_url(url: &str) -> Result<Self> {
        let invalid = |reason: String| StoreError::Url(reason);
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        let mut root_certificates = None;
        let mut mode = None;
        let mut max_readers = None;
        let mut standard = Vec::new();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            match pair.split_once('=') {
                Some(("sslrootcert", file)) => root_certificates = Some(PathBuf::from(file)),
                Some(("sslmode", value)) => mode = Some(value),
                Some(("max_readers", value)) => match value.parse() {
                    Ok(n) if (1..=1000).contains(&n) => max_readers = Some(n),
                    _ => return Err(invalid(format!("max_readers must be a number from 1 to 1000, not '{value}'"))),
                },
                _ => standard.push(pair),
            }
        }
        // Drop the parser's error: its message may contain the password.
        let mut config = Config::from_str(&format!("{address}?{}", standard.join("&")))
            .map_err(|_| invalid("it does not have the form postgres://USER:PASSWORD@HOST:PORT/NAME".into()))?;
        config.ssl_mode(match mode {
            None | Some("prefer" | "allow") => SslMode::Prefer,
            Some("disable") => SslMode::Disable,
            Some("require" | "verify-ca" | "verify-full") => SslMode::Require,
            Some(other) => return Err(invalid(format!("'{other}' is not a supported sslmode"))),
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
        let display_name =
            format!("{}/{}", hosts.join(","), config.get_dbname().or(config.get_user()).unwrap_or_default());
        let trust = root_certificates.as_deref().map_or(Trust::System, Trust::Only);
        let tls = tls::client(trust).map_err(|e| StoreError::Url(format!("TLS to the database: {e}")))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("slipway-postgres")
            .enable_all()
            .build()
            .map_err(StoreError::io("starting the database's thread"))?;
        Ok(Self { config, tls: MakeRustlsConnect::new(tls), runtime: Some(runtime), display_name, max_readers })
    }

    /// The parameter `max_readers` of the URL: the maximum number of read connections.
    pub(super) fn max_readers(&self) -> Option<usize> {
        self.max_readers
    }

    /// Opens a connection.
    pub(super) fn connect(&self) -> Result<Session> {
        let runtime = self.runtime.as_ref().ok_or(StoreError::Closed)?.handle();
        // An async block, so that `timeout` is created inside the runtime; the writer's thread is outside of it.
        let connecting = async { tokio::time::timeout(CONNECT_TIMEOUT, self.config.connect(self.tls.clone())).await };
        let (client, connection) = block_on(runtime, connecting)
            .map_err(|_| {
                StoreError::Unreachable(format!("{} did not respond within {CONNECT_TIMEOUT:?}", self.display_name))
            })?
            .map_err(|e| StoreError::Unreachable(format!("{}: {}", self.display_name, describe_postgres(&e))))?;
        runtime.spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(error = describe_postgres(&error), "a connection to the database was lost");
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
        // Dropping a runtime inside another one panics, because the drop blocks; `shutdown_background` does not block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Blocks the current thread, which may belong to a tokio runtime, until `future` is ready.
fn block_on<F: Future>(runtime: &Handle, future: F) -> F::Output {
    match Handle::try_current() {
        Ok(_) => tokio::task::block_in_place(|| runtime.block_on(future)),
        Err(_) => runtime.block_on(future),
    }
}

/// A connection to PostgreSQL. It is used by one thread at a time.
pub(super) struct Session {
    client: Client,
    runtime: Handle,
    statements: RefCell<HashMap<String, Statement>>,
    /// SQL that is sent together with the next statement.
    pending: Cell<String>,
    /// Whether a statement failed since the last rollback. The server then rejects all other statements of the transaction, and
    /// reports success for its COMMIT although it rolls back.
    aborted: Cell<bool>,
}

impl Session {
    /// Whether the connection is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Whether a statement failed since the last rollback, so that the transaction cannot be committed.
    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.get()
    }

    /// Defers `sql` until the next statement and sends both together.
    pub(super) fn defer(&self, sql: &'static str) {
        let mut pending = self.pending.take();
        // An empty savepoint need not be sent at all.
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
        self.with_timeout(self.client.batch_execute(&all))?;
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
        for chunk in all.chunks(MAX_PIPELINED) {
            let executions = chunk.iter().map(|bound| {
                let params: Vec<&(dyn ToSql + Sync)> = bound.iter().map(|b| b as &(dyn ToSql + Sync)).collect();
                let statement = &statement;
                async move { self.client.execute(statement, &params).await }
            });
            self.with_pending(try_join_all(executions))?;
        }
        Ok(())
    }

    pub(super) fn query(&self, sql: &str, values: &[&dyn rusqlite::types::ToSql]) -> Result<Vec<tokio_postgres::Row>> {
        let (statement, bound) = (self.statement(sql)?, bind(values)?);
        let params: Vec<&(dyn ToSql + Sync)> = bound.iter().map(|b| b as &(dyn ToSql + Sync)).collect();
        self.with_pending(self.client.query(&statement, &params))
    }

    /// The prepared statement for `sql`, cached per connection.
    fn statement(&self, sql: &str) -> Result<Statement> {
        if let Some(cached) = self.statements.borrow().get(sql) {
            return Ok(cached.clone());
        }
        let text = dialect::parameters(sql);
        // Send the pending SQL first: if preparing fails, the rollback needs the savepoint to exist.
        let prepared = self.with_pending(self.client.prepare(&text))?;
        let mut statements = self.statements.borrow_mut();
        if statements.len() >= MAX_PREPARED {
            statements.clear();
        }
        statements.insert(sql.to_owned(), prepared.clone());
        Ok(prepared)
    }

    /// Sends the pending SQL and then `next` as a pipeline, and waits for both.
    fn with_pending<T>(&self, next: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>) -> Result<T> {
        let pending = self.pending.take();
        if pending.is_empty() {
            return self.with_timeout(next);
        }
        self.with_timeout(async {
            let (before, done) = join(self.client.batch_execute(&pending), next).await;
            before.and(done)
        })
    }

    fn with_timeout<T>(&self, work: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>) -> Result<T> {
        // The server itself cancels slow statements; this longer timeout detects a server that no longer responds.
        let timeout = STATEMENT_TIMEOUT + Duration::from_secs(5);
        let result = match block_on(&self.runtime, async { tokio::time::timeout(timeout, work).await }) {
            Err(_) => Err(StoreError::Unreachable("the database does not respond".into())),
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

/// A value of a statement's parameter.
#[derive(Debug)]
pub(super) struct Bound<'a>(ToSqlOutput<'a>);

fn bind<'a>(values: &[&'a dyn rusqlite::types::ToSql]) -> Result<Vec<Bound<'a>>> {
    values.iter().map(|value| Ok(Bound(value.to_sql()?))).collect()
}

/// As [`bind`], with copies of the values.
pub(super) fn bind_owned(values: &[&dyn rusqlite::types::ToSql]) -> Result<Vec<Bound<'static>>> {
    let to_owned = |value: &&dyn rusqlite::types::ToSql| {
        let value = match value.to_sql()? {
            ToSqlOutput::Owned(value) => value,
            ToSqlOutput::Borrowed(value) => Value::try_from(value)
                .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, value.data_type(), Box::new(e)))?,
            _ => Value::Null,
        };
        Ok(Bound(ToSqlOutput::Owned(value)))
    };
    values.iter().map(to_owned).collect()
}

type BoxError = Box<dyn std::error::Error + Sync + Send>;

impl ToSql for Bound<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> std::result::Result<IsNull, BoxError> {
        let value = match &self.0 {
            ToSqlOutput::Borrowed(value) => *value,
            ToSqlOutput::Owned(value) => value.into(),
            _ => return Err("a value of an unknown type".into()),
        };
        match value {
            ValueRef::Null => Ok(IsNull::Yes),
            ValueRef::Integer(i) => match *ty {
                Type::INT8 => i.to_sql(ty, out),
                Type::INT4 => i32::try_from(i)?.to_sql(ty, out),
                Type::INT2 => i16::try_from(i)?.to_sql(ty, out),
                #[allow(clippy::cast_precision_loss)] // SQLite converts it in the same way
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

/// A column's value; `None` for NULL.
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
    fn url_is_parsed_and_errors_hide_the_password() {
        let server = Server::from_url("postgres://me:secret@db.example:5433/runs?sslmode=disable").unwrap();
        assert_eq!(server.display_name, "db.example/runs");
        assert_eq!(server.max_readers(), None);
        let server = Server::from_url("postgres://me:secret@db.example/runs?max_readers=40&sslmode=disable").unwrap();
        assert_eq!(server.max_readers(), Some(40));
        for invalid in [
            "postgres://me:secret@db:port/x",
            "postgres://me:secret@db/x?sslmode=loud",
            "postgres://me:secret@db/x?max_readers=0",
            "postgres://me:secret@db/x?max_readers=many",
            "mysql://me:secret@db/x",
        ] {
            let error = Server::from_url(invalid).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(!error.is_empty() && !error.contains("secret"), "{invalid}: {error}");
        }
    }
}
