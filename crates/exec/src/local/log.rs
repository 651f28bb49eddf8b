//! What a try printed, and prints.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::Stream;

use super::{LOOK, LocalProcesses, NAMESPACE, supervisor};
use crate::lifecycle::Seen;
use crate::{ExecError, LogQuery};

/// Bytes read of a log at once.
const CHUNK: usize = 64 * 1024;

/// A log from where it is asked for, and on as it grows.
pub(super) fn tail(
    this: LocalProcesses,
    name: String,
    attempt: PathBuf,
    query: LogQuery,
) -> impl Stream<Item = Result<Bytes, ExecError>> {
    let path = attempt.join("log");
    futures_util::stream::unfold(None::<u64>, move |at| {
        let (this, name, attempt, path) = (this.clone(), name.clone(), attempt.clone(), path.clone());
        async move {
            let mut at = at;
            loop {
                // Looked at before reading, so that what was written before the end is read after it.
                let over = path.exists() && matches!(supervisor::look(&attempt), Seen::Over { .. });
                let gone = this.find(NAMESPACE, &name).map_or(true, |run| run.status.phase.is_final());
                if path.exists() {
                    let read = read_log(&path, at, query.tail);
                    match read {
                        Ok((from, bytes)) if !bytes.is_empty() => {
                            let next = from + bytes.len() as u64;
                            return Some((Ok(bytes), Some(next)));
                        }
                        Ok((from, _)) => at = Some(from),
                        Err(error) => {
                            let failed = ExecError::Io { what: "reading the log".into(), source: error };
                            return if over || gone { None } else { Some((Err(failed), Some(u64::MAX))) };
                        }
                    }
                }
                if over || gone || !query.follow {
                    return None;
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    })
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
