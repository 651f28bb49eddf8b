//! Arguments of `data exp`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Verbs of `data exp`.
#[derive(Debug, Subcommand)]
pub(crate) enum Exp {
    /// Save the workspace as an experiment
    #[command(after_help = "Example:\n  slipway data exp save -n larger-batch\n  slipway data exp save -I notes.txt")]
    Save(Save),
    /// Run the pipeline as an experiment, with other parameters
    #[command(
        after_help = "Example:\n  slipway data exp run -n larger-batch -S train.batch=64\n  slipway data exp run --queue -S 'train.batch=16,32,64' && slipway data exp run --run-all -j 2\n  slipway data exp run --temp -S model.yaml:layers=4 train"
    )]
    Run(Run),
    /// List experiments
    #[command(alias = "ls", after_help = "Example:\n  slipway data exp list\n  slipway data exp list -A origin")]
    List(List),
    /// Compare experiments in a table: parameters, metrics, data
    #[command(
        after_help = "Example:\n  slipway data exp show\n  slipway data exp show -A --only-changed --sort-by acc --sort-order desc\n  slipway data exp show --csv > experiments.csv"
    )]
    Show(Show),
    /// Show the metrics and parameters that differ between experiments
    #[command(after_help = "Example:\n  slipway data exp diff larger-batch\n  slipway data exp diff first second --md")]
    Diff(Diff),
    /// Put the files and data of an experiment into the workspace
    #[command(
        after_help = "Example:\n  slipway data exp apply larger-batch\n\nThe state before is saved:\n  git reset --hard && git stash apply refs/exps/apply/stash"
    )]
    Apply {
        /// Accepted for DVC: the state before is always saved
        #[arg(long, hide = true)]
        no_force: bool,
        /// Name or commit of the experiment
        experiment: String,
    },
    /// Create a Git branch for an experiment
    #[command(after_help = "Example:\n  slipway data exp branch larger-batch try-larger-batch")]
    Branch {
        /// Name or commit of the experiment
        experiment: String,
        /// Name of the branch; NAME-branch by default
        branch: Option<String>,
    },
    /// Delete experiments
    #[command(
        alias = "rm",
        after_help = "Example:\n  slipway data exp remove larger-batch\n  slipway data exp remove -A"
    )]
    Remove(Remove),
    /// Rename an experiment
    #[command(after_help = "Example:\n  slipway data exp rename brisk-otter larger-batch")]
    Rename {
        /// Replace an experiment that has the new name
        #[arg(short, long)]
        force: bool,
        /// Present name
        experiment: String,
        /// New name
        name: String,
    },
    /// Send experiments to a Git remote, and their data to a remote for data
    #[command(after_help = "Example:\n  slipway data exp push origin larger-batch")]
    Push(Share),
    /// Receive experiments from a Git remote, and their data
    #[command(after_help = "Example:\n  slipway data exp pull origin larger-batch")]
    Pull(Share),
    /// Remove what experiments that ran in the queue left behind in .dvc/tmp
    #[command(after_help = "Example:\n  slipway data exp clean")]
    Clean,
    /// Work on the queue; `queue start` starts it
    #[command(hide = true, after_help = "Example:\n  slipway data exp queue-worker 1")]
    QueueWorker {
        /// Number of the worker
        number: usize,
    },
    /// Execute an experiment in a folder of its own; workers start it
    #[command(hide = true, after_help = "Example:\n  slipway data exp exec-run 0f3b9c2")]
    ExecRun(ExecRun),
}

/// Options of `data exp exec-run`.
#[derive(Debug, Args)]
pub(crate) struct ExecRun {
    /// Id of the task in the queue
    #[arg(long)]
    pub(crate) task: Option<String>,
    /// File or folder to copy that Git does not track
    #[arg(short = 'C', long, value_name = "PATH")]
    pub(crate) copy_paths: Vec<String>,
    /// Message of the commit
    #[arg(short, long)]
    pub(crate) message: Option<String>,
    /// Commit of the stash with the experiment
    pub(crate) stash: String,
}

