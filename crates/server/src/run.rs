//! Starting a server, and stopping it.

use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_access::{Guard, HostNames, Routes};
use slipway_core::clock::now_ms;
use slipway_core::home::Home;
use slipway_core::tls::Fingerprint;
use slipway_exec::local::{NAMESPACE, Room, Settings};
use slipway_exec::{LocalProcesses, Mint};
use slipway_serve::runtime::Preference;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::auth::{Callers, RunTokens, Tokens, home_token};
use crate::certificates::{CertificateSource, Certificates, names_of};
use crate::listen::{Limits, Port};
use crate::tracker::InTracking;
use crate::{Kubernetes, Platform, ServerError, Stores, accelerators};

/// An upload in parts that got no part for this long is abandoned.
const ABANDONED_UPLOAD_AGE: Duration = Duration::from_secs(24 * 3600);
/// Time between two looks for abandoned uploads.
const ABANDONED_UPLOAD_CHECK: Duration = Duration::from_secs(3600);
/// Time for requests in flight to end after a stop was asked for.
const DRAIN: Duration = Duration::from_secs(10);
/// How often the files of the certificate are looked at.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(2);

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
    /// Names of environment variables that runs inherit besides the usual ones.
    pub run_environment: Vec<String>,
    /// Names of this server besides `localhost`; requests for other names are refused.
    pub hosts: Vec<String>,
    /// The certificate with which all three ports speak TLS; plain HTTP without one.
    pub certificate: Option<CertificateSource>,
    /// What the clients of each port may use.
    pub limits: Limits,
    /// What runs the models.
    pub runtime: Preference,
    /// Where ONNX Runtime is.
    pub onnxruntime: Option<PathBuf>,
    /// The cluster that it runs in, if it does.
    pub cluster: Option<Arc<dyn Kubernetes>>,
}

/// Where a server listens; kept in `server.json` for clients on this machine.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Addresses {
    /// Its process.
    pub pid: u32,
    /// Control plane and UI.
    pub control: SocketAddr,
    /// Inference, REST.
    pub inference: SocketAddr,
    /// Inference, gRPC.
    pub grpc: SocketAddr,
    /// Whether it speaks TLS.
    #[serde(default)]
    pub tls: bool,
    /// SHA-256 of its certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub fingerprint: Option<Fingerprint>,
    /// Its version.
    pub version: String,
    /// When it started, in milliseconds since the Unix epoch.
    pub started: i64,
}

impl Addresses {
    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    /// URL of the control plane and UI, for clients on this machine.
    pub fn control_url(&self) -> String {
        self.url(self.control)
    }

    /// URL of the inference gateway, REST, for clients on this machine.
    pub fn inference_url(&self) -> String {
        self.url(self.inference)
    }

    fn url(&self, address: SocketAddr) -> String {
        format!("{}://{}", self.scheme(), reachable(address))
    }
}

