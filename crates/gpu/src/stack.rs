//! Diagnoses the GPU software stack, from the PCI bus up to Kubernetes: the state of each layer, and the command that fixes it.

mod amd;

use std::path::Path;
use std::process::Command;

use serde::Serialize;
use slipway_core::gpu_driver::{self, Choice, Generation};

use crate::inventory::{Inventory, fabric_remedy};
use crate::nvml::FabricState;
use crate::pci;
use crate::{GpuError, bench};

/// NVIDIA's guide, for distributions whose packages slipway does not know.
const GUIDE: &str = "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/";

/// The state of one layer of the stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// Name of the layer, such as `kernel module`.
    pub name: &'static str,
    /// Whether the layer is healthy; `None` if that is unknown or the layer is not needed.
    pub ok: Option<bool>,
    /// Description of the state that was found.
    pub found: String,
    /// The command that fixes the layer; empty if nothing is to be done.
    pub remedy: String,
}

fn layer(name: &'static str, ok: bool, found: impl Into<String>, remedy: &str) -> Layer {
    Layer { name, ok: Some(ok), found: found.into(), remedy: if ok { String::new() } else { remedy.into() } }
}

fn read(root: &Path, path: &str) -> Option<String> {
    std::fs::read_to_string(root.join(path)).ok().map(|t| t.trim().to_owned())
}

fn module(root: &Path, name: &str) -> bool {
    root.join("sys/module").join(name).exists()
}

/// Whether Secure Boot is enabled: the last byte of its EFI variable.
fn secure_boot(root: &Path) -> Option<bool> {
    let path = root.join("sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c");
    std::fs::read(path).ok()?.last().map(|b| *b == 1)
}

/// The command that installs the driver that is recommended for the machine.
fn install_driver(root: &Path) -> String {
    let script = gpu_driver::find_packages(Choice::Recommended, None) + "echo $packages";
    let done = Command::new("sh").args(["-c", &script]).env("SLIPWAY_ROOT", root_variable(root)).output();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match done {
        Ok(done) if done.status.success() => format!("apt install {}, then reboot", text(&done.stdout)),
        Ok(done) if !done.stderr.is_empty() => format!("{}; see {GUIDE}", text(&done.stderr)),
        _ => format!("install the driver: {GUIDE}"),
    }
}

/// The root folder as a prefix of absolute paths.
fn root_variable(root: &Path) -> &Path {
    if root == Path::new("/") { Path::new("") } else { root }
}

/// The kind of the loaded kernel modules, if they do not run one of the GPUs.
fn modules(root: &Path, gpus: &[&pci::PciDevice]) -> Option<Layer> {
    let loaded = gpu_driver::loaded_modules(&read(root, "proc/driver/nvidia/version")?)?;
    let refused = gpus.iter().find_map(|gpu| Some((gpu, Generation::of(gpu.device).refuses(loaded)?)));
    let found = match refused {
        Some((gpu, reason)) => format!("{loaded}, but {}: {reason}", describe(gpu)),
        None => loaded.to_string(),
    };
    let remedy = if refused.is_some() { install_driver(root) } else { String::new() };
    Some(layer("kind of module", refused.is_none(), found, &remedy))
}

fn describe(device: &pci::PciDevice) -> String {
    let name = device.name.clone().unwrap_or_else(|| format!("10de:{:04x}", device.device));
    format!("{} {name}", device.address)
}

/// All layers of the machine under `root` (usually `/`), for the vendors of its GPUs; NVIDIA's if it has none. `inventory` is the result of
/// reading the GPUs.
pub fn layers(root: &Path, inventory: &Result<Inventory, GpuError>) -> Vec<Layer> {
    let devices = pci::scan(&root.join("sys"));
    let gpus = |vendor: u16| devices.iter().filter(|d| d.is_gpu() && d.vendor == vendor).collect::<Vec<_>>();
    // AMD's library reports no version of NVML.
    let of_amd = inventory.as_ref().ok().filter(|i| i.nvml.is_empty());
    let (nvidia_gpus, mut amd_gpus) = (gpus(pci::NVIDIA), gpus(pci::AMD));
    if !nvidia_gpus.is_empty() {
        // Beside a GPU of NVIDIA, one of AMD with a screen is the processor's own, which computes nothing.
        amd_gpus.retain(|d| d.is_accelerator());
    }
    let has_amd = of_amd.is_some() || !amd_gpus.is_empty();
    let has_nvidia = !nvidia_gpus.is_empty() || !has_amd;
    let mut layers = Vec::new();
    if has_nvidia {
        layers.extend(nvidia(root, &devices, &nvidia_gpus, inventory));
    }
    if has_amd {
        layers.extend(amd::layers(root, &amd_gpus, of_amd));
    }
    layers.extend(containers(root, has_nvidia));
    layers
}

