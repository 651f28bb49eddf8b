//! The checks of level 1: what the driver, sysfs and the kernel's log report. Nothing runs on a GPU.

use std::collections::BTreeMap;
use std::path::Path;

use super::Request;
use super::check::{Check, Outcome};
use crate::inventory::{FindingCode, Gpu, Inventory, Severity};
use crate::link::Link;
use crate::nvml::xid::{Effect, Xid};
use crate::topology::Topology;
use crate::{kernel_log, pci, rdma, sheet, stack};

/// Checks that are the findings of the inventory: name, findings, outcome of a warning.
const FINDINGS: &[(&str, &[FindingCode], Outcome)] = &[
    ("driver", &[FindingCode::GpuLost, FindingCode::UnreadableValue], Outcome::Warn),
    ("persistence", &[FindingCode::PersistenceOff], Outcome::Warn),
    ("page_retirement", &[FindingCode::RemappingFailed, FindingCode::RemappingPending], Outcome::Fail),
    ("ecc", &[FindingCode::UncorrectedErrors], Outcome::Fail),
    ("fabric", &[FindingCode::FabricNotReady, FindingCode::FabricUnhealthy], Outcome::Fail),
    ("pcie_link", &[FindingCode::PcieWidth, FindingCode::PcieGeneration], Outcome::Fail),
    ("pcie_replays", &[FindingCode::PcieReplays], Outcome::Warn),
    ("nvlink", &[FindingCode::NvLinksDown], Outcome::Fail),
    ("mig", &[FindingCode::MigModePending], Outcome::Warn),
    ("clocks", &[FindingCode::ClocksReduced, FindingCode::Hot], Outcome::Fail),
    ("power_limit", &[FindingCode::PowerLimited], Outcome::Warn),
];

/// All checks of level 1 for the machine under `root`.
pub(super) fn checks(inventory: &Inventory, topology: &Topology, root: &Path, request: &Request) -> Vec<Check> {
    let mut checks = machine(inventory, root);
    let gpus: Vec<&Gpu> =
        inventory.gpus.iter().filter(|g| request.gpus.is_empty() || request.gpus.contains(&g.index)).collect();
    for gpu in &gpus {
        // A lost GPU has no other values, which is no sign that they are right.
        let lost = gpu.findings.iter().any(|f| f.code == FindingCode::GpuLost);
        let readable = FINDINGS.iter().filter(|(name, ..)| !lost || *name == "driver");
        checks.extend(readable.map(|(name, codes, of_warning)| finding(gpu, name, codes, *of_warning)));
        if !lost {
            checks.push(processes(gpu, request));
        }
    }
    checks.extend(same_model(&gpus));
    if inventory.simulated {
        for name in ["xid", "rdma", "rdma_distance", "gpudirect_rdma"] {
            checks.push(Check::new(name, "machine", Outcome::Skip, "the GPUs are simulated"));
        }
    } else {
        checks.extend(xids(&gpus, kernel_log::read(root)));
        checks.extend(network(&gpus, &root.join("sys"), request.limits.rdma_ports));
    }
    if topology.gpus.is_empty() {
        checks.push(
            Check::new("driver", "machine", Outcome::Fail, "there is no NVIDIA GPU").with_hint("slipway gpu stack"),
        );
    }
    checks
}

/// Versions and device files of the machine.
fn machine(inventory: &Inventory, root: &Path) -> Vec<Check> {
    if inventory.simulated {
        let what = format!("driver {}, {} GPUs, simulated", inventory.driver, inventory.gpus.len());
        return vec![
            Check::new("driver", "machine", Outcome::Pass, what),
            Check::new("permissions", "machine", Outcome::Skip, "the GPUs are simulated"),
        ];
    }
    let layers = stack::layers(root, &Ok(inventory.clone()));
    let of_layers = |name: &'static str, names: &[&str], passed: String| {
        let mut layers = layers.iter().filter(|l| names.contains(&l.name));
        match layers.find(|l| l.ok == Some(false)) {
            Some(layer) => {
                let what = format!("{}: {}", layer.name, layer.found);
                Check::new(name, "machine", Outcome::Fail, what).with_hint(layer.remedy.clone())
            }
            None => Check::new(name, "machine", Outcome::Pass, passed),
        }
    };
    let versions = format!("driver {}, NVML {}, CUDA {}", inventory.driver, inventory.nvml, inventory.cuda);
    let mut checks = vec![
        of_layers("driver", &["kernel module", "kind of module", "driver and library", "nouveau"], versions),
        of_layers("permissions", &["device nodes"], "the device files can be opened".into()),
    ];
    let on_bus = pci::scan(&root.join("sys")).into_iter().filter(|d| d.is_gpu() && d.vendor == pci::NVIDIA).count();
    if on_bus > inventory.gpus.len() {
        let what = format!("{on_bus} GPUs are on the PCI bus, and the driver reports {}", inventory.gpus.len());
        let hint = "see the kernel's log: dmesg | grep -i nvrm";
        checks.push(Check::new("driver", "machine", Outcome::Fail, what).with_hint(hint));
    }
    checks
}

