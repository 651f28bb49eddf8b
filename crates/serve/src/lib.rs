//! The inference gateway: Open Inference Protocol V2 over REST and gRPC, in front of models that run in this process.
//!
//! The server mounts its routes on the inference ports. Invariant: every
//! inference response names the model version that computed it.
//!
//! | module | purpose |
//! |---|---|
//! | [`tensor`] | tensors with V2's data types, parsed from JSON and from the binary extension |
//! | [`runtime`] | runs ONNX models with ONNX Runtime (when its library is found) or with the built-in runtime |
//! | [`manifest`] | the deployment manifest (YAML or JSON) |
//! | [`model`] | model sources: the registry, or a file on the server's machine |
//! | [`deployment`] | one deployment: its model versions, traffic weights, queue, timeout and batching |
//! | [`service`] | all deployments: apply, split, rollback, reload of moved aliases |
//! | [`http`], [`grpc`] | the protocol over REST and over gRPC, with Triton's extensions and KServe's version 1 |
//! | [`generated`] | the messages and services of the gRPC protocols |
//! | [`body`] | size, time and memory limits for request bodies |
//! | [`stats`] | request counters and latencies per model version |
//!
//! The path of a request: router -> [`service::Gateway`] -> [`deployment::Deployment`] (picks the version) -> queue or
//! batch -> [`runtime::Model`] -> response.

mod batch;
pub mod body;
pub mod deployment;
pub mod error;
#[allow(missing_docs, unreachable_pub, clippy::all)]
#[rustfmt::skip]
pub mod generated;
pub mod grpc;
pub mod http;
mod joinable;
pub mod manifest;
pub mod model;
#[cfg(test)]
mod parsers;
mod repo;
pub mod runtime;
pub mod service;
pub mod stats;
pub mod tensor;
#[cfg(test)]
mod testing;
mod triton;

pub use body::BodyLimits;
pub use error::Error;
pub use model::{FetchFuture, LocalPaths, ModelSource, ModelUri, ResolvedModel};
pub use service::Gateway;

/// Schema migrations of this crate's tables, for [`slipway_store::Database::open`].
pub const MIGRATION: slipway_store::Migration =
    slipway_store::Migration { domain: "serve", steps: &[include_str!("migrations/001_deployments.sql")] };
