//! Arguments of `slipway cluster` and `slipway node converge`.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use slipway_cluster::resource::Layer;
use slipway_cluster::spec::releases::DEFAULT_CHANNEL;

/// Verbs of `cluster`.
#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Write a first cluster.yaml
    #[command(
        after_help = "Example:\n  slipway cluster init --name lab cp1=10.0.0.1 worker:w1=10.0.0.2 gpu:g1=10.0.0.3\n  slipway cluster init        # prompts"
    )]
    Init {
        /// Machines: NAME=[USER@]ADDRESS[:PORT] for a control plane, worker:NAME=... or gpu:NAME=... for a worker; prompts if omitted
        machines: Vec<String>,
        /// Name of the cluster; lab by default
        #[arg(long)]
        name: Option<String>,
        /// Snap channel of MicroK8s
        #[arg(long, default_value = DEFAULT_CHANNEL)]
        channel: String,
        /// SSH user; defaults to OpenSSH's configuration
        #[arg(long)]
        user: Option<String>,
        /// SSH private key; defaults to OpenSSH's configuration
        #[arg(long, value_name = "FILE")]
        identity: Option<String>,
        /// File of known SSH host keys; defaults to OpenSSH's
        #[arg(long, value_name = "FILE")]
        known_hosts: Option<String>,
        /// Accept the SSH host keys of new machines on the first connection
        #[arg(long)]
        accept_new_host_keys: bool,
        /// The file to write
        #[arg(short, long, default_value = "cluster.yaml")]
        file: PathBuf,
    },
    /// Print the JSON schema of cluster.yaml, for editors
    #[command(after_help = "Example:\n  slipway cluster schema > cluster.schema.json")]
    Schema,
    /// Approve the commands from which the file takes secrets; asks first, and applies until a command changes
    #[command(after_help = "Example:\n  slipway cluster trust -f cluster.yaml")]
    Trust {
        #[command(flatten)]
        file: File,
    },
    /// Show what would change on all machines; exit code 3 if there are changes
    #[command(
        after_help = "Example:\n  slipway cluster plan\n  slipway cluster plan --only gpu --hosts g1 -o plan.json"
    )]
    Plan {
        #[command(flatten)]
        selection: Selection,
    },
    /// Bring the machines and the cluster to the state in the file; safe to repeat, continues after a failure
    #[command(after_help = "Example:\n  slipway cluster apply\n  slipway cluster apply --canary 1 --yes")]
    Apply {
        #[command(flatten)]
        selection: Selection,
        /// Number of machines to change first; the rest follow if they succeed
        #[arg(long, default_value_t = 0)]
        canary: usize,
        /// Start at this step, as named by `status`, such as cp2/join
        #[arg(long, value_name = "STEP")]
        from: Option<String>,
        /// Skip the smoke tests
        #[arg(long)]
        no_smoke: bool,
    },
    /// Upgrade the nodes to the Kubernetes version in the file: drained, one by one, control planes first
    #[command(
        after_help = "Example:\n  slipway cluster upgrade --to 1.36/stable\n  slipway cluster upgrade --hosts cp1"
    )]
    Upgrade {
        #[command(flatten)]
        machines: Machines,
        /// Write this channel of MicroK8s, or version of K3s, RKE2 or kubeadm, to the file first
        #[arg(long, value_name = "CHANNEL")]
        to: Option<String>,
        /// Number of workers to upgrade at once
        #[arg(long, default_value_t = 1)]
        workers: usize,
    },
    /// Drain the machines, stop Kubernetes, and power off the provider's machines
    #[command(after_help = "Example:\n  slipway cluster stop\n  slipway cluster stop --hosts gpu-2")]
    Stop {
        #[command(flatten)]
        machines: Machines,
    },
    /// Power on the provider's machines, start Kubernetes, and make the nodes schedulable again
    #[command(after_help = "Example:\n  slipway cluster start")]
    Start {
        #[command(flatten)]
        machines: Machines,
    },
    /// Change the count of a group in the file and apply it
    #[command(after_help = "Example:\n  slipway cluster scale gpu=3")]
    Scale {
        #[command(flatten)]
        file: File,
        /// GROUP=COUNT
        group: String,
    },
    /// Destroy the cluster: delete its provider machines and undo every change on the others; asks for the cluster's name
    #[command(
        after_help = "Example:\n  slipway cluster destroy\n  slipway cluster destroy --hosts g1   # removes only this machine\n  slipway cluster destroy --name lab   # without a terminal"
    )]
    Destroy {
        #[command(flatten)]
        machines: Machines,
        /// Name of the cluster, instead of a prompt
        #[arg(long)]
        name: Option<String>,
    },
    /// Use an existing machine of a provider as a member of a group; it is never deleted
    #[command(after_help = "Example:\n  slipway cluster adopt gpu-1 3164444")]
    Adopt {
        #[command(flatten)]
        file: File,
        /// Name of the machine in the cluster
        machine: String,
        /// Id of the machine at the provider
        id: String,
    },
    /// Print the kubeconfig of the cluster
    #[command(
        after_help = "Example:\n  slipway cluster kubeconfig --save ~/.kube/lab\n  kubectl --kubeconfig ~/.kube/lab get nodes"
    )]
    Kubeconfig {
        #[command(flatten)]
        file: File,
        /// HOST or HOST:PORT of the API server; by default spec.kubernetes.endpoint, else the address of the first control plane
        #[arg(long, value_name = "HOST[:PORT]")]
        server: Option<String>,
        /// Save it to a file that only you can read
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
    },
    /// Check all machines for known problems; exit code 3 on an error
    #[command(after_help = "Example:\n  slipway cluster doctor")]
    Doctor {
        #[command(flatten)]
        machines: Machines,
    },
    /// Show the hourly and monthly cost of the machines, and idle GPUs
    #[command(after_help = "Example:\n  slipway cluster cost")]
    Cost {
        #[command(flatten)]
        file: File,
    },
    /// Print the desired state of a machine, as input for `slipway node converge`
    #[command(
        after_help = "Example:\n  slipway cluster resources g1 --only gpu | ssh g1 sudo slipway node converge --check -"
    )]
    Resources {
        #[command(flatten)]
        selection: Selection,
        /// Name of the machine
        machine: String,
    },
    /// Show the last apply, or with --drift the current differences (exit code 3 if there are any)
    #[command(after_help = "Example:\n  slipway cluster status --drift")]
    Status {
        #[command(flatten)]
        selection: Selection,
        /// Compare the machines with the file
        #[arg(long)]
        drift: bool,
    },
    /// Roll back the last change of the machines, where possible
    #[command(after_help = "Example:\n  slipway cluster rollback --hosts g1")]
    Rollback {
        #[command(flatten)]
        selection: Selection,
    },
    /// Print the machines as an Ansible inventory
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
    /// Open a shell on a machine, or run a command
    #[command(after_help = "Example:\n  slipway cluster ssh g1\n  slipway cluster ssh g1 -- nvidia-smi")]
    Ssh {
        #[command(flatten)]
        file: File,
        /// Name of the machine
        machine: String,
        /// Command to run
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Print the log of changes on a machine
    #[command(after_help = "Example:\n  slipway cluster logs g1")]
    Logs {
        #[command(flatten)]
        file: File,
        /// Name of the machine
        machine: String,
    },
}

