//! The registration of a GPU with its NVLink fabric. A GPU of a board with NVSwitches can use CUDA only after it is registered.
//! Source: nvml.h, "nvmlFabricDefs"; NVIDIA, "Fabric Manager User Guide", "Initializing NVSwitch and NVLink".

use std::fmt;

use nvml_wrapper_sys::bindings as sys;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Device, NvmlError, call, codes};

/// How far the registration of a GPU has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "GpuFabricState")]
pub enum FabricState {
    /// The registration has not started: fabric manager has never run.
    NotStarted,
    /// The GPU waits for fabric manager.
    InProgress,
    /// The GPU is registered.
    Completed,
    /// The registration ended with an error.
    Failed,
}

impl fmt::Display for FabricState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotStarted => "not started",
            Self::InProgress => "in progress",
            Self::Completed => "completed",
            Self::Failed => "failed",
        })
    }
}

/// The place of a GPU in an NVLink fabric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "GpuFabric")]
pub struct Fabric {
    /// How far the registration has come.
    pub state: FabricState,
    /// Why the registration failed.
    pub error: Option<String>,
    /// The domain, a UUID. GPUs of several machines can have the same one (GB200 NVL72). `None` if the fabric ends at the machine.
    pub cluster_uuid: Option<String>,
    /// The partition of the domain, whose GPUs reach each other's memory.
    pub clique: u32,
    /// Problems of a registered GPU, such as `degraded bandwidth`.
    pub problems: Vec<&'static str>,
}

impl Fabric {
    /// The clique across machines as `UUID.NUMBER`, which GPU feature discovery publishes as a label; `None` if the GPU is in none.
    pub fn clique_id(&self) -> Option<String> {
        let uuid = self.cluster_uuid.as_ref().filter(|_| self.state == FabricState::Completed)?;
        Some(format!("{uuid}.{}", self.clique))
    }

    /// Why the GPU cannot use CUDA; `None` if it can.
    pub fn obstacle(&self) -> Option<String> {
        match (self.state, &self.error) {
            (FabricState::Completed, _) => None,
            (state, None) => Some(format!("registration with the NVLink fabric {state}")),
            (state, Some(error)) => Some(format!("registration with the NVLink fabric {state}: {error}")),
        }
    }
}

/// Formats 16 bytes as a UUID; `None` if all are zero.
fn uuid(bytes: [u8; 16]) -> Option<String> {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let uuid = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    (bytes != [0; 16]).then_some(uuid)
}

/// The problems in a health mask, whose fields are `NVML_GPU_FABRIC_HEALTH_MASK_...`: two bits with 1 for true, and four for the
/// configuration. The summary of newer drivers adds what the mask does not have.
fn problems(mask: u32, summary: u8) -> Vec<&'static str> {
    let is = |shift: u32| mask >> shift & 3 == 1;
    let mut found = Vec::new();
    for (shift, name) in [
        (sys::NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_DEGRADED_BW, "degraded bandwidth"),
        (sys::NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_ROUTE_RECOVERY, "route recovery in progress"),
        (sys::NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_ROUTE_UNHEALTHY, "unhealthy route"),
        (sys::NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_ACCESS_TIMEOUT_RECOVERY, "recovery from an access timeout in progress"),
    ] {
        if is(shift) {
            found.push(name);
        }
    }
    match mask >> sys::NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_INCORRECT_CONFIGURATION & 0xf {
        0 | 1 => {}
        2 => found.push("incorrect system GUID"),
        3 => found.push("incorrect chassis serial number"),
        4 => found.push("no partition"),
        5 => found.push("insufficient NVLinks"),
        _ => found.push("incorrect configuration"),
    }
    match u32::from(summary) {
        sys::NVML_GPU_FABRIC_HEALTH_SUMMARY_UNHEALTHY if found.is_empty() => found.push("unhealthy"),
        sys::NVML_GPU_FABRIC_HEALTH_SUMMARY_LIMITED_CAPACITY => found.push("limited capacity"),
        _ => {}
    }
    found
}

