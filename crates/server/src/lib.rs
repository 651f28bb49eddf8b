//! One HTTP server: mounts the domains' routers, authentication, metrics and the web UI, on three ports.
//!
//! | module | what it is for |
//! |---|---|
//! | [`platform`] | opens the state folder and wires the domains together |
//! | [`run`](mod@run) | starts and stops |
//! | `listen`, `certificates` | serves a port: TLS, limits, draining |
//! | [`auth`] | who a request comes from, and what that may do |
//! | `runs`, `tracker`, `accelerators` | runs that are carried out: their API, their tracking, their GPUs |
//! | `api` | slipway's own API, `/api/v1` |
//! | `openapi` | the OpenAPI document of slipway's own API |
//! | `controller` | what a controller of runs in another process asks |
//! | `gpu` | GPUs of this machine and kept benchmarks |
//! | `metrics` | Prometheus |
//! | `ui` | the embedded web pages |

mod accelerators;
mod api;
pub mod auth;
mod certificates;
mod cluster;
mod controller;
pub mod error;
mod gpu;
mod listen;
pub mod metrics;
mod openapi;
pub mod platform;
pub mod run;
mod runs;
#[cfg(test)]
mod tests;
mod tracker;
mod ui;

pub use certificates::CertificateSource;
pub use cluster::{Answer as ClusterAnswer, Figure, Kubernetes, Mint};
pub use error::ServerError;
pub use listen::{ConnectionCounts, Connections, Limits};
pub use platform::{Platform, Stores};
pub use run::{Addresses, Options, Server};
