//! The inference gateway: Open Inference Protocol V2 over REST and gRPC in front of models in process.
//!
//! | module | what it is for |
//! |---|---|
//! | [`tensor`] | tensors with V2's data types, read from JSON and from the binary extension |
//! | [`runtime`] | ONNX models run by ONNX Runtime (when a library is found) or by tract |
//! | [`manifest`] | the deployment file |
//! | [`model`] | where a model comes from: the registry or a file of the server's machine |
//! | [`deployment`] | versions, weights, queue and time limits, batching of one deployment |
//! | [`service`] | all deployments: apply, split, rollback, follow moved aliases |
//! | [`http`], [`grpc`] | the protocol over REST and over gRPC |
//! | [`body`] | limits of size, time and memory for the bodies of requests |
//! | [`stats`] | counters and latencies per version |
//!
//! A request goes: router -> [`service::Gateway`] -> [`deployment::Deployment`] (picks the version) -> queue or
//! batch -> [`runtime::Model`] -> answer that names its model version.

mod batch;
pub mod body;
pub mod deployment;
pub mod error;
pub mod grpc;
pub mod http;
mod joinable;
pub mod manifest;
pub mod model;
mod repo;
pub mod runtime;
pub mod service;
pub mod stats;
pub mod tensor;
#[cfg(test)]
mod testing;

pub use body::BodyLimits;
pub use error::Error;
pub use model::{Fetching, LocalPaths, ModelSource, ModelUri, ResolvedModel};
pub use service::Gateway;

/// The tables of this crate, for [`slipway_store::Database::open`].
pub const MIGRATION: slipway_store::Migration =
    slipway_store::Migration { domain: "serve", steps: &[include_str!("migrations/001_deployments.sql")] };
