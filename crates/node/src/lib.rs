//! The node agent. It offers a node's GPUs to pods, and publishes their properties, health and metrics to the cluster.
//!
//! | module | contents |
//! |---|---|
//! | [`accept`] | acceptance of the node: checks, taint, schedule |
//! | [`amd`] | GPUs of AMD: state, resources, labels, metrics |
//! | [`agent`] | options, and the tasks that make up the agent |
//! | [`config`] | NVIDIA's device plugin configuration, by file and by node label |
//! | [`driver`] | the state of the driver: GPUs and faults; all MIG changes go through it |
//! | [`health`] | when a GPU is unhealthy, and when it has recovered |
//! | [`resources`] | the resources and devices that are offered to the kubelet |
//! | [`plugin`] | the kubelet's device plugin API, v1beta1 |
//! | [`dra`] | dynamic resource allocation: ResourceSlices, prepare and unprepare |
//! | [`data`] | versions of data for pods: a CSI driver of read-only volumes |
//! | [`cdi`] | the CDI specification, through which containers get devices |
//! | [`labels`] | labels as of GPU feature discovery, and a node condition |
//! | [`gpu_settings`] | applies the settings of GPUs that the label `slipway.dev/gpu-settings` or `cluster.yaml` selects |
//! | [`mig_manager`] | applies the MIG layout that the label `nvidia.com/mig.config` selects |
//! | [`model`] | types shared by several modules |
//! | [`holders`] | the containers that hold devices, and the lease log |
//! | [`metrics`] | metrics as of DCGM exporter with pod names, and slipway's metrics |
//! | [`imex`] | the IMEX daemon of a ComputeDomain on this node |
//! | [`mps`] | control daemons of CUDA's multi-process service |
//! | [`pause`] | closes the GPUs while another program resets them |
//! | [`reset`] | resets idle GPUs after faults that a reset mends |
//! | [`kubelet`] | generated gRPC types, Unix sockets |
//! | [`cluster`] | the requests that the agent sends to the API server |
//!
//! All tasks are level-triggered: they reconcile towards the newest driver state and the newest configuration; an event only wakes
//! them earlier.

pub mod accept;
mod access;
pub mod agent;
pub mod amd;
pub mod cdi;
pub mod cluster;
pub mod config;
pub mod data;
pub mod dra;
pub mod driver;
pub mod error;
pub mod gpu_settings;
pub mod health;
pub mod holders;
mod http;
pub mod imex;
pub mod kubelet;
pub mod labels;
mod memory;
pub mod metrics;
pub mod mig_manager;
pub mod model;
pub mod mps;
#[cfg(test)]
mod parsers;
pub mod pause;
pub mod plugin;
mod repo;
pub mod reset;
pub mod resources;
#[cfg(test)]
mod samples;

pub use agent::{Options, run};
pub use error::NodeError;
