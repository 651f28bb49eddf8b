//! Starting, stopping and answering: what a server does with ports, state folders, broken requests and its own end.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Ask, Place, Server, wait_until};

const TOKEN: &str = "0123456789abcdef";

/// Begins to upload `whole` bytes and sends so many of them; the server has begun to keep them by then.
fn begin_upload(server: &Server, name: &str, whole: usize, sent: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.addresses().control).unwrap();
    let ask = server.ask("PUT", &format!("/api/2.0/mlflow-artifacts/artifacts/{name}"));
    let mut head = format!(
        "PUT /api/2.0/mlflow-artifacts/artifacts/{name} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {whole}\r\n",
        server.addresses().control
    );
    for (name, value) in &ask.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    stream.write_all(sent).unwrap();
    wait_until("the upload begins", || (unfinished(server) == 1).then_some(()));
    stream
}

/// How many files are being uploaded.
fn unfinished(server: &Server) -> usize {
    std::fs::read_dir(server.place.home().join("objects/.part")).unwrap().count()
}

#[test]
fn a_request_in_flight_is_answered_before_the_stop() {
    let mut server = Server::start();
    let mut stream = begin_upload(&server, "slow", 100_000, &[b'x'; 50_000]);
    server.signal(Signal::TERM);
    wait_until("it drains", || server.log().contains("draining").then_some(()));
    stream.write_all(&[b'x'; 50_000]).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "the upload was cut off: {}", String::from_utf8_lossy(&answer));
    assert!(server.ended().success());
    assert!(!server.place.home().join("server.json").exists(), "clients would look for it");
    server.restart();
    assert_eq!(server.get("/api/2.0/mlflow-artifacts/artifacts/slow").body, vec![b'x'; 100_000]);
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    let server = Server::start();
    drop(begin_upload(&server, "half", 100_000, b"half"));
    wait_until("what came is removed", || (unfinished(&server) == 0).then_some(()));
    assert_eq!(server.get("/api/2.0/mlflow-artifacts/artifacts/half").status, 404);
}

#[test]
fn listening_beyond_loopback_needs_callers_that_are_known() {
    let place = Place::new();
    let done = place.run(&["up", "--no-auth", "--listen", "0.0.0.0:0"]).with_code(1);
    assert!(done.talk().contains("listen.unauthenticated") && done.talk().contains("--token-file"), "{done:?}");
    place.write("tokens", "short\n");
    let done = place.run(&["up", "--token-file", "tokens", "--listen", "127.0.0.1:0"]).with_code(1);
    assert!(done.talk().contains("auth.token_file") && done.talk().contains("shorter than 16"), "{done:?}");
}

#[test]
fn tokens_of_a_file_are_asked_for_on_every_port() {
    let place = Place::new();
    place.write("tokens", &format!("# mine\n{TOKEN}\n"));
    let mut server = Server::start_in(place, &["--token-file", "tokens"]);
    let search = "/api/2.0/mlflow/experiments/search";
    let body = json!({ "max_results": 1 });
    for (token, status) in [("", 401), ("0123456789abcdeX", 401), (TOKEN, 200)] {
        server.use_token(token);
        assert_eq!(server.post(search, &body).status, status, "{token}");
        let inference = Ask { url: format!("http://{}/v2", server.addresses().inference), ..server.ask("GET", "") };
        assert_eq!(inference.send().unwrap().status, status, "{token}");
        assert_eq!(server.get("/metrics").status, status, "{token}");
        assert_eq!(server.get("/healthz").status, 200, "{token}");
    }
    assert!(!server.log().contains(TOKEN), "a token stands in the log");
}

#[test]
fn other_sites_change_nothing() {
    let server = Server::start();
    let ask = |origin: &str, base: &str, path: &str| {
        let mut ask = server.ask("POST", "");
        ask.url = format!("{base}{path}");
        ask.headers.push(("origin", origin.to_owned()));
        ask.body = b"apiVersion: slipway.dev/v1".to_vec();
        ask.send().unwrap().status
    };
    let inference = format!("http://{}", server.addresses().inference);
    assert_eq!(ask("https://evil.example", &server.url(), "/api/v1/deployments"), 403);
    assert_eq!(ask("https://evil.example", &inference, "/v2/repository/models/x/load"), 403);
    assert_eq!(ask(&server.url(), &server.url(), "/api/v1/deployments"), 400, "it is refused for what it says only");
}

#[test]
fn one_server_a_state_folder() {
    let server = Server::start();
    let second = server.run(&["up", "--listen", "127.0.0.1:0"]).with_code(1);
    assert!(second.talk().contains("home.locked"), "{second:?}");
    assert!(second.talk().contains(&server.addresses().pid.to_string()), "{second:?}");
}

#[test]
fn a_taken_port_is_named() {
    let server = Server::start();
    let address = server.addresses().control.to_string();
    let refused = Place::new().run(&["up", "--listen", &address]).with_code(1);
    assert!(refused.talk().contains("listen.in_use") && refused.talk().contains(&address), "{refused:?}");
}

#[test]
fn down_stops_it_and_says_so_when_nothing_runs() {
    let mut server = Server::start();
    let down = server.place.begin(&["down"]);
    assert!(server.ended().success());
    assert!(down.wait().with_code(0).talk().contains("stopped"));
    assert!(server.run(&["down"]).with_code(0).talk().contains("nothing is running"));
}

