//! Limits of the object store: sizes, numbers of parts and of open uploads, free disk space, age of unfinished uploads.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::StoreError;
use crate::error::Result;

/// Maximum part number, and so the maximum number of parts of an upload; S3 has the same limit.
pub(super) const MAX_PARTS: u32 = 10_000;
/// Bytes that are written between two checks of the free disk space.
pub(super) const SPACE_CHECK_INTERVAL_BYTES: u64 = 64 << 20;

/// Limits on what clients may store.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum size of an object in bytes. The default is 1 TiB. In a bucket the maximum is also 10,000 parts of 8 MiB (78 GiB).
    pub max_object_bytes: u64,
    /// Maximum size in bytes of a part of a multipart upload. The default is 5 GiB, as in S3.
    pub max_part_bytes: u64,
    /// Maximum number of multipart uploads that are neither completed nor aborted. The default is 1,000. Servers that share a bucket
    /// count together; uploads that they create at the same moment may exceed the limit.
    pub max_open_uploads: usize,
    /// Minimum free disk space in bytes, reserved for the database, which is on the same disk. A write that would leave less fails
    /// with [`StoreError::OutOfSpace`]. The default is 256 MiB. With a bucket this limits only the local copies.
    pub min_free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_object_bytes: 1 << 40, max_part_bytes: 5 << 30, max_open_uploads: 1000, min_free_bytes: 256 << 20 }
    }
}

/// Counts the received bytes of an object or a part, and enforces the limit.
#[derive(Debug)]
pub(super) struct Counter {
    what: &'static str,
    limit: u64,
    size: u64,
}

impl Counter {
    pub(super) fn for_object(limit: u64) -> Self {
        Self { what: "the object", limit, size: 0 }
    }

    pub(super) fn for_part(limit: u64) -> Self {
        Self { what: "the part", limit, size: 0 }
    }

    /// Adds `bytes` to the count.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] when the total exceeds the limit.
    pub(super) fn add(&mut self, bytes: u64) -> Result<()> {
        self.size = self.size.saturating_add(bytes);
        if self.size > self.limit {
            return Err(StoreError::TooLarge { what: self.what, limit: self.limit });
        }
        Ok(())
    }

    /// Bytes counted so far.
    pub(super) fn size(&self) -> u64 {
        self.size
    }
}

/// The disk on which a folder is, with the space to keep free on it.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) folder: PathBuf,
    pub(super) min_free: u64,
}

impl Disk {
    /// Checks that the disk has space for `bytes` more; `what` names the operation in the error.
    ///
    /// # Errors
    /// [`StoreError::OutOfSpace`] when less than the minimum would remain free.
    pub(super) fn require(&self, what: &'static str, bytes: u64) -> Result<()> {
        let disk = rustix::fs::statvfs(&self.folder).map_err(|e| StoreError::io(what)(e.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        // Some network file systems report a size of 0.
        if disk.f_blocks > 0 && free < bytes.saturating_add(self.min_free) {
            let reason = format!(
                "{} MiB are free, {} MiB are needed, and {} MiB must stay free",
                free >> 20,
                bytes >> 20,
                self.min_free >> 20
            );
            return Err(StoreError::OutOfSpace { what: what.into(), reason });
        }
        Ok(())
    }
}

/// Checks that a part number is from 1 to [`MAX_PARTS`].
///
/// # Errors
/// [`StoreError::BadPart`].
pub(super) fn check_part_number(number: u32) -> Result<u32> {
    if (1..=MAX_PARTS).contains(&number) {
        return Ok(number);
    }
    Err(StoreError::BadPart { number, reason: "parts are numbered from 1 to 10000" })
}

/// Checks the list of parts of a finished object. Each part may occur only once, so that an object is never larger than its uploaded
/// data.
///
/// # Errors
/// [`StoreError::BadPart`].
pub(super) fn check_part_numbers(numbers: &[u32]) -> Result<()> {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        if pair[0] == pair[1] {
            return Err(StoreError::BadPart { number: pair[0], reason: "the part is listed twice" });
        }
    }
    numbers.iter().try_for_each(|number| check_part_number(*number).map(|_| ()))
}

/// Whether at least `age` has passed since `written`. A time in the future, after a clock change, counts as now.
pub(super) fn is_older(written: SystemTime, age: Duration) -> bool {
    SystemTime::now().duration_since(written).unwrap_or_default() >= age
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_part_numbers_are_rejected() {
        assert!(check_part_numbers(&[1, 2, MAX_PARTS]).is_ok());
        for invalid in [vec![0], vec![MAX_PARTS + 1], vec![u32::MAX], vec![3, 1, 3]] {
            assert!(matches!(check_part_numbers(&invalid), Err(StoreError::BadPart { .. })), "{invalid:?}");
        }
        // A very long list is checked in reasonable time.
        assert!(check_part_numbers(&vec![7; 1_000_000]).is_err());
    }

    #[test]
    fn counter_rejects_bytes_above_its_limit() {
        let mut counter = Counter::for_object(10);
        counter.add(10).unwrap();
        assert!(matches!(counter.add(1), Err(StoreError::TooLarge { limit: 10, .. })));
        assert!(Counter::for_part(u64::MAX - 1).add(u64::MAX).is_err());
    }
}
