//! Data sheets of cards: theoretical peaks with their formulas, and the share of them that is achievable in practice.
//!
//! Peak = multiprocessors x operations per cycle per multiprocessor x clock. The operations per cycle come from NVIDIA's
//! white paper of each architecture; a multiply-add counts as two. Tensor core values are dense (no 2:4 sparsity) with
//! accumulation in fp32, which GeForce cards compute at half rate.

mod lookup;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::GpuError;
pub use lookup::{candidates, find};

/// A number format of arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names are the standard ones
#[schemars(rename = "NumberFormat")]
pub enum Precision {
    Fp64,
    Fp32,
    Tf32,
    Fp16,
    Bf16,
    Fp8,
    Int8,
    Fp6,
    Fp4,
}

impl Precision {
    /// All number formats, widest first.
    pub const ALL: [Self; 9] =
        [Self::Fp64, Self::Fp32, Self::Tf32, Self::Fp16, Self::Bf16, Self::Fp8, Self::Int8, Self::Fp6, Self::Fp4];

    /// Bytes of one number in memory, without the scales of block formats such as MXFP4 and NVFP4.
    pub fn bytes(self) -> f64 {
        match self {
            Self::Fp64 => 8.0,
            Self::Fp32 | Self::Tf32 => 4.0,
            Self::Fp16 | Self::Bf16 => 2.0,
            Self::Fp8 | Self::Int8 => 1.0,
            Self::Fp6 => 0.75,
            Self::Fp4 => 0.5,
        }
    }

    /// The name, such as `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp64 => "fp64",
            Self::Fp32 => "fp32",
            Self::Tf32 => "tf32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::Fp6 => "fp6",
            Self::Fp4 => "fp4",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = GpuError;
    fn from_str(text: &str) -> Result<Self, GpuError> {
        Self::ALL.into_iter().find(|p| p.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            GpuError::Invalid(format!("unknown number format '{text}': expected one of {names}"))
        })
    }
}

/// Operations per cycle of one multiprocessor of a chip.
struct Chip {
    name: &'static str,
    architecture: &'static str,
    /// CUDA cores per multiprocessor.
    cores: u32,
    /// fp64 operations per cycle without tensor cores.
    fp64: u32,
    /// Tensor core operations per cycle for fp64, tf32, fp16, bf16, fp8, int8, fp6 and fp4; 0 if unsupported.
    tensor: [u32; 8],
}

const fn chip(name: &'static str, architecture: &'static str, cores: u32, fp64: u32, tensor: [u32; 8]) -> Chip {
    Chip { name, architecture, cores, fp64, tensor }
}

/// Sources: the white papers Pascal (P100), Volta (V100), Turing, Ampere (A100; GA102), Ada, Hopper (H100), and
/// Blackwell data sheets; table "Peak rates" or "Throughput" in each, divided by multiprocessors and clock. Data sheets print rates
/// with 2:4 sparsity beside or instead of the dense ones, which are half as large and are the ones used here.
///
/// `ga10x-half` (A10G) computes at half of the A10's tensor rate, `ad10x-half` (L20, L40) at half of the L40S's. `gh100-h800` and `gh20` are Hopper for export: the first lacks fp64,
/// the second most of the tensor rate. `gb110` (Blackwell Ultra: B300, GB300) trades fp64 and int8 for half as much fp4 again.
const CHIPS: [Chip; 20] = [
    chip("gp100", "Pascal", 64, 64, [0; 8]),
    chip("gp10x", "Pascal", 128, 8, [0; 8]),
    chip("gv100", "Volta", 64, 64, [0, 0, 1024, 0, 0, 0, 0, 0]),
    chip("tu10x", "Turing", 64, 4, [0, 0, 1024, 0, 0, 2048, 0, 0]),
    chip("tu10x-geforce", "Turing", 64, 4, [0, 0, 512, 0, 0, 2048, 0, 0]),
    chip("ga100", "Ampere", 64, 64, [128, 1024, 2048, 2048, 0, 4096, 0, 0]),
    chip("ga10x", "Ampere", 128, 4, [0, 512, 1024, 1024, 0, 2048, 0, 0]),
    chip("ga10x-half", "Ampere", 128, 4, [0, 256, 512, 512, 0, 1024, 0, 0]),
    chip("ga10x-geforce", "Ampere", 128, 4, [0, 256, 512, 512, 0, 2048, 0, 0]),
    chip("ad10x", "Ada", 128, 4, [0, 512, 1024, 1024, 2048, 2048, 0, 0]),
    chip("ad10x-half", "Ada", 128, 4, [0, 256, 512, 512, 1024, 1024, 0, 0]),
    chip("ad10x-geforce", "Ada", 128, 4, [0, 256, 512, 512, 1024, 2048, 0, 0]),
    chip("gh100", "Hopper", 128, 128, [256, 2048, 4096, 4096, 8192, 8192, 0, 0]),
    chip("gh100-h800", "Hopper", 128, 4, [0, 2048, 4096, 4096, 8192, 8192, 0, 0]),
    chip("gh20", "Hopper", 128, 6, [0, 512, 1024, 1024, 2048, 2048, 0, 0]),
    chip("gb100", "Blackwell", 128, 128, [128, 4096, 8192, 8192, 16384, 16384, 16384, 32768]),
    chip("gb110", "Blackwell", 128, 4, [0, 4096, 8192, 8192, 16384, 512, 16384, 49152]),
    chip("gb20x", "Blackwell", 128, 4, [0, 512, 1024, 1024, 2048, 2048, 2048, 4096]),
    chip("gb20x-geforce", "Blackwell", 128, 4, [0, 256, 512, 512, 1024, 2048, 1024, 4096]),
    chip("unknown", "unknown", 0, 0, [0; 8]),
];

