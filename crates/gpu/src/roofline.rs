//! The roofline model: the best performance of a machine at each ratio of operations to bytes.
//! Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model" (2009).

use serde::{Deserialize, Serialize};

use crate::sheet::{Card, Precision};
use crate::work::Work;

/// Arithmetic throughput of a number format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compute {
    /// The number format.
    pub precision: Precision,
    /// 10^12 operations per second.
    pub tera: f64,
}

/// Bandwidth of a memory level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// The level, such as `HBM`, `GDDR`, `L2` or `DRAM`.
    pub level: String,
    /// Bandwidth in GB/s.
    pub gigabytes: f64,
}

/// The performance ceilings of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Roofline {
    /// Name of the card or processor.
    pub machine: String,
    /// Whether the ceilings were measured; otherwise they come from the data sheet.
    pub measured: bool,
    /// One ceiling per number format.
    pub compute: Vec<Compute>,
    /// One ceiling per memory level, main memory first.
    pub memory: Vec<Memory>,
}

/// The resource that limits a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Memory bandwidth.
    Memory,
    /// Arithmetic.
    Compute,
}

/// The position of a workload on a roofline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Place {
    /// The workload.
    pub work: Work,
    /// Arithmetic intensity: operations per byte.
    pub intensity: f64,
    /// Intensity in operations per byte above which arithmetic is the limit.
    pub ridge: f64,
    /// The limiting resource.
    pub bound: Bound,
    /// Best possible throughput in 10^12 operations per second.
    pub attainable: f64,
    /// `attainable` as a share of the arithmetic ceiling, from 0 to 1.
    pub share: f64,
    /// Best possible run time in seconds.
    pub seconds: f64,
    /// Best possible tokens per second, for text generation.
    pub tokens_per_second: Option<f64>,
}

impl Roofline {
    /// The theoretical ceilings of a card.
    pub fn from_card(card: &Card) -> Self {
        let compute = Precision::ALL
            .iter()
            .filter_map(|p| card.peak(*p).map(|peak| Compute { precision: *p, tera: peak.tera }))
            .collect();
        let level = if card.gbits_per_pin < 10.0 && card.bus_bits >= 1024 { "HBM" } else { "GDDR" };
        Self {
            machine: card.name.into(),
            measured: false,
            compute,
            memory: vec![Memory { level: level.into(), gigabytes: card.bandwidth() }],
        }
    }

    /// The ceiling of a number format. A format that the machine lacks is computed in a wider one.
    pub fn ceiling(&self, precision: Precision) -> Option<&Compute> {
        let find = |p| self.compute.iter().find(|c| c.precision == p);
        find(precision).or_else(|| match precision {
            Precision::Tf32 => find(Precision::Fp32),
            Precision::Bf16 | Precision::Fp16 => find(Precision::Fp16).or_else(|| find(Precision::Fp32)),
            Precision::Fp4 | Precision::Fp6 => self.ceiling(Precision::Fp8),
            Precision::Fp8 | Precision::Int8 => {
                find(Precision::Bf16).or_else(|| find(Precision::Fp16)).or_else(|| find(Precision::Fp32))
            }
            _ => None,
        })
    }

    /// The ceiling of the main memory.
    pub fn main_memory(&self) -> Option<&Memory> {
        self.memory.first()
    }

    /// Places a workload under the main memory's ceiling; `None` if the roofline lacks a needed ceiling.
    pub fn place(&self, work: &Work) -> Option<Place> {
        let tera = self.ceiling(work.precision)?.tera;
        let bandwidth = self.main_memory()?.gigabytes / 1000.0;
        let intensity = work.intensity();
        let ridge = tera / bandwidth;
        let attainable = tera.min(intensity * bandwidth);
        let seconds = work.operations / (attainable * 1e12);
        Some(Place {
            intensity,
            ridge,
            bound: if intensity < ridge { Bound::Memory } else { Bound::Compute },
            attainable,
            share: attainable / tera,
            seconds,
            tokens_per_second: work.tokens.map(|t| t / seconds),
            work: work.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sheet;

    #[test]
    fn large_matmul_is_compute_bound_and_decoding_is_memory_bound() {
        let roof = Roofline::from_card(&sheet::find("H100 80GB HBM3").unwrap());
        let product = roof.place(&Work::parse("gemm:8192,8192,8192,bf16").unwrap()).unwrap();
        assert_eq!(product.bound, Bound::Compute);
        assert!((product.ridge - 295.0).abs() < 3.0, "{}", product.ridge);
        assert!((product.seconds * 1e3 - 1.11).abs() < 0.02);
        let token = roof.place(&Work::parse("decode:model=7b,batch=1,context=1").unwrap()).unwrap();
        assert_eq!(token.bound, Bound::Memory);
        assert!((token.tokens_per_second.unwrap() - 239.0).abs() < 3.0, "{:?}", token.tokens_per_second);
    }

    #[test]
    fn missing_format_falls_back_to_wider_format() {
        let roof = Roofline::from_card(&sheet::find("Tesla P40").unwrap());
        assert!((roof.ceiling(Precision::Bf16).unwrap().tera - 11.8).abs() < 0.1);
    }
}
