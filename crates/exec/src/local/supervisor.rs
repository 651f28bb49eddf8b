//! The supervisor: the parent process of an attempt's program. It outlives the server and records how the program ended, so that the
//! next server can resume the run. It is the same binary, started as `slipway supervise FOLDER`.
//!
//! The server passes a locked file as standard input. The lock is held as long as the supervisor keeps the file open, so it shows
//! reliably whether the supervisor is alive, even when process ids are reused.
//!
//! The files of an attempt are a contract: other supervisors may keep it, such as the warm Python workers of pipelines.
//!
//! | file | written | contents |
//! |---|---|---|
//! | `task.json` | before the start | [`Task`] |
//! | `lock` | before the start | locked while the supervisor is alive |
//! | `started` | before the program starts | nothing; whoever creates it may start the program, so no program is started twice |
//! | `stop` | by the server, to stop the attempt | nothing; a program that has not started is not started any more |
//! | `process.json` | after the program has started | the processes |
//! | `log` | by the program | its standard output and standard error |
//! | `times` | while the program runs | when the log had which size ([`super::times`]) |
//! | `end.json` | at the end | how it ended |

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};
use slipway_core::clock::now_ms;
use slipway_core::files;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::descriptors;
use super::times::Recorder;
use crate::ExecError;
use crate::lifecycle::{Observation, Outcome};

/// Interval at which the size of a limited log is checked.
const LOG_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Interval at which [`wait`] polls while the supervisor has not recorded its process id yet.
const START_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Content of `task.json`: what the supervisor runs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Task {
    /// The program: a path, or a name that is searched in `PATH`.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Working directory; the supervisor's own if unset.
    pub folder: Option<PathBuf>,
    /// Milliseconds after which the program is stopped; no limit if unset.
    pub limit: Option<i64>,
    /// Milliseconds between SIGTERM and SIGKILL.
    pub grace: u64,
    /// Devices that the attempt holds until it ends.
    pub gpus: Vec<super::Device>,
    /// Reserved processors, and reserved bytes of memory.
    pub demand: (f64, f64),
    /// Soft limit of open file descriptors for the program; the supervisor's own if unset.
    #[serde(default)]
    pub descriptors: Option<u64>,
    /// Maximum bytes of the log; later output is discarded. No limit if unset.
    #[serde(default)]
    pub log_limit: Option<u64>,
}

/// Content of `process.json`: the processes of the attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Process {
    /// Process id of the supervisor.
    supervisor: i32,
    /// Process id of the program, which is also its process group.
    program: i32,
    /// Start time of the program in clock ticks since boot, which tells it from a later process with the same id.
    born: String,
    /// When the program started, in milliseconds since the Unix epoch.
    since: i64,
}

/// Content of `end.json`: how the attempt ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct EndRecord {
    /// When the program started, in milliseconds since the Unix epoch; `None` if it never started.
    since: Option<i64>,
    /// When the attempt ended, in milliseconds since the Unix epoch.
    at: i64,
    how: RecordedOutcome,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum RecordedOutcome {
    Exited(i32),
    Signalled(i32),
    TimedOut,
    Stopped,
    NotStarted(String),
}

/// Environment variables: names and values.
pub type Environment = Vec<(std::ffi::OsString, std::ffi::OsString)>;

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn write<T: Serialize>(path: &Path, value: &T) -> std::io::Result<()> {
    files::replace(path, &serde_json::to_vec(value)?)
}

/// Starts a supervisor for an attempt whose folder contains a `task.json`. The supervisor gets only `environment` and nothing of this
/// process's environment, because the program inherits it and can read it in `/proc`. The variables may hold secrets, so they are
/// passed in memory and never written to a file.
///
/// # Errors
/// [`ExecError::Io`] when the files of the attempt cannot be created, or another supervisor holds its lock; [`ExecError::Spawn`] when the
/// supervisor cannot be started.
pub fn spawn(program: &Path, attempt: &Path, environment: Environment) -> Result<(), ExecError> {
    let lock = std::fs::File::create(attempt.join("lock")).map_err(ExecError::io("locking the attempt"))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|e| ExecError::Io { what: "locking the attempt".into(), source: e.into() })?;
    // Appending, so that the program continues at the end of a log that was cut.
    let log = std::fs::File::options().create(true).append(true).open(attempt.join("log"));
    let log = log.map_err(ExecError::io("creating the log"))?;
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
        // Ctrl-C in the server's terminal must not reach the supervisor.
        .process_group(0);
    let started = command.spawn();
    // Drop the handle: the runtime reaps the process, and its result is read from its files.
    started.map(|_| ()).map_err(|source| ExecError::Spawn { program: program.display().to_string(), source })
}

