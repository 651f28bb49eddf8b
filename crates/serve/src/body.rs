//! Request bodies: received within limits of size, time and memory, whatever the protocol.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use crate::Error;

/// Bytes of the body of a request that carries no tensors.
pub(crate) const SMALL: usize = 64 << 10;

/// Bytes of a refused body that are read and thrown away, so that the client gets to read the answer. A server that closes a
/// connection with unread data resets it, and the answer may be lost (RFC 9112, section 9.6).
const DISCARDED: usize = 64 << 20;
/// How long a refused body is thrown away at most.
const DISCARDING: Duration = Duration::from_secs(5);

/// Limits for the bodies of all requests together and for the time that one may take to arrive.
///
/// The limit for one body is `limits.max_body_mb` of its deployment.
#[derive(Debug, Clone)]
pub struct BodyLimits {
    /// Bytes of bodies in memory at once, over all connections of both protocols. A body counts until its request is answered.
    /// The tensors that are read from it come on top, and may be larger: a number that takes two bytes of JSON takes eight.
    pub memory: usize,
    /// How long a body may take to arrive, however small it is.
    pub grace: Duration,
    /// Bytes a second that a body has to arrive with after that, on average.
    pub min_rate: usize,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self { memory: 1 << 30, grace: Duration::from_secs(20), min_rate: 64 << 10 }
    }
}

/// Receives bodies and counts how much memory they take.
#[derive(Debug, Default)]
pub(crate) struct Bodies {
    limits: BodyLimits,
    used: AtomicUsize,
}

/// A body in memory.
pub(crate) struct Received<'a> {
    /// Most bodies are one frame, which needs no list.
    first: Bytes,
    rest: Vec<Bytes>,
    /// Dropped when the memory may be used by others.
    pub(crate) reservation: Reservation<'a>,
}

/// A share of the memory for bodies.
pub(crate) struct Reservation<'a> {
    used: &'a AtomicUsize,
    bytes: usize,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Relaxed);
    }
}

impl<'a> Received<'a> {
    /// The bytes in one piece, and the memory they are counted in.
    pub(crate) fn into_bytes(self) -> (Bytes, Reservation<'a>) {
        if self.rest.is_empty() {
            return (self.first, self.reservation);
        }
        let mut all = Vec::with_capacity(self.reservation.bytes);
        all.extend_from_slice(&self.first);
        self.rest.iter().for_each(|frame| all.extend_from_slice(frame));
        (all.into(), self.reservation)
    }

    /// A body of the same frames, and the memory they are counted in.
    pub(crate) fn into_body(self) -> (Body, Reservation<'a>) {
        if self.rest.is_empty() {
            return (Body::from(self.first), self.reservation);
        }
        let frames = std::iter::once(self.first).chain(self.rest);
        let frames = frames.map(Ok::<_, std::convert::Infallible>);
        (Body::from_stream(futures_util::stream::iter(frames)), self.reservation)
    }
}

impl Bodies {
    pub(crate) fn new(limits: BodyLimits) -> Self {
        Self { limits, used: AtomicUsize::new(0) }
    }

