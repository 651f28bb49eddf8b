//! Listening, draining, stopping.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use serde::{Deserialize, Serialize};
use slipway_access::{Guard, HostNames, Routes};
use slipway_core::clock::now_ms;
use slipway_core::home::Home;
use slipway_exec::local::{NAMESPACE, Room, Settings};
use slipway_exec::LocalProcesses;
use slipway_serve::runtime::Preference;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::auth::{Callers, RunTokens, Tokens, home_token};
use crate::tracker::InTracking;
use crate::{Kubernetes, Mint, Platform, ServerError, Stores, accelerators};

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
    /// Tokens of administrators, one a line, besides the token of the state folder.
    pub token_file: Option<PathBuf>,
    /// Let callers without a token do everything but run programs; only on loopback.
    pub no_auth: bool,
    /// Names of this server besides `localhost`; requests for other names are refused.
    pub hosts: Vec<String>,
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
        let administrators = options.token_file.as_deref().map(Tokens::read).transpose()?;
        let authority = options.cluster.as_ref().and_then(|c| c.authority());
        for address in [options.control, options.inference, options.grpc] {
            if !address.ip().is_loopback() && options.no_auth {
                return Err(ServerError::Unauthenticated(address));
            }
        }
        if options.gateway_only && (options.stores.database.is_none() || options.stores.objects.is_none()) {
            return Err(ServerError::NotShared);
        }
        let platform = Platform::open(&options.home, &options.stores, options.runtime, options.onnxruntime.clone())
            .await?
            .in_cluster(options.cluster.clone());
        // Before any client can find this server.
        let token_unusable = |source| ServerError::Home { path: options.home.token_file(), source };
        let owner = if options.no_auth { None } else { Some(home_token(&options.home).map_err(token_unusable)?) };
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
        let run_tokens = run_tokens.isolated(options.cluster.is_some());
        let namespace = options.cluster.as_ref().map_or_else(|| NAMESPACE.to_owned(), |c| c.namespace().to_owned());
        let callers = Callers {
            owner: owner.as_deref().map(Tokens::one),
            administrators,
            runs: Some(run_tokens.clone()),
            authority,
            anonymous: options.no_auth,
        };
        let hosts = host_names(&options);
        let guard = Guard::new(Arc::new(callers), namespace, hosts);
        // Whoever may submit a run executes a program, so a server that knows no callers carries none out.
        if !options.gateway_only && !options.no_auth {
            let tracker = Arc::new(InTracking(platform.tracking.clone()));
            let mint: Mint = Arc::new(move |request| run_tokens.mint(request));
            platform.carried_out_by(match &options.cluster {
                Some(cluster) => cluster.executor(tracker, mint),
                None => Arc::new(local_runs(&platform, &options.home, &addresses, tracker, mint)?),
            });
        }
        let [control_routes, inference_routes, grpc_routes] = routes(&platform, &addresses, options.gateway_only);
        let sockets = [
            (control, guard.protect(control_routes)),
            (inference, guard.protect(inference_routes)),
            (grpc, guard.protect(grpc_routes)),
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

/// The routes of the three ports: control plane, inference over REST, inference over gRPC.
pub(crate) fn routes(platform: &Platform, addresses: &Addresses, gateway_only: bool) -> [Routes; 3] {
    let control = if gateway_only {
        platform.probes_routes()
    } else {
        platform.control_routes().merge(crate::api::addresses_routes(addresses.clone()))
    };
    [control, platform.inference_routes(), platform.grpc_routes()]
}

/// The names under which this server is asked: those that are configured, and those that follow from where it runs.
fn host_names(options: &Options) -> HostNames {
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
    HostNames::new(names)
}

/// Runs as processes of this machine, which track to this server.
fn local_runs(
    platform: &Platform,
    home: &Home,
    addresses: &Addresses,
    tracker: Arc<InTracking>,
    mint: Mint,
) -> Result<LocalProcesses, ServerError> {
    let mut control = addresses.control;
    if control.ip().is_unspecified() {
        control.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let variables = vec![("MLFLOW_TRACKING_URI".to_owned(), format!("http://{control}"))];
    let program =
        std::env::current_exe().map_err(|source| ServerError::Home { path: home.root().to_owned(), source })?;
    Ok(LocalProcesses::open(Settings {
        folder: home.work().join("runs"),
        secrets: home.root().join("secrets"),
        program,
        variables,
        environment: Vec::new(),
        mint,
        room: Room::of_this_machine(),
        accelerators: Arc::new(accelerators::OfThisMachine::new(Arc::clone(&platform.gpus))),
        tracker,
    })?)
}
