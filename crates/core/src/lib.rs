//! What every other crate needs and nothing else: errors with hints, identifiers, time, units,
//! layered configuration and the list of environment variables.
//!
//! | module | what it is for |
//! |---|---|
//! | [`explain`] | [`Explain`]: a stable code and a hint for every public error, and their catalogue |
//! | [`ids`] | identifiers and friendly names |
//! | [`clock`] | milliseconds since the Unix epoch |
//! | [`units`] | bytes and durations for people |
//! | [`config`] | flag > environment > project file > user file > default, with the origin kept |
//! | [`env`] | every environment variable that slipway reads |
//! | [`home`] | where state lives on disk |
//! | [`files`] | files that are never half written |
//! | [`node_access`] | how the control plane identifies itself to node agents |
//! | [`task`] | background tasks that must live as long as the process |
//! | [`tls`] | whom a client trusts, fingerprints of certificates |

pub mod clock;
pub mod config;
pub mod env;
pub mod explain;
pub mod files;
pub mod home;
pub mod ids;
pub mod node_access;
pub mod task;
pub mod tls;
pub mod units;

pub use explain::Explain;