#[test]
fn commands_work_with_and_without_a_server() {
    let mut server = Server::start();
    let made = server.post("/api/2.0/mlflow/runs/create", &json!({ "experiment_id": "0", "run_name": "cli-run" }));
    let run = made.with_status(200)["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    let parameter = json!({ "run_id": run, "key": "p", "value": "a,\"b\"" });
    server.post("/api/2.0/mlflow/runs/log-parameter", &parameter).with_status(200);
    let with_server = server.run(&["run", "ls", "-o", "json"]).with_code(0);
    assert_eq!(with_server.json()[0]["info"]["run_name"], "cli-run");
    assert_eq!(server.run(&["run", "ls", "-o", "name"]).with_code(0).stdout.trim(), run);
    assert!(server.stop().success());
    assert_eq!(server.run(&["run", "ls", "-o", "json"]).with_code(0).json(), with_server.json());
    assert!(server.run(&["run", "show", &run]).with_code(0).stdout.contains("cli-run"));
    assert!(server.run(&["run", "export"]).with_code(0).stdout.contains("\"a,\"\"b\"\"\""));
    server.run(&["model", "register", "m", "--run", &run]).with_code(0);
    server.run(&["model", "promote", "m", "1", "champion"]).with_code(0);
    assert!(server.run(&["model", "ls"]).with_code(0).stdout.contains("champion=1"));
}

#[test]
fn bad_requests_never_crash_the_server() {
    let server = Server::start();
    let paths = [
        "runs/create",
        "runs/log-batch",
        "runs/search",
        "experiments/search",
        "model-versions/create",
        "runs/log-inputs",
        "logged-models/search",
    ];
    let pieces = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1e308),
        json!("x"),
        json!("\u{0}"),
        json!([]),
        json!({}),
        json!([[]]),
        json!({ "key": null }),
        json!("9".repeat(400)),
        json!(u64::MAX),
        json!(["a", 1]),
        json!({ "a": { "b": [] } }),
    ];
    let keys = [
        "run_id",
        "experiment_id",
        "experiment_ids",
        "filter",
        "order_by",
        "metrics",
        "params",
        "tags",
        "max_results",
        "page_token",
        "name",
        "source",
        "datasets",
        "models",
    ];
    // A linear congruential generator (Knuth's MMIX): the same requests every time.
    let mut state = 7_u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % n
    };
    for _ in 0..600 {
        let body: serde_json::Map<String, Value> =
            (0..5).map(|_| (keys[below(keys.len())].to_owned(), pieces[below(pieces.len())].clone())).collect();
        let answer =
            server.post(&format!("/api/2.0/mlflow/{}", paths[below(paths.len())]), &Value::Object(body.clone()));
        assert!(answer.status < 500 || answer.status == 501, "{body:?}: {} {}", answer.status, answer.text());
    }
    for path in [
        "/api/2.0/mlflow/runs/get?run_id=%00%ff",
        "/api/2.0/mlflow-artifacts/artifacts/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/api/2.0/mlflow-artifacts/artifacts?path=../..",
        "/get-artifact?run_id=x&path=../../etc/passwd",
        "/api/v1/deployments/%ff/infer",
    ] {
        let answer = server.get(path);
        assert!((400..500).contains(&answer.status), "{path}: {} {}", answer.status, answer.text());
    }
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn what_is_not_there_is_never_answered_with_a_page() {
    let server = Server::start();
    for path in ["/api/3.0/mlflow/traces/search", "/api/2.0/mlflow/webhooks", "/api/3.0/mlflow/scorers/list"] {
        let answer = server.post(path, &json!({})).with_status(501);
        assert_eq!(answer["error_code"], "NOT_IMPLEMENTED", "{path}");
    }
    // An OpenTelemetry exporter must not take the UI's page for success.
    for path in ["/v1/traces", "/v1/metrics", "/nothing"] {
        let answer = server.post(path, &json!({}));
        assert_eq!(answer.headers["content-type"], "application/json", "{path}");
        assert_eq!(answer.with_status(404)["error_code"], "ENDPOINT_NOT_FOUND", "{path}");
    }
    server.post("/models", &json!({})).with_status(405);
}

#[test]
fn metrics_and_openapi_are_there() {
    let server = Server::start();
    server.get("/api/v1/status").with_status(200);
    let text = server.get("/metrics").text();
    assert!(text.contains("slipway_http_requests_total") && text.contains("process_resident_memory_bytes"), "{text}");
    let openapi = server.get("/openapi.json").with_status(200);
    assert!(openapi["openapi"].as_str().unwrap().starts_with("3.1"));
}

#[test]
fn stores_that_cannot_be_used_are_named() {
    for (variable, url, said) in [
        ("SLIPWAY_DATABASE", "postgres://me:hunter2@127.0.0.1:1/x", "cannot be reached"),
        ("SLIPWAY_DATABASE", "mysql://me:hunter2@127.0.0.1/x", "URL"),
        ("SLIPWAY_OBJECTS", "ftp://bucket", "s3://"),
    ] {
        let mut place = Place::new();
        place.set(variable, url);
        let done = place.run(&["up", "--listen", "127.0.0.1:0"]).with_code(1);
        assert!(done.talk().contains(said), "{url}: {done:?}");
        assert!(!done.stderr.contains("hunter2") && done.stdout.is_empty(), "{done:?}");
    }
    let alone = Place::new().run(&["up", "--gateway-only"]).with_code(1);
    assert!(alone.talk().contains("SLIPWAY_DATABASE"), "{alone:?}");
}
