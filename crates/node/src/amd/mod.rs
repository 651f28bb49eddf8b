//! GPUs of AMD: watches them, and offers them to the kubelet as AMD's own device plugin and node labeller do.
//!
//! Which devices there are comes from the kernel; whether they are healthy also from AMD SMI, if ROCm's library can be opened. One task
//! polls both and publishes a [`State`]; the kubelet's resources, the node's labels and the metrics derive from it. A device stays in the
//! state after its card was lost, because pods may hold it.

mod labels;
mod metrics;
mod preferred;
mod report;
mod resources;
mod watch;

use std::sync::Arc;

pub use labels::labels;
pub use metrics::render;
pub use report::add as add_to_report;
pub use resources::{GPU, Offer, Plugin, offers};
use serde::Serialize;
use slipway_gpu::amd::devices::{Device, Driver};
use slipway_gpu::inventory::Gpu;
pub use watch::{Senders, watch};

/// How devices are named as resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Naming {
    /// All devices are `amd.com/gpu`.
    #[default]
    Single,
    /// Devices are named for the partitions of their cards, such as `amd.com/cpx_nps4`.
    Mixed,
}

/// Settings of AMD's GPUs on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// How devices are named as resources.
    pub naming: Naming,
    /// A simulated fixture to use instead of the machine's GPUs.
    pub fixture: Option<String>,
}

/// A device with its state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Unit {
    /// The device.
    #[serde(flatten)]
    pub device: Device,
    /// The name of its card in AMD SMI, such as `AMD Instinct MI300X`; the firmware's name, or empty, without AMD SMI.
    pub name: String,
    /// Why it must not be used; `None` if it is healthy.
    pub fault: Option<String>,
}

/// A node's GPUs of AMD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Whether the GPUs are simulated.
    pub simulated: bool,
    /// The version of the driver.
    pub driver: Driver,
    /// The devices, those of lost cards at the end.
    pub units: Vec<Unit>,
    /// Why AMD SMI cannot be used; `None` if it can. Without it, memory errors are not noticed.
    pub library: Option<String>,
}

/// The state of AMD's driver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum State {
    /// The agent does not handle GPUs of AMD.
    #[default]
    Off,
    /// There is no driver or no GPU, with the reason.
    Missing(String),
    /// There are GPUs.
    Available(Box<Machine>),
}

impl State {
    /// The machine, if there are GPUs.
    pub fn machine(&self) -> Option<&Machine> {
        match self {
            Self::Available(machine) => Some(machine),
            Self::Off | Self::Missing(_) => None,
        }
    }
}

/// What AMD SMI last reported about each device, with the identifier of the device.
pub type Readings = Arc<Vec<(String, Gpu)>>;

#[cfg(test)]
pub(crate) mod samples {
    use std::collections::BTreeMap;

    use slipway_gpu::amd::devices::{Compute, Device, Link, Partition};

    use super::{Machine, Unit};

    /// Cards with these modes, such as `cpx_nps4` for eight partitions; empty for a card that cannot be divided. Cards are connected by
    /// links of this kind; the first half is at NUMA node 0.
    pub(crate) fn machine(modes: &[&str], link: Link) -> Machine {
        let parts = |mode: &str| if mode.starts_with("cpx") { 8 } else { 1 };
        let total: u32 = modes.iter().map(|mode| parts(mode)).sum();
        let mut units: Vec<Unit> = Vec::new();
        let mut platform = 0;
        for (card, mode) in modes.iter().enumerate() {
            let first = units.len() as u32;
            for part in 0..parts(mode) {
                let node = units.len() as u32;
                let kind = |to: u32| if (first..first + parts(mode)).contains(&to) { Link::Xgmi } else { link };
                let links: BTreeMap<u32, Link> = (0..total).filter(|to| *to != node).map(|to| (to, kind(to))).collect();
                let address = format!("0000:{card:02x}:00.0");
                let id = if part == 0 {
                    address.clone()
                } else {
                    platform += 1;
                    format!("amdgpu_xcp_{}", platform - 1)
                };
                let compute = Compute {
                    node,
                    simds: 1216 / parts(mode),
                    simds_per_unit: 4,
                    memory: (192 << 30) / u64::from(parts(mode)),
                    version: 90_402,
                    links,
                };
                let device = Device {
                    id,
                    address,
                    card: node,
                    render: 128 + node,
                    partition: mode
                        .split_once('_')
                        .map(|(compute, memory)| Partition { compute: compute.into(), memory: memory.into() }),
                    numa: Some(u32::from(card * 2 >= modes.len())),
                    model: "74a1".into(),
                    product: "AMD Instinct MI300X (OAM)".into(),
                    compute: Some(compute),
                };
                units.push(Unit { device, name: "AMD Instinct MI300X".into(), fault: None });
            }
        }
        Machine { units, ..Machine::default() }
    }
}
