//! The roofline model: the best performance of a machine at each ratio of operations to bytes.
//! Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model" (2009).

use serde::{Deserialize, Serialize};

use crate::GpuError;
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
    /// The format in which the work is computed.
    pub precision: Precision,
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

    /// Whether the machine has a ceiling for this format itself.
    pub fn has(&self, precision: Precision) -> bool {
        self.compute.iter().any(|c| c.precision == precision)
    }

    /// Places a workload under the main memory's ceiling.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] if the roofline lacks a ceiling that the workload needs.
    pub fn place(&self, work: &Work) -> Result<Place, GpuError> {
        let precision = work.weights.map_or(work.precision, |format| format.arithmetic(|p| self.has(p)));
        let missing = |what: &str| {
            GpuError::Invalid(format!(
                "'{}' cannot be placed: the roofline of {} has no {what}",
                work.name, self.machine
            ))
        };
        let tera = self.ceiling(precision).ok_or_else(|| missing(&format!("rate for {precision}")))?.tera;
        let bandwidth = self.main_memory().ok_or_else(|| missing("memory bandwidth"))?.gigabytes / 1000.0;
        let intensity = work.intensity();
        let ridge = tera / bandwidth;
        let attainable = tera.min(intensity * bandwidth);
        let seconds = work.operations / (attainable * 1e12);
        Ok(Place {
            intensity,
            ridge,
            bound: if intensity < ridge { Bound::Memory } else { Bound::Compute },
            attainable,
            share: attainable / tera,
            seconds,
            tokens_per_second: work.tokens.map(|t| t / seconds),
            precision,
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
        assert!((token.tokens_per_second.unwrap() - 253.0).abs() < 3.0, "{:?}", token.tokens_per_second);
    }

    /// Mixtral reads 12.7 x 10^9 of its 46.7 x 10^9 parameters for a token.
    #[test]
    fn a_mixture_of_experts_is_as_fast_as_its_active_parameters() {
        let roof = Roofline::from_card(&sheet::find("H100 80GB HBM3").unwrap());
        let rate = |text: &str| roof.place(&Work::parse(text).unwrap()).unwrap().tokens_per_second.unwrap();
        let mixtral = rate("decode:model=47b,batch=1");
        assert!((mixtral - 130.0).abs() < 4.0, "{mixtral}");
        assert_eq!(mixtral, rate("decode:model=47b,active=12.9b,batch=1"));
        assert!((rate("decode:model=47b,batch=1,tp=2") / mixtral - 2.0).abs() < 0.1);
        assert!((rate("decode:model=47b,batch=1,dtype=int4") / mixtral - 3.7).abs() < 0.2);
    }

    #[test]
    fn weights_that_the_card_cannot_multiply_are_expanded() {
        let place = |card: &str, text: &str| {
            Roofline::from_card(&sheet::find(card).unwrap()).place(&Work::parse(text).unwrap()).unwrap().precision
        };
        assert_eq!(place("H100 80GB HBM3", "prefill:model=8b,dtype=fp4"), Precision::Bf16);
        assert_eq!(place("B200", "prefill:model=8b,dtype=fp4"), Precision::Fp4);
        assert_eq!(place("H100 80GB HBM3", "prefill:model=8b,dtype=fp8"), Precision::Fp8);
        assert_eq!(place("A100-SXM4-80GB", "prefill:model=8b,dtype=fp8"), Precision::Bf16);
    }

    #[test]
    fn a_missing_ceiling_is_an_error() {
        let bare = Roofline { machine: "x".into(), measured: true, compute: vec![], memory: vec![] };
        let refused = bare.place(&Work::parse("gemm:8,8,8,fp32").unwrap()).unwrap_err();
        assert!(refused.to_string().contains("the roofline of x has no rate for fp32"), "{refused}");
    }

    #[test]
    fn missing_format_falls_back_to_wider_format() {
        let roof = Roofline::from_card(&sheet::find("Tesla P40").unwrap());
        assert!((roof.ceiling(Precision::Bf16).unwrap().tera - 11.8).abs() < 0.1);
    }
}
