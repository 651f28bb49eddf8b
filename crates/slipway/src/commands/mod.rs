//! One file a noun.

mod cluster;
mod controller;
mod demo;
mod deploy;
mod doctor;
mod gpu;
mod in_cluster;
mod install;
mod lab;
mod model;
mod node;
mod run;
mod show;
mod submit;
mod top;
mod up;

use clap::CommandFactory;
use slipway_core::config::Config;
use slipway_core::explain;

use crate::Failure;
use crate::cli::{self, Cli, Command};
use crate::client::Client;
use crate::output::{Table, print, print_text};

/// What every command gets.
pub(crate) struct Context {
    pub(crate) global: cli::Global,
    pub(crate) config: Config,
}

impl Context {
    /// The control plane.
    pub(crate) async fn client(&self) -> Result<Client, Failure> {
        Client::connect(&self.config).await
    }
}

pub(crate) async fn run(args: Cli) -> Result<(), Failure> {
    let path = |p: &Option<std::path::PathBuf>| p.as_ref().map(|p| p.display().to_string());
    let mut flags = vec![("home", path(&args.global.home)), ("server", args.global.server.clone())];
    if let Command::Up(up) = &args.command {
        flags.extend([
            ("listen", up.listen.clone()),
            ("inference-listen", up.inference_listen.clone()),
            ("grpc-listen", up.grpc_listen.clone()),
            ("token-file", path(&up.token_file)),
            ("runtime", up.runtime.clone()),
            ("onnxruntime", path(&up.onnxruntime)),
        ]);
    }
    let context = Context { config: Config::load(&flags)?, global: args.global };
    match args.command {
        Command::Up(options) if options.kube.kube => install::up(&context, options.kube).await,
        Command::Up(options) => up::up(&context, options.gateway_only).await,
        Command::Down(kube) if kube.kube => install::down(&context, kube).await,
        Command::Down(_) => up::down(&context).await,
        Command::Cluster(verb) => cluster::run(&context, verb).await,
        Command::Lab(verb) => lab::run(verb),
        Command::Supervise { folder } => Ok(slipway_exec::local::supervise(&folder).await?),
        Command::Controller(options) => controller::run(options).await,
        Command::Status => up::status(&context).await,
        Command::Doctor => doctor::doctor(&context).await,
        Command::Demo(options) => demo::demo(&context, options).await,
        Command::Gpu(args) => gpu::run(&context, args).await,
        Command::Top(options) => top::run(options),
        Command::Node(verb) => node::run(&context, verb).await,
        Command::Run(verb) => run::run(&context, verb).await,
        Command::Model(verb) => model::run(&context, verb).await,
        Command::Deploy(verb) => deploy::run(&context, verb).await,
        Command::Show(options) => show::show(&context, options).await,
        Command::Explain { code } => explain_code(&context, code),
        Command::Config(cli::Config::Show { origin }) => {
            show_config(&context, origin);
            Ok(())
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "slipway", &mut std::io::stdout());
            Ok(())
        }
        Command::Man { dir } => {
            std::fs::create_dir_all(&dir).and_then(|()| clap_mangen::generate_to(Cli::command(), &dir)).map_err(|e| {
                let message = format!("cannot write man pages to {}: {e}", dir.display());
                Failure::Error { message, code: "home.unusable", hint: None, exit: 1 }
            })
        }
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
        None => Err(Failure::Error {
            message: format!("there is no code '{code}'"),
            code: "config.invalid",
            hint: Some("List all codes with `slipway explain`.".into()),
            exit: 2,
        }),
    }
}

/// A URL whose password may be seen.
fn without_password(value: &str) -> String {
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
        context.config.entries().map(|(k, v, o)| (k.to_owned(), without_password(v), o.to_string())).collect();
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
