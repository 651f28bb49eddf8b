//! The remembered digests of files, so that an unchanged file is not read again. A small database in `.dvc/tmp/slipway-digests`; if it is
//! lost or damaged, files are read again.
//!
//! A digest is valid while device, inode, size, modification and change time are the same. A file that was changed at the very time when its
//! digest was computed could be changed again without a new time, since file systems have coarse clocks; such entries ("racy" in Git's words)
//! are not recorded.
//!
//! A file that slipway itself wrote, and that nobody else knew before it was renamed, is different: a later change of its content would give it
//! a modification time after the renaming, so its digest is recorded if it was written long enough before.
//!
//! A project may have millions of files, so a record is small: a number for the file's identity, a hash of its state, and the digest.

use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::DataError;
use crate::stat::Stat;

/// The first bytes of the file, with the version of the format.
const MAGIC: &[u8; 16] = b"slipway-digests3";
/// Bytes of a record in the file.
const RECORD_BYTES: usize = 32;
/// Maximum number of records; when there would be more, those that this command did not use are dropped.
const MAX_RECORDS: usize = 16 << 20;
/// How long after its last change a file must be read for its digest to be recorded: more than the tick of any kernel's clock.
pub(crate) const RACY: Duration = Duration::from_millis(20);
/// The same for a file system whose times have whole seconds.
const RACY_SECONDS: Duration = Duration::from_secs(2);

/// The digest of a file in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// Identifies the file. If two files had the same number, one of them would be read each time.
    file: u64,
    /// Identifies its state: a change that keeps this number, one in 2^64, would not be noticed.
    state: u64,
    md5: [u8; 16],
}

impl Record {
    fn new(stat: &Stat, md5: [u8; 16]) -> Self {
        let state = [stat.size, stat.mtime.cast_unsigned(), stat.ctime.cast_unsigned()];
        Self {
            // The files of a folder mostly have neighbouring inodes, so their records are near each other, which makes look-ups fast.
            file: mix(stat.device).wrapping_add(stat.inode),
            state: state.into_iter().fold(1, |hash, number| mix(hash ^ number)),
            md5,
        }
    }

    fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Self {
        let number = |from: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[from + i]));
        Self { file: number(0), state: number(8), md5: std::array::from_fn(|i| bytes[16 + i]) }
    }

    fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&self.file.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.state.to_le_bytes());
        bytes[16..].copy_from_slice(&self.md5);
        bytes
    }
}

/// Spreads the bits of a number: the finalizer of MurmurHash3 (<https://github.com/aappleby/smhasher/wiki/MurmurHash3>), a bijection.
fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    number = (number ^ (number >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    number ^ (number >> 33)
}

/// The database.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    /// Sorted by file; each file once.
    records: Vec<Record>,
    changes: Mutex<Vec<Record>>,
}

impl State {
    /// Opens the database of the project with this `.dvc/tmp` folder.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join("slipway-digests");
        let read = |file: std::fs::File| {
            let records = file.metadata().ok()?.len() / RECORD_BYTES as u64;
            parse(BufReader::with_capacity(64 << 10, file), usize::try_from(records).ok()?.min(MAX_RECORDS))
        };
        let records = std::fs::File::open(&path).ok().and_then(read).unwrap_or_default();
        Self { path, records, changes: Mutex::default() }
    }

    /// The digest of an unchanged file.
    pub fn get(&self, stat: &Stat) -> Option<[u8; 16]> {
        if self.records.is_empty() {
            return None;
        }
        let wanted = Record::new(stat, [0; 16]);
        let found = self.records.binary_search_by_key(&wanted.file, |record| record.file).ok()?;
        let record = &self.records[found];
        (record.state == wanted.state).then_some(record.md5)
    }

    /// Records digests of files, each with its state before it was read. `now` is the time at which reading began.
    pub fn record(&self, files: impl IntoIterator<Item = (Stat, [u8; 16])>, now: SystemTime) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.extend(
            files.into_iter().filter(|(stat, _)| !is_racy(stat, now)).map(|(stat, md5)| Record::new(&stat, md5)),
        );
    }

    /// Records digests of files that slipway has just put into the workspace, each with its state since then.
    pub fn record_placed(&self, files: impl IntoIterator<Item = (Stat, [u8; 16])>) {
        let now = SystemTime::now();
        let is_known = |(stat, _): &(Stat, [u8; 16])| is_settled(stat) || !is_racy(stat, now);
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.extend(files.into_iter().filter(is_known).map(|(stat, md5)| Record::new(&stat, md5)));
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
        if self.records.is_empty() {
            self.records = changes; // Millions of them are not copied.
        } else {
            self.records.extend(changes);
        }
        // The sort is stable, so the last record of a file is the newest.
        self.records.sort_by_key(|record| record.file);
        self.records.dedup_by(|next, kept| {
            let is_same = next.file == kept.file;
            if is_same {
                *kept = *next;
            }
            is_same
        });
        // A torn file after a power failure only costs time, so the file is not flushed to disk.
        let temporary = self.path.with_extension("tmp");
        let written = self.write(&temporary).and_then(|()| std::fs::rename(&temporary, &self.path));
        written.map_err(DataError::io(&self.path))
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut file = BufWriter::new(std::fs::File::create(path)?);
        file.write_all(MAGIC)?;
        for record in &self.records {
            file.write_all(&record.to_bytes())?;
        }
        file.flush()
    }
}

