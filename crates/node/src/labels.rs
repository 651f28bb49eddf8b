//! Publishes labels that describe a node's GPUs, and a node condition that reports whether they are usable. Those of AMD's GPUs are in
//! [`amd`].
//!
//! Source of names and values: NVIDIA GPU feature discovery (GFD), README, "Generated Labels", and "The nvidia.com/mig-..." tables.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use slipway_gpu::inventory::{Gpu, MigDevice};
use slipway_gpu::mig;
use tokio::sync::watch;

use crate::amd;
use crate::cluster::{Cluster, NODE};
use crate::config::{Config, MigStrategy, SharingStrategy};
use crate::driver::{Machine, State};
use crate::resources::{self, Units};

/// The field manager of the labels. Server-side apply removes labels that are no longer in the applied object.
const LABELS_MANAGER: &str = "slipway-node-labels";
const STATUS_MANAGER: &str = "slipway-node-status";
/// Type of the node condition.
pub const CONDITION: &str = "slipway.dev/GPUReady";

/// Converts text to a valid label value as GFD does: words are joined by dashes, invalid characters are removed, and the result is cut to
/// 63 characters.
fn value(text: &str) -> String {
    let valid = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
    let text: String = text.chars().filter(valid).collect();
    let text: String = text.split_whitespace().collect::<Vec<_>>().join("-").chars().take(63).collect();
    text.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// GFD's name of the GPU family with this compute capability.
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

/// Labels of the domain `nvidia.com`.
#[derive(Default)]
struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Adds a label, unless its value is empty.
    fn put(&mut self, key: &str, text: impl Into<String>) {
        let text = text.into();
        if !text.is_empty() {
            self.0.insert(format!("nvidia.com/{key}"), text);
        }
    }

    /// Adds the labels of the driver or runtime version (`component`).
    fn version(&mut self, component: &str, text: &str) {
        self.put(&format!("cuda.{component}-version.full"), value(text));
        for (part, number) in ["major", "minor", "revision"].iter().zip(text.split('.')) {
            self.put(&format!("cuda.{component}-version.{part}"), value(number));
            // Deprecated names, which some manifests still select on.
            let old_part = if *part == "revision" { "rev" } else { part };
            self.put(&format!("cuda.{component}.{old_part}"), value(number));
        }
    }

    /// Adds the labels that every resource has.
    fn describe(&mut self, prefix: &str, product: &str, count: usize, memory_mib: u64, shared: Shared) {
        let product = if shared.mark_product { format!("{product}-SHARED") } else { product.to_owned() };
        self.put(&format!("{prefix}.product"), product);
        self.put(&format!("{prefix}.count"), count.to_string());
        self.put(&format!("{prefix}.memory"), memory_mib.to_string());
        self.put(&format!("{prefix}.replicas"), shared.replicas.to_string());
        self.0.insert(format!("nvidia.com/{prefix}.sharing-strategy"), shared.strategy.into());
    }
}

/// How a resource is shared, as reported in labels.
#[derive(Clone, Copy)]
struct Shared {
    replicas: u32,
    strategy: &'static str,
    /// Whether the product label gets the suffix `-SHARED`, which marks a shared resource that keeps its name.
    mark_product: bool,
}

impl Shared {
    /// For resources that are not offered: all GPUs have MIG enabled, or the MIG strategy is not possible.
    const NOT_OFFERED: Self = Self { replicas: 0, strategy: "none", mark_product: false };

    fn from_config(config: &Config, resource: &str) -> Self {
        match config.replicas(resource) {
            Some((sharing, replicas)) => {
                Self { replicas, strategy: sharing.strategy.name(), mark_product: !sharing.rename }
            }
            None => Self { replicas: 1, strategy: "none", mark_product: false },
        }
    }
}

