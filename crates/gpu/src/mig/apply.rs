//! Plans and applies the change from the current MIG layout to the desired one. Instances that both layouts contain are kept.

use std::collections::BTreeMap;

use serde::Serialize;

use super::config::{DeviceRule, Devices};
use super::geometry::{Geometry, Instance, compute_kind};
use super::shape::{self, Shapes};
use super::solve::{Placed, Used, explain, place};
use crate::GpuError;
use crate::nvml::{Device, GpuInstance, Nvml, NvmlError, codes};
use crate::selector;

/// NVML's kinds of compute instance profiles (`NVML_COMPUTE_INSTANCE_PROFILE_*`).
const COMPUTE_KINDS: std::ops::Range<u32> = 0..9;

/// The MIG layout of a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Index of the GPU.
    pub gpu: u32,
    /// PCI device id and vendor id in one number, such as `0x233010DE`, as in mig-parted's files.
    pub pci_id: u32,
    /// The same of the subsystem (the board's vendor).
    #[serde(skip)]
    pub subsystem_id: u32,
    /// Number of GPUs of the machine, with those that cannot do MIG.
    #[serde(skip)]
    pub machine_gpus: u32,
    /// Whether MIG is enabled.
    pub enabled: bool,
    /// The GPU instances, ordered by position.
    pub instances: Vec<Instance>,
    /// The instances that the card supports.
    #[serde(skip)]
    pub geometry: Geometry,
    /// Processes on the GPU: pid, and id of the GPU instance they run in.
    #[serde(skip)]
    pub processes: Vec<(u32, Option<u32>)>,
    /// Ids of `instances`, in the same order.
    #[serde(skip)]
    pub ids: Vec<u32>,
}

/// The planned changes of one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Index of the GPU.
    pub gpu: u32,
    /// Whether MIG is enabled (true), disabled (false) or left as it is (`None`).
    pub mode: Option<bool>,
    /// Instances that are kept.
    pub keep: Vec<Instance>,
    /// Instances that are destroyed.
    pub destroy: Vec<Instance>,
    /// Instances that are created.
    pub create: Vec<Instance>,
}

/// The planned changes of all GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// One entry per selected GPU.
    pub changes: Vec<Change>,
}

impl Plan {
    /// Whether all GPUs already have the desired layout.
    pub fn is_empty(&self) -> bool {
        self.changes.iter().all(|c| c.mode.is_none() && c.destroy.is_empty() && c.create.is_empty())
    }
}

/// Reads the current layouts. Cards without MIG and cards that fell off the bus are skipped.
///
/// # Errors
/// [`GpuError::Nvml`] if an NVML call fails.
pub fn layout(nvml: &Nvml) -> Result<Vec<Layout>, GpuError> {
    let mut layouts = Vec::new();
    let machine_gpus = nvml.count()?;
    for gpu in 0..machine_gpus {
        let device = match nvml.device(gpu) {
            Ok(device) => device,
            Err(e) if e.code == codes::GPU_IS_LOST => continue,
            Err(e) => return Err(e.into()),
        };
        let enabled = match device.mig_mode() {
            Ok((enabled, _)) => enabled,
            Err(e) if e.code == codes::NOT_SUPPORTED => continue,
            Err(e) => return Err(e.into()),
        };
        let geometry = if enabled {
            Geometry::from_device(&device)?
        } else {
            // Some cards report profiles only while MIG is enabled; until then the built-in table is used.
            let mib = device.memory()?.total >> 20;
            match Geometry::from_device(&device) {
                Ok(geometry) if !geometry.profiles.is_empty() => geometry,
                _ => Geometry::for_product(&device.name()?, mib).unwrap_or(Geometry::new(
                    device.name()?,
                    0,
                    0,
                    Vec::new(),
                )),
            }
        };
        let mut found = Vec::new();
        if enabled {
            for profile in &geometry.profiles {
                for instance in device.gpu_instances(profile.id)? {
                    let (id, _, at) = instance.info()?;
                    let compute = compute_slices(&instance, profile.compute)?;
                    found.push((Instance { profile: profile.name.clone(), at, compute }, id));
                }
            }
            found.sort_by_key(|(i, _)| i.at);
        }
        let (instances, ids) = found.into_iter().unzip();
        let processes = device.processes()?.into_iter().map(|p| (p.pid, p.gpu_instance)).collect();
        let (pci_id, subsystem_id) = device.pci_ids()?;
        let layout = Layout { gpu, pci_id, subsystem_id, machine_gpus, enabled, instances, geometry, processes, ids };
        layouts.push(layout);
    }
    Ok(layouts)
}

