//! Starts and stops a server.
//!
//! Invariant: requests are accepted only after the state folder is locked and all callers' tokens are loaded, and the store is closed only
//! after the ports have stopped.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use slipway_access::{CorsOrigins, Guard, HostNames, Routes};
use slipway_core::clock::now_ms;
use slipway_core::home::Home;
use slipway_exec::local::{Capacity, NAMESPACE, References, Settings};
use slipway_exec::{LocalProcesses, Mint};
use slipway_pipeline::launch::local::ImageMapping;
use slipway_serve::runtime::Preference;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::addresses::{Addresses, local_address};
use crate::auth::{Callers, RunTokens, Tokens, home_token};
use crate::certificates::{CertificateSource, Certificates, server_names};
use crate::data::LocalData;
use crate::listen::{Limits, Port};
use crate::pipeline::{PipelineTracker, Steps};
use crate::runs::{RunController, StoredReferences};
use crate::tracker::RunTracker;
use crate::{Kubernetes, Platform, ServerError, Stores, accelerators, api, pipeline};

/// A multipart upload that has received no part for this long is abandoned.
const ABANDONED_UPLOAD_AGE: Duration = Duration::from_secs(24 * 3600);
/// Interval at which abandoned uploads are removed.
const ABANDONED_UPLOAD_INTERVAL: Duration = Duration::from_secs(3600);
/// Timeout for requests in flight when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// The options that set the addresses of the ports.
const LISTEN: &str = "--listen";
const INFERENCE_LISTEN: &str = "--inference-listen";
const GRPC_LISTEN: &str = "--grpc-listen";
/// Interval at which the certificate files are checked for changes.
const CERTIFICATE_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Options of a server.
#[derive(Debug, Clone)]
pub struct Options {
    /// The state folder.
    pub home: Home,
    /// Locations of the database and of the object store.
    pub stores: Stores,
    /// Listen address of the control plane and UI.
    pub control: SocketAddr,
    /// Listen address for inference over REST.
    pub inference: SocketAddr,
    /// Listen address for inference over gRPC.
    pub grpc: SocketAddr,
    /// Serve only inference, on stores that are shared with a control plane. The control port then has only probes and metrics.
    pub gateway_only: bool,
    /// File with the tokens of administrators, one per line, in addition to the token of the state folder.
    pub token_file: Option<PathBuf>,
    /// Allow callers without a token to do everything except submit runs. Only on loopback addresses.
    pub no_auth: bool,
    /// Names of environment variables that runs inherit in addition to the default ones.
    pub run_environment: Vec<String>,
    /// Images of pipelines' steps that need no container on this machine.
    pub pipeline_images: Vec<ImageMapping>,
    /// Maximum bytes of the cache for the data of runs; no limit if unset. Data in use is kept.
    pub data_cache_bytes: Option<u64>,
    /// Host names of this server in addition to `localhost`. Requests for other host names are rejected.
    pub hosts: Vec<String>,
    /// Origins whose web pages may call the inference port over REST, such as `https://app.example`; none by default.
    pub cors_origins: Vec<String>,
    /// The TLS certificate of all three ports; plain HTTP if unset.
    pub certificate: Option<CertificateSource>,
    /// Limits on the clients of each port.
    pub limits: Limits,
    /// Preferred runtime for models.
    pub runtime: Preference,
    /// Path of `libonnxruntime.so`; searched for if unset.
    pub onnxruntime: Option<PathBuf>,
    /// The cluster that the server runs in; `None` outside of a cluster.
    pub cluster: Option<Arc<dyn Kubernetes>>,
}

/// A server with open ports.
pub struct Server {
    /// The addresses that it listens on.
    pub addresses: Addresses,
    home: Home,
    platform: Platform,
    /// Executes objects of the kind Run.
    run_controller: Option<RunController>,
    certificates: Option<Arc<Certificates>>,
    ports: [Port; 3],
}

