//! Builds the response to `Allocate`: environment, mounts, device nodes and CDI devices of a container.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use slipway_gpu::container::cdi::capability_nodes;

use crate::config::{Config, IdStrategy, ListStrategy, SharingStrategy};
use crate::driver::Machine;
use crate::kubelet::device_plugin::{CdiDevice, ContainerAllocateResponse, DeviceSpec, Mount};
use crate::resources::{Offer, Unit, device};
use crate::{cdi, mps};

/// The folder in which NVIDIA's container runtime looks for devices that were allocated as volume mounts.
const MOUNT_FOLDER: &str = "/var/run/nvidia-container-devices";
/// Device nodes that every GPU program opens.
const CONTROL_NODES: [&str; 4] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"];

/// The inputs of a response.
pub(super) struct Context<'a> {
    pub(super) offer: &'a Offer,
    pub(super) machine: &'a Machine,
    pub(super) config: &'a Config,
    pub(super) mps: &'a mps::Root,
    pub(super) roots: &'a Roots,
}

/// The root folder of the driver's files.
#[derive(Debug, Clone)]
pub struct Roots {
    /// The folder as this process sees it.
    pub local: PathBuf,
    /// The folder on the host.
    pub host: PathBuf,
}

/// The response for one container, or the error text, worded as in NVIDIA's device plugin.
pub(super) fn allocate(context: &Context<'_>, ids: &[String]) -> Result<ContainerAllocateResponse, String> {
    let Context { offer, machine, config, mps, roots } = *context;
    let rejection = |why: String| format!("invalid allocation request for {:?}: {why}", offer.resource);
    if offer.shared.is_some_and(|s| s.one_only) && ids.len() > 1 {
        return Err(rejection(format!(
            "invalid request: maximum request size for shared resources is 1; found {}",
            ids.len()
        )));
    }
    let mut units: Vec<&Unit> = Vec::new();
    for id in ids {
        let unit = offer.unit(id).ok_or_else(|| rejection(format!("invalid request: unknown device: {id}")))?;
        if let Some(fault) = &unit.fault {
            return Err(rejection(format!("{} cannot be used: {fault}", device(id))));
        }
        if !units.contains(&unit) {
            units.push(unit);
        }
    }
    let cdi_available = machine.cdi.is_none();
    let strategies = config
        .list
        .clone()
        .unwrap_or_else(|| vec![if cdi_available { ListStrategy::CdiCri } else { ListStrategy::Envvar }]);
    if let Some(why) = &machine.cdi
        && strategies.iter().all(|s| matches!(s, ListStrategy::CdiCri | ListStrategy::CdiAnnotations))
    {
        return Err(format!("the CDI specification is missing: {why}"));
    }
    let names: Vec<String> = units
        .iter()
        .map(|u| match config.ids {
            IdStrategy::Uuid => u.uuid.clone(),
            IdStrategy::Index => u.index.clone(),
        })
        .collect();
    let mut response = ContainerAllocateResponse::default();
    for strategy in &strategies {
        match strategy {
            ListStrategy::Envvar => {
                response.envs.insert("NVIDIA_VISIBLE_DEVICES".into(), names.join(","));
            }
            ListStrategy::VolumeMounts => {
                response.envs.insert("NVIDIA_VISIBLE_DEVICES".into(), MOUNT_FOLDER.into());
                response.mounts.extend(names.iter().map(|name| Mount {
                    container_path: format!("{MOUNT_FOLDER}/{name}"),
                    host_path: "/dev/null".into(),
                    read_only: false,
                }));
            }
            ListStrategy::CdiAnnotations => {
                // The key must be unique in a pod. A device is never allocated twice, so its name is unique.
                let key = ids.first().map_or("", |id| device(id)).replace([':', '/'], "_");
                let devices: Vec<String> = units.iter().map(|u| cdi::name(&u.uuid)).collect();
                response
                    .annotations
                    .insert(format!("{}slipway-device-plugin_{key}", config.annotation_prefix), devices.join(","));
            }
            ListStrategy::CdiCri => {
                response.cdi_devices.extend(units.iter().map(|u| CdiDevice { name: cdi::name(&u.uuid) }));
            }
        }
    }
    if config.device_specs && !response.envs.is_empty() {
        response.devices = device_specs(machine, &units, roots)?;
    }
    if offer.shared.is_some_and(|s| s.strategy == SharingStrategy::Mps) {
        let (envs, mounts) = mps.container(&offer.resource);
        response.envs.extend(envs);
        response.mounts.extend(mounts);
    }
    Ok(response)
}

