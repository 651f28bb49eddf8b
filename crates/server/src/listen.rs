//! Serves one port: TLS, limits on connections, sizes and times, and draining.
//!
//! A connection is closed when its client sends no request for [`Limits::idle`], takes longer than [`Limits::header`] for the head of a
//! request, or stalls within a body or while it is answered for [`Limits::stall`], whether it does not read its answer at all or, over
//! HTTP/2, gives it no flow-control window. When a port has all the connections it may have, the
//! one that has been without a request for longest makes room; while all of them are being answered, new ones wait in the kernel's queue.

mod body;
mod connection;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use body::{CountedBody, Pace, PacedBody, too_slow};
use connection::{Activity, Expiry, Watched};

/// The first byte of a TLS connection: a record that carries a handshake (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// Answer to a request in plain HTTP on a port that speaks TLS.
const SPEAKS_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 45\r\nconnection: close\r\n\r\n\
    This port speaks TLS: use an https:// address";
/// Time for a connection that is to end to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);
/// Pause after the kernel could not hand over a connection, as when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What the clients of a port may use.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Time for a TLS handshake.
    pub handshake: Duration,
    /// Time for the head of a request, from its first byte; for the first one from the connection's beginning.
    pub header: Duration,
    /// Time without a request after which a connection is closed.
    pub idle: Duration,
    /// Time without progress, in a request's body that is waited for or in an answer that the client does not read.
    pub stall: Duration,
    /// Bytes a second that a body has to bring on average, once it has been waited for as long as `stall`.
    pub body_rate: u64,
    /// Bytes of the buffer of an HTTP/1 connection, which the head of a request has to fit into.
    pub http1_buffer: usize,
    /// Bytes of the headers of an HTTP/2 request, as HPACK counts them.
    pub http2_headers: u32,
    /// Requests at once on one HTTP/2 connection.
    pub http2_streams: u32,
    /// Requests that a client has begun and taken back before they were answered, on one HTTP/2 connection at once ("rapid reset",
    /// CVE-2023-44487); a client with more of them is disconnected.
    pub http2_resets: usize,
    /// Time between pings on an HTTP/2 connection, and time for their answers.
    pub http2_ping: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: connections_by_descriptors(),
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            stall: Duration::from_secs(60),
            body_rate: 256,
            http1_buffer: 128 * 1024,
            http2_headers: 64 * 1024,
            http2_streams: 256,
            http2_resets: 64,
            http2_ping: Duration::from_secs(30),
        }
    }
}

/// A quarter of the descriptors that this process may open for each of the three ports; the last quarter is for files.
fn connections_by_descriptors() -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    descriptors.map_or(16_384, |d| usize::try_from(d / 4).unwrap_or(16_384)).clamp(16, 16_384)
}

/// What became of the connections of one port.
#[derive(Debug, Default)]
pub struct ConnectionCounts {
    /// Open now.
    pub open: AtomicU64,
    /// Accepted since the start.
    pub accepted: AtomicU64,
    /// Closed while idle, to make room for a new one.
    pub evicted: AtomicU64,
    /// Closed because the client was too slow, or idle for too long.
    pub timed_out: AtomicU64,
    /// TLS handshakes that failed.
    pub handshakes_failed: AtomicU64,
    /// Connections that the kernel could not hand over.
    pub accept_errors: AtomicU64,
}

/// What became of the connections of a server, by port.
#[derive(Debug, Default)]
pub struct Connections {
    /// Control plane and UI.
    pub control: Arc<ConnectionCounts>,
    /// Inference, REST.
    pub inference: Arc<ConnectionCounts>,
    /// Inference, gRPC.
    pub grpc: Arc<ConnectionCounts>,
}

/// A port that is listened on.
pub(crate) struct Port {
    pub(crate) listener: TcpListener,
    pub(crate) router: Router,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) counts: Arc<ConnectionCounts>,
}

