//! The kubelet's device plugin API, v1beta1, with one socket and server per resource.
//!
//! Source: Kubernetes, "Device Plugins"; `k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1`. When the kubelet
//! starts, it empties the folder of sockets and forgets registrations. Polling the folder every second detects this reliably, without
//! depending on notifications.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::NodeError;
use crate::kubelet::device_plugin as api;
use crate::kubelet::{self, identity};

/// A resource at one moment, as a vendor's module derives it from the state of its GPUs.
pub trait Offered: Clone + Send + Sync + 'static {
    /// Its name, such as `nvidia.com/gpu`.
    fn resource(&self) -> &str;

    /// The device list for the kubelet, which is sent again whenever it changes.
    fn devices(&self) -> Vec<api::Device>;

    /// Marks all devices as unhealthy, because the driver is missing.
    fn withdraw(&mut self);

    /// The devices that a container should get; `None` to leave the choice to the kubelet.
    fn preferred(&self, request: &api::ContainerPreferredAllocationRequest) -> Option<Vec<String>>;

    /// The devices, mounts and environment of a container that gets these devices.
    ///
    /// # Errors
    /// The status for the kubelet, which it shows in the pod's events.
    fn allocate(&self, ids: &[String]) -> Result<api::ContainerAllocateResponse, Status>;
}

/// A device for the kubelet.
pub fn device(id: String, healthy: bool, numa: Option<u32>) -> api::Device {
    api::Device {
        id,
        health: if healthy { "Healthy" } else { "Unhealthy" }.into(),
        topology: numa.map(|n| api::TopologyInfo { nodes: vec![api::NumaNode { id: n.into() }] }),
    }
}

/// The server of a resource; dropping it stops the server.
struct Server<O> {
    offered: watch::Sender<O>,
    task: AbortHandle,
}

impl<O> Drop for Server<O> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The servers of a vendor's resources.
#[allow(missing_debug_implementations)] // the servers have nothing to show
pub struct Servers<O> {
    folder: PathBuf,
    handed_out: Arc<Notify>,
    servers: BTreeMap<String, Server<O>>,
    tasks: JoinSet<()>,
}

impl<O: Offered> Servers<O> {
    /// No servers yet. `folder` is the kubelet's folder of sockets; `handed_out` is notified whenever devices were allocated.
    pub fn new(folder: PathBuf, handed_out: Arc<Notify>) -> Self {
        Self { folder, handed_out, servers: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Offers exactly these resources: starts, updates and stops servers.
    pub fn offer(&mut self, offers: Vec<O>) {
        self.servers.retain(|name, _| {
            let offered = offers.iter().any(|offer| offer.resource() == name);
            if !offered {
                tracing::info!(resource = name, "no longer offered");
            }
            offered
        });
        for offered in offers {
            match self.servers.get(offered.resource()) {
                Some(server) => {
                    server.offered.send_replace(offered);
                }
                None => {
                    let name = offered.resource().to_owned();
                    tracing::info!(resource = name, devices = offered.devices().len(), "offered to the kubelet");
                    let server = self.serve(offered);
                    self.servers.insert(name, server);
                }
            }
        }
    }

    /// Marks all devices as unhealthy.
    pub fn withdraw(&mut self) {
        for server in self.servers.values() {
            server.offered.send_modify(O::withdraw);
        }
    }

    /// Completes when a server has panicked, because its resource would no longer be served. Dropped servers end as cancelled.
    pub async fn failure(&mut self) -> NodeError {
        loop {
            match self.tasks.join_next().await {
                Some(Err(error)) if error.is_panic() => {
                    return NodeError::Invalid(format!("the server of a resource panicked: {error}"));
                }
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    fn serve(&mut self, offered: O) -> Server<O> {
        let resource = offered.resource().to_owned();
        let (sender, receiver) = watch::channel(offered);
        let service = Service { offered: receiver, handed_out: Arc::clone(&self.handed_out) };
        let folder = self.folder.clone();
        let task = self.tasks.spawn(async move {
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

/// Removes sockets left by a killed agent. Must be called before the first server starts.
///
/// # Errors
/// If the folder cannot be read.
pub fn remove_stale_sockets(folder: &Path) -> Result<(), NodeError> {
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
async fn session<O: Offered>(folder: &Path, resource: &str, service: Service<O>) -> Result<(), NodeError> {
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
struct Service<O> {
    offered: watch::Receiver<O>,
    handed_out: Arc<Notify>,
}

type Devices = Pin<Box<dyn Stream<Item = Result<api::ListAndWatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl<O: Offered> api::device_plugin_server::DevicePlugin for Service<O> {
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
        let requests = request.into_inner().container_requests;
        let chosen: Option<Vec<_>> = requests.iter().map(|container| offered.preferred(container)).collect();
        let response = |device_i_ds| api::ContainerPreferredAllocationResponse { device_i_ds };
        let container_responses = chosen.unwrap_or_default().into_iter().map(response).collect();
        Ok(Response::new(api::PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<api::AllocateRequest>,
    ) -> Result<Response<api::AllocateResponse>, Status> {
        let offered = self.offered.borrow().clone();
        let requests = request.into_inner().container_requests;
        let container_responses: Result<Vec<_>, Status> =
            requests.iter().map(|container| offered.allocate(&container.devices_ids)).collect();
        let container_responses = container_responses?;
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
