//! The remembered digests of files, so that an unchanged file is not read again. A small database in `.dvc/tmp/slipway-digests`; if it is
//! lost or damaged, files are read again.
//!
//! A digest is valid while device, inode, size, modification and change time are the same. A file that was changed at the very time when its
//! digest was computed could be changed again without a new time, since file systems have coarse clocks; such entries ("racy" in Git's words)
//! are not recorded.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::DataError;
use crate::stat::Stat;

/// The first bytes of the file, with the version of the format.
const MAGIC: &[u8; 16] = b"slipway-digests1";
/// Bytes of a record: device, inode, size, mtime, ctime, MD5.
const RECORD: usize = 8 * 5 + 16;
/// Maximum number of records; when there would be more, those that this command did not use are dropped.
const MAX_RECORDS: usize = 16 << 20;
/// How long after its last change a file must be read for its digest to be recorded: more than the tick of any kernel's clock.
const RACY: Duration = Duration::from_millis(20);
/// The same for a file system whose times have whole seconds.
const RACY_SECONDS: Duration = Duration::from_secs(2);

type Key = (u64, u64);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    size: u64,
    mtime: i64,
    ctime: i64,
    md5: [u8; 16],
}

/// The database.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    records: HashMap<Key, Record>,
    changes: Mutex<HashMap<Key, Record>>,
}

impl State {
    /// Opens the database of the project with this `.dvc/tmp` folder.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join("slipway-digests");
        let records = std::fs::read(&path).ok().and_then(|bytes| parse(&bytes)).unwrap_or_default();
        Self { path, records, changes: Mutex::default() }
    }

    /// The digest of an unchanged file.
    pub fn get(&self, stat: &Stat) -> Option<[u8; 16]> {
        let key = (stat.device, stat.inode);
        let matches =
            |record: &&Record| (record.size, record.mtime, record.ctime) == (stat.size, stat.mtime, stat.ctime);
        self.records.get(&key).filter(matches).map(|record| record.md5)
    }

    /// Records digests of files, each with its state before it was read. `now` is the time at which reading began.
    pub fn record(&self, files: impl IntoIterator<Item = (Stat, [u8; 16])>, now: SystemTime) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        for (stat, md5) in files {
            if !is_racy(&stat, now) {
                let record = Record { size: stat.size, mtime: stat.mtime, ctime: stat.ctime, md5 };
                changes.insert((stat.device, stat.inode), record);
            }
        }
    }

    /// Writes the recorded digests to disk.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&mut self) -> Result<(), DataError> {
        let changes = std::mem::take(self.changes.get_mut().unwrap_or_else(PoisonError::into_inner));
        if changes.is_empty() {
            return Ok(());
        }
        if self.records.len() + changes.len() > MAX_RECORDS {
            self.records.clear();
        }
        self.records.extend(changes);
        let mut bytes = Vec::with_capacity(MAGIC.len() + self.records.len() * RECORD);
        bytes.extend_from_slice(MAGIC);
        for ((device, inode), record) in &self.records {
            for number in [*device, *inode, record.size, record.mtime.cast_unsigned(), record.ctime.cast_unsigned()] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.extend_from_slice(&record.md5);
        }
        // A torn file after a power failure only costs time, so the file is not flushed to disk.
        let temporary = self.path.with_extension("tmp");
        let written = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, &self.path));
        written.map_err(DataError::io(&self.path))
    }
}

/// Whether the file could be changed again without new times after it was read at `now`.
fn is_racy(stat: &Stat, now: SystemTime) -> bool {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX));
    let whole_seconds = stat.mtime % 1_000_000_000 == 0 && stat.ctime % 1_000_000_000 == 0;
    let margin = if whole_seconds { RACY_SECONDS } else { RACY };
    let margin = i64::try_from(margin.as_nanos()).unwrap_or(i64::MAX);
    stat.mtime.max(stat.ctime) > now - margin
}

/// The records in the bytes of the file; `None` if it is damaged or has another version.
pub(crate) fn parse(bytes: &[u8]) -> Option<HashMap<Key, Record>> {
    let records = bytes.strip_prefix(MAGIC)?;
    if records.len() % RECORD != 0 || records.len() / RECORD > MAX_RECORDS {
        return None;
    }
    let mut found = HashMap::with_capacity(records.len() / RECORD);
    for record in records.chunks_exact(RECORD) {
        let number = |i: usize| record[i * 8..i * 8 + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
        let value = Record {
            size: number(2),
            mtime: number(3).cast_signed(),
            ctime: number(4).cast_signed(),
            md5: record[40..].try_into().ok()?,
        };
        found.insert((number(0), number(1)), value);
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_unchanged_files_are_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        std::fs::write(&file, "x").unwrap();
        let stat = Stat::of_path(&file).unwrap().unwrap();
        let mut state = State::open(folder.path());
        let later = SystemTime::now() + Duration::from_secs(3);
        state.record([(stat, [7; 16])], later);
        state.save().unwrap();
        let state = State::open(folder.path());
        assert_eq!(state.get(&stat), Some([7; 16]));
        assert_eq!(state.get(&Stat { ctime: stat.ctime + 1, ..stat }), None);
        assert_eq!(state.get(&Stat { size: 2, ..stat }), None);
    }

    #[test]
    fn racy_files_are_not_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        std::fs::write(&file, "x").unwrap();
        let stat = Stat::of_path(&file).unwrap().unwrap();
        assert!(is_racy(&stat, SystemTime::now()));
        assert!(!is_racy(&stat, SystemTime::now() + Duration::from_millis(100)));
        let coarse = Stat { mtime: 5_000_000_000, ctime: 5_000_000_000, ..stat };
        assert!(is_racy(&coarse, UNIX_EPOCH + Duration::from_millis(6500)));
        assert!(!is_racy(&coarse, UNIX_EPOCH + Duration::from_millis(7500)));
    }

    #[test]
    fn a_damaged_file_is_ignored() {
        assert!(parse(b"").is_none() && parse(b"slipway-digests1x").is_none());
        assert_eq!(parse(MAGIC).map(|records| records.len()), Some(0));
    }
}
