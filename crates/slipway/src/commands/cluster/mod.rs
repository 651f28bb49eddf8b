//! `slipway cluster`: builds and maintains a cluster that is described by a file.

mod converge;
mod file;
mod init;
mod progress;
mod query;
mod work;

use std::path::Path;

use slipway_cluster::ClusterError;
use slipway_cluster::fleet::GpuPrice;
use slipway_cluster::session::{ApplyRequest, Session, SessionError};
use slipway_cluster::spec::{Cluster, Ssh};
use slipway_core::home::Home;

pub(super) use self::converge::converge;
use super::Context;
use crate::Failure;
use crate::cli::cluster as cli;
use crate::output::{confirm, print_note, print_text};

/// An error about the cluster file or the arguments.
fn invalid(message: String) -> Failure {
    Failure::Error { message, code: "cluster.spec", hint: None, exit: 2 }
}

/// An error of a session.
fn session_error(error: SessionError) -> Failure {
    match error {
        SessionError::Arguments(message) => invalid(message),
        SessionError::Cluster(error) => error.into(),
    }
}

/// Opens a session with the providers, whose tokens are read.
fn open(context: &Context, file: &cli::File) -> Result<Session, Failure> {
    let mut session = open_offline(context, file)?;
    session.connect_providers()?;
    Ok(session)
}

/// Opens a session without the providers.
fn open_offline(context: &Context, file: &cli::File) -> Result<Session, Failure> {
    let home = Home::at(context.config.get("home").unwrap_or_default());
    Ok(Session::open(&file.file, home.root())?)
}

/// The prices of sizes with GPUs at the providers of a cluster file.
pub(super) async fn gpu_prices(context: &Context, file: &Path) -> Result<Vec<GpuPrice>, Failure> {
    let session = open(context, &cli::File { file: file.to_owned() })?;
    match session.fleet() {
        Some(fleet) => Ok(fleet.gpu_prices().await?),
        None => Ok(Vec::new()),
    }
}

/// Asks the user to approve the commands of a file and records the approval.
fn trust(context: &Context, session: &Session) -> Result<(), Failure> {
    let commands = session.file().commands();
    if session.file().check_trusted().is_ok() {
        let state = if commands.is_empty() {
            "the file has no commands to approve"
        } else {
            "its commands are already approved"
        };
        print_note(format_args!("{}: {state}", session.path().display()));
        return Ok(());
    }
    print_note(format_args!(
        "{} runs these commands on this machine, as your user, whenever it needs a secret:",
        session.path().display()
    ));
    for (field, command) in commands {
        print_note(format_args!("  {field}: {command}"));
    }
    if context.global.dry_run {
        return Ok(());
    }
    if !confirm(&context.global, "Approve these commands?") {
        return Err(Failure::declined("cluster.untrusted"));
    }
    session.approve_commands()?;
    print_note(format_args!(
        "approved until one of them changes; next: slipway cluster plan -f {}",
        session.path().display()
    ));
    Ok(())
}

pub(crate) async fn run(context: &Context, verb: cli::Cluster) -> Result<(), Failure> {
    match verb {
        cli::Cluster::Init { machines, name, channel, user, identity, known_hosts, accept_new_host_keys, file } => {
            let (machines, name, user) = init::answers(machines, name, user)?;
            let ssh = Ssh { user, identity_file: identity, known_hosts, accept_new_host_keys, ..Ssh::default() };
            init::write(&machines, &name, &channel, &ssh, &file)
        }
        cli::Cluster::Schema => {
            print_text(&(serde_json::to_string_pretty(&Cluster::schema()).unwrap_or_default() + "\n"));
            Ok(())
        }
        cli::Cluster::Trust { file } => trust(context, &open_offline(context, &file)?),
        cli::Cluster::Plan { selection } | cli::Cluster::Status { selection, drift: true } => {
            let session = open(context, &selection.machines.file)?;
            query::show_plan(context, &session, &selection).await
        }
        cli::Cluster::Apply { selection, canary, from, no_smoke } => {
            let session = open(context, &selection.machines.file)?;
            let request = ApplyRequest {
                hosts: &selection.machines.hosts,
                layers: &selection.only,
                canary,
                from: from.as_deref(),
                smoke: !no_smoke,
            };
            work::apply(context, &session, &request).await
        }
        cli::Cluster::Status { selection, drift: false } => {
            query::print_last_report(context, &open_offline(context, &selection.machines.file)?);
            Ok(())
        }
        cli::Cluster::Rollback { selection } => {
            let session = open_offline(context, &selection.machines.file)?;
            work::roll_back(context, &session, &selection.machines.hosts).await
        }
        cli::Cluster::Upgrade { machines, to, workers } => {
            work::upgrade(context, &machines, to.as_deref(), workers).await
        }
        cli::Cluster::Stop { machines } => work::stop(context, &open(context, &machines.file)?, &machines.hosts).await,
        cli::Cluster::Start { machines } => {
            work::start(context, &open(context, &machines.file)?, &machines.hosts).await
        }
        cli::Cluster::Scale { file, group } => work::scale(context, &file, &group).await,
        cli::Cluster::Destroy { machines, name } => {
            work::destroy(context, &open(context, &machines.file)?, &machines.hosts, name.as_deref()).await
        }
        cli::Cluster::Adopt { file, machine, id } => work::adopt(&open(context, &file)?, &machine, &id).await,
        cli::Cluster::Kubeconfig { file, server, save } => {
            // The kubeconfig contains keys, so a file given by `-o` must be private too.
            let save = save.as_deref().or(context.global.output.file.as_deref());
            file::kubeconfig(&open_offline(context, &file)?, server.as_deref(), save).await
        }
        cli::Cluster::Doctor { machines } => {
            query::doctor(context, &open_offline(context, &machines.file)?, &machines.hosts).await
        }
        cli::Cluster::Cost { file } => query::cost(context, &open(context, &file)?).await,
        cli::Cluster::Resources { selection, machine } => {
            file::resources(&open_offline(context, &selection.machines.file)?, &selection, &machine)
        }
        cli::Cluster::Inventory { file, list: _, host } => {
            let inventory = file::inventory(&open_offline(context, &file)?.cluster()?);
            let document = match host {
                Some(host) => {
                    inventory["_meta"]["hostvars"].get(&host).cloned().unwrap_or_else(|| serde_json::json!({}))
                }
                None => inventory,
            };
            print_text(&(serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"));
            Ok(())
        }
        cli::Cluster::Ssh { file, machine, command } => file::ssh(&open_offline(context, &file)?, &machine, &command),
        cli::Cluster::Logs { file, machine } => {
            let path = open_offline(context, &file)?.state().log_path(&machine);
            let text = std::fs::read_to_string(&path)
                .map_err(|source| ClusterError::Io { what: path.display().to_string(), source })?;
            print_text(&text);
            Ok(())
        }
    }
}
