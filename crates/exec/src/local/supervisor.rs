//! The parent of one attempt's program: a small process that outlives the server, so that a server that was killed finds its runs again,
//! and how they ended. It is the same binary, started as `slipway supervise FOLDER`.
//!
//! The server gives it a locked file as standard input. The lock belongs to whoever holds that file open, so it tells for certain
//! whether a supervisor lives, however often process ids are used again.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};
use slipway_core::clock::now_ms;
use slipway_core::files;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::descriptors;
use crate::ExecError;
use crate::lifecycle::{End, Seen};

/// What to run; `task.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) program: String,
    pub(super) args: Vec<String>,
    pub(super) folder: Option<PathBuf>,
    /// Milliseconds after which it is ended; never if unset.
    pub(super) limit: Option<i64>,
    /// Milliseconds between asking it to end and killing it.
    pub(super) grace: u64,
    /// Devices that it holds while it lives.
    pub(super) gpus: Vec<super::Device>,
    /// What it takes of the machine: processors, and bytes of memory.
    pub(super) demand: (f64, f64),
    /// Descriptors that the program may open (the soft limit); as many as its supervisor if unset.
    #[serde(default)]
    pub(super) descriptors: Option<u64>,
}

/// Who runs it; `process.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Process {
    supervisor: i32,
    program: i32,
    /// When the program was born, in the kernel's ticks.
    born: String,
    since: i64,
}

/// How it ended; `end.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ended {
    since: Option<i64>,
    at: i64,
    how: How,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum How {
    Exited(i32),
    Signalled(i32),
    TimedOut,
    Stopped,
    NotStarted(String),
}

/// Variables of a process.
pub(super) type Environment = Vec<(std::ffi::OsString, std::ffi::OsString)>;

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn write<T: Serialize>(path: &Path, value: &T) -> std::io::Result<()> {
    files::replace(path, &serde_json::to_vec(value)?)
}

/// Starts a supervisor for an attempt whose folder has a `task.json`. Its environment is `environment` and nothing of this process's own,
/// since the program inherits it and could read it in `/proc` besides. It is handed on in memory only: it may hold secrets.
pub(super) fn spawn(program: &Path, attempt: &Path, environment: Environment) -> Result<(), ExecError> {
    let lock = std::fs::File::create(attempt.join("lock")).map_err(ExecError::io("locking the attempt"))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|e| ExecError::Io { what: "locking the attempt".into(), source: e.into() })?;
    let log = std::fs::File::create(attempt.join("log")).map_err(ExecError::io("creating the log"))?;
    let errors = log.try_clone().map_err(ExecError::io("creating the log"))?;
    let mut command = Command::new(program);
    command
        .arg("supervise")
        .arg(attempt)
        .env_clear()
        .envs(environment)
        .stdin(Stdio::from(lock))
        .stdout(log)
        .stderr(errors)
        // A Ctrl-C at the server's terminal is for the server.
        .process_group(0);
    let started = command.spawn();
    // The handle is not needed: the runtime reaps the process, and what becomes of it is read from its files.
    started.map(|_| ()).map_err(|source| ExecError::Spawn { program: program.display().to_string(), source })
}

/// What is seen of an attempt. Blocks.
pub(super) fn observe(attempt: &Path) -> Seen {
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let over = |ended: Ended| {
        let end = match ended.how {
            How::Exited(code) => End::Exited(code),
            How::Signalled(signal) => End::Signalled(signal),
            How::TimedOut => End::TimedOut,
            How::Stopped => End::Stopped,
            How::NotStarted(why) => End::Impossible("StartError".into(), why),
        };
        Seen::Over { since: ended.since, at: ended.at, node: node.clone(), end }
    };
    if let Some(ended) = read(&attempt.join("end.json")) {
        return over(ended);
    }
    let process: Option<Process> = read(&attempt.join("process.json"));
    if is_locked(attempt) {
        return match process {
            Some(process) => Seen::Running { since: process.since, node },
            None => Seen::Waiting { reason: "Starting".into(), message: String::new() },
        };
    }
    // It may have ended since the file was looked for.
    if let Some(ended) = read(&attempt.join("end.json")) {
        return over(ended);
    }
    // Nobody is there to end what the supervisor left behind.
    if let Some(process) = &process
        && let Some(group) = Pid::from_raw(process.program)
        && birth(process.program).as_deref() == Some(process.born.as_str())
    {
        let _ = kill_process_group(group, Signal::KILL); // it may have ended this very moment
    }
    let message = "its supervisor is gone: the machine was started anew, or somebody killed it".to_owned();
    let since = process.map(|p| p.since);
    Seen::Over { since, at: now_ms(), node, end: End::Disrupted("Lost".into(), message) }
}

