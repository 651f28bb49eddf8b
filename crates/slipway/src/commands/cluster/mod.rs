//! `slipway cluster`: builds and maintains a cluster that is described by a file.

mod converge;
mod file;
mod init;
mod progress;
mod query;
mod work;

use std::path::PathBuf;
use std::sync::Arc;

use slipway_cluster::ClusterError;
use slipway_cluster::fleet::{self, Fleet};
use slipway_cluster::lock::Lock;
use slipway_cluster::spec::{Cluster, Machine};
use slipway_cluster::state::State;
use slipway_cluster::transport::{Connections, Host, Program};
use slipway_cluster::trust::Agreements;
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

/// A cluster file and everything that is needed to apply it.
struct Session {
    /// The path of the cluster file.
    path: PathBuf,
    /// The content of the file, without the machines of groups.
    file: Cluster,
    /// The commands that the user has approved, by file.
    agreements: Agreements,
    state: State,
    connections: Arc<Connections>,
    /// The provider machines; `None` if the file has no groups and no provider machine exists.
    fleet: Option<Arc<Fleet>>,
    program: Arc<Program>,
    change: String,
}

impl Session {
    /// Opens a session with the providers, whose tokens are read.
    fn open(context: &Context, file: &cli::File) -> Result<Self, Failure> {
        let mut session = Self::offline(context, file)?;
        session.replace(session.file.clone())?;
        Ok(session)
    }

    /// Opens a session without the providers.
    fn offline(context: &Context, file: &cli::File) -> Result<Self, Failure> {
        let path = file.file.clone();
        let mut file = Cluster::read(&path)?;
        let home = Home::at(context.config.get("home").unwrap_or_default());
        let agreements = Agreements::at(home.root());
        agreements.allow_commands(&path, &mut file)?;
        let state = State::open(home.root(), &file.metadata.name)?;
        let connections = Arc::new(Connections::new(state.known_hosts())?);
        let program =
            std::env::current_exe().map_err(|source| ClusterError::Io { what: "this program".into(), source })?;
        Ok(Self {
            path,
            file,
            agreements,
            state,
            connections,
            fleet: None,
            program: Arc::new(Program::new(program)),
            change: format!("{:013}", slipway_core::clock::now_ms()),
        })
    }

    /// Marks the commands in a new content of the file that the user has approved.
    fn with_agreements(&self, mut file: Cluster) -> Result<Cluster, ClusterError> {
        self.agreements.allow_commands(&self.path, &mut file)?;
        Ok(file)
    }

    /// Replaces the content of the file in this session and connects to its providers.
    fn replace(&mut self, file: Cluster) -> Result<(), Failure> {
        self.file = self.with_agreements(file)?;
        self.file.check_trusted()?;
        let has_fleet = !self.file.spec.groups.is_empty() || fleet::owns_machines(&self.state)?;
        self.fleet = if has_fleet { Some(Arc::new(Fleet::connect(&self.file, &self.state)?)) } else { None };
        Ok(())
    }

    /// Acquires the cluster's lock and rereads the state, which another process may have changed.
    fn lock(&self) -> Result<Lock, ClusterError> {
        let lock = self.state.lock()?;
        if let Some(fleet) = &self.fleet {
            fleet.reload()?;
        }
        Ok(lock)
    }

    /// The cluster including the existing machines of its groups.
    fn cluster(&self) -> Result<Cluster, ClusterError> {
        fleet::resolved(&self.file, &self.state)
    }

    /// The selected machines and their connections. An empty `names` selects all machines.
    fn hosts(&self, names: &[String]) -> Result<Vec<(Machine, Host)>, Failure> {
        self.file.check_trusted()?;
        let cluster = self.cluster()?;
        let in_group = |name: &String| self.file.spec.groups.iter().any(|g| g.names().any(|n| n == *name));
        for name in names {
            if !cluster.spec.machines.iter().any(|m| m.name == *name) && !in_group(name) {
                return Err(invalid(format!("there is no machine '{name}' in the file")));
            }
        }
        let selected = cluster.spec.machines.iter().filter(|m| names.is_empty() || names.contains(&m.name));
        selected.map(|m| Ok((m.clone(), self.connections.host(&cluster, m)?))).collect()
    }
}

