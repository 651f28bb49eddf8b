//! The GPUs of AMD as containers use them: device nodes, partitions, connections, and what the compute driver (KFD) reports.
//!
//! A card of the series Instinct MI300 can be divided into partitions. Each one is a device of its own: the first is the PCI device, and the
//! others are platform devices `amdgpu_xcp_N`. All of this comes from the kernel, because AMD SMI has neither these names nor the version of
//! the driver's source, and because AMD's own device plugin reads the same files, so the names are the same.
//!
//! Sources: kernel documentation, "AMDGPU RAS", "GPU partitioning" (`current_compute_partition`); `drivers/gpu/drm/amd/amdkfd/kfd_topology.c`;
//! ROCm/k8s-device-plugin, "Resource Naming Strategy".

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::sysfs::Sysfs;

/// Maximum number of devices: 8 cards with 8 partitions each, and as many more.
const MAX_DEVICES: usize = 256;
/// The folder of the devices of the driver.
const DRIVER: &str = "module/amdgpu/drivers/pci:amdgpu";
const KFD_NODES: &str = "class/kfd/kfd/topology/nodes";

/// How a card is divided.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Partition {
    /// The compute mode in lower case, from `spx` (one partition) to `cpx` (one for each chiplet).
    pub compute: String,
    /// The memory mode in lower case, from `nps1` to `nps8`.
    pub memory: String,
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.compute, self.memory)
    }
}

/// The kind of a connection between two devices, from `type` of KFD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// AMD's own links (Infinity Fabric), also between the partitions of a card.
    Xgmi,
    /// PCI Express.
    Pcie,
    /// Another kind, or none that the kernel reports.
    Other,
}

/// What the compute driver reports about a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Compute {
    /// Its number in the topology.
    pub node: u32,
    /// The number of SIMD units.
    pub simds: u32,
    /// The number of SIMD units in a compute unit.
    pub simds_per_unit: u32,
    /// The memory in bytes.
    pub memory: u64,
    /// The instruction set as the compute driver writes it: 90402 is gfx942.
    pub version: u32,
    /// The kind of the connection to other devices, by their number in the topology.
    pub links: BTreeMap<u32, Link>,
}

/// A GPU, or a partition of one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its name for Kubernetes: `0000:c1:00.0`, or `amdgpu_xcp_3` for the further partitions of a card.
    pub id: String,
    /// The PCI address of its card.
    pub address: String,
    /// Number of the device node `/dev/dri/cardN`.
    pub card: u32,
    /// Number of the device node `/dev/dri/renderDN`.
    pub render: u32,
    /// How its card is divided; `None` if it cannot be.
    pub partition: Option<Partition>,
    /// The NUMA node of its card, if known.
    pub numa: Option<u32>,
    /// The PCI device ID without `0x`, such as `74a1`.
    pub model: String,
    /// The product name of the firmware, such as `AMD_Instinct_MI300X_OAM`; empty on cards without one.
    pub product: String,
    /// What the compute driver reports; `None` if it does not know the device.
    pub compute: Option<Compute>,
}

impl Device {
    /// The kind of the connection to another device.
    pub fn link(&self, other: &Self) -> Link {
        let to = |a: &Self, b: &Self| a.compute.as_ref()?.links.get(&b.compute.as_ref()?.node).copied();
        // The kernel lists a connection on both sides, or only on one.
        to(self, other).or_else(|| to(other, self)).unwrap_or(Link::Other)
    }
}

/// The version of the driver, and what cards can do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Driver {
    /// Whether the driver is loaded.
    pub loaded: bool,
    /// The version of AMD's package; empty for the driver of the kernel.
    pub version: String,
    /// The digest of the driver's source.
    pub source_version: String,
    /// Whether the first card can be divided into partitions, and its memory.
    pub partitions: (bool, bool),
}

