//! Dynamic resource allocation: GPUs and MIG partitions as `resource.k8s.io/v1` devices.
//!
//! Source: Kubernetes, "Dynamic Resource Allocation"; `k8s.io/kubelet/pkg/apis/dra/v1` and `pluginregistration/v1`. Names of
//! attributes are those of NVIDIA's DRA driver, so selectors written for it hold.
//!
//! A GPU without MIG is one device. A GPU with MIG is offered as every partition that is possible on it (partitionable devices);
//! the scheduler sees to it that those that overlap are not handed out together, and an instance is made when a pod with it
//! starts on the node, and removed afterwards.

mod prepare;
mod slices;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use slipway_store::Database;
use tokio::sync::Notify;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::NodeError;
use crate::cluster::Cluster;
use crate::driver::{Driver, Machine, Place, State};
use crate::kubelet;
use crate::kubelet::dra as api;
use crate::kubelet::dra_health as health;
use crate::kubelet::registration;

/// The driver's name, unless another is asked for.
pub const DRIVER: &str = "gpu.slipway.dev";

/// The MIG instances that were made for claims before this agent started.
///
/// # Errors
/// The store's.
pub async fn owned(database: &Database) -> Result<BTreeSet<Place>, NodeError> {
    prepare::owned(database).await
}

/// The device of a claim, as our slices name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named {
    /// `gpu-0`
    Gpu(u32),
    /// `gpu-0-mig-1g10gb-2`: a profile from a memory slice on.
    Partition { gpu: u32, profile: String, start: u32 },
}

/// A profile's name as part of a device's, which has no dots and pluses.
fn plain(profile: &str) -> String {
    profile.replace('.', "").replace('+', "-")
}

pub(crate) fn gpu_name(index: u32) -> String {
    format!("gpu-{index}")
}

pub(crate) fn partition_name(gpu: u32, profile: &str, start: u32) -> String {
    format!("gpu-{gpu}-mig-{}-{start}", plain(profile))
}

/// What a name stands for on this machine.
pub(crate) fn named(machine: &Machine, name: &str) -> Option<Named> {
    for gpu in &machine.inventory.gpus {
        if name == gpu_name(gpu.index) {
            return Some(Named::Gpu(gpu.index));
        }
    }
    for layout in &machine.layouts {
        for profile in &layout.geometry.profiles {
            for start in &profile.starts {
                if name == partition_name(layout.gpu, &profile.name, *start) {
                    return Some(Named::Partition { gpu: layout.gpu, profile: profile.name.clone(), start: *start });
                }
            }
        }
    }
    None
}

/// The UUID of a device of our slices; `None` for a partition that is not there at the moment.
pub(crate) fn uuid_of(machine: &Machine, name: &str) -> Option<String> {
    let gpu = |index: u32| machine.inventory.gpus.iter().find(|g| g.index == index);
    match named(machine, name)? {
        Named::Gpu(index) => Some(gpu(index)?.uuid.clone()),
        Named::Partition { gpu: index, profile, start } => {
            let devices = &gpu(index)?.mig.as_ref()?.devices;
            Some(devices.iter().find(|d| d.profile == profile && d.start == start)?.uuid.clone())
        }
    }
}

/// Serves the kubelet and publishes slices.
#[allow(missing_debug_implementations)] // a database has nothing to show
pub struct Dra<C> {
    /// The API server.
    pub cluster: Arc<C>,
    /// This node; also the name of its pool.
    pub node: String,
    /// `gpu.slipway.dev`, or `gpu.nvidia.com` to answer for NVIDIA's.
    pub name: String,
    /// `/var/lib/kubelet`.
    pub kubelet: PathBuf,
    /// The driver.
    pub driver: Arc<Driver>,
    /// Where prepared claims are kept.
    pub database: Arc<Database>,
    /// Told whenever devices were handed out.
    pub handed_out: Arc<Notify>,
}

impl<C> Clone for Dra<C> {
    fn clone(&self) -> Self {
        Self {
            cluster: Arc::clone(&self.cluster),
            node: self.node.clone(),
            name: self.name.clone(),
            kubelet: self.kubelet.clone(),
            driver: Arc::clone(&self.driver),
            database: Arc::clone(&self.database),
            handed_out: Arc::clone(&self.handed_out),
        }
    }
}

impl<C: Cluster> Dra<C> {
    /// Runs for ever.
    pub async fn run(self) {
        let publisher = self.clone();
        tokio::join!(self.serve(), slices::publish(publisher));
    }

    fn plugin_socket(&self) -> PathBuf {
        self.kubelet.join("plugins").join(&self.name).join("dra.sock")
    }

    /// The kubelet dials this socket with its path as the name of the host, which the rules of HTTP/2 allow only before an `@`;
    /// so there is one in the file's name.
    fn registration_socket(&self) -> PathBuf {
        self.kubelet.join("plugins_registry").join(format!("{}@reg.sock", self.name))
    }

