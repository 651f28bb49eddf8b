//! The deployment file.
//!
//! ```yaml
//! apiVersion: slipway.dev/v1
//! kind: Deployment
//! metadata: { name: digits }
//! spec:
//!   models:
//!     - { name: champion,   uri: "models:/digits@champion",   weight: 90 }
//!     - { name: challenger, uri: "models:/digits@challenger", weight: 10 }
//!   split: { by: request-id }          # or { by: header, header: X-User }
//!   batching: { max_size: 32, max_delay_ms: 2 }   # optional
//!   limits: { timeout_ms: 5000, queue: 256 }      # optional
//! ```

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, ModelUri};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DeploymentManifest")]
pub struct Manifest {
    /// `slipway.dev/v1`.
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// The name.
    pub metadata: Metadata,
    /// What to serve.
    pub spec: Spec,
}

/// The deployment's name, which is the model's name in the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DeploymentMetadata")]
pub struct Metadata {
    /// Letters, digits, `-`, `_` and `.`.
    pub name: String,
}

/// What to serve and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DeploymentSpec")]
pub struct Spec {
    /// The models that share the traffic.
    pub models: Vec<Variant>,
    /// How a request finds its model.
    #[serde(default)]
    pub split: Split,
    /// Requests computed together; off without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batching: Option<Batching>,
    /// Limits.
    #[serde(default)]
    pub limits: Limits,
}

/// One of the models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DeploymentModel")]
pub struct Variant {
    /// A name for `slipway deploy split`.
    pub name: String,
    /// `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/RUN/PATH`, `mlflow-artifacts:/PATH`, or a file of the server's machine.
    pub uri: ModelUri,
    /// Share of the traffic in per cent.
    #[serde(default = "all")]
    pub weight: u32,
}

fn all() -> u32 {
    100
}

/// How a request finds its model: always the same one for the same key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "TrafficSplit")]
pub struct Split {
    /// The key.
    #[serde(default)]
    pub by: SplitBy,
    /// The header, when the key is a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

impl Default for Split {
    fn default() -> Self {
        Self { by: SplitBy::RequestId, header: None }
    }
}

/// What decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "TrafficKey")]
pub enum SplitBy {
    /// The request's `id`; a random one is given to a request without.
    #[default]
    RequestId,
    /// A header, such as a user's id; the request's id where it is absent.
    Header,
}

/// Adaptive batching: requests that wait together are computed together, if the model computes every row by itself. That is tried
/// when the model is loaded; a model that does not is run for one request at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Batching {
    /// Rows in one batch at most. A single request with more rows is computed alone.
    pub max_size: usize,
    /// How long the first request of a batch waits for others at most.
    #[serde(default = "two")]
    pub max_delay_ms: u64,
}

fn two() -> u64 {
    2
}

/// A day: nobody waits longer for an answer.
const MAX_TIMEOUT_MS: u64 = 86_400_000;
/// A gibibyte, the most that the gateway's gRPC takes in one message.
const MAX_BODY_MB: usize = 1024;
/// More than any machine has cores.
const MAX_CONCURRENCY: usize = 4096;

/// Limits of one deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "DeploymentLimits")]
pub struct Limits {
    /// Time for one request.
    pub timeout_ms: u64,
    /// Requests that may be waiting or computed at once; more are turned away.
    pub queue: usize,
    /// Megabytes (2^20 bytes) of one request.
    pub max_body_mb: usize,
    /// Requests computed at once; 0 means one for each core.
    pub concurrency: usize,
}

impl Limits {
    /// Bytes of one request's body.
    pub fn max_body(&self) -> usize {
        self.max_body_mb.saturating_mul(1 << 20)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { timeout_ms: 10_000, queue: 512, max_body_mb: 64, concurrency: 0 }
    }
}

