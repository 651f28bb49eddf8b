//! Who may use a route: every route carries its access beside it, and a route without one cannot be mounted.
//!
//! | module | what it is for |
//! |---|---|
//! | [`rule`] | what a route asks of its caller: [`Access`], made of a [`Verb`] and a [`Resource`] |
//! | [`caller`] | who sent a request: the owner, an administrator, a run, a user of the cluster |
//! | [`routes`] | [`Routes`], the only way to build a router that a server accepts |
//! | [`guard`] | [`Guard`]: authenticates, authorizes, and checks `Host` and `Origin` |
//! | [`refusal`] | how a refusal looks in JSON and in gRPC |
//!
//! The invariant: a handler runs only after [`Guard`] has allowed the route's [`Access`]. A router that is served without a guard
//! answers every route that is not public with 500.

pub mod caller;
pub mod guard;
pub mod refusal;
pub mod routes;
pub mod rule;

pub use caller::{Caller, Person, RunIdentity};
pub use guard::{Decision, Guard, HostNames, Origin, Policy, Unavailable};
pub use refusal::Refusal;
pub use routes::{RouteInfo, Routes};
pub use rule::{Access, Permission, Resource, RunTokenUse, Verb};
