//! The thresholds of the checks. Each default has its reason here; a YAML file changes some of them.
//!
//! ```yaml
//! pcie: 0.8
//! stressSeconds: 900
//! rdmaPorts: 8
//! skip: [all_reduce]
//! ```

use serde::{Deserialize, Serialize};

use crate::GpuError;

/// The thresholds. Shares are from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Limits {
    /// Share of the PCIe link's rate in one direction that a copy must reach. The headers of a packet take 24 to 28 bytes, so packets of
    /// 128 bytes, which many systems use, leave about 83 %; a link with half the width or one generation less leaves at most 50 %. The
    /// limit is between the two.
    pub pcie: f64,
    /// Share of the data sheet's memory bandwidth that reading must reach: 90 % of what a large copy reaches
    /// ([`Card::achievable_bandwidth`](crate::sheet::Card::achievable_bandwidth)).
    pub memory_bandwidth: f64,
    /// Share of the rate that GPUs of the model reach in matrix products ([`Card::achievable`](crate::sheet::Card::achievable)) that the
    /// load must hold for its whole duration, with all other GPUs under load. Below 90 % a benchmark is graded as suspicious; heat after
    /// minutes takes some percent more.
    pub stress: f64,
    /// Share of the power limit that the load must reach, unless the clock is that of the data sheet. A GPU that reaches neither gets too
    /// little power or work.
    pub power: f64,
    /// Share of the samples under load in which the hardware may reduce the clocks. One sample can be a short peak of the power.
    pub throttled: f64,
    /// Share of the NVLinks' rate in one direction that a copy between two GPUs must reach. The protocol takes about 20 % (H100: 370 of
    /// 450 GB/s; NVIDIA in the issue nccl-tests 212); without NVLink a copy reaches less than 15 %.
    pub nvlink: f64,
    /// Share of the NVLinks' rate in one direction that the bus bandwidth of an all-reduce must reach. Rings reach what copies do (see
    /// above) on H100, somewhat less on A100 (200 of 300 GB/s; issue nccl-tests 149), and reductions in the switch up to 480 of 450 GB/s.
    pub all_reduce: f64,
    /// Share of the rate of a machine's active RDMA ports that the bus bandwidth of an all-reduce between machines must reach.
    pub all_reduce_nodes: f64,
    /// Number of RDMA ports that must be active; 0 if any number is right.
    pub rdma_ports: usize,
    /// Duration of the load at level 3 in seconds. Five minutes are enough for the temperature of heat sinks to settle.
    pub stress_seconds: u64,
    /// Duration of the load at level 4 in seconds.
    pub long_stress_seconds: u64,
    /// Checks to leave out, by name.
    pub skip: Vec<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pcie: 0.7,
            memory_bandwidth: 0.81,
            stress: 0.85,
            power: 0.75,
            throttled: 0.05,
            nvlink: 0.7,
            all_reduce: 0.65,
            all_reduce_nodes: 0.65,
            rdma_ports: 0,
            stress_seconds: 300,
            long_stress_seconds: 1800,
            skip: Vec::new(),
        }
    }
}

/// The longest duration of a load: a day.
const MAX_STRESS_SECONDS: u64 = 24 * 3600;

impl Limits {
    /// Parses a YAML file of limits; limits that it does not have keep their defaults.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] that names the invalid limit.
    pub fn parse(text: &str) -> Result<Self, GpuError> {
        let limits: Self = serde_saphyr::from_str(text).map_err(|e| GpuError::Invalid(format!("the limits: {e}")))?;
        for (name, share) in [
            ("pcie", limits.pcie),
            ("memoryBandwidth", limits.memory_bandwidth),
            ("stress", limits.stress),
            ("power", limits.power),
            ("throttled", limits.throttled),
            ("nvlink", limits.nvlink),
            ("allReduce", limits.all_reduce),
            ("allReduceNodes", limits.all_reduce_nodes),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(GpuError::Invalid(format!(
                    "the limits: {name} is {share}; it must be a share from 0 to 1"
                )));
            }
        }
        for (name, seconds) in
            [("stressSeconds", limits.stress_seconds), ("longStressSeconds", limits.long_stress_seconds)]
        {
            if !(1..=MAX_STRESS_SECONDS).contains(&seconds) {
                let message = format!("the limits: {name} is {seconds}; it must be from 1 to {MAX_STRESS_SECONDS} s");
                return Err(GpuError::Invalid(message));
            }
        }
        super::check::known(&limits.skip)?;
        Ok(limits)
    }
}
