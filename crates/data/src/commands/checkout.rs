//! `checkout`: makes the workspace as recorded, from the cache. Data that is not in the cache is not removed without confirmation.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{Talk, relink};
use crate::error::DataError;
use crate::links::{Links, fingerprint, fingerprint_of};
use crate::manifest::Entry;
use crate::model::Digest;
use crate::project::Project;
use crate::snapshot::{self, Snapshot};
use crate::stage::Output;
use crate::staging::set_executable;
use crate::stat::Stat;

/// How to check out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Remove data that is not in the cache.
    pub force: bool,
    /// Recreate the links from the cache.
    pub relink: bool,
    /// The targets are folders with stages.
    pub recursive: bool,
    /// It is not an error if the cache lacks data.
    pub allow_missing: bool,
}

/// What changed in the workspace.
#[derive(Debug, Default)]
pub struct Report {
    /// Outputs that were created; folders end with `/`.
    pub added: Vec<String>,
    /// Outputs that changed.
    pub modified: Vec<String>,
    /// Outputs that are no longer tracked and were removed.
    pub deleted: Vec<String>,
    /// Number of files that were added, modified and deleted.
    pub files: [u64; 3],
    /// Outputs that the cache lacks.
    pub failed: Vec<String>,
}

/// The change of an output.
struct Plan<'a> {
    out: &'a Output,
    /// The path that is changed: the output, or a part of it.
    path: PathBuf,
    /// Its target, sorted by path; for a file a single entry with an empty path.
    target: Vec<Entry>,
    is_folder: bool,
    old: Option<Snapshot>,
    /// Paths in the workspace that are not in the target.
    removed: Vec<(String, Digest)>,
    /// Entries of the target that the workspace has with another content.
    replaced: Vec<(Entry, Digest)>,
    created: Vec<Entry>,
}

/// Makes the targets, or all outputs, as recorded.
///
/// # Errors
/// [`DataError::Unsaved`] and [`DataError::LinkedOut`] before anything is changed. The outputs that the cache lacks are in the report.
pub fn checkout(
    project: &mut Project,
    targets: &[String],
    options: Options,
    talk: &dyn Talk,
) -> Result<Report, DataError> {
    let mut stages = project.stages()?;
    super::partial::complete(project, &mut stages);
    let mut report = Report::default();
    let mut links = Links::open(&project.tmp());
    if targets.is_empty() {
        let used: BTreeSet<PathBuf> =
            stages.iter().flat_map(|stage| &stage.outs).filter_map(|out| out.path.clone()).collect();
        for path in links.unused(project, &used)? {
            report.deleted.push(show(project, &path));
            report.files[2] += 1;
            links.remove(project, &path)?;
        }
    }
    let mut plans = Vec::new();
    for selected in project.select(&stages, targets, options.recursive)? {
        report.failed.extend(super::partial::missing(selected.stage).map(|path| project.display(path)));
        for (out, part) in selected.outputs() {
            match plan(project, out, part)? {
                Planned::Plan(plan) => plans.push(*plan),
                Planned::Missing(path) => report.failed.push(project.display(&path)),
                Planned::Nothing => {}
            }
        }
    }
    if !options.force {
        let outside = linked_out(project, &plans)?;
        if !outside.is_empty() {
            return Err(DataError::LinkedOut(outside));
        }
        let unsaved: Vec<PathBuf> = plans
            .par_iter()
            .map(|plan| unsaved(project, plan))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .flatten()
            .collect();
        confirm_unsaved(unsaved, talk)?;
    }
    for plan in &plans {
        let fingerprint = apply(project, plan, options, &mut report)?;
        links.record(project, &plan.path, fingerprint);
    }
    links.save()?;
    project.state.save()?;
    for list in [&mut report.added, &mut report.modified, &mut report.deleted] {
        list.sort_by_key(|path| (!path.ends_with('/'), path.clone()));
    }
    if options.allow_missing {
        report.failed.clear();
    }
    Ok(report)
}

/// Puts outputs from the cache into the workspace, in the place of what is there.
///
/// # Errors
/// [`DataError::NotInCache`] if the cache lacks data; [`DataError::LinkedOut`] if a link leads out of the project.
pub(crate) fn restore_outputs(project: &Project, outs: &[Output]) -> Result<(), DataError> {
    let mut plans = Vec::new();
    for out in outs {
        match plan(project, out, None)? {
            Planned::Plan(plan) => plans.push(*plan),
            Planned::Missing(path) => return Err(DataError::NotInCache(vec![project.display(&path)])),
            Planned::Nothing => {}
        }
    }
    let outside = linked_out(project, &plans)?;
    if !outside.is_empty() {
        return Err(DataError::LinkedOut(outside));
    }
    let mut links = Links::open(&project.tmp());
    let mut report = Report::default();
    for plan in &plans {
        let fingerprint = apply(project, plan, Options::default(), &mut report)?;
        links.record(project, &plan.path, fingerprint);
    }
    links.save()
}

