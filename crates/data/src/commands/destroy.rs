//! `destroy`: removes a project, but not the data in the workspace.

use super::unprotect_all;
use crate::error::DataError;
use crate::ignore::DVCIGNORE;
use crate::project::{DVC_DIR, Project};
use crate::stage::{LOCK_FILE, PIPELINE_FILE};

/// Removes `.dvc` with the cache, `.dvcignore`, and all `.dvc` files and pipelines. Data that is a link to the cache becomes a copy first.
///
/// # Errors
/// If a file cannot be removed. What was not removed can be removed by another call.
pub fn destroy(project: Project) -> Result<(), DataError> {
    let stages = project.stages()?;
    for path in stages.iter().flat_map(|stage| &stage.outs).filter_map(|out| out.path.as_ref()) {
        if path.exists() {
            unprotect_all(&project, path)?;
        }
    }
    for stage in &stages {
        remove(&stage.file)?;
        if stage.file.file_name().is_some_and(|name| name == PIPELINE_FILE) {
            remove(&stage.file.with_file_name(LOCK_FILE))?;
        }
    }
    remove(&project.root.join(DVCIGNORE))?;
    let folder = project.root.join(DVC_DIR);
    drop(project); // Its lock is in the folder.
    std::fs::remove_dir_all(&folder).map_err(DataError::io(&folder))
}

fn remove(path: &std::path::Path) -> Result<(), DataError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DataError::io(path)(error)),
        _ => Ok(()),
    }
}
