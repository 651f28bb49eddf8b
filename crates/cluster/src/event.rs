//! Progress events of the engine, which `slipway node converge --events` prints as one JSON document per line.

use serde::{Deserialize, Serialize};

use crate::resource::{Change, Layer};

/// A progress event of the engine. `resource` is the id of a resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[allow(missing_docs)] // the field names are enough
pub enum Event {
    /// The engine begins; `resources` is the number of resources that follow.
    Begun { change: String, resources: usize },
    /// The resource is in the desired state already.
    Ok { resource: String },
    /// The resource differs from the desired state. Only in check mode.
    Differs { resource: String, layer: Layer, changes: Vec<Change> },
    /// The engine begins to change the resource.
    Changing { resource: String, changes: Vec<Change> },
    /// One line of output of a command that changes the resource.
    Output { resource: String, line: String },
    /// The resource was changed.
    Changed { resource: String, seconds: f64 },
    /// The resource could not be changed.
    Failed { resource: String, reason: String },
    /// The resource was not attempted, because a resource that it needs failed.
    Skipped { resource: String, because: String },
    /// The machine must reboot now; the remaining resources are applied afterwards.
    Rebooting { resource: String, reason: String },
    /// The engine could not begin, for example because another engine holds the lock.
    Refused { reason: String },
    /// The last event, with the number of resources by result.
    Done { ok: usize, changed: usize, failed: usize, skipped: usize },
}
