//! `install`: Git hooks that keep data and Git in step, and the merge driver for `.dvc` files of folders.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::manifest::{Entry, Manifest};
use crate::model::{Digest, Meta};
use crate::project::Project;
use crate::scm::Git;
use crate::stage::{Output, Stage};
use crate::yaml::{self, Value};

/// The hooks of Git that are installed.
const HOOKS: &[&str] = &["post-checkout", "pre-commit", "pre-push"];
/// The configuration of the tool `pre-commit`.
const PRE_COMMIT_FILE: &str = ".pre-commit-config.yaml";

/// Installs the hooks, or with `pre_commit_tool` entries for the tool `pre-commit`, and the merge driver. They call `program`, for example
/// `slipway data`.
///
/// # Errors
/// [`DataError::Exists`] if there is such a hook; then none is changed.
pub fn install(project: &Project, program: &str, pre_commit_tool: bool) -> Result<(), DataError> {
    let Some(git) = &project.git else { return Ok(()) };
    git.configure("merge.dvc.name", "DVC merge driver")?;
    git.configure("merge.dvc.driver", &format!("{program} git-hook merge-driver --ancestor %O --our %A --their %B "))?;
    if pre_commit_tool { install_for_tool(git, program) } else { install_hooks(git, program) }
}

fn install_hooks(git: &Git, program: &str) -> Result<(), DataError> {
    let folder = git.hooks()?;
    if let Some(hook) = HOOKS.iter().map(|hook| folder.join(hook)).find(|hook| hook.exists()) {
        return Err(DataError::Exists(hook.display().to_string()));
    }
    std::fs::create_dir_all(&folder).map_err(DataError::io(&folder))?;
    let shell = std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|folder| folder.join("sh")).find(|shell| shell.is_file()));
    let shell = shell.unwrap_or_else(|| PathBuf::from("/bin/sh"));
    for hook in HOOKS {
        let path = folder.join(hook);
        let text = format!("#!{}\nexec {program} git-hook {hook} $@\n", shell.display());
        std::fs::write(&path, text).map_err(DataError::io(&path))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).map_err(DataError::io(&path))?;
    }
    Ok(())
}

/// Adds a local entry, which calls this program; DVC's entry would install DVC.
fn install_for_tool(git: &Git, program: &str) -> Result<(), DataError> {
    let file = git.root().join(PRE_COMMIT_FILE);
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(DataError::io(&file)(error)),
    };
    let invalid = |error: yaml::ParseError| DataError::file(&file, error.line, error.reason);
    let mut config =
        if text.trim().is_empty() { Value::Map(Vec::new()) } else { yaml::parse(&text).map_err(invalid)? };
    let Value::Map(entries) = &mut config else { return Err(DataError::file(&file, 1, "it is not a mapping")) };
    let entry = tool_entry(program);
    let repos = match entries.iter_mut().position(|(key, _)| key == "repos") {
        Some(i) => &mut entries[i].1,
        None => {
            entries.push(("repos".into(), Value::List(Vec::new())));
            let last = entries.len() - 1;
            &mut entries[last].1
        }
    };
    match repos {
        Value::List(items) if items.contains(&entry) => return Ok(()),
        Value::List(items) => items.push(entry),
        other => *other = Value::List(vec![entry]),
    }
    let text =
        if text.trim().is_empty() { yaml::emit(&config) } else { yaml::edit(&text, &config).map_err(invalid)? };
    slipway_core::files::replace(&file, text.as_bytes()).map_err(DataError::io(&file))
}

fn tool_entry(program: &str) -> Value {
    let hook = |hook: &&str| {
        Value::Map(vec![
            ("id".into(), Value::string(format!("data-{hook}"))),
            ("name".into(), Value::string(format!("data {hook}"))),
            ("entry".into(), Value::string(format!("{program} git-hook {hook}"))),
            ("language".into(), Value::string("system")),
            ("pass_filenames".into(), Value::Bool(false)),
            ("always_run".into(), Value::Bool(true)),
            ("stages".into(), Value::List(vec![Value::string(*hook)])),
        ])
    };
    let hooks = ["pre-commit", "pre-push", "post-checkout"];
    Value::Map(vec![
        ("repo".into(), Value::string("local")),
        ("hooks".into(), Value::List(hooks.iter().map(hook).collect())),
    ])
}

/// Whether a hook after `git checkout` with these arguments has work to do: a branch was checked out, and no rebase is under way.
pub fn is_branch_checkout(project: &Project, arguments: &[String]) -> bool {
    let flag = std::env::var("PRE_COMMIT_CHECKOUT_TYPE").ok().or_else(|| arguments.get(2).cloned());
    let is_rebase = project.git.as_ref().is_some_and(|git| git.root().join(".git/rebase-merge").is_dir());
    flag.as_deref() == Some("1") && !is_rebase
}

