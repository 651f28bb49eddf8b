//! A claim's devices made ready on the node, and given back.
//!
//! What was made for a claim is written down before it is made, so that an agent that is killed in between gives it back all the
//! same. Preparing twice is preparing once.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_gpu::GpuError;
use slipway_gpu::mig::{self, Change, Instance, Plan};
use slipway_gpu::nvml::{Nvml, Placement};
use slipway_store::Database;

use super::{Dra, Named, named, uuid_of};
use crate::cluster::{Cluster, RESOURCE_CLAIM};
use crate::driver::Place;
use crate::kubelet::dra as api;
use crate::{NodeError, cdi, repo};

/// What was prepared for a claim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Prepared {
    /// Partitions that were made for it, by the device's name.
    made: BTreeMap<String, Made>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    gpu: u32,
    profile: String,
    start: u32,
}

/// A device that the scheduler chose for a claim.
struct Chosen {
    request: String,
    device: String,
    share: Option<String>,
}

fn chosen(claim: &Value, driver: &str, pool: &str) -> Result<Vec<Chosen>, NodeError> {
    let allocation = &claim["status"]["allocation"];
    let Some(results) = allocation["devices"]["results"].as_array() else {
        return Err(NodeError::Invalid("the claim is not allocated".into()));
    };
    let configured = allocation["devices"]["config"].as_array().into_iter().flatten();
    if configured.into_iter().any(|c| c["opaque"]["driver"] == driver) {
        return Err(NodeError::Invalid(format!(
            "the claim has opaque parameters for {driver}, and it takes none: share GPUs by MIG partitions or by the node's configuration"
        )));
    }
    let ours = results.iter().filter(|r| r["driver"] == driver && r["pool"] == pool);
    let field = |r: &Value, name: &str| r[name].as_str().map(str::to_owned);
    ours.map(|r| match (field(r, "request"), field(r, "device")) {
        (Some(request), Some(device)) => Ok(Chosen { request, device, share: field(r, "shareID") }),
        _ => Err(NodeError::Invalid("the claim's allocation names no device".into())),
    })
    .collect()
}

pub(super) async fn prepare<C: Cluster>(dra: &Dra<C>, wanted: &api::Claim) -> Result<Vec<api::Device>, NodeError> {
    let claim = dra.cluster.get(RESOURCE_CLAIM, Some(&wanted.namespace), &wanted.name).await?;
    let claim = claim.filter(|c| c["metadata"]["uid"] == wanted.uid.as_str());
    let claim = claim.ok_or_else(|| NodeError::Invalid("the claim is gone, or another has its name".into()))?;
    let chosen = chosen(&claim, &dra.name, &dra.node)?;
    let mut record = load(dra, &wanted.uid).await?.unwrap_or_default();
    let state = dra.driver.subscribe().borrow().clone();
    let machine = state.machine().ok_or_else(|| NodeError::NoDriver("it went away".into()))?;
    let mut missing = Vec::new();
    for one in &chosen {
        let place = named(machine, &one.device)
            .ok_or_else(|| NodeError::Invalid(format!("there is no device {} on this node", one.device)))?;
        if let (Named::Partition { gpu, profile, start }, None) = (place, uuid_of(machine, &one.device)) {
            missing.push((one.device.clone(), Made { gpu, profile, start }));
        }
    }
    record.made.extend(missing.iter().cloned());
    save(dra, &wanted.uid, &record).await?;
    if !missing.is_empty() {
        let steps: Vec<Made> = missing.into_iter().map(|(_, made)| made).collect();
        dra.driver.with(move |nvml| change(nvml, &steps, true)).await?;
        own(dra).await?;
    }
    let state = dra.driver.subscribe().borrow().clone();
    let machine = state.machine().ok_or_else(|| NodeError::NoDriver("it went away".into()))?;
    if let Some(why) = &machine.cdi {
        return Err(NodeError::Invalid(format!("there is no CDI specification: {why}")));
    }
    chosen
        .into_iter()
        .map(|one| {
            let uuid = uuid_of(machine, &one.device)
                .ok_or_else(|| NodeError::Invalid(format!("{} is not there", one.device)))?;
            Ok(api::Device {
                request_names: vec![one.request],
                pool_name: dra.node.clone(),
                device_name: one.device,
                cdi_device_ids: vec![cdi::name(&uuid)],
                share_id: one.share,
            })
        })
        .collect()
}

pub(super) async fn unprepare<C: Cluster>(dra: &Dra<C>, uid: &str) -> Result<(), NodeError> {
    let Some(record) = load(dra, uid).await? else { return Ok(()) };
    if !record.made.is_empty() {
        let steps: Vec<Made> = record.made.into_values().collect();
        dra.driver.with(move |nvml| change(nvml, &steps, false)).await?;
    }
    let gone = uid.to_owned();
    dra.database.write(move |c| repo::unprepared(c, &gone)).await.map_err(NodeError::Store)?;
    own(dra).await
}

/// The MIG instances that were made for claims, from the record.
pub(super) async fn owned(database: &Database) -> Result<BTreeSet<Place>, NodeError> {
    let all = database.read(repo::claims).await?;
    let records = all.iter().filter_map(|(_, text)| serde_json::from_str::<Prepared>(text).ok());
    Ok(records.flat_map(|r| r.made.into_values().map(|m| (m.gpu, m.profile, m.start))).collect())
}

async fn own<C: Cluster>(dra: &Dra<C>) -> Result<(), NodeError> {
    dra.driver.own(owned(&dra.database).await?).await
}

/// Makes partitions, or removes those of them that are there.
fn change(nvml: &Nvml, steps: &[Made], make: bool) -> Result<(), GpuError> {
    for step in steps {
        let layouts = mig::layout(nvml)?;
        let Some(layout) = layouts.iter().find(|l| l.gpu == step.gpu) else { continue };
        let profile = layout
            .geometry
            .profile(&step.profile)
            .ok_or_else(|| GpuError::Invalid(format!("GPU {} has no profile {}", step.gpu, step.profile)))?;
        let at = Placement { start: step.start, size: profile.size };
        let instance = Instance { profile: step.profile.clone(), at };
        let there = layout.instances.contains(&instance);
        if there == make {
            continue;
        }
        let (create, destroy) = if make { (vec![instance], vec![]) } else { (vec![], vec![instance]) };
        let plan = Plan { changes: vec![Change { gpu: step.gpu, mode: None, keep: Vec::new(), destroy, create }] };
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
    dra.database.write(move |c| repo::prepared(c, &uid, &text)).await.map_err(NodeError::Store)
}
