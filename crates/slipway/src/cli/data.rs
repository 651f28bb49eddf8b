//! Arguments of `data`. Names and letters are those of DVC, whose command line this is when the program is called through a link named `dvc`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub(crate) mod experiments;
pub(crate) mod external;
pub(crate) mod lineage;
pub(crate) mod pipeline;
pub(crate) mod queue;
pub(crate) mod reports;
pub(crate) mod upkeep;

/// Verbs of `data`.
#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Create a project in this folder
    #[command(after_help = "Example:\n  git init && slipway data init\n  slipway data init --no-scm")]
    Init(Init),
    /// Track files and folders
    #[command(
        after_help = "Example:\n  slipway data add images labels.csv\n  slipway data add --glob 'shards/*.parquet'\n  slipway data add images/new.png    # in a tracked folder"
    )]
    Add(Add),
    /// Show what differs from the recorded data, or with -c the cache from the remote
    #[command(after_help = "Example:\n  slipway data status\n  slipway data status -c -r backup --json")]
    Status(Status),
    /// Record the present content of tracked files
    #[command(after_help = "Example:\n  slipway data commit images.dvc\n  slipway data commit -f")]
    Commit(Commit),
    /// Restore tracked files from the cache
    #[command(
        after_help = "Example:\n  git checkout v1 && slipway data checkout\n  slipway data checkout images/cat.png"
    )]
    Checkout(Checkout),
    /// Stop tracking data
    #[command(
        alias = "rm",
        after_help = "Example:\n  slipway data remove images.dvc\n  slipway data remove --outs images.dvc"
    )]
    Remove {
        /// Remove the data, too
        #[arg(long)]
        outs: bool,
        /// The .dvc files
        #[arg(required = true)]
        targets: Vec<String>,
    },
    /// Rename a tracked file or folder
    #[command(alias = "mv", after_help = "Example:\n  slipway data move images pictures")]
    Move {
        /// Present path
        from: String,
        /// New path, or the folder to move it into
        to: String,
    },
    /// Make tracked files writable that are links to the cache
    #[command(after_help = "Example:\n  slipway data unprotect labels.csv")]
    Unprotect {
        /// Tracked files or folders
        #[arg(required = true)]
        targets: Vec<String>,
    },
    /// Remove data from the cache that is not used
    #[command(after_help = "Example:\n  slipway data gc -w\n  slipway data gc --all-branches --all-tags --cloud")]
    Gc(Gc),
    /// Show the difference between commits, or between a commit and the workspace
    #[command(after_help = "Example:\n  slipway data diff\n  slipway data diff v1 v2 --json")]
    Diff(Diff),
    /// Send data to a remote
    #[command(after_help = "Example:\n  slipway data push\n  slipway data push -r backup images")]
    Push(Push),
    /// Receive data from a remote, and restore tracked files
    #[command(after_help = "Example:\n  git clone URL project && cd project && slipway data pull")]
    Pull(Pull),
    /// Receive data from a remote into the cache
    #[command(
        after_help = "Example:\n  slipway data fetch --all-tags\n  slipway data fetch --type metrics --max-size 1000000"
    )]
    Fetch(Fetch),
    /// Manage remotes
    #[command(
        subcommand,
        after_help = "Example:\n  slipway data remote add -d store s3://bucket/data\n  slipway data remote modify store endpointurl http://127.0.0.1:9000"
    )]
    Remote(Remote),
    /// Show or change the configuration
    #[command(after_help = "Example:\n  slipway data config cache.type hardlink,symlink\n  slipway data config --list")]
    Config(Config),
    /// Manage the cache
    #[command(subcommand, after_help = "Example:\n  slipway data cache dir /mnt/cache")]
    Cache(Cache),
    /// Show which runs, models and deployments used data
    #[command(after_help = "Example:\n  slipway data lineage images\n  slipway data lineage images/cat.png --rev v1")]
    Lineage(lineage::Lineage),
    /// Add or list stages of pipelines
    #[command(
        subcommand,
        after_help = "Example:\n  slipway data stage add -n prepare -d raw.csv --outs clean.csv ./prepare.sh"
    )]
    Stage(pipeline::Stage),
    /// Run the stages whose dependencies, parameters, command or outputs changed
    #[command(
        after_help = "Example:\n  slipway data repro\n  slipway data repro -j 4 evaluate\n  slipway data repro --dry --downstream prepare"
    )]
    Repro(pipeline::Repro),
    /// Draw the graph of stages or outputs
    #[command(after_help = "Example:\n  slipway data dag\n  slipway data dag --md train >> README.md")]
    Dag(pipeline::Dag),
    /// Do not run stages although their dependencies change
    #[command(after_help = "Example:\n  slipway data freeze download")]
    Freeze {
        /// Stages or .dvc files
        #[arg(required = true)]
        targets: Vec<String>,
    },
    /// Undo `freeze`
    #[command(after_help = "Example:\n  slipway data unfreeze download")]
    Unfreeze {
        /// Stages or .dvc files
        #[arg(required = true)]
        targets: Vec<String>,
    },
    /// Compare parameters
    #[command(subcommand, after_help = "Example:\n  slipway data params diff v1")]
    Params(reports::Params),
    /// Show and compare metrics
    #[command(subcommand, after_help = "Example:\n  slipway data metrics show\n  slipway data metrics diff v1")]
    Metrics(reports::Metrics),
    /// Draw points and pictures of one or several revisions
    #[command(subcommand, after_help = "Example:\n  slipway data plots show\n  slipway data plots diff v1 v2")]
    Plots(reports::Plots),
    /// Save, compare, apply and share experiments
    #[command(
        subcommand,
        alias = "experiments",
        after_help = "Example:\n  slipway data exp save -n larger-batch\n  slipway data exp show"
    )]
    Exp(experiments::Exp),
    /// Run queued experiments with workers in the background
    #[command(
        subcommand,
        after_help = "Example:\n  slipway data exp run --queue -S lr=0.1,0.2\n  slipway data queue start && slipway data queue status"
    )]
    Queue(queue::Queue),
    /// Print the path from here to the root of the project
    #[command(after_help = "Example:\n  cd \"$(slipway data root)\"")]
    Root,
    #[command(flatten)]
    External(external::External),
    #[command(flatten)]
    Upkeep(upkeep::Upkeep),
}

