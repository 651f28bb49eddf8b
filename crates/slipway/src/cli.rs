//! Command-line arguments. All nouns use the same verbs: `ls`, `show`, `apply`, `rm`. Doc comments of fields are the `--help` texts.

use std::path::PathBuf;

pub(crate) mod cluster;
pub(crate) mod data;
mod global;
pub(crate) mod gpu;
pub(crate) mod node;
pub(crate) mod pipeline;

use clap::{Args, Parser, Subcommand};

pub(crate) use self::global::{Format, Global};

/// From bare GPU machines to a launched model, with one binary.
#[derive(Debug, Parser)]
#[command(name = "slipway", version, max_term_width = 110, propagate_version = true)]
#[command(disable_help_flag = true, disable_version_flag = true)]
#[command(
    after_help = "Example:\n  slipway up\n  slipway run submit --name train -- python train.py\n  slipway cluster plan -f cluster.yaml\n\n`slipway COMMAND --help` shows the options and an example of each command."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The top-level commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the platform: tracking, registry, gateway and UI in one process
    #[command(
        after_help = "Example:\n  slipway up\n  slipway up --listen 0.0.0.0:7070 --token-file tokens\n  slipway up --kube --values values.yaml"
    )]
    Up(Box<Up>),
    /// Stop the platform of this state folder, or uninstall it from a cluster
    #[command(after_help = "Example:\n  slipway down\n  slipway down --kube")]
    Down(Kube),
    /// Run a program that ends when the process which started this one does
    #[command(hide = true, after_help = "Example:\n  slipway guard PID -- PROGRAM ARGUMENTS")]
    Guard {
        /// Process id of the parent process
        parent: i32,
        /// The program and its arguments
        #[arg(last = true, required = true, value_name = "PROGRAM")]
        program: Vec<std::ffi::OsString>,
    },
    /// Supervise the process of a local run
    #[command(hide = true, after_help = "Example:\n  slipway supervise FOLDER")]
    Supervise {
        /// Folder of the attempt
        folder: PathBuf,
    },
    /// Run the controller that executes runs in a cluster; started by the installation
    #[command(
        hide = true,
        after_help = "Example:\n  slipway controller --token-file token --control-plane http://slipway.slipway-system:7070"
    )]
    Controller(Controller),
    /// Print the token of this state folder's server, for other programs and the web UI
    #[command(after_help = "Example:\n  export MLFLOW_TRACKING_TOKEN=$(slipway token)\n  slipway token --ui")]
    Token {
        /// Print a link that opens the web UI signed in; anyone with the link has your permissions
        #[arg(long)]
        ui: bool,
    },
    /// Verify a token with a server and save it
    #[command(
        after_help = "Example:\n  slipway login https://slipway.example:7070 --token-file token\n  pass slipway | slipway login https://10.0.0.5:7070 --token-file - --tls-fingerprint FINGERPRINT\n  slipway login --list"
    )]
    Login(Login),
    /// Remove the saved token of a server
    #[command(after_help = "Example:\n  slipway logout https://slipway.example:7070")]
    Logout {
        /// URL of the server
        url: String,
    },
    /// Show the status of the server
    #[command(after_help = "Example:\n  slipway status -o json")]
    Status,
    /// Check this machine and the state folder; exit code 3 if there is a problem
    #[command(after_help = "Example:\n  slipway doctor\n  slipway doctor --gpu    # on a machine that must have a GPU")]
    Doctor {
        /// Require a GPU: it is a problem if this machine has none
        #[arg(long)]
        gpu: bool,
    },
    /// Run the complete workflow on real data and verify each step: train, track, register, deploy, query
    #[command(after_help = "Example:\n  slipway demo --keep")]
    Demo(Demo),
    /// Inspect, benchmark and share GPUs
    #[command(after_help = "Example:\n  slipway gpu ls\n  slipway gpu ls --fixture h100x8    # simulated")]
    Gpu(gpu::Gpu),
    /// Show GPUs, their history and their processes live
    #[command(
        after_help = "Example:\n  slipway top\n  slipway top --fixture h100x8\n\nKeys: j k up down, s sort, / filter, enter one GPU, esc back, q quit"
    )]
    Top(gpu::Top),
    /// Run the node agent, and list GPUs and leases of the nodes
    #[command(subcommand, after_help = "Example:\n  slipway node ls")]
    Node(node::Node),
    /// Build a cluster from machines: plan, apply, detect drift
    #[command(
        subcommand,
        after_help = "Example:\n  slipway cluster init --name lab cp1=10.0.0.1 gpu:g1=10.0.0.3\n  slipway cluster plan\n  slipway cluster apply"
    )]
    Cluster(cluster::Cluster),
    /// Version data: the same files as DVC, which can be used in turn
    #[command(
        subcommand,
        after_help = "Example:\n  slipway data init\n  slipway data add images\n  slipway data remote add -d store s3://bucket/data\n  slipway data push"
    )]
    Data(data::Data),
    /// Run a real Kubernetes cluster on this machine for learning and testing; needs Go
    #[command(subcommand, after_help = "Example:\n  slipway lab up --nodes 2\n  slipway lab down")]
    Lab(Lab),
    /// Submit, follow, track and compare runs
    #[command(
        subcommand,
        after_help = "Example:\n  slipway run submit --name train --follow -- python train.py\n  slipway run ls --submitted\n  slipway run ls --experiment digits"
    )]
    Run(Run),
    /// Run pipelines of Kubeflow: compiled with its SDK, without its cluster
    #[command(
        subcommand,
        after_help = "Example:\n  slipway pipeline validate train.yaml\n  slipway pipeline submit train.yaml -p epochs=3 --wait"
    )]
    Pipeline(pipeline::Pipeline),
    /// Manage registered models
    #[command(subcommand, after_help = "Example:\n  slipway model ls\n  slipway model promote digits 3 champion")]
    Model(Model),
    /// Manage deployments: models behind the inference gateway
    #[command(subcommand, after_help = "Example:\n  slipway deploy apply deploy.yaml\n  slipway deploy show digits")]
    Deploy(Deploy),
    /// Show the origin of an inference response: request, model version, run, data
    #[command(after_help = "Example:\n  slipway show REQUEST_ID --lineage")]
    Show(Show),
    /// Explain an error code and how to fix it
    #[command(after_help = "Example:\n  slipway explain listen.unauthenticated")]
    Explain {
        /// The code; lists all codes if omitted
        code: Option<String>,
    },
    /// Show the configuration
    #[command(subcommand, after_help = "Example:\n  slipway config show --origin")]
    Config(Config),
    /// Print shell completions
    #[command(after_help = "Example:\n  slipway completions bash > /etc/bash_completion.d/slipway")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write man pages
    #[command(after_help = "Example:\n  slipway man --dir /usr/local/share/man/man1")]
    Man {
        /// Output folder
        #[arg(long, default_value = ".")]
        dir: PathBuf,
    },
}

