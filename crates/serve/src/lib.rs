//! The inference gateway: Open Inference Protocol V2 over REST and gRPC in front of models in process.
//!
//! | module | what it is for |
//! |---|---|
//! | [`tensor`] | tensors with V2's data types, read from JSON and from the binary extension |
//! | [`runtime`] | ONNX models run by ONNX Runtime (when a library is found) or by tract |
//! | [`manifest`] | the deployment file |
//! | [`deployment`] | versions, weights, queue and time limits, batching of one deployment |
//! | [`service`] | all deployments: apply, split, rollback, follow moved aliases |
//! | [`http`], [`grpc`] | the protocol's two faces |
//! | [`stats`] | counters and latencies per version |
//!
//! A request goes: router -> [`service::Gateway`] -> [`deployment::Deployment`] (picks the version) -> queue or
//! batch -> [`runtime::Model`] -> answer that names its model version.

pub mod batch;
pub mod deployment;
pub mod error;
pub mod grpc;
pub mod http;
pub mod manifest;
mod repo;
pub mod runtime;
pub mod service;
pub mod stats;
pub mod tensor;

pub use error::Error;
pub use service::{Fetching, Gateway, ModelSource, ResolvedModel};

/// The tables of this crate, for [`slipway_store::Database::open`].
pub const MIGRATION: slipway_store::Migration =
    slipway_store::Migration { domain: "serve", steps: &[include_str!("migrations/001_deployments.sql")] };