    /// Receives a body of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Bodies::read_by`].
    pub(crate) async fn read(&self, body: &mut Body, limit: usize) -> Result<Received<'_>, Error> {
        self.read_by(body, |_| Ok(limit)).await
    }

    /// Receives a body whose first frame tells how many bytes it may have. Nothing is read of a body whose announced length
    /// is over the limit, but for that frame.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::SlowBody`], [`Error::BodyMemory`], [`Error::Invalid`] when the connection breaks; those of `limit`.
    pub(crate) async fn read_by(
        &self,
        body: &mut Body,
        limit: impl Fn(&[u8]) -> Result<usize, Error>,
    ) -> Result<Received<'_>, Error> {
        // The clock starts when something is waited for; most bodies are there at once.
        let mut started: Option<Instant> = None;
        let mut received =
            Received { first: Bytes::new(), rest: Vec::new(), reservation: Reservation { used: &self.used, bytes: 0 } };
        // A limit that does not depend on the first frame is checked before anything is waited for.
        let mut most = limit(&[]).map(|limit| limit.min(self.limits.memory))?;
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if announced > most {
            return Err(Error::TooLarge(most));
        }
        loop {
            if body.is_end_stream() {
                return Ok(received);
            }
            let next = match body.frame().now_or_never() {
                Some(next) => next,
                None => {
                    let seconds = received.reservation.bytes / self.limits.min_rate.max(1);
                    let allowed = self.limits.grace + Duration::from_secs(seconds as u64);
                    let deadline = *started.get_or_insert_with(Instant::now) + allowed;
                    timeout_at(deadline, body.frame()).await.map_err(|_| Error::SlowBody)?
                }
            };
            let Some(frame) = next else { return Ok(received) };
            let frame =
                frame.map_err(|e| Error::Invalid(format!("the request body cannot be read: {}", innermost(&e))))?;
            let Ok(data) = frame.into_data() else { continue };
            if received.reservation.bytes == 0 {
                most = limit(&data)?.min(self.limits.memory);
            }
            if received.reservation.bytes.saturating_add(data.len()).max(announced) > most {
                return Err(Error::TooLarge(most));
            }
            self.grow(&mut received.reservation, data.len())?;
            if received.first.is_empty() {
                received.first = data;
            } else {
                received.rest.push(data);
            }
        }
    }

    fn grow(&self, reservation: &mut Reservation<'_>, bytes: usize) -> Result<(), Error> {
        let before = self.used.fetch_add(bytes, Relaxed);
        reservation.bytes += bytes;
        if before.saturating_add(bytes) > self.limits.memory {
            // Dropping the reservation gives all of it back.
            return Err(Error::BodyMemory(self.limits.memory));
        }
        Ok(())
    }

    /// Bytes of bodies in memory now.
    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

fn innermost(error: &axum::Error) -> &dyn std::error::Error {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// Reads what is left of a refused body in the background and throws it away; the request is answered meanwhile. A client that
/// asks before it sends (`Expect: 100-continue`) will not send the body, so nothing is read then.
pub(crate) fn discard(headers: &HeaderMap, mut body: Body) {
    if body.is_end_stream() || headers.contains_key(header::EXPECT) {
        return;
    }
    tokio::spawn(async move {
        let deadline = Instant::now() + DISCARDING;
        let mut left = DISCARDED;
        while let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await {
            match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bodies(memory: usize) -> Bodies {
        Bodies::new(BodyLimits { memory, grace: Duration::from_secs(20), min_rate: 10 })
    }

    /// A body of `count` frames of `size` bytes, each of which takes `pause` to arrive.
    fn frames(count: usize, size: usize, pause: Duration) -> Body {
        let frames = futures_util::stream::unfold(0, move |sent| async move {
            if sent == count {
                return None;
            }
            tokio::time::sleep(pause).await;
            Some((Ok::<_, std::convert::Infallible>(Bytes::from(vec![7; size])), sent + 1))
        });
        Body::from_stream(frames)
    }

    #[tokio::test]
    async fn frames_are_joined_and_counted_until_they_are_let_go() {
        let bodies = bodies(100);
        let received = bodies.read(&mut frames(3, 20, Duration::ZERO), 60).await.unwrap();
        assert_eq!(bodies.used(), 60);
        let (bytes, reservation) = received.into_bytes();
        assert_eq!(bytes.len(), 60);
        drop(bytes);
        // Another body finds only 40 bytes free, though its own limit is higher.
        let refused = bodies.read(&mut frames(3, 20, Duration::ZERO), 60).await;
        assert!(matches!(refused, Err(Error::BodyMemory(100))));
        assert_eq!(bodies.used(), 60, "what was received of the refused one is given back");
        drop(reservation);
        assert_eq!(bodies.used(), 0);
        let (mut body, _reservation) = bodies.read(&mut frames(3, 20, Duration::ZERO), 60).await.unwrap().into_body();
        assert_eq!(
            bodies.read(&mut body, 40).await.err().map(|e| e.to_string()),
            Some(Error::TooLarge(40).to_string())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_arrives_too_slowly_is_given_up() {
        let bodies = bodies(1000);
        // 20 bytes each 3 seconds are 6.7 bytes a second: less than the 10 that are asked for after the first 20 seconds.
        let started = Instant::now();
        assert!(matches!(bodies.read(&mut frames(50, 20, Duration::from_secs(3)), 1000).await, Err(Error::SlowBody)));
        assert!(started.elapsed() < Duration::from_secs(100), "{:?}", started.elapsed());
        assert_eq!(bodies.used(), 0);
        // As slow a client that keeps the pace is heard out.
        assert!(bodies.read(&mut frames(50, 20, Duration::from_secs(1)), 1000).await.is_ok());
    }
}
