//! Fixtures: YAML files that describe simulated GPUs and their scripted events.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// The built-in fixtures, as names and YAML texts.
pub const FIXTURES: &[(&str, &str)] = &[
    ("t4", include_str!("../fixtures/t4.yaml")),
    ("a4000", include_str!("../fixtures/a4000.yaml")),
    ("a100x8", include_str!("../fixtures/a100x8.yaml")),
    ("h100x8", include_str!("../fixtures/h100x8.yaml")),
    ("h200x8", include_str!("../fixtures/h200x8.yaml")),
    ("b200x8", include_str!("../fixtures/b200x8.yaml")),
    ("gb200x4", include_str!("../fixtures/gb200x4.yaml")),
    ("rtx-pro-6000x8", include_str!("../fixtures/rtx-pro-6000x8.yaml")),
    ("l40sx4", include_str!("../fixtures/l40sx4.yaml")),
    ("broken", include_str!("../fixtures/broken.yaml")),
];

/// A simulated machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fixture {
    pub(crate) driver: String,
    pub(crate) nvml: String,
    /// 13000 is CUDA 13.0.
    pub(crate) cuda: i32,
    pub(crate) count: usize,
    /// Properties of all GPUs; see [`Gpu`].
    pub(crate) gpu: Value,
    /// Properties that differ, by GPU index; merged into `gpu`.
    #[serde(default)]
    pub(crate) overrides: BTreeMap<usize, Value>,
    /// NUMA node of each GPU.
    pub(crate) numa: Vec<u32>,
    pub(crate) cpus_per_node: u32,
    /// Scripted XIDs.
    #[serde(default)]
    pub(crate) events: Vec<Xid>,
    /// NVML return codes that functions fail with, by symbol.
    #[serde(default)]
    pub(crate) inject: BTreeMap<String, u32>,
    /// Libraries that are not installed.
    #[serde(default)]
    pub(crate) missing_libraries: Vec<Library>,
}

/// A library that programs on GPUs load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Library {
    Nvrtc,
    Cublas,
    Nccl,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Xid {
    pub(crate) after_ms: u64,
    pub(crate) gpu: usize,
    pub(crate) xid: u64,
    /// The MIG GPU instance with the error; `None` for the full GPU.
    pub(crate) instance: Option<u32>,
}

/// The properties of a simulated GPU.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gpu {
    pub(crate) name: String,
    /// `nvmlDeviceArchitecture_t`: 6 Turing, 7 Ampere, 8 Ada, 9 Hopper, 10 Blackwell.
    pub(crate) architecture: u32,
    pub(crate) compute_capability: [i32; 2],
    /// PCI device id in the upper 16 bits, vendor id in the lower.
    pub(crate) pci_id: u32,
    pub(crate) cores: u32,
    pub(crate) memory_mib: u64,
    pub(crate) bus_width: u32,
    /// Maximum, in MHz.
    pub(crate) clock_sm: u32,
    pub(crate) clock_memory: u32,
    /// In watts.
    pub(crate) power_idle: u32,
    pub(crate) power_limit: u32,
    pub(crate) power_default: Option<u32>,
    pub(crate) power_min: u32,
    pub(crate) temperature_idle: u32,
    pub(crate) temperature_slowdown: u32,
    pub(crate) temperature_shutdown: u32,
    pub(crate) fan: Option<u32>,
    pub(crate) pcie_generation: u32,
    pub(crate) pcie_width: u32,
    pub(crate) pcie_width_max: Option<u32>,
    #[serde(default)]
    pub(crate) pcie_replays: u32,
    /// Whether ECC is on; `None` for a GPU without ECC.
    pub(crate) ecc: Option<bool>,
    #[serde(default)]
    pub(crate) ecc_uncorrected: u64,
    #[serde(default)]
    pub(crate) remapped_rows: u32,
    #[serde(default)]
    pub(crate) remapping_pending: bool,
    /// Number of NVLinks; all are connected to switches.
    #[serde(default)]
    pub(crate) nvlinks: u32,
    #[serde(default)]
    pub(crate) nvlink_version: u32,
    /// Number of NVLinks that are down.
    #[serde(default)]
    pub(crate) nvlinks_down: u32,
    /// The registration with an NVLink fabric; `None` for a GPU that needs none.
    pub(crate) fabric: Option<Fabric>,
    /// The MIG family such as `a100-40gb`; `None` for a GPU without MIG.
    pub(crate) mig: Option<String>,
    #[serde(default = "default_true")]
    pub(crate) persistence: bool,
    #[serde(default)]
    pub(crate) throttle: u64,
    /// Throttle reasons that are reported only under load.
    #[serde(default)]
    pub(crate) throttle_under_load: u64,
    /// Rates of the accelerator in percent of those of a GPU without defects.
    pub(crate) speed_percent: Option<u32>,
    /// Address in bytes of a word of the memory whose lowest bit is always 0.
    pub(crate) memory_fault: Option<u64>,
    /// Number of words in which results under load differ.
    #[serde(default)]
    pub(crate) wrong_results: u64,
    /// Utilization in percent for each second since the start; the list repeats.
    #[serde(default)]
    pub(crate) utilization: Vec<u32>,
    #[serde(default)]
    pub(crate) processes: Vec<Process>,
    /// Milliseconds after which the GPU falls off the bus.
    pub(crate) lost_after_ms: Option<u64>,
}

/// The registration of a GPU with an NVLink fabric.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fabric {
    pub(crate) state: FabricState,
    /// The UUID of a domain across machines, as 32 hexadecimal digits.
    #[serde(default)]
    pub(crate) cluster: Option<String>,
    #[serde(default)]
    pub(crate) clique: u32,
    /// `healthMask` of `nvmlGpuFabricInfo_v2_t`.
    #[serde(default)]
    pub(crate) health: u32,
}

/// How far the registration has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FabricState {
    NotStarted,
    InProgress,
    Completed,
    Failed,
}

impl std::str::FromStr for FabricState {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "not-started" => Ok(Self::NotStarted),
            "in-progress" => Ok(Self::InProgress),
            "completed" => Ok(Self::Completed),
            "failed" => Ok(Self::Failed),
            _ => Err(()),
        }
    }
}

fn default_true() -> bool {
    true
}

/// A process on a GPU.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) name: String,
    pub(crate) memory_mib: u64,
    #[serde(default)]
    pub(crate) sm: u32,
    /// The first memory slice of the MIG instance that the process uses.
    pub(crate) at: Option<u32>,
}

fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

impl Fixture {
    /// Loads a built-in fixture by name, or a file by path, and returns it with the properties of each GPU.
    pub(crate) fn load(name: &str) -> Result<(Self, Vec<Gpu>), String> {
        let built_in = FIXTURES.iter().find(|(n, _)| *n == name).map(|(_, text)| (*text).to_owned());
        let text = match built_in {
            Some(text) => text,
            None => std::fs::read_to_string(name).map_err(|e| {
                let names = FIXTURES.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", ");
                format!("'{name}' is neither a fixture ({names}) nor a readable file: {e}")
            })?,
        };
        let fixture: Self = serde_saphyr::from_str(&text).map_err(|e| format!("fixture {name}: {e}"))?;
        let mut gpus = Vec::new();
        for index in 0..fixture.count {
            let mut gpu = fixture.gpu.clone();
            if let Some(over) = fixture.overrides.get(&index) {
                merge(&mut gpu, over);
            }
            gpus.push(serde_json::from_value(gpu).map_err(|e| format!("fixture {name}, GPU {index}: {e}"))?);
        }
        Ok((fixture, gpus))
    }
}
