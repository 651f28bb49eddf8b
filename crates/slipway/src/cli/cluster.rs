//! Arguments of `slipway cluster` and `slipway node converge`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use slipway_cluster::resource::Layer;

/// Verbs of `cluster`.
#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Write a first cluster.yaml
    #[command(
        after_help = "Example:\n  slipway cluster init --name lab cp1=10.0.0.1 worker:w1=10.0.0.2 gpu:g1=10.0.0.3"
    )]
    Init {
        /// Machines: NAME=ADDRESS is a control plane, worker:NAME=ADDRESS and gpu:NAME=ADDRESS are workers
        #[arg(required = true)]
        machines: Vec<String>,
        /// Name of the cluster
        #[arg(long, default_value = "lab")]
        name: String,
        /// MicroK8s' channel
        #[arg(long, default_value = "1.32/stable")]
        channel: String,
        /// User for SSH; OpenSSH's choice without
        #[arg(long)]
        user: Option<String>,
        /// Private key for SSH; OpenSSH's choice without
        #[arg(long, value_name = "FILE")]
        identity: Option<String>,
        /// File of known host keys; OpenSSH's own without
        #[arg(long, value_name = "FILE")]
        known_hosts: Option<String>,
        /// Take SSH keys of machines that are not known yet as they are, once
        #[arg(long)]
        accept_new_host_keys: bool,
        /// The file to write
        #[arg(short, long, default_value = "cluster.yaml")]
        file: PathBuf,
    },
    /// The JSON schema of cluster.yaml, for editors
    #[command(after_help = "Example:\n  slipway cluster schema > cluster.schema.json")]
    Schema,
    /// What would change, on all machines; changes nothing; exit 3 when something would
    #[command(after_help = "Example:\n  slipway cluster plan\n  slipway cluster plan --only gpu --hosts g1 -o json")]
    Plan {
        #[command(flatten)]
        choice: Choice,
        /// Keep the plan as JSON
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
    },
    /// Make the machines and the cluster as the file says; safe to run again, goes on after a failure
    #[command(after_help = "Example:\n  slipway cluster apply\n  slipway cluster apply --canary 1 --yes")]
    Apply {
        #[command(flatten)]
        choice: Choice,
        /// So many machines go first; the rest follows when they succeeded
        #[arg(long, default_value_t = 0)]
        canary: usize,
    },
    /// The last apply, and with --drift what differs now; exit 3 when something does
    #[command(after_help = "Example:\n  slipway cluster status --drift")]
    Status {
        #[command(flatten)]
        choice: Choice,
        /// Ask the machines
        #[arg(long)]
        drift: bool,
    },
    /// Take the last change of the machines back, where there is a way
    #[command(after_help = "Example:\n  slipway cluster rollback --hosts g1")]
    Rollback {
        #[command(flatten)]
        choice: Choice,
    },
    /// The machines as an inventory of Ansible
    #[command(
        after_help = "Example:\n  ansible-playbook -i inventory.sh site.yaml   # inventory.sh: exec slipway cluster inventory \"$@\""
    )]
    Inventory {
        #[command(flatten)]
        file: File,
        /// All groups and hosts
        #[arg(long, conflicts_with = "host")]
        list: bool,
        /// Variables of one host
        #[arg(long)]
        host: Option<String>,
    },
    /// A shell on a machine, or a command
    #[command(after_help = "Example:\n  slipway cluster ssh g1\n  slipway cluster ssh g1 -- nvidia-smi")]
    Ssh {
        #[command(flatten)]
        file: File,
        /// The machine
        machine: String,
        /// A command
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// The log of what was done on a machine
    #[command(after_help = "Example:\n  slipway cluster logs g1")]
    Logs {
        #[command(flatten)]
        file: File,
        /// The machine
        machine: String,
    },
}

/// Which file.
#[derive(Debug, Args)]
pub(crate) struct File {
    /// The cluster's file
    #[arg(short, long, default_value = "cluster.yaml", env = "SLIPWAY_CLUSTER_FILE")]
    pub(crate) file: PathBuf,
}

/// Which machines and layers.
#[derive(Debug, Args)]
pub(crate) struct Choice {
    #[command(flatten)]
    pub(crate) file: File,
    /// Only these layers
    #[arg(long, value_delimiter = ',', value_enum)]
    pub(crate) only: Vec<LayerName>,
    /// Only these machines
    #[arg(long, value_delimiter = ',')]
    pub(crate) hosts: Vec<String>,
}

impl Choice {
    /// The layers.
    pub(crate) fn layers(&self) -> Vec<Layer> {
        self.only.iter().map(|l| (*l).into()).collect()
    }
}

/// A layer by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayerName {
    /// Names, limits, held updates
    System,
    /// Programs on every machine
    HostTools,
    /// MicroK8s
    Kubernetes,
    /// Driver and containerd
    Gpu,
    /// MicroK8s' add-ons
    Addons,
}

impl From<LayerName> for Layer {
    fn from(name: LayerName) -> Self {
        match name {
            LayerName::System => Self::System,
            LayerName::HostTools => Self::HostTools,
            LayerName::Kubernetes => Self::Kubernetes,
            LayerName::Gpu => Self::Gpu,
            LayerName::Addons => Self::Addons,
        }
    }
}

/// Options of `node converge`.
#[derive(Debug, Args)]
pub(crate) struct Converge {
    /// What is wanted, as JSON; `-` is the standard input
    #[arg(required_unless_present = "rollback")]
    pub(crate) document: Option<PathBuf>,
    /// Take the last change back
    #[arg(long, conflicts_with = "document")]
    pub(crate) rollback: bool,
    /// Tell what differs, change nothing; exit 3 when something does
    #[arg(long)]
    pub(crate) check: bool,
    /// Only these layers
    #[arg(long, value_delimiter = ',', value_enum)]
    pub(crate) only: Vec<LayerName>,
    /// Print events as lines of JSON
    #[arg(long)]
    pub(crate) events: bool,
    /// Name of the change in the records; names sort by time
    #[arg(long)]
    pub(crate) change: Option<String>,
    /// Where records are kept
    #[arg(long, default_value = slipway_cluster::converge::FOLDER)]
    pub(crate) folder: PathBuf,
    /// Wait so many seconds for another that works on this machine
    #[arg(long, default_value_t = 60)]
    pub(crate) wait: u64,
}
