//! The arguments. Verbs are the same everywhere: `ls show apply rm`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

pub(crate) mod cluster;
pub(crate) mod gpu;
pub(crate) mod node;

use clap::builder::{EnumValueParser, PossibleValue, TypedValueParser};
use clap::{Arg, Args, Parser, Subcommand, ValueEnum};

/// From bare GPU machines to a launched model, with one binary.
#[derive(Debug, Parser)]
#[command(name = "slipway", version, max_term_width = 110, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// URL of the control plane; without one, the server of this machine or the state folder itself is used
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// SHA-256 fingerprint of the only certificate that is accepted from the server
    #[arg(long, global = true, value_name = "FINGERPRINT")]
    pub(crate) tls_fingerprint: Option<String>,
    /// Send the token over plain http, too, where everybody on the way can read it
    #[arg(long, global = true)]
    pub(crate) insecure: bool,
    /// State folder
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// How to print; or a file to print into, whose ending says how: plan.json, report.html
    #[arg(short, long, global = true, value_name = "FORMAT|FILE", value_parser = OutputParser, default_value = "table")]
    pub(crate) output: Output,
    /// Log more (twice: debug)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Print results and errors only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// No colours (also NO_COLOR)
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
    /// Answer yes to every question
    #[arg(short, long, global = true)]
    pub(crate) yes: bool,
    /// Show what would change and change nothing
    #[arg(long, global = true)]
    pub(crate) dry_run: bool,
}

/// A format of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people
    Table,
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// Names only, one a line
    Name,
    /// More columns for people
    Wide,
    /// A picture, where the command has one
    Svg,
    /// A page, where the command has one
    Html,
}

/// The format of what is printed, and the file that it goes to.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) format: Format,
    /// The file that is written in place of stdout.
    pub(crate) file: Option<PathBuf>,
}

/// Accepts the name of a format, or of a file whose ending is one.
#[derive(Debug, Clone)]
struct OutputParser;

impl TypedValueParser for OutputParser {
    type Value = Output;

    fn parse_ref(&self, command: &clap::Command, argument: Option<&Arg>, value: &OsStr) -> Result<Output, clap::Error> {
        let ending = Path::new(value).extension().and_then(OsStr::to_str).unwrap_or_default();
        match Format::from_str(ending, false) {
            Ok(format @ (Format::Json | Format::Yaml | Format::Svg | Format::Html)) => {
                Ok(Output { format, file: Some(value.into()) })
            }
            _ => {
                let format = EnumValueParser::<Format>::new().parse_ref(command, argument, value)?;
                Ok(Output { format, file: None })
            }
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(Format::value_variants().iter().filter_map(Format::to_possible_value)))
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the platform: tracking, registry, gateway and UI in one process
    #[command(
        after_help = "Example:\n  slipway up\n  slipway up --listen 0.0.0.0:7070 --token-file tokens\n  slipway up --kube --values values.yaml"
    )]
    Up(Up),
    /// Stop the platform of this state folder, or take it out of a cluster
    #[command(after_help = "Example:\n  slipway down\n  slipway down --kube")]
    Down(Kube),
    /// The parent process of a local run's program
    #[command(hide = true)]
    Supervise {
        /// Folder of the attempt
        folder: PathBuf,
    },
    /// The controller of runs in a cluster; the installation starts it
    #[command(hide = true)]
    Controller(Controller),
    /// The token of this state folder's server, for other programs and for the web UI
    #[command(after_help = "Example:\n  export MLFLOW_TRACKING_TOKEN=$(slipway token)\n  slipway token --ui")]
    Token {
        /// A link that opens the web UI signed in; whoever has it may do what you may
        #[arg(long)]
        ui: bool,
    },
    /// Save a token for a server, after trying it
    #[command(
        after_help = "Example:\n  slipway login https://slipway.example:7070 --token-file token\n  pass slipway | slipway login https://10.0.0.5:7070 --token-file - --tls-fingerprint FINGERPRINT\n  slipway login --list"
    )]
    Login(Login),
    /// Forget the token of a server
    #[command(after_help = "Example:\n  slipway logout https://slipway.example:7070")]
    Logout {
        /// The server
        url: String,
    },
    /// Show what is running and in what state
    #[command(after_help = "Example:\n  slipway status -o json")]
    Status,
    /// Check this machine and the state folder; exit 3 when something is wrong
    #[command(after_help = "Example:\n  slipway doctor")]
    Doctor,
    /// The main job on real data: train, track, register, deploy, ask; verified step by step
    #[command(after_help = "Example:\n  slipway demo --keep")]
    Demo(Demo),
    /// GPUs: see them, measure them, share them
    Gpu(gpu::Gpu),
    /// GPUs, their history and their processes, live
    #[command(
        after_help = "Example:\n  slipway top\n  slipway top --fixture h100x8\n\nKeys: j k up down, s sort, / filter, enter one GPU, esc back, q quit"
    )]
    Top(gpu::Top),
    /// This node's agent on Kubernetes
    #[command(subcommand)]
    Node(node::Node),
    /// Machines to a cluster: plan, apply, drift
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// A real Kubernetes on this machine, to learn and to test on; needs Go
    #[command(subcommand)]
    Lab(Lab),
    /// Runs: submit, follow, track and compare them
    #[command(subcommand)]
    Run(Run),
    /// Registered models
    #[command(subcommand)]
    Model(Model),
    /// Deployments: models behind the inference gateway
    #[command(subcommand)]
    Deploy(Deploy),
    /// Show where an answer came from: request, model version, run, data
    #[command(after_help = "Example:\n  slipway show REQUEST_ID --lineage")]
    Show(Show),
    /// Explain an error code and what helps
    #[command(after_help = "Example:\n  slipway explain listen.unauthenticated")]
    Explain {
        /// The code; without one all are listed
        code: Option<String>,
    },
    /// Settings
    #[command(subcommand)]
    Config(Config),
    /// Print completions for a shell
    #[command(after_help = "Example:\n  slipway completions bash > /etc/bash_completion.d/slipway")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write man pages
    #[command(after_help = "Example:\n  slipway man --dir /usr/local/share/man/man1")]
    Man {
        /// Folder to write them to
        #[arg(long, default_value = ".")]
        dir: PathBuf,
    },
}

