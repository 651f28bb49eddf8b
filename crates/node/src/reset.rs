//! Resets a GPU after a fault that a reset mends, if the policy allows it and nothing uses the GPU. Off by default.
//!
//! A reset is irreversible for what runs on the GPU, so every doubt means no reset: a pod that holds the GPU or one of its MIG devices, a
//! process, another program with the device open, a test or a change of the MIG layout, a GPU that must be reset together with others, and
//! too many resets before. nvidia-smi and the driver check once more that no program has the GPU open.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use slipway_core::clock::{now_ms, rfc3339};
use slipway_gpu::inventory::Gpu;
use slipway_gpu::reset::{self, Target};
use slipway_gpu::settings::Store;
use slipway_gpu::stack;

use crate::cluster::{Cluster, NODE};
use crate::driver::{Driver, Machine, State};
use crate::health::Fault;
use crate::model::Holder;
use crate::{NodeError, holders, labels, pause};

/// The node label that overrides the policy of the agent: `true` or `false`.
pub const LABEL: &str = "slipway.dev/reset-on-fault";
/// Type of the node condition: whether a GPU waits for a reset.
const CONDITION: &str = "slipway.dev/GPUResetPending";
const MANAGER: &str = "slipway-gpu-reset";
/// Interval of the polls of faults and holders.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Number of polls without a holder before a reset: the kubelet reports a pod only some time after it has allocated its devices.
const IDLE_POLLS: u32 = 3;
/// Period in which the resets of a GPU are counted, and the maximum number of them. A GPU that needs more is defective.
const PERIOD_MS: i64 = 24 * 3600 * 1000;
const MAX_RESETS: usize = 3;
/// Minimum interval between two resets of a GPU.
const INTERVAL_MS: i64 = 600 * 1000;
/// Timeout for this agent and for other programs to close the GPU.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);

/// What the manager needs of its node.
pub trait Runner: Send + Sync + 'static {
    /// The containers that hold devices.
    fn holders(&self, state: &State) -> impl Future<Output = Result<Vec<Holder>, NodeError>> + Send;

    /// Resets a GPU that no program has open.
    fn reset(&self, target: &Target, simulated: bool) -> impl Future<Output = Result<(), NodeError>> + Send;
}

/// The kubelet and nvidia-smi of this node.
#[derive(Debug)]
pub struct ThisNode {
    /// Socket of the kubelet's pod resources API.
    pub pod_resources: PathBuf,
    /// Whether the machine is a node of a cluster. On another machine the kubelet may be missing, and then no pod can hold a GPU.
    pub is_node: bool,
    /// Name of the DRA driver whose devices belong to this agent.
    pub dra_driver: String,
    /// Root of the driver, as this process sees it.
    pub driver_root: PathBuf,
}

impl ThisNode {
    /// The path of nvidia-smi: in this container if NVIDIA's runtime has put it there, else below the root of the driver. A simulated machine
    /// has only the one below a root of its own, so that real GPUs are never reset in its place.
    fn program(&self, simulated: bool) -> Result<PathBuf, NodeError> {
        let of_driver = self.driver_root.join("usr/bin/nvidia-smi");
        let candidates = match simulated {
            true if self.driver_root == Path::new("/") => Vec::new(),
            true => vec![of_driver],
            false => vec![PathBuf::from("/usr/bin/nvidia-smi"), of_driver],
        };
        candidates.into_iter().find(|path| path.exists()).ok_or_else(|| {
            NodeError::Invalid(
                "nvidia-smi, which resets GPUs, is neither in this container nor in the driver's root".into(),
            )
        })
    }
}

impl Runner for ThisNode {
    async fn holders(&self, state: &State) -> Result<Vec<Holder>, NodeError> {
        if !self.is_node && !self.pod_resources.exists() {
            return Ok(Vec::new());
        }
        holders::list_holders(&self.pod_resources, state, &self.dra_driver).await
    }

    async fn reset(&self, target: &Target, simulated: bool) -> Result<(), NodeError> {
        let (program, targets) = (self.program(simulated)?, vec![target.clone()]);
        let done = tokio::task::spawn_blocking(move || reset::run(&program, &targets)).await;
        Ok(done.map_err(|e| NodeError::Invalid(e.to_string()))??)
    }
}

/// The times of the resets of each GPU in milliseconds since the epoch, in a file, so that they are counted over restarts of the agent.
#[derive(Debug)]
struct History(PathBuf);

