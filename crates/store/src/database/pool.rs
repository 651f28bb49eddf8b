//! Connections that read: a bounded number, kept open between queries.

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

use super::panics::catching;
use super::place::Place;
use super::sql::Connection;
use crate::StoreError;
use crate::error::Result;

/// How a database is used.
#[derive(Debug, Clone, Copy)]
pub struct DatabaseOptions {
    /// The most connections that read at the same time, at least 1; the writer has one more. `max_readers` in the URL of a
    /// PostgreSQL database takes precedence. The default is 16.
    pub max_readers: usize,
    /// How long a query waits for a connection before it fails with [`StoreError::Busy`]. The default is 10 seconds.
    pub reader_wait: Duration,
}

impl Default for DatabaseOptions {
    fn default() -> Self {
        Self { max_readers: 16, reader_wait: Duration::from_secs(10) }
    }
}

/// The connections that read.
pub(super) struct Pool {
    place: Arc<Place>,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
    waiting: AtomicUsize,
    options: DatabaseOptions,
}

/// The right to hold one connection. Given back when it is dropped, by a panic too.
pub(super) struct Permit(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// How the connections that read are used; the writer has one more of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    /// The most connections that are open at the same time.
    pub max: usize,
    /// Connections that are open: in use, idle, or just being opened.
    pub open: usize,
    /// Connections that are open and that nobody uses.
    pub idle: usize,
    /// Queries that wait for a connection.
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

    /// Waits for the right to use a connection.
    pub(super) async fn permit(&self) -> Result<Permit> {
        let permits = Arc::clone(&self.permits);
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            return Ok(Permit(permit));
        }
        let _waiting = Waiting::of(&self.waiting);
        self.granted(tokio::time::timeout(self.options.reader_wait, permits.acquire_owned()).await.ok())
    }

    /// The same, on this thread, which may be one of a runtime's.
    pub(super) fn permit_now(&self) -> Result<Permit> {
        let permits = Arc::clone(&self.permits);
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            return Ok(Permit(permit));
        }
        let _waiting = Waiting::of(&self.waiting);
        let wait = || park_until(permits.acquire_owned(), self.options.reader_wait);
        // Other tasks of this thread move to another one for the time being, where the runtime has any.
        let movable = Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
        self.granted(if movable { tokio::task::block_in_place(wait) } else { wait() })
    }

    fn granted<E>(&self, permit: Option<std::result::Result<OwnedSemaphorePermit, E>>) -> Result<Permit> {
        match permit {
            Some(Ok(permit)) => Ok(Permit(permit)),
            Some(Err(_)) => Err(StoreError::Closed),
            None => Err(StoreError::Busy {
                what: "no connection to the database became free",
                waited: self.options.reader_wait,
            }),
        }
    }

    /// Runs a query on a connection, in which all its statements see one state. A connection on which something went wrong is
    /// closed, and the next query opens another.
    pub(super) fn run<T, E: From<StoreError>>(
        &self,
        permit: Permit,
        query: impl FnOnce(&Connection) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let kept = self.idle.lock().pop();
        let connection = match kept.filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => self.place.reader()?,
        };
        connection.begin_reading()?;
        let result = catching("the query", || query(&connection))?;
        if connection.batch("COMMIT").is_ok() {
            self.idle.lock().push(connection);
        }
        // After the connection was put back or closed: there are never more connections than permits.
        drop(permit);
        result
    }

    /// Closes the connections that nobody uses.
    pub(super) fn close_idle(&self) {
        self.idle.lock().clear();
    }

    pub(super) fn stats(&self) -> PoolStats {
        let idle = self.idle.lock().len();
        let max = self.options.max_readers;
        // A connection is put back before its permit is, so for a moment it counts as both.
        let open = (max - self.permits.available_permits().min(max) + idle).min(max);
        PoolStats { max, open, idle, waiting: self.waiting.load(Ordering::Relaxed) }
    }
}

/// Counts a query that waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn of(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits on this thread for a future that needs no runtime; nothing when the time is over.
fn park_until<F: Future>(future: F, limit: Duration) -> Option<F::Output> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let deadline = Instant::now() + limit;
    // Without `unconstrained`, tokio may ask a future to let other tasks run first, again and again: there are none here.
    let mut future = pin!(tokio::task::unconstrained(future));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        std::thread::park_timeout(left);
    }
}
