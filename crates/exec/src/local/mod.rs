//! Runs as processes of this machine. Each has a folder with all that is known of it, so nothing is lost with the server: its program
//! goes on under its supervisor, and the next server finds it by its files.
//!
//! ```text
//! NAME/run.json                 the manifest and the status
//! NAME/1/task.json log end.json the first try
//! ```

mod log;
mod reconcile;
mod room;
mod supervisor;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use slipway_core::clock::now_ms;
use slipway_core::{files, ids};
use tokio::sync::Notify;

use crate::manifest::{MAX_BYTES, SUBMITTED_BY};
use crate::{
    Answer, ExecError, Executor, GpuUse, LogQuery, LogStream, Manifest, Phase, RunStatus, Submitted, Tracker,
    tracked_id,
};

pub use room::Room;
pub use supervisor::supervise;

use room::Demand;

/// The namespace of everything here.
pub const NAMESPACE: &str = "default";
/// Runs that are kept at once, finished ones included.
const MOST_RUNS: usize = 100_000;
/// Between two looks at what runs.
const LOOK: Duration = Duration::from_millis(200);

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
#[allow(missing_debug_implementations)] // traits without a face
pub struct Settings {
    /// The folder of all runs.
    pub folder: PathBuf,
    /// Where secrets are: `NAME/KEY`.
    pub secrets: PathBuf,
    /// This program, which supervises.
    pub program: PathBuf,
    /// Variables of every run.
    pub variables: Vec<(String, String)>,
    /// Names of this process's own variables that no run gets, since they open what belongs to the server.
    pub withheld: Vec<String>,
    /// What this machine has.
    pub room: Room,
    /// Its GPUs.
    pub accelerators: Arc<dyn Accelerators>,
    /// Where runs are tracked.
    pub tracker: Arc<dyn Tracker>,
}

/// Runs as processes of this machine; cheap to clone.
#[derive(Clone)]
pub struct LocalProcesses {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for LocalProcesses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalProcesses").field("folder", &self.inner.settings.folder).finish_non_exhaustive()
    }
}

struct Inner {
    settings: Settings,
    runs: Mutex<BTreeMap<String, Entry>>,
    changed: Notify,
    /// When the GPUs were read last.
    sampled: Mutex<Instant>,
}

/// A run, and what is known of its newest try.
struct Entry {
    run: Submitted,
    /// Its place in the order of arrival.
    arrived: i64,
    /// The newest try that was started.
    started: u32,
    /// Whether it was begun in tracking.
    tracked: bool,
    /// What it was seen to be waiting for.
    waits: String,
    /// What the newest try's GPUs have done.
    gpus: Vec<GpuUse>,
    /// It is to be forgotten as soon as it has ended.
    removed: bool,
}

