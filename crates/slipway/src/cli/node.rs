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
    /// Bring this machine to the state in a document, one resource at a time; run by `slipway cluster apply`
    #[command(
        after_help = "Example:\n  slipway node converge --check desired.json\n  slipway node converge desired.json\n  slipway node converge --rollback"
    )]
    Converge(super::cluster::Converge),
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

/// How GPUs are offered to Kubernetes.
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
    /// Offer whole GPUs and ignore MIG
    None,
    /// Offer all MIG devices as nvidia.com/gpu
    Single,
    /// Offer each MIG profile as a separate resource
    Mixed,
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
    /// Address for metrics, health and leases
    #[arg(long, env = "SLIPWAY_NODE_LISTEN", default_value = "127.0.0.1:9400", value_name = "HOST:PORT")]
    pub(crate) listen: SocketAddr,
    /// Seconds without errors after which a GPU counts as healthy again
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub(crate) recover_after: u64,
    /// Simulate GPUs with this fixture instead of using the driver
    #[arg(long, value_name = "NAME")]
    pub(crate) fixture: Option<String>,
}
