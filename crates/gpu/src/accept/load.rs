//! The checks of levels 2 to 4: measurements and tests that run on the GPUs. They run one after the other, each on all GPUs that it can
//! load at once, because a power supply or a cooling that is too weak shows only then.

use std::sync::Arc;
use std::time::Duration;

use super::accelerator::{Accelerator, Ended, Group, Hardware, Load, MemoryTest, Need, measure};
use super::check::{Check, Level, NAMES, Outcome};
use super::memory::Pattern;
use super::verdict::{collective, power, repeated, thermal, with_failure_hint};
use super::watch::Samples;
use super::{Join, Request};
use crate::inventory::{Gpu, Inventory};
use crate::link::Link;
use crate::nvml::Nvml;
use crate::sheet::{self, Card, Precision};
use crate::topology::Topology;
use crate::{GpuError, pci, rdma};

/// Share of the free memory that the short test covers: half of it takes seconds, and the long test covers the rest.
const SHORT_SHARE: f64 = 0.5;
/// Share of the free memory that the long test covers; the rest is for the test itself and the driver.
const LONG_SHARE: f64 = 0.95;
/// Duration of the load that starts and stops, and of each of its phases: long enough for the power to rise and fall.
const PULSE_DURATION: Duration = Duration::from_secs(60);
const PULSE: Duration = Duration::from_millis(500);
/// Interval between two samples under load. NVML updates its readings less often than every 100 ms.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
/// Interval with simulated GPUs, whose loads last a fraction of a second.
const SIMULATED_SAMPLE_INTERVAL: Duration = Duration::from_millis(10);
/// Limits of measurements without a configured duration; each takes a small part of its limit on a machine without defects.
const COPY_LIMIT: Duration = Duration::from_secs(120);
const SHORT_MEMORY_LIMIT: Duration = Duration::from_secs(600);
const LONG_MEMORY_LIMIT: Duration = Duration::from_secs(4 * 3600);
const COLLECTIVE_LIMIT: Duration = Duration::from_secs(300);

/// The checks of this module in the order in which they run. Collectives come last, because they are the likeliest to hang.
const ORDER: &[&[&str]] = &[
    &["pcie"],
    &["memory"],
    &["memory_bandwidth"],
    &["nvbandwidth"],
    &["targeted_stress", "diagnostic", "targeted_power", "thermal"],
    &["pulse_test"],
    &["memtest"],
    &["all_reduce"],
    &["all_reduce_nodes"],
];

/// A machine under test.
struct Bench<'a> {
    nvml: &'a Nvml,
    accelerator: &'a Arc<dyn Accelerator>,
    topology: &'a Topology,
    request: &'a Request,
    /// The GPUs that can be loaded.
    gpus: Vec<&'a Gpu>,
    simulated: bool,
    /// What hangs, if anything does.
    hung: Option<String>,
}

