use std::path::PathBuf;

use axum::body::Bytes;
use axum::routing::{get, post};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::ServerName;
use slipway_core::tls::{Fingerprint, Trust};
use tokio_rustls::TlsConnector;

use super::*;
use crate::certificates::{CertificateSource, Certificates};

const GET: &[u8] = b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n";
/// Longer than any step takes on a busy machine; a test that waits this long has hung.
const HANG_TIMEOUT: Duration = Duration::from_secs(60);

/// Limits that no test reaches, except those that it overrides.
fn generous() -> Limits {
    let long = Duration::from_secs(600);
    Limits { connections: 64, handshake: long, header: long, idle: long, stall: long, ..Limits::default() }
}

struct Running {
    address: SocketAddr,
    counts: Arc<ConnectionCounts>,
    stop: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
}

async fn start(limits: Limits, tls: Option<TlsAcceptor>, router: Router) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let counts = Arc::new(ConnectionCounts::default());
    let port = Port { listener, router, tls, limits: Arc::new(limits), counts: Arc::clone(&counts) };
    let address = port.address().unwrap();
    let (stop, stopped) = watch::channel(false);
    Running { address, counts, stop, serving: tokio::spawn(port.serve(stopped)) }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

fn hello() -> Router {
    Router::new()
        .route("/hello", get(|| async { "hello" }))
        .route("/length", post(|body: Bytes| async move { body.len().to_string() }))
}

/// A route `/held` whose requests wait until they are released.
struct Held {
    started: Arc<AtomicU64>,
    release: watch::Sender<bool>,
}

impl Held {
    fn new() -> Self {
        Self { started: Arc::default(), release: watch::channel(false).0 }
    }

    fn router(&self) -> Router {
        let (started, released) = (Arc::clone(&self.started), self.release.subscribe());
        let handler = move || {
            let mut released = released.clone();
            started.fetch_add(1, Relaxed);
            async move {
                released.wait_for(|released| *released).await.unwrap();
                "released"
            }
        };
        hello().route("/held", get(handler))
    }
}

/// Sends bytes, then reads until the response contains `end` or the connection is closed.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8], end: &str) -> String {
    stream.write_all(bytes).await.unwrap();
    let mut response = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&response).contains(end) {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(n) => response.extend_from_slice(&buffer[..n]),
            }
        }
    };
    timeout(HANG_TIMEOUT, read).await.expect("a response or the end of the connection");
    String::from_utf8_lossy(&response).into_owned()
}

/// Waits until the server closes the connection, and discards data that it still sends.
async fn closed<S: AsyncRead + Unpin>(stream: &mut S) {
    let mut rest = Vec::new();
    // A reset also counts as closed.
    let _ = timeout(HANG_TIMEOUT, stream.read_to_end(&mut rest)).await.expect("the server closes the connection");
}

async fn wait_until(condition: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(HANG_TIMEOUT, waiting).await.unwrap_or_else(|_| panic!("timed out waiting until {condition}"));
}

/// A temporary folder with a certificate and its key.
struct CertificateFolder {
    folder: PathBuf,
}

impl CertificateFolder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("slipway-listen-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(&folder).unwrap();
        Self { folder }
    }

    /// Writes a new certificate and its key.
    fn write(&self) -> Fingerprint {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(self.folder.join("tls.crt"), certificate.pem()).unwrap();
        std::fs::write(self.folder.join("tls.key"), key.serialize_pem()).unwrap();
        Fingerprint::from_der(certificate.der())
    }

    fn open(&self) -> Certificates {
        let source =
            CertificateSource::Files { certificate: self.folder.join("tls.crt"), key: self.folder.join("tls.key") };
        Certificates::open(&source, &self.folder, Vec::new()).unwrap()
    }
}

impl Drop for CertificateFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder); // A folder left behind in /tmp must not fail a test.
    }
}

type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;

