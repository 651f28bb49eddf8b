//! From bare machines to a cluster, and back to it whenever something has drifted.
//!
//! One file says what is wanted ([`spec`]). From it follow the resources of every machine ([`layers`]), in order. What a machine has is
//! asked with one read-only script ([`probe`]); what differs is told by a pure function ([`check`](resource::Resource::check)), the same
//! for a plan that is made far away and for the machine that acts on it ([`converge`]). Between machines there is an order too
//! ([`apply`]): who is first, who joins whom.
//!
//! | module | what it is for |
//! |---|---|
//! | [`spec`] | `cluster.yaml` |
//! | [`layers`] | from the file to the resources of a machine |
//! | [`resource`] | what can be wanted of a machine, and when it is so |
//! | [`probe`] | the question to a machine, and the answer |
//! | [`converge`], [`resume`] | runs on the machine: makes it so, remembers how it was, tells what it does; goes on after a new start |
//! | [`event`] | what the machine tells meanwhile |
//! | [`shell`] | its shell and its files |
//! | [`transport`] | OpenSSH |
//! | [`providers`], [`fleet`] | who makes machines, and which of them are ours |
//! | [`plan`] | what would change, on all machines at once |
//! | [`steps`] | which steps there are, and which need which |
//! | [`work`] | what all steps share |
//! | [`apply`] | does them: on a machine, with nodes of the cluster, with who makes machines |
//! | [`smoke`], [`doctor`] | tries of the cluster; known troubles of machines |
//! | [`report`] | what was done |
//! | [`trust`] | whose commands may run here |
//! | [`lock`] | one at a time |
//! | [`state`] | what is kept on the controller, and its lock |

pub mod apply;
mod ask;
mod control;
pub mod converge;
pub mod doctor;
mod error;
pub mod event;
pub mod fleet;
mod kinds;
pub mod layers;
pub mod lock;
mod machine;
pub mod nodes;
pub mod plan;
pub mod probe;
pub mod providers;
pub mod report;
pub mod resource;
pub mod resume;
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

/// Sixteen digits that are others for any other bytes.
fn digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().take(8).map(|b| format!("{b:02x}")).collect()
}
