//! Opens the state folder and wires the domains together.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FlockOperation, OFlags, flock};
use slipway_access::{Access, Routes};
use slipway_core::home::Home;
use slipway_exec::Executor;
use slipway_serve::runtime::{Preference, Runtime};
use slipway_serve::{Fetching, Gateway, ModelSource, ResolvedModel};
use slipway_store::{Database, Objects};
use slipway_track::Tracking;
use tokio::sync::watch;

use crate::cluster::{self, Cluster, Kubernetes};
use crate::listen::Connections;
use crate::{Addresses, ServerError, api, auth, gpu, metrics, openapi, runs, ui};

/// Everything that a server serves; cheap to clone.
#[derive(Clone)]
pub struct Platform {
    /// Runs, models, artifacts.
    pub tracking: Tracking,
    /// Deployments.
    pub gateway: Gateway,
    /// The database, to be closed at the end.
    pub database: Database,
    /// The state folder.
    pub(crate) home: Home,
    /// Counters of requests.
    pub(crate) meters: Arc<metrics::Meters>,
    /// GPUs of this machine.
    pub(crate) gpus: Arc<gpu::Gpus>,
    /// The cluster that it runs in, if it does.
    pub(crate) cluster: Arc<Cluster>,
    /// Who carries runs out; nobody in a process that does not listen.
    pub(crate) executor: Arc<OnceLock<Arc<dyn Executor>>>,
    /// Connections of the three ports.
    pub(crate) connections: Arc<Connections>,
    /// Held while the state folder is in use.
    _lock: Arc<std::fs::File>,
}

/// The registry as the gateway sees it.
struct Registry(Tracking);

impl ModelSource for Registry {
    fn resolve(&self, uri: &str) -> Result<ResolvedModel, String> {
        let found = self.0.resolve(uri).map_err(|e| e.to_string())?;
        Ok(ResolvedModel {
            name: found.name,
            version: found.version,
            run_id: found.run_id,
            location: found.location.to_string(),
        })
    }
    fn fetch<'a>(&'a self, model: &'a ResolvedModel) -> Fetching<'a> {
        Box::pin(async {
            self.0.fetch(&model.location).await.map_err(|e| match e.code {
                slipway_track::ErrorCode::ResourceDoesNotExist => {
                    format!("the artifacts at {} are gone", model.location)
                }
                _ => e.to_string(),
            })
        })
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.0.registry_changes()
    }
}

/// Where state is kept that several servers may share; in the state folder where nothing is said.
#[derive(Debug, Clone, Default)]
pub struct Stores {
    /// A `postgres://` URL.
    pub database: Option<String>,
    /// An `s3://`, `gs://` or `az://` URL.
    pub objects: Option<String>,
    /// What uploads may take.
    pub uploads: slipway_store::Limits,
}

impl Platform {
    /// Opens the state folder, and the stores beside it; makes what is not there yet.
    ///
    /// # Errors
    /// [`ServerError::Locked`] when another process uses it; [`ServerError::Home`]; the domains' own.
    pub async fn open(
        home: &Home,
        stores: &Stores,
        runtime: Preference,
        library: Option<PathBuf>,
    ) -> Result<Self, ServerError> {
        let unusable = |source| ServerError::Home { path: home.root().to_owned(), source };
        home.create().map_err(unusable)?;
        let lock = open_lock(&home.lock_file()).map_err(unusable)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let other: Option<serde_json::Value> =
                std::fs::read(home.server_file()).ok().and_then(|b| serde_json::from_slice(&b).ok());
            let pid = other.and_then(|o| o.get("pid")?.as_u64()).and_then(|p| u32::try_from(p).ok());
            return Err(ServerError::Locked { path: home.root().to_owned(), pid });
        }
        let migrations =
            [slipway_track::MIGRATION, slipway_serve::MIGRATION, slipway_gpu::repo::MIGRATION, auth::MIGRATION];
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
        let tracking = Tracking::open(database.clone(), objects).await?;
        let runtime = Runtime::choose(runtime, library.as_deref())?;
        let gateway = Gateway::open(
            database.clone(),
            runtime,
            Arc::new(Registry(tracking.clone())),
            slipway_serve::BodyLimits::default(),
        )?;
        Ok(Self {
            tracking,
            gateway,
            database,
            home: home.clone(),
            meters: Arc::default(),
            gpus: Arc::default(),
            cluster: Arc::new(Cluster::new(None)),
            executor: Arc::default(),
            connections: Arc::default(),
            _lock: Arc::new(lock),
        })
    }

    /// Lets it tell of the cluster that it runs in.
    #[must_use]
    pub fn in_cluster(self, source: Option<Arc<dyn Kubernetes>>) -> Self {
        Self { cluster: Arc::new(Cluster::new(source)), ..self }
    }

    /// Lets it take runs in.
    pub(crate) fn carried_out_by(&self, executor: Arc<dyn Executor>) {
        // It is called once, before anybody can ask.
        let _ = self.executor.set(executor);
    }

    /// The control plane: MLflow's API, slipway's own, health, metrics and the UI. Addresses are those of a server that listens.
    pub fn control_routes(&self, addresses: Option<&Addresses>) -> Routes {
        let own = Routes::new()
            .nest(
                "/api/v1",
                api::routes(self.clone())
                    .merge(api::gateway_routes(self.inference_routes()))
                    .merge(gpu::routes(self.clone()))
                    .merge(cluster::routes(self.clone()))
                    .merge(runs::routes(self.clone())),
            )
            .merge(api::health_routes(self.clone()));
        let own = addresses.cloned().map(api::addresses_routes).into_iter().fold(own, Routes::merge);
        openapi::with_document(own)
            .merge(slipway_track::http::routes(self.tracking.clone()))
            // The pages hold no data: what they show they ask the API for.
            .fallback(Access::Public, ui::serve)
            .layer(axum::middleware::from_fn_with_state(Arc::clone(&self.meters), metrics::count))
    }

    /// What tells how this process does.
    pub fn probes_routes(&self) -> Routes {
        openapi::with_document(api::health_routes(self.clone()))
    }

    /// The inference gateway, REST.
    pub fn inference_routes(&self) -> Routes {
        slipway_serve::http::routes(self.gateway.clone())
    }

    /// The inference gateway, gRPC.
    pub fn grpc_routes(&self) -> Routes {
        slipway_serve::grpc::routes(self.gateway.clone())
    }
}

/// The file that is locked while a state folder is in use. A link is not followed, and nothing is written: somebody may have put a link to
/// another file there.
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
    async fn a_planted_lock_changes_no_other_file() {
        let home = Home::at(std::env::temp_dir().join(slipway_core::ids::hex32()));
        home.create().unwrap();
        let other = home.root().join("other");
        std::fs::write(&other, "kept").unwrap();
        std::os::unix::fs::symlink(&other, home.lock_file()).unwrap();
        let opened = Platform::open(&home, &Stores::default(), Preference::Tract, None).await;
        assert!(matches!(opened, Err(ServerError::Home { .. })));
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "kept");
        std::fs::remove_dir_all(home.root()).unwrap();
    }
}
