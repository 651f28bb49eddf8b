//! `add`: tracks files and folders.

use std::path::{Path, PathBuf};

use super::{GitFiles, relink};
use crate::config::LinkType;
use crate::error::DataError;
use crate::gitignore;
use crate::manifest::Manifest;
use crate::model::{HashName, Meta};
use crate::project::{Project, find_output};
use crate::snapshot::{self, Snapshot};
use crate::stage::{DVC_SUFFIX, PIPELINE_FILE, Stage};
use crate::stat::{Kind, Stat};

/// How to add.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Do not store the data in the cache.
    pub no_commit: bool,
    /// The targets are patterns.
    pub glob: bool,
    /// Do not replace the files by links to the cache.
    pub no_relink: bool,
}

/// What is to be added.
struct Job {
    stage: Stage,
    /// The path in a tracked folder, if it is not the whole output.
    part: Option<PathBuf>,
}

/// Tracks the targets.
///
/// # Errors
/// If a target does not exist, cannot be tracked, or overlaps with tracked data.
pub fn add(project: &mut Project, targets: &[String], options: &Options) -> Result<GitFiles, DataError> {
    let expanded;
    let targets = if options.glob {
        expanded = super::targets::paths(project, targets)?;
        &expanded
    } else {
        targets
    };
    let stages = project.stages()?;
    let jobs = targets.iter().map(|target| plan(project, &stages, target)).collect::<Result<Vec<_>, _>>()?;
    let new: Vec<&Stage> = jobs.iter().map(|job| &job.stage).collect();
    check_overlaps(project, &stages, &new)?;
    let paths: Vec<&Path> = jobs.iter().flat_map(|job| &job.stage.outs).filter_map(|out| out.path.as_deref()).collect();
    let files: Vec<&Path> = jobs.iter().map(|job| job.stage.file.as_path()).collect();
    let mut ignored = Vec::new();
    if let Some(git) = &project.git {
        if let Some(path) = git.first_tracked(&paths)? {
            return Err(DataError::TrackedByGit(project.display(path)));
        }
        ignored = git.ignored(&paths)?;
        if let Some(file) = git.ignored(&files)?.first() {
            let reason = format!("bad DVC file name '{}' is git-ignored.", project.display(file));
            return Err(DataError::Invalid(reason));
        }
    }
    let mut git_files = GitFiles::default();
    for mut job in jobs {
        let added = add_one(project, &mut job, options, &ignored, &mut git_files);
        // What was read is remembered also when a later target fails.
        project.state.save()?;
        added?;
        git_files.push(job.stage.file);
    }
    git_files.finish(project)
}

