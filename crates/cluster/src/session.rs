//! A session: what one command works with (the cluster file, the controller's state, the connections and the providers), and the order in
//! which a command changes machines.
//!
//! The command line opens a session, shows what a command would do, and lets the session do it. Nothing is changed without the cluster's
//! [lock](Session::lock).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::ClusterError;
use crate::fleet::{self, Fleet};
use crate::lock::Lock;
use crate::plan::{self, MachinePlan, Plan};
use crate::report::Report;
use crate::resource::Layer;
use crate::spec::{Cluster, Machine};
use crate::state::State;
use crate::steps::{self, Step};
use crate::transport::{Connections, Host, Program};
use crate::trust::Agreements;
use crate::work::{Progress, Work};
use crate::{machine, nodes, runner};

/// Why a command of a session was rejected or failed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The arguments of the command do not fit the cluster file.
    #[error("{0}")]
    Arguments(String),
    /// The command failed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// Shows the progress of steps: it gets the number of machines and the receiver of their progress, and is called once for each part of a
/// command. The future runs as its own task, so that a blocked terminal does not hold up the steps, and completes when the channel ends.
pub type Observer<'a> = dyn Fn(usize, UnboundedReceiver<Progress>) -> BoxFuture<'static, ()> + Sync + 'a;

/// What to apply.
#[derive(Debug, Clone, Copy, Default)]
pub struct ApplyRequest<'a> {
    /// Names of the machines; all if empty.
    pub hosts: &'a [String],
    /// The layers; all if empty.
    pub layers: &'a [Layer],
    /// Number of machines to which the machine layers are applied before the rest.
    pub canary: usize,
    /// Id of the step to begin with, such as `cp1/base`; from the start if unset.
    pub from: Option<&'a str>,
    /// Run smoke tests afterwards, if all machines are selected.
    pub smoke: bool,
}

/// The result of an apply.
#[derive(Debug)]
pub struct Applied {
    /// The report of all steps that ran; `None` if there were none.
    pub report: Option<Report>,
    /// Why the apply ended early, after the steps in the report.
    pub ended_early: Option<SessionError>,
}

/// A cluster file and everything that is needed to apply it.
#[derive(Debug)]
pub struct Session {
    path: PathBuf,
    /// The content of the file, without the machines of groups.
    file: Cluster,
    agreements: Agreements,
    state: State,
    connections: Arc<Connections>,
    fleet: Option<Arc<Fleet>>,
    program: Arc<Program>,
    /// Name of the change in the machines' records: the start of the session in milliseconds since 1970.
    change: String,
}