/// The data sheet of a card.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)] // the names include the units
pub struct Card {
    /// The product name that the driver reports, without "NVIDIA".
    pub name: &'static str,
    /// Words that people add to the name, such as `SXM5 80GB`; empty for most cards.
    pub also: &'static str,
    pub chip: &'static str,
    pub architecture: &'static str,
    pub compute_capability: &'static str,
    pub multiprocessors: u32,
    pub cores_per_multiprocessor: u32,
    pub boost_mhz: u32,
    pub tensor_mhz: u32,
    /// The memory in the product's name, in the seller's GB.
    pub memory_gb: u64,
    /// The memory that the driver reports with ECC as delivered, in MiB (`nvidia-smi`); [`Card::memory_gb`] in GiB where no report
    /// is public. This is the figure to compare with `gpu ls` and with MIG instances.
    pub memory_mib: u64,
    pub bus_bits: u32,
    pub gbits_per_pin: f64,
    pub power_watts: u32,
    pub nvlink_gb_per_s: u32,
    pub pcie_generation: u32,
    pub source: &'static str,
}

/// A theoretical peak with its formula.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Peak {
    /// The number format.
    pub precision: Precision,
    /// 10^12 operations per second.
    pub tera: f64,
    /// Whether tensor cores are used.
    pub tensor: bool,
    /// The formula with the values of the card.
    pub formula: String,
}

/// The data sheets of all known cards.
pub fn cards() -> Vec<Card> {
    include_str!("cards.csv").lines().filter(|l| !l.starts_with('#')).filter_map(card).collect()
}

fn card(line: &'static str) -> Option<Card> {
    let fields: Vec<&'static str> = line.split('|').collect();
    let [name, also, chip, capability, sms, boost, tensor, memory, mib, bus, pin, power, nvlink, pcie, source] =
        fields.try_into().ok()?;
    let known = CHIPS.iter().find(|c| c.name == chip)?;
    let memory_gb: u64 = memory.parse().ok()?;
    let reported: u64 = mib.parse().ok()?;
    Some(Card {
        name,
        also,
        chip,
        architecture: known.architecture,
        compute_capability: capability,
        multiprocessors: sms.parse().ok()?,
        cores_per_multiprocessor: known.cores,
        boost_mhz: boost.parse().ok()?,
        tensor_mhz: tensor.parse().ok()?,
        memory_gb,
        memory_mib: if reported == 0 { memory_gb * 1024 } else { reported },
        bus_bits: bus.parse().ok()?,
        gbits_per_pin: pin.parse().ok()?,
        power_watts: power.parse().ok()?,
        nvlink_gb_per_s: nvlink.parse().ok()?,
        pcie_generation: pcie.parse().ok()?,
        source,
    })
}

/// A machine that a GPU is built into, so that their numbers are fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// GPUs of a machine.
    pub gpus: u64,
    /// GPUs that NVLink connects, which may be those of several machines.
    pub nvlink: u64,
    /// The machine, with the source of the numbers.
    pub name: &'static str,
}

/// Machines of GPUs that are not sold apart from them, by the first word of the card's name.
const MACHINES: [(&str, Machine); 4] = [
    ("GB10", Machine { gpus: 1, nvlink: 1, name: "a DGX Spark (NVIDIA DGX Spark data sheet)" }),
    (
        "GB200",
        Machine {
            gpus: 4,
            nvlink: 72,
            name: "a compute tray of GB200 NVL72 (NVIDIA GB200 NVL72 data sheet: 18 trays)",
        },
    ),
    (
        "GB300",
        Machine {
            gpus: 4,
            nvlink: 72,
            name: "a compute tray of GB300 NVL72 (NVIDIA GB300 NVL72 data sheet: 18 trays)",
        },
    ),
    ("GH200", Machine { gpus: 4, nvlink: 4, name: "a node of four GH200, the largest (HPE Cray EX254n)" }),
];