/// Options of `up`.
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Address of the control plane and UI; port 0 picks a free port
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,
    /// Address of the inference gateway, REST
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) inference_listen: Option<String>,
    /// Address of the inference gateway, gRPC
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) grpc_listen: Option<String>,
    /// File with accepted tokens, one per line, in addition to the state folder's token
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Host names of this server besides localhost, comma-separated; requests to other names are refused
    #[arg(long, value_name = "NAMES")]
    pub(crate) hosts: Option<String>,
    /// Origin whose web pages may call the inference gateway over REST from a browser; repeatable
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    pub(crate) cors_origin: Vec<String>,
    /// Accept requests without a token: every user of this machine may read and change everything; runs are refused
    #[arg(long)]
    pub(crate) no_auth: bool,
    /// Serve TLS on all ports with this certificate (PEM); reloaded when the file changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Serve TLS on all ports with a generated certificate, kept in the state folder; prints its fingerprint
    #[arg(long, conflicts_with = "tls_cert")]
    pub(crate) tls_self_signed: bool,
    /// Maximum number of connections per port; by default a quarter of the open-file limit
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_connections: Option<usize>,
    /// Serve only inference; shares its state with a control plane (SLIPWAY_DATABASE, SLIPWAY_OBJECTS)
    #[arg(long)]
    pub(crate) gateway_only: bool,
    /// Inference runtime: auto, ort or builtin
    #[arg(long)]
    pub(crate) runtime: Option<String>,
    /// Path of libonnxruntime.so
    #[arg(long, value_name = "FILE")]
    pub(crate) onnxruntime: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) kube: Kube,
}

