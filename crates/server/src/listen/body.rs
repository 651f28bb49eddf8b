//! Wrappers for bodies: request bodies that must not stall, and response bodies that keep their request in flight until they are sent.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::connection::InFlight;

/// The minimum pace of a request body. Only the time that the server spends waiting for the client counts, so a steady upload may take
/// any time, and so may the handler.
#[derive(Debug)]
pub(super) struct Pace {
    stall: Duration,
    /// Minimum average rate in bytes per second.
    rate: u64,
    too_slow: AtomicBool,
}

impl Pace {
    pub(super) fn new(stall: Duration, rate: u64) -> Self {
        Self { stall, rate, too_slow: AtomicBool::new(false) }
    }

    /// Whether the body was rejected because it was too slow.
    pub(super) fn was_too_slow(&self) -> bool {
        self.too_slow.load(Relaxed)
    }
}

/// A request body that fails when it is slower than its pace.
pub(super) struct PacedBody {
    inner: Incoming,
    pace: Arc<Pace>,
    bytes: u64,
    /// Total time spent waiting, without the current wait.
    waited: Duration,
    waiting_since: Option<Instant>,
    /// Fires when the body has stalled. Created at the first wait.
    timer: Option<Pin<Box<Sleep>>>,
}

impl PacedBody {
    pub(super) fn new(inner: Incoming, pace: Arc<Pace>) -> Self {
        Self { inner, pace, bytes: 0, waited: Duration::ZERO, waiting_since: None, timer: None }
    }

    fn too_slow_error(&self) -> axum::Error {
        self.pace.too_slow.store(true, Relaxed);
        axum::Error::new(std::io::Error::new(std::io::ErrorKind::TimedOut, "the request body is too slow"))
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
            let deadline = Instant::now() + self.pace.stall;
            let wait_begins = self.waiting_since.is_none();
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if wait_begins {
                timer.as_mut().reset(deadline);
            }
            let stalled = timer.as_mut().poll(cx);
            if wait_begins {
                self.waiting_since = Some(Instant::now());
            }
            ready!(stalled);
            return Poll::Ready(Some(Err(self.too_slow_error())));
        };
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
        }
        if let Some(Ok(frame)) = &frame {
            self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        let expected = self.waited.as_secs().saturating_mul(self.pace.rate);
        if frame.is_some() && self.waited >= self.pace.stall && self.bytes < expected {
            return Poll::Ready(Some(Err(self.too_slow_error())));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(axum::Error::new)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A response body. Its request counts as in flight until the body has been sent.
pub(super) struct CountedBody {
    inner: Body,
    in_flight: InFlight,
}

impl CountedBody {
    pub(super) fn new(inner: Body, mut in_flight: InFlight) -> Self {
        in_flight.mark_unread();
        Self { inner, in_flight }
    }
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        // hyper polls for more only when the client can receive it, over HTTP/1 and HTTP/2 alike.
        self.in_flight.mark_read();
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if polled.is_ready() {
            self.in_flight.mark_unread();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The response to a request whose body was too slow (RFC 9110, section 15.5.9).
pub(super) fn too_slow_response() -> Response {
    let body = serde_json::json!({
        "error_code": "REQUEST_TIMEOUT",
        "message": "The body of the request did not arrive in time.",
        "code": "request.timeout",
    });
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CONNECTION, "close")];
    (StatusCode::REQUEST_TIMEOUT, headers, body.to_string()).into_response()
}
