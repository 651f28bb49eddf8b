//! Reports of what a pipeline produced: parameters, metrics and plots of the workspace and of commits, and their differences. They read no more
//! than the files that `dvc.yaml` names, at each revision through one process of git.

pub mod changes;
pub mod definitions;
pub mod metrics;
pub mod params;
pub mod plots;
pub mod python;
pub mod revisions;
pub mod table;

use crate::error::DataError;
use crate::json::Json;
use crate::yaml::Value;

/// Why a file or revision could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The name of the error in DVC.
    pub kind: &'static str,
    /// The message.
    pub message: String,
}

impl Failure {
    fn missing(path: &str) -> Self {
        Self { kind: "FileNotFoundError", message: format!("[Errno 2] No such file or directory: '{path}'") }
    }

    /// The failure for an error when a file with a suffix was read.
    pub(crate) fn from_error(error: &DataError, path: &str) -> Self {
        let kind = match (error, path.rsplit('.').next()) {
            (DataError::File { .. }, Some("json")) => "JSONFileCorruptedError",
            (DataError::File { .. }, Some("toml")) => "TOMLFileCorruptedError",
            (DataError::File { .. }, Some("py")) => "PythonFileCorruptedError",
            (DataError::File { .. }, _) => "YAMLFileCorruptedError",
            _ => "DvcException",
        };
        Self { kind, message: error.to_string() }
    }

    /// The failure as JSON.
    pub fn to_json(&self) -> Json {
        Json::Map(vec![("type".into(), Json::string(self.kind)), ("msg".into(), Json::string(&self.message))])
    }
}

/// Values by the path of their file, relative to the root of the project, in the order of their definitions.
pub type Files = Vec<(String, Result<Value, Failure>)>;

/// The values of the files in one revision.
#[derive(Debug, Clone, PartialEq)]
pub struct Revision {
    /// The name for the user: `workspace`, or names of the commit. It is empty if only the workspace was asked for.
    pub name: String,
    /// The values, or why there are none.
    pub files: Result<Files, Failure>,
}

impl Revision {
    /// Whether something could not be read.
    pub fn has_failures(&self) -> bool {
        self.files.as_ref().map_or(true, |files| files.iter().any(|(_, file)| file.is_err()))
    }
}

/// The values of files as JSON.
pub fn files_to_json(files: &Files) -> Json {
    let file = |file: &Result<Value, Failure>| match file {
        Ok(value) => Json::Map(vec![("data".into(), python::value_to_json(value))]),
        Err(failure) => Json::Map(vec![("error".into(), failure.to_json())]),
    };
    Json::Map(files.iter().map(|(path, values)| (path.clone(), file(values))).collect())
}

/// The revisions as JSON.
pub fn to_json(revisions: &[Revision]) -> Json {
    let revision = |revision: &Revision| match &revision.files {
        Ok(files) => Json::Map(vec![("data".into(), files_to_json(files))]),
        Err(failure) => Json::Map(vec![("error".into(), failure.to_json())]),
    };
    Json::Map(revisions.iter().map(|item| (item.name.clone(), revision(item))).collect())
}
