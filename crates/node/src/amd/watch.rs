//! Polls the kernel and AMD SMI, and decides which devices are healthy.
//!
//! A device is unhealthy if its card has left the bus, if the compute driver does not offer it, or if AMD SMI reports that the card does not
//! respond or has uncorrected memory errors, the default rule of AMD's metrics exporter. It is healthy again after a period without any of
//! these.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slipway_gpu::GpuError;
use slipway_gpu::amd::devices::{Device, Driver, devices};
use slipway_gpu::amd::{self, Amd};
use slipway_gpu::inventory::{Gpu, Inventory, Severity};
use tokio::sync::watch;

use super::{Machine, Readings, State, Unit};
use crate::NodeError;

/// Time after which a reading that does not return counts as a missing driver.
const STALL: Duration = Duration::from_secs(120);

/// Where the task publishes.
#[derive(Debug, Clone, Default)]
pub struct Senders {
    /// The devices and their health; changes only when one of them does.
    pub states: watch::Sender<Arc<State>>,
    /// What AMD SMI reports, after every poll.
    pub readings: watch::Sender<Readings>,
}

/// One look at the machine.
#[derive(Debug)]
struct Reading {
    driver: Driver,
    devices: Vec<Device>,
    /// What AMD SMI reports, or why it cannot be used.
    library: Result<Inventory, String>,
}

/// Reads the machine, and keeps AMD SMI open between two readings.
#[derive(Debug)]
struct Reader {
    fixture: Option<String>,
    library: Option<Amd>,
    /// The identifiers of the devices when AMD SMI was opened. It looks for devices only then.
    opened_with: Vec<String>,
}

impl Reader {
    fn read(&mut self) -> Reading {
        let Some(sysfs) = amd::sysfs(self.fixture.as_deref()) else {
            let name = self.fixture.clone().unwrap_or_default();
            let library = Err(format!("the fixture {name} has no GPU of AMD"));
            return Reading { driver: Driver::default(), devices: Vec::new(), library };
        };
        let (driver, devices) = (Driver::read(&sysfs), devices(&sysfs));
        let ids: Vec<String> = devices.iter().map(|device| device.id.clone()).collect();
        if ids != self.opened_with {
            self.library = None;
        }
        let library = if devices.is_empty() { Err("there is no GPU".into()) } else { self.inventory(ids) };
        Reading { driver, devices, library }
    }

    fn inventory(&mut self, ids: Vec<String>) -> Result<Inventory, String> {
        let inventory = self.open(ids).and_then(Amd::inventory);
        if inventory.is_err() {
            self.library = None;
        }
        inventory.map_err(|error| error.to_string())
    }

    fn open(&mut self, ids: Vec<String>) -> Result<&Amd, GpuError> {
        if self.library.is_none() {
            self.library = Some(Amd::open_for(self.fixture.as_deref())?);
            self.opened_with = ids;
        }
        self.library.as_ref().ok_or(GpuError::NoGpu)
    }
}

/// The GPU of AMD SMI that is this device.
fn gpu_of<'a>(device: &Device, inventory: &'a Inventory) -> Option<&'a Gpu> {
    let is_first = device.id == device.address;
    inventory.gpus.iter().find(|gpu| match gpu.minor {
        Some(render) => render == device.render,
        // Older versions of AMD SMI do not report the render node, and have no partitions either.
        None => is_first && slipway_gpu::pci::kernel_address(&gpu.bus_id) == device.address,
    })
}

/// What is wrong with a device at one reading.
fn observed(device: &Device, gpu: Option<&Gpu>) -> Option<String> {
    if device.compute.as_ref().is_none_or(|compute| compute.version == 0) {
        return Some("the compute driver (KFD) does not offer this device: dmesg | grep -i kfd".into());
    }
    gpu?.findings.iter().find(|finding| finding.severity == Severity::Error).map(|finding| finding.what.clone())
}

/// Devices and faults across readings.
#[derive(Debug, Default)]
struct Tracker {
    known: Vec<Unit>,
    /// When each faulty device last had its fault.
    last_fault: BTreeMap<String, Instant>,
}