/// Options of `up`.
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Control plane and UI (port 0 picks a free one)
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,
    /// Inference gateway, REST
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) inference_listen: Option<String>,
    /// Inference gateway, gRPC
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) grpc_listen: Option<String>,
    /// File with one accepted token a line, besides the token of the state folder
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Names of this server besides localhost, separated by commas; requests for other names are refused
    #[arg(long, value_name = "NAMES")]
    pub(crate) hosts: Option<String>,
    /// Ask nobody for a token: every user of this machine may read and change everything; no programs are run
    #[arg(long)]
    pub(crate) no_auth: bool,
    /// Speak TLS on all ports with this certificate (PEM); it is read again when the file changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Speak TLS on all ports with a certificate that is made here and kept in the state folder; prints its fingerprint
    #[arg(long, conflicts_with = "tls_cert")]
    pub(crate) tls_self_signed: bool,
    /// Connections that each port may have at once; by default a quarter of the files that may be open
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_connections: Option<usize>,
    /// Answer inference and nothing else; state is shared with a control plane (SLIPWAY_DATABASE, SLIPWAY_OBJECTS)
    #[arg(long)]
    pub(crate) gateway_only: bool,
    /// What runs the models: auto, ort or tract
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
    /// The server
    #[arg(required_unless_present = "list")]
    pub(crate) url: Option<String>,
    /// File with the token, - for standard input; $SLIPWAY_TOKEN without it
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Which servers have a token saved; shows no secret
    #[arg(long, conflicts_with_all = ["url", "token_file"])]
    pub(crate) list: bool,
}

/// Options of `controller`.
#[derive(Debug, Args)]
pub(crate) struct Controller {
    /// Probes and metrics
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070")]
    pub(crate) listen: String,
    /// File with the token that is sent to the control plane; read again when it changes
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: PathBuf,
    /// The control plane; the service of the installation without it
    #[arg(long, value_name = "URL")]
    pub(crate) control_plane: Option<String>,
}

/// Options of a cluster.
#[derive(Debug, Args)]
pub(crate) struct Kube {
    /// Install into, or remove from, a Kubernetes cluster
    #[arg(long)]
    pub(crate) kube: bool,
    /// Kubeconfig file; kubectl's by default
    #[arg(long, value_name = "FILE", requires = "kube")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, requires = "kube")]
    pub(crate) context: Option<String>,
    /// Namespace of the installation
    #[arg(short, long, default_value = "slipway-system", requires = "kube")]
    pub(crate) namespace: String,
    /// Values, as the Helm chart takes them; of several files the last wins
    #[arg(long, value_name = "FILE", requires = "kube")]
    pub(crate) values: Vec<PathBuf>,
    /// Image, in place of the one in the values
    #[arg(long, value_name = "NAME:TAG", requires = "kube")]
    pub(crate) image: Option<String>,
    /// Seconds to wait for everything to be ready
    #[arg(long, default_value_t = 300, value_name = "SECONDS", requires = "kube")]
    pub(crate) wait: u64,
}

