//! Listening, draining, stopping.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use serde::{Deserialize, Serialize};
use slipway_core::clock::now_ms;
use slipway_core::home::Home;
use slipway_exec::local::{NAMESPACE, Room, Settings};
use slipway_exec::{Executor, LocalProcesses, Mint};
use slipway_serve::runtime::Preference;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::auth::{Guard, RunTokens, Tokens};
use crate::tracker::InTracking;
use crate::{Kubernetes, Platform, ServerError, Stores, accelerators};

/// Time for requests in flight to end after a stop was asked for.
const DRAIN: Duration = Duration::from_secs(10);

/// How to run a server.
#[derive(Debug, Clone)]
pub struct Options {
    /// The state folder.
    pub home: Home,
    /// What is kept elsewhere.
    pub stores: Stores,
    /// Control plane and UI.
    pub control: SocketAddr,
    /// Inference, REST.
    pub inference: SocketAddr,
    /// Inference, gRPC.
    pub grpc: SocketAddr,
    /// Inference alone, with state that a control plane shares; the control port has probes and metrics.
    pub gateway_only: bool,
    /// Accepted tokens, one a line; without it only loopback is listened on.
    pub token_file: Option<PathBuf>,
    /// What runs the models.
    pub runtime: Preference,
    /// Where ONNX Runtime is.
    pub onnxruntime: Option<PathBuf>,
    /// The cluster that it runs in, if it does.
    pub cluster: Option<Arc<dyn Kubernetes>>,
}

/// Where a server listens; kept in `server.json` for clients on this machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Addresses {
    /// Its process.
    pub pid: u32,
    /// Control plane and UI.
    pub control: SocketAddr,
    /// Inference, REST.
    pub inference: SocketAddr,
    /// Inference, gRPC.
    pub grpc: SocketAddr,
    /// Its version.
    pub version: String,
    /// When it started, in milliseconds since the Unix epoch.
    pub started: i64,
}

/// A server that listens.
pub struct Server {
    /// Where.
    pub addresses: Addresses,
    home: Home,
    platform: Platform,
    sockets: [(TcpListener, Router); 3],
}