impl Driver {
    /// Reads the version of the driver.
    pub fn read(sysfs: &Sysfs) -> Self {
        let module = |name: &str| sysfs.read(&format!("module/amdgpu/{name}")).unwrap_or_default();
        let first = addresses(sysfs).into_iter().next();
        let can = |what: &str| {
            first.as_ref().is_some_and(|a| sysfs.exists(&format!("{DRIVER}/{a}/available_{what}_partition")))
        };
        Self {
            loaded: sysfs.exists("module/amdgpu/drivers"),
            version: module("version"),
            source_version: module("srcversion"),
            partitions: (can("compute"), can("memory")),
        }
    }
}

/// The PCI addresses of the cards.
fn addresses(sysfs: &Sysfs) -> Vec<String> {
    let is_address = |name: &String| name.split(':').count() == 3 && name.split(':').all(|part| !part.is_empty());
    sysfs.names(DRIVER).into_iter().filter(is_address).take(MAX_DEVICES).collect()
}

/// All devices: the cards in the order of their addresses, each followed by its further partitions.
pub fn devices(sysfs: &Sysfs) -> Vec<Device> {
    let nodes = compute_nodes(sysfs);
    let mut devices = Vec::new();
    for address in addresses(sysfs) {
        let folder = format!("{DRIVER}/{address}");
        let Some((card, render)) = device_nodes(sysfs, &folder) else { continue };
        let attribute = |name: &str| sysfs.read(&format!("{folder}/{name}")).unwrap_or_default();
        let mode = |what: &str| {
            Some(attribute(&format!("current_{what}_partition")).to_lowercase()).filter(|mode| is_word(mode))
        };
        devices.push(Device {
            id: address.clone(),
            address,
            card,
            render,
            partition: mode("compute").zip(mode("memory")).map(|(compute, memory)| Partition { compute, memory }),
            numa: attribute("numa_node").parse().ok(),
            model: attribute("device").trim_start_matches("0x").to_owned(),
            product: attribute("product_name"),
            compute: nodes.get(&render).map(|(_, compute)| compute.clone()),
        });
    }
    let mut names = sysfs.names("devices/platform");
    names.retain(|name| name.starts_with("amdgpu_xcp_"));
    // 10 comes after 9.
    names.sort_by_key(|name| (name.len(), name.clone()));
    for id in names.into_iter().take(MAX_DEVICES) {
        let Some((card, render)) = device_nodes(sysfs, &format!("devices/platform/{id}")) else { continue };
        // The kernel creates device nodes for the largest possible number of partitions; the compute driver knows which ones exist.
        let Some((bus, compute)) = nodes.get(&render) else { continue };
        let Some(first) = devices.iter().find(|device| is_at(&device.address, bus)).cloned() else { continue };
        devices.push(Device { id, card, render, compute: Some(compute.clone()), ..first });
    }
    let order: BTreeMap<String, usize> =
        devices.iter().enumerate().rev().map(|(at, device)| (device.address.clone(), at)).collect();
    devices.sort_by_key(|device| order.get(&device.address).copied());
    devices
}

/// Whether a text can be part of a resource's name.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.len() <= 16 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// Domain, bus and device of a PCI address.
type Bus = (u64, u64, u64);

/// Whether a PCI address has this domain, bus and device, regardless of its function.
fn is_at(address: &str, bus: &Bus) -> bool {
    let mut numbers = address.split([':', '.']).map(|part| u64::from_str_radix(part, 16).ok());
    (numbers.next().flatten(), numbers.next().flatten(), numbers.next().flatten())
        == (Some(bus.0), Some(bus.1), Some(bus.2))
}

/// The numbers of a device's nodes `cardN` and `renderDN`.
fn device_nodes(sysfs: &Sysfs, folder: &str) -> Option<(u32, u32)> {
    let names = sysfs.names(&format!("{folder}/drm"));
    let number = |prefix: &str| names.iter().find_map(|name| name.strip_prefix(prefix)?.parse().ok());
    Some((number("card")?, number("renderD")?))
}

