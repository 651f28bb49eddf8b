//! The label `nvidia.com/mig.config` made true: plan, drain what must go and nothing else, apply, tell.
//!
//! Source of labels and file: NVIDIA mig-parted, `deployments/gpu-operator`. Where upstream clears a GPU and evicts every GPU
//! program of the node, instances that both layouts have stay here, with the pods in them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use slipway_gpu::inventory::Inventory;
use slipway_gpu::mig;
use tokio::sync::watch;

use crate::NodeError;
use crate::cluster::{Cluster, Eviction, NODE};
use crate::driver::Driver;
use crate::holders::Held;

/// The wish.
pub const LABEL: &str = "nvidia.com/mig.config";
/// How it went: `pending`, `success`, `failed`.
pub const STATE_LABEL: &str = "nvidia.com/mig.config.state";
const MANAGER: &str = "slipway-mig-manager";
/// Pods have so long to go.
const DRAIN: Duration = Duration::from_secs(300);

/// Carries out the wishes.
#[derive(Debug)]
pub struct Manager<C> {
    /// The API server.
    pub cluster: Arc<C>,
    /// This node.
    pub node: String,
    /// mig-parted's file; without one, layouts are made from the card: `all-disabled`, `all-enabled`, `all-PROFILE`.
    pub file: Option<PathBuf>,
    /// The driver.
    pub driver: Arc<Driver>,
    /// Who holds what.
    pub held: watch::Receiver<Held>,
}

/// A label of an object.
pub(crate) fn label<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get("metadata")?.get("labels")?.get(name)?.as_str().filter(|v| !v.is_empty())
}

impl<C: Cluster> Manager<C> {
    /// Follows the node's label for ever.
    pub async fn run(self) {
        let mut node = self.cluster.watch(NODE, &self.node);
        let mut done: Option<String> = None;
        loop {
            let wish = node.borrow_and_update().as_ref().and_then(|n| label(n, LABEL).map(str::to_owned));
            if let Some(wish) = wish.filter(|w| done.as_ref() != Some(w)) {
                match self.fulfil(&wish).await {
                    // A wish that failed for good waits for another; a driver that is away is waited for.
                    Err(NodeError::NoDriver(_)) => {}
                    _ => done = Some(wish),
                }
            }
            tokio::select! {
                changed = node.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(Duration::from_secs(10)) => {}
            }
        }
    }

    async fn fulfil(&self, wish: &str) -> Result<(), NodeError> {
        let outcome = self.change(wish).await;
        // Whatever happened, devices are offered again as they are now.
        self.driver.drain(BTreeSet::new()).await;
        let (state, reason, message) = match &outcome {
            Ok(message) => ("success", "MIGConfigured", message.clone()),
            Err(NodeError::NoDriver(why)) => return Err(NodeError::NoDriver(why.clone())),
            Err(error) => ("failed", "MIGConfigurationFailed", format!("{wish}: {error}")),
        };
        tracing::info!(wish, state, message, "MIG");
        self.tell(state).await;
        let about = json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": self.node});
        if let Err(error) = self.cluster.event(about, outcome.is_err(), reason, &message).await {
            tracing::debug!(%error, "event");
        }
        outcome.map(drop)
    }

