//! Workers: processes without a terminal that execute the experiments of the queue, one after the other, until the queue is empty.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::control::{self, Mailbox};
use super::execute::{Execution, command};
use super::records::{Process, exit_code, lock, read, write};
use super::{Message, Queue, Task, TaskState, unknown};
use crate::error::DataError;

/// Maximum number of workers.
const MAX_WORKERS: usize = 256;
/// Time between two looks into the mailbox. DVC waits for a second for replies.
const CONTROL_INTERVAL: Duration = Duration::from_millis(200);
/// What a worker reports when it works.
const READY: &str = "ready\n";

/// How this program is started.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its path.
    pub path: PathBuf,
    /// The arguments before the command.
    pub arguments: Vec<OsString>,
}

/// The number of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workers {
    /// Those that execute an experiment.
    pub active: usize,
    /// The others.
    pub idle: usize,
}

impl Queue {
    fn worker_path(&self, number: usize, suffix: &str) -> PathBuf {
        self.broker.folder().join(format!("dvc-exp-worker-{number}.{suffix}"))
    }

    /// The process of a worker that lives. DVC's hold no lock; they are known by their command.
    fn worker(&self, number: usize) -> Result<Option<Process>, DataError> {
        let Some(process) = read::<Process>(&self.worker_path(number, "json"))? else { return Ok(None) };
        let own = self.worker_path(number, "lock");
        let lives = match own.exists() {
            true if lock(&own)?.is_none() => true,
            _ => process.returncode.is_none() && is_worker_of_dvc(process.pid),
        };
        Ok(lives.then_some(process))
    }

    fn live_workers(&self) -> Result<Vec<Process>, DataError> {
        let folder = self.broker.folder();
        let Ok(entries) = std::fs::read_dir(folder) else { return Ok(Vec::new()) };
        let number = |name: &str| name.strip_prefix("dvc-exp-worker-")?.strip_suffix(".json")?.parse::<usize>().ok();
        let mut numbers: Vec<usize> =
            entries.flatten().filter_map(|entry| number(&entry.file_name().to_string_lossy())).collect();
        numbers.sort_unstable();
        let mut found = Vec::new();
        for number in numbers {
            found.extend(self.worker(number)?);
        }
        Ok(found)
    }
}

fn is_worker_of_dvc(pid: i32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = command.split(|b| *b == 0).collect();
    words.contains(&&b"queue-worker"[..]) && words.iter().any(|word| word.starts_with(b"dvc-exp-"))
}

/// The workers that live.
///
/// # Errors
/// If a file of the queue cannot be read.
pub fn workers(queue: &Queue) -> Result<Workers, DataError> {
    let live = queue.live_workers()?.len();
    let running = queue.tasks()?.iter().filter(|task| task.state == TaskState::Running).count();
    let active = running.min(live);
    Ok(Workers { active, idle: live - active })
}

/// Starts workers until there are `count`, and returns how many it started.
///
/// # Errors
/// If one does not start.
pub fn start(queue: &Queue, count: usize, program: &Program) -> Result<usize, DataError> {
    if count > MAX_WORKERS {
        return Err(DataError::Invalid(format!("{count} workers are more than {MAX_WORKERS}")));
    }
    queue.recover()?;
    let mut started = 0;
    for number in 1..=count {
        if queue.worker(number)?.is_none() {
            spawn(queue, number, program)?;
            started += 1;
        }
    }
    Ok(started)
}

fn spawn(queue: &Queue, number: usize, program: &Program) -> Result<(), DataError> {
    let log = queue.worker_path(number, "out");
    std::fs::create_dir_all(queue.broker.folder()).map_err(DataError::io(queue.broker.folder()))?;
    let file = std::fs::File::options().append(true).create(true).open(&log).map_err(DataError::io(&log))?;
    let mut command = Command::new(&program.path);
    command.args(&program.arguments).args(["exp", "queue-worker", &number.to_string()]).current_dir(&queue.root);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
    let mut child = command.spawn().map_err(DataError::io(&program.path))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        let _ = BufReader::new(stdout).read_line(&mut line); // What counts is whether the line came.
    }
    if line == READY {
        return Ok(());
    }
    let status = child.wait().map_err(DataError::io(&program.path))?;
    Err(DataError::Invalid(format!("worker {number} ended with {status} before it worked; see {}", log.display())))
}

