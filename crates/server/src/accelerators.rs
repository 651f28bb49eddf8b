//! The GPUs of this machine, for runs that are local processes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use slipway_exec::local::{Accelerators, Device, Reading};
use slipway_gpu::inventory::Inventory;
use slipway_gpu::mig::{self, GPU_RESOURCE};
use slipway_gpu::usage::Meter;

use crate::gpu::Gpus;

/// How long the list of devices is cached. It rarely changes, and a query takes milliseconds.
const CACHE_TTL: Duration = Duration::from_secs(5);

/// Lists the devices through NVML and measures their use.
pub(crate) struct LocalAccelerators {
    gpus: Arc<Gpus>,
    cached: Mutex<Option<(Instant, Vec<Device>)>>,
    meter: Mutex<Meter>,
}

impl LocalAccelerators {
    pub(crate) fn new(gpus: Arc<Gpus>) -> Self {
        Self { gpus, cached: Mutex::default(), meter: Mutex::default() }
    }

    fn inventory(&self) -> Option<Inventory> {
        // Errors are ignored, because most machines have no GPU.
        self.gpus.nvml().and_then(|nvml| Inventory::collect(&nvml)).ok()
    }
}

impl Accelerators for LocalAccelerators {
    fn devices(&self) -> Vec<Device> {
        let mut cached = self.cached.lock();
        if let Some((_, devices)) = cached.as_ref().filter(|(at, _)| at.elapsed() < CACHE_TTL) {
            return devices.clone();
        }
        let mut devices = Vec::new();
        for gpu in self.inventory().iter().flat_map(|i| &i.gpus).filter(|g| !g.uuid.is_empty()) {
            match gpu.mig.as_ref().filter(|m| m.enabled) {
                None => devices.push(Device { uuid: gpu.uuid.clone(), resource: GPU_RESOURCE.into() }),
                Some(mig) => devices.extend(
                    mig.devices.iter().map(|d| Device { uuid: d.uuid.clone(), resource: mig::resource(&d.profile) }),
                ),
            }
        }
        *cached = Some((Instant::now(), devices.clone()));
        devices
    }

    fn read(&self, devices: &[Device], seconds: f64) -> Vec<Option<Reading>> {
        let Some(inventory) = self.inventory() else { return vec![None; devices.len()] };
        let mut meter = self.meter.lock();
        let read = |device: &Device| {
            let used = meter.usage(&inventory, &device.uuid, 1, seconds)?;
            Some(Reading { joules: used.joules, busy_seconds: used.busy_seconds, idle_seconds: used.idle_seconds })
        };
        let readings = devices.iter().map(read).collect();
        meter.record(&inventory);
        readings
    }
}
