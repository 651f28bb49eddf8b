//! What a container with devices gets: the answer to `Allocate`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use slipway_gpu::container::cdi::capability_nodes;

use crate::config::{Config, IdStrategy, ListStrategy, SharingStrategy};
use crate::driver::Machine;
use crate::kubelet::device_plugin::{CdiDevice, ContainerAllocateResponse, DeviceSpec, Mount};
use crate::resources::{Offer, Unit, device};
use crate::{cdi, mps};

/// Below it, NVIDIA's container runtime looks for devices that were handed out as mounts.
const MOUNT_FOLDER: &str = "/var/run/nvidia-container-devices";
/// Nodes that every program with a GPU opens.
const CONTROL_NODES: [&str; 4] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"];

/// What an answer is made from.
pub(super) struct Ground<'a> {
    pub(super) offer: &'a Offer,
    pub(super) machine: &'a Machine,
    pub(super) config: &'a Config,
    pub(super) mps: &'a mps::Root,
    pub(super) roots: &'a Roots,
}

/// The driver's files.
#[derive(Debug, Clone)]
pub struct Roots {
    /// Where this process sees them.
    pub here: PathBuf,
    /// Where the host has them.
    pub host: PathBuf,
}

/// The answer for one container, or why there is none, in upstream's words.
pub(super) fn answer(ground: &Ground<'_>, ids: &[String]) -> Result<ContainerAllocateResponse, String> {
    let Ground { offer, machine, config, mps, roots } = *ground;
    let refusal = |why: String| format!("invalid allocation request for {:?}: {why}", offer.resource);
    if offer.shared.is_some_and(|s| s.one_only) && ids.len() > 1 {
        return Err(refusal(format!(
            "invalid request: maximum request size for shared resources is 1; found {}",
            ids.len()
        )));
    }
    let mut units: Vec<&Unit> = Vec::new();
    for id in ids {
        let unit = offer.unit(id).ok_or_else(|| refusal(format!("invalid request: unknown device: {id}")))?;
        if let Some(fault) = &unit.fault {
            return Err(refusal(format!("{} cannot be used: {fault}", device(id))));
        }
        if !units.contains(&unit) {
            units.push(unit);
        }
    }
    let by_cdi = machine.cdi.is_none();
    let strategies =
        config.list.clone().unwrap_or_else(|| vec![if by_cdi { ListStrategy::CdiCri } else { ListStrategy::Envvar }]);
    if let Some(why) = &machine.cdi
        && strategies.iter().all(|s| matches!(s, ListStrategy::CdiCri | ListStrategy::CdiAnnotations))
    {
        return Err(format!("there is no CDI specification: {why}"));
    }
    let names: Vec<String> = units
        .iter()
        .map(|u| match config.ids {
            IdStrategy::Uuid => u.uuid.clone(),
            IdStrategy::Index => u.index.clone(),
        })
        .collect();
    let mut answer = ContainerAllocateResponse::default();
    for strategy in &strategies {
        match strategy {
            ListStrategy::Envvar => {
                answer.envs.insert("NVIDIA_VISIBLE_DEVICES".into(), names.join(","));
            }
            ListStrategy::VolumeMounts => {
                answer.envs.insert("NVIDIA_VISIBLE_DEVICES".into(), MOUNT_FOLDER.into());
                answer.mounts.extend(names.iter().map(|name| Mount {
                    container_path: format!("{MOUNT_FOLDER}/{name}"),
                    host_path: "/dev/null".into(),
                    read_only: false,
                }));
            }
            ListStrategy::CdiAnnotations => {
                // The key must be new for every container of a pod, and the same devices are never handed out twice.
                let key = ids.first().map_or("", |id| device(id)).replace([':', '/'], "_");
                let devices: Vec<String> = units.iter().map(|u| cdi::name(&u.uuid)).collect();
                answer
                    .annotations
                    .insert(format!("{}slipway-device-plugin_{key}", config.annotation_prefix), devices.join(","));
            }
            ListStrategy::CdiCri => {
                answer.cdi_devices.extend(units.iter().map(|u| CdiDevice { name: cdi::name(&u.uuid) }));
            }
        }
    }
    if config.device_specs && !answer.envs.is_empty() {
        answer.devices = device_specs(machine, &units, roots)?;
    }
    if offer.shared.is_some_and(|s| s.strategy == SharingStrategy::Mps) {
        let (envs, mounts) = mps.container(&offer.resource);
        answer.envs.extend(envs);
        answer.mounts.extend(mounts);
    }
    Ok(answer)
}

