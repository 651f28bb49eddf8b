//! Arguments of `slipway gpu` and `slipway top`.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use slipway_core::gpu_settings::{ClockRange, ComputeMode, Power};
use slipway_gpu::container::runtime::Runtime;
use slipway_gpu::fit::request;

/// Options of `gpu`.
#[derive(Debug, Args)]
pub(crate) struct Gpu {
    /// Simulate GPUs: t4, a4000, a100x8, h100x8, h200x8, b200x8, gb200x4, rtx-pro-6000x8, l40sx4, broken, or a file
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
    /// Show the details of all GPUs or of one, with findings
    #[command(after_help = "Example:\n  slipway gpu show 0")]
    Show {
        /// Index of the GPU; all GPUs if omitted
        index: Option<u32>,
    },
    /// Show how GPUs, network cards and CPUs are connected
    #[command(after_help = "Example:\n  slipway gpu topology -o svg > topology.svg")]
    Topology,
    /// Check the GPU software stack layer by layer, with fixes; exit code 3 if a layer is missing
    #[command(after_help = "Example:\n  slipway gpu stack")]
    Stack,
    /// Watch for XIDs, the error reports of the driver, and explain each
    #[command(after_help = "Example:\n  slipway gpu watch --seconds 60")]
    Watch {
        /// Seconds after which to stop; 0 for never
        #[arg(long, default_value_t = 0)]
        seconds: u64,
    },
    /// Explain an XID, or list those that are known
    #[command(after_help = "Example:\n  slipway gpu xid 79\n  slipway gpu xid -o json")]
    Xid {
        /// Number of the XID; lists all if omitted
        number: Option<u64>,
    },
    /// Show the theoretical peak rates of cards, with the formulas
    #[command(
        after_help = "Example:\n  slipway gpu spec \"RTX A4000\"\n  slipway gpu spec\n  slipway gpu spec \"RTX A4000\" --against-cpu"
    )]
    Spec {
        /// Name of the card; lists all cards if omitted
        card: Option<String>,
        /// Measure this machine's CPU and compare
        #[arg(long, requires = "card")]
        against_cpu: bool,
    },
    /// Benchmark arithmetic, memory and transfers
    #[command(
        after_help = "Example:\n  slipway gpu bench --cpu --quick\n  slipway gpu bench --compare\n  slipway gpu bench --report bench.md"
    )]
    Bench(Bench),
    /// Show the roofline of a card or of this machine, and where workloads lie on it
    #[command(
        after_help = "Example:\n  slipway gpu roofline --card \"H100 80GB HBM3\" --op gemm:4096,4096,4096,bf16 --op decode:model=7b,batch=1\n  slipway gpu roofline --card H200 --op decode:model=47b,active=12.9b,dtype=fp8 --op prefill:model=70b,tp=4,prompt=8192\n  slipway gpu roofline --cpu -o svg > roofline.svg"
    )]
    Roofline(Roofline),
    /// Estimate how much memory a model needs on each GPU, and which GPUs and layouts it fits; exit code 3 if it fits none
    #[command(
        after_help = "Example:\n  slipway gpu fit --model llama-3.1-70b --seq 8192 --batch 16\n  slipway gpu fit --config ./model --dtype fp8 --card H200 --gpus 8 --explain\n  slipway gpu fit --params 8b --train qlora --checkpointing"
    )]
    Fit(Box<Fit>),
    /// Manage MIG instances
    #[command(
        subcommand,
        after_help = "Example:\n  slipway gpu mig ls\n  slipway gpu mig plan \"3x1g.10gb + 1x3g.40gb\" --gpus 0"
    )]
    Mig(Mig),
    /// Compare MIG, MPS and time slicing
    #[command(subcommand, after_help = "Example:\n  slipway gpu share plan jobs.yaml --family a100-80gb")]
    Share(Share),
    /// Manage power limits, locked clocks, persistence, ECC and compute mode
    #[command(
        subcommand,
        after_help = "Example:\n  slipway gpu settings show\n  slipway gpu settings plan --gpus 0-3 --power-limit 80%"
    )]
    Settings(GpuSettings),
    /// Reset GPUs that nothing uses, with nvidia-smi; refuses and reports the reason otherwise
    #[command(after_help = "Example:\n  slipway gpu reset --gpus 3")]
    Reset(Reset),
    /// Manage CDI specifications for containers
    #[command(subcommand, after_help = "Example:\n  slipway gpu cdi generate --write")]
    Cdi(Cdi),
    /// Configure and test container runtimes
    #[command(subcommand, after_help = "Example:\n  slipway gpu container configure --runtime containerd --dry-run")]
    Container(Container),
}

