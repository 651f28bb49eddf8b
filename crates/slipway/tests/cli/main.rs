//! Tests of the built binary: its output and exit codes, and the state that survives when it is killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod config;
mod data;
mod explain;
mod gpu;
mod gpu_reset;
mod gpu_settings;
mod kill;
mod kube_client;
mod output;
mod repositories;
mod runs;
mod server;
mod stages;
mod support;
mod token;
