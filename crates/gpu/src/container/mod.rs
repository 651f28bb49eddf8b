//! GPUs in containers: CDI specifications, the runtimes' configuration, and a container to try them.

pub mod cdi;
pub mod runtime;
pub mod trial;
