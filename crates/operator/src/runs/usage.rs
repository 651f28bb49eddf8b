//! What the GPUs of a run did, from the lease logs of the node agents.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use slipway_exec::{GpuUse, RunStatus};
use tokio::sync::Mutex;

use super::{Key, pod};
use crate::{Api, KubeError, nodes};

/// How long after a run's end its usage is waited for, in milliseconds.
pub(super) const USAGE_WAIT_MS: i64 = 30_000;
/// How many of a node's newest leases are searched.
const LEASES: u32 = 1000;
/// How long the list of agents is used before it is read again.
const AGENTS_TTL: Duration = Duration::from_secs(10);

/// Whether the usage is complete.
pub(super) enum Found {
    /// It is.
    All,
    /// A lease has not ended, or an agent did not answer.
    NotYet,
}

/// The agent's pod on each node.
type ByNode = Arc<HashMap<String, String>>;

/// The agents of an installation, cached.
pub(super) struct Agents {
    api: Api,
    installation: String,
    known: Mutex<Option<(Instant, ByNode)>>,
}

impl Agents {
    pub(super) fn new(api: Api, installation: String) -> Self {
        Self { api, installation, known: Mutex::default() }
    }

    async fn all(&self) -> Result<ByNode, KubeError> {
        let mut known = self.known.lock().await;
        if let Some((_, agents)) = known.as_ref().filter(|(at, _)| at.elapsed() < AGENTS_TTL) {
            return Ok(Arc::clone(agents));
        }
        let agents = Arc::new(nodes::agents(&self.api, &self.installation).await?);
        *known = Some((Instant::now(), Arc::clone(&agents)));
        Ok(agents)
    }

    /// Whether an agent observed the GPUs of any attempt; true if that cannot be said now.
    pub(super) async fn saw(&self, status: &RunStatus) -> bool {
        match self.all().await {
            Ok(agents) => status.attempts.iter().any(|a| a.started_at.is_some() && agents.contains_key(&a.node)),
            Err(_) => true,
        }
    }

    /// Fills in what the GPUs of each attempt did.
    pub(super) async fn tell(&self, key: &Key, status: &mut RunStatus) -> Found {
        let Ok(agents) = self.all().await else { return Found::NotYet };
        let mut found = Found::All;
        for attempt in &mut status.attempts {
            let Some(agent) = agents.get(&attempt.node).filter(|_| attempt.started_at.is_some()) else { continue };
            match nodes::leases_of(&self.api, &self.installation, agent, LEASES).await {
                Ok(leases) => {
                    let name = pod::name(&key.1, attempt.number);
                    let ours = |l: &&Value| l["namespace"] == key.0.as_str() && l["pod"] == name.as_str();
                    let ours: Vec<&Value> = leases.as_array().into_iter().flatten().filter(ours).collect();
                    if ours.is_empty() || ours.iter().any(|l| l["ended"].is_null()) {
                        found = Found::NotYet;
                    }
                    attempt.gpus = ours.into_iter().map(used).collect();
                }
                Err(error) => {
                    tracing::debug!(node = attempt.node, %error, "the agent does not tell its leases");
                    found = Found::NotYet;
                }
            }
        }
        found
    }
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