/// Makes a single output as recorded, from the cache.
///
/// # Errors
/// As [`checkout`]; [`DataError::NotInCache`] if the cache lacks data of it.
pub(super) fn restore(project: &Project, out: &Output, force: bool, talk: &dyn Talk) -> Result<(), DataError> {
    let plan = match plan(project, out, None)? {
        Planned::Plan(plan) => plan,
        Planned::Missing(path) => return Err(DataError::NotInCache(vec![project.display(&path)])),
        Planned::Nothing => return Ok(()),
    };
    if !force {
        let outside = linked_out(project, std::slice::from_ref(&*plan))?;
        if !outside.is_empty() {
            return Err(DataError::LinkedOut(outside));
        }
        confirm_unsaved(unsaved(project, &plan)?, talk)?;
    }
    let fingerprint = apply(project, &plan, Options { force, ..Options::default() }, &mut Report::default())?;
    let mut links = Links::open(&project.tmp());
    links.record(project, &plan.path, fingerprint);
    links.save()
}

/// Asks before data that is not saved is removed.
fn confirm_unsaved(unsaved: Vec<PathBuf>, talk: &dyn Talk) -> Result<(), DataError> {
    let question = || format!("{}\nRemove them?", DataError::Unsaved(unsaved.clone()));
    if unsaved.is_empty() || talk.confirm(&question()) { Ok(()) } else { Err(DataError::Unsaved(unsaved)) }
}

/// Removes an output from the workspace, after a prompt if it is not saved in the cache.
///
/// # Errors
/// [`DataError::Unsaved`] if the removal is not confirmed.
pub(super) fn discard(project: &Project, out: &Output, talk: &dyn Talk) -> Result<(), DataError> {
    let Some(path) = &out.path else { return Ok(()) };
    let Some(old) = snapshot::take(path, &project.rules, &project.state, out.hash, None)? else { return Ok(()) };
    let mut lost = Vec::new();
    for (below, digest) in old.entries() {
        if !project.cache_of(out.hash).contains(&digest)? {
            lost.push(join(path, below));
        }
    }
    confirm_unsaved(lost, talk)?;
    super::edit::remove_path(path)
}

enum Planned<'a> {
    Plan(Box<Plan<'a>>),
    Missing(PathBuf),
    Nothing,
}

/// The change of an output, or of a part of it.
fn plan<'a>(project: &Project, out: &'a Output, part: Option<&Path>) -> Result<Planned<'a>, DataError> {
    let (Some(root), Some(digest), true) = (&out.path, out.digest, out.cached) else { return Ok(Planned::Nothing) };
    let cache = project.cache_of(out.hash);
    let path = part.unwrap_or(root).to_owned();
    let (mut target, mut is_folder) = if digest.is_dir {
        match cache.manifest(&digest) {
            Ok(Some(manifest)) => (manifest.entries, true),
            Ok(None) | Err(DataError::File { .. }) => return Ok(Planned::Missing(root.clone())),
            Err(error) => return Err(error),
        }
    } else {
        (vec![Entry { path: String::new(), digest, size: out.meta.size }], false)
    };
    if let Some(part) = part {
        let prefix = crate::config::relative_path(part, root).to_string_lossy().into_owned();
        if let Some(entry) = target.iter().find(|entry| entry.path == prefix) {
            target = vec![Entry { path: String::new(), ..entry.clone() }];
            is_folder = false;
        } else {
            let below = |entry: &Entry| entry.path.strip_prefix(&prefix)?.strip_prefix('/').map(str::to_owned);
            target =
                target.iter().filter_map(|entry| below(entry).map(|path| Entry { path, ..entry.clone() })).collect();
            if target.is_empty() {
                return Err(DataError::Target(project.display(part)));
            }
        }
    }
    let old = snapshot::take(&path, &project.rules, &project.state, out.hash, None)?;
    let mut plan =
        Plan { out, path, target, is_folder, old, removed: Vec::new(), replaced: Vec::new(), created: Vec::new() };
    compare(&mut plan);
    let needed: Vec<Digest> = needed(&plan).map(|entry| entry.digest).collect();
    let is_complete = cache.contains_all(&needed)?.into_iter().all(|exists| exists);
    Ok(if is_complete { Planned::Plan(Box::new(plan)) } else { Planned::Missing(root.clone()) })
}

