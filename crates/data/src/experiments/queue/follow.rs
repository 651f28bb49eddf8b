//! Output of queued experiments, and the execution of the whole queue.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use super::worker::{Program, start};
use super::{Entry, Queue, Task, TaskState};
use crate::error::DataError;

/// Interval of polling an experiment that runs.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Bytes that are read of an output at once.
const CHUNK_BYTES: u64 = 64 << 10;

/// Shows bytes of the output of an experiment.
pub type Show<'a> = &'a dyn Fn(&[u8]);

/// The experiments of a run of the queue by what came of them.
#[derive(Debug, Default)]
pub struct Results {
    /// The names of those that succeeded.
    pub succeeded: Vec<String>,
    /// The names of those that failed.
    pub failed: Vec<String>,
}

/// Starts workers, shows the output of each experiment that runs or waits, and returns when all have ended. Workers that end early are started again.
///
/// # Errors
/// If a worker does not start, or a file of the queue cannot be read.
pub async fn run_all(queue: &Queue, jobs: usize, program: &Program, show: Show<'_>) -> Result<Results, DataError> {
    queue.recover()?;
    let mut tasks = queue.tasks()?;
    tasks.retain(|task| matches!(task.state, TaskState::Running | TaskState::Queued));
    let mut results = Results::default();
    if tasks.is_empty() {
        return Ok(results);
    }
    start(queue, jobs.max(1), program)?;
    for task in tasks {
        let Some(ended) = follow(queue, &task.entry, Some((jobs, program)), show).await? else { continue };
        match ended.state {
            TaskState::Success => results.succeeded.push(ended.shown()),
            _ => results.failed.push(ended.shown()),
        }
    }
    Ok(results)
}

/// Shows the output of an experiment until it ends. `None` if it was removed from the queue.
async fn follow(
    queue: &Queue,
    entry: &Entry,
    workers: Option<(usize, &Program)>,
    show: Show<'_>,
) -> Result<Option<Task>, DataError> {
    let log = queue.records(entry).log();
    let mut shown = 0;
    loop {
        queue.recover()?;
        let found = queue.tasks()?.into_iter().find(|task| task.entry.stash_rev == entry.stash_rev);
        let Some(task) = found else { return Ok(None) };
        shown += print(&log, shown, show)?;
        match task.state {
            TaskState::Failed | TaskState::Success => {
                print(&log, shown, show)?;
                return Ok(Some(task));
            }
            TaskState::Queued => {
                if let Some((jobs, program)) = workers
                    && super::workers(queue)? == (super::Workers { active: 0, idle: 0 })
                {
                    start(queue, jobs.max(1), program)?;
                }
            }
            TaskState::Running => {}
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Shows a file from a position on, and returns the number of bytes.
fn print(log: &Path, from: u64, show: Show<'_>) -> Result<u64, DataError> {
    let mut file = match std::fs::File::open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(DataError::io(log)(error)),
    };
    file.seek(SeekFrom::Start(from)).map_err(DataError::io(log))?;
    let mut total = 0;
    loop {
        let mut bytes = Vec::new();
        (&file).take(CHUNK_BYTES).read_to_end(&mut bytes).map_err(DataError::io(log))?;
        if bytes.is_empty() {
            return Ok(total);
        }
        show(&bytes);
        total += bytes.len() as u64;
    }
}

/// Shows the output of an experiment that runs or ran; with `follow` until it ends.
///
/// # Errors
/// [`DataError::Invalid`] if it is not in the queue, or has not been started.
pub async fn logs(queue: &Queue, name: &str, follow_on: bool, show: Show<'_>) -> Result<(), DataError> {
    queue.recover()?;
    let tasks = queue.tasks()?;
    let (found, missing) = Queue::select(&tasks, &[name.to_owned()]);
    let Some(task) = found.first() else {
        return Err(super::unknown(&missing, "the name of an experiment in the queue"));
    };
    if task.state == TaskState::Queued {
        return Err(DataError::Invalid(format!("experiment '{name}' is in the queue and has not been started")));
    }
    let log = queue.records(&task.entry).log();
    if follow_on {
        return follow(queue, &task.entry, None, show).await.map(drop);
    }
    if !log.exists() {
        return Err(DataError::Invalid(format!(
            "there is no output of experiment '{name}'; it may have failed before it ran, which the files {}/*.out report",
            queue.broker.folder().display()
        )));
    }
    print(&log, 0, show).map(drop)
}
