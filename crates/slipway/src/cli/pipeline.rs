//! Arguments of `slipway pipeline`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Verbs of `pipeline`.
#[derive(Debug, Subcommand)]
pub(crate) enum Pipeline {
    /// Check compiled pipelines: every fault with its line
    #[command(after_help = "Example:\n  slipway pipeline validate train.yaml\n  slipway pipeline validate train.py")]
    Validate {
        /// Compiled pipelines (IR YAML or JSON), or Python files, which `kfp` compiles
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Start a run of a pipeline
    #[command(
        after_help = "Example:\n  slipway pipeline submit train.yaml -p epochs=3 -p 'rates=[0.1, 0.01]' --wait\n  slipway pipeline submit train.py"
    )]
    Submit(Box<Submit>),
    /// Upload a compiled pipeline, or a version of one that exists
    #[command(
        after_help = "Example:\n  slipway pipeline upload train.yaml\n  slipway pipeline upload train.py --name train --version-name v2"
    )]
    Upload(Upload),
    /// Manage recurring runs
    #[command(
        subcommand,
        after_help = "Example:\n  slipway pipeline schedule apply nightly.yaml\n  slipway pipeline schedule ls"
    )]
    Schedule(Schedule),
    /// Print a pipeline as plain manifests for Kubernetes: Jobs in stages, and a volume for their artifacts
    #[command(
        after_help = "Example:\n  slipway pipeline export train.yaml -p epochs=3 > train-jobs.yaml\n  kubectl apply -l slipway.dev/stage=1 -f train-jobs.yaml"
    )]
    Export(Export),
    /// List runs of pipelines, the newest first
    #[command(after_help = "Example:\n  slipway pipeline ls\n  slipway pipeline ls --namespace team-a")]
    Ls {
        #[command(flatten)]
        namespace: Namespace,
        /// Maximum number of runs
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Show a run: its state, and the graph of its tasks
    #[command(
        after_help = "Example:\n  slipway pipeline show 0b9c1a55-1f62-4a28-a9b2-7a6b6ac39a53\n  slipway pipeline show 0b9c1a55 -o json"
    )]
    Show {
        #[command(flatten)]
        run: Run,
    },
    /// Print the log of a task
    #[command(
        after_help = "Example:\n  slipway pipeline logs 0b9c1a55 train\n  slipway pipeline logs 0b9c1a55 'for-loop-2[1]/train' --follow"
    )]
    Logs {
        #[command(flatten)]
        run: Run,
        /// Path of the task, as `show` prints it
        task: String,
        /// Follow the log until the task ends
        #[arg(short, long)]
        follow: bool,
    },
    /// Run a failed or cancelled run again: what succeeded is kept
    #[command(after_help = "Example:\n  slipway pipeline retry 0b9c1a55")]
    Retry {
        #[command(flatten)]
        run: Run,
    },
    /// Stop a run; its exit handlers still run
    #[command(after_help = "Example:\n  slipway pipeline cancel 0b9c1a55")]
    Cancel {
        #[command(flatten)]
        run: Run,
    },
    /// Compare two runs: parameters and tasks that differ
    #[command(after_help = "Example:\n  slipway pipeline diff 0b9c1a55 7f20c3d1")]
    Diff {
        /// The earlier run
        left: String,
        /// The later run
        right: String,
        #[command(flatten)]
        namespace: Namespace,
    },
    /// Execute the step of this pod
    #[command(hide = true, after_help = "Example:\n  slipway pipeline step --install /slipway-step")]
    Step {
        /// Copy this program to a folder, for pods with other images
        #[arg(long, value_name = "FOLDER")]
        install: Option<PathBuf>,
        /// Execute the steps of several tasks, one after the other, until none is left
        #[arg(long, conflicts_with = "install")]
        worker: bool,
    },
}

/// A namespace.
#[derive(Debug, Clone, Args)]
pub(crate) struct Namespace {
    /// Namespace; the server's own if omitted
    #[arg(short, long, default_value = "")]
    pub(crate) namespace: String,
}