/// Asks the user to approve the commands of a file and records the approval.
fn trust(context: &Context, session: &Session) -> Result<(), Failure> {
    let commands = session.file.commands();
    if session.file.check_trusted().is_ok() {
        let state = if commands.is_empty() {
            "the file has no commands to approve"
        } else {
            "its commands are already approved"
        };
        print_note(format_args!("{}: {state}", session.path.display()));
        return Ok(());
    }
    print_note(format_args!(
        "{} runs these commands on this machine, as your user, whenever it needs a secret:",
        session.path.display()
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
    session.agreements.add(&session.path, &session.file)?;
    print_note(format_args!(
        "approved until one of them changes; next: slipway cluster plan -f {}",
        session.path.display()
    ));
    Ok(())
}

pub(crate) async fn run(context: &Context, verb: cli::Cluster) -> Result<(), Failure> {
    match verb {
        cli::Cluster::Init { machines, name, channel, user, identity, known_hosts, accept_new_host_keys, file } => {
            let (machines, name, user) = init::answers(machines, name, user)?;
            let mut ssh = String::new();
            for (key, value) in [("user", &user), ("identityFile", &identity), ("knownHosts", &known_hosts)] {
                if let Some(value) = value {
                    ssh += &format!("    {key}: {value}\n");
                }
            }
            if accept_new_host_keys {
                ssh += "    acceptNewHostKeys: true\n";
            }
            init::write(&machines, &name, &channel, &ssh, &file)
        }
        cli::Cluster::Schema => {
            print_text(&(serde_json::to_string_pretty(&Cluster::schema()).unwrap_or_default() + "\n"));
            Ok(())
        }
        cli::Cluster::Trust { file } => trust(context, &Session::offline(context, &file)?),
        cli::Cluster::Plan { selection } | cli::Cluster::Status { selection, drift: true } => {
            let session = Session::open(context, &selection.machines.file)?;
            query::show_plan(context, &session, &selection).await
        }
        cli::Cluster::Apply { selection, canary, from, no_smoke } => {
            let session = Session::open(context, &selection.machines.file)?;
            let options = work::Options { selection: &selection, canary, from: from.as_deref(), smoke: !no_smoke };
            work::apply(context, &session, &options).await
        }
        cli::Cluster::Status { selection, drift: false } => {
            query::print_last_report(context, &Session::offline(context, &selection.machines.file)?);
            Ok(())
        }
        cli::Cluster::Rollback { selection } => {
            let session = Session::offline(context, &selection.machines.file)?;
            work::roll_back(context, &session, &selection.machines.hosts).await
        }
        cli::Cluster::Upgrade { machines, to, workers } => {
            work::upgrade(context, &machines, to.as_deref(), workers).await
        }
        cli::Cluster::Stop { machines } => {
            work::stop(context, &Session::open(context, &machines.file)?, &machines.hosts).await
        }
        cli::Cluster::Start { machines } => {
            work::start(context, &Session::open(context, &machines.file)?, &machines.hosts).await
        }
        cli::Cluster::Scale { file, group } => work::scale(context, &file, &group).await,
        cli::Cluster::Destroy { machines, name } => {
            work::destroy(context, &Session::open(context, &machines.file)?, &machines.hosts, name.as_deref()).await
        }
        cli::Cluster::Adopt { file, machine, id } => work::adopt(&Session::open(context, &file)?, &machine, &id).await,
        cli::Cluster::Kubeconfig { file, server, save } => {
            // The kubeconfig contains keys, so a file given by `-o` must be private too.
            let save = save.as_deref().or(context.global.output.file.as_deref());
            file::kubeconfig(&Session::offline(context, &file)?, server.as_deref(), save).await
        }
        cli::Cluster::Doctor { machines } => {
            query::doctor(context, &Session::offline(context, &machines.file)?, &machines.hosts).await
        }
        cli::Cluster::Cost { file } => query::cost(context, &Session::open(context, &file)?).await,
        cli::Cluster::Resources { selection, machine } => {
            file::resources(&Session::offline(context, &selection.machines.file)?, &selection, &machine)
        }
        cli::Cluster::Inventory { file, list: _, host } => {
            let inventory = file::inventory(&Session::offline(context, &file)?.cluster()?);
            let document = match host {
                Some(host) => {
                    inventory["_meta"]["hostvars"].get(&host).cloned().unwrap_or_else(|| serde_json::json!({}))
                }
                None => inventory,
            };
            print_text(&(serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"));
            Ok(())
        }
        cli::Cluster::Ssh { file, machine, command } => {
            file::ssh(&Session::offline(context, &file)?, &machine, &command)
        }
        cli::Cluster::Logs { file, machine } => {
            let path = Session::offline(context, &file)?.state.log_path(&machine);
            let text = std::fs::read_to_string(&path)
                .map_err(|source| ClusterError::Io { what: path.display().to_string(), source })?;
            print_text(&text);
            Ok(())
        }
    }
}