/// Options of `data init`.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Without Git
    #[arg(long)]
    pub(crate) no_scm: bool,
    /// In a folder of a Git work tree, not at its root
    #[arg(long)]
    pub(crate) subdir: bool,
    /// Replace an existing project, with its cache
    #[arg(short, long)]
    pub(crate) force: bool,
    /// The folder
    #[arg(default_value = ".", hide_default_value = true)]
    pub(crate) directory: PathBuf,
}

/// Options of `data add`.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Do not store the data in the cache
    #[arg(long)]
    pub(crate) no_commit: bool,
    /// The targets are patterns
    #[arg(long)]
    pub(crate) glob: bool,
    /// Do not replace the files by links to the cache
    #[arg(long)]
    pub(crate) no_relink: bool,
    /// Track a copy of the target, which is elsewhere, at this place; `dvc` also accepts -o
    #[arg(long, value_name = "PATH", conflicts_with_all = ["glob", "no_commit"])]
    pub(crate) out: Option<String>,
    /// Send the target to the remote, and copy nothing here
    #[arg(long, conflicts_with_all = ["glob", "no_commit"])]
    pub(crate) to_remote: bool,
    /// The remote of --to-remote; the default one if omitted
    #[arg(short, long, value_name = "NAME", requires = "to_remote")]
    pub(crate) remote: Option<String>,
    /// Number of concurrent transfers of --to-remote
    #[arg(short = 'j', long, alias = "jobs", value_name = "NUMBER")]
    pub(crate) remote_jobs: Option<usize>,
    /// Replace what is at the place of --out
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Files and folders
    #[arg(required = true)]
    pub(crate) targets: Vec<String>,
}

/// Options of `data status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Compare the cache with the remote
    #[arg(short, long)]
    pub(crate) cloud: bool,
    /// Print JSON in DVC's form
    #[arg(long)]
    pub(crate) json: bool,
    /// Do not query the repositories of imports for newer versions
    #[arg(long)]
    pub(crate) no_updates: bool,
    #[command(flatten)]
    pub(crate) transfer: Transfer,
}

/// Options of `data commit`.
#[derive(Debug, Args)]
pub(crate) struct Commit {
    /// Do not ask before a change is recorded
    #[arg(short, long)]
    pub(crate) force: bool,
    /// The targets are folders; take all .dvc files in them
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Also the data of the stages on which the targets depend
    #[arg(short = 'd', long)]
    pub(crate) with_deps: bool,
    /// Do not replace the files by links to the cache
    #[arg(long)]
    pub(crate) no_relink: bool,
    /// .dvc files or tracked paths; all by default
    pub(crate) targets: Vec<String>,
}

