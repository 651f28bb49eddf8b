//! `LinearClassifier` and `LinearRegressor`.

use super::attributes::Attributes;
use super::scores::{Classes, Transform, highest, matrix};
use super::value::Value;
use super::{Operator, required};

/// A linear function: a row of coefficients and an intercept for each of its targets.
struct Linear {
    coefficients: Vec<f64>,
    intercepts: Vec<f64>,
    targets: usize,
}

impl Linear {
    /// The values of the targets, row by row.
    fn compute(&self, input: &Value) -> Result<(usize, Vec<f64>), String> {
        let (rows, columns) = input.matrix()?;
        if columns * self.targets != self.coefficients.len() {
            return Err(format!("{columns} features, expected {}", self.coefficients.len() / self.targets));
        }
        let x = input.to_f64()?;
        let mut out = Vec::with_capacity(rows * self.targets);
        for r in 0..rows {
            let row = &x[r * columns..(r + 1) * columns];
            for t in 0..self.targets {
                let coefficients = &self.coefficients[t * columns..(t + 1) * columns];
                let product: f64 = row.iter().zip(coefficients).map(|(x, c)| x * c).sum();
                out.push(product + self.intercepts.get(t).copied().unwrap_or(0.0));
            }
        }
        Ok((rows, out))
    }
}

pub(super) fn operator(name: &str, attributes: &Attributes<'_>) -> Result<Operator, String> {
    let transform = Transform::parse(&attributes.text("post_transform", "NONE"))?;
    let (coefficients, intercepts) = (attributes.numbers("coefficients")?, attributes.numbers("intercepts")?);
    if name == "LinearRegressor" {
        let targets = usize::try_from(attributes.int("targets", 1)).ok().filter(|n| *n > 0).ok_or("no targets")?;
        let linear = Linear { coefficients, intercepts, targets };
        return Ok(Box::new(move |inputs| {
            let (rows, mut values) = linear.compute(required(inputs, 0)?)?;
            values.chunks_exact_mut(linear.targets).for_each(|row| transform.apply(row));
            Ok(vec![matrix(rows, linear.targets, &values)])
        }));
    }
    attributes.ignore("multi_class");
    let classes = Classes::read(attributes, "classlabels_ints");
    let targets = intercepts.len().max(1);
    // A model of two classes may have the scores of only the second class.
    let is_binary = targets == 1 && classes.len() == 2;
    if !is_binary && classes.len() != targets {
        return Err(format!("{} classes and {targets} intercepts", classes.len()));
    }
    let linear = Linear { coefficients, intercepts, targets };
    Ok(Box::new(move |inputs| {
        let (rows, raw) = linear.compute(required(inputs, 0)?)?;
        let mut chosen = Vec::with_capacity(rows);
        let mut scores = Vec::with_capacity(rows * classes.len());
        for row in raw.chunks_exact(linear.targets) {
            if is_binary {
                chosen.push(usize::from(row[0] > 0.0));
                scores.extend(match transform {
                    Transform::None => [-row[0], row[0]],
                    _ => {
                        let mut positive = [row[0]];
                        transform.apply(&mut positive);
                        [1.0 - positive[0], positive[0]]
                    }
                });
            } else {
                chosen.push(highest(row));
                let start = scores.len();
                scores.extend_from_slice(row);
                transform.apply(&mut scores[start..]);
            }
        }
        Ok(vec![classes.labels(&chosen), matrix(rows, classes.len(), &scores)])
    }))
}
