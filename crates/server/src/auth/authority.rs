//! The users and service accounts of a cluster, and what its rules allow them.

use futures_util::future::BoxFuture;
use slipway_access::{Permission, Person};

/// Knows the users and rules of a cluster. The binary hands in an implementation that asks the API server; the resources are those of
/// roles in the API group `slipway.dev` ([`slipway_access::Resource`]).
pub trait Authority: Send + Sync {
    /// Who holds a token; `None` for nobody.
    fn who<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Person>, String>>;
    /// Whether the rules of the cluster allow this.
    fn may<'a>(&'a self, person: &'a Person, permission: &'a Permission) -> BoxFuture<'a, Result<bool, String>>;
}