/// The layers of NVIDIA's stack.
fn nvidia(
    root: &Path,
    devices: &[pci::PciDevice],
    gpus: &[&pci::PciDevice],
    inventory: &Result<Inventory, GpuError>,
) -> Vec<Layer> {
    let mut layers = Vec::new();
    let simulated = inventory.as_ref().is_ok_and(|i| i.simulated);
    let cards: Vec<String> = gpus.iter().map(|d| describe(d)).collect();
    let found = if cards.is_empty() { "no NVIDIA GPU on the bus".into() } else { cards.join("; ") };
    layers.push(layer(
        "PCI devices",
        !cards.is_empty(),
        found,
        "seat the card; in a virtual machine, pass it through (or choose a GPU machine type)",
    ));

    let nouveau = module(root, "nouveau");
    layers.push(layer(
        "nouveau",
        !nouveau,
        if nouveau { "loaded, which prevents NVIDIA's driver from loading" } else { "not loaded" },
        "printf 'blacklist nouveau\\noptions nouveau modeset=0\\n' > /etc/modprobe.d/nouveau.conf && update-initramfs -u, then reboot",
    ));
    let version = read(root, "sys/module/nvidia/version");
    let boot = secure_boot(root) == Some(true);
    layers.push(Layer {
        name: "Secure Boot",
        ok: if boot { Some(version.is_some()) } else { secure_boot(root).map(|_| true) },
        found: if boot { "on: only signed modules are loaded" } else { "off" }.into(),
        remedy: if boot && version.is_none() {
            "mokutil --import the module's key and reboot, or use the distribution's signed driver".into()
        } else {
            String::new()
        },
    });
    let reboot = root.join("var/run/reboot-required").exists();
    layers.push(match &version {
        Some(v) => layer("kernel module", true, format!("nvidia {v}"), ""),
        None => layer("kernel module", false, "nvidia is not loaded", &install_driver(root)),
    });
    layers.extend(modules(root, gpus));
    let library = inventory.as_ref().ok().filter(|_| !simulated).map(|i| i.driver.clone());
    if let (Some(module), Some(library)) = (&version, &library) {
        let same = module == library;
        layers.push(layer(
            "driver and library",
            same,
            format!("module {module}, library {library}"),
            "reboot: the driver was upgraded under a running module",
        ));
    }
    if reboot {
        layers.push(layer("reboot", false, "the system requires a reboot", "reboot"));
    }
    let nodes: Vec<&str> =
        ["dev/nvidiactl", "dev/nvidia0", "dev/nvidia-uvm"].into_iter().filter(|p| root.join(p).exists()).collect();
    layers.push(layer(
        "device nodes",
        nodes.len() == 3,
        if nodes.is_empty() {
            "none".into()
        } else {
            nodes.iter().map(|n| format!("/{n}")).collect::<Vec<_>>().join(" ")
        },
        "nvidia-modprobe -c 0 -u",
    ));
    layers.push(match inventory {
        Ok(i) => {
            let note = if simulated { " (SIMULATED)" } else { "" };
            layer("NVML", true, format!("{}, {} GPUs, CUDA up to {}{note}", i.nvml, i.gpus.len(), i.cuda), "")
        }
        Err(e) => layer("NVML", false, e.to_string(), &install_driver(root)),
    });
    layers.extend(fabric(root, devices, inventory.as_ref().ok()));
    let cuda = bench::cuda::Libraries::find();
    let found = [("libcuda", cuda.driver), ("NVRTC", cuda.nvrtc), ("cuBLAS", cuda.cublas), ("cuBLASLt", cuda.cublaslt)];
    let names = |present: bool| found.iter().filter(|f| f.1 == present).map(|f| f.0).collect::<Vec<_>>().join(", ");
    layers.push(Layer {
        name: "CUDA libraries",
        // Container images include these libraries, so their absence on the host is not a fault.
        ok: cuda.driver.then_some(true),
        found: if names(true).is_empty() { "none found".into() } else { format!("found {}", names(true)) },
        remedy: if names(false).is_empty() {
            String::new()
        } else {
            format!(
                "for slipway gpu bench: {}",
                "pip install nvidia-cublas-cu12 nvidia-cuda-nvrtc-cu12, and set LD_LIBRARY_PATH"
            )
        },
    });
    layers
}

