//! The metadata database on SQLite or PostgreSQL: one writer thread with group commit, a bounded pool of read connections, and
//! migrations. A write returns only after its commit; a query reads one consistent snapshot.

mod dialect;
mod migrate;
mod panics;
mod place;
mod pool;
mod postgres;
pub mod sql;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::StoreError;
pub use migrate::Migration;
use place::Place;
use pool::Pool;
pub use pool::{DatabaseOptions, PoolStats};
use sql::{Connection, params};
use writer::Change;

/// Maximum number of changes in the writer's queue. When it is full, callers wait up to [`QUEUE_TIMEOUT`].
const QUEUE_CAPACITY: usize = 4096;
/// Maximum time that a caller waits for a free slot in the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(30);

/// A handle to the metadata database; cheap to clone.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    place: Arc<Place>,
    queue: Mutex<Option<mpsc::SyncSender<Change>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    readers: Pool,
}

impl Database {
    /// Opens or creates the SQLite database at `path` and applies all pending migrations. The number of read connections is the
    /// number of CPU cores, and at least that of [`DatabaseOptions::default`].
    ///
    /// # Errors
    /// [`StoreError::Newer`] for a file of a newer version, [`StoreError::MigrationChanged`] when an applied migration differs from
    /// this program's, [`StoreError::Sql`] otherwise.
    pub fn open(path: &Path, migrations: &[Migration]) -> Result<Self, StoreError> {
        let options = DatabaseOptions::default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let options = DatabaseOptions { max_readers: options.max_readers.max(cores), ..options };
        Self::open_with(path, migrations, options)
    }

