//! SQLite with one writer thread, group commit, and a pool of readers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use tokio::sync::oneshot;

use crate::StoreError;

/// The tables of one domain: its name and its schema changes in order. Never edit a released one.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// The crate the tables belong to.
    pub domain: &'static str,
    /// SQL scripts; the n-th takes the schema from version n to n + 1.
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

/// A change queued for the writer. The first stage runs inside the transaction and returns the
/// second, which hands the result to the caller once the commit has succeeded or failed.
type Change = Box<dyn FnOnce(&Connection) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Option<StoreError>) + Send>;

/// The metadata database; cheap to clone.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    queue: Mutex<Option<mpsc::SyncSender<Change>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    readers: Mutex<Vec<Connection>>,
}

impl Database {
    /// Opens or creates the database at `path` and brings every domain's tables up to date.
    ///
    /// # Errors
    /// [`StoreError::Newer`] for a file of a newer version, [`StoreError::Sql`] otherwise.
    pub fn open(path: &Path, migrations: &[Migration]) -> Result<Self, StoreError> {
        let connection = Connection::open(path)?;
        connection.execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;
             PRAGMA busy_timeout=10000; PRAGMA temp_store=MEMORY; PRAGMA cache_size=-8000;
             PRAGMA wal_autocheckpoint=4000; PRAGMA journal_size_limit=67108864;",
        )?;
        connection.set_prepared_statement_cache_capacity(256);
        migrate(&connection, migrations)?;

        let (sender, receiver) = mpsc::sync_channel(QUEUE);
        let writer = std::thread::Builder::new()
            .name("slipway-writer".into())
            .spawn(move || write_loop(connection, &receiver))
            .map_err(|source| StoreError::Object { what: "starting the writer thread".into(), source })?;
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                queue: Mutex::new(Some(sender)),
                writer: Mutex::new(Some(writer)),
                readers: Mutex::new(Vec::new()),
            }),
        })
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
            let result = in_savepoint(connection, change);
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

    /// Runs a query of a few microseconds (a look-up by key) on this thread.
    ///
    /// # Errors
    /// What `query` returns, or a [`StoreError`] when no connection can be had.
    pub fn read_now<T, E: From<StoreError>>(&self, query: impl FnOnce(&Connection) -> Result<T, E>) -> Result<T, E> {
        let kept = self.inner.readers.lock().pop();
        let connection = match kept {
            Some(connection) => connection,
            None => self.open_reader()?,
        };
        // One snapshot for all statements of the query.
        connection.execute_batch("BEGIN").map_err(StoreError::from)?;
        let result = query(&connection);
        if connection.execute_batch("COMMIT").is_ok() {
            let mut readers = self.inner.readers.lock();
            if readers.len() < READERS {
                readers.push(connection);
            }
        }
        result
    }

    fn open_reader(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.inner.path, flags)?;
        connection.execute_batch(
            "PRAGMA busy_timeout=10000; PRAGMA temp_store=MEMORY; PRAGMA cache_size=-4000; PRAGMA query_only=ON;
             PRAGMA case_sensitive_like=ON;
             PRAGMA mmap_size=268435456;",
        )?;
        connection.set_prepared_statement_cache_capacity(256);
        Ok(connection)
    }

    /// SQLite's own check of the file; `ok` when nothing is wrong.
    ///
    /// # Errors
    /// [`StoreError::Sql`] when the check cannot run.
    pub fn integrity(&self) -> Result<String, StoreError> {
        self.read_now(|c| c.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(StoreError::from))
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Finishes all queued changes, then stops the writer and folds the log into the file.
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
    let run = |sql: &str| -> Result<(), StoreError> {
        connection.prepare_cached(sql)?.execute([])?;
        Ok(())
    };
    run("SAVEPOINT change")?;
    let result = change(connection);
    if result.is_err() {
        run("ROLLBACK TO change")?;
    }
    run("RELEASE change")?;
    result
}

