//! What a request may take to read a repository that is not trusted: bytes, and time until its client is gone. A user's own project has no such limits.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::DataError;

/// Maximum bytes of a `.dvc` file, `dvc.yaml`, `dvc.lock` or parameter file; about 30,000 stages.
const MAX_STAGE_FILE_BYTES: usize = 16 << 20;
/// Maximum bytes of all of them in a commit; about 200,000 `.dvc` files.
const MAX_STAGE_FILES_BYTES: usize = 32 << 20;
/// Maximum bytes of a file with values or points.
const MAX_FILE_BYTES: usize = 4 << 20;
/// Maximum bytes of all files with values that a request reads.
const MAX_FILES_BYTES: usize = 32 << 20;
/// Maximum bytes of all files with points that a request reads. Each cell of a table takes about a hundred bytes of memory.
const MAX_POINTS_BYTES: usize = 8 << 20;
/// Maximum bytes that the templates of a `dvc.yaml` expand to, in a foreign repository and in a user's own.
const MAX_EXPANDED_BYTES: (usize, usize) = (32 << 20, 128 << 20);

/// The allowance of a request; the default one has no limits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Allowance(Option<Arc<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    is_stopped: AtomicBool,
    files: AtomicUsize,
    points: AtomicUsize,
}

/// Stops the work of a request when it is dropped.
#[derive(Debug)]
pub(crate) struct Stop(Allowance);

impl Drop for Stop {
    fn drop(&mut self) {
        if let Some(inner) = &self.0.0 {
            inner.is_stopped.store(true, Ordering::Relaxed);
        }
    }
}

impl Allowance {
    /// The allowance of a request on a foreign repository, whose work ends when the [`Stop`] is dropped.
    pub(crate) fn of_request() -> (Self, Stop) {
        let allowance = Self(Some(Arc::default()));
        (allowance.clone(), Stop(allowance))
    }

    /// Fails if nobody waits for the work any more. Work that may take long calls this again and again.
    ///
    /// # Errors
    /// [`DataError::Limit`]
    pub(crate) fn check(&self) -> Result<(), DataError> {
        match &self.0 {
            Some(inner) if inner.is_stopped.load(Ordering::Relaxed) => {
                Err(DataError::Limit("the request took too long, or its client is gone".into()))
            }
            _ => Ok(()),
        }
    }

    /// Maximum bytes that the templates of a `dvc.yaml` expand to.
    pub(crate) fn expanded_bytes(&self) -> usize {
        if self.0.is_some() { MAX_EXPANDED_BYTES.0 } else { MAX_EXPANDED_BYTES.1 }
    }

    /// Fails for files of stages, each with its bytes, that are too large.
    ///
    /// # Errors
    /// [`DataError::Limit`]
    pub(crate) fn stage_files<'a>(&self, files: impl Iterator<Item = (&'a Path, usize)>) -> Result<(), DataError> {
        self.check()?;
        if self.0.is_none() {
            return Ok(());
        }
        let mut all = 0;
        for (path, bytes) in files {
            within(path, bytes, MAX_STAGE_FILE_BYTES)?;
            all += bytes;
        }
        match all > MAX_STAGE_FILES_BYTES {
            true => Err(limit("the files of stages", MAX_STAGE_FILES_BYTES)),
            false => Ok(()),
        }
    }

    /// Takes the bytes of a file with values.
    ///
    /// # Errors
    /// [`DataError::Limit`]
    pub(crate) fn file(&self, path: &Path, bytes: usize) -> Result<(), DataError> {
        self.check()?;
        let Some(inner) = &self.0 else { return Ok(()) };
        within(path, bytes, MAX_FILE_BYTES)?;
        take(&inner.files, bytes, "files with values", MAX_FILES_BYTES)
    }

    /// Takes the bytes of a file with points.
    ///
    /// # Errors
    /// [`DataError::Limit`]
    pub(crate) fn points(&self, bytes: usize) -> Result<(), DataError> {
        let Some(inner) = &self.0 else { return Ok(()) };
        take(&inner.points, bytes, "the points of plots", MAX_POINTS_BYTES)
    }
}

fn within(path: &Path, bytes: usize, maximum: usize) -> Result<(), DataError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if bytes > maximum { Err(limit(&format!("'{name}'"), maximum)) } else { Ok(()) }
}

fn take(taken: &AtomicUsize, bytes: usize, what: &str, maximum: usize) -> Result<(), DataError> {
    let before = taken.fetch_add(bytes, Ordering::Relaxed);
    if before.saturating_add(bytes) > maximum { Err(limit(what, maximum)) } else { Ok(()) }
}

fn limit(what: &str, maximum: usize) -> DataError {
    let maximum = slipway_core::units::bytes(maximum as u64);
    DataError::Limit(format!("a server reads at most {maximum} of {what} for a request"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_request_are_limited_and_its_work_stops_with_it() {
        let (allowance, stop) = Allowance::of_request();
        let path = Path::new("/p/values.json");
        for _ in 0..8 {
            allowance.file(path, 4 << 20).unwrap();
        }
        assert!(allowance.file(path, 1).is_err() && Allowance::default().file(path, 1 << 30).is_ok());
        assert!(allowance.points(8 << 20).is_ok() && allowance.points(1).is_err());
        let files = |count: usize, bytes| allowance.stage_files((0..count).map(|_| (path, bytes)));
        assert!(files(2, 16 << 20).is_ok() && files(3, 11 << 20).is_err() && files(1, (16 << 20) + 1).is_err());
        drop(stop);
        assert!(allowance.check().is_err() && Allowance::default().check().is_ok());
    }
}