/// Options of `gpu bench`.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Measure the CPU
    #[arg(long)]
    pub(crate) cpu: bool,
    /// Measure for seconds instead of minutes
    #[arg(long)]
    pub(crate) quick: bool,
    /// Compare with an earlier report: the latest of this host, or the one with this number; exit code 3 on a regression
    #[arg(long, value_name = "NUMBER", num_args = 0..=1, default_missing_value = "0")]
    pub(crate) compare: Option<i64>,
    /// Write a report to a file: .json, .md or .html
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Do not store the report
    #[arg(long)]
    pub(crate) no_store: bool,
    /// List the stored reports
    #[arg(long)]
    pub(crate) history: bool,
}

/// Options of `gpu roofline`.
#[derive(Debug, Args)]
pub(crate) struct Roofline {
    /// Theoretical roofline of a card listed by `slipway gpu spec`
    #[arg(long)]
    pub(crate) card: Option<String>,
    /// Measured roofline of this machine's CPU
    #[arg(long, conflicts_with = "card")]
    pub(crate) cpu: bool,
    /// Workload: gemm:M,N,K,bf16, linear:BATCH,IN,OUT,bf16, attention:BATCH,HEADS,SEQ,DIM,bf16, decode:model=7b,batch=1 or
    /// prefill:model=7b,prompt=2048; decode and prefill also take active=12.9b, dtype=fp8, kv=fp8 and tp=2
    #[arg(long = "op", value_name = "WORK")]
    pub(crate) ops: Vec<String>,
    /// Run the matrix products and compare
    #[arg(long)]
    pub(crate) measure: bool,
}

/// Options of `gpu fit`.
#[derive(Debug, Args)]
pub(crate) struct Fit {
    /// Number of parameters: 7b, 8x7b, 235b-a22b; the shape is a published one or a named assumption
    #[arg(long, value_name = "SIZE")]
    pub(crate) params: Option<String>,
    /// Published model: llama-3.1-70b, deepseek-ai/DeepSeek-V3
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// config.json of a model: a file, its folder, or models:/NAME/VERSION
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<String>,
    /// Parameters that a token uses, for a mixture of experts of this size
    #[arg(long, value_name = "SIZE")]
    pub(crate) active: Option<String>,
    /// Attention to assume for a model of this size: mha, gqa, mqa or mla
    #[arg(long, value_name = "KIND")]
    pub(crate) attention: Option<String>,
    #[command(flatten)]
    pub(crate) sizes: Sizes,
    /// Format of the weights: fp32, bf16, fp16, fp8, int8, gptq-int8, awq (int4), gptq, nf4, mxfp4, nvfp4 (fp4), mxfp6
    #[arg(long, value_name = "FORMAT")]
    pub(crate) dtype: Option<String>,
    /// Format of the key-value cache: fp32, bf16, fp16, fp8, int8 or fp4; fp8 with --dtype fp8, otherwise that of the activations
    #[arg(long, value_name = "FORMAT")]
    pub(crate) kv_dtype: Option<String>,
    /// Tokens per sequence; with packed sequences the length of a pack
    #[arg(long, default_value_t = 4096)]
    pub(crate) seq: u64,
    /// Sequences that are served together, or of a step of each copy in training
    #[arg(long, default_value_t = 1)]
    pub(crate) batch: u64,
    /// Tokens per block of the key-value cache
    #[arg(long, default_value_t = request::DEFAULT_BLOCK, value_name = "TOKENS")]
    pub(crate) block_size: u64,
    #[command(flatten)]
    pub(crate) training: Training,
    #[command(flatten)]
    pub(crate) machines: FitMachines,
    /// Show each formula with the numbers put in
    #[arg(long)]
    pub(crate) explain: bool,
}