/// The option for the cluster file.
#[derive(Debug, Args)]
pub(crate) struct File {
    /// The cluster file
    #[arg(short, long, default_value = "cluster.yaml", env = "SLIPWAY_CLUSTER_FILE")]
    pub(crate) file: PathBuf,
}

/// Options that select machines.
#[derive(Debug, Args)]
pub(crate) struct Machines {
    #[command(flatten)]
    pub(crate) file: File,
    /// Only these machines
    #[arg(long, visible_alias = "limit", value_delimiter = ',')]
    pub(crate) hosts: Vec<String>,
}

/// Options that select machines and layers.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    #[command(flatten)]
    pub(crate) machines: Machines,
    /// Only these layers
    #[arg(long, value_delimiter = ',', value_parser = layers())]
    pub(crate) only: Vec<Layer>,
}

/// The layers as values of an option, each with its help.
fn layers() -> impl TypedValueParser<Value = Layer> {
    let values = Layer::ALL.map(|layer| PossibleValue::new(layer.name()).help(layer.summary()));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<Layer>())
}

/// Options of `node converge`.
#[derive(Debug, Args)]
pub(crate) struct Converge {
    /// Desired state as JSON; `-` for standard input
    #[arg(required_unless_present_any = ["rollback", "resume"])]
    pub(crate) document: Option<PathBuf>,
    /// Roll back the last change
    #[arg(long, conflicts_with = "document")]
    pub(crate) rollback: bool,
    /// Roll back all changes, latest first
    #[arg(long, requires = "rollback")]
    pub(crate) all: bool,
    /// Continue a change that a reboot interrupted
    #[arg(long = "continue", conflicts_with_all = ["document", "rollback"])]
    pub(crate) resume: bool,
    /// Show differences without changing anything; exit code 3 if there are any
    #[arg(long)]
    pub(crate) check: bool,
    /// Only these layers
    #[arg(long, value_delimiter = ',', value_parser = layers())]
    pub(crate) only: Vec<Layer>,
    /// Print events as lines of JSON
    #[arg(long)]
    pub(crate) events: bool,
    /// Name of the change in the records; names must sort by time
    #[arg(long)]
    pub(crate) change: Option<String>,
    /// Folder of the records
    #[arg(long, default_value = slipway_cluster::shell::FOLDER)]
    pub(crate) folder: PathBuf,
    /// Seconds to wait for another process that changes this machine
    #[arg(long, default_value_t = 60)]
    pub(crate) wait: u64,
}