impl Server {
    /// Opens the state folder and the ports. After an error nothing is left open.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn bind(options: Options) -> Result<Self, ServerError> {
        let administrators = options.token_file.as_deref().map(Tokens::read).transpose()?;
        let cors = CorsOrigins::new(options.cors_origins.clone()).map_err(|e| ServerError::CorsOrigin(e.0))?;
        let authority = options.cluster.as_ref().and_then(|c| c.authority());
        for address in [options.control, options.inference, options.grpc] {
            if !address.ip().is_loopback() && options.no_auth {
                return Err(ServerError::Unauthenticated(address));
            }
        }
        if options.gateway_only && (options.stores.database.is_none() || options.stores.objects.is_none()) {
            return Err(ServerError::NotShared);
        }
        let (cluster, library) = (options.cluster.clone(), options.onnxruntime.clone());
        let platform = Platform::open(&options.home, &options.stores, options.runtime, library, cluster).await?;
        // Create the token before clients can find this server.
        let token_unusable = |source| ServerError::Home { path: options.home.token_file(), source };
        // In a cluster there is no owner token: callers are the cluster's users, and files on the volume are readable by its group.
        let has_owner = !options.no_auth && options.cluster.is_none();
        let owner = has_owner.then(|| home_token(&options.home)).transpose().map_err(token_unusable)?;
        let listen = async |address: SocketAddr, option| {
            TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, option, source })
        };
        let control = listen(options.control, LISTEN).await?;
        let inference = listen(options.inference, INFERENCE_LISTEN).await?;
        let grpc = listen(options.grpc, GRPC_LISTEN).await?;
        let local = |socket: &TcpListener, requested: SocketAddr| socket.local_addr().unwrap_or(requested);
        let bound =
            [local(&control, options.control), local(&inference, options.inference), local(&grpc, options.grpc)];
        let certificates = match &options.certificate {
            Some(source) => Some(Arc::new(Certificates::open(
                source,
                &options.home.root().join("tls"),
                server_names(&bound, &options.hosts),
            )?)),
            None => None,
        };
        if certificates.is_none() && bound.iter().any(|a| !a.ip().is_loopback()) {
            tracing::warn!(
                "tokens and data cross the network unencrypted: use --tls-cert and --tls-key, or --tls-self-signed"
            );
        }
        let addresses = Addresses {
            pid: std::process::id(),
            control: bound[0],
            inference: bound[1],
            grpc: bound[2],
            tls: certificates.is_some(),
            fingerprint: certificates.as_ref().and_then(|c| c.fingerprint()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: now_ms(),
        };
        let unusable = |source| ServerError::Home { path: options.home.server_file(), source };
        publish(&options.home, &addresses).map_err(unusable)?;
        let run_tokens = if platform.database.is_shared() {
            RunTokens::from_database(&platform.database).await?
        } else {
            RunTokens::from_file(&options.home.root().join("run-tokens.key")).map_err(unusable)?
        };
        let is_cluster = options.cluster.is_some();
        let pipeline_tracker = Arc::new(PipelineTracker::new(platform.tracking.clone(), is_cluster));
        let run_tokens = run_tokens.isolated(is_cluster).with_states(Arc::<PipelineTracker>::clone(&pipeline_tracker));
        let namespace = options.cluster.as_ref().map_or_else(|| NAMESPACE.to_owned(), |c| c.namespace().to_owned());
        let callers = Callers {
            owner: owner.as_deref().map(Tokens::single),
            administrators,
            runs: Some(run_tokens.clone()),
            authority,
            anonymous: options.no_auth,
        };
        let hosts = host_names(&options, certificates.as_deref());
        let guard = Guard::new(Arc::new(callers), namespace, hosts).with_tls(certificates.is_some());
        let mut controller_routes = Routes::new();
        let mut run_controller = None;
        // A submitted run executes a program, so a server without authentication accepts no runs.
        if !options.gateway_only && !options.no_auth {
            let tracker =
                Arc::new(RunTracker { tracking: platform.tracking.clone(), isolated: options.cluster.is_some() });
            let mint: Mint = Arc::new(move |request| run_tokens.mint(request));
            let variables = tracking_variables(&addresses, certificates.as_deref());
            match &options.cluster {
                Some(cluster) => {
                    let routes = crate::controller::routes(Arc::<RunTracker>::clone(&tracker), Arc::clone(&mint));
                    let executor = cluster.executor(tracker, Arc::clone(&mint));
                    let own = Arc::clone(&executor);
                    let steps =
                        pipeline::execute_in_cluster(&platform, &options.home, cluster, pipeline_tracker, own, mint);
                    controller_routes = routes.merge(steps.await?);
                    platform.set_executor(executor);
                }
                None => {
                    let runs = open_local_executor(
                        &platform,
                        &options.home,
                        variables.clone(),
                        tracker,
                        Arc::clone(&mint),
                        options.run_environment.clone(),
                        options.data_cache_bytes,
                    )?;
                    let objects = platform.kubernetes_objects.clone().filter(|_| platform.executes_objects());
                    run_controller = objects.and_then(|store| RunController::new(store, runs.clone()));
                    platform.set_executor(match &run_controller {
                        Some(controller) => Arc::new(controller.executor()),
                        None => Arc::new(runs.clone()),
                    });
                    let inherited = options.run_environment.clone();
                    let (images, limits) = (options.pipeline_images.clone(), options.stores.uploads);
                    let steps = Steps { variables, inherited, images, mint, limits, runs };
                    pipeline::execute_here(&platform, &options.home, pipeline_tracker, steps).await?;
                }
            }
        }
        let [control_routes, inference_routes, grpc_routes] = routes(&platform, &addresses, options.gateway_only);
        let connections = Arc::clone(&platform.connections);
        let limits = Arc::new(options.limits);
        let tls = certificates.as_ref().map(|c| c.acceptor()).transpose()?;
        let port = |listener: TcpListener, router, counts| Port {
            listener,
            router,
            tls: tls.clone(),
            limits: Arc::clone(&limits),
            counts: Arc::clone(counts),
        };
        let ports = [
            port(control, guard.protect(control_routes.merge(controller_routes)), &connections.control),
            port(inference, guard.clone().with_cors(cors).protect(inference_routes), &connections.inference),
            port(grpc, guard.protect(grpc_routes), &connections.grpc),
        ];
        Ok(Self { addresses, home: options.home, platform, run_controller, certificates, ports })
    }

    /// The file of the server's self-signed certificate, if it has one. Clients can use it as their CA file.
    pub fn self_signed_certificate(&self) -> Option<&Path> {
        self.certificates.as_ref().and_then(|c| c.self_signed_file())
    }

    /// Serves requests until `stop` completes, then drains the requests in flight and closes the store.
    ///
    /// # Errors
    /// [`ServerError::Listen`] when the task of a port fails.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
        let (stopping, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for port in self.ports {
            let address = port.address().unwrap_or(self.addresses.control);
            let serving = port.serve(stopped.clone());
            tasks.spawn(async move {
                serving.await;
                address
            });
        }
        let certificate_task = self.certificates.map(|certificates| {
            let follow = follow_certificates(certificates, self.home.clone(), self.addresses.clone());
            tokio::spawn(follow)
        });
        let cleanup_task = tokio::spawn(collect_abandoned_uploads(self.platform.clone()));
        let has_driver = self.platform.pipeline_runner.has_driver();
        let schedules_task = has_driver.then(|| self.platform.pipelines.spawn_scheduler());
        let objects = self.platform.kubernetes_objects.clone();
        let collector_task = objects.as_ref().map(slipway_objects::embedded::Embedded::spawn_collector);
        let run_controller_task = self.run_controller.map(|controller| tokio::spawn(controller.work()));
        let mut result = Ok(());
        tokio::select! {
            () = stop => tracing::info!("stopping: draining requests in flight"),
            Some(ended) = tasks.join_next() => {
                // Ports serve until `stopping` is set, so only a panic gets here.
                let address = ended.unwrap_or(self.addresses.control);
                let option = match address {
                    a if a == self.addresses.inference => INFERENCE_LISTEN,
                    a if a == self.addresses.grpc => GRPC_LISTEN,
                    _ => LISTEN,
                };
                let source = std::io::Error::other("the task that serves this port panicked");
                result = Err(ServerError::Listen { address, option, source });
            }
        }
        stopping.send_replace(true);
        if let Some(objects) = objects {
            // Watches last until they are ended, and must not delay the draining.
            objects.close();
        }
        let drained = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::warn!("some requests did not complete within the drain timeout and are aborted");
            tasks.shutdown().await;
        }
        cleanup_task.abort();
        for task in collector_task.into_iter().chain(run_controller_task) {
            task.abort();
        }
        if let Some(task) = schedules_task {
            task.abort();
        }
        if let Some(task) = certificate_task {
            task.abort();
        }
        // Releases the lease, so that another server can take over its runs immediately.
        self.platform.cluster.stop().await;
        let database = self.platform.database.clone();
        let closed = tokio::task::spawn_blocking(move || database.close()).await;
        if let Err(error) = closed {
            tracing::error!(%error, "cannot close the store");
        }
        let _ = std::fs::remove_file(self.home.server_file()); // If this fails, clients still notice that the process does not exist.
        result
    }
}

