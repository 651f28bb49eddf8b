//! Settings of simulated GPUs: power limit, clocks, persistence, ECC and compute mode.

use std::ffi::c_uint;

use serde::{Deserialize, Serialize};
use slipway_gpu::nvml::codes;

use super::state::Gpu;
use super::{Device, INVALID, dispatch, physical_gpu, put, put_list};

/// `nvmlDeviceArchitecture_t` of the generations in which clocks can be locked differently.
const VOLTA: u32 = 5;
const AMPERE: u32 = 7;
const HOPPER: u32 = 9;
/// Interval between two supported graphics clocks, and the lowest one, in MHz.
const CLOCK_STEP: usize = 15;
const MIN_CLOCK: u32 = 210;

/// What differs from the fixture.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    /// In milliwatts.
    pub(crate) power_limit: Option<u32>,
    /// Locked clocks in MHz.
    pub(crate) graphics_clocks: Option<(u32, u32)>,
    pub(crate) memory_clocks: Option<(u32, u32)>,
    pub(crate) persistence: Option<bool>,
    /// Whether ECC is on after the next start of the driver.
    pub(crate) ecc_pending: Option<bool>,
    pub(crate) ecc: Option<bool>,
    pub(crate) compute_mode: u32,
}

impl Settings {
    /// What remains when the driver has been unloaded: only what is stored on the card.
    pub(crate) fn after_unload(&self) -> Self {
        let ecc = self.ecc_pending.or(self.ecc);
        Self { ecc, ecc_pending: ecc, ..Self::default() }
    }
}

impl Gpu {
    /// The power limit in milliwatts.
    pub(crate) fn power_limit(&self) -> u32 {
        self.settings.power_limit.unwrap_or(self.spec.power_limit * 1000)
    }

    /// Minimum and maximum power limit in milliwatts.
    pub(crate) fn power_range(&self) -> (u32, u32) {
        (self.spec.power_min * 1000, self.spec.power_default.unwrap_or(self.spec.power_limit) * 1000)
    }
}

/// Keeps a clock within a lock.
pub(crate) fn locked(clock: u32, range: Option<(u32, u32)>) -> u32 {
    range.map_or(clock, |(min, max)| clock.clamp(min, max))
}

/// Checks a range of clocks as the driver does.
fn valid(min: u32, max: u32, highest: u32) -> Result<(u32, u32), u32> {
    if min > max || min == 0 || max > highest { Err(INVALID) } else { Ok((min, max)) }
}

exports! {
    nvmlDeviceGetPowerManagementLimit(device: Device, to: *mut c_uint) state {
        put(to, physical_gpu(state, device)?.power_limit())
    }
    nvmlDeviceGetEnforcedPowerLimit(device: Device, to: *mut c_uint) state {
        put(to, physical_gpu(state, device)?.power_limit())
    }
    nvmlDeviceGetPowerManagementLimitConstraints(device: Device, min: *mut c_uint, max: *mut c_uint) state {
        let range = physical_gpu(state, device)?.power_range();
        put(min, range.0)?;
        put(max, range.1)
    }
    nvmlDeviceSetPowerManagementLimit(device: Device, milliwatts: c_uint) state {
        let gpu = physical_gpu(state, device)?;
        let (min, max) = gpu.power_range();
        if !(min..=max).contains(&milliwatts) { return Err(INVALID); }
        gpu.settings.power_limit = Some(milliwatts);
        state.save()
    }
    nvmlDeviceGetSupportedMemoryClocks(device: Device, count: *mut c_uint, to: *mut c_uint) state {
        let clock = physical_gpu(state, device)?.spec.clock_memory;
        put_list(&[clock], count, to)
    }
    nvmlDeviceGetSupportedGraphicsClocks(device: Device, memory: c_uint, count: *mut c_uint, to: *mut c_uint) state {
        let spec = &physical_gpu(state, device)?.spec;
        if memory != spec.clock_memory { return Err(codes::NOT_FOUND); }
        let clocks: Vec<u32> = (MIN_CLOCK..=spec.clock_sm).rev().step_by(CLOCK_STEP).collect();
        put_list(&clocks, count, to)
    }
    nvmlDeviceSetGpuLockedClocks(device: Device, min: c_uint, max: c_uint) state {
        let gpu = physical_gpu(state, device)?;
        if gpu.spec.architecture < VOLTA { return Err(codes::NOT_SUPPORTED); }
        gpu.settings.graphics_clocks = Some(valid(min, max, gpu.spec.clock_sm)?);
        state.save()
    }
    nvmlDeviceResetGpuLockedClocks(device: Device) state {
        let gpu = physical_gpu(state, device)?;
        if gpu.spec.architecture < VOLTA { return Err(codes::NOT_SUPPORTED); }
        gpu.settings.graphics_clocks = None;
        state.save()
    }
    nvmlDeviceSetMemoryLockedClocks(device: Device, min: c_uint, max: c_uint) state {
        let gpu = physical_gpu(state, device)?;
        if gpu.spec.architecture < AMPERE || gpu.spec.architecture == HOPPER { return Err(codes::NOT_SUPPORTED); }
        gpu.settings.memory_clocks = Some(valid(min, max, gpu.spec.clock_memory)?);
        state.save()
    }
    nvmlDeviceResetMemoryLockedClocks(device: Device) state {
        let gpu = physical_gpu(state, device)?;
        if gpu.spec.architecture < AMPERE { return Err(codes::NOT_SUPPORTED); }
        gpu.settings.memory_clocks = None;
        state.save()
    }
    nvmlDeviceGetPersistenceMode(device: Device, to: *mut c_uint) state {
        let gpu = physical_gpu(state, device)?;
        put(to, u32::from(gpu.settings.persistence.unwrap_or(gpu.spec.persistence)))
    }
    nvmlDeviceSetPersistenceMode(device: Device, mode: c_uint) state {
        if mode > 1 { return Err(INVALID); }
        physical_gpu(state, device)?.settings.persistence = Some(mode == 1);
        state.save()
    }
    nvmlDeviceGetEccMode(device: Device, current: *mut c_uint, pending: *mut c_uint) state {
        let gpu = physical_gpu(state, device)?;
        let built_in = gpu.spec.ecc.ok_or(codes::NOT_SUPPORTED)?;
        let now = gpu.settings.ecc.unwrap_or(built_in);
        put(current, u32::from(now))?;
        put(pending, u32::from(gpu.settings.ecc_pending.unwrap_or(now)))
    }
    nvmlDeviceSetEccMode(device: Device, mode: c_uint) state {
        if mode > 1 { return Err(INVALID); }
        let gpu = physical_gpu(state, device)?;
        gpu.spec.ecc.ok_or(codes::NOT_SUPPORTED)?;
        gpu.settings.ecc_pending = Some(mode == 1);
        state.save()
    }
    nvmlDeviceGetComputeMode(device: Device, to: *mut c_uint) state {
        put(to, physical_gpu(state, device)?.settings.compute_mode)
    }
    nvmlDeviceSetComputeMode(device: Device, mode: c_uint) state {
        if mode > 3 { return Err(INVALID); }
        physical_gpu(state, device)?.settings.compute_mode = mode;
        state.save()
    }
}
