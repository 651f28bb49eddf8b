//! ResourceSlices: what this node offers to claims.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use slipway_gpu::inventory::Gpu;
use slipway_gpu::mig::{Layout, Profile};

use super::{Dra, gpu_name, partition_name};
use crate::cluster::{Cluster, ClusterError, NODE, RESOURCE_SLICE};
use crate::driver::{Machine, State};

const MANAGER: &str = "slipway-node-dra";
/// The taint of a device that must not be used.
const TAINT: &str = "slipway.dev/unhealthy";

fn text(value: &str) -> Value {
    // The API takes 64 characters.
    json!({"string": value.chars().take(64).collect::<String>()})
}

/// A version as semantic versioning has it: three numbers without leading zeros, so driver 580.95.05 is 580.95.5.
fn version(value: &str) -> Value {
    let mut parts: Vec<u64> = value.split('.').map_while(|p| p.parse().ok()).take(3).collect();
    parts.resize(3, 0);
    json!({"version": format!("{}.{}.{}", parts[0], parts[1], parts[2])})
}

fn mebibytes(mib: u64) -> Value {
    json!({"value": format!("{mib}Mi")})
}

/// The root of the PCI tree that a card hangs on, by which claims ask for a GPU and a network card that are near each other.
fn pcie_root(bus_id: &str) -> Option<String> {
    let address = slipway_gpu::pci::kernel_address(bus_id);
    let path = std::fs::canonicalize(format!("/sys/bus/pci/devices/{address}")).ok()?;
    path.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).find(|c| c.starts_with("pci0"))
}

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

fn tainted(machine: &Machine, uuid: &str, parent: Option<&str>, device: &mut Value) {
    let Some(_) = machine.fault(uuid, parent) else { return };
    let code = machine.faults.of(uuid, parent).map_or("changing", |f| f.code.as_str());
    device["taints"] = json!([{"key": TAINT, "value": code, "effect": "NoSchedule"}]);
}

fn counter(slice: u32) -> String {
    format!("memory-slice-{slice}")
}

/// A GPU with MIG: the set of counters that its partitions share, and the partitions.
fn partitions(machine: &Machine, gpu: &Gpu, layout: &Layout) -> (Value, Vec<Value>) {
    let set = format!("{}-counters", gpu_name(gpu.index));
    let geometry = &layout.geometry;
    let mut counters: Map<String, Value> = (0..geometry.memory).map(|s| (counter(s), json!({"value": "1"}))).collect();
    counters.insert("compute-slices".into(), json!({"value": geometry.compute.to_string()}));
    counters.insert("media-engines".into(), json!({"value": "1"}));
    let there = gpu.mig.iter().flat_map(|m| &m.devices);
    let there: Vec<_> = there.collect();
    let mut devices = Vec::new();
    for profile in &geometry.profiles {
        for start in &profile.starts {
            let overlaps =
                |d: &&&slipway_gpu::inventory::MigDevice| d.start < start + profile.size && *start < d.start + d.size;
            let same = there.iter().find(|d| d.profile == profile.name && d.start == *start);
            // An instance that somebody made by hand is not taken apart for a claim.
            if same.is_none() && there.iter().any(|d| overlaps(&d) && !machine.ours.contains(&d.uuid)) {
                continue;
            }
            devices.push(partition(machine, gpu, profile, *start, &set, same.map(|d| d.uuid.as_str())));
        }
    }
    (json!({"name": set, "counters": counters}), devices)
}

fn partition(machine: &Machine, gpu: &Gpu, profile: &Profile, start: u32, set: &str, uuid: Option<&str>) -> Value {
    let mut a = attributes(machine, gpu, "mig");
    a.insert("profile".into(), text(&profile.name));
    a.insert("parentUUID".into(), text(&gpu.uuid));
    a.insert("parentIndex".into(), json!({"int": gpu.index}));
    // Instances that come and go with claims have no UUID that anybody could select.
    if let Some(uuid) = uuid.filter(|u| !machine.ours.contains(*u)) {
        a.insert("uuid".into(), text(uuid));
    }
    let mut used: Map<String, Value> =
        (start..start + profile.size).map(|s| (counter(s), json!({"value": "1"}))).collect();
    used.insert("compute-slices".into(), json!({"value": profile.compute.to_string()}));
    if profile.media() {
        used.insert("media-engines".into(), json!({"value": "1"}));
    }
    let mut device = json!({
        "name": partition_name(gpu.index, &profile.name, start),
        "attributes": a,
        "capacity": {
            "memory": mebibytes(profile.memory_mib),
            "multiprocessors": {"value": profile.multiprocessors.to_string()},
        },
        "consumesCounters": [{"counterSet": set, "counters": used}],
    });
    tainted(machine, uuid.unwrap_or_default(), Some(&gpu.uuid), &mut device);
    device
}