/// All labels of a node; none without a GPU. `machine_type` is the vendor's name of the machine.
pub fn labels(machine: &Machine, config: &Config, machine_type: &str) -> BTreeMap<String, String> {
    let mut out = Labels::default();
    let inventory = &machine.inventory;
    // A GPU that was lost before it was first read has no UUID.
    let gpus: Vec<&Gpu> = inventory.gpus.iter().filter(|g| !g.uuid.is_empty()).collect();
    let Some(first) = gpus.first() else { return out.0 };
    out.version("driver", &inventory.driver);
    out.version("runtime", &inventory.cuda);
    let machine_type = value(machine_type);
    out.put("gpu.machine", if machine_type.is_empty() { "unknown".into() } else { machine_type });
    out.put("mig.capable", gpus.iter().any(|g| g.mig.is_some()).to_string());
    // As upstream, the label reports whether the configured MPS is possible, not whether the hardware supports it.
    let mps_configured = config.sharing.as_ref().is_some_and(|s| s.strategy == SharingStrategy::Mps);
    out.put("mps.capable", (mps_configured && !gpus.iter().any(|g| mig_enabled(g))).to_string());
    // The domain of memory that is shared across machines, as `CLUSTER_UUID.CLIQUE`.
    out.put("gpu.clique", inventory.clique_id().unwrap_or_default());
    out.put("vgpu.present", "false");
    out.put("gpu.mode", mode(&gpus));

    // As upstream, a node is assumed to have one GPU model: count the GPUs of the first one's model, including those with MIG.
    let same_model: Vec<&Gpu> = gpus.iter().copied().filter(|g| g.name == first.name).collect();
    let any_without_mig = same_model.iter().any(|g| !mig_enabled(g));
    let model = value(&first.name);
    let memory = first.memory_total.unwrap_or(0) >> 20;
    let shared = if any_without_mig { Shared::from_config(config, resources::GPU) } else { Shared::NOT_OFFERED };
    out.describe("gpu", &model, same_model.len(), memory, shared);
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
        let prefix = if single { "gpu".to_owned() } else { format!("mig-{}", mig::name_part(profile)) };
        let product = format!("{}-MIG-{}", value(&gpu.name), mig::name_part(profile));
        let attributes = device.attributes;
        out.describe(&prefix, &product, devices.len(), attributes.memory_mib, Shared::from_config(config, &base));
        for (key, number) in [
            ("multiprocessors", attributes.multiprocessors),
            ("slices.gi", attributes.gpu_slices),
            ("slices.ci", attributes.compute_slices),
            ("engines.copy", attributes.copy_engines),
            ("engines.decoder", attributes.decoders),
            ("engines.encoder", attributes.encoders),
            ("engines.jpeg", attributes.jpeg_engines),
            ("engines.ofa", attributes.ofa_engines),
        ] {
            out.put(&format!("{prefix}.{key}"), number.to_string());
        }
    }
    out.0
}

fn mig_enabled(gpu: &Gpu) -> bool {
    gpu.mig.as_ref().is_some_and(|m| m.enabled)
}

/// The GPU mode by PCI class: `compute` or `graphics`; `unknown` if the class is unknown or differs between GPUs.
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

/// The vendor's name of the machine, from the firmware (DMI).
pub fn machine_type() -> String {
    std::fs::read_to_string(Path::new("/sys/class/dmi/id/product_name")).unwrap_or_default()
}

/// The labels of an object.
pub(crate) fn of_object(object: &serde_json::Value) -> BTreeMap<String, String> {
    let labels = object["metadata"]["labels"].as_object();
    labels.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
}

/// Keeps the node's labels and condition up to date with the driver state and the configuration.
pub async fn run<C: Cluster>(
    cluster: Arc<C>,
    node: String,
    mut states: watch::Receiver<Arc<State>>,
    mut amd_states: watch::Receiver<Arc<amd::State>>,
    mut configs: watch::Receiver<Arc<Config>>,
) {
    let machine_type = machine_type();
    let mut published: Option<(BTreeMap<String, String>, Condition)> = None;
    let mut last_transition = String::new();
    // Keep the labels of a vendor while its driver is missing: the hardware is unchanged, and no pod can start without devices anyway.
    let (mut of_nvidia, mut of_amd) = (BTreeMap::new(), BTreeMap::new());
    loop {
        let (state, config) = (states.borrow_and_update().clone(), configs.borrow_and_update().clone());
        let amd_state = amd_states.borrow_and_update().clone();
        of_nvidia = state.machine().map_or(of_nvidia, |m| labels(m, &config, &machine_type));
        of_amd = amd_state.machine().map_or(of_amd, amd::labels);
        let condition = condition(&state, &amd_state, has_nvidia_gpu());
        let current = (of_nvidia.iter().chain(&of_amd).map(|(k, v)| (k.clone(), v.clone())).collect(), condition);
        let mut retry_after = Duration::from_secs(600);
        if published.as_ref() != Some(&current) {
            if published.as_ref().is_none_or(|(_, c)| c.ready != current.1.ready) {
                last_transition = slipway_core::clock::rfc3339(slipway_core::clock::now_ms());
            }
            match publish(&*cluster, &node, &current.0, &current.1, &last_transition).await {
                Ok(()) => published = Some(current),
                Err(error) => {
                    tracing::warn!(%error, "publishing labels and condition of the node failed; retrying");
                    retry_after = Duration::from_secs(5);
                }
            }
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = amd_states.changed() => if changed.is_err() { return },
            changed = configs.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(retry_after) => published = None,
        }
    }
}

