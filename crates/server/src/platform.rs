//! Opens the state folder and connects the domains: tracking, the inference gateway, versioned data, GPUs and the executor of runs.
//!
//! Invariant: while a [`Platform`] exists, it holds the lock of its state folder, so no other process uses the folder.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FlockOperation, OFlags, flock};
use slipway_access::{Access, Routes};
use slipway_core::home::Home;
use slipway_data::catalog::Catalog;
use slipway_exec::Executor;
use slipway_serve::runtime::{Preference, Runtime};
use slipway_serve::{FetchFuture, Gateway, ModelSource, ResolvedModel};
use slipway_store::{Database, Objects};
use slipway_track::Tracking;
use tokio::sync::watch;

use crate::cluster::{self, Cluster, Kubernetes};
use crate::listen::Connections;
use crate::objects as kubernetes;
use crate::pipeline::{self, PipelineRunner};
use crate::{Addresses, ServerError, api, auth, gpu, metrics, openapi, runs, ui};

/// The state behind all routes of a server; cheap to clone.
#[derive(Clone)]
pub struct Platform {
    /// Tracked runs, registered models and artifacts.
    pub tracking: Tracking,
    /// Deployments and inference.
    pub gateway: Gateway,
    /// Remotes of versioned data.
    pub data: slipway_data::service::Service,
    /// Repositories of versioned data that the server reads.
    pub data_catalog: Catalog,
    /// Pipelines, their runs and schedules.
    pub pipelines: slipway_pipeline::service::Service,
    /// Executes the runs of pipelines. Without a driver in a process that does not listen.
    pub(crate) pipeline_runner: PipelineRunner,
    /// The database. The server closes it when it stops.
    pub database: Database,
    /// The object store.
    pub(crate) objects: Objects,
    /// Objects of the Kubernetes API; `None` in a cluster, which has an API server of its own.
    pub(crate) kubernetes_objects: Option<slipway_objects::embedded::Embedded>,
    /// The state folder.
    pub(crate) home: Home,
    /// Metrics of requests to the control plane.
    pub(crate) request_metrics: Arc<metrics::RequestMetrics>,
    /// GPUs of this machine.
    pub(crate) gpus: Arc<gpu::Gpus>,
    /// The cluster that the server runs in, if it runs in one.
    pub(crate) cluster: Arc<Cluster>,
    /// Executes submitted runs. Unset in a process that does not listen.
    pub(crate) executor: Arc<OnceLock<Arc<dyn Executor>>>,
    /// Connection counters of the three ports.
    pub(crate) connections: Arc<Connections>,
    /// The lock file of the state folder, locked while this value exists.
    _lock: Arc<std::fs::File>,
}

/// Implements the gateway's [`ModelSource`] with the model registry.
struct Registry(Tracking);

/// The gateway's error for an error of the registry.
fn registry_error(error: slipway_track::Error) -> slipway_serve::Error {
    use slipway_track::ErrorCode;
    match error.code {
        ErrorCode::ResourceDoesNotExist => slipway_serve::Error::ModelNotFound(error.message),
        ErrorCode::BadRequest | ErrorCode::InvalidParameterValue => slipway_serve::Error::Manifest(error.message),
        _ => slipway_serve::Error::Store(error.message),
    }
}

impl ModelSource for Registry {
    fn resolve(&self, uri: &str) -> Result<ResolvedModel, slipway_serve::Error> {
        let found = self.0.resolve(uri).map_err(registry_error)?;
        Ok(ResolvedModel {
            name: found.name,
            version: found.version,
            run_id: found.run_id,
            location: found.location.to_string(),
        })
    }
    fn fetch<'a>(&'a self, model: &'a ResolvedModel) -> FetchFuture<'a> {
        Box::pin(async {
            self.0.fetch(&model.location).await.map_err(|e| match e.code {
                slipway_track::ErrorCode::ResourceDoesNotExist => slipway_serve::Error::ModelNotFound(format!(
                    "the artifacts at {} do not exist anymore",
                    model.location
                )),
                _ => registry_error(e),
            })
        })
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.0.registry_changes()
    }
}

/// Locations of state that several servers can share. Unset locations are in the state folder.
#[derive(Debug, Clone, Default)]
pub struct Stores {
    /// A `postgres://` URL.
    pub database: Option<String>,
    /// An `s3://`, `gs://` or `az://` URL.
    pub objects: Option<String>,
    /// Limits of uploads.
    pub uploads: slipway_store::Limits,
    /// Hosts that the remotes of data repositories may lead to, besides those with public addresses.
    pub data_hosts: Vec<String>,
}

