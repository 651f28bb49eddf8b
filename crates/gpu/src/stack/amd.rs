//! The software stack of AMD's GPUs: kernel driver, device nodes, ROCm, AMD SMI, container toolkit.
//!
//! Sources: ROCm, "Installation prerequisites" (groups `render` and `video`); AMD Container Toolkit, "Running workloads" (`amd-ctk`, CDI
//! kind `amd.com/gpu`).

use std::path::Path;

use super::{Layer, layer, read};
use crate::inventory::Inventory;
use crate::pci;

/// AMD's guide, for the commands that differ between distributions.
const GUIDE: &str = "https://rocm.docs.amd.com/projects/install-on-linux/";

/// Names in a folder that begin with `prefix`, sorted.
fn names(root: &Path, folder: &str, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.starts_with(prefix));
    names.sort();
    names
}

/// The version of the kernel driver. Only AMD's own package (`amdgpu-dkms`) has one; that of the kernel does not.
fn module(root: &Path) -> Option<String> {
    let loaded = root.join("sys/module/amdgpu").exists();
    loaded.then(|| {
        read(root, "sys/module/amdgpu/version").map_or("amdgpu of the kernel".into(), |v| format!("amdgpu {v} (DKMS)"))
    })
}

/// The members of a group in `/etc/group`; `None` if there is no such group.
fn members(root: &Path, group: &str) -> Option<String> {
    let text = read(root, "etc/group")?;
    let line = text.lines().find_map(|l| l.strip_prefix(group)?.strip_prefix(':'))?;
    Some(line.rsplit(':').next().unwrap_or_default().to_owned())
}

/// All layers of a machine with these GPUs; `inventory` is what AMD SMI reports, if it could be read.
pub(super) fn layers(root: &Path, gpus: &[&pci::PciDevice], inventory: Option<&Inventory>) -> Vec<Layer> {
    let mut layers = Vec::new();
    let simulated = inventory.is_some_and(|i| i.simulated);
    let cards: Vec<String> = gpus
        .iter()
        .map(|d| format!("{} {}", d.address, d.name.clone().unwrap_or_else(|| format!("1002:{:04x}", d.device))))
        .collect();
    let found = if cards.is_empty() { "no AMD GPU on the bus".into() } else { cards.join("; ") };
    layers.push(layer(
        "PCI devices (AMD)",
        !cards.is_empty(),
        found,
        "seat the card; in a virtual machine, pass it through",
    ));
    let module = module(root);
    let install = format!("install amdgpu-dkms, then reboot: {GUIDE}");
    layers.push(layer(
        "kernel module (AMD)",
        module.is_some(),
        module.unwrap_or_else(|| "amdgpu is not loaded".into()),
        &install,
    ));
    let mut nodes: Vec<String> = if root.join("dev/kfd").exists() { vec!["/dev/kfd".into()] } else { Vec::new() };
    let render = names(root, "dev/dri", "renderD");
    let complete = !nodes.is_empty() && !render.is_empty();
    nodes.extend(render.iter().map(|name| format!("/dev/dri/{name}")));
    let found = if nodes.is_empty() { "none".into() } else { nodes.join(" ") };
    layers.push(layer(
        "device nodes (AMD)",
        complete,
        found,
        "modprobe amdgpu; /dev/kfd is the compute interface, /dev/dri/renderD* the GPUs",
    ));
    let groups = ["render", "video"].map(|group| (group, members(root, group)));
    let show = |(group, members): &(&str, Option<String>)| match members.as_deref() {
        None => format!("no group {group}"),
        Some("") => format!("{group} has no members"),
        Some(members) => format!("{group}: {members}"),
    };
    layers.push(Layer {
        name: "groups",
        // Root needs no group, and neither do containers whose runtime passes the devices.
        ok: groups.iter().all(|(_, members)| members.as_ref().is_some_and(|m| !m.is_empty())).then_some(true),
        found: groups.iter().map(show).collect::<Vec<_>>().join(", "),
        remedy: "for users without root: usermod -a -G render,video USER".into(),
    });
    let version = read(root, "opt/rocm/.info/version");
    layers.push(Layer {
        name: "ROCm",
        // Container images include ROCm, so its absence on the host is not a fault.
        ok: version.is_some().then_some(true),
        found: version.clone().unwrap_or_else(|| "not in /opt/rocm".into()),
        remedy: if version.is_some() { String::new() } else { format!("for programs outside of containers: {GUIDE}") },
    });
    let library = root.join("opt/rocm/lib/libamd_smi.so").exists();
    layers.push(match inventory {
        Some(i) => {
            let note = if simulated { " (SIMULATED)" } else { "" };
            layer("AMD SMI", true, format!("{} GPUs, driver {}{note}", i.gpus.len(), i.driver), "")
        }
        None if library => layer("AMD SMI", true, "installed", ""),
        None => layer("AMD SMI", false, "libamd_smi.so is missing", &format!("install amd-smi-lib: {GUIDE}")),
    });
    let toolkit = ["usr/bin/amd-ctk", "usr/bin/amd-container-runtime"].iter().any(|p| root.join(p).exists());
    let specification = ["etc/cdi/amd.json", "var/run/cdi/amd.json"].iter().find(|p| root.join(p).exists());
    layers.push(Layer {
        name: "AMD container toolkit",
        ok: toolkit.then_some(true),
        found: match (toolkit, specification) {
            (true, Some(path)) => format!("installed, CDI in /{path}"),
            (true, None) => "installed, no CDI specification".into(),
            (false, _) => "not installed".into(),
        },
        remedy: match (toolkit, specification) {
            (true, Some(_)) => String::new(),
            (true, None) => "amd-ctk cdi generate --output=/etc/cdi/amd.json".into(),
            (false, _) => "for containers: https://instinct.docs.amd.com/projects/container-toolkit/".into(),
        },
    });
    layers
}

