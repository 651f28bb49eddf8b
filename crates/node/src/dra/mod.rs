//! Dynamic resource allocation: GPUs and MIG partitions as `resource.k8s.io/v1` devices.
//!
//! Source: Kubernetes, "Dynamic Resource Allocation"; `k8s.io/kubelet/pkg/apis/dra/v1` and `pluginregistration/v1`. The
//! attribute names are those of NVIDIA's DRA driver, so selectors written for it keep working.
//!
//! A GPU without MIG is one device. A GPU with MIG is offered as its existing MIG devices and as all partitions that are possible beside them
//! (partitionable devices); the scheduler does not allocate overlapping ones. The MIG instance of a partition is created when a pod with the
//! claim starts on the node, and destroyed afterwards. Instances that were not created for claims are never destroyed for one.

pub mod channels;
pub mod membership;
mod prepare;
mod slices;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use slipway_gpu::inventory::MigDevice;
use slipway_store::Database;
use tokio::sync::Notify;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::NodeError;
use crate::cluster::Cluster;
use crate::driver::{Driver, InstancePosition, Machine, State};
use crate::kubelet;
use crate::kubelet::dra as api;
use crate::kubelet::dra_health as health;

/// The default name of the DRA driver.
pub const DRIVER: &str = "gpu.slipway.dev";

/// The MIG instances that were created for claims, as recorded in the database.
///
/// # Errors
/// [`NodeError::Store`] if the database fails.
pub async fn claimed(database: &Database) -> Result<BTreeSet<InstancePosition>, NodeError> {
    prepare::claimed(database).await
}

/// A device of this node's slices, identified by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    /// A whole GPU, named `gpu-0`.
    Gpu(u32),
    /// A MIG partition, named like `gpu-0-mig-1g10gb-2`: profile and first memory slice.
    Partition { gpu: u32, profile: String, start: u32 },
    /// An existing compute instance that shares its GPU instance, named like `gpu-0-mig-1c3g40gb-4-1`: profile, first memory slice, and id
    /// of the compute instance. Its UUID.
    ComputeInstance(String),
}

/// A profile as part of a device name, which cannot contain dots and plus signs: `1g.10gb+me` becomes `1g10gb-me`, and `1g.24gb-me`
/// becomes `1g24gb-no-me`.
fn name_part(profile: &str) -> String {
    profile.replace('.', "").replace('-', "-no-").replace('+', "-")
}

pub(crate) fn gpu_name(index: u32) -> String {
    format!("gpu-{index}")
}

pub(crate) fn partition_name(gpu: u32, profile: &str, start: u32) -> String {
    format!("gpu-{gpu}-mig-{}-{start}", name_part(profile))
}

/// The name of an existing MIG device.
pub(crate) fn mig_device_name(gpu: u32, device: &MigDevice) -> String {
    let name = partition_name(gpu, &device.profile, device.start);
    if device.is_part() { format!("{name}-{}", device.compute_instance) } else { name }
}

/// Finds the device with this name; `None` if the machine has no such GPU or possible partition.
pub(crate) fn find_device(machine: &Machine, name: &str) -> Option<Device> {
    for gpu in &machine.inventory.gpus {
        if name == gpu_name(gpu.index) {
            return Some(Device::Gpu(gpu.index));
        }
        let parts = gpu.mig.iter().flat_map(|m| &m.devices).filter(|d| d.is_part());
        for device in parts {
            if name == mig_device_name(gpu.index, device) {
                return Some(Device::ComputeInstance(device.uuid.clone()));
            }
        }
    }
    for layout in &machine.layouts {
        for profile in &layout.geometry.profiles {
            for start in &profile.starts {
                if name == partition_name(layout.gpu, &profile.name, *start) {
                    return Some(Device::Partition { gpu: layout.gpu, profile: profile.name.clone(), start: *start });
                }
            }
        }
    }
    None
}

/// The UUID of the device with this name; `None` for a partition that does not exist at the moment.
pub(crate) fn uuid_of(machine: &Machine, name: &str) -> Option<String> {
    let gpu = |index: u32| machine.inventory.gpus.iter().find(|g| g.index == index);
    match find_device(machine, name)? {
        Device::Gpu(index) => Some(gpu(index)?.uuid.clone()),
        Device::ComputeInstance(uuid) => Some(uuid),
        Device::Partition { gpu: index, profile, start } => {
            let devices = &gpu(index)?.mig.as_ref()?.devices;
            Some(devices.iter().find(|d| d.profile == profile && d.start == start)?.uuid.clone())
        }
    }
}

/// The devices that a DRA driver offers.
#[derive(Clone)]
#[allow(missing_debug_implementations)] // `Database` does not implement `Debug`
pub enum Devices {
    /// GPUs and MIG partitions.
    Gpus,
    /// IMEX channels.
    Channels(channels::Settings),
}

/// The DRA driver: serves the kubelet and publishes slices.
#[allow(missing_debug_implementations)] // `Database` does not implement `Debug`
pub struct Dra<C> {
    /// The API server.
    pub cluster: Arc<C>,
    /// Name of this node, and of its pool.
    pub node: String,
    /// Name of the DRA driver: `gpu.slipway.dev`, or `gpu.nvidia.com` to replace NVIDIA's driver.
    pub name: String,
    /// The devices that it offers.
    pub devices: Devices,
    /// Folder of the kubelet, usually `/var/lib/kubelet`.
    pub kubelet: PathBuf,
    /// The driver.
    pub driver: Arc<Driver>,
    /// Stores prepared claims.
    pub database: Arc<Database>,
    /// Notified whenever devices were allocated.
    pub handed_out: Arc<Notify>,
}

