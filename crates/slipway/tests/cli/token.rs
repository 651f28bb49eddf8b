//! `slipway token`.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Place, Server};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn the_token_of_the_state_folder_is_printed_alone() {
    let place = Place::new();
    let none = place.run(&["token"]).with_code(1);
    assert!(none.stdout.is_empty() && none.talk().contains("auth.no_token"), "{none:?}");
    place.write("home/token", "\n");
    place.run(&["token"]).with_code(1);
    let file = place.write("home/token", &format!("{TOKEN}\n"));
    place.run(&["token"]).with_code(1); // Other users could read it, so it protects nothing.
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(place.run(&["token"]).with_code(0).stdout, format!("{TOKEN}\n"));
    assert_eq!(place.run(&["token", "-o", "json"]).with_code(0).json(), serde_json::json!({ "token": TOKEN }));
    let done = place.run(&["token", "-o", "kept.json"]).with_code(0);
    assert!(done.stdout.is_empty() && place.read("kept.json").contains(TOKEN));
    let mode = std::fs::metadata(place.folder().join("kept.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "nobody else may read it");
}

#[test]
fn the_link_opens_the_ui_of_the_running_server() {
    let mut server = Server::start();
    let token = server.run(&["token"]).with_code(0).stdout.trim().to_owned();
    let link = server.run(&["token", "--ui"]).with_code(0).stdout;
    assert_eq!(link, format!("{}/#token={token}\n", server.url()));
    server.stop();
    let done = server.run(&["token", "--ui"]).with_code(5);
    assert!(done.stdout.is_empty() && done.talk().contains("server.unreachable"), "{done:?}");
}
