//! Data versioning, interchangeable with DVC: the same files, byte for byte, in the workspace, the cache and the remotes.

pub mod cache;
pub mod commands;
pub mod config;
mod error;
pub mod experiments;
mod gitignore;
mod hash;
pub mod ignore;
pub mod ini;
pub mod json;
mod links;
pub mod lock;
pub mod manifest;
mod model;
#[cfg(test)]
mod parsers;
pub mod pipeline;
pub mod project;
pub mod remote;
pub mod reports;
pub mod revision;
pub mod scm;
pub mod snapshot;
pub mod stage;
mod stat;
pub mod state;
pub mod tree;
mod walk;
pub mod yaml;

pub use error::DataError;
pub use model::{DIR_SUFFIX, Digest, HashName, Meta};
