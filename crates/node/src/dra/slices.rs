//! Publishes ResourceSlices: the devices that this node offers to claims.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use slipway_gpu::inventory::{Gpu, MigDevice};
use slipway_gpu::mig::{Instance, Layout, Profile};

use super::{Dra, gpu_name, mig_device_name, partition_name};
use crate::cluster::{Cluster, ClusterError, NODE, RESOURCE_SLICE};
use crate::driver::{Machine, State};
use crate::model::is_in;

const MANAGER: &str = "slipway-node-dra";
/// Key of the taint on devices that must not be used.
const TAINT: &str = "slipway.dev/unhealthy";

fn text(value: &str) -> Value {
    // The API limits string attributes to 64 characters.
    json!({"string": value.chars().take(64).collect::<String>()})
}

/// A version attribute in semantic versioning: three numbers without leading zeros, so driver 580.95.05 becomes 580.95.5.
fn version(value: &str) -> Value {
    let mut parts: Vec<u64> = value.split('.').map_while(|p| p.parse().ok()).take(3).collect();
    parts.resize(3, 0);
    json!({"version": format!("{}.{}.{}", parts[0], parts[1], parts[2])})
}

fn mebibytes(mib: u64) -> Value {
    json!({"value": format!("{mib}Mi")})
}

/// The PCIe root complex of a card. Claims match on it to request a GPU and a network card close to each other.
fn pcie_root(bus_id: &str) -> Option<String> {
    let address = slipway_gpu::pci::kernel_address(bus_id);
    let path = std::fs::canonicalize(format!("/sys/bus/pci/devices/{address}")).ok()?;
    path.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).find(|c| c.starts_with("pci0"))
}

/// Attributes that GPUs and MIG partitions have in common.
fn attributes(machine: &Machine, gpu: &Gpu, kind: &str) -> Map<String, Value> {
    let mut a = Map::new();
    a.insert("type".into(), text(kind));
    a.insert("productName".into(), text(&gpu.name));
    a.insert("architecture".into(), text(&gpu.architecture));
    a.insert("index".into(), json!({"int": gpu.index}));
    if let Some(minor) = gpu.minor {
        a.insert("minor".into(), json!({"int": minor}));
    }
    if let Some(capability) = &gpu.compute_capability {
        a.insert("cudaComputeCapability".into(), version(capability));
    }
    a.insert("driverVersion".into(), version(&machine.inventory.driver));
    a.insert("cudaDriverVersion".into(), version(&machine.inventory.cuda));
    a.insert("pcieBusID".into(), text(&gpu.bus_id));
    if let Some(numa) = machine
        .inventory
        .gpus
        .iter()
        .position(|g| g.index == gpu.index)
        .and_then(|at| machine.topology.numa.get(at))
        .copied()
        .flatten()
    {
        a.insert("numaNode".into(), json!({"int": numa}));
    }
    if let Some(root) = pcie_root(&gpu.bus_id) {
        a.insert("resource.kubernetes.io/pcieRoot".into(), text(&root));
    }
    a
}

/// Adds a taint to a device that has a fault or is about to change.
fn add_taint(machine: &Machine, uuid: &str, parent: Option<&str>, device: &mut Value) {
    let Some(_) = machine.fault(uuid, parent) else { return };
    let code = machine.faults.fault(uuid, parent).map_or("changing", |f| f.code.as_str());
    device["taints"] = json!([{"key": TAINT, "value": code, "effect": "NoSchedule"}]);
}

fn counter(slice: u32) -> String {
    format!("memory-slice-{slice}")
}

