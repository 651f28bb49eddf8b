//! Output and exit codes: data goes to stdout, messages to stderr, and the exit code tells the outcome.

use std::io::PipeWriter;
use std::net::TcpListener;
use std::process::Command;

use crate::support::{Running, Sandbox, Server, wait_until};

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

/// A pipe whose reader has stopped reading.
fn closed_pipe() -> PipeWriter {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer
}

#[test]
fn closed_pipes_do_not_change_the_outcome_of_a_command() {
    let mut sandbox = Sandbox::new();
    sandbox.set("SLIPWAY_LOG", "debug");
    sandbox.write("cluster.yaml", "kind: Nothing\n");
    let commands: &[&[&str]] = &[
        &["completions", "bash"],
        &["--help"],
        &["run", "ls", "--help"],
        &["help", "cluster", "plan"],
        &["--version"],
        &["nothing"],
        &["explain"],
        &["explain", "no.code"],
        &["config", "show"],
        &["run", "ls"],
        &["doctor"],
        &["cluster", "plan"],
        &["gpu", "ls", "--fixture", "h100x8"],
        &["gpu", "mig", "apply", "1g.10gb", "--gpus", "0", "--fixture", "a100x8"],
        &["gpu", "watch", "--seconds", "1", "--fixture", "broken"],
    ];
    for words in commands {
        let expected = sandbox.run(words).code;
        for (closes_stdout, closes_stderr) in [(true, false), (false, true), (true, true)] {
            let done = Running::start_with(sandbox.command(words), |command| {
                if closes_stdout {
                    command.stdout(closed_pipe());
                }
                if closes_stderr {
                    command.stderr(closed_pipe());
                }
            });
            let done = done.wait();
            assert_eq!(done.code, expected, "{words:?}: {done:?}");
            assert!(!done.stderr.contains("panicked") && !done.stderr.contains("roken pipe"), "{words:?}: {done:?}");
        }
    }
}

#[test]
fn full_disk_behind_stdout_fails_the_command() {
    let sandbox = Sandbox::new();
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let run = |words: &[&str]| {
        let redirect = |command: &mut Command| _ = command.stdout(full());
        Running::start_with(sandbox.command(words), redirect).wait().with_code(1)
    };
    for words in [&["explain"][..], &["completions", "bash"]] {
        let done = run(words);
        assert!(done.message().contains("output.unwritable"), "{done:?}");
    }
}

#[test]
fn server_outlives_its_log_pipe() {
    let mut sandbox = Sandbox::new();
    sandbox.set("SLIPWAY_LOG", "trace");
    let words = ["up", "--listen", "127.0.0.1:0", "--inference-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"];
    let _server = Running::start_with(sandbox.command(&words), |command| {
        command.stdout(closed_pipe()).stderr(closed_pipe());
    });
    wait_until("the server listens", || sandbox.home().join("server.json").exists().then_some(()));
    for _ in 0..3 {
        let status = sandbox.run(&["status", "-o", "json"]).with_code(0).json();
        assert_eq!(status["running"], true, "{status}");
    }
}

#[test]
fn followed_log_ends_when_its_reader_stops_reading() {
    let server = Server::start();
    let script = "for i in $(seq 1200); do echo $i; sleep 0.1; done";
    server.run(&["run", "submit", "--name", "endless", "--", "sh", "-c", script]).with_code(0);
    let words = ["run", "logs", "endless", "--follow"];
    let close = |command: &mut Command| _ = command.stdout(closed_pipe());
    let done = Running::start_with(server.sandbox.command(&words), close);
    assert!(done.wait().with_code(0).stderr.is_empty());
    let status = server.run(&["run", "ls", "--submitted", "-o", "json"]).with_code(0).json();
    let phase = status[0]["status"]["phase"].as_str().unwrap();
    assert!(["Pending", "Running"].contains(&phase), "it ended because the run ended: {status}");
    server.run(&["run", "rm", "endless", "--yes"]).with_code(0);
}