impl Session {
    /// Opens a session for the cluster file at `path`, with its state below slipway's `home`. The session has no providers until
    /// [`Self::connect_providers`].
    ///
    /// # Errors
    /// [`ClusterError::Spec`], or [`ClusterError::Io`] when the file or the state cannot be read.
    pub fn open(path: &Path, home: &Path) -> Result<Self, ClusterError> {
        let mut file = Cluster::read(path)?;
        let agreements = Agreements::at(home);
        agreements.allow_commands(path, &mut file)?;
        let state = State::open(home, &file.metadata.name)?;
        let connections = Arc::new(Connections::new(state.known_hosts())?);
        let program = std::env::current_exe().map_err(ClusterError::io("this program"))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            agreements,
            state,
            connections,
            fleet: None,
            program: Arc::new(Program::new(program)),
            change: format!("{:013}", slipway_core::clock::now_ms()),
        })
    }

    /// Replaces the content of the file in this session. Only the commands that the user has approved may run.
    ///
    /// # Errors
    /// [`ClusterError::Io`] when the agreements cannot be read.
    pub fn replace_file(&mut self, mut file: Cluster) -> Result<(), ClusterError> {
        self.agreements.allow_commands(&self.path, &mut file)?;
        self.file = file;
        Ok(())
    }

    /// Connects to the providers of the file, for which their tokens are read. A file without groups needs none, unless machines of a
    /// provider exist.
    ///
    /// # Errors
    /// [`ClusterError::Untrusted`], or those of [`Fleet::connect`].
    pub fn connect_providers(&mut self) -> Result<(), ClusterError> {
        self.file.check_trusted()?;
        let has_fleet = !self.file.spec.groups.is_empty() || fleet::owns_machines(&self.state)?;
        self.fleet = if has_fleet { Some(Arc::new(Fleet::connect(&self.file, &self.state)?)) } else { None };
        Ok(())
    }

    /// The path of the cluster file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content of the file, without the machines of groups.
    pub fn file(&self) -> &Cluster {
        &self.file
    }

    /// The cluster's folder on the controller.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The provider machines; `None` if the file has no groups and no provider machine exists.
    pub fn fleet(&self) -> Option<&Fleet> {
        self.fleet.as_deref()
    }

    /// This program, which is uploaded to the machines.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Records that the user approves the commands of the file.
    ///
    /// # Errors
    /// [`ClusterError::Io`] when the agreements cannot be written.
    pub fn approve_commands(&self) -> Result<(), ClusterError> {
        self.agreements.add(&self.path, &self.file)
    }

    /// Acquires the cluster's lock and rereads the state, which another process may have changed.
    ///
    /// # Errors
    /// [`ClusterError::Locked`] with the holder's process id, or [`ClusterError::Io`].
    pub fn lock(&self) -> Result<Lock, ClusterError> {
        let lock = self.state.lock()?;
        if let Some(fleet) = &self.fleet {
            fleet.reload()?;
        }
        Ok(lock)
    }

    /// The cluster including the existing machines of its groups.
    ///
    /// # Errors
    /// Those of [`fleet::resolved`].
    pub fn cluster(&self) -> Result<Cluster, ClusterError> {
        fleet::resolved(&self.file, &self.state)
    }

    /// The selected machines and their connections. An empty `names` selects all machines.
    ///
    /// # Errors
    /// [`SessionError::Arguments`] when the file has no machine of a name; [`ClusterError::Untrusted`], and those of
    /// [`Connections::host`].
    pub fn hosts(&self, names: &[String]) -> Result<Vec<(Machine, Host)>, SessionError> {
        self.file.check_trusted()?;
        let cluster = self.cluster()?;
        let in_group = |name: &String| self.file.spec.groups.iter().any(|g| g.names().any(|n| n == *name));
        for name in names {
            if !cluster.spec.machines.iter().any(|m| m.name == *name) && !in_group(name) {
                return Err(SessionError::Arguments(format!("there is no machine '{name}' in the file")));
            }
        }
        Ok(self.connect(&cluster, names)?)
    }

    /// The machines of these names, or all, with their connections.
    fn connect(&self, cluster: &Cluster, names: &[String]) -> Result<Vec<(Machine, Host)>, ClusterError> {
        let selected = cluster.spec.machines.iter().filter(|m| names.is_empty() || names.contains(&m.name));
        selected.map(|m| Ok((m.clone(), self.connections.host(cluster, m)?))).collect()
    }

    /// Computes the plan: the changes on existing machines, and the provider machines to create or delete.
    ///
    /// # Errors
    /// Those of [`Self::hosts`], or when a request to a provider fails. An unreachable machine is not an error; its plan reports it.
    pub async fn plan(&self, hosts: &[String], layers: &[Layer]) -> Result<Plan, SessionError> {
        let provider_changes = match &self.fleet {
            Some(fleet) if layers.is_empty() => fleet.plan().await?,
            _ => Vec::new(),
        };
        let existing = self.hosts(hosts)?;
        let existing: Vec<_> =
            existing.into_iter().filter(|(m, _)| provider_changes.iter().all(|(name, _)| *name != m.name)).collect();
        let mut plan = plan::plan(&self.cluster()?, &existing, layers).await;
        for (name, change) in provider_changes {
            if hosts.is_empty() || hosts.contains(&name) {
                plan.machines.push(MachinePlan::of_provider(&name, change));
            }
        }
        if let Some(fleet) = &self.fleet {
            plan.hourly = fleet.hourly().await?;
        }
        Ok(plan)
    }

    /// Builds the context that the steps share, from the current state of the session.
    fn work(
        &self,
        verb: &'static str,
        watch: Option<UnboundedSender<Progress>>,
        before: Option<Report>,
    ) -> Result<Work, ClusterError> {
        self.file.check_trusted()?;
        let cluster = self.cluster()?;
        let mut hosts = self.connect(&cluster, &[])?;
        for machine in self.leaving() {
            let host = self.connections.host(&cluster, &machine)?;
            hosts.push((machine, host));
        }
        Ok(Work {
            verb,
            cluster,
            hosts: hosts.into_iter().map(|(m, h)| (m.name.clone(), (m, h))).collect(),
            connections: Arc::clone(&self.connections),
            fleet: self.fleet.clone(),
            program: Arc::clone(&self.program),
            state: self.state.clone(),
            change: self.change.clone(),
            watch,
            before,
        })
    }

    /// Machines of providers that are no longer in the file.
    fn leaving(&self) -> Vec<Machine> {
        self.fleet.as_ref().map(|f| f.leaving()).unwrap_or_default()
    }

    /// Runs steps. The returned report is not saved yet.
    ///
    /// # Errors
    /// When the steps cannot begin. A failed step is in the report.
    pub async fn run(
        &self,
        verb: &'static str,
        steps: Vec<Step>,
        observer: &Observer<'_>,
    ) -> Result<Report, ClusterError> {
        self.run_after(None, verb, steps, observer).await
    }

    /// Like [`Self::run`]. The returned report also contains the steps in `before`.
    async fn run_after(
        &self,
        before: Option<Report>,
        verb: &'static str,
        steps: Vec<Step>,
        observer: &Observer<'_>,
    ) -> Result<Report, ClusterError> {
        let (watch, progress) = unbounded_channel();
        let work = self.work(verb, Some(watch), before)?;
        let observing = tokio::spawn(observer(work.hosts.len(), progress));
        let report = runner::run(Arc::new(work), steps).await;
        let _ = observing.await; // A failure to show the progress does not affect the report.
        Ok(report)
    }

    /// Applies the file: creates the machines of its groups, changes all machines and the cluster, and removes surplus machines.
    ///
    /// # Errors
    /// [`SessionError::Arguments`] when there is no step [`ApplyRequest::from`], and those of [`Self::run`].
    pub async fn apply(&self, request: &ApplyRequest<'_>, observer: &Observer<'_>) -> Result<Applied, SessionError> {
        let hosts = request.hosts;
        let all = request.layers.is_empty() && request.from.is_none();
        let mut report: Option<Report> = None;
        // Create provider machines first, because the desired state of all machines contains their addresses.
        if let (Some(fleet), true) = (&self.fleet, all) {
            let names: Vec<String> =
                fleet.desired_names().into_iter().filter(|n| hosts.is_empty() || hosts.contains(n)).collect();
            report = Some(self.run("apply", steps::machines(&names), observer).await?);
        }
        let cluster = self.cluster()?;
        if cluster.first().is_none() {
            let error = SessionError::Arguments("there is no control plane".into());
            return Ok(Applied { report, ended_early: Some(error) });
        }
        let options = steps::ApplyOptions {
            only: request.layers.to_vec(),
            canary: request.canary,
            smoke: request.smoke && hosts.is_empty(),
        };
        let mut steps = on(steps::apply(&cluster, &options), hosts);
        if let Some(from) = request.from {
            steps = steps::from(steps, from).map_err(SessionError::Arguments)?;
        }
        let mut report = self.run_after(report, "apply", steps, observer).await?;
        // Remove surplus machines only after all other steps except smoke tests have succeeded.
        let succeeded = report.steps.iter().all(|s| s.outcome.succeeded() || s.step.contains("/smoke-"));
        if let (Some(fleet), true) = (&self.fleet, all && hosts.is_empty() && succeeded) {
            let leaving = fleet.leaving();
            let mut steps = steps::leave(&leaving.iter().collect::<Vec<_>>());
            steps.extend(steps::delete(&fleet.unprovisioned(false)));
            if !steps.is_empty() {
                report = self.run_after(Some(report), "apply", steps, observer).await?;
            }
        }
        Ok(Applied { report: Some(report), ended_early: None })
    }

    /// Checks that all nodes may be upgraded to the file's version. Returns the current versions by node name.
    ///
    /// # Errors
    /// [`ClusterError::Spec`] with the upgrade to do first, or an error when the cluster does not respond.
    pub async fn check_upgrade(&self) -> Result<BTreeMap<String, String>, ClusterError> {
        nodes::may_upgrade(&self.work("upgrade", None, None)?).await
    }

    /// The steps that upgrade the nodes of these machines, or of all: workers in batches of `workers`.
    ///
    /// # Errors
    /// Those of [`Self::cluster`].
    pub fn upgrade_steps(&self, hosts: &[String], workers: usize) -> Result<Vec<Step>, ClusterError> {
        Ok(on(steps::upgrade(&self.cluster()?, workers), hosts))
    }

    /// The steps that stop these machines, or all.
    ///
    /// # Errors
    /// Those of [`Self::cluster`].
    pub fn stop_steps(&self, hosts: &[String]) -> Result<Vec<Step>, ClusterError> {
        Ok(on(steps::stop(&self.cluster()?), hosts))
    }

    /// Powers these machines on, or all, and then starts the cluster on them.
    ///
    /// # Errors
    /// Those of [`Self::run`].
    pub async fn start(&self, hosts: &[String], observer: &Observer<'_>) -> Result<Report, ClusterError> {
        let machines = self.cluster()?.spec.machines;
        let names: Vec<String> = machines.into_iter().filter(|m| m.provisioned.is_some()).map(|m| m.name).collect();
        let report = self.run("start", on(steps::machines(&names), hosts), observer).await?;
        // The addresses may have changed, so read the cluster again.
        let steps = on(steps::start(&self.cluster()?), hosts);
        self.run_after(Some(report), "start", steps, observer).await
    }

    /// The steps that destroy the whole cluster, or remove these machines from it.
    ///
    /// # Errors
    /// Those of [`Self::hosts`].
    pub fn destroy_steps(&self, hosts: &[String]) -> Result<Vec<Step>, SessionError> {
        let mut machines = self.cluster()?.spec.machines;
        machines.extend(self.leaving());
        if hosts.is_empty() {
            let unprovisioned = self.fleet.as_ref().map(|f| f.unprovisioned(true)).unwrap_or_default();
            return Ok([steps::destroy(&machines), steps::delete(&unprovisioned)].concat());
        }
        self.hosts(hosts)?;
        Ok(steps::leave(&machines.iter().filter(|m| hosts.contains(&m.name)).collect::<Vec<_>>()))
    }

    /// Rolls back the last change of these machines, one after the other. `note` receives the name of a machine and a line of its output,
    /// or its error. The rest is rolled back even if one fails.
    ///
    /// # Errors
    /// The first error.
    pub async fn roll_back(
        &self,
        hosts: &[(Machine, Host)],
        mut note: impl FnMut(&str, &str),
    ) -> Result<(), ClusterError> {
        let mut first = Ok(());
        for (machine, host) in hosts {
            let done = machine::roll_back(host, &self.program, |line| note(&machine.name, line)).await;
            if let Err(error) = done {
                note(&machine.name, &error.to_string());
                first = first.and(Err(error));
            }
        }
        first
    }
}

