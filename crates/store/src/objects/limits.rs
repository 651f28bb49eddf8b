//! How much is taken in and for how long: sizes, numbers of parts and of uploads, space on the disk, age.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::StoreError;
use crate::error::Result;

/// The highest number of a part, and so the most parts of an upload; S3's own limit.
pub(super) const MAX_PARTS: u32 = 10_000;
/// Bytes that are written between two looks at the free space of the disk.
pub(super) const SPACE_CHECK_BYTES: u64 = 64 << 20;

/// What an object store takes in.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the largest object. The default is 1 TiB. In a bucket an object has at most 10,000 pieces of 8 MiB (78 GiB), however
    /// high this is.
    pub max_object_bytes: u64,
    /// Bytes of the largest part of an upload in parts. The default is 5 GiB, as S3 has it.
    pub max_part_bytes: u64,
    /// Uploads in parts that may be open (neither completed nor aborted) at the same time. The default is 1,000. Servers that share
    /// a bucket count together, and may go over it by as many as begin at the same moment.
    pub max_open_uploads: usize,
    /// Bytes that stay free on the disk, so that the database beside the objects can go on. A write that would leave less is
    /// refused with [`StoreError::OutOfSpace`]. The default is 256 MiB. For a bucket this is about the copies on this machine.
    pub min_free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_object_bytes: 1 << 40, max_part_bytes: 5 << 30, max_open_uploads: 1000, min_free_bytes: 256 << 20 }
    }
}

/// Counts the bytes of an object or a part while they come in.
#[derive(Debug)]
pub(super) struct Counter {
    what: &'static str,
    limit: u64,
    size: u64,
}

impl Counter {
    pub(super) fn of_object(limit: u64) -> Self {
        Self { what: "the object", limit, size: 0 }
    }

    pub(super) fn of_part(limit: u64) -> Self {
        Self { what: "the part", limit, size: 0 }
    }

    /// Counts `bytes` more.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] when they are more than the limit.
    pub(super) fn add(&mut self, bytes: u64) -> Result<()> {
        self.size = self.size.saturating_add(bytes);
        if self.size > self.limit {
            return Err(StoreError::TooLarge { what: self.what, limit: self.limit });
        }
        Ok(())
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }
}

/// The disk that holds a folder.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) folder: PathBuf,
    pub(super) min_free: u64,
}

impl Disk {
    /// Checks that `bytes` more fit on the disk.
    ///
    /// # Errors
    /// [`StoreError::OutOfSpace`] when less than the minimum would stay free.
    pub(super) fn require(&self, what: &'static str, bytes: u64) -> Result<()> {
        let disk = rustix::fs::statvfs(&self.folder).map_err(|e| StoreError::io(what)(e.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        // Some network file systems do not tell their size.
        if disk.f_blocks > 0 && free < bytes.saturating_add(self.min_free) {
            let reason = format!(
                "{} MiB are free, {} MiB more are needed, and {} MiB have to stay free",
                free >> 20,
                bytes >> 20,
                self.min_free >> 20
            );
            return Err(StoreError::OutOfSpace { what: what.into(), reason });
        }
        Ok(())
    }
}

/// Checks the number of a part.
///
/// # Errors
/// [`StoreError::BadPart`].
pub(super) fn part_number(number: u32) -> Result<u32> {
    if (1..=MAX_PARTS).contains(&number) {
        return Ok(number);
    }
    Err(StoreError::BadPart { number, reason: "parts are numbered from 1 to 10000" })
}

/// Checks the numbers of the parts that an object is made of: each at most once, so that an object is never larger than what was
/// uploaded for it.
///
/// # Errors
/// [`StoreError::BadPart`].
pub(super) fn part_numbers(numbers: &[u32]) -> Result<()> {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        if pair[0] == pair[1] {
            return Err(StoreError::BadPart { number: pair[0], reason: "the part is named twice" });
        }
    }
    numbers.iter().try_for_each(|number| part_number(*number).map(|_| ()))
}

/// Whether at least `age` has passed since `written`. A clock that was put back makes nothing old.
pub(super) fn is_older(written: SystemTime, age: Duration) -> bool {
    SystemTime::now().duration_since(written).unwrap_or_default() >= age
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_parts_are_checked() {
        assert!(part_numbers(&[1, 2, MAX_PARTS]).is_ok());
        for wrong in [vec![0], vec![MAX_PARTS + 1], vec![u32::MAX], vec![3, 1, 3]] {
            assert!(matches!(part_numbers(&wrong), Err(StoreError::BadPart { .. })), "{wrong:?}");
        }
        // As many as a list can hold are refused without being looked at one by one for ever.
        assert!(part_numbers(&vec![7; 1_000_000]).is_err());
    }

    #[test]
    fn a_counter_stops_at_its_limit() {
        let mut counter = Counter::of_object(10);
        counter.add(10).unwrap();
        assert!(matches!(counter.add(1), Err(StoreError::TooLarge { limit: 10, .. })));
        assert!(Counter::of_part(u64::MAX - 1).add(u64::MAX).is_err());
    }
}
