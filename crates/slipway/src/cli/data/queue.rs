//! Arguments of `data queue`.

use clap::{Args, Subcommand};

/// Verbs of `data queue`.
#[derive(Debug, Subcommand)]
pub(crate) enum Queue {
    /// Start workers, which run the experiments in the queue
    #[command(after_help = "Example:\n  slipway data queue start\n  slipway data queue start -j 4")]
    Start {
        /// Number of workers, of which each runs one experiment at a time
        #[arg(short, long, default_value_t = 1, value_name = "NUMBER")]
        jobs: usize,
    },
    /// End the workers after their present experiments
    #[command(after_help = "Example:\n  slipway data queue stop\n  slipway data queue stop --kill")]
    Stop {
        /// Kill the experiments that run, which count as failed
        #[arg(long)]
        kill: bool,
    },
    /// List the experiments in the queue, and count the workers
    #[command(after_help = "Example:\n  slipway data queue status")]
    Status,
    /// Remove experiments from the queue; results are kept
    #[command(
        alias = "rm",
        after_help = "Example:\n  slipway data queue remove larger-batch\n  slipway data queue remove --failed"
    )]
    Remove(Remove),
    /// Interrupt experiments that run
    #[command(
        after_help = "Example:\n  slipway data queue kill larger-batch\n  slipway data queue kill -f larger-batch"
    )]
    Kill {
        /// Kill them at once
        #[arg(short, long)]
        force: bool,
        /// Names or ids of experiments
        tasks: Vec<String>,
    },
    /// Print the output of an experiment that runs or ran
    #[command(
        after_help = "Example:\n  slipway data queue logs larger-batch\n  slipway data queue logs -f larger-batch"
    )]
    Logs {
        /// Accepted for DVC: the output is printed as it is
        #[arg(short, long, hide = true)]
        encoding: Option<String>,
        /// Print what comes, until the experiment ends
        #[arg(short, long)]
        follow: bool,
        /// Name or id of the experiment
        task: String,
    },
}

/// Options of `data queue remove`.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
#[allow(clippy::struct_excessive_bools)] // They are independent options of DVC.
pub(crate) struct Remove {
    /// Remove all that do not run
    #[arg(long, conflicts_with = "tasks")]
    pub(crate) all: bool,
    /// Remove all that wait
    #[arg(long, conflicts_with = "tasks")]
    pub(crate) queued: bool,
    /// Remove all that succeeded
    #[arg(long, conflicts_with = "tasks")]
    pub(crate) success: bool,
    /// Remove all that failed
    #[arg(long, conflicts_with = "tasks")]
    pub(crate) failed: bool,
    /// Names or ids of experiments
    pub(crate) tasks: Vec<String>,
}
