//! Who may start: processors, memory and GPUs of this machine, given to runs in the order in which they came.

use serde::{Deserialize, Serialize};

use super::Device;
use crate::ExecError;
use crate::manifest::RunSpec;

/// What a run takes while it runs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Demand {
    pub(super) processors: f64,
    pub(super) bytes: f64,
    pub(super) gpus: Vec<(String, u32)>,
}

impl Demand {
    /// One processor unless it says otherwise: the machine has other things to do than to run everything at once.
    pub(super) fn of(spec: &RunSpec) -> Self {
        Self {
            processors: spec.resources.amount("cpu").unwrap_or(1.0),
            bytes: spec.resources.amount("memory").unwrap_or(0.0),
            gpus: spec.resources.gpus().into_iter().map(|(name, n)| (name.to_owned(), n)).collect(),
        }
    }
}

/// What a machine has, or has left.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Room {
    /// Processors.
    pub processors: f64,
    /// Bytes of memory.
    pub bytes: f64,
    /// GPUs and slices.
    pub devices: Vec<Device>,
}

impl Room {
    /// This machine's, without GPUs.
    pub fn of_this_machine() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib =
            memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
        Self { processors, bytes: kib.unwrap_or(0.0) * 1024.0, devices: Vec::new() }
    }

    fn count(&self, resource: &str) -> u32 {
        u32::try_from(self.devices.iter().filter(|d| d.resource == resource).count()).unwrap_or(u32::MAX)
    }

    /// Whether a demand could ever be met.
    pub(super) fn could(&self, demand: &Demand) -> Result<(), ExecError> {
        let more = self.lacks(demand);
        if more.is_empty() { Ok(()) } else { Err(ExecError::TooLarge(format!("the run needs {}", more.join(" and ")))) }
    }

    /// What is missing for a demand, in words; nothing if it fits.
    pub(super) fn lacks(&self, demand: &Demand) -> Vec<String> {
        let mut missing = Vec::new();
        if demand.processors > self.processors {
            missing.push(format!("{} processors of {}", demand.processors, self.processors.max(0.0)));
        }
        if demand.bytes > self.bytes {
            let (want, have) = (demand.bytes as u64, self.bytes.max(0.0) as u64);
            missing.push(format!(
                "{} of memory of {}",
                slipway_core::units::bytes(want),
                slipway_core::units::bytes(have)
            ));
        }
        for (resource, n) in &demand.gpus {
            let have = self.count(resource);
            if *n > have {
                missing.push(format!("{n} {resource} of {have}"));
            }
        }
        missing
    }

    /// Takes a demand out of the room, with the devices that were chosen for it. What does not fit leaves less than nothing, so that
    /// who came later does not overtake who waits for the same.
    pub(super) fn take(&mut self, demand: &Demand) -> Vec<Device> {
        self.processors -= demand.processors;
        self.bytes -= demand.bytes;
        let mut chosen = Vec::new();
        for (resource, n) in &demand.gpus {
            for _ in 0..*n {
                if let Some(at) = self.devices.iter().position(|d| d.resource == *resource) {
                    chosen.push(self.devices.remove(at));
                }
            }
        }
        chosen
    }

    /// Takes out what a running try holds.
    pub(super) fn hold(&mut self, processors: f64, bytes: f64, devices: &[Device]) {
        self.processors -= processors;
        self.bytes -= bytes;
        self.devices.retain(|d| !devices.iter().any(|held| held.uuid == d.uuid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus(n: u32) -> Vec<(String, u32)> {
        if n == 0 { Vec::new() } else { vec![("nvidia.com/gpu".into(), n)] }
    }

    #[test]
    fn who_waits_is_not_overtaken_by_who_wants_the_same() {
        let device = |i: u32| Device { uuid: format!("GPU-{i}"), resource: "nvidia.com/gpu".into() };
        let mut room = Room { processors: 4.0, bytes: 100.0, devices: vec![device(0), device(1)] };
        let two = Demand { processors: 1.0, bytes: 10.0, gpus: gpus(2) };
        room.hold(1.0, 10.0, &[device(0)]);
        assert_eq!(room.lacks(&two), ["2 nvidia.com/gpu of 1"]);
        room.take(&two);
        // The GPU that is free is kept for the one that waits; a processor is not.
        assert_eq!(room.lacks(&Demand { processors: 1.0, bytes: 0.0, gpus: gpus(1) }), ["1 nvidia.com/gpu of 0"]);
        assert!(room.lacks(&Demand { processors: 2.0, bytes: 0.0, gpus: gpus(0) }).is_empty());
        assert_eq!(room.lacks(&Demand { processors: 3.0, bytes: 0.0, gpus: gpus(0) }), ["3 processors of 2"]);
    }
}