/// Whether fabric manager runs on the machine with this root folder.
pub fn fabric_manager_runs(root: &Path) -> bool {
    runs(root, "nv-fabricmanager")
}

/// Whether a process with this name runs. The kernel cuts names to 15 characters.
fn runs(root: &Path, name: &str) -> bool {
    let processes = std::fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    let comm = &name[..name.len().min(15)];
    processes.into_iter().any(|p| std::fs::read_to_string(p.path().join("comm")).is_ok_and(|text| text.trim() == comm))
}

/// The NVLink fabric of a machine with NVSwitches, or in a rack with them; `None` for other machines.
fn fabric(root: &Path, devices: &[pci::PciDevice], inventory: Option<&Inventory>) -> Option<Layer> {
    let switches = devices.iter().filter(|d| d.vendor == pci::NVIDIA && !d.is_gpu()).count();
    let gpus: Vec<_> = inventory.iter().flat_map(|i| &i.gpus).filter_map(|g| g.fabric.as_ref()).collect();
    if switches == 0 && gpus.is_empty() {
        return None;
    }
    let manager = fabric_manager_runs(root);
    let unregistered = gpus.iter().find(|f| f.state != FabricState::Completed);
    let registered = gpus.iter().filter(|f| f.state == FabricState::Completed).count();
    let mut found = Vec::new();
    if switches > 0 {
        let plural = if switches == 1 { "" } else { "es" };
        found.push(format!(
            "{switches} NVSwitch{plural}, fabric manager {}",
            if manager { "runs" } else { "does not run" }
        ));
    }
    if !gpus.is_empty() {
        found.push(format!("{registered} of {} GPUs registered", gpus.len()));
    }
    found.extend(unregistered.and_then(|f| f.obstacle()));
    found.extend(inventory.and_then(Inventory::clique_id).map(|id| format!("clique {id}")));
    // GPUs before Hopper do not report their registration.
    let ok = unregistered.is_none() && (manager || !gpus.is_empty());
    let remedy = match unregistered {
        Some(fabric) => fabric_remedy(fabric),
        None => {
            "install nvidia-fabricmanager in the driver's exact version: systemctl enable --now nvidia-fabricmanager"
        }
    };
    Some(layer("NVLink fabric", ok, found.join(", "), remedy))
}

