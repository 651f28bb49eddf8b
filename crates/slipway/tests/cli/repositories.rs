//! A data repository that a server shows does not dispose of the server's network and credentials.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::support::{Sandbox, Server};

const ALL: &str = "/api/v1/data/repositories";

/// Starts a web server that answers all requests with `x`, and returns its port and the heads of the requests.
fn internal_server() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let received = Arc::clone(&heads);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
                head.push(byte[0]);
            }
            received.lock().unwrap().push(String::from_utf8_lossy(&head).to_lowercase());
            // The client may have gone.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx");
        }
    });
    (port, heads)
}

/// A repository whose remote is a server in the network of the slipway server.
fn repository(folder: &Path, url: &str) {
    std::fs::create_dir_all(folder.join(".dvc")).unwrap();
    std::fs::write(
        folder.join(".dvc/config"),
        format!("[core]\n    remote = team\n['remote \"team\"']\n    url = {url}\n"),
    )
    .unwrap();
    // The MD5 of `x`, and another one. Without `hash`, they are those of DVC 2.
    for (name, md5) in [("known", "9dd4e461268c8034f5c8564e155c67a6"), ("other", "0cc175b9c0f1b6a831c399e269772661")] {
        std::fs::write(folder.join(format!("{name}.dvc")), format!("outs:\n- md5: {md5}\n  path: {name}\n")).unwrap();
    }
    for arguments in [&["init", "--quiet"][..], &["add", "--all"], &["commit", "--quiet", "--message", "first"]] {
        let mut git = Command::new("git");
        git.arg("-C").arg(folder).args(["-c", "user.name=n", "-c", "user.email=n@example.invalid"]);
        assert!(git.args(arguments).status().unwrap().success(), "{arguments:?}");
    }
}

#[test]
fn a_repository_leads_the_server_to_listed_hosts_only_and_without_its_credentials() {
    let (port, heads) = internal_server();
    let requests = || std::mem::take(&mut *heads.lock().unwrap());
    let sandbox = Sandbox::new();
    sandbox.write(
        ".config/dvc/config",
        "['remote \"team\"']\n    auth = basic\n    user = me\n    password = secret\n['remote \"private\"']\n    url = https://private.invalid/x\n",
    );
    let url = format!("http://127.0.0.1:{port}/latest");
    let register = |server: &Server, folder: &Path| {
        for (name, url) in [("evil", url.clone()), ("query", format!("{url}/role?x="))] {
            repository(&folder.join(name), &url);
            let reply = server.post(ALL, &json!({ "name": name, "location": folder.join(name) }));
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
    };
    let preview = |server: &Server, name: &str, path: &str| server.get(&format!("{ALL}/{name}/preview?path={path}"));

    let server = Server::start_in(sandbox, &[]);
    register(&server, server.sandbox.folder());
    for name in ["evil", "query"] {
        let reply = preview(&server, name, "known");
        assert!(reply.status >= 400, "{name}: {}", reply.text());
        let places = server.get(&format!("{ALL}/{name}/places?path=known")).with_status(200);
        let names: Vec<_> = places["remotes"].as_array().unwrap().iter().map(|remote| remote["name"].clone()).collect();
        assert_eq!((names, &places["remotes"][0]["present"]), (vec![json!("team")], &json!(null)));
    }
    assert!(requests().is_empty());
    drop(server);

    let mut sandbox = Sandbox::new();
    sandbox
        .write(".config/dvc/config", "['remote \"team\"']\n    auth = basic\n    user = me\n    password = secret\n");
    sandbox.set("SLIPWAY_DATA_HOSTS", "example.invalid, 127.0.0.1");
    let server = Server::start_in(sandbox, &[]);
    register(&server, server.sandbox.folder());
    let shown = preview(&server, "evil", "known").with_status(200);
    assert_eq!(shown["text"], "x");
    let found = requests();
    assert!(!found.is_empty() && found.iter().all(|head| !head.contains("authorization")), "{found:?}");
    // What does not have the recorded content is not shown, and what follows a query is no path.
    assert!(preview(&server, "evil", "other").status >= 400);
    requests();
    assert!(preview(&server, "query", "known").status >= 400 && requests().is_empty());
}