    async fn tell(&self, state: &str) {
        let object = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.node, "labels": {STATE_LABEL: state}}});
        for _ in 0..10 {
            match self.cluster.apply(NODE, &self.node, MANAGER, false, object.clone()).await {
                Ok(_) => return,
                Err(error) => tracing::warn!(%error, "the state of the MIG configuration; trying again"),
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    }

    async fn change(&self, wish: &str) -> Result<String, NodeError> {
        let file = self.file.clone();
        let name = wish.to_owned();
        let (layouts, plan, inventory) = self
            .driver
            .with(move |nvml| {
                let layouts = mig::layout(nvml)?;
                let config = match &file {
                    Some(path) => mig::Config::parse(
                        &std::fs::read_to_string(path)
                            .map_err(|e| slipway_gpu::GpuError::Invalid(format!("{}: {e}", path.display())))?,
                    )?,
                    None => built_in(&layouts),
                };
                let plan = mig::plan(&layouts, &mig::Wanted::Rules(config.layout(&name)?))?;
                Ok((layouts, plan, Inventory::collect(nvml)?))
            })
            .await?;
        if plan.is_empty() {
            return Ok(format!("{wish} is what there is"));
        }
        self.tell("pending").await;
        let (mut created, mut destroyed, mut kept) = (0, 0, 0);
        for change in &plan.changes {
            created += change.create.len();
            destroyed += change.destroy.len();
            kept += change.keep.len();
        }
        let going = going(&inventory, &plan);
        self.driver.drain(going.clone()).await;
        self.evict(&going).await?;
        self.driver
            .with(move |nvml| {
                // Who was in the way is gone now; the layouts are read again to know it.
                let now = mig::layout(nvml)?;
                if now != layouts {
                    return Err(slipway_gpu::GpuError::InUse("the MIG layout was changed by somebody else".into()));
                }
                mig::apply(nvml, &now, &plan)
            })
            .await?;
        Ok(format!("{wish}: {created} instances made, {destroyed} removed, {kept} kept"))
    }

    /// Moves away the pods that hold what goes, and waits until they are gone.
    async fn evict(&self, going: &BTreeSet<String>) -> Result<(), NodeError> {
        let deadline = tokio::time::Instant::now() + DRAIN;
        let mut asked: BTreeSet<(String, String)> = BTreeSet::new();
        loop {
            let pods: BTreeSet<(String, String)> = self
                .held
                .borrow()
                .keys()
                .filter(|h| going.contains(&h.device))
                .map(|h| (h.namespace.clone(), h.pod.clone()))
                .collect();
            if pods.is_empty() {
                return Ok(());
            }
            for (namespace, pod) in &pods {
                if !asked.contains(&(namespace.clone(), pod.clone())) {
                    match self.cluster.evict(namespace, pod).await {
                        Ok(Eviction::Going) => {
                            asked.insert((namespace.clone(), pod.clone()));
                        }
                        Ok(Eviction::Blocked) => tracing::info!(namespace, pod, "a disruption budget holds the pod"),
                        Err(error) => tracing::warn!(%error, namespace, pod, "the pod could not be evicted"),
                    }
                }
            }
            if tokio::time::Instant::now() > deadline {
                let names: Vec<String> = pods.iter().map(|(n, p)| format!("{n}/{p}")).collect();
                return Err(NodeError::Invalid(format!(
                    "{} did not go within {} s",
                    names.join(", "),
                    DRAIN.as_secs()
                )));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// UUIDs of what a plan removes: MIG devices, and whole GPUs whose mode changes.
fn going(inventory: &Inventory, plan: &mig::Plan) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for change in &plan.changes {
        let Some(gpu) = inventory.gpus.iter().find(|g| g.index == change.gpu) else { continue };
        if change.mode.is_some() {
            found.insert(gpu.uuid.clone());
        }
        for device in gpu.mig.iter().flat_map(|m| &m.devices) {
            let same = |i: &mig::Instance| i.at.start == device.start && i.at.size == device.size;
            if change.destroy.iter().any(same) {
                found.insert(device.uuid.clone());
            }
        }
    }
    found
}

/// Layouts that need no file, with the names that NVIDIA's default file has for them.
fn built_in(layouts: &[mig::Layout]) -> mig::Config {
    let rule = |layout: &mig::Layout, enabled: bool, instances: BTreeMap<String, u32>| mig::DeviceRule {
        filter: None,
        devices: mig::Devices::Indices(vec![layout.gpu]),
        enabled,
        instances,
    };
    let all = |enabled: bool| layouts.iter().map(|l| rule(l, enabled, BTreeMap::new())).collect::<Vec<_>>();
    let mut configs = BTreeMap::from([("all-disabled".to_owned(), all(false)), ("all-enabled".to_owned(), all(true))]);
    let profiles: BTreeSet<&String> =
        layouts.iter().flat_map(|l| l.geometry.profiles.iter().map(|p| &p.name)).collect();
    for profile in profiles {
        let rules = layouts.iter().filter_map(|layout| {
            let geometry = &layout.geometry;
            geometry.profile(profile)?;
            // The largest number that the card takes.
            let fits = |n: &u32| {
                let wanted = BTreeMap::from([(profile.clone(), *n)]);
                matches!(mig::place(geometry, &[mig::Used::default()], &wanted), Ok(mig::Placed::Yes(_)))
            };
            let most = (1..=8).rev().find(fits)?;
            Some(rule(layout, true, BTreeMap::from([(profile.clone(), most)])))
        });
        let rules: Vec<mig::DeviceRule> = rules.collect();
        configs.insert(format!("all-{profile}"), rules);
    }
    mig::Config { version: "v1".into(), configs }
}