/// The commits of the experiments.
#[derive(Debug, Args)]
pub(crate) struct Commits {
    /// Experiments of all commits
    #[arg(short = 'A', long)]
    pub(crate) all_commits: bool,
    /// Experiments of this commit; HEAD by default
    #[arg(long, value_name = "COMMIT")]
    pub(crate) rev: Vec<String>,
    /// Number of commits from --rev back; a negative number for all
    #[arg(short, long, default_value_t = 1, allow_negative_numbers = true, value_name = "NUMBER")]
    pub(crate) num: i64,
}

/// Options of `data exp save`.
#[derive(Debug, Args)]
pub(crate) struct Save {
    /// Name of the experiment; a random one by default
    #[arg(short, long)]
    pub(crate) name: Option<String>,
    /// Replace an experiment with this name
    #[arg(short, long)]
    pub(crate) force: bool,
    /// The targets are folders; take all stages in them
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Include a file that Git does not track
    #[arg(short = 'I', long, value_name = "PATH")]
    pub(crate) include_untracked: Vec<PathBuf>,
    /// Message of the commit
    #[arg(short, long)]
    pub(crate) message: Option<String>,
    /// Print JSON in DVC's form
    #[arg(long)]
    pub(crate) json: bool,
    /// Stages and .dvc files whose data is stored; all by default
    pub(crate) targets: Vec<String>,
}

/// Options of `data exp run`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // They are independent options of DVC.
pub(crate) struct Run {
    /// Name of the experiment; a random one by default
    #[arg(short, long)]
    pub(crate) name: Option<String>,
    /// Change a parameter; '+' before its name adds one, '~' removes it
    #[arg(short = 'S', long, value_name = "[FILE:]NAME=VALUE")]
    pub(crate) set_param: Vec<String>,
    /// Message of the commit
    #[arg(short, long, short_alias = 'M')]
    pub(crate) message: Option<String>,
    /// Put the experiment into the queue; several values of a parameter (a,b or range(1,4)) make several experiments
    #[arg(long)]
    pub(crate) queue: bool,
    /// Run all experiments in the queue, with -j workers side by side
    #[arg(long, conflicts_with = "queue")]
    pub(crate) run_all: bool,
    /// Run the experiment in a temporary folder, not in the workspace
    #[arg(long)]
    pub(crate) temp: bool,
    /// File or folder that Git does not track, to copy for --temp and --queue
    #[arg(short = 'C', long, value_name = "PATH")]
    pub(crate) copy_paths: Vec<String>,
    /// Change params.yaml itself, also in a project that composes it with Hydra (hydra.enabled)
    #[arg(long)]
    pub(crate) no_hydra: bool,
    #[command(flatten)]
    pub(crate) repro: super::pipeline::Repro,
}

/// Options of `data exp list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) commits: Commits,
    /// Print names only
    #[arg(long, alias = "names-only", conflicts_with = "sha_only")]
    pub(crate) name_only: bool,
    /// Print commits only
    #[arg(long, alias = "shas-only", conflicts_with = "git_remote")]
    pub(crate) sha_only: bool,
    /// Name or URL of a Git repository; this one by default
    pub(crate) git_remote: Option<String>,
}

