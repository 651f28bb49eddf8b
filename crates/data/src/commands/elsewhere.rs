//! Stages that run where the project's folder is not: what they need goes out as a commit and through the remote, and their results come back
//! through the remote's run cache, so that the records are those of a run here.

use std::path::PathBuf;

use super::Talk;
use super::checkout::restore_outputs;
use super::exchange::{Exchange, by_remote, split_cached};
use super::run::run_cache;
use super::transfer::{Options, transfer_runs};
use super::used::Object;
use super::{record, run};
use crate::error::DataError;
use crate::model::Digest;
use crate::pipeline::recipe::restored_outputs;
use crate::pipeline::run_cache::is_recordable;
use crate::project::{Project, is_stage_file};
use crate::remote::Remote;
use crate::scm::{Index, RefChange, Transfer, without_credentials};
use crate::stage::{LOCK_FILE, Output, Stage};

/// The Git remote through which snapshots are shared.
const GIT_REMOTE: &str = "origin";
/// The namespace of the references of snapshots.
const REFERENCES: &str = "refs/slipway/stages";

/// The files of a project, as a commit in a Git repository that others can reach.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The URL of the repository.
    pub repository: String,
    /// The reference in it. It exists as long as the stage runs.
    pub reference: String,
    /// The folder of the project in the repository; empty for its root.
    pub project: String,
    /// The name of the stage in that folder.
    pub stage: String,
}

/// The objects of outputs that have a digest. Those of a folder's files only if its manifest is here.
fn objects(project: &Project, outputs: &[Output]) -> Result<Vec<Object>, DataError> {
    let mut objects = Vec::new();
    for out in outputs {
        let Some(digest) = out.digest else { continue };
        let name = out.display(&project.current, &project.root);
        let object = |digest: Digest, name: String| Object {
            hash: out.hash,
            digest,
            name,
            remote: out.remote.clone(),
            is_imported: false,
        };
        let manifest = if digest.is_dir { project.cache_of(out.hash).manifest(&digest)? } else { None };
        let files = manifest.iter().flat_map(|manifest| &manifest.entries);
        objects.extend(files.map(|entry| object(entry.digest, format!("{name}/{}", entry.path))));
        objects.push(object(digest, name));
    }
    Ok(objects)
}

/// Sends what the cache has of outputs and the remote lacks.
async fn send(project: &Project, outputs: &[Output]) -> Result<(), DataError> {
    for (name, objects) in by_remote(objects(project, outputs)?, None) {
        Exchange::open(project, name.as_deref(), objects, None, "push").await?.send(project).await?;
    }
    Ok(())
}

/// Receives what the cache lacks of outputs; false if the remote does not have all of it.
async fn receive_objects(project: &Project, outputs: &[Output]) -> Result<bool, DataError> {
    // The files of a folder are known when its manifest is here.
    for _ in ["manifests and files", "files of folders"] {
        let all = objects(project, outputs)?;
        let (_, lacking) = split_cached(project, all.iter().collect())?;
        for (name, objects) in by_remote(lacking.into_iter().cloned().collect(), None) {
            let exchange = Exchange::open(project, name.as_deref(), objects, None, "fetch").await?;
            if !exchange.lacking.is_empty() {
                return Ok(false);
            }
            exchange.receive(project).await?;
        }
    }
    Ok(true)
}

/// Restores the outputs of a stage from the run cache of the remote; false if it has no result for the present dependencies.
pub(super) async fn receive(project: &mut Project, stage: &mut Stage, talk: &dyn Talk) -> Result<bool, DataError> {
    transfer_runs(project, &Options::default(), false, talk).await?;
    record::dependencies(project, stage, false)?;
    let Some(found) = run_cache(project).find(stage)? else { return Ok(false) };
    let mut outputs = restored_outputs(stage, &project.root, &found)?;
    for output in &mut outputs {
        let defined = stage.outs.iter().find(|out| out.path == output.path);
        output.remote = defined.and_then(|out| out.remote.clone());
    }
    if !receive_objects(project, &outputs).await? {
        return Ok(false);
    }
    restore_outputs(project, &outputs)?;
    Ok(true)
}

