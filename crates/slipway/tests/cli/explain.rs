//! The catalogue of error codes matches the codes that the sources use.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use slipway_core::explain::CATALOGUE;

use crate::support::Sandbox;

/// The Rust sources of all crates, without tests and without the catalogue.
fn sources() -> Vec<String> {
    let mut texts = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("..")];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        for path in entries.collect::<Vec<PathBuf>>() {
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !matches!(name, "tests" | "generated" | "target") {
                folders.push(path);
            } else if name.ends_with(".rs") && !path.ends_with("core/src/explain.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                texts.push(text.split("#[cfg(test)]").next().unwrap().to_owned());
            }
        }
    }
    texts
}

/// String literals that look like an error code: `area.some_words`, where `area` is used in the catalogue.
fn literals(texts: &[String]) -> BTreeSet<&str> {
    let areas: BTreeSet<&str> = CATALOGUE.iter().filter_map(|t| t.code.split('.').next()).collect();
    let is_code = |text: &&str| {
        let word = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        text.split_once('.').is_some_and(|(area, rest)| areas.contains(area) && word(rest))
    };
    texts.iter().flat_map(|text| text.split('"')).filter(is_code).collect()
}

#[test]
fn catalogue_contains_exactly_the_used_codes() {
    let texts = sources();
    let used = literals(&texts);
    // Literals that look like codes but are node labels or file names.
    let others = [
        "gpu.clique",
        "gpu.family",
        "gpu.machine",
        "gpu.mode",
        "node.db",
        "pipeline.yaml",
        "server.json",
        "cluster.local",
        "cluster.yaml",
        "config.json",
        "config.local",
        "config.toml",
        "config.yaml",
        "tls.crt",
        "tls.key",
    ];
    let known: BTreeSet<&str> = CATALOGUE.iter().map(|t| t.code).collect();
    let unexplained: Vec<_> = used.difference(&known).filter(|code| !others.contains(code)).collect();
    let unused: Vec<_> = known.difference(&used).collect();
    assert!(unexplained.is_empty(), "not in the catalogue of core/src/explain.rs: {unexplained:?}");
    assert!(unused.is_empty(), "in the catalogue, but not used: {unused:?}");
}

#[test]
fn explain_prints_the_catalogue_entry_to_stdout() {
    let sandbox = Sandbox::new();
    let all = sandbox.run(&["explain", "-o", "name"]).with_code(0).stdout;
    let expected: Vec<_> = CATALOGUE.iter().map(|topic| topic.code).collect();
    assert_eq!(all.lines().collect::<Vec<_>>(), expected);
    for topic in CATALOGUE.iter().step_by(9) {
        let done = sandbox.run(&["explain", topic.code]).with_code(0);
        assert_eq!(done.stdout, format!("{}\n\n{}\n\n{}\n", topic.code, topic.meaning, topic.remedy));
        assert!(done.stderr.is_empty(), "{done:?}");
    }
    let done = sandbox.run(&["explain", "no.code"]).with_code(2);
    assert!(done.stdout.is_empty() && done.message().contains("explain.unknown"), "{done:?}");
}
