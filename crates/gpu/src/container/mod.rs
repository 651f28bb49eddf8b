//! GPUs in containers: CDI specifications, and the runtimes' configuration.

pub mod cdi;
pub mod runtime;
