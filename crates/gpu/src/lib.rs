//! GPU hardware: which GPUs a machine has, their theoretical and measured speed, and how to share them.
//!
//! | module | contents |
//! |---|---|
//! | [`nvml`] | NVIDIA's management library (NVML), loaded at run time |
//! | [`amd`] | AMD's management library (AMD SMI), loaded at run time |
//! | [`vendor`] | what the libraries of all vendors report |
//! | [`inventory`], [`process`], [`topology`], [`link`], [`pci`], [`stack`] | the hardware and software of a machine, and problems with them |
//! | [`sheet`] | data sheets: theoretical peaks of cards, with their formulas |
//! | [`transformer`] | language models as shapes: parameters, cache, number formats, splits, cost of a token |
//! | [`work`], [`roofline`] | cost of a workload, and the speed a machine allows for it |
//! | [`fit`] | the memory of a model on each GPU, and the cards and layouts that it fits |
//! | [`usage`] | energy and busy time, attributed to the holders of GPUs |
//! | [`bench`] | benchmarks of GPUs and CPUs |
//! | [`accept`] | acceptance of a machine: checks at four levels, and their report |
//! | [`rdma`], [`kernel_log`] | RDMA devices; XIDs in the kernel's log |
//! | [`container`] | CDI specifications and container runtime configuration |
//! | [`draw`] | diagrams as SVG and terminal text |
//! | [`repo`] | stored benchmark reports |
//! | [`mig`] | MIG: geometry, placement, plans and their application |
//! | [`reset`] | resets GPUs, if nothing uses them |
//! | [`settings`] | power limits, locked clocks, persistence, ECC and compute mode as configuration |
//! | [`share`] | MIG, MPS and time slicing compared for a set of jobs |

pub mod accept;
pub mod amd;
pub mod bench;
pub mod container;
pub mod draw;
pub mod error;
pub mod fit;
pub mod inventory;
pub mod kernel_log;
pub mod link;
pub mod mig;
mod nccl;
pub mod nvml;
#[cfg(test)]
mod parsers;
pub mod pci;
pub mod process;
pub mod rdma;
pub mod repo;
pub mod reset;
pub mod roofline;
pub mod settings;
pub mod share;
pub mod sheet;
pub mod stack;
pub mod topology;
pub mod transformer;
pub mod usage;
pub mod vendor;
pub mod work;

pub use error::GpuError;
use slipway_core::gpu_settings::selector;