/// Single sizes of a model, which replace those of its description.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sizes of the model")]
pub(crate) struct Sizes {
    /// Number of layers
    #[arg(long, value_name = "N")]
    pub(crate) layers: Option<u64>,
    /// Width of the hidden state
    #[arg(long, value_name = "N")]
    pub(crate) hidden: Option<u64>,
    /// Number of query heads
    #[arg(long, value_name = "N")]
    pub(crate) heads: Option<u64>,
    /// Number of heads of keys and values
    #[arg(long, value_name = "N")]
    pub(crate) kv_heads: Option<u64>,
    /// Width of a head
    #[arg(long, value_name = "N")]
    pub(crate) head_dim: Option<u64>,
    /// Width of the feed-forward part
    #[arg(long, value_name = "N")]
    pub(crate) intermediate: Option<u64>,
    /// Size of the vocabulary
    #[arg(long, value_name = "N")]
    pub(crate) vocab: Option<u64>,
    /// Number of experts per layer
    #[arg(long, value_name = "N")]
    pub(crate) experts: Option<u64>,
    /// Number of experts that a token uses
    #[arg(long, value_name = "N")]
    pub(crate) experts_per_token: Option<u64>,
}

/// How a model is trained.
#[derive(Debug, Args)]
#[command(next_help_heading = "Training")]
pub(crate) struct Training {
    /// Train: adam, adam8bit, adafactor, momentum, lion, muon, sgd, lora or qlora; serving if omitted
    #[arg(long, value_name = "METHOD")]
    pub(crate) train: Option<String>,
    /// Rank of the adapters of lora and qlora
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub(crate) lora_rank: u64,
    /// Recompute activations: none, selective (scores of attention) or full; full without a value
    #[arg(long, value_name = "WHICH", num_args = 0..=1, default_missing_value = "full")]
    pub(crate) checkpointing: Option<String>,
    /// Format of the gradients: bf16, fp16 or fp32
    #[arg(long, default_value = "bf16", value_name = "FORMAT")]
    pub(crate) grad_dtype: String,
    /// The optimizer keeps no fp32 weights beside 16-bit ones
    #[arg(long)]
    pub(crate) no_master_weights: bool,
    /// Attention keeps its scores, as without FlashAttention
    #[arg(long)]
    pub(crate) keep_scores: bool,
    /// Stage of ZeRO: 0 to 3; 3 is FSDP; the lowest that fits if omitted
    #[arg(long, value_name = "STAGE")]
    pub(crate) zero: Option<u32>,
}

/// The GPUs that a model may use.
#[derive(Debug, Args)]
#[command(next_help_heading = "GPUs")]
pub(crate) struct FitMachines {
    /// Card listed by `slipway gpu spec`, or a slice such as "1g.10gb of H100 80GB HBM3"; all if omitted
    #[arg(long)]
    pub(crate) card: Option<String>,
    /// Number of GPUs; the fewest that fit if omitted
    #[arg(long, value_name = "N")]
    pub(crate) gpus: Option<u64>,
    /// Number of machines
    #[arg(long, value_name = "N")]
    pub(crate) nodes: Option<u64>,
    /// GPUs per machine; 8 if omitted, or as many as the machine has that the GPU is built into: 1 GB10, 4 GB200
    #[arg(long, value_name = "N")]
    pub(crate) gpus_per_node: Option<u64>,
    /// Processes that share each GPU with equal memory limits (MPS)
    #[arg(long, value_name = "N")]
    pub(crate) share: Option<u64>,
    /// Share of the memory that may be used
    #[arg(long, default_value_t = request::DEFAULT_UTILIZATION, value_name = "SHARE")]
    pub(crate) utilization: f64,
    /// Bandwidth between machines for each GPU in GB/s
    #[arg(long, default_value_t = request::DEFAULT_NETWORK, value_name = "GB/S")]
    pub(crate) network: f64,
    /// US dollars per GPU and hour, of every card
    #[arg(long, value_name = "DOLLARS")]
    pub(crate) price: Option<f64>,
    /// Use the prices of the providers in this cluster.yaml, as `slipway cluster cost` does
    #[arg(long, value_name = "FILE", conflicts_with = "price")]
    pub(crate) prices: Option<PathBuf>,
    /// Tensor parallelism
    #[arg(long, value_name = "N")]
    pub(crate) tp: Option<u64>,
    /// Pipeline stages
    #[arg(long, value_name = "N")]
    pub(crate) pp: Option<u64>,
    /// Context parallelism
    #[arg(long, value_name = "N")]
    pub(crate) cp: Option<u64>,
    /// Data parallelism
    #[arg(long, value_name = "N")]
    pub(crate) dp: Option<u64>,
    /// Expert parallelism: spread whole experts over the GPUs, or do not
    #[arg(long, value_name = "BOOL")]
    pub(crate) ep: Option<bool>,
}