impl Server {
    /// Opens the state folder and the ports.
    ///
    /// # Errors
    /// [`ServerError`], and nothing is left open then.
    pub async fn bind(options: Options) -> Result<Self, ServerError> {
        let tokens = options.token_file.as_deref().map(Tokens::read).transpose()?;
        let authority = options.cluster.as_ref().and_then(|c| c.authority());
        for address in [options.control, options.inference, options.grpc] {
            if !address.ip().is_loopback() && tokens.is_none() && authority.is_none() {
                return Err(ServerError::Unauthenticated(address));
            }
        }
        if options.gateway_only && (options.stores.database.is_none() || options.stores.objects.is_none()) {
            return Err(ServerError::NotShared);
        }
        let platform = Platform::open(&options.home, &options.stores, options.runtime, options.onnxruntime)
            .await?
            .in_cluster(options.cluster.clone());
        let listen = async |address: SocketAddr| {
            TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })
        };
        let control = listen(options.control).await?;
        let inference = listen(options.inference).await?;
        let grpc = listen(options.grpc).await?;
        let place = |socket: &TcpListener, asked: SocketAddr| socket.local_addr().unwrap_or(asked);
        let addresses = Addresses {
            pid: std::process::id(),
            control: place(&control, options.control),
            inference: place(&inference, options.inference),
            grpc: place(&grpc, options.grpc),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: now_ms(),
        };
        let unusable = |source| ServerError::Home { path: options.home.server_file(), source };
        let text = serde_json::to_vec_pretty(&addresses).map_err(|e| unusable(e.into()))?;
        // Written beside and renamed, so that no client reads half of it.
        let beside = options.home.root().join("server.json.new");
        std::fs::write(&beside, text)
            .and_then(|()| std::fs::rename(&beside, options.home.server_file()))
            .map_err(unusable)?;
        let run_tokens = if platform.database.is_shared() {
            RunTokens::of_database(&platform.database).await?
        } else {
            RunTokens::of_file(&options.home.root().join("run-tokens.key")).map_err(unusable)?
        };
        let asks = tokens.is_some() || authority.is_some();
        let namespace = options.cluster.as_ref().map_or_else(|| NAMESPACE.to_owned(), |c| c.namespace().to_owned());
        let guard = if asks { Guard::new(tokens, run_tokens.clone(), authority, namespace) } else { Guard::default() };
        let control_router = if options.gateway_only {
            platform.probes_router()
        } else {
            let tracker = Arc::new(InTracking(platform.tracking.clone()));
            let (executor, internal): (Arc<dyn Executor>, Router) = match &options.cluster {
                Some(cluster) => {
                    let mint: Mint = Arc::new(move |request| run_tokens.mint(&request.namespace));
                    let internal = crate::controller::router(Arc::<InTracking>::clone(&tracker), Arc::clone(&mint));
                    (cluster.executor(tracker, mint), internal)
                }
                None => {
                    let token = asks.then(|| run_tokens.mint(NAMESPACE));
                    let withheld = options.stores.variables();
                    let local = local_runs(&platform, &options.home, &addresses, tracker, token, withheld)?;
                    (Arc::new(local), Router::new())
                }
            };
            platform.carried_out_by(executor);
            platform.control_router().merge(crate::api::addresses_router(addresses.clone())).merge(internal)
        };
        let guarded = |router: Router| guard.around(router);
        let sockets = [
            (control, guarded(control_router)),
            (inference, guarded(platform.inference_router())),
            (grpc, guarded(platform.grpc_router())),
        ];
        Ok(Self { addresses, home: options.home, platform, sockets })
    }

    /// Answers requests until `stop` is done, then lets those in flight end and closes the store.
    ///
    /// # Errors
    /// [`ServerError::Listen`] when a port fails while it is served.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
        let (stopping, stopped) = watch::channel(false);
        let mut tasks = tokio::task::JoinSet::new();
        for (listener, router) in self.sockets {
            let address = listener.local_addr().unwrap_or(self.addresses.control);
            // Small answers must not wait for more data to fill a packet.
            let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
            let mut stopped = stopped.clone();
            let asked = async move { drop(stopped.wait_for(|s| *s).await) };
            tasks.spawn(async move {
                let served = axum::serve(listener, router).with_graceful_shutdown(asked).await;
                served.map_err(|source| ServerError::Listen { address, source })
            });
        }
        let mut result = Ok(());
        tokio::select! {
            () = stop => tracing::info!("stopping: draining requests in flight"),
            Some(Ok(ended)) = tasks.join_next() => result = ended,
        }
        stopping.send_replace(true);
        let drained = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("some requests did not end in time");
        }
        let database = self.platform.database.clone();
        let closed = tokio::task::spawn_blocking(move || database.close()).await;
        if let Err(error) = closed {
            tracing::error!(%error, "the store did not close");
        }
        drop(std::fs::remove_file(self.home.server_file()));
        result
    }
}

/// Runs as processes of this machine, which track to this server.
fn local_runs(
    platform: &Platform,
    home: &Home,
    addresses: &Addresses,
    tracker: Arc<InTracking>,
    token: Option<String>,
    withheld: Vec<String>,
) -> Result<LocalProcesses, ServerError> {
    let mut control = addresses.control;
    if control.ip().is_unspecified() {
        control.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let mut variables = vec![("MLFLOW_TRACKING_URI".to_owned(), format!("http://{control}"))];
    variables.extend(token.map(|token| ("MLFLOW_TRACKING_TOKEN".to_owned(), token)));
    let program =
        std::env::current_exe().map_err(|source| ServerError::Home { path: home.root().to_owned(), source })?;
    Ok(LocalProcesses::open(Settings {
        folder: home.work().join("runs"),
        secrets: home.root().join("secrets"),
        program,
        variables,
        withheld,
        room: Room::of_this_machine(),
        accelerators: Arc::new(accelerators::OfThisMachine::new(Arc::clone(&platform.gpus))),
        tracker,
    })?)
}
