//! Runs the agent: its options, its tasks, and its shutdown. The agent exits when any task ends; the kubelet then restarts it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use slipway_gpu::settings::Store;
use slipway_store::Database;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::access::Gate;
use crate::cluster::{Cluster, NODE};
use crate::config::{self, Config};
use crate::dra::membership::{Daemon, Membership, Worker};
use crate::driver::{self, Driver, State};
use crate::health::Policy;
use crate::holders::Watcher;
use crate::metrics::{self, Readings};
use crate::mig_manager::Manager;
use crate::model::Held;
use crate::plugin::{self, Plugin, Roots, servers};
use crate::resources::offers;
use crate::{NodeError, accept, amd, cdi, dra, gpu_settings, http, imex, labels, mps, pause, repo, reset};

/// The kubelet API through which GPUs are offered. Offering both at once would allocate devices twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offering {
    /// As extended resources, through the kubelet's device plugin API.
    DevicePlugin,
    /// As devices for resource claims (dynamic resource allocation).
    Dra,
}

/// How IMEX runs on this node.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // documented on the command line
pub struct Imex {
    /// Whether the agent runs the daemons, instead of the service of the machine.
    pub own_daemon: bool,
    pub address: Option<IpAddr>,
    pub hosts: PathBuf,
}

/// Options of the agent.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // documented on the command line
pub struct Options {
    pub node: String,
    pub offering: Offering,
    pub fixture: Option<String>,
    pub kubelet: PathBuf,
    pub cdi: PathBuf,
    pub driver_root: PathBuf,
    pub host_driver_root: PathBuf,
    pub config: config::Source,
    pub mig_config: Option<PathBuf>,
    pub gpu_settings: gpu_settings::Source,
    pub mps_root: PathBuf,
    pub dra_driver: String,
    /// Also offer the machine's IMEX channels for resource claims.
    pub imex_channels: Option<Imex>,
    /// The namespace of the slipway installation, whose control plane may read leases.
    pub namespace: Option<String>,
    pub home: PathBuf,
    /// The folder that other programs of the machine share with the agent: the record of GPU settings, the lock for resets.
    pub machine: PathBuf,
    pub listen: SocketAddr,
    pub policy: Policy,
    pub poll_interval: Duration,
    /// Reset GPUs after faults that a reset mends, if nothing uses them and the node's label does not say otherwise.
    pub reset_on_fault: bool,
    /// Taint the node until it has passed the checks; `None` to accept every node.
    pub accept: Option<accept::Settings>,
    /// Also offer GPUs of AMD, always as extended resources; `None` to leave them to other plugins.
    pub amd: Option<amd::Settings>,
}

/// Runs the agent until `stop` completes. Without a cluster it only offers devices and serves metrics.
///
/// # Errors
/// If the folders, the port or the configuration cannot be used, or if a task ends.
pub async fn run<C: Cluster>(
    options: Options,
    cluster: Option<Arc<C>>,
    stop: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    run_with(options, cluster, stop, Driver::start).await
}

