//! Labels that say what a node's GPUs are, and a condition that says whether they can be used.
//!
//! Source of names and values: NVIDIA GPU feature discovery, README, "Generated Labels", and "The nvidia.com/mig-..." tables.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use slipway_gpu::inventory::{Gpu, MigDevice};
use slipway_gpu::mig;
use tokio::sync::watch;

use crate::cluster::{Cluster, NODE};
use crate::config::{Config, MigStrategy, SharingStrategy};
use crate::driver::{Machine, State};
use crate::resources::{self, Units};

/// The field manager of the labels; labels that are no longer true go with the next apply.
const LABELS_MANAGER: &str = "slipway-node-labels";
const STATUS_MANAGER: &str = "slipway-node-status";
/// The condition's type.
pub const CONDITION: &str = "slipway.dev/GPUReady";

/// A value that Kubernetes takes: words are joined by dashes, as GFD writes them; other signs and what is too long go.
fn value(text: &str) -> String {
    let kept = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
    let kept: String = text.chars().filter(kept).collect();
    let kept: String = kept.split_whitespace().collect::<Vec<_>>().join("-").chars().take(63).collect();
    kept.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// GFD's name of a family.
fn family(capability: &str) -> &'static str {
    let (major, minor) = capability.split_once('.').unwrap_or((capability, "0"));
    match (major, minor) {
        ("3", _) => "kepler",
        ("5", _) => "maxwell",
        ("6", _) => "pascal",
        ("7", "5") => "turing",
        ("7", _) => "volta",
        ("8", "9") => "ada-lovelace",
        ("8", _) => "ampere",
        ("9", _) => "hopper",
        ("10" | "11" | "12", _) => "blackwell",
        _ => "undefined",
    }
}

/// Labels without the domain; empty values are none.
#[derive(Default)]
struct Labels(BTreeMap<String, String>);

impl Labels {
    fn put(&mut self, key: &str, text: impl Into<String>) {
        let text = text.into();
        if !text.is_empty() {
            self.0.insert(format!("nvidia.com/{key}"), text);
        }
    }

    fn version(&mut self, of: &str, text: &str) {
        self.put(&format!("cuda.{of}-version.full"), value(text));
        for (part, number) in ["major", "minor", "revision"].iter().zip(text.split('.')) {
            self.put(&format!("cuda.{of}-version.{part}"), value(number));
            // The older names, which manifests still select on.
            let old = if *part == "revision" { "rev" } else { part };
            self.put(&format!("cuda.{of}.{old}"), value(number));
        }
    }

    /// What is told of every resource.
    fn describe(&mut self, prefix: &str, product: &str, count: usize, memory_mib: u64, shared: Shared) {
        let product = if shared.in_product { format!("{product}-SHARED") } else { product.to_owned() };
        self.put(&format!("{prefix}.product"), product);
        self.put(&format!("{prefix}.count"), count.to_string());
        self.put(&format!("{prefix}.memory"), memory_mib.to_string());
        self.put(&format!("{prefix}.replicas"), shared.replicas.to_string());
        self.0.insert(format!("nvidia.com/{prefix}.sharing-strategy"), shared.strategy.into());
    }
}

/// How a resource is shared, as labels tell it.
#[derive(Clone, Copy)]
struct Shared {
    replicas: u32,
    strategy: &'static str,
    /// A shared resource that keeps its name is told from a whole one by the product's name.
    in_product: bool,
}

impl Shared {
    /// Of what cannot be had: GPUs that are divided, a strategy that does not fit.
    const NOT_OFFERED: Self = Self { replicas: 0, strategy: "none", in_product: false };

    fn of(config: &Config, resource: &str) -> Self {
        match config.replicas(resource) {
            Some((sharing, replicas)) => {
                Self { replicas, strategy: sharing.strategy.name(), in_product: !sharing.rename }
            }
            None => Self { replicas: 1, strategy: "none", in_product: false },
        }
    }
}

