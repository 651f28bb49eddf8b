//! Authentication and authorization by the cluster that the server runs in.

use futures_util::future::BoxFuture;
use slipway_access::{Permission, Person};

/// Verifies the users and service accounts of a cluster. The binary passes in an implementation that uses the API server. Roles grant
/// access to resources of the API group `slipway.dev` ([`slipway_access::Resource`]).
pub trait Authority: Send + Sync {
    /// The user that a token belongs to; `None` for an unknown token. An error means that the API server cannot decide now.
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Person>, String>>;
    /// Whether the cluster's RBAC grants this permission to the user.
    fn is_allowed<'a>(&'a self, person: &'a Person, permission: &'a Permission) -> BoxFuture<'a, Result<bool, String>>;
}
