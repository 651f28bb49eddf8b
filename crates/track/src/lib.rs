//! The tracking server and model registry: runs, metrics, models and artifacts, compatible with MLflow's clients.
//!
//! The official `mlflow` client is the specification: same routes, same JSON, same error codes and
//! messages (MLflow 3.17, `mlflow/protos/service.proto`, `model_registry.proto`, `mlflow_artifacts.proto`
//! and the behaviour of `mlflow server`). `conformance/mlflow` compares the responses of the two servers.
//!
//! | module | contents |
//! |---|---|
//! | [`http`] | routes and wire types |
//! | [`service`] | business rules |
//! | [`filter`] | the grammar of `filter` and `order_by` |
//! | `repo` | all SQL |
//! | [`points`] | the encoding of metric points in rows |
//! | [`model`] | the entities, serialised as in MLflow's protocol |
//! | [`validate`] | lengths, names and limits |
//! | `artifact_path` | validation of artifact paths |
//! | `location` | URIs of models and artifacts |
//! | `signed_parts` | signatures of the URLs for multipart uploads |

mod artifact_path;
pub mod error;
pub mod filter;
pub mod http;
mod location;
pub mod model;
pub mod points;
mod repo;
pub mod service;
mod signed_parts;
#[cfg(test)]
mod tests;
pub mod validate;

pub use error::{Error, ErrorCode};
pub use location::StoredLocation;
pub use service::Tracking;

/// The database migrations of this crate, for [`slipway_store::Database::open`].
pub const MIGRATION: slipway_store::Migration = slipway_store::Migration {
    domain: "track",
    steps: &[include_str!("migrations/001_tracking.sql"), include_str!("migrations/002_chunks_and_keys.sql")],
};