/// The `spec`s of all slices of a node, without the pool: whole GPUs together, counters together, partitions by GPU.
pub(super) fn specs(machine: &Machine) -> Vec<Value> {
    let mut whole = Vec::new();
    let mut counters = Vec::new();
    let mut parts = Vec::new();
    for gpu in machine.inventory.gpus.iter().filter(|g| !g.uuid.is_empty()) {
        let layout = machine.layouts.iter().find(|l| l.gpu == gpu.index && l.enabled);
        if let Some(layout) = layout {
            let (set, devices) = partitions(machine, gpu, layout);
            counters.push(set);
            // The API takes 64 devices with counters in one slice.
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
        tainted(machine, &gpu.uuid, None, &mut device);
        whole.push(device);
    }
    let mut specs = Vec::new();
    if !whole.is_empty() || counters.is_empty() {
        specs.push(json!({"devices": whole}));
    }
    // And eight sets of counters.
    specs.extend(counters.chunks(8).map(|c| json!({"sharedCounters": c})));
    specs.extend(parts);
    specs
}

/// Keeps the node's slices true.
pub(super) async fn publish<C: Cluster>(dra: Dra<C>) {
    let mut states = dra.driver.subscribe();
    let mut told: Option<Vec<Value>> = None;
    loop {
        let state: Arc<State> = states.borrow_and_update().clone();
        let mut again = Duration::from_secs(600);
        if let Some(machine) = state.machine() {
            let specs = specs(machine);
            if told.as_ref() != Some(&specs) {
                match tell(&dra, &specs).await {
                    Ok(()) => told = Some(specs),
                    Err(error) => {
                        tracing::warn!(%error, "the node's resource slices; trying again");
                        again = Duration::from_secs(3);
                    }
                }
            }
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(again) => told = None,
        }
    }
}

async fn tell<C: Cluster>(dra: &Dra<C>, specs: &[Value]) -> Result<(), ClusterError> {
    let fields = format!("spec.nodeName={},spec.driver={}", dra.node, dra.name);
    let there = dra.cluster.list(RESOURCE_SLICE, &fields).await?;
    let generation = there.iter().filter_map(|s| s["spec"]["pool"]["generation"].as_i64()).max().unwrap_or(0);
    let node = dra.cluster.get(NODE, None, &dra.node).await?;
    // Slices go with their node.
    let owner = node.and_then(|n| {
        Some(json!([{"apiVersion": "v1", "kind": "Node", "name": dra.node, "uid": n["metadata"]["uid"].as_str()?}]))
    });
    let name = |at: usize| format!("{}-{}-{at}", dra.node, dra.name);
    let whole = |at: usize, generation: i64| {
        let mut spec = specs[at].clone();
        spec["driver"] = json!(dra.name);
        spec["nodeName"] = json!(dra.node);
        spec["pool"] = json!({"name": dra.node, "generation": generation, "resourceSliceCount": specs.len()});
        spec
    };
    let same = there.len() == specs.len()
        && (0..specs.len()).all(|at| {
            there.iter().any(|s| s["metadata"]["name"] == json!(name(at)) && covers(&s["spec"], &whole(at, generation)))
        });
    if same {
        return Ok(());
    }
    // Only slices of the newest generation count, and only when all of them are there: a reader never mixes two states.
    for at in 0..specs.len() {
        let object = json!({
            "apiVersion": RESOURCE_SLICE.api_version(), "kind": RESOURCE_SLICE.kind,
            "metadata": {"name": name(at), "ownerReferences": owner},
            "spec": whole(at, generation + 1),
        });
        dra.cluster.apply(RESOURCE_SLICE, &name(at), MANAGER, false, object).await?;
    }
    let names: Vec<String> = (0..specs.len()).map(name).collect();
    for old in there.iter().filter_map(|s| s["metadata"]["name"].as_str()).filter(|n| !names.iter().any(|m| m == n)) {
        dra.cluster.delete(RESOURCE_SLICE, old).await?;
    }
    tracing::info!(slices = specs.len(), generation = generation + 1, "resource slices published");
    Ok(())
}

/// Whether an object says all that is wanted; the server may have added to it.
fn covers(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => {
            let optional = ["taints"].iter().all(|k| there.contains_key(*k) == wanted.contains_key(*k));
            optional && wanted.iter().all(|(k, v)| there.get(k).is_some_and(|t| covers(t, v)))
        }
        (Value::Array(there), Value::Array(wanted)) => {
            there.len() == wanted.len() && there.iter().zip(wanted).all(|(t, w)| covers(t, w))
        }
        (there, wanted) => there == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_semantic() {
        assert_eq!(version("580.95.05"), json!({"version": "580.95.5"}));
        assert_eq!(version("9.0"), json!({"version": "9.0.0"}));
    }

    #[test]
    fn what_the_server_adds_is_no_difference() {
        let wanted = json!({"devices": [{"name": "gpu-0"}]});
        assert!(covers(&json!({"devices": [{"name": "gpu-0", "added": 1}], "more": 2}), &wanted));
        assert!(!covers(&json!({"devices": [{"name": "gpu-0", "taints": []}]}), &wanted));
        assert!(!covers(&json!({"devices": []}), &wanted));
    }
}
