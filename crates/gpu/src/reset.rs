//! Resets GPUs with `nvidia-smi --gpu-reset`; NVML has no public function for it.
//!
//! Source: nvidia-smi(1), `--gpu-reset`: no program may have the GPUs open, monitoring included; from Ampere on each GPU can be reset
//! alone, on Ampere boards with NVSwitches only while fabric manager runs, and older GPUs only together with all that they have NVLinks to.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::GpuError;
use crate::inventory::{Gpu, Inventory};
use crate::link::Link;
use crate::process;
use crate::topology::Topology;

/// Timeout for nvidia-smi. A reset takes seconds; one of a GPU that does not respond never ends.
const TIMEOUT: Duration = Duration::from_secs(180);
/// Maximum bytes of nvidia-smi's output in a message.
const MAX_OUTPUT: u64 = 4096;

/// A GPU that is going to be reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Index of the GPU.
    pub gpu: u32,
    /// Product name.
    pub name: String,
    /// UUID of the GPU; empty if it does not respond.
    pub uuid: String,
    /// PCI address, by which nvidia-smi selects it; unlike the UUID it can be read while the GPU does not respond.
    pub bus_id: String,
    /// The N of `/dev/nvidiaN`.
    pub minor: Option<u32>,
    /// MIG devices, which the reset removes.
    pub mig_devices: usize,
}

/// Major compute capability: 8 is Ampere, 9 Hopper.
fn generation(gpu: &Gpu) -> u32 {
    gpu.compute_capability.as_deref().and_then(|c| c.split('.').next()).and_then(|c| c.parse().ok()).unwrap_or(0)
}

/// The GPUs that must be reset together with `gpu`.
fn peers(inventory: &Inventory, topology: &Topology, position: usize, fabric_manager: bool) -> Vec<u32> {
    let gpu = &inventory.gpus[position];
    let is_gpu = |address: &str| inventory.gpus.iter().any(|g| g.bus_id == address);
    let switched = gpu.nvlinks.iter().any(|l| l.remote.as_deref().is_some_and(|remote| !is_gpu(remote)));
    let alone = match generation(gpu) {
        0..=7 => false,
        8 => !switched || fabric_manager,
        _ => true,
    };
    let linked = |(other, link): (usize, &Link)| {
        (other != position && matches!(link, Link::NvLink(_))).then(|| inventory.gpus.get(other).map(|g| g.index))
    };
    let links = topology.links.get(position).map(Vec::as_slice).unwrap_or_default();
    if alone { Vec::new() } else { links.iter().enumerate().filter_map(linked).flatten().collect() }
}

/// Checks that the selected GPUs can be reset: no process uses them, and no other GPU must be reset with them.
///
/// # Errors
/// [`GpuError::InUse`] with the processes; [`GpuError::Invalid`] with the GPUs that must be selected too.
pub fn plan(
    inventory: &Inventory,
    topology: &Topology,
    selected: &[u32],
    fabric_manager: bool,
) -> Result<Vec<Target>, GpuError> {
    let (mut targets, mut used, mut required) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (position, gpu) in inventory.gpus.iter().enumerate().filter(|(_, g)| selected.contains(&g.index)) {
        if !gpu.processes.is_empty() {
            let all: Vec<String> = gpu.processes.iter().map(|p| process::describe(p.pid)).collect();
            used.push(format!("GPU {} is in use by {}", gpu.index, all.join(", ")));
        }
        required.extend(peers(inventory, topology, position, fabric_manager));
        targets.push(Target {
            gpu: gpu.index,
            name: gpu.name.clone(),
            uuid: gpu.uuid.clone(),
            bus_id: gpu.bus_id.clone(),
            minor: gpu.minor,
            mig_devices: gpu.mig.as_ref().map_or(0, |m| m.devices.len()),
        });
    }
    if !used.is_empty() {
        return Err(GpuError::InUse(used.join("; ")));
    }
    required.retain(|index| !selected.contains(index));
    if let Some(first) = targets.first().filter(|_| !required.is_empty()) {
        let missing: Vec<u32> = required.iter().copied().collect();
        let all: BTreeSet<u32> = required.iter().chain(selected).copied().collect();
        let all: Vec<u32> = all.into_iter().collect();
        let (missing, all) = (crate::topology::ranges(&missing), crate::topology::ranges(&all));
        let reason = match inventory.gpus.iter().find(|g| g.index == first.gpu).map_or(0, generation) {
            8 => "fabric manager does not run, without which GPUs behind NVSwitches can only be reset together",
            _ => "GPUs of this generation can only be reset together with those that they have NVLinks to",
        };
        return Err(GpuError::Invalid(format!("{reason}: GPU {missing} is missing; select --gpus {all}")));
    }
    Ok(targets)
}

