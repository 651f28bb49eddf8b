//! The server: ports, state folders, invalid requests, and graceful shutdown.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Request, Sandbox, Server, wait_until};

const TOKEN: &str = "0123456789abcdef";

/// Starts an upload of `total` bytes and sends the bytes in `sent`. Returns when the server has started to store them.
fn begin_upload(server: &Server, name: &str, total: usize, sent: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.addresses().control).unwrap();
    let request = server.request("PUT", &format!("/api/2.0/mlflow-artifacts/artifacts/{name}"));
    let mut head = format!(
        "PUT /api/2.0/mlflow-artifacts/artifacts/{name} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {total}\r\n",
        server.addresses().control
    );
    for (name, value) in &request.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    stream.write_all(sent).unwrap();
    wait_until("the upload begins", || (unfinished(server) == 1).then_some(()));
    stream
}

/// Number of uploads in progress.
fn unfinished(server: &Server) -> usize {
    std::fs::read_dir(server.sandbox.home().join("objects/.part")).unwrap().count()
}

#[test]
fn requests_in_flight_are_completed_before_shutdown() {
    let mut server = Server::start();
    let mut stream = begin_upload(&server, "slow", 100_000, &[b'x'; 50_000]);
    server.signal(Signal::TERM);
    wait_until("the server drains", || server.log().contains("draining").then_some(()));
    stream.write_all(&[b'x'; 50_000]).unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).unwrap();
    assert!(response.starts_with(b"HTTP/1.1 200"), "the upload was cut off: {}", String::from_utf8_lossy(&response));
    assert!(server.wait_for_exit().success());
    assert!(!server.sandbox.home().join("server.json").exists(), "clients would try to connect to the stopped server");
    server.restart();
    assert_eq!(server.get("/api/2.0/mlflow-artifacts/artifacts/slow").body, vec![b'x'; 100_000]);
}

#[test]
fn interrupted_upload_is_removed() {
    let server = Server::start();
    drop(begin_upload(&server, "half", 100_000, b"half"));
    wait_until("the partial upload is removed", || (unfinished(&server) == 0).then_some(()));
    assert_eq!(server.get("/api/2.0/mlflow-artifacts/artifacts/half").status, 404);
}

#[test]
fn listening_beyond_loopback_requires_authentication() {
    let sandbox = Sandbox::new();
    let done = sandbox.run(&["up", "--no-auth", "--listen", "0.0.0.0:0"]).with_code(1);
    assert!(done.message().contains("listen.unauthenticated") && done.message().contains("--token-file"), "{done:?}");
    sandbox.write("tokens", "short\n");
    let done = sandbox.run(&["up", "--token-file", "tokens", "--listen", "127.0.0.1:0"]).with_code(1);
    assert!(done.message().contains("auth.token_file") && done.message().contains("shorter than 16"), "{done:?}");
}

#[test]
fn token_file_protects_every_port() {
    let sandbox = Sandbox::new();
    sandbox.write("tokens", &format!("# mine\n{TOKEN}\n"));
    let mut server = Server::start_in(sandbox, &["--token-file", "tokens"]);
    let search = "/api/2.0/mlflow/experiments/search";
    let body = json!({ "max_results": 1 });
    for (token, status) in [("", 401), ("0123456789abcdeX", 401), (TOKEN, 200)] {
        server.use_token(token);
        assert_eq!(server.post(search, &body).status, status, "{token}");
        let inference =
            Request { url: format!("http://{}/v2", server.addresses().inference), ..server.request("GET", "") };
        assert_eq!(inference.send().unwrap().status, status, "{token}");
        assert_eq!(server.get("/metrics").status, status, "{token}");
        assert_eq!(server.get("/healthz").status, 200, "{token}");
    }
    assert!(!server.log().contains(TOKEN), "the log contains a token");
}

#[test]
fn cross_origin_requests_are_refused() {
    let server = Server::start();
    let request = |origin: &str, base: &str, path: &str| {
        let mut request = server.request("POST", "");
        request.url = format!("{base}{path}");
        request.headers.push(("origin", origin.to_owned()));
        request.body = b"apiVersion: slipway.dev/v1".to_vec();
        request.send().unwrap().status
    };
    let inference = format!("http://{}", server.addresses().inference);
    assert_eq!(request("https://evil.example", &server.url(), "/api/v1/deployments"), 403);
    assert_eq!(request("https://evil.example", &inference, "/v2/repository/models/x/load"), 403);
    assert_eq!(
        request(&server.url(), &server.url(), "/api/v1/deployments"),
        400,
        "only the body is rejected, not the origin"
    );
}

#[test]
fn second_server_on_a_state_folder_is_refused() {
    let server = Server::start();
    let second = server.run(&["up", "--listen", "127.0.0.1:0"]).with_code(1);
    assert!(second.message().contains("home.locked"), "{second:?}");
    assert!(second.message().contains(&server.addresses().pid.to_string()), "{second:?}");
}

