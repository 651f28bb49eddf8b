//! PCI devices read from sysfs, with names from the pci.ids database, without `lspci`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::link::Link;

/// NVIDIA's PCI vendor id.
pub const NVIDIA: u16 = 0x10de;
/// AMD's PCI vendor id.
pub const AMD: u16 = 0x1002;

/// A PCI device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PciDevice {
    /// Address in the kernel's form, such as `0000:3b:00.0`.
    pub address: String,
    /// PCI vendor id, such as `0x10de`.
    pub vendor: u16,
    /// PCI device id, such as `0x2330`.
    pub device: u16,
    /// PCI class, such as `0x030200`: `0x0300` a VGA controller, `0x0302` a 3D controller, `0x0680` an NVSwitch.
    pub class: u32,
    /// The kernel driver bound to the device, such as `nvidia`.
    pub driver: Option<String>,
    /// The name in pci.ids, if the database is installed and lists the device.
    pub name: Option<String>,
}

impl PciDevice {
    /// Whether the device is a display controller (PCI base class 0x03), or an accelerator of AMD (class 0x1200), such as an MI300X.
    pub fn is_gpu(&self) -> bool {
        self.class >> 16 == 0x03 || self.is_accelerator() && self.vendor == AMD
    }

    /// Whether the device cannot have a screen: a processing accelerator (0x1200) or a display controller without VGA (0x0380).
    pub fn is_accelerator(&self) -> bool {
        matches!(self.class >> 8, 0x1200 | 0x0380)
    }
}

fn hex(path: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(path).ok()?;
    u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

/// Lists GPUs of all vendors and NVSwitches under `sysfs` (usually `/sys`), ordered by address.
pub fn scan(sysfs: &Path) -> Vec<PciDevice> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(sysfs.join("bus/pci/devices")).into_iter().flatten().flatten() {
        let path = entry.path();
        let (Some(vendor), Some(device), Some(class)) =
            (hex(&path.join("vendor")), hex(&path.join("device")), hex(&path.join("class")))
        else {
            continue;
        };
        let (vendor, device) = (u16::try_from(vendor).unwrap_or(0), u16::try_from(device).unwrap_or(0));
        let driver = std::fs::read_link(path.join("driver")).ok();
        let driver = driver.and_then(|d| d.file_name().map(|n| n.to_string_lossy().into_owned()));
        let address = entry.file_name().to_string_lossy().into_owned();
        let found_device = PciDevice { address, vendor, device, class, driver, name: None };
        if found_device.is_gpu() || (vendor == NVIDIA && class >> 8 == 0x0680) {
            found.push(found_device);
        }
    }
    found.sort_by(|a, b| a.address.cmp(&b.address));
    let databases = ["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids", "/var/lib/pciutils/pci.ids"];
    if let Some(ids) = databases.iter().find_map(|p| std::fs::read_to_string(p).ok()) {
        for device in &mut found {
            device.name = lookup(&ids, device.vendor, device.device);
        }
    }
    found
}

/// Looks up a device name in the text of pci.ids, where vendors start at column 0 and their devices after one tab.
pub fn lookup(ids: &str, vendor: u16, device: u16) -> Option<String> {
    let (vendor, device) = (format!("{vendor:04x}  "), format!("\t{device:04x}  "));
    let mut lines = ids.lines().skip_while(|l| !l.starts_with(&vendor));
    let maker = lines.next()?.split_once("  ")?.1;
    let name = lines
        .take_while(|l| l.starts_with('\t') || l.starts_with('#') || l.is_empty())
        .find_map(|l| l.strip_prefix(&device))?;
    Some(format!("{} {name}", maker.split_whitespace().next().unwrap_or(maker)))
}

/// The rate of a PCIe link in one direction in GB/s (10^9 bytes per second), before the headers of packets: lanes x transfer rate x
/// encoding. `None` for an unknown generation.
///
/// Source: PCI Express Base Specification: 8b/10b up to 5 GT/s, 128b/130b up to 32 GT/s, and FLITs with 242 of 256 bytes at 64 GT/s.
pub fn bandwidth(generation: u32, width: u32) -> Option<f64> {
    let (gigatransfers, encoding) = match generation {
        1 => (2.5, 0.8),
        2 => (5.0, 0.8),
        3 => (8.0, 128.0 / 130.0),
        4 => (16.0, 128.0 / 130.0),
        5 => (32.0, 128.0 / 130.0),
        6 => (64.0, 242.0 / 256.0),
        _ => return None,
    };
    Some(f64::from(width) * gigatransfers * encoding / 8.0)
}

/// Converts a PCI address from NVML's form (eight-digit domain) to the kernel's (four-digit domain).
pub fn kernel_address(bus_id: &str) -> String {
    let address = if bus_id.find(':') == Some(8) { &bus_id[4..] } else { bus_id };
    address.to_ascii_lowercase()
}

/// The sysfs directory of a device, by its address in NVML's or the kernel's form.
pub fn path_of(sysfs: &Path, bus_id: &str) -> Option<PathBuf> {
    std::fs::canonicalize(sysfs.join("bus/pci/devices").join(kernel_address(bus_id))).ok()
}

