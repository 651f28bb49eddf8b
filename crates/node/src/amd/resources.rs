//! The resources of AMD's GPUs: their names, and what a container gets with a device.
//!
//! Source: ROCm/k8s-device-plugin, docs, "Resource Naming Strategy". Names, identifiers and device nodes are the same as upstream. Unlike
//! upstream, devices that do not exist or are unhealthy are refused.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use slipway_gpu::amd::devices::Device;
use tokio::sync::{Notify, watch};
use tonic::Status;

use super::{Machine, Naming, State, Unit, preferred};
use crate::NodeError;
use crate::kubelet::device_plugin as api;
use crate::plugin::servers::{self, Offered, Servers};

/// Name of the resource for devices without a name of their own.
pub const GPU: &str = "amd.com/gpu";
/// The device node of the compute driver, which all programs open.
const COMPUTE: &str = "/dev/kfd";

/// A resource and its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Name of the resource, such as `amd.com/gpu`.
    pub resource: String,
    /// Its devices.
    pub units: Vec<Unit>,
}

/// The resources of a node.
///
/// # Errors
/// If the cards are divided differently, which the strategy `single` does not allow.
pub fn offers(machine: &Machine, naming: Naming) -> Result<Vec<Offer>, String> {
    let kinds: BTreeSet<String> =
        machine.units.iter().filter_map(|unit| Some(unit.device.partition.as_ref()?.to_string())).collect();
    if naming == Naming::Single && kinds.len() > 1 {
        let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
        return Err(format!(
            "the cards are divided differently ({}): divide all in the same way, or use the strategy mixed",
            kinds.join(", ")
        ));
    }
    let name = |unit: &Unit| {
        let partition = unit.device.partition.as_ref().filter(|_| naming == Naming::Mixed);
        partition.map_or_else(|| GPU.to_owned(), |partition| format!("amd.com/{partition}"))
    };
    let mut offers: Vec<Offer> = Vec::new();
    for unit in &machine.units {
        let resource = name(unit);
        match offers.iter_mut().find(|offer| offer.resource == resource) {
            Some(offer) => offer.units.push(unit.clone()),
            None => offers.push(Offer { resource, units: vec![unit.clone()] }),
        }
    }
    Ok(offers)
}

impl Offered for Offer {
    fn resource(&self) -> &str {
        &self.resource
    }

    fn devices(&self) -> Vec<api::Device> {
        let device = |unit: &Unit| servers::device(unit.device.id.clone(), unit.fault.is_none(), unit.device.numa);
        self.units.iter().map(device).collect()
    }

    fn withdraw(&mut self) {
        for unit in &mut self.units {
            unit.fault = Some("the driver is not available".into());
        }
    }

    fn preferred(&self, request: &api::ContainerPreferredAllocationRequest) -> Option<Vec<String>> {
        let devices: Vec<&Device> = self.units.iter().map(|unit| &unit.device).collect();
        Some(preferred::choose(
            &devices,
            &request.available_device_i_ds,
            &request.must_include_device_i_ds,
            usize::try_from(request.allocation_size).unwrap_or(0),
        ))
    }

    fn allocate(&self, ids: &[String]) -> Result<api::ContainerAllocateResponse, Status> {
        let mut paths = vec![COMPUTE.to_owned()];
        for id in ids {
            let unit = self.units.iter().find(|unit| unit.device.id == *id);
            let unit = unit.ok_or_else(|| Status::unknown(format!("{}: unknown device: {id}", self.resource)))?;
            if let Some(fault) = &unit.fault {
                return Err(Status::unknown(format!("{}: {id} cannot be used: {fault}", self.resource)));
            }
            let Device { card, render, .. } = unit.device;
            paths.extend([format!("/dev/dri/card{card}"), format!("/dev/dri/renderD{render}")]);
        }
        let spec =
            |path: String| api::DeviceSpec { host_path: path.clone(), container_path: path, permissions: "rw".into() };
        let devices = paths.into_iter().map(spec).collect();
        Ok(api::ContainerAllocateResponse { devices, ..api::ContainerAllocateResponse::default() })
    }
}