/// Observes an attempt by its files and its lock. Blocks.
pub fn observe(attempt: &Path) -> Observation {
    let node = super::node_name();
    let finished = |record: EndRecord| {
        let outcome = match record.how {
            RecordedOutcome::Exited(code) => Outcome::Exited(code),
            RecordedOutcome::Signalled(signal) => Outcome::Signalled(signal),
            RecordedOutcome::TimedOut => Outcome::TimedOut,
            RecordedOutcome::Stopped => Outcome::Stopped,
            RecordedOutcome::NotStarted(message) => Outcome::CannotStart("StartError".into(), message),
        };
        Observation::Finished { started_at: record.since, finished_at: record.at, node: node.clone(), outcome }
    };
    if let Some(record) = read(&attempt.join("end.json")) {
        return finished(record);
    }
    let process: Option<Process> = read(&attempt.join("process.json"));
    if is_locked(attempt) {
        return match process {
            Some(process) => Observation::Running { started_at: process.since, node },
            None => Observation::Waiting { reason: "Starting".into(), message: String::new() },
        };
    }
    // The supervisor may have written the file and ended after the first check.
    if let Some(record) = read(&attempt.join("end.json")) {
        return finished(record);
    }
    // The supervisor is dead, so kill the processes that it left behind.
    if let Some(process) = &process
        && let Some(group) = Pid::from_raw(process.program)
        && start_ticks(process.program).as_deref() == Some(process.born.as_str())
    {
        let _ = kill_process_group(group, Signal::KILL); // fails if the group has just ended
    }
    kill_writers(&attempt.join("log"));
    let message =
        "the supervisor of the attempt is dead: the machine was restarted, or the supervisor was killed".to_owned();
    let started_at = process.map(|p| p.since);
    let outcome = Outcome::Disrupted("Lost".into(), message);
    Observation::Finished { started_at, finished_at: now_ms(), node, outcome }
}

/// Waits until an attempt has ended, without polling once its supervisor has recorded its process id.
///
/// # Errors
/// [`ExecError::Io`] when the system cannot observe processes.
pub async fn wait(attempt: &Path) -> Result<Observation, ExecError> {
    let io = || ExecError::io("waiting for the supervisor of an attempt");
    loop {
        let folder = attempt.to_owned();
        let (observed, supervisor) = super::blocking(move || {
            let supervisor = read::<Process>(&folder.join("process.json")).and_then(|p| Pid::from_raw(p.supervisor));
            // Fails if it has just ended, which the observation finds.
            let descriptor = supervisor.and_then(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK).ok());
            // Observed after the descriptor was opened: if the lock is still held, the descriptor is that of the supervisor, even when
            // process ids are reused.
            Ok((observe(&folder), descriptor))
        })
        .await?;
        if let Observation::Finished { .. } = observed {
            return Ok(observed);
        }
        match supervisor {
            Some(descriptor) => {
                // Deprecated for types whose descriptor may change; an `OwnedFd` keeps its descriptor.
                #[allow(deprecated)]
                let descriptor = AsyncFd::with_interest(descriptor, Interest::READABLE).map_err(io())?;
                let _guard = descriptor.readable().await.map_err(io())?;
            }
            None => tokio::time::sleep(START_POLL_INTERVAL).await,
        }
    }
}

/// Whether a program may have been started for an attempt: it must not be started again.
pub fn has_started(attempt: &Path) -> bool {
    // The order matters: a supervisor that ends between the first two checks has created the file.
    is_locked(attempt) || ["started", "end.json"].iter().any(|file| attempt.join(file).exists())
}

/// Kills the processes whose output goes to this log, which only the program of the attempt and its children do. Their ids are not known
/// if the supervisor died before it recorded them, or if they left the program's process group.
fn kill_writers(log: &Path) {
    /// A process may start another between the search and its end, so the search is repeated.
    const MAX_ROUNDS: usize = 100;
    let Ok(log) = std::fs::metadata(log) else { return };
    let writes_to_log = |process: &Path| {
        // Fails for processes of other users, and for those that have just ended.
        let output = |number: &str| std::fs::metadata(process.join("fd").join(number));
        ["1", "2"].iter().filter_map(|number| output(number).ok()).any(|f| (f.dev(), f.ino()) == (log.dev(), log.ino()))
    };
    for _ in 0..MAX_ROUNDS {
        let Ok(processes) = std::fs::read_dir("/proc") else { return };
        let ids = processes.flatten().filter_map(|entry| {
            let id = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            writes_to_log(&entry.path()).then_some(id)
        });
        let found: Vec<Pid> = ids.collect();
        if found.is_empty() {
            return;
        }
        for id in found {
            let _ = kill_process(id, Signal::KILL); // fails if it has just ended
        }
    }
}

/// Whether the supervisor of an attempt is alive.
fn is_locked(attempt: &Path) -> bool {
    let Ok(lock) = std::fs::File::open(attempt.join("lock")) else { return false };
    flock(&lock, FlockOperation::NonBlockingLockShared).is_err()
}

/// Sends SIGTERM to a supervisor, which then stops its program. Blocks.
pub fn stop(attempt: &Path) {
    let process: Option<Process> = read(&attempt.join("process.json"));
    if let Some(pid) = process.and_then(|p| Pid::from_raw(p.supervisor)).filter(|_| is_locked(attempt)) {
        let _ = kill_process(pid, Signal::TERM); // fails if the supervisor has already ended, which is fine
    }
}