/// The device nodes of the control devices, the GPUs and their MIG capabilities.
fn device_specs(machine: &Machine, units: &[&Unit], roots: &Roots) -> Result<Vec<DeviceSpec>, String> {
    let mut paths: BTreeSet<String> =
        CONTROL_NODES.iter().filter(|p| Path::new(p).exists()).map(|p| (*p).to_owned()).collect();
    for unit in units {
        let Some(gpu) = machine.inventory.gpus.get(unit.gpu) else { continue };
        let Some(minor) = gpu.minor else { continue };
        paths.insert(format!("/dev/nvidia{minor}"));
        let mig = unit.mig.and_then(|n| gpu.mig.as_ref()?.devices.get(n));
        if let Some(mig) = mig {
            paths.extend(capability_nodes(&roots.local, minor, mig).map_err(|e| e.to_string())?);
        }
    }
    let host = |path: &str| roots.host.join(path.trim_start_matches('/')).display().to_string();
    let spec = |path: String| DeviceSpec { host_path: host(&path), container_path: path, permissions: "rw".into() };
    Ok(paths.into_iter().map(spec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::tests::{gpu, machine};
    use crate::resources::offers;

    fn allocate_ids(config: &str, ids: &[&str]) -> Result<ContainerAllocateResponse, String> {
        let config = Config::parse(&format!("version: v1\n{config}")).unwrap();
        let mut machine = machine(vec![gpu(0, None), gpu(1, None), gpu(2, None)]);
        machine.draining.insert("GPU-2".into());
        let offer = offers(&machine, &config).unwrap().remove(0);
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        let roots = Roots { local: "/".into(), host: "/run/nvidia/driver".into() };
        let mps = mps::Root("/run/nvidia/mps".into());
        allocate(&Context { offer: &offer, machine: &machine, config: &config, mps: &mps, roots: &roots }, &ids)
    }

    #[test]
    fn device_list_strategies_match_upstream() {
        let response = allocate_ids("", &["GPU-1", "GPU-0"]).unwrap();
        let names: Vec<_> = response.cdi_devices.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["slipway.dev/gpu=GPU-1", "slipway.dev/gpu=GPU-0"]);
        let plugin = |more: &str| format!("flags: {{plugin: {{deviceListStrategy: {more}}}}}");
        let response = allocate_ids(&plugin("envvar"), &["GPU-1", "GPU-0"]).unwrap();
        assert_eq!(response.envs["NVIDIA_VISIBLE_DEVICES"], "GPU-1,GPU-0");
        assert!(response.cdi_devices.is_empty());
        let response = allocate_ids(&plugin("envvar, deviceIDStrategy: index"), &["GPU-1"]).unwrap();
        assert_eq!(response.envs["NVIDIA_VISIBLE_DEVICES"], "1");
        let response = allocate_ids(&plugin("volume-mounts"), &["GPU-1"]).unwrap();
        assert_eq!(response.mounts[0].container_path, "/var/run/nvidia-container-devices/GPU-1");
        let response = allocate_ids(&plugin("cdi-annotations"), &["GPU-1"]).unwrap();
        assert_eq!(response.annotations["cdi.k8s.io/slipway-device-plugin_GPU-1"], "slipway.dev/gpu=GPU-1");
    }

    #[test]
    fn replicas_of_a_device_are_allocated_once() {
        let config = "sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}";
        assert_eq!(allocate_ids(config, &["GPU-1::0", "GPU-1::3"]).unwrap().cdi_devices.len(), 1);
        let one_only = config.replace("resources", "failRequestsGreaterThanOne: true, resources");
        assert!(
            allocate_ids(&one_only, &["GPU-1::0", "GPU-1::3"]).unwrap_err().ends_with("shared resources is 1; found 2")
        );
    }

    #[test]
    fn unknown_and_draining_devices_are_rejected() {
        assert!(allocate_ids("", &["GPU-9"]).unwrap_err().contains("unknown device: GPU-9"));
        assert!(allocate_ids("", &["GPU-2"]).unwrap_err().contains("about to change"));
    }
}
