//! What a container with devices gets: the answer to `Allocate`.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Config, IdStrategy, ListStrategy, SharingStrategy};
use crate::driver::Machine;
use crate::kubelet::device_plugin::{CdiDevice, ContainerAllocateResponse, DeviceSpec, Mount};
use crate::resources::{Offer, Unit, device};
use crate::{cdi, mps};

/// Below it, NVIDIA's container runtime looks for devices that were handed out as mounts.
const MOUNT_FOLDER: &str = "/var/run/nvidia-container-devices";
/// Nodes that every program with a GPU opens.
const CONTROL_NODES: [&str; 4] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"];

/// The answer for one container, or why there is none. The messages are upstream's where upstream has one.
pub(super) fn answer(
    offer: &Offer,
    machine: &Machine,
    config: &Config,
    mps_root: &mps::Root,
    ids: &[String],
) -> Result<ContainerAllocateResponse, String> {
    if offer.shared.is_some_and(|s| s.one_only) && ids.len() > 1 {
        return Err(format!(
            "request for '{}: {}' too large: maximum request size for shared resources is 1",
            offer.resource,
            ids.len()
        ));
    }
    let mut units: Vec<&Unit> = Vec::new();
    for id in ids {
        let unit = offer
            .unit(id)
            .ok_or_else(|| format!("invalid allocation request for '{}': unknown device: {id}", offer.resource))?;
        if let Some(fault) = &unit.fault {
            return Err(format!("{} cannot be used: {fault}", device(id)));
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
        answer.devices = device_specs(machine, &units);
    }
    if offer.shared.is_some_and(|s| s.strategy == SharingStrategy::Mps) {
        let (envs, mounts) = mps_root.container(&offer.resource);
        answer.envs.extend(envs);
        answer.mounts.extend(mounts);
    }
    Ok(answer)
}

fn device_specs(machine: &Machine, units: &[&Unit]) -> Vec<DeviceSpec> {
    let gpus: BTreeSet<usize> = units.iter().map(|u| u.gpu).collect();
    let minors = gpus.iter().filter_map(|g| machine.inventory.gpus.get(*g)?.minor);
    let paths: BTreeMap<String, ()> = CONTROL_NODES
        .iter()
        .filter(|p| std::path::Path::new(p).exists())
        .map(|p| (*p).to_owned())
        .chain(minors.map(|m| format!("/dev/nvidia{m}")))
        .map(|p| (p, ()))
        .collect();
    let spec = |path: String| DeviceSpec { container_path: path.clone(), host_path: path, permissions: "rw".into() };
    paths.into_keys().map(spec).collect()
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
        answer(&offer, &machine, &config, &mps::Root("/run/nvidia/mps".into()), &ids)
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
        assert!(
            ask(&one, &["GPU-1::0", "GPU-1::3"])
                .unwrap_err()
                .contains("maximum request size for shared resources is 1")
        );
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        assert!(ask("", &["GPU-9"]).unwrap_err().contains("unknown device: GPU-9"));
        assert!(ask("", &["GPU-2"]).unwrap_err().contains("about to change"));
    }
}
