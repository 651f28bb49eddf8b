//! Patches of objects.

mod json;
mod merge;
mod strategic;

use serde_json::Value;

use crate::error::Error;
use crate::schema::Schema;

/// Maximum number of operations of a JSON patch.
const MAX_OPERATIONS: usize = 10_000;

/// A change of parts of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Patch {
    /// A list of operations (RFC 6902).
    Json(Value),
    /// A part of the object in which `null` removes (RFC 7386).
    Merge(Value),
    /// A part of the object that is merged as the schema of its kind says.
    Strategic(Value),
}

impl Patch {
    /// Media types of patches.
    pub const JSON: &str = "application/json-patch+json";
    /// The media type of merge patches.
    pub const MERGE: &str = "application/merge-patch+json";
    /// The media type of strategic merge patches.
    pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
    /// The media type of configurations that are applied.
    pub const APPLY: &str = "application/apply-patch+yaml";
    /// All media types of patches, in the order in which the API server lists them.
    pub const MEDIA_TYPES: &[&str] = &[Self::JSON, Self::MERGE, Self::STRATEGIC, Self::APPLY];
    /// Those of patches of custom resources, whose schemas do not say how lists are merged.
    pub const CUSTOM_MEDIA_TYPES: &[&str] = &[Self::JSON, Self::MERGE, Self::APPLY];

    /// Applies the patch to an object with this schema.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a malformed patch, [`Error::Unprocessable`] for one that does not fit the object.
    pub fn apply(&self, target: &mut Value, schema: &Schema) -> Result<(), Error> {
        match self {
            Self::Json(operations) => json::apply(target, operations),
            Self::Merge(patch) => {
                merge::apply(target, patch);
                Ok(())
            }
            Self::Strategic(patch) => strategic::apply(target, patch, schema),
        }
    }
}
