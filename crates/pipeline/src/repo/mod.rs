//! All SQL of this crate. Each function runs in the transaction of the connection that it gets.

pub mod artifacts;
pub mod cache;
pub(crate) mod experiments;
pub(crate) mod owners;
mod page;
pub(crate) mod pipelines;
pub(crate) mod recurring;
pub mod runs;
pub(crate) mod specs;
pub(crate) mod steps;
pub mod tasks;
#[cfg(test)]
mod tests;

use serde::Serialize;
use serde::de::DeserializeOwned;
use slipway_store::Migration;
use slipway_store::sql::{Result as Read, Row};

pub use page::Page;

/// The database migrations of this crate, for [`slipway_store::Database::open`].
pub const MIGRATION: Migration = Migration {
    domain: "pipeline",
    steps: &[
        include_str!("../../migrations/001_pipelines.sql"),
        include_str!("../../migrations/002_steps.sql"),
        include_str!("../../migrations/003_owners.sql"),
        include_str!("../../migrations/004_workers.sql"),
        include_str!("../../migrations/005_tracking.sql"),
    ],
};

/// A JSON column.
fn json<T: DeserializeOwned + Default>(row: &Row<'_>, index: usize) -> Read<T> {
    // The columns are written by `to_json` below, so they can be read, except by a database that was edited by hand.
    Ok(serde_json::from_str(&row.get::<String>(index)?).unwrap_or_default())
}

/// The text of a JSON column.
fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("stored values are plain data with text keys")
}

/// The name of a state, as it is stored.
fn state_name(state: impl Serialize) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(name)) => name,
        _ => unreachable!("states are enums without content"),
    }
}

/// A column with the name of a state.
fn state<T: DeserializeOwned>(row: &Row<'_>, index: usize, otherwise: T) -> Read<T> {
    Ok(serde_json::from_value(serde_json::Value::String(row.get(index)?)).unwrap_or(otherwise))
}
