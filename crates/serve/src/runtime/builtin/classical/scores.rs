//! What classifiers do with their scores: the transformation of each row (`post_transform`) and the choice of a label.

use super::attributes::Attributes;
use super::value::Value;
use crate::tensor::Data;

/// `post_transform` of `ai.onnx.ml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transform {
    None,
    Softmax,
    Logistic,
    SoftmaxZero,
    Probit,
}

impl Transform {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "NONE" => Self::None,
            "SOFTMAX" => Self::Softmax,
            "LOGISTIC" => Self::Logistic,
            "SOFTMAX_ZERO" => Self::SoftmaxZero,
            "PROBIT" => Self::Probit,
            other => return Err(format!("post_transform '{other}' is unknown")),
        })
    }

    /// Transforms the scores of one row.
    pub(super) fn apply(self, scores: &mut [f64]) {
        match self {
            Self::None => {}
            Self::Logistic => scores.iter_mut().for_each(|x| *x = logistic(*x)),
            Self::Probit => scores.iter_mut().for_each(|x| *x = probit(*x)),
            Self::Softmax | Self::SoftmaxZero => {
                // SOFTMAX_ZERO leaves scores of 0 as they are.
                let counts = |x: f64| self == Self::Softmax || x != 0.0;
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().filter(|x| counts(**x)).map(|x| (x - max).exp()).sum();
                for x in scores.iter_mut().filter(|x| counts(**x)) {
                    *x = (*x - max).exp() / sum;
                }
            }
        }
    }
}

pub(super) fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The inverse of the normal distribution function, by Winitzki's approximation of the inverse error function, as ONNX Runtime computes it.
fn probit(x: f64) -> f64 {
    let x = 2.0 * x - 1.0;
    let log = ((1.0 - x) * (1.0 + x)).ln();
    let v = 2.0 / (std::f64::consts::PI * 0.147) + 0.5 * log;
    let root = ((v * v - log / 0.147).sqrt() - v).sqrt();
    std::f64::consts::SQRT_2 * if x < 0.0 { -root } else { root }
}

/// The classes of a classifier.
#[derive(Debug, Clone)]
pub(super) enum Classes {
    Integers(Vec<i64>),
    Texts(Vec<Vec<u8>>),
}

impl Classes {
    /// The classes of a node. `integers` is the name of the attribute for integers, which differs between operators.
    pub(super) fn read(attributes: &Attributes<'_>, integers: &str) -> Self {
        let texts = attributes.texts("classlabels_strings");
        let integers = attributes.ints(integers);
        if texts.is_empty() { Self::Integers(integers.to_vec()) } else { Self::Texts(texts) }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Integers(classes) => classes.len(),
            Self::Texts(classes) => classes.len(),
        }
    }

    /// The labels of rows, from the index of the class of each row.
    pub(super) fn labels(&self, chosen: &[usize]) -> Value {
        let data = match self {
            Self::Integers(classes) => {
                Data::Int64(chosen.iter().map(|i| classes.get(*i).copied().unwrap_or(0)).collect())
            }
            Self::Texts(classes) => {
                Data::Bytes(chosen.iter().map(|i| classes.get(*i).cloned().unwrap_or_default()).collect())
            }
        };
        Value { shape: vec![chosen.len()], data }
    }
}

/// The index of the highest score; of the first one among equals.
pub(super) fn highest(scores: &[f64]) -> usize {
    let mut best = 0;
    for (i, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = i;
        }
    }
    best
}

/// Scores in rows as FP32, the type of the scores of every classifier and regressor.
pub(super) fn matrix(rows: usize, columns: usize, scores: &[f64]) -> Value {
    Value { shape: vec![rows, columns], data: Data::Fp32(scores.iter().map(|x| *x as f32).collect()) }
}
