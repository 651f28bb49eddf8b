//! Executes the steps of pipelines as processes of this machine, without a cluster and without a container engine where that is possible.
//!
//! | module | contents |
//! |---|---|
//! | [`command`] | what a container's command asks for: packages, and a program |
//! | [`images`] | images that need no container here, and container engines |
//! | [`interpreter`], [`environments`] | Pythons, and environments with the packages of steps |
//! | [`workers`], `worker.py` | processes that execute Python steps in milliseconds |
//! | [`attempt`] | the files of an attempt |
//! | [`step`] | how an attempt is started |
//! | [`resources`] | processors, memory and accelerators that steps occupy |
//! | [`variables`] | environment variables of steps |
//! | [`volumes`] | claims, secrets, config maps and empty folders |
//!
//! An attempt is started once: whoever creates the file `started` in its folder may start the program. Its processes outlive the server;
//! the next server reads the files of the attempt and waits for its end.

mod attempt;
pub(crate) mod command;
mod environments;
mod images;
mod interpreter;
mod programs;
mod resources;
mod step;
mod variables;
mod volumes;
mod workers;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use slipway_exec::lifecycle::{self, Observation};
use slipway_exec::local::{log, supervisor};
use slipway_exec::{LocalProcesses, LogQuery, LogStream, Mint};
use slipway_store::Limits;
use tokio::sync::Notify;

use crate::error::Error;
use crate::executor_input::read_outputs;
use crate::launch::buckets::{self, Buckets};
use crate::launch::{ArtifactStream, AttemptId, Launcher, content, end_of};
use crate::model::{Artifact, Failure, Launch, Outcome, Outputs};
use crate::placeholder::{Paths, Place};

use attempt::Attempt;
use environments::Environments;
pub use images::ImageMapping;
use resources::Room;

/// How often the start of an attempt is repeated if its worker ended before it started the program.
const MAX_STARTS: usize = 3;
/// Interval at which an attempt is stopped again until it has ended.
const STOP_INTERVAL: Duration = Duration::from_millis(20);
/// Added to the grace period to get the timeout of stopping an attempt.
const STOP_SLACK: Duration = Duration::from_secs(5);
/// The file with the outputs of an attempt after their delivery to a bucket.
const DELIVERED: &str = "delivered.json";
/// How the server gets credentials for buckets.
const REMEDY: &str = "start the server with them";
/// Maximum bytes of a program's output in the message of a failure.
const MAX_MESSAGE_BYTES: usize = 2000;

/// Settings of [`LocalLauncher`].
#[derive(Clone)]
#[allow(missing_debug_implementations)] // closures do not implement `Debug`
pub struct Settings {
    /// Folder of the attempts.
    pub folder: PathBuf,
    /// Folder of output artifacts.
    pub artifacts: PathBuf,
    /// Folder of Python environments.
    pub environments: PathBuf,
    /// Folder of volumes: `NAMESPACE/CLAIM`.
    pub volumes: PathBuf,
    /// Folder of secrets: the file `NAME/KEY` holds the value of a key.
    pub secrets: PathBuf,
    /// Folder of config maps: the file `NAME/KEY` holds the value of a key.
    pub config_maps: PathBuf,
    /// The supervisor of steps, started as `PROGRAM supervise FOLDER`, and the guard of installers; normally this binary.
    pub program: PathBuf,
    /// Environment variables of every step.
    pub variables: Vec<(String, String)>,
    /// The executor of runs on this machine, with which steps share its accelerators; without it, steps get none.
    pub runs: Option<LocalProcesses>,
    /// Creates the token with which a step's program logs to its tracked run; unset if the server requires no tokens.
    pub mint: Option<Mint>,
    /// Names of additional variables that steps inherit from this process.
    pub inherited: Vec<String>,
    /// Images that are mapped to environments of this machine, before the built-in list; the first match counts (setting `pipeline-images`).
    pub images: Vec<ImageMapping>,
    /// Maximum number of steps at the same time.
    pub concurrency: usize,
    /// Number of environments above which unused ones are removed.
    pub max_environments: usize,
    /// Time after which an idle worker exits.
    pub worker_idle: Duration,
    /// Time between SIGTERM and SIGKILL when a step is stopped.
    pub grace: Duration,
    /// Maximum bytes of a step's log; later output is discarded.
    pub log_limit: u64,
    /// Maximum bytes of an artifact whose digest is computed.
    pub digest_limit: u64,
    /// Limits on artifacts that are copied from and to buckets.
    pub limits: Limits,
}

