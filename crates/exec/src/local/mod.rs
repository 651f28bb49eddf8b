//! The executor for this machine: it executes runs as processes. The whole state of a run is in its folder, so a server may stop at any
//! time: the program continues under its supervisor, and the next server resumes the run from its files.
//!
//! ```text
//! NAME/run.json                 the manifest and the status; NAMESPACE.NAME in other namespaces than the default one
//! NAME/1/task.json log end.json the first attempt
//! ```

mod data;
pub mod descriptors;
pub mod environment;
pub mod guard;
mod leases;
pub mod log;
mod reconcile;
mod references;
mod room;
mod runs;
pub mod supervisor;
mod times;

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
    DataSource, ExecError, ExecFuture, Executor, LogQuery, LogStream, Manifest, Mint, RunSpec, RunStatus, Submitted,
    Tracker, tracked_id,
};

pub use leases::Lease;
pub use references::{ReferenceKind, ReferencedValues, References};
pub use room::{Capacity, Demand};
pub use supervisor::supervise;

use runs::{Runs, WriteFile, key, not_found};

/// The namespace of runs that name none.
pub const NAMESPACE: &str = "default";
/// Interval of the reconciler and of log readers while runs are active.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Added to the grace period of a run to get the timeout of its removal.
const REMOVAL_SLACK: Duration = Duration::from_secs(30);

/// A GPU or MIG slice that a run can hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// UUID: `GPU-...` or `MIG-...`.
    pub uuid: String,
    /// Name of the resource: `nvidia.com/gpu`, `nvidia.com/mig-1g.10gb`.
    pub resource: String,
}

/// Usage of a device since the previous reading.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reading {
    /// Energy in joules.
    pub joules: f64,
    /// Seconds in which the device computed.
    pub busy_seconds: f64,
    /// Seconds in which the device was idle.
    pub idle_seconds: f64,
}

/// The GPUs of this machine, as the executor sees them. The server implements this trait.
pub trait Accelerators: Send + Sync {
    /// All GPUs and MIG slices that runs can hold.
    fn devices(&self) -> Vec<Device>;
    /// Usage of each device since the previous call, which was `seconds` ago; `None` for a device that cannot be read.
    fn read(&self, devices: &[Device], seconds: f64) -> Vec<Option<Reading>>;
}

/// Configuration of the executor.
#[allow(missing_debug_implementations)] // trait objects and closures do not implement `Debug`
pub struct Settings {
    /// The folder of all runs.
    pub folder: PathBuf,
    /// The folder of secrets: the file `NAME/KEY` holds the value of a key. Used for those that are not in `references`.
    pub secrets: PathBuf,
    /// The secrets and config maps of the Kubernetes API; unset without it.
    pub references: Option<Arc<dyn References>>,
    /// Path of the supervisor, started as `PROGRAM supervise FOLDER`; normally this binary.
    pub program: PathBuf,
    /// Environment variables set for every run.
    pub variables: Vec<(String, String)>,
    /// Names of additional variables that runs inherit from this process (setting `run-environment`).
    pub environment: Vec<String>,
    /// Creates the token of an attempt; unset if the server requires no tokens.
    pub mint: Option<Mint>,
    /// Processors and memory of this machine; its `devices` are ignored in favour of `accelerators`.
    pub capacity: Capacity,
    /// GPUs of this machine.
    pub accelerators: Arc<dyn Accelerators>,
    /// The tracking store.
    pub tracker: Arc<dyn Tracker>,
    /// The data of runs; runs with `spec.data` are rejected if it is unset.
    pub data: Option<Arc<dyn DataSource>>,
}

/// The executor for this machine; cheap to clone. When the last clone is dropped, no attempt is started and no status is written any more,
/// but running programs continue.
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
    leases: leases::Leases,
    /// Wakes the reconciler.
    changed: Notify,
    /// When GPU usage was last read.
    sampled: Mutex<Instant>,
}

