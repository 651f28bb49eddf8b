//! Kubernetes: the only crate that knows its client.
//!
//! | module | what it is for |
//! |---|---|
//! | [`api`] | objects of any kind: read, applied, deleted, watched, evicted |
//! | [`nodes`] | what the node agents know |
//! | [`install`] | slipway in a cluster: which objects, put in force, taken away |

pub mod api;
pub mod error;
pub mod install;
pub mod nodes;

pub use api::{Api, Resource};
pub use error::KubeError;