/// Start time of a process in clock ticks since boot (`proc_pid_stat(5)`, field 22).
fn start_ticks(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field may contain spaces and parentheses; the last parenthesis ends it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}

/// Runs the program of an attempt until it ends, and records how it ended. The program inherits the output of this process.
///
/// # Errors
/// [`ExecError::Io`] when the files of the attempt cannot be read or written.
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
    let mut terminated = signal(SignalKind::terminate()).map_err(io("waiting for signals"))?;
    let mut command = Command::new(&task.program);
    command.args(&task.args).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    if let Some(folder) = &task.folder {
        command.current_dir(folder);
    }
    // Before the start is claimed, so that an attempt that was started has the file.
    let mut times = Recorder::create(attempt).map_err(io("creating the times of the log"))?;
    std::fs::File::create_new(attempt.join("started")).map_err(io("claiming the start"))?;
    if attempt.join("stop").exists() {
        let record = EndRecord { since: None, at: now_ms(), how: RecordedOutcome::Stopped };
        return write(&attempt.join("end.json"), &record).map_err(io("writing end.json"));
    }
    let since = now_ms();
    let record = match command.spawn() {
        Err(error) => {
            let message = format!("cannot start {}: {error}", task.program);
            EndRecord { since: None, at: now_ms(), how: RecordedOutcome::NotStarted(message) }
        }
        Ok(mut child) => {
            let program = child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or(0);
            let supervisor = i32::try_from(std::process::id()).unwrap_or(0);
            let process = Process { supervisor, program, born: start_ticks(program).unwrap_or_default(), since };
            write(&attempt.join("process.json"), &process).map_err(io("writing process.json"))?;
            let group = Pid::from_raw(program);
            let limit = async {
                match task.limit {
                    Some(limit) => tokio::time::sleep(Duration::from_millis(u64::try_from(limit).unwrap_or(0))).await,
                    None => std::future::pending().await,
                }
            };
            let log = attempt.join("log");
            let how = tokio::select! {
                status = child.wait() => recorded_outcome(status.map_err(io("waiting for the program"))?),
                () = cut_log(&log, task.log_limit) => RecordedOutcome::Stopped, // it never ends
                () = times.follow() => RecordedOutcome::Stopped, // likewise
                () = limit => { terminate(group, &mut child, task.grace).await; RecordedOutcome::TimedOut }
                _ = terminated.recv() => { terminate(group, &mut child, task.grace).await; RecordedOutcome::Stopped }
            };
            // Kill processes that the program started and left running. The call fails if there are none.
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL);
            }
            if let Some(limit) = task.log_limit {
                shorten(&log, limit);
            }
            times.record();
            EndRecord { since: Some(since), at: now_ms(), how }
        }
    };
    write(&attempt.join("end.json"), &record).map_err(io("writing end.json"))
}

/// Cuts a log whenever it is longer than the limit. Never ends.
async fn cut_log(log: &Path, limit: Option<u64>) {
    let Some(limit) = limit else { return std::future::pending().await };
    let mut ticks = tokio::time::interval(LOG_CHECK_INTERVAL);
    loop {
        ticks.tick().await;
        shorten(log, limit);
    }
}

/// Cuts the log to the limit. Best effort: a log that cannot be cut only needs more of the disk.
fn shorten(log: &Path, limit: u64) {
    if std::fs::metadata(log).is_ok_and(|m| m.len() > limit) {
        let _ = std::fs::File::options().write(true).open(log).and_then(|f| f.set_len(limit));
    }
}

/// Sends SIGTERM to the program, and SIGKILL after `grace` milliseconds.
async fn terminate(group: Option<Pid>, child: &mut Child, grace: u64) {
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::TERM); // fails if the program has ended, which the wait notices
        if tokio::time::timeout(Duration::from_millis(grace), child.wait()).await.is_err() {
            let _ = kill_process_group(group, Signal::KILL); // likewise
        }
    }
    let _ = child.wait().await; // ignore the exit status: the recorded outcome is the reason for stopping
}

fn recorded_outcome(status: std::process::ExitStatus) -> RecordedOutcome {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => RecordedOutcome::Exited(code),
        (None, signal) => RecordedOutcome::Signalled(signal.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    /// The supervisor may die after it has started the program and before it has recorded its id.
    #[test]
    fn program_that_a_dead_supervisor_did_not_record_is_killed() {
        let attempt = std::env::temp_dir().join(format!("slipway-exec-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(&attempt).unwrap();
        std::fs::write(attempt.join("lock"), "").unwrap();
        let log = || std::fs::File::create(attempt.join("log")).unwrap();
        let mut program = std::process::Command::new("sh")
            .args(["-c", "setsid sleep 1000 & wait"])
            .stdin(Stdio::null())
            .stdout(log())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut unrelated = std::process::Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
        assert!(matches!(observe(&attempt), Observation::Finished { outcome: Outcome::Disrupted(..), .. }));
        assert_eq!(program.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));
        assert!(unrelated.try_wait().unwrap().is_none(), "a process with another output was killed");
        unrelated.kill().unwrap();
        unrelated.wait().unwrap();
        std::fs::remove_dir_all(&attempt).unwrap();
    }
}
