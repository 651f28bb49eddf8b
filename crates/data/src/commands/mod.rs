//! The commands. Each runs under the project's lock and returns what a user interface shows.

pub mod about;
pub mod add;
pub mod add_external;
pub mod artifacts;
pub mod check_ignore;
pub mod checkout;
pub mod commit;
pub mod dag;
pub mod data_status;
pub mod destroy;
pub mod diff;
pub mod edit;
pub mod elsewhere;
mod exchange;
pub mod gc;
pub mod get;
pub mod graph;
pub mod hooks;
pub mod import;
pub mod init;
pub mod migrate;
mod partial;
pub mod plots;
pub(crate) mod record;
pub mod repro;
pub(crate) mod run;
pub mod runner;
pub mod settings;
mod source_versions;
pub mod stages;
pub mod status;
pub mod targets;
pub mod transfer;
pub mod update;
mod update_versioned;
pub mod used;
pub mod verify;
mod versioned;

use std::path::PathBuf;

use rayon::prelude::*;

use crate::config::LinkType;
use crate::error::DataError;
use crate::model::Digest;
use crate::project::Project;
use crate::snapshot::Snapshot;
use crate::staging::{set_executable, unprotect};
use crate::stat::Stat;
use crate::walk::FileState;

/// Interaction with the user.
pub trait Talk: Sync {
    /// Reports progress or a warning.
    fn note(&self, text: &str);
    /// Reports a step of the command.
    fn tell(&self, text: &str) {
        let _ = text;
    }
    /// Asks for the confirmation of a change that may lose data.
    fn confirm(&self, question: &str) -> bool;
}

/// Files that a command changed and that belong into Git.
#[derive(Debug, Default)]
pub struct GitFiles {
    /// Absolute paths.
    pub files: Vec<PathBuf>,
    /// Whether they were staged (`core.autostage`).
    pub staged: bool,
}

impl GitFiles {
    fn push(&mut self, file: PathBuf) {
        if !self.files.contains(&file) {
            self.files.push(file);
        }
    }

    /// Stages the files if the project is configured for that.
    fn finish(mut self, project: &Project) -> Result<Self, DataError> {
        self.files.sort();
        if let Some(git) = &project.git
            && project.config.is_true("core", "autostage")
            && !self.files.is_empty()
        {
            git.add(&self.files)?;
            self.staged = true;
        }
        Ok(self)
    }
}

/// Replaces files of a stored output by links of the preferred type, where they are not, or `always`.
fn relink(project: &Project, root: &std::path::Path, snapshot: &Snapshot, always: bool) -> Result<(), DataError> {
    let entries = snapshot.entries();
    let relinked: Vec<Option<(Stat, [u8; 16])>> = snapshot
        .files
        .par_iter()
        .zip(entries)
        .map(|(file, (path, digest))| {
            let full = if path.is_empty() { root.to_owned() } else { root.join(path) };
            if !always && !needs_relink(project, file, &full, &digest)? {
                return Ok(None);
            }
            let now = Stat::of_path(&full).map_err(DataError::io(&full))?;
            if now.is_some_and(|now| {
                (now.inode, now.size, now.mtime) != (file.stat.inode, file.stat.size, file.stat.mtime)
            }) {
                // A link to the cache would replace what was written since.
                return Ok(None);
            }
            project.cache.link(&digest, &full, &project.links, &project.staging)?;
            Ok(Stat::of_path(&full).map_err(DataError::io(&full))?.map(|stat| (stat, digest.md5)))
        })
        .collect::<Result<_, DataError>>()?;
    project.state.record_placed(relinked.into_iter().flatten());
    if snapshot.manifest.is_none() {
        // DVC creates a single file anew, so that it gets the permissions of a new file.
        if project.links.iter().all(|link| matches!(link, LinkType::Copy | LinkType::Reflink)) {
            unprotect(root, &project.staging)?;
        }
        if snapshot.meta.is_exec {
            set_executable(root)?;
        }
    }
    Ok(())
}

/// Whether a file of the workspace is not a link of the first type that fits.
fn needs_relink(
    project: &Project,
    file: &FileState,
    full: &std::path::Path,
    digest: &Digest,
) -> Result<bool, DataError> {
    let is_hardlink = !file.is_link && file.stat.links > 1;
    for link in &project.links {
        match link {
            LinkType::Copy | LinkType::Reflink if !file.is_link && !is_hardlink => return Ok(false),
            LinkType::Hardlink if is_hardlink => {
                let object = project.cache.path(digest);
                let stat = Stat::of_path(&object).map_err(DataError::io(&object))?;
                return Ok(stat.is_none_or(|stat| (stat.device, stat.inode) != (file.stat.device, file.stat.inode)));
            }
            LinkType::Symlink if file.is_link => {
                return Ok(std::fs::read_link(full).map_err(DataError::io(full))? != project.cache.path(digest));
            }
            _ => {}
        }
    }
    Ok(true)
}

/// Makes all files at a path independent of the cache and writable.
fn unprotect_all(project: &Project, path: &std::path::Path) -> Result<(), DataError> {
    if path.is_dir() {
        let files = crate::walk::walk(path, &project.rules)?;
        files.par_iter().try_for_each(|file| unprotect(&path.join(&file.path), &project.staging))
    } else {
        unprotect(path, &project.staging)
    }
}
