//! Capacity of this machine: processors, memory and GPUs. The reconciler allocates it to queued runs in the order of submission. A run
//! that does not fit still reserves its demand, so later runs cannot take the same resources first.

use serde::{Deserialize, Serialize};

use super::Device;
use crate::ExecError;
use crate::manifest::Resources;

/// Resources that a run, or a step of a pipeline, occupies while it is active.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    /// Processors; fractions are allowed.
    pub processors: f64,
    /// Bytes of memory.
    pub bytes: f64,
    /// Resource names, such as `nvidia.com/gpu`, and the number of devices of each.
    pub gpus: Vec<(String, u32)>,
}

impl Demand {
    /// What is requested. The default is one processor, so that a queue of runs does not start all at once.
    pub fn new(resources: &Resources) -> Self {
        Self {
            processors: resources.amount("cpu").unwrap_or(1.0),
            bytes: resources.amount("memory").unwrap_or(0.0),
            gpus: resources.gpus().into_iter().map(|(name, n)| (name.to_owned(), n)).collect(),
        }
    }
}

/// Resources of a machine: all of them, or those that are free.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Capacity {
    /// Number of processors; negative when queued runs demand more than is free.
    pub processors: f64,
    /// Bytes of memory; negative when queued runs demand more than is free.
    pub bytes: f64,
    /// GPUs and MIG slices.
    pub devices: Vec<Device>,
}

impl Capacity {
    /// Detects the processors and the memory of this machine. The caller adds the GPUs.
    pub fn detect() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib =
            memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
        Self { processors, bytes: kib.unwrap_or(0.0) * 1024.0, devices: Vec::new() }
    }

    fn count(&self, resource: &str) -> u32 {
        u32::try_from(self.devices.iter().filter(|d| d.resource == resource).count()).unwrap_or(u32::MAX)
    }

    /// Checks that a demand fits.
    ///
    /// # Errors
    /// [`ExecError::TooLarge`] that names the insufficient resources.
    pub fn check_fits(&self, demand: &Demand) -> Result<(), ExecError> {
        let missing = self.shortfall(demand);
        if missing.is_empty() {
            Ok(())
        } else {
            Err(ExecError::TooLarge(format!("the run needs {}", missing.join(" and "))))
        }
    }

    /// Describes each resource of which there is not enough for a demand; empty if the demand fits.
    pub(super) fn shortfall(&self, demand: &Demand) -> Vec<String> {
        let mut missing = Vec::new();
        if demand.processors > self.processors {
            missing.push(format!("{} processors ({} available)", demand.processors, self.processors.max(0.0)));
        }
        if demand.bytes > self.bytes {
            let (needed, available) = (demand.bytes as u64, self.bytes.max(0.0) as u64);
            missing.push(format!(
                "{} of memory ({} available)",
                slipway_core::units::bytes(needed),
                slipway_core::units::bytes(available)
            ));
        }
        for (resource, n) in &demand.gpus {
            let available = self.count(resource);
            if *n > available {
                missing.push(format!("{n} {resource} ({available} available)"));
            }
        }
        missing
    }

    /// Subtracts a demand and returns the devices chosen for it. A demand that does not fit is subtracted too, which may make amounts
    /// negative: this keeps free resources for the run that waits longest.
    pub(super) fn allocate(&mut self, demand: &Demand) -> Vec<Device> {
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

    /// Subtracts what an active attempt occupies.
    pub(super) fn subtract(&mut self, processors: f64, bytes: f64, devices: &[Device]) {
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
    fn queued_runs_are_fifo_per_resource() {
        let device = |i: u32| Device { uuid: format!("GPU-{i}"), resource: "nvidia.com/gpu".into() };
        let mut capacity = Capacity { processors: 4.0, bytes: 100.0, devices: vec![device(0), device(1)] };
        let two = Demand { processors: 1.0, bytes: 10.0, gpus: gpus(2) };
        capacity.subtract(1.0, 10.0, &[device(0)]);
        assert_eq!(capacity.shortfall(&two), ["2 nvidia.com/gpu (1 available)"]);
        capacity.allocate(&two);
        // The free GPU is kept for the queued run, which needs two. The other processors stay available.
        assert_eq!(
            capacity.shortfall(&Demand { processors: 1.0, bytes: 0.0, gpus: gpus(1) }),
            ["1 nvidia.com/gpu (0 available)"]
        );
        assert!(capacity.shortfall(&Demand { processors: 2.0, bytes: 0.0, gpus: gpus(0) }).is_empty());
        assert_eq!(
            capacity.shortfall(&Demand { processors: 3.0, bytes: 0.0, gpus: gpus(0) }),
            ["3 processors (2 available)"]
        );
    }
}