/// Compares the workspace with the target; both are sorted by path.
fn compare(plan: &mut Plan<'_>) {
    let old = plan.old.as_ref().map(Snapshot::entries).unwrap_or_default();
    let wrong_permission = |snapshot: &Snapshot| {
        !plan.is_folder
            && snapshot.meta.is_exec != plan.out.meta.is_exec
            && plan.path == *plan.out.path.as_ref().unwrap_or(&plan.path)
    };
    let exec_differs = plan.old.as_ref().is_some_and(wrong_permission);
    let mut old = old.into_iter().peekable();
    for entry in &plan.target {
        while let Some((path, digest)) = old.next_if(|(path, _)| *path < entry.path.as_str()) {
            plan.removed.push((path.to_owned(), digest));
        }
        match old.next_if(|(path, _)| *path == entry.path.as_str()) {
            Some((_, digest)) if digest == entry.digest && !exec_differs => {}
            Some((_, digest)) => plan.replaced.push((entry.clone(), digest)),
            None => plan.created.push(entry.clone()),
        }
    }
    plan.removed.extend(old.map(|(path, digest)| (path.to_owned(), digest)));
}

/// The files that the plan removes or replaces and that the cache lacks.
fn unsaved(project: &Project, plan: &Plan<'_>) -> Result<Vec<PathBuf>, DataError> {
    let cache = project.cache_of(plan.out.hash);
    let replaced = plan.replaced.iter().map(|(entry, digest)| (entry.path.as_str(), digest));
    let mut found = Vec::new();
    for (path, digest) in plan.removed.iter().map(|(path, digest)| (path.as_str(), digest)).chain(replaced) {
        if !cache.contains(digest)? {
            found.push(join(&plan.path, path));
        }
    }
    Ok(found)
}

/// The folders outside of the project that the plans would change through links in the project.
fn linked_out(project: &Project, plans: &[Plan<'_>]) -> Result<Vec<PathBuf>, DataError> {
    let root = std::fs::canonicalize(&project.root).map_err(DataError::io(&project.root))?;
    let mut folders = BTreeSet::new();
    for plan in plans {
        let replaced = plan.replaced.iter().map(|(entry, _)| entry);
        let changed = plan.created.iter().chain(replaced).map(|entry| entry.path.as_str());
        for path in changed.chain(plan.removed.iter().map(|(path, _)| path.as_str())) {
            folders.extend(join(&plan.path, path).parent().map(Path::to_owned));
        }
    }
    let leads_out = |folder: &PathBuf| {
        // A folder that does not exist will be created in the nearest one that does.
        let found = folder.ancestors().find_map(|path| std::fs::canonicalize(path).ok())?;
        (!found.starts_with(&root)).then_some(found)
    };
    let outside: BTreeSet<PathBuf> = folders.iter().filter_map(leads_out).collect();
    Ok(outside.into_iter().collect())
}

fn join(root: &Path, path: &str) -> PathBuf {
    if path.is_empty() { root.to_owned() } else { root.join(path) }
}

/// The path for the user, with `/` after a folder.
fn show(project: &Project, path: &Path) -> String {
    let shown = project.display(path);
    if path.is_dir() { format!("{shown}/") } else { shown }
}

/// Changes the workspace, and returns the fingerprint of the output for [`Links`].
fn apply(
    project: &Project,
    plan: &Plan<'_>,
    options: Options,
    report: &mut Report,
) -> Result<Option<String>, DataError> {
    let changes = !plan.removed.is_empty() || !plan.replaced.is_empty() || !plan.created.is_empty();
    let existed = plan.old.is_some();
    for (path, _) in &plan.removed {
        let full = join(&plan.path, path);
        match std::fs::remove_file(&full) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(DataError::io(&full)(error)),
            _ => {}
        }
    }
    if plan.is_folder {
        let kept: BTreeSet<&Path> =
            plan.target.iter().flat_map(|entry| Path::new(&entry.path).ancestors().skip(1)).collect();
        report.files[2] += remove_empty_folders(&plan.path, Path::new(""), &kept)?;
    } else if plan.path.is_dir() && existed {
        remove_empty_folders(&plan.path, Path::new(""), &BTreeSet::new())?;
        std::fs::remove_dir(&plan.path).map_err(DataError::io(&plan.path))?;
    }
    let cache = project.cache_of(plan.out.hash);
    let states = create_files(project, plan)?;
    let is_new = plan.is_folder && plan.old.is_none();
    let mut known = match &plan.old {
        _ if options.relink || !plan.is_folder => None,
        Some(old) if !changes => {
            let paths = old.entries().into_iter().map(|(path, _)| path);
            Some(fingerprint(paths.zip(old.files.iter().map(|file| &file.stat))))
        }
        None if is_new => {
            let states = plan.target.iter().zip(&states);
            Some(fingerprint(states.map(|(entry, state)| (entry.path.as_str(), state))))
        }
        _ => None,
    };
    if cache.hash() == crate::model::HashName::Md5 {
        let digests = needed(plan).map(|entry| entry.digest.md5);
        project.state.record_placed(states.into_iter().zip(digests));
    }
    if options.relink
        && cache.hash() == crate::model::HashName::Md5
        && let Some(snapshot) = snapshot::take(&plan.path, &project.rules, &project.state, plan.out.hash, None)?
    {
        relink(project, &plan.path, &snapshot, true)?;
    }
    for (count, files) in report.files.iter_mut().zip([plan.created.len(), plan.replaced.len(), plan.removed.len()]) {
        *count += files as u64;
    }
    let folder_changed = plan.is_folder && plan.old.as_ref().is_some_and(|old| Some(old.digest) != plan.out.digest);
    if changes || !existed || (folder_changed && plan.out.path.as_deref() == Some(&plan.path)) {
        let shown = show(project, plan.out.path.as_deref().unwrap_or(&plan.path));
        let whole = plan.out.path.as_deref() == Some(&plan.path);
        if existed || !whole { report.modified.push(shown) } else { report.added.push(shown) }
    }
    if known.is_none() {
        known = fingerprint_of(project, &plan.path, plan.is_folder)?;
    }
    Ok(known)
}