impl Card {
    /// The machine that the GPU is built into; `None` for cards and modules, of which builders put different numbers into a machine.
    pub fn machine(&self) -> Option<Machine> {
        let first = self.name.split(' ').next()?;
        MACHINES.iter().find(|(name, _)| *name == first).map(|(_, machine)| *machine)
    }

    /// The theoretical peak; `None` if the card is not faster in this format than in a wider one.
    pub fn peak(&self, precision: Precision) -> Option<Peak> {
        let chip = CHIPS.iter().find(|c| c.name == self.chip)?;
        let tensor_index = match precision {
            Precision::Fp64 => 0,
            Precision::Fp32 => usize::MAX,
            Precision::Tf32 => 1,
            Precision::Fp16 => 2,
            Precision::Bf16 => 3,
            Precision::Fp8 => 4,
            Precision::Int8 => 5,
            Precision::Fp6 => 6,
            Precision::Fp4 => 7,
        };
        let tensor_rate = chip.tensor.get(tensor_index).copied().unwrap_or(0);
        let (rate, clock, tensor) = match precision {
            Precision::Fp32 => (chip.cores * 2, self.boost_mhz, false),
            Precision::Fp64 if tensor_rate <= chip.fp64 => (chip.fp64, self.boost_mhz, false),
            // The fp64 tensor cores run at the boost clock, as the data sheets show (H100: 67 TFLOP/s).
            Precision::Fp64 => (tensor_rate, self.boost_mhz, true),
            // The P100 (Pascal) computes two fp16 operations per CUDA core.
            Precision::Fp16 if tensor_rate == 0 && chip.name == "gp100" => (chip.cores * 4, self.boost_mhz, false),
            _ => (tensor_rate, self.tensor_mhz, true),
        };
        if rate == 0 {
            return None;
        }
        let tera = f64::from(self.multiprocessors) * f64::from(rate) * f64::from(clock) / 1e6;
        let ghz = f64::from(clock) / 1000.0;
        let formula = if precision == Precision::Fp32 {
            format!(
                "{} SM x {} cores x 2 operations x {ghz:.3} GHz = {tera:.1} TFLOP/s",
                self.multiprocessors, self.cores_per_multiprocessor
            )
        } else {
            let unit = if precision == Precision::Int8 { "TOP/s" } else { "TFLOP/s" };
            let by = if tensor { " on tensor cores" } else { "" };
            format!("{} SM x {rate} operations per cycle{by} x {ghz:.3} GHz = {tera:.1} {unit}", self.multiprocessors)
        };
        Some(Peak { precision, tera, tensor, formula })
    }

    /// Memory bandwidth in GB/s: bus width in bits x Gbit/s per pin / 8.
    pub fn bandwidth(&self) -> f64 {
        f64::from(self.bus_bits) * self.gbits_per_pin / 8.0
    }

    /// The formula of the memory bandwidth with the values of the card.
    pub fn bandwidth_formula(&self) -> String {
        format!("{} bit x {} Gbit/s / 8 = {:.0} GB/s", self.bus_bits, self.gbits_per_pin, self.bandwidth())
    }

    /// The achievable share of a peak at the best matrix size, from 0 to 1; power and clocks keep it below 1.
    ///
    /// Source: "Maximum Achievable Matmul FLOPS" (ml-engineering, bf16: A100 SXM 86.9 %, H100 SXM 80.3 %, B200 77.6 %).
    /// Other architectures use the value of the A100, which is a guess.
    pub fn achievable(&self, precision: Precision) -> f64 {
        match (self.chip, precision) {
            (_, Precision::Fp32 | Precision::Fp64) => 0.93,
            ("gh100" | "gh100-h800" | "gh20", _) => 0.803,
            ("gb100" | "gb110", _) => 0.776,
            _ => 0.869,
        }
    }

    /// The share of the memory bandwidth that a large copy achieves. HBM and GDDR lose the rest to refresh and bus turnaround.
    pub fn achievable_bandwidth(&self) -> f64 {
        0.90
    }
}

/// Rating of a measurement against the achievable value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "BenchmarkGrade")]
pub enum Grade {
    /// At least 90 % of the achievable value.
    Ok,
    /// At least 70 % of the achievable value.
    Suspicious,
    /// Less than 70 % of the achievable value.
    Bad,
}

/// Rates `measured` against `peak * achievable`; `achievable` is a share from 0 to 1.
pub fn grade(measured: f64, peak: f64, achievable: f64) -> Grade {
    match measured / (peak * achievable) {
        share if share >= 0.9 => Grade::Ok,
        share if share >= 0.7 => Grade::Suspicious,
        _ => Grade::Bad,
    }
}
