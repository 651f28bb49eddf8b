//! Publishes ResourceSlices: the devices that this node offers to claims.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use slipway_gpu::inventory::Gpu;
use slipway_gpu::mig::{Layout, Profile};

use super::{Dra, gpu_name, partition_name};
use crate::cluster::{Cluster, ClusterError, NODE, RESOURCE_SLICE};
use crate::driver::{Machine, State};

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

/// The devices of a GPU with MIG: the counter set that its partitions share, and all possible partitions.
fn partitions(machine: &Machine, gpu: &Gpu, layout: &Layout) -> (Value, Vec<Value>) {
    let set = format!("{}-counters", gpu_name(gpu.index));
    let geometry = &layout.geometry;
    let mut counters: Map<String, Value> = (0..geometry.memory).map(|s| (counter(s), json!({"value": "1"}))).collect();
    counters.insert("compute-slices".into(), json!({"value": geometry.compute.to_string()}));
    counters.extend(engine_counters(geometry.media()));
    let existing = gpu.mig.iter().flat_map(|m| &m.devices);
    let existing: Vec<_> = existing.collect();
    let mut devices = Vec::new();
    for profile in &geometry.profiles {
        for start in &profile.starts {
            let overlaps =
                |d: &&&slipway_gpu::inventory::MigDevice| d.start < start + profile.size && *start < d.start + d.size;
            let same = existing.iter().find(|d| d.profile == profile.name && d.start == *start);
            // Instances that were not created for claims are never destroyed for one, so they block overlapping partitions.
            if same.is_none() && existing.iter().any(|d| overlaps(&d) && !machine.claimed.contains(&d.uuid)) {
                continue;
            }
            devices.push(partition(machine, gpu, profile, *start, &set, same.map(|d| d.uuid.as_str())));
        }
    }
    (json!({"name": set, "counters": counters}), devices)
}

/// Counters of media engines, without those of which there is none.
fn engine_counters(engines: [u32; 4]) -> impl Iterator<Item = (String, Value)> {
    let names = ["decoders", "encoders", "jpeg-engines", "ofa-engines"];
    let counters = names.into_iter().zip(engines).filter(|(_, count)| *count > 0);
    counters.map(|(name, count)| (name.to_owned(), json!({"value": count.to_string()})))
}

fn partition(machine: &Machine, gpu: &Gpu, profile: &Profile, start: u32, set: &str, uuid: Option<&str>) -> Value {
    let mut a = attributes(machine, gpu, "mig");
    a.insert("profile".into(), text(&profile.name));
    a.insert("parentUUID".into(), text(&gpu.uuid));
    a.insert("parentIndex".into(), json!({"int": gpu.index}));
    // Instances created for claims have changing UUIDs, which claims cannot select on.
    if let Some(uuid) = uuid.filter(|u| !machine.claimed.contains(*u)) {
        a.insert("uuid".into(), text(uuid));
    }
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
            counters.push(set);
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
    if !whole.is_empty() || counters.is_empty() {
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

    #[test]
    fn fields_added_by_server_are_not_a_difference() {
        let desired = json!({"devices": [{"name": "gpu-0"}]});
        assert!(covers(&json!({"devices": [{"name": "gpu-0", "added": 1}], "more": 2}), &desired));
        assert!(!covers(&json!({"devices": [{"name": "gpu-0", "taints": []}]}), &desired));
        assert!(!covers(&json!({"devices": []}), &desired));
    }
}