/// All labels of a node; none without a GPU. `machine_type` is the vendor's name of the computer.
pub fn labels(machine: &Machine, config: &Config, machine_type: &str) -> BTreeMap<String, String> {
    let mut out = Labels::default();
    let inventory = &machine.inventory;
    // A GPU that was lost before it could be asked has no UUID.
    let gpus: Vec<&Gpu> = inventory.gpus.iter().filter(|g| !g.uuid.is_empty()).collect();
    let Some(first) = gpus.first() else { return out.0 };
    out.version("driver", &inventory.driver);
    out.version("runtime", &inventory.cuda);
    let machine_type = value(machine_type);
    out.put("gpu.machine", if machine_type.is_empty() { "unknown".into() } else { machine_type });
    out.put("mig.capable", gpus.iter().any(|g| g.mig.is_some()).to_string());
    // Upstream's question is whether the MPS that is asked for can be had.
    let by_mps = config.sharing.as_ref().is_some_and(|s| s.strategy == SharingStrategy::Mps);
    out.put("mps.capable", (by_mps && !gpus.iter().any(|g| mig_on(g))).to_string());
    out.put("vgpu.present", "false");
    out.put("gpu.mode", mode(&gpus));

    // A node's GPUs are taken to be of one model: those that are like the first are counted, divided ones too.
    let alike: Vec<&Gpu> = gpus.iter().copied().filter(|g| g.name == first.name).collect();
    let undivided = alike.iter().any(|g| !mig_on(g));
    let model = value(&first.name);
    let memory = first.memory_total.unwrap_or(0) >> 20;
    let shared = if undivided { Shared::of(config, resources::GPU) } else { Shared::NOT_OFFERED };
    out.describe("gpu", &model, alike.len(), memory, shared);
    let capability = first.compute_capability.as_deref().unwrap_or_default();
    out.put("gpu.family", family(capability));
    if let Some((major, minor)) = capability.split_once('.') {
        out.put("gpu.compute.major", major);
        out.put("gpu.compute.minor", minor);
    }
    if config.mig == MigStrategy::None {
        return out.0;
    }
    out.put("mig.strategy", config.mig.name());
    let slices = match resources::units(machine, config.mig) {
        Ok(Units { slices, .. }) => slices,
        Err(_) => {
            let invalid = Shared { strategy: "", ..Shared::NOT_OFFERED };
            out.describe("gpu", &format!("{model}-MIG-INVALID"), 0, 0, invalid);
            return out.0;
        }
    };
    let mut by_profile: BTreeMap<&str, Vec<(&Gpu, &MigDevice)>> = BTreeMap::new();
    for (profile, unit) in &slices {
        let gpu = &inventory.gpus[unit.gpu];
        let devices = gpu.mig.as_ref().map(|m| m.devices.as_slice()).unwrap_or_default();
        if let Some(device) = unit.mig.and_then(|n| devices.get(n)) {
            by_profile.entry(profile).or_default().push((gpu, device));
        }
    }
    for (profile, devices) in by_profile {
        let (gpu, device) = devices[0];
        let single = config.mig == MigStrategy::Single;
        let base = if single { resources::GPU.to_owned() } else { mig::resource(profile) };
        let prefix = if single { "gpu".to_owned() } else { format!("mig-{}", mig::plain(profile)) };
        let product = format!("{}-MIG-{}", value(&gpu.name), mig::plain(profile));
        let has = device.attributes;
        out.describe(&prefix, &product, devices.len(), has.memory_mib, Shared::of(config, &base));
        for (key, number) in [
            ("multiprocessors", has.multiprocessors),
            ("slices.gi", has.gpu_slices),
            ("slices.ci", has.compute_slices),
            ("engines.copy", has.copy_engines),
            ("engines.decoder", has.decoders),
            ("engines.encoder", has.encoders),
            ("engines.jpeg", has.jpeg_engines),
            ("engines.ofa", has.ofa_engines),
        ] {
            out.put(&format!("{prefix}.{key}"), number.to_string());
        }
    }
    out.0
}

fn mig_on(gpu: &Gpu) -> bool {
    gpu.mig.as_ref().is_some_and(|m| m.enabled)
}

/// `compute` or `graphics`, by the class of the PCI devices; `unknown` where sysfs does not tell, or not the same of all.
fn mode(gpus: &[&Gpu]) -> &'static str {
    let class = |gpu: &Gpu| {
        let address = slipway_gpu::pci::kernel_address(&gpu.bus_id);
        std::fs::read_to_string(format!("/sys/bus/pci/devices/{address}/class")).unwrap_or_default()
    };
    let mut classes: Vec<String> = gpus.iter().map(|g| class(g)).collect();
    classes.dedup();
    match classes.as_slice() {
        [one] if one.starts_with("0x0302") => "compute",
        [one] if one.starts_with("0x0300") => "graphics",
        _ => "unknown",
    }
}

/// The computer's name, as its vendor wrote it into the firmware.
pub fn machine_type() -> String {
    std::fs::read_to_string(Path::new("/sys/class/dmi/id/product_name")).unwrap_or_default()
}

/// Keeps the node's labels and condition true.
pub async fn run<C: Cluster>(
    cluster: Arc<C>,
    node: String,
    mut states: watch::Receiver<Arc<State>>,
    mut configs: watch::Receiver<Arc<Config>>,
) {
    let machine_type = machine_type();
    let mut told: Option<(BTreeMap<String, String>, Condition)> = None;
    let mut since = String::new();
    loop {
        let (state, config) = (states.borrow_and_update().clone(), configs.borrow_and_update().clone());
        let labels = state.machine().map(|m| labels(m, &config, &machine_type));
        let condition = condition(&state);
        // A driver that is away takes no label away: nothing can start without devices, and the node stays what it is.
        let labels = labels.or_else(|| told.as_ref().map(|(l, _)| l.clone())).unwrap_or_default();
        let now = (labels, condition);
        let mut again = Duration::from_secs(600);
        if told.as_ref() != Some(&now) {
            if told.as_ref().is_none_or(|(_, c)| c.ready != now.1.ready) {
                since = slipway_core::clock::rfc3339(slipway_core::clock::now_ms());
            }
            match tell(&*cluster, &node, &now.0, &now.1, &since).await {
                Ok(()) => told = Some(now),
                Err(error) => {
                    tracing::warn!(%error, "labels and condition of the node; trying again");
                    again = Duration::from_secs(5);
                }
            }
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = configs.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(again) => told = None,
        }
    }
}

