//! Kubeflow Pipelines: compiled pipelines are read, executed, cached, scheduled and shown.
//!
//! | module | contents |
//! |---|---|
//! | [`ir`] | the compiled form of a pipeline, its protobuf messages and its faults |
//! | [`model`] | states, paths, artifacts, inputs and outputs of tasks |
//! | [`launch`] | the seam to what executes tasks |
//! | [`entity`] | what is stored: pipelines, versions, experiments, runs, recurring runs |
//! | [`listing`] | filters, order and pages of lists |
//! | [`schedule`] | when a recurring run is due |
//! | `proto_json` | reads JSON as protobuf maps it |
//! | [`repo`] | all SQL |
//! | [`service`] | the rules |
//! | [`http`] | Kubeflow's REST API |
//! | [`error`] | errors with stable codes |

pub mod entity;
pub mod error;
pub mod http;
pub mod ir;
pub mod launch;
pub mod listing;
pub mod model;
mod proto_json;
pub mod repo;
pub mod schedule;
pub mod service;

pub use error::Error;
