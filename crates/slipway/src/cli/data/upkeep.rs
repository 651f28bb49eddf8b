//! Arguments of the commands of `data` about the project itself.

use clap::{Args, Subcommand};

/// Verbs about the project itself.
#[derive(Debug, Subcommand)]
pub(crate) enum Upkeep {
    /// Compare the last commit, the .dvc files and the workspace
    #[command(subcommand, after_help = "Example:\n  slipway data data status --granular")]
    Data(DataVerb),
    /// Verify the content of the cache, or of a remote; exit code 3 if objects are damaged or missing
    #[command(after_help = "Example:\n  slipway data verify\n  slipway data verify -c -r store --remove")]
    Verify(Verify),
    /// Show which paths .dvcignore excludes
    #[command(after_help = "Example:\n  slipway data check-ignore -d images/a.tmp")]
    CheckIgnore(CheckIgnore),
    /// Remove the project, but not the data in the workspace
    #[command(after_help = "Example:\n  slipway data destroy")]
    Destroy {
        /// Do not prompt
        #[arg(short, long)]
        force: bool,
    },
    /// Install Git hooks and the merge driver
    #[command(after_help = "Example:\n  slipway data install\n  slipway data install --use-pre-commit-tool")]
    Install {
        /// Add the hooks to .pre-commit-config.yaml
        #[arg(long)]
        use_pre_commit_tool: bool,
    },
    /// Run a Git hook
    #[command(subcommand, hide = true, after_help = "Example:\n  slipway data git-hook pre-commit")]
    GitHook(GitHook),
    /// Show facts about this machine and the project
    #[command(name = "doctor", alias = "version", after_help = "Example:\n  slipway data doctor")]
    Doctor,
}

/// Verbs of `data data`.
#[derive(Debug, Subcommand)]
pub(crate) enum DataVerb {
    /// Show what changed between the last commit, the .dvc files and the workspace
    #[command(after_help = "Example:\n  slipway data data status --granular --untracked-files")]
    Status(DataStatus),
}

/// Options of `data data status`.
#[derive(Debug, Args)]
pub(crate) struct DataStatus {
    /// Print JSON in DVC's form
    #[arg(long)]
    pub(crate) json: bool,
    /// Show the files in folders
    #[arg(long)]
    pub(crate) granular: bool,
    /// Show what did not change
    #[arg(long)]
    pub(crate) unchanged: bool,
    /// Show files that nothing tracks: no, or all
    #[arg(
        long,
        value_name = "WHICH",
        value_parser = ["no", "all"],
        hide_possible_values = true,
        num_args = 0..=1,
        default_value = "no",
        default_missing_value = "all",
        hide_default_value = true
    )]
    pub(crate) untracked_files: String,
    /// The remote of --not-in-remote; the default one if omitted
    #[arg(short, long, value_name = "NAME")]
    pub(crate) remote: Option<String>,
    /// Show what the remote lacks
    #[arg(long)]
    pub(crate) not_in_remote: bool,
    /// With --not-in-remote, use what the last command without this option found in the remote, and do not query it
    #[arg(long)]
    pub(crate) no_remote_refresh: bool,
    /// Tracked paths; all by default
    pub(crate) targets: Vec<String>,
}

/// Options of `data verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Verify the remote instead of the cache
    #[arg(short, long)]
    pub(crate) cloud: bool,
    /// The remote; the default one if omitted
    #[arg(short, long, value_name = "NAME")]
    pub(crate) remote: Option<String>,
    /// Remove damaged objects
    #[arg(long)]
    pub(crate) remove: bool,
    /// Number of concurrent transfers
    #[arg(short, long, value_name = "NUMBER")]
    pub(crate) jobs: Option<usize>,
    /// The data of all branches must be there, too
    #[arg(short = 'a', long)]
    pub(crate) all_branches: bool,
    /// The data of all tags must be there, too
    #[arg(short = 'T', long)]
    pub(crate) all_tags: bool,
    /// The data of all commits must be there, too
    #[arg(short = 'A', long)]
    pub(crate) all_commits: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `data check-ignore`.
#[derive(Debug, Args)]
pub(crate) struct CheckIgnore {
    /// Show the rule for each path
    #[arg(short, long)]
    pub(crate) details: bool,
    /// Accepted for DVC's sake, with --details: the deciding rule is shown
    #[arg(short = 'a', long = "all", hide = true, requires = "details")]
    pub(crate) _all: bool,
    /// With --details, also show paths without a rule
    #[arg(short, long, requires = "details")]
    pub(crate) non_matching: bool,
    /// Read paths from standard input
    #[arg(long, conflicts_with = "targets")]
    pub(crate) stdin: bool,
    /// Paths
    #[arg(required_unless_present = "stdin")]
    pub(crate) targets: Vec<String>,
}

/// Hooks of Git.
#[derive(Debug, Subcommand)]
pub(crate) enum GitHook {
    /// Show the status
    #[command(after_help = "Example:\n  slipway data git-hook pre-commit")]
    PreCommit {
        /// Arguments of Git
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Restore tracked files
    #[command(after_help = "Example:\n  slipway data git-hook post-checkout HEAD~1 HEAD 1")]
    PostCheckout {
        /// Arguments of Git
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Send data to the remote
    #[command(after_help = "Example:\n  slipway data git-hook pre-push")]
    PrePush {
        /// Arguments of Git
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Merge three versions of the .dvc file of a folder
    #[command(after_help = "Example:\n  slipway data git-hook merge-driver --ancestor A --our B --their C")]
    MergeDriver {
        /// The common ancestor
        #[arg(long, value_name = "FILE")]
        ancestor: String,
        /// This version, which is replaced
        #[arg(long, value_name = "FILE")]
        our: String,
        /// The other version
        #[arg(long, value_name = "FILE")]
        their: String,
    },
}
