//! Arguments of `slipway node`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Verbs of `node`.
#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Run the node agent: device plugin or DRA driver, labels, MIG manager, metrics, lease log
    #[command(
        after_help = "Example:\n  slipway node run --node-name worker-1 --kubeconfig ~/.kube/config\n  slipway node run --no-kube --config-file plugin.yaml\n\nNVIDIA's variables are understood: NODE_NAME, CONFIG_FILE, MIG_STRATEGY, NVIDIA_DRIVER_ROOT,\nDP_DISABLE_HEALTHCHECKS, DP_ENABLE_HEALTHCHECKS."
    )]
    Run(Box<Run>),
    /// Make this machine what a document says, one resource after the other; `slipway cluster apply` runs it
    #[command(
        after_help = "Example:\n  slipway node converge --check wanted.json\n  slipway node converge wanted.json\n  slipway node converge --rollback"
    )]
    Converge(super::cluster::Converge),
    /// GPUs and slices of all nodes, and which pod holds them
    #[command(after_help = "Example:\n  slipway node ls\n  slipway node ls -o json")]
    Ls(Where),
    /// Who held which GPU of a node when, with energy and idle time, newest first
    #[command(after_help = "Example:\n  slipway node leases worker-1")]
    Leases {
        /// The node
        node: String,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        at: Where,
    },
}

/// Which installation.
#[derive(Debug, Args)]
pub(crate) struct Where {
    /// The cluster's configuration; kubectl's by default
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the configuration
    #[arg(long)]
    pub(crate) context: Option<String>,
    /// Namespace of the installation
    #[arg(short, long, default_value = "slipway-system")]
    pub(crate) namespace: String,
}

/// To whom GPUs are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Offer {
    /// Extended resources such as nvidia.com/gpu
    DevicePlugin,
    /// Devices for resource claims
    Dra,
}

/// How MIG devices are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MigStrategy {
    /// GPUs whole, whatever MIG says
    None,
    /// All alike, as nvidia.com/gpu
    Single,
    /// Each profile a resource of its own
    Mixed,
}

/// Options of `node run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The node's name in the cluster; the host's by default
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node_name: Option<String>,
    /// To whom GPUs are offered
    #[arg(long, env = "SLIPWAY_OFFER", value_enum, default_value_t = Offer::DevicePlugin)]
    pub(crate) offer: Offer,
    /// Do without an API server: no labels, no MIG manager, no claims
    #[arg(long)]
    pub(crate) no_kube: bool,
    /// The cluster's configuration; by default the pod's own, then kubectl's
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the configuration
    #[arg(long)]
    pub(crate) context: Option<String>,
    /// NVIDIA's device plugin configuration
    #[arg(long, env = "CONFIG_FILE", value_name = "FILE")]
    pub(crate) config_file: Option<PathBuf>,
    /// Folder of such files, of which the label nvidia.com/device-plugin.config chooses one
    #[arg(long, value_name = "DIR")]
    pub(crate) config_dir: Option<PathBuf>,
    /// In place of what the file says
    #[arg(long, env = "MIG_STRATEGY", value_enum)]
    pub(crate) mig_strategy: Option<MigStrategy>,
    /// mig-parted's configuration, of which the label nvidia.com/mig.config chooses a layout
    #[arg(long, value_name = "FILE")]
    pub(crate) mig_config: Option<PathBuf>,
    /// The kubelet's folder
    #[arg(long, default_value = "/var/lib/kubelet", value_name = "DIR")]
    pub(crate) kubelet_dir: PathBuf,
    /// Where container runtimes look for CDI specifications
    #[arg(long, default_value = "/var/run/cdi", value_name = "DIR")]
    pub(crate) cdi_dir: PathBuf,
    /// Root of the driver's files as the host sees it
    #[arg(long, env = "NVIDIA_DRIVER_ROOT", default_value = "/", value_name = "DIR")]
    pub(crate) driver_root: PathBuf,
    /// The same folder as this process sees it
    #[arg(long, env = "DRIVER_ROOT_CTR_PATH", value_name = "DIR")]
    pub(crate) driver_root_here: Option<PathBuf>,
    /// Where MPS daemons keep their pipes
    #[arg(long, default_value = "/run/nvidia/mps", value_name = "DIR")]
    pub(crate) mps_root: PathBuf,
    /// Name of the DRA driver; gpu.nvidia.com answers for NVIDIA's
    #[arg(long, default_value = slipway_node::dra::DRIVER)]
    pub(crate) dra_driver: String,
    /// Metrics, health, leases
    #[arg(long, env = "SLIPWAY_NODE_LISTEN", default_value = "127.0.0.1:9400", value_name = "HOST:PORT")]
    pub(crate) listen: SocketAddr,
    /// A GPU must be quiet for so many seconds before it counts as well again
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub(crate) recover_after: u64,
    /// A fixture that answers in place of a driver
    #[arg(long, value_name = "NAME")]
    pub(crate) fixture: Option<String>,
}