#[test]
fn port_in_use_is_reported() {
    let server = Server::start();
    let addresses = server.addresses();
    let free = "127.0.0.1:0";
    for (option, address) in [
        ("--listen", addresses.control),
        ("--inference-listen", addresses.inference),
        ("--grpc-listen", addresses.grpc),
    ] {
        let address = address.to_string();
        let mut arguments = vec!["up"];
        for other in ["--listen", "--inference-listen", "--grpc-listen"] {
            arguments.extend([other, if other == option { &address } else { free }]);
        }
        let refused = Sandbox::new().run(&arguments).with_code(1);
        let named = format!("{address} (`{option}`)");
        assert!(refused.message().contains("listen.in_use") && refused.message().contains(&named), "{refused:?}");
    }
}

#[test]
fn down_stops_the_server_and_reports_if_none_is_running() {
    let mut server = Server::start();
    let down = server.sandbox.spawn(&["down"]);
    assert!(server.wait_for_exit().success());
    assert!(down.wait().with_code(0).message().contains("stopped"));
    assert!(server.run(&["down"]).with_code(0).message().contains("nothing is running"));
}

#[test]
fn commands_work_with_and_without_a_server() {
    let mut server = Server::start();
    let created = server.post("/api/2.0/mlflow/runs/create", &json!({ "experiment_id": "0", "run_name": "cli-run" }));
    let run = created.with_status(200)["run"]["info"]["run_id"].as_str().unwrap().to_owned();
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
    // A linear congruential generator (Knuth's MMIX), so that every test run sends the same requests.
    let mut state = 7_u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % n
    };
    for _ in 0..600 {
        let body: serde_json::Map<String, Value> =
            (0..5).map(|_| (keys[below(keys.len())].to_owned(), pieces[below(pieces.len())].clone())).collect();
        let response =
            server.post(&format!("/api/2.0/mlflow/{}", paths[below(paths.len())]), &Value::Object(body.clone()));
        assert!(response.status < 500 || response.status == 501, "{body:?}: {} {}", response.status, response.text());
    }
    for path in [
        "/api/2.0/mlflow/runs/get?run_id=%00%ff",
        "/api/2.0/mlflow-artifacts/artifacts/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/api/2.0/mlflow-artifacts/artifacts?path=../..",
        "/get-artifact?run_id=x&path=../../etc/passwd",
        "/api/v1/deployments/%ff/infer",
    ] {
        let response = server.get(path);
        assert!((400..500).contains(&response.status), "{path}: {} {}", response.status, response.text());
    }
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn unknown_paths_return_json_errors_instead_of_the_ui() {
    let server = Server::start();
    for path in ["/api/3.0/mlflow/traces/search", "/api/2.0/mlflow/webhooks", "/api/3.0/mlflow/scorers/list"] {
        let response = server.post(path, &json!({})).with_status(501);
        assert_eq!(response["error_code"], "NOT_IMPLEMENTED", "{path}");
    }
    // An OpenTelemetry exporter must not mistake the UI's HTML page for success.
    for path in ["/v1/traces", "/v1/metrics", "/nothing"] {
        let response = server.post(path, &json!({}));
        assert_eq!(response.headers["content-type"], "application/json", "{path}");
        assert_eq!(response.with_status(404)["error_code"], "ENDPOINT_NOT_FOUND", "{path}");
    }
    server.post("/models", &json!({})).with_status(405);
}

#[test]
fn metrics_and_openapi_are_served() {
    let server = Server::start();
    server.get("/api/v1/status").with_status(200);
    let text = server.get("/metrics").text();
    assert!(text.contains("slipway_http_requests_total") && text.contains("process_resident_memory_bytes"), "{text}");
    let openapi = server.get("/openapi.json").with_status(200);
    assert!(openapi["openapi"].as_str().unwrap().starts_with("3.1"));
}

#[test]
fn unusable_stores_are_reported_without_passwords() {
    for (variable, url, message) in [
        ("SLIPWAY_DATABASE", "postgres://me:hunter2@127.0.0.1:1/x", "cannot be reached"),
        ("SLIPWAY_DATABASE", "mysql://me:hunter2@127.0.0.1/x", "URL"),
        ("SLIPWAY_OBJECTS", "ftp://bucket", "s3://"),
    ] {
        let mut sandbox = Sandbox::new();
        sandbox.set(variable, url);
        let done = sandbox.run(&["up", "--listen", "127.0.0.1:0"]).with_code(1);
        assert!(done.message().contains(message), "{url}: {done:?}");
        assert!(!done.stderr.contains("hunter2") && done.stdout.is_empty(), "{done:?}");
    }
    let alone = Sandbox::new().run(&["up", "--gateway-only"]).with_code(1);
    assert!(alone.message().contains("SLIPWAY_DATABASE"), "{alone:?}");
}
