//! Observes GPUs while they are checked: samples of power, clocks, temperature and throttle reasons under load, and the error counters
//! before and after all checks.

use std::collections::{BTreeMap, BTreeSet};

use super::check::{Check, Measured, Outcome};
use crate::inventory::Inventory;
use crate::nvml::xid::{Effect, Xid};
use crate::nvml::{Clock, Nvml, Watch, codes};

/// What was sampled on one GPU under load.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples {
    /// Number of samples.
    pub count: usize,
    /// Largest power in W.
    pub power_watts: Option<f64>,
    /// Smallest and largest clock of the multiprocessors in MHz.
    pub clock_mhz: Option<(u32, u32)>,
    /// Highest temperature in °C.
    pub temperature_celsius: Option<u32>,
    /// Number of samples by throttle reason.
    pub throttle: BTreeMap<&'static str, usize>,
    /// Number of samples with at least one reason that indicates a problem.
    pub problems: usize,
}

impl Samples {
    /// Adds a sample of the GPU with this index of NVML.
    pub fn add(&mut self, nvml: &Nvml, index: u32) {
        let Ok(device) = nvml.device(index) else { return };
        self.count += 1;
        if let Ok(milliwatts) = device.power() {
            let watts = f64::from(milliwatts) / 1000.0;
            self.power_watts = Some(self.power_watts.map_or(watts, |max| max.max(watts)));
        }
        if let Ok(mhz) = device.clock(Clock::Sm) {
            self.clock_mhz = Some(self.clock_mhz.map_or((mhz, mhz), |(min, max)| (min.min(mhz), max.max(mhz))));
        }
        if let Ok(celsius) = device.temperature() {
            self.temperature_celsius = Some(self.temperature_celsius.map_or(celsius, |max| max.max(celsius)));
        }
        let mask = device.throttle().unwrap_or(0);
        for reason in codes::throttle_reasons(mask) {
            *self.throttle.entry(reason).or_default() += 1;
        }
        self.problems +=
            usize::from(codes::THROTTLE_REASONS.iter().any(|(bit, _, problem)| *problem && mask & bit != 0));
    }

    /// Power, clocks, temperature and reasons in words.
    pub fn describe(&self) -> String {
        let mut parts = Vec::new();
        parts.extend(self.power_watts.map(|w| format!("up to {w:.0} W")));
        parts.extend(self.clock_mhz.map(|(min, max)| format!("{min} to {max} MHz")));
        parts.extend(self.temperature_celsius.map(|c| format!("up to {c} °C")));
        let share = |n: usize| n * 100 / self.count.max(1);
        let reasons = self.throttle.iter().filter(|(reason, _)| **reason != "idle");
        parts.extend(reasons.map(|(reason, n)| format!("{reason} in {} % of the samples", share(*n))));
        parts.join(", ")
    }
}

/// Error counters of a GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Errors {
    corrected: Option<u64>,
    uncorrected: Option<u64>,
    replays: Option<u32>,
    remapped: Option<u32>,
}

fn errors(nvml: &Nvml, index: u32) -> Errors {
    let Ok(device) = nvml.device(index) else { return Errors::default() };
    Errors {
        corrected: device.ecc_corrected().ok(),
        uncorrected: device.ecc_uncorrected().ok(),
        replays: device.pcie_replays().ok(),
        remapped: device.remapped_rows().ok().map(|(corrected, uncorrected, ..)| corrected + uncorrected),
    }
}

/// PCIe packets that may be retransmitted during the checks: transfers of terabytes at the bit error rate of the PCIe specification
/// (10^-12) have a few.
const MAX_REPLAYS: u32 = 100;

/// The error counters of all GPUs, and their XIDs since the start.
pub(super) struct Counters<'a> {
    nvml: &'a Nvml,
    gpus: Vec<(u32, String, Errors)>,
    watch: Option<Watch<'a>>,
}

impl<'a> Counters<'a> {
    pub(super) fn start(nvml: &'a Nvml, inventory: &Inventory) -> Self {
        let devices: Vec<_> = inventory.gpus.iter().filter_map(|g| nvml.device(g.index).ok()).collect();
        let gpus = inventory.gpus.iter().map(|g| (g.index, g.bus_id.clone(), errors(nvml, g.index))).collect();
        Self { nvml, gpus, watch: nvml.watch(&devices).ok() }
    }

    /// The check `errors` of every GPU.
    pub(super) fn finish(self) -> Vec<Check> {
        let mut xids: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        while let Some(Ok(Some(event))) = self.watch.as_ref().map(|w| w.wait(1)) {
            xids.entry(event.bus_id).or_default().insert(event.data);
        }
        let of_lost = xids.remove("").unwrap_or_default();
        let check = |(index, bus_id, before): &(u32, String, Errors)| {
            let after = errors(self.nvml, *index);
            let new = |before: Option<u64>, after: Option<u64>| match (before, after) {
                (Some(before), Some(after)) => after.saturating_sub(before),
                _ => 0,
            };
            let number = |n: Option<u32>| n.map(u64::from);
            let uncorrected = new(before.uncorrected, after.uncorrected);
            let remapped = new(number(before.remapped), number(after.remapped));
            let corrected = new(before.corrected, after.corrected);
            let replays = new(number(before.replays), number(after.replays));
            let device = format!("gpu {index}");
            let xids: Vec<u64> = xids.get(bus_id).into_iter().flatten().chain(&of_lost).copied().collect();
            let harmful = xids.iter().filter(|n| Xid::new(**n).effect > Effect::Application);
            if let Some(number) = harmful.clone().next() {
                let hint = Xid::new(*number).action.instruction();
                let list = harmful.map(u64::to_string).collect::<Vec<_>>().join(", ");
                return Check::new("errors", device, Outcome::Fail, format!("XID {list} during the checks"))
                    .with_hint(hint);
            }
            let count = |value: u64| Measured {
                value: value as f64,
                unit: String::new(),
                expected: Some(0.0),
                minimum: None,
                source: None,
            };
            if uncorrected > 0 {
                let what = format!("{uncorrected} uncorrected memory errors during the checks");
                let hint = "drain the node, reset the GPU, and replace the card if the errors return";
                return Check::new("errors", device, Outcome::Fail, what)
                    .with_measured(count(uncorrected))
                    .with_hint(hint);
            }
            if remapped > 0 {
                let what = format!("{remapped} memory rows were remapped during the checks");
                let hint = "reset the GPU and repeat the checks: nvidia-smi --gpu-reset";
                return Check::new("errors", device, Outcome::Fail, what)
                    .with_measured(count(remapped))
                    .with_hint(hint);
            }
            if replays > u64::from(MAX_REPLAYS) {
                let what = format!("{replays} PCIe packets were retransmitted during the checks");
                let hint = "reseat the card or change the riser";
                return Check::new("errors", device, Outcome::Fail, what).with_measured(count(replays)).with_hint(hint);
            }
            if corrected > 0 {
                let what = format!("{corrected} corrected memory errors during the checks");
                let hint = "a few are normal; watch whether the number grows";
                return Check::new("errors", device, Outcome::Warn, what)
                    .with_measured(count(corrected))
                    .with_hint(hint);
            }
            Check::new("errors", device, Outcome::Pass, "no error and no XID during the checks")
        };
        self.gpus.iter().map(check).collect()
    }
}
