//! Sends a request to every route in every role, and compares the results with the committed table `access.txt`.

use axum::http::{Method, StatusCode};

use super::{Reply, TestServer};

const ROLES: [&str; 8] = ["no-token", "bad-token", "reader", "runner", "inferrer", "writer", "administrator", "owner"];
const TABLE: &str = include_str!("access.txt");

/// An example path that matches the pattern of a route.
fn example_path(pattern: &str) -> String {
    let values = [
        ("{*path}", "0/0123456789abcdef0123456789abcdef/artifacts/file.txt"),
        ("{namespace}", "team-a"),
        ("{version}", "1"),
        ("{number}", "1"),
        ("/**", "/no-such-path"),
    ];
    let filled = values.iter().fold(pattern.to_owned(), |path, (name, value)| path.replace(name, value));
    let mut out = String::new();
    let mut rest = filled.as_str();
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        out.push_str("x1");
        rest = after.split_once('}').map_or("", |(_, rest)| rest);
    }
    out + rest
}

/// `y` if the request reached its handler, `n` if it was not authenticated, `-` if it was not authorized.
fn verdict(reply: &Reply) -> char {
    let grpc = reply.headers.get("grpc-status").and_then(|s| s.to_str().ok());
    match (reply.status, grpc) {
        (StatusCode::UNAUTHORIZED, _) | (_, Some("16")) => 'n',
        (StatusCode::FORBIDDEN, _) | (_, Some("7")) => '-',
        _ => 'y',
    }
}

#[tokio::test]
async fn access_matches_the_committed_table() {
    let server = TestServer::open().await;
    let mut lines = vec![format!("{:6} {:90} {:32} {}", "METHOD", "PATH", "ACCESS", ROLES.join(" "))];
    for (port, name) in ["control", "inference", "grpc"].into_iter().enumerate() {
        lines.push(format!("# {name}"));
        let mut routes = server.tables[port].clone();
        routes.sort_by_key(|r| (r.path.clone(), r.method.as_ref().map(Method::to_string)));
        for route in routes {
            let method = route.method.clone().unwrap_or(if port == 2 { Method::POST } else { Method::GET });
            let mut path = example_path(&route.path);
            if path.contains("/watch/") {
                // A watch would last until its timeout. The version is read after the caller is authorized.
                path.push_str("?resourceVersion=odd");
            }
            let body = if path == "/api/v1/runs" {
                r#"{"apiVersion":"slipway.dev/v1","kind":"Run","metadata":{"name":"x","namespace":"team-a"},"spec":{"command":["true"]}}"#
            } else {
                "{}"
            };
            let mut cells = String::new();
            for role in ROLES {
                let reply = server.send(port, server.request(port, role, &method, &path, body).unwrap()).await;
                let text = String::from_utf8_lossy(&reply.body);
                assert!(!text.contains("auth.unguarded"), "{method} {path} as {role} is not guarded");
                cells.push_str(&format!(" {:>width$}", verdict(&reply), width = role.len()));
            }
            let method = route.method.map_or("any".into(), |m| m.to_string());
            lines.push(format!("{method:6} {:90} {:32}{cells}", route.path, route.access.to_string()));
        }
    }
    let actual = lines.join("\n") + "\n";
    if std::env::var_os("UPDATE_ACCESS_TABLE").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/access.txt"), &actual).unwrap();
    }
    for (expected, actual) in TABLE.lines().zip(actual.lines()) {
        assert_eq!(expected, actual);
    }
    assert_eq!(
        TABLE.lines().count(),
        actual.lines().count(),
        "UPDATE_ACCESS_TABLE=1 regenerates the table; review its diff"
    );
}