impl Settings {
    /// Settings with all folders below one but those of secrets and, beside it, config maps; and defaults for the rest.
    pub fn new(folder: &Path, secrets: PathBuf, program: PathBuf) -> Self {
        Self {
            folder: folder.join("runs"),
            artifacts: folder.join("artifacts"),
            environments: folder.join("environments"),
            volumes: folder.join("volumes"),
            config_maps: secrets.with_file_name("config-maps"),
            secrets,
            program,
            variables: Vec::new(),
            runs: None,
            mint: None,
            inherited: Vec::new(),
            images: Vec::new(),
            concurrency: std::thread::available_parallelism().map_or(1, usize::from),
            max_environments: 20,
            worker_idle: Duration::from_secs(300),
            grace: Duration::from_secs(10),
            log_limit: 64 << 20,
            digest_limit: 4 << 30,
            limits: Limits::default(),
        }
    }
}

/// Executes attempts as processes of this machine; cheap to clone.
#[derive(Clone)]
pub struct LocalLauncher {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for LocalLauncher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalLauncher").field("folder", &self.inner.settings.folder).finish_non_exhaustive()
    }
}

struct Inner {
    settings: Settings,
    environments: Environments,
    engine: images::Engine,
    buckets: Buckets,
    /// Variables that every step inherits from this process.
    inherited: Vec<(OsString, OsString)>,
    room: Room,
    /// Attempts that a future of this process waits for, by folder; notified when they are stopped.
    active: Mutex<HashMap<PathBuf, Weak<Notify>>>,
}

fn permanent(message: impl Into<String>) -> Failure {
    Failure { message: message.into(), exit_code: None, is_permanent: true }
}

impl LocalLauncher {
    /// Creates the launcher. Attempts of an earlier process are found when they are executed again.
    pub fn new(settings: Settings) -> Self {
        let inherited = variables::inherited(&settings.inherited);
        let installers = variables::of_installers(&inherited);
        let (folder, binary) = (settings.environments.clone(), settings.program.clone());
        let environments = Environments::new(folder, settings.max_environments, binary, installers);
        let buckets = Buckets::new(settings.folder.join("copies"), settings.limits, REMEDY);
        let room = Room::new(settings.concurrency, settings.runs.clone());
        let inner = Inner {
            settings,
            environments,
            engine: images::Engine::default(),
            buckets,
            inherited,
            room,
            active: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }
}

impl Inner {
    fn enter(&self, attempt: &Attempt) -> Arc<Notify> {
        let mut active = self.active.lock();
        active.retain(|_, notify| notify.strong_count() > 0);
        if let Some(notify) = active.get(&attempt.folder).and_then(Weak::upgrade) {
            return notify;
        }
        let notify = Arc::new(Notify::new());
        active.insert(attempt.folder.clone(), Arc::downgrade(&notify));
        notify
    }

    fn active(&self, attempt: &Attempt) -> Option<Arc<Notify>> {
        self.active.lock().get(&attempt.folder).and_then(Weak::upgrade)
    }

