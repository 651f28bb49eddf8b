//! Acceptance of a node before it takes work: the node has a taint until the checks of [`slipway_gpu::accept`] have passed on its GPUs.
//!
//! | module | contents |
//! |---|---|
//! | [`store`] | the last report, and the record of a run that has not ended |
//! | [`decision`] | whether the node is accepted, and whether to run the checks: a pure function |
//! | [`publish`] | taint, label, condition and events of the node |
//! | [`manager`] | the agent's task: waits until the GPUs are idle, drains them and runs the checks |
//! | [`rendezvous`] | brings several machines into one NCCL group |
//!
//! The taint follows from the report on disk, so an agent that is killed at any moment leaves no node accepted that has not passed.

pub mod decision;
pub mod manager;
pub mod publish;
pub mod rendezvous;
pub mod store;

pub use manager::{Command, Manager, Settings, ThisNode};
pub use rendezvous::Machines;
pub use store::Store;
