//! Opens the state folder and wires the domains together.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::Request;
use axum::http::header;
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::Response;
use rustix::fs::{FlockOperation, flock};
use slipway_core::home::Home;
use slipway_exec::Executor;
use slipway_serve::runtime::{Preference, Runtime};
use slipway_serve::{Fetching, Gateway, ModelSource, ResolvedModel};
use slipway_store::{Database, Objects};
use slipway_track::Tracking;
use slipway_track::http::Origin;
use tokio::sync::watch;

use crate::cluster::{self, Cluster, Kubernetes};
use crate::{ServerError, api, auth, gpu, metrics, runs, ui};

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

/// Tells tracking the address of this server as this machine knows it. Another name in `Host` is only what the sender claims, so
/// it counts once somebody has checked it, who then adds the origin.
async fn origin_of_loopback(mut request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let authority: Option<Authority> =
        host.and_then(|host| host.parse().ok()).or_else(|| request.uri().authority().cloned());
    let is_loopback = |host: &str| {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    };
    if let Some(authority) = authority.filter(|a| is_loopback(a.host()) && !a.as_str().contains('@'))
        && request.extensions().get::<Origin>().is_none()
    {
        request.extensions_mut().insert(Origin(format!("http://{authority}")));
    }
    next.run(request).await
}

/// Where state is kept that several servers may share; in the state folder where nothing is said.
#[derive(Debug, Clone, Default)]
pub struct Stores {
    /// A `postgres://` URL.
    pub database: Option<String>,
    /// An `s3://`, `gs://` or `az://` URL.
    pub objects: Option<String>,
}

impl Stores {
    /// Names of the environment variables that give access to them.
    pub(crate) fn variables(&self) -> Vec<String> {
        let mut names = vec![slipway_core::env::DATABASE.to_owned()];
        if self.objects.is_some() {
            names.extend(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(|name| {
                slipway_store::objects::VENDORS.iter().any(|vendor| name.to_ascii_uppercase().starts_with(vendor))
            }));
        }
        names
    }
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
        let lock = std::fs::File::create(home.lock_file()).map_err(unusable)?;
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
            None => Objects::open(home.objects())?,
            Some(url) => Objects::connect(url, home.work().join("objects"))?,
        };
        let tracking = Tracking::open(database.clone(), objects).await?;
        let runtime = Runtime::choose(runtime, library.as_deref())?;
        let gateway = Gateway::open(database.clone(), runtime, Arc::new(Registry(tracking.clone())))?;
        Ok(Self {
            tracking,
            gateway,
            database,
            home: home.clone(),
            meters: Arc::default(),
            gpus: Arc::default(),
            cluster: Arc::new(Cluster::new(None)),
            executor: Arc::default(),
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
        drop(self.executor.set(executor));
    }

    /// The control plane: MLflow's API, slipway's own, health, metrics and the UI.
    pub fn control_router(&self) -> Router {
        Router::new()
            .nest(
                "/api/v1",
                api::router(self.clone())
                    .merge(api::gateway_router(self.inference_router()))
                    .merge(gpu::router(self.clone()))
                    .merge(cluster::router(self.clone()))
                    .merge(runs::router(self.clone())),
            )
            .merge(
                slipway_track::http::router(self.tracking.clone()).layer(axum::middleware::from_fn(origin_of_loopback)),
            )
            .merge(api::health_router(self.clone()))
            .fallback(ui::serve)
            .layer(axum::middleware::from_fn_with_state(Arc::clone(&self.meters), metrics::count))
    }

    /// What tells how this process does.
    pub fn probes_router(&self) -> Router {
        api::health_router(self.clone())
    }

    /// The inference gateway, REST.
    pub fn inference_router(&self) -> Router {
        slipway_serve::http::router(self.gateway.clone())
    }

    /// The inference gateway, gRPC.
    pub fn grpc_router(&self) -> Router {
        tonic::service::Routes::new(slipway_serve::grpc::service(self.gateway.clone())).into_axum_router()
    }
}

#[cfg(test)]
mod tests {
    use axum::Extension;
    use axum::body::{Body, to_bytes};
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    /// The origin that a request finds, sent with this `Host`.
    async fn origin(host: &str, known: Option<&str>) -> String {
        let told = |origin: Option<Extension<Origin>>| async { origin.map_or("none".into(), |Extension(Origin(o))| o) };
        let router = Router::new().route("/", get(told)).layer(axum::middleware::from_fn(origin_of_loopback));
        let mut request = Request::get("/").header("host", host).header("x-forwarded-proto", "gopher");
        if let Some(known) = known {
            request = request.extension(Origin(known.into()));
        }
        let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        String::from_utf8(to_bytes(response.into_body(), 1000).await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn only_this_machine_is_believed_its_own_address() {
        for host in ["127.0.0.1:7070", "localhost:1", "[::1]:7070", "127.3.2.1"] {
            assert_eq!(origin(host, None).await, format!("http://{host}"));
        }
        for host in [
            "evil.example",
            "evil.example:7070",
            "127.0.0.1.evil.example",
            "10.0.0.1:7070",
            "localhost.evil",
            "x@127.0.0.1",
        ] {
            assert_eq!(origin(host, None).await, "none", "{host}");
        }
        assert_eq!(origin("127.0.0.1:1", Some("https://slipway.example")).await, "https://slipway.example");
    }
}