impl History {
    fn read(&self) -> Result<BTreeMap<String, Vec<i64>>, NodeError> {
        let what = || self.0.display().to_string();
        match slipway_core::files::read(&self.0) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| NodeError::Invalid(format!("{}: {e}", what()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(source) => Err(NodeError::Io { what: what(), source }),
        }
    }

    /// Adds a reset, and removes those that are no longer counted.
    fn add(&self, uuid: &str, now: i64) -> Result<(), NodeError> {
        let mut all = self.read()?;
        all.entry(uuid.to_owned()).or_default().push(now);
        for times in all.values_mut() {
            times.retain(|time| now - time < PERIOD_MS);
        }
        all.retain(|_, times| !times.is_empty());
        let text = serde_json::to_vec(&all).map_err(|e| NodeError::Invalid(e.to_string()))?;
        slipway_core::files::replace(&self.0, &text).map_err(NodeError::io(self.0.display().to_string()))
    }
}

/// A GPU with a fault that a reset mends, and why it is not reset now.
#[derive(Debug, Clone, PartialEq)]
struct Pending {
    gpu: u32,
    uuid: String,
    fault: String,
    /// The GPU to reset, or what prevents it.
    decision: Result<Target, String>,
}

/// Whether the condition of a node says that a GPU waits for a reset.
fn is_pending(node: &Value) -> bool {
    let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|c| c["type"] == CONDITION && c["status"] == "True")
}

/// UUIDs of a GPU and its MIG devices.
fn devices(gpu: &Gpu) -> impl Iterator<Item = &str> {
    gpu.mig.iter().flat_map(|m| &m.devices).map(|d| d.uuid.as_str()).chain([gpu.uuid.as_str()])
}

/// The GPUs that a reset mends, each with the decision about it.
fn decide(
    machine: &Machine,
    held: &[Holder],
    earlier: &BTreeMap<String, Vec<i64>>,
    now: i64,
    fabric_manager: bool,
) -> Vec<Pending> {
    let fault = |gpu: &Gpu| machine.faults.fault(&gpu.uuid, None).filter(|fault| fault.is_mended_by_reset()).cloned();
    let faulty = machine.inventory.gpus.iter().filter_map(|gpu| Some((gpu, fault(gpu)?)));
    let decision = |gpu: &Gpu| {
        let pods: BTreeSet<String> = held
            .iter()
            .filter(|h| devices(gpu).any(|uuid| uuid == h.device))
            .map(|h| format!("{}/{}", h.namespace, h.pod))
            .collect();
        if !pods.is_empty() {
            let pods: Vec<String> = pods.into_iter().collect();
            return Err(format!("held by the pods {}", pods.join(", ")));
        }
        if devices(gpu).any(|uuid| machine.draining.contains(uuid)) {
            return Err("tested, or its MIG layout changes".into());
        }
        let times = earlier.get(&gpu.uuid).map(Vec::as_slice).unwrap_or_default();
        let recent = times.iter().filter(|time| now - **time < PERIOD_MS);
        if recent.clone().count() >= MAX_RESETS {
            return Err(format!(
                "{MAX_RESETS} attempts to reset it within {} hours have not mended it; see the event GPUResetFailed, or replace the card",
                PERIOD_MS / 3_600_000
            ));
        }
        if recent.max().is_some_and(|last| now - last < INTERVAL_MS) {
            return Err(format!("reset less than {} minutes ago", INTERVAL_MS / 60_000));
        }
        let targets = reset::plan(&machine.inventory, &machine.topology, &[gpu.index], fabric_manager);
        let target = targets.map_err(|e| e.to_string())?.into_iter().next();
        target.ok_or_else(|| "not found".to_owned())
    };
    faulty
        .map(|(gpu, Fault { reason, .. })| Pending {
            gpu: gpu.index,
            uuid: gpu.uuid.clone(),
            fault: reason,
            decision: decision(gpu),
        })
        .collect()
}

/// Resets faulty GPUs of a node.
#[derive(Debug)]
pub struct Manager<C, R> {
    /// The API server; `None` on a machine without one.
    pub cluster: Option<Arc<C>>,
    /// Name of this node.
    pub node: String,
    /// Whether GPUs are reset on a node without the label.
    pub enabled: bool,
    /// The driver.
    pub driver: Arc<Driver>,
    /// Folder of the agent, with the history of resets.
    pub home: PathBuf,
    /// Folder that other programs of the machine share with the agent: the lock for resets, and the record of GPU settings.
    pub machine: PathBuf,
    /// The node.
    pub runner: R,
}

