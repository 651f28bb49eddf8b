//! stdout is data and stderr is talk; exit codes say how it went.

use std::net::TcpListener;

use crate::support::{Place, Server};

#[test]
fn exit_codes_say_how_it_went() {
    let place = Place::with_simulated_gpus();
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
    for (code, words, said) in expected {
        let done = place.run(words).with_code(*code);
        assert!(done.talk().contains(said), "{words:?}: {done:?}");
        if matches!(code, 1 | 2 | 4 | 5) {
            assert!(done.stdout.is_empty(), "{words:?}: {done:?}");
        }
    }
}

#[test]
fn whoever_has_no_token_is_not_allowed() {
    let mut place = Place::new();
    place.write("tokens", "0123456789abcdef\n");
    place.set("SLIPWAY_TOKEN", "0123456789abcdef");
    let mut server = Server::start_in(place, &["--token-file", "tokens"]);
    server.run(&["status"]).with_code(0);
    server.place.set("SLIPWAY_TOKEN", "not the right one");
    let done = server.run(&["status"]).with_code(4);
    assert!(done.stdout.is_empty() && done.talk().contains("auth.required"), "{done:?}");
    assert!(!done.stderr.contains("not the right one") && !server.log().contains("0123456789abcdef"));
}

#[test]
fn an_error_has_a_code_and_what_helps() {
    let place = Place::new();
    let done = place.run(&["up", "--listen", "nowhere"]).with_code(2);
    let topic = slipway_core::explain::find("listen.invalid").unwrap();
    let talk = done.talk();
    assert!(talk.starts_with("listen.invalid") && talk.contains("'nowhere'"), "{talk}");
    assert!(talk.contains(topic.remedy) && talk.contains("`slipway explain listen.invalid`"), "{talk}");
}

#[test]
fn every_form_of_output_holds_the_same() {
    let place = Place::new();
    let json = place.run(&["explain", "-o", "json"]).with_code(0).json();
    let codes: Vec<&str> = json.as_array().unwrap().iter().map(|t| t[0].as_str().unwrap()).collect();
    assert!(codes.len() > 20);
    let names = place.run(&["explain", "-o", "name"]).with_code(0).stdout;
    assert_eq!(names.lines().collect::<Vec<_>>(), codes);
    let table = place.run(&["explain"]).with_code(0).stdout;
    assert!(table.lines().next().unwrap().starts_with("CODE"));
    assert!(table.lines().skip(1).zip(&codes).all(|(line, code)| line.starts_with(code)));
    let yaml = place.run(&["explain", "-o", "yaml"]).with_code(0).stdout;
    assert!(codes.iter().all(|code| yaml.contains(code)));
}

#[test]
fn a_file_is_printed_into_as_it_ends() {
    let place = Place::new();
    let done = place.run(&["explain", "-o", "new/topics.json"]).with_code(0);
    assert!(done.stdout.is_empty(), "{done:?}");
    let before = place.read("new/topics.json");
    assert!(serde_json::from_str::<Vec<serde_json::Value>>(&before).unwrap().len() > 20);
    place.run(&["explain", "-o", "topics.yaml"]).with_code(0);
    assert!(place.read("topics.yaml").contains("config.project"));
    // A command that fails leaves what is there.
    place.run(&["explain", "no.code", "-o", "new/topics.json"]).with_code(2);
    assert_eq!(place.read("new/topics.json"), before);
    let done = place.run(&["explain", "-o", "/proc/nowhere/x.json"]).with_code(1);
    assert!(done.talk().contains("output.unwritable") && done.talk().contains("/proc/nowhere/x.json"), "{done:?}");
    let done = place.run(&["explain", "-o", "x.txt"]).with_code(2);
    assert!(done.talk().contains("table, json, yaml") && !place.folder().join("x.txt").exists(), "{done:?}");
}

#[test]
fn shells_get_completions_and_man_gets_pages() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(place.run(&["completions", shell]).with_code(0).stdout.contains("slipway"), "{shell}");
    }
    place.run(&["man", "--dir", "man"]).with_code(0);
    assert!(place.read("man/slipway.1").contains(".TH slipway"));
    place.write("file", "");
    assert!(place.run(&["man", "--dir", "file"]).with_code(1).talk().contains("output.unwritable"));
}