impl Platform {
    /// Opens the state folder and the stores, and creates what is missing. `cluster` is the cluster that the server runs in.
    ///
    /// # Errors
    /// [`ServerError::Locked`] when another process uses the folder; [`ServerError::Home`]; and the errors of the domains.
    pub async fn open(
        home: &Home,
        stores: &Stores,
        runtime: Preference,
        library: Option<PathBuf>,
        cluster: Option<Arc<dyn Kubernetes>>,
    ) -> Result<Self, ServerError> {
        let unusable = |source| ServerError::Home { path: home.root().to_owned(), source };
        home.create().map_err(unusable)?;
        let lock = open_lock(&home.lock_file()).map_err(unusable)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let addresses: Option<serde_json::Value> =
                std::fs::read(home.server_file()).ok().and_then(|b| serde_json::from_slice(&b).ok());
            let pid = addresses.and_then(|a| a.get("pid")?.as_u64()).and_then(|p| u32::try_from(p).ok());
            return Err(ServerError::Locked { path: home.root().to_owned(), pid });
        }
        let migrations = [
            slipway_track::MIGRATION,
            slipway_serve::MIGRATION,
            slipway_gpu::repo::MIGRATION,
            slipway_data::catalog::MIGRATION,
            slipway_pipeline::MIGRATION,
            slipway_objects::MIGRATION,
            auth::MIGRATION,
        ];
        let database = match stores.database.clone() {
            None => Database::open(&home.database(), &migrations)?,
            Some(url) => tokio::task::spawn_blocking(move || Database::connect(&url, &migrations))
                .await
                .map_err(|_| slipway_store::StoreError::Closed)??,
        };
        let objects = match &stores.objects {
            None => Objects::open_with(home.objects(), stores.uploads)?,
            Some(url) => Objects::connect_with(url, home.work().join("objects"), stores.uploads)?,
        };
        let data = slipway_data::service::Service::open(&objects)?;
        let tracking = Tracking::open(database.clone(), objects.clone()).await?;
        let runtime = Runtime::choose(runtime, library.as_deref())?;
        let gateway = Gateway::open(
            database.clone(),
            runtime,
            Arc::new(Registry(tracking.clone())),
            slipway_serve::BodyLimits::default(),
        )?;
        let kubernetes_objects = match &cluster {
            None => Some(kubernetes::open(database.clone(), home).await?),
            Some(_) => None,
        };
        let pipeline_runner = PipelineRunner::default();
        let pipelines = pipeline::open(database.clone(), pipeline_runner.clone(), cluster.as_deref()).await?;
        Ok(Self {
            tracking,
            gateway,
            data,
            pipelines,
            pipeline_runner,
            data_catalog: Catalog::new(database.clone(), &home.work().join("data-repositories"), &stores.data_hosts),
            database,
            objects,
            kubernetes_objects,
            home: home.clone(),
            request_metrics: Arc::default(),
            gpus: Arc::default(),
            cluster: Arc::new(Cluster::new(cluster)),
            executor: Arc::default(),
            connections: Arc::default(),
            _lock: Arc::new(lock),
        })
    }

    /// Whether objects of the kind Run are executed: not by servers that share a database, because each of them would execute every run.
    pub(crate) fn executes_objects(&self) -> bool {
        self.kubernetes_objects.is_some() && !self.database.is_shared()
    }

    /// Sets the executor, which enables submitting runs.
    pub(crate) fn set_executor(&self, executor: Arc<dyn Executor>) {
        // Called once, before the server accepts requests, so the result can be ignored.
        let _ = self.executor.set(executor);
    }

    /// The routes of the control plane: MLflow's API, slipway's own API, health, metrics and the UI. `addresses` are served as
    /// `/api/v1/addresses`; `None` in a process that does not listen.
    pub fn control_routes(&self, addresses: Option<&Addresses>) -> Routes {
        let data = slipway_data::http::routes(self.data.clone())
            .merge(slipway_data::catalog::http::routes(self.data_catalog.clone()));
        let own = Routes::new()
            .nest(
                "/api/v1",
                api::routes(self.clone())
                    .merge(api::gateway_routes(self.inference_routes()))
                    .merge(gpu::routes(self.clone()))
                    .merge(cluster::routes(self.clone()))
                    .merge(runs::routes(self.clone()))
                    .merge(pipeline::routes::routes(self.clone()))
                    .nest("/data", data),
            )
            .merge(api::health_routes(self.clone()));
        let own = addresses.cloned().map(api::addresses_routes).into_iter().fold(own, Routes::merge);
        let run_executor = self.executes_objects().then(|| Arc::clone(&self.executor));
        let kubernetes = self.kubernetes_objects.iter().map(|store| kubernetes::routes(store, &run_executor));
        let kubernetes = kubernetes.fold(Routes::new(), Routes::merge);
        openapi::with_document(own)
            .merge(kubernetes)
            .get("/version", Access::Public, kubernetes::version)
            .merge(slipway_track::http::routes(self.tracking.clone()))
            .merge(slipway_pipeline::http::routes(self.pipelines.clone()))
            // Public, because the pages contain no data; they fetch it from the API.
            .fallback(Access::Public, ui::serve)
            .layer(axum::middleware::from_fn_with_state(Arc::clone(&self.request_metrics), metrics::count))
    }

    /// Only health and metrics, for the control port of a gateway-only server.
    pub fn probe_routes(&self) -> Routes {
        openapi::with_document(api::health_routes(self.clone()))
    }

    /// The routes of the inference gateway over REST.
    pub fn inference_routes(&self) -> Routes {
        slipway_serve::http::routes(self.gateway.clone())
    }

    /// The routes of the inference gateway over gRPC.
    pub fn grpc_routes(&self) -> Routes {
        slipway_serve::grpc::routes(self.gateway.clone())
    }
}

/// Opens the lock file of the state folder. Does not follow symbolic links or truncate the file, because an attacker could have planted a
/// link to another file.
fn open_lock(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(flags.bits().cast_signed()).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn planted_lock_link_does_not_change_its_target() {
        let home = Home::at(std::env::temp_dir().join(slipway_core::ids::hex32()));
        home.create().unwrap();
        let other = home.root().join("other");
        std::fs::write(&other, "kept").unwrap();
        std::os::unix::fs::symlink(&other, home.lock_file()).unwrap();
        let opened = Platform::open(&home, &Stores::default(), Preference::Builtin, None, None).await;
        assert!(matches!(opened, Err(ServerError::Home { .. })));
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "kept");
        std::fs::remove_dir_all(home.root()).unwrap();
    }
}
