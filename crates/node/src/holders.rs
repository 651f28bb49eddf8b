//! Tracks which container holds which device, as reported by the kubelet, and keeps the lease log. Both are the source for attributing
//! usage and cost to runs, and for finding idle GPUs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use slipway_gpu::usage::Usage;
use slipway_store::Database;
use tokio::sync::{Notify, watch};
use tonic::transport::Channel;

use crate::driver::State;
use crate::kubelet::{self, pod_resources as api};
use crate::model::{Held, Holder};
use crate::{NodeError, dra, repo, resources};

/// Polls the kubelet and writes the lease log.
#[allow(missing_debug_implementations)] // `Database` does not implement `Debug`
pub struct Watcher {
    /// Socket of the kubelet's pod resources API, usually `/var/lib/kubelet/pod-resources/kubelet.sock`.
    pub socket: PathBuf,
    /// Stores the lease log.
    pub database: Arc<Database>,
    /// Notified whenever devices were allocated, because containers are about to start then.
    pub handed_out: Arc<Notify>,
    /// Name of the DRA driver whose devices belong to this agent.
    pub dra_driver: String,
}

/// Poll interval while no devices are being allocated.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

impl Watcher {
    /// Runs forever.
    ///
    /// # Errors
    /// If the lease log cannot be read or written.
    pub async fn run(self, states: watch::Receiver<Arc<State>>, held: watch::Sender<Held>) -> Result<(), NodeError> {
        let mut channel = None;
        let mut fast_polls = 0;
        // Leases that were open when the agent stopped continue with their recorded usage.
        let open_leases = self.database.read(|c| repo::leases(c, u32::MAX)).await?;
        let mut resumed: BTreeMap<Holder, Usage> =
            open_leases.into_iter().filter(|l| l.ended.is_none()).map(|l| (l.holder, l.used)).collect();
        loop {
            if channel.is_none() {
                channel = kubelet::connect(&self.socket).await.ok();
            }
            let response = match channel.clone() {
                None => None,
                Some(channel) => {
                    list(channel, &self.socket).await.map_err(|e| tracing::debug!(%e, "pod resources")).ok()
                }
            };
            match response {
                None => channel = None,
                Some(response) => {
                    let state = states.borrow().clone();
                    let now = holders(&response, &state, &self.dra_driver);
                    let changed = {
                        let known = held.borrow();
                        known.len() != now.len() || now.iter().any(|h| !known.contains_key(h))
                    };
                    let mut former = Vec::new();
                    if changed {
                        held.send_modify(|held| {
                            former.extend(held.extract_if(.., |h, _| !now.contains(h)));
                            for holder in &now {
                                held.entry(holder.clone())
                                    .or_insert_with(|| resumed.remove(holder).unwrap_or_default());
                            }
                        });
                    }
                    resumed.clear();
                    let current: Vec<(Holder, Usage)> = held.borrow().iter().map(|(h, u)| (h.clone(), *u)).collect();
                    let time = slipway_core::clock::now_ms();
                    self.database.write(move |c| repo::record(c, time, &current, &former)).await?;
                }
            }
            // The kubelet reports the holders only some time after an allocation, so poll faster for a while.
            let interval = if fast_polls > 0 { Duration::from_millis(500) } else { POLL_INTERVAL };
            fast_polls = if tokio::time::timeout(interval, self.handed_out.notified()).await.is_ok() {
                6
            } else {
                (fast_polls - 1).max(0)
            };
        }
    }
}

/// Queries the kubelet for all current holders once.
///
/// # Errors
/// [`NodeError::Kubelet`] if it does not respond.
pub async fn list_holders(socket: &Path, state: &State, driver: &str) -> Result<Vec<Holder>, NodeError> {
    let channel = kubelet::connect(socket).await?;
    Ok(holders(&list(channel, socket).await?, state, driver))
}

async fn list(channel: Channel, socket: &Path) -> Result<api::ListPodResourcesResponse, NodeError> {
    let mut client =
        api::pod_resources_lister_client::PodResourcesListerClient::new(channel).max_decoding_message_size(64 << 20);
    let response = client.list(api::ListPodResourcesRequest {}).await;
    response.map(tonic::Response::into_inner).map_err(|status| NodeError::Kubelet {
        path: socket.display().to_string(),
        reason: status.message().to_owned(),
    })
}

/// Extracts the holders of this agent's devices from the kubelet's response.
fn holders(response: &api::ListPodResourcesResponse, state: &State, driver: &str) -> Vec<Holder> {
    let mut found = Vec::new();
    for pod in &response.pod_resources {
        for container in &pod.containers {
            let holder = |resource: String, device: String, replica: Option<u32>| Holder {
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                container: container.name.clone(),
                resource,
                device,
                replica,
            };
            for devices in &container.devices {
                for id in &devices.device_ids {
                    let device = resources::device(id);
                    // Other device plugins use other identifiers. Those of AMD's GPUs are names of the kernel, which do not identify the vendor.
                    let is_nvidia = device.starts_with("GPU-") || device.starts_with("MIG-");
                    if is_nvidia || devices.resource_name.starts_with("amd.com/") {
                        let replica = id.split_once("::").and_then(|(_, n)| n.parse().ok());
                        found.push(holder(devices.resource_name.clone(), device.to_owned(), replica));
                    }
                }
            }
            for claim in &container.dynamic_resources {
                for device in claim.claim_resources.iter().filter(|d| d.driver_name == driver) {
                    let uuid = state.machine().and_then(|m| dra::uuid_of(m, &device.device_name));
                    found.extend(uuid.map(|uuid| holder(format!("claim:{}", claim.claim_name), uuid, None)));
                }
            }
        }
    }
    found.sort();
    found.dedup();
    found
}