/// Runs the checks of the request. `join` brings this machine's ranks into a group of several machines.
pub(super) fn checks(
    nvml: &Nvml,
    hardware: &Hardware,
    inventory: &Inventory,
    topology: &Topology,
    request: &Request,
    join: Option<&mut Join<'_>>,
    progress: &mut dyn FnMut(&str),
) -> Vec<Check> {
    let level_of =
        |name: &str| NAMES.iter().find(|(n, ..)| *n == name).map_or(Level::DEPLOYMENT, |(_, level, _)| *level);
    let runs = |name: &&str| {
        level_of(name) <= request.level && request.includes(name) && !request.limits.skip.iter().any(|s| s == name)
    };
    let mut join = join;
    let mut found: Vec<Check> = Vec::new();
    let steps: Vec<Vec<&'static str>> = ORDER
        .iter()
        .map(|step| step.iter().copied().filter(runs).collect::<Vec<_>>())
        .filter(|s| !s.is_empty())
        .collect();
    if steps.is_empty() {
        return found;
    }
    let unable = |what: &str, hint: Option<&str>| {
        let names = steps.iter().flatten();
        names
            .map(|name| Check {
                hint: hint.map(str::to_owned),
                ..Check::new(name, "machine", Outcome::CannotRun, what)
            })
            .collect::<Vec<_>>()
    };
    let accelerator = match hardware {
        Ok(accelerator) => accelerator,
        Err(error) => {
            let what = format!("the GPUs cannot be measured: {error}");
            found.extend(unable(&what, Some("slipway gpu stack shows which library is missing")));
            return found;
        }
    };
    let mut gpus = Vec::new();
    for gpu in inventory.gpus.iter().filter(|g| request.gpus.is_empty() || request.gpus.contains(&g.index)) {
        match obstacle(gpu) {
            None => gpus.push(gpu),
            Some((what, hint)) => {
                let device = format!("gpu {}", gpu.index);
                let names = steps.iter().flatten();
                found.extend(
                    names.map(|n| Check::new(n, device.clone(), Outcome::CannotRun, what.clone()).with_hint(hint)),
                );
            }
        }
    }
    if gpus.is_empty() {
        return found;
    }
    let mut bench = Bench { nvml, accelerator, topology, request, gpus, simulated: inventory.simulated, hung: None };
    for step in &steps {
        if let Some(hung) = &bench.hung {
            let what = format!("{hung} hangs, and everything after it would wait for it");
            found.extend(step.iter().map(|n| Check::new(n, "machine", Outcome::CannotRun, what.clone())));
            continue;
        }
        progress(&step.join(", "));
        found.extend(match step[0] {
            "pcie" => bench.pcie(),
            "memory" => bench.memory("memory", &Pattern::SHORT, SHORT_SHARE, SHORT_MEMORY_LIMIT),
            "memory_bandwidth" => bench.memory_bandwidth(),
            "nvbandwidth" => bench.peers(),
            "pulse_test" => bench.pulse(),
            "memtest" => bench.memory("memtest", &Pattern::LONG, LONG_SHARE, LONG_MEMORY_LIMIT),
            "all_reduce" => bench.all_reduce(),
            "all_reduce_nodes" => match &mut join {
                Some(join) => bench.all_reduce_nodes(*join),
                None => vec![
                    Check::new("all_reduce_nodes", "machine", Outcome::Skip, "no other machine was named")
                        .with_hint("run it on several machines at once: --nodes, --rank, --address and --token-file"),
                ],
            },
            _ => bench.stress(step),
        });
    }
    found
}

/// Why a GPU cannot be loaded, and what to do.
fn obstacle(gpu: &Gpu) -> Option<(String, &'static str)> {
    if gpu.uuid.is_empty() {
        return Some(("the GPU does not respond".into(), "see the check driver"));
    }
    if gpu.mig.as_ref().is_some_and(|m| m.enabled) {
        return Some((
            "MIG is on, and a load needs the whole GPU".into(),
            "turn MIG off for the checks: slipway gpu mig apply",
        ));
    }
    (!gpu.processes.is_empty()).then(|| {
        ("other processes use the GPU".into(), "drain the node, or stop the processes; see the check processes")
    })
}

