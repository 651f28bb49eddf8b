//! `commit`: records the present content of outputs.

use super::record::{self, Store};
use super::run::{keep_run, save};
use super::status::stage_status;
use super::status::{in_cache, output_change};
use super::{GitFiles, Talk, relink};
use crate::error::DataError;
use crate::gitignore;
use crate::model::HashName;
use crate::project::{Project, Selected};
use crate::snapshot;
use crate::stage::Stage;

/// How to commit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Do not ask before a changed output is recorded.
    pub force: bool,
    /// The targets are folders with stages.
    pub recursive: bool,
    /// Do not replace the files by links to the cache.
    pub no_relink: bool,
}

/// Stores the outputs of the targets, or all, in the cache, and records their digests.
///
/// # Errors
/// [`DataError::Changed`] if a change is not confirmed, [`DataError::Missing`] if an output does not exist.
pub fn commit(
    project: &mut Project,
    targets: &[String],
    options: Options,
    talk: &dyn Talk,
) -> Result<GitFiles, DataError> {
    let mut git_files = GitFiles::default();
    let stages = project.stages()?;
    for selected in project.select(&stages, targets, options.recursive)? {
        let stage = selected.stage;
        if stage.recipe.is_some() {
            commit_stage(project, stage, options, talk, &mut git_files)?;
            continue;
        }
        let mut changed = Vec::new();
        for out in &stage.outs {
            if output_change(project, out)?.is_some_and(|change| change != super::status::Change::NotInCache) {
                changed.push(out.display(&project.current, &project.root));
            }
        }
        let question = format!(
            "outputs {changed:?} of stage: '{}' changed. Are you sure you want to commit it?",
            stage.address(&project.current)
        );
        if !changed.is_empty() && !options.force && !talk.confirm(&question) {
            return Err(DataError::Changed(stage.address(&project.current)));
        }
        let mut new = stage.clone();
        for out in &mut new.outs {
            let Some(path) = out.path.clone() else { continue };
            let is_changed = changed.contains(&out.display(&project.current, &project.root));
            if let (HashName::Dos2Unix, false, Some(digest)) = (out.hash, is_changed, &out.digest)
                && in_cache(project, out.hash, digest)?
            {
                continue;
            }
            out.hash = HashName::Md5;
            let store = out.cached.then_some(&project.cache);
            let snapshot = snapshot::take(&path, &project.rules, &project.state, HashName::Md5, store)?;
            let snapshot = snapshot.ok_or_else(|| DataError::Missing(project.display(&path)))?;
            if out.digest != Some(snapshot.digest) || options.force {
                out.record(snapshot.digest, snapshot.meta, snapshot.manifest.as_ref());
            }
            if let Some(git) = &project.git
                && out.cached
                && git.ignored(&[&path])?.is_empty()
                && gitignore::add(&path)?
            {
                git_files.push(path.with_file_name(".gitignore"));
            }
            if store.is_some() && !options.no_relink {
                relink(project, &path, &snapshot, false)?;
            }
        }
        new.save()?;
        git_files.push(new.file);
    }
    project.state.save()?;
    git_files.finish(project)
}

/// Records the present dependencies and outputs of a stage of a pipeline.
fn commit_stage(
    project: &Project,
    stage: &Stage,
    options: Options,
    talk: &dyn Talk,
    git_files: &mut GitFiles,
) -> Result<(), DataError> {
    let address = stage.address(&project.current);
    let mut new = stage.clone();
    let status = stage_status(project, &Selected { stage, filter: None })?;
    let deps: Vec<&str> = status.deps.iter().map(|(path, _)| path.as_str()).collect();
    let params = status.params.iter().map(|(path, _)| path.as_str());
    let deps: Vec<&str> = deps.into_iter().chain(params).collect();
    let in_workspace = |change: &super::status::Change| *change != super::status::Change::NotInCache;
    let outs: Vec<&str> =
        status.outs.iter().filter(|(_, change)| in_workspace(change)).map(|(path, _)| path.as_str()).collect();
    let what = match (deps.is_empty(), outs.is_empty()) {
        (false, false) => Some(format!("dependencies {deps:?} and outputs {outs:?} of stage: '{address}' changed.")),
        (false, true) => Some(format!("dependencies {deps:?} of stage: '{address}' changed.")),
        (true, false) => Some(format!("outputs {outs:?} of stage: '{address}' changed.")),
        (true, true) if status.is_command_changed => Some(format!("'cmd' of stage: '{address}' has changed.")),
        (true, true) => None,
    };
    if let Some(what) = &what
        && !options.force
        && !talk.confirm(&format!("{what} Are you sure you want to commit it?"))
    {
        return Err(DataError::Changed(address));
    }
    if what.is_some() || options.force {
        record::dependencies(project, &mut new, false)?;
    }
    let store = if options.no_relink { Store::Keep } else { Store::Relink };
    record::outputs(project, &mut new, store, false, git_files)?;
    if what.is_some() || options.force {
        keep_run(project, &new)?;
    }
    save(project, std::slice::from_ref(&new), &[], git_files, &|_| {})
}