/// Options that describe the desired MIG instances.
#[derive(Debug, Args)]
pub(crate) struct Desired {
    /// MIG devices to place on the selected GPUs: "3x1g.10gb + 1x3g.40gb", "3x1c.3g.40gb", or profile ids: "19,19"
    pub(crate) instances: Option<String>,
    /// GPUs by index or UUID, such as 0-3,5; all GPUs if omitted
    #[arg(long)]
    pub(crate) gpus: Option<String>,
    /// Configuration file of mig-parted
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Name of the layout in that file
    #[arg(long, value_name = "NAME")]
    pub(crate) layout: Option<String>,
}

/// Verbs of `gpu mig`.
#[derive(Debug, Subcommand)]
pub(crate) enum Mig {
    /// List the existing instances
    #[command(after_help = "Example:\n  slipway gpu mig ls -o svg > slices.svg")]
    Ls,
    /// List the MIG profiles of a card
    #[command(after_help = "Example:\n  slipway gpu mig profiles h100-80gb")]
    Profiles {
        /// Card family, such as a100-40gb; defaults to this machine's first GPU with MIG
        family: Option<String>,
    },
    /// Place instances and show what would change; exit code 3 if there are changes
    #[command(
        after_help = "Example:\n  slipway gpu mig plan \"3x1g.10gb + 1x3g.40gb\" --gpus 0-3\n  slipway gpu mig plan -f config.yaml --layout all-balanced\n  slipway gpu mig plan --from-workloads jobs.yaml --family h100-80gb"
    )]
    Plan {
        #[command(flatten)]
        desired: Desired,
        /// Plan for a card family instead of this machine's GPUs
        #[arg(long)]
        family: Option<String>,
        /// Plan for a file of workloads instead of instances
        #[arg(long, value_name = "FILE")]
        from_workloads: Option<PathBuf>,
    },
    /// Change the layout, keeping every instance that is in both layouts
    #[command(
        after_help = "Example:\n  slipway gpu mig apply \"7x1g.10gb\" --gpus 0 --yes\n  slipway gpu mig apply --config config.yaml --layout all-balanced"
    )]
    Apply {
        #[command(flatten)]
        desired: Desired,
    },
    /// Print the layout as a mig-parted configuration
    #[command(after_help = "Example:\n  slipway gpu mig export > config.yaml")]
    Export {
        /// Name of the layout
        #[arg(long, default_value = "current")]
        name: String,
    },
}

/// Verbs of `gpu share`.
#[derive(Debug, Subcommand)]
pub(crate) enum Share {
    /// Compare sharing strategies for a file of workloads
    #[command(
        after_help = "Example:\n  slipway gpu share plan jobs.yaml --family a100-80gb\n\nThe file:\n  workloads:\n    - { name: notebook, count: 8, memory_gib: 8, compute: 0.5, duty: 0.2 }\n    - { name: tenant, count: 2, memory_gib: 20, compute: 0.25, isolation: full }"
    )]
    Plan {
        /// Workloads file; - for standard input
        file: PathBuf,
        /// MIG family, or card listed by `slipway gpu spec`; defaults to this machine's first GPU
        #[arg(long)]
        family: Option<String>,
    },
}

