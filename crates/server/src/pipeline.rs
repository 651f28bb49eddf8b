//! Pipelines in this server: their service, what executes their runs, and their runs in the tracking store.

pub(crate) mod routes;
mod runner;
mod tracker;
pub(crate) mod usage;
pub(crate) mod views;

use std::sync::Arc;

use slipway_access::Routes;
use slipway_core::home::Home;
use slipway_core::{files, ids};
use slipway_exec::{Executor, LocalProcesses};
use slipway_pipeline::driver::{self, Driver};
use slipway_pipeline::launch::Launcher;
use slipway_pipeline::launch::local::{ImageMapping, LocalLauncher, Settings};
use slipway_pipeline::launch::pods::{self, PodLauncher};
use slipway_pipeline::service::{Options, Service};
use slipway_pipeline::step::install;
use slipway_store::{Database, Limits};

use crate::{Kubernetes, Mint, Platform, ServerError};
pub(crate) use runner::PipelineRunner;
pub(crate) use tracker::PipelineTracker;

/// Attempts of one run that are handed to the launcher at the same time. The launcher runs fewer at a time; the others wait in its queue.
const MAX_PARALLEL_TASKS: usize = 256;

/// Opens the service. In a cluster, namespaces are tenants. Runs can be started once the runner has a driver.
pub(crate) async fn open(
    database: Database,
    runner: PipelineRunner,
    cluster: Option<&dyn Kubernetes>,
) -> Result<Service, ServerError> {
    let options = match cluster {
        Some(cluster) => Options { namespace: cluster.namespace().to_owned(), multi_user: true, ..Options::default() },
        None => Options::default(),
    };
    Ok(Service::open(database, Arc::new(runner), options).await?)
}

/// What the server gives to every step on this machine.
pub(crate) struct Steps {
    /// Environment variables.
    pub(crate) variables: Vec<(String, String)>,
    /// Names of variables that steps have from this process in addition to the usual ones.
    pub(crate) inherited: Vec<String>,
    /// Images that need no container on this machine.
    pub(crate) images: Vec<ImageMapping>,
    /// Creates the token of an attempt.
    pub(crate) mint: Mint,
    /// Limits on artifacts that are copied from and to buckets.
    pub(crate) limits: Limits,
    /// The executor of runs, with which steps share the accelerators of the machine.
    pub(crate) runs: LocalProcesses,
}

/// Starts the execution of runs as processes of this machine, and takes up those of an earlier server.
pub(crate) async fn execute_here(
    platform: &Platform,
    home: &Home,
    tracker: Arc<PipelineTracker>,
    steps: Steps,
) -> Result<(), ServerError> {
    let program =
        std::env::current_exe().map_err(|source| ServerError::Home { path: home.root().to_owned(), source })?;
    let folders = Settings::new(&home.work().join("pipelines"), home.root().join("secrets"), program);
    let pipeline_root = folders.artifacts.display().to_string();
    let Steps { variables, inherited, images, mint, limits, runs } = steps;
    let settings = Settings { variables, inherited, images, mint: Some(mint), limits, runs: Some(runs), ..folders };
    start(platform, home, Arc::new(LocalLauncher::new(settings)), tracker, pipeline_root).await
}

/// Starts the execution of runs as pods, and takes up those of an earlier server. Returns the routes for the pods.
pub(crate) async fn execute_in_cluster(
    platform: &Platform,
    home: &Home,
    cluster: &Arc<dyn Kubernetes>,
    tracker: Arc<PipelineTracker>,
    executor: Arc<dyn Executor>,
) -> Result<Routes, ServerError> {
    let Some(image) = cluster.image() else {
        let variable = slipway_core::env::IMAGE;
        platform.pipeline_runner.refuse(format!("pipelines need the image of this installation in {variable}"));
        return Ok(Routes::new());
    };
    let program = install::command(pods::FOLDER)
        .map_err(|source| ServerError::Home { path: "/proc/self/maps".into(), source })?;
    let launcher = PodLauncher::new(
        executor,
        cluster.claims(),
        platform.database.clone(),
        platform.objects.pipelines()?,
        pods::Settings { image: image.name, pull_policy: image.pull_policy, program },
    );
    let routes = launcher.routes();
    start(platform, home, Arc::new(launcher), tracker, pods::PIPELINE_ROOT.to_owned()).await?;
    Ok(routes)
}

async fn start(
    platform: &Platform,
    home: &Home,
    launcher: Arc<dyn Launcher>,
    tracker: Arc<PipelineTracker>,
    pipeline_root: String,
) -> Result<(), ServerError> {
    let owner = owner(home).map_err(|source| ServerError::Home { path: home.work(), source })?;
    let settings = driver::Settings { owner, pipeline_root, max_parallel_tasks: MAX_PARALLEL_TASKS };
    let driver = Driver::new(platform.database.clone(), launcher, tracker, settings);
    driver.notify_at_ends(platform.pipelines.schedules_changed());
    driver.resume().await?;
    platform.pipeline_runner.set(driver);
    Ok(())
}

/// The name of this server among those that share the database: as long as the state folder exists, so that a server that is started again
/// goes on with its runs at once.
fn owner(home: &Home) -> std::io::Result<String> {
    let file = home.work().join("pipelines/owner");
    if let Some(name) = std::fs::read_to_string(&file).ok().filter(|name| !name.is_empty()) {
        return Ok(name);
    }
    let name = ids::hex32();
    std::fs::create_dir_all(home.work().join("pipelines"))?;
    files::replace(&file, name.as_bytes())?;
    Ok(name)
}
