//! Benchmarks of GPUs and CPUs: arithmetic, memory and transfers. A report can be stored, compared and drawn as a roofline.

mod compare;
pub mod cpu;
pub mod cuda;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::roofline::{Compute, Memory, Roofline};
use crate::sheet::{Grade, Precision};

pub use compare::{Difference, compare};

/// One benchmark measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "BenchmarkFigure")]
pub struct Figure {
    /// The benchmark, such as `gemm`, `fma`, `memory copy`, `launch`.
    pub what: String,
    /// The device or transfer path: `gpu 0`, `gpu 0 -> gpu 1`, `host -> gpu 0`, `cpu`.
    pub device: String,
    /// The number format, for arithmetic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Rows of a square matrix product, or bytes of a working set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Median of the samples, in `unit`.
    pub median: f64,
    /// Smallest and largest sample, in `unit`.
    pub range: (f64, f64),
    /// Unit of the values: `TFLOP/s`, `TOP/s`, `GB/s` or `us`.
    pub unit: String,
    /// Number of samples.
    pub samples: usize,
    /// Theoretical peak from the data sheet, in `unit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak: Option<f64>,
    /// Rating against what cards of this model achieve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grade: Option<Grade>,
    /// The likely cause if the grade is not ok.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// State of the GPU just after the measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Conditions>,
}

/// The state of a GPU just after a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)] // the names include the units
#[schemars(rename = "BenchmarkConditions")]
pub struct Conditions {
    pub clock_sm_mhz: Option<u32>,
    pub power_watts: Option<f64>,
    pub temperature_celsius: Option<u32>,
    pub throttle: Vec<String>,
}

/// The results of one benchmark run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "BenchmarkReport")]
pub struct Report {
    /// Time of the run in milliseconds since the Unix epoch.
    pub time: i64,
    /// Host name of the machine.
    pub host: String,
    /// Names of the measured devices.
    pub devices: Vec<String>,
    /// Driver version; empty for CPU benchmarks.
    pub driver: String,
    /// The measurements.
    pub figures: Vec<Figure>,
}

/// The number of samples and the problem sizes, which determine the run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Number of samples per measurement.
    pub samples: usize,
    /// Rows of the largest square matrix.
    pub matrix: usize,
}

impl Effort {
    /// Takes seconds in total.
    pub const QUICK: Self = Self { samples: 5, matrix: 4096 };
    /// Takes minutes in total.
    pub const FULL: Self = Self { samples: 15, matrix: 16384 };
}

/// Median, and (smallest, largest) of the samples; `None` without samples.
///
/// ```
/// assert_eq!(slipway_gpu::bench::median(vec![3.0, 1.0, 2.0]), Some((2.0, (1.0, 3.0))));
/// ```
pub fn median(mut samples: Vec<f64>) -> Option<(f64, (f64, f64))> {
    samples.sort_by(f64::total_cmp);
    let (first, last) = (*samples.first()?, *samples.last()?);
    let half = samples.len() / 2;
    let middle =
        if samples.len().is_multiple_of(2) { (samples[half - 1] + samples[half]) / 2.0 } else { samples[half] };
    Some((middle, (first, last)))
}

impl Figure {
    pub(crate) fn new(what: &str, device: &str, unit: &str, samples: Vec<f64>) -> Option<Self> {
        let count = samples.len();
        let (median, range) = median(samples)?;
        Some(Self {
            what: what.into(),
            device: device.into(),
            precision: None,
            size: None,
            median,
            range,
            unit: unit.into(),
            samples: count,
            peak: None,
            grade: None,
            cause: None,
            conditions: None,
        })
    }

    /// Identifies the measurement, to match figures of two reports.
    fn key(&self) -> (&str, &str, Option<Precision>, Option<u64>) {
        (&self.what, &self.device, self.precision, self.size)
    }
}

impl Report {
    /// The measured roofline of a device; `None` without arithmetic or memory measurements.
    pub fn roofline(&self, device: &str) -> Option<Roofline> {
        let own = || self.figures.iter().filter(|f| f.device == device);
        let mut compute: Vec<Compute> = Vec::new();
        for figure in own().filter(|f| matches!(f.what.as_str(), "gemm" | "fma")) {
            let Some(precision) = figure.precision else { continue };
            match compute.iter_mut().find(|c| c.precision == precision) {
                Some(c) => c.tera = c.tera.max(figure.median),
                None => compute.push(Compute { precision, tera: figure.median }),
            }
        }
        let mut memory: Vec<Memory> = Vec::new();
        for figure in own() {
            // Workloads mostly read, so only read bandwidth defines the memory ceilings.
            if let Some(level) = figure.what.strip_suffix(" read") {
                memory.push(Memory { level: level.into(), gigabytes: figure.median });
            }
        }
        memory.sort_by(|a, b| a.gigabytes.total_cmp(&b.gigabytes));
        let number = device.rsplit(' ').next().and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
        let machine = self.devices.get(number).or(self.devices.first()).cloned().unwrap_or_default();
        (!compute.is_empty() && !memory.is_empty()).then_some(Roofline { machine, measured: true, compute, memory })
    }

    /// Messages about GPUs that are slower than the fastest GPU in a measurement by more than `share` (0 to 1).
    pub fn outliers(&self, share: f64) -> Vec<String> {
        let mut found = Vec::new();
        for figure in
            self.figures.iter().filter(|f| f.unit != "us" && f.device.starts_with("gpu ") && !f.device.contains("->"))
        {
            let same = |f: &&Figure| (&f.what, f.precision, f.size) == (&figure.what, figure.precision, figure.size);
            let best = self.figures.iter().filter(same).map(|f| f.median).fold(0.0, f64::max);
            if figure.median < best * (1.0 - share) {
                let precision = figure.precision.map(|p| format!(" {p}")).unwrap_or_default();
                found.push(format!(
                    "{} is {:.0} % slower than the fastest in {}{precision}",
                    figure.device,
                    (1.0 - figure.median / best) * 100.0,
                    figure.what
                ));
            }
        }
        found
    }

    /// Formats the report as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!("# Benchmark of {}\n\n", self.devices.join(", "));
        if !self.driver.is_empty() {
            text.push_str(&format!("Driver {}. ", self.driver));
        }
        text.push_str(&format!("Host {}, {} ms since 1970.\n\n| what | device | format | size | median | range | of peak | grade |\n|---|---|---|---|---|---|---|---|\n", self.host, self.time));
        for f in &self.figures {
            let peak = f.peak.map(|p| format!("{:.0} %", f.median / p * 100.0)).unwrap_or_default();
            let grade = f.grade.map(|g| format!("{g:?}").to_lowercase()).unwrap_or_default();
            text.push_str(&format!(
                "| {} | {} | {} | {} | {:.2} {} | {:.2} to {:.2} | {peak} | {grade} |\n",
                f.what,
                f.device,
                f.precision.map(Precision::name).unwrap_or_default(),
                f.size.map(|s| s.to_string()).unwrap_or_default(),
                f.median,
                f.unit,
                f.range.0,
                f.range.1
            ));
        }
        text
    }
}