/// Merges three versions of the `.dvc` file of a folder; the result is written to `ours`.
///
/// # Errors
/// [`DataError::Invalid`] if both sides changed the same file, or it is not the file of a folder; `ours` is unchanged then.
pub fn merge(project: &Project, ancestor: &str, ours: &str, theirs: &str) -> Result<(), DataError> {
    let load = |path: &str| -> Result<Option<Stage>, DataError> {
        let path = project.absolute(path);
        let text = std::fs::read_to_string(&path).map_err(DataError::io(&path))?;
        // Git gives an empty file for a version that does not exist.
        if text.trim().is_empty() { Ok(None) } else { Stage::parse(&path, &project.root, text).map(Some) }
    };
    let (Some(mut our), Some(their)) = (load(ours)?, load(theirs)?) else {
        return Err(DataError::Invalid("unable to auto-merge: one side has no data".into()));
    };
    let old = load(ancestor)?;
    let (our_digest, our_files) = folder(project, &our)?;
    let (their_digest, their_files) = folder(project, &their)?;
    if our.outs[0].written != their.outs[0].written || our.outs[0].hash != their.outs[0].hash {
        return Err(DataError::Invalid("unable to auto-merge outputs with different options".into()));
    }
    let (old_digest, old_files) = match &old {
        Some(old) => folder(project, old).map(|(digest, files)| (Some(digest), files))?,
        None => (None, BTreeMap::new()),
    };
    if our_digest == their_digest || Some(their_digest) == old_digest {
        return Ok(());
    }
    let merged = merge_files(&old_files, &our_files, &their_files)?;
    let cache = project.cache_of(our.outs[0].hash);
    let entry = |(path, digest): (String, Digest)| {
        let size = std::fs::metadata(cache.path(&digest)).ok().map(|metadata| metadata.len());
        Entry { path, digest, size }
    };
    let manifest = Manifest::new(merged.into_iter().map(entry).collect());
    let out = &mut our.outs[0];
    let meta = Meta { size: manifest.size(), nfiles: Some(manifest.entries.len() as u64), is_exec: false };
    out.record(cache.put_manifest(&manifest)?, meta, Some(&manifest));
    our.save()
}

/// The digest and files of the folder that a stage tracks.
fn folder(project: &Project, stage: &Stage) -> Result<(Digest, BTreeMap<String, Digest>), DataError> {
    let not_a_folder = || DataError::Invalid("unable to auto-merge outputs that are not directories".into());
    let [Output { digest: Some(digest), hash, written, .. }] = stage.outs.as_slice() else {
        return Err(not_a_folder());
    };
    if !digest.is_dir {
        return Err(not_a_folder());
    }
    let manifest = project.cache_of(*hash).manifest(digest)?;
    let manifest = manifest.ok_or_else(|| DataError::NotInCache(vec![format!("{written} (its manifest {digest})")]))?;
    Ok((*digest, manifest.entries.into_iter().map(|entry| (entry.path, entry.digest)).collect()))
}

type Files = BTreeMap<String, Digest>;

/// The files with the changes of both sides.
fn merge_files(old: &Files, ours: &Files, theirs: &Files) -> Result<Files, DataError> {
    let paths: BTreeSet<&String> = old.keys().chain(ours.keys()).chain(theirs.keys()).collect();
    let (mut merged, mut conflicts) = (Files::new(), Vec::new());
    for path in paths {
        let (before, our, their) = (old.get(path), ours.get(path), theirs.get(path));
        let chosen = if our == their || their == before {
            our
        } else if our == before {
            their
        } else {
            conflicts.push(path.as_str());
            continue;
        };
        merged.extend(chosen.map(|digest| (path.clone(), *digest)));
    }
    if conflicts.is_empty() {
        return Ok(merged);
    }
    Err(DataError::Invalid(format!("unable to auto-merge the following paths:\n{}", conflicts.join("\n"))))
}

/// The folder of a project that contains `current`, if there is one: hooks do nothing elsewhere.
pub fn has_project(current: &Path) -> bool {
    crate::project::find_root(current).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(entries: &[(&str, u8)]) -> Files {
        entries.iter().map(|(path, n)| ((*path).to_owned(), Digest::of_file([*n; 16]))).collect()
    }

    #[test]
    fn changes_of_both_sides_are_merged() {
        let old = files(&[("same", 1), ("ours", 1), ("theirs", 1), ("gone", 1), ("both", 1)]);
        let ours = files(&[("same", 1), ("ours", 2), ("theirs", 1), ("gone", 1), ("both", 3), ("new", 4)]);
        let theirs = files(&[("same", 1), ("ours", 1), ("theirs", 2), ("both", 3), ("other", 5)]);
        let merged = merge_files(&old, &ours, &theirs).unwrap();
        let expected = files(&[("same", 1), ("ours", 2), ("theirs", 2), ("both", 3), ("new", 4), ("other", 5)]);
        assert_eq!(merged, expected);
    }

    #[test]
    fn different_changes_of_a_file_are_a_conflict() {
        let old = files(&[("a", 1), ("b", 1), ("c", 1)]);
        let error = merge_files(&old, &files(&[("a", 2), ("b", 1)]), &files(&[("a", 3), ("c", 2)])).unwrap_err();
        assert!(error.to_string().ends_with("paths:\na\nc"), "{error}");
    }
}
