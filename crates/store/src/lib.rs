//! slipway's storage layer: metadata in SQLite or PostgreSQL, artifacts as files or in an object store such as S3.
//!
//! | module | contents |
//! |---|---|
//! | [`database`] | one writer thread with group commit, a bounded pool of read connections, migrations |
//! | [`bucket`] | clients of buckets and web servers, for other crates |
//! | [`reach`] | which servers may be reached for clients that choose the URL |
//! | [`objects`] | artifacts under a root folder: streamed upload and download, listing, deletion, limits |
//!
//! An acknowledged write is on disk. The writer thread runs all queued changes in one transaction, each in its own
//! savepoint so that a failing change rolls back only itself. It commits once (SQLite with `synchronous=FULL`), and
//! only then returns the results.

pub mod bucket;
pub mod database;
pub mod error;
pub mod objects;
pub mod reach;
#[cfg(test)]
mod testing;

pub use database::{Database, DatabaseOptions, Migration, PoolStats, sql};
pub use error::StoreError;
pub use objects::{Limits, Objects, Reader};