/// Whether the node's GPUs can be used, a reason in one word, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    ready: bool,
    reason: &'static str,
    message: String,
}

fn condition(state: &State) -> Condition {
    match state {
        State::Missing(why) => Condition { ready: false, reason: "DriverMissing", message: why.clone() },
        State::There(machine) => {
            let sick: Vec<String> = machine.faults.all().map(|(uuid, f)| format!("{uuid}: {}", f.reason)).collect();
            if sick.is_empty() {
                let count = machine.inventory.gpus.len();
                let message = format!("{count} GPUs, driver {}", machine.inventory.driver);
                Condition { ready: true, reason: "Ready", message }
            } else {
                Condition { ready: false, reason: "Unhealthy", message: sick.join("; ") }
            }
        }
    }
}

async fn tell<C: Cluster>(
    cluster: &C,
    node: &str,
    labels: &BTreeMap<String, String>,
    condition: &Condition,
    since: &str,
) -> Result<(), crate::cluster::ClusterError> {
    let object = |rest: serde_json::Value| {
        let mut object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
        if let (Some(object), serde_json::Value::Object(rest)) = (object.as_object_mut(), rest) {
            object.extend(rest);
        }
        object
    };
    let labelled = object(json!({"metadata": {"name": node, "labels": labels}}));
    cluster.apply(NODE, node, LABELS_MANAGER, false, labelled).await?;
    let Condition { ready, reason, message } = condition;
    let status = if *ready { "True" } else { "False" };
    let condition = json!({"type": CONDITION, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since});
    cluster.apply(NODE, node, STATUS_MANAGER, true, object(json!({"status": {"conditions": [condition]}}))).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::tests::{gpu, machine};

    fn some(machine: &Machine, config: &str, keys: &[&str]) -> Vec<String> {
        let labels = labels(machine, &Config::parse(config).unwrap(), "Standard PC (Q35 + ICH9, 2009)");
        keys.iter().map(|k| labels.get(&format!("nvidia.com/{k}")).cloned().unwrap_or_default()).collect()
    }

    #[test]
    fn values_are_what_kubernetes_takes() {
        assert_eq!(value("Standard PC (Q35 + ICH9, 2009)"), "Standard-PC-Q35-ICH9-2009");
        assert_eq!(value(" Tesla T4 "), "Tesla-T4");
        assert_eq!(value(&"x".repeat(80)).len(), 63);
    }

    #[test]
    fn sharing_shows_in_the_product_unless_the_name_tells() {
        let slices = |rename: bool| {
            format!(
                "version: v1\nsharing: {{timeSlicing: {{renameByDefault: {rename}, resources: [{{name: nvidia.com/gpu, replicas: 4}}]}}}}"
            )
        };
        let machine = machine(vec![gpu(0, None)]);
        let keys = ["gpu.product", "gpu.replicas", "gpu.sharing-strategy"];
        assert_eq!(some(&machine, &slices(false), &keys), ["NVIDIA-A100-SXM4-80GB-SHARED", "4", "time-slicing"]);
        assert_eq!(some(&machine, &slices(true), &keys), ["NVIDIA-A100-SXM4-80GB", "4", "time-slicing"]);
        assert_eq!(some(&machine, "version: v1", &keys), ["NVIDIA-A100-SXM4-80GB", "1", "none"]);
    }

    #[test]
    fn mig_is_told_by_strategy() {
        let machine = machine(vec![gpu(0, Some(&["1g.10gb", "1g.10gb+me"]))]);
        let keys = [
            "gpu.count",
            "gpu.product",
            "mig-1g.10gb.count",
            "mig-1g.10gb.me.product",
            "mig-1g.10gb.memory",
            "mig.strategy",
        ];
        let mixed = ["1", "NVIDIA-A100-SXM4-80GB", "1", "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb.me", "9728", "mixed"];
        assert_eq!(some(&machine, "version: v1\nflags: {migStrategy: mixed}", &keys), mixed);
        let invalid = ["0", "NVIDIA-A100-SXM4-80GB-MIG-INVALID", "", "", "", "single"];
        assert_eq!(some(&machine, "version: v1\nflags: {migStrategy: single}", &keys), invalid);
    }
}
