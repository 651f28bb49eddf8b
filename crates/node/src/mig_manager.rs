//! The label `nvidia.com/mig.config` made true: plan, drain what must go and nothing else, apply, tell.
//!
//! Source of labels and file: NVIDIA mig-parted, `deployments/gpu-operator`. Where upstream clears a GPU and evicts every GPU
//! program of the node, instances that both layouts have stay here, with the pods in them.

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
    /// Where the kubelet says who holds what.
    pub pod_resources: PathBuf,
    /// The name under which claims' devices are ours.
    pub dra_driver: String,
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
                    // A wish that failed for good waits for another; a driver or a kubelet that is away is waited for.
                    Err(NodeError::NoDriver(_) | NodeError::Kubelet { .. }) => {}
                    _ => done = Some(wish),
                }
            }
            tokio::select! {
                changed = node.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(Duration::from_secs(2)) => {}
            }
        }
    }

    async fn fulfil(&self, wish: &str) -> Result<(), NodeError> {
        let outcome = self.change(wish).await;
        // Whatever happened, devices are offered again as they are now.
        if let Err(error) = self.driver.drain(BTreeSet::new()).await {
            tracing::warn!(%error, "devices are offered again only when the driver answers");
        }
        let (state, reason, message) = match &outcome {
            Ok(message) => ("success", "MIGConfigured", message.clone()),
            Err(NodeError::NoDriver(_) | NodeError::Kubelet { .. }) => return outcome.map(drop),
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

    /// What is to be done now. Instances that were made for claims are the claims' business, and no part of a layout.
    async fn plan(&self, wish: &str) -> Result<(Vec<mig::Layout>, mig::Plan, Inventory), NodeError> {
        let (file, name) = (self.file.clone(), wish.to_owned());
        // Until the driver was looked at once, nobody knows what belongs to claims.
        let state = self.driver.subscribe().borrow().clone();
        let machine = state.machine().ok_or_else(|| NodeError::NoDriver("it was not looked at yet".into()))?;
        let ours = machine.ours.clone();
        self.driver
            .with(move |nvml| {
                let inventory = Inventory::collect(nvml)?;
                let mut layouts = mig::layout(nvml)?;
                for layout in &mut layouts {
                    let devices = devices(&inventory, layout.gpu);
                    let claimed = |i: &mig::Instance| devices.iter().any(|d| same(i, d) && ours.contains(&d.uuid));
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
                let plan = mig::plan(&layouts, &mig::Wanted::Rules(config.layout(&name)?))?;
                Ok((layouts, plan, inventory))
            })
            .await
    }

    async fn change(&self, wish: &str) -> Result<String, NodeError> {
        let (_, plan, inventory) = self.plan(wish).await?;
        if plan.is_empty() {
            return Ok(format!("{wish} is what there is"));
        }
        self.tell("pending").await;
        let going = going(&inventory, &plan);
        self.driver.drain(going.clone()).await?;
        self.evict(&going).await?;
        // Pods went, and with them what was made for their claims; the plan is made again for what is there now.
        let (layouts, plan, inventory) = self.plan(wish).await?;
        if !self::going(&inventory, &plan).is_subset(&going) {
            return Err(GpuError::InUse("the MIG layout was changed by somebody else meanwhile".into()).into());
        }
        let count = |of: fn(&mig::Change) -> usize| plan.changes.iter().map(of).sum::<usize>();
        let told = format!(
            "{wish}: {} instances made, {} removed, {} kept",
            count(|c| c.create.len()),
            count(|c| c.destroy.len()),
            count(|c| c.keep.len())
        );
        self.driver.with(move |nvml| mig::apply(nvml, &layouts, &plan)).await?;
        Ok(told)
    }

    /// Moves away the pods that hold what goes, and waits until they are gone, and what was made for their claims with them.
    async fn evict(&self, going: &BTreeSet<String>) -> Result<(), NodeError> {
        let deadline = tokio::time::Instant::now() + DRAIN;
        let mut asked: BTreeSet<(String, String)> = BTreeSet::new();
        let mut calm = 0;
        loop {
            let state = self.driver.subscribe().borrow().clone();
            let held = holders::ask(&self.pod_resources, &state, &self.dra_driver).await?;
            let pods: BTreeSet<(String, String)> =
                held.into_iter().filter(|h| going.contains(&h.device)).map(|h| (h.namespace, h.pod)).collect();
            let claimed = state.machine().is_some_and(|m| m.ours.iter().any(|uuid| going.contains(uuid)));
            calm = if pods.is_empty() && !claimed { calm + 1 } else { 0 };
            // The kubelet tells of a pod a moment after it was given its devices.
            if calm == 3 {
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
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

fn devices(inventory: &Inventory, gpu: u32) -> Vec<MigDevice> {
    let found = inventory.gpus.iter().find(|g| g.index == gpu);
    found.and_then(|g| g.mig.as_ref()).map(|m| m.devices.clone()).unwrap_or_default()
}

fn same(instance: &mig::Instance, device: &MigDevice) -> bool {
    instance.at.start == device.start && instance.at.size == device.size
}

/// UUIDs of what a plan removes: MIG devices, and whole GPUs whose mode changes.
fn going(inventory: &Inventory, plan: &mig::Plan) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for change in &plan.changes {
        let Some(gpu) = inventory.gpus.iter().find(|g| g.index == change.gpu) else { continue };
        if change.mode.is_some() {
            found.insert(gpu.uuid.clone());
        }
        for device in devices(inventory, change.gpu) {
            if change.mode.is_some() || change.destroy.iter().any(|i| same(i, &device)) {
                found.insert(device.uuid);
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