/// The devices of a GPU with MIG: its existing MIG devices, the partitions that are possible beside them, and the counter set that these share;
/// `None` without partitions.
///
/// Instances that were not created for claims are never destroyed for one. Their devices consume no counters, the counters lack what they
/// occupy, and partitions that overlap them are not offered.
fn partitions(machine: &Machine, gpu: &Gpu, layout: &Layout) -> (Option<Value>, Vec<Value>) {
    let set = format!("{}-counters", gpu_name(gpu.index));
    let geometry = &layout.geometry;
    let existing: Vec<&MigDevice> = gpu.mig.iter().flat_map(|m| &m.devices).collect();
    let is_claimed = |i: &&Instance| existing.iter().any(|d| is_in(d, i) && machine.claimed.contains(&d.uuid));
    let fixed: Vec<&Instance> = layout.instances.iter().filter(|i| !is_claimed(i)).collect();
    let is_free = |from: u32, to: u32| fixed.iter().all(|i| to <= i.at.start || i.at.start + i.at.size <= from);
    let (mut compute, mut media) = (geometry.compute, geometry.media());
    for profile in fixed.iter().filter_map(|i| geometry.profile(&i.profile)) {
        compute = compute.saturating_sub(profile.compute);
        for (free, used) in media.iter_mut().zip(profile.engines.media()) {
            *free = free.saturating_sub(used);
        }
    }
    let mut devices: Vec<Value> = existing
        .iter()
        .filter(|d| !machine.claimed.contains(&d.uuid) && !d.profile.is_empty())
        .map(|d| fixed_device(machine, gpu, d))
        .collect();
    let mut possible = Vec::new();
    for profile in &geometry.profiles {
        let fits =
            profile.compute <= compute && profile.engines.media().iter().zip(&media).all(|(used, free)| used <= free);
        for start in profile.starts.iter().filter(|start| fits && is_free(**start, **start + profile.size)) {
            let uuid =
                existing.iter().find(|d| d.profile == profile.name && d.start == *start).map(|d| d.uuid.as_str());
            possible.push(partition(machine, gpu, profile, *start, &set, uuid));
        }
    }
    if possible.is_empty() {
        return (None, devices);
    }
    devices.extend(possible);
    let slices = (0..geometry.memory).filter(|s| is_free(*s, s + 1));
    let mut counters: Map<String, Value> = slices.map(|s| (counter(s), json!({"value": "1"}))).collect();
    counters.insert("compute-slices".into(), json!({"value": compute.to_string()}));
    counters.extend(engine_counters(media));
    (Some(json!({"name": set, "counters": counters})), devices)
}

/// Attributes of a MIG device or partition.
fn mig_attributes(machine: &Machine, gpu: &Gpu, profile: &str) -> Map<String, Value> {
    let mut a = attributes(machine, gpu, "mig");
    a.insert("profile".into(), text(profile));
    a.insert("parentUUID".into(), text(&gpu.uuid));
    a.insert("parentIndex".into(), json!({"int": gpu.index}));
    a
}

/// A MIG device that was not created for a claim. The memory of a compute instance is that of its GPU instance, which its neighbours share.
fn fixed_device(machine: &Machine, gpu: &Gpu, device: &MigDevice) -> Value {
    let mut a = mig_attributes(machine, gpu, &device.profile);
    a.insert("uuid".into(), text(&device.uuid));
    let mut out = json!({
        "name": mig_device_name(gpu.index, device),
        "attributes": a,
        "capacity": {
            "memory": mebibytes(device.attributes.memory_mib),
            "multiprocessors": {"value": device.attributes.multiprocessors.to_string()},
        },
    });
    add_taint(machine, &device.uuid, Some(&gpu.uuid), &mut out);
    out
}

/// Counters of media engines, without those of which there is none.
fn engine_counters(engines: [u32; 4]) -> impl Iterator<Item = (String, Value)> {
    let names = ["decoders", "encoders", "jpeg-engines", "ofa-engines"];
    let counters = names.into_iter().zip(engines).filter(|(_, count)| *count > 0);
    counters.map(|(name, count)| (name.to_owned(), json!({"value": count.to_string()})))
}

