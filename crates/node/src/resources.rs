//! Derives the resources and devices that are offered to the kubelet from the machine and the configuration.
//!
//! Source: NVIDIA k8s-device-plugin, README (MIG strategies, sharing). Names and identifiers are the same as upstream, so manifests and
//! dashboards need no change.

use slipway_gpu::inventory::{Gpu, MigDevice};

use crate::config::{Config, MigStrategy, SharingStrategy};
use crate::driver::Machine;

/// Name of the resource for whole GPUs.
pub const GPU: &str = slipway_gpu::mig::GPU_RESOURCE;

/// A GPU or MIG device that can be allocated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// UUID: `GPU-...` or `MIG-...`.
    pub uuid: String,
    /// Index of the GPU (`0`), or of GPU and MIG device (`0:1`).
    pub index: String,
    /// Position of its GPU in the inventory.
    pub gpu: usize,
    /// UUID of its GPU.
    pub gpu_uuid: String,
    /// Position among the MIG devices of its GPU, for a MIG device.
    pub mig: Option<usize>,
    /// NUMA node, if known.
    pub numa: Option<u32>,
    /// Why the device must not be used; `None` if it is healthy.
    pub fault: Option<String>,
}

/// How a resource is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// Time slicing or MPS.
    pub strategy: SharingStrategy,
    /// Number of replicas per device, at least 2.
    pub replicas: u32,
    /// Whether a container may request only one replica.
    pub one_only: bool,
    /// Whether the resource name has the suffix `.shared`.
    pub renamed: bool,
}

/// A resource and its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Resource name offered to the kubelet, such as `nvidia.com/gpu.shared`.
    pub resource: String,
    /// Resource name in the configuration, such as `nvidia.com/gpu`.
    pub base: String,
    /// How the devices are shared, if at all.
    pub shared: Option<Shared>,
    /// The devices.
    pub units: Vec<Unit>,
}

/// The identifier of a replica, such as `GPU-...::3`.
pub fn replica(uuid: &str, number: u32) -> String {
    format!("{uuid}::{number}")
}

/// The device UUID in an identifier, without the replica number.
pub fn device(id: &str) -> &str {
    id.split_once("::").map_or(id, |(uuid, _)| uuid)
}

impl Offer {
    /// All identifiers offered to the kubelet, each with its device.
    pub fn identifiers(&self) -> Vec<(String, &Unit)> {
        let ids = |unit| match self.shared {
            None => vec![(String::clone(&Unit::clone(unit).uuid), unit)],
            Some(shared) => (0..shared.replicas).map(|n| (replica(&unit.uuid, n), unit)).collect(),
        };
        self.units.iter().flat_map(ids).collect()
    }

    /// The device of an identifier; `None` if this resource has no such identifier.
    pub fn unit(&self, id: &str) -> Option<&Unit> {
        let (uuid, number) = match (self.shared, id.split_once("::")) {
            (None, None) => (id, 0),
            (Some(_), Some((uuid, number))) => (uuid, number.parse().ok()?),
            _ => return None,
        };
        (number < self.shared.map_or(1, |s| s.replicas)).then(|| self.units.iter().find(|u| u.uuid == uuid))?
    }
}

fn gpu_unit(machine: &Machine, at: usize, gpu: &Gpu) -> Unit {
    Unit {
        uuid: gpu.uuid.clone(),
        index: gpu.index.to_string(),
        gpu: at,
        gpu_uuid: gpu.uuid.clone(),
        mig: None,
        numa: machine.topology.numa.get(at).copied().flatten(),
        fault: machine.fault(&gpu.uuid, None),
    }
}

fn mig_unit(machine: &Machine, at: usize, gpu: &Gpu, number: usize, mig: &MigDevice) -> Unit {
    Unit {
        uuid: mig.uuid.clone(),
        index: format!("{}:{number}", gpu.index),
        mig: Some(number),
        fault: machine.fault(&mig.uuid, Some(&gpu.uuid)),
        ..gpu_unit(machine, at, gpu)
    }
}

/// All devices that can be allocated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Units {
    /// GPUs that are offered as a whole.
    pub whole: Vec<Unit>,
    /// Profiles and MIG devices.
    pub slices: Vec<(String, Unit)>,
}

/// The devices to offer under a MIG strategy.
///
/// # Errors
/// Why the strategy `single` is not possible on this node.
pub fn units(machine: &Machine, strategy: MigStrategy) -> Result<Units, String> {
    let mut gpus = Vec::new();
    let mut slices: Vec<(String, Unit)> = Vec::new();
    let mut empty = Vec::new();
    let known = machine.inventory.gpus.iter().enumerate().filter(|(_, g)| !g.uuid.is_empty());
    for (at, gpu) in known {
        let mig = gpu.mig.as_ref().filter(|m| m.enabled && strategy != MigStrategy::None);
        let Some(mig) = mig else {
            gpus.push(gpu_unit(machine, at, gpu));
            continue;
        };
        if mig.devices.is_empty() {
            empty.push(gpu.index.to_string());
        }
        for (number, device) in mig.devices.iter().enumerate() {
            slices.push((device.profile.clone(), mig_unit(machine, at, gpu, number, device)));
        }
    }
    if strategy == MigStrategy::Single && (!slices.is_empty() || !empty.is_empty()) {
        // All devices are offered under one resource name, so all must have the same profile.
        if !empty.is_empty() {
            return Err(format!("MIG is enabled without a MIG device on GPU {}", empty.join(", ")));
        }
        if !gpus.is_empty() {
            return Err("MIG is enabled on some GPUs and disabled on others".into());
        }
        if let Some((other, _)) = slices.iter().find(|(p, _)| *p != slices[0].0) {
            return Err(format!("there are MIG devices with the profiles {} and {other}", slices[0].0));
        }
    }
    Ok(Units { whole: gpus, slices })
}

