//! Attributes energy and busy time of GPUs to the jobs or containers that hold them, split evenly among holders of a device.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::inventory::{Gpu, Inventory, MigDevice};

/// Resource usage of one holder of a device.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Usage {
    /// Energy in joules: the energy of the device, split evenly among its holders.
    pub joules: f64,
    /// Seconds in which the GPU was busy.
    pub busy_seconds: f64,
    /// Seconds in which the GPU was idle.
    pub idle_seconds: f64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, more: Self) {
        self.joules += more.joules;
        self.busy_seconds += more.busy_seconds;
        self.idle_seconds += more.idle_seconds;
    }
}

/// Energy counters of the last reading, against which the next reading is compared.
#[derive(Debug, Default)]
pub struct Meter {
    /// Joules by GPU UUID.
    last: BTreeMap<String, f64>,
}

impl Meter {
    /// Usage of one of `holders` equal holders of a device during the `seconds` since the last reading; `None` if the device does not
    /// exist. A MIG device counts in proportion to its memory slices, out of eight; compute instances that share them, to their part.
    pub fn usage(&self, inventory: &Inventory, device: &str, holders: u32, seconds: f64) -> Option<Usage> {
        let (gpu, mig) = find(inventory, device)?;
        let mut usage = Usage::default();
        if let (Some(now), Some(then)) = (gpu.energy_joules, self.last.get(&gpu.uuid)) {
            let share = mig.map_or(1.0, MigDevice::share) / f64::from(holders.max(1));
            // A GPU reset sets the counter back to zero, so the difference may be negative.
            usage.joules = (now - then).max(0.0) * share;
        }
        // Cards do not report utilisation while MIG is enabled.
        if let Some(percent) = gpu.utilization_percent {
            usage.busy_seconds = seconds * f64::from(percent) / 100.0;
            usage.idle_seconds = seconds - usage.busy_seconds;
        }
        Some(usage)
    }

    /// Records a reading, against which the next one is compared.
    pub fn record(&mut self, inventory: &Inventory) {
        self.last = inventory.gpus.iter().filter_map(|g| Some((g.uuid.clone(), g.energy_joules?))).collect();
    }
}

/// Finds a device by UUID: its GPU, and the MIG device if it is one.
pub fn find<'i>(inventory: &'i Inventory, uuid: &str) -> Option<(&'i Gpu, Option<&'i MigDevice>)> {
    inventory.gpus.iter().find_map(|gpu| {
        if gpu.uuid == uuid {
            return Some((gpu, None));
        }
        let device = gpu.mig.iter().flat_map(|m| &m.devices).find(|d| d.uuid == uuid)?;
        Some((gpu, Some(device)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Mig;
    use crate::nvml::MigAttributes;

    #[test]
    fn compute_instances_of_one_gpu_instance_share_its_energy() {
        let device = |profile: &str, gpu_instance, compute_instance, start, size| MigDevice {
            uuid: format!("MIG-{gpu_instance}-{compute_instance}"),
            profile: profile.into(),
            gpu_instance,
            compute_instance,
            start,
            size,
            attributes: MigAttributes::default(),
        };
        let devices =
            vec![device("2c.3g.40gb", 1, 0, 0, 4), device("1c.3g.40gb", 1, 1, 0, 4), device("3g.40gb", 2, 0, 4, 4)];
        let mig = Some(Mig { enabled: true, pending: true, devices });
        let gpu =
            |joules| Gpu { uuid: "GPU-0".into(), energy_joules: Some(joules), mig: mig.clone(), ..Gpu::default() };
        let inventory = |joules| Inventory {
            simulated: true,
            driver: String::new(),
            nvml: String::new(),
            cuda: String::new(),
            gpus: vec![gpu(joules)],
        };
        let mut meter = Meter::default();
        meter.record(&inventory(100.0));
        let joules = |uuid: &str| meter.usage(&inventory(220.0), uuid, 1, 1.0).unwrap().joules;
        let all = ["MIG-1-0", "MIG-1-1", "MIG-2-0", "GPU-0"].map(|uuid| joules(uuid).round());
        assert_eq!(all, [40.0, 20.0, 60.0, 120.0]);
    }
}
