//! Compaction of metric points: the cost of reading a metric's history depends on the size of the metric, not of the whole run.
//!
//! The points of a request are stored as one row, which is cheap to write and expensive to read: a history would have to unpack all
//! rows of the run. So a background task rewrites the rows, like a log-structured merge tree. Rows of requests are level 0. One step
//! takes the oldest rows of a level and groups their points by key: a key with many points gets its own row (`metric_chunks`), keys
//! with few points share rows of level + 1 (`metric_mixed`), which are compacted in the same way when there are many. A history then
//! reads the rows of its key, the mixed rows whose range of keys includes it, and the uncompacted rows, whose number is bounded.
//!
//! A step reads and sorts outside of the writer, so that changes do not wait for it, and then replaces the rows in one transaction.
//! If another server compacted the same run in between, the run's number of compactions has changed, and the step is discarded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use slipway_store::Database;
use slipway_store::sql::Connection;
use tokio::sync::mpsc;

use crate::points::{ByKey, Point, pack_keys};
use crate::repo::metrics::{self as repo, Mixed, Size};
use crate::{Error, ErrorCode};

/// Thresholds for compaction, and limits of one step, which keep its transaction short.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Number of uncompacted rows at which a run is compacted, and maximum number of rows per step.
    pub(crate) step_rows: usize,
    /// Bytes of uncompacted rows at which a run is compacted, and maximum bytes per step (the last row may exceed it).
    pub(crate) step_bytes: usize,
    /// Number of mixed rows of a level at which the level is compacted.
    pub(crate) mixed_rows: i64,
    /// Minimum number of points of a key in a step for which the key gets its own row.
    pub(crate) chunk_points: usize,
    /// Size in bytes at which a mixed row is complete.
    pub(crate) mixed_bytes: usize,
}

/// With these limits a step takes about 40,000 points. The history of a key with few points unpacks about as many points of other
/// keys, and those of the matching mixed rows of each level, which takes a few milliseconds.
pub(crate) const LIMITS: Limits =
    Limits { step_rows: 1000, step_bytes: 512 * 1024, mixed_rows: 256, chunk_points: 64, mixed_bytes: 16 * 1024 };
/// Capacity of the queue of runs to compact. A run that does not fit is detected again at its next request.
const QUEUE_CAPACITY: usize = 1024;
/// Maximum number of runs whose sizes are tracked, which bounds memory.
const MAX_TRACKED_RUNS: usize = 65_536;
/// Delay from the start to the sweep, which compacts runs that an earlier process left uncompacted. It is long enough that a
/// short-lived command does not start the sweep.
pub(crate) const SWEEP_DELAY: Duration = Duration::from_secs(60);
/// Minimum number of uncompacted rows for which the sweep checks a run.
const SWEEP_MIN_ROWS: i64 = 32;

/// The row that a request stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    /// The integer key of the run.
    pub(crate) run: i64,
    /// The size of the row in bytes; 0 if the request had no metrics.
    pub(crate) bytes: usize,
}

/// Detects runs that are due for compaction, and compacts them one after the other in a background task.
pub(crate) struct Compactor {
    due: mpsc::Sender<i64>,
    limits: Limits,
    /// The size of the rows that this process stored per run since the run was last queued.
    sizes: Mutex<HashMap<i64, Size>>,
}

impl Limits {
    fn is_due(&self, size: Size) -> bool {
        size.rows >= self.step_rows || size.bytes >= self.step_bytes
    }
}

impl Compactor {
    /// Starts the background task, which ends when the compactor is dropped. After `sweep_delay` it compacts runs that an earlier
    /// process left uncompacted.
    pub(crate) fn start(db: Database, limits: Limits, sweep_delay: Duration) -> Self {
        let (due, receiver) = mpsc::channel(QUEUE_CAPACITY);
        // The queue survives a panic of the task, so that the restarted task continues with it.
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        tokio::spawn(async move {
            let start = || run_task(db.clone(), Arc::clone(&receiver), limits, sweep_delay);
            slipway_core::task::restart_on_panic("compaction of metrics", start).await;
        });
        Self { due, limits, sizes: Mutex::default() }
    }

    /// Records a stored row and queues the run if it is due. This is all the work that compaction adds to a write request.
    pub(crate) fn record_write(&self, Stored { run, bytes }: Stored) {
        if bytes == 0 {
            return;
        }
        let mut sizes = self.sizes.lock();
        if sizes.len() >= MAX_TRACKED_RUNS {
            sizes.clear();
        }
        let size = sizes.entry(run).or_default();
        size.add(bytes);
        if self.limits.is_due(*size) && self.due.try_send(run).is_ok() {
            sizes.remove(&run);
        }
    }

    /// Records the size of the uncompacted rows that a history had to read, and queues the run if it is due.
    pub(crate) fn record_read(&self, run: i64, uncompacted: Size) {
        if self.limits.is_due(uncompacted) {
            // If the queue is full, the next read tries again.
            let _ = self.due.try_send(run);
        }
    }
}

async fn run_task(
    db: Database,
    due: Arc<tokio::sync::Mutex<mpsc::Receiver<i64>>>,
    limits: Limits,
    sweep_delay: Duration,
) {
    let mut due = due.lock().await;
    let sweep = tokio::time::sleep(sweep_delay);
    tokio::pin!(sweep);
    loop {
        tokio::select! {
            run = due.recv() => match run {
                Some(run) => compact_and_log(&db, run, limits).await,
                None => return,
            },
            () = &mut sweep => break,
        }
    }
    match db.read(|c| repo::runs_with_rows(c, SWEEP_MIN_ROWS)).await {
        Ok(runs) => {
            for run in runs {
                if due.is_closed() {
                    return;
                }
                compact_and_log(&db, run, limits).await;
            }
        }
        Err(error) => tracing::warn!(%error, "cannot list the runs to compact"),
    }
    while let Some(run) = due.recv().await {
        compact_and_log(&db, run, limits).await;
    }
}

