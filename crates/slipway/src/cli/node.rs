//! Arguments of `slipway node`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use slipway_core::units::parse_duration;
use slipway_gpu::accept::check::Level;

/// Verbs of `node`.
#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Run the node agent: device plugin or DRA driver, labels, MIG manager, metrics, lease log
    #[command(
        after_help = "Example:\n  slipway node run --node-name worker-1 --kubeconfig ~/.kube/config\n  slipway node run --no-kube --config-file plugin.yaml\n  slipway node run --amd --amd-naming mixed\n\nNVIDIA's variables are understood: NODE_NAME, CONFIG_FILE, MIG_STRATEGY, NVIDIA_DRIVER_ROOT,\nDP_DISABLE_HEALTHCHECKS, DP_ENABLE_HEALTHCHECKS."
    )]
    Run(Box<Run>),
    /// Bring this machine to the state in a document, one resource at a time; run by `slipway cluster apply`
    #[command(
        after_help = "Example:\n  slipway node converge --check desired.json\n  slipway node converge desired.json\n  slipway node converge --rollback"
    )]
    Converge(super::cluster::Converge),
    /// Run the driver that brings data to the pods of this node; in a cluster, by the value data.enabled
    #[command(
        after_help = "Example:\n  slipway node data --node-name worker-1 --folder /var/lib/slipway-data --limit 100Gi"
    )]
    Data(DataDriver),
    /// Run the controller of ComputeDomains; in a cluster, by the value computeDomains.enabled
    #[command(
        after_help = "Example:\n  slipway node domains --kubeconfig ~/.kube/config\n\nOf several such processes one leads, elected by the lease slipway-domains in the namespace of the installation."
    )]
    Domains(Domains),
    /// Check this machine before it takes work, at four levels like those of `dcgmi diag`: exit 3 if it does not pass
    #[command(
        after_help = "Example:\n  slipway node accept --level 3\n  slipway node accept --list\n  slipway node accept --only all_reduce_nodes --level 4 --nodes 2 --rank 0 --address 10.0.0.1:7075 --token-file token\n  slipway node accept --show"
    )]
    Accept(Box<Accept>),
    /// List the GPUs and slices of all nodes, and the pods that hold them
    #[command(after_help = "Example:\n  slipway node ls\n  slipway node ls -o json")]
    Ls(Installation),
    /// List the GPU leases of a node with energy and idle time, newest first
    #[command(after_help = "Example:\n  slipway node leases worker-1")]
    Leases {
        /// Name of the node
        node: String,
        /// Maximum number of leases
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        installation: Installation,
    },
}

/// The cluster and the namespace of an installation.
#[derive(Debug, Args)]
pub(crate) struct Installation {
    /// Kubeconfig file; defaults to kubectl's
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long)]
    pub(crate) context: Option<String>,
    /// Namespace of the installation
    #[arg(short, long, default_value = "slipway-system")]
    pub(crate) namespace: String,
}

/// Options of `node domains`.
#[derive(Debug, Args)]
pub(crate) struct Domains {
    #[command(flatten)]
    pub(crate) installation: Installation,
    /// Address for probes and metrics
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7073")]
    pub(crate) listen: String,
}

/// Options of `node data`.
#[derive(Debug, Args)]
pub(crate) struct DataDriver {
    /// Name of the node in the cluster
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node_name: String,
    /// Folder of the kubelet
    #[arg(long, default_value = "/var/lib/kubelet", value_name = "DIR")]
    pub(crate) kubelet_dir: PathBuf,
    /// Folder of the cache
    #[arg(long, default_value = "/var/lib/slipway-data", value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// Maximum size of the cache beyond what pods use, such as 100Gi
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) limit: Option<u64>,
}

/// Parses a size in Kubernetes notation.
fn size(text: &str) -> Result<u64, String> {
    let bytes =
        slipway_exec::quantity::Quantity::Text(text.into()).value().filter(|bytes| (1.0..=1e18).contains(bytes));
    bytes.map(|bytes| bytes as u64).ok_or_else(|| format!("'{text}' is not a size, such as 100Gi"))
}

/// How GPUs are offered to Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Offer {
    /// Extended resources such as nvidia.com/gpu
    DevicePlugin,
    /// Devices for resource claims
    Dra,
}

