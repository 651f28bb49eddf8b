//! One stage: whether it changed, what must be done before its command runs, and what is recorded after it.

use super::checkout::{self, restore_outputs};
use super::edit::remove_path;
use super::record::{self, Store};
use super::repro::Say;
use super::runner::{Request, Runner};
use super::status::{Change, ParametersChange, in_cache, parameters_change, workspace_change};
use super::transfer;
use super::{GitFiles, Talk, unprotect_all};
use crate::error::DataError;
use crate::pipeline::entry::entry;
use crate::pipeline::lock::LockFile;
use crate::pipeline::process::{Job, commands};
use crate::pipeline::read_workspace;
use crate::pipeline::recipe::restored_outputs;
use crate::pipeline::run_cache::{RunCache, is_recordable};
use crate::project::{Project, cache_dir};
use crate::stage::{LOCK_FILE, Output, OutputKind, Stage};
use crate::yaml::Value;

/// Whether a stage must run.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn is_changed(
    project: &Project,
    stage: &Stage,
    allow_missing: bool,
    upstream: &[&Stage],
) -> Result<bool, DataError> {
    let recipe = stage.recipe.as_deref();
    if recipe.is_some_and(|recipe| recipe.command_changed) {
        return Ok(true);
    }
    if !stage.frozen && (stage.is_always_changed() || dependencies_changed(project, stage, allow_missing, upstream)?) {
        return Ok(true);
    }
    for out in &stage.outs {
        let change = match &out.digest {
            Some(digest) if out.cached && !in_cache(project, out.hash, digest)? => Some(Change::NotInCache),
            _ => workspace_change(project, out)?,
        };
        let is_missing = matches!(change, Some(Change::NotInCache | Change::Deleted));
        if change.is_some() && !(allow_missing && is_missing) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn dependencies_changed(
    project: &Project,
    stage: &Stage,
    allow_missing: bool,
    upstream: &[&Stage],
) -> Result<bool, DataError> {
    for dep in &stage.deps {
        match workspace_change(project, dep)? {
            None => {}
            Some(Change::Deleted) if allow_missing => {
                // A dependency that is not here counts as changed if the stage that makes it would now make another.
                let mut sources = upstream.iter().flat_map(|stage| &stage.outs);
                if sources.any(|out| out.location == dep.location && out.digest != dep.digest) {
                    return Ok(true);
                }
            }
            Some(_) => return Ok(true),
        }
    }
    for parameters in stage.recipe.iter().flat_map(|recipe| &recipe.params) {
        match parameters_change(parameters)? {
            None => {}
            Some(ParametersChange::File(Change::Deleted)) if allow_missing => {}
            Some(_) => return Ok(true),
        }
    }
    Ok(false)
}

/// How a stage is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    /// Run the command even if the result of the run is known.
    pub(crate) force: bool,
    /// Show the commands only.
    pub(crate) dry: bool,
    /// Receive missing data from the remote.
    pub(crate) pull: bool,
    /// Use recorded runs.
    pub(crate) run_cache: bool,
}

/// What the preparation of a stage led to.
pub(crate) enum Prepared {
    /// It need not run.
    Unchanged,
    /// Its commands were shown.
    Shown,
    /// Its outputs are there, without a run.
    Restored,
    /// Its command must run.
    Run(Job),
}

/// Prepares a stage that must run: its old outputs are removed, and restored if the result of the run is known.
///
/// # Errors
/// If a dependency does not exist, or an output cannot be removed.
pub(crate) async fn prepare(
    project: &mut Project,
    stage: &mut Stage,
    how: How,
    talk: &dyn Talk,
    say: &Say,
) -> Result<Prepared, DataError> {
    let address = stage.address(&project.current);
    if stage.is_import && !stage.frozen {
        return Err(DataError::Invalid(format!("the import '{address}' has changed; update it with `update`")));
    }
    let job = Job::new(stage, address.clone(), &project.root).filter(|_| !stage.frozen);
    let Some(job) = job else {
        return if how.dry { Ok(Prepared::Shown) } else { verify_outputs(project, stage, &address, say) };
    };
    if !how.dry {
        remove_outputs(project, stage)?;
    }
    if !how.force {
        if how.pull && !how.dry {
            pull_missing_dependencies(project, stage, talk).await?;
        }
        if let Some(outputs) = known_result(project, stage, how, talk).await? {
            say(&format!("Stage '{address}' is cached - skipping run, checking out outputs"));
            if how.dry {
                return Ok(show(stage, &address, say));
            }
            restore_outputs(project, &outputs)?;
            return Ok(Prepared::Restored);
        }
        if !how.dry {
            record::dependencies(project, stage, false)?;
        }
    }
    Ok(if how.dry { show(stage, &address, say) } else { Prepared::Run(job) })
}

/// The job of a stage that an earlier process has submitted to the runner, and which still goes on with the present dependencies.
///
/// # Errors
/// If the runner cannot be reached.
pub(crate) async fn adopt(project: &Project, stage: &mut Stage, runner: &dyn Runner) -> Result<Option<Job>, DataError> {
    let address = stage.address(&project.current);
    let job = Job::new(stage, address.clone(), &project.root).filter(|_| !stage.frozen);
    let mut current = stage.clone();
    // If a dependency is missing, the preparation of the stage reports or receives it.
    let (Some(job), Ok(())) = (job, record::dependencies(project, &mut current, false)) else { return Ok(None) };
    let key = Request::new(&current, job.clone()).key;
    if !runner.adopt(&address, &key).await? {
        return Ok(None);
    }
    *stage = current;
    Ok(Some(job))
}

fn show(stage: &Stage, address: &str, say: &Say) -> Prepared {
    say(&format!("Running stage '{address}':"));
    for command in stage.recipe.iter().flat_map(|recipe| commands(&recipe.command)) {
        say(&format!("> {command}"));
    }
    Prepared::Shown
}

/// Checks that the outputs of a stage that is not run exist.
fn verify_outputs(project: &Project, stage: &Stage, address: &str, say: &Say) -> Result<Prepared, DataError> {
    let (what, frozen) = if stage.frozen { ("outputs", "frozen ") } else { ("data sources", "") };
    say(&format!("Verifying {what} in {frozen}stage: '{address}'"));
    let exists = |out: &&Output| out.location.as_ref().is_some_and(|path| path.exists());
    let missing: Vec<String> = stage
        .outs
        .iter()
        .filter(|out| !exists(out))
        .map(|out| format!("'{}'", out.display(&project.current, &project.root)))
        .collect();
    match missing.len() {
        0 => Ok(Prepared::Restored),
        n => {
            let source = if n > 1 { "sources" } else { "source" };
            Err(DataError::Invalid(format!("missing data {source}: {}", missing.join(", "))))
        }
    }
}

fn remove_outputs(project: &Project, stage: &Stage) -> Result<(), DataError> {
    for out in &stage.outs {
        let Some(path) = &out.location else { continue };
        if !out.persist {
            remove_path(path)?;
        } else if path.symlink_metadata().is_ok() {
            unprotect_all(project, path)?;
        }
    }
    Ok(())
}

pub(super) async fn pull_missing_dependencies(
    project: &mut Project,
    stage: &Stage,
    talk: &dyn Talk,
) -> Result<(), DataError> {
    for dep in &stage.deps {
        if let Some(path) = dep.path.as_ref().filter(|path| !path.exists()) {
            let target = project.display(path);
            pull(project, &[target], talk).await?;
        }
    }
    Ok(())
}

/// Receives targets from the remote, and makes the workspace as recorded. False if data is missing.
pub(crate) async fn pull(project: &mut Project, targets: &[String], talk: &dyn Talk) -> Result<bool, DataError> {
    transfer::fetch(project, targets, &transfer::Options::default(), talk).await?;
    let report = checkout::checkout(project, targets, checkout::Options::default(), talk)?;
    Ok(report.failed.is_empty())
}

/// The outputs of a run whose result is known and in the cache: that of `dvc.lock`, if nothing else than the outputs changed, or one of the
/// run cache.
async fn known_result(
    project: &mut Project,
    stage: &mut Stage,
    how: How,
    talk: &dyn Talk,
) -> Result<Option<Vec<Output>>, DataError> {
    if !is_recordable(stage) {
        return Ok(None);
    }
    let same = stage.recipe.as_ref().is_some_and(|recipe| !recipe.command_changed)
        && !dependencies_changed(project, stage, false, &[])?
        && stage.outs.iter().all(|out| out.digest.is_some());
    let record = if same {
        entry(stage)
    } else {
        if !how.run_cache {
            return Ok(None);
        }
        let mut current = stage.clone();
        record::dependencies(project, &mut current, false)?;
        if !how.dry {
            *stage = current.clone();
        }
        let found = run_cache(project).find(&current)?;
        let Some(record) = found else { return Ok(None) };
        record
    };
    let outputs = restored_outputs(stage, &project.root, &record)?;
    if how.pull && !how.dry && same {
        let address = stage.address(&project.current);
        transfer::fetch(project, &[address], &transfer::Options::default(), talk).await?;
    }
    for out in &outputs {
        match &out.digest {
            Some(digest) if in_cache(project, out.hash, digest)? => {}
            _ => return Ok(None),
        }
    }
    Ok(Some(outputs))
}

pub(super) fn run_cache(project: &Project) -> RunCache {
    RunCache::new(&cache_dir(&project.config, &project.root.join(crate::project::DVC_DIR)))
}

/// Records a stage that has run or whose outputs were restored, in its file. `later` are stages before which its record goes if it is new.
///
/// # Errors
/// If an output does not exist, or something cannot be stored.
pub(crate) fn finish(
    project: &mut Project,
    stage: &mut Stage,
    store: bool,
    later: &[String],
    git_files: &mut GitFiles,
    say: &Say,
) -> Result<(), DataError> {
    if stage.recipe.is_some() {
        record::dependencies(project, stage, false)?;
    }
    for out in &mut stage.outs {
        // As with DVC, a stage that runs gets new versions in a bucket.
        (out.cloud, out.files) = (None, None);
    }
    record::outputs(project, stage, if store { Store::Relink } else { Store::No }, false, git_files)?;
    let is_data = |out: &Output| out.kind == OutputKind::Data;
    if store && stage.outs.iter().all(|out| out.cached || !is_data(out)) {
        keep_run(project, stage)?;
    }
    save(project, std::slice::from_ref(stage), later, git_files, &|text| say(text))?;
    if let Some(recipe) = &mut stage.recipe {
        recipe.command_changed = false;
    }
    project.state.save()
}

/// Keeps the record of a stage in the run cache, if it can be used again.
///
/// # Errors
/// If the cache cannot be written.
pub(crate) fn keep_run(project: &Project, stage: &Stage) -> Result<(), DataError> {
    if is_recordable(stage) {
        // The small files that Git tracks are kept, too, because a restored run needs them.
        for out in stage.outs.iter().filter(|out| !out.cached) {
            let Some(path) = &out.location else { continue };
            let cache = project.cache_of(out.hash);
            let stored = crate::snapshot::take(path, &project.rules, &project.state, out.hash, Some(cache))?;
            if let Some(manifest) = stored.and_then(|stored| stored.manifest) {
                cache.put_manifest(&manifest)?;
            }
        }
        run_cache(project).save(stage)?;
    }
    Ok(())
}

/// Writes the records of stages of one file.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn save(
    project: &Project,
    stages: &[Stage],
    later: &[String],
    git_files: &mut GitFiles,
    say: &dyn Fn(&str),
) -> Result<(), DataError> {
    let Some(first) = stages.first() else { return Ok(()) };
    if first.name.is_none() {
        for stage in stages {
            stage.save()?;
            git_files.push(stage.file.clone());
        }
        return Ok(());
    }
    let path = first.file.with_file_name(LOCK_FILE);
    // The file is read again, because another process may have changed it while the command ran.
    let old = read_workspace(&path)?;
    let lock = old.as_deref().map_or_else(|| Ok(LockFile::default()), |text| LockFile::parse(&path, text))?;
    let records: Vec<(String, Value)> =
        stages.iter().filter_map(|stage| Some((stage.name.clone()?, entry(stage)))).collect();
    let is_changed = records.iter().any(|(name, record)| lock.stage(name) != Some(record));
    let text = lock.with_stages(records, later);
    let shown = project.display(&path);
    if old.is_none() {
        say(&format!("Generating lock file '{shown}'"));
    }
    if is_changed {
        say(&format!("Updating lock file '{shown}'"));
        git_files.push(path.clone());
    }
    if old.as_ref() != Some(&text) {
        slipway_core::files::replace(&path, text.as_bytes()).map_err(DataError::io(&path))?;
    }
    Ok(())
}
