//! Settings of a GPU: power limit, clocks, persistence, ECC and compute mode. All setters need root, otherwise they fail with "no permission".
//! Source: nvml.h, "Device Commands" (what a call requires, and whether a reboot or an unloaded driver undoes it).

use super::{Device, NvmlError, call, list};

impl Device<'_> {
    /// The power limit in milliwatts that was set. The limit in force can be lower, see [`Device::power_limit`].
    ///
    /// # Errors
    /// [`NvmlError`]: "not supported" for cards without power management.
    pub fn requested_power_limit(&self) -> Result<u32, NvmlError> {
        let mut limit = 0;
        call!(self.nvml, nvmlDeviceGetPowerManagementLimit, self.handle, &mut limit)?;
        Ok(limit)
    }

    /// The power limit in milliwatts that the GPU starts with.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn power_default(&self) -> Result<u32, NvmlError> {
        let mut limit = 0;
        call!(self.nvml, nvmlDeviceGetPowerManagementDefaultLimit, self.handle, &mut limit)?;
        Ok(limit)
    }

    /// Minimum and maximum configurable power limit in milliwatts.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn power_range(&self) -> Result<(u32, u32), NvmlError> {
        let (mut min, mut max) = (0, 0);
        call!(self.nvml, nvmlDeviceGetPowerManagementLimitConstraints, self.handle, &mut min, &mut max)?;
        Ok((min, max))
    }

    /// Sets the power limit in milliwatts, until a reboot or until the driver is unloaded.
    ///
    /// # Errors
    /// [`NvmlError`]: "invalid argument" outside of [`Device::power_range`].
    pub fn set_power_limit(&self, milliwatts: u32) -> Result<(), NvmlError> {
        call!(self.nvml, nvmlDeviceSetPowerManagementLimit, self.handle, milliwatts)
    }

    /// The memory clocks in MHz that the GPU can run at.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn supported_memory_clocks(&self) -> Result<Vec<u32>, NvmlError> {
        list(0, |count, items| call!(self.nvml, nvmlDeviceGetSupportedMemoryClocks, self.handle, count, items))
    }

    /// The graphics clocks in MHz that the GPU can run at with this memory clock.
    ///
    /// # Errors
    /// [`NvmlError`]: "not found" if `memory` is not a supported memory clock.
    pub fn supported_graphics_clocks(&self, memory: u32) -> Result<Vec<u32>, NvmlError> {
        list(0, |count, items| {
            call!(self.nvml, nvmlDeviceGetSupportedGraphicsClocks, self.handle, memory, count, items)
        })
    }

    /// Keeps the graphics clock between two values in MHz, or removes that lock. NVML cannot report the current lock.
    ///
    /// # Errors
    /// [`NvmlError`]: "not supported" before Volta.
    pub fn lock_graphics_clocks(&self, range: Option<(u32, u32)>) -> Result<(), NvmlError> {
        match range {
            Some((min, max)) => call!(self.nvml, nvmlDeviceSetGpuLockedClocks, self.handle, min, max),
            None => call!(self.nvml, nvmlDeviceResetGpuLockedClocks, self.handle),
        }
    }

    /// The same for the memory clock.
    ///
    /// # Errors
    /// [`NvmlError`]: "not supported" before Ampere, and on Hopper.
    pub fn lock_memory_clocks(&self, range: Option<(u32, u32)>) -> Result<(), NvmlError> {
        match range {
            Some((min, max)) => call!(self.nvml, nvmlDeviceSetMemoryLockedClocks, self.handle, min, max),
            None => call!(self.nvml, nvmlDeviceResetMemoryLockedClocks, self.handle),
        }
    }

    /// Persistence mode: 1 if the driver keeps the GPU initialized without clients.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn persistence(&self) -> Result<u32, NvmlError> {
        let mut mode = 0;
        call!(self.nvml, nvmlDeviceGetPersistenceMode, self.handle, &mut mode)?;
        Ok(mode)
    }

    /// Sets the persistence mode, until a reboot.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn set_persistence(&self, on: bool) -> Result<(), NvmlError> {
        call!(self.nvml, nvmlDeviceSetPersistenceMode, self.handle, u32::from(on))
    }

    /// Whether ECC is enabled now, and whether it is enabled after the next reset or reboot.
    ///
    /// # Errors
    /// [`NvmlError`]: "not supported" for cards without ECC.
    pub fn ecc(&self) -> Result<(bool, bool), NvmlError> {
        let (mut current, mut pending) = (0, 0);
        call!(self.nvml, nvmlDeviceGetEccMode, self.handle, &mut current, &mut pending)?;
        Ok((current == 1, pending == 1))
    }

    /// Sets whether ECC is enabled after the next reset or reboot. The setting is stored on the card.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn set_ecc(&self, on: bool) -> Result<(), NvmlError> {
        call!(self.nvml, nvmlDeviceSetEccMode, self.handle, u32::from(on))
    }

    /// Compute mode: 0 default, 2 prohibited, 3 exclusive process.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn compute_mode(&self) -> Result<u32, NvmlError> {
        let mut mode = 0;
        call!(self.nvml, nvmlDeviceGetComputeMode, self.handle, &mut mode)?;
        Ok(mode)
    }

    /// Sets the compute mode, until a reboot: 0 allows any number of processes, 3 only one (required by MPS).
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn set_compute_mode(&self, mode: u32) -> Result<(), NvmlError> {
        call!(self.nvml, nvmlDeviceSetComputeMode, self.handle, mode)
    }
}
