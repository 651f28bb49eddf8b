//! The roofline: what a machine can reach at each ratio of operations to bytes.
//! Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model" (2009).

use serde::{Deserialize, Serialize};

use crate::sheet::{Card, Precision};
use crate::work::Work;

/// How fast a number format is computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compute {
    /// The number format.
    pub precision: Precision,
    /// 10^12 operations a second.
    pub tera: f64,
}

/// How fast a level of memory is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// `HBM`, `L2`, `L1`, `DRAM`.
    pub level: String,
    /// GB/s.
    pub gigabytes: f64,
}

/// A machine's ceilings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Roofline {
    /// The machine's name.
    pub machine: String,
    /// Whether the ceilings were measured, or come from the sheet.
    pub measured: bool,
    /// By number format.
    pub compute: Vec<Compute>,
    /// By level, the main memory first.
    pub memory: Vec<Memory>,
}

/// What limits a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Memory bandwidth.
    Memory,
    /// Arithmetic.
    Compute,
}

/// Where a piece of work lies.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Place {
    /// The work.
    pub work: Work,
    /// Operations a byte.
    pub intensity: f64,
    /// Operations a byte above which arithmetic is the limit.
    pub ridge: f64,
    /// What limits it.
    pub bound: Bound,
    /// 10^12 operations a second at best.
    pub attainable: f64,
    /// Share of the arithmetic's ceiling.
    pub share: f64,
    /// Seconds it takes at best.
    pub seconds: f64,
    /// Tokens a second at best, for text generation.
    pub tokens_per_second: Option<f64>,
}

impl Roofline {
    /// The ceilings of a card in theory.
    pub fn of_card(card: &Card) -> Self {
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

    /// The ceiling of a number format; where the machine lacks it, the one that it is computed in.
    pub fn ceiling(&self, precision: Precision) -> Option<&Compute> {
        let find = |p| self.compute.iter().find(|c| c.precision == p);
        find(precision).or_else(|| match precision {
            Precision::Tf32 => find(Precision::Fp32),
            Precision::Bf16 | Precision::Fp16 => find(Precision::Fp16).or_else(|| find(Precision::Fp32)),
            Precision::Fp8 | Precision::Int8 => {
                find(Precision::Bf16).or_else(|| find(Precision::Fp16)).or_else(|| find(Precision::Fp32))
            }
            _ => None,
        })
    }

    /// The main memory.
    pub fn main_memory(&self) -> Option<&Memory> {
        self.memory.first()
    }

    /// Where a piece of work lies under the main memory's roof; `None` where the machine has no such ceiling.
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
    fn a_large_product_is_bound_by_arithmetic_and_a_token_by_memory() {
        let roof = Roofline::of_card(&sheet::find("H100 80GB HBM3").unwrap());
        let product = roof.place(&Work::parse("gemm:8192,8192,8192,bf16").unwrap()).unwrap();
        assert_eq!(product.bound, Bound::Compute);
        assert!((product.ridge - 295.0).abs() < 3.0, "{}", product.ridge);
        assert!((product.seconds * 1e3 - 1.11).abs() < 0.02);
        let token = roof.place(&Work::parse("decode:model=7b,batch=1,context=1").unwrap()).unwrap();
        assert_eq!(token.bound, Bound::Memory);
        assert!((token.tokens_per_second.unwrap() - 239.0).abs() < 3.0, "{:?}", token.tokens_per_second);
    }

    #[test]
    fn a_missing_format_is_computed_in_another() {
        let roof = Roofline::of_card(&sheet::find("Tesla P40").unwrap());
        assert!((roof.ceiling(Precision::Bf16).unwrap().tera - 11.8).abs() < 0.1);
    }
}