/// Options of `login`.
#[derive(Debug, Args)]
pub(crate) struct Login {
    /// URL of the server
    #[arg(required_unless_present = "list")]
    pub(crate) url: Option<String>,
    /// File with the token, - for standard input; defaults to $SLIPWAY_TOKEN
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// List the servers with a saved token, without the tokens
    #[arg(long, conflicts_with_all = ["url", "token_file"])]
    pub(crate) list: bool,
}

/// Options of `controller`.
#[derive(Debug, Args)]
pub(crate) struct Controller {
    /// Address for probes and metrics
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070")]
    pub(crate) listen: String,
    /// File with the token for the control plane; reloaded when it changes
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: PathBuf,
    /// URL of the control plane; defaults to the service of the installation
    #[arg(long, value_name = "URL")]
    pub(crate) control_plane: Option<String>,
}

/// Options of `up` and `down` for a Kubernetes cluster.
#[derive(Debug, Args)]
pub(crate) struct Kube {
    /// Install into, or remove from, a Kubernetes cluster
    #[arg(long)]
    pub(crate) kube: bool,
    /// Kubeconfig file; defaults to kubectl's
    #[arg(long, value_name = "FILE", requires = "kube")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, requires = "kube")]
    pub(crate) context: Option<String>,
    /// Namespace of the installation
    #[arg(short, long, default_value = "slipway-system", requires = "kube")]
    pub(crate) namespace: String,
    /// Values file in the format of the Helm chart; later files override earlier ones
    #[arg(long, value_name = "FILE", requires = "kube")]
    pub(crate) values: Vec<PathBuf>,
    /// Image; overrides the values
    #[arg(long, value_name = "NAME:TAG", requires = "kube")]
    pub(crate) image: Option<String>,
    /// Seconds to wait until everything is ready
    #[arg(long, default_value_t = 300, value_name = "SECONDS", requires = "kube")]
    pub(crate) wait: u64,
}

/// Verbs of `lab`.
#[derive(Debug, Subcommand)]
pub(crate) enum Lab {
    /// Start the control plane and nodes; the first start builds Kubernetes in about 10 minutes
    #[command(
        after_help = "Example:\n  slipway lab up --nodes 2\n  export KUBECONFIG=/run/slipway-lab/pki/admin.kubeconfig"
    )]
    Up {
        /// Number of nodes besides the control plane; 0 needs no root
        #[arg(long, default_value_t = 2)]
        nodes: u32,
        /// GPU fixtures to simulate, one per node; a single name applies to all nodes
        #[arg(long, value_delimiter = ',', value_name = "FIXTURE")]
        gpus: Vec<String>,
    },
    /// Stop the lab and remove everything it created
    #[command(after_help = "Example:\n  slipway lab down")]
    Down,
    /// Show what is running and how to reach it
    #[command(after_help = "Example:\n  slipway lab status")]
    Status,
    /// Run another lab command: stop, start, kill, exec, image, import
    #[command(after_help = "Example:\n  slipway lab do stop kubelet-n1\n  slipway lab do exec n1 ip addr")]
    Do {
        /// Arguments of the lab program
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Folder of the demo: Python environment, state, logs
    #[arg(long, default_value = ".slipway-demo")]
    pub(crate) dir: PathBuf,
    /// Leave the platform running
    #[arg(long)]
    pub(crate) keep: bool,
    /// Python interpreter that creates the virtual environment
    #[arg(long, default_value = "python3")]
    pub(crate) python: String,
    /// Inference runtime: auto, ort or builtin
    #[arg(long, default_value = "auto")]
    pub(crate) runtime: String,
}

