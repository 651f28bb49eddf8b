//! From the layout that is there to the one that is wanted, keeping every instance that both have.

use std::collections::BTreeMap;

use serde::Serialize;

use super::config::DeviceRule;
use super::geometry::{Geometry, Instance};
use super::solve::{Placed, Used, explain, known, place};
use crate::GpuError;
use crate::nvml::{Device, GpuInstance, Nvml, NvmlError, codes};

/// What a GPU's MIG looks like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Index of the GPU.
    pub gpu: u32,
    /// Device id and vendor id as mig-parted writes them: `0x233010DE`.
    pub pci_id: u32,
    /// Whether MIG is on.
    pub enabled: bool,
    /// Its instances by place.
    pub instances: Vec<Instance>,
    /// What the card offers.
    #[serde(skip)]
    pub geometry: Geometry,
    /// Processes on the GPU: pid and the id of its GPU instance.
    #[serde(skip)]
    pub processes: Vec<(u32, Option<u32>)>,
    /// Ids of the instances, in their order.
    #[serde(skip)]
    pub ids: Vec<u32>,
}

/// What happens to one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Index of the GPU.
    pub gpu: u32,
    /// MIG is turned on (true) or off (false).
    pub mode: Option<bool>,
    /// Instances that stay as they are.
    pub keep: Vec<Instance>,
    /// Instances that go.
    pub destroy: Vec<Instance>,
    /// Instances that come.
    pub create: Vec<Instance>,
}

/// What happens to all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// One for each GPU that was asked for.
    pub changes: Vec<Change>,
}

impl Plan {
    /// Whether everything is as wanted.
    pub fn is_empty(&self) -> bool {
        self.changes.iter().all(|c| c.mode.is_none() && c.destroy.is_empty() && c.create.is_empty())
    }
}

/// What the GPUs look like now; cards without MIG, and those that fell off the bus, are left out.
///
/// # Errors
/// NVML's.
pub fn layout(nvml: &Nvml) -> Result<Vec<Layout>, GpuError> {
    let mut layouts = Vec::new();
    for gpu in 0..nvml.count()? {
        let device = match nvml.device(gpu) {
            Ok(device) => device,
            Err(e) if e.code == codes::GPU_IS_LOST => continue,
            Err(e) => return Err(e.into()),
        };
        let enabled = match device.mig_mode() {
            Ok((now, _)) => now,
            Err(e) if e.code == codes::NOT_SUPPORTED => continue,
            Err(e) => return Err(e.into()),
        };
        let geometry = if enabled {
            Geometry::of_device(&device)?
        } else {
            // Cards answer about profiles only while MIG is on; the table serves until then.
            let mib = device.memory()?.total >> 20;
            match Geometry::of_device(&device) {
                Ok(geometry) if !geometry.profiles.is_empty() => geometry,
                _ => Geometry::of_product(&device.name()?, mib).unwrap_or(Geometry {
                    name: device.name()?,
                    compute: 0,
                    memory: 0,
                    profiles: Vec::new(),
                }),
            }
        };
        let mut found = Vec::new();
        if enabled {
            for profile in &geometry.profiles {
                for instance in device.gpu_instances(profile.id)? {
                    let (id, _, at) = instance.info()?;
                    found.push((Instance { profile: profile.name.clone(), at }, id));
                }
            }
            found.sort_by_key(|(i, _)| i.at);
        }
        let (instances, ids) = found.into_iter().unzip();
        let processes = device.processes()?.into_iter().map(|p| (p.pid, p.gpu_instance)).collect();
        layouts.push(Layout { gpu, pci_id: device.pci_id()?, enabled, instances, geometry, processes, ids });
    }
    Ok(layouts)
}

/// A label for each GPU and what lies on it, for pictures.
pub fn maps(layouts: &[Layout]) -> Vec<(String, Vec<Instance>)> {
    layouts.iter().map(|l| (format!("GPU {}", l.gpu), l.instances.clone())).collect()
}

