//! The agent's task for acceptance. It waits until no container and no process uses a GPU, taints the node, drains all GPUs, and runs the
//! checks in a process of its own, so that neither their memory nor a driver that hangs affects the agent.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use slipway_core::clock::{now_ms, rfc3339};
use slipway_gpu::accept::check::Level;

use super::Store;
use super::decision::{Decision, MAX_ATTEMPTS, decide};
use super::publish::{self, Phase};
use crate::NodeError;
use crate::cluster::{Cluster, NODE};
use crate::driver::{Driver, Machine, State};
use crate::holders;
use crate::model::Holder;

/// Interval of the polls of holders, report and node.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Interval after which everything is published again, in case somebody changed it.
const REPUBLISH_INTERVAL: Duration = Duration::from_secs(600);
/// Delay after a run that could not start.
const RETRY_DELAY: Duration = Duration::from_secs(60);
/// Interval and number of polls without a holder before the checks start: the kubelet reports a pod only some time after it has
/// allocated its devices.
const IDLE_POLLS: (Duration, u32) = (Duration::from_millis(500), 3);
/// Time limit of a run; the measurements have shorter limits of their own.
const RUN_LIMIT: Duration = Duration::from_secs(8 * 3600);

/// What the agent requires of its node.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The level that the node must pass.
    pub level: Level,
    /// Interval of repetitions; `None` to test only new GPUs and drivers.
    pub every: Option<Duration>,
    /// The program that runs the checks.
    pub command: Command,
}

/// What the manager needs of its node: the kubelet, and a program that runs the checks.
pub trait Runner: Send + Sync + 'static {
    /// The containers that hold devices.
    fn holders(&self, state: &State) -> impl Future<Output = Result<Vec<Holder>, NodeError>> + Send;

    /// Runs the checks and saves their report.
    fn run(&self) -> impl Future<Output = Result<(), NodeError>> + Send;
}

/// A program that runs the checks and saves the report in the agent's folder.
#[derive(Debug, Clone)]
pub struct Command {
    /// Path of the program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

impl Command {
    /// Runs the program until it ends.
    ///
    /// # Errors
    /// If it cannot be started, does not end in time, or ends with another code than those of passed and failed checks.
    pub async fn run(&self) -> Result<(), NodeError> {
        let what = self.program.display().to_string();
        let mut command = tokio::process::Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().map_err(NodeError::io(what.clone()))?;
        match tokio::time::timeout(RUN_LIMIT, child.wait()).await {
            // The report says what failed.
            Ok(Ok(status)) if matches!(status.code(), Some(0 | 3)) => Ok(()),
            Ok(Ok(status)) => Err(NodeError::Invalid(format!("the checks ended with {status}"))),
            Ok(Err(source)) => Err(NodeError::Io { what, source }),
            Err(_) => Err(NodeError::Invalid(format!("the checks did not end within {} s", RUN_LIMIT.as_secs()))),
        }
    }
}

/// The kubelet of this node, and the program.
pub struct ThisNode {
    /// Socket of the kubelet's pod resources API.
    pub pod_resources: PathBuf,
    /// Name of the DRA driver whose devices belong to this agent.
    pub dra_driver: String,
    /// Runs the checks.
    pub command: Command,
}

impl Runner for ThisNode {
    async fn holders(&self, state: &State) -> Result<Vec<Holder>, NodeError> {
        holders::list_holders(&self.pod_resources, state, &self.dra_driver).await
    }