/// The slices of each compute instance of a GPU instance with `slices`, as in [`Instance::compute`].
fn compute_slices(instance: &GpuInstance<'_>, slices: u32) -> Result<Vec<u32>, NvmlError> {
    let mut found = Vec::new();
    for kind in COMPUTE_KINDS {
        let Ok((profile, size)) = instance.compute_profile(kind) else { continue };
        found.extend(instance.compute_instances(profile)?.iter().map(|_| size));
    }
    found.sort_unstable_by_key(|c| std::cmp::Reverse(*c));
    Ok(match found.as_slice() {
        [] => vec![0],
        [one] if *one == slices => Vec::new(),
        _ => found,
    })
}

/// A label for each GPU and the instances on it, for drawing.
pub fn maps(layouts: &[Layout]) -> Vec<(String, Vec<Instance>)> {
    layouts.iter().map(|l| (format!("GPU {}", l.gpu), l.instances.clone())).collect()
}

fn count(instances: &[Instance]) -> Shapes {
    let mut counts = Shapes::new();
    for i in instances {
        *counts.entry(i.shape()).or_insert(0) += 1;
    }
    counts
}

/// `desired` minus `kept`; `None` if `kept` has an instance that is not desired.
fn missing(desired: &Shapes, kept: &[Instance]) -> Option<Shapes> {
    let mut missing = desired.clone();
    for (shape, n) in count(kept) {
        let remaining = missing.get_mut(&shape)?;
        *remaining = remaining.checked_sub(n)?;
    }
    missing.retain(|_, n| *n > 0);
    Some(missing)
}

/// The change of one GPU that keeps as many instances as possible.
fn change(layout: &Layout, enabled: bool, desired: &Shapes) -> Result<Change, GpuError> {
    let geometry = &layout.geometry;
    let mode = (layout.enabled != enabled).then_some(enabled);
    let current = &layout.instances;
    // Try to keep every subset of the current instances, largest first. A card has at most 7 instances, so at most 128 subsets.
    let mut subsets: Vec<u32> = (0..1u32 << current.len()).collect();
    subsets.sort_by_key(|bits| std::cmp::Reverse(bits.count_ones()));
    for bits in subsets {
        let (keep, destroy): (Vec<_>, Vec<_>) =
            current.iter().cloned().enumerate().partition(|(i, _)| bits >> i & 1 == 1);
        let keep: Vec<Instance> = keep.into_iter().map(|(_, i)| i).collect();
        let Some(mut missing) = missing(desired, &keep) else { continue };
        let used = [Used::from_instances(&keep, geometry)?];
        if let Placed::Yes(mut new) = place(geometry, &used, &shape::profiles(&missing))? {
            let destroy = destroy.into_iter().map(|(_, i)| i).collect();
            let mut create = new.swap_remove(0);
            shape::fill(&mut create, &mut missing);
            return Ok(Change { gpu: layout.gpu, mode, keep, destroy, create });
        }
    }
    let reason = explain(geometry, &[Used::default()], &shape::profiles(desired))?;
    Err(GpuError::Impossible(format!("GPU {}: {reason}", layout.gpu)))
}

/// The desired state of the GPUs.
pub enum Desired<'a> {
    /// mig-parted rules; the last rule that covers a GPU applies to it, as mig-parted walks them in order.
    Rules(&'a [DeviceRule]),
    /// Instances by profile and count, distributed over the GPUs with these indices.
    Together(&'a BTreeMap<String, u32>, &'a [u32]),
}

/// Plans the changes, keeping as many instances as possible.
///
/// # Errors
/// [`GpuError::Impossible`] with the reason and the closest possible layout; [`GpuError::Invalid`] for unknown profiles.
pub fn plan(layouts: &[Layout], desired: &Desired<'_>) -> Result<Plan, GpuError> {
    let mut changes = Vec::new();
    match desired {
        Desired::Rules(rules) => {
            for rule in *rules {
                if let Devices::Indices(indices) = &rule.devices {
                    // A machine without MIG satisfies a rule that only disables it.
                    exist(layouts, indices, rule.enabled)?;
                }
            }
            for layout in layouts {
                if let Some(rule) = rules.iter().rfind(|r| r.covers(layout)) {
                    let shapes = shape::shapes(&layout.geometry, rule.devices())?;
                    changes.push(change(layout, rule.enabled, &shapes)?);
                }
            }
        }
        Desired::Together(desired, gpus) => {
            exist(layouts, gpus, true)?;
            let selected: Vec<&Layout> = layouts.iter().filter(|l| gpus.contains(&l.gpu)).collect();
            let Some(first) = selected.first() else {
                return Err(GpuError::Impossible("none of the selected GPUs supports MIG".into()));
            };
            if let Some(other) = selected.iter().find(|l| l.geometry.profiles != first.geometry.profiles) {
                return Err(GpuError::Invalid(format!(
                    "GPU {} and GPU {} are different models; plan each model separately with --gpus",
                    first.gpu, other.gpu
                )));
            }
            changes = together(&selected, desired)?;
        }
    }
    if changes.is_empty() {
        return Err(GpuError::Impossible("no GPU with MIG support is selected".into()));
    }
    Ok(Plan { changes })
}