impl Bench<'_> {
    /// The checks `names` of a device that did not produce a result.
    fn failed<T>(&mut self, names: &[&'static str], device: &str, ended: Ended<T>) -> Result<T, Vec<Check>> {
        let all = |what: String, hint: &str| {
            names.iter().map(|n| Check::new(n, device, Outcome::Fail, what.clone()).with_hint(hint)).collect()
        };
        match ended {
            Ended::Done(Ok(value)) => Ok(value),
            Ended::Done(Err(error)) => {
                Err(all(error.to_string(), "see the kernel's log for XIDs: dmesg | grep -i xid; `slipway gpu xid`"))
            }
            Ended::Hung(limit) => {
                self.hung = Some(names.first().copied().unwrap_or_default().to_owned());
                let what = format!("did not end within {} s", limit.as_secs());
                Err(all(
                    what,
                    "reset the GPU; if it hangs again, reboot the machine and look for XIDs in the kernel's log",
                ))
            }
        }
    }

    fn measure<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&dyn Accelerator) -> Result<T, GpuError> + Send + 'static,
    ) -> Ended<T> {
        measure(self.accelerator, limit, SAMPLE_INTERVAL, || {}, work)
    }

    /// Checks that cannot run because something is missing.
    fn missing(&self, names: &[&'static str], need: Need) -> Option<Vec<Check>> {
        let check = |name: &&'static str| {
            let what = format!("{} was not found", need.library());
            Check::new(name, "machine", Outcome::CannotRun, what).with_hint(need.hint())
        };
        (!self.accelerator.has(need)).then(|| names.iter().map(check).collect())
    }

    /// Bandwidth between host and GPU, one GPU after the other.
    fn pcie(&mut self) -> Vec<Check> {
        let mut found = Vec::new();
        for gpu in self.gpus.clone() {
            let (index, device) = (gpu.index, format!("gpu {}", gpu.index));
            let ended = self.measure(COPY_LIMIT, move |a| a.transfer(index));
            match self.failed(&["pcie"], &device, ended) {
                Err(checks) => found.extend(checks),
                Ok(rates) => {
                    let expected = gpu.pcie.as_ref().and_then(|p| {
                        let rate = pci::bandwidth(p.generation_max, p.width)?;
                        Some((rate, format!("PCIe generation {} x{}, one direction", p.generation_max, p.width)))
                    });
                    let slower = rates.to_device.min(rates.to_host);
                    let check = Check::rate("pcie", device, (slower, "GB/s"), expected, self.request.limits.pcie);
                    let what = format!(
                        "{}; to the GPU {:.1}, to the host {:.1} GB/s",
                        check.what, rates.to_device, rates.to_host
                    );
                    found.push(with_failure_hint(
                        Check { what, ..check },
                        "check the generation under load (slipway gpu show), the slot, the riser and the BIOS; pin this process to the GPU's NUMA node",
                    ));
                }
            }
            if self.hung.is_some() {
                break;
            }
        }
        found
    }

    /// Patterns on the memory of all GPUs at once.
    fn memory(&mut self, name: &'static str, patterns: &[Pattern], share: f64, limit: Duration) -> Vec<Check> {
        if let Some(missing) = self.missing(&[name], Need::Kernels) {
            return missing;
        }
        let indices: Vec<u32> = self.gpus.iter().map(|g| g.index).collect();
        let test = MemoryTest { patterns: patterns.to_vec(), share };
        let ended = self.measure(limit, move |a| a.memory_test(&indices, &test));
        let results = match self.failed(&[name], "machine", ended) {
            Ok(results) => results,
            Err(checks) => return checks,
        };
        let names = patterns.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ");
        let check = |(gpu, tested): (&&Gpu, super::memory::Tested)| {
            let device = format!("gpu {}", gpu.index);
            let bytes = slipway_core::units::bytes(tested.bytes);
            match tested.first {
                None if tested.bytes > 0 => Check::new(name, device, Outcome::Pass, format!("{bytes}: {names}")),
                None => Check::new(name, device, Outcome::CannotRun, "no memory is free"),
                Some((pattern, first)) => {
                    let what = format!(
                        "{} wrong words in {bytes}; the first at offset {:#x} with {}: wrote {:#018x}, read {:#018x}",
                        tested.mismatches,
                        first.address,
                        pattern.name(),
                        first.written,
                        first.read
                    );
                    Check::new(name, device, Outcome::Fail, what).with_hint("replace the card (RMA)")
                }
            }
        };
        self.gpus.iter().zip(results).map(check).collect()
    }

    /// Bandwidth of each GPU's memory.
    fn memory_bandwidth(&mut self) -> Vec<Check> {
        if let Some(missing) = self.missing(&["memory_bandwidth"], Need::Kernels) {
            return missing;
        }
        let mut found = Vec::new();
        for gpu in self.gpus.clone() {
            let (index, device) = (gpu.index, format!("gpu {}", gpu.index));
            let ended = self.measure(COPY_LIMIT, move |a| a.memory_bandwidth(index));
            match self.failed(&["memory_bandwidth"], &device, ended) {
                Err(checks) => found.extend(checks),
                Ok(rate) => {
                    let card = sheet::find(&gpu.name);
                    let expected = card.map(|c| (c.bandwidth(), format!("{}: {}", c.source, c.bandwidth_formula())));
                    let share = self.request.limits.memory_bandwidth;
                    found.push(with_failure_hint(
                        Check::rate("memory_bandwidth", device, (rate, "GB/s"), expected, share),
                        "check the memory clock (nvidia-smi -q -d CLOCK), ECC errors and remapped rows",
                    ));
                }
            }
            if self.hung.is_some() {
                break;
            }
        }
        found
    }

    /// The number format of the load: the first that all cards have a peak for.
    fn precision(&self) -> Precision {
        let cards: Vec<Card> = self.gpus.iter().filter_map(|g| sheet::find(&g.name)).collect();
        let all = |p: &Precision| cards.iter().all(|c| c.peak(*p).is_some());
        let unknown = cards.len() < self.gpus.len();
        let formats = [Precision::Bf16, Precision::Fp16, Precision::Fp32];
        formats.into_iter().filter(|p| !unknown || *p != Precision::Bf16).find(all).unwrap_or(Precision::Fp32)
    }

    /// Loads all GPUs and samples them.
    fn load(
        &mut self,
        names: &[&'static str],
        load: Load,
    ) -> Result<Vec<(super::accelerator::Loaded, Samples)>, Vec<Check>> {
        if let Some(missing) = self.missing(names, Need::Products) {
            return Err(missing);
        }
        let indices: Vec<u32> = self.gpus.iter().map(|g| g.index).collect();
        let mut samples = vec![Samples::default(); indices.len()];
        let (nvml, sampled) = (self.nvml, indices.clone());
        let interval = if self.simulated { SIMULATED_SAMPLE_INTERVAL } else { SAMPLE_INTERVAL };
        let limit = load.duration * 3 / 2 + COPY_LIMIT;
        let sample = || {
            for (samples, index) in samples.iter_mut().zip(&sampled) {
                samples.add(nvml, *index);
            }
        };
        let ended = measure(self.accelerator, limit, interval, sample, move |a| a.load(&indices, &load));
        let loaded = self.failed(names, "machine", ended)?;
        Ok(loaded.into_iter().zip(samples).collect())
    }

    /// Steady load on all GPUs.
    fn stress(&mut self, names: &[&'static str]) -> Vec<Check> {
        let limits = &self.request.limits;
        let seconds =
            if self.request.level >= Level::EXTENDED { limits.long_stress_seconds } else { limits.stress_seconds };
        let precision = self.precision();
        let loads = match self.load(names, Load { precision, duration: Duration::from_secs(seconds), pulse: None }) {
            Ok(loads) => loads,
            Err(checks) => return checks,
        };
        let mut found = Vec::new();
        for (gpu, (loaded, samples)) in self.gpus.iter().zip(&loads) {
            let (device, card) = (format!("gpu {}", gpu.index), sheet::find(&gpu.name));
            let described = samples.describe();
            let expected = card.as_ref().and_then(|c| {
                let (peak, achievable) = (c.peak(precision)?, c.achievable(precision));
                let source =
                    format!("{}: {}; {:.1} % of it is reached in practice", c.source, peak.formula, achievable * 100.0);
                Some((peak.tera * achievable, source))
            });
            for name in names {
                let check = match *name {
                    "targeted_stress" => {
                        let rate = (loaded.tera, "TFLOP/s");
                        let check = Check::rate(name, device.clone(), rate, expected.clone(), limits.stress);
                        let what = format!("{precision}, {seconds} s: {}; {described}", check.what);
                        with_failure_hint(
                            Check { what, ..check },
                            "compare power, clocks and temperature with the other GPUs; check the power limit, airflow and power cables",
                        )
                    }
                    "diagnostic" => repeated(name, device.clone(), loaded),
                    "targeted_power" => power(device.clone(), gpu, card.as_ref(), samples, limits.power),
                    _ => thermal(name, device.clone(), gpu, samples, limits.throttled),
                };
                found.push(check);
            }
        }
        found
    }

    /// Load that starts and stops on all GPUs at once: steps of the power that supplies and their cables must endure.
    fn pulse(&mut self) -> Vec<Check> {
        let load = Load { precision: self.precision(), duration: PULSE_DURATION, pulse: Some(PULSE) };
        match self.load(&["pulse_test"], load) {
            Err(checks) => checks,
            Ok(loads) => {
                let check = |(gpu, (loaded, samples)): (&&Gpu, &(super::accelerator::Loaded, Samples))| {
                    let device = format!("gpu {}", gpu.index);
                    let results = repeated("pulse_test", device.clone(), loaded);
                    if results.outcome == Outcome::Fail {
                        return results;
                    }
                    thermal("pulse_test", device, gpu, samples, self.request.limits.throttled)
                };
                self.gpus.iter().zip(&loads).map(check).collect()
            }
        }
    }

    /// The rate of the NVLinks between two GPUs in one direction, with its formula; `None` if they have none or the sheet lists none.
    fn nvlink_rate(&self, from: &Gpu, to: &Gpu) -> Option<(f64, String)> {
        let position = |gpu: &Gpu| self.topology.links.get(usize::try_from(gpu.index).ok()?).map(|l| (l, gpu.index));
        let (links, _) = position(from)?;
        let Link::NvLink(between) = *links.get(usize::try_from(to.index).ok()?)? else { return None };
        let card = sheet::find(&from.name).filter(|c| c.nvlink_gb_per_s > 0)?;
        let all = u32::try_from(from.nvlinks.len()).ok().filter(|n| *n > 0)?;
        let one_way = f64::from(card.nvlink_gb_per_s) / 2.0;
        let rate = one_way * f64::from(between.min(all)) / f64::from(all);
        Some((
            rate,
            format!("{}: {} GB/s in both directions, {between} of {all} links", card.source, card.nvlink_gb_per_s),
        ))
    }

    /// Copies between all pairs of GPUs; one check per GPU, for its slowest pair.
    fn peers(&mut self) -> Vec<Check> {
        if self.gpus.len() < 2 {
            return vec![Check::new("nvbandwidth", "machine", Outcome::Skip, "there is only one GPU")];
        }
        let mut found = Vec::new();
        for from in self.gpus.clone() {
            // The pair with the smallest share of its links' rate, or the smallest rate if no pair has links.
            let mut slowest: Option<(f64, Check)> = None;
            for to in self.gpus.clone().into_iter().filter(|to| to.index != from.index) {
                let (a, b) = (from.index, to.index);
                let device = format!("gpu {a} -> gpu {b}");
                let ended = self.measure(COPY_LIMIT, move |accelerator| accelerator.peer(a, b));
                match self.failed(&["nvbandwidth"], &device, ended) {
                    Err(checks) => {
                        found.extend(checks);
                        if self.hung.is_some() {
                            return found;
                        }
                    }
                    Ok(peer) => {
                        let expected = self.nvlink_rate(from, to);
                        let order = peer.rate / expected.as_ref().map_or(1.0, |(rate, _)| *rate);
                        let linked = expected.is_some();
                        let check = Check::rate(
                            "nvbandwidth",
                            device,
                            (peer.rate, "GB/s"),
                            expected,
                            self.request.limits.nvlink,
                        );
                        let way = if peer.direct { "directly" } else { "through the host" };
                        let mut check = Check { what: format!("slowest of this GPU, {way}: {}", check.what), ..check };
                        if linked && !peer.direct {
                            check.outcome = Outcome::Fail;
                        }
                        let check = with_failure_hint(
                            check,
                            "check the NVLinks (nvidia-smi nvlink -s and -e), the fabric manager, and IOMMU or ACS in the BIOS",
                        );
                        if slowest.as_ref().is_none_or(|(least, _)| order < *least) {
                            slowest = Some((order, check));
                        }
                    }
                }
            }
            found.extend(slowest.map(|(_, check)| check));
        }
        found
    }

    /// The bus bandwidth that the links allow: the slowest link of any pair, if NVLink connects all of them.
    fn collective_rate(&self) -> Option<(f64, String)> {
        let mut slowest: Option<(f64, String)> = None;
        for from in &self.gpus {
            for to in self.gpus.iter().filter(|to| to.index != from.index) {
                let rate = self.nvlink_rate(from, to)?;
                // Without switches a ring uses the links to two neighbours, so the links of all pairs count together.
                if slowest.as_ref().is_none_or(|(least, _)| rate.0 < *least) {
                    slowest = Some(rate);
                }
            }
        }
        slowest
    }

    /// An all-reduce between the GPUs of this machine.
    fn all_reduce(&mut self) -> Vec<Check> {
        if self.gpus.len() < 2 {
            return vec![Check::new("all_reduce", "machine", Outcome::Skip, "there is only one GPU")];
        }
        if let Some(missing) = self.missing(&["all_reduce"], Need::Collectives) {
            return missing;
        }
        let indices: Vec<u32> = self.gpus.iter().map(|g| g.index).collect();
        let ended = self.measure(COLLECTIVE_LIMIT, move |a| a.all_reduce(&indices, None));
        match self.failed(&["all_reduce"], "machine", ended) {
            Err(checks) => checks,
            Ok(result) => {
                let what = format!("{} GPUs", self.gpus.len());
                vec![collective("all_reduce", what, result, self.collective_rate(), self.request.limits.all_reduce)]
            }
        }
    }

    /// An all-reduce between machines.
    fn all_reduce_nodes(&mut self, join: &mut Join<'_>) -> Vec<Check> {
        const NAME: &str = "all_reduce_nodes";
        if let Some(missing) = self.missing(&[NAME], Need::Collectives) {
            return missing;
        }
        let group: Group = match join(&**self.accelerator, self.gpus.len()) {
            Ok(group) => group,
            Err(error) => {
                let hint = "start the command on all machines within the time limit, with the same --nodes, --address and token";
                return vec![Check::new(NAME, "machine", Outcome::Fail, error.to_string()).with_hint(hint)];
            }
        };
        let indices: Vec<u32> = self.gpus.iter().map(|g| g.index).collect();
        let (ranks, machines) = (group.ranks, group.machines);
        let ended = self.measure(COLLECTIVE_LIMIT, move |a| a.all_reduce(&indices, Some(&group)));
        match self.failed(&[NAME], "machine", ended) {
            Err(checks) => checks,
            Ok(result) => {
                let gbits: u32 =
                    if self.simulated { 0 } else { rdma::devices(self.sysfs()).iter().map(rdma::Device::gbits).sum() };
                let rate = (gbits > 0).then(|| {
                    let source = format!("{gbits} Gbit/s of active RDMA ports");
                    (f64::from(gbits) / 8.0, source)
                });
                // Inside the machine the links between its GPUs are the limit.
                let rate = match (rate, self.collective_rate()) {
                    (Some(network), Some(inside)) if inside.0 < network.0 => Some(inside),
                    (network, _) => network,
                };
                let what = format!("{ranks} GPUs of {machines} machines");
                vec![collective(NAME, what, result, rate, self.request.limits.all_reduce_nodes)]
            }
        }
    }

    fn sysfs(&self) -> &std::path::Path {
        std::path::Path::new("/sys")
    }
}
