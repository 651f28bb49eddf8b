//! Prepares the devices of a claim on the node, and releases them.
//!
//! Partitions are recorded in the database before they are created, so that they are also released if the agent is killed in
//! between. Both operations are idempotent.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_gpu::GpuError;
use slipway_gpu::mig::{self, Change, Instance, Plan};
use slipway_gpu::nvml::{Nvml, Placement};
use slipway_store::Database;

use super::{Device, Dra, find_device, uuid_of};
use crate::cluster::{Cluster, RESOURCE_CLAIM};
use crate::driver::InstancePosition;
use crate::kubelet::dra as api;
use crate::{NodeError, cdi, repo};

/// The record of a prepared claim, stored as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Prepared {
    /// Partitions that were created for the claim, keyed by device name.
    made: BTreeMap<String, Partition>,
}

/// A MIG instance that was created for a claim; `start` is its first memory slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Partition {
    gpu: u32,
    profile: String,
    start: u32,
}

/// A device that the scheduler allocated to a claim.
pub(super) struct Allocated {
    pub(super) request: String,
    /// Name of the device in the slices of this node.
    pub(super) device: String,
    pub(super) share: Option<String>,
}

/// The GPUs and partitions of this driver and pool in a claim's allocation, which must have no parameters.
fn allocated(claim: &Value, driver: &str, pool: &str) -> Result<Vec<Allocated>, NodeError> {
    let configured = claim["status"]["allocation"]["devices"]["config"].as_array().into_iter().flatten();
    if configured.into_iter().any(|c| c["opaque"]["driver"] == driver) {
        return Err(NodeError::Invalid(format!(
            "the claim has opaque parameters, which {driver} does not support: share GPUs by MIG partitions or by the node's configuration"
        )));
    }
    allocated_devices(claim, driver, pool)
}

/// The devices of this driver and pool in a claim's allocation.
pub(super) fn allocated_devices(claim: &Value, driver: &str, pool: &str) -> Result<Vec<Allocated>, NodeError> {
    let Some(results) = claim["status"]["allocation"]["devices"]["results"].as_array() else {
        return Err(NodeError::Invalid("the claim is not allocated".into()));
    };
    let own = results.iter().filter(|r| r["driver"] == driver && r["pool"] == pool);
    let field = |r: &Value, name: &str| r[name].as_str().map(str::to_owned);
    own.map(|r| match (field(r, "request"), field(r, "device")) {
        (Some(request), Some(device)) => Ok(Allocated { request, device, share: field(r, "shareID") }),
        _ => Err(NodeError::Invalid("the claim's allocation has no device name".into())),
    })
    .collect()
}

/// Prepares a claim: creates its missing partitions, and returns its devices with their CDI names.
pub(super) async fn prepare<C: Cluster>(dra: &Dra<C>, requested: &api::Claim) -> Result<Vec<api::Device>, NodeError> {
    let claim = dra.cluster.get(RESOURCE_CLAIM, Some(&requested.namespace), &requested.name).await?;
    let claim = claim.filter(|c| c["metadata"]["uid"] == requested.uid.as_str());
    let claim =
        claim.ok_or_else(|| NodeError::Invalid("the claim was deleted, or recreated under the same name".into()))?;
    let allocated = allocated(&claim, &dra.name, &dra.node)?;
    check_unused(dra, &requested.uid, &allocated).await?;
    let mut record = load(dra, &requested.uid).await?.unwrap_or_default();
    let state = dra.driver.subscribe().borrow().clone();
    let machine = state.machine().ok_or_else(|| NodeError::NoDriver("it is gone".into()))?;
    let mut missing = Vec::new();
    for result in &allocated {
        let device = find_device(machine, &result.device)
            .ok_or_else(|| NodeError::Invalid(format!("there is no device {} on this node", result.device)))?;
        if let (Device::Partition { gpu, profile, start }, None) = (device, uuid_of(machine, &result.device)) {
            missing.push((result.device.clone(), Partition { gpu, profile, start }));
        }
    }
    record.made.extend(missing.iter().cloned());
    save(dra, &requested.uid, &record).await?;
    for (at, (_, partition)) in missing.iter().enumerate() {
        let partitions = vec![partition.clone()];
        if let Err(error) = dra.driver.with(move |nvml| change(nvml, &partitions, true)).await {
            // Another process may create these partitions later, and this claim must not destroy them.
            missing[at..].iter().for_each(|(device, _)| drop(record.made.remove(device)));
            save(dra, &requested.uid, &record).await?;
            update_claimed(dra).await?;
            return Err(error);
        }
    }
    if !missing.is_empty() {
        update_claimed(dra).await?;
    }
    let state = dra.driver.subscribe().borrow().clone();
    let machine = state.machine().ok_or_else(|| NodeError::NoDriver("it is gone".into()))?;
    if let Some(why) = &machine.cdi {
        return Err(NodeError::Invalid(format!("the CDI specification is missing: {why}")));
    }
    allocated
        .into_iter()
        .map(|result| {
            let uuid = uuid_of(machine, &result.device)
                .ok_or_else(|| NodeError::Invalid(format!("{} does not exist", result.device)))?;
            Ok(api::Device {
                request_names: vec![result.request],
                pool_name: dra.node.clone(),
                device_name: result.device,
                cdi_device_ids: vec![cdi::name(&uuid)],
                share_id: result.share,
            })
        })
        .collect()
}