/// Verbs of `gpu settings`.
#[derive(Debug, Subcommand)]
pub(crate) enum GpuSettings {
    /// Show the settings of each GPU, with the limits of the card and what slipway has changed
    #[command(after_help = "Example:\n  slipway gpu settings show")]
    Show {
        #[command(flatten)]
        record: RecordFile,
    },
    /// Show what would change; exit code 3 if there are changes
    #[command(after_help = SETTINGS_EXAMPLE)]
    Plan {
        #[command(flatten)]
        desired: DesiredSettings,
        #[command(flatten)]
        record: RecordFile,
    },
    /// Change the settings; if one fails, those before it are undone
    #[command(after_help = SETTINGS_EXAMPLE)]
    Apply {
        #[command(flatten)]
        desired: DesiredSettings,
        #[command(flatten)]
        record: RecordFile,
    },
    /// Restore the settings that the GPUs had before slipway's first change
    #[command(after_help = "Example:\n  slipway gpu settings undo\n  slipway gpu settings undo --gpus 0")]
    Undo {
        /// GPUs by index, UUID or product name, such as 0-3,5; all GPUs if omitted
        #[arg(long)]
        gpus: Option<String>,
        #[command(flatten)]
        record: RecordFile,
    },
}

const SETTINGS_EXAMPLE: &str = "Example:
  slipway gpu settings apply --gpus 0-3 --power-limit 350W --persistence-mode on
  slipway gpu settings apply settings.yaml

The file is the desired state of all settings; what it leaves out gets its earlier value. Options change only what they name.

  version: v1
  gpuSettings:
    - { gpus: all, powerLimit: 80%, persistence: true }
    - { gpus: H100, lockedClocks: { graphics: 1200-1410 }, computeMode: default, ecc: true }";

/// The desired settings: a file, or options.
#[derive(Debug, Args)]
pub(crate) struct DesiredSettings {
    /// File with the desired settings; - for standard input
    #[arg(conflicts_with_all = ["gpus", "power_limit", "lock_gpu_clocks", "lock_memory_clocks", "persistence_mode", "ecc", "compute_mode"])]
    pub(crate) file: Option<PathBuf>,
    /// GPUs by index, UUID or product name, such as 0-3,5; all GPUs if omitted
    #[arg(long)]
    pub(crate) gpus: Option<String>,
    /// Power limit: 350W, 80% of the card's default, or default
    #[arg(long, value_name = "LIMIT")]
    pub(crate) power_limit: Option<Power>,
    /// Keep the graphics clock in a range of MHz: 1200-1410, 1410, or default
    #[arg(long, value_name = "MHZ")]
    pub(crate) lock_gpu_clocks: Option<ClockRange>,
    /// Keep the memory clock in a range of MHz
    #[arg(long, value_name = "MHZ")]
    pub(crate) lock_memory_clocks: Option<ClockRange>,
    /// Keep the driver initialized without programs
    #[arg(long, value_enum)]
    pub(crate) persistence_mode: Option<Switch>,
    /// ECC of the memory, from the next GPU reset or reboot on
    #[arg(long, value_enum)]
    pub(crate) ecc: Option<Switch>,
    /// Processes that may use the GPU: default, exclusive-process or prohibited
    #[arg(long, value_name = "MODE")]
    pub(crate) compute_mode: Option<ComputeMode>,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// On
    On,
    /// Off
    Off,
}

/// Where the earlier values are stored.
#[derive(Debug, Args)]
pub(crate) struct RecordFile {
    /// File with the earlier values; by default /var/lib/slipway/gpu-settings.json, for simulated GPUs in the state folder
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
}

