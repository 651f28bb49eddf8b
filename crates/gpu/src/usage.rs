//! What the holders of GPUs use: energy and time, shared out among those who hold the same card.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::inventory::{Gpu, Inventory};

/// Use of a device by one who holds it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Use {
    /// Energy of the device, shared evenly among its holders.
    pub joules: f64,
    /// Time in which the GPU did something.
    pub busy_seconds: f64,
    /// Time in which it did nothing.
    pub idle_seconds: f64,
}

impl std::ops::AddAssign for Use {
    fn add_assign(&mut self, more: Self) {
        self.joules += more.joules;
        self.busy_seconds += more.busy_seconds;
        self.idle_seconds += more.idle_seconds;
    }
}

/// The energy counters as they were read last, by GPU.
#[derive(Debug, Default)]
pub struct Meter {
    before: BTreeMap<String, f64>,
}

impl Meter {
    /// What one of `holders` equal holders of a device used in the `seconds` since the last reading; `None` for a device that is not
    /// there. A MIG device has its part of the card's memory slices.
    pub fn used(&self, inventory: &Inventory, device: &str, holders: u32, seconds: f64) -> Option<Use> {
        let (gpu, slices) = find(inventory, device)?;
        let mut used = Use::default();
        if let (Some(now), Some(then)) = (gpu.energy_joules, self.before.get(&gpu.uuid)) {
            let part = f64::from(slices.unwrap_or(8)) / 8.0 / f64::from(holders.max(1));
            // The counter starts again when the GPU is reset.
            used.joules = (now - then).max(0.0) * part;
        }
        // Cards do not tell their utilisation while MIG is on.
        if let Some(percent) = gpu.utilization_percent {
            used.busy_seconds = seconds * f64::from(percent) / 100.0;
            used.idle_seconds = seconds - used.busy_seconds;
        }
        Some(used)
    }

    /// Remembers a reading, to which the next one is compared.
    pub fn remember(&mut self, inventory: &Inventory) {
        self.before = inventory.gpus.iter().filter_map(|g| Some((g.uuid.clone(), g.energy_joules?))).collect();
    }
}

/// The GPU that a device is or is cut from, and the memory slices of a MIG device.
pub fn find<'i>(inventory: &'i Inventory, uuid: &str) -> Option<(&'i Gpu, Option<u32>)> {
    inventory.gpus.iter().find_map(|gpu| {
        if gpu.uuid == uuid {
            return Some((gpu, None));
        }
        let device = gpu.mig.iter().flat_map(|m| &m.devices).find(|d| d.uuid == uuid)?;
        Some((gpu, Some(device.size)))
    })
}