    /// [`Database::open`] with explicit options.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn open_with(path: &Path, migrations: &[Migration], options: DatabaseOptions) -> Result<Self, StoreError> {
        Self::start(Place::File(path.to_owned()), migrations, options)
    }

    /// Connects to the PostgreSQL database at a `postgres://` URL and applies all pending migrations. Several servers may share the
    /// database: an advisory lock serialises their writes.
    ///
    /// # Errors
    /// [`StoreError::Url`], [`StoreError::Unreachable`], and the errors of [`Database::open`].
    pub fn connect(url: &str, migrations: &[Migration]) -> Result<Self, StoreError> {
        Self::connect_with(url, migrations, DatabaseOptions::default())
    }

    /// [`Database::connect`] with explicit options; `max_readers` in the URL takes precedence.
    ///
    /// # Errors
    /// As [`Database::connect`].
    pub fn connect_with(url: &str, migrations: &[Migration], options: DatabaseOptions) -> Result<Self, StoreError> {
        let server = postgres::Server::from_url(url)?;
        let options = DatabaseOptions { max_readers: server.max_readers().unwrap_or(options.max_readers), ..options };
        Self::start(Place::Server(Box::new(server)), migrations, options)
    }

    fn start(place: Place, migrations: &[Migration], options: DatabaseOptions) -> Result<Self, StoreError> {
        let options = DatabaseOptions { max_readers: options.max_readers.max(1), ..options };
        let place = Arc::new(place);
        let connection = place.writer()?;
        migrate::migrate(&connection, migrations)?;
        let (sender, receiver) = mpsc::sync_channel(QUEUE_CAPACITY);
        let writer_place = Arc::clone(&place);
        let writer = std::thread::Builder::new()
            .name("slipway-writer".into())
            .spawn(move || {
                panics::abort_on_panic("the writer thread", || writer::run(&writer_place, connection, &receiver))
            })
            .map_err(StoreError::io("starting the writer thread"))?;
        Ok(Self {
            inner: Arc::new(Inner {
                place: Arc::clone(&place),
                queue: Mutex::new(Some(sender)),
                writer: Mutex::new(Some(writer)),
                readers: Pool::new(place, options),
            }),
        })
    }

    /// Whether other servers may write to the same database, which is so with PostgreSQL.
    pub fn is_shared(&self) -> bool {
        matches!(*self.inner.place, Place::Server(_))
    }

    /// Runs `change` in a transaction and returns its result after the commit.
    ///
    /// `change` sees every earlier change. If it returns an error or panics, everything it did is rolled back. Dropping the
    /// returned future does not cancel a change that is already queued.
    ///
    /// # Errors
    /// The error of `change`, or a [`StoreError`]: [`StoreError::Panicked`], [`StoreError::OutOfSpace`] for a full disk,
    /// [`StoreError::Commit`], [`StoreError::Closed`], or [`StoreError::Busy`] when the queue stays full.
    pub async fn write<T, E>(&self, change: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (sender, result) = oneshot::channel();
        self.enqueue(writer::change(sender, change)).await?;
        result.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }

    async fn enqueue(&self, mut change: Change) -> Result<(), StoreError> {
        let mut full_since: Option<Instant> = None;
        loop {
            let Some(sender) = self.inner.queue.lock().clone() else { return Err(StoreError::Closed) };
            match sender.try_send(change) {
                Ok(()) => return Ok(()),
                Err(mpsc::TrySendError::Disconnected(_)) => return Err(StoreError::Closed),
                Err(mpsc::TrySendError::Full(rejected)) => change = rejected,
            }
            if full_since.get_or_insert_with(Instant::now).elapsed() > QUEUE_TIMEOUT {
                return Err(StoreError::Busy {
                    what: "the database writer did not accept the change",
                    waited: QUEUE_TIMEOUT,
                });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Checks that the writer responds: queues a change that modifies nothing, behind all waiting changes.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when the writer does not respond within `timeout`, and the errors of [`Database::write`].
    pub async fn ping_writer(&self, timeout: Duration) -> Result<(), StoreError> {
        let ping = self.write(|c| c.first("SELECT 1", params![], |_| Ok(())).map(|_| ()));
        let timed_out = StoreError::Busy { what: "the database writer did not respond", waited: timeout };
        tokio::time::timeout(timeout, ping).await.unwrap_or(Err(timed_out))
    }

    /// Runs a query that may take long on a thread of tokio's blocking pool.
    ///
    /// # Errors
    /// The error of `query`, or a [`StoreError`] when it panics or no connection is available in time.
    pub async fn read<T, E>(&self, query: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        // Wait for the permit before taking a thread; otherwise waiting queries could occupy every thread of the blocking pool.
        let permit = self.inner.readers.permit().await?;
        let database = self.clone();
        tokio::task::spawn_blocking(move || database.inner.readers.run(permit, query))
            .await
            .unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }

    /// Runs a query of a few microseconds (a lookup by key) on the current thread. Waiting for PostgreSQL or for a connection uses
    /// `block_in_place`, so that a multi-threaded runtime moves its other tasks to another thread.
    ///
    /// A query must not start another query: each holds a connection, so nested queries could exhaust the pool.
    ///
    /// # Errors
    /// The error of `query`, or a [`StoreError`] when it panics or no connection is available in time.
    pub fn read_now<T, E: From<StoreError>>(&self, query: impl FnOnce(&Connection) -> Result<T, E>) -> Result<T, E> {
        let permit = self.inner.readers.permit_now()?;
        self.inner.readers.run(permit, query)
    }

    /// Usage of the pool of read connections, for metrics.
    pub fn pool_stats(&self) -> PoolStats {
        self.inner.readers.stats()
    }

    /// The result of SQLite's `PRAGMA integrity_check`: `ok`, or a description of the damage. PostgreSQL has no such check, so for
    /// it the result is always `ok`.
    ///
    /// # Errors
    /// [`StoreError::Sql`] when the check cannot run.
    pub fn integrity(&self) -> Result<String, StoreError> {
        let sql = if self.is_shared() { "SELECT 'ok'" } else { "PRAGMA integrity_check" };
        self.read_now(|c| Ok(c.first(sql, params![], |row| row.get(0))?.unwrap_or_default()))
    }

    /// Finishes all queued changes, then stops the writer and closes the connections.
    pub fn close(&self) {
        self.inner.stop_writer();
        self.inner.readers.close_idle();
    }
}

impl Inner {
    /// Waits until the writer has finished all queued changes and has stopped.
    fn stop_writer(&self) {
        // Dropping the sender ends the writer's loop once the queue is empty.
        self.queue.lock().take();
        if let Some(writer) = self.writer.lock().take()
            // A change may own the last handle of its database. The writer then runs this code itself and must not join its own thread.
            && writer.thread().id() != std::thread::current().id()
        {
            let _ = writer.join(); // A panic of the writer aborts the process, so this cannot fail.
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop_writer();
    }
}
