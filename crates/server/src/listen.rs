//! Serves one port: TLS, limits on connections, sizes and times, and draining.
//!
//! The server closes a connection when its client sends no request for [`Limits::idle`], takes longer than [`Limits::header`] to send the
//! head of a request, or stalls for [`Limits::stall`] while it sends a body or reads a response. When a port has reached its maximum number
//! of connections, it evicts the connection that has been idle for longest; while all are busy, new connections wait in the kernel's queue.
//!
//! Invariant: an eviction never cuts off a request that the server is processing.

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

use body::{CountedBody, Pace, PacedBody, too_slow_response};
use connection::{Activity, Expiry, Watched};

/// The first byte of a TLS connection: the content type of a handshake record (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// The response to plain HTTP on a TLS port.
const TLS_REQUIRED_RESPONSE: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 45\r\nconnection: close\r\n\r\n\
    This port speaks TLS: use an https:// address";
/// Timeout of a graceful close (HTTP/2 GOAWAY), after which the connection is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Delay after a failed `accept`, for example when file descriptors have run out.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);

/// Limits on the clients of one port.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Maximum number of open connections.
    pub connections: usize,
    /// Timeout of a TLS handshake.
    pub handshake: Duration,
    /// Timeout for the head of a request, from its first byte; for the first request, from the start of the connection.
    pub header: Duration,
    /// Timeout of a connection without a request. Also the time after which an HTTP/2 client that reads nothing of its responses is closed.
    pub idle: Duration,
    /// Timeout without progress: of a request body that does not arrive, or of a response that the client does not read.
    pub stall: Duration,
    /// Minimum average rate of a request body in bytes per second, once the server has waited for it for `stall` in total.
    pub body_rate: u64,
    /// Buffer size of an HTTP/1 connection in bytes; the head of a request must fit into it.
    pub http1_buffer: usize,
    /// Maximum size of the headers of an HTTP/2 request in bytes, as HPACK counts them.
    pub http2_headers: u32,
    /// Maximum concurrent requests on one HTTP/2 connection.
    pub http2_streams: u32,
    /// Maximum pending requests on one HTTP/2 connection that the client has reset before the response ("rapid reset", CVE-2023-44487). A
    /// client that exceeds it is disconnected.
    pub http2_resets: usize,
    /// Interval of pings on an HTTP/2 connection, and the timeout of their responses.
    pub http2_ping: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: max_connections(),
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

/// A quarter of the process's file descriptor limit for each of the three ports; the last quarter is for files.
fn max_connections() -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    descriptors.map_or(16_384, |d| usize::try_from(d / 4).unwrap_or(16_384)).clamp(16, 16_384)
}

/// Connection counters of one port.
#[derive(Debug, Default)]
pub struct ConnectionCounts {
    /// Currently open.
    pub open: AtomicU64,
    /// Accepted since the start.
    pub accepted: AtomicU64,
    /// Closed while idle because the port had reached its limit.
    pub evicted: AtomicU64,
    /// Closed because the client was too slow, or idle for too long.
    pub timed_out: AtomicU64,
    /// TLS handshakes that failed.
    pub handshakes_failed: AtomicU64,
    /// Failed calls of `accept`.
    pub accept_errors: AtomicU64,
}

/// Connection counters of a server, by port.
#[derive(Debug, Default)]
pub struct Connections {
    /// Control plane and UI.
    pub control: Arc<ConnectionCounts>,
    /// Inference over REST.
    pub inference: Arc<ConnectionCounts>,
    /// Inference over gRPC.
    pub grpc: Arc<ConnectionCounts>,
}

/// A listening port and the routes that it serves.
pub(crate) struct Port {
    pub(crate) listener: TcpListener,
    pub(crate) router: Router,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) counts: Arc<ConnectionCounts>,
}

impl Port {
    /// The address that the port listens on.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stopping` is true, then waits for the requests in flight. Dropping the future closes all connections immediately.
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
                Err(error) if is_connection_error(&error) => continue,
                Err(error) => {
                    shared.counts.accept_errors.fetch_add(1, Relaxed);
                    tracing::error!(%error, "cannot accept a connection");
                    // Linux also returns this error when no client is waiting, so connections that have only just become idle are spared.
                    if open.evict(ACCEPT_BACKOFF) {
                        shared.counts.evicted.fetch_add(1, Relaxed);
                    }
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            let permit = tokio::select! {
                () = stopped(&mut stopping) => break,
                permit = acquire_permit(&permits, &open, &shared.counts) => permit,
            };
            let Some(permit) = permit else { break };
            shared.counts.accepted.fetch_add(1, Relaxed);
            let connection = open.add(Arc::clone(&shared.counts), permit);
            tasks.spawn(shared.clone().serve_stream(stream, connection, stopping.clone()));
        }
        drop(self.listener); // The kernel must not queue new connections while the open ones are drained.
        while tasks.join_next().await.is_some() {}
    }
}

/// Completes when the server is to stop.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender was dropped, and with it the server.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Whether an error of `accept` concerns only the incoming connection, not the port (accept(2), "Error handling").
fn is_connection_error(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Waits until the port may have one more connection, and evicts the longest idle connection if necessary.
async fn acquire_permit(
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
        // If all connections are busy, none can be evicted. Retry, because a busy one may become idle.
        let retry_interval = Duration::from_millis(100);
        if let Ok(acquired) = timeout(retry_interval, Arc::clone(permits).acquire_owned()).await {
            return acquired.ok();
        }
    }
}

