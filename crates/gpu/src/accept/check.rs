//! Levels, outcomes and checks, and the report that holds them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::GpuError;

/// Version of the report's format. A reader rejects other versions.
pub const VERSION: u32 = 1;

/// How thorough the checks are, from 1 to 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub struct Level(u8);

impl Level {
    /// Software, links and counters; seconds.
    pub const DEPLOYMENT: Self = Self(1);
    /// Also bandwidths and a short memory test; about two minutes.
    pub const MEDIUM: Self = Self(2);
    /// Also load on all GPUs at once, and the links between them; about 15 minutes.
    pub const LONG: Self = Self(3);
    /// Also all patterns on all free memory, longer load, and other machines; an hour or two.
    pub const EXTENDED: Self = Self(4);

    /// The number, 1 to 4.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl From<Level> for u8 {
    fn from(level: Level) -> Self {
        level.0
    }
}

impl TryFrom<u8> for Level {
    type Error = GpuError;
    fn try_from(number: u8) -> Result<Self, GpuError> {
        if (1..=4).contains(&number) {
            Ok(Self(number))
        } else {
            Err(GpuError::Invalid(format!("there is no acceptance level {number}; the levels are 1 to 4")))
        }
    }
}

impl FromStr for Level {
    type Err = GpuError;
    fn from_str(text: &str) -> Result<Self, GpuError> {
        let invalid = |_| GpuError::Invalid(format!("'{text}' is no acceptance level; the levels are 1 to 4"));
        text.parse::<u8>().map_err(invalid)?.try_into()
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The machine is as it should be.
    Pass,
    /// A weakness that does not prevent work.
    Warn,
    /// A defect, or a rate below its limit.
    Fail,
    /// The check does not apply to this machine, or was left out on request; it does not prevent acceptance.
    Skip,
    /// The check applies, but something that it needs is missing; the machine does not pass this check's level.
    CannotRun,
}

impl Outcome {
    /// The name, as in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skip => "skip",
            Self::CannotRun => "cannot-run",
        }
    }

    /// Whether a machine with this outcome can be accepted.
    pub fn is_acceptable(self) -> bool {
        matches!(self, Self::Pass | Self::Warn | Self::Skip)
    }
}

/// A measured number and what it is compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The measured value, in `unit`.
    pub value: f64,
    /// `GB/s` (10^9 bytes per second), `TFLOP/s`, `W`, `°C`, `%` or empty for a count.
    pub unit: String,
    /// The theoretical or listed value, in `unit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<f64>,
    /// The smallest value that passes, in `unit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<f64>,
    /// Source of `expected`, such as a data sheet or the formula of the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// The result of one check of one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The name, one of [`NAMES`].
    pub name: String,
    /// The lowest level that includes the check.
    pub level: Level,
    /// `machine`, `gpu 0`, `gpu 0 -> gpu 1` or `mlx5_0 port 1`.
    pub device: String,
    /// The result.
    pub outcome: Outcome,
    /// What was found, or why the check did not run.
    pub what: String,
    /// The measured number, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// What to do about an outcome other than [`Outcome::Pass`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// All checks: name, lowest level, and what it checks.
pub const NAMES: &[(&str, Level, &str)] = &[
    ("driver", Level::DEPLOYMENT, "kernel module, NVML and CUDA have one version; every GPU on the PCI bus responds"),
    ("permissions", Level::DEPLOYMENT, "this process may open the device files"),
    ("persistence", Level::DEPLOYMENT, "persistence mode is on"),
    ("page_retirement", Level::DEPLOYMENT, "no memory row waits for a reset, and none could not be remapped"),
    ("ecc", Level::DEPLOYMENT, "ECC is on, and there are no uncorrected memory errors"),
    ("fabric", Level::DEPLOYMENT, "the GPU is registered with its NVLink fabric"),
    ("xid", Level::DEPLOYMENT, "the kernel's log has no XID that damages a GPU"),
    ("pcie_link", Level::DEPLOYMENT, "PCIe has the width and generation of the card"),
    ("pcie_replays", Level::DEPLOYMENT, "few PCIe packets were retransmitted"),
    ("nvlink", Level::DEPLOYMENT, "all NVLinks are active"),
    ("mig", Level::DEPLOYMENT, "no change of the MIG mode is pending"),
    ("clocks", Level::DEPLOYMENT, "the hardware does not reduce the clocks"),
    ("power_limit", Level::DEPLOYMENT, "the power limit is the default"),
    ("same_model", Level::DEPLOYMENT, "all GPUs are the same model with the same memory"),
    ("processes", Level::DEPLOYMENT, "no other process uses the GPU"),
    ("rdma", Level::DEPLOYMENT, "RDMA devices have active ports"),
    ("rdma_distance", Level::DEPLOYMENT, "an active RDMA device is near the GPU"),
    ("gpudirect_rdma", Level::DEPLOYMENT, "RDMA devices can reach GPU memory"),
    ("pcie", Level::MEDIUM, "bandwidth between host and GPU, against the link"),
    ("memory", Level::MEDIUM, "two patterns on part of the memory"),
    ("memory_bandwidth", Level::MEDIUM, "bandwidth of the GPU's memory, against the data sheet"),
    ("targeted_stress", Level::LONG, "matrix products on all GPUs at once, against the data sheet"),
    ("diagnostic", Level::LONG, "equal matrix products have equal results under load"),
    ("targeted_power", Level::LONG, "the load reaches the power limit or the clock of the data sheet"),
    ("thermal", Level::LONG, "no hardware slowdown or power brake under load"),
    ("nvbandwidth", Level::LONG, "bandwidth between GPUs, against their links"),
    ("all_reduce", Level::LONG, "NCCL all-reduce between the GPUs, against their links"),
    ("memtest", Level::EXTENDED, "all patterns on all free memory"),
    ("pulse_test", Level::EXTENDED, "load that starts and stops on all GPUs at once"),
    ("all_reduce_nodes", Level::EXTENDED, "NCCL all-reduce between machines, against their RDMA devices"),
    ("errors", Level::DEPLOYMENT, "no error counter rose and no XID occurred during the checks"),
];

