//! The silicon: what GPUs there are, how fast they can be and are, and how to share them.
//!
//! | module | what it is for |
//! |---|---|
//! | [`nvml`] | the driver's library, opened at run time |
//! | [`inventory`], [`process`], [`topology`], [`pci`], [`stack`] | what is there, and what is wrong with it |
//! | [`sheet`] | theoretical peaks of cards, with their formulas |
//! | [`mig`] | MIG: geometry, placement, plan and apply |

pub mod error;
pub mod inventory;
pub mod mig;
pub mod nvml;
pub mod pci;
pub mod process;
pub mod sheet;
pub mod topology;

pub use error::GpuError;