/// How devices of AMD are named as resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AmdNaming {
    /// All GPUs and partitions are amd.com/gpu; all cards must be divided in the same way
    Single,
    /// They are named for the partitions of their cards, such as amd.com/cpx_nps4; amd.com/gpu on cards without partitions
    Mixed,
}

/// Who runs IMEX on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Imex {
    /// The agent runs a daemon for each ComputeDomain
    Agent,
    /// The service nvidia-imex of the machine, for all domains
    Host,
}

/// How MIG devices are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MigStrategy {
    /// Offer whole GPUs and ignore MIG
    None,
    /// Offer all MIG devices as nvidia.com/gpu
    Single,
    /// Offer each MIG profile as a separate resource
    Mixed,
}

/// Options of `node accept`.
#[derive(Debug, Args)]
pub(crate) struct Accept {
    /// 1 software, links and counters (seconds), 2 bandwidths and a short memory test (minutes), 3 load on all GPUs and the links between
    /// them (15 minutes), 4 all patterns on all memory, longer load, other machines (hours)
    #[arg(long, default_value = "1", value_name = "1-4")]
    pub(crate) level: Level,
    /// Run only these checks; the report is then not kept
    #[arg(long, value_delimiter = ',', value_name = "CHECK")]
    pub(crate) only: Vec<String>,
    /// Leave out these checks
    #[arg(long, value_delimiter = ',', value_name = "CHECK")]
    pub(crate) skip: Vec<String>,
    /// Check only the GPUs with these indices; the report is then not kept
    #[arg(long, value_delimiter = ',', value_name = "INDEX")]
    pub(crate) gpus: Vec<u32>,
    /// YAML file with other limits than the built-in ones
    #[arg(long, value_name = "FILE")]
    pub(crate) limits: Option<PathBuf>,
    /// Also write the report to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Show the last report that was kept, without checking anything
    #[arg(long, conflicts_with_all = ["list", "only", "skip", "gpus"])]
    pub(crate) show: bool,
    /// List the checks with their levels
    #[arg(long)]
    pub(crate) list: bool,
    /// For all_reduce_nodes: number of machines
    #[arg(long, requires_all = ["rank", "address", "token_file"], value_name = "COUNT")]
    pub(crate) nodes: Option<usize>,
    /// For all_reduce_nodes: number of this machine, from 0
    #[arg(long, requires = "nodes", value_name = "NUMBER")]
    pub(crate) rank: Option<usize>,
    /// For all_reduce_nodes: address on which machine 0 waits for the others
    #[arg(long, requires = "nodes", value_name = "HOST:PORT")]
    pub(crate) address: Option<String>,
    /// For all_reduce_nodes: file with a secret of at least 16 characters that all machines share
    #[arg(long, requires = "nodes", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// For all_reduce_nodes: time limit for all machines to join
    #[arg(long, default_value = "10m", value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) join_timeout: Duration,
    /// Simulate GPUs with this fixture instead of using the driver
    #[arg(long, value_name = "NAME")]
    pub(crate) fixture: Option<String>,
}