/// A partition that is created for a claim; `uuid` is that of the device if it exists.
fn partition(machine: &Machine, gpu: &Gpu, profile: &Profile, start: u32, set: &str, uuid: Option<&str>) -> Value {
    // Instances created for claims have changing UUIDs, which claims cannot select on.
    let a = mig_attributes(machine, gpu, &profile.name);
    let mut used: Map<String, Value> =
        (start..start + profile.size).map(|s| (counter(s), json!({"value": "1"}))).collect();
    used.insert("compute-slices".into(), json!({"value": profile.compute.to_string()}));
    used.extend(engine_counters(profile.engines.media()));
    let mut device = json!({
        "name": partition_name(gpu.index, &profile.name, start),
        "attributes": a,
        "capacity": {
            "memory": mebibytes(profile.memory_mib),
            "multiprocessors": {"value": profile.multiprocessors.to_string()},
        },
        "consumesCounters": [{"counterSet": set, "counters": used}],
    });
    add_taint(machine, uuid.unwrap_or_default(), Some(&gpu.uuid), &mut device);
    device
}

/// The `spec`s of all slices of a node, without the pool: one with the whole GPUs, then counter sets, then the partitions of each GPU.
pub(super) fn specs(machine: &Machine) -> Vec<Value> {
    let mut whole = Vec::new();
    let mut counters = Vec::new();
    let mut parts = Vec::new();
    for gpu in machine.inventory.gpus.iter().filter(|g| !g.uuid.is_empty()) {
        let layout = machine.layouts.iter().find(|l| l.gpu == gpu.index && l.enabled);
        if let Some(layout) = layout {
            let (set, devices) = partitions(machine, gpu, layout);
            counters.extend(set);
            // The API limits a slice to 64 devices that consume counters.
            parts.extend(devices.chunks(64).map(|d| json!({"devices": d})));
            continue;
        }
        let mut a = attributes(machine, gpu, "gpu");
        a.insert("uuid".into(), text(&gpu.uuid));
        let mut device = json!({
            "name": gpu_name(gpu.index),
            "attributes": a,
            "capacity": {"memory": mebibytes(gpu.memory_total.unwrap_or(0) >> 20)},
        });
        add_taint(machine, &gpu.uuid, None, &mut device);
        whole.push(device);
    }
    let mut specs = Vec::new();
    if !whole.is_empty() || (counters.is_empty() && parts.is_empty()) {
        specs.push(json!({"devices": whole}));
    }
    // The API limits a slice to eight counter sets.
    specs.extend(counters.chunks(8).map(|c| json!({"sharedCounters": c})));
    specs.extend(parts);
    specs
}

/// Keeps the published slices up to date with the state of the driver.
pub(super) async fn publish<C: Cluster>(dra: Dra<C>) {
    let mut states = dra.driver.subscribe();
    let mut published: Option<Vec<Value>> = None;
    loop {
        let state: Arc<State> = states.borrow_and_update().clone();
        let mut retry_after = Duration::from_secs(600);
        if let Some(machine) = state.machine() {
            let specs = match dra.specs(machine) {
                Ok(specs) => specs,
                Err(error) => {
                    tracing::warn!(%error, driver = dra.name, "the devices cannot be read; retrying");
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    continue;
                }
            };
            if published.as_ref() != Some(&specs) {
                match replace_slices(&dra, &specs).await {
                    Ok(()) => published = Some(specs),
                    Err(error) => {
                        tracing::warn!(%error, "publishing the resource slices failed; retrying");
                        retry_after = Duration::from_secs(3);
                    }
                }
            }
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(retry_after) => published = None,
        }
    }
}