    async fn execute(&self, launch: &Launch) -> Outcome {
        let attempt = Attempt::new(&self.settings.folder, &launch.into());
        let active = self.enter(&attempt);
        let mut stopped = std::pin::pin!(active.notified());
        // Registered before the check, so that no stop between them is missed.
        stopped.as_mut().enable();
        if attempt.path("stop").exists() && !supervisor::has_started(&attempt.folder) {
            return Outcome::Canceled;
        }
        let mut run = std::pin::pin!(self.run(launch, &attempt));
        let outcome = tokio::select! {
            outcome = &mut run => outcome,
            () = stopped => {
                if supervisor::has_started(&attempt.folder) { run.await } else { Ok(Outcome::Canceled) }
            }
        };
        outcome.unwrap_or_else(|failure| {
            // The log of a step that could not be started shows why.
            let log = std::fs::File::options().create(true).append(true).open(attempt.path("log"));
            let _ = log.and_then(|mut log| writeln!(log, "slipway: {}", failure.message));
            Outcome::Failed(failure)
        })
    }

    /// Starts an attempt, unless an earlier process has, and waits for its end. Fails if it could not be started.
    async fn run(&self, launch: &Launch, attempt: &Attempt) -> Result<Outcome, Failure> {
        let paths = attempt.paths(launch, &self.settings.artifacts).map_err(permanent)?;
        // Held until the end; the step holds its environment.
        let (occupied, started);
        if supervisor::has_started(&attempt.folder) {
            (occupied, started) = (self.room.occupy_again(attempt), None);
        } else {
            // Most steps need one slot. Taken now, it keeps the order in which steps are given.
            let slot = self.room.try_slot();
            let mut step = match self.prepare(launch, attempt, &paths).await? {
                step::Prepared::Done(outputs) => return Ok(Outcome::Succeeded(outputs)),
                step::Prepared::Step(step) => step,
            };
            let held = match slot.filter(|_| resources::is_plain(&step.demand)) {
                Some(slot) => slot,
                None => self.room.occupy(&step.demand, attempt).await.map_err(permanent)?,
            };
            step.variables.extend(self.room.variables(&held).await);
            for _ in 0..MAX_STARTS {
                self.start(&step, attempt).await?;
                if supervisor::has_started(&attempt.folder) {
                    break;
                }
            }
            if !supervisor::has_started(&attempt.folder) {
                return Err(Failure {
                    message: "the worker ended before it started the step".into(),
                    ..Failure::default()
                });
            }
            (occupied, started) = (held, Some(step));
        }
        let observed = supervisor::wait(&attempt.folder).await;
        drop((occupied, started));
        let observed = observed.map_err(|error| Failure { message: error.to_string(), ..Failure::default() })?;
        if !matches!(&observed, Observation::Finished { outcome: lifecycle::Outcome::Exited(_), .. }) {
            self.engine.remove(&attempt.path(attempt::CONTAINER)).await;
        }
        let (launch, files, limit) = (launch.clone(), attempt.clone(), self.settings.digest_limit);
        let places = paths.output_artifacts.clone();
        let outcome = tokio::task::spawn_blocking(move || outcome(&launch, &files, &paths, observed, limit));
        let outcome = outcome.await.map_err(|error| Failure { message: error.to_string(), ..Failure::default() })?;
        match outcome {
            Outcome::Succeeded(outputs) => self.deliver(attempt, outputs, &places).await.map(Outcome::Succeeded),
            other => Ok(other),
        }
    }

    /// Copies the outputs whose place is in a bucket to it. Returns the outputs as other tasks see them.
    async fn deliver(
        &self,
        attempt: &Attempt,
        mut outputs: Outputs,
        places: &BTreeMap<String, Place>,
    ) -> Result<Outputs, Failure> {
        if places.values().all(|place| place.path == place.uri) {
            return Ok(outputs);
        }
        // A server that is killed after the delivery finds the outputs here, and their files not any more.
        let record = attempt.path(DELIVERED);
        if let Some(delivered) = std::fs::read(&record).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
            return Ok(delivered);
        }
        for (name, place) in places {
            let own = |artifact: &&mut Artifact| artifact.uri == place.path;
            for artifact in outputs.artifacts.get_mut(name).into_iter().flatten().filter(own) {
                let delivered = self.buckets.deliver(Path::new(&place.path), &place.uri).await;
                delivered.map_err(|reason| Failure {
                    message: format!("delivering the output artifact '{name}' to {}: {reason}", place.uri),
                    ..Failure::default()
                })?;
                artifact.uri.clone_from(&place.uri);
            }
        }
        let failed = |error: std::io::Error| Failure {
            message: format!("recording the delivery of outputs: {error}"),
            ..Failure::default()
        };
        let text = serde_json::to_vec(&outputs).map_err(|error| failed(error.into()))?;
        attempt.write(DELIVERED, &text).map_err(failed)?;
        let _ = std::fs::remove_dir_all(attempt.path("delivered")); // it only needs space, until the run is deleted
        Ok(outputs)
    }