/// Verbs of `lab`.
#[derive(Debug, Subcommand)]
pub(crate) enum Lab {
    /// Start it: control plane and nodes; the first time builds Kubernetes, about 10 minutes
    #[command(
        after_help = "Example:\n  slipway lab up --nodes 2\n  export KUBECONFIG=/run/slipway-lab/pki/admin.kubeconfig"
    )]
    Up {
        /// Nodes besides the control plane; 0 needs no root
        #[arg(long, default_value_t = 2)]
        nodes: u32,
        /// Simulated GPUs of the nodes, by the names of fixtures; one name is for all
        #[arg(long, value_delimiter = ',', value_name = "FIXTURE")]
        gpus: Vec<String>,
    },
    /// Stop it and remove everything it created
    #[command(after_help = "Example:\n  slipway lab down")]
    Down,
    /// What runs, and how to reach it
    #[command(after_help = "Example:\n  slipway lab status")]
    Status,
    /// The lab's other verbs: stop, start, kill, exec, image, import
    #[command(after_help = "Example:\n  slipway lab do stop kubelet-n1\n  slipway lab do exec n1 ip addr")]
    Do {
        /// Arguments for the lab's own program
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
    /// Python that creates the environment
    #[arg(long, default_value = "python3")]
    pub(crate) python: String,
    /// What runs the models: auto, ort or tract
    #[arg(long, default_value = "auto")]
    pub(crate) runtime: String,
}

/// Verbs of `run`.
#[derive(Debug, Subcommand)]
pub(crate) enum Run {
    /// Run a program and track it: as a process on this machine, as a pod in a cluster
    #[command(
        after_help = "Example:\n  slipway run submit train.yaml --follow\n  slipway run submit --name train --gpus 1 --experiment digits -- python train.py --lr 0.1\n\nThe file:\n  apiVersion: slipway.dev/v1\n  kind: Run\n  metadata: { name: train }\n  spec:\n    experiment: digits\n    image: registry.example/train:1       # in a cluster\n    command: [python, train.py]\n    env: [{ name: LR, value: \"0.1\" }]\n    resources: { limits: { cpu: 2, memory: 4Gi, nvidia.com/gpu: 1 } }\n    backoffLimit: 2\n    activeDeadlineSeconds: 7200"
    )]
    Submit(Box<Submit>),
    /// List submitted runs: waiting, running and ended
    #[command(after_help = "Example:\n  slipway run queue\n  slipway run queue -n team-a -o json")]
    Queue {
        /// Namespace; all without one
        #[arg(short, long)]
        namespace: Option<String>,
    },
    /// Show one submitted run: its state, the reason and its attempts
    #[command(after_help = "Example:\n  slipway run status train")]
    Status {
        #[command(flatten)]
        which: Which,
    },
    /// Print the log of a submitted run
    #[command(
        after_help = "Example:\n  slipway run logs train --follow\n  slipway run logs train --attempt 1 --tail 20"
    )]
    Logs {
        #[command(flatten)]
        which: Which,
        /// Follow the log until the run ends
        #[arg(short, long)]
        follow: bool,
        /// Number of the attempt, from 1; the newest by default
        #[arg(long)]
        attempt: Option<u32>,
        /// Number of lines from its end
        #[arg(long)]
        tail: Option<u64>,
    },
    /// Cancel a submitted run
    #[command(after_help = "Example:\n  slipway run cancel train")]
    Cancel {
        #[command(flatten)]
        which: Which,
    },
    /// Remove a submitted run; one that is still running is cancelled. What it tracked stays
    #[command(after_help = "Example:\n  slipway run rm train")]
    Rm {
        #[command(flatten)]
        which: Which,
    },
    /// List runs
    #[command(
        after_help = "Example:\n  slipway run ls --experiment digits --filter \"metrics.accuracy > 0.9\" --order-by \"metrics.accuracy DESC\""
    )]
    Ls {
        /// Experiment, by name or id; all without one
        #[arg(long)]
        experiment: Option<String>,
        /// MLflow's filter grammar
        #[arg(long, default_value = "")]
        filter: String,
        /// MLflow's order clauses
        #[arg(long)]
        order_by: Vec<String>,
        /// Maximum number of runs
        #[arg(long, default_value_t = 50)]
        limit: i64,
    },
    /// Show one run
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
        /// Experiment, by name or id; all without one
        #[arg(long)]
        experiment: Option<String>,
        /// MLflow's filter grammar
        #[arg(long, default_value = "")]
        filter: String,
    },
}

/// A submitted run.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Its name
    pub(crate) name: String,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
}

