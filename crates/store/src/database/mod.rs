//! The metadata database: one writer thread with group commit, a bounded pool of readers, migrations; over SQLite or PostgreSQL.

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

/// Changes that may wait for the writer; beyond it callers are held back.
const QUEUE: usize = 4096;
/// How long a change may wait for its place in the queue.
const QUEUE_WAIT: Duration = Duration::from_secs(30);

/// The metadata database; cheap to clone.
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
    /// Opens or creates the SQLite database at `path` and brings every domain's tables up to date. As many queries run at the same
    /// time as the machine has cores, and at least as many as [`DatabaseOptions::default`] says.
    ///
    /// # Errors
    /// [`StoreError::Newer`] for a file of a newer version, [`StoreError::MigrationChanged`] for one of another history,
    /// [`StoreError::Sql`] otherwise.
    pub fn open(path: &Path, migrations: &[Migration]) -> Result<Self, StoreError> {
        let options = DatabaseOptions::default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let options = DatabaseOptions { max_readers: options.max_readers.max(cores), ..options };
        Self::open_with(path, migrations, options)
    }

    /// As [`Database::open`], with options.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn open_with(path: &Path, migrations: &[Migration], options: DatabaseOptions) -> Result<Self, StoreError> {
        Self::start(Place::File(path.to_owned()), migrations, options)
    }

    /// Opens the PostgreSQL database that a `postgres://` URL names and brings every domain's tables up to date. Several servers
    /// may use it at once: they take turns at writing.
    ///
    /// # Errors
    /// [`StoreError::Url`], [`StoreError::Unreachable`]; as [`Database::open`].
    pub fn connect(url: &str, migrations: &[Migration]) -> Result<Self, StoreError> {
        Self::connect_with(url, migrations, DatabaseOptions::default())
    }

    /// As [`Database::connect`], with options.
    ///
    /// # Errors
    /// As [`Database::connect`].
    pub fn connect_with(url: &str, migrations: &[Migration], options: DatabaseOptions) -> Result<Self, StoreError> {
        let server = postgres::Server::of_url(url)?;
        let options = DatabaseOptions { max_readers: server.max_readers().unwrap_or(options.max_readers), ..options };
        Self::start(Place::Server(Box::new(server)), migrations, options)
    }

    fn start(place: Place, migrations: &[Migration], options: DatabaseOptions) -> Result<Self, StoreError> {
        let options = DatabaseOptions { max_readers: options.max_readers.max(1), ..options };
        let place = Arc::new(place);
        let connection = place.writer()?;
        migrate::migrate(&connection, migrations)?;
        let (sender, receiver) = mpsc::sync_channel(QUEUE);
        let of_writer = Arc::clone(&place);
        let writer = std::thread::Builder::new()
            .name("slipway-writer".into())
            .spawn(move || panics::or_abort("the writer thread", || writer::run(&of_writer, connection, &receiver)))
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

    /// Whether other servers may change what is in it.
    pub fn is_shared(&self) -> bool {
        matches!(*self.inner.place, Place::Server(_))
    }

    /// Runs `change` in a transaction and answers once it is on disk.
    ///
    /// `change` sees every earlier change. If it returns an error or panics, all it did is undone. Dropping the
    /// returned future does not take back a change that was already queued.
    ///
    /// # Errors
    /// What `change` returns, or a [`StoreError`]: [`StoreError::Panicked`], [`StoreError::OutOfSpace`] for a full disk, another one
    /// when the commit fails, the store is closed or its queue stays full.
    pub async fn write<T, E>(&self, change: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.enqueue(writer::change(reply, change)).await?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }

    async fn enqueue(&self, mut change: Change) -> Result<(), StoreError> {
        let mut full_since: Option<Instant> = None;
        loop {
            let Some(sender) = self.inner.queue.lock().clone() else { return Err(StoreError::Closed) };
            match sender.try_send(change) {
                Ok(()) => return Ok(()),
                Err(mpsc::TrySendError::Disconnected(_)) => return Err(StoreError::Closed),
                Err(mpsc::TrySendError::Full(back)) => change = back,
            }
            if full_since.get_or_insert_with(Instant::now).elapsed() > QUEUE_WAIT {
                return Err(StoreError::Busy {
                    what: "the database's writer took no more changes",
                    waited: QUEUE_WAIT,
                });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Asks the writer whether it lives: waits in its queue as every change does, and runs a statement that changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when there is no answer within `limit`; as [`Database::write`].
    pub async fn ping_writer(&self, limit: Duration) -> Result<(), StoreError> {
        let ping = self.write(|c| c.first("SELECT 1", params![], |_| Ok(())).map(|_| ()));
        let late = StoreError::Busy { what: "the database's writer did not answer", waited: limit };
        tokio::time::timeout(limit, ping).await.unwrap_or(Err(late))
    }

    /// Runs a query that may take long on a thread of its own.
    ///
    /// # Errors
    /// What `query` returns, or a [`StoreError`] when it panics, or when no connection can be had.
    pub async fn read<T, E>(&self, query: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        // Before a thread is taken: queries that wait for a connection must not use up the threads of everybody else.
        let permit = self.inner.readers.permit().await?;
        let database = self.clone();
        tokio::task::spawn_blocking(move || database.inner.readers.run(permit, query))
            .await
            .unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }

    /// Runs a query of a few microseconds (a look-up by key) on this thread; over a network the runtime is told that it waits.
    /// A query must not run another one inside itself: each holds a connection.
    ///
    /// # Errors
    /// What `query` returns, or a [`StoreError`] when it panics, or when no connection can be had.
    pub fn read_now<T, E: From<StoreError>>(&self, query: impl FnOnce(&Connection) -> Result<T, E>) -> Result<T, E> {
        let permit = self.inner.readers.permit_now()?;
        self.inner.readers.run(permit, query)
    }

    /// How the connections that read are used, for metrics.
    pub fn pool_stats(&self) -> PoolStats {
        self.inner.readers.stats()
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
        self.inner.stop_writer();
        self.inner.readers.close_idle();
    }
}

impl Inner {
    /// Lets the writer finish what is queued and waits for it.
    fn stop_writer(&self) {
        // Without a sender the queue ends when it is empty.
        self.queue.lock().take();
        if let Some(writer) = self.writer.lock().take()
            // A change may own the last handle of its database, which the writer then drops itself; it ends without being waited for.
            && writer.thread().id() != std::thread::current().id()
        {
            let _ = writer.join(); // A writer that panics ends the process, so there is no error to see here.
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop_writer();
    }
}
