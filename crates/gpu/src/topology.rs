//! How GPUs, network cards and processors are connected.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::GpuError;
use crate::inventory::Inventory;
use crate::nvml::Nvml;
use crate::pci;

/// How two devices are connected, nearest first. The short forms are those of `nvidia-smi topo -m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// The same device.
    Same,
    /// So many NVLinks.
    NvLink(u32),
    /// On one board.
    Board,
    /// One PCIe switch.
    OneSwitch,
    /// Several PCIe switches.
    Switches,
    /// A PCIe host bridge.
    HostBridge,
    /// The same NUMA node.
    Node,
    /// Across processor sockets.
    System,
}

impl Link {
    /// `NV18`, `PIX`, `SYS`.
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

    /// In words.
    pub fn words(self) -> String {
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

    /// NVML's level (`nvmlGpuTopologyLevel_t`).
    fn of_level(level: u32) -> Self {
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

/// The connections of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// Whether a fixture answered instead of a driver.
    pub simulated: bool,
    /// Names of GPUs, by index.
    pub gpus: Vec<String>,
    /// GPU to GPU, the best way.
    pub links: Vec<Vec<Link>>,
    /// GPU to GPU on the bus, whatever NVLinks there are.
    pub bus: Vec<Vec<Link>>,
    /// NUMA node of each GPU, where it is known.
    pub numa: Vec<Option<u32>>,
    /// Processors near each GPU, as `0-31,64-95`.
    pub cpus: Vec<String>,
    /// Network cards: name, and how each GPU reaches it.
    pub nics: Vec<(String, Vec<Link>)>,
}

/// Numbers in ranges: `0-3,8`.
pub fn ranges(numbers: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &n in numbers {
        match parts.last_mut() {
            Some((_, end)) if *end + 1 == n => *end = n,
            _ => parts.push((n, n)),
        }
    }
    let one = |(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    parts.iter().map(one).collect::<Vec<_>>().join(",")
}

impl Topology {
    /// Asks NVML and sysfs.
    ///
    /// # Errors
    /// NVML's, where it cannot even count the GPUs.
    pub fn collect(nvml: &Nvml, inventory: &Inventory, sysfs: &Path) -> Result<Self, GpuError> {
        let gpus = &inventory.gpus;
        // How many links go to each remote; links of two GPUs to the same switches connect them.
        let counts: Vec<BTreeMap<&str, u32>> = gpus
            .iter()
            .map(|g| {
                let mut to = BTreeMap::new();
                for l in g.nvlinks.iter().filter(|l| l.active) {
                    *to.entry(l.remote.as_deref().unwrap_or_default()).or_insert(0) += 1;
                }
                to
            })
            .collect();
        let nvlinks = |a: usize, b: usize| -> u32 {
            let direct = counts[a].get(gpus[b].bus_id.as_str()).copied().unwrap_or(0);
            let switch = |remote: &str| !remote.is_empty() && gpus.iter().all(|g| g.bus_id != remote);
            let shared =
                counts[a].iter().filter(|(r, _)| switch(r)).filter_map(|(r, n)| counts[b].get(r).map(|m| n.min(m)));
            direct + shared.sum::<u32>()
        };
        let level = |a: usize, b: usize| -> Option<Link> {
            let (x, y) = (nvml.device(gpus[a].index).ok()?, nvml.device(gpus[b].index).ok()?);
            x.common_ancestor(&y).ok().map(Link::of_level)
        };
        let all = 0..gpus.len();
        let on_bus = |a: usize, b: usize| if a == b { Link::Same } else { level(a, b).unwrap_or(Link::System) };
        let bus: Vec<Vec<Link>> = all.clone().map(|a| all.clone().map(|b| on_bus(a, b)).collect()).collect();
        let link = |a: usize, b: usize| match nvlinks(a, b) {
            n if a != b && n > 0 => Link::NvLink(n),
            _ => bus[a][b],
        };
        let links = all.clone().map(|a| all.clone().map(|b| link(a, b)).collect()).collect();
        let cpus: Vec<Vec<u32>> =
            gpus.iter().map(|g| nvml.device(g.index).and_then(|d| d.cpu_affinity()).unwrap_or_default()).collect();
        // A fixture's processors are none of this machine's.
        let nodes = if inventory.simulated { simulated_nodes(&cpus) } else { pci::numa_nodes(sysfs) };
        let numa = gpus
            .iter()
            .zip(&cpus)
            .map(|(g, cpus)| {
                let own = if inventory.simulated { None } else { pci::numa_node(sysfs, &g.bus_id) };
                let holds = |list: &Vec<u32>| cpus.first().is_some_and(|c| list.contains(c));
                own.or_else(|| nodes.iter().find(|(_, list)| holds(list)).map(|(n, _)| *n))
            })
            .collect();
        let nics = if inventory.simulated { Vec::new() } else { nics(sysfs, inventory) };
        Ok(Self {
            simulated: inventory.simulated,
            gpus: gpus.iter().map(|g| g.name.clone()).collect(),
            links,
            bus,
            numa,
            cpus: cpus.iter().map(|c| ranges(c)).collect(),
            nics,
        })
    }
}

/// GPUs near the same processors are in the same node.
fn simulated_nodes(cpus: &[Vec<u32>]) -> Vec<(u32, Vec<u32>)> {
    let mut sets: Vec<Vec<u32>> = cpus.to_vec();
    sets.sort();
    sets.dedup();
    (0..).zip(sets).collect()
}

fn nics(sysfs: &Path, inventory: &Inventory) -> Vec<(String, Vec<Link>)> {
    let mut found = Vec::new();
    for folder in ["class/infiniband", "class/net"] {
        for entry in std::fs::read_dir(sysfs.join(folder)).into_iter().flatten().flatten() {
            let Ok(path) = std::fs::canonicalize(entry.path().join("device")) else { continue };
            // Virtual interfaces have no device on the bus.
            if !pci::address_parts(&path).iter().any(|p| p.contains('.')) {
                continue;
            }
            let to = |g: &crate::inventory::Gpu| {
                pci::path_of(sysfs, &g.bus_id).map_or(Link::System, |gpu| pci::distance(&gpu, &path))
            };
            found.push((entry.file_name().to_string_lossy().into_owned(), inventory.gpus.iter().map(to).collect()));
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_become_ranges() {
        assert_eq!(super::ranges(&[0, 1, 2, 3, 8]), "0-3,8");
        assert_eq!(super::ranges(&[]), "");
    }
}