/// Options of `data checkout`.
#[derive(Debug, Args)]
pub(crate) struct Checkout {
    /// Print the numbers of files only
    #[arg(long)]
    pub(crate) summary: bool,
    /// Remove data that is not in the cache without a prompt
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Recreate the links to the cache
    #[arg(long)]
    pub(crate) relink: bool,
    /// The targets are folders; take all .dvc files in them
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Also the data of the stages on which the targets depend
    #[arg(short = 'd', long)]
    pub(crate) with_deps: bool,
    /// Succeed if the cache lacks data
    #[arg(long)]
    pub(crate) allow_missing: bool,
    /// .dvc files or tracked paths; all by default
    pub(crate) targets: Vec<String>,
}

/// Which data is transferred, and where.
#[derive(Debug, Args)]
pub(crate) struct Transfer {
    /// The remote; the default one if omitted
    #[arg(short, long, value_name = "NAME")]
    pub(crate) remote: Option<String>,
    /// Number of concurrent transfers; four per core by default
    #[arg(short, long, value_name = "NUMBER")]
    pub(crate) jobs: Option<usize>,
    /// Take the data of all branches, too
    #[arg(short = 'a', long)]
    pub(crate) all_branches: bool,
    /// Take the data of all tags, too
    #[arg(short = 'T', long)]
    pub(crate) all_tags: bool,
    /// Take the data of all commits, too
    #[arg(short = 'A', long)]
    pub(crate) all_commits: bool,
    /// The targets are folders; take all .dvc files in them
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Also the data of the stages on which the targets depend
    #[arg(short = 'd', long)]
    pub(crate) with_deps: bool,
    /// .dvc files or tracked paths; all by default
    pub(crate) targets: Vec<String>,
}

/// Options of `data fetch`.
#[derive(Debug, Args)]
pub(crate) struct Fetch {
    /// Only files and folders with less than this number of bytes
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_size: Option<u64>,
    /// Only metrics or plots
    #[arg(long = "type", value_parser = ["metrics", "plots"], value_name = "TYPE")]
    pub(crate) types: Vec<String>,
    #[command(flatten)]
    pub(crate) share: Share,
}

/// Options of `data push`.
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// The targets are patterns of paths
    #[arg(long)]
    pub(crate) glob: bool,
    #[command(flatten)]
    pub(crate) share: Share,
}

/// Options that transfers of data share.
#[derive(Debug, Args)]
pub(crate) struct Share {
    /// Transfer the recorded results of stages, too
    #[arg(long, overrides_with = "no_run_cache")]
    pub(crate) run_cache: bool,
    #[arg(long, hide = true)]
    pub(crate) no_run_cache: bool,
    #[command(flatten)]
    pub(crate) transfer: Transfer,
}

/// Options of `data pull`.
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Remove data that is not in the cache without a prompt
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Succeed if data is missing
    #[arg(long)]
    pub(crate) allow_missing: bool,
    /// The targets are patterns of paths
    #[arg(long)]
    pub(crate) glob: bool,
    #[command(flatten)]
    pub(crate) share: Share,
}

/// Options of `data gc`.
#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// Keep the data of the workspace
    #[arg(short, long)]
    pub(crate) workspace: bool,
    /// Keep the data of all branches, too
    #[arg(short = 'a', long)]
    pub(crate) all_branches: bool,
    /// Keep the data of all tags, too
    #[arg(short = 'T', long)]
    pub(crate) all_tags: bool,
    /// Keep the data of all commits, too
    #[arg(short = 'A', long)]
    pub(crate) all_commits: bool,
    /// Keep the data of a commit, too
    #[arg(long, value_name = "COMMIT")]
    pub(crate) rev: Option<String>,
    /// Number of commits from --rev back
    #[arg(short, long, requires = "rev", value_name = "NUMBER")]
    pub(crate) num: Option<usize>,
    /// Keep the data of all experiments, too, also of those in the queue
    #[arg(long)]
    pub(crate) all_experiments: bool,
    /// Keep the data of all commits since a day, too
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub(crate) date: Option<String>,
    /// Keep the data of other projects that have the same cache, too, in the same scope
    #[arg(short, long, num_args = 1.., value_name = "PATH")]
    pub(crate) projects: Vec<PathBuf>,
    /// Pass over commits whose files cannot be read; their data may be removed
    #[arg(long)]
    pub(crate) skip_failed: bool,
    /// Remove unused data from the remote, too
    #[arg(short, long, conflicts_with = "not_in_remote")]
    pub(crate) cloud: bool,
    /// Remove data that the remote has from the cache, too
    #[arg(long)]
    pub(crate) not_in_remote: bool,
    /// The remote; the default one if omitted
    #[arg(short, long, value_name = "NAME")]
    pub(crate) remote: Option<String>,
    /// Number of concurrent requests
    #[arg(short, long, value_name = "NUMBER")]
    pub(crate) jobs: Option<usize>,
    /// Do not prompt
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Show what would be removed
    #[arg(long)]
    pub(crate) dry: bool,
}