/// The numbers of a file of the compute driver, one `name number` a line.
fn properties(sysfs: &Sysfs, path: &str) -> BTreeMap<String, u64> {
    let text = sysfs.read(path).unwrap_or_default();
    let pair = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        Some((name.to_owned(), number.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// What the compute driver reports about each GPU, by the number of the render node.
fn compute_nodes(sysfs: &Sysfs) -> BTreeMap<u32, (Bus, Compute)> {
    let mut nodes = BTreeMap::new();
    for name in sysfs.names(KFD_NODES).into_iter().take(2 * MAX_DEVICES) {
        let Ok(node) = name.parse::<u32>() else { continue };
        let folder = format!("{KFD_NODES}/{name}");
        let found = properties(sysfs, &format!("{folder}/properties"));
        let number = |name: &str| found.get(name).copied().unwrap_or_default();
        let small = |name: &str| u32::try_from(number(name)).unwrap_or_default();
        // CPUs are nodes too, without a render node.
        let render = small("drm_render_minor");
        if render == 0 {
            continue;
        }
        let location = number("location_id");
        let bus = (number("domain"), location >> 8 & 0xff, location >> 3 & 0x1f);
        let mut links = BTreeMap::new();
        for kind in ["io_links", "p2p_links"] {
            for link in sysfs.names(&format!("{folder}/{kind}")).into_iter().take(4 * MAX_DEVICES) {
                let found = properties(sysfs, &format!("{folder}/{kind}/{link}/properties"));
                let Some(to) = found.get("node_to").and_then(|to| u32::try_from(*to).ok()) else { continue };
                links.insert(to, link_kind(found.get("type").copied()));
            }
        }
        let memory = properties(sysfs, &format!("{folder}/mem_banks/0/properties"));
        let compute = Compute {
            node,
            simds: small("simd_count"),
            simds_per_unit: small("simd_per_cu"),
            memory: memory.get("size_in_bytes").copied().unwrap_or_default(),
            version: small("gfx_target_version"),
            links,
        };
        nodes.insert(render, (bus, compute));
    }
    nodes
}

/// `KFD_IOLINK_TYPE` of kfd_crat.h.
fn link_kind(number: Option<u64>) -> Link {
    match number {
        Some(11) => Link::Xgmi,
        Some(2) => Link::Pcie,
        _ => Link::Other,
    }
}

/// The name of a GPU's family in the kernel's interface (`AMDGPU_FAMILY_...` of amdgpu_drm.h), by its instruction set as the compute driver
/// writes it; `None` if it is unknown.
pub fn family(version: u32) -> Option<&'static str> {
    let (major, minor, step) = (version / 10_000, version / 100 % 100, version % 100);
    Some(match (major, minor, step) {
        (7, ..) => "CI",
        (8, 0, 1) => "CZ",
        (8, ..) => "VI",
        // Raven, Picasso and Renoir are processors with graphics.
        (9, 0, 2 | 9 | 12) => "RV",
        (9, ..) => "AI",
        (10, 3, 3) => "VGH",
        (10, 3, 5) => "YC",
        (10, 3, 6) => "GC_10_3_6",
        (10, 3, 7) => "GC_10_3_7",
        (10, ..) => "NV",
        (11, 0, 3) => "GC_11_0_1",
        (11, 0, _) => "GC_11_0_0",
        (11, 5, _) => "GC_11_5_0",
        (12, 0, _) => "GC_12_0_0",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A card in two partitions, and a third device node for a partition that does not exist.
    fn sysfs() -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        let mut put = |path: String, text: &str| files.insert(path, format!("{text}\n"));
        let card = format!("{DRIVER}/0000:c1:00.0");
        for (file, text) in [
            ("current_compute_partition", "DPX"),
            ("available_compute_partition", "SPX, DPX, CPX"),
            ("current_memory_partition", "NPS1"),
            ("numa_node", "1"),
            ("device", "0x74a1"),
            ("drm/card1/dev", ""),
            ("drm/renderD128/dev", ""),
        ] {
            put(format!("{card}/{file}"), text);
        }
        put(format!("{DRIVER}/module/x"), "");
        put("module/amdgpu/srcversion".into(), "ABC");
        for (number, render) in [(30, 129), (31, 130)] {
            put(format!("devices/platform/amdgpu_xcp_{number}/drm/renderD{render}/dev"), "");
            put(format!("devices/platform/amdgpu_xcp_{number}/drm/card{number}/dev"), "");
        }
        put(format!("{KFD_NODES}/0/properties"), "cpu_cores_count 64\ndrm_render_minor 0");
        for (node, render) in [(1, 128), (2, 129)] {
            let text = format!(
                "simd_count 608\nsimd_per_cu 4\ngfx_target_version 90402\nlocation_id 49408\ndomain 0\ndrm_render_minor {render}"
            );
            put(format!("{KFD_NODES}/{node}/properties"), &text);
            put(format!("{KFD_NODES}/{node}/mem_banks/0/properties"), "heap_type 1\nsize_in_bytes 103079215104");
            put(format!("{KFD_NODES}/{node}/io_links/0/properties"), "type 2\nnode_from 1\nnode_to 0");
        }
        put(format!("{KFD_NODES}/1/io_links/1/properties"), "type 11\nnode_from 1\nnode_to 2");
        files
    }

    #[test]
    fn partitions_are_devices_of_their_card() {
        let files = Sysfs::Files(sysfs());
        let found = devices(&files);
        let ids: Vec<_> = found.iter().map(|d| (d.id.as_str(), d.card, d.render, d.address.as_str())).collect();
        assert_eq!(ids, [("0000:c1:00.0", 1, 128, "0000:c1:00.0"), ("amdgpu_xcp_30", 30, 129, "0000:c1:00.0")]);
        for device in &found {
            assert_eq!(device.partition.as_ref().unwrap().to_string(), "dpx_nps1");
            assert_eq!((device.numa, device.model.as_str()), (Some(1), "74a1"));
            let compute = device.compute.as_ref().unwrap();
            assert_eq!((compute.simds, compute.simds_per_unit, compute.memory), (608, 4, 96 << 30));
        }
        assert_eq!((found[0].link(&found[1]), found[1].link(&found[0])), (Link::Xgmi, Link::Xgmi));
        let driver = Driver::read(&files);
        assert_eq!((driver.loaded, driver.partitions, driver.source_version.as_str()), (true, (true, false), "ABC"));
        assert_eq!(Driver::read(&Sysfs::Files(BTreeMap::new())), Driver::default());
    }

    #[test]
    fn modes_that_cannot_be_part_of_a_name_are_ignored() {
        for mode in ["", "CPX NPS4", "cpx/../../x", "aaaaaaaaaaaaaaaaaaaa"] {
            let mut files = sysfs();
            files.insert(format!("{DRIVER}/0000:c1:00.0/current_compute_partition"), mode.into());
            assert_eq!(devices(&Sysfs::Files(files))[0].partition, None, "{mode}");
        }
    }

    #[test]
    fn families_are_those_of_the_kernel() {
        for (version, expected) in [
            (90_010, Some("AI")),
            (90_402, Some("AI")),
            (90_500, Some("AI")),
            (90_012, Some("RV")),
            (80_003, Some("VI")),
            (100_300, Some("NV")),
            (110_000, Some("GC_11_0_0")),
            (110_003, Some("GC_11_0_1")),
            (110_501, Some("GC_11_5_0")),
            (120_001, Some("GC_12_0_0")),
            (0, None),
        ] {
            assert_eq!(family(version), expected, "{version}");
        }
    }
}
