//! Where slipway keeps things: metadata in SQLite or PostgreSQL, artifacts as files or in S3.
//!
//! | module | what it is for |
//! |---|---|
//! | [`database`] | one writer thread with group commit, a bounded pool of readers, migrations |
//! | [`objects`] | artifacts under a root folder: streamed in and out, listed, deleted, within limits |
//!
//! A write that was acknowledged is on disk: the writer thread runs every waiting change inside one
//! transaction (each in a savepoint of its own, so that one failing change undoes only itself), commits
//! once (SQLite with `synchronous=FULL`), and only then answers all of them.

pub mod database;
pub mod error;
pub mod objects;
#[cfg(test)]
mod testing;

pub use database::{Database, DatabaseOptions, Migration, PoolStats, sql};
pub use error::StoreError;
pub use objects::{Limits, Objects};
