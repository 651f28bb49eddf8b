//! What can go wrong while storing.

use std::time::Duration;

use slipway_core::Explain;

/// What the functions of this crate return.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A failure of the metadata database or of the object store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database answered with an error; the change was rolled back.
    #[error("the metadata database failed: {0}")]
    Sql(rusqlite::Error),
    /// PostgreSQL answered with an error; the change was rolled back.
    #[error("the metadata database failed: {}", describe_postgres(.0))]
    Postgres(tokio_postgres::Error),
    /// The database cannot be reached, or went away in the middle.
    #[error("the metadata database cannot be reached: {0}")]
    Unreachable(String),
    /// The URL of the database or of the bucket cannot be used.
    #[error("the store's URL cannot be used: {0}")]
    Url(String),
    /// The commit of a group of changes failed; all of them were rolled back.
    #[error("the change could not be committed: {0}")]
    Commit(String),
    /// The code of a change or of a query panicked. A change was rolled back; the panic's message is in the log only, since it may
    /// quote data.
    #[error("{0} panicked, which is a defect of slipway; nothing was changed")]
    Panicked(&'static str),
    /// Everything that could serve the request was in use for as long as a request may wait.
    #[error("{what} within {waited:?}")]
    Busy {
        /// What did not happen.
        what: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The store is shutting down, or its writer is gone.
    #[error("the store is closed")]
    Closed,
    /// The database file was written by a newer version.
    #[error("the database has schema {found} of {domain}, this program knows {known}")]
    Newer {
        /// Which domain's tables.
        domain: &'static str,
        /// What the file has.
        found: usize,
        /// What this program has.
        known: usize,
    },
    /// A schema change that the database has is not the one that this program has under the same number.
    #[error(
        "schema {version} of {domain} was made by another script than the one in this program (the checksums differ)"
    )]
    MigrationChanged {
        /// Which domain's tables.
        domain: &'static str,
        /// The schema version that the script leads to, counted from 1.
        version: usize,
    },
    /// A file operation failed.
    #[error("{what}: {source}")]
    Object {
        /// What was being done.
        what: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The bucket's service failed.
    #[error("{what}: {source}")]
    Remote {
        /// What was being done.
        what: String,
        /// The service's reason.
        source: object_store::Error,
    },
    /// The disk, its quota or the database is full, or so nearly full that the write was refused; nothing of it was kept.
    #[error("{what}: not enough space: {reason}")]
    OutOfSpace {
        /// What was being done.
        what: String,
        /// The system's reason, or how much is left.
        reason: String,
    },
    /// An object or a part of an upload is larger than the limit; nothing of it was kept.
    #[error("{what} is larger than {limit} bytes, the most that is taken")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The most bytes that are taken.
        limit: u64,
    },
    /// Too many uploads in parts are neither completed nor aborted.
    #[error("{limit} uploads in parts are open already, no more are taken")]
    TooManyUploads {
        /// The most that may be open at the same time.
        limit: usize,
    },
    /// The number of a part cannot be used.
    #[error("part {number}: {reason}")]
    BadPart {
        /// The number.
        number: u32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is no such object.
    #[error("no object at '{0}'")]
    NotFound(String),
    /// The path names no place inside the store.
    #[error("'{0}' is not a path inside the object store")]
    BadPath(String),
    /// The object is a folder where a file is needed, or the other way round.
    #[error("'{0}' is a folder")]
    IsFolder(String),
}

impl StoreError {
    /// Whether a unique key is taken.
    pub fn is_duplicate(&self) -> bool {
        match self {
            Self::Sql(rusqlite::Error::SqliteFailure(error, _)) => {
                error.code == rusqlite::ErrorCode::ConstraintViolation
            }
            Self::Postgres(error) => error.code() == Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION),
            _ => false,
        }
    }

    /// The error of a file operation: [`StoreError::OutOfSpace`] for a full disk or quota, [`StoreError::Object`] otherwise.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::OutOfSpace { what, reason: source.to_string() }
            }
            _ => Self::Object { what, source },
        }
    }
}

/// What was being done when the database ran out of space.
const WRITING: &str = "writing to the metadata database";

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::OutOfSpace { what: WRITING.into(), reason: error.to_string() },
            _ => Self::Sql(error),
        }
    }
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        if error.code() == Some(&tokio_postgres::error::SqlState::DISK_FULL) {
            return Self::OutOfSpace { what: WRITING.into(), reason: describe_postgres(&error) };
        }
        Self::Postgres(error)
    }
}

/// The whole chain of causes: `tokio_postgres` says "db error" and leaves the rest to them.
pub(crate) fn describe_postgres(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

impl Explain for StoreError {
    fn code(&self) -> &'static str {
        match self {
            Self::Sql(_) | Self::Postgres(_) | Self::Commit(_) => "store.sql",
            Self::Unreachable(_) => "store.unreachable",
            Self::Url(_) => "store.url",
            Self::Panicked(_) => "store.panicked",
            Self::Busy { .. } => "store.busy",
            Self::Closed => "store.closed",
            Self::Newer { .. } => "store.newer",
            Self::MigrationChanged { .. } => "store.migration",
            Self::OutOfSpace { .. } => "store.no_space",
            Self::TooLarge { .. } => "store.too_large",
            Self::TooManyUploads { .. } => "store.uploads",
            Self::BadPart { .. } => "store.part",
            Self::Object { .. } | Self::Remote { .. } | Self::NotFound(_) | Self::BadPath(_) | Self::IsFolder(_) => {
                "store.object"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let of = |kind| StoreError::io("writing")(std::io::Error::from(kind)).code();
        assert_eq!(of(std::io::ErrorKind::StorageFull), "store.no_space");
        assert_eq!(of(std::io::ErrorKind::QuotaExceeded), "store.no_space");
        assert_eq!(of(std::io::ErrorKind::PermissionDenied), "store.object");
        for (errno, code) in [(28, "store.no_space"), (122, "store.no_space"), (5, "store.object")] {
            // ENOSPC, EDQUOT and EIO, as Linux numbers them.
            assert_eq!(StoreError::io("writing")(std::io::Error::from_raw_os_error(errno)).code(), code);
        }
        let full = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL), None);
        assert_eq!(StoreError::from(full).code(), "store.no_space");
    }

    #[test]
    fn every_code_has_an_entry_with_a_remedy() {
        let errors = [
            StoreError::Panicked("a change"),
            StoreError::Busy { what: "no connection became free", waited: Duration::from_secs(1) },
            StoreError::MigrationChanged { domain: "test", version: 1 },
            StoreError::OutOfSpace { what: "writing".into(), reason: "full".into() },
            StoreError::TooLarge { what: "the object", limit: 1 },
            StoreError::TooManyUploads { limit: 1 },
            StoreError::BadPart { number: 0, reason: "parts are numbered from 1" },
            StoreError::Closed,
        ];
        for error in errors {
            assert!(error.hint().is_some(), "{} has no entry in the catalogue", error.code());
        }
    }
}