/// Removes abandoned multipart uploads every hour.
async fn collect_abandoned_uploads(platform: Platform) {
    loop {
        let of_artifacts = platform.tracking.collect_abandoned_uploads(ABANDONED_UPLOAD_AGE).await;
        let of_data = platform.data.collect_abandoned_uploads(ABANDONED_UPLOAD_AGE).await;
        for collected in [of_artifacts.map_err(|e| e.to_string()), of_data.map_err(|e| e.to_string())] {
            match collected {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "abandoned uploads were removed"),
                Err(error) => tracing::warn!(error, "cannot remove abandoned uploads; retrying in an hour"),
            }
        }
        tokio::time::sleep(ABANDONED_UPLOAD_INTERVAL).await;
    }
}

/// The routes of the three ports: control plane, inference over REST, inference over gRPC.
pub(crate) fn routes(platform: &Platform, addresses: &Addresses, gateway_only: bool) -> [Routes; 3] {
    let control = if gateway_only { platform.probe_routes() } else { platform.control_routes(Some(addresses)) };
    [control, platform.inference_routes().merge(api::metrics_routes(platform.clone())), platform.grpc_routes()]
}

/// The host names that requests may use: the configured ones, and those derived from the machine, the cluster and the certificate.
fn host_names(options: &Options, certificates: Option<&Certificates>) -> HostNames {
    let mut names = options.hosts.clone();
    let remote = [options.control, options.inference, options.grpc].iter().any(|a| !a.ip().is_loopback());
    if remote {
        names.push(rustix::system::uname().nodename().to_string_lossy().into_owned());
    }
    if let Some(cluster) = &options.cluster {
        let namespace = cluster.namespace();
        for service in ["slipway", "slipway-gateway"] {
            let name = format!("{service}.{namespace}");
            names.extend([service.to_owned(), format!("{name}.svc"), format!("{name}.svc.cluster.local"), name]);
        }
    }
    names.extend(certificates.into_iter().flat_map(|c| c.names()));
    HostNames::new(names)
}