impl<C> Clone for Dra<C> {
    fn clone(&self) -> Self {
        Self {
            cluster: Arc::clone(&self.cluster),
            node: self.node.clone(),
            name: self.name.clone(),
            devices: self.devices.clone(),
            kubelet: self.kubelet.clone(),
            driver: Arc::clone(&self.driver),
            database: Arc::clone(&self.database),
            handed_out: Arc::clone(&self.handed_out),
        }
    }
}

impl<C: Cluster> Dra<C> {
    /// Runs forever.
    pub async fn run(self) {
        let publisher = self.clone();
        tokio::join!(self.serve(), slices::publish(publisher));
    }

    /// The `spec`s of the slices of a node, without the pool.
    fn specs(&self, machine: &Machine) -> Result<Vec<serde_json::Value>, NodeError> {
        match &self.devices {
            Devices::Gpus => Ok(slices::specs(machine)),
            Devices::Channels(settings) => channels::specs(settings, machine),
        }
    }

    async fn prepare(&self, claim: &api::Claim) -> Result<Vec<api::Device>, NodeError> {
        match &self.devices {
            Devices::Gpus => prepare::prepare(self, claim).await,
            Devices::Channels(settings) => channels::prepare(self, settings, claim).await,
        }
    }

    /// Releases a claim.
    async fn unprepare(&self, uid: &str) -> Result<(), NodeError> {
        match &self.devices {
            Devices::Gpus => prepare::unprepare(self, uid).await,
            Devices::Channels(settings) => settings.membership.leave(uid).await,
        }
    }

    fn plugin_socket(&self) -> PathBuf {
        self.kubelet.join("plugins").join(&self.name).join("dra.sock")
    }

    /// What the kubelet learns about the driver.
    fn plugin(&self) -> kubelet::Plugin {
        kubelet::Plugin {
            kind: "DRAPlugin",
            name: self.name.clone(),
            versions: vec!["v1.DRAPlugin".into(), "v1alpha1.DRAResourceHealth".into()],
            socket: self.plugin_socket(),
        }
    }

    async fn serve(&self) {
        loop {
            if let Err(error) = self.session().await {
                tracing::warn!(%error, "serving the DRA driver failed; retrying");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Serves until a socket file is removed, which happens when the kubelet restarts.
    async fn session(&self) -> Result<(), NodeError> {
        let service = Service { dra: self.clone() };
        let router = tonic::transport::Server::builder()
            .add_service(api::dra_plugin_server::DraPluginServer::new(service.clone()))
            .add_service(health::dra_resource_health_server::DraResourceHealthServer::new(service));
        self.plugin().session(&self.kubelet, router).await
    }
}

/// The gRPC services of the DRA driver.
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
        let mut response = api::NodePrepareResourcesResponse::default();
        for claim in request.into_inner().claims {
            let result = match self.dra.prepare(&claim).await {
                Ok(devices) => api::NodePrepareResourceResponse { devices, error: String::new() },
                Err(error) => {
                    tracing::warn!(claim = claim.name, namespace = claim.namespace, %error, "preparing the claim failed");
                    api::NodePrepareResourceResponse { devices: Vec::new(), error: error.to_string() }
                }
            };
            response.claims.insert(claim.uid, result);
        }
        self.dra.handed_out.notify_one();
        Ok(Response::new(response))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<api::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<api::NodeUnprepareResourcesResponse>, Status> {
        let mut response = api::NodeUnprepareResourcesResponse::default();
        for claim in request.into_inner().claims {
            let error = match self.dra.unprepare(&claim.uid).await {
                Ok(()) => String::new(),
                Err(error) => {
                    tracing::warn!(claim = claim.name, namespace = claim.namespace, %error, "releasing the claim failed");
                    error.to_string()
                }
            };
            response.claims.insert(claim.uid, api::NodeUnprepareResourceResponse { error });
        }
        Ok(Response::new(response))
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
        let changes = tokio_stream::wrappers::WatchStream::new(self.dra.driver.subscribe());
        // The kubelet treats devices without updates as "unknown" after a timeout, so the state is also sent periodically.
        let heartbeat = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(Duration::from_secs(20)));
        let state = self.dra.driver.subscribe();
        let gpus = matches!(self.dra.devices, Devices::Gpus);
        let lists = changes.map(drop).merge(heartbeat.map(drop)).map(move |()| {
            let state: Arc<State> = state.borrow().clone();
            Ok(health::NodeWatchResourcesResponse {
                // A channel is a device node without a health of its own.
                devices: state.machine().filter(|_| gpus).map(|m| device_health(m, &pool)).unwrap_or_default(),
            })
        });
        Ok(Response::new(Box::pin(lists)))
    }
}

/// The health of all existing devices.
fn device_health(machine: &Machine, pool: &str) -> Vec<health::DeviceHealth> {
    let mut devices = Vec::new();
    for gpu in machine.inventory.gpus.iter().filter(|g| !g.uuid.is_empty()) {
        let mut add = |name: String, fault: Option<String>| {
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
            None => add(gpu_name(gpu.index), machine.fault(&gpu.uuid, None)),
            Some(mig) => {
                for d in &mig.devices {
                    add(mig_device_name(gpu.index, d), machine.fault(&d.uuid, Some(&gpu.uuid)));
                }
            }
        }
    }
    devices
}
