//! Managed fields and server-side apply: which client set which fields of an object, and merging of the configurations that clients apply.
//!
//! | module | contents |
//! |---|---|
//! | [`element`], [`set`] | paths of fields, sets of them, and their JSON form (`FieldsV1`) |
//! | [`typed`] | how a schema divides a value into fields; the fields of a value; validation of configurations |
//! | [`compare`], [`merge`], [`remove`] | the fields in which two values differ; a configuration merged into a value; removal of fields |
//! | [`managers`] | the managers of an object, and their form in `metadata.managedFields` |
//! | [`tracker`] | what a write or an applied configuration does to an object and its managers |
//! | [`last_applied`] | the transition from client-side apply, whose state is in an annotation |
//!
//! Managed fields are kept as text in objects, and are parsed only for a write of the object.
//!
//! Source: the behaviour of `sigs.k8s.io/structured-merge-diff` and `k8s.io/apimachinery/pkg/util/managedfields`.

pub mod compare;
pub mod element;
pub mod last_applied;
pub mod managers;
pub mod merge;
pub mod remove;
pub mod set;
#[cfg(test)]
mod tests;
pub mod tracker;
pub mod typed;

pub use element::Element;
pub use set::Set;
pub use tracker::Tracker;
