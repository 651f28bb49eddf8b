//! Tests of `slipway token`.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Sandbox, Server};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn token_prints_only_the_token() {
    let sandbox = Sandbox::new();
    let none = sandbox.run(&["token"]).with_code(1);
    assert!(none.stdout.is_empty() && none.message().contains("auth.no_token"), "{none:?}");
    sandbox.write("home/token", "\n");
    sandbox.run(&["token"]).with_code(1);
    let file = sandbox.write("home/token", &format!("{TOKEN}\n"));
    sandbox.run(&["token"]).with_code(1); // Refused: other users could have read the token.
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(sandbox.run(&["token"]).with_code(0).stdout, format!("{TOKEN}\n"));
    assert_eq!(sandbox.run(&["token", "-o", "json"]).with_code(0).json(), serde_json::json!({ "token": TOKEN }));
    let done = sandbox.run(&["token", "-o", "kept.json"]).with_code(0);
    assert!(done.stdout.is_empty() && sandbox.read("kept.json").contains(TOKEN));
    let mode = std::fs::metadata(sandbox.folder().join("kept.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the output file must be readable only by its owner");
}

#[test]
fn ui_link_requires_a_running_server() {
    let mut server = Server::start();
    let token = server.run(&["token"]).with_code(0).stdout.trim().to_owned();
    let link = server.run(&["token", "--ui"]).with_code(0).stdout;
    assert_eq!(link, format!("{}/#token={token}\n", server.url()));
    server.stop();
    let done = server.run(&["token", "--ui"]).with_code(5);
    assert!(done.stdout.is_empty() && done.message().contains("server.unreachable"), "{done:?}");
}
