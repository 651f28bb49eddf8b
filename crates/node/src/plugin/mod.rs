//! The kubelet's device plugin API, v1beta1, with one socket and server per resource.
//!
//! Source: Kubernetes, "Device Plugins"; `k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1`. When the kubelet
//! starts, it empties the folder of sockets and forgets registrations. Polling the folder every second detects this reliably, without
//! depending on notifications.

mod answer;
mod preferred;

pub use answer::Roots;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::config::Config;
use crate::driver::{Machine, State};
use crate::kubelet::device_plugin as api;
use crate::kubelet::{self, identity};
use crate::resources::{Offer, offers};
use crate::{NodeError, mps};

/// An offered resource, with the state and configuration that it was derived from.
#[derive(Debug, Clone)]
struct Offered {
    offer: Offer,
    machine: Arc<State>,
    config: Arc<Config>,
}

impl Offered {
    fn machine(&self) -> Option<&Machine> {
        self.machine.machine()
    }

    /// The device list for the kubelet, which is sent again whenever it changes.
    fn devices(&self) -> Vec<api::Device> {
        let device = |(id, unit): (String, &crate::resources::Unit)| api::Device {
            id,
            health: if unit.fault.is_none() { "Healthy" } else { "Unhealthy" }.into(),
            topology: unit.numa.map(|n| api::TopologyInfo { nodes: vec![api::NumaNode { id: n.into() }] }),
        };
        self.offer.identifiers().into_iter().map(device).collect()
    }
}

/// Offers resources to the kubelet until its task is dropped.
#[derive(Debug)]
pub struct Plugin {
    /// The kubelet's folder of sockets, usually `/var/lib/kubelet/device-plugins`.
    pub folder: PathBuf,
    /// Folder of the MPS daemons.
    pub mps: mps::Root,
    /// Root folder of the driver's files.
    pub roots: Roots,
    /// Notified whenever devices were allocated.
    pub handed_out: Arc<Notify>,
}

/// The server of a resource; dropping it stops the server.
struct Server {
    offered: watch::Sender<Offered>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Plugin {
    /// Starts, updates and stops one server per resource as the driver state and the configuration change.
    ///
    /// # Errors
    /// If the socket folder cannot be read, or a server panicked.
    pub async fn run(
        self,
        mut states: watch::Receiver<Arc<State>>,
        mut configs: watch::Receiver<Arc<Config>>,
    ) -> Result<(), NodeError> {
        remove_stale_sockets(&self.folder)?;
        let mut tasks = JoinSet::new();
        let mut servers: BTreeMap<String, Server> = BTreeMap::new();
        let mut last_error = String::new();
        loop {
            let state = states.borrow_and_update().clone();
            let config = configs.borrow_and_update().clone();
            // Pods may hold devices of a missing driver, so keep the devices and mark them unhealthy until it returns.
            if let Some(machine) = state.machine() {
                let offers = offers(machine, &config).unwrap_or_else(|why| {
                    if why != last_error {
                        tracing::error!(%why, "the MIG strategy does not fit this node; offering no devices");
                    }
                    last_error = why;
                    Vec::new()
                });
                servers.retain(|name, _| {
                    let offered = offers.iter().any(|o| o.resource == *name);
                    if !offered {
                        tracing::info!(resource = name, "no longer offered");
                    }
                    offered
                });
                for offer in offers {
                    let offered = Offered { offer, machine: Arc::clone(&state), config: Arc::clone(&config) };
                    match servers.get(&offered.offer.resource) {
                        Some(server) => {
                            server.offered.send_replace(offered);
                        }
                        None => {
                            let name = offered.offer.resource.clone();
                            tracing::info!(
                                resource = name,
                                devices = offered.devices().len(),
                                "offered to the kubelet"
                            );
                            servers.insert(name, self.serve(offered, &mut tasks));
                        }
                    }
                }
            } else {
                for server in servers.values() {
                    server.offered.send_modify(|o| {
                        for unit in &mut o.offer.units {
                            unit.fault = Some("the driver is not available".into());
                        }
                    });
                }
            }
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return Ok(()) },
                changed = configs.changed() => if changed.is_err() { return Ok(()) },
                // Dropped servers end as cancelled; after a panic the resource would no longer be served.
                Some(Err(error)) = tasks.join_next() => if error.is_panic() {
                    return Err(NodeError::Invalid(format!("the server of a resource panicked: {error}")));
                },
            }
        }
    }

    fn serve(&self, offered: Offered, tasks: &mut JoinSet<()>) -> Server {
        let resource = offered.offer.resource.clone();
        let (sender, receiver) = watch::channel(offered);
        let service = Service {
            offered: receiver,
            mps: self.mps.clone(),
            roots: self.roots.clone(),
            handed_out: Arc::clone(&self.handed_out),
        };
        let folder = self.folder.clone();
        let task = tasks.spawn(async move {
            let mut backoff = Duration::from_millis(100);
            loop {
                match session(&folder, &resource, service.clone()).await {
                    Ok(()) => backoff = Duration::from_millis(100),
                    Err(error) => {
                        tracing::warn!(resource, %error, "offering the resource to the kubelet failed; retrying");
                        tokio::time::sleep(backoff).await;
                        backoff = (backoff * 2).min(Duration::from_secs(5));
                    }
                }
            }
        });
        Server { offered: sender, task }
    }
}

