//! Which container holds which device, as the kubelet tells it, and the log of it: the source for attribution of runs, cost and
//! idle GPUs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use slipway_gpu::usage::Use;
use slipway_store::Database;
use tokio::sync::{Notify, watch};
use tonic::transport::Channel;

use crate::driver::State;
use crate::kubelet::{self, pod_resources as api};
use crate::model::{Held, Holder};
use crate::{NodeError, dra, repo, resources};

/// Asks the kubelet again and again, and keeps the log.
#[allow(missing_debug_implementations)] // a database has nothing to show
pub struct Watcher {
    /// `/var/lib/kubelet/pod-resources/kubelet.sock`.
    pub socket: PathBuf,
    /// Where the log is.
    pub database: Arc<Database>,
    /// Told when devices were handed out: then containers are about to start.
    pub handed_out: Arc<Notify>,
    /// The name under which claims' devices are ours.
    pub dra_driver: String,
}

/// Between two questions when nothing was handed out.
const CALM: Duration = Duration::from_secs(5);

impl Watcher {
    /// Runs for ever.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub async fn run(self, states: watch::Receiver<Arc<State>>, held: watch::Sender<Held>) -> Result<(), NodeError> {
        let mut channel = None;
        let mut eager = 0;
        // Leases that went on while no agent ran go on with what they had used.
        let open = self.database.read(|c| repo::leases(c, u32::MAX)).await?;
        let mut before: BTreeMap<Holder, Use> =
            open.into_iter().filter(|l| l.ended.is_none()).map(|l| (l.holder, l.used)).collect();
        loop {
            if channel.is_none() {
                channel = kubelet::connect(&self.socket).await.ok();
            }
            let answer = match channel.clone() {
                None => None,
                Some(open) => list(open, &self.socket).await.map_err(|e| tracing::debug!(%e, "pod resources")).ok(),
            };
            match answer {
                None => channel = None,
                Some(answer) => {
                    let state = states.borrow().clone();
                    let now = holders(&answer, &state, &self.dra_driver);
                    let changed = {
                        let known = held.borrow();
                        known.len() != now.len() || now.iter().any(|h| !known.contains_key(h))
                    };
                    let mut gone = Vec::new();
                    if changed {
                        held.send_modify(|held| {
                            gone.extend(held.extract_if(.., |h, _| !now.contains(h)));
                            for holder in &now {
                                held.entry(holder.clone()).or_insert_with(|| before.remove(holder).unwrap_or_default());
                            }
                        });
                    }
                    before.clear();
                    let uses: Vec<(Holder, Use)> = held.borrow().iter().map(|(h, u)| (h.clone(), *u)).collect();
                    let time = slipway_core::clock::now_ms();
                    self.database.write(move |c| repo::record(c, time, &uses, &gone)).await?;
                }
            }
            // After devices were handed out the kubelet takes a moment until it says to whom.
            let wait = if eager > 0 { Duration::from_millis(500) } else { CALM };
            eager = if tokio::time::timeout(wait, self.handed_out.notified()).await.is_ok() {
                6
            } else {
                (eager - 1).max(0)
            };
        }
    }
}

/// Asks the kubelet once.
///
/// # Errors
/// [`NodeError::Kubelet`] when it does not answer.
pub async fn ask(socket: &Path, state: &State, driver: &str) -> Result<Vec<Holder>, NodeError> {
    let channel = kubelet::connect(socket).await?;
    Ok(holders(&list(channel, socket).await?, state, driver))
}

async fn list(channel: Channel, socket: &Path) -> Result<api::ListPodResourcesResponse, NodeError> {
    let mut client =
        api::pod_resources_lister_client::PodResourcesListerClient::new(channel).max_decoding_message_size(64 << 20);
    let answer = client.list(api::ListPodResourcesRequest {}).await;
    answer.map(tonic::Response::into_inner).map_err(|status| NodeError::Kubelet {
        path: socket.display().to_string(),
        reason: status.message().to_owned(),
    })
}

fn holders(answer: &api::ListPodResourcesResponse, state: &State, driver: &str) -> Vec<Holder> {
    let mut found = Vec::new();
    for pod in &answer.pod_resources {
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
                    // Other plugins hand out other things.
                    if device.starts_with("GPU-") || device.starts_with("MIG-") {
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
