//! Receives request bodies within limits of size, time and memory, for REST and gRPC alike.
//!
//! Invariant: the bodies of all requests in flight together never hold more than [`BodyLimits::memory`] bytes.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use crate::Error;

/// Maximum body size of requests that carry no tensors.
pub(crate) const MAX_SMALL_BODY: usize = 64 << 10;

/// Maximum bytes of a rejected body that are read and discarded so that the client can read the response. Closing a connection with
/// unread data resets it, and the response may be lost (RFC 9112, section 9.6).
const MAX_DISCARD_BYTES: usize = 64 << 20;
/// Timeout for discarding a rejected body.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Limits on the memory of all bodies together and on the time in which one body must arrive.
///
/// The size limit of one body is `limits.max_body_mb` of its deployment.
#[derive(Debug, Clone)]
pub struct BodyLimits {
    /// Maximum bytes of bodies in memory at once, over all connections of both protocols. A body counts until its request has been
    /// responded to. The parsed tensors are not included and may be larger: two bytes of JSON can become an eight-byte number.
    pub memory: usize,
    /// Time in which any body may arrive, regardless of its size.
    pub grace: Duration,
    /// Minimum average rate after that time, in bytes per second.
    pub min_rate: usize,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self { memory: 1 << 30, grace: Duration::from_secs(20), min_rate: 64 << 10 }
    }
}

/// Receives bodies and accounts for their memory.
#[derive(Debug, Default)]
pub(crate) struct Bodies {
    limits: BodyLimits,
    used: AtomicUsize,
}

/// A body in memory.
pub(crate) struct Received<'a> {
    /// Most bodies are a single frame, which then needs no vector.
    first: Bytes,
    rest: Vec<Bytes>,
    /// Releases the memory budget when dropped.
    pub(crate) reservation: Reservation<'a>,
}

/// A reserved part of the memory budget for bodies.
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
    /// The body as contiguous bytes, with its memory reservation.
    pub(crate) fn into_bytes(self) -> (Bytes, Reservation<'a>) {
        if self.rest.is_empty() {
            return (self.first, self.reservation);
        }
        let mut all = Vec::with_capacity(self.reservation.bytes);
        all.extend_from_slice(&self.first);
        self.rest.iter().for_each(|frame| all.extend_from_slice(frame));
        (all.into(), self.reservation)
    }

    /// The same frames as a new body, with their memory reservation.
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
    /// As [`Bodies::read_with_limit`].
    pub(crate) async fn read(&self, body: &mut Body, limit: usize) -> Result<Received<'_>, Error> {
        self.read_with_limit(body, |_| Ok(limit)).await
    }

    /// Receives a body whose size limit depends on its first frame. Only that frame is read of a body whose announced length
    /// exceeds the limit.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::SlowBody`], [`Error::BodyMemory`], [`Error::Invalid`] when the connection breaks, and those of
    /// `limit`.
    pub(crate) async fn read_with_limit(
        &self,
        body: &mut Body,
        limit: impl Fn(&[u8]) -> Result<usize, Error>,
    ) -> Result<Received<'_>, Error> {
        // The clock starts with the first wait; most bodies have already arrived completely.
        let mut started: Option<Instant> = None;
        let mut received = Received { first: Bytes::new(), rest: Vec::new(), reservation: self.reservation() };
        // A limit that does not depend on the first frame is checked before reading.
        let mut max = limit(&[]).map(|limit| limit.min(self.limits.memory))?;
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if announced > max {
            return Err(Error::TooLarge(max));
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
                max = limit(&data)?.min(self.limits.memory);
            }
            if received.reservation.bytes.saturating_add(data.len()).max(announced) > max {
                return Err(Error::TooLarge(max));
            }
            self.reserve(&mut received.reservation, data.len())?;
            if received.first.is_empty() {
                received.first = data;
            } else {
                received.rest.push(data);
            }
        }
    }

    /// Largest body that fits into the memory limit, if no other body is in memory.
    pub(crate) fn memory_limit(&self) -> usize {
        self.limits.memory
    }

    /// An empty reservation.
    pub(crate) fn reservation(&self) -> Reservation<'_> {
        Reservation { used: &self.used, bytes: 0 }
    }

    /// Adds bytes to a reservation.
    ///
    /// # Errors
    /// [`Error::BodyMemory`]; the caller then drops the reservation.
    pub(crate) fn reserve(&self, reservation: &mut Reservation<'_>, bytes: usize) -> Result<(), Error> {
        self.take(bytes)?;
        reservation.bytes += bytes;
        Ok(())
    }

    /// Adds bytes to the memory in use; the caller releases them.
    ///
    /// # Errors
    /// [`Error::BodyMemory`]; the bytes are not added then.
    pub(crate) fn take(&self, bytes: usize) -> Result<(), Error> {
        let before = self.used.fetch_add(bytes, Relaxed);
        if before.saturating_add(bytes) > self.limits.memory {
            self.release(bytes);
            return Err(Error::BodyMemory(self.limits.memory));
        }
        Ok(())
    }

    /// Releases bytes of [`Bodies::take`].
    pub(crate) fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Relaxed);
    }

    /// Bytes of bodies that are currently in memory.
    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

