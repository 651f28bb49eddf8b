//! Compaction of metric points: a metric's history costs what that metric has, not what its run has.
//!
//! A request's points are stored as one row, which is cheap to write and expensive to read: a history would unpack all rows of
//! the run. So rows are rewritten in the background, as in a log-structured merge tree. Rows of requests are level 0. One step
//! takes the oldest rows of a level and sorts their points by key: a key with many points gets a row of its own
//! (`metric_chunks`), keys with few share rows of level + 1 (`metric_mixed`), which are compacted in the same way when there are
//! many. A history reads the rows of its key, the mixed rows around it, and the rows of requests that are left, whose number is
//! bounded.
//!
//! A step reads and sorts outside the writer, so that changes do not wait for it, and then replaces the rows in one
//! transaction. Between the two another server may have compacted the same run; the number of the run's compactions tells.

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

/// When rows are compacted, and how much one step takes, so that its transaction is short.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Rows of requests after which a run is compacted, and rows that one step takes at most.
    pub(crate) step_rows: usize,
    /// Bytes of packed points after which a run is compacted, and that one step takes at most (and one row more).
    pub(crate) step_bytes: usize,
    /// Mixed rows of one level after which they are compacted.
    pub(crate) mixed_rows: i64,
    /// Points of one key in a step for which it gets a row of its own.
    pub(crate) chunk_points: usize,
    /// Bytes after which a mixed row is complete.
    pub(crate) mixed_bytes: usize,
}

/// A step takes some 40,000 points. A history of a key with few points unpacks as many that are not its own, and per level as
/// many as mixed rows hold; that takes a few milliseconds.
pub(crate) const LIMITS: Limits =
    Limits { step_rows: 1000, step_bytes: 512 * 1024, mixed_rows: 256, chunk_points: 64, mixed_bytes: 16 * 1024 };
/// Runs that can wait to be compacted. One that finds no room is noticed again with its next request.
const QUEUE: usize = 1024;
/// Runs whose sizes are counted at once; a limit of memory.
const MAX_COUNTED: usize = 65_536;
/// When runs are looked for that an earlier process left uncompacted: so late that a command which uses the store for a moment
/// does not begin with it.
pub(crate) const SWEEP_AFTER: Duration = Duration::from_secs(60);
/// Rows of requests for which that search has a closer look at a run.
const SWEEP_ROWS: i64 = 32;

/// What a request stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    pub(crate) run: i64,
    /// Bytes of its row; 0 if it had no metrics.
    pub(crate) bytes: usize,
}

/// Notices which runs are due and compacts them, one after the other, on a task of its own.
pub(crate) struct Compactor {
    due: mpsc::Sender<i64>,
    limits: Limits,
    /// What this process stored of each run since it was last found due.
    counted: Mutex<HashMap<i64, Size>>,
}

impl Limits {
    fn is_due(&self, size: Size) -> bool {
        size.rows >= self.step_rows || size.bytes >= self.step_bytes
    }
}

impl Compactor {
    /// Starts the task, which ends when the compactor is dropped. After `sweep_after` it looks for runs that an earlier process
    /// left uncompacted.
    pub(crate) fn start(db: Database, limits: Limits, sweep_after: Duration) -> Self {
        let (due, receiver) = mpsc::channel(QUEUE);
        // The queue outlives a task that panicked, so that its successor goes on with it.
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        tokio::spawn(async move {
            let start = || work(db.clone(), Arc::clone(&receiver), limits, sweep_after);
            slipway_core::task::restart_on_panic("compaction of metrics", start).await;
        });
        Self { due, limits, counted: Mutex::default() }
    }

    /// Counts what a request stored: all the work that compaction adds to a request.
    pub(crate) fn stored(&self, Stored { run, bytes }: Stored) {
        if bytes == 0 {
            return;
        }
        let mut counted = self.counted.lock();
        if counted.len() >= MAX_COUNTED {
            counted.clear();
        }
        let size = counted.entry(run).or_default();
        size.add(bytes);
        if self.limits.is_due(*size) && self.due.try_send(run).is_ok() {
            counted.remove(&run);
        }
    }

    /// Notes how much of what was read is not compacted.
    pub(crate) fn read(&self, run: i64, tail: Size) {
        if self.limits.is_due(tail) {
            // If the queue is full, the next one who reads asks again.
            let _ = self.due.try_send(run);
        }
    }
}

