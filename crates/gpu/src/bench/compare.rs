//! Compares two benchmark reports of the same machine and finds regressions beyond noise.

use serde::Serialize;

use super::{Figure, Report};

/// Differences below this share count as noise, regardless of the spread of the samples.
const NOISE_THRESHOLD: f64 = 0.03;

/// The change of a measurement that both reports contain.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The newer measurement.
    pub now: Figure,
    /// Median of the older measurement.
    pub before: f64,
    /// Relative change: positive is better, negative is worse; 0.1 means 10 % better.
    pub change: f64,
    /// Whether the newer measurement is worse beyond noise and the spread of both.
    pub regression: bool,
}

/// Compares two reports. A regression is a median that is worse by more than 3 % and outside the range of the older
/// samples, while the range of the newer samples does not include the older median.
pub fn compare(before: &Report, now: &Report) -> Vec<Difference> {
    let mut found = Vec::new();
    for figure in &now.figures {
        let Some(old) = before.figures.iter().find(|f| f.key() == figure.key() && f.unit == figure.unit) else {
            continue;
        };
        let less_is_better = figure.unit == "us";
        let ratio = if less_is_better { old.median / figure.median } else { figure.median / old.median };
        let change = ratio - 1.0;
        let outside = if less_is_better {
            figure.median > old.range.1 && figure.range.0 > old.median
        } else {
            figure.median < old.range.0 && figure.range.1 < old.median
        };
        found.push(Difference {
            now: figure.clone(),
            before: old.median,
            change,
            regression: change < -NOISE_THRESHOLD && outside,
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(samples: &[f64], unit: &str) -> Report {
        let figure = Figure::new("gemm", "gpu 0", unit, samples.to_vec()).unwrap();
        Report { time: 0, host: "h".into(), devices: vec!["d".into()], driver: String::new(), figures: vec![figure] }
    }

    #[test]
    fn regressions_exceed_noise_and_spread() {
        let regressed = |a: &[f64], b: &[f64], unit| compare(&report(a, unit), &report(b, unit))[0].regression;
        assert!(regressed(&[100.0, 101.0, 99.0], &[90.0, 91.0, 89.0], "TFLOP/s"));
        assert!(!regressed(&[100.0, 101.0, 99.0], &[98.5, 99.0, 98.0], "TFLOP/s"), "within 3 %");
        assert!(!regressed(&[100.0, 110.0, 80.0], &[90.0, 91.0, 89.0], "TFLOP/s"), "within the spread");
        assert!(regressed(&[5.0, 5.1, 4.9], &[6.0, 6.1, 5.9], "us"));
        assert!(!regressed(&[5.0, 5.1, 4.9], &[4.0, 4.1, 3.9], "us"));
    }
}
