//! Tests of the built binary: what a person or a script sees of it, and what it keeps when it is killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod config;
mod explain;
mod gpu;
mod kill;
mod output;
mod runs;
mod server;
mod support;
mod token;
