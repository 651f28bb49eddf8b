//! `remove`, `move` and `unprotect`.

use std::path::Path;

use super::{GitFiles, unprotect_all};
use crate::config::relative_path;
use crate::error::DataError;
use crate::gitignore;
use crate::project::{Project, find_output};
use crate::stage::DVC_SUFFIX;

/// Stops tracking the outputs of `.dvc` files, and with `outs` removes them.
///
/// # Errors
/// [`DataError::Target`] for a target that is no `.dvc` file.
pub fn remove(project: &mut Project, targets: &[String], outs: bool) -> Result<GitFiles, DataError> {
    let mut git_files = GitFiles::default();
    for target in targets {
        let stages = project.stages()?;
        let path = project.absolute(target);
        let Some(stage) = stages.iter().find(|stage| stage.file == path && stage.name.is_none()) else {
            let with_suffix = format!("{target}{DVC_SUFFIX}");
            return Err(if project.absolute(&with_suffix).exists() {
                DataError::Invalid(format!("'{target}' is not a .dvc file. Do you mean '{with_suffix}'?"))
            } else {
                DataError::Target(target.clone())
            });
        };
        for out in &stage.outs {
            let Some(path) = &out.path else { continue };
            if outs {
                remove_path(path)?;
            } else if path.exists() && out.cached {
                unprotect_all(project, path)?;
            }
            if out.cached && project.git.is_some() && gitignore::remove(path)? {
                git_files.push(path.with_file_name(".gitignore"));
            }
        }
        std::fs::remove_file(&stage.file).map_err(DataError::io(&stage.file))?;
    }
    git_files.finish(project)
}

pub(super) fn remove_path(path: &Path) -> Result<(), DataError> {
    let is_folder = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_folder { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DataError::io(path)(error)),
        _ => Ok(()),
    }
}

/// Renames a tracked file or folder, and its `.dvc` file if it has the same name.
///
/// # Errors
/// [`DataError::Target`] if `from` is not tracked by a `.dvc` file; [`DataError::Overlap`] if something is at `to`.
pub fn rename(project: &mut Project, from: &str, to: &str) -> Result<GitFiles, DataError> {
    let (from_path, mut to_path) = (project.absolute(from), project.absolute(to));
    if from.ends_with(DVC_SUFFIX) {
        return Err(DataError::Invalid(format!("DVC file '{from}' cannot be an output.")));
    }
    let stages = project.stages()?;
    let found = find_output(&stages, &from_path).filter(|(_, out)| out.path.as_deref() == Some(&from_path));
    let (stage, out) = found.ok_or_else(|| DataError::Target(from.to_owned()))?;
    if !stage.is_data_source() {
        return Err(DataError::Invalid(format!(
            "move is not permitted for stages that are not data sources: '{}'",
            stage.address(&project.current)
        )));
    }
    if to_path.is_dir() {
        to_path.push(from_path.file_name().unwrap_or_default());
    }
    if !to_path.starts_with(&project.root) {
        return Err(DataError::Invalid(format!("'{to}' is not inside of the project")));
    }
    if to_path.symlink_metadata().is_ok() {
        return Err(DataError::Overlap(format!("'{}' exists already", project.display(&to_path))));
    }
    let name = to_path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let folder = to_path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).map_err(DataError::io(folder))?;
    let has_same_name = stage.file.file_stem() == from_path.file_name();
    let new = if has_same_name {
        let file = to_path.with_file_name(format!("{name}{DVC_SUFFIX}"));
        if file.exists() {
            return Err(DataError::Overlap(format!("'{}' already exists", project.display(&file))));
        }
        stage.moved_to(file, to_path.clone(), name)
    } else {
        let folder = stage.file.parent().unwrap_or(Path::new("/"));
        stage.moved_to(
            stage.file.clone(),
            to_path.clone(),
            relative_path(&to_path, folder).to_string_lossy().into_owned(),
        )
    };
    let mut git_files = GitFiles::default();
    let uses_git = project.git.is_some() && out.cached;
    if uses_git && gitignore::add(&to_path)? {
        git_files.push(to_path.with_file_name(".gitignore"));
    }
    // Written first: after a crash in between, `checkout` completes the move.
    new.save()?;
    if from_path.symlink_metadata().is_ok() {
        std::fs::rename(&from_path, &to_path).map_err(DataError::io(&from_path))?;
    }
    if uses_git && gitignore::remove(&from_path)? {
        git_files.push(from_path.with_file_name(".gitignore"));
    }
    git_files.push(new.file.clone());
    if new.file != stage.file {
        std::fs::remove_file(&stage.file).map_err(DataError::io(&stage.file))?;
        git_files.push(stage.file.clone());
    }
    git_files.finish(project)
}

/// Makes tracked files independent of the cache, so that they can be changed.
///
/// # Errors
/// [`DataError::Target`] if a target is not tracked, [`DataError::Missing`] if it does not exist.
pub fn unprotect(project: &mut Project, targets: &[String]) -> Result<(), DataError> {
    let stages = project.stages()?;
    for target in targets {
        let path = project.absolute(target);
        if path.symlink_metadata().is_err() {
            return Err(DataError::Missing(target.clone()));
        }
        if find_output(&stages, &path).is_none() {
            return Err(DataError::Target(target.clone()));
        }
        unprotect_all(project, &path)?;
    }
    Ok(())
}