/// The NUMA node of a device, if sysfs reports one.
pub fn numa_node(sysfs: &Path, bus_id: &str) -> Option<u32> {
    let text = std::fs::read_to_string(path_of(sysfs, bus_id)?.join("numa_node")).ok()?;
    text.trim().parse().ok()
}

/// NUMA node numbers with their CPU numbers, ordered by node.
pub fn numa_nodes(sysfs: &Path) -> Vec<(u32, Vec<u32>)> {
    let mut nodes = Vec::new();
    for entry in std::fs::read_dir(sysfs.join("devices/system/node")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(number) = name.strip_prefix("node").and_then(|n| n.parse().ok()) else { continue };
        let list = std::fs::read_to_string(entry.path().join("cpulist")).unwrap_or_default();
        nodes.push((number, parse_ranges(list.trim())));
    }
    nodes.sort_unstable();
    nodes
}

/// A larger range is no CPU list: Linux supports at most 8192 CPUs.
const MAX_CPU: u32 = 1 << 16;

/// Parses a kernel CPU list such as `0-3,8` to numbers. Ranges with numbers above [`MAX_CPU`] are skipped.
pub(crate) fn parse_ranges(text: &str) -> Vec<u32> {
    let range = |part: &str| -> Option<std::ops::RangeInclusive<u32>> {
        let (a, b) = part.split_once('-').unwrap_or((part, part));
        Some(a.parse().ok()?..=b.parse().ok().filter(|last| *last <= MAX_CPU)?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// The components of a sysfs path that are PCI addresses, starting at the root complex (`pci0000:3a`).
pub fn address_parts(path: &Path) -> Vec<String> {
    let parts = path.iter().map(|p| p.to_string_lossy().into_owned());
    parts.filter(|p| p.starts_with("pci") || (p.len() == 12 && p.contains(':') && p.contains('.'))).collect()
}

/// How two PCI devices are connected, derived from their paths below `/sys/devices`.
///
/// The last component that both paths share decides: a bridge below the root port is a PCIe switch, and `pciDDDD:BB` is
/// the host bridge. Paths without a shared component are compared by NUMA node.
pub fn distance(a: &Path, b: &Path) -> Link {
    let (x, y) = (address_parts(a), address_parts(b));
    let shared = x.iter().zip(&y).take_while(|(p, q)| p == q).count();
    let node = |p: &Path| std::fs::read_to_string(p.join("numa_node")).unwrap_or_default();
    match shared {
        0 if node(a) == node(b) => Link::Node,
        0 => Link::System,
        1 => Link::HostBridge,
        // One switch: below the shared bridge each path has only its own downstream port and the device.
        _ if x.len() - shared <= 2 && y.len() - shared <= 2 => Link::OneSwitch,
        _ => Link::Switches,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_are_looked_up_by_vendor() {
        let ids = "# comment\n10dd  Other\n\t2330  Wrong\n10de  NVIDIA Corporation\n\t2330  GH100 [H100 SXM5 80GB]\n\t\t10de 16c1  sub\nC 03  Display controller\n\t2331  Class\n";
        assert_eq!(lookup(ids, NVIDIA, 0x2330).as_deref(), Some("NVIDIA GH100 [H100 SXM5 80GB]"));
        assert_eq!(lookup(ids, NVIDIA, 0x2331), None);
    }

    #[test]
    fn link_rates_are_those_of_the_specification() {
        let rate = |generation, width| bandwidth(generation, width).map(|r| (r * 100.0).round() / 100.0);
        assert_eq!((rate(1, 16), rate(3, 16)), (Some(4.0), Some(15.75)));
        assert_eq!((rate(4, 8), rate(5, 16), rate(6, 16)), (Some(15.75), Some(63.02), Some(121.0)));
        assert_eq!(rate(7, 16), None);
    }

    #[test]
    fn distance_follows_shared_path_components() {
        let path = |tail: &str| PathBuf::from(format!("/sys/devices/{tail}"));
        let gpu = path("pci0000:3a/0000:3a:00.0/0000:3b:00.0/0000:3c:04.0/0000:3d:00.0");
        let same_switch = path("pci0000:3a/0000:3a:00.0/0000:3b:00.0/0000:3c:08.0/0000:3e:00.0");
        let same_bridge = path("pci0000:3a/0000:3a:02.0/0000:40:00.0");
        assert_eq!(distance(&gpu, &same_switch), Link::OneSwitch);
        assert_eq!(distance(&gpu, &same_bridge), Link::HostBridge);
        assert_eq!(distance(&gpu, &path("pci0000:5d/0000:5d:00.0/0000:5e:00.0")), Link::Node);
    }

    #[test]
    fn cpu_lists_are_parsed() {
        assert_eq!(parse_ranges("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(parse_ranges(""), Vec::<u32>::new());
        assert_eq!(parse_ranges("0-4294967295,7"), [7], "a huge range takes no memory");
    }
}
