//! Arguments of `data repositories`.

use clap::{Args, Subcommand};

/// Verbs of `data repositories`.
#[derive(Debug, Subcommand)]
pub(crate) enum Repositories {
    /// Register a repository, whose data sets, versions and pipelines the UI then shows
    #[command(
        after_help = "Example:\n  slipway data repositories add digits https://git.example.com/team/digits\n  slipway data repositories add local \"$PWD\"    # a path on the server's machine"
    )]
    Add {
        /// Name in its namespace
        name: String,
        /// URL, or the absolute path of a Git repository on the server's machine
        location: String,
        /// Folder of the project in the repository
        #[arg(long, default_value = "")]
        folder: String,
        #[command(flatten)]
        scope: Scope,
    },
    /// List the registered repositories
    #[command(after_help = "Example:\n  slipway data repositories list -o json")]
    List {
        #[command(flatten)]
        scope: Scope,
    },
    /// Forget a repository; the repository and its data stay as they are
    #[command(alias = "rm", after_help = "Example:\n  slipway data repositories remove digits")]
    Remove {
        /// Name in its namespace
        name: String,
        #[command(flatten)]
        scope: Scope,
    },
}

/// The namespace of repositories.
#[derive(Debug, Args)]
pub(crate) struct Scope {
    /// Namespace whose users may see them; that of the installation if omitted
    #[arg(long)]
    pub(crate) namespace: Option<String>,
}