async fn run_with<C: Cluster>(
    options: Options,
    cluster: Option<Arc<C>>,
    stop: impl Future<Output = ()>,
    start_driver: impl FnOnce(driver::Settings) -> Result<Arc<Driver>, NodeError>,
) -> Result<(), NodeError> {
    crate::memory::release_relocations();
    std::fs::create_dir_all(&options.home).map_err(NodeError::io(options.home.display().to_string()))?;
    let database = Arc::new(Database::open(&options.home.join("node.db"), &[repo::MIGRATION])?);
    let listener = tokio::net::TcpListener::bind(options.listen)
        .await
        .map_err(NodeError::io(format!("listening on {}", options.listen)))?;
    let gate = Gate::new(cluster.clone(), options.namespace.as_deref(), options.listen);
    let driver = start_driver(driver::Settings {
        fixture: options.fixture.clone(),
        policy: options.policy.clone(),
        cdi: cdi::Writer::new(options.cdi.clone(), options.driver_root.clone(), options.host_driver_root.clone()),
        poll_interval: options.poll_interval,
        claimed: dra::claimed(&database).await?,
        pause: pause::path(&options.machine),
    })?;
    let initial = options.config.read(&BTreeMap::new()).map(Arc::new).or_else(|error| {
        // With a cluster the node's label may select another file; without one, an invalid file is fatal.
        if cluster.is_some() { Ok(Arc::default()) } else { Err(error) }
    })?;
    log_warnings(&initial);
    let configs = watch::Sender::new(initial);
    let held: watch::Sender<Held> = watch::Sender::default();
    let readings: watch::Sender<Arc<Readings>> = watch::Sender::default();
    let handed_out = Arc::new(Notify::new());
    let mut tasks: JoinSet<Result<(), NodeError>> = JoinSet::new();
    tasks.spawn(async {
        crate::memory::release_unused_code().await;
        Ok(())
    });

    tasks.spawn(follow_config(options.config.clone(), cluster.clone(), options.node.clone(), configs.clone()));
    let pod_resources = options.kubelet.join("pod-resources/kubelet.sock");
    let watcher = Watcher {
        socket: pod_resources.clone(),
        database: Arc::clone(&database),
        handed_out: Arc::clone(&handed_out),
        dra_driver: options.dra_driver.clone(),
    };
    tasks.spawn(watcher.run(driver.subscribe(), held.clone()));
    let sampling = metrics::sample(Arc::clone(&driver), readings.clone(), held.clone());
    tasks.spawn(async move {
        sampling.await;
        Ok(())
    });
    let plugins = options.kubelet.join("device-plugins");
    if options.offering == Offering::DevicePlugin || options.amd.is_some() {
        servers::remove_stale_sockets(&plugins)?;
    }
    let of_amd = amd::Senders::default();
    if let Some(settings) = options.amd.clone() {
        let plugin =
            amd::Plugin { folder: plugins.clone(), naming: settings.naming, handed_out: Arc::clone(&handed_out) };
        tasks.spawn(plugin.run(of_amd.states.subscribe()));
        tasks.spawn(amd::watch(settings.fixture, of_amd.clone(), options.poll_interval, options.policy.quiet));
    }
    match (options.offering, &cluster) {
        (Offering::DevicePlugin, _) => {
            let mps = mps::Root(options.mps_root.clone());
            tasks.spawn(run_mps(Arc::clone(&driver), configs.subscribe(), mps.clone(), options.driver_root.clone()));
            let roots = Roots { local: options.driver_root.clone(), host: options.host_driver_root.clone() };
            let settings = plugin::Settings { mps, roots };
            let plugin = Plugin { folder: plugins.clone(), settings, handed_out: Arc::clone(&handed_out) };
            tasks.spawn(plugin.run(driver.subscribe(), configs.subscribe()));
        }
        (Offering::Dra, Some(cluster)) => {
            let dra = dra::Dra {
                cluster: Arc::clone(cluster),
                node: options.node.clone(),
                name: options.dra_driver.clone(),
                devices: dra::Devices::Gpus,
                kubelet: options.kubelet.clone(),
                driver: Arc::clone(&driver),
                database: Arc::clone(&database),
                handed_out: Arc::clone(&handed_out),
            };
            if let Some(imex) = &options.imex_channels {
                spawn_channels(&mut tasks, &options, imex, &dra).await;
            }
            tasks.spawn(async move {
                dra.run().await;
                Ok(())
            });
        }
        (Offering::Dra, None) => {
            return Err(NodeError::Invalid("resource claims require the API server: provide a kubeconfig".into()));
        }
    }
    let acceptance = accept::Store::new(&options.home);
    let settings = gpu_settings::Manager {
        cluster: cluster.clone(),
        node: options.node.clone(),
        source: options.gpu_settings.clone(),
        store: Store::new(options.machine.join("gpu-settings.json")),
        driver: Arc::clone(&driver),
        configs: configs.subscribe(),
    };
    tasks.spawn(async move {
        settings.run().await;
        Ok(())
    });
    // The node's label can allow resets too.
    if options.reset_on_fault || cluster.is_some() {
        let manager = reset::Manager {
            cluster: cluster.clone(),
            node: options.node.clone(),
            enabled: options.reset_on_fault,
            driver: Arc::clone(&driver),
            home: options.home.clone(),
            machine: options.machine.clone(),
            runner: reset::ThisNode {
                pod_resources: pod_resources.clone(),
                is_node: cluster.is_some(),
                dra_driver: options.dra_driver.clone(),
                driver_root: options.driver_root.clone(),
            },
        };
        tasks.spawn(async move {
            manager.run().await;
            Ok(())
        });
    }
    if let Some(cluster) = cluster {
        match options.accept.clone() {
            Some(settings) => {
                let manager = accept::Manager {
                    cluster: Arc::clone(&cluster),
                    node: options.node.clone(),
                    driver: Arc::clone(&driver),
                    store: acceptance.clone(),
                    level: settings.level,
                    every: settings.every,
                    runner: accept::ThisNode {
                        pod_resources: pod_resources.clone(),
                        dra_driver: options.dra_driver.clone(),
                        command: settings.command,
                    },
                };
                tasks.spawn(async move {
                    manager.run().await;
                    Ok(())
                });
            }
            // An earlier configuration may have left the taint.
            None if acceptance.exists() => {
                if let Err(error) = accept::publish::remove(&*cluster, &options.node).await {
                    tracing::warn!(%error, "the taint of an earlier configuration could not be removed");
                }
            }
            None => {}
        }
        let labelling = labels::run(
            Arc::clone(&cluster),
            options.node.clone(),
            driver.subscribe(),
            of_amd.states.subscribe(),
            configs.subscribe(),
        );
        tasks.spawn(async move {
            labelling.await;
            Ok(())
        });
        let manager = Manager {
            cluster,
            node: options.node.clone(),
            file: options.mig_config.clone(),
            driver: Arc::clone(&driver),
            pod_resources: pod_resources.clone(),
            dra_driver: options.dra_driver.clone(),
        };
        tasks.spawn(async move {
            manager.run().await;
            Ok(())
        });
    }
    let state = http::AppState {
        node: options.node.clone(),
        states: driver.subscribe(),
        amd: http::Amd {
            states: of_amd.states.subscribe(),
            readings: of_amd.readings.subscribe(),
            naming: options.amd.clone().unwrap_or_default().naming,
        },
        configs: configs.subscribe(),
        readings: readings.subscribe(),
        held: held.subscribe(),
        database: Arc::clone(&database),
        acceptance: acceptance.clone(),
        kubelet: plugins.join("kubelet.sock"),
    };
    tasks.spawn(async move {
        http::serve(listener, http::router(state, gate), http::Limits::default()).await;
        Ok(())
    });
    // Every task is required, so the agent exits when one of them ends; the kubelet restarts it.
    let outcome = tokio::select! {
        () = stop => Ok(()),
        error = driver.wait_for_failure() => Err(error),
        ended = tasks.join_next() => Err(match ended {
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => NodeError::Invalid(format!("a task of the agent failed: {error}")),
            Some(Ok(Ok(()))) | None => NodeError::Invalid("a task of the agent ended unexpectedly".into()),
        }),
    };
    tasks.shutdown().await;
    driver.stop();
    database.close();
    outcome
}

