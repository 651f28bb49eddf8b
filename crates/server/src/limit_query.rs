//! The query of routes that return the newest entries of a list.

use schemars::JsonSchema;
use serde::Deserialize;

/// Query that limits the length of a list.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct LimitQuery {
    /// Maximum number of items, up to 1000; 50 if unset.
    pub(crate) limit: Option<usize>,
}