/// Describes the programs that have a GPU's device file open, which also prevents a reset. Needs root to see those of other users.
pub fn clients(root: &Path, targets: &[Target]) -> Vec<String> {
    let files: Vec<String> = targets.iter().filter_map(|t| t.minor).map(|n| format!("/dev/nvidia{n}")).collect();
    let opens = |process: &Path| {
        let open = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        open.into_iter().any(|fd| {
            std::fs::read_link(fd.path()).is_ok_and(|to| files.iter().any(|file| to.as_os_str() == file.as_str()))
        })
    };
    let processes = std::fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    let pids = processes.filter_map(|p| Some((p.file_name().to_str()?.parse::<u32>().ok()?, p.path())));
    // nvidia-smi itself asks the persistence daemon to close the GPUs.
    let own = std::process::id();
    let daemon =
        |path: &Path| std::fs::read_to_string(path.join("comm")).is_ok_and(|c| c.starts_with("nvidia-persiste"));
    pids.filter(|(pid, path)| *pid != own && opens(path) && !daemon(path))
        .map(|(pid, _)| process::describe(pid))
        .collect()
}

/// The arguments of nvidia-smi.
pub fn arguments(targets: &[Target]) -> Vec<String> {
    let ids: Vec<&str> = targets.iter().map(|t| t.bus_id.as_str()).collect();
    vec!["--gpu-reset".into(), "-i".into(), ids.join(",")]
}

/// Resets the GPUs. NVML must be closed, because its own connection would prevent the reset.
///
/// # Errors
/// [`GpuError::Reset`] with nvidia-smi's message; [`GpuError::Io`] if it cannot be started.
pub fn run(program: &Path, targets: &[Target]) -> Result<(), GpuError> {
    let what = program.display().to_string();
    let mut command = Command::new(program);
    command.args(arguments(targets)).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(GpuError::io(what.clone()))?;
    let output = child.stdout.take();
    // Read in another thread, so that a program that neither ends nor closes its output does not block the timeout.
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(output) = output {
            let _ = output.take(MAX_OUTPUT).read_to_end(&mut text); // only shown in a message
        }
        String::from_utf8_lossy(&text).split_whitespace().collect::<Vec<_>>().join(" ")
    });
    let deadline = Instant::now() + TIMEOUT;
    let status = loop {
        match child.try_wait().map_err(GpuError::io(what.clone()))? {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            None => {
                let _ = child.kill(); // a process in an uninterruptible driver call ends later
                return Err(GpuError::Reset(format!("{what} did not end within {} s", TIMEOUT.as_secs())));
            }
        }
    };
    if status.success() {
        return Ok(());
    }
    let text = reader.join().unwrap_or_default();
    let hint = match status.code() {
        Some(4) => "; run it as root",
        Some(15) => "; the GPU has fallen off the bus, power the machine off and on",
        _ => "",
    };
    Err(GpuError::Reset(format!("{what}: {}{hint}", if text.is_empty() { status.to_string() } else { text })))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn target(gpu: u32) -> Target {
        let bus_id = format!("00000000:{gpu}0:00.0");
        Target { gpu, name: "H100".into(), uuid: format!("GPU-{gpu}"), bus_id, minor: Some(gpu), mig_devices: 0 }
    }

    #[test]
    fn nvidia_smi_gets_the_addresses_and_its_message_is_reported() {
        let folder = std::env::temp_dir().join(format!("slipway-reset-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(&folder).unwrap();
        let program = folder.join("nvidia-smi");
        let script = |text: &str| {
            std::fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        script(&format!("echo \"$@\" > {}/arguments", folder.display()));
        run(&program, &[target(1), target(2)]).unwrap();
        let arguments = std::fs::read_to_string(folder.join("arguments")).unwrap();
        assert_eq!(arguments.trim(), "--gpu-reset -i 00000000:10:00.0,00000000:20:00.0");
        script("echo 'GPU 00000000:10:00.0 is currently in use by another process.'; exit 255");
        let error = run(&program, &[target(1)]).unwrap_err().to_string();
        assert!(error.contains("is currently in use by another process"), "{error}");
        script("exit 4");
        assert!(run(&program, &[target(1)]).unwrap_err().to_string().contains("run it as root"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn programs_with_an_open_device_file_are_found() {
        let root = std::env::temp_dir().join(format!("slipway-clients-{}", slipway_core::ids::hex32()));
        for (pid, comm, file) in [
            (900_001, "dcgm", "/dev/nvidia1"),
            (900_002, "other", "/dev/nvidia10"),
            (900_003, "nvidia-persiste", "/dev/nvidia1"),
        ] {
            let process = root.join(format!("proc/{pid}"));
            std::fs::create_dir_all(process.join("fd")).unwrap();
            std::fs::write(process.join("comm"), format!("{comm}\n")).unwrap();
            std::os::unix::fs::symlink(file, process.join("fd/7")).unwrap();
        }
        assert_eq!(clients(&root, &[target(1)]), ["pid 900001"]);
        assert!(clients(&root, &[target(2)]).is_empty());
        std::fs::remove_dir_all(root).unwrap();
    }
}
