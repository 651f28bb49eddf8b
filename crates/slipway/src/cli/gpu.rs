//! The arguments of `gpu` and `top`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Options of `gpu`.
#[derive(Debug, Args)]
pub(crate) struct Gpu {
    /// Simulate GPUs: t4, a4000, a100x8, h100x8, h200x8, b200x8, l40sx4, broken, or a file
    #[arg(long, global = true, value_name = "NAME", env = slipway_core::env::GPU_FIXTURE)]
    pub(crate) fixture: Option<String>,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Verbs of `gpu`.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List the GPUs
    #[command(after_help = "Example:\n  slipway gpu ls -o wide\n  slipway gpu ls --fixture h100x8")]
    Ls,
    /// All about the GPUs, or one of them, with findings
    #[command(after_help = "Example:\n  slipway gpu show 0")]
    Show {
        /// Its index; all without one
        index: Option<u32>,
    },
    /// How GPUs, network cards and processors are connected
    #[command(after_help = "Example:\n  slipway gpu topology -o svg > topology.svg")]
    Topology,
    /// The software below the GPUs, layer by layer, with what mends each; exit 3 when one is missing
    #[command(after_help = "Example:\n  slipway gpu stack")]
    Stack,
    /// Wait for XIDs, the driver's reports of errors, and print each in words
    #[command(after_help = "Example:\n  slipway gpu watch --seconds 60")]
    Watch {
        /// End after so many seconds; 0 never ends
        #[arg(long, default_value_t = 0)]
        seconds: u64,
    },
    /// What cards can do in theory, with the formulas
    #[command(
        after_help = "Example:\n  slipway gpu spec \"RTX A4000\"\n  slipway gpu spec\n  slipway gpu spec \"RTX A4000\" --against-cpu"
    )]
    Spec {
        /// A card; all without one
        card: Option<String>,
        /// Measure this machine's processor, and compare
        #[arg(long, requires = "card")]
        against_cpu: bool,
    },
    /// Measure arithmetic, memory and transfers
    #[command(
        after_help = "Example:\n  slipway gpu bench --cpu --quick\n  slipway gpu bench --compare\n  slipway gpu bench --report bench.md"
    )]
    Bench(Bench),
    /// The roofline of a card, of this machine, and where work lies on it
    #[command(
        after_help = "Example:\n  slipway gpu roofline --card \"H100 80GB HBM3\" --op gemm:4096,4096,4096,bf16 --op decode:model=7b,batch=1\n  slipway gpu roofline --cpu -o svg > roofline.svg"
    )]
    Roofline(Roofline),
    /// How much memory a model needs, and where it fits
    #[command(
        after_help = "Example:\n  slipway gpu fit --params 7b --dtype bf16 --seq 4096 --batch 8\n  slipway gpu fit --params 7b --train adam"
    )]
    Fit(Fit),
    /// MIG: instances of a GPU in hardware
    #[command(subcommand)]
    Mig(Mig),
    /// Sharing plans: MIG, MPS and time slices compared
    #[command(subcommand)]
    Share(Share),
    /// CDI specifications for containers
    #[command(subcommand)]
    Cdi(Cdi),
    /// Container runtimes
    #[command(subcommand)]
    Container(Container),
}

/// Options of `gpu bench`.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Measure the processor
    #[arg(long)]
    pub(crate) cpu: bool,
    /// Seconds instead of minutes
    #[arg(long)]
    pub(crate) quick: bool,
    /// Compare with an earlier report, the last of this host or the one of this number; exit 3 on a regression
    #[arg(long, value_name = "NUMBER", num_args = 0..=1, default_missing_value = "0")]
    pub(crate) compare: Option<i64>,
    /// Write a report to a file: .json, .md or .html
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Do not keep the report
    #[arg(long)]
    pub(crate) no_store: bool,
    /// List the reports that are kept
    #[arg(long)]
    pub(crate) history: bool,
}

/// Options of `gpu roofline`.
#[derive(Debug, Args)]
pub(crate) struct Roofline {
    /// A card of the sheet, in theory
    #[arg(long)]
    pub(crate) card: Option<String>,
    /// This machine's processor, measured
    #[arg(long)]
    pub(crate) cpu: bool,
    /// gemm:M,N,K,bf16, linear:BATCH,IN,OUT,bf16, attention:BATCH,HEADS,SEQ,DIM,bf16, decode:model=7b,batch=1
    #[arg(long = "op", value_name = "WORK")]
    pub(crate) ops: Vec<String>,
    /// Run the products and compare
    #[arg(long)]
    pub(crate) measure: bool,
}

/// Options of `gpu fit`.
#[derive(Debug, Args)]
pub(crate) struct Fit {
    /// Parameters: 7b, 350m
    #[arg(long)]
    pub(crate) params: String,
    /// fp32, fp16, bf16, fp8 or int8
    #[arg(long, default_value = "bf16")]
    pub(crate) dtype: String,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 4096)]
    pub(crate) seq: u32,
    /// Sequences at once
    #[arg(long, default_value_t = 1)]
    pub(crate) batch: u32,
    /// Train with adam, momentum or sgd
    #[arg(long, value_name = "OPTIMIZER")]
    pub(crate) train: Option<String>,
    /// Compute activations again instead of keeping them
    #[arg(long)]
    pub(crate) checkpointing: bool,
}

/// Which instances are wanted.
#[derive(Debug, Args)]
pub(crate) struct Wanted {
    /// Instances over all chosen GPUs: "3x1g.10gb + 1x3g.40gb"
    pub(crate) instances: Option<String>,
    /// GPUs: 0-3,5; all without
    #[arg(long)]
    pub(crate) gpus: Option<String>,
    /// A configuration file of mig-parted
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The layout in that file
    #[arg(long, value_name = "NAME")]
    pub(crate) layout: Option<String>,
}

