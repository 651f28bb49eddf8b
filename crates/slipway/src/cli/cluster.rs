//! Arguments of `slipway cluster` and `slipway node converge`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use slipway_cluster::resource::Layer;

/// Verbs of `cluster`.
#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Write a first cluster.yaml
    #[command(
        after_help = "Example:\n  slipway cluster init --name lab cp1=10.0.0.1 worker:w1=10.0.0.2 gpu:g1=10.0.0.3\n  slipway cluster init        # asks"
    )]
    Init {
        /// Machines: NAME=ADDRESS is a control plane, worker:NAME=ADDRESS and gpu:NAME=ADDRESS are workers; asked for when none is given
        machines: Vec<String>,
        /// Name of the cluster; lab by default
        #[arg(long)]
        name: Option<String>,
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
    /// Let the commands run that the file takes secrets from; asks, and holds until one of them changes
    #[command(after_help = "Example:\n  slipway cluster trust -f cluster.yaml")]
    Trust {
        #[command(flatten)]
        file: File,
    },
    /// What would change, on all machines; changes nothing; exit 3 when something would
    #[command(
        after_help = "Example:\n  slipway cluster plan\n  slipway cluster plan --only gpu --hosts g1 -o plan.json"
    )]
    Plan {
        #[command(flatten)]
        choice: Choice,
    },
    /// Make the machines and the cluster as the file says; safe to run again, goes on after a failure
    #[command(after_help = "Example:\n  slipway cluster apply\n  slipway cluster apply --canary 1 --yes")]
    Apply {
        #[command(flatten)]
        choice: Choice,
        /// So many machines go first; the rest follows when they succeeded
        #[arg(long, default_value_t = 0)]
        canary: usize,
        /// Begin with this step, as `status` names it, such as cp2/join
        #[arg(long, value_name = "STEP")]
        from: Option<String>,
        /// Without smoke tests
        #[arg(long)]
        no_smoke: bool,
    },
    /// Bring the nodes to the file's version of Kubernetes: drained, one by one, control planes first
    #[command(
        after_help = "Example:\n  slipway cluster upgrade --to 1.33/stable\n  slipway cluster upgrade --hosts cp1"
    )]
    Upgrade {
        #[command(flatten)]
        machines: Machines,
        /// Put this channel into the file first
        #[arg(long, value_name = "CHANNEL")]
        to: Option<String>,
        /// So many workers at once
        #[arg(long, default_value_t = 1)]
        workers: usize,
    },
    /// Drain the machines, stop Kubernetes, and turn off those that a provider made
    #[command(after_help = "Example:\n  slipway cluster stop\n  slipway cluster stop --hosts gpu-2")]
    Stop {
        #[command(flatten)]
        machines: Machines,
    },
    /// Turn machines on that a provider made, start Kubernetes, and take pods again
    #[command(after_help = "Example:\n  slipway cluster start")]
    Start {
        #[command(flatten)]
        machines: Machines,
    },
    /// Put another count of a group into the file, and apply it
    #[command(after_help = "Example:\n  slipway cluster scale gpu=3")]
    Scale {
        #[command(flatten)]
        file: File,
        /// GROUP=COUNT
        group: String,
    },
    /// End the cluster: delete what was made for it, take every change of the other machines back; asks for the name
    #[command(
        after_help = "Example:\n  slipway cluster destroy\n  slipway cluster destroy --hosts g1   # only this one leaves\n  slipway cluster destroy --name lab   # where nobody can be asked"
    )]
    Destroy {
        #[command(flatten)]
        machines: Machines,
        /// The cluster's name, in place of being asked for it
        #[arg(long)]
        name: Option<String>,
    },
    /// Take a machine that a provider has as one of a group; it is never deleted
    #[command(after_help = "Example:\n  slipway cluster adopt gpu-1 3164444")]
    Adopt {
        #[command(flatten)]
        file: File,
        /// Its name in the cluster
        machine: String,
        /// The provider's name for it
        id: String,
    },
    /// The configuration that kubectl reaches the cluster with
    #[command(
        after_help = "Example:\n  slipway cluster kubeconfig --save ~/.kube/lab\n  kubectl --kubeconfig ~/.kube/lab get nodes"
    )]
    Kubeconfig {
        #[command(flatten)]
        file: File,
        /// Name or address of the API server; the first machine's by default
        #[arg(long)]
        server: Option<String>,
        /// Keep it in a file that nobody else may read
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
    },
    /// Look for known troubles on all machines; exit 3 when something is wrong
    #[command(after_help = "Example:\n  slipway cluster doctor")]
    Doctor {
        #[command(flatten)]
        machines: Machines,
    },
    /// What the machines cost an hour and a month, and which GPUs do nothing
    #[command(after_help = "Example:\n  slipway cluster cost")]
    Cost {
        #[command(flatten)]
        file: File,
    },
    /// What is wanted of a machine, as `slipway node converge` takes it
    #[command(
        after_help = "Example:\n  slipway cluster resources g1 --only gpu | ssh g1 sudo slipway node converge --check -"
    )]
    Resources {
        #[command(flatten)]
        choice: Choice,
        /// The machine
        machine: String,
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

/// Which machines.
#[derive(Debug, Args)]
pub(crate) struct Machines {
    #[command(flatten)]
    pub(crate) file: File,
    /// Only these machines
    #[arg(long, visible_alias = "limit", value_delimiter = ',')]
    pub(crate) hosts: Vec<String>,
}

/// Which machines and layers.
#[derive(Debug, Args)]
pub(crate) struct Choice {
    #[command(flatten)]
    pub(crate) machines: Machines,
    /// Only these layers
    #[arg(long, value_delimiter = ',', value_enum)]
    pub(crate) only: Vec<LayerName>,
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
    /// Membership
    Join,
    /// MicroK8s' add-ons
    Addons,
    /// Drivers of shared storage, and storage classes
    Storage,
    /// Who tells the kubelet of GPUs, and how they are shared
    DevicePlugin,
    /// slipway in the cluster
    Platform,
    /// Smoke tests
    Smoke,
}

impl From<LayerName> for Layer {
    fn from(name: LayerName) -> Self {
        match name {
            LayerName::System => Self::System,
            LayerName::HostTools => Self::HostTools,
            LayerName::Kubernetes => Self::Kubernetes,
            LayerName::Gpu => Self::Gpu,
            LayerName::Join => Self::Join,
            LayerName::Addons => Self::Addons,
            LayerName::Storage => Self::Storage,
            LayerName::DevicePlugin => Self::DevicePlugin,
            LayerName::Platform => Self::Platform,
            LayerName::Smoke => Self::Smoke,
        }
    }
}

/// Options of `node converge`.
#[derive(Debug, Args)]
pub(crate) struct Converge {
    /// What is wanted, as JSON; `-` is the standard input
    #[arg(required_unless_present_any = ["rollback", "resume"])]
    pub(crate) document: Option<PathBuf>,
    /// Take the last change back
    #[arg(long, conflicts_with = "document")]
    pub(crate) rollback: bool,
    /// Take all changes back, the last first
    #[arg(long, requires = "rollback")]
    pub(crate) all: bool,
    /// Go on with what a new start of the machine cut off
    #[arg(long = "continue", conflicts_with_all = ["document", "rollback"])]
    pub(crate) resume: bool,
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
    #[arg(long, default_value = slipway_cluster::shell::FOLDER)]
    pub(crate) folder: PathBuf,
    /// Wait so many seconds for another that works on this machine
    #[arg(long, default_value_t = 60)]
    pub(crate) wait: u64,
}
