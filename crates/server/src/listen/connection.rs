//! Tracks the activity of a connection, and decides when it has been inactive for too long.
//!
//! Invariant: a connection that processes a request on the server's side never expires.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::Version;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::Limits;

/// A client that has read nothing of its responses for this many milliseconds counts as idle, so its connection may be evicted.
const UNREAD_GRACE_MS: u64 = 5_000;

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    /// The head of a request did not arrive in time.
    Header,
    /// No request arrived in time.
    Idle,
    /// The client did not read its responses in time.
    Unread,
    /// The port needs the connection's permit for another client.
    Evicted,
}

/// The activity of a connection. All times are milliseconds since the connection started, plus one; 0 means never.
#[derive(Debug)]
pub(super) struct Activity {
    started: Instant,
    /// Requests whose response has not been sent completely.
    in_flight: AtomicUsize,
    /// The requests among them whose response waits for the client to read. An HTTP/2 client can stall a response without blocking any
    /// write, by not opening the stream's flow-control window (RFC 9113, section 5.2).
    unread: AtomicUsize,
    /// When the client last read a part of a response.
    read_at: AtomicU64,
    /// When the last response was sent completely; 0 before the first.
    idle_since: AtomicU64,
    /// When the first byte of the next request arrived; 0 if none has.
    header_since: AtomicU64,
    /// With HTTP/2, bytes also arrive between requests: pings, settings, acknowledgements.
    is_http2: AtomicBool,
    is_evicted: AtomicBool,
    evict: Notify,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            in_flight: AtomicUsize::new(0),
            unread: AtomicUsize::new(0),
            read_at: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            header_since: AtomicU64::new(0),
            is_http2: AtomicBool::new(false),
            is_evicted: AtomicBool::new(false),
            evict: Notify::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// Records a new request, which is in flight until the returned value is dropped.
    pub(super) fn begin(this: &Arc<Self>, version: Version) -> InFlight {
        this.in_flight.fetch_add(1, SeqCst);
        this.header_since.store(0, SeqCst);
        if version == Version::HTTP_2 {
            this.is_http2.store(true, SeqCst);
        }
        InFlight { activity: Arc::clone(this), is_unread: false }
    }

    /// Records that bytes arrived.
    fn received(&self) {
        if self.in_flight.load(SeqCst) == 0 && !self.is_http2.load(SeqCst) && self.header_since.load(SeqCst) == 0 {
            self.header_since.store(self.now(), SeqCst);
        }
    }

    /// For how many milliseconds all responses have waited for the client; `None` if the server still works on a request.
    fn unread_for(&self) -> Option<u64> {
        let in_flight = self.in_flight.load(SeqCst);
        let all = in_flight > 0 && self.unread.load(SeqCst) >= in_flight;
        all.then(|| self.now().saturating_sub(self.read_at.load(SeqCst)))
    }

    /// For how many milliseconds the connection has been idle; `None` while it is in use, or once it is being evicted.
    pub(super) fn idle_for(&self) -> Option<u64> {
        if self.is_evicted.load(SeqCst) {
            return None;
        }
        if self.in_flight.load(SeqCst) > 0 {
            return self.unread_for().filter(|unread| *unread >= UNREAD_GRACE_MS);
        }
        Some(self.now().saturating_sub(self.idle_since.load(SeqCst)))
    }

    /// Whether a request is in flight whose client has read something within this time, or whose response is not ready.
    pub(super) fn is_responding(&self, within: Duration) -> bool {
        self.in_flight.load(SeqCst) > 0
            && self.unread_for().is_none_or(|unread| u128::from(unread) < within.as_millis())
    }

    /// Whether the connection can be dropped without losing a request: no request is in flight, and the client has sent none yet or only
    /// a part of one.
    pub(super) fn is_before_request(&self) -> bool {
        let no_complete_request = self.idle_since.load(SeqCst) == 0 || self.header_since.load(SeqCst) > 0;
        self.in_flight.load(SeqCst) == 0 && no_complete_request
    }

    /// Asks the connection to close, so that another client can connect.
    pub(super) fn evict(&self) {
        self.is_evicted.store(true, SeqCst);
        self.evict.notify_one();
    }

    /// Completes when [`Self::evict`] was called.
    pub(super) async fn evicted(&self) {
        self.evict.notified().await;
    }

    /// When the connection expires without further activity, and why.
    fn deadline(&self, limits: &Limits) -> Option<(u64, Expiry)> {
        let milliseconds = |limit: Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        if self.in_flight.load(SeqCst) > 0 {
            let read_at = self.read_at.load(SeqCst);
            return self.unread_for().map(|_| (read_at.saturating_add(milliseconds(limits.idle)), Expiry::Unread));
        }
        let (header, idle) = (self.header_since.load(SeqCst), self.idle_since.load(SeqCst));
        Some(if header > 0 || idle == 0 {
            (header.max(1).saturating_add(milliseconds(limits.header)), Expiry::Header)
        } else {
            (idle.saturating_add(milliseconds(limits.idle)), Expiry::Idle)
        })
    }

    /// Completes when the client was too slow or idle for too long, or when the connection is evicted.
    pub(super) async fn expires(&self, limits: &Limits) -> Expiry {
        loop {
            // The deadline can change during the sleep, when a head begins to arrive or a request ends, so it is checked again at least
            // this often.
            let mut sleep = limits.header.min(limits.idle);
            if let Some((deadline, why)) = self.deadline(limits) {
                let remaining = deadline.saturating_sub(self.now());
                if remaining == 0 {
                    return why;
                }
                sleep = sleep.min(Duration::from_millis(remaining));
            }
            tokio::select! {
                () = self.evicted() => return Expiry::Evicted,
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }
}

/// A request whose response has not been sent completely.
#[derive(Debug)]
pub(super) struct InFlight {
    activity: Arc<Activity>,
    is_unread: bool,
}

impl InFlight {
    /// Records that the response waits for the client to read.
    pub(super) fn mark_unread(&mut self) {
        if !self.is_unread {
            self.activity.read_at.store(self.activity.now(), SeqCst);
            self.activity.unread.fetch_add(1, SeqCst);
            self.is_unread = true;
        }
    }

    /// Records that the client has read everything so far.
    pub(super) fn mark_read(&mut self) {
        if self.is_unread {
            self.activity.read_at.store(self.activity.now(), SeqCst);
            self.activity.unread.fetch_sub(1, SeqCst);
            self.is_unread = false;
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.mark_read();
        self.activity.idle_since.store(self.activity.now(), SeqCst);
        self.activity.in_flight.fetch_sub(1, SeqCst);
    }
}

/// A stream that records incoming bytes, and fails when the client does not read written data in time.
#[derive(Debug)]
pub(super) struct Watched<S> {
    inner: S,
    activity: Arc<Activity>,
    stall: Duration,
    /// Fires when a write has stalled. Created when a write first has to wait.
    timer: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

impl<S> Watched<S> {
    pub(super) fn new(inner: S, activity: Arc<Activity>, stall: Duration) -> Self {
        Self { inner, activity, stall, timer: None, is_waiting: false }
    }

    /// Returns the result of a write, or a timeout error if writes have stalled for too long.
    fn timed<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_waiting = false;
            return written;
        }
        let deadline = Instant::now() + self.stall;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if !self.is_waiting {
            self.is_waiting = true;
            timer.as_mut().reset(deadline);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its response")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.activity.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.timed(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, parts);
        self.timed(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.timed(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.timed(cx, closed)
    }
}