fn count(instances: &[Instance]) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for i in instances {
        *counts.entry(i.profile.clone()).or_insert(0) += 1;
    }
    counts
}

/// What of `wanted` is not among `kept`; `None` when more is kept than wanted.
fn rest(wanted: &BTreeMap<String, u32>, kept: &[Instance]) -> Option<BTreeMap<String, u32>> {
    let mut rest = wanted.clone();
    for (profile, n) in count(kept) {
        let left = rest.get_mut(&profile)?;
        *left = left.checked_sub(n)?;
    }
    rest.retain(|_, n| *n > 0);
    Some(rest)
}

/// The change of one GPU that keeps the most instances.
fn change(layout: &Layout, enabled: bool, wanted: &BTreeMap<String, u32>) -> Result<Change, GpuError> {
    let geometry = &layout.geometry;
    let mode = (layout.enabled != enabled).then_some(enabled);
    for profile in wanted.keys() {
        known(geometry, profile)?;
    }
    let now = &layout.instances;
    // Subsets of what is there, the largest first; a card holds at most seven, so there are at most 128.
    let mut subsets: Vec<u32> = (0..1u32 << now.len()).collect();
    subsets.sort_by_key(|bits| std::cmp::Reverse(bits.count_ones()));
    for bits in subsets {
        let (keep, destroy): (Vec<_>, Vec<_>) = now.iter().cloned().enumerate().partition(|(i, _)| bits >> i & 1 == 1);
        let keep: Vec<Instance> = keep.into_iter().map(|(_, i)| i).collect();
        let Some(missing) = rest(wanted, &keep) else { continue };
        if let Placed::Yes(mut new) = place(geometry, &[Used::of(&keep, geometry)?], &missing)? {
            let destroy = destroy.into_iter().map(|(_, i)| i).collect();
            return Ok(Change { gpu: layout.gpu, mode, keep, destroy, create: new.swap_remove(0) });
        }
    }
    Err(GpuError::Impossible(format!("GPU {}: {}", layout.gpu, explain(geometry, &[Used::default()], wanted)?)))
}

/// What is wanted of the GPUs.
pub enum Wanted<'a> {
    /// mig-parted's rules, for each GPU.
    Rules(&'a [DeviceRule]),
    /// So many instances over all of these GPUs together.
    Together(&'a BTreeMap<String, u32>, &'a [u32]),
}

/// Plans the changes, keeping as many instances as can be kept.
///
/// # Errors
/// [`GpuError::Impossible`] with the reason and the nearest possible; [`GpuError::Invalid`] for unknown profiles.
pub fn plan(layouts: &[Layout], wanted: &Wanted<'_>) -> Result<Plan, GpuError> {
    let mut changes = Vec::new();
    match wanted {
        Wanted::Rules(rules) => {
            for layout in layouts {
                if let Some(rule) = rules.iter().find(|r| r.covers(layout.gpu, layout.pci_id)) {
                    changes.push(change(layout, rule.enabled, &rule.instances)?);
                }
            }
        }
        Wanted::Together(wanted, gpus) => {
            let chosen: Vec<&Layout> = layouts.iter().filter(|l| gpus.contains(&l.gpu)).collect();
            let Some(first) = chosen.first() else {
                return Err(GpuError::Impossible("none of these GPUs can do MIG".into()));
            };
            if let Some(other) = chosen.iter().find(|l| l.geometry.profiles != first.geometry.profiles) {
                return Err(GpuError::Invalid(format!(
                    "GPU {} and GPU {} are of different kinds; plan for each kind with --gpus",
                    first.gpu, other.gpu
                )));
            }
            changes = together(&chosen, wanted)?;
        }
    }
    if changes.is_empty() {
        return Err(GpuError::Impossible("no GPU that can do MIG is named".into()));
    }
    Ok(Plan { changes })
}