    async fn run(&self) -> Result<(), NodeError> {
        self.command.run().await
    }
}

/// Keeps the node tainted until it is accepted.
pub struct Manager<C, R> {
    /// The API server.
    pub cluster: Arc<C>,
    /// Name of this node.
    pub node: String,
    /// The driver.
    pub driver: Arc<Driver>,
    /// The reports.
    pub store: Store,
    /// The level that the node must pass.
    pub level: Level,
    /// Interval of repetitions.
    pub every: Option<Duration>,
    /// The kubelet, and the program that runs the checks.
    pub runner: R,
}

/// What was published.
#[derive(Debug, Default, PartialEq, Eq)]
struct Published {
    /// The phase that the node has; `None` to publish it again.
    phase: Option<Phase>,
    /// The last phase that had an event, and when it began.
    announced: Option<(Phase, String)>,
}

impl<C: Cluster, R: Runner> Manager<C, R> {
    /// Reconciles forever.
    pub async fn run(self) {
        let (mut states, mut node) = (self.driver.subscribe(), self.cluster.watch(NODE, None, &self.node));
        let mut published = Published::default();
        let mut last_publication = tokio::time::Instant::now();
        let mut unstarted = 0;
        loop {
            let state = states.borrow_and_update().clone();
            if let Some(machine) = state.machine() {
                let object = node.borrow_and_update().clone();
                let changed =
                    |phase: &Phase| object.as_ref().and_then(|o| publish::changed_taints(o, phase.taint())).is_some();
                // Somebody changed the taint, or the node was registered again.
                if published.phase.as_ref().is_some_and(changed) || last_publication.elapsed() >= REPUBLISH_INTERVAL {
                    published.phase = None;
                    last_publication = tokio::time::Instant::now();
                }
                unstarted = self.reconcile(&state, machine, &mut published, unstarted).await;
            }
            let delay = if unstarted > 0 { RETRY_DELAY } else { POLL_INTERVAL };
            tokio::select! {
                changed = node.changed(), if unstarted == 0 => if changed.is_err() { return },
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// One step; returns the number of runs in a row that did not start.
    async fn reconcile(&self, state: &State, machine: &Machine, published: &mut Published, unstarted: u32) -> u32 {
        let decision = self.decide(machine);
        let gives_up = unstarted >= MAX_ATTEMPTS;
        if !decision.is_due() || gives_up {
            let phase = match decision {
                Decision::Untested { reason } => Phase::Failed(format!("{reason}, and the checks do not start")),
                decision => settled(decision),
            };
            self.publish(published, phase).await;
            return unstarted;
        }
        let accepted = match &decision {
            Decision::Accepted { level, .. } => Some(*level),
            _ => None,
        };
        if let Some(waits_for) = self.obstacle(state, machine).await {
            let phase = match decision {
                Decision::Untested { reason } => Phase::Pending(format!("{reason}; the checks wait for {waits_for}")),
                decision => settled(decision),
            };
            self.publish(published, phase).await;
            return unstarted;
        }
        // A change of the MIG layout and the checks exclude each other.
        let _maintenance = self.driver.maintenance().await;
        if !self.publish(published, Phase::Testing { accepted }).await {
            return unstarted;
        }
        let run = self.test(machine).await;
        if let Err(error) = self.driver.drain(BTreeSet::new()).await {
            tracing::warn!(%error, "the devices are offered again when the driver responds");
        }
        match run {
            Ok(true) => {
                self.publish(published, settled(self.decide(machine))).await;
                0
            }
            // A container got a GPU at the last moment.
            Ok(false) => unstarted,
            Err(error) => {
                tracing::error!(%error, "the checks of acceptance did not end with a report");
                self.event(true, "AcceptanceInterrupted", &error.to_string()).await;
                unstarted + 1
            }
        }
    }

    fn decide(&self, machine: &Machine) -> Decision {
        let report = self.store.report().unwrap_or_else(|error| {
            tracing::warn!(%error, "the report of acceptance is ignored");
            None
        });
        let attempt = self.store.attempt().ok().flatten();
        decide(report.as_ref(), attempt.as_ref(), &machine.inventory, self.level, self.every, now_ms())
    }

    /// What uses the GPUs; `None` if they are idle.
    async fn obstacle(&self, state: &State, machine: &Machine) -> Option<String> {
        let held = match self.runner.holders(state).await {
            Ok(held) => held,
            Err(error) => return Some(format!("the kubelet: {error}")),
        };
        if let Some(holder) = held.first() {
            return Some(format!("pod {}/{}", holder.namespace, holder.pod));
        }
        if !machine.claimed.is_empty() {
            return Some("resource claims".into());
        }
        let process = machine.inventory.gpus.iter().find_map(|g| Some((g.index, g.processes.first()?)));
        process.map(|(gpu, process)| format!("process {} ({}) on GPU {gpu}", process.pid, process.owner.command))
    }

    /// Drains all GPUs and runs the checks; returns whether they ran.
    async fn test(&self, machine: &Machine) -> Result<bool, NodeError> {
        let mig = |g: &slipway_gpu::inventory::Gpu| {
            g.mig.iter().flat_map(|m| m.devices.iter().map(|d| d.uuid.clone())).collect::<Vec<_>>()
        };
        let gpus = machine.inventory.gpus.iter();
        let all: BTreeSet<String> = gpus.flat_map(|g| mig(g).into_iter().chain([g.uuid.clone()])).collect();
        self.driver.drain(all).await?;
        for _ in 0..IDLE_POLLS.1 {
            tokio::time::sleep(IDLE_POLLS.0).await;
            let state = self.driver.subscribe().borrow().clone();
            let Some(machine) = state.machine() else { return Ok(false) };
            if self.obstacle(&state, machine).await.is_some() {
                return Ok(false);
            }
        }
        tracing::info!(level = self.level.number(), "the checks of acceptance start");
        self.runner.run().await.map(|()| true)
    }

    /// Publishes a phase unless it is published already; returns whether it is.
    async fn publish(&self, published: &mut Published, phase: Phase) -> bool {
        if published.phase.as_ref() == Some(&phase) {
            return true;
        }
        let known = published.announced.as_ref().filter(|(announced, _)| *announced == phase);
        let since = known.map_or_else(|| rfc3339(now_ms()), |(_, since)| since.clone());
        if let Err(error) = publish::publish(&*self.cluster, &self.node, &phase, &since).await {
            tracing::warn!(%error, "publishing the state of acceptance failed; retrying");
            published.phase = None;
            return false;
        }
        if known.is_none() {
            self.announce(&phase).await;
        }
        *published = Published { phase: Some(phase.clone()), announced: Some((phase, since)) };
        true
    }

    /// Publishes the event of a phase.
    async fn announce(&self, phase: &Phase) {
        let (warning, reason, message) = match phase {
            Phase::Accepted { message, .. } => (false, "Accepted", message.clone()),
            Phase::Failed(why) => (true, "NotAccepted", why.clone()),
            Phase::Testing { .. } => (false, "AcceptanceStarted", format!("the checks of level {} run", self.level)),
            Phase::Pending(_) => return,
        };
        tracing::info!(reason, message, "acceptance");
        self.event(warning, reason, &message).await;
    }

    async fn event(&self, warning: bool, reason: &str, message: &str) {
        let about = json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": self.node});
        if let Err(error) = self.cluster.event(about, warning, reason, message).await {
            tracing::debug!(%error, "publishing the event failed");
        }
    }
}

/// The phase of a node whose checks do not run now.
fn settled(decision: Decision) -> Phase {
    match decision {
        Decision::Accepted { level, finished, .. } => {
            Phase::Accepted { level, message: format!("level {level} passed at {}", rfc3339(finished)) }
        }
        Decision::Failed { reason, .. } => Phase::Failed(reason),
        Decision::Untested { reason } => Phase::Pending(reason),
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use serde_json::Value;
    use slipway_gpu::accept::check::Outcome;
    use tokio::sync::watch;

    use super::super::store::Subject;
    use super::super::store::tests::{report, store};
    use super::*;
    use crate::cluster::{ClusterError, Eviction, Kind};
    use crate::driver::tests::responding_driver;
    use crate::samples::{gpu, machine};

    /// A cluster with one node, which records what is applied to it.
    #[derive(Default)]
    struct OneNode {
        taints: Mutex<Vec<Value>>,
        label: Mutex<Option<Value>>,
        condition: Mutex<Value>,
        events: Mutex<Vec<String>>,
        /// Taints are not changed while this is set.
        unreachable: Mutex<bool>,
    }

    impl Cluster for OneNode {
        async fn get(&self, _: Kind, _: Option<&str>, _: &str) -> Result<Option<Value>, ClusterError> {
            Ok(Some(json!({"metadata": {"resourceVersion": "7"}, "spec": {"taints": *self.taints.lock()}})))
        }
        async fn list(&self, _: Kind, _: &str) -> Result<Vec<Value>, ClusterError> {
            Ok(Vec::new())
        }
        async fn apply(&self, _: Kind, _: &str, _: &str, status: bool, object: Value) -> Result<Value, ClusterError> {
            if status {
                *self.condition.lock() = object["status"]["conditions"][0].clone();
            } else {
                *self.label.lock() = object["metadata"]["labels"].get(publish::LABEL).cloned();
            }
            Ok(object)
        }
        async fn merge(&self, _: Kind, _: &str, patch: Value) -> Result<Value, ClusterError> {
            if *self.unreachable.lock() {
                return Err(ClusterError::Unreachable("simulated by the test".into()));
            }
            assert_eq!(patch["metadata"]["resourceVersion"], "7");
            *self.taints.lock() = patch["spec"]["taints"].as_array().unwrap().clone();
            Ok(patch)
        }
        async fn delete(&self, _: Kind, _: &str) -> Result<(), ClusterError> {
            Ok(())
        }
        async fn evict(&self, _: &str, _: &str) -> Result<Eviction, ClusterError> {
            Ok(Eviction::Accepted)
        }
        async fn event(&self, _: Value, _: bool, reason: &str, _: &str) -> Result<(), ClusterError> {
            self.events.lock().push(reason.into());
            Ok(())
        }
        fn watch(&self, _: Kind, _: Option<&str>, _: &str) -> watch::Receiver<Option<Value>> {
            watch::channel(None).1
        }
        async fn user_of(&self, _: &str, _: &str) -> Result<Option<String>, ClusterError> {
            Ok(None)
        }
    }

    impl OneNode {
        fn taint(&self) -> Option<String> {
            self.taints.lock().iter().find(|t| t["key"] == publish::TAINT).map(|t| t["value"].as_str().unwrap().into())
        }
    }

    /// Ends with each of these outcomes in turn; `None` ends without a report.
    struct Script {
        outcomes: Mutex<Vec<Option<Outcome>>>,
        store: Store,
        /// Pods that hold the GPU, at each query; the last one stays.
        held: Mutex<Vec<Option<&'static str>>>,
        /// Taint and drained devices during each run.
        during: Mutex<Vec<(Option<String>, BTreeSet<String>)>>,
        cluster: Arc<OneNode>,
        driver: Arc<Driver>,
    }

    impl Runner for Script {
        async fn holders(&self, _: &State) -> Result<Vec<Holder>, NodeError> {
            let mut held = self.held.lock();
            let pod = if held.len() > 1 { held.remove(0) } else { held[0] };
            let holder = |pod: &str| Holder {
                namespace: "team".into(),
                pod: pod.into(),
                container: "main".into(),
                resource: "nvidia.com/gpu".into(),
                device: "GPU-0".into(),
                replica: None,
            };
            Ok(pod.map(holder).into_iter().collect())
        }

        async fn run(&self) -> Result<(), NodeError> {
            let outcome = self.outcomes.lock().remove(0);
            let state = self.driver.subscribe().borrow().clone();
            let draining = state.machine().map(|m| m.draining.clone()).unwrap_or_default();
            self.during.lock().push((self.cluster.taint(), draining));
            let report = report(&["GPU-0"], 3, outcome.unwrap_or(Outcome::Pass), now_ms());
            let running = self.store.begin(Subject::from_report(&report), Level::LONG)?;
            match outcome {
                Some(_) => running.finish(&report).map(drop),
                None => Err(NodeError::Invalid("killed".into())),
            }
        }
    }

    fn manager(outcomes: &[Option<Outcome>]) -> (Manager<OneNode, Script>, PathBuf) {
        let (store, home) = store();
        let (cluster, driver) = (Arc::new(OneNode::default()), responding_driver(machine(vec![gpu(0, None)])));
        let manager = Manager {
            cluster: Arc::clone(&cluster),
            node: "n1".into(),
            driver: Arc::clone(&driver),
            store: store.clone(),
            level: Level::LONG,
            every: None,
            runner: Script {
                outcomes: Mutex::new(outcomes.to_vec()),
                store,
                held: Mutex::new(vec![None]),
                during: Mutex::default(),
                cluster,
                driver,
            },
        };
        (manager, home)
    }

    #[tokio::test]
    async fn checks_wait_for_pods_and_run_on_a_tainted_and_drained_node() {
        let (manager, home) = manager(&[Some(Outcome::Pass)]);
        let state = State::Available(Box::new(machine(vec![gpu(0, None)])));
        let (cluster, mut published) = (Arc::clone(&manager.cluster), Published::default());
        *manager.runner.held.lock() = vec![Some("train")];
        manager.reconcile(&state, state.machine().unwrap(), &mut published, 0).await;
        assert_eq!(cluster.taint().as_deref(), Some("pending"));
        let message = cluster.condition.lock()["message"].as_str().unwrap().to_owned();
        assert_eq!(message, "the GPUs have not been tested; the checks wait for pod team/train");

        // A pod that gets a GPU at the last moment keeps it.
        *manager.runner.held.lock() = vec![None, Some("train")];
        manager.reconcile(&state, state.machine().unwrap(), &mut published, 0).await;
        assert!(manager.runner.during.lock().is_empty() && cluster.taint().is_some());

        *manager.runner.held.lock() = vec![None];
        manager.reconcile(&state, state.machine().unwrap(), &mut published, 0).await;
        let during = manager.runner.during.lock().clone();
        assert_eq!(during, [(Some("testing".to_owned()), BTreeSet::from(["GPU-0".to_owned()]))]);
        assert_eq!(cluster.taint(), None);
        assert_eq!(cluster.label.lock().as_ref().unwrap(), &json!("3"));
        assert!(manager.driver.subscribe().borrow().machine().unwrap().draining.is_empty(), "offered again");
        manager.driver.stop();
        let _ = std::fs::remove_dir_all(home);
    }

    #[tokio::test]
    async fn node_whose_checks_are_interrupted_stays_tainted_until_it_is_given_up() {
        let (manager, home) = manager(&[None, None, None]);
        let state = State::Available(Box::new(machine(vec![gpu(0, None)])));
        let mut published = Published::default();
        for _ in 0..MAX_ATTEMPTS {
            // Each agent starts anew, because the machine lost power.
            assert_eq!(manager.reconcile(&state, state.machine().unwrap(), &mut published, 0).await, 1);
            assert_eq!(manager.cluster.taint().as_deref(), Some("testing"));
            published = Published::default();
        }
        manager.reconcile(&state, state.machine().unwrap(), &mut published, 0).await;
        assert_eq!(manager.cluster.taint().as_deref(), Some("failed"));
        let message = manager.cluster.condition.lock()["message"].as_str().unwrap().to_owned();
        assert_eq!(message, "3 runs at level 3 ended without a report");
        manager.driver.stop();
        let _ = std::fs::remove_dir_all(home);
    }

    #[tokio::test]
    async fn taint_follows_the_report() {
        let (manager, home) = manager(&[]);
        let state = State::Available(Box::new(machine(vec![gpu(0, None)])));
        let (cluster, mut published) = (Arc::clone(&manager.cluster), Published::default());
        cluster.taints.lock().push(json!({"key": "team", "effect": "NoSchedule"}));
        let reports = [
            (Outcome::Fail, Some("failed"), "failed"),
            (Outcome::Pass, None, "3"),
            (Outcome::CannotRun, Some("failed"), "failed"),
        ];
        for (outcome, expected, label) in reports {
            let report = report(&["GPU-0"], 3, outcome, 1000);
            manager.store.begin(Subject::from_report(&report), report.level).unwrap().finish(&report).unwrap();
            manager.reconcile(&state, state.machine().unwrap(), &mut published, 0).await;
            assert_eq!(cluster.taint().as_deref(), expected);
            assert_eq!(cluster.label.lock().as_ref().unwrap(), &json!(label));
            assert!(cluster.taints.lock().iter().any(|t| t["key"] == "team"));
        }
        // Publishing again has no event.
        published.phase = None;
        cluster.taints.lock().clear();
        manager.reconcile(&state, state.machine().unwrap(), &mut published, 0).await;
        assert_eq!(cluster.taint().as_deref(), Some("failed"));
        assert_eq!(*cluster.events.lock(), ["NotAccepted", "Accepted", "NotAccepted"]);
        let _ = std::fs::remove_dir_all(home);
    }

    #[tokio::test]
    async fn interrupted_run_is_repeated_and_only_its_report_removes_the_taint() {
        let (manager, home) = manager(&[None, Some(Outcome::Pass)]);
        let machine = machine(vec![gpu(0, None)]);
        assert!(manager.runner.run().await.is_err());
        let attempt = manager.store.attempt().unwrap().unwrap();
        assert_eq!((attempt.count, attempt.subject), (1, Subject::from_inventory(&machine.inventory)));
        assert!(manager.decide(&machine).is_due(), "a new agent runs the checks again");
        manager.runner.run().await.unwrap();
        assert!(matches!(manager.decide(&machine), Decision::Accepted { due: false, .. }));
        let _ = std::fs::remove_dir_all(home);
    }

    #[tokio::test]
    async fn checks_do_not_start_if_the_taint_cannot_be_set() {
        let (manager, home) = manager(&[Some(Outcome::Pass)]);
        *manager.cluster.unreachable.lock() = true;
        let mut published = Published::default();
        assert!(!manager.publish(&mut published, Phase::Testing { accepted: None }).await);
        assert_eq!(published, Published::default());
        let _ = std::fs::remove_dir_all(home);
    }

    #[tokio::test]
    async fn command_reports_other_exit_codes_than_passed_and_failed() {
        let run = |code: u8| {
            let arguments = vec!["-c".into(), format!("exit {code}").into()];
            async move { Command { program: "/bin/sh".into(), arguments }.run().await }
        };
        assert!(run(0).await.is_ok() && run(3).await.is_ok());
        assert!(run(1).await.unwrap_err().to_string().contains("exit status: 1"));
        let absent = Command { program: "/nonexistent".into(), arguments: Vec::new() };
        assert!(absent.run().await.is_err());
    }
}
