//! Kubernetes: the only crate that knows its client.
//!
//! | module | what it is for |
//! |---|---|
//! | [`api`] | objects of any kind: read, applied, deleted, watched, evicted |

pub mod api;
pub mod error;

pub use api::{Api, Resource};
pub use error::KubeError;