/// Where a client on this machine reaches what listens there: on loopback when it is everywhere.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// A server that listens.
pub struct Server {
    /// Where.
    pub addresses: Addresses,
    home: Home,
    platform: Platform,
    certificates: Option<Arc<Certificates>>,
    ports: [Port; 3],
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
        // In a cluster nobody owns the machine: callers are the cluster's users, and a volume's files are readable by its group.
        let has_owner = !options.no_auth && options.cluster.is_none();
        let owner = has_owner.then(|| home_token(&options.home)).transpose().map_err(token_unusable)?;
        let listen = async |address: SocketAddr| {
            TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })
        };
        let control = listen(options.control).await?;
        let inference = listen(options.inference).await?;
        let grpc = listen(options.grpc).await?;
        let place = |socket: &TcpListener, asked: SocketAddr| socket.local_addr().unwrap_or(asked);
        let bound =
            [place(&control, options.control), place(&inference, options.inference), place(&grpc, options.grpc)];
        let certificates = match &options.certificate {
            Some(source) => Some(Arc::new(Certificates::open(
                source,
                &options.home.root().join("tls"),
                names_of(&bound, &options.hosts),
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
            RunTokens::of_database(&platform.database).await?
        } else {
            RunTokens::of_file(&options.home.root().join("run-tokens.key")).map_err(unusable)?
        };
        let run_tokens = run_tokens.isolated(options.cluster.is_some()).checked_by(Arc::new(platform.tracking.clone()));
        let namespace = options.cluster.as_ref().map_or_else(|| NAMESPACE.to_owned(), |c| c.namespace().to_owned());
        let callers = Callers {
            owner: owner.as_deref().map(Tokens::one),
            administrators,
            runs: Some(run_tokens.clone()),
            authority,
            anonymous: options.no_auth,
        };
        let hosts = host_names(&options, certificates.as_deref());
        let guard = Guard::new(Arc::new(callers), namespace, hosts).with_tls(certificates.is_some());
        let mut controller_routes = Routes::new();
        // Whoever may submit a run executes a program, so a server that knows no callers carries none out.
        if !options.gateway_only && !options.no_auth {
            let tracker =
                Arc::new(InTracking { tracking: platform.tracking.clone(), isolated: options.cluster.is_some() });
            let mint: Mint = Arc::new(move |request| run_tokens.mint(request));
            platform.carried_out_by(match &options.cluster {
                Some(cluster) => {
                    let asked = crate::controller::routes(Arc::<InTracking>::clone(&tracker), Arc::clone(&mint));
                    controller_routes = asked;
                    cluster.executor(tracker, mint)
                }
                None => Arc::new(local_runs(
                    &platform,
                    &options.home,
                    tracking_variables(&addresses, certificates.as_deref()),
                    tracker,
                    mint,
                    options.run_environment.clone(),
                )?),
            });
        }
        let [control_routes, inference_routes, grpc_routes] = routes(&platform, &addresses, options.gateway_only);
        let connections = Arc::clone(&platform.connections);
        let limits = Arc::new(options.limits);
        let tls = certificates.as_ref().map(|c| c.acceptor()).transpose()?;
        let port = |listener: TcpListener, routes: Routes, counts| Port {
            listener,
            router: guard.protect(routes),
            tls: tls.clone(),
            limits: Arc::clone(&limits),
            counts: Arc::clone(counts),
        };
        let ports = [
            port(control, control_routes.merge(controller_routes), &connections.control),
            port(inference, inference_routes, &connections.inference),
            port(grpc, grpc_routes, &connections.grpc),
        ];
        Ok(Self { addresses, home: options.home, platform, certificates, ports })
    }

    /// The file of the certificate that the server made itself, if it did: clients that trust it as an authority trust this server.
    pub fn own_certificate(&self) -> Option<&Path> {
        self.certificates.as_ref().and_then(|c| c.own_file())
    }

    /// Answers requests until `stop` is done, then lets those in flight end and closes the store.
    ///
    /// # Errors
    /// [`ServerError::Listen`] when a port fails while it is served.
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
        let renewing = self.certificates.map(|certificates| {
            let renewing = follow_certificates(certificates, self.home.clone(), self.addresses.clone());
            tokio::spawn(renewing)
        });
        let tidying = tokio::spawn(collect_abandoned_uploads(self.platform.clone()));
        let mut result = Ok(());
        tokio::select! {
            () = stop => tracing::info!("stopping: draining requests in flight"),
            Some(ended) = tasks.join_next() => {
                // A port is served until it is told to stop, so only a panic gets here.
                let address = ended.unwrap_or(self.addresses.control);
                let source = std::io::Error::other("what serves this port has failed");
                result = Err(ServerError::Listen { address, source });
            }
        }
        stopping.send_replace(true);
        let drained = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("some requests did not end in time");
            tasks.shutdown().await;
        }
        tidying.abort();
        if let Some(renewing) = renewing {
            renewing.abort();
        }
        // The lease is given back, so that another server can carry out runs at once.
        self.platform.cluster.stop().await;
        let database = self.platform.database.clone();
        let closed = tokio::task::spawn_blocking(move || database.close()).await;
        if let Err(error) = closed {
            tracing::error!(%error, "the store did not close");
        }
        let _ = std::fs::remove_file(self.home.server_file()); // Clients also see that the process is gone.
        result
    }
}

