//! The GPUs of a machine with their current state, read from NVML, and findings about problems.
//!
//! A value that the device or driver does not offer is `None`; any other NVML error becomes a finding.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::mig::{Geometry, ProfileName};
use crate::nvml::{Clock, Device, Fabric, FabricState, MigAttributes, Nvml, NvmlError, codes};
use crate::{GpuError, process, sheet};

/// All GPUs of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Default, JsonSchema)]
#[schemars(rename = "GpuInventory")]
pub struct Inventory {
    /// Whether the data comes from a simulated fixture instead of a driver.
    pub simulated: bool,
    /// Version of the driver, such as `580.95.05` (NVIDIA) or `6.12.12` (amdgpu).
    pub driver: String,
    /// NVML version, such as `13.580.95.05`; empty for GPUs of AMD.
    pub nvml: String,
    /// The newest CUDA version that the driver supports, such as `13.0`; empty for GPUs of AMD.
    pub cuda: String,
    /// The GPUs, ordered by index.
    pub gpus: Vec<Gpu>,
}

/// One GPU. Values that it does not report are `None`.
#[derive(Debug, Clone, PartialEq, Serialize, Default, JsonSchema)]
#[allow(missing_docs)] // the names include the units
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
    pub fabric: Option<Fabric>,
    pub persistence: Option<bool>,
    pub compute_mode: Option<&'static str>,
    pub performance_state: Option<u32>,
    pub fan_percent: Option<u32>,
    pub mig: Option<Mig>,
    pub processes: Vec<Process>,
    pub findings: Vec<Finding>,
}

/// Memory error counters of a GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
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

/// The PCIe link of a GPU.
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

/// One NVLink of a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[allow(missing_docs)] // the names are NVML's
#[schemars(rename = "GpuNvLink")]
pub struct NvLink {
    pub link: u32,
    pub active: bool,
    pub version: Option<u32>,
    pub remote: Option<String>,
}

/// MIG mode and MIG devices of a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[allow(missing_docs)] // the names include the units
#[schemars(rename = "GpuMig")]
pub struct Mig {
    pub enabled: bool,
    pub pending: bool,
    pub devices: Vec<MigDevice>,
}

/// A MIG device: one compute instance in a GPU instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[allow(missing_docs)] // the names include the units
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

impl MigDevice {
    /// Whether other compute instances may share its GPU instance, as in `1c.3g.40gb`; false if it fills its GPU instance.
    pub fn is_part(&self) -> bool {
        self.profile.parse::<ProfileName>().is_ok_and(|p| p.compute != p.slices)
    }

    /// Its part of the whole GPU, out of 1: the memory slices of its GPU instance, out of the eight of a card, and of those its part of the
    /// compute slices.
    pub fn share(&self) -> f64 {
        let memory = f64::from(self.size) / 8.0;
        match self.profile.parse::<ProfileName>() {
            Ok(p) => memory * f64::from(p.compute) / f64::from(p.slices),
            Err(_) => memory,
        }
    }
}

/// A process that uses a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[allow(missing_docs)] // the names include the units
#[schemars(rename = "GpuProcess")]
pub struct Process {
    pub pid: u32,
    pub memory_bytes: Option<u64>,
    pub gpu_instance: Option<u32>,
    pub sm_percent: Option<u32>,
    #[serde(flatten)]
    pub owner: process::Owner,
}

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "GpuFindingSeverity")]
pub enum Severity {
    /// Information; no action is needed.
    Note,
    /// Reduces performance, or may soon become a failure.
    Warning,
    /// The GPU must not be used in this state.
    Error,
}

/// The kind of a finding, for programs. Texts are for people, and their wording may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingCode {
    /// The GPU has fallen off the bus (XID 79) and reports nothing any more.
    GpuLost,
    /// NVML failed to read a value.
    UnreadableValue,
    /// The clocks are reduced.
    ClocksReduced,
    /// The GPU is as hot as the temperature at which it slows down.
    Hot,
    /// Fewer PCIe lanes are in use than the card has.
    PcieWidth,
    /// The PCIe generation under load is lower than the card's.
    PcieGeneration,
    /// Many PCIe packets were retransmitted.
    PcieReplays,
    /// A memory row could not be remapped.
    RemappingFailed,
    /// A memory row is remapped at the next reset.
    RemappingPending,
    /// Memory errors that ECC could not correct.
    UncorrectedErrors,
    /// Some NVLinks are down.
    NvLinksDown,
    /// The GPU is not registered with its NVLink fabric, so CUDA does not start.
    FabricNotReady,
    /// The NVLink fabric of a registered GPU has a problem.
    FabricUnhealthy,
    /// The MIG mode changes at the next reset.
    MigModePending,
    /// Persistence mode is off.
    PersistenceOff,
    /// The power limit is below the default.
    PowerLimited,
    /// Processes hold memory of an idle GPU.
    IdleMemoryHeld,
    /// The GPU has much less memory than its data sheet lists.
    MemoryBelowSheet,
}

