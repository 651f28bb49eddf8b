//! Targets that name stages: `dvc.yaml`, `data.dvc`, `train`, `sub/dvc.yaml:train`, groups of stages, patterns, folders.

use globset::Glob;

use crate::error::DataError;
use crate::pipeline::JOIN;
use crate::project::Project;
use crate::stage::{PIPELINE_FILE, Stage};

/// How targets are understood.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// A folder stands for all stages in it.
    pub recursive: bool,
    /// Names of stages are patterns.
    pub glob: bool,
}

/// The stages that a target names, as indices; empty if it names none.
///
/// # Errors
/// [`DataError::Invalid`] for an invalid pattern.
pub fn named(project: &Project, stages: &[Stage], target: &str, how: How) -> Result<Vec<usize>, DataError> {
    let all = |accept: &dyn Fn(&Stage) -> bool| -> Vec<usize> {
        stages.iter().enumerate().filter(|(_, stage)| accept(stage)).map(|(i, _)| i).collect()
    };
    let path = project.absolute(target);
    if how.recursive && path.is_dir() {
        return Ok(all(&|stage| stage.file.starts_with(&path)));
    }
    let by_file = all(&|stage| stage.file == path);
    if !by_file.is_empty() {
        return Ok(by_file);
    }
    let (file, name) = match target.rsplit_once(':') {
        Some(("", name)) => (PIPELINE_FILE, name),
        Some((file, name)) => (file, name),
        None => (PIPELINE_FILE, target),
    };
    let file = project.absolute(file);
    let in_file = |stage: &Stage| stage.file == file;
    if how.glob {
        let pattern = Glob::new(name).map_err(|error| DataError::Invalid(error.to_string()))?.compile_matcher();
        return Ok(all(&|stage| in_file(stage) && stage.name.as_ref().is_some_and(|name| pattern.is_match(name))));
    }
    let exact = all(&|stage| in_file(stage) && stage.name.as_deref() == Some(name));
    if !exact.is_empty() {
        return Ok(exact);
    }
    let is_member = |stage: &Stage| {
        let rest = stage.name.as_deref().and_then(|full| full.strip_prefix(name));
        in_file(stage) && rest.is_some_and(|rest| rest.starts_with(JOIN))
    };
    Ok(all(&is_member))
}

/// The stages that the targets name, each once.
///
/// # Errors
/// [`DataError::Target`] for a target that names none.
pub fn all_named(project: &Project, stages: &[Stage], targets: &[String], how: How) -> Result<Vec<usize>, DataError> {
    let mut found = Vec::new();
    for target in targets {
        let named = named(project, stages, target, how)?;
        if named.is_empty() && !(how.glob || how.recursive || is_empty_pipeline(project, target)) {
            return Err(DataError::Target(target.clone()));
        }
        for stage in named {
            if !found.contains(&stage) {
                found.push(stage);
            }
        }
    }
    Ok(found)
}

/// Whether the target is a `dvc.yaml` that has no stages.
fn is_empty_pipeline(project: &Project, target: &str) -> bool {
    let path = project.absolute(target);
    path.file_name().is_some_and(|name| name == PIPELINE_FILE) && path.is_file()
}
