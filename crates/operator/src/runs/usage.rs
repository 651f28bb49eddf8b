//! GPU usage of runs, from the lease logs of the node agents.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use slipway_exec::{GpuUse, RunStatus};
use tokio::sync::Mutex;

use super::reconcile::Usage;
use super::{Key, pod};
use crate::{Api, KubeError, nodes};

/// Number of a node's newest leases that are searched.
const MAX_LEASES: u32 = 1000;
/// How long the list of agents is cached.
const AGENTS_TTL: Duration = Duration::from_secs(10);

/// The pods of agents, keyed by node name.
type AgentsByNode = Arc<HashMap<String, String>>;

/// The agents of an installation, cached.
pub(super) struct Agents {
    api: Api,
    installation: String,
    cache: Mutex<Option<(Instant, AgentsByNode)>>,
}

impl Agents {
    pub(super) fn new(api: Api, installation: String) -> Self {
        Self { api, installation, cache: Mutex::default() }
    }

    async fn all(&self) -> Result<AgentsByNode, KubeError> {
        let mut cache = self.cache.lock().await;
        if let Some((_, agents)) = cache.as_ref().filter(|(at, _)| at.elapsed() < AGENTS_TTL) {
            return Ok(Arc::clone(agents));
        }
        let agents = Arc::new(nodes::agents(&self.api, &self.installation).await?);
        *cache = Some((Instant::now(), Arc::clone(&agents)));
        Ok(agents)
    }

    /// Whether an agent observed the GPUs of any attempt. Returns true if the list of agents cannot be read.
    pub(super) async fn observed_any(&self, status: &RunStatus) -> bool {
        match self.all().await {
            Ok(agents) => status.attempts.iter().any(|a| a.started_at.is_some() && agents.contains_key(&a.node)),
            Err(_) => true,
        }
    }

    /// Reads the GPU usage of each attempt. Nodes without an agent are skipped.
    pub(super) async fn usage(&self, key: &Key, status: &RunStatus) -> Usage {
        let mut gpus = Vec::new();
        let Ok(agents) = self.all().await else { return Usage::Observed { gpus, is_complete: false } };
        let mut is_complete = true;
        for attempt in status.attempts.iter().filter(|attempt| attempt.started_at.is_some()) {
            let Some(agent) = agents.get(&attempt.node) else { continue };
            match nodes::leases_of(&self.api, &self.installation, agent, MAX_LEASES).await {
                Ok(leases) => {
                    let name = pod::name(&key.1, attempt.number);
                    let is_of_attempt = |l: &&Value| l["namespace"] == key.0.as_str() && l["pod"] == name.as_str();
                    let leases: Vec<&Value> = leases.as_array().into_iter().flatten().filter(is_of_attempt).collect();
                    is_complete &= !leases.is_empty() && leases.iter().all(|lease| !lease["ended"].is_null());
                    gpus.push((attempt.number, leases.into_iter().map(gpu_use).collect()));
                }
                Err(error) => {
                    tracing::debug!(node = attempt.node, %error, "cannot read the leases of the agent");
                    is_complete = false;
                }
            }
        }
        Usage::Observed { gpus, is_complete }
    }
}

/// Usage from an entry of a lease log.
fn gpu_use(lease: &Value) -> GpuUse {
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
