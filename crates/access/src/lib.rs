//! Authentication and authorization of HTTP and gRPC routes. Every route is declared together with its required access; a route without
//! one cannot be mounted.
//!
//! | module | what it is for |
//! |---|---|
//! | [`rule`] | what a route requires of its caller: [`Access`], usually a [`Verb`] on a [`Resource`] |
//! | [`caller`] | the sender of a request: the owner, an administrator, a run or a user of the cluster |
//! | [`routes`] | [`Routes`], the only way to build a router that a server accepts |
//! | [`guard`] | [`Guard`]: authenticates, authorizes, and checks `Host` and `Origin` |
//! | [`confine`] | headers of responses with bytes from users |
//! | [`cors`] | lets web pages of configured origins call a server |
//! | [`refusal`] | responses to refused requests, in JSON and in gRPC |
//!
//! The invariant: a handler runs only after [`Guard`] has allowed the route's [`Access`]. A router that is served without a guard
//! responds to every route that is not public with status 500.

pub mod caller;
mod confine;
pub mod cors;
pub mod guard;
pub mod refusal;
pub mod routes;
pub mod rule;

pub use caller::{Caller, Person, RunIdentity};
pub use confine::confine;
pub use cors::{CorsOrigins, InvalidOrigin};
pub use guard::{Decision, Guard, HostNames, Origin, Policy, Unavailable};
pub use refusal::Refusal;
pub use routes::{RouteInfo, Routes};
pub use rule::{Access, Permission, Resource, RunTokenUse, Verb};