/// A run of a pipeline.
#[derive(Debug, Clone, Args)]
pub(crate) struct Run {
    /// Id of the run, or the beginning of it
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) namespace: Namespace,
}

/// Options of `pipeline submit`.
#[derive(Debug, Args)]
pub(crate) struct Submit {
    /// Compiled pipeline (IR YAML or JSON), or a Python file with one, which `kfp` compiles
    pub(crate) file: PathBuf,
    /// Parameter as NAME=VALUE; the value is JSON, or text if it is not
    #[arg(short, long = "param", value_name = "NAME=VALUE")]
    pub(crate) parameters: Vec<String>,
    /// Name of the run; the pipeline's name and the time if omitted
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Experiment
    #[arg(long, default_value = "Default")]
    pub(crate) experiment: String,
    /// Execute every task again, even if its inputs are those of an earlier run
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Wait for the end, and fail if the run fails
    #[arg(short, long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) namespace: Namespace,
}

/// Options of `pipeline upload`.
#[derive(Debug, Args)]
pub(crate) struct Upload {
    /// Compiled pipeline (IR YAML or JSON), or a Python file with one, which `kfp` compiles
    pub(crate) file: PathBuf,
    /// Name of the pipeline; its own name if omitted
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Name of the version; the pipeline's name, for later versions with the time, if omitted
    #[arg(long, value_name = "NAME")]
    pub(crate) version_name: Option<String>,
    #[command(flatten)]
    pub(crate) namespace: Namespace,
}

/// Options of `pipeline export`.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Compiled pipeline (IR YAML or JSON), or a Python file with one, which `kfp` compiles
    pub(crate) file: PathBuf,
    /// Parameter as NAME=VALUE; the value is JSON, or text if it is not
    #[arg(short, long = "param", value_name = "NAME=VALUE")]
    pub(crate) parameters: Vec<String>,
    /// Size of the volume for artifacts
    #[arg(long, default_value = "10Gi")]
    pub(crate) storage: String,
}

/// Verbs of `pipeline schedule`.
#[derive(Debug, Subcommand)]
pub(crate) enum Schedule {
    /// List recurring runs
    #[command(after_help = "Example:\n  slipway pipeline schedule ls")]
    Ls {
        #[command(flatten)]
        namespace: Namespace,
    },
    /// Create recurring runs as files describe them, or replace those with the same names
    #[command(
        after_help = "Example:\n  slipway pipeline schedule apply nightly.yaml\n\nThe file:\n  name: nightly\n  pipeline: {file: train.yaml}      # or {name: train, version: v2}, which was uploaded\n  cron: 0 0 3 * * *                 # with seconds; or intervalSeconds: 3600\n  timeZone: Europe/Berlin           # UTC if omitted\n  start: 2026-01-01T00:00:00Z       # optional, as are end and description\n  catchUp: false                    # default: true\n  maxConcurrency: 1\n  enabled: true\n  experiment: Default\n  parameters: {epochs: 3}"
    )]
    Apply {
        /// Files with a recurring run each
        #[arg(required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        namespace: Namespace,
    },
    /// Start no more runs of a recurring run
    #[command(after_help = "Example:\n  slipway pipeline schedule pause nightly")]
    Pause {
        /// Name or id
        name: String,
        #[command(flatten)]
        namespace: Namespace,
    },
    /// Start runs of a recurring run again
    #[command(after_help = "Example:\n  slipway pipeline schedule resume nightly")]
    Resume {
        /// Name or id
        name: String,
        #[command(flatten)]
        namespace: Namespace,
    },
    /// Delete a recurring run; the runs that it started are kept
    #[command(after_help = "Example:\n  slipway pipeline schedule delete nightly")]
    Delete {
        /// Name or id
        name: String,
        #[command(flatten)]
        namespace: Namespace,
    },
}
