//! The log of an attempt: what its program wrote to standard output and standard error.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::Stream;

use super::{LocalProcesses, POLL_INTERVAL, blocking, supervisor};
use crate::lifecycle::Seen;
use crate::{ExecError, LogQuery};

/// Bytes read of a log at once.
const CHUNK: usize = 64 * 1024;

/// Where reading goes on.
enum Position {
    /// At the beginning, or where the last lines begin.
    Start,
    /// At this byte.
    At(u64),
    /// Nowhere: reading failed.
    End,
}

/// What one reading found.
struct Found {
    /// The attempt had ended before the log was read, so nothing will be added.
    over: bool,
    from: u64,
    bytes: Bytes,
}

/// A log from where it is asked for, and on as it grows.
pub(super) fn tail(
    this: LocalProcesses,
    name: String,
    attempt: PathBuf,
    query: LogQuery,
) -> impl Stream<Item = Result<Bytes, ExecError>> {
    futures_util::stream::unfold(Position::Start, move |position| {
        let (this, name, attempt) = (this.clone(), name.clone(), attempt.clone());
        async move {
            let mut at = match position {
                Position::Start => None,
                Position::At(at) => Some(at),
                Position::End => return None,
            };
            loop {
                // Asked before reading, so that what was written before the end is read after it.
                let finished = this.inner.runs.get(&name).is_none_or(|run| run.status.phase.is_final());
                let attempt = attempt.clone();
                let found = match blocking(move || read(&attempt, at, query.tail)).await {
                    Ok(found) => found,
                    Err(error) => return Some((Err(error), Position::End)),
                };
                if let Some(found) = &found {
                    if !found.bytes.is_empty() {
                        let next = found.from + found.bytes.len() as u64;
                        return Some((Ok(found.bytes.clone()), Position::At(next)));
                    }
                    at = Some(found.from);
                }
                if finished || found.is_some_and(|f| f.over) || !query.follow {
                    return None;
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
    })
}

/// Reads a chunk; `None` while there is no log, or no longer one.
fn read(attempt: &Path, at: Option<u64>, lines: Option<u64>) -> Result<Option<Found>, ExecError> {
    let path = attempt.join("log");
    if !path.exists() {
        return Ok(None);
    }
    let over = matches!(supervisor::observe(attempt), Seen::Over { .. });
    match read_log(&path, at, lines) {
        Ok((from, bytes)) => Ok(Some(Found { over, from, bytes })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ExecError::io("reading the log")(error)),
    }
}

/// Up to a chunk of a log from `at`, or from where its last lines begin; and where that is.
fn read_log(path: &Path, at: Option<u64>, lines: Option<u64>) -> std::io::Result<(u64, Bytes)> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    let from = match (at, lines) {
        (Some(at), _) => at,
        (None, None) => 0,
        (None, Some(lines)) => start_of_last(&file, size, lines)?,
    };
    let mut buffer = vec![0; CHUNK.min(usize::try_from(size.saturating_sub(from)).unwrap_or(0))];
    let read = file.read_at(&mut buffer, from)?;
    buffer.truncate(read);
    Ok((from, buffer.into()))
}

/// Where the last lines of a file begin: read backwards, a chunk at a time.
fn start_of_last(file: &std::fs::File, size: u64, lines: u64) -> std::io::Result<u64> {
    use std::os::unix::fs::FileExt;
    if lines == 0 {
        return Ok(size);
    }
    let (mut end, mut left) = (size, lines);
    while end > 0 {
        let start = end.saturating_sub(CHUNK as u64);
        let mut buffer = vec![0; usize::try_from(end - start).unwrap_or(0)];
        file.read_exact_at(&mut buffer, start)?;
        for (i, byte) in buffer.iter().enumerate().rev() {
            let place = start + i as u64;
            // The line feed that ends the file begins no line.
            if *byte == b'\n' && place + 1 < size {
                left = left.saturating_sub(1);
                if left == 0 {
                    return Ok(place + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}
