//! The worker of a pool: asks for steps, and executes each in a process of its own with the step's token (`slipway pipeline step`).
//!
//! Invariant: before the next step starts, no process and no file of the last one is left in the folders that steps get. What a program
//! writes elsewhere in its container stays there until the worker ends.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, wait};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::client::Client;
use super::{Server, code_of};
use crate::launch::pods::pool::{Ended, Next, Report, begin_line, end_line};
use crate::launch::pods::step::FOLDER;

/// Exit code of a worker that a signal has ended, as in a shell.
const TERMINATED: i32 = 143;
/// Folders of a step below [`FOLDER`].
const FOLDERS: [&str; 4] = ["inputs", "outputs", "copies", "tmp"];
/// Interval at which processes that a step has left behind are looked for until none is left.
const KILL_INTERVAL: Duration = Duration::from_millis(10);
/// The process id of the first process of a container. Only there, all other processes are those of steps.
const FIRST: i32 = 1;

/// What a worker needs to know about its pod.
#[derive(Debug, Clone)]
pub struct Worker {
    /// The words that start slipway's program.
    pub program: Vec<String>,
    /// The folder of steps.
    pub folder: PathBuf,
}

impl Worker {
    /// The worker of this pod.
    ///
    /// # Errors
    /// What this process has loaded cannot be found out.
    pub fn of_this_pod() -> std::io::Result<Self> {
        Ok(Self { program: super::install::command(FOLDER)?, folder: FOLDER.into() })
    }

    /// Executes steps until the control plane ends the worker, or a signal does. Returns the exit code.
    ///
    /// # Errors
    /// The control plane refuses the worker, or a step cannot be started.
    pub async fn serve(&self, server: &Server) -> Result<i32, String> {
        let client = Client::new(server)?;
        let mut terminated = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        let mut report = Report::default();
        let mut idle_since = Instant::now();
        loop {
            let next = tokio::select! {
                next = client.next(&report) => next?,
                _ = terminated.recv() => return Ok(TERMINATED),
            };
            report.ended = None;
            match next {
                Next::Wait => {}
                Next::End => return Ok(0),
                Next::Execute { step, token, tracked_run } => {
                    let failed = |error: std::io::Error| format!("executing the step {step}: {error}");
                    self.clean().map_err(failed)?;
                    say(&begin_line(&step));
                    let mut child = self.start(&token, &tracked_run).map_err(failed)?;
                    let process = id_of(&child);
                    let code = tokio::select! {
                        ended = child.wait() => code_of(ended.map_err(failed)?),
                        _ = terminated.recv() => {
                            // An error means that it has ended.
                            let _ = process.map(|id| kill_process(id, Signal::TERM));
                            child.wait().await.map_err(failed)?;
                            return Ok(TERMINATED);
                        }
                    };
                    kill_others(process).await;
                    say(&format!("\n{}", end_line(&step)));
                    report.ended = Some(Ended { step, code });
                    idle_since = Instant::now();
                }
            }
            report.idle_seconds = idle_since.elapsed().as_secs();
        }
    }

    /// Deletes the files of the last step.
    fn clean(&self) -> std::io::Result<()> {
        for folder in FOLDERS {
            remove(&self.folder.join(folder))?;
        }
        std::fs::create_dir_all(self.folder.join("tmp"))
    }

    /// Starts a step in a process group of its own.
    fn start(&self, token: &str, tracked_run: &str) -> std::io::Result<Child> {
        Command::new(&self.program[0])
            .args(&self.program[1..])
            .args(["pipeline", "step"])
            .env("MLFLOW_TRACKING_TOKEN", token)
            .env("MLFLOW_RUN_ID", tracked_run)
            .env("TMPDIR", self.folder.join("tmp"))
            .stdin(std::process::Stdio::null())
            .process_group(0)
            .spawn()
    }
}

/// Writes a line to the log. A log that cannot be written is no reason to end.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
    let _ = std::io::stdout().flush();
}

/// Deletes a folder, also one in which a program has made folders read-only.
fn remove(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            make_writable(folder)?;
            std::fs::remove_dir_all(folder)
        }
        removed => removed,
    }
}