/// Starts the driver of IMEX channels, and the task that makes this node a member of its ComputeDomain.
async fn spawn_channels<C: Cluster>(
    tasks: &mut JoinSet<Result<(), NodeError>>,
    options: &Options,
    imex: &Imex,
    gpus: &dra::Dra<C>,
) {
    let membership = Arc::new(Membership::new(Arc::clone(&gpus.database)));
    let daemon = if imex.own_daemon {
        let settings = imex::Settings {
            driver_root: options.driver_root.clone(),
            folder: options.home.join("imex"),
            hosts: imex.hosts.clone(),
        };
        Daemon::Agent(Box::new(imex::Imex::new(settings).await))
    } else {
        Daemon::Host(options.driver_root.join("etc/nvidia-imex/nodes_config.cfg"))
    };
    let settings = dra::channels::Settings {
        root: options.driver_root.clone(),
        cdi: options.cdi.clone(),
        membership: Arc::clone(&membership),
        without_domain: !imex.own_daemon,
    };
    let name = dra::channels::DRIVER.to_owned();
    let channels = dra::Dra { name, devices: dra::Devices::Channels(settings), ..gpus.clone() };
    let (cluster, driver) = (Arc::clone(&gpus.cluster), Arc::clone(&gpus.driver));
    let worker = Worker::new(cluster, options.node.clone(), driver, daemon, imex.address);
    tasks.spawn(async move {
        tokio::join!(channels.run(), worker.run(membership));
        Ok(())
    });
}

fn log_warnings(config: &Config) {
    for warning in &config.warnings {
        tracing::warn!(warning, "configuration");
    }
}

