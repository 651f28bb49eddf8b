//! What a stage records of its workspace: digests of dependencies and outputs, values of parameters.

use std::path::Path;

use super::{GitFiles, relink};
use crate::error::DataError;
use crate::gitignore;
use crate::model::HashName;
use crate::pipeline::{params, read_workspace};
use crate::project::Project;
use crate::snapshot::{self, Snapshot};
use crate::stage::{Output, Parameters, Stage};
use crate::yaml::Value;

/// Whether the data goes into the cache, and links to it into the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// Only the digests are computed.
    No,
    /// The data is stored.
    Keep,
    /// It is stored, and its files are replaced by links of the configured type.
    Relink,
}

/// Records the present content of an output, and stores it in the cache. False if it does not exist.
///
/// # Errors
/// If the output is tracked by Git, cannot be read or stored, or is outside of the project although it is cached.
pub(crate) fn output(
    project: &Project,
    out: &mut Output,
    store: Store,
    git_files: &mut GitFiles,
) -> Result<bool, DataError> {
    let Some(path) = out.location.clone() else { return Ok(true) };
    if out.path.is_none() && out.cached {
        return Err(DataError::Invalid(format!(
            "saving the cached output '{}' outside of the project is not supported; write `cache: false`",
            out.written
        )));
    }
    if project.is_ignored(&path)? {
        return Ok(false);
    }
    let cache = (store != Store::No && out.cached).then(|| project.cache_of(HashName::Md5));
    let Some(snapshot) = take(project, out, cache)? else { return Ok(false) };
    if let Some(git) = &project.git
        && out.cached
    {
        if git.first_tracked(&[&path])?.is_some() {
            return Err(DataError::TrackedByGit(project.display(&path)));
        }
        if git.ignored(&[&path])?.is_empty() && gitignore::add(&path)? {
            git_files.push(path.with_file_name(".gitignore"));
        }
    }
    if let (Some(cache), Some(manifest)) = (cache, &snapshot.manifest) {
        cache.put_manifest(manifest)?;
    }
    out.record(snapshot.digest, snapshot.meta, snapshot.manifest.as_ref());
    if store == Store::Relink && out.cached && out.hash == HashName::Md5 {
        relink(project, &path, &snapshot, false)?;
    }
    Ok(true)
}

/// The content of an output or dependency. A digest of DVC 2 stays one as long as the content does.
fn take(
    project: &Project,
    out: &mut Output,
    cache: Option<&crate::cache::Cache>,
) -> Result<Option<Snapshot>, DataError> {
    let Some(path) = &out.location else { return Ok(None) };
    if out.hash == HashName::Dos2Unix {
        let old = snapshot::take(path, &project.rules, &project.state, out.hash, None)?;
        match old {
            Some(old) if Some(old.digest) == out.digest => return Ok(Some(old)),
            _ => out.hash = HashName::Md5,
        }
    }
    snapshot::take(path, &project.rules, &project.state, HashName::Md5, cache)
}

/// Records the present dependencies and parameters of a stage. With `allow_missing`, those that do not exist keep their record.
///
/// # Errors
/// If a dependency or parameter does not exist, or cannot be read.
pub(crate) fn dependencies(project: &Project, stage: &mut Stage, allow_missing: bool) -> Result<(), DataError> {
    for dep in &mut stage.deps {
        if dep.location.is_none() {
            return Err(DataError::Invalid(format!(
                "the dependency '{}' is not a local path, which is not supported in a pipeline",
                dep.written
            )));
        }
        match take(project, dep, None)? {
            Some(snapshot) => (dep.digest, dep.meta) = (Some(snapshot.digest), snapshot.meta),
            None if allow_missing => {}
            None => {
                let path = dep.display(&project.current, &project.root);
                return Err(DataError::Invalid(format!("dependency '{path}' does not exist")));
            }
        }
    }
    for parameters in stage.recipe.iter_mut().flat_map(|recipe| &mut recipe.params) {
        let Some(values) = parameter_file(&parameters.path)? else {
            if allow_missing {
                continue;
            }
            let path = parameters.display(&project.current);
            return Err(DataError::Invalid(format!("dependency '{path}' does not exist")));
        };
        let found = parameters.select(&values);
        let missing: Vec<&str> = missing_keys(parameters, &found);
        if !missing.is_empty() {
            return Err(DataError::Invalid(format!(
                "Parameters '{}' are missing from '{}'.",
                missing.join(", "),
                parameters.display(&project.current)
            )));
        }
        parameters.recorded = Some(found);
    }
    Ok(())
}

fn missing_keys<'a>(parameters: &'a Parameters, found: &[(String, Value)]) -> Vec<&'a str> {
    let is_missing = |key: &&String| !found.iter().any(|(known, _)| known == *key);
    parameters.keys.iter().filter(is_missing).map(String::as_str).collect()
}

/// The values of a parameter file of the workspace; `None` if it does not exist.
///
/// # Errors
/// If it cannot be read or understood.
pub(crate) fn parameter_file(path: &Path) -> Result<Option<Value>, DataError> {
    read_workspace(path)?.map(|text| params::parse(path, &text)).transpose()
}

/// Records the outputs of a stage.
///
/// # Errors
/// [`DataError::Missing`] for an output that does not exist, unless `allow_missing`; otherwise as [`output`].
pub(crate) fn outputs(
    project: &Project,
    stage: &mut Stage,
    store: Store,
    allow_missing: bool,
    git_files: &mut GitFiles,
) -> Result<(), DataError> {
    for out in &mut stage.outs {
        if !output(project, out, store, git_files)? && !allow_missing {
            return Err(DataError::Missing(out.display(&project.current, &project.root)));
        }
    }
    Ok(())
}
