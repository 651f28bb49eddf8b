//! Kubernetes: the only crate that knows its client.
//!
//! | module | what it is for |
//! |---|---|
//! | [`api`] | objects of any kind: read, applied, deleted, watched, evicted |
//! | [`nodes`] | what the node agents know |
//! | [`runs`] | runs as pods: the executor and its controller |
//! | [`queue`], [`leader`] | what every controller needs |
//! | [`authority`] | who holds a token, and what that may do |
//! | [`install`] | slipway in a cluster: which objects, put in force, taken away |
//! | `names` | labels, finalizer and roles that the modules share |

pub mod api;
pub mod authority;
pub mod error;
pub mod install;
pub mod leader;
#[cfg(test)]
mod mock;
mod names;
pub mod nodes;
pub mod queue;
pub mod runs;

pub use api::{Api, Resource};
pub use error::KubeError;