/// The node condition: whether the GPUs are usable, a CamelCase reason, and a message.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    ready: bool,
    reason: &'static str,
    message: String,
}

/// Whether the machine has a card of NVIDIA, with or without a driver.
pub(crate) fn has_nvidia_gpu() -> bool {
    slipway_gpu::pci::scan(Path::new("/sys")).iter().any(|d| d.is_gpu() && d.vendor == slipway_gpu::pci::NVIDIA)
}

/// The condition of a node with GPUs of one or both vendors. A missing driver of NVIDIA is no problem if there are only GPUs of AMD.
fn condition(state: &State, amd_state: &amd::State, has_nvidia_gpu: bool) -> Condition {
    let mut faults: Vec<String> = Vec::new();
    let mut ready: Vec<String> = Vec::new();
    match state {
        State::Missing(why) if has_nvidia_gpu || amd_state.machine().is_none() => {
            let message = match amd_state {
                amd::State::Missing(of_amd) => format!("{why}; {of_amd}"),
                _ => why.clone(),
            };
            return Condition { ready: false, reason: "DriverMissing", message };
        }
        State::Missing(_) => {}
        State::Available(machine) => {
            faults.extend(machine.faults.all().map(|(uuid, f)| format!("{uuid}: {}", f.reason)));
            ready.push(format!("{} GPUs, driver {}", machine.inventory.gpus.len(), machine.inventory.driver));
        }
    }
    if let Some(machine) = amd_state.machine() {
        let faulty = machine.units.iter().filter_map(|u| Some(format!("{}: {}", u.device.id, u.fault.as_ref()?)));
        faults.extend(faulty);
        ready.push(format!("{} GPUs of AMD, driver amdgpu {}", machine.units.len(), machine.driver.version));
    }
    let healthy = faults.is_empty();
    let (reason, parts) = if healthy { ("Ready", ready) } else { ("Unhealthy", faults) };
    Condition { ready: healthy, reason, message: parts.join("; ").trim_end().to_owned() }
}

