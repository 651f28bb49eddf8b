//! Runs as processes of this machine. Each has a folder with all that is known of it, so nothing is lost with the server: its program
//! goes on under its supervisor, and the next server finds it by its files.
//!
//! ```text
//! NAME/run.json                 the manifest and the status
//! NAME/1/task.json log end.json the first attempt
//! ```

pub mod descriptors;
mod environment;
mod log;
mod reconcile;
mod room;
mod runs;
mod supervisor;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use slipway_core::clock::now_ms;
use slipway_core::{files, ids};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::manifest::SUBMITTED_BY;
use crate::{
    Answer, ExecError, Executor, LogQuery, LogStream, Manifest, Mint, RunStatus, Submitted, Tracker, tracked_id,
};

pub use room::Room;
pub use supervisor::supervise;

use room::Demand;
use runs::{Runs, WriteFile, missing};

/// The namespace of every local run.
pub const NAMESPACE: &str = "default";
/// Between two looks at what runs.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Added to a run's grace period when its removal is waited for.
const REMOVAL_SLACK: Duration = Duration::from_secs(30);

/// A GPU or a slice that a run may hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// `GPU-...` or `MIG-...`.
    pub uuid: String,
    /// `nvidia.com/gpu`, `nvidia.com/mig-1g.10gb`.
    pub resource: String,
}

/// What a device did since it was read last.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reading {
    /// Energy.
    pub joules: f64,
    /// Time in which it computed.
    pub busy_seconds: f64,
    /// Time in which it did not.
    pub idle_seconds: f64,
}

/// The GPUs of this machine. Declared here and implemented by what knows them.
pub trait Accelerators: Send + Sync {
    /// All of them.
    fn devices(&self) -> Vec<Device>;
    /// What these did since the last call, or within `seconds`; nothing for one that does not answer.
    fn read(&self, devices: &[Device], seconds: f64) -> Vec<Option<Reading>>;
}

/// What local runs need to know.
#[allow(missing_debug_implementations)] // traits and functions have nothing to show
pub struct Settings {
    /// The folder of all runs.
    pub folder: PathBuf,
    /// Where secrets are: `NAME/KEY`.
    pub secrets: PathBuf,
    /// The program that supervises, called as `PROGRAM supervise FOLDER`: this one.
    pub program: PathBuf,
    /// Variables of every run.
    pub variables: Vec<(String, String)>,
    /// Names of this process's variables that runs inherit besides those that all programs need (setting `run-environment`).
    pub environment: Vec<String>,
    /// Makes the token of an attempt; unset where the server asks for none.
    pub mint: Option<Mint>,
    /// What this machine has.
    pub room: Room,
    /// Its GPUs.
    pub accelerators: Arc<dyn Accelerators>,
    /// Where runs are tracked.
    pub tracker: Arc<dyn Tracker>,
}

/// Runs as processes of this machine; cheap to clone. When the last clone is dropped nothing is started or written down any more, and what
/// runs goes on.
#[derive(Clone)]
pub struct LocalProcesses {
    inner: Arc<Inner>,
    _reconciler: Arc<AbortOnDrop>,
}

impl std::fmt::Debug for LocalProcesses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalProcesses").field("folder", &self.inner.settings.folder).finish_non_exhaustive()
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Inner {
    settings: Settings,
    runs: Runs,
    /// Wakes the reconciler.
    changed: Notify,
    /// When the GPUs were read last.
    sampled: Mutex<Instant>,
}

