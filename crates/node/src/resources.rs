//! Which resources and devices the kubelet is offered, from what there is and what the configuration says.
//!
//! Source: NVIDIA k8s-device-plugin, README (MIG strategies, sharing); the names and identifiers are its own, so manifests and
//! dashboards need no change.

use slipway_gpu::inventory::{Gpu, MigDevice};

use crate::config::{Config, MigStrategy, SharingStrategy};
use crate::driver::Machine;

/// The resource of whole GPUs.
pub const GPU: &str = slipway_gpu::mig::GPU_RESOURCE;

/// A GPU or MIG device that can be handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// `GPU-...` or `MIG-...`.
    pub uuid: String,
    /// `0`, or `0:1` for a MIG device.
    pub index: String,
    /// Where its GPU is in the inventory.
    pub gpu: usize,
    /// The UUID of that GPU.
    pub gpu_uuid: String,
    /// Where the MIG device is among those of its GPU.
    pub mig: Option<usize>,
    /// NUMA node, where it is known.
    pub numa: Option<u32>,
    /// Why it must not be used.
    pub fault: Option<String>,
}

/// How a resource is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// Time slices or MPS.
    pub strategy: SharingStrategy,
    /// How often each device is offered.
    pub replicas: u32,
    /// A container may have one only.
    pub one_only: bool,
    /// The resource's name says so.
    pub renamed: bool,
}

/// A resource and its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// `nvidia.com/gpu.shared`.
    pub resource: String,
    /// `nvidia.com/gpu`: as the configuration names it.
    pub base: String,
    /// How it is shared, if it is.
    pub shared: Option<Shared>,
    /// Its devices.
    pub units: Vec<Unit>,
}

/// The identifier of a replica.
pub fn replica(uuid: &str, number: u32) -> String {
    format!("{uuid}::{number}")
}

/// The device that an identifier is of, without the replica's number.
pub fn device(id: &str) -> &str {
    id.split_once("::").map_or(id, |(uuid, _)| uuid)
}

impl Offer {
    /// Identifiers as the kubelet gets them, with their units.
    pub fn identifiers(&self) -> Vec<(String, &Unit)> {
        let each = |unit| match self.shared {
            None => vec![(String::clone(&Unit::clone(unit).uuid), unit)],
            Some(shared) => (0..shared.replicas).map(|n| (replica(&unit.uuid, n), unit)).collect(),
        };
        self.units.iter().flat_map(each).collect()
    }

    /// The unit that an identifier is of, if it is one of ours.
    pub fn unit(&self, id: &str) -> Option<&Unit> {
        let (uuid, number) = match (self.shared, id.split_once("::")) {
            (None, None) => (id, 0),
            (Some(_), Some((uuid, number))) => (uuid, number.parse().ok()?),
            _ => return None,
        };
        (number < self.shared.map_or(1, |s| s.replicas)).then(|| self.units.iter().find(|u| u.uuid == uuid))?
    }
}

fn whole(machine: &Machine, at: usize, gpu: &Gpu) -> Unit {
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

fn slice(machine: &Machine, at: usize, gpu: &Gpu, number: usize, mig: &MigDevice) -> Unit {
    Unit {
        uuid: mig.uuid.clone(),
        index: format!("{}:{number}", gpu.index),
        mig: Some(number),
        fault: machine.fault(&mig.uuid, Some(&gpu.uuid)),
        ..whole(machine, at, gpu)
    }
}

/// What can be handed out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Units {
    /// GPUs that are offered whole.
    pub whole: Vec<Unit>,
    /// MIG devices with their profiles.
    pub slices: Vec<(String, Unit)>,
}