impl LocalProcesses {
    /// Opens the folder, finds what runs, and goes on from there.
    ///
    /// # Errors
    /// [`ExecError::Io`] when the folder cannot be used. A run that cannot be read is reported and left alone.
    pub fn open(settings: Settings) -> Result<Self, ExecError> {
        std::fs::create_dir_all(&settings.folder).map_err(ExecError::io("making the folder of runs"))?;
        let mut runs = BTreeMap::new();
        let entries = std::fs::read_dir(&settings.folder).map_err(ExecError::io("reading the folder of runs"))?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let text = std::fs::read(entry.path().join("run.json")).unwrap_or_default();
            match serde_json::from_slice::<Submitted>(&text) {
                Ok(run) => drop(runs.insert(name, Entry::new(run, &entry.path()))),
                Err(error) => tracing::warn!(run = name, %error, "a run that cannot be read is left alone"),
            }
        }
        let this = Self {
            inner: Arc::new(Inner {
                settings,
                runs: Mutex::new(runs),
                changed: Notify::new(),
                sampled: Mutex::new(Instant::now()),
            }),
        };
        tokio::spawn(reconcile::follow(Arc::downgrade(&this.inner)));
        Ok(this)
    }

    fn find(&self, namespace: &str, name: &str) -> Result<Submitted, ExecError> {
        let found = self.inner.runs.lock().get(name).filter(|_| namespace == NAMESPACE).map(Entry::shown);
        found.ok_or_else(|| missing(namespace, name))
    }

    async fn take_in(&self, run: Manifest, by: Option<&str>) -> Result<Submitted, ExecError> {
        run.check()?;
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
            run.metadata.annotations.insert(SUBMITTED_BY.into(), by.to_owned());
        }
        let run = Submitted {
            status: RunStatus { run_id: tracked_id(&run.metadata.uid), ..RunStatus::default() },
            manifest: run,
        };
        let name = run.manifest.metadata.name.clone();
        let folder = self.inner.folder(&name);
        let entry = Entry { arrived: now, ..Entry::new(run.clone(), &folder) };
        {
            let mut runs = self.inner.runs.lock();
            if runs.contains_key(&name) || folder.exists() {
                return Err(ExecError::Exists(format!(
                    "there is a run '{name}' already; metadata.generateName makes names up"
                )));
            }
            if runs.len() >= MOST_RUNS {
                return Err(ExecError::NotNow(format!(
                    "there are {MOST_RUNS} runs, and no more are kept; remove old ones"
                )));
            }
            keep(&folder, &run)?;
            runs.insert(name, entry);
        }
        self.inner.changed.notify_one();
        Ok(run)
    }

    /// Checks what this machine cannot do.
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
        self.inner.variables(run)?;
        self.inner.room().could(&Demand::of(spec))
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Entry)) -> Result<Submitted, ExecError> {
        let run = {
            let mut runs = self.inner.runs.lock();
            let entry = runs.get_mut(name).ok_or_else(|| missing(NAMESPACE, name))?;
            change(entry);
            keep(&self.inner.folder(name), &entry.run)?;
            entry.shown()
        };
        self.inner.changed.notify_one();
        Ok(run)
    }
}

fn missing(namespace: &str, name: &str) -> ExecError {
    ExecError::NotFound(format!("there is no run '{name}' in namespace '{namespace}'"))
}