/// Reloads the configuration when the node's label or the files change. An invalid configuration is logged and ignored; the last
/// valid one stays in effect.
async fn follow_config<C: Cluster>(
    source: config::Source,
    cluster: Option<Arc<C>>,
    node: String,
    configs: watch::Sender<Arc<Config>>,
) -> Result<(), NodeError> {
    let mut object = cluster.map(|c| c.watch(NODE, None, &node));
    let mut last_error = String::new();
    loop {
        let labels: Option<BTreeMap<String, String>> = match &mut object {
            None => Some(BTreeMap::new()),
            Some(object) => object.borrow_and_update().as_ref().map(labels::of_object),
        };
        if let Some(labels) = labels {
            match source.read(&labels) {
                Ok(config) => {
                    last_error.clear();
                    configs.send_if_modified(|current| {
                        let changed = **current != config;
                        if changed {
                            log_warnings(&config);
                            *current = Arc::new(config.clone());
                        }
                        changed
                    });
                }
                Err(error) => {
                    let text = error.to_string();
                    if text != last_error {
                        tracing::error!(error = text, "invalid configuration; keeping the previous one");
                    }
                    last_error = text;
                }
            }
        }
        // Changes of mounted ConfigMap files send no notification, so poll them.
        let interval = tokio::time::sleep(Duration::from_secs(2));
        match &mut object {
            None => interval.await,
            Some(object) => tokio::select! {
                changed = object.changed() => if changed.is_err() { return Ok(()) },
                () = interval => {}
            },
        }
    }
}

async fn run_mps(
    driver: Arc<Driver>,
    mut configs: watch::Receiver<Arc<Config>>,
    root: mps::Root,
    driver_root: PathBuf,
) -> Result<(), NodeError> {
    let mut states = driver.subscribe();
    // NVIDIA's container runtime mounts the program into this container; otherwise use the one below the driver root.
    let program = PathBuf::from("/usr/bin/nvidia-cuda-mps-control");
    let program = if program.exists() { program } else { driver_root.join("usr/bin/nvidia-cuda-mps-control") };
    let mut daemons = mps::Daemons::new(root, program);
    let mut last_error = String::new();
    loop {
        let (state, config): (Arc<State>, Arc<Config>) =
            (states.borrow_and_update().clone(), configs.borrow_and_update().clone());
        if let Some(machine) = state.machine() {
            let offers = offers(machine, &config).unwrap_or_default();
            let memory = |uuid: &str| {
                let gpu = machine.inventory.gpus.iter().find(|g| g.uuid == uuid);
                gpu.and_then(|g| g.memory_total).unwrap_or(0) >> 20
            };
            let error =
                daemons.reconcile(&driver, &offers, &memory).await.err().map(|e| e.to_string()).unwrap_or_default();
            if error != last_error && !error.is_empty() {
                tracing::error!(error, "starting MPS failed; retrying");
            }
            last_error = error;
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return Ok(()) },
            changed = configs.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(Duration::from_secs(10)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Fake;
    use crate::driver::tests::panicking_driver;

    fn options(folder: &std::path::Path) -> Options {
        Options {
            node: "n1".into(),
            offering: Offering::DevicePlugin,
            fixture: None,
            kubelet: folder.join("kubelet"),
            cdi: folder.join("cdi"),
            driver_root: folder.to_owned(),
            host_driver_root: folder.to_owned(),
            config: config::Source { file: None, folder: None, mig: None },
            mig_config: None,
            gpu_settings: gpu_settings::Source::default(),
            mps_root: folder.join("mps"),
            dra_driver: dra::DRIVER.into(),
            imex_channels: None,
            namespace: None,
            home: folder.join("home"),
            machine: folder.to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            policy: Policy::from_variables(None, None, Duration::from_secs(1)),
            poll_interval: Duration::from_secs(1),
            reset_on_fault: false,
            accept: None,
            amd: None,
        }
    }

    #[tokio::test]
    async fn agent_fails_when_driver_thread_panics() {
        let folder = std::env::temp_dir().join(format!("slipway-node-{}", slipway_core::ids::hex32()));
        let (driver, trigger) = panicking_driver();
        let mut states = driver.subscribe();
        let agent = tokio::spawn(run_with::<Fake>(options(&folder), None, std::future::pending(), |_| Ok(driver)));
        states.wait_for(|s| s.machine().is_some()).await.unwrap();
        trigger.send(()).unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(20), agent).await.expect("the agent ends").unwrap();
        assert!(matches!(ended, Err(NodeError::NoDriver(_))), "{ended:?}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
