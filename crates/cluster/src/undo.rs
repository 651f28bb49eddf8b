//! How changes are taken back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How a change is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Undo {
    /// A command.
    Shell(String),
    /// A file was not there.
    Remove(String),
    /// A file was another.
    Restore {
        /// Where it was.
        path: String,
        /// Where it is kept.
        copy: PathBuf,
        /// Its mode.
        mode: String,
    },
    /// There is no way back.
    Nothing,
}