async fn compact_and_log(db: &Database, run: i64, limits: Limits) {
    match compact(db, run, limits).await {
        Ok(steps) => tracing::debug!(run, steps, "compacted metric points"),
        Err(error) if error.code == ErrorCode::TemporarilyUnavailable => {}
        Err(error) => {
            tracing::warn!(run, %error, "metric points cannot be compacted; their histories stay slow to read")
        }
    }
}

/// Compacts a run until no step is due; returns the number of steps.
pub(crate) async fn compact(db: &Database, run: i64, limits: Limits) -> Result<usize, Error> {
    let mut steps = 0;
    loop {
        let started = Instant::now();
        let Some(step) = db.read(move |c| plan(c, run, limits)).await? else { return Ok(steps) };
        db.write(move |c| step.apply(c)).await?;
        steps += 1;
        // Pause as long as the step took, so that requests get at least half of the time.
        tokio::time::sleep(started.elapsed()).await;
    }
}

/// A planned step: the rows to remove, and the rows that replace them.
#[derive(Debug)]
pub(crate) struct Step {
    run: i64,
    /// The run's number of compactions when the rows were read.
    compactions: i64,
    level: i64,
    ids: Vec<i64>,
    chunks: Vec<(String, Vec<u8>)>,
    mixed: Vec<Mixed>,
}

/// Plans the next step for a run; `None` when nothing is due.
pub(crate) fn plan(c: &Connection, run: i64, limits: Limits) -> Result<Option<Step>, Error> {
    let Some(compactions) = repo::compactions(c, run)? else { return Ok(None) };
    let limit = i64::try_from(limits.step_rows).unwrap_or(i64::MAX);
    let mut rows = repo::oldest(c, run, 0, limit)?;
    let bytes = rows.iter().map(|(_, bytes)| usize::try_from(*bytes).unwrap_or(0)).sum();
    let levels: Vec<i64> = if limits.is_due(Size { rows: rows.len(), bytes }) {
        vec![0]
    } else {
        let full_levels = repo::mixed_rows(c, run)?.into_iter().filter(|(_, rows)| *rows >= limits.mixed_rows);
        full_levels.map(|(level, _)| level).collect()
    };
    for level in levels {
        if level > 0 {
            rows = repo::oldest(c, run, level, limit)?;
        }
        let mut step_size = Size::default();
        let mut ids = Vec::new();
        for (id, bytes) in rows.drain(..) {
            if step_size.bytes >= limits.step_bytes {
                break;
            }
            step_size.add(usize::try_from(bytes).unwrap_or(0));
            ids.push(id);
        }
        let packed = repo::packed(c, run, level, &ids)?;
        let mut points = ByKey::default();
        for row in &packed {
            points.add(row).ok_or_else(|| repo::corrupt(run))?;
        }
        let (chunks, mixed) = regroup(points.sorted(), limits);
        // Mixed rows with disjoint keys do not change when they are regrouped. A step that only moved them to the next level would be
        // followed by the same step there, and so on without end.
        let is_unchanged = chunks.is_empty()
            && mixed.len() == packed.len()
            && mixed.iter().all(|row| packed.iter().any(|old| old[..] == row.points[..]));
        if !is_unchanged {
            return Ok(Some(Step { run, compactions, level, ids, chunks, mixed }));
        }
    }
    Ok(None)
}

/// Packs points, sorted by key, into chunks of one key with many points, and mixed rows of keys with few points.
fn regroup(points: Vec<(&str, Vec<Point>)>, limits: Limits) -> (Vec<(String, Vec<u8>)>, Vec<Mixed>) {
    /// Estimated size of a point in a row.
    const POINT_BYTES: usize = 14;
    let (mut chunks, mut mixed) = (Vec::new(), Vec::new());
    let mut small_keys: Vec<(&str, Vec<Point>)> = Vec::new();
    let mut bytes = 0;
    let mut complete = |small_keys: &mut Vec<(&str, Vec<Point>)>| {
        if let (Some((first, _)), Some((last, _))) = (small_keys.first(), small_keys.last()) {
            mixed.push(Mixed { first_key: (*first).into(), last_key: (*last).into(), points: pack_keys(small_keys) });
        }
        small_keys.clear();
    };
    for (key, points) in points {
        if points.len() >= limits.chunk_points {
            chunks.push((key.to_owned(), pack_keys(&[(key, points)])));
            continue;
        }
        bytes += key.len() + points.len() * POINT_BYTES;
        small_keys.push((key, points));
        if bytes >= limits.mixed_bytes {
            complete(&mut small_keys);
            bytes = 0;
        }
    }
    complete(&mut small_keys);
    (chunks, mixed)
}

impl Step {
    /// Replaces the rows. Returns false and changes nothing if the run was compacted or deleted since the rows were read.
    pub(crate) fn apply(self, c: &Connection) -> Result<bool, Error> {
        if !repo::count_compaction(c, self.run, self.compactions)? {
            return Ok(false);
        }
        repo::remove(c, self.run, self.level, &self.ids)?;
        repo::add_chunks(c, self.run, self.chunks)?;
        repo::add_mixed(c, self.run, self.level + 1, self.mixed)?;
        Ok(true)
    }
}
