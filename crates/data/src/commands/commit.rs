//! `commit`: records the present content of outputs.

use super::status::{in_cache, output_change};
use super::{GitFiles, Talk, relink};
use crate::error::DataError;
use crate::gitignore;
use crate::model::HashName;
use crate::project::Project;
use crate::snapshot;

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
        if stage.name.is_some() {
            // The digests of pipelines are in dvc.lock, which only `repro` of DVC writes so far.
            return Err(DataError::Invalid(format!(
                "'{}' is a stage of a pipeline, which cannot be committed yet",
                stage.address(&project.current)
            )));
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
            if let (Some(cache), Some(manifest)) = (store, &snapshot.manifest) {
                cache.put_manifest(manifest)?;
            }
            if out.digest != Some(snapshot.digest) || options.force {
                (out.digest, out.meta) = (Some(snapshot.digest), snapshot.meta);
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