/// Container runtimes and Kubernetes; `nvidia` adds NVIDIA's toolkit.
fn containers(root: &Path, nvidia: bool) -> Vec<Layer> {
    let exists = |path: &str| root.join(path).exists();
    let mut layers = Vec::new();
    let runtimes: Vec<&str> = [
        ("run/containerd/containerd.sock", "containerd"),
        ("var/run/docker.sock", "docker"),
        ("var/snap/microk8s/common/run/containerd.sock", "microk8s"),
        ("run/crio/crio.sock", "cri-o"),
    ]
    .into_iter()
    .filter(|(socket, _)| exists(socket))
    .map(|(_, name)| name)
    .collect();
    let found = if runtimes.is_empty() { "not running".into() } else { runtimes.join(", ") };
    layers.push(Layer {
        name: "container runtime",
        ok: (!runtimes.is_empty()).then_some(true),
        found,
        remedy: "apt install containerd".into(),
    });
    if nvidia {
        let toolkit = exists("usr/bin/nvidia-ctk") || exists("usr/bin/nvidia-container-runtime");
        layers.push(Layer {
            name: "NVIDIA container toolkit",
            ok: toolkit.then_some(true),
            found: if toolkit { "installed" } else { "not installed; CDI alone is enough" }.into(),
            remedy: if toolkit { String::new() } else { "slipway gpu cdi generate --write".into() },
        });
    }
    let specs: Vec<String> = ["etc/cdi", "var/run/cdi"]
        .iter()
        .flat_map(|f| {
            std::fs::read_dir(root.join(f))
                .into_iter()
                .flatten()
                .flatten()
                .map(move |e| format!("/{f}/{}", e.file_name().to_string_lossy()))
        })
        .filter(|p| p.ends_with(".yaml") || p.ends_with(".json"))
        .collect();
    layers.push(Layer {
        name: "CDI specifications",
        ok: (!specs.is_empty()).then_some(true),
        found: if specs.is_empty() { "none".into() } else { specs.join(" ") },
        remedy: if specs.is_empty() { "slipway gpu cdi generate --write".into() } else { String::new() },
    });
    let plugins = ["var/lib/kubelet/device-plugins", "var/snap/microk8s/common/var/lib/kubelet/device-plugins"];
    let sockets = |f: &&str| {
        std::fs::read_dir(root.join(f))
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    };
    let found: Vec<String> =
        plugins.iter().flat_map(sockets).filter(|n| n.ends_with(".sock") && n != "kubelet.sock").collect();
    let kubelet = plugins.iter().any(|p| exists(&format!("{p}/kubelet.sock")));
    layers.push(Layer {
        name: "kubelet device plugin",
        ok: if kubelet { Some(found.iter().any(|n| n.contains("nvidia") || n.contains("slipway"))) } else { None },
        found: match (kubelet, found.is_empty()) {
            (false, _) => "no kubelet on this machine".into(),
            (true, true) => "no device plugin is registered".into(),
            (true, false) => found.join(" "),
        },
        remedy: if kubelet { "helm install nvdp nvdp/nvidia-device-plugin".into() } else { String::new() },
    });
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_that_do_not_run_the_gpu_are_a_finding() {
        let root = std::env::temp_dir().join(format!("slipway-modules-{}", std::process::id()));
        let device = root.join("sys/bus/pci/devices/0000:1b:00.0");
        for folder in [&device, &root.join("proc/driver/nvidia")] {
            std::fs::create_dir_all(folder).unwrap();
        }
        for (file, text) in [("vendor", "0x10de"), ("device", "0x2901"), ("class", "0x030200")] {
            std::fs::write(device.join(file), text).unwrap();
        }
        let kind = |version: &str| {
            std::fs::write(root.join("proc/driver/nvidia/version"), version).unwrap();
            layers(&root, &Err(GpuError::NoGpu)).into_iter().find(|l| l.name == "kind of module").unwrap()
        };
        let closed = kind("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\n");
        assert_eq!(closed.ok, Some(false));
        assert!(closed.found.contains("0000:1b:00.0") && closed.found.contains("needs the open"), "{}", closed.found);
        assert!(!closed.remedy.is_empty());
        let open = kind("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n");
        assert_eq!((open.ok, open.found.as_str()), (Some(true), "open"));
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn switches_need_a_running_fabric_manager() {
        let root = std::env::temp_dir().join(format!("slipway-switches-{}", std::process::id()));
        let device = root.join("sys/bus/pci/devices/0000:c1:00.0");
        let process = root.join("proc/77");
        for folder in [&device, &process] {
            std::fs::create_dir_all(folder).unwrap();
        }
        for (file, text) in [("vendor", "0x10de"), ("device", "0x22a3"), ("class", "0x068000")] {
            std::fs::write(device.join(file), text).unwrap();
        }
        let state = || layers(&root, &Err(GpuError::NoGpu)).into_iter().find(|l| l.name == "NVLink fabric").unwrap();
        let stopped = state();
        assert_eq!((stopped.ok, stopped.found.as_str()), (Some(false), "1 NVSwitch, fabric manager does not run"));
        assert!(stopped.remedy.contains("exact version"));
        std::fs::write(process.join("comm"), "nv-fabricmanage\n").unwrap();
        assert_eq!(state().ok, Some(true));
        std::fs::remove_dir_all(&root).unwrap();
        assert!(layers(&root, &Err(GpuError::NoGpu)).iter().all(|l| l.name != "NVLink fabric"));
    }

    #[test]
    fn unhealthy_layers_have_remedies() {
        let root = std::env::temp_dir().join(format!("slipway-stack-{}", std::process::id()));
        std::fs::create_dir_all(root.join("sys/module/nouveau")).unwrap();
        let layers = layers(&root, &Err(GpuError::NoGpu));
        let layer = |name: &str| layers.iter().find(|l| l.name == name).unwrap();
        assert_eq!(layer("PCI devices").ok, Some(false));
        assert!(layer("nouveau").remedy.contains("blacklist nouveau"));
        assert_eq!(layer("kernel module").ok, Some(false));
        assert_eq!(layer("kubelet device plugin").ok, None);
        assert!(layers.iter().filter(|l| l.ok == Some(false)).all(|l| !l.remedy.is_empty()));
        std::fs::remove_dir_all(root).unwrap();
    }
}
