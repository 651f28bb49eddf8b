//! Kubeflow Pipelines: compiled pipelines are read, executed, cached, scheduled and shown.
//!
//! | module | contents |
//! |---|---|
//! | [`proto`] | the protobuf messages of a compiled pipeline |
//! | [`ir`] | the compiled form of a pipeline: how it is read, checked and written |
//! | [`value`], [`condition`], [`placeholder`] | values of parameters, expressions over them, and texts that contain them |
//! | [`executor_input`] | what a task's program is given and what it leaves behind |
//! | [`graph`], [`outline`] | the static graph; what a compiled pipeline says to a reader |
//! | [`platform`], `workspace` | settings of a task's pod; the volume of a run |
//! | [`export`] | plain manifests for Kubernetes |
//! | [`model`] | states, paths, artifacts, inputs and outputs of tasks |
//! | [`engine`], [`fingerprint`] | what happens next in a run, and which executions are equal |
//! | [`usage`] | the processors and accelerators that the tasks of a run occupied |
//! | [`driver`] | carries runs out: records, launches, timers |
//! | [`tracker`] | the seam to the tracking store |
//! | [`launch`] | the seam to what executes tasks |
//! | [`step`] | the program in the pod of a step |
//! | [`entity`] | what is stored: pipelines, versions, experiments, runs, recurring runs |
//! | [`listing`] | filters, order and pages of lists |
//! | [`schedule`] | when a recurring run is due |
//! | `heap` | memory that is returned to the system |
//! | [`budget`] | limits of memory and work |
//! | `proto_json` | reads JSON as protobuf maps it |
//! | [`repo`] | all SQL |
//! | [`service`] | the rules |
//! | [`http`] | Kubeflow's REST API |
//! | [`error`] | errors with stable codes |

mod artifact;
pub mod budget;
pub mod condition;
mod dependency;
pub mod driver;
pub mod engine;
pub mod entity;
pub mod error;
pub mod executor_input;
pub mod export;
pub mod fingerprint;
pub mod graph;
mod heap;
pub mod http;
pub mod ir;
pub mod launch;
pub mod listing;
pub mod model;
pub mod outline;
#[cfg(test)]
mod parsers;
pub mod placeholder;
pub mod platform;
pub mod proto;
mod proto_json;
pub mod repo;
pub mod schedule;
pub mod service;
pub mod step;
pub mod tracker;
pub mod usage;
pub mod value;
mod workspace;

pub use error::Error;
pub use repo::MIGRATION;