async fn work(db: Database, due: Arc<tokio::sync::Mutex<mpsc::Receiver<i64>>>, limits: Limits, sweep_after: Duration) {
    let mut due = due.lock().await;
    let sweep = tokio::time::sleep(sweep_after);
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
    match db.read(|c| repo::runs_with_rows(c, SWEEP_ROWS)).await {
        Ok(runs) => {
            for run in runs {
                if due.is_closed() {
                    return;
                }
                compact_and_log(&db, run, limits).await;
            }
        }
        Err(error) => tracing::warn!(%error, "runs that should be compacted cannot be looked for"),
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

/// Compacts a run until nothing of it is due; how many steps that took.
pub(crate) async fn compact(db: &Database, run: i64, limits: Limits) -> Result<usize, Error> {
    let mut steps = 0;
    loop {
        let started = Instant::now();
        let Some(step) = db.read(move |c| plan(c, run, limits)).await? else { return Ok(steps) };
        db.write(move |c| step.apply(c)).await?;
        steps += 1;
        // Leaves at least half of the time to requests.
        tokio::time::sleep(started.elapsed()).await;
    }
}

/// Rows that are to be replaced, and by what.
#[derive(Debug)]
pub(crate) struct Step {
    run: i64,
    /// The number of compactions when the rows were read.
    compactions: i64,
    level: i64,
    ids: Vec<i64>,
    chunks: Vec<(String, Vec<u8>)>,
    mixed: Vec<Mixed>,
}

/// The next step for a run; `None` when nothing is due.
pub(crate) fn plan(c: &Connection, run: i64, limits: Limits) -> Result<Option<Step>, Error> {
    let Some(compactions) = repo::compactions(c, run)? else { return Ok(None) };
    let limit = i64::try_from(limits.step_rows).unwrap_or(i64::MAX);
    let mut rows = repo::oldest(c, run, 0, limit)?;
    let bytes = rows.iter().map(|(_, bytes)| usize::try_from(*bytes).unwrap_or(0)).sum();
    let levels: Vec<i64> = if limits.is_due(Size { rows: rows.len(), bytes }) {
        vec![0]
    } else {
        let crowded = repo::mixed_rows(c, run)?.into_iter().filter(|(_, rows)| *rows >= limits.mixed_rows);
        crowded.map(|(level, _)| level).collect()
    };
    for level in levels {
        if level > 0 {
            rows = repo::oldest(c, run, level, limit)?;
        }
        let mut taken = Size::default();
        let mut ids = Vec::new();
        for (id, bytes) in rows.drain(..) {
            if taken.bytes >= limits.step_bytes {
                break;
            }
            taken.add(usize::try_from(bytes).unwrap_or(0));
            ids.push(id);
        }
        let packed = repo::packed(c, run, level, &ids)?;
        let mut points = ByKey::default();
        for row in &packed {
            points.add(row).ok_or_else(|| repo::damaged(run))?;
        }
        let (chunks, mixed) = regrouped(points.sorted(), limits);
        // Rows of different keys stay as they are however often they are regrouped. A step that only moved them to the next level
        // would be followed by the same one there, without end.
        let is_unchanged = chunks.is_empty()
            && mixed.len() == packed.len()
            && mixed.iter().all(|row| packed.iter().any(|old| old[..] == row.points[..]));
        if !is_unchanged {
            return Ok(Some(Step { run, compactions, level, ids, chunks, mixed }));
        }
    }
    Ok(None)
}

/// Packs points in the order of their keys: rows of one key with many points, and rows of keys with few.
fn regrouped(points: Vec<(&str, Vec<Point>)>, limits: Limits) -> (Vec<(String, Vec<u8>)>, Vec<Mixed>) {
    /// About as many bytes as a point has in a row.
    const POINT_BYTES: usize = 14;
    let (mut chunks, mut mixed) = (Vec::new(), Vec::new());
    let mut few: Vec<(&str, Vec<Point>)> = Vec::new();
    let mut bytes = 0;
    let mut complete = |few: &mut Vec<(&str, Vec<Point>)>| {
        if let (Some((first, _)), Some((last, _))) = (few.first(), few.last()) {
            mixed.push(Mixed { first_key: (*first).into(), last_key: (*last).into(), points: pack_keys(few) });
        }
        few.clear();
    };
    for (key, points) in points {
        if points.len() >= limits.chunk_points {
            chunks.push((key.to_owned(), pack_keys(&[(key, points)])));
            continue;
        }
        bytes += key.len() + points.len() * POINT_BYTES;
        few.push((key, points));
        if bytes >= limits.mixed_bytes {
            complete(&mut few);
            bytes = 0;
        }
    }
    complete(&mut few);
    (chunks, mixed)
}

impl Step {
    /// Replaces the rows, unless the run was compacted or removed since they were read; whether it did.
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