    async fn serve(&self) {
        loop {
            if let Err(error) = self.session().await {
                tracing::warn!(%error, "the DRA driver is not served; trying again");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Serves until a socket is taken away, as a kubelet does that starts anew.
    async fn session(&self) -> Result<(), NodeError> {
        let (plugin, listener) = kubelet::bind(&self.plugin_socket())?;
        let service = Service { dra: self.clone() };
        let router = tonic::transport::Server::builder()
            .add_service(api::dra_plugin_server::DraPluginServer::new(service.clone()))
            .add_service(health::dra_resource_health_server::DraResourceHealthServer::new(service));
        let serving = kubelet::serve(router, listener, std::future::pending());
        let (registered, listener) = kubelet::bind(&self.registration_socket())?;
        let about = Registration { name: self.name.clone(), endpoint: self.plugin_socket() };
        let router = tonic::transport::Server::builder()
            .add_service(registration::registration_server::RegistrationServer::new(about));
        let registering = kubelet::serve(router, listener, std::future::pending());
        let following = async {
            while plugin.is_there() && registered.is_there() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            ended = serving => ended,
            ended = registering => ended,
            () = following => Ok(()),
        }
    }
}

struct Registration {
    name: String,
    endpoint: PathBuf,
}

#[tonic::async_trait]
impl registration::registration_server::Registration for Registration {
    async fn get_info(
        &self,
        _: Request<registration::InfoRequest>,
    ) -> Result<Response<registration::PluginInfo>, Status> {
        Ok(Response::new(registration::PluginInfo {
            r#type: "DRAPlugin".into(),
            name: self.name.clone(),
            endpoint: Path::new(&self.endpoint).display().to_string(),
            supported_versions: vec!["v1.DRAPlugin".into(), "v1alpha1.DRAResourceHealth".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<registration::RegistrationStatus>,
    ) -> Result<Response<registration::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!(driver = self.name, "registered with the kubelet");
        } else {
            tracing::error!(driver = self.name, error = status.error, "the kubelet refuses the DRA driver");
        }
        Ok(Response::new(registration::RegistrationStatusResponse {}))
    }
}

struct Service<C> {
    dra: Dra<C>,
}

impl<C> Clone for Service<C> {
    fn clone(&self) -> Self {
        Self { dra: self.dra.clone() }
    }
}

type Health = Pin<Box<dyn Stream<Item = Result<health::NodeWatchResourcesResponse, Status>> + Send>>;

#[tonic::async_trait]
impl<C: Cluster> api::dra_plugin_server::DraPlugin for Service<C> {
    async fn node_prepare_resources(
        &self,
        request: Request<api::NodePrepareResourcesRequest>,
    ) -> Result<Response<api::NodePrepareResourcesResponse>, Status> {
        let mut answer = api::NodePrepareResourcesResponse::default();
        for claim in request.into_inner().claims {
            let one = match prepare::prepare(&self.dra, &claim).await {
                Ok(devices) => api::NodePrepareResourceResponse { devices, error: String::new() },
                Err(error) => {
                    tracing::warn!(claim = claim.name, namespace = claim.namespace, %error, "not prepared");
                    api::NodePrepareResourceResponse { devices: Vec::new(), error: error.to_string() }
                }
            };
            answer.claims.insert(claim.uid, one);
        }
        self.dra.handed_out.notify_one();
        Ok(Response::new(answer))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<api::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<api::NodeUnprepareResourcesResponse>, Status> {
        let mut answer = api::NodeUnprepareResourcesResponse::default();
        for claim in request.into_inner().claims {
            let error = match prepare::unprepare(&self.dra, &claim.uid).await {
                Ok(()) => String::new(),
                Err(error) => {
                    tracing::warn!(claim = claim.name, namespace = claim.namespace, %error, "not unprepared");
                    error.to_string()
                }
            };
            answer.claims.insert(claim.uid, api::NodeUnprepareResourceResponse { error });
        }
        Ok(Response::new(answer))
    }
}

#[tonic::async_trait]
impl<C: Cluster> health::dra_resource_health_server::DraResourceHealth for Service<C> {
    type NodeWatchResourcesStream = Health;

    async fn node_watch_resources(
        &self,
        _: Request<health::NodeWatchResourcesRequest>,
    ) -> Result<Response<Health>, Status> {
        let pool = self.dra.node.clone();
        let news = tokio_stream::wrappers::WatchStream::new(self.dra.driver.subscribe());
        // The kubelet takes silence for "unknown" after a while, so the state is told again.
        let again = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(Duration::from_secs(20)));
        let state = self.dra.driver.subscribe();
        let lists = news.map(drop).merge(again.map(drop)).map(move |()| {
            let state: Arc<State> = state.borrow().clone();
            Ok(health::NodeWatchResourcesResponse {
                devices: state.machine().map(|m| device_health(m, &pool)).unwrap_or_default(),
            })
        });
        Ok(Response::new(Box::pin(lists)))
    }
}

fn device_health(machine: &Machine, pool: &str) -> Vec<health::DeviceHealth> {
    let mut devices = Vec::new();
    for gpu in machine.inventory.gpus.iter().filter(|g| !g.uuid.is_empty()) {
        let mut tell = |name: String, fault: Option<String>| {
            let health = if fault.is_none() { health::HealthStatus::Healthy } else { health::HealthStatus::Unhealthy };
            devices.push(health::DeviceHealth {
                device: Some(health::DeviceIdentifier { pool_name: pool.to_owned(), device_name: name }),
                health: health.into(),
                last_updated_time: slipway_core::clock::now_ms() / 1000,
                health_check_timeout_seconds: 60,
                message: fault.unwrap_or_default(),
            });
        };
        match gpu.mig.as_ref().filter(|m| m.enabled) {
            None => tell(gpu_name(gpu.index), machine.fault(&gpu.uuid, None)),
            Some(mig) => {
                for d in &mig.devices {
                    tell(partition_name(gpu.index, &d.profile, d.start), machine.fault(&d.uuid, Some(&gpu.uuid)));
                }
            }
        }
    }
    devices
}