/// Shares instances out over GPUs: first around what can stay, else from nothing.
fn together(layouts: &[&Layout], wanted: &BTreeMap<String, u32>) -> Result<Vec<Change>, GpuError> {
    let geometry = &layouts[0].geometry;
    for profile in wanted.keys() {
        known(geometry, profile)?;
    }
    let mut left = wanted.clone();
    let mut kept: Vec<Vec<Instance>> = Vec::new();
    for layout in layouts {
        let mut keep = Vec::new();
        for instance in &layout.instances {
            if let Some(n) = left.get_mut(&instance.profile).filter(|n| **n > 0) {
                *n -= 1;
                keep.push(instance.clone());
            }
        }
        kept.push(keep);
    }
    left.retain(|_, n| *n > 0);
    let used: Vec<Used> = kept.iter().map(|k| Used::of(k, geometry)).collect::<Result<_, _>>()?;
    let targets: Vec<BTreeMap<String, u32>> = match place(geometry, &used, &left)? {
        Placed::Yes(new) => {
            kept.iter().zip(new).map(|(k, n)| count(&k.iter().cloned().chain(n).collect::<Vec<_>>())).collect()
        }
        Placed::No | Placed::Unknown => {
            let empty = vec![Used::default(); layouts.len()];
            match place(geometry, &empty, wanted)? {
                Placed::Yes(new) => new.iter().map(|n| count(n)).collect(),
                Placed::No => {
                    return Err(GpuError::Impossible(format!(
                        "{} cannot be placed on {} GPUs of {}: {}",
                        super::show(wanted),
                        layouts.len(),
                        geometry.name,
                        explain(geometry, &empty, wanted)?
                    )));
                }
                Placed::Unknown => {
                    return Err(GpuError::Impossible(
                        "no placement was found in the steps allowed; plan fewer GPUs at a time".into(),
                    ));
                }
            }
        }
    };
    layouts.iter().zip(&targets).map(|(layout, target)| change(layout, true, target)).collect()
}

/// Makes the changes. When one fails, the GPU is brought back to what it was.
///
/// # Errors
/// [`GpuError::InUse`] before anything is touched, when a process is inside an instance that must go;
/// [`GpuError::Apply`] with what failed and what state that left.
pub fn apply(nvml: &Nvml, layouts: &[Layout], plan: &Plan) -> Result<(), GpuError> {
    for change in &plan.changes {
        let Some(layout) = layouts.iter().find(|l| l.gpu == change.gpu) else { continue };
        let mut in_the_way: Vec<String> = Vec::new();
        for (pid, instance) in &layout.processes {
            let goes = match instance {
                Some(id) => {
                    layout.ids.iter().zip(&layout.instances).any(|(i, inst)| i == id && change.destroy.contains(inst))
                }
                None => change.mode.is_some(),
            };
            if goes {
                in_the_way.push(crate::process::about(*pid));
            }
        }
        if !in_the_way.is_empty() {
            return Err(GpuError::InUse(format!("GPU {} is in use by {}", change.gpu, in_the_way.join(", "))));
        }
    }
    for change in &plan.changes {
        let Some(layout) = layouts.iter().find(|l| l.gpu == change.gpu) else { continue };
        apply_one(&nvml.device(change.gpu)?, layout, change)?;
    }
    Ok(())
}