/// Options of `data diff`.
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// Print JSON in DVC's form
    #[arg(long)]
    pub(crate) json: bool,
    /// Print a table in Markdown
    #[arg(long)]
    pub(crate) md: bool,
    /// Show the digests
    #[arg(long)]
    pub(crate) show_hash: bool,
    /// Do not show data that the cache lacks
    #[arg(long)]
    pub(crate) hide_missing: bool,
    /// Compare these paths only
    #[arg(long, num_args = 0.., value_name = "PATH")]
    pub(crate) targets: Vec<String>,
    /// Older commit
    #[arg(default_value = "HEAD")]
    pub(crate) a_rev: String,
    /// Newer commit; the workspace by default
    pub(crate) b_rev: Option<String>,
}

/// The level of the configuration.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Level {
    /// The file of this machine
    #[arg(long)]
    pub(crate) system: bool,
    /// The user's file
    #[arg(long)]
    pub(crate) global: bool,
    /// The project's file, which Git tracks
    #[arg(long)]
    pub(crate) project: bool,
    /// The project's file that Git does not track
    #[arg(long)]
    pub(crate) local: bool,
}

/// Verbs of `data remote`.
#[derive(Debug, Subcommand)]
pub(crate) enum Remote {
    /// Add a remote
    #[command(after_help = "Example:\n  slipway data remote add -d store s3://bucket/data")]
    Add {
        #[command(flatten)]
        level: Level,
        /// Make it the default remote
        #[arg(short, long)]
        default: bool,
        /// Replace an existing remote
        #[arg(short, long)]
        force: bool,
        /// Name of the remote
        name: String,
        /// URL or path
        url: String,
    },
    /// List the remotes
    #[command(after_help = "Example:\n  slipway data remote list")]
    List {
        #[command(flatten)]
        level: Level,
    },
    /// Change an option of a remote
    #[command(after_help = "Example:\n  slipway data remote modify --local store secret_access_key KEY")]
    Modify {
        #[command(flatten)]
        level: Level,
        /// Remove the option
        #[arg(short, long, conflicts_with = "value")]
        unset: bool,
        /// Name of the remote
        name: String,
        /// Name of the option
        option: String,
        /// Value of the option
        #[arg(required_unless_present = "unset")]
        value: Option<String>,
    },
    /// Remove a remote
    #[command(after_help = "Example:\n  slipway data remote remove store")]
    Remove {
        #[command(flatten)]
        level: Level,
        /// Name of the remote
        name: String,
    },
    /// Rename a remote
    #[command(after_help = "Example:\n  slipway data remote rename store backup")]
    Rename {
        #[command(flatten)]
        level: Level,
        /// Present name
        name: String,
        /// New name
        new: String,
    },
    /// Show or change the default remote
    #[command(after_help = "Example:\n  slipway data remote default store")]
    Default {
        #[command(flatten)]
        level: Level,
        /// Have no default remote
        #[arg(short, long, conflicts_with = "name")]
        unset: bool,
        /// Name of the remote
        name: Option<String>,
    },
}

/// Options of `data config`.
#[derive(Debug, Args)]
pub(crate) struct Config {
    #[command(flatten)]
    pub(crate) level: Level,
    /// Remove the option
    #[arg(short, long, conflicts_with = "value")]
    pub(crate) unset: bool,
    /// List all options
    #[arg(short, long, conflicts_with_all = ["name", "value", "unset"])]
    pub(crate) list: bool,
    /// Show the file that sets each option
    #[arg(long)]
    pub(crate) show_origin: bool,
    /// SECTION.OPTION or remote.NAME.OPTION
    #[arg(required_unless_present = "list")]
    pub(crate) name: Option<String>,
    /// Value of the option
    pub(crate) value: Option<String>,
}

/// Verbs of `data cache`.
#[derive(Debug, Subcommand)]
pub(crate) enum Cache {
    /// Show or change the folder of the cache
    #[command(after_help = "Example:\n  slipway data cache dir\n  slipway data cache dir --local /mnt/cache")]
    Dir {
        #[command(flatten)]
        level: Level,
        /// Use the default folder
        #[arg(short, long, conflicts_with = "path")]
        unset: bool,
        /// The folder
        path: Option<String>,
    },
    /// Give objects of DVC 2 their place in the cache of DVC 3
    #[command(after_help = "Example:\n  slipway data cache migrate --dvc-files")]
    Migrate {
        /// Record the digests of DVC 3 in the .dvc files, too
        #[arg(long)]
        dvc_files: bool,
        /// Show what would be migrated
        #[arg(long)]
        dry: bool,
    },
}