/// Whether the file could be changed again without new times after it was read at `now`.
fn is_racy(stat: &Stat, now: SystemTime) -> bool {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX));
    stat.mtime.max(stat.ctime) > now.saturating_sub(margin(stat))
}

/// Whether the content was written long enough before the last change of anything else, such as the name.
fn is_settled(stat: &Stat) -> bool {
    stat.mtime <= stat.ctime.saturating_sub(margin(stat))
}

/// The nanoseconds after which the file system has another time.
fn margin(stat: &Stat) -> i64 {
    let whole_seconds = stat.mtime % 1_000_000_000 == 0 && stat.ctime % 1_000_000_000 == 0;
    let margin = if whole_seconds { RACY_SECONDS } else { RACY };
    i64::try_from(margin.as_nanos()).unwrap_or(i64::MAX)
}

/// The about `expected` records in the file; `None` if it is damaged or has another version.
pub(crate) fn parse(mut file: impl Read, expected: usize) -> Option<Vec<Record>> {
    let mut magic = [0; MAGIC.len()];
    file.read_exact(&mut magic).ok()?;
    if magic != *MAGIC {
        return None;
    }
    let (mut records, mut bytes) = (Vec::<Record>::with_capacity(expected), [0; RECORD_BYTES]);
    loop {
        let length = crate::hash::fill(&mut file, &mut bytes).ok()?;
        if length == 0 {
            return Some(records);
        }
        let record = Record::from_bytes(&bytes);
        let is_sorted = records.last().is_none_or(|last| last.file < record.file);
        if length < RECORD_BYTES || !is_sorted || records.len() == MAX_RECORDS {
            return None;
        }
        records.push(record);
    }
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
    fn placed_files_are_recorded_if_they_were_written_before() {
        let folder = tempfile::tempdir().unwrap();
        let written =
            Stat { device: 1, inode: 2, size: 3, mtime: i64::MAX, ctime: i64::MAX, mode: 0o100_644, links: 1 };
        let settled = Stat { inode: 3, mtime: written.ctime - 20_000_000, ..written };
        let mut state = State::open(folder.path());
        state.record_placed([(written, [1; 16]), (settled, [2; 16])]);
        state.save().unwrap();
        let state = State::open(folder.path());
        assert_eq!([written, settled].map(|stat| state.get(&stat)), [None, Some([2; 16])]);
    }

    #[test]
    fn a_damaged_file_is_ignored() {
        let parse = |bytes: &[u8]| parse(bytes, 0);
        assert!(parse(b"").is_none() && parse(b"slipway-digests3x").is_none());
        assert_eq!(parse(MAGIC), Some(Vec::new()));
        let record = Record { file: 1, state: 2, md5: [3; 16] };
        let bytes = |records: &[Record]| {
            let records = records.iter().flat_map(|record| record.to_bytes());
            MAGIC.iter().copied().chain(records).collect::<Vec<_>>()
        };
        assert_eq!(parse(&bytes(&[record])), Some(vec![record]));
        let unsorted = bytes(&[record, record]);
        assert!(parse(&unsorted).is_none() && parse(&unsorted[..unsorted.len() - 1]).is_none());
    }

    #[test]
    fn the_newest_record_of_a_file_counts() {
        let folder = tempfile::tempdir().unwrap();
        let stat = Stat { device: 1, inode: 2, size: 3, mtime: 4, ctime: 5, mode: 0o100_644, links: 1 };
        let changed = Stat { size: 4, ..stat };
        let other = Stat { inode: 3, ..stat };
        let mut state = State::open(folder.path());
        state.record([(stat, [1; 16]), (other, [2; 16])], SystemTime::now());
        state.save().unwrap();
        let mut state = State::open(folder.path());
        state.record([(changed, [3; 16]), (changed, [4; 16])], SystemTime::now());
        state.save().unwrap();
        let state = State::open(folder.path());
        assert_eq!([stat, changed, other].map(|stat| state.get(&stat)), [None, Some([4; 16]), Some([2; 16])]);
        assert_eq!(state.records.len(), 2);
    }
}