/// Options of `node run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Name of the node in the cluster; defaults to the host name
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node_name: Option<String>,
    /// How GPUs are offered to Kubernetes
    #[arg(long, env = "SLIPWAY_OFFER", value_enum, default_value_t = Offer::DevicePlugin)]
    pub(crate) offer: Offer,
    /// Run without an API server: no labels, no MIG manager, no claims
    #[arg(long)]
    pub(crate) no_kube: bool,
    /// Kubeconfig file; by default the pod's own configuration, then kubectl's
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long)]
    pub(crate) context: Option<String>,
    /// Device plugin configuration in NVIDIA's format
    #[arg(long, env = "CONFIG_FILE", value_name = "FILE")]
    pub(crate) config_file: Option<PathBuf>,
    /// Folder of such files; the label nvidia.com/device-plugin.config selects one
    #[arg(long, value_name = "DIR")]
    pub(crate) config_dir: Option<PathBuf>,
    /// MIG strategy; overrides the configuration file
    #[arg(long, env = "MIG_STRATEGY", value_enum)]
    pub(crate) mig_strategy: Option<MigStrategy>,
    /// mig-parted configuration; the label nvidia.com/mig.config selects a layout
    #[arg(long, value_name = "FILE")]
    pub(crate) mig_config: Option<PathBuf>,
    /// Settings of the GPUs, in the format of `slipway gpu settings`; applied again whenever the driver was restarted
    #[arg(long, value_name = "FILE")]
    pub(crate) gpu_settings: Option<PathBuf>,
    /// Folder of such files; the label slipway.dev/gpu-settings selects one
    #[arg(long, value_name = "DIR", conflicts_with = "gpu_settings")]
    pub(crate) gpu_settings_dir: Option<PathBuf>,
    /// Folder of the kubelet
    #[arg(long, default_value = "/var/lib/kubelet", value_name = "DIR")]
    pub(crate) kubelet_dir: PathBuf,
    /// Folder in which container runtimes look for CDI specifications
    #[arg(long, default_value = "/var/run/cdi", value_name = "DIR")]
    pub(crate) cdi_dir: PathBuf,
    /// Root folder of the driver on the host
    #[arg(long, env = "NVIDIA_DRIVER_ROOT", default_value = "/", value_name = "DIR")]
    pub(crate) driver_root: PathBuf,
    /// Root folder of the driver as this process sees it; defaults to the path on the host
    #[arg(long, env = "DRIVER_ROOT_CTR_PATH", value_name = "DIR")]
    pub(crate) driver_root_here: Option<PathBuf>,
    /// Folder for the pipes of MPS daemons
    #[arg(long, default_value = "/run/nvidia/mps", value_name = "DIR")]
    pub(crate) mps_root: PathBuf,
    /// Name of the DRA driver; gpu.nvidia.com replaces NVIDIA's driver
    #[arg(long, default_value = slipway_node::dra::DRIVER)]
    pub(crate) dra_driver: String,
    /// With --offer dra: also offer IMEX channels, as NVIDIA's driver compute-domain.nvidia.com does (GB200 NVL72)
    #[arg(long)]
    pub(crate) imex_channels: bool,
    /// Who runs IMEX on this node
    #[arg(long, value_enum, default_value_t = Imex::Agent)]
    pub(crate) imex: Imex,
    /// Address at which other nodes reach IMEX on this node; defaults to the node's InternalIP
    #[arg(long, env = "POD_IP", value_name = "IP")]
    pub(crate) imex_address: Option<IpAddr>,
    /// Hosts file for the names of IMEX's nodes
    #[arg(long, default_value = "/etc/hosts", value_name = "FILE")]
    pub(crate) imex_hosts: PathBuf,
    /// Keep the taint slipway.dev/not-accepted on the node until its GPUs have passed this level of `slipway node accept`
    #[arg(long, value_name = "1-4")]
    pub(crate) accept: Option<Level>,
    /// Repeat the checks at this interval, when no pod holds a GPU: 7d, 12h
    #[arg(long, requires = "accept", value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) accept_every: Option<Duration>,
    /// YAML file with the limits of the checks
    #[arg(long, requires = "accept", value_name = "FILE")]
    pub(crate) accept_limits: Option<PathBuf>,
    /// Address for metrics, health and leases
    #[arg(long, env = "SLIPWAY_NODE_LISTEN", default_value = "127.0.0.1:9400", value_name = "HOST:PORT")]
    pub(crate) listen: SocketAddr,
    /// Seconds without errors after which a GPU counts as healthy again
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub(crate) recover_after: u64,
    /// Also offer GPUs of AMD, as extended resources, with the labels of AMD's node labeller
    #[arg(long)]
    pub(crate) amd: bool,
    /// How AMD's GPUs and partitions are named as resources
    #[arg(long, value_enum, default_value_t = AmdNaming::Single)]
    pub(crate) amd_naming: AmdNaming,
    /// Reset a GPU after a fault that a reset mends, if no pod and no process uses it; the node label slipway.dev/reset-on-fault (true or
    /// false) overrides this
    #[arg(long)]
    pub(crate) reset_on_fault: bool,
    /// Simulate GPUs with this fixture instead of using the driver; with a comma one of each vendor: h100x8,mi300xx8
    #[arg(long, value_name = "NAME")]
    pub(crate) fixture: Option<String>,
}