/// Checks that GPUs exist and, if `mig` is true, that they can do MIG.
fn exist(layouts: &[Layout], gpus: &[u32], mig: bool) -> Result<(), GpuError> {
    // Without any GPU that can do MIG, the caller reports just that.
    let Some(count) = layouts.first().map(|l| l.machine_gpus) else { return Ok(()) };
    if let Some(gpu) = gpus.iter().find(|g| **g >= count) {
        return Err(GpuError::Invalid(selector::missing(*gpu, count)));
    }
    match gpus.iter().find(|g| mig && !layouts.iter().any(|l| l.gpu == **g)) {
        Some(gpu) => Err(GpuError::Invalid(format!("GPU {gpu} does not support MIG, or does not respond"))),
        None => Ok(()),
    }
}

/// Distributes instances over GPUs: first around the current instances that can be kept, otherwise from scratch.
fn together(layouts: &[&Layout], requested: &BTreeMap<String, u32>) -> Result<Vec<Change>, GpuError> {
    let geometry = &layouts[0].geometry;
    let desired = shape::shapes(geometry, requested)?;
    let mut remaining = desired.clone();
    let mut kept: Vec<Vec<Instance>> = Vec::new();
    for layout in layouts {
        let mut keep = Vec::new();
        for instance in &layout.instances {
            if let Some(n) = remaining.get_mut(&instance.shape()).filter(|n| **n > 0) {
                *n -= 1;
                keep.push(instance.clone());
            }
        }
        kept.push(keep);
    }
    let used: Vec<Used> = kept.iter().map(|k| Used::from_instances(k, geometry)).collect::<Result<_, _>>()?;
    let empty = vec![Used::default(); layouts.len()];
    let (kept, mut remaining, placed) = match place(geometry, &used, &shape::profiles(&remaining))? {
        Placed::Yes(new) => (kept, remaining, new),
        Placed::No | Placed::Unknown => match place(geometry, &empty, &shape::profiles(&desired))? {
            Placed::Yes(new) => (vec![Vec::new(); layouts.len()], desired, new),
            Placed::No => {
                return Err(GpuError::Impossible(format!(
                    "{} cannot be placed on {} GPUs of {}: {}",
                    super::show(requested),
                    layouts.len(),
                    geometry.name,
                    explain(geometry, &empty, &shape::profiles(&desired))?
                )));
            }
            Placed::Unknown => {
                return Err(GpuError::Impossible(
                    "no placement was found within the search limit; plan fewer GPUs at a time".into(),
                ));
            }
        },
    };
    let mut changes = Vec::new();
    for ((layout, keep), mut new) in layouts.iter().zip(kept).zip(placed) {
        shape::fill(&mut new, &mut remaining);
        let target: Vec<Instance> = keep.into_iter().chain(new).collect();
        changes.push(change(layout, true, &count(&target))?);
    }
    Ok(changes)
}

/// Applies a plan. If a step fails, the changes of that GPU are rolled back.
///
/// # Errors
/// [`GpuError::InUse`] before the first change if a process runs in an instance that would be destroyed;
/// [`GpuError::Apply`] with the failed step and the resulting state.
pub fn apply(nvml: &Nvml, layouts: &[Layout], plan: &Plan) -> Result<(), GpuError> {
    for change in &plan.changes {
        let Some(layout) = layouts.iter().find(|l| l.gpu == change.gpu) else { continue };
        let mut blocking: Vec<String> = Vec::new();
        for (pid, instance) in &layout.processes {
            let affected = match instance {
                Some(id) => {
                    layout.ids.iter().zip(&layout.instances).any(|(i, inst)| i == id && change.destroy.contains(inst))
                }
                None => change.mode.is_some(),
            };
            if affected {
                blocking.push(crate::process::describe(*pid));
            }
        }
        if !blocking.is_empty() {
            return Err(GpuError::InUse(format!("GPU {} is in use by {}", change.gpu, blocking.join(", "))));
        }
    }
    for change in &plan.changes {
        let Some(layout) = layouts.iter().find(|l| l.gpu == change.gpu) else { continue };
        apply_one(&nvml.device(change.gpu)?, layout, change)?;
    }
    Ok(())
}

