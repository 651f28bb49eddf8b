//! Requests for the tokens of runs. An executor requests a token at the start of each attempt and passes it to the program as
//! `MLFLOW_TRACKING_TOKEN`, by environment only. The server creates and verifies tokens; to executors they are opaque.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Manifest;
use crate::tracked_id;

/// Lifetime of the token of an attempt without a deadline, in milliseconds: 30 days. A run that takes longer must set
/// `activeDeadlineSeconds`.
pub const DEFAULT_LIFETIME_MS: i64 = 30 * 24 * 3_600_000;
/// Margin added to a deadline, in milliseconds, for clock skew and for the time a process takes to start and to end.
const SLACK_MS: i64 = 300_000;
/// Default of `terminationGracePeriodSeconds`, as in Kubernetes.
const DEFAULT_GRACE_SECONDS: u32 = 30;

/// The attempt that a token is for, and when the token expires.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRequest {
    /// The run's namespace.
    pub namespace: String,
    /// Id of the tracked run: 32 hexadecimal digits.
    pub run_id: String,
    /// `metadata.name` of the run.
    pub run: String,
    /// Name of the experiment in which the run is tracked; the default experiment if unset.
    pub experiment: Option<String>,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// When the token expires, in milliseconds since the Unix epoch.
    pub expires_at: i64,
}

impl TokenRequest {
    /// The request for an attempt that starts at `now` and may run for `limit` milliseconds (no limit if unset). The caller must move
    /// `expires_at` if the program may start later, as in a pod that waits to be scheduled.
    pub fn new(run: &Manifest, attempt: u32, limit: Option<i64>, now: i64) -> Self {
        let grace = i64::from(run.spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS)) * 1000;
        let lifetime = limit.unwrap_or(DEFAULT_LIFETIME_MS).saturating_add(grace).saturating_add(SLACK_MS);
        Self {
            namespace: run.metadata.namespace.clone(),
            run_id: tracked_id(&run.metadata.uid),
            run: run.metadata.name.clone(),
            experiment: run.spec.experiment.clone(),
            attempt,
            expires_at: now.saturating_add(lifetime),
        }
    }
}

/// Creates the token of an attempt. Must not block, because executors call it while they start an attempt.
pub type Mint = Arc<dyn Fn(&TokenRequest) -> String + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_expires_shortly_after_the_attempts_deadline() {
        let text = "apiVersion: slipway.dev/v1\nkind: Run\nmetadata: {name: train, namespace: team, uid: 0f-1}\n\
                    spec: {command: [python], experiment: ocr, terminationGracePeriodSeconds: 60}";
        let run = Manifest::parse(text).unwrap();
        let request = TokenRequest::new(&run, 2, Some(10_000), 1_000);
        let expected = TokenRequest {
            namespace: "team".into(),
            run_id: "0f1".into(),
            run: "train".into(),
            experiment: Some("ocr".into()),
            attempt: 2,
            expires_at: 1_000 + 10_000 + 60_000 + SLACK_MS,
        };
        assert_eq!(request, expected);
        assert_eq!(TokenRequest::new(&run, 2, None, 0).expires_at, DEFAULT_LIFETIME_MS + 60_000 + SLACK_MS);
        assert_eq!(TokenRequest::new(&run, 2, Some(i64::MAX), 5).expires_at, i64::MAX);
    }
}