impl Port {
    /// Where it listens.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stopping` is true, then lets the requests in flight end. Dropping the future closes all connections at once.
    pub(crate) async fn serve(self, mut stopping: watch::Receiver<bool>) {
        let permits = Arc::new(Semaphore::new(self.limits.connections));
        let open = Arc::new(OpenConnections::default());
        let mut tasks = JoinSet::new();
        let shared = Arc::new(Shared { router: self.router, tls: self.tls, limits: self.limits, counts: self.counts });
        loop {
            let accepted = tokio::select! {
                biased;
                () = stopped(&mut stopping) => break,
                Some(_) = tasks.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    shared.counts.accept_errors.fetch_add(1, Relaxed);
                    tracing::error!(%error, "a connection cannot be accepted");
                    // Linux also answers so when nobody waits to be accepted; who has only just come is left alone.
                    if open.evict(ACCEPT_PAUSE) {
                        shared.counts.evicted.fetch_add(1, Relaxed);
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let room = tokio::select! {
                () = stopped(&mut stopping) => break,
                room = room(&permits, &open, &shared.counts) => room,
            };
            let Some(permit) = room else { break };
            shared.counts.accepted.fetch_add(1, Relaxed);
            let opened = open.add(Arc::clone(&shared.counts), permit);
            tasks.spawn(shared.clone().serve_stream(stream, opened, stopping.clone()));
        }
        drop(self.listener); // No new connection is to be queued while the old ones end.
        while tasks.join_next().await.is_some() {}
    }
}

/// Done when the server is to stop.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the server.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Errors of `accept` that are about the connection that would have been accepted, and not about the port (accept(2), "Error handling").
fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Waits until the port may have one more connection; the one that is idle for longest is asked to go for it.
async fn room(
    permits: &Arc<Semaphore>,
    open: &OpenConnections,
    counts: &ConnectionCounts,
) -> Option<OwnedSemaphorePermit> {
    loop {
        if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
            return Some(permit);
        }
        if open.evict(Duration::ZERO) {
            counts.evicted.fetch_add(1, Relaxed);
        }
        // While all are being answered nobody can be asked to go; look again, since one that was busy may have become idle.
        let soon = Duration::from_millis(100);
        if let Ok(acquired) = timeout(soon, Arc::clone(permits).acquire_owned()).await {
            return acquired.ok();
        }
    }
}

/// The connections of a port, to find the one that is idle for longest.
#[derive(Default)]
struct OpenConnections {
    next: AtomicU64,
    by_number: Mutex<HashMap<u64, Arc<Activity>>>,
}

impl OpenConnections {
    fn add(self: &Arc<Self>, counts: Arc<ConnectionCounts>, permit: OwnedSemaphorePermit) -> Opened {
        let number = self.next.fetch_add(1, Relaxed);
        let activity = Arc::new(Activity::new());
        self.by_number.lock().insert(number, Arc::clone(&activity));
        counts.open.fetch_add(1, Relaxed);
        Opened { number, activity, all: Arc::clone(self), counts, _permit: permit }
    }

    /// Asks the connection that is idle for longest to close. False when none is idle for that long.
    fn evict(&self, at_least: Duration) -> bool {
        let all = self.by_number.lock();
        let idle = all.values().filter_map(|c| c.idle_for().map(|idle| (idle, c)));
        let idle = idle.filter(|(idle, _)| u128::from(*idle) >= at_least.as_millis());
        let Some((_, longest)) = idle.max_by_key(|(idle, _)| *idle) else { return false };
        longest.evict();
        true
    }
}

/// A connection's place among those of its port, which it gives up when dropped.
struct Opened {
    number: u64,
    activity: Arc<Activity>,
    all: Arc<OpenConnections>,
    counts: Arc<ConnectionCounts>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.all.by_number.lock().remove(&self.number);
        self.counts.open.fetch_sub(1, Relaxed);
    }
}

/// What all connections of a port need.
struct Shared {
    router: Router,
    tls: Option<TlsAcceptor>,
    limits: Arc<Limits>,
    counts: Arc<ConnectionCounts>,
}

impl Shared {
    async fn serve_stream(self: Arc<Self>, stream: TcpStream, opened: Opened, mut stopping: watch::Receiver<bool>) {
        // Small answers must not wait for more data to fill a packet. Both settings only improve service: without them it works, too.
        let _ = stream.set_nodelay(true);
        let keepalive =
            socket2::TcpKeepalive::new().with_time(self.limits.stall).with_interval(Duration::from_secs(15));
        // Finds out that the machine at the other end is gone while nothing is sent, as in a log that is followed.
        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        let Some(acceptor) = &self.tls else { return self.serve_http(stream, &opened, stopping).await };
        let secured = tokio::select! {
            () = stopped(&mut stopping) => return,
            () = opened.activity.evicted() => return,
            secured = timeout(self.limits.handshake, handshake(acceptor, stream)) => secured,
        };
        match secured {
            Ok(Ok(Some(stream))) => self.serve_http(stream, &opened, stopping).await,
            Ok(Ok(None)) => {
                self.counts.handshakes_failed.fetch_add(1, Relaxed);
            }
            Ok(Err(error)) => {
                self.counts.handshakes_failed.fetch_add(1, Relaxed);
                tracing::debug!(%error, "a TLS handshake failed");
            }
            Err(_) => {
                self.counts.timed_out.fetch_add(1, Relaxed);
            }
        }
    }

