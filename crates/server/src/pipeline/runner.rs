//! The execution of pipelines: available in a server that accepts runs, and missing in one that does not and in the process of a command.

use std::sync::{Arc, OnceLock};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use slipway_exec::{ExecError, LogStream};
use slipway_pipeline::Error;
use slipway_pipeline::driver::Driver;
use slipway_pipeline::ir::Document;
use slipway_pipeline::model::{Artifact, TaskPath};
use slipway_pipeline::service::{ArtifactStream, Runner};

/// A [`Runner`] that is the driver of this server, once there is one.
#[derive(Debug, Clone, Default)]
pub(crate) struct PipelineRunner {
    driver: Arc<OnceLock<Driver>>,
    /// Why this server executes no pipelines, if that is known.
    refusal: Arc<OnceLock<String>>,
}

impl PipelineRunner {
    /// Sets the driver, which enables runs.
    pub(crate) fn set(&self, driver: Driver) {
        // Called once, before the server accepts requests, so the result can be ignored.
        let _ = self.driver.set(driver);
    }

    /// Sets the reason why this server executes no pipelines.
    pub(crate) fn refuse(&self, reason: impl Into<String>) {
        // As in `set`.
        let _ = self.refusal.set(reason.into());
    }

    /// Whether runs can be started.
    pub(crate) fn has_driver(&self) -> bool {
        self.driver.get().is_some()
    }

    fn get(&self) -> Result<&Driver, Error> {
        let missing = || {
            let reason =
                self.refusal.get().map_or("pipelines need a running server with authentication", String::as_str);
            ExecError::Unreachable(reason.to_owned())
        };
        self.driver.get().ok_or_else(|| missing().into())
    }
}

impl Runner for PipelineRunner {
    fn ready(&self) -> Result<(), Error> {
        self.get().map(drop)
    }

    fn owner(&self) -> String {
        self.get().map_or_else(|_| String::new(), Runner::owner)
    }

    fn start(&self, run_id: String, document: Arc<Document>) {
        if let Ok(driver) = self.get() {
            driver.start(run_id, document);
        }
    }

    fn cancel(&self, run_id: String) {
        if let Ok(driver) = self.get() {
            driver.cancel(run_id);
        }
    }

    fn retry(&self, run_id: String) {
        if let Ok(driver) = self.get() {
            driver.retry(run_id);
        }
    }

    fn forget(&self, namespace: String, run_id: String) -> BoxFuture<'static, Result<(), Error>> {
        match self.get() {
            Ok(driver) => driver.forget(namespace, run_id),
            Err(error) => futures_util::future::ready(Err(error)).boxed(),
        }
    }

    fn log(
        &self,
        run_id: String,
        task: TaskPath,
        attempt: Option<u32>,
        follow: bool,
    ) -> BoxFuture<'static, Result<LogStream, Error>> {
        match self.get() {
            Ok(driver) => driver.log(run_id, task, attempt, follow),
            Err(error) => futures_util::future::ready(Err(error)).boxed(),
        }
    }

    fn read_artifact(
        &self,
        namespace: String,
        artifact: Artifact,
    ) -> BoxFuture<'static, Result<ArtifactStream, Error>> {
        match self.get() {
            Ok(driver) => driver.read_artifact(namespace, artifact),
            Err(error) => futures_util::future::ready(Err(error)).boxed(),
        }
    }
}
