//! Arguments of the commands for pipelines: `stage`, `repro`, `dag`, `freeze`.

use clap::{Args, Subcommand};

/// Verbs of `data stage`.
#[derive(Debug, Subcommand)]
pub(crate) enum Stage {
    /// Add a stage to the dvc.yaml of this folder
    #[command(
        after_help = "Example:\n  slipway data stage add -n train -d train.py -d data -p lr,epochs --outs model.pkl -M metrics.json python train.py"
    )]
    Add(Box<StageAdd>),
    /// List stages
    #[command(after_help = "Example:\n  slipway data stage list\n  slipway data stage list --all --name-only")]
    List(StageList),
}

/// Options of `data stage add`.
#[derive(Debug, Args)]
pub(crate) struct StageAdd {
    /// Name of the stage
    #[arg(short, long)]
    pub(crate) name: String,
    /// Replace a stage with this name
    #[arg(short, long)]
    pub(crate) force: bool,
    /// File or folder that the command reads
    #[arg(short, long, value_name = "PATH")]
    pub(crate) deps: Vec<String>,
    /// Parameters that the command reads: KEY,KEY of params.yaml, FILE:KEY,KEY or FILE: for a whole file
    #[arg(short, long, value_name = "[FILE:]KEYS")]
    pub(crate) params: Vec<String>,
    /// File or folder that the command writes; `-o` as in DVC if the program is called `dvc`
    #[arg(long, value_name = "PATH")]
    pub(crate) outs: Vec<String>,
    /// The same, tracked by Git instead of the cache
    #[arg(short = 'O', long, value_name = "PATH")]
    pub(crate) outs_no_cache: Vec<String>,
    /// File or folder that is kept when the stage runs again
    #[arg(long, value_name = "PATH")]
    pub(crate) outs_persist: Vec<String>,
    /// The same, tracked by Git instead of the cache
    #[arg(long, value_name = "PATH")]
    pub(crate) outs_persist_no_cache: Vec<String>,
    /// File with metrics
    #[arg(short, long, value_name = "PATH")]
    pub(crate) metrics: Vec<String>,
    /// The same, tracked by Git instead of the cache
    #[arg(short = 'M', long, value_name = "PATH")]
    pub(crate) metrics_no_cache: Vec<String>,
    /// File or folder with plots
    #[arg(long, value_name = "PATH")]
    pub(crate) plots: Vec<String>,
    /// The same, tracked by Git instead of the cache
    #[arg(long, value_name = "PATH")]
    pub(crate) plots_no_cache: Vec<String>,
    /// Folder in which the command runs
    #[arg(short, long, value_name = "PATH")]
    pub(crate) wdir: Option<String>,
    /// Run the stage in any case
    #[arg(long)]
    pub(crate) always_changed: bool,
    /// Description for people
    #[arg(long, value_name = "TEXT")]
    pub(crate) desc: Option<String>,
    /// Run the stage at once
    #[arg(long)]
    pub(crate) run: bool,
    /// The command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// Options of `data stage list`.
#[derive(Debug, Args)]
pub(crate) struct StageList {
    /// List the stages of the whole project
    #[arg(long)]
    pub(crate) all: bool,
    /// Fail at the first invalid file, which is what happens in any case
    #[arg(long, hide = true)]
    pub(crate) fail: bool,
    /// The targets are folders
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Print the names only
    #[arg(long, alias = "names-only")]
    pub(crate) name_only: bool,
    /// Files or folders; dvc.yaml by default
    pub(crate) targets: Vec<String>,
}

/// Arguments of `data repro`.
#[derive(Debug, Args)]
pub(crate) struct Reproduce {
    #[command(flatten)]
    pub(crate) how: Repro,
    #[command(flatten)]
    pub(crate) submission: Submission,
    /// Get dependencies from the remote, and send results to its run cache
    #[arg(long, conflicts_with = "submit")]
    pub(crate) share: bool,
}

/// How the stages of a pipeline are submitted.
#[derive(Debug, Args)]
pub(crate) struct Submission {
    /// Run stages as submitted runs, with the fields of their meta.slipway
    #[arg(long)]
    pub(crate) submit: bool,
    /// Namespace of the runs
    #[arg(long, requires = "submit")]
    pub(crate) namespace: Option<String>,
    /// Image for stages without one, with git and slipway in it
    #[arg(long, requires = "submit")]
    pub(crate) image: Option<String>,
    /// Secret with credentials, as for spec.data of a run
    #[arg(long, requires = "submit", value_name = "NAME")]
    pub(crate) secret: Option<String>,
}

/// How stages are run.
#[derive(Debug, Args)]
pub(crate) struct Repro {
    /// Run stages although nothing changed
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Ask before each stage
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Only the targets, without what they depend on
    #[arg(short, long)]
    pub(crate) single_item: bool,
    /// The whole pipelines of the targets
    #[arg(short, long)]
    pub(crate) pipeline: bool,
    /// All pipelines of the project
    #[arg(short = 'P', long)]
    pub(crate) all_pipelines: bool,
    /// The targets are folders; take all stages in them
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// The targets and what depends on them
    #[arg(long)]
    pub(crate) downstream: bool,
    /// Run what depends on a stage that ran, although nothing else changed
    #[arg(long)]
    pub(crate) force_downstream: bool,
    /// Receive missing data from the remote
    #[arg(long)]
    pub(crate) pull: bool,
    /// Missing data is not a change
    #[arg(long)]
    pub(crate) allow_missing: bool,
    /// Show the commands only
    #[arg(long)]
    pub(crate) dry: bool,
    /// After a failure, run stages that do not depend on it
    #[arg(short, long, conflicts_with = "ignore_errors")]
    pub(crate) keep_going: bool,
    /// Run all stages, whatever fails
    #[arg(long)]
    pub(crate) ignore_errors: bool,
    /// Do not use recorded runs
    #[arg(long)]
    pub(crate) no_run_cache: bool,
    /// Do not store outputs in the cache
    #[arg(long)]
    pub(crate) no_commit: bool,
    /// Names of targets are patterns
    #[arg(long)]
    pub(crate) glob: bool,
    /// Number of stages that run side by side; 1 by default
    #[arg(short, long, value_name = "NUMBER")]
    pub(crate) jobs: Option<usize>,
    /// Stages, dvc.yaml or .dvc files; dvc.yaml by default
    pub(crate) targets: Vec<String>,
}

/// Options of `data dag`.
#[derive(Debug, Args)]
pub(crate) struct Dag {
    /// Print the language of Graphviz
    #[arg(long)]
    pub(crate) dot: bool,
    /// Print the language of Mermaid
    #[arg(long)]
    pub(crate) mermaid: bool,
    /// Print Mermaid in a block of Markdown
    #[arg(long)]
    pub(crate) md: bool,
    /// One node for all stages of a foreach or matrix
    #[arg(long, conflicts_with = "outs")]
    pub(crate) collapse_foreach_matrix: bool,
    /// Everything that is connected to the target
    #[arg(long)]
    pub(crate) full: bool,
    /// Show outputs instead of stages
    #[arg(long)]
    pub(crate) outs: bool,
    /// A stage or output; the whole project by default
    pub(crate) target: Option<String>,
}
