//! When the lines of a log were written. The program writes its log itself, so that it does not depend on another process; the supervisor
//! observes how the log grows. Used for times in logs and for logs since a time.
//!
//! The file `times` of an attempt consists of records of 16 bytes, which only grow: a size of the log, and the time of the last write
//! before the log was observed to have this size, in nanoseconds since the Unix epoch; both are little-endian.

use std::fs::{File, Metadata};
use std::io::{Error, ErrorKind, Result, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a record.
const RECORD_BYTES: u64 = 16;
/// Interval at which the size of the log is recorded, and so the resolution of the times.
const INTERVAL: Duration = Duration::from_millis(100);
const SECOND_NS: i64 = 1_000_000_000;

/// The file of an attempt.
fn path(attempt: &Path) -> PathBuf {
    attempt.join("times")
}

/// The time of the last write to a file, in nanoseconds since the Unix epoch.
pub(super) fn written_at(file: &Metadata) -> i64 {
    file.mtime().saturating_mul(SECOND_NS).saturating_add(file.mtime_nsec())
}

/// Records how the log of an attempt grows.
#[derive(Debug)]
pub(super) struct Recorder {
    log: PathBuf,
    times: File,
    size: u64,
}

impl Recorder {
    /// Creates the file of an attempt whose log exists.
    pub(super) fn create(attempt: &Path) -> Result<Self> {
        Ok(Self { log: attempt.join("log"), times: File::create(path(attempt))?, size: 0 })
    }

    /// Records the size of the log, if it has grown. Best effort: without a record, the lines have the time of later ones.
    pub(super) fn record(&mut self) {
        let Ok(log) = std::fs::metadata(&self.log) else { return };
        if log.len() > self.size {
            let record = [log.len().to_le_bytes(), written_at(&log).to_le_bytes()].concat();
            if self.times.write_all(&record).is_ok() {
                self.size = log.len();
            }
        }
    }

    /// Records the size of the log at intervals. Never ends.
    pub(super) async fn follow(&mut self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            self.record();
        }
    }
}

/// The recorded times of a log.
#[derive(Debug)]
pub(super) struct Times {
    file: File,
    /// Number of records.
    count: u64,
}

impl Times {
    /// Opens the times of an attempt; `None` if they were not recorded.
    pub(super) fn open(attempt: &Path) -> Result<Option<Self>> {
        match File::open(path(attempt)) {
            Ok(file) => Ok(Some(Self { count: file.metadata()?.len() / RECORD_BYTES, file })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A record, by its index: size and time.
    fn get(&self, index: u64) -> Result<(u64, i64)> {
        let mut record = [0; RECORD_BYTES as usize];
        self.file.read_exact_at(&mut record, index * RECORD_BYTES)?;
        let [Ok(size), Ok(time)] = [0, 8].map(|at| record[at..at + 8].try_into()) else {
            return Err(Error::from(ErrorKind::InvalidData));
        };
        Ok((u64::from_le_bytes(size), i64::from_le_bytes(time)))
    }

    /// The index of the first record for which `is_late` holds, which it also does for all later ones; their number if there is none.
    fn first(&self, is_late: impl Fn((u64, i64)) -> bool) -> Result<u64> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if is_late(self.get(middle)?) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(low)
    }

    /// The number of bytes whose times are recorded.
    pub(super) fn size(&self) -> Result<u64> {
        self.count.checked_sub(1).map_or(Ok(0), |last| Ok(self.get(last)?.0))
    }

    /// When the byte at an offset was written, and the offset up to which all bytes have the same time; `None` if it is not recorded.
    pub(super) fn at(&self, offset: u64) -> Result<Option<(i64, u64)>> {
        let index = self.first(|(size, _)| size > offset)?;
        if index == self.count {
            return Ok(None);
        }
        let (size, time) = self.get(index)?;
        Ok(Some((time, size)))
    }

    /// The offset of the first byte that was written at this time or later; [`Self::size`] if none was.
    pub(super) fn since(&self, time: i64) -> Result<u64> {
        let index = self.first(|(_, recorded)| recorded >= time)?;
        index.checked_sub(1).map_or(Ok(0), |before| Ok(self.get(before)?.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_the_time_of_the_write_that_was_observed() {
        let attempt = std::env::temp_dir().join(format!("slipway-times-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(&attempt).unwrap();
        assert!(Times::open(&attempt).unwrap().is_none());
        let mut recorder = Recorder::create(&attempt).unwrap();
        let log = attempt.join("log");
        let write = |text: &str, seconds: u64| {
            let mut file = File::options().create(true).append(true).open(&log).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        };
        recorder.record();
        write("one\n", 10);
        recorder.record();
        recorder.record();
        write("two\nthr", 20);
        recorder.record();
        let times = Times::open(&attempt).unwrap().unwrap();
        assert_eq!((times.count, times.size().unwrap()), (2, 11), "only growth is recorded");
        let at = |offset| times.at(offset).unwrap();
        assert_eq!(
            [at(0), at(3), at(4), at(11)],
            [Some((10 * SECOND_NS, 4)), Some((10 * SECOND_NS, 4)), Some((20 * SECOND_NS, 11)), None]
        );
        let since = |seconds: i64| times.since(seconds * SECOND_NS).unwrap();
        assert_eq!([since(5), since(10), since(11), since(21)], [0, 0, 4, 11]);
        std::fs::remove_dir_all(&attempt).unwrap();
    }
}
