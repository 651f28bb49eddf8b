//! Paths, methods and encodings of all kinds: nobody learns anything, and whoever may only read changes nothing.

use axum::http::Method;
use serde_json::json;

use super::{Front, RUN_ID};

/// A text that only those may see who may read.
const SECRET: &str = "only-for-those-who-may-read";

/// Everything that is stored, as text: all rows of all tables, and all objects.
pub(super) fn state(front: &Front) -> String {
    let rows = front.platform.database.read_now(|c| -> Result<Vec<String>, slipway_store::StoreError> {
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
    let mut folders = vec![front.home.objects()];
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

/// A small generator (xorshift64*), so that a failure can be repeated from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33).unwrap_or(0) % n
    }
    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
}

const PLANTED: &[&str] = &[
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

/// A path that begins as a route does and is then spoilt.
fn spoilt(random: &mut Random, pattern: &str) -> String {
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
            0 => segments.insert(at, random.one(PLANTED).to_owned()),
            1 if at < segments.len() => segments[at] = random.one(PLANTED).to_owned(),
            2 if at < segments.len() => segments[at] = segments[at].bytes().map(|b| format!("%{b:02x}")).collect(),
            3 if at < segments.len() => segments[at] = segments[at].to_uppercase(),
            4 if at < segments.len() && segments.len() > 1 => drop(segments.remove(at)),
            _ => segments.push(random.one(PLANTED).to_owned()),
        }
    }
    let query = random.one(&["", "", "?run_id=0", "?path=secret.txt", "?name=secret&version=1", "?a=%00"]);
    format!("/{}{query}", segments.join("/")).replace("run_id=0", &format!("run_id={RUN_ID}&path=secret.txt"))
}

#[tokio::test]
async fn no_spelling_of_a_path_opens_a_door() {
    let front = Front::open().await;
    let artifact = format!("/api/2.0/mlflow-artifacts/artifacts/0/{RUN_ID}/artifacts/secret.txt");
    assert_eq!(front.ask("owner", "PUT", &artifact, SECRET).await.status, 200);
    let tag = json!({"run_id": RUN_ID, "key": "k", "value": SECRET}).to_string();
    assert_eq!(front.ask("owner", "POST", "/api/2.0/mlflow/runs/set-tag", &tag).await.status, 200);
    let model = json!({"name": "secret", "description": SECRET}).to_string();
    assert_eq!(front.ask("owner", "POST", "/api/2.0/mlflow/registered-models/create", &model).await.status, 200);
    let seen = front.ask("reader", "GET", &artifact, "").await;
    assert_eq!(seen.body, SECRET, "the secret can be read by those who may");

    let before = state(&front);
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
        let route = front.tables[port][random.below(front.tables[port].len())].path.replace("/**", "");
        let path = spoilt(&mut random, &route);
        let method = Method::from_bytes(random.one(METHODS).as_bytes()).unwrap();
        let body = bodies[random.below(bodies.len())];
        let role = random.one(&["nobody", "nobody", "stranger", "inferrer", "reader"]);
        // What is no URI at all does not get as far as a router.
        let Some(request) = front.request(port, role, &method, &path, body) else { continue };
        let reply = front.send(port, request).await;
        let told = String::from_utf8_lossy(&reply.body).contains(SECRET);
        assert!(!told || role == "reader", "round {round}: {role} {method} {path} told the secret");
        // 501 and 503 say what this server does not do; 500 would be a defect.
        assert_ne!(reply.status, 500, "round {round}: {role} {method} {path}: {:?}", reply.body);
        if round % 500 == 0 {
            assert_eq!(state(&front), before, "before round {round}");
        }
    }
    assert_eq!(state(&front), before);
}
