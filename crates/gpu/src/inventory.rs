//! What GPUs there are and how they do, with findings in words.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::mig::Geometry;
use crate::nvml::{Clock, Device, MigAttributes, Nvml, NvmlError, codes};
use crate::{GpuError, process, sheet};

/// All GPUs of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "GpuInventory")]
pub struct Inventory {
    /// Whether a fixture answered instead of a driver.
    pub simulated: bool,
    /// The driver's version.
    pub driver: String,
    /// NVML's version.
    pub nvml: String,
    /// The newest CUDA the driver supports, as `13.0`.
    pub cuda: String,
    /// The GPUs.
    pub gpus: Vec<Gpu>,
}

/// One GPU. What it does not offer is `None`.
#[derive(Debug, Clone, PartialEq, Serialize, Default, JsonSchema)]
#[allow(missing_docs)] // names and units say it
pub struct Gpu {
    pub index: u32,
    pub uuid: String,
    pub name: String,
    pub serial: Option<String>,
    pub bus_id: String,
    pub minor: Option<u32>,
    pub architecture: String,
    pub compute_capability: Option<String>,
    pub cores: Option<u32>,
    pub memory_total: Option<u64>,
    pub memory_used: Option<u64>,
    pub bus_width_bits: Option<u32>,
    pub clock_sm_mhz: Option<u32>,
    pub clock_sm_max_mhz: Option<u32>,
    pub clock_memory_mhz: Option<u32>,
    pub clock_memory_max_mhz: Option<u32>,
    pub utilization_percent: Option<u32>,
    pub memory_utilization_percent: Option<u32>,
    pub power_watts: Option<f64>,
    pub power_limit_watts: Option<f64>,
    pub power_default_watts: Option<f64>,
    pub power_range_watts: Option<(f64, f64)>,
    pub energy_joules: Option<f64>,
    pub temperature_celsius: Option<u32>,
    pub temperature_slowdown_celsius: Option<u32>,
    pub temperature_shutdown_celsius: Option<u32>,
    pub throttle: Vec<&'static str>,
    pub ecc: Option<Ecc>,
    pub pcie: Option<Pcie>,
    pub nvlinks: Vec<NvLink>,
    pub persistence: Option<bool>,
    pub compute_mode: Option<&'static str>,
    pub performance_state: Option<u32>,
    pub fan_percent: Option<u32>,
    pub mig: Option<Mig>,
    pub processes: Vec<Process>,
    pub findings: Vec<Finding>,
}

/// Memory errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[allow(missing_docs)] // the names are NVML's
#[schemars(rename = "GpuEcc")]
pub struct Ecc {
    pub enabled: bool,
    pub corrected: u64,
    pub uncorrected: u64,
    pub rows_remapped: u32,
    pub rows_remapped_uncorrected: u32,
    pub remapping_pending: bool,
    pub remapping_failed: bool,
}

/// The PCIe link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[allow(missing_docs)] // the names are NVML's
#[schemars(rename = "GpuPcie")]
pub struct Pcie {
    pub generation: u32,
    pub generation_max: u32,
    pub width: u32,
    pub width_max: u32,
    pub replays: Option<u32>,
}

/// An NVLink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[allow(missing_docs)] // the names are NVML's
#[schemars(rename = "GpuNvLink")]
pub struct NvLink {
    pub link: u32,
    pub active: bool,
    pub version: Option<u32>,
    pub remote: Option<String>,
}

/// MIG on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[allow(missing_docs)] // names and units say it
#[schemars(rename = "GpuMig")]
pub struct Mig {
    pub enabled: bool,
    pub pending: bool,
    pub devices: Vec<MigDevice>,
}

/// A MIG device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[allow(missing_docs)] // names and units say it
#[schemars(rename = "GpuMigDevice")]
pub struct MigDevice {
    pub uuid: String,
    pub profile: String,
    pub gpu_instance: u32,
    pub compute_instance: u32,
    pub start: u32,
    pub size: u32,
    #[serde(flatten)]
    pub attributes: MigAttributes,
}

/// A process on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[allow(missing_docs)] // names and units say it
#[schemars(rename = "GpuProcess")]
pub struct Process {
    pub pid: u32,
    pub memory_bytes: Option<u64>,
    pub gpu_instance: Option<u32>,
    pub sm_percent: Option<u32>,
    #[serde(flatten)]
    pub owner: process::Owner,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "GpuFindingSeverity")]
pub enum Severity {
    /// Good to know.
    Note,
    /// Costs speed, or will soon be a problem.
    Warning,
    /// The GPU must not be used as it is.
    Error,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "GpuFinding")]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What helps.
    pub remedy: String,
}

