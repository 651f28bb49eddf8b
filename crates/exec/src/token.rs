//! What a run's token is made for. An executor asks for one at the start of each attempt and hands it to the program as
//! `MLFLOW_TRACKING_TOKEN`, by environment only. The server makes and checks tokens; executors never look into them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Manifest;
use crate::tracked_id;

/// Lifetime of the token of an attempt without a deadline, in milliseconds: 30 days. A run that takes longer sets
/// `activeDeadlineSeconds`.
pub const DEFAULT_LIFETIME_MS: i64 = 30 * 24 * 3_600_000;
/// Added to a deadline, in milliseconds: clocks differ, and a process takes a moment to start and to end.
const SLACK_MS: i64 = 300_000;
/// `terminationGracePeriodSeconds` where none is set; Kubernetes' default.
const DEFAULT_GRACE_SECONDS: u32 = 30;

/// Names one attempt of one run, and how long its token is to be valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRequest {
    /// The run's namespace.
    pub namespace: String,
    /// The tracked run: 32 hexadecimal digits.
    pub run_id: String,
    /// `metadata.name` of the run.
    pub run: String,
    /// Name of the experiment it is tracked in; the default one if unset.
    pub experiment: Option<String>,
    /// The attempt's number, from 1.
    pub attempt: u32,
    /// When the token ends, in milliseconds since the Unix epoch.
    pub expires_at: i64,
}

impl TokenRequest {
    /// The request of an attempt that starts at `now` and may run for `limit` milliseconds (without end if unset). An attempt that may
    /// wait before its program starts, as a pod in a queue does, needs a later `expires_at`.
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

/// Makes the token of an attempt. It does not block: executors call it while an attempt starts.
pub type Mint = Arc<dyn Fn(&TokenRequest) -> String + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_outlives_its_attempt_and_no_more() {
        let text = "apiVersion: slipway.dev/v1\nkind: Run\nmetadata: {name: train, namespace: team, uid: 0f-1}\n\
                    spec: {command: [python], experiment: ocr, terminationGracePeriodSeconds: 60}";
        let run = Manifest::parse(text).unwrap();
        let asked = TokenRequest::new(&run, 2, Some(10_000), 1_000);
        let expected = TokenRequest {
            namespace: "team".into(),
            run_id: "0f1".into(),
            run: "train".into(),
            experiment: Some("ocr".into()),
            attempt: 2,
            expires_at: 1_000 + 10_000 + 60_000 + SLACK_MS,
        };
        assert_eq!(asked, expected);
        assert_eq!(TokenRequest::new(&run, 2, None, 0).expires_at, DEFAULT_LIFETIME_MS + 60_000 + SLACK_MS);
        assert_eq!(TokenRequest::new(&run, 2, Some(i64::MAX), 5).expires_at, i64::MAX);
    }
}