/// Runs work that uses the disk on a thread that may block. It is done to its end even if nobody waits for it any more.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExecError> + Send + 'static,
) -> Result<T, ExecError> {
    let failed =
        |e: tokio::task::JoinError| ExecError::Io { what: "a thread".into(), source: std::io::Error::other(e) };
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

impl LocalProcesses {
    /// Opens the folder, finds what runs, and goes on from there. Blocks while it reads the folder, which is for the start of a server.
    ///
    /// # Errors
    /// [`ExecError::Io`] when the folder cannot be used. A run that cannot be read is reported and left alone.
    pub fn open(settings: Settings) -> Result<Self, ExecError> {
        Self::open_with(settings, Box::new(files::replace))
    }

    fn open_with(settings: Settings, write: WriteFile) -> Result<Self, ExecError> {
        let runs = Runs::open(settings.folder.clone(), write)?;
        let inner = Arc::new(Inner { settings, runs, changed: Notify::new(), sampled: Mutex::new(Instant::now()) });
        let reconciler = tokio::spawn(reconcile::run(Arc::clone(&inner)));
        Ok(Self { inner, _reconciler: Arc::new(AbortOnDrop(reconciler)) })
    }

    fn find(&self, namespace: &str, name: &str) -> Result<Submitted, ExecError> {
        let found = self.inner.runs.get(name).filter(|_| namespace == NAMESPACE);
        found.ok_or_else(|| missing(namespace, name))
    }

    /// Cancels a run, and removes it when it has ended if that is wanted.
    async fn end(&self, namespace: &str, name: &str, remove: bool) -> Result<Submitted, ExecError> {
        self.find(namespace, name)?;
        let (inner, name) = (Arc::clone(&self.inner), name.to_owned());
        blocking(move || {
            let run = inner.runs.update(&name, |run| run.manifest.spec.cancel = true)?;
            if remove {
                inner.runs.with(&name, |e| e.removed = true);
            }
            inner.changed.notify_one();
            Ok(run)
        })
        .await
    }
}

/// A unique id as Kubernetes writes it.
fn dashed(hex: &str) -> String {
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

impl Inner {
    /// What this machine has. Blocks: GPUs are asked for.
    fn room(&self) -> Room {
        Room { devices: self.settings.accelerators.devices(), ..self.settings.room.clone() }
    }

    /// Takes in a run that was checked for what no executor can carry out. Blocks.
    fn take_in(&self, run: Manifest, by: Option<String>) -> Result<Submitted, ExecError> {
        let mut run = run.named();
        if !matches!(run.metadata.namespace.as_str(), "" | NAMESPACE) {
            return Err(ExecError::Manifest(format!(
                "metadata.namespace is '{}': a single machine has only '{NAMESPACE}'; slipway up --kube has more",
                run.metadata.namespace
            )));
        }
        self.check(&run)?;
        run.metadata.namespace = NAMESPACE.into();
        run.metadata.uid = dashed(&ids::hex32());
        run.metadata.generation = Some(1);
        let now = now_ms();
        run.metadata.creation_timestamp = slipway_core::clock::rfc3339(now);
        if let Some(by) = by {
            run.metadata.annotations.insert(SUBMITTED_BY.into(), by);
        }
        let run = Submitted {
            status: RunStatus { run_id: tracked_id(&run.metadata.uid), ..RunStatus::default() },
            manifest: run,
        };
        self.runs.insert(run.clone(), now)?;
        self.changed.notify_one();
        Ok(run)
    }

    /// Checks what this machine cannot do. Blocks.
    fn check(&self, run: &Manifest) -> Result<(), ExecError> {
        let spec = &run.spec;
        let wrong = |text: String| Err(ExecError::Manifest(text));
        if spec.command.is_empty() {
            return wrong("spec.command is missing: a single machine does not know the image's own".into());
        }
        if !spec.env_from.is_empty() || !spec.resource_claims.is_empty() {
            return wrong(
                "spec.envFrom and spec.resourceClaims are for clusters; use spec.env and spec.resources".into(),
            );
        }
        for mount in &spec.volume_mounts {
            // The program sees this machine's files as they are.
            if !Path::new(&mount.mount_path).exists() {
                return wrong(format!("spec.volumeMounts: there is no {} on this machine", mount.mount_path));
            }
        }
        if let Some(folder) = spec.working_dir.as_deref().filter(|f| !Path::new(f).is_dir()) {
            return wrong(format!("spec.workingDir: there is no folder {folder} on this machine"));
        }
        self.variables(run)?;
        self.room().could(&Demand::of(spec))
    }
}

impl Executor for LocalProcesses {
    fn submit<'a>(&'a self, run: Manifest, by: Option<&'a str>) -> Answer<'a, Submitted> {
        let (inner, by) = (Arc::clone(&self.inner), by.map(str::to_owned));
        Box::pin(async move {
            run.check()?;
            blocking(move || inner.take_in(run, by)).await
        })
    }

    fn list<'a>(&'a self, namespace: Option<&'a str>) -> Answer<'a, Vec<Submitted>> {
        Box::pin(async move {
            let elsewhere = namespace.is_some_and(|n| n != NAMESPACE);
            Ok(if elsewhere { Vec::new() } else { self.inner.runs.list() })
        })
    }

    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> Answer<'a, Submitted> {
        Box::pin(async move { self.find(namespace, name) })
    }

    fn cancel<'a>(&'a self, namespace: &'a str, name: &'a str) -> Answer<'a, Submitted> {
        Box::pin(self.end(namespace, name, false))
    }

    fn remove<'a>(&'a self, namespace: &'a str, name: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let run = self.end(namespace, name, true).await?;
            // It is gone when its program is, which may take its grace period.
            let grace = run.manifest.spec.termination_grace_period_seconds.unwrap_or(30);
            let limit = Duration::from_secs(u64::from(grace)) + REMOVAL_SLACK;
            tokio::time::timeout(limit, self.inner.runs.wait_until_deleted(name))
                .await
                .map_err(|_| ExecError::NotNow(format!("run '{name}' does not end; it is removed as soon as it has")))
        })
    }

    fn logs<'a>(&'a self, namespace: &'a str, name: &'a str, query: LogQuery) -> Answer<'a, LogStream> {
        Box::pin(async move {
            self.find(namespace, name)?;
            let started = self.inner.runs.with(name, |e| e.started).unwrap_or(0);
            let number = query.attempt.unwrap_or(started.max(1));
            let attempt = self.inner.runs.folder(name).join(number.to_string());
            if number > started && !query.follow {
                return Err(ExecError::NotNow(format!("attempt {number} of run '{name}' has not started")));
            }
            Ok(log::tail(self.clone(), name.to_owned(), attempt, query).boxed())
        })
    }
}

#[cfg(test)]
mod tests;