/// The open connections of a port, to find the one that has been idle for longest.
#[derive(Default)]
struct OpenConnections {
    next: AtomicU64,
    by_number: Mutex<HashMap<u64, Arc<Activity>>>,
}

impl OpenConnections {
    fn add(self: &Arc<Self>, counts: Arc<ConnectionCounts>, permit: OwnedSemaphorePermit) -> OpenConnection {
        let number = self.next.fetch_add(1, Relaxed);
        let activity = Arc::new(Activity::new());
        self.by_number.lock().insert(number, Arc::clone(&activity));
        counts.open.fetch_add(1, Relaxed);
        OpenConnection { number, activity, all: Arc::clone(self), counts, _permit: permit }
    }

    /// Asks the longest idle connection to close. Returns false if none has been idle for `min_idle`.
    fn evict(&self, min_idle: Duration) -> bool {
        let all = self.by_number.lock();
        let idle = all.values().filter_map(|c| c.idle_for().map(|idle| (idle, c)));
        let idle = idle.filter(|(idle, _)| u128::from(*idle) >= min_idle.as_millis());
        let Some((_, longest)) = idle.max_by_key(|(idle, _)| *idle) else { return false };
        longest.evict();
        true
    }
}

/// An open connection's entry in [`OpenConnections`], removed on drop.
struct OpenConnection {
    number: u64,
    activity: Arc<Activity>,
    all: Arc<OpenConnections>,
    counts: Arc<ConnectionCounts>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.all.by_number.lock().remove(&self.number);
        self.counts.open.fetch_sub(1, Relaxed);
    }
}

/// State that all connections of a port share.
struct Shared {
    router: Router,
    tls: Option<TlsAcceptor>,
    limits: Arc<Limits>,
    counts: Arc<ConnectionCounts>,
}

impl Shared {
    async fn serve_stream(
        self: Arc<Self>,
        stream: TcpStream,
        open: OpenConnection,
        mut stopping: watch::Receiver<bool>,
    ) {
        // Send small responses immediately. Errors are ignored here and below, because the connection also works without these options.
        let _ = stream.set_nodelay(true);
        let keepalive =
            socket2::TcpKeepalive::new().with_time(self.limits.stall).with_interval(Duration::from_secs(15));
        // Detects a dead peer while nothing is sent, for example while a log is followed.
        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        let Some(acceptor) = &self.tls else { return self.serve_http(stream, &open, stopping).await };
        let secured = tokio::select! {
            () = stopped(&mut stopping) => return,
            () = open.activity.evicted() => return,
            secured = timeout(self.limits.handshake, handshake(acceptor, stream)) => secured,
        };
        match secured {
            Ok(Ok(Some(stream))) => self.serve_http(stream, &open, stopping).await,
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

    async fn serve_http<S>(&self, stream: S, open: &OpenConnection, mut stopping: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = &open.activity;
        let limits = &self.limits;
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // `Activity` enforces the timeout for request heads, because hyper's own timeout would also close idle keep-alive connections.
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
        let service = service_fn(|request| self.respond(request, Arc::clone(activity)));
        let stream = Watched::new(stream, Arc::clone(activity), limits.stall);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        // When a connection that is being closed is dropped, unless a request is in flight.
        let mut close_deadline: Option<Instant> = None;
        let mut draining = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "the connection failed");
                    }
                    return;
                }
                () = stopped(&mut stopping), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                expiry = activity.expires(limits), if close_deadline.is_none() => {
                    if expiry != Expiry::Evicted {
                        self.counts.timed_out.fetch_add(1, Relaxed);
                    }
                    let drop_now = expiry == Expiry::Evicted && activity.is_before_request();
                    if matches!(expiry, Expiry::Header | Expiry::Unread) || drop_now {
                        return;
                    }
                    close_deadline = Some(Instant::now() + CLOSE_TIMEOUT);
                    connection.as_mut().graceful_shutdown();
                }
                () = sleep_until(close_deadline.unwrap_or_else(Instant::now)), if close_deadline.is_some() => {
                    if !activity.is_responding(CLOSE_TIMEOUT) {
                        return;
                    }
                    // A request arrived at the last moment; let it finish.
                    close_deadline = Some(Instant::now() + CLOSE_TIMEOUT);
                }
            }
        }
    }

    /// Passes a request to the router, and tracks it until its response body has been sent.
    fn respond(
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
        let response = self.router.clone().oneshot(request);
        async move {
            let mut response = response.await?;
            // The handler only sees a failed body, so its response is replaced. A gRPC response already has a status for this.
            if pace.is_some_and(|pace| pace.was_too_slow()) && !is_grpc {
                response = too_slow_response();
            }
            Ok(response.map(|body| CountedBody::new(body, in_flight)))
        }
    }
}

/// Performs the TLS handshake. Returns `None` if the client sent plain HTTP; the client then receives an HTTP error that says so.
async fn handshake(
    acceptor: &TlsAcceptor,
    mut stream: TcpStream,
) -> std::io::Result<Option<tokio_rustls::server::TlsStream<TcpStream>>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] != TLS_HANDSHAKE {
        // Read the request first: closing a socket with unread data resets the connection, and the client may lose the response.
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await?; // The response does not depend on the content.
        stream.write_all(TLS_REQUIRED_RESPONSE).await?;
        stream.shutdown().await?;
        return Ok(None);
    }
    acceptor.accept(stream).await.map(Some)
}

#[cfg(test)]
mod tests;