/// A problem found on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "GpuFinding")]
pub struct Finding {
    /// The kind of the problem. It is not part of the API's responses.
    #[serde(skip)]
    pub code: FindingCode,
    /// The severity.
    pub severity: Severity,
    /// Description of the problem.
    pub what: String,
    /// The action that fixes the problem.
    pub remedy: String,
}

/// The value of an NVML call, or `None` on error. Errors other than "not supported" and "not found" are added to `findings`.
fn value_or_finding<T>(result: Result<T, NvmlError>, findings: &mut Vec<Finding>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(e) => {
            if e.code == codes::GPU_IS_LOST {
                add_lost_finding(findings);
            } else if !matches!(e.code, codes::NOT_SUPPORTED | codes::FUNCTION_NOT_FOUND | codes::NOT_FOUND) {
                let remedy = match e.code {
                    codes::NO_PERMISSION => "run as root, or allow it to users (NVreg_RestrictProfilingToAdminUsers=0)",
                    codes::RESET_REQUIRED => "drain the node and reset the GPU: nvidia-smi --gpu-reset",
                    _ => "see the kernel's log: dmesg | grep -i nvrm",
                };
                let what = e.to_string();
                if findings.iter().all(|f| f.what != what) {
                    let code = FindingCode::UnreadableValue;
                    findings.push(Finding { code, severity: Severity::Warning, what, remedy: remedy.into() });
                }
            }
            None
        }
    }
}

fn add_lost_finding(findings: &mut Vec<Finding>) {
    let code = FindingCode::GpuLost;
    if findings.iter().all(|f| f.code != code) {
        let what = "the GPU has fallen off the bus (XID 79)".into();
        let remedy = "drain the node and power it off and on; check seating, power cables and cooling".into();
        findings.push(Finding { code, severity: Severity::Error, what, remedy });
    }
}