fn make_writable(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o700))?;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_writable(&entry.path())?;
        }
    }
    Ok(())
}

fn id_of(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
}

/// Kills what the process of a step has left behind: its process group, and in a container everything else, because orphans become children
/// of its first process.
async fn kill_others(step: Option<Pid>) {
    if getpid().as_raw_nonzero().get() != FIRST {
        let _ = step.map(|id| kill_process_group(id, Signal::KILL));
        return;
    }
    loop {
        // The process of the step has been waited for, so all that is left to wait for are orphans.
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        let others = others();
        if others.is_empty() {
            return;
        }
        for process in others {
            let _ = kill_process(process, Signal::KILL);
        }
        tokio::time::sleep(KILL_INTERVAL).await;
    }
}

/// All processes of this container but this one. Zombies are none: nothing is left of them.
fn others() -> Vec<Pid> {
    let own = getpid();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(Pid::from_raw);
    ids.filter(|id| *id != own && !is_zombie(*id)).collect()
}

fn is_zombie(id: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/stat", id.as_raw_nonzero())).unwrap_or_default();
    // The state follows the name, which is in parentheses and may contain some.
    status.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}

#[cfg(test)]
mod tests {
    use axum::Json;
    use axum::extract::State;
    use parking_lot::Mutex;
    use std::sync::Arc;

    use super::*;

    /// Gives a worker these orders, one after the other, and records what it reports.
    async fn serve(orders: Vec<Next>, script: &str) -> (Vec<Report>, PathBuf, tempfile::TempDir) {
        type Shared = Arc<Mutex<(std::vec::IntoIter<Next>, Vec<Report>)>>;
        async fn next(State(shared): State<Shared>, Json(report): Json<Report>) -> Json<Next> {
            let mut shared = shared.lock();
            shared.1.push(report);
            Json(shared.0.next().unwrap_or(Next::End))
        }
        let folder = tempfile::tempdir().unwrap();
        let shared: Shared = Arc::new(Mutex::new((orders.into_iter(), Vec::new())));
        let router = axum::Router::new().route("/api/v1/pipelines/worker/next", axum::routing::post(next));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, router.with_state(Arc::clone(&shared))).into_future());
        let place = folder.path().join("step");
        let script = script.replace("FOLDER", place.to_str().unwrap());
        let worker = Worker { program: ["sh", "-c", &script].map(str::to_owned).to_vec(), folder: place.clone() };
        let server = Server { url, token: "worker".into(), authorities: None };
        assert_eq!(worker.serve(&server).await, Ok(0));
        let reports = std::mem::take(&mut shared.lock().1);
        (reports, place, folder)
    }

    fn execute(step: &str) -> Next {
        Next::Execute { step: step.into(), token: format!("token of {step}"), tracked_run: "t".into() }
    }

    #[tokio::test]
    async fn steps_get_their_own_token_and_nothing_of_the_last_one() {
        let script = "mkdir -p FOLDER/outputs; test ! -e FOLDER/outputs/x || exit 9; touch FOLDER/outputs/x $TMPDIR/x; \
                      chmod 500 FOLDER/outputs; (sleep 1000 & echo $! > FOLDER/../process); \
                      echo \"$MLFLOW_TRACKING_TOKEN\" >> FOLDER/../tokens; exit 3";
        let (reports, place, folder) = serve(vec![execute("a"), Next::Wait, execute("b")], script).await;
        let ended: Vec<(String, i32)> =
            reports.iter().flat_map(|r| &r.ended).map(|e| (e.step.clone(), e.code)).collect();
        assert_eq!(ended, [("a".to_owned(), 3), ("b".to_owned(), 3)]);
        assert_eq!(std::fs::read_to_string(folder.path().join("tokens")).unwrap(), "token of a\ntoken of b\n");
        make_writable(&place).unwrap();
        let left: i32 = std::fs::read_to_string(folder.path().join("process")).unwrap().trim().parse().unwrap();
        let id = Pid::from_raw(left).unwrap();
        let is_over = || rustix::process::test_kill_process(id).is_err() || is_zombie(id);
        tokio::time::timeout(Duration::from_secs(10), async {
            while !is_over() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("what a step leaves behind is killed");
    }
}
