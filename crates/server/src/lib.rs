//! The HTTP server: mounts the domains' routes, authentication, metrics and the web UI on three ports.
//!
//! Invariant: every route is served behind [`slipway_access::Guard`], which authenticates and authorizes each request.
//!
//! | module | purpose |
//! |---|---|
//! | [`platform`] | opens the state folder and wires the domains together |
//! | [`run`](mod@run) | starts and stops a server |
//! | `listen`, `certificates` | serves a port: TLS, connection limits, draining |
//! | [`auth`] | authenticates and authorizes callers |
//! | `runs`, `tracker`, `accelerators` | submitted runs: their API and their objects, their tracking, their GPUs |
//! | `objects` | the Kubernetes API for objects on one machine |
//! | `pipeline` | pipelines: their execution and their tracking |
//! | `api` | slipway's own API, `/api/v1` |
//! | `openapi` | generates the OpenAPI document of slipway's own API |
//! | `controller` | routes for a run controller in another process |
//! | `cluster` | nodes of the cluster, and reports of `slipway cluster` |
//! | `gpu` | GPUs of this machine, and stored benchmark reports |
//! | `metrics` | Prometheus metrics |
//! | `ui` | the embedded web UI |

mod accelerators;
mod addresses;
mod api;
pub mod auth;
mod certificates;
mod cluster;
mod controller;
mod data;
pub mod error;
mod error_body;
mod gpu;
mod limit_query;
mod listen;
pub mod metrics;
mod objects;
mod openapi;
mod pipeline;
pub mod platform;
pub mod run;
mod runs;
#[cfg(test)]
mod tests;
mod tracker;
mod ui;

pub use addresses::Addresses;
pub use certificates::CertificateSource;
pub use cluster::{ControllerMetric, Image, Kubernetes, Mint, NodesFuture};
pub use error::ServerError;
pub use listen::{ConnectionCounts, Connections, Limits};
pub use platform::{Platform, Stores};
pub use run::{Options, Server};