/// Verbs of `run`.
#[derive(Debug, Subcommand)]
pub(crate) enum Run {
    /// Run a program and track it, as a process on this machine or as a pod in a cluster
    #[command(
        after_help = "Example:\n  slipway run submit train.yaml --follow\n  slipway run submit --name train --gpus 1 --experiment digits -- python train.py --lr 0.1\n\nThe file:\n  apiVersion: slipway.dev/v1\n  kind: Run\n  metadata: { name: train }\n  spec:\n    experiment: digits\n    image: registry.example/train:1       # in a cluster\n    command: [python, train.py]\n    env: [{ name: LR, value: \"0.1\" }]\n    resources: { limits: { cpu: 2, memory: 4Gi, nvidia.com/gpu: 1 } }\n    backoffLimit: 2\n    activeDeadlineSeconds: 7200"
    )]
    Submit(Box<Submit>),
    /// List submitted runs; the earlier name of `ls --submitted`
    #[command(hide = true, after_help = "Example:\n  slipway run ls --submitted")]
    Queue {
        /// Namespace; all namespaces if omitted
        #[arg(short, long)]
        namespace: Option<String>,
    },
    /// Show a submitted run: its state, the reason and its attempts
    #[command(after_help = "Example:\n  slipway run status train")]
    Status {
        #[command(flatten)]
        target: RunTarget,
    },
    /// Print the log of a submitted run
    #[command(
        after_help = "Example:\n  slipway run logs train --follow\n  slipway run logs train --attempt 1 --tail 20"
    )]
    Logs {
        #[command(flatten)]
        target: RunTarget,
        /// Follow the log until the run ends
        #[arg(short, long)]
        follow: bool,
        /// Attempt number, from 1; the latest by default
        #[arg(long)]
        attempt: Option<u32>,
        /// Number of lines from the end of the log
        #[arg(long)]
        tail: Option<u64>,
    },
    /// Cancel a submitted run
    #[command(after_help = "Example:\n  slipway run cancel train")]
    Cancel {
        #[command(flatten)]
        target: RunTarget,
    },
    /// Remove a submitted run, cancelling it if it is running; its tracked data stays
    #[command(after_help = "Example:\n  slipway run rm train")]
    Rm {
        #[command(flatten)]
        target: RunTarget,
    },
    /// List tracked runs, or with --submitted the submitted ones
    #[command(
        after_help = "Example:\n  slipway run ls --experiment digits --filter \"metrics.accuracy > 0.9\" --order-by \"metrics.accuracy DESC\"\n  slipway run ls --submitted\n  slipway run ls --submitted -n team-a -o json"
    )]
    Ls {
        /// List submitted runs with their phase and reason: pending, running and finished
        #[arg(long, conflicts_with_all = ["experiment", "filter", "order_by", "limit"])]
        submitted: bool,
        /// Namespace of submitted runs; all namespaces if omitted
        #[arg(short, long, requires = "submitted")]
        namespace: Option<String>,
        /// Experiment name or id; all experiments if omitted
        #[arg(long)]
        experiment: Option<String>,
        /// Filter in MLflow's syntax
        #[arg(long, default_value = "")]
        filter: String,
        /// Order clause in MLflow's syntax
        #[arg(long)]
        order_by: Vec<String>,
        /// Maximum number of runs
        #[arg(long, default_value_t = 50)]
        limit: i64,
    },
    /// Show a tracked run
    #[command(after_help = "Example:\n  slipway run show RUN_ID")]
    Show {
        /// The run's id
        id: String,
    },
    /// Show parameters and metrics of several runs side by side
    #[command(after_help = "Example:\n  slipway run compare RUN_ID RUN_ID")]
    Compare {
        /// The runs' ids
        #[arg(required = true, num_args = 2..)]
        ids: Vec<String>,
    },
    /// Print runs as CSV
    #[command(after_help = "Example:\n  slipway run export --experiment digits > runs.csv")]
    Export {
        /// Experiment name or id; all experiments if omitted
        #[arg(long)]
        experiment: Option<String>,
        /// Filter in MLflow's syntax
        #[arg(long, default_value = "")]
        filter: String,
    },
}