impl Tracker {
    /// The state after a reading. `quiet` is the time without a fault after which a device is healthy again.
    fn update(&mut self, reading: &Reading, quiet: Duration, now: Instant) -> State {
        if !reading.driver.loaded && reading.devices.is_empty() {
            let why = if self.known.is_empty() {
                "there is no GPU of AMD, or amdgpu is not loaded"
            } else {
                "amdgpu is not loaded"
            };
            return State::Missing(why.into());
        }
        let mut units: Vec<Unit> = Vec::new();
        for device in &reading.devices {
            let gpu = reading.library.as_ref().ok().and_then(|inventory| gpu_of(device, inventory));
            let name = gpu.map_or_else(|| device.product.clone(), |gpu| gpu.name.clone());
            units.push(Unit { device: device.clone(), name, fault: observed(device, gpu) });
        }
        // A card that was divided anew has other devices; only those of a card that is not there at all are lost.
        let lost = self.known.iter().filter(|unit| units.iter().all(|u| u.device.address != unit.device.address));
        let lost = lost.map(|unit| Unit { fault: Some("the card has fallen off the bus".into()), ..unit.clone() });
        let lost: Vec<Unit> = lost.collect();
        units.extend(lost);
        for unit in &mut units {
            if unit.fault.is_some() {
                self.last_fault.insert(unit.device.id.clone(), now);
            } else if let Some(last) = self.last_fault.get(&unit.device.id) {
                if now.saturating_duration_since(*last) < quiet {
                    let earlier = self.known.iter().find(|known| known.device.id == unit.device.id);
                    unit.fault = earlier.and_then(|known| known.fault.clone());
                } else {
                    self.last_fault.remove(&unit.device.id);
                }
            }
        }
        self.last_fault.retain(|id, _| units.iter().any(|unit| unit.device.id == *id));
        self.known.clone_from(&units);
        if units.is_empty() {
            return State::Missing("there is no GPU of AMD".into());
        }
        State::Available(Box::new(Machine {
            simulated: reading.library.as_ref().is_ok_and(|inventory| inventory.simulated),
            driver: reading.driver.clone(),
            units,
            library: reading.library.as_ref().err().cloned(),
        }))
    }
}

/// Polls and publishes forever.
///
/// # Errors
/// If a reading panicked.
pub async fn watch(
    fixture: Option<String>,
    to: Senders,
    poll_interval: Duration,
    quiet: Duration,
) -> Result<(), NodeError> {
    let mut reader = Reader { fixture, library: None, opened_with: Vec::new() };
    let mut tracker = Tracker::default();
    loop {
        let mut task = tokio::task::spawn_blocking(move || {
            let reading = reader.read();
            (reader, reading)
        });
        let done = match tokio::time::timeout(STALL, &mut task).await {
            Ok(done) => done,
            Err(_) => {
                let why = format!("AMD's driver has not responded for {} s", STALL.as_secs());
                tracing::error!(%why, "the driver hangs");
                to.states.send_replace(Arc::new(State::Missing(why)));
                to.readings.send_replace(Readings::default());
                // A second reading would hang as well.
                task.await
            }
        };
        let (returned, reading) = done.map_err(|e| NodeError::Invalid(format!("reading AMD's GPUs failed: {e}")))?;
        reader = returned;
        let state = tracker.update(&reading, quiet, Instant::now());
        to.states.send_if_modified(|current| {
            let changed = **current != state;
            if changed {
                log(current, &state);
                *current = Arc::new(state);
            }
            changed
        });
        let inventory = reading.library.unwrap_or_default();
        let pair = |device: &Device| Some((device.id.clone(), gpu_of(device, &inventory)?.clone()));
        to.readings.send_replace(Arc::new(reading.devices.iter().filter_map(pair).collect()));
        tokio::time::sleep(poll_interval).await;
    }
}

