//! Plans and applies the change from the current MIG layout to the desired one. Instances that both layouts contain are kept.

use std::collections::BTreeMap;

use serde::Serialize;

use super::config::DeviceRule;
use super::geometry::{Geometry, Instance};
use super::solve::{Placed, Used, explain, find_profile, place};
use crate::GpuError;
use crate::nvml::{Device, GpuInstance, Nvml, NvmlError, codes};

/// The MIG layout of a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Index of the GPU.
    pub gpu: u32,
    /// PCI device id and vendor id in one number, such as `0x233010DE`, as in mig-parted's files.
    pub pci_id: u32,
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
    for gpu in 0..nvml.count()? {
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
                _ => Geometry::for_product(&device.name()?, mib).unwrap_or(Geometry {
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

/// A label for each GPU and the instances on it, for drawing.
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

/// `desired` minus `kept`; `None` if `kept` has an instance that is not desired.
fn missing(desired: &BTreeMap<String, u32>, kept: &[Instance]) -> Option<BTreeMap<String, u32>> {
    let mut missing = desired.clone();
    for (profile, n) in count(kept) {
        let remaining = missing.get_mut(&profile)?;
        *remaining = remaining.checked_sub(n)?;
    }
    missing.retain(|_, n| *n > 0);
    Some(missing)
}

/// The change of one GPU that keeps as many instances as possible.
fn change(layout: &Layout, enabled: bool, desired: &BTreeMap<String, u32>) -> Result<Change, GpuError> {
    let geometry = &layout.geometry;
    let mode = (layout.enabled != enabled).then_some(enabled);
    for profile in desired.keys() {
        find_profile(geometry, profile)?;
    }
    let current = &layout.instances;
    // Try to keep every subset of the current instances, largest first. A card has at most 7 instances, so at most 128 subsets.
    let mut subsets: Vec<u32> = (0..1u32 << current.len()).collect();
    subsets.sort_by_key(|bits| std::cmp::Reverse(bits.count_ones()));
    for bits in subsets {
        let (keep, destroy): (Vec<_>, Vec<_>) =
            current.iter().cloned().enumerate().partition(|(i, _)| bits >> i & 1 == 1);
        let keep: Vec<Instance> = keep.into_iter().map(|(_, i)| i).collect();
        let Some(missing) = missing(desired, &keep) else { continue };
        if let Placed::Yes(mut new) = place(geometry, &[Used::from_instances(&keep, geometry)?], &missing)? {
            let destroy = destroy.into_iter().map(|(_, i)| i).collect();
            return Ok(Change { gpu: layout.gpu, mode, keep, destroy, create: new.swap_remove(0) });
        }
    }
    Err(GpuError::Impossible(format!("GPU {}: {}", layout.gpu, explain(geometry, &[Used::default()], desired)?)))
}

/// The desired state of the GPUs.
pub enum Desired<'a> {
    /// mig-parted rules; the first matching rule applies to a GPU.
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
            for layout in layouts {
                if let Some(rule) = rules.iter().find(|r| r.covers(layout.gpu, layout.pci_id)) {
                    changes.push(change(layout, rule.enabled, &rule.instances)?);
                }
            }
        }
        Desired::Together(desired, gpus) => {
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

/// Distributes instances over GPUs: first around the current instances that can be kept, otherwise from scratch.
fn together(layouts: &[&Layout], desired: &BTreeMap<String, u32>) -> Result<Vec<Change>, GpuError> {
    let geometry = &layouts[0].geometry;
    for profile in desired.keys() {
        find_profile(geometry, profile)?;
    }
    let mut remaining = desired.clone();
    let mut kept: Vec<Vec<Instance>> = Vec::new();
    for layout in layouts {
        let mut keep = Vec::new();
        for instance in &layout.instances {
            if let Some(n) = remaining.get_mut(&instance.profile).filter(|n| **n > 0) {
                *n -= 1;
                keep.push(instance.clone());
            }
        }
        kept.push(keep);
    }
    remaining.retain(|_, n| *n > 0);
    let used: Vec<Used> = kept.iter().map(|k| Used::from_instances(k, geometry)).collect::<Result<_, _>>()?;
    let targets: Vec<BTreeMap<String, u32>> = match place(geometry, &used, &remaining)? {
        Placed::Yes(new) => {
            kept.iter().zip(new).map(|(k, n)| count(&k.iter().cloned().chain(n).collect::<Vec<_>>())).collect()
        }
        Placed::No | Placed::Unknown => {
            let empty = vec![Used::default(); layouts.len()];
            match place(geometry, &empty, desired)? {
                Placed::Yes(new) => new.iter().map(|n| count(n)).collect(),
                Placed::No => {
                    return Err(GpuError::Impossible(format!(
                        "{} cannot be placed on {} GPUs of {}: {}",
                        super::show(desired),
                        layouts.len(),
                        geometry.name,
                        explain(geometry, &empty, desired)?
                    )));
                }
                Placed::Unknown => {
                    return Err(GpuError::Impossible(
                        "no placement was found within the search limit; plan fewer GPUs at a time".into(),
                    ));
                }
            }
        }
    };
    layouts.iter().zip(&targets).map(|(layout, target)| change(layout, true, target)).collect()
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

fn profile_id(layout: &Layout, device: &Device<'_>, name: &str) -> Result<(u32, u32), NvmlError> {
    // Once MIG is enabled, the profile ids reported by the card take precedence over those of the layout.
    let live = Geometry::from_device(device).ok();
    let profile = live.as_ref().and_then(|g| g.profile(name)).or_else(|| layout.geometry.profile(name));
    profile.map(|p| (p.id, p.compute_kind())).ok_or(NvmlError { call: "MIG profile", code: codes::NOT_FOUND })
}

fn create(device: &Device<'_>, layout: &Layout, instance: &Instance) -> Result<(), NvmlError> {
    let (profile, compute_kind) = profile_id(layout, device, &instance.profile)?;
    let created = device.create_gpu_instance(profile, instance.at)?;
    let filled = created.compute_profile(compute_kind).and_then(|p| created.create_compute_instance(p)).map(drop);
    if let Err(error) = filled {
        created.destroy()?;
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
        for compute_instance in found.compute_instances(compute)? {
            compute_instance.destroy()?;
        }
    }
    found.destroy()
}

/// Writes the layouts as a mig-parted configuration under the name `name`.
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
