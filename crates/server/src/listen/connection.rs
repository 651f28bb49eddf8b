//! What a connection is doing, and for how long it may do nothing.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::Version;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::Limits;

/// Why a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    /// The head of a request did not arrive in time.
    Header,
    /// No request came for too long.
    Idle,
    /// An answer was not read for too long.
    Unread,
    /// It makes room for another.
    Evicted,
}

/// What a connection is doing. All times are milliseconds since it began, plus one; 0 says that something did not happen.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    /// Requests that are not answered whole yet.
    in_flight: AtomicUsize,
    /// When the last request was answered; 0 before the first.
    idle_since: AtomicU64,
    /// When the head of the next request began to arrive.
    header_since: AtomicU64,
    /// Over HTTP/2 bytes also arrive between requests: pings, settings, acknowledgements.
    is_http2: AtomicBool,
    /// Requests over HTTP/2 whose answer waits for the client to open its flow-control window, with the time since when. Over HTTP/1 such an
    /// answer fails when it is written ([`Watched`]). Over HTTP/2 it does not: nothing of it is written until there is a window, while
    /// pings and their answers go on.
    unread: Mutex<HashMap<u64, u64>>,
    next_request: AtomicU64,
    is_evicted: AtomicBool,
    evict: Notify,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            in_flight: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            header_since: AtomicU64::new(0),
            is_http2: AtomicBool::new(false),
            unread: Mutex::default(),
            next_request: AtomicU64::new(0),
            is_evicted: AtomicBool::new(false),
            evict: Notify::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// A request has begun; it ends when what is returned is dropped.
    pub(super) fn begin(this: &Arc<Self>, version: Version) -> InFlight {
        this.in_flight.fetch_add(1, SeqCst);
        this.header_since.store(0, SeqCst);
        if version == Version::HTTP_2 {
            this.is_http2.store(true, SeqCst);
        }
        let number = this.next_request.fetch_add(1, SeqCst);
        InFlight { activity: Arc::clone(this), number, is_http2: version == Version::HTTP_2 }
    }

    /// Bytes arrived.
    fn received(&self) {
        if self.in_flight.load(SeqCst) == 0 && !self.is_http2.load(SeqCst) && self.header_since.load(SeqCst) == 0 {
            self.header_since.store(self.now(), SeqCst);
        }
    }

    /// For how long it has had no request, in milliseconds; none while it has one, or once it was asked to go.
    pub(super) fn idle_for(&self) -> Option<u64> {
        if self.in_flight.load(SeqCst) > 0 || self.is_evicted.load(SeqCst) {
            return None;
        }
        Some(self.now().saturating_sub(self.idle_since.load(SeqCst)))
    }

    /// Whether a request is in flight that waits for something else than a client that has not read its answer for `stall`.
    pub(super) fn is_answering(&self, stall: Duration) -> bool {
        let (now, stall) = (self.now(), milliseconds(stall));
        let stalled = self.unread.lock().values().filter(|since| since.saturating_add(stall) <= now).count();
        self.in_flight.load(SeqCst) > stalled
    }

    /// Asks it to make room for another.
    pub(super) fn evict(&self) {
        self.is_evicted.store(true, SeqCst);
        self.evict.notify_one();
    }

    /// Done when it was asked to make room.
    pub(super) async fn evicted(&self) {
        self.evict.notified().await;
    }

    /// When it is to end if nothing happens, and why.
    fn deadline(&self, limits: &Limits) -> Option<(u64, Expiry)> {
        if self.in_flight.load(SeqCst) > 0 {
            let longest = self.unread.lock().values().copied().min();
            return longest.map(|since| (since.saturating_add(milliseconds(limits.stall)), Expiry::Unread));
        }
        let (header, idle) = (self.header_since.load(SeqCst), self.idle_since.load(SeqCst));
        Some(if header > 0 || idle == 0 {
            (header.max(1).saturating_add(milliseconds(limits.header)), Expiry::Header)
        } else {
            (idle.saturating_add(milliseconds(limits.idle)), Expiry::Idle)
        })
    }

    /// Done when the client has been too slow or idle for too long, or when another needs the room.
    pub(super) async fn expires(&self, limits: &Limits) -> Expiry {
        loop {
            // A head may begin to arrive, or a request end, or its answer begin, while this sleeps; so it looks again at least that often.
            let mut sleep = limits.header.min(limits.idle).min(limits.stall);
            if let Some((deadline, why)) = self.deadline(limits) {
                let left = deadline.saturating_sub(self.now());
                if left == 0 {
                    return why;
                }
                sleep = sleep.min(Duration::from_millis(left));
            }
            tokio::select! {
                () = self.evicted() => return Expiry::Evicted,
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }
}

/// A request that is not answered whole yet.
#[derive(Debug)]
pub(super) struct InFlight {
    activity: Arc<Activity>,
    number: u64,
    is_http2: bool,
}

impl InFlight {
    /// A part of the answer was handed over; the next one is asked for when the client has room for it.
    pub(super) fn waits_for_client(&self) {
        if self.is_http2 {
            self.activity.unread.lock().insert(self.number, self.activity.now());
        }
    }

    /// The next part of the answer was asked for and is not there yet.
    pub(super) fn waits_for_server(&self) {
        if self.is_http2 {
            self.activity.unread.lock().remove(&self.number);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.waits_for_server();
        self.activity.idle_since.store(self.activity.now(), SeqCst);
        self.activity.in_flight.fetch_sub(1, SeqCst);
    }
}

fn milliseconds(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
}

/// A stream that tells what arrives, and fails when what is written is not taken for too long.
#[derive(Debug)]
pub(super) struct Watched<S> {
    inner: S,
    activity: Arc<Activity>,
    stall: Duration,
    /// When it fails if nothing more is taken; made when a client first keeps it waiting.
    timer: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

impl<S> Watched<S> {
    pub(super) fn new(inner: S, activity: Arc<Activity>, stall: Duration) -> Self {
        Self { inner, activity, stall, timer: None, is_waiting: false }
    }

    /// Passes on what writing came to, or the error that it has come to nothing for too long.
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
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
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