async fn connect_tls(address: SocketAddr, trust: Trust<'_>, protocol: &[u8]) -> std::io::Result<TlsStream> {
    let mut config = slipway_core::tls::client(trust).unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

#[tokio::test]
async fn new_certificate_is_used_only_for_new_connections() {
    let tls = CertificateFolder::new();
    let first = tls.write();
    let certificates = tls.open();
    let server = start(generous(), Some(certificates.acceptor().unwrap()), hello()).await;
    let mut old = connect_tls(server.address, Trust::Pinned(first), b"http/1.1").await.unwrap();
    assert!(exchange(&mut old, GET, "hello").await.ends_with("hello"));

    // A key that does not match the certificate, as between two writes: the old pair stays in use.
    std::fs::write(tls.folder.join("tls.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(!certificates.refresh());
    assert_eq!(certificates.fingerprint(), Some(first));
    connect_tls(server.address, Trust::Pinned(first), b"http/1.1").await.unwrap();

    let second = tls.write();
    assert!(certificates.refresh());
    assert!(exchange(&mut old, GET, "hello").await.ends_with("hello"), "an open connection keeps working");
    let mut new = connect_tls(server.address, Trust::Pinned(second), b"http/1.1").await.unwrap();
    assert!(exchange(&mut new, GET, "hello").await.ends_with("hello"));
    let rejected = connect_tls(server.address, Trust::Pinned(first), b"http/1.1").await.unwrap_err();
    assert_eq!(slipway_core::tls::refused(&rejected).unwrap().presented, second);
    // The certificate is self-signed: only a client that trusts it explicitly accepts it.
    let rejected = connect_tls(server.address, Trust::System, b"http/1.1").await.unwrap_err();
    assert_eq!(slipway_core::tls::refused(&rejected).unwrap().presented, second);
    connect_tls(server.address, Trust::Only(&tls.folder.join("tls.crt")), b"http/1.1").await.unwrap();
}

#[tokio::test]
async fn http2_works_with_and_without_tls() {
    let tls = CertificateFolder::new();
    let fingerprint = tls.write();
    let server = start(generous(), Some(tls.open().acceptor().unwrap()), hello()).await;
    let stream = connect_tls(server.address, Trust::Pinned(fingerprint), b"h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let plain = start(generous(), None, hello()).await;
    assert_eq!(get_over_http2(stream).await, "hello");
    assert_eq!(get_over_http2(plain.connect().await).await, "hello");
}

async fn get_over_http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> String {
    use http_body_util::BodyExt;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get("http://localhost/hello").body(Body::empty()).unwrap();
    let response = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    connection.abort();
    String::from_utf8(response.to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn plain_http_on_a_tls_port_gets_an_explanation() {
    let tls = CertificateFolder::new();
    tls.write();
    let server = start(generous(), Some(tls.open().acceptor().unwrap()), hello()).await;
    let response = exchange(&mut server.connect().await, GET, "https://").await;
    assert!(response.starts_with("HTTP/1.1 400") && response.ends_with("use an https:// address"), "{response}");
    wait_until("the failed handshake is counted", || server.counts.handshakes_failed.load(Relaxed) == 1).await;
}

#[tokio::test]
async fn unfinished_tls_handshake_times_out() {
    let tls = CertificateFolder::new();
    tls.write();
    let limits = Limits { handshake: Duration::from_millis(50), ..generous() };
    let server = start(limits, Some(tls.open().acceptor().unwrap()), hello()).await;
    let mut silent = server.connect().await;
    let mut partial = server.connect().await;
    partial.write_all(&[TLS_HANDSHAKE, 3, 1]).await.unwrap();
    closed(&mut silent).await;
    closed(&mut partial).await;
    wait_until("both are counted", || server.counts.timed_out.load(Relaxed) == 2).await;
}

#[tokio::test]
async fn slow_request_heads_time_out_and_keep_alive_connections_do_not() {
    let limits = Limits { header: Duration::from_secs(1), ..generous() };
    let server = start(limits, None, hello()).await;
    let mut silent = server.connect().await;
    // Single bytes do not extend the timeout: it applies to the whole head.
    let mut slow = server.connect().await;
    let dripping = async {
        for byte in GET.iter().cycle().take(100_000) {
            if slow.write_all(&[*byte]).await.is_err() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    };
    let slow_again = async {
        let mut stream = server.connect().await;
        assert!(exchange(&mut stream, GET, "hello").await.ends_with("hello"));
        stream.write_all(b"GET /hello HTTP/1.1\r\nhost:").await.unwrap();
        closed(&mut stream).await;
    };
    let kept = async {
        let mut stream = server.connect().await;
        assert!(exchange(&mut stream, GET, "hello").await.ends_with("hello"));
        // This takes longer than the head timeout, which does not apply between requests.
        wait_until("the silent and slow connections are closed", || server.counts.timed_out.load(Relaxed) >= 3).await;
        assert!(exchange(&mut stream, GET, "hello").await.ends_with("hello"));
    };
    // The head of `GET` is complete only after its last two bytes, which are sent after 1.5 s.
    let (was_closed, (), (), ()) = tokio::join!(dripping, closed(&mut silent), slow_again, kept);
    assert!(was_closed, "the slow connection is closed");
}

#[tokio::test]
async fn idle_connection_is_closed() {
    let limits = Limits { idle: Duration::from_millis(100), ..generous() };
    let server = start(limits, None, hello()).await;
    let mut stream = server.connect().await;
    assert!(exchange(&mut stream, GET, "hello").await.ends_with("hello"));
    closed(&mut stream).await;
    wait_until("the connection is closed", || server.counts.open.load(Relaxed) == 0).await;
    assert_eq!(server.counts.timed_out.load(Relaxed), 1);
}

#[tokio::test]
async fn idle_connections_are_evicted_for_new_ones() {
    let server = start(Limits { connections: 8, ..generous() }, None, hello()).await;
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(server.connect().await);
    }
    for _ in 0..20 {
        let response = exchange(&mut server.connect().await, GET, "hello").await;
        assert!(response.ends_with("hello"), "{response}");
    }
    assert!(server.counts.open.load(Relaxed) <= 8);
    assert!(server.counts.evicted.load(Relaxed) >= 1000 - 8);
}

#[tokio::test]
async fn new_connections_wait_while_all_are_busy() {
    let held = Held::new();
    let server = start(Limits { connections: 2, ..generous() }, None, held.router()).await;
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect().await;
        stream.write_all(b"GET /held HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        busy.push(stream);
    }
    wait_until("both requests have started", || held.started.load(Relaxed) == 2).await;
    let mut waiting = server.connect().await;
    waiting.write_all(GET).await.unwrap();
    assert!(timeout(Duration::from_millis(300), waiting.read_u8()).await.is_err(), "the port is at its limit");
    assert_eq!(server.counts.open.load(Relaxed), 2);
    held.release.send_replace(true);
    assert!(exchange(&mut waiting, b"", "hello").await.ends_with("hello"));
    for stream in &mut busy {
        assert!(exchange(stream, b"", "released").await.ends_with("released"), "busy connections are not closed");
    }
}

#[tokio::test]
async fn slow_bodies_are_accepted_and_stalled_ones_are_not() {
    let limits = Limits { stall: Duration::from_secs(1), body_rate: 100, ..generous() };
    let server = start(limits, None, hello()).await;
    let head = b"POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n";

    let mut stalled = server.connect().await;
    stalled.write_all(head).await.unwrap();
    let response = exchange(&mut stalled, &[b'a'; 10], "request.timeout").await;
    assert!(response.starts_with("HTTP/1.1 408") && response.contains("connection: close"), "{response}");
    closed(&mut stalled).await;

    // Never stalled for long, but below the minimum rate, which applies after one second.
    let mut dripping = server.connect().await;
    dripping.write_all(head).await.unwrap();
    let (mut reader, mut writer) = dripping.split();
    let drip = async {
        while writer.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut status = [0; 12];
    let response = async {
        timeout(HANG_TIMEOUT, reader.read_exact(&mut status)).await.unwrap().unwrap();
    };
    tokio::select! {
        () = drip => panic!("the connection ended without a response"),
        () = response => assert_eq!(&status, b"HTTP/1.1 408"),
    }

    // Takes longer than the stall timeout, but at a sufficient rate.
    let mut steady = server.connect().await;
    steady.write_all(head).await.unwrap();
    for _ in 0..39 {
        steady.write_all(&[b'a'; 25]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let response = exchange(&mut steady, &[b'a'; 25], "1000").await;
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
}

#[tokio::test]
async fn client_that_does_not_read_the_response_is_closed() {
    let router = hello().route("/large", get(|| async { vec![0_u8; 64 << 20] }));
    let server = start(Limits { stall: Duration::from_millis(200), ..generous() }, None, router).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    wait_until("the connection is accepted", || server.counts.accepted.load(Relaxed) == 1).await;
    wait_until("the connection is closed", || server.counts.open.load(Relaxed) == 0).await;
}

/// An HTTP/2 client with this flow-control window for each response.
async fn http2_client(
    server: &Running,
    window: u32,
) -> (
    hyper::client::conn::http2::SendRequest<Body>,
    hyper::client::conn::http2::Connection<TokioIo<TcpStream>, Body, TokioExecutor>,
) {
    hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(window)
        .handshake(TokioIo::new(server.connect().await))
        .await
        .unwrap()
}

#[tokio::test]
async fn http2_client_without_flow_control_window_is_closed_and_a_log_follower_is_not() {
    use http_body_util::BodyExt;
    let release = watch::channel(false).0;
    let released = release.subscribe();
    let follow = move || {
        let mut released = released.clone();
        // Like a followed log: sends data immediately, and then nothing until it is released.
        let rest = async move {
            stopped(&mut released).await;
            Bytes::from("released")
        };
        let first = std::future::ready(Bytes::from("started"));
        let parts = [Box::pin(first) as futures_util::future::BoxFuture<'static, Bytes>, Box::pin(rest)];
        let parts = futures_util::stream::StreamExt::then(futures_util::stream::iter(parts), |part| part);
        let parts = futures_util::stream::StreamExt::map(parts, Ok::<_, Infallible>);
        async move { Body::from_stream(parts) }
    };
    let router = hello().route("/follow", get(follow));
    let server = start(Limits { idle: Duration::from_millis(200), ..generous() }, None, router).await;
    let request = |path: &str| Request::get(format!("http://localhost/{path}")).body(Body::empty()).unwrap();

    let (mut follower, connection) = http2_client(&server, 1 << 16).await;
    tokio::spawn(connection);
    let mut followed = follower.send_request(request("follow")).await.unwrap().into_body();
    assert_eq!(followed.frame().await.unwrap().unwrap().into_data().unwrap(), "started");

    let (mut unread, connection) = http2_client(&server, 0).await;
    // The client still responds to pings.
    let closing = tokio::spawn(connection);
    let response = unread.send_request(request("hello")).await.unwrap();
    assert_eq!(response.status(), 200);
    wait_until("the connection is closed", || {
        server.counts.timed_out.load(Relaxed) == 1 && server.counts.open.load(Relaxed) == 1
    })
    .await;
    let _ = timeout(HANG_TIMEOUT, closing).await.expect("the connection ends"); // The connection may end with or without an error.

    release.send_replace(true);
    assert_eq!(followed.collect().await.unwrap().to_bytes(), "released");
}

#[tokio::test]
async fn silent_http2_connection_is_evicted() {
    let limits = Limits { connections: 1, http2_ping: Duration::from_secs(600), ..generous() };
    let server = start(limits, None, hello()).await;
    // Frames (RFC 9113, section 4.1): empty settings, then a request head that ends stream 1. Its fields use HPACK's static table
    // (RFC 7541, appendix A): GET and http by index, path and authority as literals.
    let fields = b"\x82\x86\x04\x06/hello\x01\x09localhost";
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    request.extend_from_slice(&[0, 0, fields.len() as u8, 1, 5, 0, 0, 0, 1]);
    request.extend_from_slice(fields);
    let mut silent = server.connect().await;
    let response = exchange(&mut silent, &request, "hello").await;
    assert!(response.contains("hello"), "{response}");
    // From now on the client responds neither to pings nor to GOAWAY.
    let response = exchange(&mut server.connect().await, GET, "hello").await;
    assert!(response.ends_with("hello"), "{response}");
    closed(&mut silent).await;
}

#[tokio::test]
async fn large_request_heads_are_rejected() {
    let server = start(Limits { http1_buffer: 16 * 1024, ..generous() }, None, hello()).await;
    let head = format!("GET /hello HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(20 * 1024));
    let response = exchange(&mut server.connect().await, head.as_bytes(), "\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 431"), "{response}");
}

/// Sends `rounds` times 32 requests and resets them; returns whether the connection is still open afterwards.
async fn stays_open_while_resetting(server: &Running, rounds: usize) -> bool {
    let stream = TokioIo::new(server.connect().await);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let connection = tokio::spawn(connection);
    for _ in 0..rounds {
        let mut requests = Vec::new();
        for _ in 0..32 {
            let mut sender = sender.clone();
            let request = Request::get("http://localhost/held").body(Body::empty()).unwrap();
            requests.push(tokio::spawn(async move { sender.send_request(request).await }));
        }
        tokio::task::yield_now().await;
        requests.iter().for_each(tokio::task::JoinHandle::abort);
        tokio::task::yield_now().await;
        if sender.is_closed() {
            return false;
        }
    }
    connection.abort();
    true
}

#[tokio::test]
async fn rapid_resets_close_the_connection() {
    let held = Held::new();
    let strict = start(Limits { http2_resets: 8, ..generous() }, None, held.router()).await;
    let flood = stays_open_while_resetting(&strict, 100_000);
    assert!(!timeout(HANG_TIMEOUT, flood).await.expect("the server closes the connection"));
    let lax = start(Limits { http2_resets: 1_000_000, ..generous() }, None, held.router()).await;
    assert!(stays_open_while_resetting(&lax, 100).await, "only the limit closes the connection");
}

#[tokio::test]
async fn shutdown_drains_requests_and_closes_idle_connections() {
    let held = Held::new();
    let server = start(generous(), None, held.router()).await;
    let mut idle = server.connect().await;
    assert!(exchange(&mut idle, GET, "hello").await.ends_with("hello"));
    let mut busy = server.connect().await;
    busy.write_all(b"GET /held HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    wait_until("the request has started", || held.started.load(Relaxed) == 1).await;
    server.stop.send_replace(true);
    closed(&mut idle).await;
    assert!(TcpStream::connect(server.address).await.is_err(), "new connections are refused");
    held.release.send_replace(true);
    assert!(exchange(&mut busy, b"", "released").await.ends_with("released"));
    timeout(HANG_TIMEOUT, server.serving).await.expect("the port stops").unwrap();
}

#[test]
fn port_survives_running_out_of_descriptors() {
    // The limit applies to the whole process, in which other tests also open files; so the test runs in a separate process.
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "listen::tests::few_descriptors_in_this_process", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}\n{stderr}");
}

#[tokio::test]
#[ignore = "run by port_survives_running_out_of_descriptors in a separate process"]
async fn few_descriptors_in_this_process() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let server = start(generous(), None, hello()).await;
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: Some(64) }).unwrap();
    // Leaves one descriptor for the client's end of a connection, and none for the server's end.
    let open_all_but_one = || {
        let mut files = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            files.push(file);
        }
        files.pop();
        files
    };
    let files = open_all_but_one();
    let started = Instant::now();
    let mut first = server.connect().await;
    wait_until("accepting fails", || server.counts.accept_errors.load(Relaxed) >= 3).await;
    let failures = u128::from(server.counts.accept_errors.load(Relaxed));
    assert!(
        failures <= 1 + started.elapsed().as_millis() / ACCEPT_BACKOFF.as_millis(),
        "busy loop: {failures} failures"
    );
    drop(files);
    assert!(
        exchange(&mut first, GET, "hello").await.ends_with("hello"),
        "the port recovers when descriptors are available"
    );

    let _files = open_all_but_one();
    let mut second = server.connect().await;
    assert!(exchange(&mut second, GET, "hello").await.ends_with("hello"), "the idle connection is evicted");
    closed(&mut first).await;
    assert!(server.counts.evicted.load(Relaxed) >= 1);
}

/// The HTTP/2 connection preface and a settings frame with the initial window size for responses.
fn http2_preface(window: u32) -> Vec<u8> {
    let settings = [&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4][..], &window.to_be_bytes()].concat();
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &settings].concat()
}

/// `GET /hello` on stream 1, with indexed fields of the static table and literals without Huffman coding (RFC 7541, appendix A).
fn http2_get() -> Vec<u8> {
    let block = [b"\x82\x86\x04\x06/hello".as_slice(), b"\x01\x01a"].concat();
    let length = u8::try_from(block.len()).unwrap();
    [&[0, 0, length, 1, 5, 0, 0, 0, 1][..], &block].concat()
}

/// Eviction works whatever the client has sent: a part of a head, or only an HTTP/2 preface.
#[tokio::test]
async fn connections_with_partial_requests_are_evicted() {
    let partial_head = b"GET /hello HTTP/1.1\r\nhost: a\r\nx: ".to_vec();
    let request_and_partial_head = [GET, b"GET /hello HTTP/1.1\r\nhost: a\r\nx: "].concat();
    for beginning in [partial_head, request_and_partial_head, http2_preface(65_535)] {
        let server = start(Limits { connections: 4, ..generous() }, None, hello()).await;
        let mut all = Vec::new();
        for _ in 0..4 {
            let mut stream = server.connect().await;
            stream.write_all(&beginning).await.unwrap();
            all.push(stream);
        }
        wait_until("all connections are open", || server.counts.open.load(Relaxed) == 4).await;
        for _ in 0..8 {
            let mut next = server.connect().await;
            assert!(exchange(&mut next, GET, "hello").await.ends_with("hello"));
        }
    }
}

/// The server never writes to an HTTP/2 client without a flow-control window, so no write stalls. The connection still times out, and is
/// evicted earlier if another client needs its permit.
#[tokio::test]
async fn http2_clients_that_read_nothing_are_closed() {
    let unread = [http2_preface(0), http2_get()].concat();
    let server = start(Limits { idle: Duration::from_secs(1), ..generous() }, None, hello()).await;
    let mut stream = server.connect().await;
    stream.write_all(&unread).await.unwrap();
    closed(&mut stream).await;
    assert_eq!(server.counts.timed_out.load(Relaxed), 1);

    let server = start(Limits { connections: 1, ..generous() }, None, hello()).await;
    let mut stream = server.connect().await;
    stream.write_all(&unread).await.unwrap();
    wait_until("the connection is open", || server.counts.open.load(Relaxed) == 1).await;
    let mut next = server.connect().await;
    assert!(exchange(&mut next, GET, "hello").await.ends_with("hello"));
    assert_eq!(server.counts.evicted.load(Relaxed), 1);
}
