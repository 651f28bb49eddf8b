//! The stages of a project in a commit.

use std::path::Path;

use super::{Project, is_stage_file};
use crate::allowance::Allowance;
use crate::error::DataError;
use crate::pipeline::template::Unpacking;
use crate::pipeline::{self, DEFAULT_PARAMS_FILE, Files};
use crate::scm::Git;
use crate::stage::{LOCK_FILE, PIPELINE_FILE, Stage};

/// The stages of the project in a commit.
///
/// # Errors
/// If the commit or a file in it cannot be read.
pub fn stages_at(project: &Project, commit: &str) -> Result<Vec<Stage>, DataError> {
    let Some(git) = &project.git else { return Ok(Vec::new()) };
    let unpacking = pipeline::unpacking(&project.config);
    let is_ignored = |path: &Path| project.is_ignored(path);
    let stages = stages_in(git, &project.root, commit, (unpacking, &project.allowance), &is_ignored)?;
    project.keep_manifests(&stages);
    Ok(stages)
}

/// The stages in a commit of the project whose folder would be `root` in a work tree.
///
/// # Errors
/// If the commit or a file in it cannot be read.
pub(crate) fn stages_in(
    git: &Git,
    root: &Path,
    commit: &str,
    (unpacking, allowance): (Unpacking, &Allowance),
    is_ignored: &dyn Fn(&Path) -> Result<bool, DataError>,
) -> Result<Vec<Stage>, DataError> {
    let prefix = root.strip_prefix(git.root()).unwrap_or(Path::new("")).to_owned();
    let select = |path: &str| {
        let path = Path::new(path);
        let is_beside_pipeline = path.file_name().is_some_and(|name| name == LOCK_FILE || name == DEFAULT_PARAMS_FILE);
        path.starts_with(&prefix) && (is_stage_file(path) || is_beside_pipeline)
    };
    let files = git.read(commit, select)?;
    allowance.stage_files(files.iter().map(|(path, bytes)| (path.as_path(), bytes.len())))?;
    let read = |path: &Path| -> Result<Option<String>, DataError> {
        let path = path.strip_prefix(git.root()).unwrap_or(path);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match files.get(path) {
            Some(bytes) => Ok(Some(text(bytes))),
            None if name == LOCK_FILE || name == DEFAULT_PARAMS_FILE => Ok(None),
            // Other parameter files are rare, and not known before the pipelines are read.
            None => {
                let found = git.read(commit, |other| Path::new(other) == path)?;
                allowance.stage_files(found.iter().map(|(path, bytes)| (path.as_path(), bytes.len())))?;
                Ok(found.get(path).map(|bytes| text(bytes)))
            }
        }
    };
    let mut paths: Vec<_> = files.keys().filter(|path| is_stage_file(path)).collect();
    paths.sort();
    let mut stages = Vec::new();
    for path in paths {
        let full = git.root().join(path);
        if is_ignored(&full)? {
            continue;
        }
        let text = read(&full)?.unwrap_or_default();
        if path.file_name().is_some_and(|name| name == PIPELINE_FILE) {
            stages.extend(pipeline::load(&full, &text, &mut Files::new(root, &read).within(allowance), unpacking)?);
        } else {
            stages.push(Stage::parse(&full, root, text)?);
        }
    }
    Ok(stages)
}
