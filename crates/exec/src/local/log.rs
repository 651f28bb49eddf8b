//! Reads the log of an attempt: the standard output and standard error of its program, in the order in which it wrote them.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::Stream;
use slipway_core::clock::rfc3339;

use super::times::{self, Times};
use super::{POLL_INTERVAL, blocking, supervisor};
use crate::lifecycle::Observation;
use crate::{ExecError, LogQuery};

/// Maximum bytes of one read.
const CHUNK_BYTES: usize = 64 * 1024;

/// Where the next read starts.
#[derive(Clone, Copy)]
enum Position {
    /// At the start of the log, or of its requested last lines.
    Start,
    /// At this byte offset.
    At {
        offset: u64,
        /// Whether a line starts there.
        is_line_start: bool,
    },
    /// Nowhere, because a read failed.
    End,
}

/// Result of one read.
struct LogChunk {
    /// Whether the attempt had ended before the read, so that the log cannot grow any more.
    is_final: bool,
    /// Where the next read starts.
    next: Position,
    /// What was read, with the times of lines if they are requested.
    bytes: Bytes,
}

/// Streams the log in an attempt's folder from the position that the query selects. If the query follows, the stream continues as the
/// log grows, until the attempt has ended, or will not start because its run `is_finished`.
pub fn tail(
    attempt: PathBuf,
    query: LogQuery,
    is_finished: impl Fn() -> bool + Clone + Send + 'static,
) -> impl Stream<Item = Result<Bytes, ExecError>> + Send {
    futures_util::stream::unfold(Position::Start, move |mut position| {
        let (is_finished, attempt) = (is_finished.clone(), attempt.clone());
        async move {
            if let Position::End = position {
                return None;
            }
            loop {
                // Check before reading: output that is written before the run ends must still be read.
                let finished = is_finished();
                let attempt = attempt.clone();
                let chunk = match blocking(move || read(&attempt, position, query)).await {
                    Ok(chunk) => chunk,
                    Err(error) => return Some((Err(error), Position::End)),
                };
                if let Some(chunk) = &chunk {
                    if !chunk.bytes.is_empty() {
                        return Some((Ok(chunk.bytes.clone()), chunk.next));
                    }
                    position = chunk.next;
                }
                if finished || chunk.is_some_and(|c| c.is_final) || !query.follow {
                    return None;
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
    })
}

/// Whether the times of lines are unknown, as for an attempt of an earlier version of slipway.
pub(super) fn is_without_times(attempt: &Path) -> bool {
    attempt.join("started").exists() && !Times::open(attempt).is_ok_and(|times| times.is_some())
}

/// Reads a chunk; `None` if the log does not exist yet, or has been deleted.
fn read(attempt: &Path, position: Position, query: LogQuery) -> Result<Option<LogChunk>, ExecError> {
    let path = attempt.join("log");
    if !path.exists() {
        return Ok(None);
    }
    let has_ended = || matches!(supervisor::observe(attempt), Observation::Finished { .. });
    let is_final = supervisor::has_started(attempt) && has_ended();
    match Log::open(attempt, query).and_then(|log| log.read(position, query, is_final)) {
        Ok((next, bytes)) => Ok(Some(LogChunk { is_final, next, bytes })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ExecError::io("reading the log")(error)),
    }
}

/// A log and the times of its lines, as they are at one moment.
struct Log {
    file: std::fs::File,
    size: u64,
    /// When the log was last written, in nanoseconds since the Unix epoch.
    written_at: i64,
    /// The times of its bytes, if the query needs them. Not all of a log that grows are recorded.
    times: Option<Times>,
}

impl Log {
    fn open(attempt: &Path, query: LogQuery) -> std::io::Result<Self> {
        let needs_times = query.timestamps || query.since.is_some();
        // Before the size of the log, which is then not smaller.
        let times = if needs_times { Times::open(attempt)? } else { None };
        let file = std::fs::File::open(attempt.join("log"))?;
        let metadata = file.metadata()?;
        Ok(Self { file, size: metadata.len(), written_at: times::written_at(&metadata), times })
    }

    /// Reads up to [`CHUNK_BYTES`]. Returns the position behind them, and the bytes with the times of lines if they are requested.
    fn read(&self, position: Position, query: LogQuery, is_final: bool) -> std::io::Result<(Position, Bytes)> {
        use std::os::unix::fs::FileExt;
        let (from, is_line_start) = match position {
            Position::At { offset, is_line_start } => (offset, is_line_start),
            Position::Start | Position::End => (self.start(query)?, true),
        };
        let mut end = self.size;
        if let (Some(times), true, true, false) = (&self.times, query.timestamps, query.follow, is_final) {
            // What is not recorded yet is read after its time is.
            end = end.min(times.size()?);
        }
        let mut buffer = vec![0; CHUNK_BYTES.min(usize::try_from(end.saturating_sub(from)).unwrap_or(0))];
        let read = self.file.read_at(&mut buffer, from)?;
        buffer.truncate(read);
        let next = Position::At {
            offset: from + read as u64,
            is_line_start: buffer.last().map_or(is_line_start, |last| *last == b'\n'),
        };
        let bytes = if query.timestamps { self.stamped(from, is_line_start, &buffer)? } else { buffer };
        Ok((next, bytes.into()))
    }

    /// Byte offset at which the lines start that a query selects.
    fn start(&self, query: LogQuery) -> std::io::Result<u64> {
        let of_tail = query.tail.map_or(Ok(0), |lines| start_of_last(&self.file, self.size, lines))?;
        let Some(since) = query.since else { return Ok(of_tail) };
        let since = since.saturating_mul(1_000_000);
        let recorded = self.times.as_ref().map_or(Ok(0), Times::size)?;
        let mut of_time = self.times.as_ref().map_or(Ok(0), |times| times.since(since))?.min(self.size);
        if of_time >= recorded && self.written_at < since {
            of_time = self.size;
        }
        Ok(of_tail.max(start_of_next(&self.file, of_time)?))
    }

    /// Bytes of the log with the time before each line, as the kubelet writes it (RFC 3339 with nanoseconds).
    fn stamped(&self, from: u64, mut is_line_start: bool, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut stamped = Vec::with_capacity(bytes.len() * 2);
        // The time of the bytes before this offset.
        let (mut time, mut until) = (String::new(), 0);
        let mut offset = from;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if is_line_start {
                if offset >= until {
                    let recorded = self.times.as_ref().map_or(Ok(None), |times| times.at(offset))?;
                    let (nanoseconds, end) = recorded.unwrap_or((self.written_at, u64::MAX));
                    (time, until) = (format_time(nanoseconds), end);
                }
                stamped.extend_from_slice(time.as_bytes());
                stamped.push(b' ');
            }
            stamped.extend_from_slice(line);
            offset += line.len() as u64;
            is_line_start = line.ends_with(b"\n");
        }
        Ok(stamped)
    }
}

/// RFC 3339 with nine digits of the second.
fn format_time(nanoseconds: i64) -> String {
    let seconds = rfc3339(nanoseconds.div_euclid(1_000_000));
    format!("{}.{:09}Z", seconds.trim_end_matches('Z'), nanoseconds.rem_euclid(1_000_000_000))
}

/// Byte offset of the first line that starts at this offset or later.
fn start_of_next(file: &std::fs::File, offset: u64) -> std::io::Result<u64> {
    use std::os::unix::fs::FileExt;
    let Some(mut at) = offset.checked_sub(1) else { return Ok(0) };
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read_at(&mut buffer, at)?;
        if let Some(found) = buffer[..read].iter().position(|byte| *byte == b'\n') {
            return Ok(at + found as u64 + 1);
        }
        if read == 0 {
            return Ok(at);
        }
        at += read as u64;
    }
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
