//! Applies the MIG layout selected by the node label `nvidia.com/mig.config`: plan, drain only the affected devices, apply, and report
//! the state in a label and an event.
//!
//! Source of labels and file: NVIDIA mig-parted, `deployments/gpu-operator`. Upstream clears a GPU and evicts every GPU pod of the
//! node; this manager keeps instances that both layouts contain, with the pods that use them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use slipway_gpu::inventory::{Inventory, MigDevice};
use slipway_gpu::{GpuError, mig};

use crate::NodeError;
use crate::cluster::{Cluster, Eviction, NODE};
use crate::driver::Driver;
use crate::holders;
use crate::model::is_in;

/// The label that selects the desired layout.
pub const CONFIG_LABEL: &str = "nvidia.com/mig.config";
/// The label with the state of the change: `pending`, `success` or `failed`.
pub const STATE_LABEL: &str = "nvidia.com/mig.config.state";
const MANAGER: &str = "slipway-mig-manager";
/// Timeout for evicted pods to terminate.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(300);

/// Reconciles the node's MIG layout with its label.
#[derive(Debug)]
pub struct Manager<C> {
    /// The API server.
    pub cluster: Arc<C>,
    /// Name of this node.
    pub node: String,
    /// mig-parted's configuration file. Without one, built-in layouts are used: `all-disabled`, `all-enabled`, `all-PROFILE`.
    pub file: Option<PathBuf>,
    /// The driver.
    pub driver: Arc<Driver>,
    /// Socket of the kubelet's pod resources API.
    pub pod_resources: PathBuf,
    /// Name of the DRA driver whose devices belong to this agent.
    pub dra_driver: String,
}

/// The value of a label of an object; `None` if it is missing or empty.
pub(crate) fn label<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get("metadata")?.get("labels")?.get(name)?.as_str().filter(|v| !v.is_empty())
}

impl<C: Cluster> Manager<C> {
    /// Reconciles whenever the node's label changes; never returns while the API server watch is open.
    pub async fn run(self) {
        let mut node = self.cluster.watch(NODE, None, &self.node);
        let mut done: Option<String> = None;
        loop {
            let desired = node.borrow_and_update().as_ref().and_then(|n| label(n, CONFIG_LABEL).map(str::to_owned));
            if let Some(desired) = desired.filter(|d| done.as_ref() != Some(d)) {
                match self.reconcile(&desired).await {
                    // Retry while the driver or the kubelet is unavailable. Any other error is final until the label changes.
                    Err(NodeError::NoDriver(_) | NodeError::Kubelet { .. }) => {}
                    _ => done = Some(desired),
                }
            }
            tokio::select! {
                changed = node.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(Duration::from_secs(2)) => {}
            }
        }
    }

    async fn reconcile(&self, desired: &str) -> Result<(), NodeError> {
        let _maintenance = self.driver.maintenance().await;
        let outcome = self.change(desired).await;
        // Offer all devices again, regardless of the outcome.
        if let Err(error) = self.driver.drain(BTreeSet::new()).await {
            tracing::warn!(%error, "the devices are offered again when the driver responds");
        }
        let (state, reason, message) = match &outcome {
            Ok(message) => ("success", "MIGConfigured", message.clone()),
            Err(NodeError::NoDriver(_) | NodeError::Kubelet { .. }) => return outcome.map(drop),
            Err(error) => ("failed", "MIGConfigurationFailed", format!("{desired}: {error}")),
        };
        tracing::info!(desired, state, message, "MIG layout reconciled");
        self.set_state_label(state).await;
        let about = json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": self.node});
        if let Err(error) = self.cluster.event(about, outcome.is_err(), reason, &message).await {
            tracing::debug!(%error, "publishing the event failed");
        }
        outcome.map(drop)
    }

