//! The pool of read connections. Their number is bounded, and they stay open between queries.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::panics::catch_panic;
use super::place::Place;
use super::sql::Connection;
use crate::StoreError;
use crate::error::Result;

/// Limits of a database's connection pool.
#[derive(Debug, Clone, Copy)]
pub struct DatabaseOptions {
    /// Maximum number of read connections, at least 1; the writer has one more. `max_readers` in the URL of a PostgreSQL database
    /// takes precedence. The default is 16.
    pub max_readers: usize,
    /// Maximum time that a query waits for a connection before it fails with [`StoreError::Busy`]. The default is 10 seconds.
    pub reader_timeout: Duration,
}

impl Default for DatabaseOptions {
    fn default() -> Self {
        Self { max_readers: 16, reader_timeout: Duration::from_secs(10) }
    }
}

/// The read connections of a database.
pub(super) struct Pool {
    place: Arc<Place>,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
    waiting: AtomicUsize,
    options: DatabaseOptions,
}

/// The permit to use one connection. It is returned on drop, also when a panic unwinds.
pub(super) struct Permit(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// Usage of the pool of read connections, without the writer's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    /// Maximum number of open connections.
    pub max: usize,
    /// Number of open connections: in use, idle, or being opened.
    pub open: usize,
    /// Number of open connections that are not in use.
    pub idle: usize,
    /// Number of queries that wait for a connection.
    pub waiting: usize,
}

impl Pool {
    pub(super) fn new(place: Arc<Place>, options: DatabaseOptions) -> Self {
        Self {
            place,
            permits: Arc::new(Semaphore::new(options.max_readers)),
            idle: Mutex::new(Vec::new()),
            waiting: AtomicUsize::new(0),
            options,
        }
    }

    /// Waits for the permit to use a connection.
    pub(super) async fn permit(&self) -> Result<Permit> {
        let permits = Arc::clone(&self.permits);
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            return Ok(Permit(permit));
        }
        let _waiting = Waiting::new(&self.waiting);
        self.granted(tokio::time::timeout(self.options.reader_timeout, permits.acquire_owned()).await.ok())
    }

    /// [`Pool::permit`] as a blocking call; the current thread may belong to a tokio runtime.
    pub(super) fn permit_now(&self) -> Result<Permit> {
        let permits = Arc::clone(&self.permits);
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            return Ok(Permit(permit));
        }
        let _waiting = Waiting::new(&self.waiting);
        let wait = || block_with_timeout(permits.acquire_owned(), self.options.reader_timeout);
        // A multi-threaded runtime moves the other tasks of this thread to another thread meanwhile.
        let is_multi_threaded = Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
        self.granted(if is_multi_threaded { tokio::task::block_in_place(wait) } else { wait() })
    }

    fn granted<E>(&self, permit: Option<std::result::Result<OwnedSemaphorePermit, E>>) -> Result<Permit> {
        match permit {
            Some(Ok(permit)) => Ok(Permit(permit)),
            Some(Err(_)) => Err(StoreError::Closed),
            None => Err(StoreError::Busy {
                what: "no connection to the database became available",
                waited: self.options.reader_timeout,
            }),
        }
    }

    /// Runs a query in a read transaction, so that all its statements see the same snapshot. If the transaction fails, the connection
    /// is closed, and the next query opens another.
    pub(super) fn run<T, E: From<StoreError>>(
        &self,
        permit: Permit,
        query: impl FnOnce(&Connection) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let idle = self.idle.lock().pop();
        let connection = match idle.filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => self.place.reader()?,
        };
        connection.begin_read()?;
        let result = catch_panic("the query", || query(&connection))?;
        if connection.statement("COMMIT").is_ok() {
            self.idle.lock().push(connection);
        }
        // Drop the permit only after the connection was put back or closed, so that connections never outnumber permits.
        drop(permit);
        result
    }

    /// Closes the idle connections.
    pub(super) fn close_idle(&self) {
        self.idle.lock().clear();
    }

    pub(super) fn stats(&self) -> PoolStats {
        let idle = self.idle.lock().len();
        let max = self.options.max_readers;
        // A connection is put back before its permit, so for a moment it would be counted twice.
        let open = (max - self.permits.available_permits().min(max) + idle).min(max);
        PoolStats { max, open, idle, waiting: self.waiting.load(Ordering::Relaxed) }
    }
}

/// Counts one waiting query, from creation to drop.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Blocks the current thread until `future`, which must not need a runtime, is ready; `None` after `timeout`.
fn block_with_timeout<F: Future>(future: F, timeout: Duration) -> Option<F::Output> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let deadline = Instant::now() + timeout;
    // `unconstrained`, because tokio's cooperative budget would make the future yield to other tasks, and here there are none.
    let mut future = pin!(tokio::task::unconstrained(future));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return None;
        }
        std::thread::park_timeout(remaining);
    }
}