/// What a call gave: nothing where the device or driver lacks it; other refusals are findings.
fn read<T>(result: Result<T, NvmlError>, findings: &mut Vec<Finding>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(e) => {
            if e.code == codes::GPU_IS_LOST {
                lost(findings);
            } else if !matches!(e.code, codes::NOT_SUPPORTED | codes::FUNCTION_NOT_FOUND | codes::NOT_FOUND) {
                let remedy = match e.code {
                    codes::NO_PERMISSION => "run as root, or allow it to users (NVreg_RestrictProfilingToAdminUsers=0)",
                    codes::RESET_REQUIRED => "drain the node and reset the GPU: nvidia-smi --gpu-reset",
                    _ => "see the kernel's log: dmesg | grep -i nvrm",
                };
                let what = e.to_string();
                if findings.iter().all(|f| f.what != what) {
                    findings.push(Finding { severity: Severity::Warning, what, remedy: remedy.into() });
                }
            }
            None
        }
    }
}

fn lost(findings: &mut Vec<Finding>) {
    let what = "the GPU has fallen off the bus (XID 79)".to_owned();
    if findings.iter().all(|f| f.what != what) {
        let remedy = "drain the node and power it off and on; check seating, power cables and cooling".into();
        findings.push(Finding { severity: Severity::Error, what, remedy });
    }
}

impl Inventory {
    /// Asks the library about everything.
    ///
    /// # Errors
    /// NVML's, where it cannot even count the GPUs.
    pub fn collect(nvml: &Nvml) -> Result<Self, GpuError> {
        let (major, minor) = nvml.cuda_version().unwrap_or_default();
        let count = nvml.count()?;
        let gpus = (0..count)
            .map(|index| match nvml.device(index) {
                Ok(device) => gpu(nvml, index, &device),
                Err(e) => {
                    let mut findings = Vec::new();
                    read::<()>(Err(e), &mut findings);
                    Gpu { index, name: "unknown".into(), findings, ..Gpu::default() }
                }
            })
            .collect();
        Ok(Self {
            simulated: nvml.is_simulated(),
            driver: nvml.driver_version().unwrap_or_default(),
            nvml: nvml.nvml_version().unwrap_or_default(),
            cuda: format!("{major}.{minor}"),
            gpus,
        })
    }

    /// All findings with the index of their GPU.
    pub fn findings(&self) -> impl Iterator<Item = (u32, &Finding)> {
        self.gpus.iter().flat_map(|g| g.findings.iter().map(|f| (g.index, f)))
    }
}

fn watts(milliwatts: u32) -> f64 {
    f64::from(milliwatts) / 1000.0
}

fn gpu(nvml: &Nvml, index: u32, device: &Device<'_>) -> Gpu {
    let mut found = Vec::new();
    let f = &mut found;
    let memory = read(device.memory(), f);
    let utilization = read(device.utilization(), f);
    let capability = read(device.compute_capability(), f);
    let throttle = read(device.throttle(), f).unwrap_or(0);
    let mut gpu = Gpu {
        index,
        uuid: read(device.uuid(), f).unwrap_or_default(),
        name: read(device.name(), f).unwrap_or_else(|| "unknown".into()),
        serial: read(device.serial(), f).filter(|s| !s.is_empty() && s != "0"),
        bus_id: read(device.bus_id(), f).unwrap_or_default(),
        minor: read(device.minor_number(), f),
        architecture: read(device.architecture(), f).map_or("unknown", codes::architecture).into(),
        compute_capability: capability.map(|(major, minor)| format!("{major}.{minor}")),
        cores: read(device.cores(), f),
        memory_total: memory.map(|m| m.total),
        memory_used: memory.map(|m| m.used),
        bus_width_bits: read(device.bus_width(), f),
        clock_sm_mhz: read(device.clock(Clock::Sm), f),
        clock_sm_max_mhz: read(device.max_clock(Clock::Sm), f),
        clock_memory_mhz: read(device.clock(Clock::Memory), f),
        clock_memory_max_mhz: read(device.max_clock(Clock::Memory), f),
        utilization_percent: utilization.map(|u| u.0),
        memory_utilization_percent: utilization.map(|u| u.1),
        power_watts: read(device.power(), f).map(watts),
        power_limit_watts: read(device.power_limit(), f).map(watts),
        power_default_watts: read(device.power_default(), f).map(watts),
        power_range_watts: read(device.power_range(), f).map(|(least, most)| (watts(least), watts(most))),
        energy_joules: read(device.energy(), f).map(|mj| mj as f64 / 1000.0),
        temperature_celsius: read(device.temperature(), f),
        temperature_slowdown_celsius: read(device.temperature_slowdown(), f),
        temperature_shutdown_celsius: read(device.temperature_shutdown(), f),
        throttle: codes::throttle_reasons(throttle),
        ecc: ecc(device, f),
        pcie: pcie(device, f),
        nvlinks: nvlinks(device, f),
        persistence: read(device.persistence(), f).map(|p| p == 1),
        compute_mode: read(device.compute_mode(), f).map(|m| match m {
            0 => "default",
            2 => "prohibited",
            3 => "exclusive process",
            _ => "exclusive thread",
        }),
        performance_state: read(device.performance_state(), f).filter(|p| *p < 16),
        fan_percent: read(device.fan(), f),
        mig: mig(device, f),
        processes: processes(nvml, device, f),
        findings: Vec::new(),
    };
    judge(&gpu, throttle, &mut found);
    found.sort_by_key(|f| std::cmp::Reverse(f.severity));
    gpu.findings = found;
    gpu
}

