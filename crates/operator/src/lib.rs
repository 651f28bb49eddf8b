//! The Kubernetes operator: installation, runs as pods, and access reviews. No other crate depends on the Kubernetes client.
//!
//! | module | contents |
//! |---|---|
//! | [`api`] | a client for objects of any kind: read, apply, delete, watch, evict |
//! | [`objects`] | the objects of a cluster as an `ObjectStore` |
//! | [`nodes`], `reader_tokens` | requests to the node agents, and the cache of their tokens |
//! | [`runs`] | runs as pods: the executor and the controller |
//! | [`domains`] | the controller of ComputeDomains |
//! | [`leader`], `participant` | the leader election of controllers; their work queue is [`slipway_exec::queue`] |
//! | [`authority`] | authentication of tokens and authorization of requests |
//! | [`install`] | the objects of an installation: rendered, applied, removed |
//! | `names` | shared names of labels, finalizers, roles and accounts |

pub mod api;
pub mod authority;
pub mod domains;
pub mod error;
pub mod install;
pub mod leader;
#[cfg(test)]
mod mock;
mod names;
pub mod nodes;
pub mod objects;
mod participant;
mod reader_tokens;
pub mod runs;

pub use api::{Api, Resource};
pub use error::KubeError;
pub use objects::ApiServer;