impl Device<'_> {
    /// The registration with the NVLink fabric; `None` for a GPU that needs none.
    ///
    /// # Errors
    /// [`NvmlError`]: "not supported" for GPUs before Hopper and on older drivers.
    pub fn fabric(&self) -> Result<Option<Fabric>, NvmlError> {
        let info = self.fabric_info()?;
        let (state, error) = match u32::from(info.state) {
            sys::NVML_GPU_FABRIC_STATE_NOT_STARTED => (FabricState::NotStarted, None),
            sys::NVML_GPU_FABRIC_STATE_IN_PROGRESS => (FabricState::InProgress, None),
            sys::NVML_GPU_FABRIC_STATE_COMPLETED if info.status == 0 => (FabricState::Completed, None),
            sys::NVML_GPU_FABRIC_STATE_COMPLETED => {
                (FabricState::Failed, Some(format!("{} (NVML {})", codes::describe(info.status), info.status)))
            }
            _ => return Ok(None),
        };
        let problems =
            if state == FabricState::Completed { problems(info.healthMask, info.healthSummary) } else { Vec::new() };
        Ok(Some(Fabric { state, error, cluster_uuid: uuid(info.clusterUuid), clique: info.cliqueId, problems }))
    }

    /// Reads the newest version of the struct that the driver knows. Older versions are a prefix of the newest.
    fn fabric_info(&self) -> Result<sys::nvmlGpuFabricInfoV_t, NvmlError> {
        // SAFETY: a plain C struct, for which all zeros is a valid value.
        let mut info: sys::nvmlGpuFabricInfoV_t = unsafe { std::mem::zeroed() };
        let versions = [(size_of::<sys::nvmlGpuFabricInfo_v3_t>(), 3), (size_of::<sys::nvmlGpuFabricInfo_v2_t>(), 2)];
        let mut result = Ok(());
        for (size, version) in versions {
            info.version = u32::try_from(size).unwrap_or(0) | version << 24;
            result = call!(self.nvml, nvmlDeviceGetGpuFabricInfoV, self.handle, &mut info);
            if !matches!(&result, Err(e) if e.code == codes::ARGUMENT_VERSION_MISMATCH) {
                break;
            }
        }
        match result {
            Ok(()) => Ok(info),
            Err(e) if e.code == codes::FUNCTION_NOT_FOUND => {
                // SAFETY: as above.
                let mut old: sys::nvmlGpuFabricInfo_t = unsafe { std::mem::zeroed() };
                call!(self.nvml, nvmlDeviceGetGpuFabricInfo, self.handle, &mut old)?;
                info.clusterUuid = old.clusterUuid;
                (info.status, info.cliqueId, info.state) = (old.status, old.cliqueId, old.state);
                Ok(info)
            }
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_mask_is_decoded() {
        // Every condition is reported as false (2), and the configuration as correct (1).
        let healthy = 2 | 2 << 2 | 2 << 4 | 2 << 6 | 1 << 8;
        assert_eq!(problems(healthy, 1), [""; 0]);
        assert_eq!(problems(0, 0), [""; 0], "a driver that reports nothing");
        assert_eq!(problems(healthy & !3 | 1, 2), ["degraded bandwidth"]);
        assert_eq!(problems(1 << 4 | 5 << 8, 2), ["unhealthy route", "insufficient NVLinks"]);
        assert_eq!(problems(0, 2), ["unhealthy"]);
        assert_eq!(problems(15 << 8, 3), ["incorrect configuration", "limited capacity"]);
    }

    #[test]
    fn cluster_uuid_is_absent_if_it_is_zero() {
        assert_eq!(uuid([0; 16]), None);
        let bytes = [0x6a, 0x0b, 0x5c, 0x1d, 0x2e, 0x3f, 0x40, 0x51, 0x86, 0x73, 0x84, 0x95, 0xa6, 0xb7, 0xc8, 0xd9];
        assert_eq!(uuid(bytes).as_deref(), Some("6a0b5c1d-2e3f-4051-8673-8495a6b7c8d9"));
    }
}