    async fn stop(&self, id: &AttemptId) {
        let attempt = Attempt::new(&self.settings.folder, id);
        if attempt.path("end.json").exists() || (!attempt.folder.exists() && self.active(&attempt).is_none()) {
            return;
        }
        // From now on no program of the attempt is started.
        if let Err(error) = slipway_core::files::replace(&attempt.path("stop"), b"") {
            tracing::error!(%error, attempt = %attempt.folder.display(), "cannot record that an attempt is to be stopped");
        }
        if let Some(active) = self.active(&attempt) {
            active.notify_waiters();
        }
        let ended = async {
            while supervisor::has_started(&attempt.folder) && !attempt.path("end.json").exists() {
                let folder = attempt.folder.clone();
                let observed = tokio::task::spawn_blocking(move || {
                    supervisor::stop(&folder);
                    supervisor::observe(&folder)
                });
                if matches!(observed.await, Ok(Observation::Finished { .. })) {
                    break;
                }
                tokio::time::sleep(STOP_INTERVAL).await;
            }
        };
        if tokio::time::timeout(self.settings.grace + STOP_SLACK, ended).await.is_err() {
            tracing::error!(attempt = %attempt.folder.display(), "an attempt did not end when it was stopped");
        }
    }
}

/// What the end of a program means for its task. Blocks.
fn outcome(launch: &Launch, attempt: &Attempt, paths: &Paths, observed: Observation, digest_limit: u64) -> Outcome {
    let Observation::Finished { outcome, .. } = observed else {
        return Outcome::Failed(Failure { message: "the attempt has not ended".into(), ..Failure::default() });
    };
    let failed = |message: String, exit_code: Option<i32>| {
        let log = last_output(&attempt.path("log"));
        let message = if log.is_empty() { message } else { format!("{message}:\n{log}") };
        Outcome::Failed(Failure { message, exit_code, is_permanent: false })
    };
    match outcome {
        lifecycle::Outcome::Exited(0) => match read_outputs(launch, &paths.with_paths_as_uris()) {
            Ok(outputs) => Outcome::Succeeded(sealed(outputs, digest_limit)),
            Err(failure) => Outcome::Failed(Failure { exit_code: Some(0), ..failure }),
        },
        lifecycle::Outcome::Exited(code) => failed(format!("the program exited with code {code}"), Some(code)),
        lifecycle::Outcome::Signalled(signal) => {
            let reason = if signal == 9 { ", which the system also sends when memory is exhausted" } else { "" };
            failed(format!("signal {signal} ended the program{reason}"), Some(128 + signal))
        }
        lifecycle::Outcome::OutOfMemory => failed("the program exceeded its memory limit".into(), None),
        lifecycle::Outcome::TimedOut => failed("the program exceeded its time limit".into(), None),
        lifecycle::Outcome::Stopped => Outcome::Canceled,
        lifecycle::Outcome::Disrupted(_, reason) => failed(format!("the process of the step vanished: {reason}"), None),
        lifecycle::Outcome::CannotStart(_, reason) => failed(reason, None),
    }
}

/// The outputs with the digests of their artifacts on this machine.
fn sealed(mut outputs: Outputs, limit: u64) -> Outputs {
    for artifact in outputs.artifacts.values_mut().flatten() {
        if let Some(path) = attempt::local_path(&artifact.uri) {
            artifact.digest = content::seal(Path::new(path), limit);
        }
    }
    outputs
}

