//! The node agent: it gives a node's GPUs to pods, and tells the cluster what they are and how they do.
//!
//! | module | what it is for |
//! |---|---|
//! | [`agent`] | the whole agent: options, tasks, HTTP |
//! | [`config`] | NVIDIA's device plugin configuration, by file and by node label |
//! | [`driver`] | the driver as it is now: there or missing, GPUs, faults; MIG changes pass through here |
//! | [`health`] | when a GPU is sick and when it is well again |
//! | [`resources`] | which resources and devices the kubelet is offered |
//! | [`plugin`] | the kubelet's device plugin API, v1beta1 |
//! | [`dra`] | dynamic resource allocation: ResourceSlices, prepare and unprepare |
//! | [`cdi`] | the CDI specification that containers get their devices from |
//! | [`labels`] | GPU feature discovery's labels, and a condition of the node |
//! | [`mig_manager`] | the label `nvidia.com/mig.config` made true |
//! | [`model`] | a holder of a device, which several modules talk about |
//! | [`holders`] | which container holds which device, and the log of it |
//! | [`metrics`] | DCGM exporter's metrics with the pods' names, and ours |
//! | [`mps`] | the control daemons of CUDA's multi-process service |
//! | [`kubelet`] | generated gRPC types, unix sockets |
//! | [`cluster`] | what the agent asks of the API server |
//!
//! Everything is level-triggered: tasks read the newest snapshot of the driver and the newest configuration and make the world
//! agree with it; an event only wakes them earlier.

mod access;
pub mod agent;
pub mod cdi;
pub mod cluster;
pub mod config;
pub mod dra;
pub mod driver;
pub mod error;
pub mod health;
pub mod holders;
mod http;
pub mod kubelet;
pub mod labels;
mod memory;
pub mod metrics;
pub mod mig_manager;
pub mod model;
pub mod mps;
pub mod plugin;
mod repo;
pub mod resources;

pub use agent::{Options, run};
pub use error::NodeError;