fn add_one(
    project: &Project,
    job: &mut Job,
    options: &Options,
    ignored: &[PathBuf],
    git_files: &mut GitFiles,
) -> Result<(), DataError> {
    let Some(out) = job.stage.outs.first_mut() else { return Ok(()) };
    let Some(root) = out.path.clone() else { return Ok(()) };
    let path = job.part.clone().unwrap_or_else(|| root.clone());
    let store = (!options.no_commit && out.cached).then_some(&project.cache);
    if out.hash == HashName::Dos2Unix {
        let unchanged = job.part.is_none()
            && out.digest.is_some()
            && snapshot::take(&path, &project.rules, &project.state, out.hash, None)?.map(|s| s.digest) == out.digest;
        if unchanged {
            return Ok(());
        }
        out.hash = HashName::Md5;
    }
    let links_are_copies = project.links.iter().all(|link| matches!(link, LinkType::Copy | LinkType::Reflink));
    // The files of the folder are needed one by one only for their links, and for the versions that are recorded of them.
    let is_plain = job.part.is_none() && out.files.is_none() && (options.no_relink || links_are_copies);
    let stored = match store.filter(|_| is_plain) {
        Some(cache) => snapshot::store_folder(&path, &project.rules, &project.state, cache)?,
        None => None,
    };
    let snapshot = match stored {
        Some(_) => None,
        None => snapshot::take(&path, &project.rules, &project.state, HashName::Md5, store)?,
    };
    if let Some((digest, meta)) = stored {
        out.record(digest, meta, None);
    } else if job.part.is_some() {
        if out.digest.is_some_and(|digest| !digest.is_dir) {
            return Err(DataError::Invalid(format!("cannot modify '{}', which is tracked as a file", out.written)));
        }
        let old = match out.digest {
            Some(digest) => project.cache.manifest(&digest)?.ok_or_else(|| {
                DataError::NotInCache(vec![format!("{} (its manifest {digest})", project.display(&root))])
            })?,
            None => Manifest::default(),
        };
        let prefix = crate::config::relative_path(&path, &root).to_string_lossy().into_owned();
        let (manifest, size) = replace_part(&old, out.meta.size, &prefix, snapshot.as_ref())
            .ok_or_else(|| DataError::Missing(project.display(&path)))?;
        let digest = manifest.digest();
        let size = if out.digest == Some(digest) { out.meta.size } else { size };
        let meta = Meta { size, nfiles: Some(manifest.entries.len() as u64), is_exec: false };
        out.record(digest, meta, Some(&manifest));
        if store.is_some() {
            project.cache.put_manifest(&manifest)?;
        }
    } else {
        let snapshot = snapshot.as_ref().ok_or_else(|| DataError::Missing(project.display(&path)))?;
        out.record(snapshot.digest, snapshot.meta, snapshot.manifest.as_ref());
    }
    if project.git.is_some() && out.cached && !ignored.contains(&root) && gitignore::add(&root)? {
        git_files.push(root.with_file_name(".gitignore"));
    }
    if let (Some(_), Some(snapshot), false) = (store, &snapshot, options.no_relink) {
        relink(project, &path, snapshot, false)?;
    }
    job.stage.save()
}

/// The manifest of a folder in which a part was added, replaced or removed, and the size of the folder, if it is still known: DVC records no
/// size when files were replaced. `None` if there was nothing to remove.
fn replace_part(
    old: &Manifest,
    size: Option<u64>,
    prefix: &str,
    part: Option<&Snapshot>,
) -> Option<(Manifest, Option<u64>)> {
    let inside = |path: &str| path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    let mut entries: Vec<_> = old.entries.iter().filter(|entry| !inside(&entry.path)).cloned().collect();
    let append_only = entries.len() == old.entries.len();
    let Some(part) = part else { return (!append_only).then(|| (Manifest::new(entries), None)) };
    for (path, digest) in part.entries() {
        let path = if path.is_empty() { prefix.to_owned() } else { format!("{prefix}/{path}") };
        entries.push(crate::manifest::Entry { path, digest, size: None });
    }
    let size = match (append_only, size, part.meta.size) {
        (true, Some(size), Some(added)) if size > 0 => Some(size + added),
        _ => None,
    };
    Some((Manifest::new(entries), size))
}

/// The stage for a target: that of the output that contains it, or a new one.
fn plan(project: &Project, stages: &[Stage], target: &str) -> Result<Job, DataError> {
    let path = project.absolute(target);
    if let Some((stage, out)) = find_output(stages, &path) {
        if !stage.is_data_source() {
            return Err(DataError::Overlap(format!(
                "cannot update '{target}': it overlaps with an output of stage '{}'; run the pipeline, or use `commit`",
                stage.address(&project.current)
            )));
        }
        let mut stage = stage.clone();
        // Only the output that contains the target is added.
        if let Some(i) = stage.outs.iter().position(|other| other.path == out.path) {
            stage.outs.swap(0, i);
        }
        let part = (out.path.as_deref() != Some(&path)).then_some(path);
        return Ok(Job { stage, part });
    }
    if !path.starts_with(&project.root) || path == project.root {
        return Err(DataError::Invalid(format!("'{target}' is not inside of the project {}", project.root.display())));
    }
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| DataError::Invalid(format!("{}: the name is not valid UTF-8", path.display())))?;
    if name.ends_with(DVC_SUFFIX) || name == PIPELINE_FILE {
        return Err(DataError::Invalid(format!("'{target}' is a DVC file, which cannot be tracked by itself")));
    }
    check_links(project, &path)?;
    if project.is_ignored(&path)? {
        return Err(DataError::Invalid(format!("'{}' is ignored by .dvcignore", project.display(&path))));
    }
    if Stat::of_path(&path).map_err(DataError::io(&path))?.is_none() {
        return Err(DataError::Missing(project.display(&path)));
    }
    let file = path.with_file_name(format!("{name}{DVC_SUFFIX}"));
    let written = name.to_owned();
    let stage = match Stage::load(&file, &project.root) {
        Ok(old) => old.moved_to(file, path, written),
        Err(_) => Stage::for_output(file, path, written),
    };
    Ok(Job { stage, part: None })
}

