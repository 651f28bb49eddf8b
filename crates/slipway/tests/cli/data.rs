//! Data stays whole when a command is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Number of times that a command is killed; `$KILL_ROUNDS` overrides it.
const ROUNDS: u64 = 6;
/// Number of files in the tracked folder.
const FILES: usize = 300;

fn slipway(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slipway"));
    command.arg("data").args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
    command.env("HOME", folder).env("XDG_CONFIG_HOME", folder.join("config")).env_remove("GIT_DIR");
    command
}

fn run(folder: &Path, arguments: &[&str]) {
    let output = slipway(folder, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The content of all files below a folder.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        for entry in std::fs::read_dir(&current).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Every object with the permissions of a complete one has the content of its name.
fn check_cache(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let cache = folder.join(".dvc/cache/files/md5");
    if !cache.exists() {
        return;
    }
    for (name, content) in contents(&cache) {
        let is_complete = std::fs::metadata(cache.join(&name)).unwrap().permissions().mode() & 0o777 == 0o444;
        let is_object = !name.contains(".slipway-");
        if is_complete && is_object {
            use slipway_data::manifest::digest_of;
            let digest = digest_of(&content).to_string();
            assert_eq!(digest.trim_end_matches(".dir"), name.replace('/', "").trim_end_matches(".dir"), "{name}");
        }
    }
}

fn rounds() -> u64 {
    std::env::var("KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS)
}

/// Starts a command and kills it after a time that differs from round to round.
fn kill(folder: &Path, arguments: &[&str], round: u64) {
    let mut child = slipway(folder, arguments).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(5 + round * 17 % 180));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Every file of a remote with the name of an object has its content. Returns the names of the objects.
fn check_remote(store: &Path) -> BTreeSet<String> {
    let objects = store.join("files/md5");
    let found = if objects.exists() { contents(&objects) } else { BTreeMap::new() };
    let is_object = |name: &str| name.trim_end_matches(".dir").bytes().all(|b| b.is_ascii_hexdigit());
    let named = found.into_iter().map(|(path, content)| (path.replace('/', ""), content));
    let objects = named.filter(|(name, _)| is_object(name)).inspect(|(name, content)| {
        let digest = slipway_data::manifest::digest_of(content).to_string();
        assert_eq!(digest.trim_end_matches(".dir"), name.trim_end_matches(".dir"));
    });
    objects.map(|(name, _)| name).collect()
}

#[test]
fn killed_transfers_and_collections_lose_nothing() {
    let sandbox = tempfile::tempdir().unwrap();
    let folder = sandbox.path();
    let (data, cache, store) = (folder.join("data"), folder.join(".dvc/cache"), folder.join("store"));
    run(folder, &["init", "--no-scm"]);
    run(folder, &["remote", "add", "-d", "store", store.to_str().unwrap()]);
    std::fs::create_dir_all(data.join("sub")).unwrap();
    for round in 0..rounds() {
        for i in 0..FILES {
            std::fs::write(data.join("sub").join(i.to_string()), format!("{round} {i} ").repeat(1 + i * 20)).unwrap();
        }
        std::fs::write(data.join("large"), vec![u8::try_from(round % 251).unwrap(); 3 << 20]).unwrap();
        let expected = contents(&data);
        run(folder, &["add", "data"]);

        kill(folder, &["push"], round);
        check_remote(&store);
        run(folder, &["push"]);
        check_remote(&store);

        std::fs::remove_dir_all(&data).unwrap();
        std::fs::remove_dir_all(&cache).unwrap();
        kill(folder, &["pull"], round);
        check_cache(folder);
        if data.exists() {
            for (name, content) in contents(&data) {
                assert_eq!(expected.get(&name), Some(&content), "{name} is not whole");
            }
        }
        run(folder, &["pull"]);
        assert_eq!(contents(&data), expected);

        // Versions of earlier rounds are in the remote, and now one is in the cache, too.
        std::fs::write(data.join("large"), "another version").unwrap();
        run(folder, &["commit", "--force", "data"]);
        let current = contents(&data);
        for scope in [&["gc", "--workspace", "--force"][..], &["gc", "--workspace", "--cloud", "--force"]] {
            run(folder, &["push"]);
            kill(folder, scope, round);
            run(folder, scope);
            check_cache(folder);
            std::fs::remove_dir_all(&data).unwrap();
            run(folder, &["checkout"]);
            assert_eq!(contents(&data), current);
        }
        let kept = check_remote(&store);
        let names = contents(&cache.join("files/md5")).into_keys().map(|name| name.replace('/', ""));
        assert_eq!(kept, names.collect(), "the remote has what the cache has");
    }
}

#[test]
fn killed_commands_leave_workspace_and_cache_whole() {
    let rounds = rounds();
    let sandbox = tempfile::tempdir().unwrap();
    let folder = sandbox.path();
    run(folder, &["init", "--no-scm"]);
    let data = folder.join("data");
    std::fs::create_dir_all(data.join("sub")).unwrap();
    let write = |version: u64| {
        for i in 0..FILES {
            let name = if i % 2 == 0 { format!("f{i}") } else { format!("sub/f{i}") };
            std::fs::write(data.join(name), format!("{version} {i} ").repeat(1 + i * 20)).unwrap();
        }
        std::fs::write(data.join("large"), vec![u8::try_from(version % 251).unwrap(); 3 << 20]).unwrap();
    };
    for round in 0..rounds {
        write(round);
        let expected = contents(&data);
        kill(folder, &["add", "data"], round);
        assert_eq!(contents(&data), expected, "add must not change the data");
        check_cache(folder);
        run(folder, &["add", "data"]);
        check_cache(folder);
        std::fs::remove_dir_all(&data).unwrap();
        kill(folder, &["checkout"], round);
        if data.exists() {
            for (name, content) in contents(&data) {
                assert_eq!(expected.get(&name), Some(&content), "{name} is not whole");
            }
        }
        check_cache(folder);
        run(folder, &["checkout"]);
        assert_eq!(contents(&data), expected);
    }
    let output = slipway(folder, &["status", "--json"]).stdout(Stdio::piped()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{}\n");
}

#[test]
fn a_killed_run_of_a_pipeline_is_started_again() {
    let rounds = rounds();
    let sandbox = tempfile::tempdir().unwrap();
    let folder = sandbox.path();
    run(folder, &["init", "--no-scm"]);
    let pipeline = "stages:\n  each:\n    foreach: [a, b]\n    do:\n      cmd: cat in > ${item}.out\n      deps: [in]\n      outs: ['${item}.out']\n  all:\n    cmd: mkdir -p all && cp a.out b.out all\n    deps: [a.out, b.out]\n    outs: [all]\n";
    std::fs::write(folder.join("dvc.yaml"), pipeline).unwrap();
    for round in 0..rounds {
        std::fs::write(folder.join("in"), format!("{round}\n")).unwrap();
        let mut child = slipway(folder, &["repro", "-j", "2"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(5 + round * 17 % 90));
        child.kill().unwrap();
        child.wait().unwrap();
        check_cache(folder);
        run(folder, &["repro", "-j", "2"]);
        check_cache(folder);
        assert_eq!(std::fs::read_to_string(folder.join("all/b.out")).unwrap(), format!("{round}\n"));
        let output = slipway(folder, &["status", "--json"]).stdout(Stdio::piped()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "{}\n");
    }
}

/// A cloned project must not write to places outside of it through a symbolic link.
#[test]
fn checkout_through_a_link_out_of_the_project_needs_force() {
    let folder = tempfile::tempdir().unwrap();
    let (project, outside) = (folder.path().join("project"), folder.path().join("outside"));
    std::fs::create_dir_all(project.join("data/sub")).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(project.join("data/sub/a"), "a").unwrap();
    run(&project, &["init", "--no-scm"]);
    run(&project, &["add", "data"]);
    let checkout = |arguments: &[&str]| slipway(&project, &[&["checkout"], arguments].concat()).output().unwrap();
    for (link, target) in [("data", &outside), ("data/sub", &outside)] {
        let link = project.join(link);
        std::fs::remove_dir_all(&link).unwrap();
        std::os::unix::fs::symlink(target, &link).unwrap();
        let refused = checkout(&[]);
        let message = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && message.contains("data.linked_out"), "{message}");
        assert!(contents(&outside).is_empty());
        std::fs::remove_file(&link).unwrap();
        assert!(checkout(&[]).status.success());
        assert_eq!(std::fs::read(project.join("data/sub/a")).unwrap(), b"a");
    }
    // A link that stays in the project is the user's own arrangement.
    std::fs::rename(project.join("data"), project.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", project.join("data")).unwrap();
    std::fs::remove_file(project.join("elsewhere/sub/a")).unwrap();
    assert!(checkout(&[]).status.success());
    assert_eq!(std::fs::read(project.join("elsewhere/sub/a")).unwrap(), b"a");
    std::fs::remove_file(project.join("data")).unwrap();
    std::os::unix::fs::symlink(&outside, project.join("data")).unwrap();
    assert!(checkout(&["--force"]).status.success());
    assert_eq!(std::fs::read(outside.join("sub/a")).unwrap(), b"a");
}

/// Runs Git in a folder.
fn git(folder: &Path, arguments: &[&str]) {
    let mut command = Command::new("git");
    command.arg("-C").arg(folder).args(["-c", "user.name=n", "-c", "user.email=n@example.invalid"]);
    assert!(command.args(arguments).status().unwrap().success(), "{arguments:?}");
}

/// Replaces the `.dvc` file of a project by one with this output.
fn track(project: &Path, path: &str, md5: &str) {
    let text = format!("outs:\n- md5: {md5}\n  isexec: true\n  hash: md5\n  path: {path}\n");
    std::fs::write(project.join("evil.dvc"), text).unwrap();
}

/// A cloned project must not put programs where Git or DVC run them, and its remote must not either.
#[test]
fn nothing_is_put_into_folders_of_git_and_dvc() {
    const HOOK: &str = "3e2b31c72181b87149ff995e7202c0e3";
    let folder = tempfile::tempdir().unwrap();
    let project = folder.path().join("project");
    std::fs::create_dir(&project).unwrap();
    git(&project, &["init", "--quiet"]);
    run(&project, &["init"]);
    let object = |name: &str| {
        let path = project.join(".dvc/cache/files/md5").join(&name[..2]).join(&name[2..]);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    std::fs::write(object(HOOK), "#!/bin/sh\n").unwrap();
    let lists = |path: &str, name: &str| {
        let text = format!("[{{\"md5\": \"{HOOK}\", \"relpath\": \"{path}\"}}]");
        std::fs::write(object(name), text).unwrap();
        // A cache takes what is read-only as verified.
        std::fs::set_permissions(object(name), Permissions::from_mode(0o444)).unwrap();
    };
    let (nested, below_link) = ("eade5ea678b0a9ddc897b3db09c5bc5a.dir", "ae7d3f30f76ec19e092998e2cc95737d.dir");
    lists("sub/.git/hooks/evil", nested);
    lists("hooks/evil", below_link);
    std::os::unix::fs::symlink(".git", project.join("link")).unwrap();
    std::os::unix::fs::symlink(".git/hooks", project.join("hooks")).unwrap();
    let fails = |arguments: &[&str], words: &str| {
        let done = slipway(&project, arguments).output().unwrap();
        let message = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && message.contains(words), "{arguments:?}: {message}");
        assert!(!project.join(".git/hooks/evil").exists() && !project.join("data/sub/.git").exists());
    };
    for path in [".git/hooks/evil", "sub/.git/hooks/evil", ".dvc/config.local", ".hg/hgrc", ".", "x/../.git/hooks/evil"]
    {
        track(&project, path, HOOK);
        for arguments in [&["checkout"][..], &["checkout", "--force"], &["pull"], &["status"]] {
            fails(arguments, "data.file");
        }
    }
    for (path, md5) in [("hooks/evil", HOOK), ("link/hooks/evil", HOOK), ("link", below_link), ("data", nested)] {
        track(&project, path, md5);
        for arguments in [&["checkout"][..], &["checkout", "--force"]] {
            fails(arguments, "data.reserved");
        }
    }
    track(&project, "data", nested);
    git(&project, &["add", "--all"]);
    git(&project, &["commit", "--quiet", "--message", "first"]);
    let place = project.to_str().unwrap();
    fails(&["get", place, "data", "--out", "copy"], "data.reserved");
    fails(&["import", place, "data", "--out", ".git/hooks/evil"], "data.reserved");
    assert!(!project.join("copy").exists());
}

/// The record of what `checkout` created may come with a cloned project.
#[test]
fn checkout_removes_nothing_that_a_cloned_record_names() {
    let folder = tempfile::tempdir().unwrap();
    let outer = folder.path().join("outer");
    let (project, other) = (outer.join("project"), folder.path().join("other"));
    for path in [&project, &other] {
        std::fs::create_dir_all(path).unwrap();
    }
    run(&project, &["init", "--no-scm"]);
    std::fs::create_dir_all(project.join("kept/.git")).unwrap();
    let nothing = "d41d8cd98f00b204e9800998ecf8427e";
    let names = ["..", other.to_str().unwrap(), "kept", "../../other"];
    let record: BTreeMap<&str, &str> = names.into_iter().map(|name| (name, nothing)).collect();
    std::fs::create_dir_all(project.join(".dvc/tmp")).unwrap();
    std::fs::write(project.join(".dvc/tmp/slipway-links.json"), serde_json::to_vec(&record).unwrap()).unwrap();
    for arguments in [&["checkout"][..], &["checkout", "--force"]] {
        run(&project, arguments);
        assert!(other.exists() && project.join("kept/.git").exists() && project.join(".dvc/config").exists());
    }
}
