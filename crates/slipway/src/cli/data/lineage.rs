//! Arguments of `data lineage`.

use clap::Args;

/// Options of `data lineage`.
#[derive(Debug, Args)]
pub(crate) struct Lineage {
    /// Tracked file or folder, a file in one, or a .dvc file
    pub(crate) path: String,
    /// The version in this commit, tag or branch; that of the workspace's .dvc file if omitted
    #[arg(long, value_name = "REV")]
    pub(crate) rev: Option<String>,
}