/// Options of `data exp show`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // They are independent options of DVC.
pub(crate) struct Show {
    #[command(flatten)]
    pub(crate) commits: Commits,
    /// Experiments of the last commits of all branches
    #[arg(short = 'a', long)]
    pub(crate) all_branches: bool,
    /// Experiments of all tags
    #[arg(short = 'T', long)]
    pub(crate) all_tags: bool,
    /// Print JSON in DVC's form
    #[arg(long)]
    pub(crate) json: bool,
    /// Print comma-separated values
    #[arg(long)]
    pub(crate) csv: bool,
    /// Print a table in Markdown
    #[arg(long)]
    pub(crate) md: bool,
    /// Significant digits of numbers
    #[arg(long, value_name = "NUMBER")]
    pub(crate) precision: Option<usize>,
    /// Show only columns whose values differ
    #[arg(long)]
    pub(crate) only_changed: bool,
    /// Do not show the columns whose names begin with a match of this pattern
    #[arg(long, value_name = "PATTERN")]
    pub(crate) drop: Vec<String>,
    /// Show the columns whose names begin with a match of this pattern in any case
    #[arg(long, value_name = "PATTERN")]
    pub(crate) keep: Vec<String>,
    /// Show only parameters on which stages depend
    #[arg(long)]
    pub(crate) param_deps: bool,
    /// Sort experiments by this metric or parameter
    #[arg(long, value_name = "NAME")]
    pub(crate) sort_by: Option<String>,
    /// Order of --sort-by
    #[arg(long, value_parser = ["asc", "desc"], default_value = "asc")]
    pub(crate) sort_order: String,
    /// Show commits instead of names of branches and tags
    #[arg(long)]
    pub(crate) sha: bool,
    /// Do not show the workspace
    #[arg(long)]
    pub(crate) hide_workspace: bool,
    /// Do not show experiments of the queue that failed
    #[arg(long)]
    pub(crate) hide_failed: bool,
    /// Do not show experiments that wait in the queue
    #[arg(long)]
    pub(crate) hide_queued: bool,
    /// Accepted for DVC: slipway uses no pager
    #[arg(long, hide = true)]
    pub(crate) no_pager: bool,
    /// Accepted for DVC: slipway keeps no copies of what it read
    #[arg(short, long, hide = true)]
    pub(crate) force: bool,
}

/// Options of `data exp diff`.
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// Show values that are equal, too
    #[arg(long)]
    pub(crate) all: bool,
    /// Show only parameters on which stages depend
    #[arg(long)]
    pub(crate) param_deps: bool,
    /// Print JSON in DVC's form
    #[arg(long)]
    pub(crate) json: bool,
    /// Print a table in Markdown
    #[arg(long)]
    pub(crate) md: bool,
    /// Do not show the files
    #[arg(long)]
    pub(crate) no_path: bool,
    /// Significant digits of metrics
    #[arg(long, value_name = "NUMBER")]
    pub(crate) precision: Option<usize>,
    /// Older experiment; HEAD by default
    pub(crate) a_rev: Option<String>,
    /// Newer experiment; the workspace by default
    pub(crate) b_rev: Option<String>,
}

/// Options of `data exp remove`.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    #[command(flatten)]
    pub(crate) commits: Commits,
    /// Keep the selected experiments and delete all others
    #[arg(long)]
    pub(crate) keep: bool,
    /// Remove all that wait in the queue, too
    #[arg(long, conflicts_with = "keep")]
    pub(crate) queue: bool,
    /// Delete them in this Git repository (name or URL)
    #[arg(short, long, value_name = "REMOTE")]
    pub(crate) git_remote: Option<String>,
    /// Names of experiments
    pub(crate) experiments: Vec<String>,
}

/// Options of `data exp push` and `data exp pull`.
#[derive(Debug, Args)]
pub(crate) struct Share {
    #[command(flatten)]
    pub(crate) commits: Commits,
    /// Replace other experiments with the same names
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Leave out the data
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// The remote for data; the default one if omitted
    #[arg(short, long, value_name = "NAME")]
    pub(crate) remote: Option<String>,
    /// Number of concurrent transfers of data
    #[arg(short, long, value_name = "NUMBER")]
    pub(crate) jobs: Option<usize>,
    /// Name or URL of the Git repository
    pub(crate) git_remote: String,
    /// Names of experiments; those of HEAD by default
    pub(crate) experiments: Vec<String>,
}
