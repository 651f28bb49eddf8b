//! Arguments of `data params`, `data metrics` and `data plots`.

use clap::{Args, Subcommand};

/// Verbs of `data params`.
#[derive(Debug, Subcommand)]
pub(crate) enum Params {
    /// Show the parameters that differ between two commits, or a commit and the workspace
    #[command(after_help = "Example:\n  slipway data params diff\n  slipway data params diff v1 v2 --all --md")]
    Diff {
        #[command(flatten)]
        diff: Comparison,
        /// Show only parameters on which stages depend
        #[arg(long)]
        deps: bool,
    },
}

/// Verbs of `data metrics`.
#[derive(Debug, Subcommand)]
pub(crate) enum Metrics {
    /// Show metrics
    #[command(after_help = "Example:\n  slipway data metrics show\n  slipway data metrics show --all-tags --md")]
    Show(MetricsShow),
    /// Show the metrics that differ between two commits, or a commit and the workspace
    #[command(after_help = "Example:\n  slipway data metrics diff\n  slipway data metrics diff v1 v2 --precision 3")]
    Diff {
        #[command(flatten)]
        diff: Comparison,
        /// Digits after the point
        #[arg(long, value_name = "NUMBER")]
        precision: Option<usize>,
        /// The targets are folders with metrics
        #[arg(short = 'R', long)]
        recursive: bool,
    },
}

/// Options of `data metrics show`.
#[derive(Debug, Args)]
pub(crate) struct MetricsShow {
    /// Show those of all branches
    #[arg(short = 'a', long)]
    pub(crate) all_branches: bool,
    /// Show those of all tags
    #[arg(short = 'T', long)]
    pub(crate) all_tags: bool,
    /// Show those of all commits
    #[arg(short = 'A', long)]
    pub(crate) all_commits: bool,
    /// Print JSON in DVC's form
    #[arg(long)]
    pub(crate) json: bool,
    /// Print a table in Markdown
    #[arg(long)]
    pub(crate) md: bool,
    /// Digits after the point
    #[arg(long, value_name = "NUMBER")]
    pub(crate) precision: Option<usize>,
    /// The targets are folders with metrics
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Files with metrics; those of the pipelines by default
    pub(crate) targets: Vec<String>,
}

/// Options of `diff`. The name differs from those of the verbs, because clap needs unique ones.
#[derive(Debug, Args)]
pub(crate) struct Comparison {
    /// Compare these files only
    #[arg(long, num_args = 0.., value_name = "PATH")]
    pub(crate) targets: Vec<String>,
    /// Show values that are equal, too
    #[arg(long)]
    pub(crate) all: bool,
    /// Print JSON in DVC's form
    #[arg(long)]
    pub(crate) json: bool,
    /// Print a table in Markdown
    #[arg(long)]
    pub(crate) md: bool,
    /// Do not show the files
    #[arg(long)]
    pub(crate) no_path: bool,
    /// Older commit
    #[arg(default_value = "HEAD")]
    pub(crate) a_rev: String,
    /// Newer commit
    #[arg(default_value = "workspace")]
    pub(crate) b_rev: String,
}

/// Verbs of `data plots`.
#[derive(Debug, Subcommand)]
pub(crate) enum Plots {
    /// Write a page with the plots of the workspace
    #[command(after_help = "Example:\n  slipway data plots show\n  slipway data plots show logs.csv --x step --y loss")]
    Show {
        /// Files with points, pictures, or names of plots; all plots by default
        targets: Vec<String>,
        #[command(flatten)]
        plot: Plot,
    },
    /// Write a page with the plots of several revisions side by side
    #[command(
        after_help = "Example:\n  slipway data plots diff\n  slipway data plots diff v1 v2 --targets logs.csv --out plots"
    )]
    Diff {
        /// Files with points, pictures, or names of plots; all plots by default
        #[arg(long, num_args = 0.., value_name = "PATH")]
        targets: Vec<String>,
        #[command(flatten)]
        plot: Plot,
        /// Commits or experiments; the workspace and, if it has changes, HEAD by default
        revisions: Vec<String>,
    },
    /// Change how an output of a stage is drawn
    #[command(
        after_help = "Example:\n  slipway data plots modify logs.csv --x step --y loss\n  slipway data plots modify logs.csv --unset x"
    )]
    Modify {
        /// The file, which a stage of a dvc.yaml writes
        target: String,
        #[command(flatten)]
        look: Look,
        /// Properties to remove
        #[arg(long, num_args = 1.., value_name = "PROPERTY")]
        unset: Vec<String>,
    },
    /// List the templates of plots, or print one
    #[command(
        after_help = "Example:\n  slipway data plots templates\n  slipway data plots templates linear > .dvc/plots/own.json"
    )]
    Templates {
        /// Name of a template
        template: Option<String>,
    },
}

/// How plots are drawn.
#[derive(Debug, Args)]
pub(crate) struct Look {
    /// Name or file of a template
    #[arg(short, long, value_name = "NAME|FILE")]
    pub(crate) template: Option<String>,
    /// Field for the x axis
    #[arg(long, value_name = "FIELD")]
    pub(crate) x: Option<String>,
    /// Field for the y axis
    #[arg(long, value_name = "FIELD")]
    pub(crate) y: Option<String>,
    /// Tables have no row with the names of fields
    #[arg(long)]
    pub(crate) no_header: bool,
    /// Title
    #[arg(long, value_name = "TEXT")]
    pub(crate) title: Option<String>,
    /// Text at the x axis
    #[arg(long, value_name = "TEXT")]
    pub(crate) x_label: Option<String>,
    /// Text at the y axis
    #[arg(long, value_name = "TEXT")]
    pub(crate) y_label: Option<String>,
}

/// How plots are shown.
#[derive(Debug, Args)]
pub(crate) struct Plot {
    #[command(flatten)]
    pub(crate) look: Look,
    /// Page of your own, in which '{plot_divs}' is the place of the plots
    #[arg(long, value_name = "FILE")]
    pub(crate) html_template: Option<String>,
    /// Folder of the page
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<String>,
    /// Print the specification in Vega-Lite of the only target
    #[arg(long, conflicts_with = "json")]
    pub(crate) show_vega: bool,
    /// Print JSON in DVC's form
    #[arg(long)]
    pub(crate) json: bool,
    /// With --json: leave placeholders for points and styles
    #[arg(long, hide = true)]
    pub(crate) split: bool,
    /// Open the page in the browser
    #[arg(long)]
    pub(crate) open: bool,
}
