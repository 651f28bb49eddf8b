//! Data versioning, interchangeable with DVC: the same files, byte for byte, in the workspace, the cache and the remotes.

pub mod access;
mod batch;
mod bounded;
pub mod cache;
pub mod catalog;
pub mod commands;
pub mod config;
mod error;
pub mod experiments;
pub mod external;
mod gitignore;
mod hash;
pub mod http;
pub mod ignore;
mod incoming;
pub mod ini;
pub mod json;
pub mod layout;
mod links;
pub mod lock;
pub mod manifest;
mod model;
mod parquet;
#[cfg(test)]
mod parsers;
pub mod pipeline;
pub mod project;
pub mod remote;
pub mod reports;
pub mod revision;
pub mod schema;
pub mod scm;
pub mod service;
pub mod snapshot;
pub mod stage;
pub mod staging;
mod stat;
pub mod state;
pub mod tree;
pub mod versions;
mod walk;
pub mod wire;
pub mod yaml;

pub use error::DataError;
pub use model::{DIR_SUFFIX, Digest, HashName, Meta};