/// Logs what has changed.
fn log(before: &State, now: &State) {
    match now {
        State::Off => {}
        State::Missing(why) => tracing::info!(why, "no GPU of AMD is offered"),
        State::Available(machine) => {
            let earlier = before.machine();
            if earlier.and_then(|m| m.library.as_ref()) != machine.library.as_ref()
                && let Some(why) = &machine.library
            {
                tracing::warn!(why, "AMD SMI cannot be used, so memory errors are not noticed");
            }
            for unit in &machine.units {
                let known = earlier.and_then(|m| m.units.iter().find(|u| u.device.id == unit.device.id));
                if known.and_then(|u| u.fault.as_ref()) != unit.fault.as_ref() {
                    match &unit.fault {
                        Some(fault) => tracing::warn!(device = unit.device.id, fault, "the device is withdrawn"),
                        None => tracing::info!(device = unit.device.id, "the device is healthy again"),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use slipway_gpu::amd::devices::Link;
    use slipway_gpu::inventory::{Finding, FindingCode};

    use super::*;
    use crate::amd::samples::machine;

    const QUIET: Duration = Duration::from_secs(30);

    fn reading(modes: &[&str], faulty: Option<usize>) -> Reading {
        let devices: Vec<Device> = machine(modes, Link::Xgmi).units.into_iter().map(|unit| unit.device).collect();
        let gpu = |(index, device): (usize, &Device)| Gpu {
            minor: Some(device.render),
            name: "AMD Instinct MI300X".into(),
            findings: (faulty == Some(index))
                .then(|| Finding {
                    code: FindingCode::UncorrectedErrors,
                    severity: Severity::Error,
                    what: "2 uncorrected memory errors".into(),
                    remedy: String::new(),
                })
                .into_iter()
                .collect(),
            ..Gpu::default()
        };
        let gpus = devices.iter().enumerate().map(gpu).collect();
        let library = Ok(Inventory { gpus, ..Inventory::default() });
        Reading { driver: Driver { loaded: true, ..Driver::default() }, devices, library }
    }

    /// The identifiers of the faulty devices with their faults.
    fn faults(state: &State) -> Vec<(&str, &str)> {
        let units = state.machine().unwrap().units.iter();
        units.filter_map(|unit| Some((unit.device.id.as_str(), unit.fault.as_deref()?))).collect()
    }

    #[test]
    fn device_with_memory_errors_is_withdrawn_until_it_was_quiet() {
        let (mut tracker, start) = (Tracker::default(), Instant::now());
        let modes = ["spx_nps1", "spx_nps1"];
        assert!(faults(&tracker.update(&reading(&modes, None), QUIET, start)).is_empty());
        let state = tracker.update(&reading(&modes, Some(1)), QUIET, start);
        let fault = [("0000:01:00.0", "2 uncorrected memory errors")];
        assert_eq!(faults(&state), fault);
        let soon = start + QUIET / 2;
        assert_eq!(faults(&tracker.update(&reading(&modes, None), QUIET, soon)), fault);
        assert!(faults(&tracker.update(&reading(&modes, None), QUIET, start + QUIET)).is_empty());
    }

    #[test]
    fn devices_of_a_lost_card_stay_and_those_of_a_divided_card_are_replaced() {
        let (mut tracker, now) = (Tracker::default(), Instant::now());
        tracker.update(&reading(&["spx_nps1", "spx_nps1"], None), QUIET, now);
        let state = tracker.update(&reading(&["spx_nps1"], None), QUIET, now);
        assert_eq!(faults(&state), [("0000:01:00.0", "the card has fallen off the bus")]);
        let state = tracker.update(&reading(&["cpx_nps1"], None), QUIET, now);
        assert_eq!((state.machine().unwrap().units.len(), faults(&state).len()), (9, 1));
        let state = tracker.update(&reading(&["spx_nps1", "spx_nps1"], None), Duration::ZERO, now);
        assert_eq!((state.machine().unwrap().units.len(), faults(&state).len()), (2, 0));
    }

    #[test]
    fn devices_are_offered_without_the_library_but_not_without_compute() {
        let (mut tracker, now) = (Tracker::default(), Instant::now());
        let mut read = reading(&["spx_nps1", "spx_nps1"], Some(0));
        read.library = Err("libamd_smi.so: no such file".into());
        read.devices[1].compute = None;
        let state = tracker.update(&read, QUIET, now);
        assert_eq!(faults(&state).len(), 1);
        assert!(faults(&state)[0].1.contains("KFD"));
        assert_eq!(state.machine().unwrap().units[0].name, "AMD Instinct MI300X (OAM)");
        let nothing = Reading { driver: Driver::default(), devices: Vec::new(), library: Err(String::new()) };
        let missing = tracker.update(&nothing, QUIET, now);
        assert_eq!(missing, State::Missing("amdgpu is not loaded".into()));
    }

    #[test]
    fn older_library_finds_its_gpu_by_address() {
        let device = &machine(&["cpx_nps1"], Link::Xgmi).units[0].device;
        let gpu = Gpu { bus_id: "00000000:00:00.0".into(), ..Gpu::default() };
        let inventory = Inventory { gpus: vec![gpu], ..Inventory::default() };
        assert!(gpu_of(device, &inventory).is_some());
        assert!(gpu_of(&machine(&["cpx_nps1"], Link::Xgmi).units[1].device, &inventory).is_none());
    }
}