#[cfg(test)]
mod tests {
    use crate::GpuError;
    use crate::stack;

    #[test]
    fn layers_of_a_machine_with_gpus_of_amd() {
        let root = std::env::temp_dir().join(format!("slipway-amd-stack-{}", slipway_core::ids::hex32()));
        let device = root.join("sys/bus/pci/devices/0000:c1:00.0");
        for folder in ["sys/module", "dev/dri", "etc", "opt/rocm/.info", "usr/bin"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::create_dir_all(&device).unwrap();
        for (file, text) in [("vendor", "0x1002"), ("device", "0x74a1"), ("class", "0x120000")] {
            std::fs::write(device.join(file), text).unwrap();
        }
        let layer = |name: &str| {
            let layers = stack::layers(&root, &Err(GpuError::NoGpu));
            layers.into_iter().find(|l| l.name == name)
        };
        // NVIDIA's driver is not missing on a machine without a GPU of NVIDIA.
        assert!(layer("kernel module").is_none());
        assert_eq!(layer("PCI devices (AMD)").unwrap().ok, Some(true));
        assert_eq!(layer("kernel module (AMD)").unwrap().ok, Some(false));
        assert_eq!(layer("device nodes (AMD)").unwrap().found, "none");
        assert_eq!(layer("AMD SMI").unwrap().ok, Some(false));
        std::fs::create_dir_all(root.join("sys/module/amdgpu")).unwrap();
        assert_eq!(layer("kernel module (AMD)").unwrap().found, "amdgpu of the kernel");
        for (file, text) in [
            ("sys/module/amdgpu/version", "6.12.12\n"),
            ("dev/kfd", ""),
            ("dev/dri/renderD128", ""),
            ("dev/dri/card0", ""),
            ("etc/group", "video:x:44:ada\nrender:x:109:\nrenderer:x:1:eve\n"),
            ("opt/rocm/.info/version", "7.0.2-56\n"),
            ("usr/bin/amd-ctk", ""),
        ] {
            std::fs::write(root.join(file), text).unwrap();
        }
        assert_eq!(layer("kernel module (AMD)").unwrap().found, "amdgpu 6.12.12 (DKMS)");
        assert_eq!(layer("device nodes (AMD)").unwrap().found, "/dev/kfd /dev/dri/renderD128");
        assert_eq!(layer("groups").unwrap().found, "render has no members, video: ada");
        assert_eq!(layer("ROCm").unwrap().found, "7.0.2-56");
        assert!(layer("AMD container toolkit").unwrap().remedy.contains("amd-ctk cdi generate"));
        // The screen of the processor beside a GPU of NVIDIA is not part of the stack, an accelerator is.
        let other = root.join("sys/bus/pci/devices/0000:01:00.0");
        std::fs::create_dir_all(&other).unwrap();
        for (file, text) in [("vendor", "0x10de"), ("device", "0x2330"), ("class", "0x030200")] {
            std::fs::write(other.join(file), text).unwrap();
        }
        assert!(layer("kernel module").is_some() && layer("kernel module (AMD)").is_some());
        std::fs::write(device.join("class"), "0x030000").unwrap();
        assert!(layer("kernel module").is_some() && layer("kernel module (AMD)").is_none());
        std::fs::remove_dir_all(root).unwrap();
    }
}
