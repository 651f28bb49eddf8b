//! Acceptance of a machine before it takes work: named checks at four levels, as those of `dcgmi diag -r 1` to `4`, and their report.
//!
//! | module | contents |
//! |---|---|
//! | [`check`] | levels, outcomes, checks and the report |
//! | [`limits`] | the thresholds, with the reason of each |
//! | [`deployment`] | level 1: what the driver, sysfs and the kernel's log report without running anything on a GPU |
//! | [`load`] | levels 2 to 4: measurements and tests on the GPUs |
//! | `verdict` | what the measurements of [`load`] mean |
//! | [`watch`] | power, clocks, temperature and throttle reasons while a load runs; error counters before and after it |
//! | [`memory`] | the patterns of the memory test |
//! | [`accelerator`] | the seam to the hardware: what the checks of levels 2 to 4 run on a GPU |
//! | [`cuda`] | that seam on CUDA, cuBLAS and NCCL, each opened at run time |
//!
//! A check that could not run does not count as passed: a machine without NCCL passes level 3 only if its operator leaves the check out.
//!
//! Source of the levels and of the names `pcie`, `memory`, `memory_bandwidth`, `diagnostic`, `nvbandwidth`, `targeted_stress`,
//! `targeted_power`, `memtest` and `pulse_test`: NVIDIA, "DCGM Diagnostics" and "dcgmi diag", test names.

pub mod accelerator;
pub mod check;
pub mod cuda;
pub mod deployment;
pub mod limits;
pub mod load;
pub mod memory;
mod verdict;
pub mod watch;

use std::path::Path;

use slipway_core::clock::now_ms;

use crate::GpuError;
use crate::inventory::Inventory;
use crate::nvml::Nvml;
use crate::topology::Topology;
use accelerator::{Accelerator, Group, Hardware};
use check::{Check, Level, Report, Tested};
use limits::Limits;

/// Brings the ranks of this machine, whose number is given, into a group with those of other machines. It is called when the machine is
/// ready for the all-reduce.
pub type Join<'a> = dyn FnMut(&dyn Accelerator, usize) -> Result<Group, GpuError> + 'a;

/// What to check.
#[derive(Debug, Clone)]
pub struct Request {
    /// The highest level of the checks that run.
    pub level: Level,
    /// Run only these checks, by name; all checks of the level if empty.
    pub only: Vec<String>,
    /// Check only the GPUs with these indices of NVML; all if empty.
    pub gpus: Vec<u32>,
    /// The thresholds.
    pub limits: Limits,
}

impl Request {
    /// Checks everything up to a level with the default limits.
    pub fn new(level: Level) -> Self {
        Self { level, only: Vec::new(), gpus: Vec::new(), limits: Limits::default() }
    }

    /// Whether a check belongs to the request.
    pub fn includes(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// Runs the checks of the machine under `root` (usually `/`). `join` is for an all-reduce with other machines; `progress` is called with a
/// description before each step.
///
/// # Errors
/// [`GpuError::Invalid`] for a check or a GPU that does not exist, [`GpuError::Nvml`] if the GPUs cannot be counted.
pub fn run(
    nvml: &Nvml,
    hardware: &Hardware,
    root: &Path,
    request: &Request,
    join: Option<&mut Join<'_>>,
    progress: &mut dyn FnMut(&str),
) -> Result<Report, GpuError> {
    check::known(&request.only)?;
    check::known(&request.limits.skip)?;
    let started = now_ms();
    let sysfs = root.join("sys");
    let inventory = Inventory::collect(nvml)?;
    if let Some(unknown) = request.gpus.iter().find(|index| inventory.gpus.iter().all(|g| g.index != **index)) {
        return Err(GpuError::Invalid(format!("there is no GPU {unknown}; this machine has {}", inventory.gpus.len())));
    }
    let topology = Topology::collect(nvml, &inventory, &sysfs)?;
    let counters = watch::Counters::start(nvml, &inventory);
    progress("driver, links and devices");
    let mut checks = deployment::checks(&inventory, &topology, root, request);
    checks.extend(load::checks(nvml, hardware, &inventory, &topology, request, join, progress));
    checks.extend(counters.finish());
    checks.retain(|c| c.level <= request.level && request.includes(&c.name) && !request.limits.skip.contains(&c.name));
    checks.extend(request.limits.skip.iter().filter_map(|name| Check::left_out(name)));
    checks.sort_by_key(|c| c.level);
    let selected = |index: u32| request.gpus.is_empty() || request.gpus.contains(&index);
    Ok(Report {
        version: check::VERSION,
        simulated: inventory.simulated,
        machine: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        driver: inventory.driver.clone(),
        gpus: inventory
            .gpus
            .iter()
            .filter(|g| selected(g.index))
            .map(|g| Tested { index: g.index, uuid: g.uuid.clone(), name: g.name.clone() })
            .collect(),
        level: request.level,
        complete: request.only.is_empty() && request.gpus.is_empty(),
        started,
        finished: now_ms(),
        checks,
    })
}
