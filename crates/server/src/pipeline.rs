//! Pipelines in this server: their service, what executes their runs, and their runs in the tracking store.

pub(crate) mod routes;
mod runner;
mod tracker;
pub(crate) mod views;

use std::sync::Arc;

use slipway_core::home::Home;
use slipway_pipeline::driver::{self, Driver};
use slipway_pipeline::launch::local::{LocalLauncher, Settings};
use slipway_pipeline::service::{Options, Service};
use slipway_pipeline::tracker::Tracker;
use slipway_store::Database;
use slipway_track::Tracking;

use self::tracker::PipelineTracker;
use crate::{Platform, ServerError};
pub(crate) use runner::PipelineRunner;

/// Attempts of one run that are handed to the launcher at the same time. The launcher runs fewer at a time; the others wait in its queue.
const MAX_PARALLEL_TASKS: usize = 256;

/// Opens the service. Runs can be started once the runner has a driver.
pub(crate) async fn open(database: Database, runner: PipelineRunner) -> Result<Service, ServerError> {
    Ok(Service::open(database, Arc::new(runner), Options::default()).await?)
}

/// What records runs in the tracking store of a server with one tenant.
pub(crate) fn tracker(tracking: Tracking) -> Arc<dyn Tracker> {
    Arc::new(PipelineTracker { tracking, isolated: false })
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
    let tracker = tracker(platform.tracking.clone());
    let settings = driver::Settings { pipeline_root, max_parallel_tasks: MAX_PARALLEL_TASKS };
    let driver = Driver::new(platform.database.clone(), Arc::new(launcher), tracker, settings);
    driver.resume().await?;
    platform.pipeline_runner.set(driver);
    Ok(())
}
