//! Errors of the metadata database and the object store.

use std::time::Duration;

use slipway_core::Explain;

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A failure of the metadata database or of the object store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite returned an error; the change was rolled back.
    #[error("the metadata database failed: {0}")]
    Sql(rusqlite::Error),
    /// PostgreSQL returned an error; the change was rolled back.
    #[error("the metadata database failed: {}", describe_postgres(.0))]
    Postgres(tokio_postgres::Error),
    /// The database cannot be reached, or the connection was lost during a statement.
    #[error("the metadata database cannot be reached: {0}")]
    Unreachable(String),
    /// The URL of the database or of the bucket is malformed or not supported.
    #[error("invalid URL of the store: {0}")]
    Url(String),
    /// The commit of a group of changes failed; all of them were rolled back.
    #[error("the change could not be committed: {0}")]
    Commit(String),
    /// The code of a change or of a query panicked. A change was rolled back. The panic message is only logged, because it may
    /// contain data.
    #[error("{0} panicked, which is a bug in slipway; nothing was changed")]
    Panicked(&'static str),
    /// The writer, or every connection, was busy until the timeout of the request.
    #[error("{what} within {waited:?}")]
    Busy {
        /// The event that did not happen in time, such as `no connection to the database became available`.
        what: &'static str,
        /// The timeout that passed.
        waited: Duration,
    },
    /// The store is shutting down, or its writer has stopped.
    #[error("the store is closed")]
    Closed,
    /// The database file was written by a newer version.
    #[error("the database has schema version {found} of {domain}, this program supports versions up to {known}")]
    Newer {
        /// The domain of the tables, such as `track`.
        domain: &'static str,
        /// The schema version of the database.
        found: usize,
        /// The newest schema version that this program supports.
        known: usize,
    },
    /// A migration that was applied to the database differs from the migration with the same number in this program.
    #[error(
        "schema version {version} of {domain} was created by a different script than this program's (the checksums differ)"
    )]
    MigrationChanged {
        /// The domain of the tables, such as `track`.
        domain: &'static str,
        /// The schema version that the script produces, counted from 1.
        version: usize,
    },
    /// A file operation failed.
    #[error("{what}: {source}")]
    Object {
        /// The operation that failed, such as `writing an object`.
        what: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A request to the object store's service failed.
    #[error("{what}: {source}")]
    Remote {
        /// The operation that failed, such as `writing an object`.
        what: String,
        /// The error of the service.
        source: object_store::Error,
    },
    /// The disk, its quota or the database is full, or the write would leave less free space than required. Nothing was stored.
    #[error("{what}: not enough space: {reason}")]
    OutOfSpace {
        /// The operation that failed, such as `writing an object`.
        what: String,
        /// The error of the system, or the free space that is left.
        reason: String,
    },
    /// An object, or a part of a multipart upload, is larger than the limit. Nothing was stored.
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The item that is too large: `the object` or `the part`.
        what: &'static str,
        /// The maximum number of bytes.
        limit: u64,
    },
    /// Too many multipart uploads are neither completed nor aborted.
    #[error("too many multipart uploads are open: the limit is {limit}")]
    TooManyUploads {
        /// The maximum number of open multipart uploads.
        limit: usize,
    },
    /// The number of a part is out of range, or is listed twice.
    #[error("part {number}: {reason}")]
    BadPart {
        /// The number as the client sent it.
        number: u32,
        /// The reason, such as `parts are numbered from 1 to 10000`.
        reason: &'static str,
    },
    /// There is no object at this path, or no multipart upload with this id.
    #[error("no object at '{0}'")]
    NotFound(String),
    /// The path is not inside the object store, or the id of an upload is malformed.
    #[error("'{0}' is not a path inside the object store")]
    BadPath(String),
    /// The path names a folder where an object is expected.
    #[error("'{0}' is a folder")]
    IsFolder(String),
}

impl StoreError {
    /// Whether the statement failed because a unique key already exists.
    pub fn is_duplicate(&self) -> bool {
        match self {
            Self::Sql(rusqlite::Error::SqliteFailure(error, _)) => {
                error.code == rusqlite::ErrorCode::ConstraintViolation
            }
            Self::Postgres(error) => error.code() == Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION),
            _ => false,
        }
    }

    /// Converts an I/O error: [`StoreError::OutOfSpace`] for a full disk or quota, [`StoreError::Object`] otherwise.
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

/// The operation in a [`StoreError::OutOfSpace`] of the database.
const WRITING_METADATA: &str = "writing to the metadata database";

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => {
                Self::OutOfSpace { what: WRITING_METADATA.into(), reason: error.to_string() }
            }
            _ => Self::Sql(error),
        }
    }
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        if error.code() == Some(&tokio_postgres::error::SqlState::DISK_FULL) {
            return Self::OutOfSpace { what: WRITING_METADATA.into(), reason: describe_postgres(&error) };
        }
        Self::Postgres(error)
    }
}

/// The error with its chain of causes, because `tokio_postgres` itself displays only "db error".
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
    fn full_disk_has_its_own_error_code() {
        let code_of = |kind| StoreError::io("writing")(std::io::Error::from(kind)).code();
        assert_eq!(code_of(std::io::ErrorKind::StorageFull), "store.no_space");
        assert_eq!(code_of(std::io::ErrorKind::QuotaExceeded), "store.no_space");
        assert_eq!(code_of(std::io::ErrorKind::PermissionDenied), "store.object");
        for (errno, code) in [(28, "store.no_space"), (122, "store.no_space"), (5, "store.object")] {
            // ENOSPC, EDQUOT and EIO, as Linux numbers them.
            assert_eq!(StoreError::io("writing")(std::io::Error::from_raw_os_error(errno)).code(), code);
        }
        let full = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL), None);
        assert_eq!(StoreError::from(full).code(), "store.no_space");
    }

    #[test]
    fn every_error_code_has_a_hint() {
        let errors = [
            StoreError::Panicked("a change"),
            StoreError::Busy { what: "no connection became available", waited: Duration::from_secs(1) },
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
