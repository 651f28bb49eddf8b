//! Arguments of the commands of `data` about other repositories and URLs.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Verbs about other repositories and URLs.
#[derive(Debug, Subcommand)]
pub(crate) enum External {
    /// List what a repository contains, tracked by Git or by DVC
    #[command(
        name = "list",
        visible_alias = "ls",
        after_help = "Example:\n  slipway data ls https://github.com/iterative/example-get-started data\n  slipway data ls . -R --dvc-only"
    )]
    List(List),
    /// List what is at a URL
    #[command(
        name = "list-url",
        visible_alias = "ls-url",
        after_help = "Example:\n  slipway data ls-url s3://bucket/data -R --size"
    )]
    ListUrl(ListUrl),
    /// Copy data of another repository, without tracking it
    #[command(after_help = "Example:\n  slipway data get ../models model.onnx --rev v2 --out best.onnx")]
    Get(Get),
    /// Copy data from a URL, without tracking it
    #[command(after_help = "Example:\n  slipway data get-url s3://bucket/data/train.csv")]
    GetUrl(GetUrl),
    /// Track a copy of data in another repository
    #[command(
        after_help = "Example:\n  slipway data import https://github.com/iterative/dataset-registry use-cases/cats-dogs\n  slipway data import ../models model.onnx --rev main\n  slipway data update model.onnx.dvc"
    )]
    Import(Import),
    /// Track a copy of data at a URL
    #[command(
        after_help = "Example:\n  slipway data import-url https://host/labels.csv\n  slipway data import-url ssh://host/srv/raw\n  slipway data import-url s3://bucket/raw --to-remote"
    )]
    ImportUrl(ImportUrl),
    /// Bring imports to the newest version of their source
    #[command(
        after_help = "Example:\n  slipway data update model.onnx.dvc\n  slipway data update --rev v3 model.onnx.dvc"
    )]
    Update(Update),
    /// Use artifacts of another repository
    #[command(subcommand, after_help = "Example:\n  slipway data artifacts get ../models classifier --rev v1.2.0")]
    Artifacts(Artifacts),
}

/// Options for the configuration of another repository.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// Branch, tag or commit
    #[arg(long, value_name = "COMMIT")]
    pub(crate) rev: Option<String>,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

/// Options that replace the configuration of another repository.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// File with options that replace those of the repository
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Remote to use instead of the repository's default one
    #[arg(long, value_name = "NAME")]
    pub(crate) remote: Option<String>,
    /// Options of the remote
    #[arg(long, value_name = "NAME=VALUE", num_args = 0.., value_parser = pair)]
    pub(crate) remote_config: Vec<(String, String)>,
}

/// Parses `NAME=VALUE`.
fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("'{text}' is not of the form NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// How a listing is shown.
#[derive(Debug, Args)]
pub(crate) struct Shape {
    /// With the files in folders
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// As a tree
    #[arg(short = 'T', long)]
    pub(crate) tree: bool,
    /// Maximum depth
    #[arg(short = 'L', long, value_name = "NUMBER")]
    pub(crate) level: Option<usize>,
    /// Show sizes
    #[arg(long)]
    pub(crate) size: bool,
}

/// Options of `data list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) shape: Shape,
    /// Only what DVC tracks
    #[arg(long)]
    pub(crate) dvc_only: bool,
    /// Print JSON in DVC's form
    #[arg(long)]
    pub(crate) json: bool,
    /// Show digests
    #[arg(long)]
    pub(crate) show_hash: bool,
    #[command(flatten)]
    pub(crate) source: Source,
    /// URL or path of the repository
    pub(crate) url: String,
    /// Path in it
    pub(crate) path: Option<String>,
}

/// Options of `data list-url`.
#[derive(Debug, Args)]
pub(crate) struct ListUrl {
    #[command(flatten)]
    pub(crate) shape: Shape,
    /// Options of the service
    #[arg(long, value_name = "NAME=VALUE", num_args = 0.., value_parser = pair)]
    pub(crate) fs_config: Vec<(String, String)>,
    /// URL or path
    pub(crate) url: String,
}

/// Options of `data get`.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// The place of the copy; `dvc` also accepts -o
    #[arg(long, value_name = "PATH")]
    pub(crate) out: Option<String>,
    /// Print where the data is stored, and copy nothing
    #[arg(long)]
    pub(crate) show_url: bool,
    /// Number of concurrent transfers
    #[arg(short, long, value_name = "NUMBER")]
    pub(crate) jobs: Option<usize>,
    /// Replace what is there
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) source: Source,
    /// URL or path of the repository
    pub(crate) url: String,
    /// Path in it
    pub(crate) path: String,
}

