//! Resource quantities in Kubernetes notation (`k8s.io/apimachinery`, `resource.Quantity`): `2`, `500m`, `4Gi`, `1e3`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A quantity as written in a manifest: a number or a string.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Quantity {
    /// An integer: `2`.
    Whole(i64),
    /// A fraction: `0.5`.
    Fraction(f64),
    /// A string, with a suffix or without: `500m`, `4Gi`.
    Text(String),
}

const SUFFIXES: [(&str, f64); 15] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
];

impl Quantity {
    /// The value in base units (cores, bytes, devices); `None` if the text is not a quantity or the value is negative.
    pub fn value(&self) -> Option<f64> {
        let value = match self {
            Self::Whole(n) => *n as f64,
            Self::Fraction(f) => *f,
            Self::Text(text) => {
                let text = text.trim();
                // Parse as a plain number first: in `1E3` the `E` starts an exponent, in `1E` it is a suffix.
                let plain = text.parse::<f64>().ok();
                plain.or_else(|| {
                    SUFFIXES
                        .iter()
                        .find_map(|(s, factor)| text.strip_suffix(s)?.parse::<f64>().ok().map(|number| number * factor))
                })?
            }
        };
        (value.is_finite() && value >= 0.0).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::Quantity;

    #[test]
    fn suffixes_scale_the_number() {
        let value_of = |text: &str| Quantity::Text(text.into()).value();
        assert_eq!(
            (value_of("500m"), value_of("4Gi"), value_of("1e3"), value_of("2E")),
            (Some(0.5), Some(4_294_967_296.0), Some(1000.0), Some(2e18))
        );
        assert_eq!(
            (value_of("-1"), value_of("many"), value_of(""), value_of("nan"), value_of("Gi")),
            (None, None, None, None, None)
        );
        assert_eq!(Quantity::Whole(3).value(), Some(3.0));
    }
}
