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
/// Longer than anything here takes on a busy machine; who waits so long has hung.
const HANGS: Duration = Duration::from_secs(60);

/// Limits that nothing in a test runs into, but what it sets itself.
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

/// Requests to `/held` that are answered when they are released.
struct Held {
    begun: Arc<AtomicU64>,
    release: watch::Sender<bool>,
}

impl Held {
    fn new() -> Self {
        Self { begun: Arc::default(), release: watch::channel(false).0 }
    }

    fn router(&self) -> Router {
        let (begun, released) = (Arc::clone(&self.begun), self.release.subscribe());
        let answer = move || {
            let mut released = released.clone();
            begun.fetch_add(1, Relaxed);
            async move {
                released.wait_for(|released| *released).await.unwrap();
                "released"
            }
        };
        hello().route("/held", get(answer))
    }
}

/// Sends bytes, and reads what comes until `end` does, or the end of the connection.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8], end: &str) -> String {
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&answer).contains(end) {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(n) => answer.extend_from_slice(&buffer[..n]),
            }
        }
    };
    timeout(HANGS, read).await.expect("an answer or the end of the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Waits until the server closes a connection, reading whatever it still sends.
async fn closed<S: AsyncRead + Unpin>(stream: &mut S) {
    let mut rest = Vec::new();
    // That it is reset is an end, too.
    let _ = timeout(HANGS, stream.read_to_end(&mut rest)).await.expect("the server closes the connection");
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(HANGS, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

struct Pair {
    folder: PathBuf,
}

impl Pair {
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
        Fingerprint::of(certificate.der())
    }

    fn open(&self) -> Certificates {
        let source =
            CertificateSource::Files { certificate: self.folder.join("tls.crt"), key: self.folder.join("tls.key") };
        Certificates::open(&source, &self.folder, Vec::new()).unwrap()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder); // A folder that is left behind in /tmp fails no test.
    }
}

type Secured = tokio_rustls::client::TlsStream<TcpStream>;

async fn secured(address: SocketAddr, trust: Trust<'_>, protocol: &[u8]) -> std::io::Result<Secured> {
    let mut config = slipway_core::tls::client(trust).unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

#[tokio::test]
async fn a_new_certificate_is_used_for_new_connections_and_old_ones_go_on() {
    let pair = Pair::new();
    let first = pair.write();
    let certificates = pair.open();
    let server = start(generous(), Some(certificates.acceptor().unwrap()), hello()).await;
    let mut old = secured(server.address, Trust::Pinned(first), b"http/1.1").await.unwrap();
    assert!(exchange(&mut old, GET, "hello").await.ends_with("hello"));

    // A key that is not the certificate's, as between two writes: the old pair stays.
    std::fs::write(pair.folder.join("tls.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(!certificates.refresh());
    assert_eq!(certificates.fingerprint(), Some(first));
    secured(server.address, Trust::Pinned(first), b"http/1.1").await.unwrap();

    let second = pair.write();
    assert!(certificates.refresh());
    assert!(exchange(&mut old, GET, "hello").await.ends_with("hello"), "an open connection goes on");
    let mut new = secured(server.address, Trust::Pinned(second), b"http/1.1").await.unwrap();
    assert!(exchange(&mut new, GET, "hello").await.ends_with("hello"));
    let refused = secured(server.address, Trust::Pinned(first), b"http/1.1").await.unwrap_err();
    assert_eq!(slipway_core::tls::refused(&refused).unwrap().presented, second);
    // Nobody signed it, unless one trusts it itself.
    let refused = secured(server.address, Trust::System, b"http/1.1").await.unwrap_err();
    assert_eq!(slipway_core::tls::refused(&refused).unwrap().presented, second);
    secured(server.address, Trust::Only(&pair.folder.join("tls.crt")), b"http/1.1").await.unwrap();
}

#[tokio::test]
async fn http2_is_spoken_over_tls_and_in_plain() {
    let pair = Pair::new();
    let fingerprint = pair.write();
    let server = start(generous(), Some(pair.open().acceptor().unwrap()), hello()).await;
    let stream = secured(server.address, Trust::Pinned(fingerprint), b"h2").await.unwrap();
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
    let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    connection.abort();
    String::from_utf8(answer.to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn plain_http_on_a_port_with_tls_is_told_so() {
    let pair = Pair::new();
    pair.write();
    let server = start(generous(), Some(pair.open().acceptor().unwrap()), hello()).await;
    let answer = exchange(&mut server.connect().await, GET, "https://").await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.ends_with("use an https:// address"), "{answer}");
    until("it is counted", || server.counts.handshakes_failed.load(Relaxed) == 1).await;
}

#[tokio::test]
async fn a_tls_handshake_that_is_not_finished_is_cut() {
    let pair = Pair::new();
    pair.write();
    let limits = Limits { handshake: Duration::from_millis(50), ..generous() };
    let server = start(limits, Some(pair.open().acceptor().unwrap()), hello()).await;
    let mut silent = server.connect().await;
    let mut partial = server.connect().await;
    partial.write_all(&[TLS_HANDSHAKE, 3, 1]).await.unwrap();
    closed(&mut silent).await;
    closed(&mut partial).await;
    until("both are counted", || server.counts.timed_out.load(Relaxed) == 2).await;
}

#[tokio::test]
async fn slow_heads_are_cut_and_nobody_else() {
    let limits = Limits { header: Duration::from_secs(1), ..generous() };
    let server = start(limits, None, hello()).await;
    let mut silent = server.connect().await;
    // A byte now and then does not help: the head as a whole has its time.
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
        // Longer than a head may take; between requests that is allowed.
        until("the silent ones are cut", || server.counts.timed_out.load(Relaxed) >= 3).await;
        assert!(exchange(&mut stream, GET, "hello").await.ends_with("hello"));
    };
    // `GET` has no line in it that ends a head before its last two bytes, which only come after 1.5 s.
    let (dripped, (), (), ()) = tokio::join!(dripping, closed(&mut silent), slow_again, kept);
    assert!(dripped, "the slow one is cut");
}

#[tokio::test]
async fn idle_connections_are_closed() {
    let limits = Limits { idle: Duration::from_millis(100), ..generous() };
    let server = start(limits, None, hello()).await;
    let mut stream = server.connect().await;
    assert!(exchange(&mut stream, GET, "hello").await.ends_with("hello"));
    closed(&mut stream).await;
    until("it is counted", || server.counts.open.load(Relaxed) == 0).await;
    assert_eq!(server.counts.timed_out.load(Relaxed), 1);
}

#[tokio::test]
async fn a_thousand_idle_connections_keep_nobody_out() {
    let server = start(Limits { connections: 8, ..generous() }, None, hello()).await;
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(server.connect().await);
    }
    for _ in 0..20 {
        let answer = exchange(&mut server.connect().await, GET, "hello").await;
        assert!(answer.ends_with("hello"), "{answer}");
    }
    assert!(server.counts.open.load(Relaxed) <= 8);
    assert!(server.counts.evicted.load(Relaxed) >= 1000 - 8);
}

#[tokio::test]
async fn while_all_are_being_answered_new_connections_wait() {
    let held = Held::new();
    let server = start(Limits { connections: 2, ..generous() }, None, held.router()).await;
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect().await;
        stream.write_all(b"GET /held HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        busy.push(stream);
    }
    until("both are being answered", || held.begun.load(Relaxed) == 2).await;
    let mut waits = server.connect().await;
    waits.write_all(GET).await.unwrap();
    assert!(timeout(Duration::from_millis(300), waits.read_u8()).await.is_err(), "there is no room for it");
    assert_eq!(server.counts.open.load(Relaxed), 2);
    held.release.send_replace(true);
    assert!(exchange(&mut waits, b"", "hello").await.ends_with("hello"));
    for stream in &mut busy {
        assert!(exchange(stream, b"", "released").await.ends_with("released"), "nobody who is answered is cut");
    }
}

#[tokio::test]
async fn bodies_may_take_long_but_not_stand_still() {
    let limits = Limits { stall: Duration::from_secs(1), body_rate: 100, ..generous() };
    let server = start(limits, None, hello()).await;
    let head = b"POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n";

    let mut stalled = server.connect().await;
    stalled.write_all(head).await.unwrap();
    let answer = exchange(&mut stalled, &[b'a'; 10], "request.timeout").await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("connection: close"), "{answer}");
    closed(&mut stalled).await;

    // Never still for long, but below the rate from the second second on.
    let mut dripping = server.connect().await;
    dripping.write_all(head).await.unwrap();
    let (mut reader, mut writer) = dripping.split();
    let drip = async {
        while writer.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut answer = [0; 12];
    let answered = async {
        timeout(HANGS, reader.read_exact(&mut answer)).await.unwrap().unwrap();
    };
    tokio::select! {
        () = drip => panic!("the connection ended without an answer"),
        () = answered => assert_eq!(&answer, b"HTTP/1.1 408"),
    }

    // Longer than the limit, at a good rate.
    let mut steady = server.connect().await;
    steady.write_all(head).await.unwrap();
    for _ in 0..39 {
        steady.write_all(&[b'a'; 25]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let answer = exchange(&mut steady, &[b'a'; 25], "1000").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn who_does_not_read_the_answer_is_cut() {
    let router = hello().route("/large", get(|| async { vec![0_u8; 64 << 20] }));
    let server = start(Limits { stall: Duration::from_millis(200), ..generous() }, None, router).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    until("it is accepted", || server.counts.accepted.load(Relaxed) == 1).await;
    until("it is cut", || server.counts.open.load(Relaxed) == 0).await;
}

/// An HTTP/2 client with this flow-control window for each answer.
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
async fn who_opens_no_window_for_an_answer_is_cut_and_who_waits_for_more_of_one_is_not() {
    use http_body_util::BodyExt;
    let release = watch::channel(false).0;
    let released = release.subscribe();
    let follow = move || {
        let mut released = released.clone();
        // Says something at once and then nothing until it is released, as a log that is followed does.
        let rest = async move {
            stopped(&mut released).await;
            Bytes::from("released")
        };
        let first = std::future::ready(Bytes::from("begun"));
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
    assert_eq!(followed.frame().await.unwrap().unwrap().into_data().unwrap(), "begun");

    let (mut unread, connection) = http2_client(&server, 0).await;
    // It goes on to answer pings.
    let cut = tokio::spawn(connection);
    let answer = unread.send_request(request("hello")).await.unwrap();
    assert_eq!(answer.status(), 200);
    until("it is cut", || server.counts.timed_out.load(Relaxed) == 1 && server.counts.open.load(Relaxed) == 1).await;
    let _ = timeout(HANGS, cut).await.expect("the connection ends"); // With an error or without one.

    release.send_replace(true);
    assert_eq!(followed.collect().await.unwrap().to_bytes(), "released");
}

#[tokio::test]
async fn an_http2_client_that_says_nothing_makes_room_too() {
    let limits = Limits { connections: 1, http2_ping: Duration::from_secs(600), ..generous() };
    let server = start(limits, None, hello()).await;
    // Frames as RFC 9113, section 4.1, has them: empty settings, then the head of a request that ends stream 1. Its fields are those of
    // HPACK's static table (RFC 7541, appendix A): GET, http, and a path and an authority of their own.
    let fields = b"\x82\x86\x04\x06/hello\x01\x09localhost";
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    request.extend_from_slice(&[0, 0, fields.len() as u8, 1, 5, 0, 0, 0, 1]);
    request.extend_from_slice(fields);
    let mut silent = server.connect().await;
    let answer = exchange(&mut silent, &request, "hello").await;
    assert!(answer.contains("hello"), "{answer}");
    // From here on it answers neither pings nor a goodbye.
    let answer = exchange(&mut server.connect().await, GET, "hello").await;
    assert!(answer.ends_with("hello"), "{answer}");
    closed(&mut silent).await;
}

#[tokio::test]
async fn large_heads_are_refused() {
    let server = start(Limits { http1_buffer: 16 * 1024, ..generous() }, None, hello()).await;
    let head = format!("GET /hello HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(20 * 1024));
    let answer = exchange(&mut server.connect().await, head.as_bytes(), "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

/// Begins requests and takes them back, so many times 32 of them; says whether the connection is open after it.
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
async fn rapid_resets_end_the_connection() {
    let held = Held::new();
    let strict = start(Limits { http2_resets: 8, ..generous() }, None, held.router()).await;
    let flood = stays_open_while_resetting(&strict, 100_000);
    assert!(!timeout(HANGS, flood).await.expect("the server ends the connection"));
    let lax = start(Limits { http2_resets: 1_000_000, ..generous() }, None, held.router()).await;
    assert!(stays_open_while_resetting(&lax, 100).await, "it is the limit that ends it");
}

#[tokio::test]
async fn a_stop_lets_requests_end_and_closes_the_rest() {
    let held = Held::new();
    let server = start(generous(), None, held.router()).await;
    let mut idle = server.connect().await;
    assert!(exchange(&mut idle, GET, "hello").await.ends_with("hello"));
    let mut busy = server.connect().await;
    busy.write_all(b"GET /held HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    until("it is being answered", || held.begun.load(Relaxed) == 1).await;
    server.stop.send_replace(true);
    closed(&mut idle).await;
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody new is let in");
    held.release.send_replace(true);
    assert!(exchange(&mut busy, b"", "released").await.ends_with("released"));
    timeout(HANGS, server.serving).await.expect("it ends").unwrap();
}

#[test]
fn descriptors_that_run_out_are_survived() {
    // The limit counts for the whole process, and other tests of this one open files, too.
    let done = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "listen::tests::with_few_descriptors", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && said.contains("1 passed"), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test]
#[ignore = "descriptors_that_run_out_are_survived runs it in a process of its own"]
async fn with_few_descriptors() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let server = start(generous(), None, hello()).await;
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: Some(64) }).unwrap();
    // Leaves one descriptor, for the client's end of a connection; there is none for the server's.
    let all_but_one = || {
        let mut files = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            files.push(file);
        }
        files.pop();
        files
    };
    let files = all_but_one();
    let began = Instant::now();
    let mut first = server.connect().await;
    until("accepting fails", || server.counts.accept_errors.load(Relaxed) >= 3).await;
    let failures = u128::from(server.counts.accept_errors.load(Relaxed));
    assert!(failures <= 1 + began.elapsed().as_millis() / ACCEPT_PAUSE.as_millis(), "it does not spin: {failures}");
    drop(files);
    assert!(exchange(&mut first, GET, "hello").await.ends_with("hello"), "it goes on when there are descriptors again");

    let _files = all_but_one();
    let mut second = server.connect().await;
    assert!(exchange(&mut second, GET, "hello").await.ends_with("hello"), "the idle connection makes room");
    closed(&mut first).await;
    assert!(server.counts.evicted.load(Relaxed) >= 1);
}

/// HTTP/2 connection preface and settings, the last of which is the window that answers have.
fn http2_preface(window: u32) -> Vec<u8> {
    let settings = [&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4][..], &window.to_be_bytes()].concat();
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &settings].concat()
}

/// `GET /hello` on stream 1: indexed fields of the static table, and literals without Huffman coding (RFC 7541, appendix A).
fn http2_get() -> Vec<u8> {
    let block = [b"\x82\x86\x04\x06/hello".as_slice(), b"\x01\x01a"].concat();
    let length = u8::try_from(block.len()).unwrap();
    [&[0, 0, length, 1, 5, 0, 0, 0, 1][..], &block].concat()
}

/// Connections that are asked to make room do so, whatever their client does: it may send half a head, or a preface and nothing more.
#[tokio::test]
async fn clients_that_begin_and_go_no_further_make_room() {
    let half = b"GET /hello HTTP/1.1\r\nhost: a\r\nx: ".to_vec();
    let asked_before = [GET, b"GET /hello HTTP/1.1\r\nhost: a\r\nx: "].concat();
    for beginning in [half, asked_before, http2_preface(65_535)] {
        let server = start(Limits { connections: 4, ..generous() }, None, hello()).await;
        let mut all = Vec::new();
        for _ in 0..4 {
            let mut stream = server.connect().await;
            stream.write_all(&beginning).await.unwrap();
            all.push(stream);
        }
        until("all are open", || server.counts.open.load(Relaxed) == 4).await;
        for _ in 0..8 {
            let mut next = server.connect().await;
            assert!(exchange(&mut next, GET, "hello").await.ends_with("hello"));
        }
    }
}

/// A client of HTTP/2 that opens no window is never written to, so no write of the server stalls; its connection ends all the same, and
/// sooner where another needs the room.
#[tokio::test]
async fn clients_that_take_nothing_of_their_answers_are_closed() {
    let unread = [http2_preface(0), http2_get()].concat();
    let server = start(Limits { idle: Duration::from_secs(1), ..generous() }, None, hello()).await;
    let mut stream = server.connect().await;
    stream.write_all(&unread).await.unwrap();
    closed(&mut stream).await;
    assert_eq!(server.counts.timed_out.load(Relaxed), 1);

    let server = start(Limits { connections: 1, ..generous() }, None, hello()).await;
    let mut stream = server.connect().await;
    stream.write_all(&unread).await.unwrap();
    until("it is open", || server.counts.open.load(Relaxed) == 1).await;
    let mut next = server.connect().await;
    assert!(exchange(&mut next, GET, "hello").await.ends_with("hello"));
    assert_eq!(server.counts.evicted.load(Relaxed), 1);
}