/// Returns an error for the first name that no check has.
///
/// # Errors
/// [`GpuError::Invalid`] with all names.
pub fn known(names: &[String]) -> Result<(), GpuError> {
    match names.iter().find(|name| NAMES.iter().all(|(known, ..)| known != name)) {
        None => Ok(()),
        Some(unknown) => {
            let all = NAMES.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ");
            Err(GpuError::Invalid(format!("there is no check '{unknown}'; the checks are {all}")))
        }
    }
}

impl Check {
    /// A check without a measured number. The level is that of the name in [`NAMES`].
    pub fn new(name: &'static str, device: impl Into<String>, outcome: Outcome, what: impl Into<String>) -> Self {
        let level = NAMES.iter().find(|(known, ..)| *known == name).map_or(Level::DEPLOYMENT, |(_, level, _)| *level);
        Self { name: name.into(), level, device: device.into(), outcome, what: what.into(), measured: None, hint: None }
    }

    /// Adds the hint.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Adds the measured number.
    #[must_use]
    pub fn with_measured(self, measured: Measured) -> Self {
        Self { measured: Some(measured), ..self }
    }

    /// A check that is left out on request.
    pub(super) fn left_out(name: &str) -> Option<Self> {
        let (name, ..) = NAMES.iter().find(|(known, ..)| *known == name)?;
        Some(Self::new(name, "machine", Outcome::Skip, "left out on request"))
    }

    /// A rate against `expected`: it fails below `share` (0 to 1) of it. Without an expected value the rate is only recorded.
    pub(super) fn rate(
        name: &'static str,
        device: impl Into<String>,
        (value, unit): (f64, &str),
        expected: Option<(f64, String)>,
        share: f64,
    ) -> Self {
        let (expected, source) = expected.unzip();
        let minimum = expected.map(|e| e * share);
        let measured = Measured { value, unit: unit.into(), expected, minimum, source };
        let (outcome, what) = match (expected, minimum) {
            (Some(expected), Some(minimum)) => {
                let what = format!("{value:.1} of {expected:.1} {unit}, {:.0} %", value / expected * 100.0);
                if value >= minimum {
                    (Outcome::Pass, what)
                } else {
                    (Outcome::Fail, format!("{what}; at least {:.0} % are required", share * 100.0))
                }
            }
            _ => (Outcome::Pass, format!("{value:.1} {unit}; there is no figure to compare it with")),
        };
        Self::new(name, device, outcome, what).with_measured(measured)
    }
}

/// A GPU that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are NVML's
pub struct Tested {
    pub index: u32,
    pub uuid: String,
    pub name: String,
}

/// The results of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this format, [`VERSION`].
    pub version: u32,
    /// Whether the GPUs were simulated. Such a report accepts simulated GPUs only.
    pub simulated: bool,
    /// Host name of the machine.
    pub machine: String,
    /// Version of the driver.
    pub driver: String,
    /// The GPUs, ordered by index.
    pub gpus: Vec<Tested>,
    /// The requested level.
    pub level: Level,
    /// Whether all checks of the level ran on all GPUs.
    pub complete: bool,
    /// Start in milliseconds since the Unix epoch.
    pub started: i64,
    /// End in milliseconds since the Unix epoch.
    pub finished: i64,
    /// The results, ordered by level.
    pub checks: Vec<Check>,
}

impl Report {
    /// Parses a report.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] if it is not a report of [`VERSION`].
    pub fn parse(text: &[u8]) -> Result<Self, GpuError> {
        let report: Self = serde_json::from_slice(text)
            .map_err(|e| GpuError::Invalid(format!("this is no acceptance report: {e}")))?;
        if report.version == VERSION {
            Ok(report)
        } else {
            let message = format!(
                "the acceptance report has version {}, and this program reads version {VERSION}",
                report.version
            );
            Err(GpuError::Invalid(message))
        }
    }

    /// Whether every check that ran on these GPUs is acceptable.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|c| c.outcome.is_acceptable())
    }

    /// The highest level whose checks, and those of the levels below it, are all acceptable; `None` if level 1 failed.
    pub fn passed_level(&self) -> Option<Level> {
        let lowest_failed = self.checks.iter().filter(|c| !c.outcome.is_acceptable()).map(|c| c.level.0).min();
        let passed = lowest_failed.map_or(self.level.0, |failed| failed - 1);
        Level::try_from(passed.min(self.level.0)).ok()
    }

    /// The checks that prevent acceptance.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|c| !c.outcome.is_acceptable())
    }
}
