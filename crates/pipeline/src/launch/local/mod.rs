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
//! | [`variables`] | environment variables of steps |
//! | [`volumes`] | claims, secrets and empty folders |
//!
//! An attempt is started once: whoever creates the file `started` in its folder may start the program. Its processes outlive the server;
//! the next server reads the files of the attempt and waits for its end.

mod attempt;
mod command;
mod environments;
mod images;
mod interpreter;
mod programs;
mod step;
mod variables;
mod volumes;
mod workers;

use std::collections::HashMap;
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
use slipway_exec::{LogQuery, LogStream};
use tokio::sync::{Notify, Semaphore};

use crate::error::Error;
use crate::executor_input::read_outputs;
use crate::launch::{ArtifactStream, AttemptId, Launcher, content, end_of};
use crate::model::{Artifact, Failure, Launch, Outcome, Outputs};
use crate::placeholder::Paths;

use attempt::Attempt;
use environments::Environments;
pub use images::ImageMapping;

/// How often the start of an attempt is repeated if its worker ended before it started the program.
const MAX_STARTS: usize = 3;
/// Interval at which an attempt is stopped again until it has ended.
const STOP_INTERVAL: Duration = Duration::from_millis(20);
/// Added to the grace period to get the timeout of stopping an attempt.
const STOP_SLACK: Duration = Duration::from_secs(5);
/// Maximum bytes of a program's output in the message of a failure.
const MAX_MESSAGE_BYTES: usize = 2000;

/// Settings of [`LocalLauncher`].
#[derive(Debug, Clone)]
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
    /// The supervisor, started as `PROGRAM supervise FOLDER`; normally this binary.
    pub program: PathBuf,
    /// Environment variables of every step.
    pub variables: Vec<(String, String)>,
    /// Names of additional variables that steps inherit from this process.
    pub inherited: Vec<String>,
    /// Images that are mapped to environments of this machine, before the built-in list; the first match counts.
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
}

impl Settings {
    /// Settings with all folders below one, and defaults for the rest.
    pub fn new(folder: &Path, secrets: PathBuf, program: PathBuf) -> Self {
        Self {
            folder: folder.join("runs"),
            artifacts: folder.join("artifacts"),
            environments: folder.join("environments"),
            volumes: folder.join("volumes"),
            secrets,
            program,
            variables: Vec::new(),
            inherited: Vec::new(),
            images: Vec::new(),
            concurrency: std::thread::available_parallelism().map_or(1, usize::from),
            max_environments: 20,
            worker_idle: Duration::from_secs(300),
            grace: Duration::from_secs(10),
            log_limit: 64 << 20,
            digest_limit: 4 << 30,
        }
    }
}

/// Executes attempts as processes of this machine; cheap to clone.
#[derive(Debug, Clone)]
pub struct LocalLauncher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    environments: Environments,
    engine: images::Engine,
    /// Variables that every step inherits from this process.
    inherited: Vec<(OsString, OsString)>,
    slots: Semaphore,
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
        let environments = Environments::new(settings.environments.clone(), settings.max_environments, installers);
        let slots = Semaphore::new(settings.concurrency.max(1));
        let inner = Inner {
            settings,
            environments,
            engine: images::Engine::default(),
            inherited,
            slots,
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
        let mut slot = self.slots.try_acquire().ok();
        // Held until the end, because it holds the environment.
        let mut started = None;
        if !supervisor::has_started(&attempt.folder) {
            let step = match self.prepare(launch, attempt, &paths).await? {
                step::Prepared::Done(outputs) => return Ok(Outcome::Succeeded(outputs)),
                step::Prepared::Step(step) => step,
            };
            if slot.is_none() {
                slot = self.slots.acquire().await.ok();
            }
            for _ in 0..MAX_STARTS {
                self.start(&step, attempt).await?;
                if supervisor::has_started(&attempt.folder) {
                    break;
                }
            }
            started = Some(step);
            if !supervisor::has_started(&attempt.folder) {
                return Err(Failure {
                    message: "the worker ended before it started the step".into(),
                    ..Failure::default()
                });
            }
        }
        let observed = supervisor::wait(&attempt.folder).await;
        drop((slot, started));
        let observed = observed.map_err(|error| Failure { message: error.to_string(), ..Failure::default() })?;
        let (launch, attempt, limit) = (launch.clone(), attempt.clone(), self.settings.digest_limit);
        let outcome = tokio::task::spawn_blocking(move || outcome(&launch, &attempt, &paths, observed, limit));
        outcome.await.map_err(|error| Failure { message: error.to_string(), ..Failure::default() })
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
        lifecycle::Outcome::Exited(0) => match read_outputs(launch, paths) {
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
            Ok(log::tail(folder, LogQuery { attempt: None, follow, tail: None }, is_finished).boxed())
        }
        .boxed()
    }

    fn has(&self, outputs: Outputs) -> BoxFuture<'static, bool> {
        let artifacts = self.inner.settings.artifacts.clone();
        async move {
            let all =
                move || outputs.artifacts.values().flatten().all(|artifact| content::is_there(&artifacts, artifact));
            tokio::task::spawn_blocking(all).await.unwrap_or(false)
        }
        .boxed()
    }

    fn read(&self, _namespace: String, artifact: Artifact) -> BoxFuture<'static, Result<ArtifactStream, Error>> {
        let artifacts = self.inner.settings.artifacts.clone();
        async move {
            let opened = tokio::task::spawn_blocking(move || content::open(&artifacts, &artifact));
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