/// The root cause of an error.
fn innermost(error: &axum::Error) -> &dyn std::error::Error {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// Reads and discards the rest of a rejected body in the background, while the client receives the response. A client that sent
/// `Expect: 100-continue` will not send the body, so nothing is read then.
pub(crate) fn discard(headers: &HeaderMap, mut body: Body) {
    if body.is_end_stream() || headers.contains_key(header::EXPECT) {
        return;
    }
    tokio::spawn(async move {
        let deadline = Instant::now() + DISCARD_TIMEOUT;
        let mut remaining = MAX_DISCARD_BYTES;
        while let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await {
            match remaining.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                Some(rest) => remaining = rest,
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

    /// A body of `count` frames of `size` bytes, each of which arrives after `delay`.
    fn frames(count: usize, size: usize, delay: Duration) -> Body {
        let frames = futures_util::stream::unfold(0, move |sent| async move {
            if sent == count {
                return None;
            }
            tokio::time::sleep(delay).await;
            Some((Ok::<_, std::convert::Infallible>(Bytes::from(vec![7; size])), sent + 1))
        });
        Body::from_stream(frames)
    }

    #[tokio::test]
    async fn frames_are_joined_and_counted_until_released() {
        let bodies = bodies(100);
        let received = bodies.read(&mut frames(3, 20, Duration::ZERO), 60).await.unwrap();
        assert_eq!(bodies.used(), 60);
        let (bytes, reservation) = received.into_bytes();
        assert_eq!(bytes.len(), 60);
        drop(bytes);
        // Another body finds only 40 bytes free, although its own limit is higher.
        let rejected = bodies.read(&mut frames(3, 20, Duration::ZERO), 60).await;
        assert!(matches!(rejected, Err(Error::BodyMemory(100))));
        assert_eq!(bodies.used(), 60, "the bytes received of the rejected body are released");
        drop(reservation);
        assert_eq!(bodies.used(), 0);
        let (mut body, _reservation) = bodies.read(&mut frames(3, 20, Duration::ZERO), 60).await.unwrap().into_body();
        assert_eq!(
            bodies.read(&mut body, 40).await.err().map(|e| e.to_string()),
            Some(Error::TooLarge(40).to_string())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn slow_body_is_rejected() {
        let bodies = bodies(1000);
        // 20 bytes every 3 seconds are 6.7 bytes per second, below the minimum of 10 that applies after the first 20 seconds.
        let started = Instant::now();
        assert!(matches!(bodies.read(&mut frames(50, 20, Duration::from_secs(3)), 1000).await, Err(Error::SlowBody)));
        assert!(started.elapsed() < Duration::from_secs(100), "{:?}", started.elapsed());
        assert_eq!(bodies.used(), 0);
        // 20 bytes per second are above the minimum, so a body that takes as long is accepted.
        assert!(bodies.read(&mut frames(50, 20, Duration::from_secs(1)), 1000).await.is_ok());
    }
}
