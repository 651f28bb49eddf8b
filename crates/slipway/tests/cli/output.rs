//! Output and exit codes: data goes to stdout, messages to stderr, and the exit code tells the outcome.

use std::net::TcpListener;

use crate::support::{Sandbox, Server};

#[test]
fn exit_codes_match_the_outcome() {
    let sandbox = Sandbox::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let closed = format!("http://{closed}");
    let expected: &[(i32, &[&str], &str)] = &[
        (0, &["explain", "store.sql"], ""),
        (1, &["run", "show", "00000000000000000000000000000000"], "not found"),
        (2, &["nothing"], "unrecognized subcommand"),
        (2, &["up", "--listen", "nowhere"], "listen.invalid"),
        (2, &["explain", "no.code"], "explain.unknown"),
        (3, &["gpu", "watch", "--seconds", "1", "--fixture", "broken"], ""),
        (5, &["status", "--server", &closed], "server.unreachable"),
    ];
    for (code, words, message) in expected {
        let done = sandbox.run(words).with_code(*code);
        assert!(done.message().contains(message), "{words:?}: {done:?}");
        if matches!(code, 1 | 2 | 4 | 5) {
            assert!(done.stdout.is_empty(), "{words:?}: {done:?}");
        }
    }
}

#[test]
fn invalid_token_exits_with_code_4() {
    let mut sandbox = Sandbox::new();
    sandbox.write("tokens", "0123456789abcdef\n");
    sandbox.set("SLIPWAY_TOKEN", "0123456789abcdef");
    let mut server = Server::start_in(sandbox, &["--token-file", "tokens"]);
    server.run(&["status"]).with_code(0);
    server.sandbox.set("SLIPWAY_TOKEN", "not the right one");
    let done = server.run(&["status"]).with_code(4);
    assert!(done.stdout.is_empty() && done.message().contains("auth.required"), "{done:?}");
    assert!(!done.stderr.contains("not the right one") && !server.log().contains("0123456789abcdef"));
}

#[test]
fn error_reports_have_a_code_and_a_remedy() {
    let sandbox = Sandbox::new();
    let done = sandbox.run(&["up", "--listen", "nowhere"]).with_code(2);
    let topic = slipway_core::explain::find("listen.invalid").unwrap();
    let message = done.message();
    assert!(message.starts_with("listen.invalid") && message.contains("'nowhere'"), "{message}");
    assert!(message.contains(topic.remedy) && message.contains("`slipway explain listen.invalid`"), "{message}");
}

#[test]
fn all_output_formats_contain_the_same_codes() {
    let sandbox = Sandbox::new();
    let json = sandbox.run(&["explain", "-o", "json"]).with_code(0).json();
    let codes: Vec<&str> = json.as_array().unwrap().iter().map(|t| t[0].as_str().unwrap()).collect();
    assert!(codes.len() > 20);
    let names = sandbox.run(&["explain", "-o", "name"]).with_code(0).stdout;
    assert_eq!(names.lines().collect::<Vec<_>>(), codes);
    let table = sandbox.run(&["explain"]).with_code(0).stdout;
    assert!(table.lines().next().unwrap().starts_with("CODE"));
    assert!(table.lines().skip(1).zip(&codes).all(|(line, code)| line.starts_with(code)));
    let yaml = sandbox.run(&["explain", "-o", "yaml"]).with_code(0).stdout;
    assert!(codes.iter().all(|code| yaml.contains(code)));
}

#[test]
fn output_file_format_follows_its_extension() {
    let sandbox = Sandbox::new();
    let done = sandbox.run(&["explain", "-o", "new/topics.json"]).with_code(0);
    assert!(done.stdout.is_empty(), "{done:?}");
    let before = sandbox.read("new/topics.json");
    assert!(serde_json::from_str::<Vec<serde_json::Value>>(&before).unwrap().len() > 20);
    sandbox.run(&["explain", "-o", "topics.yaml"]).with_code(0);
    assert!(sandbox.read("topics.yaml").contains("config.project"));
    // A failing command does not change the file.
    sandbox.run(&["explain", "no.code", "-o", "new/topics.json"]).with_code(2);
    assert_eq!(sandbox.read("new/topics.json"), before);
    let done = sandbox.run(&["explain", "-o", "/proc/nowhere/x.json"]).with_code(1);
    assert!(
        done.message().contains("output.unwritable") && done.message().contains("/proc/nowhere/x.json"),
        "{done:?}"
    );
    let done = sandbox.run(&["explain", "-o", "x.txt"]).with_code(2);
    assert!(done.message().contains("table, json, yaml") && !sandbox.folder().join("x.txt").exists(), "{done:?}");
}

#[test]
fn completions_and_man_pages_are_generated() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(sandbox.run(&["completions", shell]).with_code(0).stdout.contains("slipway"), "{shell}");
    }
    sandbox.run(&["man", "--dir", "man"]).with_code(0);
    assert!(sandbox.read("man/slipway.1").contains(".TH slipway"));
    sandbox.write("file", "");
    assert!(sandbox.run(&["man", "--dir", "file"]).with_code(1).message().contains("output.unwritable"));
}