/// Offers AMD's GPUs to the kubelet until its task is dropped.
#[derive(Debug)]
pub struct Plugin {
    /// The kubelet's folder of sockets, usually `/var/lib/kubelet/device-plugins`.
    pub folder: PathBuf,
    /// How devices are named as resources.
    pub naming: Naming,
    /// Notified whenever devices were allocated.
    pub handed_out: Arc<Notify>,
}

impl Plugin {
    /// Starts, updates and stops one server per resource as the state changes.
    ///
    /// # Errors
    /// If a server panicked.
    pub async fn run(self, mut states: watch::Receiver<Arc<State>>) -> Result<(), NodeError> {
        let mut servers = Servers::new(self.folder, self.handed_out);
        loop {
            let state = states.borrow_and_update().clone();
            match state.machine().map(|machine| offers(machine, self.naming)) {
                Some(Ok(offers)) => servers.offer(offers),
                Some(Err(why)) => {
                    tracing::error!(%why, "AMD's GPUs are not offered");
                    servers.offer(Vec::new());
                }
                // Pods may hold devices of a missing driver, so the devices stay, and are unhealthy until it returns.
                None => servers.withdraw(),
            }
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return Ok(()) },
                error = servers.failure() => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use slipway_gpu::amd::devices::Link;

    use super::*;
    use crate::amd::samples::machine;

    fn named(modes: &[&str], naming: Naming) -> Result<Vec<(String, usize)>, String> {
        let offers = offers(&machine(modes, Link::Xgmi), naming)?;
        Ok(offers.into_iter().map(|offer| (offer.resource, offer.units.len())).collect())
    }

    #[test]
    fn resources_are_named_as_upstream() {
        let expected = |list: &[(&str, usize)]| Ok(list.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect::<Vec<_>>());
        let (whole, divided) = (["spx_nps1"; 8], ["cpx_nps4"; 8]);
        assert_eq!(named(&whole, Naming::Single), expected(&[(GPU, 8)]));
        assert_eq!(named(&divided, Naming::Single), expected(&[(GPU, 64)]));
        assert_eq!(named(&divided, Naming::Mixed), expected(&[("amd.com/cpx_nps4", 64)]));
        for naming in [Naming::Single, Naming::Mixed] {
            assert_eq!(named(&["", ""], naming), expected(&[(GPU, 2)]), "cards that cannot be divided");
        }
        let mixed = [&["spx_nps1"; 5][..], &["cpx_nps1"; 3]].concat();
        assert_eq!(named(&mixed, Naming::Mixed), expected(&[("amd.com/spx_nps1", 5), ("amd.com/cpx_nps1", 24)]));
        assert!(named(&mixed, Naming::Single).unwrap_err().contains("cpx_nps1, spx_nps1"));
    }

    #[test]
    fn container_gets_the_compute_driver_and_its_devices() {
        let mut machine = machine(&["cpx_nps4", "cpx_nps4"], Link::Xgmi);
        machine.units[9].fault = Some("2 uncorrected memory errors".into());
        let offer = offers(&machine, Naming::Single).unwrap().remove(0);
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let response = offer.allocate(&ids(&["0000:00:00.0", "amdgpu_xcp_0"])).unwrap();
        let paths: Vec<_> = response.devices.iter().map(|d| d.container_path.as_str()).collect();
        let expected = ["/dev/kfd", "/dev/dri/card0", "/dev/dri/renderD128", "/dev/dri/card1", "/dev/dri/renderD129"];
        assert_eq!(paths, expected);
        assert!(response.devices.iter().all(|d| d.host_path == d.container_path && d.permissions == "rw"));
        let refused = |id: &str| offer.allocate(&ids(&[id])).unwrap_err().message().to_owned();
        assert_eq!(refused("GPU-1"), "amd.com/gpu: unknown device: GPU-1");
        assert_eq!(refused("amdgpu_xcp_7"), "amd.com/gpu: amdgpu_xcp_7 cannot be used: 2 uncorrected memory errors");
        let unhealthy = offer.devices().iter().filter(|device| device.health == "Unhealthy").count();
        assert_eq!((offer.devices().len(), unhealthy), (16, 1));
    }
}