/// Options of `run submit`.
#[derive(Debug, Args)]
pub(crate) struct Submit {
    /// The file; - is standard input
    #[arg(required_unless_present = "command", conflicts_with = "command")]
    pub(crate) file: Option<PathBuf>,
    /// Namespace, in place of the file's
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Name, in place of the file's
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Experiment in which it is tracked, in place of the file's
    #[arg(long)]
    pub(crate) experiment: Option<String>,
    /// Image, in place of the file's
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// NAME=VALUE, added to the environment
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// GPUs (`nvidia.com/gpu`), in place of the file's
    #[arg(long)]
    pub(crate) gpus: Option<u32>,
    /// Follow its log, and exit as it does
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Wait for its end; exit 1 when it failed
    #[arg(short, long)]
    pub(crate) wait: bool,
    /// Program and arguments, when there is no file
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
        /// The model's name
        name: String,
    },
    /// Register a run's model as a new version
    #[command(after_help = "Example:\n  slipway model register digits --run RUN_ID --path model")]
    Register {
        /// The model's name; created if it is new
        name: String,
        /// The run
        #[arg(long)]
        run: String,
        /// The model's folder among the run's artifacts
        #[arg(long, default_value = "model")]
        path: String,
    },
    /// Point an alias to a version
    #[command(after_help = "Example:\n  slipway model promote digits 3 champion")]
    Promote {
        /// The model's name
        name: String,
        /// The version
        // Its own id: `version` is that of the flag `--version`.
        #[arg(id = "model_version", value_name = "VERSION")]
        version: String,
        /// The alias
        alias: String,
    },
}

/// Verbs of `deploy`.
#[derive(Debug, Subcommand)]
pub(crate) enum Deploy {
    /// Apply a deployment file
    #[command(
        after_help = "Example:\n  slipway deploy apply examples/digits/deploy.yaml\n\nThe file:\n  apiVersion: slipway.dev/v1\n  kind: Deployment\n  metadata: { name: digits }\n  spec:\n    models:\n      - { name: champion, uri: \"models:/digits@champion\", weight: 90 }\n      - { name: challenger, uri: \"models:/digits@challenger\", weight: 10 }"
    )]
    Apply {
        /// The file; - is standard input
        file: PathBuf,
    },
    /// List deployments
    #[command(after_help = "Example:\n  slipway deploy ls")]
    Ls,
    /// Show one deployment: models, traffic, latencies, revisions
    #[command(after_help = "Example:\n  slipway deploy show digits")]
    Show {
        /// Its name
        name: String,
    },
    /// Change the weights of a deployment while it serves
    #[command(after_help = "Example:\n  slipway deploy split digits champion=50 challenger=50")]
    Split {
        /// Its name
        name: String,
        /// NAME=PERCENT, adding up to 100
        #[arg(required = true)]
        weights: Vec<String>,
    },
    /// Go back to an earlier revision
    #[command(after_help = "Example:\n  slipway deploy rollback digits")]
    Rollback {
        /// Its name
        name: String,
        /// Which revision; the one before by default
        #[arg(long)]
        to: Option<i64>,
    },
    /// Send one request, of zeros unless a file is given
    #[command(after_help = "Example:\n  slipway deploy test digits\n  slipway deploy test digits --input request.json")]
    Test {
        /// Its name
        name: String,
        /// A V2 inference request in JSON
        #[arg(long)]
        input: Option<PathBuf>,
    },
    /// Remove a deployment
    #[command(after_help = "Example:\n  slipway deploy rm digits")]
    Rm {
        /// Its name
        name: String,
    },
}

/// Options of `show`.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// A request's id
    pub(crate) request: String,
    /// The whole chain, down to the data
    #[arg(long)]
    pub(crate) lineage: bool,
}

/// Verbs of `config`.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Show the settings in force
    #[command(after_help = "Example:\n  slipway config show --origin")]
    Show {
        /// Show where each setting came from
        #[arg(long)]
        origin: bool,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The help of a command and of all below it, in the order of `--help`.
    fn helps(command: &mut clap::Command, path: &str, text: &mut String) {
        let help = command.render_long_help().to_string();
        text.push_str(&format!("$ {path} --help\n{}\n\n", help.trim_end()));
        assert!(
            command.has_subcommands() || command.is_hide_set() || help.contains("Example:"),
            "`{path} --help` has no example"
        );
        let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
        for name in names.iter().filter(|name| *name != "help") {
            if let Some(below) = command.find_subcommand_mut(name) {
                helps(below, &format!("{path} {name}"), text);
            }
        }
    }

    #[test]
    fn help_of_every_command() {
        let mut all = Cli::command().term_width(100);
        all.build();
        all.clone().debug_assert();
        let mut top = all.render_long_help().to_string();
        top.truncate(top.trim_end().len());
        insta::assert_snapshot!("slipway", top);
        let nouns: Vec<String> = all.get_subcommands().map(|c| c.get_name().to_owned()).collect();
        for noun in nouns.iter().filter(|noun| *noun != "help") {
            let mut text = String::new();
            if let Some(command) = all.find_subcommand_mut(noun) {
                helps(command, &format!("slipway {noun}"), &mut text);
            }
            insta::assert_snapshot!(noun.as_str(), text.trim_end());
        }
    }
}