/// The name and namespace of a submitted run.
#[derive(Debug, Args)]
pub(crate) struct RunTarget {
    /// Name of the run
    pub(crate) name: String,
    /// Namespace of the run
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
}

/// Options of `run submit`.
#[derive(Debug, Args)]
pub(crate) struct Submit {
    /// Manifest file; - for standard input
    #[arg(required_unless_present = "command", conflicts_with = "command")]
    pub(crate) file: Option<PathBuf>,
    /// Namespace; overrides the manifest
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Name; overrides the manifest
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Experiment to track the run in; overrides the manifest
    #[arg(long)]
    pub(crate) experiment: Option<String>,
    /// Image; overrides the manifest
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// Environment variable to add
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Number of GPUs (`nvidia.com/gpu`); overrides the manifest
    #[arg(long)]
    pub(crate) gpus: Option<u32>,
    /// Queue of Kueue, Volcano or the KAI scheduler, in a cluster; overrides the manifest
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Option<String>,
    /// System of the queue: kueue, volcano or kai; the installed one by default
    #[arg(long, value_name = "SYSTEM")]
    pub(crate) queue_system: Option<slipway_exec::QueueSystem>,
    /// Place all pods within one nvlink-domain, node, zone, region or value of a node label: preferred=LEVEL or required=LEVEL
    #[arg(long, value_name = "CONSTRAINT")]
    pub(crate) topology: Option<String>,
    /// Follow the log until the run ends; exit code 1 if it fails
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Wait until the run ends; exit code 1 if it fails
    #[arg(short, long)]
    pub(crate) wait: bool,
    /// Program and arguments, instead of a manifest file
    #[arg(last = true)]
    pub(crate) command: Vec<String>,
}

/// Verbs of `model`.
#[derive(Debug, Subcommand)]
pub(crate) enum Model {
    /// List registered models
    #[command(after_help = "Example:\n  slipway model ls")]
    Ls,
    /// Show one model and its versions
    #[command(after_help = "Example:\n  slipway model show digits")]
    Show {
        /// Name of the model
        name: String,
    },
    /// Register a run's model as a new version
    #[command(after_help = "Example:\n  slipway model register digits --run RUN_ID --path model")]
    Register {
        /// Name of the model; created if it does not exist
        name: String,
        /// Id of the run
        #[arg(long)]
        run: String,
        /// Path of the model in the run's artifacts
        #[arg(long, default_value = "model")]
        path: String,
    },
    /// Set an alias to a version
    #[command(after_help = "Example:\n  slipway model promote digits 3 champion")]
    Promote {
        /// Name of the model
        name: String,
        /// The version
        // The id must differ from `version`, which is the id of the flag `--version`.
        #[arg(id = "model_version", value_name = "VERSION")]
        version: String,
        /// The alias
        alias: String,
    },
}

/// Verbs of `deploy`.
#[derive(Debug, Subcommand)]
pub(crate) enum Deploy {
    /// Apply a deployment manifest
    #[command(
        after_help = "Example:\n  slipway deploy apply examples/digits/deploy.yaml\n\nThe file:\n  apiVersion: slipway.dev/v1\n  kind: Deployment\n  metadata: { name: digits }\n  spec:\n    models:\n      - { name: champion, uri: \"models:/digits@champion\", weight: 90 }\n      - { name: challenger, uri: \"models:/digits@challenger\", weight: 10 }"
    )]
    Apply {
        /// Manifest file; - for standard input
        file: PathBuf,
    },
    /// List deployments
    #[command(after_help = "Example:\n  slipway deploy ls")]
    Ls,
    /// Show a deployment: models, traffic, latencies, revisions
    #[command(after_help = "Example:\n  slipway deploy show digits")]
    Show {
        /// Name of the deployment
        name: String,
    },
    /// Change the traffic weights of a deployment
    #[command(after_help = "Example:\n  slipway deploy split digits champion=50 challenger=50")]
    Split {
        /// Name of the deployment
        name: String,
        /// Weights as NAME=PERCENT; must add up to 100
        #[arg(required = true)]
        weights: Vec<String>,
    },
    /// Roll back to an earlier revision
    #[command(after_help = "Example:\n  slipway deploy rollback digits")]
    Rollback {
        /// Name of the deployment
        name: String,
        /// Revision number; the previous revision by default
        #[arg(long)]
        to: Option<i64>,
    },
    /// Send a test request; all inputs are zero unless a file is given
    #[command(after_help = "Example:\n  slipway deploy test digits\n  slipway deploy test digits --input request.json")]
    Test {
        /// Name of the deployment
        name: String,
        /// File with a V2 inference request in JSON
        #[arg(long)]
        input: Option<PathBuf>,
    },
    /// Remove a deployment
    #[command(after_help = "Example:\n  slipway deploy rm digits")]
    Rm {
        /// Name of the deployment
        name: String,
    },
}