fn write_loop(connection: Connection, queue: &mpsc::Receiver<Change>) {
    while let Ok(first) = queue.recv() {
        let started = Instant::now();
        if let Err(error) = connection.execute_batch("BEGIN IMMEDIATE") {
            tracing::error!(%error, "cannot begin a transaction");
            // Without a transaction the savepoint would commit by itself, so nothing is run.
            refuse(first, error, &connection);
            continue;
        }
        let mut answers = vec![first(&connection)];
        while answers.len() < GROUP_MAX && started.elapsed() < GROUP_TIME {
            match queue.try_recv() {
                Ok(change) => answers.push(change(&connection)),
                Err(_) => break,
            }
        }
        match connection.execute_batch("COMMIT") {
            Ok(()) => answers.into_iter().for_each(|answer| answer(None)),
            Err(error) => {
                tracing::error!(%error, changes = answers.len(), "commit failed; the group is rolled back");
                drop(connection.execute_batch("ROLLBACK"));
                let message = error.to_string();
                for answer in answers {
                    answer(Some(StoreError::Commit(message.clone())));
                }
            }
        }
    }
    drop(connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)"));
}

/// Answers a change that could not be tried: it runs in a transaction that is rolled back whatever it does.
fn refuse(change: Change, error: rusqlite::Error, connection: &Connection) {
    if connection.execute_batch("BEGIN DEFERRED").is_ok() {
        let answer = change(connection);
        drop(connection.execute_batch("ROLLBACK"));
        answer(Some(StoreError::Sql(error)));
    }
    // Otherwise the change is dropped and its caller sees `StoreError::Closed`.
}

fn migrate(connection: &Connection, migrations: &[Migration]) -> Result<(), StoreError> {
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS schema_version (domain TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID",
    )?;
    for migration in migrations {
        let found: Option<i64> = connection
            .query_row("SELECT version FROM schema_version WHERE domain = ?1", [migration.domain], |row| row.get(0))
            .optional()?;
        let found = usize::try_from(found.unwrap_or(0)).unwrap_or(0);
        let known = migration.steps.len();
        if found > known {
            return Err(StoreError::Newer { domain: migration.domain, found, known });
        }
        for (version, step) in migration.steps.iter().enumerate().skip(found) {
            connection.execute_batch("BEGIN IMMEDIATE")?;
            let done = connection.execute_batch(step).and_then(|()| {
                connection.execute(
                    "INSERT INTO schema_version VALUES (?1, ?2) ON CONFLICT(domain) DO UPDATE SET version = ?2",
                    rusqlite::params![migration.domain, i64::try_from(version + 1).unwrap_or(i64::MAX)],
                )
            });
            if let Err(error) = done {
                connection.execute_batch("ROLLBACK")?;
                return Err(error.into());
            }
            connection.execute_batch("COMMIT")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: Migration = Migration { domain: "test", steps: &["CREATE TABLE t (k TEXT PRIMARY KEY, v INTEGER)"] };

    fn open(name: &str) -> (Database, PathBuf) {
        let dir = std::env::temp_dir().join(format!("slipway-db-{name}-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(&dir).unwrap();
        (Database::open(&dir.join("t.db"), &[TABLES]).unwrap(), dir)
    }

    fn put(c: &Connection, k: &str, v: i64) -> Result<(), StoreError> {
        c.execute("INSERT INTO t VALUES (?1, ?2)", rusqlite::params![k, v])?;
        Ok(())
    }

    fn count(db: &Database) -> i64 {
        db.read_now(|c| Ok::<_, StoreError>(c.query_row("SELECT count(*) FROM t", [], |r| r.get(0))?)).unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_failing_change_undoes_only_itself() {
        let (db, dir) = open("undo");
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
        assert_eq!(db.integrity().unwrap(), "ok");
        db.close();
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn a_closed_store_refuses_and_keeps_what_it_had() {
        let (db, dir) = open("close");
        db.write(|c| put(c, "a", 1)).await.unwrap();
        db.close();
        assert!(matches!(db.write(|c| put(c, "b", 2)).await, Err(StoreError::Closed)));
        let again = Database::open(&dir.join("t.db"), &[TABLES]).unwrap();
        assert_eq!(count(&again), 1);
        drop(again);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_file_of_a_newer_version_is_refused() {
        let (db, dir) = open("newer");
        db.close();
        let older = Migration { domain: "test", steps: &[] };
        assert!(matches!(Database::open(&dir.join("t.db"), &[older]), Err(StoreError::Newer { found: 1, .. })));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
