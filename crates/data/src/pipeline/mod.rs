//! Pipelines: `dvc.yaml` with its templates, and `dvc.lock` with what the last runs read and wrote.
//!
//! [`PipelineFile`] reads a `dvc.yaml` and expands its templates; [`load`] makes [`Stage`]s of it, with the digests of the `dvc.lock` beside
//! it. Both read other files through [`Files`], so that a pipeline can be read from the workspace or from a commit.

pub(crate) mod assign;
mod context;
pub(crate) mod entry;
mod file;
pub mod files;
mod keyed;
pub mod lock;
pub mod params;
pub(crate) mod process;
mod python;
pub mod recipe;
pub mod run_cache;
mod schema;
pub mod template;
pub mod value;

use std::path::Path;

pub use context::DEFAULT_PARAMS_FILE;
pub use file::{Expanded, JOIN, PipelineFile, unpacking};
pub use files::{Files, read_workspace};

use crate::error::DataError;
use crate::stage::{LOCK_FILE, Stage};
use lock::LockFile;
use template::Unpacking;

/// The stages of the `dvc.yaml` at `path` with this text, with what the `dvc.lock` beside it records.
///
/// # Errors
/// [`DataError::File`] with the line of either file.
pub fn load(path: &Path, text: &str, files: &mut Files<'_>, unpacking: Unpacking) -> Result<Vec<Stage>, DataError> {
    let file = PipelineFile::parse(path, text, files, unpacking)?;
    let lock_path = path.with_file_name(LOCK_FILE);
    let lock = match files.text(&lock_path)? {
        Some(text) => LockFile::parse(&lock_path, &text)?,
        None => LockFile::default(),
    };
    let root = files.root().to_owned();
    let expanded = file.stages(files)?;
    let stage = |expanded| {
        files.allowance().check()?;
        recipe::stage(path, &root, expanded, &lock)
    };
    expanded.into_iter().map(stage).collect()
}