/// Applies the labels and the condition to the node.
async fn publish<C: Cluster>(
    cluster: &C,
    node: &str,
    labels: &BTreeMap<String, String>,
    condition: &Condition,
    last_transition: &str,
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
        "lastTransitionTime": last_transition});
    cluster.apply(NODE, node, STATUS_MANAGER, true, object(json!({"status": {"conditions": [condition]}}))).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{gpu, machine};
    use slipway_gpu::nvml::FabricState;

    fn selected(machine: &Machine, config: &str, keys: &[&str]) -> Vec<String> {
        let labels = labels(machine, &Config::parse(config).unwrap(), "Standard PC (Q35 + ICH9, 2009)");
        keys.iter().map(|k| labels.get(&format!("nvidia.com/{k}")).cloned().unwrap_or_default()).collect()
    }

    #[test]
    fn values_are_valid_label_values() {
        assert_eq!(value("Standard PC (Q35 + ICH9, 2009)"), "Standard-PC-Q35-ICH9-2009");
        assert_eq!(value(" Tesla T4 "), "Tesla-T4");
        assert_eq!(value(&"x".repeat(80)).len(), 63);
    }

    #[test]
    fn shared_product_is_marked_unless_resource_is_renamed() {
        let config = |rename: bool| {
            format!(
                "version: v1\nsharing: {{timeSlicing: {{renameByDefault: {rename}, resources: [{{name: nvidia.com/gpu, replicas: 4}}]}}}}"
            )
        };
        let machine = machine(vec![gpu(0, None)]);
        let keys = ["gpu.product", "gpu.replicas", "gpu.sharing-strategy"];
        assert_eq!(selected(&machine, &config(false), &keys), ["NVIDIA-A100-SXM4-80GB-SHARED", "4", "time-slicing"]);
        assert_eq!(selected(&machine, &config(true), &keys), ["NVIDIA-A100-SXM4-80GB", "4", "time-slicing"]);
        assert_eq!(selected(&machine, "version: v1", &keys), ["NVIDIA-A100-SXM4-80GB", "1", "none"]);
    }

    #[test]
    fn clique_label_names_the_nvlink_domain() {
        let fabric = |state, cluster: Option<&str>| slipway_gpu::nvml::Fabric {
            state,
            error: None,
            cluster_uuid: cluster.map(str::to_owned),
            clique: 32766,
            problems: Vec::new(),
        };
        let label = |fabrics: [_; 2]| {
            let gpus = fabrics.into_iter().enumerate().map(|(n, f)| Gpu { fabric: Some(f), ..gpu(n as u32, None) });
            selected(&machine(gpus.collect()), "version: v1", &["gpu.clique"]).remove(0)
        };
        let (uuid, done) = ("6a0b5c1d-2e3f-4051-8673-8495a6b7c8d9", FabricState::Completed);
        assert_eq!(label([fabric(done, Some(uuid)), fabric(done, Some(uuid))]), format!("{uuid}.32766"));
        assert_eq!(label([fabric(done, None), fabric(done, None)]), "", "a board has no domain beyond the machine");
        assert_eq!(label([fabric(done, Some(uuid)), fabric(FabricState::InProgress, Some(uuid))]), "");
    }

    #[test]
    fn condition_covers_both_vendors() {
        let amd = |fault: Option<&str>| {
            let mut machine = amd::samples::machine(&["spx_nps1", "spx_nps1"], slipway_gpu::amd::devices::Link::Xgmi);
            machine.units[1].fault = fault.map(str::to_owned);
            amd::State::Available(Box::new(machine))
        };
        let nvidia = State::Available(Box::new(machine(vec![gpu(0, None)])));
        let missing = State::Missing("no libnvidia-ml.so".into());
        let no_amd = amd::State::Missing("no amdgpu".into());
        let facts = |state: &State, amd: &amd::State, on_bus: bool| {
            let found = condition(state, amd, on_bus);
            (found.ready, found.reason, found.message)
        };
        let expected = |ready, reason, message: &str| (ready, reason, message.to_owned());
        let both = "1 GPUs, driver 580.95.05; 2 GPUs of AMD, driver amdgpu";
        assert_eq!(facts(&nvidia, &amd(None), true), expected(true, "Ready", both));
        assert_eq!(facts(&missing, &amd(None), false), expected(true, "Ready", "2 GPUs of AMD, driver amdgpu"));
        assert_eq!(facts(&missing, &amd(None), true), expected(false, "DriverMissing", "no libnvidia-ml.so"));
        assert_eq!(facts(&nvidia, &amd(Some("lost")), true), expected(false, "Unhealthy", "0000:01:00.0: lost"));
        assert_eq!(facts(&nvidia, &no_amd, true), expected(true, "Ready", "1 GPUs, driver 580.95.05"));
        let neither = "no libnvidia-ml.so; no amdgpu";
        assert_eq!(facts(&missing, &no_amd, false), expected(false, "DriverMissing", neither));
        let off = expected(false, "DriverMissing", "no libnvidia-ml.so");
        assert_eq!(facts(&missing, &amd::State::Off, false), off);
    }

    #[test]
    fn mig_labels_depend_on_strategy() {
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
        assert_eq!(selected(&machine, "version: v1\nflags: {migStrategy: mixed}", &keys), mixed);
        let invalid = ["0", "NVIDIA-A100-SXM4-80GB-MIG-INVALID", "", "", "", "single"];
        assert_eq!(selected(&machine, "version: v1\nflags: {migStrategy: single}", &keys), invalid);
    }
}