/// A check whose defects are findings of the inventory.
fn finding(gpu: &Gpu, name: &'static str, codes: &[FindingCode], of_warning: Outcome) -> Check {
    let device = format!("gpu {}", gpu.index);
    // The most severe finding comes first.
    if let Some(found) = gpu.findings.iter().find(|f| codes.contains(&f.code)) {
        let outcome = match found.severity {
            Severity::Error => Outcome::Fail,
            Severity::Warning => of_warning,
            Severity::Note => Outcome::Warn,
        };
        return Check::new(name, device, outcome, found.what.clone()).with_hint(found.remedy.clone());
    }
    if let Some(check) = beyond_findings(gpu, name) {
        return check;
    }
    let (outcome, what) = match name {
        "driver" => (Outcome::Pass, format!("{} responds", gpu.name)),
        "persistence" => (Outcome::Pass, "on".into()),
        "page_retirement" => (Outcome::Pass, "no memory row is pending or has failed".into()),
        "ecc" => match &gpu.ecc {
            None => (Outcome::Skip, "the GPU has no ECC".into()),
            Some(ecc) => (Outcome::Pass, format!("on, {} corrected errors", ecc.corrected)),
        },
        "fabric" => match &gpu.fabric {
            None => (Outcome::Skip, "the GPU needs no fabric".into()),
            Some(fabric) => (Outcome::Pass, fabric.state.to_string()),
        },
        "pcie_link" => match &gpu.pcie {
            None => (Outcome::Skip, "the driver reports no PCIe link".into()),
            Some(p) => {
                (Outcome::Pass, format!("x{} of x{}, up to generation {}", p.width, p.width_max, p.generation_max))
            }
        },
        "pcie_replays" => match gpu.pcie.as_ref().and_then(|p| p.replays) {
            None => (Outcome::Skip, "the driver reports no retransmissions".into()),
            Some(n) => (Outcome::Pass, format!("{n} packets were retransmitted")),
        },
        "nvlink" => match gpu.nvlinks.len() {
            0 => (Outcome::Skip, "the GPU has no NVLink".into()),
            n => (Outcome::Pass, format!("{n} of {n} active")),
        },
        "mig" => match &gpu.mig {
            None => (Outcome::Skip, "the GPU has no MIG".into()),
            Some(mig) => (Outcome::Pass, if mig.enabled { "on" } else { "off" }.into()),
        },
        "clocks" => (Outcome::Pass, "the hardware does not reduce them".into()),
        _ => (Outcome::Pass, gpu.power_limit_watts.map_or("unknown".into(), |w| format!("{w:.0} W"))),
    };
    Check::new(name, device, outcome, what)
}

/// Defects that are acceptable on a workstation, and so are no findings of the inventory.
fn beyond_findings(gpu: &Gpu, name: &'static str) -> Option<Check> {
    let device = format!("gpu {}", gpu.index);
    let card = sheet::find(&gpu.name);
    match name {
        "ecc" if gpu.ecc.as_ref().is_some_and(|e| !e.enabled) => Some(
            Check::new(name, device, Outcome::Warn, "off: memory errors stay unnoticed")
                .with_hint("nvidia-smi --ecc-config=1, then reset the GPU"),
        ),
        "pcie_link" => {
            let (pcie, card) = (gpu.pcie.as_ref()?, card?);
            // NVML's maximum is that of card and slot together.
            (pcie.generation_max < card.pcie_generation).then(|| {
                let what = format!("generation {} at most, the card has {}", pcie.generation_max, card.pcie_generation);
                Check::new(name, device, Outcome::Warn, what)
                    .with_hint("use a slot of that generation, and check the BIOS setting of the slot and the riser")
            })
        }
        "nvlink" if !gpu.nvlinks.is_empty() && gpu.nvlinks.iter().all(|l| !l.active) => {
            // On a board with switches every link is wired; elsewhere a bridge is optional, and MIG instances use no NVLink.
            let wired = gpu.fabric.is_some() && !gpu.mig.as_ref().is_some_and(|m| m.enabled);
            let outcome = if wired { Outcome::Fail } else { Outcome::Warn };
            let what = format!("none of {} is active", gpu.nvlinks.len());
            Some(
                Check::new(name, device, outcome, what)
                    .with_hint("check the bridge, and nvidia-fabricmanager on NVSwitch systems"),
            )
        }
        _ => None,
    }
}