    async fn serve_http<S>(&self, stream: S, opened: &Opened, mut stopping: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = &opened.activity;
        let limits = &self.limits;
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // The time for a request's head is watched by `Activity`: hyper's own limit would also end connections that are kept for later.
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(limits.http1_buffer);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(limits.http2_headers)
            .max_concurrent_streams(limits.http2_streams)
            .max_pending_accept_reset_streams(limits.http2_resets)
            .max_local_error_reset_streams(limits.http2_resets)
            .keep_alive_interval(limits.http2_ping)
            .keep_alive_timeout(limits.http2_ping);
        let service = service_fn(|request| self.answer(request, Arc::clone(activity)));
        let stream = Watched::new(stream, Arc::clone(activity), limits.stall);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        // Until when a connection that was asked to end may go on without a request in flight.
        let mut ends: Option<Instant> = None;
        // Until when it may go on at all, once a client does not read an answer: new requests do not put off the end of it.
        let mut cut: Option<Instant> = None;
        let mut draining = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "a connection failed");
                    }
                    return;
                }
                () = stopped(&mut stopping), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                expiry = activity.expires(limits), if ends.is_none() => {
                    if expiry != Expiry::Evicted {
                        self.counts.timed_out.fetch_add(1, Relaxed);
                    }
                    if expiry == Expiry::Header {
                        return;
                    }
                    if expiry == Expiry::Unread {
                        cut = Some(Instant::now() + limits.stall);
                    }
                    ends = Some(Instant::now() + GOODBYE);
                    connection.as_mut().graceful_shutdown();
                }
                () = sleep_until(ends.unwrap_or_else(Instant::now)), if ends.is_some() => {
                    if cut.is_some_and(|cut| Instant::now() >= cut) || !activity.is_answering(limits.stall) {
                        return;
                    }
                    // A request came in at the last moment, or is answered beside one whose answer is not read; it may end.
                    ends = Some(Instant::now() + GOODBYE);
                }
            }
        }
    }

    fn answer(
        &self,
        request: Request<Incoming>,
        activity: Arc<Activity>,
    ) -> impl Future<Output = Result<axum::http::Response<CountedBody>, Infallible>> + use<> {
        let in_flight = Activity::begin(&activity, request.version());
        let has_body = !request.body().is_end_stream();
        let pace = has_body.then(|| Arc::new(Pace::new(self.limits.stall, self.limits.body_rate)));
        let request = request.map(|body| match &pace {
            Some(pace) => Body::new(PacedBody::new(body, Arc::clone(pace))),
            None => Body::empty(),
        });
        let is_grpc = request
            .headers()
            .get(axum::http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        let answer = self.router.clone().oneshot(request);
        async move {
            let mut response = answer.await?;
            // The handler only knows that the body failed. A gRPC client learns the same from the status that the handler gave it.
            if pace.is_some_and(|pace| pace.was_too_slow()) && !is_grpc {
                response = too_slow();
            }
            Ok(response.map(|body| CountedBody::new(body, in_flight)))
        }
    }
}

/// A TLS connection; none when the client speaks plain HTTP, which it is told in words that it understands.
async fn handshake(
    acceptor: &TlsAcceptor,
    mut stream: TcpStream,
) -> std::io::Result<Option<tokio_rustls::server::TlsStream<TcpStream>>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] != TLS_HANDSHAKE {
        // What was sent has to be read, or closing the socket would take the answer back.
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await?; // Whatever it says, the answer is the same.
        stream.write_all(SPEAKS_TLS).await?;
        stream.shutdown().await?;
        return Ok(None);
    }
    acceptor.accept(stream).await.map(Some)
}

#[cfg(test)]
mod tests;