impl<C: Cluster, R: Runner> Manager<C, R> {
    /// Polls the faults; never returns while the API server watch is open.
    pub async fn run(self) {
        let mut node = self.cluster.as_ref().map(|c| c.watch(NODE, None, &self.node));
        let history = History(self.home.join("gpu-resets.json"));
        let mut idle: BTreeMap<String, u32> = BTreeMap::new();
        let mut published: Option<String> = None;
        loop {
            let object = node.as_mut().map(|n| n.borrow_and_update().clone());
            let is_shown = object.iter().flatten().any(is_pending);
            let labels = object.map(|object| object.as_ref().map(labels::of_object));
            // Before the first response of the API server, the label is not known.
            if labels != Some(None) {
                let label = labels.flatten().and_then(|labels| labels.get(LABEL).cloned());
                let pending =
                    if self.allowed(label.as_deref()) { self.step(&history, &mut idle).await } else { Vec::new() };
                let message: Vec<String> = pending
                    .iter()
                    .map(|p| {
                        let why = p.decision.as_ref().err().map_or("until it is idle", String::as_str);
                        format!("GPU {} ({}) needs a reset after {}, and waits: {why}", p.gpu, p.uuid, p.fault)
                    })
                    .collect();
                let message = message.join("; ");
                // An earlier agent may have left the condition.
                if published.as_ref() != Some(&message) && (is_shown || !message.is_empty()) {
                    self.publish(&message).await;
                    published = Some(message);
                }
            }
            let closed = async {
                match &mut node {
                    Some(node) => node.changed().await.is_err(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                closed = closed => if closed { return },
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
        }
    }

    /// The policy for a node with this label.
    fn allowed(&self, label: Option<&str>) -> bool {
        // An unknown value must not reset anything.
        label.map_or(self.enabled, |value| value == "true")
    }

    /// Resets at most one GPU that has been idle for some polls; returns the GPUs that still wait.
    async fn step(&self, history: &History, idle: &mut BTreeMap<String, u32>) -> Vec<Pending> {
        let mut pending = match self.pending(history).await {
            Ok(pending) => pending,
            Err(error) => {
                tracing::debug!(%error, "the decision about resets is postponed");
                return Vec::new();
            }
        };
        idle.retain(|uuid, _| pending.iter().any(|p| p.uuid == *uuid && p.decision.is_ok()));
        for ready in pending.iter().filter(|p| p.decision.is_ok()) {
            *idle.entry(ready.uuid.clone()).or_default() += 1;
        }
        let ready = |p: &Pending| p.decision.is_ok() && idle.get(&p.uuid).is_some_and(|polls| *polls >= IDLE_POLLS);
        let Some(at) = pending.iter().position(ready) else { return pending };
        let chosen = pending.remove(at);
        idle.remove(&chosen.uuid);
        let (warning, reason, message) = match self.reset(history, &chosen.uuid).await {
            Ok(true) => (false, "GPUReset", format!("GPU {} was reset after {}", chosen.gpu, chosen.fault)),
            // It is no longer idle.
            Ok(false) => return pending,
            Err(error) => {
                let message = format!("GPU {} was not reset after {}: {error}", chosen.gpu, chosen.fault);
                (true, "GPUResetFailed", message)
            }
        };
        if warning {
            tracing::error!(message, "GPU reset")
        } else {
            tracing::info!(message, "GPU reset")
        }
        if let Some(cluster) = &self.cluster {
            let about = json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": self.node});
            if let Err(error) = cluster.event(about, warning, reason, &message).await {
                tracing::debug!(%error, "publishing the event failed");
            }
        }
        pending
    }

    async fn pending(&self, history: &History) -> Result<Vec<Pending>, NodeError> {
        let state = self.driver.subscribe().borrow().clone();
        let Some(machine) = state.machine() else {
            return Err(NodeError::NoDriver("it has not been polled yet".into()));
        };
        if machine.faults.all().next().is_none() {
            return Ok(Vec::new());
        }
        let held = self.runner.holders(&state).await?;
        Ok(decide(machine, &held, &history.read()?, now_ms(), stack::fabric_manager_runs(Path::new("/"))))
    }

    /// Resets a GPU, if it is still idle. Everything else that changes GPUs is excluded until it is over.
    async fn reset(&self, history: &History, uuid: &str) -> Result<bool, NodeError> {
        let _maintenance = self.driver.maintenance().await;
        // Processes are read only now and then, so they are read again.
        self.driver.refresh().await?;
        let chosen = self.pending(history).await?.into_iter().find(|p| p.uuid == uuid);
        let Some(Pending { decision: Ok(target), .. }) = chosen else { return Ok(false) };
        let simulated = self.driver.subscribe().borrow().machine().is_some_and(|m| m.inventory.simulated);
        let settings = Store::new(self.machine.join("gpu-settings.json"));
        let _lock = settings.lock()?;
        // Recorded before it is made, so that an agent that is killed in between does not repeat it without end.
        history.add(uuid, now_ms())?;
        let paused = pause::request(&self.machine)?;
        self.driver.wait_until_closed(CLOSE_TIMEOUT).await?;
        let clients =
            || if simulated { Vec::new() } else { reset::clients(Path::new("/"), std::slice::from_ref(&target)) };
        let deadline = tokio::time::Instant::now() + CLOSE_TIMEOUT;
        while !clients().is_empty() {
            if tokio::time::Instant::now() > deadline {
                return Err(NodeError::Invalid(format!("it is held open by {}", clients().join(", "))));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.runner.reset(&target, simulated).await?;
        let mut record = settings.read()?;
        record.forget_locks();
        settings.write(&record)?;
        self.driver.mark_reset(uuid);
        drop(paused);
        Ok(true)
    }

    /// Publishes the condition: what waits for a reset; nothing if the message is empty.
    async fn publish(&self, message: &str) {
        let Some(cluster) = &self.cluster else { return };
        let (status, reason) = if message.is_empty() { ("False", "NothingToReset") } else { ("True", "Waiting") };
        let condition = json!({"type": CONDITION, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": rfc3339(now_ms())});
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.node},
            "status": {"conditions": [condition]}});
        if let Err(error) = cluster.apply(NODE, &self.node, MANAGER, true, object).await {
            tracing::warn!(%error, "publishing the condition of GPU resets failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use slipway_gpu::inventory::Process;
    use slipway_gpu::nvml::Event;

    use super::*;
    use crate::cluster::Fake;
    use crate::driver::tests::responding_driver;
    use crate::health::{Faults, Policy};
    use crate::samples::{gpu, machine};

    const NOW: i64 = 1_800_000_000_000;

    fn faulty(gpus: Vec<Gpu>, xid: u64) -> Machine {
        let policy = Policy::from_variables(None, None, Duration::from_secs(60));
        let event = Event { bus_id: String::new(), kind: 8, data: xid, gpu_instance: None, compute_instance: None };
        let mut faults = Faults::default();
        faults.record_xid(&policy, &event, "GPU-0", None, None);
        Machine { faults, ..machine(gpus) }
    }

    fn holder(device: &str) -> Holder {
        let text = |text: &str| text.to_owned();
        Holder {
            namespace: text("ml"),
            pod: text("train"),
            container: text("main"),
            resource: text("nvidia.com/gpu"),
            device: text(device),
            replica: None,
        }
    }

    fn decision(machine: &Machine, held: &[Holder], times: &[i64]) -> Option<Result<u32, String>> {
        let earlier = BTreeMap::from([("GPU-0".to_owned(), times.to_vec())]);
        let pending = decide(machine, held, &earlier, NOW, false).into_iter().next()?;
        Some(pending.decision.map(|target| target.gpu))
    }

    #[test]
    fn idle_gpu_with_a_fault_that_a_reset_mends_is_reset() {
        let two = || vec![gpu(0, Some(&["1g.10gb"])), gpu(1, None)];
        assert_eq!(decision(&faulty(two(), 48), &[], &[]), Some(Ok(0)));
        assert_eq!(decision(&faulty(two(), 48), &[holder("GPU-1")], &[]), Some(Ok(0)));
        assert_eq!(decision(&faulty(two(), 79), &[], &[]), None, "it needs a reboot");
        assert_eq!(decision(&faulty(two(), 94), &[], &[]), None, "the application ended, the GPU is usable");
        assert_eq!(decision(&machine(two()), &[], &[]), None);
    }

    #[test]
    fn gpu_in_use_is_never_reset() {
        let refused = |machine: &Machine, held: &[Holder]| decision(machine, held, &[]).unwrap().unwrap_err();
        let mig = faulty(vec![gpu(0, Some(&["1g.10gb"]))], 48);
        assert!(refused(&mig, &[holder("MIG-0-0")]).contains("ml/train"));
        assert!(refused(&mig, &[holder("GPU-0")]).contains("ml/train"));
        let mut busy = gpu(0, None);
        busy.processes.push(Process {
            pid: u32::MAX,
            memory_bytes: None,
            gpu_instance: None,
            sm_percent: None,
            owner: slipway_gpu::process::Owner::default(),
        });
        assert!(refused(&faulty(vec![busy], 48), &[]).contains("in use"));
        let mut draining = faulty(vec![gpu(0, None)], 48);
        draining.draining.insert("GPU-0".into());
        assert!(refused(&draining, &[]).contains("tested"));
    }

    /// A node whose holders are given, and which records the GPUs that are reset.
    #[derive(Debug, Default)]
    struct Stub {
        held: Mutex<Vec<Holder>>,
        resets: Mutex<Vec<String>>,
    }

    impl Runner for Stub {
        async fn holders(&self, _: &State) -> Result<Vec<Holder>, NodeError> {
            Ok(self.held.lock().clone())
        }

        async fn reset(&self, target: &Target, _: bool) -> Result<(), NodeError> {
            self.resets.lock().push(target.uuid.clone());
            Ok(())
        }
    }

    #[tokio::test]
    async fn gpu_is_reset_after_some_polls_without_a_holder_and_not_again() {
        let folder = std::env::temp_dir().join(format!("slipway-resets-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(&folder).unwrap();
        let manager = Manager {
            cluster: Some(Arc::new(Fake::default())),
            node: "n1".into(),
            enabled: false,
            driver: responding_driver(faulty(vec![gpu(0, None)], 48)),
            home: folder.clone(),
            machine: folder.clone(),
            runner: Stub::default(),
        };
        assert!(manager.allowed(Some("true")));
        assert!(!manager.allowed(None) && !manager.allowed(Some("false")) && !manager.allowed(Some("maybe")));
        manager.driver.subscribe().wait_for(|state| state.machine().is_some()).await.unwrap();
        let (history, mut idle) = (History(folder.join("gpu-resets.json")), BTreeMap::new());
        let why = |pending: &[Pending]| pending[0].decision.clone().unwrap_err();
        manager.runner.held.lock().push(holder("GPU-0"));
        assert!(why(&manager.step(&history, &mut idle).await).contains("ml/train"));
        manager.runner.held.lock().clear();
        for _ in 1..IDLE_POLLS {
            assert!(manager.step(&history, &mut idle).await[0].decision.is_ok());
            assert!(manager.runner.resets.lock().is_empty());
        }
        assert!(manager.step(&history, &mut idle).await.is_empty());
        assert_eq!(*manager.runner.resets.lock(), ["GPU-0"]);
        assert!(why(&manager.step(&history, &mut idle).await).contains("10 minutes"));
        manager.publish("GPU 0 needs a reset").await;
        let node = manager.cluster.as_ref().and_then(|c| c.read(NODE, None, "n1")).unwrap();
        assert!(is_pending(&node), "{node}");
        manager.driver.stop();
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn resets_are_limited_over_restarts_of_the_agent() {
        let machine = faulty(vec![gpu(0, None)], 48);
        let refused = |times: &[i64]| decision(&machine, &[], times).unwrap().err();
        let hour = 3_600_000;
        assert_eq!(refused(&[NOW - 30 * hour, NOW - 20 * hour, NOW - 10 * hour]), None);
        assert!(refused(&[NOW - 60_000]).unwrap().contains("10 minutes"));
        assert!(refused(&[NOW - 3 * hour, NOW - 2 * hour, NOW - hour]).unwrap().contains("replace the card"));
        let history = History(std::env::temp_dir().join(format!("slipway-resets-{}", slipway_core::ids::hex32())));
        history.add("GPU-0", NOW - 30 * hour).unwrap();
        history.add("GPU-0", NOW).unwrap();
        assert_eq!(history.read().unwrap(), BTreeMap::from([("GPU-0".to_owned(), vec![NOW])]));
        std::fs::remove_file(&history.0).unwrap();
    }
}
