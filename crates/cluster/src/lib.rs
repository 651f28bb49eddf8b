//! Turns bare machines into a Kubernetes cluster, and repairs the machines whenever they drift.
//!
//! One file describes the desired cluster ([`spec`]), and the desired resources of each machine follow from it ([`layers`]). A read-only
//! script reports the actual state of a machine ([`probe`]), and a pure function compares both ([`check`](resource::Resource::check)).
//! The plan on the controller and the engine on the machine ([`converge`]) use the same function. Work that spans machines, such as
//! joining nodes, is ordered by [`steps`] and run by a [`session`].
//!
//! | module | purpose |
//! |---|---|
//! | [`spec`] | `cluster.yaml` |
//! | [`layers`] | derives the resources of a machine from the file |
//! | [`resource`] | the kinds of resources, and how each is compared with the machine |
//! | [`probe`] | the script that reads a machine's state, and its parsed output |
//! | [`converge`], [`resume`] | the engine on the machine: applies resources, records how to undo them, continues after a reboot |
//! | [`event`] | progress events of the engine |
//! | [`shell`] | shell commands and files on the machine |
//! | [`transport`] | connections over OpenSSH |
//! | [`providers`], [`fleet`] | cloud providers, and the machines that slipway ordered from them |
//! | [`plan`] | the changes that an apply would make on all machines |
//! | [`steps`] | the steps of each command, and their dependencies |
//! | [`session`] | a cluster file with its state, connections and providers; the order in which commands change machines |
//! | [`work`] | progress, and the context that all steps of a command share |
//! | [`smoke`], [`doctor`] | smoke tests of the cluster; checks for known problems |
//! | [`report`] | the result of each step |
//! | [`trust`] | which commands of a `cluster.yaml` the user has allowed |
//! | [`lock`] | exclusive file locks |
//! | [`state`] | the controller's files of a cluster: lock, ledger, report, logs |

mod control;
pub mod converge;
mod distribution;
pub mod doctor;
mod error;
pub mod event;
pub mod fleet;
mod join;
mod kinds;
pub mod layers;
pub mod lock;
mod machine;
mod nodes;
#[cfg(test)]
mod parsers;
pub mod plan;
pub mod probe;
pub mod providers;
mod remote_probe;
pub mod report;
pub mod resource;
pub mod resume;
mod runner;
pub mod session;
pub mod shell;
pub mod smoke;
pub mod spec;
pub mod state;
pub mod steps;
pub mod transport;
pub mod trust;
mod undo;
pub mod work;

pub use error::ClusterError;

/// The first 64 bits of SHA-256, as 16 hexadecimal digits.
fn digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    slipway_core::hex::encode(&digest.as_ref()[..8])
}