/// Other processes: they disturb measurements, and the load disturbs them.
fn processes(gpu: &Gpu, request: &Request) -> Check {
    let device = format!("gpu {}", gpu.index);
    if gpu.processes.is_empty() {
        return Check::new("processes", device, Outcome::Pass, "none");
    }
    let names: Vec<String> = gpu.processes.iter().map(|p| format!("pid {} ({})", p.pid, p.owner.command)).collect();
    let outcome = if request.level.number() > 1 { Outcome::Fail } else { Outcome::Warn };
    Check::new("processes", device, outcome, names.join(", ")).with_hint("drain the node, or stop the processes")
}

/// Whether all GPUs are alike.
fn same_model(gpus: &[&Gpu]) -> Option<Check> {
    let first = gpus.first()?;
    let differs = gpus.iter().find(|g| (&g.name, g.memory_total) != (&first.name, first.memory_total));
    Some(match differs {
        None => Check::new("same_model", "machine", Outcome::Pass, format!("{} x {}", gpus.len(), first.name)),
        Some(other) => {
            let memory = |g: &Gpu| g.memory_total.map_or_else(|| "unknown memory".into(), slipway_core::units::bytes);
            let describe = |g: &Gpu| format!("gpu {} is {} with {}", g.index, g.name, memory(g));
            Check::new("same_model", "machine", Outcome::Warn, format!("{}, {}", describe(first), describe(other)))
                .with_hint("mixed models are fine if they are intended; collectives run at the rate of the slowest")
        }
    })
}

/// The XIDs in the kernel's log since the machine started.
fn xids(gpus: &[&Gpu], log: Result<Vec<kernel_log::Xid>, std::io::Error>) -> Vec<Check> {
    let log = match log {
        Ok(log) => log,
        Err(error) => {
            let what = format!("/dev/kmsg cannot be read: {error}");
            return vec![Check::new("xid", "machine", Outcome::Skip, what).with_hint("run as root")];
        }
    };
    let check = |gpu: &&Gpu| {
        let address = pci::kernel_address(&gpu.bus_id);
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        // The log names the device without its function: 0000:3b:00.
        for entry in log.iter().filter(|e| address.starts_with(&e.address)) {
            *counts.entry(entry.number).or_default() += 1;
        }
        let device = format!("gpu {}", gpu.index);
        let list = counts.iter().map(|(n, count)| format!("XID {n} ({count})")).collect::<Vec<_>>().join(", ");
        match counts.keys().map(|n| Xid::new(*n)).max_by_key(|x| x.effect) {
            None => Check::new("xid", device, Outcome::Pass, "none since the machine started"),
            Some(worst) => {
                let outcome = match worst.effect {
                    Effect::Nothing => Outcome::Pass,
                    // A fault that persists fails another check; after a reset the log still has it.
                    Effect::Application | Effect::Gpu | Effect::Node => Outcome::Warn,
                };
                let what = format!("{list} since the machine started: {}", worst.meaning);
                Check::new("xid", device, outcome, what).with_hint(worst.action.instruction())
            }
        }
    };
    gpus.iter().map(check).collect()
}