/// A completed step, which a rollback reverts.
enum Done<'c> {
    Mode(bool),
    Destroyed(&'c Instance),
    Created(&'c Instance),
}

fn apply_one(device: &Device<'_>, layout: &Layout, change: &Change) -> Result<(), GpuError> {
    let mut done: Vec<Done<'_>> = Vec::new();
    let outcome = steps(device, layout, change, &mut done);
    let Err((failed_step, error)) = outcome else { return Ok(()) };
    let mut rollback_errors = Vec::new();
    for step in done.iter().rev() {
        let reverted = match step {
            Done::Mode(on) => device.set_mig_mode(!on).map(drop),
            Done::Destroyed(instance) => create(device, layout, instance),
            Done::Created(instance) => destroy(device, layout, instance),
        };
        if let Err(e) = reverted {
            rollback_errors.push(e.to_string());
        }
    }
    let state = if rollback_errors.is_empty() {
        format!("GPU {} was rolled back to its previous layout", change.gpu)
    } else {
        format!(
            "GPU {} could not be rolled back completely ({}); see slipway gpu mig ls",
            change.gpu,
            rollback_errors.join("; ")
        )
    };
    Err(GpuError::Apply { reason: format!("{failed_step}: {error}"), state })
}

fn steps<'c>(
    device: &Device<'_>,
    layout: &Layout,
    change: &'c Change,
    done: &mut Vec<Done<'c>>,
) -> Result<(), (String, NvmlError)> {
    for instance in &change.destroy {
        destroy(device, layout, instance)
            .map_err(|e| (format!("destroying {} at {}", instance.profile, instance.at.start), e))?;
        done.push(Done::Destroyed(instance));
    }
    if let Some(on) = change.mode {
        let step = || format!("{} MIG", if on { "enabling" } else { "disabling" });
        let activation = device.set_mig_mode(on).map_err(|e| (step(), e))?;
        done.push(Done::Mode(on));
        if activation != 0 {
            return Err((step(), NvmlError { call: "nvmlDeviceSetMigMode", code: activation }));
        }
    }
    for instance in &change.create {
        create(device, layout, instance)
            .map_err(|e| (format!("creating {} at {}", instance.profile, instance.at.start), e))?;
        done.push(Done::Created(instance));
    }
    Ok(())
}

/// Id and compute slices of a profile.
fn profile_id(layout: &Layout, device: &Device<'_>, name: &str) -> Result<(u32, u32), NvmlError> {
    // Once MIG is enabled, the profile ids reported by the card take precedence over those of the layout.
    let live = Geometry::from_device(device).ok();
    let profile = live.as_ref().and_then(|g| g.profile(name)).or_else(|| layout.geometry.profile(name));
    profile.map(|p| (p.id, p.compute)).ok_or(NvmlError { call: "MIG profile", code: codes::NOT_FOUND })
}

fn create(device: &Device<'_>, layout: &Layout, instance: &Instance) -> Result<(), NvmlError> {
    let (profile, slices) = profile_id(layout, device, &instance.profile)?;
    let created = device.create_gpu_instance(profile, instance.at)?;
    let whole = [slices];
    let compute: &[u32] = if instance.compute.is_empty() { &whole } else { &instance.compute };
    let filled = compute.iter().filter(|c| **c > 0).try_for_each(|c| {
        let (profile, _) = created.compute_profile(compute_kind(*c))?;
        created.create_compute_instance(profile).map(drop)
    });
    if let Err(error) = filled {
        destroy_all(created)?;
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
    destroy_all(find(device, profile, instance)?)
}

/// Destroys a GPU instance with its compute instances.
fn destroy_all(instance: GpuInstance<'_>) -> Result<(), NvmlError> {
    for kind in COMPUTE_KINDS {
        let Ok((profile, _)) = instance.compute_profile(kind) else { continue };
        for compute_instance in instance.compute_instances(profile)? {
            compute_instance.destroy()?;
        }
    }
    instance.destroy()
}

/// Writes the layouts as a mig-parted configuration under the name `name`.
pub fn export(layouts: &[Layout], name: &str) -> super::Config {
    let rule = |l: &Layout| {
        let mut devices = BTreeMap::new();
        for name in l.instances.iter().flat_map(Instance::devices) {
            *devices.entry(name).or_insert(0) += 1;
        }
        DeviceRule::new(Devices::Indices(vec![l.gpu]), l.enabled, devices)
    };
    let configs = BTreeMap::from([(name.to_owned(), layouts.iter().map(rule).collect())]);
    super::Config { version: "v1".into(), configs }
}
