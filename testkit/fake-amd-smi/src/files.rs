//! The files of the kernel on the simulated machine, below `/sys`: of the driver, of the partitions, and of the compute driver (KFD).

use std::collections::BTreeMap;

use slipway_gpu::amd::sysfs::Sysfs;

use crate::machine::{Gpu, Link, Machine};

/// CPUs are nodes of the compute driver too; the GPUs come after them.
const CPUS: u32 = 2;

/// Number of the render node of the GPU with this index.
pub(crate) fn render(index: usize) -> u32 {
    128 + u32::try_from(index).unwrap_or(0)
}

/// The files on the machine of a fixture.
pub(crate) fn files(fixture: &str) -> Sysfs {
    Sysfs::Files(Machine::load(fixture).map(|machine| of_machine(&machine)).unwrap_or_default())
}

fn of_machine(machine: &Machine) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut put = |path: String, text: String| files.insert(path, text + "\n");
    put("module/amdgpu/srcversion".into(), machine.source_version.clone());
    if !machine.driver.is_empty() {
        put("module/amdgpu/version".into(), machine.driver.clone());
    }
    let gpus = machine.gpus();
    let mut platform = 0;
    for (index, gpu) in gpus.iter().enumerate() {
        let device = if gpu.partition == 0 {
            let folder = format!("module/amdgpu/drivers/pci:amdgpu/0000:{:02x}:00.0", Machine::bus(gpu.card));
            put(format!("{folder}/numa_node"), numa(machine, gpu).to_string());
            put(format!("{folder}/device"), format!("0x{:04x}", machine.device));
            if !machine.product.is_empty() {
                put(format!("{folder}/product_name"), machine.product.clone());
            }
            if let Some((compute, memory)) = &gpu.modes {
                put(format!("{folder}/available_compute_partition"), "SPX, DPX, QPX, CPX".into());
                put(format!("{folder}/available_memory_partition"), "NPS1, NPS2, NPS4".into());
                put(format!("{folder}/current_compute_partition"), compute.to_uppercase());
                put(format!("{folder}/current_memory_partition"), memory.to_uppercase());
            }
            folder
        } else {
            platform += 1;
            format!("devices/platform/amdgpu_xcp_{}", platform - 1)
        };
        put(format!("{device}/drm/card{index}/dev"), format!("226:{index}"));
        put(format!("{device}/drm/renderD{0}/dev", render(index)), format!("226:{}", render(index)));
        let node = format!("class/kfd/kfd/topology/nodes/{}", CPUS as usize + index);
        put(format!("{node}/properties"), properties(machine, gpu, index));
        let bytes = (machine.memory_mib << 20) / u64::from(gpu.partitions);
        put(format!("{node}/mem_banks/0/properties"), format!("heap_type 1\nsize_in_bytes {bytes}"));
        let others = gpus.iter().enumerate().filter(|(other, _)| *other != index);
        for (number, (other, peer)) in others.enumerate() {
            let kind = if peer.card == gpu.card || machine.link == Link::Xgmi { 11 } else { 2 };
            let text = format!("type {kind}\nnode_from {}\nnode_to {}", CPUS as usize + index, CPUS as usize + other);
            put(format!("{node}/io_links/{number}/properties"), text);
        }
    }
    for cpu in 0..CPUS {
        put(
            format!("class/kfd/kfd/topology/nodes/{cpu}/properties"),
            "cpu_cores_count 96\nsimd_count 0\ndrm_render_minor 0".into(),
        );
    }
    files
}

/// The first half of the cards is at the first CPU.
fn numa(machine: &Machine, gpu: &Gpu) -> u32 {
    u32::from(gpu.card * CPUS >= machine.count)
}

fn properties(machine: &Machine, gpu: &Gpu, index: usize) -> String {
    // gfx1100 is version 110000, and gfx90a is 90010: the major version has decimal digits, the others have one hexadecimal digit each.
    let architecture = machine.architecture;
    let major = format!("{:x}", architecture >> 8).parse::<u64>().unwrap_or(0);
    let version = major * 10_000 + (architecture >> 4 & 0xf) * 100 + (architecture & 0xf);
    let simds = machine.compute_units / gpu.partitions * machine.simds_per_unit;
    format!(
        "cpu_cores_count 0\nsimd_count {simds}\nsimd_per_cu {}\ngfx_target_version {version}\nvendor_id 4098\ndevice_id {}\n\
         location_id {}\ndomain 0\ndrm_render_minor {}",
        machine.simds_per_unit,
        machine.device,
        Machine::bus(gpu.card) << 8,
        render(index)
    )
}