enum Done<'c> {
    Mode(bool),
    Destroyed(&'c Instance),
    Created(&'c Instance),
}

fn apply_one(device: &Device<'_>, layout: &Layout, change: &Change) -> Result<(), GpuError> {
    let mut done: Vec<Done<'_>> = Vec::new();
    let outcome = steps(device, layout, change, &mut done);
    let Err((what, error)) = outcome else { return Ok(()) };
    let mut lost = Vec::new();
    for step in done.iter().rev() {
        let undone = match step {
            Done::Mode(on) => device.set_mig_mode(!on).map(drop),
            Done::Destroyed(instance) => create(device, layout, instance),
            Done::Created(instance) => destroy(device, layout, instance),
        };
        if let Err(e) = undone {
            lost.push(e.to_string());
        }
    }
    let state = if lost.is_empty() {
        format!("GPU {} is as it was before", change.gpu)
    } else {
        format!("GPU {} could not be brought back whole ({}); see slipway gpu mig ls", change.gpu, lost.join("; "))
    };
    Err(GpuError::Apply { reason: format!("{what}: {error}"), state })
}

fn steps<'c>(
    device: &Device<'_>,
    layout: &Layout,
    change: &'c Change,
    done: &mut Vec<Done<'c>>,
) -> Result<(), (String, NvmlError)> {
    for instance in &change.destroy {
        destroy(device, layout, instance)
            .map_err(|e| (format!("removing {} at {}", instance.profile, instance.at.start), e))?;
        done.push(Done::Destroyed(instance));
    }
    if let Some(on) = change.mode {
        let what = || format!("turning MIG {}", if on { "on" } else { "off" });
        let activation = device.set_mig_mode(on).map_err(|e| (what(), e))?;
        done.push(Done::Mode(on));
        if activation != 0 {
            return Err((what(), NvmlError { call: "nvmlDeviceSetMigMode", code: activation }));
        }
    }
    for instance in &change.create {
        create(device, layout, instance)
            .map_err(|e| (format!("making {} at {}", instance.profile, instance.at.start), e))?;
        done.push(Done::Created(instance));
    }
    Ok(())
}

fn profile_id(layout: &Layout, device: &Device<'_>, name: &str) -> Result<(u32, u32), NvmlError> {
    // After MIG was turned on the card itself knows best.
    let live = Geometry::of_device(device).ok();
    let found = live.as_ref().and_then(|g| g.profile(name)).or_else(|| layout.geometry.profile(name));
    found.map(|p| (p.id, p.compute_kind())).ok_or(NvmlError { call: "MIG profile", code: codes::NOT_FOUND })
}

fn create(device: &Device<'_>, layout: &Layout, instance: &Instance) -> Result<(), NvmlError> {
    let (profile, compute_kind) = profile_id(layout, device, &instance.profile)?;
    let made = device.create_gpu_instance(profile, instance.at)?;
    let filled = made.compute_profile(compute_kind).and_then(|p| made.create_compute_instance(p)).map(drop);
    if let Err(error) = filled {
        made.destroy()?;
        return Err(error);
    }
    Ok(())
}

fn find<'d>(device: &Device<'d>, profile: u32, instance: &Instance) -> Result<GpuInstance<'d>, NvmlError> {
    for found in device.gpu_instances(profile)? {
        if found.info()?.2 == instance.at {
            return Ok(found);
        }
    }
    Err(NvmlError { call: "nvmlDeviceGetGpuInstances", code: codes::NOT_FOUND })
}

fn destroy(device: &Device<'_>, layout: &Layout, instance: &Instance) -> Result<(), NvmlError> {
    let (profile, _) = profile_id(layout, device, &instance.profile)?;
    let found = find(device, profile, instance)?;
    for kind in 0..8 {
        let Ok(compute) = found.compute_profile(kind) else { continue };
        for one in found.compute_instances(compute)? {
            one.destroy()?;
        }
    }
    found.destroy()
}

/// The layouts as a mig-parted configuration named `name`.
pub fn export(layouts: &[Layout], name: &str) -> super::Config {
    let rule = |l: &Layout| DeviceRule {
        filter: None,
        devices: super::config::Devices::Indices(vec![l.gpu]),
        enabled: l.enabled,
        instances: count(&l.instances),
    };
    let configs = BTreeMap::from([(name.to_owned(), layouts.iter().map(rule).collect())]);
    super::Config { version: "v1".into(), configs }
}