/// RDMA devices and their distance to the GPUs.
fn network(gpus: &[&Gpu], sysfs: &Path, ports: usize) -> Vec<Check> {
    let devices = rdma::devices(sysfs);
    let active = devices.iter().flat_map(|d| &d.ports).filter(|p| p.active).count();
    let mut checks = Vec::new();
    if active < ports {
        let what = format!("{active} RDMA ports are active, and {ports} are required");
        let hint = "check cables, switches and drivers: ibstat, rdma link";
        checks.push(Check::new("rdma", "machine", Outcome::Fail, what).with_hint(hint));
    }
    if devices.is_empty() {
        for name in ["rdma", "rdma_distance", "gpudirect_rdma"] {
            checks.push(Check::new(name, "machine", Outcome::Skip, "there is no RDMA device"));
        }
        return checks;
    }
    for device in &devices {
        for port in &device.ports {
            let rate = port.gbits.map_or_else(String::new, |g| format!(" {g} Gbit/s"));
            let what = format!("{}{rate}, {}", port.link_layer, port.state);
            let name = format!("{} port {}", device.name, port.number);
            checks.push(if port.active {
                Check::new("rdma", name, Outcome::Pass, what)
            } else {
                Check::new("rdma", name, Outcome::Warn, what)
                    .with_hint("connect the port, or ignore it; rdmaPorts in the limits sets the required number")
            });
        }
    }
    if active == 0 {
        return checks;
    }
    let near = |gpu: &&Gpu| {
        let device = format!("gpu {}", gpu.index);
        let distances =
            devices.iter().filter(|d| d.is_active()).filter_map(|d| Some((d.distance(sysfs, &gpu.bus_id)?, d)));
        let Some((link, nearest)) = distances.min_by_key(|(link, _)| *link) else {
            return Check::new("rdma_distance", device, Outcome::Skip, "sysfs does not have the paths of the devices");
        };
        let what = format!("{} is nearest: {} ({})", nearest.name, link.description(), link.short());
        if link == Link::System {
            Check::new("rdma_distance", device, Outcome::Warn, what)
                .with_hint("every transfer crosses the CPU sockets; move a network card to the GPU's socket")
        } else {
            Check::new("rdma_distance", device, Outcome::Pass, what)
        }
    };
    checks.extend(gpus.iter().map(near));
    let module = ["nvidia_peermem", "nv_peer_mem"].into_iter().find(|m| sysfs.join("module").join(m).exists());
    checks.push(match module {
        Some(module) => Check::new("gpudirect_rdma", "machine", Outcome::Pass, format!("{module} is loaded")),
        None => Check::new("gpudirect_rdma", "machine", Outcome::Warn, "nvidia_peermem is not loaded").with_hint(
            "modprobe nvidia-peermem; not needed if NCCL reports DMA-BUF (open modules, Linux 5.12 and later)",
        ),
    });
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdma::tests::sysfs;

    fn gpu(bus_id: &str) -> Gpu {
        Gpu { name: "NVIDIA H100 80GB HBM3".into(), bus_id: bus_id.into(), ..Gpu::default() }
    }

    fn outcomes(checks: &[Check]) -> Vec<(&str, &str, Outcome)> {
        checks.iter().map(|c| (c.name.as_str(), c.device.as_str(), c.outcome)).collect()
    }

    #[test]
    fn inactive_ports_warn_unless_their_number_is_required() {
        let path = "pci0000:3a/0000:3a:00.0/0000:3b:00.0/0000:3c:04.0/0000:3d:00.0";
        let near = "pci0000:3a/0000:3a:00.0/0000:3b:00.0/0000:3c:08.0/0000:3e:00.0";
        let root = sysfs(
            path,
            &[("mlx5_0", near, "4: ACTIVE", "400 Gb/sec (4X NDR)"), ("mlx5_1", near, "1: DOWN", "10 Gb/sec (4X SDR)")],
        );
        let gpu = gpu("00000000:3D:00.0");
        let expected = [
            ("rdma", "mlx5_0 port 1", Outcome::Pass),
            ("rdma", "mlx5_1 port 1", Outcome::Warn),
            ("rdma_distance", "gpu 0", Outcome::Pass),
            ("gpudirect_rdma", "machine", Outcome::Warn),
        ];
        let found = network(&[&gpu], &root, 1);
        assert_eq!(outcomes(&found), expected);
        assert_eq!(found[2].what, "mlx5_0 is nearest: one PCIe switch (PIX)");
        assert_eq!(outcomes(&network(&[&gpu], &root, 2))[0], ("rdma", "machine", Outcome::Fail));
        assert_eq!(outcomes(&network(&[&gpu], &root.join("none"), 0))[0], ("rdma", "machine", Outcome::Skip));
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn xids_of_the_log_belong_to_their_gpu() {
        let gpus = [gpu("00000000:3D:00.0"), gpu("00000000:3E:00.0")];
        let gpus: Vec<&Gpu> = gpus.iter().collect();
        let entry = |address: &str, number| kernel_log::Xid { address: address.into(), number };
        let log = vec![entry("0000:3d:00", 79), entry("0000:3e:00", 31)];
        let checks = xids(&gpus, Ok(log));
        let found: Vec<_> = checks.iter().map(|c| (c.outcome, c.what.split(' ').nth(1).unwrap())).collect();
        assert_eq!(found, [(Outcome::Warn, "79"), (Outcome::Warn, "31")]);
        assert_eq!(xids(&gpus, Ok(Vec::new()))[0].outcome, Outcome::Pass);
        let denied = xids(&gpus, Err(std::io::ErrorKind::PermissionDenied.into()));
        assert_eq!(denied[0].outcome, Outcome::Skip);
    }

    #[test]
    fn inactive_nvlinks_fail_on_a_board_with_switches() {
        let links: Vec<_> =
            (0..18).map(|link| crate::inventory::NvLink { link, active: false, version: None, remote: None }).collect();
        let fabric = crate::nvml::Fabric {
            state: crate::nvml::FabricState::Completed,
            error: None,
            cluster_uuid: None,
            clique: 0,
            problems: Vec::new(),
        };
        let without_bridge = Gpu { nvlinks: links, ..gpu("00000000:3D:00.0") };
        let on_board = Gpu { fabric: Some(fabric), ..without_bridge.clone() };
        let outcome = |gpu: &Gpu| finding(gpu, "nvlink", &[], Outcome::Fail).outcome;
        assert_eq!((outcome(&without_bridge), outcome(&on_board)), (Outcome::Warn, Outcome::Fail));
    }
}
