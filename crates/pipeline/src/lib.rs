//! Kubeflow Pipelines: compiled pipelines are read, executed, cached, scheduled and shown.
//!
//! | module | contents |
//! |---|---|
//! | [`ir`] | the compiled form of a pipeline, its protobuf messages and its faults |
//! | [`model`] | states, paths, artifacts, inputs and outputs of tasks |
//! | [`launch`] | the seam to what executes tasks |
//! | [`error`] | errors with stable codes |

pub mod error;
pub mod ir;
pub mod launch;
pub mod model;

pub use error::Error;
