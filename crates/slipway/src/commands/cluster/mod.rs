//! `slipway cluster`.

mod ask;
mod converge;
mod file;
mod init;
mod progress;
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
use crate::output::{agreed, print_text, say};

fn wrong(message: String) -> Failure {
    Failure::Error { message, code: "cluster.spec", hint: None, exit: 2 }
}

/// A cluster's file, and all that is needed to work on it.
struct Session {
    /// Where the file is.
    path: PathBuf,
    /// As it is written; machines of groups are not in it.
    file: Cluster,
    /// Which files' commands may run.
    agreements: Agreements,
    state: State,
    connections: Arc<Connections>,
    /// Who makes machines, where the file has groups.
    fleet: Option<Arc<Fleet>>,
    program: Arc<Program>,
    change: String,
}

impl Session {
    /// With providers, whose tokens are read.
    fn open(context: &Context, file: &cli::File) -> Result<Self, Failure> {
        let mut session = Self::offline(context, file)?;
        session.replace(session.file.clone())?;
        Ok(session)
    }

    /// Without providers.
    fn offline(context: &Context, file: &cli::File) -> Result<Self, Failure> {
        let path = file.file.clone();
        let mut file = Cluster::read(&path)?;
        let home = Home::at(context.config.get("home").unwrap_or_default());
        let agreements = Agreements::at(home.root());
        agreements.apply(&path, &mut file)?;
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

    /// Another text of the same file, with the commands that its user agreed to.
    fn agreed(&self, mut file: Cluster) -> Result<Cluster, ClusterError> {
        self.agreements.apply(&self.path, &mut file)?;
        Ok(file)
    }

    /// Goes on with another text of the file.
    fn replace(&mut self, file: Cluster) -> Result<(), Failure> {
        self.file = self.agreed(file)?;
        self.file.check_trusted()?;
        let made = !self.file.spec.groups.is_empty() || fleet::any(&self.state)?;
        self.fleet = if made { Some(Arc::new(Fleet::connect(&self.file, &self.state)?)) } else { None };
        Ok(())
    }

    /// Takes the cluster's lock; what another wrote before is read.
    fn lock(&self) -> Result<Lock, ClusterError> {
        let lock = self.state.lock()?;
        if let Some(fleet) = &self.fleet {
            fleet.renew()?;
        }
        Ok(lock)
    }

    /// With the machines of its groups that are there.
    fn cluster(&self) -> Result<Cluster, ClusterError> {
        fleet::resolved(&self.file, &self.state)
    }

    /// The machines chosen, and how they are spoken to.
    fn hosts(&self, names: &[String]) -> Result<Vec<(Machine, Host)>, Failure> {
        self.file.check_trusted()?;
        let cluster = self.cluster()?;
        let grouped = |name: &String| self.file.spec.groups.iter().any(|g| g.names().any(|n| n == *name));
        for name in names {
            if !cluster.spec.machines.iter().any(|m| m.name == *name) && !grouped(name) {
                return Err(wrong(format!("there is no machine '{name}' in the file")));
            }
        }
        let chosen = cluster.spec.machines.iter().filter(|m| names.is_empty() || names.contains(&m.name));
        chosen.map(|m| Ok((m.clone(), self.connections.host(&cluster, m)?))).collect()
    }
}

/// Asks whether the commands of a file may run on this machine, and remembers it.
fn trust(context: &Context, session: &Session) -> Result<(), Failure> {
    let commands = session.file.commands();
    if session.file.check_trusted().is_ok() {
        let what =
            if commands.is_empty() { "it has no commands that would run here" } else { "its commands may run already" };
        say(format_args!("{}: {what}", session.path.display()));
        return Ok(());
    }
    say(format_args!("{} would run on this machine, as you, whenever it needs a secret:", session.path.display()));
    for (place, command) in commands {
        say(format_args!("  {place}: {command}"));
    }
    if context.global.dry_run {
        return Ok(());
    }
    if !agreed(&context.global, "May they?") {
        return Err(Failure::declined("cluster.untrusted"));
    }
    session.agreements.add(&session.path, &session.file)?;
    say(format_args!("they may, until one of them changes; next: slipway cluster plan -f {}", session.path.display()));
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
        cli::Cluster::Plan { choice } | cli::Cluster::Status { choice, drift: true } => {
            let session = Session::open(context, &choice.machines.file)?;
            ask::show_plan(context, &session, &choice).await
        }
        cli::Cluster::Apply { choice, canary, from, no_smoke } => {
            let session = Session::open(context, &choice.machines.file)?;
            let options = work::Options { choice: &choice, canary, from: from.as_deref(), smoke: !no_smoke };
            work::apply(context, &session, &options).await
        }
        cli::Cluster::Status { choice, drift: false } => {
            ask::last(context, &Session::offline(context, &choice.machines.file)?);
            Ok(())
        }
        cli::Cluster::Rollback { choice } => {
            let session = Session::offline(context, &choice.machines.file)?;
            work::roll_back(context, &session, &choice.machines.hosts).await
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
            // Its keys are nobody else's, by whichever option the file is named.
            let save = save.as_deref().or(context.global.output.file.as_deref());
            file::kubeconfig(&Session::offline(context, &file)?, server.as_deref(), save).await
        }
        cli::Cluster::Doctor { machines } => {
            ask::doctor(context, &Session::offline(context, &machines.file)?, &machines.hosts).await
        }
        cli::Cluster::Cost { file } => ask::cost(context, &Session::open(context, &file)?).await,
        cli::Cluster::Resources { choice, machine } => {
            file::resources(&Session::offline(context, &choice.machines.file)?, &choice, &machine)
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