/// Options of `data get-url`.
#[derive(Debug, Args)]
pub(crate) struct GetUrl {
    /// Number of concurrent transfers
    #[arg(short, long, value_name = "NUMBER")]
    pub(crate) jobs: Option<usize>,
    /// Replace what is there
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Options of the service
    #[arg(long, value_name = "NAME=VALUE", num_args = 0.., value_parser = pair)]
    pub(crate) fs_config: Vec<(String, String)>,
    /// URL or path
    pub(crate) url: String,
    /// The place of the copy
    pub(crate) out: Option<String>,
}

/// Options of `data import`.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The place of the copy; `dvc` also accepts -o
    #[arg(long, value_name = "PATH")]
    pub(crate) out: Option<String>,
    /// Replace what is there
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only create the .dvc file
    #[arg(long, conflicts_with = "no_download")]
    pub(crate) no_exec: bool,
    /// Record the commit, and copy nothing
    #[arg(long)]
    pub(crate) no_download: bool,
    /// Number of concurrent transfers
    #[arg(short, long, value_name = "NUMBER")]
    pub(crate) jobs: Option<usize>,
    #[command(flatten)]
    pub(crate) source: Source,
    /// URL or path of the repository
    pub(crate) url: String,
    /// Path in it
    pub(crate) path: String,
}

/// Options of `data import-url`.
#[derive(Debug, Args)]
pub(crate) struct ImportUrl {
    /// Send the data to the remote, and copy nothing here
    #[arg(long, conflicts_with_all = ["no_exec", "no_download"])]
    pub(crate) to_remote: bool,
    /// The remote of --to-remote; the default one if omitted
    #[arg(short, long, value_name = "NAME", requires = "to_remote")]
    pub(crate) remote: Option<String>,
    /// Only create the .dvc file
    #[arg(long, conflicts_with = "no_download")]
    pub(crate) no_exec: bool,
    /// Record the version of the data, and copy nothing
    #[arg(long)]
    pub(crate) no_download: bool,
    /// Number of concurrent transfers
    #[arg(short, long, value_name = "NUMBER")]
    pub(crate) jobs: Option<usize>,
    /// Replace what is there
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Record the versions of the files in an S3 bucket that keeps them, and receive exactly these later
    #[arg(long, conflicts_with = "to_remote")]
    pub(crate) version_aware: bool,
    /// Options of the service
    #[arg(long, value_name = "NAME=VALUE", num_args = 0.., value_parser = pair)]
    pub(crate) fs_config: Vec<(String, String)>,
    /// URL or path
    pub(crate) url: String,
    /// The place of the copy
    pub(crate) out: Option<String>,
}

/// Options of `data update`.
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Branch, tag or commit to follow; of a file in a bucket with versions, the id of the version
    #[arg(long, value_name = "COMMIT")]
    pub(crate) rev: Option<String>,
    /// The targets are folders; take all .dvc files in them
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Record the new version, and copy nothing
    #[arg(long, conflicts_with = "to_remote")]
    pub(crate) no_download: bool,
    /// Send the data to the remote, and copy nothing here
    #[arg(long)]
    pub(crate) to_remote: bool,
    /// The remote of --to-remote; the default one if omitted
    #[arg(short, long, value_name = "NAME", requires = "to_remote")]
    pub(crate) remote: Option<String>,
    /// Number of concurrent transfers
    #[arg(short, long, value_name = "NUMBER")]
    pub(crate) jobs: Option<usize>,
    /// .dvc files of imports
    #[arg(required = true)]
    pub(crate) targets: Vec<String>,
}

/// Verbs of `data artifacts`.
#[derive(Debug, Subcommand)]
pub(crate) enum Artifacts {
    /// Copy an artifact, without tracking it
    #[command(after_help = "Example:\n  slipway data artifacts get ../models classifier --stage prod")]
    Get(ArtifactsGet),
}

/// Options of `data artifacts get`.
#[derive(Debug, Args)]
pub(crate) struct ArtifactsGet {
    /// Version, such as v1.2.0; the greatest one if omitted
    #[arg(long, value_name = "VERSION", conflicts_with = "stage")]
    pub(crate) rev: Option<String>,
    /// Stage, such as prod
    #[arg(long, value_name = "STAGE")]
    pub(crate) stage: Option<String>,
    /// The place of the copy; `dvc` also accepts -o
    #[arg(long, value_name = "PATH")]
    pub(crate) out: Option<String>,
    /// Print where the data is stored, and copy nothing
    #[arg(long)]
    pub(crate) show_url: bool,
    /// Number of concurrent transfers
    #[arg(short, long, value_name = "NUMBER")]
    pub(crate) jobs: Option<usize>,
    /// Replace what is there
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// URL or path of the repository
    pub(crate) url: String,
    /// Name of the artifact, or FOLDER:NAME
    pub(crate) name: String,
}
