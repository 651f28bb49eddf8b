//! What a `slipway.yaml` that comes with a cloned repository can do, and what it cannot.

use std::io::ErrorKind;
use std::net::TcpListener;

use crate::support::Place;

/// A listener that accepts nothing by itself, and whether somebody connected to it.
fn trap() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn nobody_connected(listener: &TcpListener) -> bool {
    listener.accept().is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
}

#[test]
fn a_cloned_repository_gets_no_token_and_loads_no_library() {
    let (listener, port) = trap();
    let mut place = Place::new();
    place.set("SLIPWAY_TOKEN", "secret-of-the-caller");
    place.write("slipway.yaml", &format!("server: http://127.0.0.1:{port}\nonnxruntime: ./evil.so\n"));
    place.write("evil.so", "not a library: loading it fails with a message about ELF");
    place.write("deep/down/README", "");
    for folder in ["", "deep/down"] {
        for words in
            [&["status"][..], &["run", "ls"], &["doctor"], &["model", "ls"], &["up", "--listen", "127.0.0.1:0"]]
        {
            let mut command = place.command(words);
            let done = command.current_dir(place.folder().join(folder)).output().unwrap();
            let talk = String::from_utf8(done.stderr).unwrap();
            assert_eq!(done.status.code(), Some(2), "{words:?}: {talk}");
            assert!(talk.contains("config.project") && !talk.contains("ELF"), "{words:?}: {talk}");
            assert!(done.stdout.is_empty(), "{words:?}");
        }
    }
    assert!(nobody_connected(&listener), "the project's server was asked");
    assert!(!place.home().exists(), "a command went on although the project file is refused");

    // The library alone is refused as well, and so is each in a place of its own.
    place.write("slipway.yaml", "onnxruntime: ./evil.so\n");
    let done = place.run(&["status"]).with_code(2);
    assert!(done.talk().contains("`onnxruntime`") && !done.talk().contains("ELF"), "{done:?}");
}

#[test]
fn the_same_keys_are_taken_from_the_user() {
    let (listener, port) = trap();
    let place = Place::new();
    place.write(".config/slipway/config.yaml", &format!("server: http://127.0.0.1:{port}\n"));
    let done = place.run(&["config", "show", "--origin"]).with_code(0);
    assert!(done.stdout.contains(&format!("http://127.0.0.1:{port}")), "{done:?}");
    assert!(done.stdout.contains(".config/slipway/config.yaml"), "{done:?}");
    assert!(nobody_connected(&listener));
}

#[test]
fn the_error_says_which_key_and_where_it_belongs() {
    let place = Place::new();
    place.write("slipway.yaml", "server: http://evil.example\n");
    let done = place.run(&["status"]).with_code(2);
    let talk = done.talk();
    for part in [
        "slipway.yaml sets `server`",
        ".config/slipway/config.yaml",
        "SLIPWAY_SERVER",
        "--server",
        "explain config.project",
    ] {
        assert!(talk.contains(part), "{part}: {talk}");
    }
}

#[test]
fn what_helps_to_find_out_works_beside_a_refused_file() {
    let place = Place::new();
    place.write("slipway.yaml", "server: http://evil.example\nlog: debug\n");
    let shown = place.run(&["config", "show", "--origin", "-o", "json"]).with_code(0);
    assert!(!shown.stdout.contains("evil") && shown.json().is_array(), "{shown:?}");
    assert!(shown.talk().contains("config.project"), "{shown:?}");
    place.run(&["explain", "config.project"]).with_code(0);
    place.run(&["--help"]).with_code(0);
    place.run(&["completions", "bash"]).with_code(0);
}

#[test]
fn harmless_keys_work_and_their_origin_is_shown() {
    let mut place = Place::new();
    let file = place.write("slipway.yaml", "runtime: tract\nlog: info\n");
    let origin = |place: &Place, key: &str| {
        let shown = place.run(&["config", "show", "--origin", "-o", "json"]).with_code(0).json();
        let found = shown.as_array().unwrap().iter().find(|entry| entry[0] == key).unwrap().clone();
        found[2].as_str().unwrap().to_owned()
    };
    assert_eq!(origin(&place, "runtime"), file.canonicalize().unwrap().display().to_string());
    assert_eq!(origin(&place, "listen"), "default");
    assert_eq!(origin(&place, "home"), "$SLIPWAY_HOME");
    let said = "using the state folder in this process";
    assert!(place.run(&["status"]).with_code(0).stderr.contains(said), "the log level is that of the project");
    assert!(!place.run(&["status", "-q"]).with_code(0).stderr.contains(said), "a flag is stronger");
    place.set("SLIPWAY_LOG", "error");
    assert!(!place.run(&["status"]).with_code(0).stderr.contains(said), "a variable is stronger");
    assert_eq!(origin(&place, "log"), "$SLIPWAY_LOG");
}

#[test]
fn relative_folders_of_the_environment_name_no_user_file() {
    let mut place = Place::new();
    place.write("slipway/config.yaml", "server: http://evil.example\n");
    place.write("evil/slipway/config.yaml", "server: http://evil.example\n");
    place.write(".local/share/slipway/server.json", "");
    for folder in ["", "evil"] {
        place.set("XDG_CONFIG_HOME", folder);
        place.set("XDG_DATA_HOME", folder);
        let mut command = place.command(&["config", "show", "-o", "json"]);
        let done = command.env_remove("SLIPWAY_HOME").output().unwrap();
        let text = String::from_utf8(done.stdout).unwrap();
        assert!(!text.contains("evil"), "{text}");
    }
    // Without any folder of the user's the state is not kept where a command happens to start.
    let mut command = place.command(&["config", "show", "-o", "json"]);
    let done = command.env_remove("SLIPWAY_HOME").env("HOME", "").output().unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let home = shown.as_array().unwrap().iter().find(|entry| entry[0] == "home").unwrap();
    assert!(home[1].as_str().unwrap().starts_with('/'), "{home}");
}

#[test]
fn passwords_of_urls_are_not_shown() {
    let mut place = Place::new();
    place.set("SLIPWAY_DATABASE", "postgres://me:hunter2@127.0.0.1:1/x");
    let shown = place.run(&["config", "show", "-o", "json"]).with_code(0);
    assert!(shown.stdout.contains("postgres://me:") && !shown.stdout.contains("hunter2"), "{shown:?}");
    let failed = place.run(&["status", "-vv"]).with_code(1);
    assert!(!failed.stderr.contains("hunter2"), "{failed:?}");
}