fn is_locked(attempt: &Path) -> bool {
    let Ok(lock) = std::fs::File::open(attempt.join("lock")) else { return false };
    flock(&lock, FlockOperation::NonBlockingLockShared).is_err()
}

/// Asks a supervisor to end its program. Blocks.
pub(super) fn stop(attempt: &Path) {
    let process: Option<Process> = read(&attempt.join("process.json"));
    if let Some(pid) = process.and_then(|p| Pid::from_raw(p.supervisor)).filter(|_| is_locked(attempt)) {
        let _ = kill_process(pid, Signal::TERM); // one that is gone already is what was wanted
    }
}

/// When a process was born, in ticks since the machine's start (`proc_pid_stat(5)`, field 22).
fn birth(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field may hold spaces and parentheses; the last one ends it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}

/// Runs the program of an attempt to its end. Its output is this process's own.
///
/// # Errors
/// When the folder's files cannot be read or written.
pub async fn supervise(attempt: &Path) -> Result<(), ExecError> {
    let io = |what: &str| ExecError::io(format!("{what} in {}", attempt.display()));
    let mut text = String::new();
    std::fs::File::open(attempt.join("task.json"))
        .and_then(|mut f| f.read_to_string(&mut text))
        .map_err(io("reading task.json"))?;
    let task: Task =
        serde_json::from_str(&text).map_err(|e| io("reading task.json")(std::io::Error::other(e.to_string())))?;
    if let Some(soft) = task.descriptors {
        descriptors::set_limit(soft).map_err(io("setting the limit of open files"))?;
    }
    let mut asked = signal(SignalKind::terminate()).map_err(io("waiting for signals"))?;
    let mut command = Command::new(&task.program);
    command.args(&task.args).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    if let Some(folder) = &task.folder {
        command.current_dir(folder);
    }
    let since = now_ms();
    let ended = match command.spawn() {
        Err(error) => {
            let why = format!("cannot start {}: {error}", task.program);
            Ended { since: None, at: now_ms(), how: How::NotStarted(why) }
        }
        Ok(mut child) => {
            let program = child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or(0);
            let supervisor = i32::try_from(std::process::id()).unwrap_or(0);
            let process = Process { supervisor, program, born: birth(program).unwrap_or_default(), since };
            write(&attempt.join("process.json"), &process).map_err(io("writing process.json"))?;
            let group = Pid::from_raw(program);
            let limit = async {
                match task.limit {
                    Some(limit) => tokio::time::sleep(Duration::from_millis(u64::try_from(limit).unwrap_or(0))).await,
                    None => std::future::pending().await,
                }
            };
            let how = tokio::select! {
                status = child.wait() => how_it_ended(status.map_err(io("waiting for the program"))?),
                () = limit => { end(group, &mut child, task.grace).await; How::TimedOut }
                _ = asked.recv() => { end(group, &mut child, task.grace).await; How::Stopped }
            };
            // What the program itself left running ends with it; mostly there is nothing.
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL);
            }
            Ended { since: Some(since), at: now_ms(), how }
        }
    };
    write(&attempt.join("end.json"), &ended).map_err(io("writing end.json"))
}

/// Asks the program to end, and kills it after `grace` milliseconds.
async fn end(group: Option<Pid>, child: &mut Child, grace: u64) {
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::TERM); // one that has ended is found by the wait
        if tokio::time::timeout(Duration::from_millis(grace), child.wait()).await.is_err() {
            let _ = kill_process_group(group, Signal::KILL); // the same
        }
    }
    let _ = child.wait().await; // how it ended does not matter: the reason is that it was asked to
}

fn how_it_ended(status: std::process::ExitStatus) -> How {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => How::Exited(code),
        (None, signal) => How::Signalled(signal.unwrap_or(0)),
    }
}
