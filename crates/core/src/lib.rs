//! Foundations that all other crates share: errors with hints, identifiers, time, units, layered configuration and the list of
//! environment variables.
//!
//! | module | what it is for |
//! |---|---|
//! | [`explain`] | [`Explain`]: a stable code and a hint for every public error, and their catalogue |
//! | [`ids`] | identifiers and friendly names |
//! | [`cache`] | a cache of bounded size whose entries expire |
//! | [`clock`] | milliseconds since the Unix epoch |
//! | [`diff`] | differences of texts, line by line |
//! | [`dns`] | the form of names in DNS and Kubernetes |
//! | [`units`] | human-readable bytes and durations |
//! | [`compute_domain`] | how a node joins a ComputeDomain |
//! | [`config`] | flag > environment > project file > user file > default; each value keeps its origin |
//! | [`env`] | every environment variable that slipway reads |
//! | [`hex`] | bytes as hexadecimal digits |
//! | [`home`] | paths of the state folder |
//! | [`files`] | atomic file replacement that does not follow symbolic links of other users |
//! | [`gpu_driver`] | which kernel driver a GPU needs, and the packages that install it |
//! | [`gpu_settings`] | settings of GPUs as users write them |
//! | [`node_access`] | how the control plane identifies itself to node agents |
//! | [`task`] | background tasks that must live as long as the process |
//! | [`tls`] | which certificates a client trusts, certificate fingerprints |

pub mod byte_range;
pub mod cache;
pub mod clock;
pub mod compute_domain;
pub mod config;
pub mod data_volume;
pub mod diff;
pub mod dns;
pub mod env;
pub mod explain;
pub mod files;
pub mod gpu_driver;
pub mod gpu_settings;
pub mod hex;
pub mod home;
pub mod ids;
pub mod node_access;
pub mod task;
pub mod tls;
pub mod units;

pub use explain::Explain;
