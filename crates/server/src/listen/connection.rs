//! What a connection is doing, and for how long it may do nothing.

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

/// A client that has taken nothing of its answers for this many milliseconds is not using its connection, if another needs the room.
const UNREAD_GRACE: u64 = 5_000;

/// Why a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    /// The head of a request did not arrive in time.
    Header,
    /// No request came for too long.
    Idle,
    /// The client did not take its answers for too long.
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
    /// Those of them whose answer goes on when the client takes more of it. A client of HTTP/2 may take nothing for ever without keeping
    /// any write waiting, by giving its streams no window (RFC 9113, section 5.2).
    unread: AtomicUsize,
    /// When a client last took something of an answer.
    taken_at: AtomicU64,
    /// When the last request was answered; 0 before the first.
    idle_since: AtomicU64,
    /// When the head of the next request began to arrive.
    header_since: AtomicU64,
    /// Over HTTP/2 bytes also arrive between requests: pings, settings, acknowledgements.
    is_http2: AtomicBool,
    is_evicted: AtomicBool,
    evict: Notify,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            in_flight: AtomicUsize::new(0),
            unread: AtomicUsize::new(0),
            taken_at: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            header_since: AtomicU64::new(0),
            is_http2: AtomicBool::new(false),
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
        InFlight { activity: Arc::clone(this), is_unread: false }
    }

    /// Bytes arrived.
    fn received(&self) {
        if self.in_flight.load(SeqCst) == 0 && !self.is_http2.load(SeqCst) && self.header_since.load(SeqCst) == 0 {
            self.header_since.store(self.now(), SeqCst);
        }
    }

    /// For how long all its answers have waited for the client, in milliseconds; none where the server itself has something to do.
    fn unread_for(&self) -> Option<u64> {
        let in_flight = self.in_flight.load(SeqCst);
        let all = in_flight > 0 && self.unread.load(SeqCst) >= in_flight;
        all.then(|| self.now().saturating_sub(self.taken_at.load(SeqCst)))
    }

    /// For how long nobody has used it, in milliseconds; none while it is used, or once it was asked to go.
    pub(super) fn idle_for(&self) -> Option<u64> {
        if self.is_evicted.load(SeqCst) {
            return None;
        }
        if self.in_flight.load(SeqCst) > 0 {
            return self.unread_for().filter(|unread| *unread >= UNREAD_GRACE);
        }
        Some(self.now().saturating_sub(self.idle_since.load(SeqCst)))
    }

    /// Whether a request is being answered to a client that has taken something of its answers in this time.
    pub(super) fn is_answering(&self, within: Duration) -> bool {
        self.in_flight.load(SeqCst) > 0
            && self.unread_for().is_none_or(|unread| u128::from(unread) < within.as_millis())
    }

    /// Whether the client has begun a request, or not even its first one, so that it loses nothing when the connection is closed.
    pub(super) fn is_before_request(&self) -> bool {
        let never = self.idle_since.load(SeqCst) == 0 || self.header_since.load(SeqCst) > 0;
        self.in_flight.load(SeqCst) == 0 && never
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
        let milliseconds = |limit: Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        if self.in_flight.load(SeqCst) > 0 {
            let taken_at = self.taken_at.load(SeqCst);
            return self.unread_for().map(|_| (taken_at.saturating_add(milliseconds(limits.idle)), Expiry::Unread));
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
            // A head may begin to arrive, or a request end, while this sleeps; so it looks again at least that often.
            let mut sleep = limits.header.min(limits.idle);
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
    is_unread: bool,
}

impl InFlight {
    /// There is something that the client has not taken; the answer goes on when it does.
    pub(super) fn waits_for_client(&mut self) {
        if !self.is_unread {
            self.activity.taken_at.store(self.activity.now(), SeqCst);
            self.activity.unread.fetch_add(1, SeqCst);
            self.is_unread = true;
        }
    }

    /// The client took what there was.
    pub(super) fn was_taken(&mut self) {
        if self.is_unread {
            self.activity.taken_at.store(self.activity.now(), SeqCst);
            self.activity.unread.fetch_sub(1, SeqCst);
            self.is_unread = false;
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.was_taken();
        self.activity.idle_since.store(self.activity.now(), SeqCst);
        self.activity.in_flight.fetch_sub(1, SeqCst);
    }
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
