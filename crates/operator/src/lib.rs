//! Kubernetes: the only crate that knows its client.
//!
//! | module | what it is for |
//! |---|---|
//! | [`api`] | objects of any kind: read, applied, deleted, watched, evicted |
//! | [`install`] | slipway in a cluster: which objects, put in force, taken away |

pub mod api;
pub mod error;
pub mod install;

pub use api::{Api, Resource};
pub use error::KubeError;
