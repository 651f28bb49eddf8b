//! Where work runs. Today: local processes, at most so many at once.
//!
//! ```no_run
//! # async fn f() -> Result<(), slipway_exec::ExecError> {
//! use slipway_exec::{Executor, Job, LocalProcesses};
//! let executor = LocalProcesses::new(2);
//! let job = Job::new("train", "python3", ["train.py"]).env("LR", "0.1").log("logs/train.log");
//! let outcome = executor.submit(job).wait().await?;
//! assert!(outcome.succeeded());
//! # Ok(()) }
//! ```
//!
//! A job is a process in a group of its own with its output in a log file. It is ended, with all it started,
//! when its time is over, when it is cancelled, and when its handle is dropped.

mod local;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

pub use local::LocalProcesses;
use slipway_core::Explain;

/// What to run.
#[derive(Debug, Clone)]
pub struct Job {
    /// For people: in logs and tables.
    pub name: String,
    /// The program, looked up in `PATH`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables added to this process's environment.
    pub env: Vec<(String, String)>,
    /// Where it runs; this process's folder if unset.
    pub folder: Option<PathBuf>,
    /// Where its output goes; nowhere if unset.
    pub log: Option<PathBuf>,
    /// When to end it.
    pub limit: Option<Duration>,
}

impl Job {
    /// A job without special environment, folder, log or limit.
    pub fn new<A: Into<String>>(
        name: impl Into<String>,
        program: impl Into<PathBuf>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            folder: None,
            log: None,
            limit: None,
        }
    }

    /// Adds a variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Runs it in `folder`.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Writes its output to `log`.
    #[must_use]
    pub fn log(mut self, log: impl Into<PathBuf>) -> Self {
        self.log = Some(log.into());
        self
    }

    /// Ends it after `limit`.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Exited(i32),
    /// By a signal from outside.
    Signalled(i32),
    /// Its time was over.
    TimedOut,
    /// It was cancelled.
    Cancelled,
}

/// How a job ended, and when.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// How.
    pub end: End,
    /// From start to end.
    pub took: Duration,
}

impl Outcome {
    /// Whether it ended by itself with code 0.
    pub fn succeeded(&self) -> bool {
        self.end == End::Exited(0)
    }
}

/// A job that could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The program could not be started.
    #[error("cannot start {program}: {source}")]
    Spawn {
        /// Which.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// The log or folder cannot be used.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Explain for ExecError {
    fn code(&self) -> &'static str {
        match self {
            Self::Spawn { .. } => "exec.spawn",
            Self::Io { .. } => "exec.io",
        }
    }
}

/// A job that was handed over; dropping it ends the job.
pub struct Handle {
    done: Pin<Box<dyn Future<Output = Result<Outcome, ExecError>> + Send>>,
    /// `true`, or dropping it, asks the job to end.
    cancel: tokio::sync::watch::Sender<bool>,
}

impl Handle {
    /// Waits for the end.
    ///
    /// # Errors
    /// [`ExecError`] when the job could not be run.
    pub async fn wait(self) -> Result<Outcome, ExecError> {
        // Keeps the sender alive, so that the job is not cancelled while waited for.
        let _cancel = self.cancel;
        self.done.await
    }

    /// Ends the job and waits for it.
    ///
    /// # Errors
    /// [`ExecError`] when the job could not be run.
    pub async fn cancel(self) -> Result<Outcome, ExecError> {
        self.cancel.send_replace(true);
        self.done.await
    }
}

/// A place where jobs run.
pub trait Executor: Send + Sync {
    /// Hands a job over; it starts when there is room.
    fn submit(&self, job: Job) -> Handle;
}
