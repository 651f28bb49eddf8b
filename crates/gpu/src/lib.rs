//! The silicon: what GPUs there are, how fast they can be and are, and how to share them.
//!
//! | module | what it is for |
//! |---|---|
//! | [`nvml`] | the driver's library, opened at run time |
//! | [`inventory`], [`process`], [`topology`], [`pci`], [`stack`] | what is there, and what is wrong with it |
//! | [`sheet`] | theoretical peaks of cards, with their formulas |
//! | [`work`], [`roofline`], [`fit`] | what work asks of a machine, what that allows, and where it fits |
//! | [`usage`] | energy and time of those who hold GPUs |
//! | [`bench`] | what is measured |
//! | [`container`] | CDI specifications, runtimes' configuration |
//! | [`draw`] | pictures: SVG and terminal |
//! | [`repo`] | kept benchmark reports |
//! | [`mig`] | MIG: geometry, placement, plan and apply |
//! | [`share`] | MIG, MPS and time slices compared for the jobs at hand |

pub mod bench;
pub mod container;
pub mod draw;
pub mod error;
pub mod fit;
pub mod inventory;
pub mod mig;
pub mod nvml;
pub mod pci;
pub mod process;
pub mod repo;
pub mod roofline;
pub mod share;
pub mod sheet;
pub mod stack;
pub mod topology;
pub mod usage;
pub mod work;

pub use error::GpuError;
