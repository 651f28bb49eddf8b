//! The connections between GPUs, network cards and CPUs.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::GpuError;
use crate::inventory::Inventory;
use crate::link::Link;
use crate::nvml::Nvml;
use crate::pci;

/// The connections in a machine. GPUs are identified by their position in `gpus`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// Whether the data comes from a simulated fixture instead of a driver.
    pub simulated: bool,
    /// Names of the GPUs, ordered by index.
    pub gpus: Vec<String>,
    /// Best connection of each pair of GPUs, NVLink included.
    pub links: Vec<Vec<Link>>,
    /// PCIe connection of each pair of GPUs, regardless of NVLink.
    pub bus: Vec<Vec<Link>>,
    /// NUMA node of each GPU, if known.
    pub numa: Vec<Option<u32>>,
    /// CPUs near each GPU, such as `0-31,64-95`.
    pub cpus: Vec<String>,
    /// Network cards: name, and the connection to each GPU.
    pub nics: Vec<(String, Vec<Link>)>,
}

/// Formats sorted numbers as ranges, such as `0-3,8`.
pub fn ranges(numbers: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &n in numbers {
        match parts.last_mut() {
            Some((_, end)) if *end + 1 == n => *end = n,
            _ => parts.push((n, n)),
        }
    }
    let range = |(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    parts.iter().map(range).collect::<Vec<_>>().join(",")
}

impl Topology {
    /// Reads the connections from NVML and sysfs (usually `/sys`).
    ///
    /// # Errors
    /// Currently none; connections that cannot be read count as [`Link::System`].
    pub fn collect(nvml: &Nvml, inventory: &Inventory, sysfs: &Path) -> Result<Self, GpuError> {
        let gpus = &inventory.gpus;
        // Number of active NVLinks of each GPU to each remote device. Two GPUs are connected by links to the same NVSwitches.
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
            x.common_ancestor(&y).ok().map(Link::from_level)
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
        // The CPUs of a fixture are not those of this machine.
        let nodes = if inventory.simulated { simulated_nodes(&cpus) } else { pci::numa_nodes(sysfs) };
        let numa = gpus
            .iter()
            .zip(&cpus)
            .map(|(g, cpus)| {
                let reported = if inventory.simulated { None } else { pci::numa_node(sysfs, &g.bus_id) };
                let holds = |list: &Vec<u32>| cpus.first().is_some_and(|c| list.contains(c));
                reported.or_else(|| nodes.iter().find(|(_, list)| holds(list)).map(|(n, _)| *n))
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

/// Derives NUMA nodes of a fixture: each distinct set of CPUs is one node.
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
            // Virtual interfaces have no PCI device.
            if !pci::address_parts(&path).iter().any(|p| p.contains('.')) {
                continue;
            }
            let link = |g: &crate::inventory::Gpu| {
                pci::path_of(sysfs, &g.bus_id).map_or(Link::System, |gpu| pci::distance(&gpu, &path))
            };
            found.push((entry.file_name().to_string_lossy().into_owned(), inventory.gpus.iter().map(link).collect()));
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    #[test]
    fn consecutive_numbers_are_formatted_as_ranges() {
        assert_eq!(super::ranges(&[0, 1, 2, 3, 8]), "0-3,8");
        assert_eq!(super::ranges(&[]), "");
    }
}
