//! Compares the SBOM and the findings of `scripts/supply-chain.py` with Cargo's own output.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn folder() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("slipway-supply-{}", slipway_core::ids::hex32()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn script(arguments: &[&str], database: &Path) -> Output {
    let script = root().join("scripts/supply-chain.py");
    Command::new("python3").arg(script).args(arguments).env("ADVISORY_DB", database).output().unwrap()
}

/// Whether `python3` can run the script, which needs Python 3.11 for TOML. Older systems may skip these tests; CI may not.
fn python_is_new_enough() -> bool {
    let is_new =
        Command::new("python3").args(["-c", "import tomllib"]).output().is_ok_and(|done| done.status.success());
    assert!(is_new || std::env::var_os("CI").is_none(), "CI needs Python 3.11 or newer");
    if !is_new {
        println!("skipped: Python 3.11 or newer is missing");
    }
    is_new
}

/// The packages of the binary as (name, version), from the output of `cargo tree`.
fn packages() -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for target in TARGETS {
        let tree = Command::new(env!("CARGO"))
            .args(["tree", "--locked", "-p", "slipway", "-e", "normal,build", "--prefix", "none", "--no-dedupe"])
            .args(["--target", target])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        for line in String::from_utf8(tree.stdout).unwrap().lines() {
            let mut words = line.split(' ');
            let (name, version) = (words.next().unwrap(), words.next().unwrap());
            found.insert((name.to_owned(), version.trim_start_matches('v').to_owned()));
        }
    }
    found
}

/// The checksums in `Cargo.lock`, keyed by package name and version.
fn checksums() -> BTreeMap<(String, String), String> {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let field = |package: &str, name: &str| {
        let begin = format!("{name} = \"");
        package.lines().find_map(|line| line.strip_prefix(&begin)?.strip_suffix('"').map(str::to_owned))
    };
    let packages = lock.split("[[package]]").skip(1);
    packages.filter_map(|p| Some(((field(p, "name")?, field(p, "version")?), field(p, "checksum")?))).collect()
}

#[test]
fn sbom_lists_every_package_of_the_binary_with_its_hash() {
    if !python_is_new_enough() {
        return;
    }
    let folder = folder();
    let file = folder.join("sbom.json");
    let done = script(&["sbom", "-o", file.to_str().unwrap()], &folder);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let sbom: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!((&sbom["bomFormat"], &sbom["specVersion"]), (&"CycloneDX".into(), &"1.6".into()));
    let components = sbom["components"].as_array().unwrap().iter().chain([&sbom["metadata"]["component"]]);
    let (rust, web): (Vec<_>, Vec<_>) = components.partition(|c| c["purl"].as_str().unwrap().starts_with("pkg:cargo/"));

    let name =
        |c: &serde_json::Value| (c["name"].as_str().unwrap().to_owned(), c["version"].as_str().unwrap().to_owned());
    let listed: BTreeSet<_> = rust.iter().map(|c| name(c)).collect();
    let packages = packages();
    assert!(packages.len() > 100, "{}", packages.len());
    assert_eq!(listed, packages);
    let checksums = checksums();
    for component in rust {
        let hash = component["hashes"][0]["content"].as_str();
        assert_eq!(hash, checksums.get(&name(component)).map(String::as_str), "{component}");
    }

    let lock = std::fs::read(root().join("web/package-lock.json")).unwrap();
    let lock: serde_json::Value = serde_json::from_slice(&lock).unwrap();
    let web: BTreeSet<_> = web.iter().map(|c| name(c)).collect();
    for (path, package) in lock["packages"].as_object().unwrap().iter().filter(|(path, _)| !path.is_empty()) {
        let package = (path.rsplit("node_modules/").next().unwrap(), package["version"].as_str().unwrap());
        assert!(web.contains(&(package.0.to_owned(), package.1.to_owned())), "{package:?}");
    }
    let refs: BTreeSet<_> =
        sbom["dependencies"].as_array().unwrap().iter().map(|d| &d["ref"]).map(ToString::to_string).collect();
    assert_eq!(refs.len(), packages.len(), "each package lists its dependencies");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn policy_violations_and_advisories_are_found() {
    if !python_is_new_enough() {
        return;
    }
    let folder = folder();
    let database = folder.join("advisory-db");
    let advisory = |versions: &str, informational: &str| {
        std::fs::create_dir_all(database.join("crates/rustls")).unwrap();
        let text = format!(
            "```toml\n[advisory]\nid = \"RUSTSEC-2000-0001\"\npackage = \"rustls\"\n{informational}\n[versions]\n{versions}\n```\n"
        );
        std::fs::write(database.join("crates/rustls/RUSTSEC-2000-0001.md"), text).unwrap();
    };
    let check = |arguments: &[&str]| {
        let done = script(&[&["check"], arguments].concat(), &database);
        (done.status.code().unwrap(), String::from_utf8(done.stdout).unwrap())
    };

    let (code, output) = check(&[]);
    assert!(code == 0 && output.contains("ADVISORIES WERE NOT CHECKED"), "{output}");
    let (code, output) = check(&["--require-advisories"]);
    assert!(code == 3 && output.contains("ADVISORIES WERE NOT CHECKED"), "{output}");

    advisory("patched = [\">= 999.0.0\"]", "");
    let (code, output) = check(&[]);
    assert!(code == 3 && output.contains("RUSTSEC-2000-0001 vulnerability"), "{output}");
    advisory("patched = [\"^0.21.1\", \">= 0.22.0\"]", "");
    let (code, output) = check(&["--require-advisories"]);
    assert!(code == 0 && !output.contains("RUSTSEC-2000-0001") && !output.contains("NOT CHECKED"), "{output}");
    advisory("patched = []", "informational = \"unmaintained\"");
    assert_eq!(check(&[]).0, 3, "an unmaintained direct dependency is a finding");
    std::fs::remove_file(database.join("crates/rustls/RUSTSEC-2000-0001.md")).unwrap();

    let policy = folder.join("deny.toml");
    let text = std::fs::read_to_string(root().join("deny.toml")).unwrap();
    let strict = text.replace("\"ISC\",", "").replace("\"aws-lc-sys\"", "\"rustls\"");
    std::fs::write(&policy, strict).unwrap();
    let (code, output) = check(&["--policy", policy.to_str().unwrap()]);
    assert!(code == 3 && output.contains("licence 'ISC' is not allowed") && output.contains(": banned: "), "{output}");
    assert!(!output.contains("licence 'MIT OR Apache-2.0' is not allowed"), "{output}");
    std::fs::remove_dir_all(folder).unwrap();
}
