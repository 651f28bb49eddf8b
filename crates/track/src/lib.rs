//! Runs, metrics, models and artifacts, as MLflow's clients know them.
//!
//! The official `mlflow` client is the specification: same routes, same JSON, same error codes and
//! messages (MLflow 3.17, `mlflow/protos/service.proto`, `model_registry.proto`, `mlflow_artifacts.proto`
//! and the behaviour of `mlflow server`). `conformance/mlflow` compares the two answer by answer.
//!
//! | module | what it is for |
//! |---|---|
//! | [`http`] | routes and wire types |
//! | [`service`] | all rules |
//! | [`filter`] | the grammar of `filter` and `order_by` |
//! | `repo` | all SQL |
//! | [`points`] | how metric points are packed into rows |
//! | [`model`] | the entities, serialised as the protocol wants them |
//! | [`validate`] | lengths, names and limits |
//! | `artifact_path` | names of artifacts |
//! | `location` | where models and artifacts may be |
//! | `signed_parts` | signatures of the URLs of an upload's parts |

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

/// The tables of this crate, for [`slipway_store::Database::open`].
pub const MIGRATION: slipway_store::Migration = slipway_store::Migration {
    domain: "track",
    steps: &[include_str!("migrations/001_tracking.sql"), include_str!("migrations/002_chunks_and_keys.sql")],
};
