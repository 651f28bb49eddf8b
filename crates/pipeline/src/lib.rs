//! Kubeflow Pipelines: compiled pipelines are read, executed, cached, scheduled and shown.
//!
//! | module | contents |
//! |---|---|
//! | [`ir`] | the compiled form of a pipeline, its protobuf messages and its faults |
//! | [`value`], [`condition`], [`placeholder`] | values of parameters, expressions over them, and texts that contain them |
//! | [`executor_input`] | what a task's program is given and what it leaves behind |
//! | [`graph`] | the static graph |
//! | [`platform`] | settings of a task's pod |
//! | [`model`] | states, paths, artifacts, inputs and outputs of tasks |
//! | [`launch`] | the seam to what executes tasks |
//! | [`error`] | errors with stable codes |

pub mod condition;
pub mod error;
pub mod executor_input;
pub mod graph;
pub mod ir;
pub mod launch;
pub mod model;
#[cfg(test)]
mod parsers;
pub mod placeholder;
pub mod platform;
pub mod value;

pub use error::Error;
