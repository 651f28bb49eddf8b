//! Configuration files, in particular the limits of a `slipway.yaml` from a cloned repository.

use std::io::ErrorKind;
use std::net::TcpListener;

use crate::support::Sandbox;

/// A listener that does not accept connections, and its port. [`nobody_connected`] checks it.
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
fn project_file_cannot_redirect_the_token_or_load_a_library() {
    let (listener, port) = trap();
    let mut sandbox = Sandbox::new();
    sandbox.set("SLIPWAY_TOKEN", "secret-of-the-caller");
    sandbox.write("slipway.yaml", &format!("server: http://127.0.0.1:{port}\nonnxruntime: ./evil.so\n"));
    sandbox.write("evil.so", "not a library: loading it fails with a message about ELF");
    sandbox.write("deep/down/README", "");
    for folder in ["", "deep/down"] {
        for words in
            [&["status"][..], &["run", "ls"], &["doctor"], &["model", "ls"], &["up", "--listen", "127.0.0.1:0"]]
        {
            let mut command = sandbox.command(words);
            let done = command.current_dir(sandbox.folder().join(folder)).output().unwrap();
            let message = String::from_utf8(done.stderr).unwrap();
            assert_eq!(done.status.code(), Some(2), "{words:?}: {message}");
            assert!(message.contains("config.project") && !message.contains("ELF"), "{words:?}: {message}");
            assert!(done.stdout.is_empty(), "{words:?}");
        }
    }
    assert!(nobody_connected(&listener), "a request was sent to the project's server");
    assert!(!sandbox.home().exists(), "a command continued although the project file is refused");

    // A project file that only sets the library is refused too.
    sandbox.write("slipway.yaml", "onnxruntime: ./evil.so\n");
    let done = sandbox.run(&["status"]).with_code(2);
    assert!(done.message().contains("`onnxruntime`") && !done.message().contains("ELF"), "{done:?}");
}

#[test]
fn user_file_may_set_all_keys() {
    let (listener, port) = trap();
    let sandbox = Sandbox::new();
    sandbox.write(".config/slipway/config.yaml", &format!("server: http://127.0.0.1:{port}\n"));
    let done = sandbox.run(&["config", "show", "--origin"]).with_code(0);
    assert!(done.stdout.contains(&format!("http://127.0.0.1:{port}")), "{done:?}");
    assert!(done.stdout.contains(".config/slipway/config.yaml"), "{done:?}");
    assert!(nobody_connected(&listener));
}

#[test]
fn project_file_error_names_the_key_and_the_alternatives() {
    let sandbox = Sandbox::new();
    sandbox.write("slipway.yaml", "server: http://evil.example\n");
    let done = sandbox.run(&["status"]).with_code(2);
    let message = done.message();
    for part in [
        "slipway.yaml sets `server`",
        ".config/slipway/config.yaml",
        "SLIPWAY_SERVER",
        "--server",
        "explain config.project",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn diagnostic_commands_work_with_a_refused_project_file() {
    let sandbox = Sandbox::new();
    sandbox.write("slipway.yaml", "server: http://evil.example\nlog: debug\n");
    let shown = sandbox.run(&["config", "show", "--origin", "-o", "json"]).with_code(0);
    assert!(!shown.stdout.contains("evil") && shown.json().is_array(), "{shown:?}");
    assert!(shown.message().contains("config.project"), "{shown:?}");
    sandbox.run(&["explain", "config.project"]).with_code(0);
    sandbox.run(&["--help"]).with_code(0);
    sandbox.run(&["completions", "bash"]).with_code(0);
}

#[test]
fn project_file_may_set_the_allowed_keys() {
    let mut sandbox = Sandbox::new();
    let file = sandbox.write("slipway.yaml", "runtime: builtin\nlog: info\n");
    let origin = |sandbox: &Sandbox, key: &str| {
        let shown = sandbox.run(&["config", "show", "--origin", "-o", "json"]).with_code(0).json();
        let found = shown.as_array().unwrap().iter().find(|entry| entry[0] == key).unwrap().clone();
        found[2].as_str().unwrap().to_owned()
    };
    assert_eq!(origin(&sandbox, "runtime"), file.canonicalize().unwrap().display().to_string());
    assert_eq!(origin(&sandbox, "listen"), "default");
    assert_eq!(origin(&sandbox, "home"), "$SLIPWAY_HOME");
    let log_line = "using the state folder in this process";
    assert!(
        sandbox.run(&["status"]).with_code(0).stderr.contains(log_line),
        "the log level comes from the project file"
    );
    assert!(
        !sandbox.run(&["status", "-q"]).with_code(0).stderr.contains(log_line),
        "a flag overrides the project file"
    );
    sandbox.set("SLIPWAY_LOG", "error");
    assert!(!sandbox.run(&["status"]).with_code(0).stderr.contains(log_line), "a variable overrides the project file");
    assert_eq!(origin(&sandbox, "log"), "$SLIPWAY_LOG");
}

#[test]
fn relative_xdg_folders_are_ignored() {
    let mut sandbox = Sandbox::new();
    sandbox.write("slipway/config.yaml", "server: http://evil.example\n");
    sandbox.write("evil/slipway/config.yaml", "server: http://evil.example\n");
    sandbox.write(".local/share/slipway/server.json", "");
    for folder in ["", "evil"] {
        sandbox.set("XDG_CONFIG_HOME", folder);
        sandbox.set("XDG_DATA_HOME", folder);
        let mut command = sandbox.command(&["config", "show", "-o", "json"]);
        let done = command.env_remove("SLIPWAY_HOME").output().unwrap();
        let text = String::from_utf8(done.stdout).unwrap();
        assert!(!text.contains("evil"), "{text}");
    }
    // Without a home folder, the state folder must not be below the current folder.
    let mut command = sandbox.command(&["config", "show", "-o", "json"]);
    let done = command.env_remove("SLIPWAY_HOME").env("HOME", "").output().unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let home = shown.as_array().unwrap().iter().find(|entry| entry[0] == "home").unwrap();
    assert!(home[1].as_str().unwrap().starts_with('/'), "{home}");
}

#[test]
fn passwords_in_urls_are_hidden() {
    let mut sandbox = Sandbox::new();
    sandbox.set("SLIPWAY_DATABASE", "postgres://me:hunter2@127.0.0.1:1/x");
    let shown = sandbox.run(&["config", "show", "-o", "json"]).with_code(0);
    assert!(shown.stdout.contains("postgres://me:") && !shown.stdout.contains("hunter2"), "{shown:?}");
    let failed = sandbox.run(&["status", "-vv"]).with_code(1);
    assert!(!failed.stderr.contains("hunter2"), "{failed:?}");
}