fn ecc(device: &Device<'_>, f: &mut Vec<Finding>) -> Option<Ecc> {
    let (enabled, _) = read(device.ecc(), f)?;
    let (corrected, uncorrected, pending, failed) = read(device.remapped_rows(), f).unwrap_or_default();
    Some(Ecc {
        enabled,
        corrected: read(device.ecc_corrected(), f).unwrap_or(0),
        uncorrected: read(device.ecc_uncorrected(), f).unwrap_or(0),
        rows_remapped: corrected + uncorrected,
        rows_remapped_uncorrected: uncorrected,
        remapping_pending: pending,
        remapping_failed: failed,
    })
}

fn pcie(device: &Device<'_>, f: &mut Vec<Finding>) -> Option<Pcie> {
    Some(Pcie {
        generation: read(device.pcie_generation(), f)?,
        generation_max: read(device.pcie_generation_max(), f)?,
        width: read(device.pcie_width(), f)?,
        width_max: read(device.pcie_width_max(), f)?,
        replays: read(device.pcie_replays(), f),
    })
}

/// Links of any card so far (B200: 18).
const MOST_NVLINKS: u32 = 18;

fn nvlinks(device: &Device<'_>, f: &mut Vec<Finding>) -> Vec<NvLink> {
    let mut links = Vec::new();
    for link in 0..MOST_NVLINKS {
        let active = match device.nvlink_active(link) {
            Ok(active) => active,
            // An invalid argument stands past the last link.
            Err(e) if e.code == 2 => break,
            Err(e) => match read::<bool>(Err(e), f) {
                Some(active) => active,
                None => break,
            },
        };
        let version = if active { read(device.nvlink_version(link), f) } else { None };
        let remote = if active { read(device.nvlink_remote(link), f) } else { None };
        links.push(NvLink { link, active, version, remote });
    }
    links
}

fn mig(device: &Device<'_>, f: &mut Vec<Finding>) -> Option<Mig> {
    let (enabled, pending) = read(device.mig_mode(), f)?;
    let mut devices = Vec::new();
    if enabled {
        let geometry = read(Geometry::of_device(device), f);
        let mut places = Vec::new();
        for profile in geometry.iter().flat_map(|g| &g.profiles) {
            for instance in read(device.gpu_instances(profile.id), f).unwrap_or_default() {
                if let Some((id, _, at)) = read(instance.info(), f) {
                    places.push((id, at, profile));
                }
            }
        }
        for one in read(device.mig_devices(), f).unwrap_or_default() {
            let Some(gpu_instance) = read(one.gpu_instance_id(), f) else { continue };
            let place = places.iter().find(|(id, ..)| *id == gpu_instance);
            devices.push(MigDevice {
                uuid: read(one.uuid(), f).unwrap_or_default(),
                profile: place.map(|(.., p)| p.name.clone()).unwrap_or_default(),
                gpu_instance,
                compute_instance: read(one.compute_instance_id(), f).unwrap_or(0),
                start: place.map_or(0, |(_, at, _)| at.start),
                size: place.map_or(0, |(_, at, _)| at.size),
                attributes: read(one.mig_attributes(), f).unwrap_or_default(),
            });
        }
        devices.sort_by_key(|d| (d.start, d.compute_instance));
    }
    Some(Mig { enabled, pending, devices })
}

fn processes(nvml: &Nvml, device: &Device<'_>, f: &mut Vec<Finding>) -> Vec<Process> {
    let busy = device.process_utilization(0).unwrap_or_default();
    let mut list: Vec<Process> = read(device.processes(), f)
        .unwrap_or_default()
        .into_iter()
        .map(|p| {
            // A fixture's process ids mean nothing to this machine.
            let mut owner = if nvml.is_simulated() { process::Owner::default() } else { process::owner(p.pid) };
            if owner.command.is_empty() {
                owner.command = nvml.process_name(p.pid).unwrap_or_default();
            }
            let sm_percent = busy.iter().rev().find(|(pid, _)| *pid == p.pid).map(|(_, sm)| *sm);
            Process { pid: p.pid, memory_bytes: p.memory, gpu_instance: p.gpu_instance, sm_percent, owner }
        })
        .collect();
    list.sort_by_key(|p| std::cmp::Reverse(p.memory_bytes));
    list
}