/// The entries of the target whose files are created or replaced.
fn needed<'a>(plan: &'a Plan<'_>) -> impl Iterator<Item = &'a Entry> {
    plan.created.iter().chain(plan.replaced.iter().map(|(entry, _)| entry))
}

/// Creates and replaces the files of a plan, and returns their states. A folder that does not exist appears when it is complete.
fn create_files(project: &Project, plan: &Plan<'_>) -> Result<Vec<Stat>, DataError> {
    let cache = project.cache_of(plan.out.hash);
    let needed: Vec<&Entry> = needed(plan).collect();
    if plan.is_folder && plan.old.is_none() {
        let failed = || DataError::io(&plan.path);
        if let Some(tree) = project.staging.tree(&plan.path).map_err(failed())? {
            tree.make_folders(needed.iter().map(|entry| entry.path.as_str())).map_err(failed())?;
            let create = |entry: &&Entry| {
                let path = tree.path().join(&entry.path);
                cache.link_new(&entry.digest, &path, &project.links)?;
                state_of(&path)
            };
            let states = needed.par_iter().map(create).collect::<Result<_, _>>()?;
            if tree.publish(&plan.path).map_err(failed())? {
                return Ok(states);
            }
        }
    }
    if plan.is_folder {
        std::fs::create_dir_all(&plan.path).map_err(DataError::io(&plan.path))?;
    }
    let create = |entry: &&Entry| {
        let path = join(&plan.path, &entry.path);
        cache.link(&entry.digest, &path, &project.links, &project.staging)?;
        if !plan.is_folder && plan.out.meta.is_exec && plan.out.path.as_ref() == Some(&path) {
            set_executable(&path)?;
        }
        state_of(&path)
    };
    needed.par_iter().map(create).collect()
}

/// The state of a file that was just created.
fn state_of(path: &Path) -> Result<Stat, DataError> {
    let stat = Stat::of_path(path).map_err(DataError::io(path))?;
    stat.ok_or_else(|| DataError::Invalid(format!("{} was removed at the same time", path.display())))
}

/// Removes the folders that are empty and not part of the target, and returns their number.
fn remove_empty_folders(root: &Path, relative: &Path, kept: &BTreeSet<&Path>) -> Result<u64, DataError> {
    let folder = root.join(relative);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(0);
        }
        Err(error) => return Err(DataError::io(&folder)(error)),
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(DataError::io(&folder))?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let below = relative.join(entry.file_name());
        removed += remove_empty_folders(root, &below, kept)?;
        if !kept.contains(below.as_path()) && std::fs::remove_dir(root.join(&below)).is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}