/// Keeps only the steps on these machines; all if `hosts` is empty.
fn on(steps: Vec<Step>, hosts: &[String]) -> Vec<Step> {
    steps::on(steps, &hosts.iter().cloned().collect::<BTreeSet<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    struct Home(PathBuf);

    impl Home {
        fn session(text: &str) -> (Self, Session) {
            let home = Self(std::env::temp_dir().join(slipway_core::ids::hex32()));
            std::fs::create_dir_all(&home.0).unwrap();
            let path = home.0.join("cluster.yaml");
            std::fs::write(&path, text).unwrap();
            let session = Session::open(&path, &home.0).unwrap();
            (home, session)
        }
    }

    impl Drop for Home {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0); // the system removes what is left
        }
    }

    fn observer(_: usize, _: UnboundedReceiver<Progress>) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    #[tokio::test]
    async fn unknown_machines_and_steps_are_invalid_arguments() {
        let (_home, session) = Home::session(FILE);
        assert_eq!(session.hosts(&[]).unwrap().len(), 3);
        let unknown = ["cp9".to_owned()];
        for result in [session.hosts(&unknown).map(drop), session.destroy_steps(&unknown).map(drop)] {
            let error = result.unwrap_err();
            assert!(matches!(&error, SessionError::Arguments(_)) && error.to_string().contains("'cp9'"), "{error}");
        }
        let request = ApplyRequest { from: Some("cp9/base"), ..ApplyRequest::default() };
        let error = session.apply(&request, &observer).await.unwrap_err();
        assert!(error.to_string().contains("the steps are cp1/base"), "{error}");
    }

    #[tokio::test]
    async fn apply_ends_early_without_a_control_plane() {
        let text = "apiVersion: slipway.dev/v1\nkind: Cluster\nmetadata: {name: lab}\nspec:\n  \
                    providers: {do: {digitalocean: {token: {env: T}, region: nyc2, sshKeys: ['1']}}}\n  \
                    groups: [{name: cp, provider: do, size: s, image: i, count: 1, roles: [control-plane]}]\n  \
                    kubernetes: {distribution: microk8s, channel: 1.32/stable}\n";
        let (_home, session) = Home::session(text);
        let request = ApplyRequest { layers: &[Layer::System], ..ApplyRequest::default() };
        let applied = session.apply(&request, &observer).await.unwrap();
        assert!(applied.report.is_none());
        assert_eq!(applied.ended_early.unwrap().to_string(), "there is no control plane");
    }
}