    /// Sets the state label; retries up to ten times.
    async fn set_state_label(&self, state: &str) {
        let object = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.node, "labels": {STATE_LABEL: state}}});
        for _ in 0..10 {
            match self.cluster.apply(NODE, &self.node, MANAGER, false, object.clone()).await {
                Ok(_) => return,
                Err(error) => tracing::warn!(%error, "setting the MIG state label failed; retrying"),
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    }

    /// Plans the change to the desired layout. Instances that were created for claims are not part of a layout and are left alone.
    async fn plan(&self, desired: &str) -> Result<(Vec<mig::Layout>, mig::Plan, Inventory), NodeError> {
        let (file, name) = (self.file.clone(), desired.to_owned());
        // The instances that belong to claims are known only after the first poll of the driver.
        let state = self.driver.subscribe().borrow().clone();
        let machine = state.machine().ok_or_else(|| NodeError::NoDriver("it has not been polled yet".into()))?;
        let claim_uuids = machine.claimed.clone();
        self.driver
            .with(move |nvml| {
                let inventory = Inventory::collect(nvml)?;
                let mut layouts = mig::layout(nvml)?;
                for layout in &mut layouts {
                    let devices = devices(&inventory, layout.gpu);
                    let claimed =
                        |i: &mig::Instance| devices.iter().any(|d| is_in(d, i) && claim_uuids.contains(&d.uuid));
                    let kept = layout.instances.iter().zip(&layout.ids).filter(|(i, _)| !claimed(i));
                    (layout.instances, layout.ids) = kept.map(|(i, id)| (i.clone(), *id)).unzip();
                }
                let config = match &file {
                    Some(path) => {
                        let text = std::fs::read_to_string(path);
                        let text = text.map_err(|e| GpuError::Invalid(format!("{}: {e}", path.display())))?;
                        mig::Config::parse(&text)?
                    }
                    None => built_in(&layouts),
                };
                let plan = mig::plan(&layouts, &mig::Desired::Rules(config.layout(&name)?))?;
                Ok((layouts, plan, inventory))
            })
            .await
    }

    /// Drains the affected devices and changes the layout; returns a summary.
    async fn change(&self, desired: &str) -> Result<String, NodeError> {
        let (_, plan, inventory) = self.plan(desired).await?;
        if plan.is_empty() {
            return Ok(format!("{desired} is already applied"));
        }
        self.set_state_label("pending").await;
        let removed = removed(&inventory, &plan);
        self.driver.drain(removed.clone()).await?;
        self.evict(&removed).await?;
        // The evicted pods and their claims have released instances, so plan again from the current layout.
        let (layouts, plan, inventory) = self.plan(desired).await?;
        if !self::removed(&inventory, &plan).is_subset(&removed) {
            return Err(GpuError::InUse("another process changed the MIG layout at the same time".into()).into());
        }
        let count = |size: fn(&mig::Change) -> usize| plan.changes.iter().map(size).sum::<usize>();
        let summary = format!(
            "{desired}: {} instances created, {} removed, {} kept",
            count(|c| c.create.len()),
            count(|c| c.destroy.len()),
            count(|c| c.keep.len())
        );
        self.driver.with(move |nvml| mig::apply(nvml, &layouts, &plan)).await?;
        Ok(summary)
    }

    /// Evicts the pods that hold devices to be removed, and waits until they and the instances of their claims are gone.
    async fn evict(&self, removed: &BTreeSet<String>) -> Result<(), NodeError> {
        let deadline = tokio::time::Instant::now() + DRAIN_TIMEOUT;
        let mut evicted: BTreeSet<(String, String)> = BTreeSet::new();
        let mut idle_polls = 0;
        loop {
            let state = self.driver.subscribe().borrow().clone();
            let held = holders::list_holders(&self.pod_resources, &state, &self.dra_driver).await?;
            let pods: BTreeSet<(String, String)> =
                held.into_iter().filter(|h| removed.contains(&h.device)).map(|h| (h.namespace, h.pod)).collect();
            let claimed = state.machine().is_some_and(|m| m.claimed.iter().any(|uuid| removed.contains(uuid)));
            idle_polls = if pods.is_empty() && !claimed { idle_polls + 1 } else { 0 };
            // The kubelet reports a pod only some time after it has allocated its devices, so require several polls.
            if idle_polls == 3 {
                return Ok(());
            }
            for (namespace, pod) in &pods {
                if !evicted.contains(&(namespace.clone(), pod.clone())) {
                    match self.cluster.evict(namespace, pod).await {
                        Ok(Eviction::Accepted) => {
                            evicted.insert((namespace.clone(), pod.clone()));
                        }
                        Ok(Eviction::Blocked) => {
                            tracing::info!(namespace, pod, "a disruption budget blocks the eviction")
                        }
                        Err(error) => tracing::warn!(%error, namespace, pod, "evicting the pod failed"),
                    }
                }
            }
            if tokio::time::Instant::now() > deadline {
                let names: Vec<String> = pods.iter().map(|(n, p)| format!("{n}/{p}")).collect();
                return Err(NodeError::Invalid(format!(
                    "{} did not terminate within {} s",
                    names.join(", "),
                    DRAIN_TIMEOUT.as_secs()
                )));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

fn devices(inventory: &Inventory, gpu: u32) -> Vec<MigDevice> {
    let found = inventory.gpus.iter().find(|g| g.index == gpu);
    found.and_then(|g| g.mig.as_ref()).map(|m| m.devices.clone()).unwrap_or_default()
}

/// UUIDs of the devices that a plan removes: destroyed MIG devices, and GPUs whose MIG mode changes.
fn removed(inventory: &Inventory, plan: &mig::Plan) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for change in &plan.changes {
        let Some(gpu) = inventory.gpus.iter().find(|g| g.index == change.gpu) else { continue };
        if change.mode.is_some() {
            found.insert(gpu.uuid.clone());
        }
        for device in devices(inventory, change.gpu) {
            if change.mode.is_some() || change.destroy.iter().any(|i| is_in(&device, i)) {
                found.insert(device.uuid);
            }
        }
    }
    found
}

/// Layouts for use without a file, named as in NVIDIA's default file.
fn built_in(layouts: &[mig::Layout]) -> mig::Config {
    let rule = |layout: &mig::Layout, enabled: bool, instances: BTreeMap<String, u32>| {
        mig::DeviceRule::new(mig::Devices::Indices(vec![layout.gpu]), enabled, instances)
    };
    let all = |enabled: bool| layouts.iter().map(|l| rule(l, enabled, BTreeMap::new())).collect::<Vec<_>>();
    let mut configs = BTreeMap::from([("all-disabled".to_owned(), all(false)), ("all-enabled".to_owned(), all(true))]);
    let profiles: BTreeSet<&String> =
        layouts.iter().flat_map(|l| l.geometry.profiles.iter().map(|p| &p.name)).collect();
    for profile in profiles {
        let rules = layouts.iter().filter_map(|layout| {
            let geometry = &layout.geometry;
            geometry.profile(profile)?;
            // The largest number of instances that fits on the card.
            let fits = |n: &u32| {
                let instances = BTreeMap::from([(profile.clone(), *n)]);
                matches!(mig::place(geometry, &[mig::Used::default()], &instances), Ok(mig::Placed::Yes(_)))
            };
            let max = (1..=8).rev().find(fits)?;
            Some(rule(layout, true, BTreeMap::from([(profile.clone(), max)])))
        });
        let rules: Vec<mig::DeviceRule> = rules.collect();
        // A label's value cannot contain a plus sign; NVIDIA's file names its layouts the same way.
        configs.insert(format!("all-{}", mig::name_part(profile)), rules);
    }
    mig::Config { version: "v1".into(), configs }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{compute_instances, machine};
    use slipway_gpu::nvml::Placement;

    #[test]
    fn all_devices_of_a_destroyed_gpu_instance_are_removed() {
        let inventory = machine(vec![compute_instances()]).inventory;
        let at = Placement { start: 4, size: 4 };
        let parts = mig::Instance { profile: "3g.40gb".into(), at, compute: vec![1, 1] };
        let change = mig::Change { gpu: 0, mode: None, keep: Vec::new(), destroy: vec![parts], create: Vec::new() };
        let found = removed(&inventory, &mig::Plan { changes: vec![change] });
        assert_eq!(found, BTreeSet::from(["MIG-1-0".to_owned(), "MIG-1-1".to_owned()]));
    }
}