impl Inventory {
    /// Reads all GPUs. Errors of a single GPU become findings of that GPU.
    ///
    /// # Errors
    /// [`GpuError::Nvml`] if NVML cannot count the GPUs.
    pub fn collect(nvml: &Nvml) -> Result<Self, GpuError> {
        let (major, minor) = nvml.cuda_version().unwrap_or_default();
        let count = nvml.count()?;
        let gpus = (0..count)
            .map(|index| match nvml.device(index) {
                Ok(device) => gpu(nvml, index, &device),
                Err(e) => {
                    let mut findings = Vec::new();
                    value_or_finding::<()>(Err(e), &mut findings);
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

    /// The NVLink clique across machines that all GPUs are in, as `UUID.NUMBER`; see [`Fabric::clique_id`].
    pub fn clique_id(&self) -> Option<String> {
        let mut ids = self.gpus.iter().map(|g| g.fabric.as_ref().and_then(Fabric::clique_id));
        let first = ids.next()??;
        ids.all(|id| id.as_ref() == Some(&first)).then_some(first)
    }

    /// All findings, each with the index of its GPU.
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
    let memory = value_or_finding(device.memory(), f);
    let utilization = value_or_finding(device.utilization(), f);
    let capability = value_or_finding(device.compute_capability(), f);
    let throttle = value_or_finding(device.throttle(), f).unwrap_or(0);
    let mut gpu = Gpu {
        index,
        uuid: value_or_finding(device.uuid(), f).unwrap_or_default(),
        name: value_or_finding(device.name(), f).unwrap_or_else(|| "unknown".into()),
        serial: value_or_finding(device.serial(), f).filter(|s| !s.is_empty() && s != "0"),
        bus_id: value_or_finding(device.bus_id(), f).unwrap_or_default(),
        minor: value_or_finding(device.minor_number(), f),
        architecture: value_or_finding(device.architecture(), f).map_or("unknown", codes::architecture).into(),
        compute_capability: capability.map(|(major, minor)| format!("{major}.{minor}")),
        cores: value_or_finding(device.cores(), f),
        memory_total: memory.map(|m| m.total),
        memory_used: memory.map(|m| m.used),
        bus_width_bits: value_or_finding(device.bus_width(), f),
        clock_sm_mhz: value_or_finding(device.clock(Clock::Sm), f),
        clock_sm_max_mhz: value_or_finding(device.max_clock(Clock::Sm), f),
        clock_memory_mhz: value_or_finding(device.clock(Clock::Memory), f),
        clock_memory_max_mhz: value_or_finding(device.max_clock(Clock::Memory), f),
        utilization_percent: utilization.map(|u| u.0),
        memory_utilization_percent: utilization.map(|u| u.1),
        power_watts: value_or_finding(device.power(), f).map(watts),
        power_limit_watts: value_or_finding(device.power_limit(), f).map(watts),
        power_default_watts: value_or_finding(device.power_default(), f).map(watts),
        power_range_watts: value_or_finding(device.power_range(), f).map(|(min, max)| (watts(min), watts(max))),
        energy_joules: value_or_finding(device.energy(), f).map(|mj| mj as f64 / 1000.0),
        temperature_celsius: value_or_finding(device.temperature(), f),
        temperature_slowdown_celsius: value_or_finding(device.temperature_slowdown(), f),
        temperature_shutdown_celsius: value_or_finding(device.temperature_shutdown(), f),
        throttle: codes::throttle_reasons(throttle),
        ecc: ecc(device, f),
        pcie: pcie(device, f),
        nvlinks: nvlinks(device, f),
        fabric: value_or_finding(device.fabric(), f).flatten(),
        persistence: value_or_finding(device.persistence(), f).map(|p| p == 1),
        compute_mode: value_or_finding(device.compute_mode(), f).map(|m| match m {
            0 => "default",
            2 => "prohibited",
            3 => "exclusive process",
            _ => "exclusive thread",
        }),
        performance_state: value_or_finding(device.performance_state(), f).filter(|p| *p < 16),
        fan_percent: value_or_finding(device.fan(), f),
        mig: mig(device, f),
        processes: processes(nvml, device, f),
        findings: Vec::new(),
    };
    diagnose(&gpu, throttle, &mut found);
    found.sort_by_key(|f| std::cmp::Reverse(f.severity));
    gpu.findings = found;
    gpu
}

fn ecc(device: &Device<'_>, f: &mut Vec<Finding>) -> Option<Ecc> {
    let (enabled, _) = value_or_finding(device.ecc(), f)?;
    let (corrected, uncorrected, pending, failed) = value_or_finding(device.remapped_rows(), f).unwrap_or_default();
    Some(Ecc {
        enabled,
        corrected: value_or_finding(device.ecc_corrected(), f).unwrap_or(0),
        uncorrected: value_or_finding(device.ecc_uncorrected(), f).unwrap_or(0),
        rows_remapped: corrected + uncorrected,
        rows_remapped_uncorrected: uncorrected,
        remapping_pending: pending,
        remapping_failed: failed,
    })
}

fn pcie(device: &Device<'_>, f: &mut Vec<Finding>) -> Option<Pcie> {
    Some(Pcie {
        generation: value_or_finding(device.pcie_generation(), f)?,
        generation_max: value_or_finding(device.pcie_generation_max(), f)?,
        width: value_or_finding(device.pcie_width(), f)?,
        width_max: value_or_finding(device.pcie_width_max(), f)?,
        replays: value_or_finding(device.pcie_replays(), f),
    })
}

/// The maximum number of NVLinks of any card so far (B200: 18).
const MAX_NVLINKS: u32 = 18;

fn nvlinks(device: &Device<'_>, f: &mut Vec<Finding>) -> Vec<NvLink> {
    let mut links = Vec::new();
    for link in 0..MAX_NVLINKS {
        let active = match device.nvlink_active(link) {
            Ok(active) => active,
            // NVML returns "invalid argument" (2) for an index past the last link.
            Err(e) if e.code == 2 => break,
            Err(e) => match value_or_finding::<bool>(Err(e), f) {
                Some(active) => active,
                None => break,
            },
        };
        let version = if active { value_or_finding(device.nvlink_version(link), f) } else { None };
        let remote = if active { value_or_finding(device.nvlink_remote(link), f) } else { None };
        links.push(NvLink { link, active, version, remote });
    }
    links
}

fn mig(device: &Device<'_>, f: &mut Vec<Finding>) -> Option<Mig> {
    let (enabled, pending) = value_or_finding(device.mig_mode(), f)?;
    let mut devices = Vec::new();
    if enabled {
        let geometry = value_or_finding(Geometry::from_device(device), f);
        let mut instances = Vec::new();
        for profile in geometry.iter().flat_map(|g| &g.profiles) {
            for instance in value_or_finding(device.gpu_instances(profile.id), f).unwrap_or_default() {
                if let Some((id, _, at)) = value_or_finding(instance.info(), f) {
                    instances.push((id, at, profile));
                }
            }
        }
        for mig_device in value_or_finding(device.mig_devices(), f).unwrap_or_default() {
            let Some(gpu_instance) = value_or_finding(mig_device.gpu_instance_id(), f) else { continue };
            let instance = instances.iter().find(|(id, ..)| *id == gpu_instance);
            let attributes = value_or_finding(mig_device.mig_attributes(), f).unwrap_or_default();
            let whole = attributes.compute_slices == 0 || attributes.compute_slices == attributes.gpu_slices;
            let name = |profile: &str| match profile.parse::<ProfileName>() {
                Ok(name) if !whole => ProfileName { compute: attributes.compute_slices, ..name }.to_string(),
                _ => profile.to_owned(),
            };
            devices.push(MigDevice {
                uuid: value_or_finding(mig_device.uuid(), f).unwrap_or_default(),
                profile: instance.map(|(.., p)| name(&p.name)).unwrap_or_default(),
                gpu_instance,
                compute_instance: value_or_finding(mig_device.compute_instance_id(), f).unwrap_or(0),
                start: instance.map_or(0, |(_, at, _)| at.start),
                size: instance.map_or(0, |(_, at, _)| at.size),
                attributes,
            });
        }
        devices.sort_by_key(|d| (d.start, d.compute_instance));
    }
    Some(Mig { enabled, pending, devices })
}

fn processes(nvml: &Nvml, device: &Device<'_>, f: &mut Vec<Finding>) -> Vec<Process> {
    let busy = device.process_utilization(0).unwrap_or_default();
    let mut list: Vec<Process> = value_or_finding(device.processes(), f)
        .unwrap_or_default()
        .into_iter()
        .map(|p| {
            // The process ids of a fixture do not exist on this machine.
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

/// How to register a GPU with its NVLink fabric.
pub(crate) fn fabric_remedy(fabric: &Fabric) -> &'static str {
    if fabric.cluster_uuid.is_some() {
        "check fabric manager on the rack's NVLink switch trays (NMX), and the GPU's NVLinks"
    } else {
        "start fabric manager in the driver's exact version: systemctl enable --now nvidia-fabricmanager; `slipway explain gpu.fabric`"
    }
}

/// Adds a finding for every reading that indicates a problem.
fn diagnose(gpu: &Gpu, throttle: u64, findings: &mut Vec<Finding>) {
    use FindingCode as Code;
    let mut add = |code, severity, what: String, remedy: &str| {
        findings.push(Finding { code, severity, what, remedy: remedy.into() });
    };
    for (bit, reason, is_problem) in codes::THROTTLE_REASONS {
        if *is_problem && throttle & bit != 0 {
            let remedy = if reason.contains("temperature") {
                "check fans, airflow and the room's temperature; slipway top shows the history"
            } else {
                "check the power supply and its cables; the board reduces the clocks"
            };
            add(Code::ClocksReduced, Severity::Warning, format!("clocks are reduced: {reason}"), remedy);
        }
    }
    if let (Some(now), Some(slow)) = (gpu.temperature_celsius, gpu.temperature_slowdown_celsius)
        && now >= slow
        && slow > 0
    {
        let what = format!("{now} °C, and the card slows down at {slow} °C");
        add(Code::Hot, Severity::Warning, what, "check fans and airflow");
    }
    if let Some(p) = &gpu.pcie {
        if p.width < p.width_max {
            let what = format!("PCIe x{} in use, the card has x{}", p.width, p.width_max);
            let remedy = "move the card to a full slot, reseat it, or check the riser and bifurcation";
            add(Code::PcieWidth, Severity::Warning, what, remedy);
        }
        // Idle cards lower the PCIe generation to save power, so only a busy card is checked.
        let busy = gpu.utilization_percent.is_some_and(|u| u > 20);
        if p.generation < p.generation_max && busy {
            let what = format!("PCIe generation {} under load, {} is possible", p.generation, p.generation_max);
            add(Code::PcieGeneration, Severity::Warning, what, "check the BIOS setting of the slot and the riser");
        }
        if p.replays.is_some_and(|r| r > 1000) {
            add(
                Code::PcieReplays,
                Severity::Warning,
                format!("{} PCIe packets were retransmitted", p.replays.unwrap_or(0)),
                "reseat the card or change the riser",
            );
        }
    }
    if let Some(ecc) = &gpu.ecc {
        if ecc.remapping_failed {
            let what = "a memory row could not be remapped".into();
            add(Code::RemappingFailed, Severity::Error, what, "replace the card (RMA)");
        } else if ecc.remapping_pending {
            add(
                Code::RemappingPending,
                Severity::Warning,
                "a memory row remapping is pending".into(),
                "drain the node and reset the GPU: nvidia-smi --gpu-reset",
            );
        }
        if ecc.uncorrected > 0 {
            add(
                Code::UncorrectedErrors,
                Severity::Error,
                format!("{} uncorrected memory errors", ecc.uncorrected),
                "drain the node, reset the GPU, and replace the card if the errors return",
            );
        }
    }
    let down = gpu.nvlinks.iter().filter(|l| !l.active).count();
    if down > 0 && down < gpu.nvlinks.len() {
        let what = format!("{down} of {} NVLinks are down", gpu.nvlinks.len());
        let remedy = "check the bridge, and nvidia-fabricmanager on NVSwitch systems";
        add(Code::NvLinksDown, Severity::Warning, what, remedy);
    }
    // MIG instances do not use NVLink.
    if let Some(fabric) = gpu.fabric.as_ref().filter(|_| !gpu.mig.as_ref().is_some_and(|m| m.enabled)) {
        if let Some(obstacle) = fabric.obstacle() {
            let severity = if fabric.state == FabricState::InProgress { Severity::Warning } else { Severity::Error };
            let what = format!("{obstacle}; CUDA programs end with error 802 (system not yet initialized)");
            add(Code::FabricNotReady, severity, what, fabric_remedy(fabric));
        }
        if !fabric.problems.is_empty() {
            let what = format!("the NVLink fabric reports: {}", fabric.problems.join(", "));
            let remedy =
                "see /var/log/fabricmanager.log, or the switch trays' log in a rack; drain the node and reset the GPU";
            add(Code::FabricUnhealthy, Severity::Warning, what, remedy);
        }
    }
    if gpu.mig.as_ref().is_some_and(|m| m.enabled != m.pending) {
        add(
            Code::MigModePending,
            Severity::Note,
            "a MIG mode change is pending a GPU reset".into(),
            "drain the node and reset the GPU: nvidia-smi --gpu-reset",
        );
    }
    if gpu.persistence == Some(false) {
        add(
            Code::PersistenceOff,
            Severity::Note,
            "persistence mode is off: the first call after an idle period takes seconds".into(),
            "systemctl enable --now nvidia-persistenced",
        );
    }
    if let (Some(limit), Some(default)) = (gpu.power_limit_watts, gpu.power_default_watts)
        && limit < default * 0.99
    {
        add(
            Code::PowerLimited,
            Severity::Note,
            format!("power is limited to {limit:.0} of {default:.0} W"),
            "change it with nvidia-smi --power-limit; a lower limit is slower but often more efficient",
        );
    }
    if gpu.utilization_percent == Some(0) && !gpu.processes.is_empty() {
        let held: u64 = gpu.processes.iter().filter_map(|p| p.memory_bytes).sum();
        if held > 1 << 30 {
            let what = format!("idle, with {} of memory held", slipway_core::units::bytes(held));
            let remedy = "contact the owners of the processes, or share the GPU: slipway gpu share plan";
            add(Code::IdleMemoryHeld, Severity::Note, what, remedy);
        }
    }
    if let (Some(card), Some(total)) = (sheet::find(&gpu.name), gpu.memory_total)
        && (total >> 20) * 100 < card.memory_mib * 85
    {
        let usual = slipway_core::units::bytes(card.memory_mib << 20);
        let what = format!("{} of memory, but a {} has {usual}", slipway_core::units::bytes(total), card.name);
        let remedy = "it may be a virtual GPU, or a variant without a data sheet in slipway";
        add(Code::MemoryBelowSheet, Severity::Note, what, remedy);
    }
}