/// What the readings mean.
fn judge(gpu: &Gpu, throttle: u64, findings: &mut Vec<Finding>) {
    let mut add =
        |severity, what: String, remedy: &str| findings.push(Finding { severity, what, remedy: remedy.into() });
    for (bit, words, bad) in codes::THROTTLE_REASONS {
        if *bad && throttle & bit != 0 {
            let remedy = if words.contains("temperature") {
                "check fans, airflow and the room's temperature; slipway top shows the history"
            } else {
                "check the power supply and its cables; the board holds the clocks down"
            };
            add(Severity::Warning, format!("clocks are held down: {words}"), remedy);
        }
    }
    if let (Some(now), Some(slow)) = (gpu.temperature_celsius, gpu.temperature_slowdown_celsius)
        && now >= slow
        && slow > 0
    {
        add(Severity::Warning, format!("{now} °C, and the card slows down at {slow} °C"), "check fans and airflow");
    }
    if let Some(p) = &gpu.pcie {
        if p.width < p.width_max {
            let what = format!("PCIe x{} in use, the card has x{}", p.width, p.width_max);
            add(Severity::Warning, what, "move the card to a full slot, reseat it, or check the riser and bifurcation");
        }
        // Idle cards lower the generation to save power, so only a busy one is judged.
        let busy = gpu.utilization_percent.is_some_and(|u| u > 20);
        if p.generation < p.generation_max && busy {
            let what = format!("PCIe generation {} under load, {} is possible", p.generation, p.generation_max);
            add(Severity::Warning, what, "check the BIOS setting of the slot and the riser");
        }
        if p.replays.is_some_and(|r| r > 1000) {
            add(
                Severity::Warning,
                format!("{} PCIe packets were sent again", p.replays.unwrap_or(0)),
                "reseat the card or change the riser",
            );
        }
    }
    if let Some(ecc) = &gpu.ecc {
        if ecc.remapping_failed {
            add(Severity::Error, "a memory row could not be remapped".into(), "replace the card (RMA)");
        } else if ecc.remapping_pending {
            add(
                Severity::Warning,
                "a memory row waits to be remapped".into(),
                "drain the node and reset the GPU: nvidia-smi --gpu-reset",
            );
        }
        if ecc.uncorrected > 0 {
            add(
                Severity::Error,
                format!("{} uncorrected memory errors", ecc.uncorrected),
                "drain the node, reset the GPU, and replace the card if they come back",
            );
        }
    }
    let down = gpu.nvlinks.iter().filter(|l| !l.active).count();
    if down > 0 && down < gpu.nvlinks.len() {
        let what = format!("{down} of {} NVLinks are down", gpu.nvlinks.len());
        add(Severity::Warning, what, "check the bridge, and nvidia-fabricmanager on NVSwitch systems");
    }
    if gpu.mig.as_ref().is_some_and(|m| m.enabled != m.pending) {
        add(
            Severity::Note,
            "a change of the MIG mode waits for a reset".into(),
            "drain the node and reset the GPU: nvidia-smi --gpu-reset",
        );
    }
    if gpu.persistence == Some(false) {
        add(
            Severity::Note,
            "persistence is off: the first call after a pause takes seconds".into(),
            "systemctl enable --now nvidia-persistenced",
        );
    }
    if let (Some(limit), Some(default)) = (gpu.power_limit_watts, gpu.power_default_watts)
        && limit < default * 0.99
    {
        add(
            Severity::Note,
            format!("power is limited to {limit:.0} of {default:.0} W"),
            "nvidia-smi --power-limit sets it; slower, and often more efficient",
        );
    }
    if gpu.utilization_percent == Some(0) && !gpu.processes.is_empty() {
        let held: u64 = gpu.processes.iter().filter_map(|p| p.memory_bytes).sum();
        if held > 1 << 30 {
            let what = format!("idle, with {} of memory held", slipway_core::units::bytes(held));
            add(Severity::Note, what, "ask the processes' owners, or share the GPU: slipway gpu share plan");
        }
    }
    if let (Some(card), Some(total)) = (sheet::find(&gpu.name), gpu.memory_total)
        && (total >> 20) * 100 < card.memory_gb * 1024 * 85
    {
        let what = format!("{} of memory, the sheet says {} GB", slipway_core::units::bytes(total), card.memory_gb);
        add(Severity::Note, what, "a virtual GPU, or one whose sheet slipway does not know");
    }
}