/// The name of a resource's socket. The prefix distinguishes it from the sockets of other plugins.
fn socket_name(resource: &str) -> String {
    format!("slipway-{}.sock", resource.replace('/', "-"))
}

/// Removes sockets left by a killed agent.
fn remove_stale_sockets(folder: &Path) -> Result<(), NodeError> {
    std::fs::create_dir_all(folder).map_err(NodeError::io(folder.display().to_string()))?;
    let entries = std::fs::read_dir(folder).map_err(NodeError::io(folder.display().to_string()))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("slipway-") && name.ends_with(".sock") {
            let _ = std::fs::remove_file(entry.path()); // a remaining socket is replaced when its resource is served
        }
    }
    Ok(())
}

/// Serves a resource and registers it with the kubelet; returns when the kubelet has restarted or the socket was removed.
async fn session(folder: &Path, resource: &str, service: Service) -> Result<(), NodeError> {
    let kubelet_socket = folder.join("kubelet.sock");
    let registered_with = identity(&kubelet_socket);
    let name = socket_name(resource);
    let (socket, listener) = kubelet::bind(&folder.join(&name))?;
    let router =
        tonic::transport::Server::builder().add_service(api::device_plugin_server::DevicePluginServer::new(service));
    let serving = kubelet::serve(router, listener, std::future::pending());
    let registration = async {
        let channel = kubelet::connect(&kubelet_socket).await?;
        let mut client = api::registration_client::RegistrationClient::new(channel);
        let request = api::RegisterRequest {
            version: "v1beta1".into(),
            endpoint: name,
            resource_name: resource.into(),
            options: Some(options()),
        };
        client.register(request).await.map_err(|status| NodeError::Kubelet {
            path: kubelet_socket.display().to_string(),
            reason: format!("it rejected {resource}: {}", status.message()),
        })?;
        tracing::info!(resource, "registered with the kubelet");
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = identity(&kubelet_socket);
            if !socket.exists() || (now.is_some() && now != registered_with) {
                tracing::info!(resource, "the kubelet has restarted");
                return Ok(());
            }
        }
    };
    tokio::select! {
        ended = serving => ended,
        ended = registration => ended,
    }
}

fn options() -> api::DevicePluginOptions {
    api::DevicePluginOptions { pre_start_required: false, get_preferred_allocation_available: true }
}

/// The gRPC service of one resource.
#[derive(Clone)]
struct Service {
    offered: watch::Receiver<Offered>,
    mps: mps::Root,
    roots: Roots,
    handed_out: Arc<Notify>,
}

type Devices = Pin<Box<dyn Stream<Item = Result<api::ListAndWatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl api::device_plugin_server::DevicePlugin for Service {
    type ListAndWatchStream = Devices;

    async fn get_device_plugin_options(
        &self,
        _: Request<api::Empty>,
    ) -> Result<Response<api::DevicePluginOptions>, Status> {
        Ok(Response::new(options()))
    }

    async fn list_and_watch(&self, _: Request<api::Empty>) -> Result<Response<Devices>, Status> {
        let mut last = None;
        let changes = tokio_stream::wrappers::WatchStream::new(self.offered.clone());
        let lists = changes.filter_map(move |offered| {
            let devices = offered.devices();
            (last.as_ref() != Some(&devices)).then(|| {
                last = Some(devices.clone());
                Ok(api::ListAndWatchResponse { devices })
            })
        });
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<api::PreferredAllocationRequest>,
    ) -> Result<Response<api::PreferredAllocationResponse>, Status> {
        let offered = self.offered.borrow().clone();
        let Some(machine) = offered.machine() else {
            return Ok(Response::new(api::PreferredAllocationResponse::default()));
        };
        let prefer = |c: api::ContainerPreferredAllocationRequest| api::ContainerPreferredAllocationResponse {
            device_i_ds: preferred::choose(
                &offered.offer,
                &machine.topology,
                offered.config.shared_policy,
                &c.available_device_i_ds,
                &c.must_include_device_i_ds,
                usize::try_from(c.allocation_size).unwrap_or(0),
            ),
        };
        let container_responses = request.into_inner().container_requests.into_iter().map(prefer).collect();
        Ok(Response::new(api::PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<api::AllocateRequest>,
    ) -> Result<Response<api::AllocateResponse>, Status> {
        let offered = self.offered.borrow().clone();
        let Some(machine) = offered.machine() else {
            return Err(Status::unavailable("the driver is not available"));
        };
        let mut container_responses = Vec::new();
        for container in request.into_inner().container_requests {
            let context = answer::Context {
                offer: &offered.offer,
                machine,
                config: &offered.config,
                mps: &self.mps,
                roots: &self.roots,
            };
            // NVIDIA's device plugin also returns the status code `Unknown` for every error.
            container_responses.push(answer::allocate(&context, &container.devices_ids).map_err(Status::unknown)?);
        }
        self.handed_out.notify_one();
        Ok(Response::new(api::AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<api::PreStartContainerRequest>,
    ) -> Result<Response<api::PreStartContainerResponse>, Status> {
        Ok(Response::new(api::PreStartContainerResponse {}))
    }
}
