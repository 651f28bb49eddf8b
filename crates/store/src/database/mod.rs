//! The metadata database: one writer thread with group commit, a pool of readers, migrations; over SQLite or PostgreSQL.

mod dialect;
mod postgres;
pub mod sql;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::OpenFlags;
use tokio::sync::oneshot;

use crate::StoreError;
pub(crate) use postgres::explain;
use sql::{Connection, Kind, params};

/// The tables of one domain: its name and its schema changes in order. Never edit a released one.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// The crate the tables belong to.
    pub domain: &'static str,
    /// SQL scripts in SQLite's words; the n-th takes the schema from version n to n + 1.
    pub steps: &'static [&'static str],
}

/// Changes that may share one transaction, so that none waits long behind a crowd.
const GROUP_MAX: usize = 512;
/// Time after which a group is committed even if more changes wait.
const GROUP_TIME: Duration = Duration::from_millis(10);
/// Changes that may wait for the writer; beyond it callers are held back.
const QUEUE: usize = 4096;
/// Reader connections kept open.
const READERS: usize = 8;
/// The lock that makes several servers on one PostgreSQL take turns at writing (`slipway` in ASCII).
const TURN: i64 = 0x0073_6c69_7077_6179;

/// A change queued for the writer. The first stage runs inside the transaction, or learns that there is none, and returns the
/// second, which hands the result to the caller once the commit has succeeded or failed.
type Change = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Option<StoreError>) + Send>;

/// The metadata database; cheap to clone.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    place: Arc<Place>,
    queue: Mutex<Option<mpsc::SyncSender<Change>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    readers: Mutex<Vec<Connection>>,
}

/// Where the data is.
enum Place {
    File(std::path::PathBuf),
    Server(Box<postgres::Server>),
}

