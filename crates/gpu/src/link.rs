//! How two devices of a machine are connected.

use serde::Serialize;

/// The connection between two devices, ordered from nearest to farthest. Abbreviations are those of `nvidia-smi topo -m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// The same device.
    Same,
    /// This number of NVLinks.
    NvLink(u32),
    /// PCIe bridges on the same board.
    Board,
    /// A single PCIe switch.
    OneSwitch,
    /// Multiple PCIe switches below the same host bridge.
    Switches,
    /// The same PCIe host bridge.
    HostBridge,
    /// The same NUMA node.
    Node,
    /// The interconnect between CPU sockets.
    System,
}

impl Link {
    /// Abbreviation such as `NV18`, `PIX` or `SYS`.
    pub fn short(self) -> String {
        match self {
            Self::Same => "X".into(),
            Self::NvLink(n) => format!("NV{n}"),
            Self::Board => "PSB".into(),
            Self::OneSwitch => "PIX".into(),
            Self::Switches => "PXB".into(),
            Self::HostBridge => "PHB".into(),
            Self::Node => "NODE".into(),
            Self::System => "SYS".into(),
        }
    }

    /// Description such as `18 NVLinks` or `same NUMA node`.
    pub fn description(self) -> String {
        match self {
            Self::Same => "itself".into(),
            Self::NvLink(n) => format!("{n} NVLinks"),
            Self::Board => "on one board".into(),
            Self::OneSwitch => "one PCIe switch".into(),
            Self::Switches => "several PCIe switches".into(),
            Self::HostBridge => "PCIe host bridge".into(),
            Self::Node => "same NUMA node".into(),
            Self::System => "across sockets".into(),
        }
    }

    /// Converts NVML's level (`nvmlGpuTopologyLevel_t`).
    pub(crate) fn from_level(level: u32) -> Self {
        match level {
            0 => Self::Board,
            10 => Self::OneSwitch,
            20 => Self::Switches,
            30 => Self::HostBridge,
            40 => Self::Node,
            _ => Self::System,
        }
    }
}