/// Works until the queue is empty, or until a signal or a message to end, after which the present experiment is completed.
///
/// # Errors
/// If another process is the worker with this number, or a file of the queue cannot be read.
pub async fn run_worker(queue: &Queue, number: usize, program: &Program) -> Result<(), DataError> {
    let Some(_lock) = lock(&queue.worker_path(number, "lock"))? else {
        return Err(DataError::Invalid(format!("worker {number} runs already")));
    };
    // In a session of its own, it outlives the terminal from which it was started. A leader of a group, which cannot have one, has no need.
    let _ = rustix::process::setsid();
    let io = DataError::io(queue.broker.folder());
    let mut ending = signal(SignalKind::terminate()).map_err(io)?;
    write(&queue.worker_path(number, "json"), &Process::own(Some(&queue.worker_path(number, "out"))))?;
    let mailbox = Mailbox::open(&queue.broker, number)?;
    let mut control = tokio::time::interval(CONTROL_INTERVAL);
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(READY.as_bytes()).and_then(|()| stdout.flush()); // The process that started it may have ended.
    while let Some((message, held)) = next(queue)? {
        let mut is_ending = false;
        match start_execution(queue, &message, held, program) {
            Ok(mut child) => loop {
                tokio::select! {
                    status = child.wait() => {
                        let status = status.map_err(DataError::io(&program.path))?;
                        close(queue, &message, Some(exit_code(status)))?;
                        break;
                    }
                    _ = ending.recv() => is_ending = true,
                    _ = control.tick() => match mailbox.serve(Some(&message)) {
                        Ok(is_stopped) => is_ending |= is_stopped,
                        Err(error) => tracing::warn!("control of the worker: {error}"),
                    },
                }
            },
            Err(error) => {
                tracing::error!("experiment {}: {error}", message.entry.short());
                close(queue, &message, None)?;
            }
        }
        if is_ending {
            break;
        }
    }
    Ok(())
}

/// Takes the next message, with the lock of its execution.
fn next(queue: &Queue) -> Result<Option<(Message, std::fs::File)>, DataError> {
    for message in queue.broker.queued()? {
        // Locked before it is taken, an execution never looks like one whose process is dead.
        let Some(held) = queue.records(&message.entry).lock()? else { continue };
        if queue.broker.take(&message)? {
            return Ok(Some((message, held)));
        }
    }
    Ok(None)
}

fn start_execution(
    queue: &Queue,
    message: &Message,
    held: std::fs::File,
    program: &Program,
) -> Result<tokio::process::Child, DataError> {
    let records = queue.records(&message.entry);
    let log = records.log();
    let output = std::fs::File::options().append(true).create(true).open(&log).map_err(DataError::io(&log))?;
    let errors = output.try_clone().map_err(DataError::io(&log))?;
    let execution = Execution {
        stash: message.entry.stash_rev.clone(),
        task: Some(message.id.clone()),
        copy_paths: message.copy_paths.clone(),
        message: message.message.clone(),
    };
    let mut command = command(queue, &message.entry, &execution, program)?;
    // The lock is the input, an empty file, of the process, which shares it with the commands that it starts: it is held as long as one of them
    // lives.
    command.stdin(held).stdout(output).stderr(errors).process_group(0);
    tokio::process::Command::from(command).spawn().map_err(DataError::io(&program.path))
}

/// Records the end of an execution that could not record it itself.
fn close(queue: &Queue, message: &Message, code: Option<i32>) -> Result<(), DataError> {
    let records = queue.records(&message.entry);
    if let (Some(code), Some(mut process)) = (code, records.process()?)
        && process.returncode.is_none()
    {
        process.signal_group(Signal::KILL);
        queue.close(message, &records)?;
        process.returncode = Some(code);
        return records.set_process(&process);
    }
    queue.close(message, &records)
}

/// Ends all workers: after their present experiments, or with `kill` at once.
///
/// # Errors
/// If a file of the queue cannot be read.
pub fn stop(queue: &Queue, kill: bool) -> Result<(), DataError> {
    let workers = queue.live_workers()?;
    if !workers.is_empty() {
        control::shut_down(&queue.broker)?;
    }
    // Those of slipway end at once if they are idle.
    for worker in workers.iter().filter(|worker| !is_worker_of_dvc(worker.pid)) {
        worker.signal(Signal::TERM);
    }
    if kill {
        let tasks = queue.tasks()?;
        for task in tasks.iter().filter(|task| task.state == TaskState::Running) {
            end(task, true);
        }
        queue.recover()?;
    }
    Ok(())
}

/// Interrupts running experiments, or with `force` kills them.
///
/// # Errors
/// [`DataError::Invalid`] for a name that is not that of a running experiment.
pub fn kill(queue: &Queue, names: &[String], force: bool) -> Result<Vec<String>, DataError> {
    queue.recover()?;
    let mut tasks = queue.tasks()?;
    tasks.retain(|task| task.state == TaskState::Running);
    let (found, missing) = Queue::select(&tasks, names);
    let mut killed = Vec::new();
    for task in found {
        if end(task, force) {
            killed.push(task.shown());
        } else if task.process.is_none() {
            return Err(DataError::Invalid(format!(
                "experiment '{}' is being prepared; repeat the command when it runs",
                task.shown()
            )));
        }
    }
    if force {
        queue.recover()?;
    }
    match missing.is_empty() {
        true => Ok(killed),
        false => Err(unknown(&missing, "the name of a running experiment")),
    }
}

fn end(task: &Task, force: bool) -> bool {
    let Some(process) = &task.process else { return false };
    process.returncode.is_none() && process.signal_group(if force { Signal::KILL } else { Signal::INT })
}
