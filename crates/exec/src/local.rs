//! Jobs as processes of this machine.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, watch};

use crate::{End, ExecError, Executor, Handle, Job, Outcome};

/// Time between asking a job to end and ending it.
const GRACE: Duration = Duration::from_secs(5);

/// Runs at most so many jobs at once; the others wait in the order they came.
#[derive(Clone)]
pub struct LocalProcesses {
    slots: Arc<Semaphore>,
}

impl LocalProcesses {
    /// Room for `slots` jobs at once.
    pub fn new(slots: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(slots.max(1))) }
    }
}

impl Executor for LocalProcesses {
    fn submit(&self, job: Job) -> Handle {
        let (cancel, cancelled) = watch::channel(false);
        let slots = Arc::clone(&self.slots);
        let task = tokio::spawn(async move {
            let mut cancelled = cancelled;
            let slot = tokio::select! {
                slot = slots.acquire_owned() => slot,
                () = asked(&mut cancelled) => return Ok(Outcome { end: End::Cancelled, took: Duration::ZERO }),
            };
            let outcome = run(job, cancelled).await;
            drop(slot);
            outcome
        });
        let done = Box::pin(async move {
            task.await.unwrap_or_else(|e| {
                Err(ExecError::Io { what: "the job's task failed".into(), source: std::io::Error::other(e) })
            })
        });
        Handle { done, cancel }
    }
}

/// Waits until the job is to end: it was cancelled, or nobody waits for it.
async fn asked(cancelled: &mut watch::Receiver<bool>) {
    // An error means the handle is gone.
    drop(cancelled.wait_for(|c| *c).await);
}

/// Ends the whole group, even when the task is dropped.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.0 {
            // A group that is gone already is what was wanted.
            let _ = kill_process_group(pid, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

async fn run(job: Job, mut cancelled: watch::Receiver<bool>) -> Result<Outcome, ExecError> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| ExecError::Io { what, source }
    };
    let mut command = Command::new(&job.program);
    command.args(&job.args).envs(job.env.iter().cloned()).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    if let Some(folder) = &job.folder {
        std::fs::create_dir_all(folder).map_err(io("creating the job's folder"))?;
        command.current_dir(folder);
    }
    match &job.log {
        Some(log) => {
            if let Some(folder) = log.parent() {
                std::fs::create_dir_all(folder).map_err(io("creating the log's folder"))?;
            }
            let file = std::fs::File::create(log).map_err(io("creating the log"))?;
            command.stdout(file.try_clone().map_err(io("opening the log"))?).stderr(file);
        }
        None => {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
    }
    let started = Instant::now();
    let spawned = command.spawn();
    let mut child =
        spawned.map_err(|source| ExecError::Spawn { program: job.program.display().to_string(), source })?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
    let end = tokio::select! {
        status = child.wait() => ended(status.map_err(io("waiting for the job"))?),
        () = asked(&mut cancelled) => stop(&group, &mut child, End::Cancelled).await,
        () = limit(job.limit) => stop(&group, &mut child, End::TimedOut).await,
    };
    // What the job itself left running ends with it.
    group.signal(Signal::KILL);
    group.0 = None;
    Ok(Outcome { end, took: started.elapsed() })
}

async fn limit(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

fn ended(status: std::process::ExitStatus) -> End {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exited(code),
        (None, signal) => End::Signalled(signal.unwrap_or(0)),
    }
}

/// Asks politely, then insists.
async fn stop(group: &Group, child: &mut Child, end: End) -> End {
    group.signal(Signal::TERM);
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        group.signal(Signal::KILL);
        drop(child.wait().await);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Job {
        Job::new("test", "sh", ["-c", script])
    }

    #[tokio::test]
    async fn output_and_code_are_kept() {
        let log = std::env::temp_dir().join(format!("slipway-exec-{}/job.log", slipway_core::ids::hex32()));
        let job = shell("echo out $X; echo err >&2; exit 3").env("X", "y").log(&log);
        let outcome = LocalProcesses::new(1).submit(job).wait().await.unwrap();
        assert_eq!(outcome.end, End::Exited(3));
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "out y\nerr\n");
        std::fs::remove_dir_all(log.parent().unwrap()).unwrap();
    }

    #[tokio::test]
    async fn no_more_run_at_once_than_there_are_slots() {
        let executor = LocalProcesses::new(2);
        let started = Instant::now();
        let handles: Vec<_> = (0..4).map(|_| executor.submit(shell("sleep 0.3"))).collect();
        for handle in handles {
            assert!(handle.wait().await.unwrap().succeeded());
        }
        assert!(started.elapsed() >= Duration::from_millis(590), "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn time_limits_and_cancellation_end_the_whole_group() {
        let executor = LocalProcesses::new(2);
        let job = shell("sleep 60 & wait").limit(Duration::from_millis(200));
        assert_eq!(executor.submit(job).wait().await.unwrap().end, End::TimedOut);
        let handle = executor.submit(shell("sleep 60 & wait"));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(handle.cancel().await.unwrap().end, End::Cancelled);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let error = LocalProcesses::new(1).submit(Job::new("x", "no-such-program", [""; 0])).wait().await.unwrap_err();
        assert!(error.to_string().contains("no-such-program"));
    }
}
