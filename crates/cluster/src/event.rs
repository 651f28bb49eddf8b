//! What a machine tells while it makes itself as wanted.

use serde::{Deserialize, Serialize};

use crate::resource::{Change, Layer};

/// What happens, as it happens; a line of JSON each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[allow(missing_docs)] // names say it
pub enum Event {
    /// Work begins.
    Begun { change: String, resources: usize },
    /// It is as wanted.
    Ok { resource: String },
    /// It would be changed.
    Differs { resource: String, layer: Layer, changes: Vec<Change> },
    /// It is being changed.
    Changing { resource: String, changes: Vec<Change> },
    /// A command's output.
    Output { resource: String, line: String },
    /// It was changed.
    Changed { resource: String, seconds: f64 },
    /// It could not be changed.
    Failed { resource: String, reason: String },
    /// It was not tried.
    Skipped { resource: String, because: String },
    /// The machine starts anew now; what is left comes after.
    Rebooting { resource: String, reason: String },
    /// Work could not even begin.
    Refused { reason: String },
    /// Nothing more comes.
    Done { ok: usize, changed: usize, failed: usize, skipped: usize },
}