/// Rejects a path below a symbolic link, and a link to a folder: the data would be elsewhere.
pub(super) fn check_links(project: &Project, path: &Path) -> Result<(), DataError> {
    let mut folder = path.parent();
    while let Some(current) = folder.filter(|folder| folder.starts_with(&project.root) && *folder != project.root) {
        let stat = Stat::of_entry(current).map_err(DataError::io(current))?;
        if stat.is_some_and(|stat| stat.kind() == Kind::Link) {
            return Err(DataError::Invalid(format!(
                "'{}' is a symbolic link; what is below it cannot be added",
                current.display()
            )));
        }
        folder = current.parent();
    }
    let stat = Stat::of_entry(path).map_err(DataError::io(path))?;
    if stat.is_some_and(|stat| stat.kind() == Kind::Link) && path.is_dir() {
        return Err(DataError::Invalid(format!(
            "'{}' is a symbolic link to a folder, which cannot be added",
            path.display()
        )));
    }
    Ok(())
}

/// Rejects new outputs that contain tracked data or are contained in it.
pub(super) fn check_overlaps(project: &Project, stages: &[Stage], new: &[&Stage]) -> Result<(), DataError> {
    let mut outs: std::collections::BTreeMap<&Path, (&Stage, bool)> = std::collections::BTreeMap::new();
    let replaced = |stage: &Stage| new.iter().any(|other| other.file == stage.file);
    for stage in stages.iter().filter(|stage| !replaced(stage)) {
        outs.extend(stage.outs.iter().filter_map(|out| Some((out.path.as_deref()?, (stage, false)))));
    }
    for stage in new {
        for out in stage.outs.iter().filter_map(|out| out.path.as_deref()) {
            if let Some((other, _)) = outs.insert(out, (stage, true))
                && other.file != stage.file
            {
                let (shown, other) = (project.display(out), other.address(&project.current));
                return Err(DataError::Overlap(format!("output '{shown}' is already specified in stage: '{other}'.")));
            }
        }
    }
    for (out, (stage, is_new)) in &outs {
        let inside = outs.range::<Path, _>((std::ops::Bound::Excluded(*out), std::ops::Bound::Unbounded));
        // Paths are compared by components, so all that are below `out` follow it directly.
        for (below, (below_stage, below_is_new)) in inside.take_while(|(path, _)| path.starts_with(out)) {
            if !is_new && !below_is_new {
                continue;
            }
            let (parent, child) = (project.display(out), project.display(below));
            let (parent_stage, child_stage) = (stage.address(&project.current), below_stage.address(&project.current));
            return Err(DataError::Overlap(if *is_new {
                format!(
                    "Cannot add '{parent}', because it is overlapping with other DVC tracked output: '{child}'.\nTo include '{child}' in '{parent}', run 'dvc remove {child_stage}' and then 'dvc add {parent}'"
                )
            } else {
                format!(
                    "Cannot add '{child}', because it is overlapping with other DVC tracked output: '{parent}'.\nTo include '{child}' in '{parent}', run 'dvc commit {parent_stage}'"
                )
            }));
        }
    }
    Ok(())
}