/// Runs blocking work, such as disk access, on a thread that may block. The work completes even if the caller is dropped.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExecError> + Send + 'static,
) -> Result<T, ExecError> {
    let failed = |e: tokio::task::JoinError| ExecError::Io {
        what: "a background task".into(),
        source: std::io::Error::other(e),
    };
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

impl LocalProcesses {
    /// Opens the folder of runs and resumes them. Blocks while it reads the folder, so call it at the start of a server.
    ///
    /// # Errors
    /// [`ExecError::Io`] when the folder cannot be created or read. A run that cannot be read is logged and skipped.
    pub fn open(settings: Settings) -> Result<Self, ExecError> {
        Self::open_with(settings, Box::new(files::replace))
    }

    fn open_with(settings: Settings, write: WriteFile) -> Result<Self, ExecError> {
        let runs = Runs::open(settings.folder.clone(), write)?;
        if let Some(data) = &settings.data {
            let uid = |name: &String| runs.with_entry(name, |e| e.run.manifest.metadata.uid.clone());
            let holders = runs.unfinished().iter().filter_map(uid).collect();
            data.release_others(&holders).map_err(|reason| ExecError::Io {
                what: "releasing the data of earlier runs".into(),
                source: std::io::Error::other(reason),
            })?;
        }
        let inner = Arc::new(Inner {
            settings,
            runs,
            leases: leases::Leases::default(),
            changed: Notify::new(),
            sampled: Mutex::new(Instant::now()),
        });
        let reconciler = tokio::spawn(reconcile::run(Arc::clone(&inner)));
        Ok(Self { inner, _reconciler: Arc::new(AbortOnDrop(reconciler)) })
    }

    fn find(&self, namespace: &str, name: &str) -> Result<Submitted, ExecError> {
        // The names of requests may have dots, and so look like the key of a run in another namespace.
        let found = self.inner.runs.get(&key(namespace, name));
        found.filter(|run| run.manifest.metadata.namespace == namespace).ok_or_else(|| not_found(namespace, name))
    }

    /// Accepts a run that has its identity already: that of an object of the Kubernetes API. Does nothing if the run was accepted before.
    ///
    /// # Errors
    /// As [`Executor::submit`].
    pub async fn submit_object(&self, run: Manifest) -> Result<Submitted, ExecError> {
        run.check()?;
        let accepted = self.find(&run.metadata.namespace, &run.metadata.name);
        if let Ok(accepted) = accepted
            && accepted.manifest.metadata.uid == run.metadata.uid
        {
            return Ok(accepted);
        }
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.accept(run)).await
    }

    /// Replaces the specification of a run, which its next attempt uses. A cancelled run stays cancelled.
    ///
    /// # Errors
    /// [`ExecError::NotFound`], or the reason why this machine cannot execute the run.
    pub async fn replace_spec(&self, namespace: &str, name: &str, spec: RunSpec) -> Result<Submitted, ExecError> {
        let mut changed = self.find(namespace, name)?.manifest;
        changed.spec = spec;
        changed.check()?;
        let (inner, key) = (Arc::clone(&self.inner), key(namespace, name));
        blocking(move || {
            inner.check(&changed)?;
            let run = inner.runs.update(&key, |run| {
                let cancel = run.manifest.spec.cancel || changed.spec.cancel;
                run.manifest.spec = RunSpec { cancel, ..changed.spec };
            })?;
            inner.changed.notify_one();
            Ok(run)
        })
        .await
    }

    /// Cancels a run, and deletes it as soon as it has ended. Returns before that, and does nothing if there is no such run.
    ///
    /// # Errors
    /// [`ExecError::Io`] when the request cannot be recorded.
    pub async fn request_removal(&self, namespace: &str, name: &str) -> Result<(), ExecError> {
        match self.request_end(namespace, name, true).await {
            Err(ExecError::NotFound(_)) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Waits until runs have changed since the last call, and returns their namespaces and names; first those of all runs. For one caller.
    pub async fn changes(&self) -> Vec<(String, String)> {
        self.inner.runs.changes().await
    }

    /// Cancels a run. With `delete`, the run is also deleted as soon as it has ended.
    async fn request_end(&self, namespace: &str, name: &str, delete: bool) -> Result<Submitted, ExecError> {
        let found = self.find(namespace, name)?;
        let (inner, name) = (Arc::clone(&self.inner), key(namespace, name));
        let is_requested =
            inner.runs.with_entry(&name, |e| e.run.manifest.spec.cancel && (e.delete_when_finished || !delete));
        if is_requested == Some(true) {
            return Ok(found);
        }
        blocking(move || {
            let run = inner.runs.update(&name, |run| run.manifest.spec.cancel = true)?;
            if delete {
                inner.runs.with_entry(&name, |e| e.delete_when_finished = true);
            }
            inner.changed.notify_one();
            Ok(run)
        })
        .await
    }
}

/// The name of this machine.
fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Formats 32 hexadecimal digits as a UUID, as Kubernetes does.
fn format_uuid(hex: &str) -> String {
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

impl Inner {
    /// Total capacity of this machine. Blocks while it enumerates GPUs.
    fn capacity(&self) -> Capacity {
        Capacity { devices: self.settings.accelerators.devices(), ..self.settings.capacity.clone() }
    }

    /// Gives a new run its identity, and accepts it. Blocks.
    fn accept_new(&self, run: Manifest, by: Option<String>) -> Result<Submitted, ExecError> {
        let mut run = run.named();
        if run.metadata.namespace.is_empty() {
            run.metadata.namespace = NAMESPACE.into();
        }
        run.metadata.uid = format_uuid(&ids::hex32());
        run.metadata.generation = Some(1);
        run.metadata.creation_timestamp = slipway_core::clock::rfc3339(now_ms());
        if let Some(by) = by {
            run.metadata.annotations.insert(SUBMITTED_BY.into(), by);
        }
        self.accept(run)
    }

    /// Validates a run for this machine and stores it. The caller has called [`Manifest::check`]. Blocks.
    fn accept(&self, run: Manifest) -> Result<Submitted, ExecError> {
        self.check(&run)?;
        let run = Submitted {
            status: RunStatus { run_id: tracked_id(&run.metadata.uid), ..RunStatus::default() },
            manifest: run,
        };
        data::check(self, &run)?;
        self.runs.insert(run.clone(), now_ms())?;
        self.changed.notify_one();
        Ok(run)
    }

    /// Rejects a run that this machine cannot execute. Blocks.
    fn check(&self, run: &Manifest) -> Result<(), ExecError> {
        let spec = &run.spec;
        let invalid = |text: String| Err(ExecError::Manifest(text));
        if spec.command.is_empty() {
            return invalid("spec.command is missing: a single machine cannot run the image's entrypoint".into());
        }
        if !spec.resource_claims.is_empty() {
            return invalid("spec.resourceClaims needs a cluster; use spec.resources".into());
        }
        if !spec.init_containers.is_empty() {
            return invalid("spec.initContainers needs a cluster".into());
        }
        for mount in &spec.volume_mounts {
            // Nothing is mounted: the program sees the files of this machine.
            if !Path::new(&mount.mount_path).exists() {
                return invalid(format!("spec.volumeMounts: {} does not exist on this machine", mount.mount_path));
            }
        }
        if let Some(folder) = spec.working_dir.as_deref().filter(|f| !Path::new(f).is_dir()) {
            return invalid(format!("spec.workingDir: {folder} is not a folder on this machine"));
        }
        references::check(spec).map_err(ExecError::Manifest)?;
        self.capacity().check_fits(&Demand::new(&spec.resources))
    }
}

impl Executor for LocalProcesses {
    fn submit<'a>(&'a self, run: Manifest, by: Option<&'a str>) -> ExecFuture<'a, Submitted> {
        let (inner, by) = (Arc::clone(&self.inner), by.map(str::to_owned));
        Box::pin(async move {
            run.check()?;
            // In a cluster, what the variables of a run refer to may be created later. Here, a mistake is reported at once.
            let mut named = run.clone();
            if named.metadata.namespace.is_empty() {
                named.metadata.namespace = NAMESPACE.into();
            }
            inner.variables(&named).await??;
            blocking(move || inner.accept_new(run, by)).await
        })
    }

    fn list<'a>(&'a self, namespace: Option<&'a str>) -> ExecFuture<'a, Vec<Submitted>> {
        Box::pin(async move {
            let mut runs = self.inner.runs.list();
            runs.retain(|run| namespace.is_none_or(|n| n == run.manifest.metadata.namespace));
            Ok(runs)
        })
    }

    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> ExecFuture<'a, Submitted> {
        Box::pin(async move { self.find(namespace, name) })
    }

    fn cancel<'a>(&'a self, namespace: &'a str, name: &'a str) -> ExecFuture<'a, Submitted> {
        Box::pin(self.request_end(namespace, name, false))
    }

    fn remove<'a>(&'a self, namespace: &'a str, name: &'a str) -> ExecFuture<'a, ()> {
        Box::pin(async move {
            let run = self.request_end(namespace, name, true).await?;
            // The run is deleted after its program has ended, which may take the grace period.
            let grace = run.manifest.spec.termination_grace_period_seconds.unwrap_or(30);
            let timeout = Duration::from_secs(u64::from(grace)) + REMOVAL_SLACK;
            tokio::time::timeout(timeout, self.inner.runs.wait_until_deleted(&key(namespace, name))).await.map_err(
                |_| ExecError::NotNow(format!("run '{name}' has not ended yet; it will be deleted when it ends")),
            )
        })
    }

    fn logs<'a>(&'a self, namespace: &'a str, name: &'a str, query: LogQuery) -> ExecFuture<'a, LogStream> {
        Box::pin(async move {
            self.find(namespace, name)?;
            let key = key(namespace, name);
            let newest = self.inner.runs.with_entry(&key, |e| e.newest_attempt).unwrap_or(0);
            let number = query.attempt.unwrap_or(newest.max(1));
            let attempt = self.inner.runs.folder(&key).join(number.to_string());
            if number > newest && !query.follow {
                return Err(ExecError::NotNow(format!("attempt {number} of run '{name}' has not started")));
            }
            if (query.timestamps || query.since.is_some()) && log::is_without_times(&attempt) {
                let message =
                    format!("the log of attempt {number} of run '{name}' was written without the times of its lines");
                return Err(ExecError::Failed(message));
            }
            let this = self.clone();
            let is_finished = move || this.inner.runs.get(&key).is_none_or(|run| run.status.phase.is_final());
            Ok(log::tail(attempt, query, is_finished).boxed())
        })
    }
}

#[cfg(test)]
mod tests;
