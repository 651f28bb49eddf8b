//! Pipelines in this server: their service, what executes their runs, and their runs in the tracking store.

pub(crate) mod routes;
mod runner;
mod tracker;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;
use slipway_access::Routes;
use slipway_core::home::Home;
use slipway_exec::{ExecError, Executor};
use slipway_pipeline::driver::{self, Driver};
use slipway_pipeline::launch::Launcher;
use slipway_pipeline::launch::local::{LocalLauncher, Settings};
use slipway_pipeline::launch::pods::{self, Claims, PodLauncher};
use slipway_pipeline::service::{Options, Service};
use slipway_pipeline::step::install;
use slipway_pipeline::tracker::Tracker;
use slipway_store::Database;
use slipway_track::Tracking;

use self::tracker::PipelineTracker;
use crate::{Kubernetes, Platform, ServerError};
pub(crate) use runner::PipelineRunner;

/// Attempts of one run that are handed to the launcher at the same time. The launcher runs fewer at a time; the others wait in its queue.
const MAX_PARALLEL_TASKS: usize = 256;

/// Opens the service. Runs can be started once the runner has a driver.
pub(crate) async fn open(database: Database, runner: PipelineRunner) -> Result<Service, ServerError> {
    Ok(Service::open(database, Arc::new(runner), Options::default()).await?)
}

/// Opens the service of a server in a cluster, whose namespaces are tenants.
pub(crate) async fn open_in_cluster(platform: &Platform, cluster: &dyn Kubernetes) -> Result<Service, ServerError> {
    let options = Options { namespace: cluster.namespace().to_owned(), multi_user: true, ..Options::default() };
    Ok(Service::open(platform.database.clone(), Arc::new(platform.pipeline_runner.clone()), options).await?)
}

/// What records runs in the tracking store. If it is `isolated`, namespaces are tenants.
pub(crate) fn tracker(tracking: Tracking, isolated: bool) -> Arc<dyn Tracker> {
    Arc::new(PipelineTracker { tracking, isolated })
}

/// Starts the execution of runs as processes of this machine, and takes up those of an earlier server. `variables` are set for every step;
/// `inherited` are the names of variables that steps have from this process in addition to the usual ones.
pub(crate) async fn execute_here(
    platform: &Platform,
    home: &Home,
    variables: Vec<(String, String)>,
    inherited: Vec<String>,
) -> Result<(), ServerError> {
    let program =
        std::env::current_exe().map_err(|source| ServerError::Home { path: home.root().to_owned(), source })?;
    let folders = Settings::new(&home.work().join("pipelines"), home.root().join("secrets"), program);
    let pipeline_root = folders.artifacts.display().to_string();
    let launcher = LocalLauncher::new(Settings { variables, inherited, ..folders });
    start(platform, Arc::new(launcher), pipeline_root, false).await
}

/// Starts the execution of runs as pods, and takes up those of an earlier server. Returns the routes for the pods.
pub(crate) async fn execute_in_cluster(
    platform: &Platform,
    cluster: &Arc<dyn Kubernetes>,
    executor: Arc<dyn Executor>,
) -> Result<Routes, ServerError> {
    if platform.database.is_shared() {
        // Two servers must not carry out the same run.
        platform.pipeline_runner.refuse("pipelines are not executed by several control planes that share a database");
        return Ok(Routes::new());
    }
    let Some(image) = cluster.image() else {
        let variable = slipway_core::env::IMAGE;
        platform.pipeline_runner.refuse(format!("pipelines need the image of this installation in {variable}"));
        return Ok(Routes::new());
    };
    let program = install::command(pods::FOLDER)
        .map_err(|source| ServerError::Home { path: "/proc/self/maps".into(), source })?;
    let launcher = PodLauncher::new(
        executor,
        Arc::new(ClusterClaims(Arc::clone(cluster))),
        platform.database.clone(),
        platform.objects.pipelines()?,
        pods::Settings { image: image.name, pull_policy: image.pull_policy, program },
    );
    let routes = launcher.routes();
    start(platform, Arc::new(launcher), pods::PIPELINE_ROOT.to_owned(), true).await?;
    Ok(routes)
}

async fn start(
    platform: &Platform,
    launcher: Arc<dyn Launcher>,
    pipeline_root: String,
    isolated: bool,
) -> Result<(), ServerError> {
    let tracker = tracker(platform.tracking.clone(), isolated);
    let settings = driver::Settings { pipeline_root, max_parallel_tasks: MAX_PARALLEL_TASKS };
    let driver = Driver::new(platform.database.clone(), launcher, tracker, settings);
    driver.resume().await?;
    platform.pipeline_runner.set(driver);
    Ok(())
}

/// The claims of the cluster.
#[derive(Debug)]
struct ClusterClaims(Arc<dyn Kubernetes>);

impl Claims for ClusterClaims {
    fn create(&self, claim: Value) -> BoxFuture<'_, Result<(), ExecError>> {
        self.0.create_claim(claim)
    }

    fn delete<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), ExecError>> {
        self.0.delete_claim(namespace, name)
    }
}
