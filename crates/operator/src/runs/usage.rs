//! What a run's GPUs did, as the node agents' lease logs have it.

use serde_json::Value;
use slipway_exec::{GpuUse, RunStatus};

use super::{Key, pod};
use crate::{Api, KubeError, nodes};

/// Milliseconds after a run's end when its agents are not asked any more.
pub(super) const PATIENCE_MS: i64 = 30_000;
/// Leases that are looked through.
const LEASES: u32 = 1000;

/// What was found.
pub(super) enum Found {
    /// Everything that there will be.
    All,
    /// A lease goes on, or an agent did not answer.
    NotYet,
}

/// Fills in what the GPUs of each try did.
pub(super) async fn of(api: &Api, installation: &str, key: &Key, status: &mut RunStatus) -> Found {
    let mut found = Found::All;
    for attempt in &mut status.attempts {
        if attempt.node.is_empty() || attempt.started_at.is_none() {
            continue;
        }
        match nodes::leases(api, installation, &attempt.node, LEASES).await {
            Ok(leases) => {
                let name = pod::name(&key.1, attempt.number);
                let ours = |l: &&Value| l["namespace"] == key.0.as_str() && l["pod"] == name.as_str();
                let ours: Vec<&Value> = leases.as_array().into_iter().flatten().filter(ours).collect();
                if ours.is_empty() || ours.iter().any(|l| l["ended"].is_null()) {
                    found = Found::NotYet;
                }
                attempt.gpus = ours.into_iter().map(used).collect();
            }
            // No agent on that node: nobody has looked.
            Err(KubeError::Invalid(_)) => {}
            Err(error) => {
                tracing::debug!(node = attempt.node, %error, "the agent does not tell its leases");
                found = Found::NotYet;
            }
        }
    }
    found
}

fn used(lease: &Value) -> GpuUse {
    let text = |field: &str| lease[field].as_str().unwrap_or_default().to_owned();
    let number = |field: &str| lease[field].as_f64().unwrap_or(0.0);
    GpuUse {
        device: text("device"),
        resource: text("resource"),
        joules: number("joules"),
        busy_seconds: number("busy_seconds"),
        idle_seconds: number("idle_seconds"),
    }
}