/// Publishes the slices under a new generation of the pool, unless the existing slices already match.
async fn replace_slices<C: Cluster>(dra: &Dra<C>, specs: &[Value]) -> Result<(), ClusterError> {
    let fields = format!("spec.nodeName={},spec.driver={}", dra.node, dra.name);
    let existing = dra.cluster.list(RESOURCE_SLICE, &fields).await?;
    let generation = existing.iter().filter_map(|s| s["spec"]["pool"]["generation"].as_i64()).max().unwrap_or(0);
    let node = dra.cluster.get(NODE, None, &dra.node).await?;
    // The owner reference deletes the slices together with their node.
    let owner = node.and_then(|n| {
        Some(json!([{"apiVersion": "v1", "kind": "Node", "name": dra.node, "uid": n["metadata"]["uid"].as_str()?}]))
    });
    let name = |at: usize| format!("{}-{}-{at}", dra.node, dra.name);
    let full_spec = |at: usize, generation: i64| {
        let mut spec = specs[at].clone();
        spec["driver"] = json!(dra.name);
        spec["nodeName"] = json!(dra.node);
        spec["pool"] = json!({"name": dra.node, "generation": generation, "resourceSliceCount": specs.len()});
        spec
    };
    let same = existing.len() == specs.len()
        && (0..specs.len()).all(|at| {
            existing
                .iter()
                .any(|s| s["metadata"]["name"] == json!(name(at)) && covers(&s["spec"], &full_spec(at, generation)))
        });
    if same {
        return Ok(());
    }
    // The scheduler uses only slices of the newest generation, and only once all of them exist, so it never mixes two states.
    for at in 0..specs.len() {
        let object = json!({
            "apiVersion": RESOURCE_SLICE.api_version(), "kind": RESOURCE_SLICE.kind,
            "metadata": {"name": name(at), "ownerReferences": owner},
            "spec": full_spec(at, generation + 1),
        });
        dra.cluster.apply(RESOURCE_SLICE, &name(at), MANAGER, false, object).await?;
    }
    let names: Vec<String> = (0..specs.len()).map(name).collect();
    for old in existing.iter().filter_map(|s| s["metadata"]["name"].as_str()).filter(|n| !names.iter().any(|m| m == n))
    {
        dra.cluster.delete(RESOURCE_SLICE, old).await?;
    }
    tracing::info!(slices = specs.len(), generation = generation + 1, "resource slices published");
    Ok(())
}

