//! What can go wrong while storing.

use slipway_core::Explain;

/// A failure of the metadata database or of the object store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database answered with an error; the change was rolled back.
    #[error("the metadata database failed: {0}")]
    Sql(#[from] rusqlite::Error),
    /// PostgreSQL answered with an error; the change was rolled back.
    #[error("the metadata database failed: {}", crate::database::explain(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// The database cannot be reached, or went away in the middle.
    #[error("the metadata database cannot be reached: {0}")]
    Unreachable(String),
    /// The URL of the database or of the bucket cannot be used.
    #[error("the store's URL cannot be used: {0}")]
    Url(String),
    /// The commit of a group of changes failed; all of them were rolled back.
    #[error("the change could not be committed: {0}")]
    Commit(String),
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
}

impl Explain for StoreError {
    fn code(&self) -> &'static str {
        match self {
            Self::Sql(_) | Self::Postgres(_) | Self::Commit(_) => "store.sql",
            Self::Unreachable(_) => "store.unreachable",
            Self::Url(_) => "store.url",
            Self::Closed => "store.closed",
            Self::Newer { .. } => "store.newer",
            Self::Object { .. } | Self::Remote { .. } | Self::NotFound(_) | Self::BadPath(_) | Self::IsFolder(_) => {
                "store.object"
            }
        }
    }
}