impl Place {
    fn connect(&self, flags: OpenFlags, settings: &str) -> Result<Connection, StoreError> {
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

    fn writer(&self) -> Result<Connection, StoreError> {
        self.connect(
            OpenFlags::default(),
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;
             PRAGMA busy_timeout=10000; PRAGMA temp_store=MEMORY; PRAGMA cache_size=-8000;
             PRAGMA wal_autocheckpoint=4000; PRAGMA journal_size_limit=67108864;",
        )
    }

    fn reader(&self) -> Result<Connection, StoreError> {
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
    /// [`StoreError::Sql`].
    pub fn in_memory(migrations: &[Migration]) -> Result<Self, StoreError> {
        let connection = Self(Kind::Sqlite(rusqlite::Connection::open_in_memory()?));
        migrate(&connection, migrations)?;
        Ok(connection)
    }

    fn is_closed(&self) -> bool {
        match &self.0 {
            Kind::Sqlite(_) => false,
            Kind::Postgres(session) => session.is_closed(),
        }
    }

    /// Begins a transaction in which nobody else writes.
    fn begin_writing(&self) -> Result<(), StoreError> {
        match &self.0 {
            Kind::Sqlite(_) => self.batch("BEGIN IMMEDIATE"),
            Kind::Postgres(_) => self.batch(&format!("BEGIN; SELECT pg_advisory_xact_lock({TURN})")),
        }
    }

    /// Begins a transaction that sees one state of everything.
    fn begin_reading(&self) -> Result<(), StoreError> {
        match &self.0 {
            Kind::Sqlite(_) => self.batch_later("BEGIN"),
            Kind::Postgres(_) => self.batch_later("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
        }
    }

    /// Folds SQLite's log into its file.
    fn tidy(&self) {
        if let Kind::Sqlite(c) = &self.0 {
            drop(c.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)"));
        }
    }
}

impl Database {
    /// Opens or creates the SQLite database at `path` and brings every domain's tables up to date.
    ///
    /// # Errors
    /// [`StoreError::Newer`] for a file of a newer version, [`StoreError::Sql`] otherwise.
    pub fn open(path: &Path, migrations: &[Migration]) -> Result<Self, StoreError> {
        Self::at(Place::File(path.to_owned()), migrations)
    }

    /// Opens the PostgreSQL database that a `postgres://` URL names and brings every domain's tables up to date. Several servers
    /// may use it at once: they take turns at writing.
    ///
    /// # Errors
    /// [`StoreError::Url`], [`StoreError::Unreachable`]; as [`Database::open`].
    pub fn connect(url: &str, migrations: &[Migration]) -> Result<Self, StoreError> {
        Self::at(Place::Server(Box::new(postgres::Server::of_url(url)?)), migrations)
    }

    fn at(place: Place, migrations: &[Migration]) -> Result<Self, StoreError> {
        let place = Arc::new(place);
        let connection = place.writer()?;
        migrate(&connection, migrations)?;
        let (sender, receiver) = mpsc::sync_channel(QUEUE);
        let writers = Arc::clone(&place);
        let writer = std::thread::Builder::new()
            .name("slipway-writer".into())
            .spawn(move || write_loop(&writers, connection, &receiver))
            .map_err(|source| StoreError::Object { what: "starting the writer thread".into(), source })?;
        Ok(Self {
            inner: Arc::new(Inner {
                place,
                queue: Mutex::new(Some(sender)),
                writer: Mutex::new(Some(writer)),
                readers: Mutex::new(Vec::new()),
            }),
        })
    }

    /// Whether other servers may change what is in it.
    pub fn is_shared(&self) -> bool {
        matches!(*self.inner.place, Place::Server(_))
    }

    /// Runs `change` in a transaction and answers once it is on disk.
    ///
    /// `change` sees every earlier change. If it returns an error, all it did is undone. Dropping the
    /// returned future does not take back a change that was already queued.
    ///
    /// # Errors
    /// What `change` returns, or a [`StoreError`] when the commit fails or the store is closed.
    pub async fn write<T, E>(&self, change: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let queued: Change = Box::new(move |connection| {
            let result = connection.map_err(E::from).and_then(|connection| in_savepoint(connection, change));
            Box::new(move |failed: Option<StoreError>| {
                let result = match failed {
                    Some(error) => Err(E::from(error)),
                    None => result,
                };
                // The caller may have gone away; the change stands all the same.
                drop(reply.send(result));
            })
        });
        self.enqueue(queued).await?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }

    async fn enqueue(&self, mut change: Change) -> Result<(), StoreError> {
        loop {
            let Some(sender) = self.inner.queue.lock().clone() else { return Err(StoreError::Closed) };
            match sender.try_send(change) {
                Ok(()) => return Ok(()),
                Err(mpsc::TrySendError::Disconnected(_)) => return Err(StoreError::Closed),
                Err(mpsc::TrySendError::Full(back)) => change = back,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Runs a query that may take long on a thread of its own.
    ///
    /// # Errors
    /// What `query` returns, or a [`StoreError`] when no connection can be had.
    pub async fn read<T, E>(&self, query: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let database = self.clone();
        tokio::task::spawn_blocking(move || database.read_now(query))
            .await
            .unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }

    /// Runs a query of a few microseconds (a look-up by key) on this thread; over a network the runtime is told that it waits.
    ///
    /// # Errors
    /// What `query` returns, or a [`StoreError`] when no connection can be had.
    pub fn read_now<T, E: From<StoreError>>(&self, query: impl FnOnce(&Connection) -> Result<T, E>) -> Result<T, E> {
        let kept = self.inner.readers.lock().pop();
        let connection = match kept.filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => self.inner.place.reader()?,
        };
        // One snapshot for all statements of the query.
        connection.begin_reading()?;
        let result = query(&connection);
        if connection.batch("COMMIT").is_ok() {
            let mut readers = self.inner.readers.lock();
            if readers.len() < READERS {
                readers.push(connection);
            }
        }
        result
    }

    /// SQLite's own check of the file; `ok` when nothing is wrong. PostgreSQL checks its own.
    ///
    /// # Errors
    /// [`StoreError::Sql`] when the check cannot run.
    pub fn integrity(&self) -> Result<String, StoreError> {
        let sql = if self.is_shared() { "SELECT 'ok'" } else { "PRAGMA integrity_check" };
        self.read_now(|c| Ok(c.first(sql, params![], |row| row.get(0))?.unwrap_or_default()))
    }

    /// Finishes all queued changes, then stops the writer and closes the connections.
    pub fn close(&self) {
        drop(self.inner.queue.lock().take());
        if let Some(writer) = self.inner.writer.lock().take()
            && writer.join().is_err()
        {
            tracing::error!("the writer thread panicked");
        }
        self.inner.readers.lock().clear();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.queue.lock().take());
        if let Some(writer) = self.writer.lock().take() {
            drop(writer.join());
        }
    }
}

fn in_savepoint<T, E: From<StoreError>>(
    connection: &Connection,
    change: impl FnOnce(&Connection) -> Result<T, E>,
) -> Result<T, E> {
    connection.batch_later("SAVEPOINT change")?;
    let result = change(connection);
    if result.is_err() {
        connection.batch("ROLLBACK TO change")?;
    }
    connection.batch_later("RELEASE change")?;
    result
}

/// Begins a transaction, on a new connection if the old one is lost: nothing was run yet that could be run twice.
fn begin(place: &Place, connection: &mut Connection) -> Result<(), StoreError> {
    if !connection.is_closed() {
        match connection.begin_writing() {
            Err(StoreError::Unreachable(_)) => {}
            begun => return begun,
        }
    }
    *connection = place.writer()?;
    connection.begin_writing()
}

fn write_loop(place: &Place, mut connection: Connection, queue: &mpsc::Receiver<Change>) {
    while let Ok(first) = queue.recv() {
        let started = Instant::now();
        if let Err(error) = begin(place, &mut connection) {
            tracing::error!(%error, "cannot begin a transaction");
            first(Err(error))(None);
            continue;
        }
        let mut answers = vec![first(Ok(&connection))];
        while answers.len() < GROUP_MAX && started.elapsed() < GROUP_TIME {
            match queue.try_recv() {
                Ok(change) => answers.push(change(Ok(&connection))),
                Err(_) => break,
            }
        }
        match connection.batch("COMMIT") {
            Ok(()) => answers.into_iter().for_each(|answer| answer(None)),
            Err(error) => {
                tracing::error!(%error, changes = answers.len(), "commit failed; the group is rolled back");
                drop(connection.batch("ROLLBACK"));
                let message = error.to_string();
                for answer in answers {
                    answer(Some(StoreError::Commit(message.clone())));
                }
            }
        }
    }
    connection.tidy();
}

fn migrate(connection: &Connection, migrations: &[Migration]) -> Result<(), StoreError> {
    // All in one transaction, so that servers that start at once do not get into each other's way.
    connection.begin_writing()?;
    let done = migrate_all(connection, migrations);
    connection.batch(if done.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
    done
}

fn migrate_all(connection: &Connection, migrations: &[Migration]) -> Result<(), StoreError> {
    let script = |sql: &str| match &connection.0 {
        Kind::Sqlite(_) => connection.batch(sql),
        Kind::Postgres(_) => connection.batch(&dialect::schema(sql)),
    };
    script(
        "CREATE TABLE IF NOT EXISTS schema_version (domain TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID",
    )?;
    for migration in migrations {
        let found: Option<i64> =
            connection
                .first("SELECT version FROM schema_version WHERE domain = ?1", [migration.domain], |row| row.get(0))?;
        let found = usize::try_from(found.unwrap_or(0)).unwrap_or(0);
        let known = migration.steps.len();
        if found > known {
            return Err(StoreError::Newer { domain: migration.domain, found, known });
        }
        for (version, step) in migration.steps.iter().enumerate().skip(found) {
            script(step)?;
            connection.execute(
                "INSERT INTO schema_version VALUES (?1, ?2) ON CONFLICT (domain) DO UPDATE SET version = ?2",
                params![migration.domain, i64::try_from(version + 1).unwrap_or(i64::MAX)],
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: Migration = Migration {
        domain: "test",
        steps: &[
            "CREATE TABLE t (k TEXT PRIMARY KEY, v INTEGER, r REAL, b BLOB)",
            "CREATE TABLE n (id INTEGER PRIMARY KEY, v TEXT)",
        ],
    };

    /// A database of a test's own, opened as often as it likes.
    #[derive(Clone)]
    enum Own {
        File(std::path::PathBuf),
        Server(String),
    }

    impl Own {
        fn open(&self, migrations: &[Migration]) -> Result<Database, StoreError> {
            match self {
                Self::File(dir) => Database::open(&dir.join("t.db"), migrations),
                Self::Server(url) => Database::connect(url, migrations),
            }
        }
    }

    /// What every database has to do. SQLite always; PostgreSQL where `SLIPWAY_TEST_DATABASE` names one (`testkit/services.py`),
    /// in a schema of its own.
    async fn everywhere<F: Future<Output = ()>>(test: impl Fn(Own) -> F) {
        let name = format!("t{}", slipway_core::ids::hex32());
        let dir = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&dir).unwrap();
        test(Own::File(dir.clone())).await;
        std::fs::remove_dir_all(dir).unwrap();
        if let Ok(url) = std::env::var("SLIPWAY_TEST_DATABASE") {
            let admin = Place::Server(Box::new(postgres::Server::of_url(&url).unwrap()));
            let session = admin.writer().unwrap();
            session.batch(&format!("CREATE SCHEMA {name}")).unwrap();
            test(Own::Server(format!("{url}?options=-csearch_path%3D{name}"))).await;
            session.batch(&format!("DROP SCHEMA {name} CASCADE")).unwrap();
        }
    }

    fn put(c: &Connection, k: &str, v: i64) -> Result<(), StoreError> {
        c.execute("INSERT INTO t (k, v) VALUES (?1, ?2)", params![k, v])?;
        Ok(())
    }

    fn count(db: &Database) -> i64 {
        db.read_now(|c| c.first("SELECT count(*) FROM t", params![], |r| r.get(0))).unwrap().unwrap_or(-1)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_failing_change_undoes_only_itself() {
        everywhere(|own| async move {
            let db = own.open(&[TABLES]).unwrap();
            let mut tasks = Vec::new();
            for i in 0..50 {
                let db = db.clone();
                tasks.push(tokio::spawn(async move {
                    db.write(move |c| {
                        put(c, &format!("k{i}"), i)?;
                        if i % 5 == 0 { Err(StoreError::NotFound("on purpose".into())) } else { Ok(()) }
                    })
                    .await
                }));
            }
            let mut failed = 0;
            for task in tasks {
                failed += i32::from(task.await.unwrap().is_err());
            }
            assert_eq!((failed, count(&db)), (10, 40));
            // A statement that the database refuses spoils no other change either.
            let refused = db.write(|c| put(c, "k1", 1)).await.unwrap_err();
            assert!(refused.is_duplicate(), "{refused}");
            db.write(|c| put(c, "more", 1)).await.unwrap();
            assert_eq!(count(&db), 41);
            assert_eq!(db.integrity().unwrap(), "ok");
            db.close();
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn values_come_back_as_they_went_in() {
        everywhere(|own| async move {
            let db = own.open(&[TABLES]).unwrap();
            let numbers = db
                .write(|c| {
                    let sql = "INSERT INTO t VALUES (?1, ?2, ?3, ?4)";
                    c.execute(sql, params!["é'\\?", i64::MIN, 0.1, [0_u8, 255].as_slice()])?;
                    c.execute(sql, params!["Z", Option::<i64>::None, f64::MAX, Option::<Vec<u8>>::None])?;
                    c.execute(sql, params!["a", true, -0.0, b"".as_slice()])?;
                    c.execute_each("INSERT INTO n (v) VALUES (?1)", (0..600).map(|i| [format!("v{i}")]))?;
                    let next = "INSERT INTO n (v) VALUES (?1) RETURNING id";
                    Ok::<_, StoreError>((
                        c.first(next, ["x"], |r| r.get::<i64>(0))?,
                        c.first(next, ["y"], |r| r.get::<i64>(0))?,
                    ))
                })
                .await
                .unwrap();
            assert_eq!(numbers, (Some(601), Some(602)));
            let all = db
                .read_now(|c| {
                    c.rows("SELECT k, v, r, b FROM t WHERE k <> ? ORDER BY k", ["?"], |r| {
                        Ok((
                            r.get::<String>(0)?,
                            r.get::<Option<i64>>(1)?,
                            r.get::<f64>(2)?,
                            r.get::<Option<Vec<u8>>>(3)?,
                        ))
                    })
                })
                .unwrap();
            // Sorted by bytes, whatever the server's language is.
            assert_eq!(
                all,
                [
                    ("Z".into(), None, f64::MAX, None),
                    ("a".into(), Some(1), 0.0, Some(vec![])),
                    ("é'\\?".into(), Some(i64::MIN), 0.1, Some(vec![0, 255])),
                ]
            );
            let wrong = db.read_now(|c| c.first("SELECT k FROM t", params![], |r| r.get::<i64>(0)));
            assert!(wrong.is_err());
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_closed_store_refuses_and_keeps_what_it_had() {
        everywhere(|own| async move {
            let db = own.open(&[TABLES]).unwrap();
            db.write(|c| put(c, "a", 1)).await.unwrap();
            db.close();
            assert!(matches!(db.write(|c| put(c, "b", 2)).await, Err(StoreError::Closed)));
            assert_eq!(count(&own.open(&[TABLES]).unwrap()), 1);
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn tables_of_a_newer_version_are_refused() {
        everywhere(|own| async move {
            own.open(&[TABLES]).unwrap().close();
            let older = Migration { domain: "test", steps: &TABLES.steps[..1] };
            assert!(matches!(own.open(&[older]), Err(StoreError::Newer { found: 2, known: 1, .. })));
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn servers_that_share_a_database_take_turns() {
        everywhere(|own| async move {
            let Own::Server(_) = own else { return };
            // All at once, the first time too: one of them makes the tables.
            let opened: Vec<_> = (0..4)
                .map(|_| {
                    std::thread::spawn({
                        let own = own.clone();
                        move || own.open(&[TABLES])
                    })
                })
                .collect();
            let servers: Vec<_> = opened.into_iter().map(|t| t.join().unwrap().unwrap()).collect();
            servers[0].write(|c| put(c, "n", 0)).await.unwrap();
            let mut tasks = Vec::new();
            for db in &servers {
                let db = db.clone();
                tasks.push(tokio::spawn(async move {
                    for _ in 0..100 {
                        // Read, then write: without turns some of these would be lost.
                        db.write(|c| {
                            let n: i64 =
                                c.first("SELECT v FROM t WHERE k = 'n'", params![], |r| r.get(0))?.unwrap_or(0);
                            c.execute("UPDATE t SET v = ?1 WHERE k = 'n'", [n + 1])
                        })
                        .await
                        .unwrap();
                    }
                }));
            }
            for task in tasks {
                task.await.unwrap();
            }
            let n = servers[3].read_now(|c| c.first("SELECT v FROM t WHERE k = 'n'", params![], |r| r.get::<i64>(0)));
            assert_eq!(n.unwrap(), Some(400));
        })
        .await;
    }
}