/// Sends the result of a stage that was run or restored, with its small files that Git tracks, to the run cache of the remote.
pub(super) async fn share(project: &Project, stage: &Stage, talk: &dyn Talk) -> Result<(), DataError> {
    check(stage, &project.current)?;
    run::keep_run(project, stage)?;
    send(project, &stage.outs).await?;
    transfer_runs(project, &Options::default(), true, talk).await.map(drop)
}

/// Rejects a stage whose result cannot come back.
fn check(stage: &Stage, current: &std::path::Path) -> Result<(), DataError> {
    if is_recordable(stage) {
        return Ok(());
    }
    Err(DataError::Invalid(format!(
        "the stage '{}' cannot run in a cluster, because its result cannot be in the run cache: it must have dependencies or parameters, and \
         outputs in the project that are not 'persist', and not be 'always_changed'",
        stage.address(current)
    )))
}

/// Makes everything available that a stage needs to run elsewhere.
pub(super) async fn publish(project: &Project, stage: &Stage) -> Result<Snapshot, DataError> {
    check(stage, &project.current)?;
    let unavailable =
        |reason: &str| DataError::Invalid(format!("a stage in a cluster gets its files with Git, but {reason}"));
    let git = project.git.clone().ok_or_else(|| unavailable("this project has no repository"))?;
    let head = git.head()?;
    let origin = head.origin.ok_or_else(|| unavailable("this repository has no remote 'origin'"))?;
    let remote = Remote::open(&project.config, None, "repro --submit")?;
    if remote.is_folder() || !remote.shares_runs() {
        return Err(DataError::Invalid(format!(
            "remote '{}' cannot bring results back from a cluster: a bucket or a slipway server can",
            remote.name
        )));
    }
    send(project, &stage.deps).await?;
    let index = Index::copy(&git, project.staging.path().join("stage-index"))?;
    index.update()?;
    let is_needed = |path: &PathBuf| {
        let is_input = |input: &PathBuf| path.starts_with(input);
        is_stage_file(path)
            || path.file_name().is_some_and(|name| name == LOCK_FILE)
            || stage.deps.iter().filter_map(|dep| dep.path.as_ref()).any(is_input)
            || stage.recipe.iter().flat_map(|recipe| &recipe.params).any(|params| params.path == *path)
    };
    index.add(&git.untracked()?.into_iter().filter(is_needed).collect::<Vec<_>>())?;
    let name = stage.address(&project.root);
    let commit = index.commit(&[&head.commit], &format!("The files of the stage '{name}'\n"))?;
    let reference = format!("{REFERENCES}/{commit}");
    git.change_references(&[RefChange::Set(reference.clone(), commit)])?;
    let sent = git.send_references(GIT_REMOTE, std::slice::from_ref(&reference), false, false);
    git.change_references(&[RefChange::Delete(reference.clone())])?;
    // Whoever may see the run could read a password in the URL.
    let repository = without_credentials(&origin);
    if sent?.iter().any(|(_, outcome)| *outcome == Transfer::Diverged) {
        return Err(unavailable(&format!("{repository} does not accept the reference {reference}")));
    }
    let project = project.root.strip_prefix(git.root()).unwrap_or(&project.root).display().to_string();
    Ok(Snapshot { repository, reference, project, stage: name })
}

/// Removes a snapshot after the stage.
pub(super) fn withdraw(project: &Project, snapshot: &Snapshot, talk: &dyn Talk) {
    let Some(git) = &project.git else { return };
    if let Err(error) = git.send_references(GIT_REMOTE, std::slice::from_ref(&snapshot.reference), false, true) {
        talk.note(&format!(
            "{} of {} is not needed any more and could not be deleted: {error}",
            snapshot.reference, snapshot.repository
        ));
    }
}
