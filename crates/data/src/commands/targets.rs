//! Targets that stand for more: patterns of paths, and stages with their dependencies.

use std::path::Path;

use globset::GlobBuilder;

use super::graph::Graph;
use crate::error::DataError;
use crate::project::Project;
use crate::project::target::{How, named};

/// What targets stand for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expansion {
    /// They are patterns of paths.
    pub glob: bool,
    /// Also what the stages depend on.
    pub with_deps: bool,
    /// The targets are folders with stages.
    pub recursive: bool,
}

/// The targets, and those that they stand for. Without targets everything is meant.
///
/// # Errors
/// [`DataError::Invalid`] for patterns without a match, [`DataError::Target`] for a target without a stage that would have dependencies.
pub fn expand(project: &Project, targets: &[String], how: Expansion) -> Result<Vec<String>, DataError> {
    let mut targets = if how.glob && !targets.is_empty() { paths(project, targets)? } else { targets.to_vec() };
    if !how.with_deps || targets.is_empty() {
        return Ok(targets);
    }
    let stages = project.stages()?;
    let mut sources = Vec::new();
    for target in &targets {
        let mut found = named(project, &stages, target, How { recursive: how.recursive, glob: false })?;
        let path = project.absolute(target);
        let writes = |out: &crate::stage::Output| out.path.as_ref().is_some_and(|root| path.starts_with(root));
        if found.is_empty() {
            found.extend(stages.iter().position(|stage| stage.outs.iter().any(writes)));
        }
        if found.is_empty() {
            return Err(DataError::Target(target.clone()));
        }
        sources.extend(found);
    }
    for stage in Graph::new(project, &stages)?.with_dependencies(&sources) {
        let address = stages[stage].address(&project.current);
        if !sources.contains(&stage) && !targets.contains(&address) {
            targets.push(address);
        }
    }
    Ok(targets)
}

/// The paths that match patterns. As in Python's `glob`, `*` does not match a leading dot, and `**` matches any folders.
///
/// # Errors
/// [`DataError::Invalid`] for an invalid pattern, or if nothing matches.
pub fn paths(project: &Project, patterns: &[String]) -> Result<Vec<String>, DataError> {
    let mut found = Vec::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern).literal_separator(true).build();
        let glob = glob.map_err(|error| DataError::Invalid(error.to_string()))?.compile_matcher();
        let depth = if pattern.contains("**") { usize::MAX } else { pattern.matches('/').count() };
        let shows_hidden = pattern.split('/').any(|part| part.starts_with('.'));
        visit(&project.current, "", depth, shows_hidden, &mut |path| {
            if glob.is_match(path) {
                found.push(path.to_owned());
            }
        })?;
    }
    found.sort();
    found.dedup();
    if found.is_empty() {
        return Err(DataError::Invalid(format!("Glob {patterns:?} has no matches.")));
    }
    Ok(found)
}

fn visit(root: &Path, prefix: &str, depth: usize, hidden: bool, each: &mut dyn FnMut(&str)) -> Result<(), DataError> {
    let folder = root.join(prefix);
    for entry in std::fs::read_dir(&folder).map_err(DataError::io(&folder))? {
        let entry = entry.map_err(DataError::io(&folder))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if (name.starts_with('.') && !hidden) || name == ".dvc" || name == ".git" {
            continue;
        }
        let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        each(&path);
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            visit(root, &path, depth - 1, hidden, each)?;
        }
    }
    Ok(())
}