/// Whether an existing object contains all desired fields. The server may have added others, but a taint that is not desired counts as a
/// difference.
fn covers(existing: &Value, desired: &Value) -> bool {
    match (existing, desired) {
        (Value::Object(existing), Value::Object(desired)) => {
            let optional = ["taints"].iter().all(|k| existing.contains_key(*k) == desired.contains_key(*k));
            optional && desired.iter().all(|(k, v)| existing.get(k).is_some_and(|e| covers(e, v)))
        }
        (Value::Array(existing), Value::Array(desired)) => {
            existing.len() == desired.len() && existing.iter().zip(desired).all(|(e, d)| covers(e, d))
        }
        (existing, desired) => existing == desired,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{compute_instances, machine};

    #[test]
    fn versions_are_converted_to_semantic_versions() {
        assert_eq!(version("580.95.05"), json!({"version": "580.95.5"}));
        assert_eq!(version("9.0"), json!({"version": "9.0.0"}));
    }

    #[test]
    fn partitions_have_distinct_names_and_count_media_engines() {
        let geometry = slipway_gpu::mig::Geometry::family("rtx-pro-6000").unwrap();
        let names: std::collections::BTreeSet<String> =
            geometry.profiles.iter().map(|p| partition_name(0, &p.name, 0)).collect();
        assert_eq!(names.len(), geometry.profiles.len(), "{names:?}");
        let used = |name: &str| {
            let counters = engine_counters(geometry.profile(name).unwrap().engines.media());
            counters
                .map(|(name, value)| format!("{name}={}", value["value"].as_str().unwrap()))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(used("1g.24gb-me"), "");
        assert_eq!(used("1g.24gb+me.all"), "decoders=4 encoders=4 jpeg-engines=4 ofa-engines=1");
    }

    /// A machine with the MIG devices of [`compute_instances`].
    fn divided() -> Machine {
        let mut machine = machine(vec![compute_instances()]);
        let instance = |profile: &str, start, size, compute: &[u32]| Instance {
            profile: profile.into(),
            at: slipway_gpu::nvml::Placement { start, size },
            compute: compute.to_vec(),
        };
        machine.layouts = vec![Layout {
            gpu: 0,
            pci_id: 0,
            subsystem_id: 0,
            machine_gpus: 1,
            enabled: true,
            instances: vec![instance("1g.10gb", 0, 1, &[]), instance("3g.40gb", 4, 4, &[1, 1])],
            geometry: slipway_gpu::mig::Geometry::family("h100-80gb").unwrap(),
            processes: Vec::new(),
            ids: vec![9, 1],
        }];
        machine
    }

    fn names(machine: &Machine) -> Vec<String> {
        let slices = specs(machine);
        let devices = slices.iter().filter_map(|s| s["devices"].as_array()).flatten();
        devices.map(|d| d["name"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn compute_instances_are_devices_and_block_what_overlaps_their_instance() {
        let machine = divided();
        let names = names(&machine);
        assert_eq!(names[..3], ["gpu-0-mig-1c3g40gb-4-0", "gpu-0-mig-1c3g40gb-4-1", "gpu-0-mig-1g10gb-0"]);
        assert!(
            names.contains(&"gpu-0-mig-1g10gb-3".into()) && names.contains(&"gpu-0-mig-2g20gb-2".into()),
            "{names:?}"
        );
        for overlapping in ["gpu-0-mig-3g40gb-4", "gpu-0-mig-3g40gb-0", "gpu-0-mig-1g10gb-4", "gpu-0-mig-2g20gb-0"] {
            assert!(!names.contains(&overlapping.into()), "{overlapping} overlaps an instance that no claim created");
        }
        let specs = specs(&machine);
        let counters = &specs[0]["sharedCounters"][0]["counters"];
        // The 3g.40gb and the 1g.10gb occupy four of the seven compute slices.
        assert_eq!(counters["compute-slices"], json!({"value": "3"}));
        let slices: Vec<&String> = counters.as_object().unwrap().keys().filter(|k| k.starts_with("memory")).collect();
        assert_eq!(slices, ["memory-slice-1", "memory-slice-2", "memory-slice-3"]);
        let part = &specs[1]["devices"][1];
        assert_eq!(part["attributes"]["uuid"], json!({"string": "MIG-1-1"}));
        assert_eq!(part["attributes"]["profile"], json!({"string": "1c.3g.40gb"}));
        assert!(part.get("consumesCounters").is_none());
        for name in &names {
            assert!(crate::dra::find_device(&machine, name).is_some(), "{name}");
        }
        assert_eq!(crate::dra::uuid_of(&machine, "gpu-0-mig-1c3g40gb-4-1").unwrap(), "MIG-1-1");
        assert_eq!(crate::dra::uuid_of(&machine, "gpu-0-mig-1g10gb-0").unwrap(), "MIG-9-0");
        assert_eq!(crate::dra::uuid_of(&machine, "gpu-0-mig-3g40gb-4"), None);
    }

    #[test]
    fn instances_of_claims_stay_partitions() {
        let mut machine = divided();
        machine.claimed = ["MIG-9-0".to_owned()].into();
        let names = names(&machine);
        assert_eq!(names.iter().filter(|n| *n == "gpu-0-mig-1g10gb-0").count(), 1);
        assert!(
            names.contains(&"gpu-0-mig-2g20gb-0".into()),
            "the claim may be released before another one is prepared: {names:?}"
        );
        let specs = specs(&machine);
        assert_eq!(specs[0]["sharedCounters"][0]["counters"]["compute-slices"], json!({"value": "4"}));
        let partition =
            specs[1]["devices"].as_array().unwrap().iter().find(|d| d["name"] == "gpu-0-mig-1g10gb-0").unwrap();
        assert!(partition["attributes"].get("uuid").is_none() && partition["consumesCounters"].is_array());
    }

    #[test]
    fn gpu_without_free_slices_has_no_counters() {
        let mut machine = divided();
        machine.layouts[0].instances =
            vec![Instance::new("7g.80gb", slipway_gpu::nvml::Placement { start: 0, size: 8 })];
        let specs = specs(&machine);
        assert!(specs.iter().all(|s| s.get("sharedCounters").is_none()), "{specs:?}");
        assert_eq!(specs.len(), 1);
    }

    #[test]
    fn fields_added_by_server_are_not_a_difference() {
        let desired = json!({"devices": [{"name": "gpu-0"}]});
        assert!(covers(&json!({"devices": [{"name": "gpu-0", "added": 1}], "more": 2}), &desired));
        assert!(!covers(&json!({"devices": [{"name": "gpu-0", "taints": []}]}), &desired));
        assert!(!covers(&json!({"devices": []}), &desired));
    }
}