/// Verbs of `gpu mig`.
#[derive(Debug, Subcommand)]
pub(crate) enum Mig {
    /// The instances that exist
    #[command(after_help = "Example:\n  slipway gpu mig ls -o svg > slices.svg")]
    Ls,
    /// What a card offers
    #[command(after_help = "Example:\n  slipway gpu mig profiles h100-80gb")]
    Profiles {
        /// A family, such as a100-40gb; this machine's cards without one
        family: Option<String>,
    },
    /// Place instances, and show what would change; exit 3 when something would
    #[command(
        after_help = "Example:\n  slipway gpu mig plan \"3x1g.10gb + 1x3g.40gb\" --gpus 0-3\n  slipway gpu mig plan --from-workloads jobs.yaml --family h100-80gb"
    )]
    Plan {
        #[command(flatten)]
        wanted: Wanted,
        /// Plan for a family without a card
        #[arg(long)]
        family: Option<String>,
        /// Pack a file of workloads instead
        #[arg(long, value_name = "FILE")]
        from_workloads: Option<PathBuf>,
    },
    /// Change the layout, keeping every instance that both have
    #[command(
        after_help = "Example:\n  slipway gpu mig apply \"7x1g.10gb\" --gpus 0 --yes\n  slipway gpu mig apply --config config.yaml --layout all-balanced"
    )]
    Apply {
        #[command(flatten)]
        wanted: Wanted,
    },
    /// The layout as a configuration of mig-parted
    #[command(after_help = "Example:\n  slipway gpu mig export > config.yaml")]
    Export {
        /// The layout's name
        #[arg(long, default_value = "current")]
        name: String,
    },
}

/// Verbs of `gpu share`.
#[derive(Debug, Subcommand)]
pub(crate) enum Share {
    /// Compare the ways to share for a file of workloads
    #[command(
        after_help = "Example:\n  slipway gpu share plan jobs.yaml --family a100-80gb\n\nThe file:\n  workloads:\n    - { name: notebook, count: 8, memory_gib: 8, compute: 0.5, duty: 0.2 }\n    - { name: tenant, count: 2, memory_gib: 20, compute: 0.25, isolation: full }"
    )]
    Plan {
        /// The file; - is standard input
        file: PathBuf,
        /// A MIG family or a card of the sheet; this machine's first GPU without
        #[arg(long)]
        family: Option<String>,
    },
}

/// Verbs of `gpu cdi`.
#[derive(Debug, Subcommand)]
pub(crate) enum Cdi {
    /// Make the specification of this machine
    #[command(after_help = "Example:\n  slipway gpu cdi generate\n  slipway gpu cdi generate --write")]
    Generate {
        /// Where the driver lies
        #[arg(long, default_value = "/")]
        root: PathBuf,
        /// NVIDIA's program for hooks on the host; found by itself where it is installed
        #[arg(long, value_name = "FILE")]
        hook: Option<PathBuf>,
        /// Write it where runtimes look
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "/etc/cdi/nvidia.yaml")]
        write: Option<PathBuf>,
    },
    /// Devices of the specifications that are there
    #[command(after_help = "Example:\n  slipway gpu cdi ls")]
    Ls {
        /// Folders to look in
        #[arg(long, default_values = ["/etc/cdi", "/var/run/cdi"])]
        dir: Vec<PathBuf>,
    },
    /// Check a specification; exit 3 when something is wrong
    #[command(after_help = "Example:\n  slipway gpu cdi check /etc/cdi/nvidia.yaml")]
    Check {
        /// The file
        file: PathBuf,
    },
}

/// A runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Runtime {
    /// containerd 1.7 and 2.x
    Containerd,
    /// Docker
    Docker,
    /// MicroK8s
    Microk8s,
}

/// Verbs of `gpu container`.
#[derive(Debug, Subcommand)]
pub(crate) enum Container {
    /// Let a runtime hand GPUs to containers; comments are kept, --dry-run shows the diff
    #[command(
        after_help = "Example:\n  slipway gpu container configure --runtime containerd --dry-run\n  slipway gpu container configure --runtime docker --undo"
    )]
    Configure {
        /// Which runtime
        #[arg(long, value_enum)]
        runtime: Runtime,
        /// Its configuration file, where it is not the usual one
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Add NVIDIA's runtime too, from this path
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "/usr/bin/nvidia-container-runtime")]
        nvidia_runtime: Option<String>,
        /// Make NVIDIA's runtime the default
        #[arg(long, requires = "nvidia_runtime")]
        set_default: bool,
        /// Put back what was there before
        #[arg(long)]
        undo: bool,
    },
    /// Run a container with a CDI device and look from inside; exit 3 when something is missing
    #[command(
        after_help = "Example:\n  slipway gpu container test\n  slipway gpu container test nvidia.com/gpu=0 --spec /etc/cdi/nvidia.yaml"
    )]
    Test {
        /// The device
        #[arg(default_value = "nvidia.com/gpu=all")]
        device: String,
        /// The specification
        #[arg(long, value_name = "FILE", default_value = "/etc/cdi/nvidia.yaml")]
        spec: PathBuf,
        /// The runtime
        #[arg(long, value_name = "FILE", default_value = "runc")]
        runc: PathBuf,
    },
    /// What `test` runs inside
    #[command(hide = true)]
    Look {
        /// Paths to look at
        paths: Vec<String>,
    },
}

/// Options of `top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Simulate GPUs
    #[arg(long, value_name = "NAME", env = slipway_core::env::GPU_FIXTURE)]
    pub(crate) fixture: Option<String>,
    /// Milliseconds between samples
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    pub(crate) interval: u64,
    /// Print one screen and end
    #[arg(long)]
    pub(crate) once: bool,
}
