//! The deployment manifest. Invariant: a parsed manifest has passed [`Manifest::check`], so its weights add up to 100.
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

/// A deployment manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DeploymentManifest")]
pub struct Manifest {
    /// Always `slipway.dev/v1`.
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    /// Always `Deployment`.
    pub kind: String,
    /// Holds the deployment's name.
    pub metadata: Metadata,
    /// The models to serve, and the settings for serving them.
    pub spec: Spec,
}

/// The deployment's name, which clients use as the model name in the Open Inference Protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DeploymentMetadata")]
pub struct Metadata {
    /// 1 to 128 letters, digits, `-`, `_` or `.`.
    pub name: String,
}

/// The models to serve, and the settings for serving them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DeploymentSpec")]
pub struct Spec {
    /// The models that share the traffic; their weights add up to 100.
    pub models: Vec<Variant>,
    /// How requests are routed to the models.
    #[serde(default)]
    pub split: Split,
    /// Adaptive batching; disabled if unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batching: Option<Batching>,
    /// Timeout, queue length, body size and concurrency.
    #[serde(default)]
    pub limits: Limits,
}

/// One of the models of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DeploymentModel")]
pub struct Variant {
    /// Name within the deployment, used by `slipway deploy split`.
    pub name: String,
    /// `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/RUN/PATH`, `mlflow-artifacts:/PATH`, or a file on the server's machine.
    pub uri: ModelUri,
    /// Share of the traffic in per cent, 0 to 100.
    #[serde(default = "full_weight")]
    pub weight: u32,
}

fn full_weight() -> u32 {
    100
}

/// How requests are routed to the models: the same key always reaches the same model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "TrafficSplit")]
pub struct Split {
    /// The part of a request that serves as the key.
    #[serde(default)]
    pub by: SplitBy,
    /// Name of the header, if the key is a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

impl Default for Split {
    fn default() -> Self {
        Self { by: SplitBy::RequestId, header: None }
    }
}

/// The part of a request that decides which model serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "TrafficKey")]
pub enum SplitBy {
    /// The request's `id`; a request without one gets a random id.
    #[default]
    RequestId,
    /// The value of a header, such as a user's id; the request's id if the header is absent.
    Header,
}

/// Adaptive batching: requests that are queued together are computed in one call, if the model computes every row independently.
/// The gateway checks that when it loads the model; other models run one request at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Batching {
    /// Maximum rows in one batch. A single request with more rows is computed alone.
    pub max_size: usize,
    /// Maximum time in milliseconds that the first request of a batch waits for others.
    #[serde(default = "default_max_delay_ms")]
    pub max_delay_ms: u64,
}

fn default_max_delay_ms() -> u64 {
    2
}

/// One day.
const MAX_TIMEOUT_MS: u64 = 86_400_000;
/// One gibibyte, the gateway's maximum gRPC message size.
const MAX_BODY_MB: usize = 1024;
/// An upper bound well above the core count of any machine.
const MAX_CONCURRENCY: usize = 4096;

/// Limits of one deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "DeploymentLimits")]
pub struct Limits {
    /// Timeout of one request in milliseconds, up to one day.
    pub timeout_ms: u64,
    /// Maximum requests that are queued or being computed; further ones are rejected.
    pub queue: usize,
    /// Maximum size of one request body, in units of 2^20 bytes.
    pub max_body_mb: usize,
    /// Maximum requests computed at once; 0 means one per core.
    pub concurrency: usize,
}

impl Limits {
    /// Maximum size of one request body in bytes.
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
    /// Parses YAML (or JSON, which is a subset of YAML).
    ///
    /// # Errors
    /// [`Error::Manifest`] with the position of the syntax error, or with the invalid field.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let manifest: Self = serde_saphyr::from_str(text).map_err(|e| Error::Manifest(e.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Validates what the types cannot express.
    ///
    /// # Errors
    /// [`Error::Manifest`] that names the field.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |what: String| Err(Error::Manifest(what));
        if self.api_version != "slipway.dev/v1" || self.kind != "Deployment" {
            return invalid(format!("this is {} {}, expected slipway.dev/v1 Deployment", self.api_version, self.kind));
        }
        let is_valid_name = |s: &str| {
            !s.is_empty() && s.len() <= 128 && s.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        if !is_valid_name(&self.metadata.name) {
            return invalid(format!(
                "metadata.name '{}' must be 1 to 128 letters, digits, '-', '_' or '.'",
                self.metadata.name
            ));
        }
        if self.spec.models.is_empty() {
            return invalid("spec.models is empty".into());
        }
        for (i, model) in self.spec.models.iter().enumerate() {
            if !is_valid_name(&model.name) {
                return invalid(format!(
                    "spec.models[{i}].name '{}' must be 1 to 128 letters, digits, '-', '_' or '.'",
                    model.name
                ));
            }
            if self.spec.models[..i].iter().any(|m| m.name == model.name) {
                return invalid(format!("spec.models has '{}' twice", model.name));
            }
        }
        let sum: u64 = self.spec.models.iter().map(|m| u64::from(m.weight)).sum();
        if sum != 100 {
            return invalid(format!("the weights add up to {sum}, expected 100"));
        }
        if self.spec.split.by == SplitBy::Header && self.spec.split.header.as_deref().unwrap_or_default().is_empty() {
            return invalid("spec.split.header is required with `by: header`".into());
        }
        if self.spec.batching.as_ref().is_some_and(|b| b.max_size == 0 || b.max_delay_ms > 10_000) {
            return invalid("spec.batching.max_size must be at least 1 and max_delay_ms at most 10000".into());
        }
        let limits = &self.spec.limits;
        if limits.timeout_ms == 0 || limits.queue == 0 || limits.max_body_mb == 0 {
            return invalid("spec.limits: timeout_ms, queue and max_body_mb must be at least 1".into());
        }
        if limits.timeout_ms > MAX_TIMEOUT_MS
            || limits.max_body_mb > MAX_BODY_MB
            || limits.concurrency > MAX_CONCURRENCY
        {
            return invalid(format!(
                "spec.limits: timeout_ms may be at most {MAX_TIMEOUT_MS}, max_body_mb {MAX_BODY_MB} and concurrency {MAX_CONCURRENCY}"
            ));
        }
        Ok(())
    }

    /// A copy with other weights; models without a weight in `weights` get 0.
    ///
    /// # Errors
    /// [`Error::Manifest`] for an unknown model, or weights that do not add up to 100.
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

    /// A deployment of one model with default settings, as `RepositoryModelLoad` creates it.
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

    const MANIFEST: &str = "apiVersion: slipway.dev/v1
kind: Deployment
metadata: { name: digits }
spec:
  models:
    - { name: a, uri: \"models:/digits@a\", weight: 90 }
    - { name: b, uri: \"models:/digits@b\", weight: 10 }
";

    #[test]
    fn manifest_parses_and_takes_new_weights() {
        let m = Manifest::parse(MANIFEST).unwrap();
        assert_eq!(m.spec.limits, Limits::default());
        let half = m.with_weights(&[("a".into(), 50), ("b".into(), 50)]).unwrap();
        assert_eq!(half.spec.models[1].weight, 50);
        assert!(m.with_weights(&[("c".into(), 100)]).unwrap_err().to_string().contains("no model 'c'"));
        assert!(m.with_weights(&[("a".into(), 50)]).unwrap_err().to_string().contains("add up to 50"));
    }

    #[test]
    fn invalid_manifests_name_the_field() {
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
            let e = Manifest::parse(&MANIFEST.replace(from, to)).unwrap_err().to_string();
            assert!(e.contains(expected), "{e}");
        }
    }
}
