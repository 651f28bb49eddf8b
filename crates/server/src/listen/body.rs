//! Bodies: a request's, which may not stall, and an answer's, whose end is the end of its request.

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

/// How slow a request's body may be. Only the time counts in which the server waits for the client: an upload may take as long as it likes,
/// and so may the server in handling it.
#[derive(Debug)]
pub(super) struct Pace {
    stall: Duration,
    /// Bytes a second, on average.
    rate: u64,
    too_slow: AtomicBool,
}

impl Pace {
    pub(super) fn new(stall: Duration, rate: u64) -> Self {
        Self { stall, rate, too_slow: AtomicBool::new(false) }
    }

    /// Whether the body was given up on.
    pub(super) fn was_too_slow(&self) -> bool {
        self.too_slow.load(Relaxed)
    }
}

/// A request's body that fails when it is slower than its pace.
pub(super) struct PacedBody {
    inner: Incoming,
    pace: Arc<Pace>,
    bytes: u64,
    /// Time that was spent waiting, before the wait that goes on.
    waited: Duration,
    waiting_since: Option<Instant>,
    /// When it has stalled; made when it is first waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl PacedBody {
    pub(super) fn new(inner: Incoming, pace: Arc<Pace>) -> Self {
        Self { inner, pace, bytes: 0, waited: Duration::ZERO, waiting_since: None, timer: None }
    }

    fn give_up(&self) -> axum::Error {
        self.pace.too_slow.store(true, Relaxed);
        axum::Error::new(std::io::Error::new(std::io::ErrorKind::TimedOut, "the request's body is too slow"))
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
            let begins = self.waiting_since.is_none();
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if begins {
                timer.as_mut().reset(deadline);
            }
            let stalled = timer.as_mut().poll(cx);
            if begins {
                self.waiting_since = Some(Instant::now());
            }
            ready!(stalled);
            return Poll::Ready(Some(Err(self.give_up())));
        };
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
        }
        if let Some(Ok(frame)) = &frame {
            self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        let due = self.waited.as_secs().saturating_mul(self.pace.rate);
        if frame.is_some() && self.waited >= self.pace.stall && self.bytes < due {
            return Poll::Ready(Some(Err(self.give_up())));
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

/// An answer's body; its request is in flight until it was sent. hyper asks for the next part when the client can take it, so the times at
/// which it asks tell whether the client reads.
pub(super) struct CountedBody {
    inner: Body,
    in_flight: InFlight,
}

impl CountedBody {
    pub(super) fn new(inner: Body, in_flight: InFlight) -> Self {
        in_flight.waits_for_client();
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
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if frame.is_ready() {
            self.in_flight.waits_for_client();
        } else {
            self.in_flight.waits_for_server();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The answer to a request whose body was given up on (RFC 9110, section 15.5.9).
pub(super) fn too_slow() -> Response {
    let body = serde_json::json!({
        "error_code": "REQUEST_TIMEOUT",
        "message": "The body of the request did not arrive in time.",
        "code": "request.timeout",
    });
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CONNECTION, "close")];
    (StatusCode::REQUEST_TIMEOUT, headers, body.to_string()).into_response()
}