/// Options of `gpu reset`.
#[derive(Debug, Args)]
pub(crate) struct Reset {
    /// GPUs by index, UUID or product name, such as 0-3,5
    #[arg(long, required = true)]
    pub(crate) gpus: String,
    /// Folder of the kubelet, which reports the pods that hold a GPU
    #[arg(long, default_value = "/var/lib/kubelet", value_name = "DIR")]
    pub(crate) kubelet_dir: PathBuf,
    /// State folder of the node agent, which closes its GPUs for the time of the reset
    #[arg(long, default_value = "/var/lib/slipway", value_name = "DIR")]
    pub(crate) agent_dir: PathBuf,
    #[command(flatten)]
    pub(crate) record: RecordFile,
}

/// Verbs of `gpu cdi`.
#[derive(Debug, Subcommand)]
pub(crate) enum Cdi {
    /// Generate the specification of this machine
    #[command(after_help = "Example:\n  slipway gpu cdi generate\n  slipway gpu cdi generate --write")]
    Generate {
        /// Root folder of the driver
        #[arg(long, default_value = "/")]
        root: PathBuf,
        /// NVIDIA's CDI hook program on the host; found automatically if installed
        #[arg(long, value_name = "FILE")]
        hook: Option<PathBuf>,
        /// Write it to a file that container runtimes read
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "/etc/cdi/nvidia.yaml")]
        write: Option<PathBuf>,
    },
    /// List the devices of the existing specifications
    #[command(after_help = "Example:\n  slipway gpu cdi ls")]
    Ls {
        /// Folders with specifications
        #[arg(long, default_values = ["/etc/cdi", "/var/run/cdi"])]
        dir: Vec<PathBuf>,
    },
    /// Validate a specification; exit code 3 if it is invalid
    #[command(after_help = "Example:\n  slipway gpu cdi check /etc/cdi/nvidia.yaml")]
    Check {
        /// The specification file
        file: PathBuf,
    },
}

/// The container runtimes as values of an option, each with its help.
fn runtimes() -> impl TypedValueParser<Value = Runtime> {
    let values = Runtime::NAMES.map(|(name, _, help)| PossibleValue::new(name).help(help));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<Runtime>())
}

/// Verbs of `gpu container`.
#[derive(Debug, Subcommand)]
pub(crate) enum Container {
    /// Configure a runtime to give GPUs to containers; keeps comments, --dry-run shows the diff
    #[command(
        after_help = "Example:\n  slipway gpu container configure --runtime containerd --dry-run\n  slipway gpu container configure --runtime docker --undo"
    )]
    Configure {
        /// The container runtime
        #[arg(long, value_parser = runtimes())]
        runtime: Runtime,
        /// Configuration file, if it is not the default one
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Also add NVIDIA's runtime, from this path
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "/usr/bin/nvidia-container-runtime")]
        nvidia_runtime: Option<String>,
        /// Make NVIDIA's runtime the default
        #[arg(long, requires = "nvidia_runtime")]
        set_default: bool,
        /// Restore the previous configuration
        #[arg(long)]
        undo: bool,
    },
    /// Run a container with a CDI device and check it from inside; exit code 3 if something is missing
    #[command(
        after_help = "Example:\n  slipway gpu container test\n  slipway gpu container test nvidia.com/gpu=0 --spec /etc/cdi/nvidia.yaml"
    )]
    Test {
        /// CDI name of the device
        #[arg(default_value = "nvidia.com/gpu=all")]
        device: String,
        /// CDI specification file
        #[arg(long, value_name = "FILE", default_value = "/etc/cdi/nvidia.yaml")]
        spec: PathBuf,
        /// OCI runtime program
        #[arg(long, value_name = "FILE", default_value = "runc")]
        runc: PathBuf,
    },
    /// Check paths inside the container of `test`
    #[command(hide = true, after_help = "Example:\n  slipway gpu container look /dev/nvidia0")]
    Look {
        /// Paths to check
        paths: Vec<String>,
    },
}

/// Options of `top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Simulate GPUs with this fixture
    #[arg(long, value_name = "NAME", env = slipway_core::env::GPU_FIXTURE)]
    pub(crate) fixture: Option<String>,
    /// Milliseconds between samples
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    pub(crate) interval: u64,
    /// Print one screen and exit
    #[arg(long)]
    pub(crate) once: bool,
}