/// Checks that no partition of a claim was created for another one, which would destroy it when it is released. The scheduler may allocate a
/// device again before the kubelet has released it, for instance after a pod was deleted by force; the kubelet attempts it again.
async fn check_unused<C: Cluster>(dra: &Dra<C>, uid: &str, allocated: &[Allocated]) -> Result<(), NodeError> {
    let records = dra.database.read(repo::claims).await?;
    match held_by_another(&records, uid, allocated) {
        Some(device) => Err(NodeError::Invalid(format!("{device} is not released by another claim yet"))),
        None => Ok(()),
    }
}

/// A device that was created for another claim than `uid`, in the records of all claims.
fn held_by_another<'a>(records: &[(String, String)], uid: &str, allocated: &'a [Allocated]) -> Option<&'a str> {
    let others = records.iter().filter(|(other, _)| other != uid);
    let others: Vec<Prepared> = others.filter_map(|(_, text)| serde_json::from_str(text).ok()).collect();
    allocated.iter().map(|a| a.device.as_str()).find(|device| others.iter().any(|o| o.made.contains_key(*device)))
}

/// Releases a claim: destroys its partitions and deletes its record.
pub(super) async fn unprepare<C: Cluster>(dra: &Dra<C>, uid: &str) -> Result<(), NodeError> {
    let Some(record) = load(dra, uid).await? else { return Ok(()) };
    if !record.made.is_empty() {
        let partitions: Vec<Partition> = record.made.into_values().collect();
        dra.driver.with(move |nvml| change(nvml, &partitions, false)).await?;
    }
    let uid = uid.to_owned();
    dra.database.write(move |c| repo::delete_claim(c, &uid)).await.map_err(NodeError::Store)?;
    update_claimed(dra).await
}

/// The MIG instances that were created for claims, from the database.
pub(super) async fn claimed(database: &Database) -> Result<BTreeSet<InstancePosition>, NodeError> {
    let all = database.read(repo::claims).await?;
    let records = all.iter().filter_map(|(_, text)| serde_json::from_str::<Prepared>(text).ok());
    Ok(records.flat_map(|r| r.made.into_values().map(|m| (m.gpu, m.profile, m.start))).collect())
}

/// Publishes the MIG instances that belong to claims.
async fn update_claimed<C: Cluster>(dra: &Dra<C>) -> Result<(), NodeError> {
    dra.driver.set_claimed(claimed(&dra.database).await?).await
}

/// Creates partitions that do not exist (`create` is true), or destroys those that do.
fn change(nvml: &Nvml, partitions: &[Partition], create: bool) -> Result<(), GpuError> {
    for partition in partitions {
        let layouts = mig::layout(nvml)?;
        let Some(layout) = layouts.iter().find(|l| l.gpu == partition.gpu) else { continue };
        let profile = layout
            .geometry
            .profile(&partition.profile)
            .ok_or_else(|| GpuError::Invalid(format!("GPU {} has no profile {}", partition.gpu, partition.profile)))?;
        let at = Placement { start: partition.start, size: profile.size };
        let instance = Instance::new(partition.profile.clone(), at);
        let exists = layout.instances.contains(&instance);
        if exists == create {
            continue;
        }
        let (to_create, to_destroy) = if create { (vec![instance], vec![]) } else { (vec![], vec![instance]) };
        let change =
            Change { gpu: partition.gpu, mode: None, keep: Vec::new(), destroy: to_destroy, create: to_create };
        let plan = Plan { changes: vec![change] };
        mig::apply(nvml, &layouts, &plan)?;
    }
    Ok(())
}

async fn load<C: Cluster>(dra: &Dra<C>, uid: &str) -> Result<Option<Prepared>, NodeError> {
    let uid = uid.to_owned();
    let text = dra.database.read(move |c| repo::claim(c, &uid)).await?;
    Ok(text.and_then(|t| serde_json::from_str(&t).ok()))
}

async fn save<C: Cluster>(dra: &Dra<C>, uid: &str, record: &Prepared) -> Result<(), NodeError> {
    let text = serde_json::to_string(record).map_err(|e| NodeError::Invalid(e.to_string()))?;
    let uid = uid.to_owned();
    dra.database.write(move |c| repo::put_claim(c, &uid, &text)).await.map_err(NodeError::Store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_of_another_claim_is_not_prepared() {
        let partition = Partition { gpu: 0, profile: "3g.40gb".into(), start: 4 };
        let made = BTreeMap::from([("gpu-0-mig-3g40gb-4".to_owned(), partition)]);
        let text = serde_json::to_string(&Prepared { made }).unwrap();
        let records = [("first".to_owned(), text), ("unreadable".to_owned(), "{}".to_owned())];
        let device = |name: &str| Allocated { request: "gpu".into(), device: name.into(), share: None };
        let devices = [device("gpu-0-mig-1g10gb-0"), device("gpu-0-mig-3g40gb-4")];
        assert_eq!(held_by_another(&records, "second", &devices), Some("gpu-0-mig-3g40gb-4"));
        assert_eq!(held_by_another(&records, "first", &devices), None, "preparing is idempotent");
        assert_eq!(held_by_another(&records, "second", &devices[..1]), None);
    }
}