/// Writes `server.json`, by which clients on this machine find the server.
fn publish(home: &Home, addresses: &Addresses) -> std::io::Result<()> {
    let text = serde_json::to_vec_pretty(addresses)?;
    slipway_core::files::replace_as(&home.server_file(), &text, 0o600)
}

/// Reloads changed certificates, and publishes their fingerprints in `server.json`.
async fn follow_certificates(certificates: Arc<Certificates>, home: Home, mut addresses: Addresses) {
    loop {
        tokio::time::sleep(CERTIFICATE_POLL_INTERVAL).await;
        let to_refresh = Arc::clone(&certificates);
        if !tokio::task::spawn_blocking(move || to_refresh.refresh()).await.unwrap_or(false) {
            continue;
        }
        addresses.fingerprint = certificates.fingerprint();
        if let Err(error) = publish(&home, &addresses) {
            tracing::error!(%error, "cannot publish the fingerprint of the new certificate to clients on this machine");
        }
    }
}

/// Environment variables with which MLflow's client in a local run finds this server and trusts its certificate.
fn tracking_variables(addresses: &Addresses, certificates: Option<&Certificates>) -> Vec<(String, String)> {
    let mut url = addresses.control_url();
    let mut ca_file = None;
    if let Some(certificates) = certificates {
        let names = certificates.names();
        let address = local_address(addresses.control);
        // Prefer loopback, if the certificate covers it. A certificate for a public name usually does not.
        let loopback_names = [address.ip().to_string(), "localhost".to_owned()];
        let loopback = loopback_names.iter().find(|name| names.contains(name));
        if let Some(name) = loopback.or_else(|| names.iter().find(|name| !name.contains('*'))) {
            let name = if name.contains(':') { format!("[{name}]") } else { name.clone() };
            url = format!("https://{name}:{}", address.port());
        }
        ca_file = certificates.self_signed_file().map(|file| file.display().to_string());
    }
    let ca_file = ca_file.or_else(|| slipway_core::env::value(slipway_core::env::CA_FILE));
    let mut variables = vec![("MLFLOW_TRACKING_URI".to_owned(), url)];
    // <https://mlflow.org/docs/latest/self-hosting/security/ssl>: MLflow passes this CA file to `requests`.
    variables.extend(ca_file.map(|file| ("MLFLOW_TRACKING_SERVER_CERT_PATH".to_owned(), file)));
    variables
}

/// Opens the executor that runs programs as processes of this machine.
fn open_local_executor(
    platform: &Platform,
    home: &Home,
    variables: Vec<(String, String)>,
    tracker: Arc<RunTracker>,
    mint: Mint,
    environment: Vec<String>,
    data_cache_bytes: Option<u64>,
) -> Result<LocalProcesses, ServerError> {
    let program =
        std::env::current_exe().map_err(|source| ServerError::Home { path: home.root().to_owned(), source })?;
    let data = LocalData::open(&home.work().join("data"), data_cache_bytes)?;
    let objects = platform.kubernetes_objects.clone();
    Ok(LocalProcesses::open(Settings {
        folder: home.work().join("runs"),
        secrets: home.root().join("secrets"),
        references: objects.map(|store| Arc::new(StoredReferences::new(store)) as Arc<dyn References>),
        program,
        variables,
        environment,
        mint: Some(mint),
        capacity: Capacity::detect(),
        accelerators: Arc::new(accelerators::LocalAccelerators::new(Arc::clone(&platform.gpus))),
        tracker,
        data: Some(Arc::new(data)),
    })?)
}
