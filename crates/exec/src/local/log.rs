//! Reads the log of an attempt: the standard output and standard error of its program, in the order in which it wrote them.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::Stream;

use super::{POLL_INTERVAL, blocking, supervisor};
use crate::lifecycle::Observation;
use crate::{ExecError, LogQuery};

/// Maximum bytes of one read.
const CHUNK_BYTES: usize = 64 * 1024;

/// Where the next read starts.
enum Position {
    /// At the start of the log, or of its requested last lines.
    Start,
    /// At this byte offset.
    At(u64),
    /// Nowhere, because a read failed.
    End,
}

/// Result of one read.
struct LogChunk {
    /// Whether the attempt had ended before the read, so that the log cannot grow any more.
    is_final: bool,
    /// Byte offset of `bytes` in the log.
    from: u64,
    bytes: Bytes,
}

/// Streams the log in an attempt's folder from the position that the query selects. If the query follows, the stream continues as the
/// log grows, until the attempt has ended, or will not start because its run `is_finished`.
pub fn tail(
    attempt: PathBuf,
    query: LogQuery,
    is_finished: impl Fn() -> bool + Clone + Send + 'static,
) -> impl Stream<Item = Result<Bytes, ExecError>> + Send {
    futures_util::stream::unfold(Position::Start, move |position| {
        let (is_finished, attempt) = (is_finished.clone(), attempt.clone());
        async move {
            let mut at = match position {
                Position::Start => None,
                Position::At(at) => Some(at),
                Position::End => return None,
            };
            loop {
                // Check before reading: output that is written before the run ends must still be read.
                let finished = is_finished();
                let attempt = attempt.clone();
                let chunk = match blocking(move || read(&attempt, at, query.tail)).await {
                    Ok(chunk) => chunk,
                    Err(error) => return Some((Err(error), Position::End)),
                };
                if let Some(chunk) = &chunk {
                    if !chunk.bytes.is_empty() {
                        let next = chunk.from + chunk.bytes.len() as u64;
                        return Some((Ok(chunk.bytes.clone()), Position::At(next)));
                    }
                    at = Some(chunk.from);
                }
                if finished || chunk.is_some_and(|c| c.is_final) || !query.follow {
                    return None;
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
    })
}

/// Reads a chunk; `None` if the log does not exist yet, or has been deleted.
fn read(attempt: &Path, at: Option<u64>, lines: Option<u64>) -> Result<Option<LogChunk>, ExecError> {
    let path = attempt.join("log");
    if !path.exists() {
        return Ok(None);
    }
    let has_ended = || matches!(supervisor::observe(attempt), Observation::Finished { .. });
    let is_final = supervisor::has_started(attempt) && has_ended();
    match read_log(&path, at, lines) {
        Ok((from, bytes)) => Ok(Some(LogChunk { is_final, from, bytes })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ExecError::io("reading the log")(error)),
    }
}

/// Reads up to [`CHUNK_BYTES`] from offset `at`, or from the start of the last lines. Returns the offset and the bytes.
fn read_log(path: &Path, at: Option<u64>, lines: Option<u64>) -> std::io::Result<(u64, Bytes)> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    let from = match (at, lines) {
        (Some(at), _) => at,
        (None, None) => 0,
        (None, Some(lines)) => start_of_last(&file, size, lines)?,
    };
    let mut buffer = vec![0; CHUNK_BYTES.min(usize::try_from(size.saturating_sub(from)).unwrap_or(0))];
    let read = file.read_at(&mut buffer, from)?;
    buffer.truncate(read);
    Ok((from, buffer.into()))
}

/// Byte offset of the last `lines` lines of a file. Reads the file backwards in chunks.
fn start_of_last(file: &std::fs::File, size: u64, lines: u64) -> std::io::Result<u64> {
    use std::os::unix::fs::FileExt;
    if lines == 0 {
        return Ok(size);
    }
    let (mut end, mut remaining) = (size, lines);
    while end > 0 {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let mut buffer = vec![0; usize::try_from(end - start).unwrap_or(0)];
        file.read_exact_at(&mut buffer, start)?;
        for (i, byte) in buffer.iter().enumerate().rev() {
            let offset = start + i as u64;
            // No line starts after the line feed at the end of the file.
            if *byte == b'\n' && offset + 1 < size {
                remaining = remaining.saturating_sub(1);
                if remaining == 0 {
                    return Ok(offset + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}
