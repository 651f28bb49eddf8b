//! The files beside a pipeline that its model needs, from the workspace or from a commit.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::params;
use crate::allowance::Allowance;
use crate::error::DataError;
use crate::yaml::Value;

/// Maximum bytes of a pipeline or parameter file.
pub const MAX_BYTES: u64 = 64 << 20;

/// Reads the text of a file by its absolute path; `None` if it does not exist.
pub type Read<'a> = dyn Fn(&Path) -> Result<Option<String>, DataError> + 'a;

/// The files, each read once.
pub struct Files<'a> {
    read: &'a Read<'a>,
    /// The folder to which paths are relative for the user.
    root: PathBuf,
    params: HashMap<PathBuf, Option<Value>>,
    allowance: Allowance,
}

impl<'a> Files<'a> {
    /// Files that `read` reads, in the project `root`.
    pub fn new(root: &Path, read: &'a Read<'a>) -> Self {
        Self { read, root: root.to_owned(), params: HashMap::new(), allowance: Allowance::default() }
    }

    /// The same files, whose pipelines have the limits of a request.
    pub(crate) fn within(self, allowance: &Allowance) -> Self {
        Self { allowance: allowance.clone(), ..self }
    }

    /// The limits of their pipelines.
    pub(super) fn allowance(&self) -> &Allowance {
        &self.allowance
    }

    /// The root of the project.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The text of a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn text(&self, path: &Path) -> Result<Option<String>, DataError> {
        (self.read)(path)
    }

    /// The values of a parameter file; `None` if it does not exist.
    ///
    /// # Errors
    /// If it cannot be read or understood.
    pub fn params(&mut self, path: &Path) -> Result<Option<&Value>, DataError> {
        if !self.params.contains_key(path) {
            let value = (self.read)(path)?.map(|text| params::parse(path, &text)).transpose()?;
            self.params.insert(path.to_owned(), value);
        }
        Ok(self.params.get(path).and_then(Option::as_ref))
    }

    /// The path as it is shown to the user.
    pub fn display(&self, path: &Path) -> String {
        crate::config::relative_path(path, &self.root).to_string_lossy().into_owned()
    }
}

/// Reads a text file of the workspace; `None` if it does not exist.
///
/// # Errors
/// If it cannot be read, is not UTF-8, or is larger than [`MAX_BYTES`].
pub fn read_workspace(path: &Path) -> Result<Option<String>, DataError> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            return Err(DataError::file(path, 0, "it is too large for a pipeline or parameter file"));
        }
        Ok(metadata) if metadata.is_dir() => {
            return Err(DataError::file(path, 0, "it is a folder; a file with parameters is expected"));
        }
        Ok(_) => {}
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(DataError::io(path)(error)),
    }
    std::fs::read_to_string(path).map(Some).map_err(DataError::io(path))
}
