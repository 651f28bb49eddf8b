//! Builds the response to `Allocate`: environment, mounts, device nodes and CDI devices of a container.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
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

/// The only IMEX channel that upstream's format allows.
const IMEX_CHANNEL: &str = "0";

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
    let is_cdi = |s: &ListStrategy| matches!(s, ListStrategy::CdiCri | ListStrategy::CdiAnnotations);
    if let Some(why) = &machine.cdi
        && strategies.iter().all(is_cdi)
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
    let channel = imex_channel(config, roots)?;
    let mut response = ContainerAllocateResponse::default();
    for strategy in &strategies {
        match strategy {
            ListStrategy::Envvar => {
                response.envs.insert("NVIDIA_VISIBLE_DEVICES".into(), names.join(","));
                if channel.is_some() {
                    response.envs.insert("NVIDIA_IMEX_CHANNELS".into(), IMEX_CHANNEL.into());
                }
            }
            ListStrategy::VolumeMounts => {
                response.envs.insert("NVIDIA_VISIBLE_DEVICES".into(), MOUNT_FOLDER.into());
                let channel = channel.is_some().then(|| format!("imex/{IMEX_CHANNEL}"));
                response.mounts.extend(names.iter().cloned().chain(channel).map(|name| Mount {
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
    if strategies.iter().any(is_cdi) {
        // The CDI specification has only GPUs, so the kubelet passes the channel.
        response.devices.extend(channel);
    }
    response.envs.extend(config.extra_devices.iter().map(|name| ((*name).to_owned(), "enabled".to_owned())));
    if offer.shared.is_some_and(|s| s.strategy == SharingStrategy::Mps) {
        let (envs, mounts) = mps.container(&offer.resource);
        response.envs.extend(envs);
        response.mounts.extend(mounts);
    }
    Ok(response)
}

/// The device node of the IMEX channel that the configuration requests; `None` if there is none and it is not required.
fn imex_channel(config: &Config, roots: &Roots) -> Result<Option<DeviceSpec>, String> {
    let Some(imex) = config.imex else { return Ok(None) };
    let path = format!("/dev/nvidia-caps-imex-channels/channel{IMEX_CHANNEL}");
    let is_device = |path: &Path| std::fs::metadata(path).is_ok_and(|file| file.file_type().is_char_device());
    let host_path = roots.host.join(path.trim_start_matches('/')).display().to_string();
    if is_device(&roots.local.join(path.trim_start_matches('/'))) || is_device(Path::new(&path)) {
        return Ok(Some(DeviceSpec { host_path, container_path: path, permissions: "rw".into() }));
    }
    if imex.required {
        return Err(format!(
            "requested IMEX channel channel{IMEX_CHANNEL} does not exist: create {path} with mknod (NVIDIA IMEX guide, \"IMEX Channels\")"
        ));
    }
    Ok(None)
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
    use crate::resources::offers;
    use crate::samples::{gpu, machine};

    fn allocate_ids(config: &str, ids: &[&str]) -> Result<ContainerAllocateResponse, String> {
        allocate_below("/", config, ids)
    }

    fn allocate_below(root: &str, config: &str, ids: &[&str]) -> Result<ContainerAllocateResponse, String> {
        let config = Config::parse(&format!("version: v1\n{config}")).unwrap();
        let mut machine = machine(vec![gpu(0, None), gpu(1, None), gpu(2, None)]);
        machine.draining.insert("GPU-2".into());
        let offer = offers(&machine, &config).unwrap().remove(0);
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        let roots = Roots { local: root.into(), host: "/run/nvidia/driver".into() };
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
    fn channels_and_extra_devices_are_passed_as_by_upstream() {
        let extra = |strategy: &str| {
            format!(
                "flags: {{gdsEnabled: true, gdrcopyEnabled: true, plugin: {{deviceListStrategy: {strategy}}}}}\nimex: {{channelIDs: [0]}}"
            )
        };
        let required = extra("envvar").replace("[0]", "[0], required: true");
        let response = allocate_ids(&extra("cdi-cri"), &["GPU-1"]).unwrap();
        assert_eq!(
            (response.envs["NVIDIA_GDS"].as_str(), response.envs["NVIDIA_GDRCOPY"].as_str()),
            ("enabled", "enabled")
        );
        assert!(response.devices.is_empty() && !response.envs.contains_key("NVIDIA_MOFED"));
        assert!(!allocate_ids(&extra("envvar"), &["GPU-1"]).unwrap().envs.contains_key("NVIDIA_IMEX_CHANNELS"));
        assert!(
            allocate_ids(&required, &["GPU-1"])
                .unwrap_err()
                .starts_with("requested IMEX channel channel0 does not exist")
        );
        // A link to another character device stands for the channel.
        let root = std::env::temp_dir().join(slipway_core::ids::hex32());
        let folder = root.join("dev/nvidia-caps-imex-channels");
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink("/dev/null", folder.join("channel0")).unwrap();
        let allocate = |config: &str| allocate_below(root.to_str().unwrap(), config, &["GPU-1"]).unwrap();
        let response = allocate(&required);
        assert_eq!(response.envs["NVIDIA_IMEX_CHANNELS"], "0");
        assert!(response.devices.is_empty());
        let response = allocate(&extra("volume-mounts"));
        assert_eq!(response.mounts[1].container_path, "/var/run/nvidia-container-devices/imex/0");
        let [channel] = allocate(&extra("cdi-cri")).devices.try_into().unwrap();
        assert_eq!(channel.container_path, "/dev/nvidia-caps-imex-channels/channel0");
        assert_eq!(channel.host_path, "/run/nvidia/driver/dev/nvidia-caps-imex-channels/channel0");
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn unknown_and_draining_devices_are_rejected() {
        assert!(allocate_ids("", &["GPU-9"]).unwrap_err().contains("unknown device: GPU-9"));
        assert!(allocate_ids("", &["GPU-2"]).unwrap_err().contains("is drained for"));
    }
}