/// Options of `show`.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Id of the inference request
    pub(crate) request: String,
    /// Show the complete chain, down to the datasets
    #[arg(long)]
    pub(crate) lineage: bool,
}

/// Verbs of `config`.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Show the effective settings
    #[command(after_help = "Example:\n  slipway config show --origin")]
    Show {
        /// Show the origin of each setting
        #[arg(long)]
        origin: bool,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Passes the path and the help of a command and of all its subcommands to `visit`, in the order of `--help`.
    fn visit_help(command: &mut clap::Command, path: &str, visit: &mut dyn FnMut(&str, &str)) {
        visit(path, command.render_help().to_string().trim_end());
        let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
        for name in names.iter().filter(|name| *name != "help") {
            if let Some(below) = command.find_subcommand_mut(name) {
                visit_help(below, &format!("{path} {name}"), visit);
            }
        }
    }

    /// The complete command line, with a fixed width.
    fn all() -> clap::Command {
        let mut all = Cli::command().term_width(100);
        all.build();
        all
    }

    #[test]
    fn help_of_every_command() {
        let mut all = all();
        all.clone().debug_assert();
        insta::assert_snapshot!("slipway", all.render_help().to_string().trim_end());
        let nouns: Vec<String> = all.get_subcommands().map(|c| c.get_name().to_owned()).collect();
        for noun in nouns.iter().filter(|noun| *noun != "help") {
            let mut text = String::new();
            if let Some(command) = all.find_subcommand_mut(noun) {
                visit_help(command, &format!("slipway {noun}"), &mut |path, help| {
                    text.push_str(&format!("$ {path} --help\n{help}\n\n"));
                });
            }
            insta::assert_snapshot!(noun.as_str(), text.trim_end());
        }
    }

    #[test]
    fn help_has_own_options_then_global_options_then_an_example() {
        let command = Cli::command();
        let globals: Vec<&str> = command.get_arguments().filter_map(|a| a.get_long()).collect();
        // The option of a line such as `  -o, --output <FORMAT|FILE>`.
        let option = |line: &str| -> Option<String> {
            let (_, name) = line.trim_start().split_once("--").filter(|(short, _)| short.len() <= 4)?;
            name.split([' ', '.']).next().map(str::to_owned)
        };
        let mut commands = 0;
        visit_help(&mut all(), "slipway", &mut |path, help| {
            commands += 1;
            let (own, rest) = help.split_once("\nGlobal options:\n").expect(path);
            let (global, example) = rest.split_once("\n\nExample:\n").expect(path);
            assert!(!example.is_empty(), "{path}: {help}");
            // `cluster kubeconfig --server` is the server that it writes, and replaces the global option there.
            let misplaced = own.lines().filter_map(option).find(|name| globals.contains(&name.as_str()));
            assert!(misplaced.is_none() || path == "slipway cluster kubeconfig", "{path}: {misplaced:?}");
            let is_global = |line: &str| option(line).is_some_and(|name| globals.contains(&name.as_str()));
            assert!(global.lines().all(is_global), "{path}: there is one line for each global option: {global}");
        });
        assert!(commands > 80, "{commands}");
    }
}