/// The end of a log, for messages.
fn last_output(log: &Path) -> String {
    use std::os::unix::fs::FileExt;
    let read = || {
        let file = std::fs::File::open(log)?;
        let size = file.metadata()?.len();
        let mut buffer = vec![0; 2 * MAX_MESSAGE_BYTES];
        let start = size.saturating_sub(buffer.len() as u64);
        let read = file.read_at(&mut buffer, start)?;
        buffer.truncate(read);
        Ok::<_, std::io::Error>(buffer)
    };
    let bytes = read().unwrap_or_default(); // a message without the output is better than none
    end_of(String::from_utf8_lossy(&bytes).trim_end(), MAX_MESSAGE_BYTES).to_owned()
}

impl Launcher for LocalLauncher {
    fn prepare(&self, launch: &Launch) {
        // What fails here fails again when the attempt is executed, and is reported then.
        let _ = Attempt::new(&self.inner.settings.folder, &launch.into()).create_folders();
    }

    fn execute(&self, launch: Launch) -> BoxFuture<'static, Outcome> {
        let inner = Arc::clone(&self.inner);
        async move { inner.execute(&launch).await }.boxed()
    }

    fn stop(&self, attempt: AttemptId) -> BoxFuture<'static, ()> {
        let inner = Arc::clone(&self.inner);
        async move { inner.stop(&attempt).await }.boxed()
    }

    fn log(&self, attempt: AttemptId, follow: bool) -> BoxFuture<'static, Result<LogStream, Error>> {
        let inner = Arc::clone(&self.inner);
        async move {
            let files = Attempt::new(&inner.settings.folder, &attempt);
            if !files.folder.exists() && inner.active(&files).is_none() {
                return Err(Error::NotFound(format!("task '{}' has no attempt {}", attempt.path, attempt.attempt)));
            }
            let folder = files.folder.clone();
            let is_finished = move || inner.active(&files).is_none();
            Ok(log::tail(folder, LogQuery { follow, ..LogQuery::default() }, is_finished).boxed())
        }
        .boxed()
    }

    fn reaches(&self, root: &str) -> bool {
        !buckets::is_bucket(root) || buckets::has_credentials(root)
    }

    fn has(&self, outputs: Outputs) -> BoxFuture<'static, bool> {
        let inner = Arc::clone(&self.inner);
        async move {
            let (remote, local): (Vec<Artifact>, Vec<Artifact>) =
                outputs.artifacts.into_values().flatten().partition(|artifact| buckets::is_bucket(&artifact.uri));
            for artifact in remote.iter().filter(|artifact| artifact.digest.is_some()) {
                if !inner.buckets.has(&artifact.uri).await {
                    return false;
                }
            }
            let all = move || local.iter().all(|artifact| content::is_there(&inner.settings.artifacts, artifact));
            tokio::task::spawn_blocking(all).await.unwrap_or(false)
        }
        .boxed()
    }

    fn read(&self, _namespace: String, artifact: Artifact) -> BoxFuture<'static, Result<ArtifactStream, Error>> {
        let inner = Arc::clone(&self.inner);
        async move {
            if buckets::is_bucket(&artifact.uri) {
                return inner.buckets.read(&artifact.uri).await;
            }
            let opened = tokio::task::spawn_blocking(move || content::open(&inner.settings.artifacts, &artifact));
            let file = opened.await.unwrap_or_else(|error| {
                let source = std::io::Error::other(error);
                Err(Error::Io { what: "opening the artifact".into(), source })
            })?;
            Ok(content::pieces(tokio::fs::File::from_std(file)).boxed())
        }
        .boxed()
    }

    fn forget(&self, _namespace: String, run_id: String) -> BoxFuture<'static, Result<(), Error>> {
        let folder = attempt::run_folder(&self.inner.settings.folder, &run_id);
        async move {
            let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            });
            let removed = removed.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            removed.map_err(|source| Error::Io { what: "deleting the files of the run".into(), source })
        }
        .boxed()
    }
}
