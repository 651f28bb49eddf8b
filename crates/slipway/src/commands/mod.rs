//! The implementation of the commands, one file per noun.

mod accept;
mod cluster;
mod controller;
pub(crate) mod data;
mod demo;
mod deploy;
mod doctor;
mod domains;
mod gpu;
mod in_cluster;
mod install;
mod kubeconfig;
mod lab;
mod login;
mod model;
mod node;
mod pipeline;
mod run;
mod show;
mod source;
mod submit;
mod token;
mod top;
mod up;

use clap::CommandFactory;
use slipway_core::config::{Config, ConfigError};
use slipway_core::explain;

use crate::Failure;
use crate::cli::{self, Cli, Command};
use crate::client::Client;
use crate::output::{Table, print, print_text};

/// The global options and the configuration, passed to every command.
pub(crate) struct Context {
    pub(crate) global: cli::Global,
    pub(crate) config: Config,
}

impl Context {
    /// Connects to the control plane; see [`Client::connect`].
    pub(crate) async fn client(&self) -> Result<Client, Failure> {
        Client::connect(&self.config, self.global.insecure).await
    }
}

/// Reads the configuration for these arguments. The second value is the error of a configuration file, if any.
pub(crate) fn read_config(args: &Cli) -> (Config, Option<ConfigError>) {
    let path = |p: &Option<std::path::PathBuf>| p.as_ref().map(|p| p.display().to_string());
    let mut flags = vec![
        ("home", path(&args.global.home)),
        ("server", args.global.server.clone()),
        ("tls-fingerprint", args.global.tls_fingerprint.clone()),
    ];
    if let Command::Up(up) = &args.command {
        flags.extend([
            ("listen", up.listen.clone()),
            ("inference-listen", up.inference_listen.clone()),
            ("grpc-listen", up.grpc_listen.clone()),
            ("token-file", path(&up.token_file)),
            ("hosts", up.hosts.clone()),
            ("cors-origin", (!up.cors_origin.is_empty()).then(|| up.cors_origin.join(","))),
            ("tls-cert", path(&up.tls_cert)),
            ("tls-key", path(&up.tls_key)),
            ("tls-self-signed", up.tls_self_signed.then(|| "true".to_owned())),
            ("max-connections", up.max_connections.map(|count| count.to_string())),
            ("runtime", up.runtime.clone()),
            ("onnxruntime", path(&up.onnxruntime)),
        ]);
    }
    Config::read(&flags)
}

/// Runs a command. `problem` is the error of a configuration file, if any. It fails all commands except those that do not depend on the
/// configuration, some of which help to find the error.
pub(crate) async fn run(args: Cli, config: Config, problem: Option<ConfigError>) -> Result<(), Failure> {
    let context = Context { config, global: args.global };
    match args.command {
        Command::Explain { code } => explain_code(&context, code),
        Command::Config(cli::Config::Kubeconfig { save }) => kubeconfig::kubeconfig(&context, save.as_deref()),
        Command::Config(cli::Config::Show { origin }) => {
            show_config(&context, origin);
            if let Some(problem) = problem {
                Failure::from(problem).report();
            }
            Ok(())
        }
        Command::Completions { shell } => {
            // The generator panics if a write fails, so it writes to memory.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "slipway", &mut script);
            print_text(&String::from_utf8_lossy(&script));
            Ok(())
        }
        Command::Man { dir } => {
            std::fs::create_dir_all(&dir).and_then(|()| clap_mangen::generate_to(Cli::command(), &dir)).map_err(|e| {
                Failure::with_code(format!("cannot write man pages to {}: {e}", dir.display()), "output.unwritable", 1)
            })
        }
        // It runs in the working folder of a run, which may contain an invalid project file.
        Command::Supervise { folder } => Ok(slipway_exec::local::supervise(&folder).await?),
        Command::Guard { parent, program } => match slipway_exec::local::guard::guard(parent, &program).await? {
            0 => Ok(()),
            // That of the program, whose output says why.
            code => std::process::exit(i32::from(code)),
        },
        command => match problem {
            Some(problem) => Err(problem.into()),
            None => run_configured(&context, command).await,
        },
    }
}

/// Runs a command that depends on the configuration.
async fn run_configured(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Up(options) if options.kube.kube => install::up(context, options.kube).await,
        Command::Up(options) => up::up(context, options.gateway_only, options.no_auth).await,
        Command::Down(kube) if kube.kube => install::down(context, kube).await,
        Command::Down(_) => up::down(context).await,
        Command::Cluster(verb) => cluster::run(context, verb).await,
        Command::Data(verb) => data::run(context, verb).await,
        Command::Lab(verb) => lab::run(verb),
        Command::Controller(options) => controller::run(options).await,
        Command::Token { ui } => token::token(context, ui),
        Command::Login(options) => login::login(context, options).await,
        Command::Logout { url } => login::logout(context, &url),
        Command::Status => up::status(context).await,
        Command::Doctor { gpu } => doctor::doctor(context, gpu).await,
        Command::Demo(options) => demo::demo(context, options).await,
        Command::Gpu(args) => gpu::run(context, args).await,
        Command::Top(options) => top::run(options),
        Command::Node(verb) => node::run(context, verb).await,
        Command::Run(verb) => run::run(context, verb).await,
        Command::Pipeline(verb) => pipeline::run(context, verb).await,
        Command::Model(verb) => model::run(context, verb).await,
        Command::Deploy(verb) => deploy::run(context, verb).await,
        Command::Show(options) => show::show(context, options).await,
        // These commands are handled by `run`, without the configuration.
        Command::Explain { .. }
        | Command::Config(_)
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Guard { .. }
        | Command::Supervise { .. } => Ok(()),
    }
}

fn explain_code(context: &Context, code: Option<String>) -> Result<(), Failure> {
    let row = |t: &explain::Topic| vec![t.code.to_owned(), t.meaning.to_owned(), t.remedy.to_owned()];
    let Some(code) = code else {
        let all: Vec<_> = explain::CATALOGUE.iter().map(row).collect();
        print(context.global.output.format, &all, |all| {
            let mut table = Table::new(&["CODE", "MEANING"]);
            all.iter().for_each(|r| table.row(r[..2].to_vec()));
            table
        });
        return Ok(());
    };
    match explain::find(&code) {
        Some(topic) => {
            print_text(&format!("{}\n\n{}\n\n{}\n", topic.code, topic.meaning, topic.remedy));
            Ok(())
        }
        None => Err(Failure::with_code(format!("there is no error code '{code}'"), "explain.unknown", 2)),
    }
}

/// Replaces the password of a URL by `…`.
fn hide_password(value: &str) -> String {
    let hidden = || {
        let (scheme, rest) = value.split_once("://")?;
        let (user, host) = rest.rsplit_once('@')?;
        let (name, _) = user.split_once(':')?;
        Some(format!("{scheme}://{name}:…@{host}"))
    };
    hidden().unwrap_or_else(|| value.to_owned())
}

fn show_config(context: &Context, origin: bool) {
    let entries: Vec<_> =
        context.config.entries().map(|(k, v, o)| (k.to_owned(), hide_password(v), o.to_string())).collect();
    print(context.global.output.format, &entries, |entries| {
        let mut table = Table::new(if origin { &["KEY", "VALUE", "ORIGIN"] } else { &["KEY", "VALUE"] });
        for (key, value, from) in entries {
            let mut row = vec![key.clone(), value.clone()];
            if origin {
                row.push(from.clone());
            }
            table.row(row);
        }
        table
    });
}