/// A unique id as Kubernetes writes it.
fn dashed(hex: &str) -> String {
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn keep(folder: &Path, run: &Submitted) -> Result<(), ExecError> {
    let text = serde_json::to_vec_pretty(run).map_err(|e| ExecError::Manifest(format!("the manifest: {e}")))?;
    if text.len() > 2 * MAX_BYTES {
        return Err(ExecError::Manifest("the manifest is too large".into()));
    }
    files::replace(&folder.join("run.json"), &text).map_err(ExecError::io("keeping the run"))
}

impl Entry {
    fn new(run: Submitted, folder: &Path) -> Self {
        let tries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let started = tries.filter_map(|e| e.file_name().to_str()?.parse().ok()).max().unwrap_or(0);
        let arrived = slipway_core::clock::parse_rfc3339(&run.manifest.metadata.creation_timestamp).unwrap_or(0);
        let gpus = run.status.current().map(|a| a.gpus.clone()).unwrap_or_default();
        Self { run, arrived, started, tracked: false, waits: String::new(), gpus, removed: false }
    }

    /// Whether its newest try was started, and its end is not written down.
    fn goes_on(&self) -> bool {
        let status = &self.run.status;
        let noted = status.current().is_some_and(|a| a.number == self.started && a.finished_at.is_some());
        self.started > 0 && !status.phase.is_final() && !noted
    }

    /// As it is shown: with what it waits for, which is nothing that needs to be kept.
    fn shown(&self) -> Submitted {
        let mut run = self.run.clone();
        if run.status.phase == Phase::Pending && !self.waits.is_empty() {
            run.status.reason = "Queued".into();
            run.status.message.clone_from(&self.waits);
        }
        run
    }
}

impl Inner {
    fn folder(&self, name: &str) -> PathBuf {
        self.settings.folder.join(name)
    }

    fn room(&self) -> Room {
        Room { devices: self.settings.accelerators.devices(), ..self.settings.room.clone() }
    }

    /// A run's variables.
    fn variables(&self, run: &Manifest) -> Result<Vec<(String, String)>, ExecError> {
        let mut variables = self.settings.variables.clone();
        variables.push(("MLFLOW_RUN_ID".into(), tracked_id(&run.metadata.uid)));
        variables.push(("SLIPWAY_RUN".into(), run.metadata.name.clone()));
        for variable in &run.spec.env {
            let value = match &variable.value_from {
                None => variable.value.clone().unwrap_or_default(),
                Some(source) => self.secret(&variable.name, source)?,
            };
            variables.push((variable.name.clone(), value));
        }
        Ok(variables)
    }

    /// The value of a secret: the file `NAME/KEY` of the folder of secrets.
    fn secret(&self, variable: &str, source: &serde_json::Value) -> Result<String, ExecError> {
        let key = &source["secretKeyRef"];
        let plain = |v: &serde_json::Value| {
            v.as_str().filter(|t| !t.is_empty() && !t.starts_with('.') && !t.contains('/')).map(str::to_owned)
        };
        let (Some(name), Some(key)) = (plain(&key["name"]), plain(&key["key"])) else {
            return Err(ExecError::Manifest(format!(
                "spec.env: {variable} has a valueFrom that only a cluster knows; a single machine knows secretKeyRef"
            )));
        };
        let path = self.settings.secrets.join(&name).join(&key);
        let text = std::fs::read_to_string(&path).map_err(|e| {
            ExecError::Manifest(format!("spec.env: {variable} is in no secret: {}: {e}", path.display()))
        })?;
        Ok(text.trim_end_matches('\n').to_owned())
    }
}

impl Executor for LocalProcesses {
    fn submit<'a>(&'a self, run: Manifest, by: Option<&'a str>) -> Answer<'a, Submitted> {
        Box::pin(self.take_in(run, by))
    }

    fn list<'a>(&'a self, namespace: Option<&'a str>) -> Answer<'a, Vec<Submitted>> {
        Box::pin(async move {
            if namespace.is_some_and(|n| n != NAMESPACE) {
                return Ok(Vec::new());
            }
            let runs = self.inner.runs.lock();
            let mut all: Vec<(i64, Submitted)> = runs.values().map(|e| (e.arrived, e.shown())).collect();
            all.sort_by_key(|(arrived, _)| *arrived);
            Ok(all.into_iter().map(|(_, run)| run).collect())
        })
    }

    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> Answer<'a, Submitted> {
        Box::pin(async move { self.find(namespace, name) })
    }

    fn cancel<'a>(&'a self, namespace: &'a str, name: &'a str) -> Answer<'a, Submitted> {
        Box::pin(async move {
            self.find(namespace, name)?;
            self.change(name, |entry| entry.run.manifest.spec.cancel = true)
        })
    }

    fn remove<'a>(&'a self, namespace: &'a str, name: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let run = self.find(namespace, name)?;
            self.change(name, |entry| {
                entry.run.manifest.spec.cancel = true;
                entry.removed = true;
            })?;
            // It is gone when its program is, which may take its grace period.
            let grace = run.manifest.spec.termination_grace_period_seconds.unwrap_or(30);
            let deadline = Instant::now() + Duration::from_secs(u64::from(grace) + 30);
            while self.find(namespace, name).is_ok() {
                if Instant::now() > deadline {
                    return Err(ExecError::NotNow(format!(
                        "run '{name}' does not end; it is removed as soon as it has"
                    )));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        })
    }

    fn logs<'a>(&'a self, namespace: &'a str, name: &'a str, query: LogQuery) -> Answer<'a, LogStream> {
        Box::pin(async move {
            self.find(namespace, name)?;
            let started = self.inner.runs.lock().get(name).map_or(0, |e| e.started);
            let number = query.attempt.unwrap_or(started.max(1));
            let attempt = self.inner.folder(name).join(number.to_string());
            if number > started && !query.follow {
                return Err(ExecError::NotNow(format!("try {number} of run '{name}' has not started")));
            }
            Ok(log::tail(self.clone(), name.to_owned(), attempt, query).boxed())
        })
    }
}