fn device_specs(machine: &Machine, units: &[&Unit], roots: &Roots) -> Result<Vec<DeviceSpec>, String> {
    let mut paths: BTreeSet<String> =
        CONTROL_NODES.iter().filter(|p| Path::new(p).exists()).map(|p| (*p).to_owned()).collect();
    for unit in units {
        let Some(gpu) = machine.inventory.gpus.get(unit.gpu) else { continue };
        let Some(minor) = gpu.minor else { continue };
        paths.insert(format!("/dev/nvidia{minor}"));
        let mig = unit.mig.and_then(|n| gpu.mig.as_ref()?.devices.get(n));
        if let Some(mig) = mig {
            paths.extend(capability_nodes(&roots.here, minor, mig).map_err(|e| e.to_string())?);
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

    fn ask(config: &str, ids: &[&str]) -> Result<ContainerAllocateResponse, String> {
        let config = Config::parse(&format!("version: v1\n{config}")).unwrap();
        let mut machine = machine(vec![gpu(0, None), gpu(1, None), gpu(2, None)]);
        machine.draining.insert("GPU-2".into());
        let offer = offers(&machine, &config).unwrap().remove(0);
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        let roots = Roots { here: "/".into(), host: "/run/nvidia/driver".into() };
        let mps = mps::Root("/run/nvidia/mps".into());
        answer(&Ground { offer: &offer, machine: &machine, config: &config, mps: &mps, roots: &roots }, &ids)
    }

    #[test]
    fn each_way_of_telling_a_container_is_upstreams() {
        let answer = ask("", &["GPU-1", "GPU-0"]).unwrap();
        let names: Vec<_> = answer.cdi_devices.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["slipway.dev/gpu=GPU-1", "slipway.dev/gpu=GPU-0"]);
        let plugin = |more: &str| format!("flags: {{plugin: {{deviceListStrategy: {more}}}}}");
        let answer = ask(&plugin("envvar"), &["GPU-1", "GPU-0"]).unwrap();
        assert_eq!(answer.envs["NVIDIA_VISIBLE_DEVICES"], "GPU-1,GPU-0");
        assert!(answer.cdi_devices.is_empty());
        let answer = ask(&plugin("envvar, deviceIDStrategy: index"), &["GPU-1"]).unwrap();
        assert_eq!(answer.envs["NVIDIA_VISIBLE_DEVICES"], "1");
        let answer = ask(&plugin("volume-mounts"), &["GPU-1"]).unwrap();
        assert_eq!(answer.mounts[0].container_path, "/var/run/nvidia-container-devices/GPU-1");
        let answer = ask(&plugin("cdi-annotations"), &["GPU-1"]).unwrap();
        assert_eq!(answer.annotations["cdi.k8s.io/slipway-device-plugin_GPU-1"], "slipway.dev/gpu=GPU-1");
    }

    #[test]
    fn replicas_of_one_device_are_one_device() {
        let slices = "sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}";
        assert_eq!(ask(slices, &["GPU-1::0", "GPU-1::3"]).unwrap().cdi_devices.len(), 1);
        let one = slices.replace("resources", "failRequestsGreaterThanOne: true, resources");
        assert!(ask(&one, &["GPU-1::0", "GPU-1::3"]).unwrap_err().ends_with("shared resources is 1; found 2"));
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        assert!(ask("", &["GPU-9"]).unwrap_err().contains("unknown device: GPU-9"));
        assert!(ask("", &["GPU-2"]).unwrap_err().contains("about to change"));
    }
}