/// The resources to offer to the kubelet.
///
/// # Errors
/// Why the strategy `single` is not possible on this node.
pub fn offers(machine: &Machine, config: &Config) -> Result<Vec<Offer>, String> {
    let units = units(machine, config.mig)?;
    let mut offers: Vec<Offer> = Vec::new();
    let named =
        units.whole.into_iter().map(|u| (GPU.to_owned(), u)).chain(units.slices.into_iter().map(|(profile, u)| {
            let name =
                if config.mig == MigStrategy::Single { GPU.to_owned() } else { slipway_gpu::mig::resource(&profile) };
            (name, u)
        }));
    for (base, unit) in named {
        match offers.iter_mut().find(|o| o.base == base) {
            Some(offer) => offer.units.push(unit),
            None => {
                let shared = config.replicas(&base).map(|(sharing, replicas)| Shared {
                    strategy: sharing.strategy,
                    replicas,
                    one_only: sharing.one_only,
                    renamed: sharing.rename,
                });
                let renamed = shared.is_some_and(|s| s.renamed);
                let resource = if renamed { format!("{base}.shared") } else { base.clone() };
                offers.push(Offer { resource, base, shared, units: vec![unit] });
            }
        }
    }
    Ok(offers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{gpu, machine};

    fn named(machine: &Machine, config: &str) -> Result<Vec<(String, usize)>, String> {
        let offers = offers(machine, &Config::parse(config)?)?;
        Ok(offers.iter().map(|o| (o.resource.clone(), o.identifiers().len())).collect())
    }

    fn expected(list: &[(&str, usize)]) -> Result<Vec<(String, usize)>, String> {
        Ok(list.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect())
    }

    #[test]
    fn mig_strategies_match_upstream() {
        let one_gpu_with_mig = machine(vec![gpu(0, None), gpu(1, Some(&["1g.10gb", "1g.10gb+me", "3g.40gb"]))]);
        let config = |strategy: &str| format!("version: v1\nflags: {{migStrategy: {strategy}}}");
        assert_eq!(named(&one_gpu_with_mig, &config("none")), expected(&[(GPU, 2)]));
        let mixed = expected(&[
            (GPU, 1),
            ("nvidia.com/mig-1g.10gb", 1),
            ("nvidia.com/mig-1g.10gb.me", 1),
            ("nvidia.com/mig-3g.40gb", 1),
        ]);
        assert_eq!(named(&one_gpu_with_mig, &config("mixed")), mixed);
        assert!(named(&one_gpu_with_mig, &config("single")).unwrap_err().contains("disabled on others"));
        let different_profiles = machine(vec![gpu(0, Some(&["1g.10gb", "3g.40gb"]))]);
        assert!(named(&different_profiles, &config("single")).unwrap_err().contains("1g.10gb and 3g.40gb"));
        assert!(
            named(&machine(vec![gpu(0, Some(&[]))]), &config("single")).unwrap_err().contains("without a MIG device")
        );
        let same_profile = machine(vec![gpu(0, Some(&["1g.10gb"; 7])), gpu(1, Some(&["1g.10gb"; 7]))]);
        assert_eq!(named(&same_profile, &config("single")), expected(&[(GPU, 14)]));
        assert_eq!(named(&machine(vec![gpu(0, None)]), &config("single")), expected(&[(GPU, 1)]));
    }

    #[test]
    fn compute_instances_are_resources_of_their_own() {
        let machine = machine(vec![crate::samples::compute_instances()]);
        let named = named(&machine, "version: v1\nflags: {migStrategy: mixed}");
        assert_eq!(named, expected(&[("nvidia.com/mig-1c.3g.40gb", 2), ("nvidia.com/mig-1g.10gb", 1)]));
    }

    #[test]
    fn replica_identifiers_are_offered_and_resolved() {
        let text = "version: v1\nsharing: {timeSlicing: {renameByDefault: true, resources: [{name: nvidia.com/gpu, replicas: 3}]}}";
        let machine = machine(vec![gpu(0, None), gpu(1, None)]);
        let offers = offers(&machine, &Config::parse(text).unwrap()).unwrap();
        assert_eq!((offers[0].resource.as_str(), offers[0].base.as_str()), ("nvidia.com/gpu.shared", GPU));
        assert_eq!(offers[0].identifiers()[4].0, "GPU-1::1");
        assert_eq!(offers[0].unit("GPU-1::2").unwrap().uuid, "GPU-1");
        assert!(["GPU-1", "GPU-1::3", "GPU-2::0", "GPU-1::x"].iter().all(|id| offers[0].unit(id).is_none()));
    }

    #[test]
    fn draining_devices_have_a_fault() {
        let mut machine = machine(vec![gpu(0, Some(&["1g.10gb", "1g.10gb"])), gpu(1, None)]);
        machine.draining = ["MIG-0-1".to_owned(), "GPU-1".to_owned()].into();
        let Units { whole, slices } = units(&machine, MigStrategy::Mixed).unwrap();
        assert!(whole[0].fault.is_some() && slices[0].1.fault.is_none() && slices[1].1.fault.is_some());
    }
}