/// What can be handed out as the strategy has it.
///
/// # Errors
/// Why the strategy `single` does not fit this node.
pub fn units(machine: &Machine, strategy: MigStrategy) -> Result<Units, String> {
    let mut gpus = Vec::new();
    let mut slices: Vec<(String, Unit)> = Vec::new();
    let mut empty = Vec::new();
    let known = machine.inventory.gpus.iter().enumerate().filter(|(_, g)| !g.uuid.is_empty());
    for (at, gpu) in known {
        let mig = gpu.mig.as_ref().filter(|m| m.enabled && strategy != MigStrategy::None);
        let Some(mig) = mig else {
            gpus.push(whole(machine, at, gpu));
            continue;
        };
        if mig.devices.is_empty() {
            empty.push(gpu.index.to_string());
        }
        for (number, one) in mig.devices.iter().enumerate() {
            slices.push((one.profile.clone(), slice(machine, at, gpu, number, one)));
        }
    }
    if strategy == MigStrategy::Single && (!slices.is_empty() || !empty.is_empty()) {
        // One name for all: then all must be alike, or nobody knows what he gets.
        if !empty.is_empty() {
            return Err(format!("MIG is on without a device on GPU {}", empty.join(", ")));
        }
        if !gpus.is_empty() {
            return Err("MIG is on for some GPUs and off for others".into());
        }
        if let Some((other, _)) = slices.iter().find(|(p, _)| *p != slices[0].0) {
            return Err(format!("there are MIG devices of {} and of {other}", slices[0].0));
        }
    }
    Ok(Units { whole: gpus, slices })
}

/// What the kubelet is offered.
///
/// # Errors
/// Why the strategy `single` does not fit this node.
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
    use crate::driver::tests::{gpu, machine};

    fn named(machine: &Machine, config: &str) -> Result<Vec<(String, usize)>, String> {
        let offers = offers(machine, &Config::parse(config)?)?;
        Ok(offers.iter().map(|o| (o.resource.clone(), o.identifiers().len())).collect())
    }

    fn of(list: &[(&str, usize)]) -> Result<Vec<(String, usize)>, String> {
        Ok(list.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect())
    }

    #[test]
    fn strategies_name_and_count_as_upstream() {
        let some = machine(vec![gpu(0, None), gpu(1, Some(&["1g.10gb", "1g.10gb+me", "3g.40gb"]))]);
        let config = |strategy: &str| format!("version: v1\nflags: {{migStrategy: {strategy}}}");
        assert_eq!(named(&some, &config("none")), of(&[(GPU, 2)]));
        let mixed = of(&[
            (GPU, 1),
            ("nvidia.com/mig-1g.10gb", 1),
            ("nvidia.com/mig-1g.10gb.me", 1),
            ("nvidia.com/mig-3g.40gb", 1),
        ]);
        assert_eq!(named(&some, &config("mixed")), mixed);
        assert!(named(&some, &config("single")).unwrap_err().contains("off for others"));
        let unlike = machine(vec![gpu(0, Some(&["1g.10gb", "3g.40gb"]))]);
        assert!(named(&unlike, &config("single")).unwrap_err().contains("1g.10gb and of 3g.40gb"));
        assert!(named(&machine(vec![gpu(0, Some(&[]))]), &config("single")).unwrap_err().contains("without a device"));
        let alike = machine(vec![gpu(0, Some(&["1g.10gb"; 7])), gpu(1, Some(&["1g.10gb"; 7]))]);
        assert_eq!(named(&alike, &config("single")), of(&[(GPU, 14)]));
        assert_eq!(named(&machine(vec![gpu(0, None)]), &config("single")), of(&[(GPU, 1)]));
    }

    #[test]
    fn replicas_are_offered_and_known_again() {
        let text = "version: v1\nsharing: {timeSlicing: {renameByDefault: true, resources: [{name: nvidia.com/gpu, replicas: 3}]}}";
        let machine = machine(vec![gpu(0, None), gpu(1, None)]);
        let offers = offers(&machine, &Config::parse(text).unwrap()).unwrap();
        assert_eq!((offers[0].resource.as_str(), offers[0].base.as_str()), ("nvidia.com/gpu.shared", GPU));
        assert_eq!(offers[0].identifiers()[4].0, "GPU-1::1");
        assert_eq!(offers[0].unit("GPU-1::2").unwrap().uuid, "GPU-1");
        assert!(["GPU-1", "GPU-1::3", "GPU-2::0", "GPU-1::x"].iter().all(|id| offers[0].unit(id).is_none()));
    }

    #[test]
    fn what_is_about_to_change_may_not_be_used() {
        let mut machine = machine(vec![gpu(0, Some(&["1g.10gb", "1g.10gb"])), gpu(1, None)]);
        machine.draining = ["MIG-0-1".to_owned(), "GPU-1".to_owned()].into();
        let Units { whole, slices } = units(&machine, MigStrategy::Mixed).unwrap();
        assert!(whole[0].fault.is_some() && slices[0].1.fault.is_none() && slices[1].1.fault.is_some());
    }
}