/// Removes, each hour, the parts of uploads that nobody has gone on with for a day.
async fn collect_abandoned_uploads(platform: Platform) {
    loop {
        match platform.tracking.collect_abandoned_uploads(ABANDONED_UPLOAD_AGE).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "abandoned uploads were removed"),
            Err(error) => tracing::warn!(%error, "abandoned uploads cannot be removed; the next attempt is in an hour"),
        }
        tokio::time::sleep(ABANDONED_UPLOAD_CHECK).await;
    }
}

/// The routes of the three ports: control plane, inference over REST, inference over gRPC.
pub(crate) fn routes(platform: &Platform, addresses: &Addresses, gateway_only: bool) -> [Routes; 3] {
    let control = if gateway_only { platform.probes_routes() } else { platform.control_routes(Some(addresses)) };
    [control, platform.inference_routes(), platform.grpc_routes()]
}

/// The names under which this server is asked: those that are configured, and those that follow from where it runs.
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

/// Tells clients on this machine where the server is.
fn publish(home: &Home, addresses: &Addresses) -> std::io::Result<()> {
    let text = serde_json::to_vec_pretty(addresses)?;
    slipway_core::files::replace_as(&home.server_file(), &text, 0o600)
}

/// Takes new certificates into use, and tells clients on this machine their fingerprints.
async fn follow_certificates(certificates: Arc<Certificates>, home: Home, mut addresses: Addresses) {
    loop {
        tokio::time::sleep(CERTIFICATE_CHECK).await;
        let asked = Arc::clone(&certificates);
        if !tokio::task::spawn_blocking(move || asked.refresh()).await.unwrap_or(false) {
            continue;
        }
        addresses.fingerprint = certificates.fingerprint();
        if let Err(error) = publish(&home, &addresses) {
            tracing::error!(%error, "clients on this machine are not told the fingerprint of the new certificate");
        }
    }
}

/// What tells MLflow's client in a local run where this server is, and that it is the right one.
fn tracking_variables(addresses: &Addresses, certificates: Option<&Certificates>) -> Vec<(String, String)> {
    let mut url = addresses.control_url();
    let mut authorities = None;
    if let Some(certificates) = certificates {
        let names = certificates.names();
        let address = reachable(addresses.control);
        // A name that the certificate is for; one that was signed for a public name has none of loopback.
        let candidates = [address.ip().to_string(), "localhost".to_owned()];
        let own = candidates.iter().find(|name| names.contains(name));
        if let Some(name) = own.or_else(|| names.iter().find(|name| !name.contains('*'))) {
            let name = if name.contains(':') { format!("[{name}]") } else { name.clone() };
            url = format!("https://{name}:{}", address.port());
        }
        authorities = certificates.own_file().map(|file| file.display().to_string());
    }
    let authorities = authorities.or_else(|| slipway_core::env::value(slipway_core::env::CA_FILE));
    let mut variables = vec![("MLFLOW_TRACKING_URI".to_owned(), url)];
    // <https://mlflow.org/docs/latest/self-hosting/security/ssl>: passed to `requests` as the authorities to trust.
    variables.extend(authorities.map(|file| ("MLFLOW_TRACKING_SERVER_CERT_PATH".to_owned(), file)));
    variables
}

/// Runs as processes of this machine, which track to this server.
fn local_runs(
    platform: &Platform,
    home: &Home,
    variables: Vec<(String, String)>,
    tracker: Arc<InTracking>,
    mint: Mint,
    environment: Vec<String>,
) -> Result<LocalProcesses, ServerError> {
    let program =
        std::env::current_exe().map_err(|source| ServerError::Home { path: home.root().to_owned(), source })?;
    Ok(LocalProcesses::open(Settings {
        folder: home.work().join("runs"),
        secrets: home.root().join("secrets"),
        program,
        variables,
        environment,
        mint: Some(mint),
        room: Room::of_this_machine(),
        accelerators: Arc::new(accelerators::OfThisMachine::new(Arc::clone(&platform.gpus))),
        tracker,
    })?)
}
