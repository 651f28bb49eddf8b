//! Remotes of versioned data: what the official client needs, and attacks.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};

use super::TestServer;

/// MD5 of `hello`.
const HELLO: &str = "files/md5/5d/41402abc4b2a76b9719d911017c592";
/// MD5 of nothing.
const NOTHING: &str = "files/md5/d4/1d8cd98f00b204e9800998ecf8427e";
const TEAM: &str = "/api/v1/data/remotes/team";

fn json_of(reply: &super::Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap()
}

/// The paths of all objects of a remote.
async fn items(server: &TestServer, remote: &str) -> Vec<String> {
    let reply = server.send_as("owner", "GET", &format!("{remote}/items"), "").await;
    json_of(&reply)["items"].as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn objects_are_stored_by_their_digest() {
    let server = TestServer::open().await;
    // DVC posts an object by default, and puts it if so configured.
    assert_eq!(server.send_as("writer", "POST", &format!("{TEAM}/{HELLO}"), "hello").await.status, 204);
    assert_eq!(server.send_as("writer", "PUT", &format!("{TEAM}/{NOTHING}"), "").await.status, 204);
    let reply = server.send_as("reader", "GET", &format!("{TEAM}/{HELLO}"), "").await;
    assert_eq!((reply.status.as_u16(), &reply.body[..]), (200, &b"hello"[..]));
    assert_eq!(server.send_as("reader", "HEAD", &format!("{TEAM}/{HELLO}"), "").await.status, 200);
    assert_eq!(server.send_as("reader", "GET", &format!("{TEAM}/{}", HELLO.replace("5d", "5e")), "").await.status, 404);

    let mut request = server.request(0, "reader", &Method::GET, &format!("{TEAM}/{HELLO}"), "").unwrap();
    request.headers_mut().insert("range", "bytes=2-".parse().unwrap());
    let part = server.send(0, request).await;
    assert_eq!((part.status.as_u16(), &part.body[..]), (206, &b"llo"[..]));
    assert_eq!(part.headers["content-range"], "bytes 2-4/5");

    let other = HELLO.replace("41", "42");
    let body = json!({"items": [HELLO, other, NOTHING]}).to_string();
    let missing = server.send_as("reader", "POST", &format!("{TEAM}/missing"), &body).await;
    assert_eq!(json_of(&missing), json!({"items": [other]}));
    assert_eq!(items(&server, TEAM).await, [HELLO, NOTHING]);
    let remotes = server.send_as("reader", "GET", "/api/v1/data/remotes", "").await;
    assert_eq!(json_of(&remotes), json!({"remotes": ["team"]}));
    let body = json!({"items": [NOTHING, other]}).to_string();
    assert_eq!(server.send_as("writer", "POST", &format!("{TEAM}/remove"), &body).await.status, 204);
    assert_eq!(items(&server, TEAM).await, [HELLO]);
}

#[tokio::test]
async fn content_of_another_digest_is_rejected_and_not_stored() {
    let server = TestServer::open().await;
    for method in ["POST", "PUT"] {
        for body in ["hallo", "hello ", ""] {
            let reply = server.send_as("writer", method, &format!("{TEAM}/{HELLO}"), body).await;
            assert_eq!(reply.status, 422, "{body:?}");
            assert_eq!(json_of(&reply)["code"], "data.mismatch");
            assert!(json_of(&reply)["hint"].is_string());
        }
    }
    assert!(items(&server, TEAM).await.is_empty());
    // An object that is there stays as it is.
    server.send_as("writer", "PUT", &format!("{TEAM}/{HELLO}"), "hello").await;
    assert_eq!(server.send_as("writer", "PUT", &format!("{TEAM}/{HELLO}"), "evil").await.status, 422);
    assert_eq!(server.send_as("reader", "GET", &format!("{TEAM}/{HELLO}"), "").await.body, "hello");
}

#[tokio::test]
async fn uploads_continue_with_the_missing_parts() {
    let server = TestServer::open().await;
    let upload = format!("{TEAM}/uploads/{HELLO}");
    let part = |number: u32| format!("{TEAM}/parts/{number}/{HELLO}");
    assert_eq!(json_of(&server.send_as("writer", "GET", &upload, "").await), json!({"parts": []}));
    assert_eq!(server.send_as("writer", "PUT", &part(2), "lo").await.status, 204);
    assert_eq!(server.send_as("writer", "POST", &upload, r#"{"parts": 2}"#).await.status, 404, "part 1 is missing");
    assert_eq!(server.send_as("writer", "PUT", &part(1), "hel").await.status, 204);
    let arrived = server.send_as("writer", "GET", &upload, "").await;
    assert_eq!(json_of(&arrived), json!({"parts": [{"number": 1, "size": 3}, {"number": 2, "size": 2}]}));
    // The parts of one remote are not those of another one.
    let other = format!("/api/v1/data/remotes/other/uploads/{HELLO}");
    assert_eq!(json_of(&server.send_as("writer", "GET", &other, "").await), json!({"parts": []}));
    assert_eq!(server.send_as("writer", "POST", &upload, r#"{"parts": 2}"#).await.status, 204);
    assert_eq!(server.send_as("reader", "GET", &format!("{TEAM}/{HELLO}"), "").await.body, "hello");
    assert_eq!(json_of(&server.send_as("writer", "GET", &upload, "").await), json!({"parts": []}));

    // Parts of another content are removed, so that the next attempt begins anew.
    let nothing = format!("{TEAM}/uploads/{NOTHING}");
    server.send_as("writer", "PUT", &format!("{TEAM}/parts/1/{NOTHING}"), "x").await;
    assert_eq!(server.send_as("writer", "POST", &nothing, r#"{"parts": 1}"#).await.status, 422);
    assert_eq!(json_of(&server.send_as("writer", "GET", &nothing, "").await), json!({"parts": []}));
    for parts in ["0", "10001", "4294967295", "-1", "\"x\""] {
        let reply = server.send_as("writer", "POST", &upload, &format!("{{\"parts\": {parts}}}")).await;
        assert!(reply.status.is_client_error(), "{parts}: {}", reply.status);
    }
}

#[tokio::test]
async fn batches_are_stored_whole_or_not_at_all() {
    let server = TestServer::open().await;
    let (upload, download) = (format!("{TEAM}/upload"), format!("{TEAM}/download"));
    let both = json!({"items": [NOTHING, HELLO.replace("41", "42"), HELLO]}).to_string();
    let valid = format!("{HELLO} 5\nhello{NOTHING} 0\n");
    for (role, status) in [("reader", 403), ("inferrer", 403), ("no-token", 401)] {
        assert_eq!(server.send_as(role, "POST", &upload, &valid).await.status, status, "{role}");
    }
    assert_eq!(server.send_as("inferrer", "POST", &download, &both).await.status, 403);
    let run = format!("runs/ab/{0}/{0}", "ab".repeat(32));
    for (batch, status) in [
        (format!("{NOTHING} 0\n{HELLO} 5\nhallo"), 422),
        (format!("{NOTHING} 0\n{HELLO} 6\nhello"), 400),
        (format!("{NOTHING} 0\n../../evil 1\nx"), 400),
        (format!("{run} 0\n"), 400),
        (format!("{HELLO} 70000\n{}", "x".repeat(70_000)), 400),
        ("x".repeat((8 << 20) + 1), 413),
    ] {
        assert_eq!(server.send_as("writer", "POST", &upload, &batch).await.status, status, "{}", batch.len());
    }
    assert!(items(&server, TEAM).await.is_empty());
    assert_eq!(server.send_as("writer", "POST", &upload, &valid).await.status, 204);
    assert_eq!(items(&server, TEAM).await, [HELLO, NOTHING]);
    let reply = server.send_as("reader", "POST", &download, &both).await;
    assert_eq!(reply.body, format!("{NOTHING} 0\n{HELLO} 5\nhello"), "without the object that is missing");
    let many = json!({"items": vec![HELLO; 2001]}).to_string();
    assert_eq!(server.send_as("reader", "POST", &download, &many).await.status, 400);
    assert_eq!(server.send_as("reader", "POST", &download, r#"{"items": ["../../x"]}"#).await.status, 400);
}

/// Paths that leave the remote, and names that are no digests.
#[tokio::test]
async fn only_objects_can_be_addressed() {
    let server = TestServer::open().await;
    let before = super::fuzz::state(&server);
    let (shard, name) = ("5d", "41402abc4b2a76b9719d911017c592");
    for path in [
        format!("{TEAM}/files/md5/{shard}/..%2f{name}"),
        format!("{TEAM}/files%2Fmd5%2f..%2f{shard}/{name}x"),
        format!("{TEAM}/..%2f..%2f..%2fevil"),
        format!("{TEAM}/files/md5/{shard}/{name}.exe"),
        format!("{TEAM}/files/md5/{shard}/{name}%00"),
        format!("{TEAM}/files/md5/{}/{name}", "5D"),
        format!("{TEAM}/files/sha256/{shard}/{name}"),
        format!("{TEAM}/runs/{shard}/{name}/{name}"),
        format!("/api/v1/data/remotes/..%2fevil/{HELLO}"),
        format!("/api/v1/data/remotes/.part/{HELLO}"),
        format!("/api/v1/data/remotes/a%2fb/{HELLO}"),
        format!("/api/v1/data/remotes/{}/{HELLO}", "a".repeat(64)),
        format!("/api/v1/data/namespaces/_/remotes/team/{HELLO}"),
        format!("/api/v1/data/namespaces/..%2f..%2f/remotes/team/{HELLO}"),
    ] {
        for method in ["PUT", "POST", "GET", "DELETE"] {
            let reply = server.send_as("owner", method, &path, "hello").await;
            assert!(reply.status.is_client_error(), "{method} {path}: {}", reply.status);
        }
    }
    for path in ["../../x", "files/md5/5d/x", "/etc/passwd", ""] {
        let body = json!({"items": [path]}).to_string();
        for verb in ["missing", "remove"] {
            let reply = server.send_as("owner", "POST", &format!("{TEAM}/{verb}"), &body).await;
            assert_eq!(reply.status, 400, "{verb} {path}");
        }
    }
    assert_eq!(super::fuzz::state(&server), before);
    // The clients of artifacts reach the stored data in no way.
    server.send_as("owner", "PUT", &format!("{TEAM}/{HELLO}"), "hello").await;
    let before = super::fuzz::state(&server);
    for path in [format!(".data/_/team/{HELLO}"), format!("./.data/_/team/{HELLO}"), format!("%2edata/_/team/{HELLO}")]
    {
        for method in ["PUT", "GET", "DELETE"] {
            let path = format!("/api/2.0/mlflow-artifacts/artifacts/{path}");
            let reply = server.send_as("owner", method, &path, "evil").await;
            assert!(reply.status.is_client_error(), "{method} {path}: {}", reply.status);
        }
    }
    assert_eq!(super::fuzz::state(&server), before);
    let listed = server.send_as("owner", "GET", "/api/2.0/mlflow-artifacts/artifacts?path=", "").await;
    assert!(!String::from_utf8_lossy(&listed.body).contains(".data"));
}

#[tokio::test]
async fn sizes_are_limited() {
    let limits = slipway_store::Limits { max_object_bytes: 4, ..slipway_store::Limits::default() };
    let server = TestServer::open_with(limits).await;
    assert_eq!(server.send_as("writer", "PUT", &format!("{TEAM}/{HELLO}"), "hello").await.status, 413);
    assert_eq!(server.send_as("writer", "PUT", &format!("{TEAM}/parts/1/{HELLO}"), "hello").await.status, 413);
    assert_eq!(server.send_as("writer", "PUT", &format!("{TEAM}/parts/10001/{HELLO}"), "").await.status, 400);
    let huge = "x".repeat((64 << 20) + 1);
    assert_eq!(server.send_as("writer", "POST", &format!("{TEAM}/missing"), &huge).await.status, 413);
    assert!(items(&server, TEAM).await.is_empty());
}

/// A run reads and adds data of its own namespace only, and a user needs the permission in the namespace of the path.
#[tokio::test]
async fn namespaces_are_separate() {
    let server = TestServer::open().await;
    let place = |namespace: &str| format!("/api/v1/data/namespaces/{namespace}/remotes/team");
    for (role, remote, status) in [
        ("runner", place("team-a"), 204),
        ("runner", place("team-b"), 403),
        ("runner", TEAM.to_owned(), 403),
        ("reader", TEAM.to_owned(), 403),
        ("inferrer", TEAM.to_owned(), 403),
        ("no-token", TEAM.to_owned(), 401),
        ("bad-token", place("team-a"), 401),
    ] {
        let reply = server.send_as(role, "PUT", &format!("{remote}/{HELLO}"), "hello").await;
        assert_eq!(reply.status, status, "{role} {remote}");
    }
    assert_eq!(server.send_as("runner", "GET", &format!("{}/{HELLO}", place("team-a")), "").await.body, "hello");
    assert_eq!(server.send_as("runner", "DELETE", &format!("{}/{HELLO}", place("team-a")), "").await.status, 403);
    for remote in [place("team-b"), TEAM.to_owned()] {
        assert!(items(&server, &remote).await.is_empty(), "{remote}");
        for path in ["items".to_owned(), HELLO.to_owned()] {
            let reply = server.send_as("runner", "GET", &format!("{remote}/{path}"), "").await;
            assert_eq!(reply.status, 403, "{remote}/{path}");
        }
        // Whether another tenant has an object is a secret, too.
        let body = json!({"items": [HELLO]}).to_string();
        let reply = server.send_as("runner", "POST", &format!("{remote}/missing"), &body).await;
        assert_eq!(reply.status, 403, "{remote}");
    }
}

/// A client that breaks off leaves nothing.
#[tokio::test]
async fn broken_uploads_leave_nothing() {
    let server = TestServer::open().await;
    let chunks = [Ok(bytes::Bytes::from("hel")), Err(std::io::Error::other("the connection broke off"))];
    let request = Request::builder()
        .method("PUT")
        .uri(format!("{TEAM}/{HELLO}"))
        .header("host", "localhost:7070")
        .header("authorization", format!("Bearer {}", super::OWNER))
        .body(Body::from_stream(futures_util::stream::iter(chunks)))
        .unwrap();
    assert!(!server.send(0, request).await.status.is_success());
    assert!(items(&server, TEAM).await.is_empty());
    let unfinished = server.home.objects().join(".data/.part");
    assert_eq!(std::fs::read_dir(unfinished).unwrap().count(), 0);
}
