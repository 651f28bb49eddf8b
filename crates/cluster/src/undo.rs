//! Undo information, which the engine records before it changes a resource.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How to undo the change of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Undo {
    /// Run this shell command.
    Shell(String),
    /// Remove the file at this path, because it did not exist before.
    Remove(String),
    /// Restore the previous content and mode of a file.
    Restore {
        /// Path of the file.
        path: String,
        /// Path of the copy in the records folder.
        copy: PathBuf,
        /// Octal mode, such as `644`.
        mode: String,
    },
    /// The change cannot be undone.
    Nothing,
}
