//! RDMA devices: InfiniBand, and Ethernet with RoCE, as the kernel lists them in sysfs.
//!
//! Source: Linux, `Documentation/ABI/stable/sysfs-class-infiniband`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::link::Link;
use crate::pci;

/// A port of an RDMA device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Number of the port, from 1.
    pub number: u32,
    /// Whether the port can carry data (state `ACTIVE`).
    pub active: bool,
    /// State and physical state in the kernel's words, such as `DOWN, Polling`.
    pub state: String,
    /// Rate in Gbit/s; `None` if the kernel reports none.
    pub gbits: Option<u32>,
    /// `InfiniBand` or `Ethernet` (RoCE).
    pub link_layer: String,
}

/// An RDMA device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Name, such as `mlx5_0`.
    pub name: String,
    /// Its ports, ordered by number.
    pub ports: Vec<Port>,
    /// Its path below `/sys/devices`; `None` for a device without hardware, such as one of soft RoCE.
    #[serde(skip)]
    pub path: Option<PathBuf>,
}

impl Device {
    /// Whether any port is active.
    pub fn is_active(&self) -> bool {
        self.ports.iter().any(|p| p.active)
    }

    /// The rate of all active ports in Gbit/s.
    pub fn gbits(&self) -> u32 {
        self.ports.iter().filter(|p| p.active).filter_map(|p| p.gbits).sum()
    }

    /// The connection to the GPU with this PCI address.
    pub fn distance(&self, sysfs: &Path, bus_id: &str) -> Option<Link> {
        Some(pci::distance(&pci::path_of(sysfs, bus_id)?, self.path.as_ref()?))
    }
}

/// The number at the start of a text such as `400 Gb/sec (4X NDR)` or `4: ACTIVE`.
fn leading_number(text: &str) -> Option<u32> {
    let digits: String = text.trim().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The words of a text such as `4: ACTIVE`.
fn words(text: &str) -> &str {
    text.split_once(':').map_or(text, |(_, words)| words).trim()
}

fn port(folder: &Path, number: u32) -> Port {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let (state, physical) = (read("state"), read("phys_state"));
    Port {
        number,
        // `enum ib_port_state`: 4 is active.
        active: leading_number(&state) == Some(4),
        state: format!("{}, {}", words(&state), words(&physical)),
        gbits: leading_number(&read("rate")).filter(|rate| *rate > 0),
        link_layer: read("link_layer").trim().to_owned(),
    }
}

/// Lists the RDMA devices under `sysfs` (usually `/sys`), ordered by name.
pub fn devices(sysfs: &Path) -> Vec<Device> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(sysfs.join("class/infiniband")).into_iter().flatten().flatten() {
        let folder = entry.path();
        let mut ports: Vec<Port> = std::fs::read_dir(folder.join("ports"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|p| Some(port(&p.path(), p.file_name().to_str()?.parse().ok()?)))
            .collect();
        ports.sort_by_key(|p| p.number);
        let path = std::fs::canonicalize(folder.join("device")).ok();
        found.push(Device {
            name: entry.file_name().to_string_lossy().into_owned(),
            ports,
            path: path.filter(|p| pci::address_parts(p).iter().any(|part| part.contains('.'))),
        });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Writes a folder as sysfs: a GPU at `gpu` and devices as (name, PCI path, state, rate).
    pub(crate) fn sysfs(gpu: &str, devices: &[(&str, &str, &str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("slipway-rdma-{}", slipway_core::ids::hex32()));
        let address = |path: &str| path.rsplit('/').next().unwrap().to_owned();
        let link = |from: PathBuf, to: PathBuf| {
            std::fs::create_dir_all(from.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(to, from).unwrap();
        };
        let folder = |path: &str| {
            let folder = root.join("devices").join(path);
            std::fs::create_dir_all(&folder).unwrap();
            folder
        };
        link(root.join("bus/pci/devices").join(address(gpu)), folder(gpu));
        for (name, path, state, rate) in devices {
            let port = root.join("class/infiniband").join(name).join("ports/1");
            std::fs::create_dir_all(&port).unwrap();
            for (file, text) in
                [("state", *state), ("phys_state", "5: LinkUp"), ("rate", *rate), ("link_layer", "InfiniBand")]
            {
                std::fs::write(port.join(file), format!("{text}\n")).unwrap();
            }
            link(root.join("class/infiniband").join(name).join("device"), folder(path));
        }
        root
    }

    #[test]
    fn ports_and_distances_are_read_from_sysfs() {
        let gpu = "pci0000:3a/0000:3a:00.0/0000:3b:00.0/0000:3c:04.0/0000:3d:00.0";
        let near = "pci0000:3a/0000:3a:00.0/0000:3b:00.0/0000:3c:08.0/0000:3e:00.0";
        let far = "pci0000:80/0000:80:00.0/0000:81:00.0";
        let root = sysfs(
            gpu,
            &[("mlx5_1", far, "1: DOWN", "10 Gb/sec (4X SDR)"), ("mlx5_0", near, "4: ACTIVE", "400 Gb/sec (4X NDR)")],
        );
        let found = devices(&root);
        let short: Vec<_> = found.iter().map(|d| (d.name.as_str(), d.is_active(), d.gbits())).collect();
        assert_eq!(short, [("mlx5_0", true, 400), ("mlx5_1", false, 0)]);
        assert_eq!(found[1].ports[0].state, "DOWN, LinkUp");
        let distance = |n: usize| found[n].distance(&root, "00000000:3D:00.0");
        // Both paths lack the file numa_node, so their nodes count as equal.
        assert_eq!((distance(0), distance(1)), (Some(Link::OneSwitch), Some(Link::Node)));
        assert!(devices(&root.join("nothing")).is_empty());
        std::fs::remove_dir_all(root).unwrap();
    }
}