impl Manifest {
    /// Reads YAML (or JSON, which is YAML).
    ///
    /// # Errors
    /// [`Error::Manifest`] with the place, or the field that is wrong.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let manifest: Self = serde_saphyr::from_str(text).map_err(|e| Error::Manifest(e.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`Error::Manifest`] that names the field.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Manifest(what));
        if self.api_version != "slipway.dev/v1" || self.kind != "Deployment" {
            return wrong(format!("this is {} {}, expected slipway.dev/v1 Deployment", self.api_version, self.kind));
        }
        let plain = |s: &str| {
            !s.is_empty() && s.len() <= 128 && s.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        if !plain(&self.metadata.name) {
            return wrong(format!(
                "metadata.name '{}' may hold letters, digits, '-', '_' and '.', 1 to 128 of them",
                self.metadata.name
            ));
        }
        if self.spec.models.is_empty() {
            return wrong("spec.models is empty".into());
        }
        for (i, model) in self.spec.models.iter().enumerate() {
            if !plain(&model.name) {
                return wrong(format!(
                    "spec.models[{i}].name '{}' may hold letters, digits, '-', '_' and '.'",
                    model.name
                ));
            }
            if self.spec.models[..i].iter().any(|m| m.name == model.name) {
                return wrong(format!("spec.models has '{}' twice", model.name));
            }
        }
        let sum: u64 = self.spec.models.iter().map(|m| u64::from(m.weight)).sum();
        if sum != 100 {
            return wrong(format!("the weights add up to {sum}, expected 100"));
        }
        if self.spec.split.by == SplitBy::Header && self.spec.split.header.as_deref().unwrap_or_default().is_empty() {
            return wrong("spec.split.header is needed with `by: header`".into());
        }
        if self.spec.batching.as_ref().is_some_and(|b| b.max_size == 0 || b.max_delay_ms > 10_000) {
            return wrong("spec.batching.max_size must be at least 1 and max_delay_ms at most 10000".into());
        }
        let limits = &self.spec.limits;
        if limits.timeout_ms == 0 || limits.queue == 0 || limits.max_body_mb == 0 {
            return wrong("spec.limits: timeout_ms, queue and max_body_mb must be at least 1".into());
        }
        if limits.timeout_ms > MAX_TIMEOUT_MS
            || limits.max_body_mb > MAX_BODY_MB
            || limits.concurrency > MAX_CONCURRENCY
        {
            return wrong(format!(
                "spec.limits: timeout_ms may be at most {MAX_TIMEOUT_MS}, max_body_mb {MAX_BODY_MB} and concurrency {MAX_CONCURRENCY}"
            ));
        }
        Ok(())
    }

    /// The same with other weights; models that are not named get none.
    ///
    /// # Errors
    /// [`Error::Manifest`] for an unknown name or a wrong sum.
    pub fn with_weights(&self, weights: &[(String, u32)]) -> Result<Self, Error> {
        let mut changed = self.clone();
        for model in &mut changed.spec.models {
            model.weight = weights.iter().find(|(n, _)| *n == model.name).map_or(0, |(_, w)| *w);
        }
        if let Some((unknown, _)) = weights.iter().find(|(n, _)| changed.spec.models.iter().all(|m| m.name != *n)) {
            let known = changed.spec.models.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::Manifest(format!("no model '{unknown}' in '{}'; it has {known}", self.metadata.name)));
        }
        changed.check()?;
        Ok(changed)
    }

    /// A deployment of one model, as `RepositoryModelLoad` makes it.
    pub fn single(name: &str, uri: ModelUri) -> Self {
        Self {
            api_version: "slipway.dev/v1".into(),
            kind: "Deployment".into(),
            metadata: Metadata { name: name.into() },
            spec: Spec {
                models: vec![Variant { name: "model".into(), uri, weight: 100 }],
                split: Split::default(),
                batching: None,
                limits: Limits::default(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: slipway.dev/v1
kind: Deployment
metadata: { name: digits }
spec:
  models:
    - { name: a, uri: \"models:/digits@a\", weight: 90 }
    - { name: b, uri: \"models:/digits@b\", weight: 10 }
";

    #[test]
    fn a_manifest_is_read_and_split() {
        let m = Manifest::parse(GOOD).unwrap();
        assert_eq!(m.spec.limits, Limits::default());
        let half = m.with_weights(&[("a".into(), 50), ("b".into(), 50)]).unwrap();
        assert_eq!(half.spec.models[1].weight, 50);
        assert!(m.with_weights(&[("c".into(), 100)]).unwrap_err().to_string().contains("no model 'c'"));
        assert!(m.with_weights(&[("a".into(), 50)]).unwrap_err().to_string().contains("add up to 50"));
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, expected) in [
            ("weight: 10", "weight: 20", "add up to 110"),
            ("name: b,", "name: a,", "twice"),
            ("kind: Deployment", "kind: Pod", "expected slipway.dev/v1 Deployment"),
            ("name: digits", "name: \"a/b\"", "metadata.name"),
            ("weight: 10", "wait: 10", "wait"),
            ("models:/digits@b", "", "uri is empty"),
            ("models:/digits@b", "s3://bucket/m.onnx", "scheme 's3' is not supported"),
            ("spec:", "spec:\n  limits: { timeout_ms: 18446744073709551615 }", "at most 86400000"),
            ("spec:", "spec:\n  limits: { concurrency: 18446744073709551615 }", "concurrency 4096"),
        ] {
            let e = Manifest::parse(&GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(e.contains(expected), "{e}");
        }
    }
}
