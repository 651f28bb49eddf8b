//! Fuzzes paths, methods and encodings: unauthorized callers must not read a secret, and read-only callers must not change any state.

use axum::http::Method;
use serde_json::json;

use super::{RUN_ID, TestServer};

/// A text that only callers with read permission may see.
const SECRET: &str = "only-for-those-who-may-read";

/// All stored state as text: the rows of all tables, and all objects.
pub(super) fn state(server: &TestServer) -> String {
    let rows = server.platform.database.read_now(|c| -> Result<Vec<String>, slipway_store::StoreError> {
        let tables: Vec<String> = c.rows(
            "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name",
            slipway_store::sql::params![],
            |r| r.get(0),
        )?;
        let mut all = Vec::new();
        for table in tables {
            let columns: Vec<String> = c.rows(
                &format!("SELECT name FROM pragma_table_info('{table}') ORDER BY cid"),
                slipway_store::sql::params![],
                |r| r.get(0),
            )?;
            let quoted: Vec<String> = columns.iter().map(|c| format!("quote(\"{c}\")")).collect();
            let select = format!("SELECT {} FROM \"{table}\" ORDER BY 1", quoted.join(" || ',' || "));
            let rows: Vec<String> = c.rows(&select, slipway_store::sql::params![], |r| r.get(0))?;
            all.extend(rows.into_iter().map(|row| format!("{table}: {row}")));
        }
        Ok(all)
    });
    let mut all = rows.unwrap();
    let mut folders = vec![server.home.objects()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                all.push(format!("{}: {:?}", entry.path().display(), std::fs::read(entry.path()).unwrap()));
            }
        }
    }
    all.sort();
    all.join("\n")
}

/// A small random number generator (xorshift64*), so that a failure can be reproduced from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33).unwrap_or(0) % n
    }
    fn choose<'a>(&mut self, items: &[&'a str]) -> &'a str {
        items[self.below(items.len())]
    }
}

/// Path segments that replace or extend those of a route.
const SEGMENTS: &[&str] = &[
    "search",
    "get",
    "list",
    "registered-models",
    "model-versions",
    "health",
    "healthz",
    "api",
    "ajax-api",
    "v2",
    "assets",
    "get-artifact",
    "infer",
    "load",
    "unload",
    "..",
    ".",
    "",
    "%2e%2e",
    "%2f",
    "%00",
    "%0a",
    "é",
    "get.onnx",
    "list%2Fx",
    "tags",
    "inference.GRPCInferenceService",
    "index.html",
    "version",
    "*",
    "{name}",
    "0",
    RUN_ID,
    "secret",
    ";x=1",
    "%",
];
const METHODS: &[&str] =
    &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"];

/// A random mutation of a route's path.
fn mutated_path(random: &mut Random, pattern: &str) -> String {
    let mut segments: Vec<String> = pattern
        .split('/')
        .skip(1)
        .map(|s| match s {
            "{*path}" => format!("0/{RUN_ID}/artifacts/secret.txt"),
            "{name}" | "{model_id}" => "secret".to_owned(),
            s if s.starts_with('{') => "1".to_owned(),
            s => s.to_owned(),
        })
        .collect();
    for _ in 0..random.below(4) {
        let at = random.below(segments.len() + 1);
        match random.below(6) {
            0 => segments.insert(at, random.choose(SEGMENTS).to_owned()),
            1 if at < segments.len() => segments[at] = random.choose(SEGMENTS).to_owned(),
            2 if at < segments.len() => segments[at] = segments[at].bytes().map(|b| format!("%{b:02x}")).collect(),
            3 if at < segments.len() => segments[at] = segments[at].to_uppercase(),
            4 if at < segments.len() && segments.len() > 1 => drop(segments.remove(at)),
            _ => segments.push(random.choose(SEGMENTS).to_owned()),
        }
    }
    let query = random.choose(&["", "", "?run_id=0", "?path=secret.txt", "?name=secret&version=1", "?a=%00"]);
    format!("/{}{query}", segments.join("/")).replace("run_id=0", &format!("run_id={RUN_ID}&path=secret.txt"))
}

#[tokio::test]
async fn mutated_paths_bypass_no_access_check() {
    let server = TestServer::open().await;
    let artifact = format!("/api/2.0/mlflow-artifacts/artifacts/0/{RUN_ID}/artifacts/secret.txt");
    assert_eq!(server.send_as("owner", "PUT", &artifact, SECRET).await.status, 200);
    let tag = json!({"run_id": RUN_ID, "key": "k", "value": SECRET}).to_string();
    assert_eq!(server.send_as("owner", "POST", "/api/2.0/mlflow/runs/set-tag", &tag).await.status, 200);
    let model = json!({"name": "secret", "description": SECRET}).to_string();
    assert_eq!(server.send_as("owner", "POST", "/api/2.0/mlflow/registered-models/create", &model).await.status, 200);
    let reply = server.send_as("reader", "GET", &artifact, "").await;
    assert_eq!(reply.body, SECRET, "a caller with read permission can read the secret");

    let before = state(&server);
    let bodies = [
        "",
        "{}",
        "null",
        "\0\0\0\0\0",
        &tag,
        &model,
        "{\"name\":\"secret\",\"run_ids\":[],\"experiment_ids\":[\"0\"]}",
    ];
    let mut random = Random(0x5EED);
    for round in 0..6_000 {
        let port = random.below(3);
        let route = server.tables[port][random.below(server.tables[port].len())].path.replace("/**", "");
        let path = mutated_path(&mut random, &route);
        let method = Method::from_bytes(random.choose(METHODS).as_bytes()).unwrap();
        let body = bodies[random.below(bodies.len())];
        let role = random.choose(&["no-token", "no-token", "bad-token", "inferrer", "reader"]);
        // An invalid URI does not reach a router.
        let Some(request) = server.request(port, role, &method, &path, body) else { continue };
        let reply = server.send(port, request).await;
        let leaked = String::from_utf8_lossy(&reply.body).contains(SECRET);
        assert!(!leaked || role == "reader", "round {round}: {role} {method} {path} leaked the secret");
        // 501 and 503 are expected for unsupported features; 500 is a defect.
        assert_ne!(reply.status, 500, "round {round}: {role} {method} {path}: {:?}", reply.body);
        if round % 500 == 0 {
            assert_eq!(state(&server), before, "before round {round}");
        }
    }
    assert_eq!(state(&server), before);
}
