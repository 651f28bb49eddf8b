//! Properties of a GPU or MIG device.

use nvml_wrapper_sys::bindings as sys;

use super::{Clock, Device, Memory, NvmlError, Recovery, RunningProcess, call, codes, list, text};

/// Defines getters that return one number.
macro_rules! numbers {
    ($($(#[$doc:meta])* $method:ident: $kind:ty = $name:ident $(($($before:expr),*))?;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// [`NvmlError`] if the call fails.
            pub fn $method(&self) -> Result<$kind, NvmlError> {
                let mut value: $kind = 0;
                call!(self.nvml, $name, self.handle $($(, $before)*)?, &mut value)?;
                Ok(value)
            }
        )*
    };
}

/// Defines getters that return a string.
macro_rules! texts {
    ($($(#[$doc:meta])* $method:ident = $name:ident;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// [`NvmlError`] if the call fails.
            pub fn $method(&self) -> Result<String, NvmlError> {
                let mut buffer = [0; 96];
                call!(self.nvml, $name, self.handle, buffer.as_mut_ptr(), 96)?;
                Ok(text(&buffer))
            }
        )*
    };
}

impl<'a> Device<'a> {
    texts! {
        /// Product name, such as `NVIDIA H100 80GB HBM3`.
        name = nvmlDeviceGetName;
        /// UUID: `GPU-...` for a GPU, `MIG-...` for a MIG device.
        uuid = nvmlDeviceGetUUID;
        /// Serial number of the board.
        serial = nvmlDeviceGetSerial;
    }

    numbers! {
        /// Minor device number: the N of `/dev/nvidiaN`.
        minor_number: u32 = nvmlDeviceGetMinorNumber;
        /// Architecture number, see [`codes::architecture`].
        architecture: u32 = nvmlDeviceGetArchitecture;
        /// Number of CUDA cores.
        cores: u32 = nvmlDeviceGetNumGpuCores;
        /// Width of the memory bus in bits.
        bus_width: u32 = nvmlDeviceGetMemoryBusWidth;
        /// Current power draw in milliwatts.
        power: u32 = nvmlDeviceGetPowerUsage;
        /// Power limit in milliwatts that is in force: the lowest of all limits on the GPU.
        power_limit: u32 = nvmlDeviceGetEnforcedPowerLimit;
        /// Energy consumed since the driver was loaded, in millijoules.
        energy: u64 = nvmlDeviceGetTotalEnergyConsumption;
        /// Temperature in degrees Celsius.
        temperature: u32 = nvmlDeviceGetTemperature(0);
        /// Temperature in degrees Celsius at which the hardware shuts down.
        temperature_shutdown: u32 = nvmlDeviceGetTemperatureThreshold(0);
        /// Temperature in degrees Celsius at which the hardware slows down.
        temperature_slowdown: u32 = nvmlDeviceGetTemperatureThreshold(1);
        /// Active throttle reasons as a bit mask, see [`codes::THROTTLE_REASONS`].
        throttle: u64 = nvmlDeviceGetCurrentClocksThrottleReasons;
        /// Corrected memory errors since the driver was loaded.
        ecc_corrected: u64 = nvmlDeviceGetTotalEccErrors(0, 0);
        /// Uncorrected memory errors since the driver was loaded.
        ecc_uncorrected: u64 = nvmlDeviceGetTotalEccErrors(1, 0);
        /// Current PCIe generation; cards lower it when idle.
        pcie_generation: u32 = nvmlDeviceGetCurrPcieLinkGeneration;
        /// Maximum PCIe generation of card and slot.
        pcie_generation_max: u32 = nvmlDeviceGetMaxPcieLinkGeneration;
        /// Current number of PCIe lanes.
        pcie_width: u32 = nvmlDeviceGetCurrPcieLinkWidth;
        /// Maximum number of PCIe lanes.
        pcie_width_max: u32 = nvmlDeviceGetMaxPcieLinkWidth;
        /// Number of retransmitted PCIe packets.
        pcie_replays: u32 = nvmlDeviceGetPcieReplayCounter;
        /// Performance state from 0 (P0, fastest) to 15 (P15).
        performance_state: u32 = nvmlDeviceGetPerformanceState;
        /// Fan speed in percent of the maximum.
        fan: u32 = nvmlDeviceGetFanSpeed;
    }

    /// Utilisation of the video encoder in percent.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn encoder_utilization(&self) -> Result<u32, NvmlError> {
        let (mut used, mut period) = (0, 0);
        call!(self.nvml, nvmlDeviceGetEncoderUtilization, self.handle, &mut used, &mut period)?;
        Ok(used)
    }

    /// Utilisation of the video decoder in percent.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn decoder_utilization(&self) -> Result<u32, NvmlError> {
        let (mut used, mut period) = (0, 0);
        call!(self.nvml, nvmlDeviceGetDecoderUtilization, self.handle, &mut used, &mut period)?;
        Ok(used)
    }

    /// The action required before the GPU can be used again (`NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`, drivers from 570).
    ///
    /// # Errors
    /// [`NvmlError`]: "not supported" on older drivers.
    pub fn recovery(&self) -> Result<Recovery, NvmlError> {
        // SAFETY: a plain C struct, for which all zeros is a valid value.
        let mut field: sys::nvmlFieldValue_t = unsafe { std::mem::zeroed() };
        field.fieldId = sys::field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION;
        call!(self.nvml, nvmlDeviceGetFieldValues, self.handle, 1, &mut field)?;
        if field.nvmlReturn != 0 {
            return Err(NvmlError { call: "nvmlDeviceGetFieldValues", code: field.nvmlReturn });
        }
        // SAFETY: all variants of the union are numbers at offset 0; the value of this field is an unsigned int.
        Ok(match unsafe { field.value.uiVal } {
            0 => Recovery::None,
            2 => Recovery::Reboot,
            3 => Recovery::DrainPeers,
            4 => Recovery::DrainAndReset,
            _ => Recovery::Reset,
        })
    }

    /// CUDA compute capability as (major, minor).
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn compute_capability(&self) -> Result<(i32, i32), NvmlError> {
        let (mut major, mut minor) = (0, 0);
        call!(self.nvml, nvmlDeviceGetCudaComputeCapability, self.handle, &mut major, &mut minor)?;
        Ok((major, minor))
    }

    /// Memory in bytes. Newer drivers report the memory that they reserve separately from used memory.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn memory(&self) -> Result<Memory, NvmlError> {
        // The version of a versioned struct: its size, and its number from bit 24 (nvml.h, NVML_STRUCT_VERSION).
        let version = u32::try_from(size_of::<sys::nvmlMemory_v2_t>()).unwrap_or(0) | 2 << 24;
        let mut memory = sys::nvmlMemory_v2_t { version, total: 0, reserved: 0, free: 0, used: 0 };
        match call!(self.nvml, nvmlDeviceGetMemoryInfo_v2, self.handle, &mut memory) {
            Ok(()) => return Ok(Memory { total: memory.total, used: memory.used, free: memory.free }),
            Err(e)
                if matches!(
                    e.code,
                    codes::FUNCTION_NOT_FOUND | codes::NOT_SUPPORTED | codes::ARGUMENT_VERSION_MISMATCH
                ) => {}
            Err(e) => return Err(e),
        }
        let mut old = sys::nvmlMemory_t { total: 0, free: 0, used: 0 };
        call!(self.nvml, nvmlDeviceGetMemoryInfo, self.handle, &mut old)?;
        Ok(Memory { total: old.total, used: old.used, free: old.free })
    }

    /// Percent of the last sample period in which a kernel ran, and in which memory was read or written.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn utilization(&self) -> Result<(u32, u32), NvmlError> {
        let mut used = sys::nvmlUtilization_t { gpu: 0, memory: 0 };
        call!(self.nvml, nvmlDeviceGetUtilizationRates, self.handle, &mut used)?;
        Ok((used.gpu, used.memory))
    }

    /// Current clock in MHz.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn clock(&self, which: Clock) -> Result<u32, NvmlError> {
        let mut clock = 0;
        call!(self.nvml, nvmlDeviceGetClockInfo, self.handle, which as u32, &mut clock)?;
        Ok(clock)
    }

    /// Maximum clock in MHz.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn max_clock(&self, which: Clock) -> Result<u32, NvmlError> {
        let mut clock = 0;
        call!(self.nvml, nvmlDeviceGetMaxClockInfo, self.handle, which as u32, &mut clock)?;
        Ok(clock)
    }

    /// Memory rows remapped for corrected and for uncorrected errors, whether a remapping is pending, and whether one failed.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn remapped_rows(&self) -> Result<(u32, u32, bool, bool), NvmlError> {
        let (mut corrected, mut uncorrected, mut pending, mut failed) = (0, 0, 0, 0);
        call!(
            self.nvml,
            nvmlDeviceGetRemappedRows,
            self.handle,
            &mut corrected,
            &mut uncorrected,
            &mut pending,
            &mut failed
        )?;
        Ok((corrected, uncorrected, pending == 1, failed == 1))
    }

    fn pci(&self) -> Result<sys::nvmlPciInfo_t, NvmlError> {
        // SAFETY: a plain C struct, for which all zeros is a valid value.
        let mut pci: sys::nvmlPciInfo_t = unsafe { std::mem::zeroed() };
        call!(self.nvml, nvmlDeviceGetPciInfo_v3, self.handle, &mut pci)?;
        Ok(pci)
    }

    /// PCI address as `domain:bus:device.function` with an eight-digit domain, such as `00000000:3b:00.0`.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn bus_id(&self) -> Result<String, NvmlError> {
        Ok(text(&self.pci()?.busId).to_ascii_lowercase())
    }

    /// PCI device id and vendor id in one number, such as `0x233010DE`.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn pci_id(&self) -> Result<u32, NvmlError> {
        Ok(self.pci()?.pciDeviceId)
    }

    /// The same of the device and of its subsystem (the board's vendor).
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn pci_ids(&self) -> Result<(u32, u32), NvmlError> {
        let pci = self.pci()?;
        Ok((pci.pciDeviceId, pci.pciSubSystemId))
    }

    /// Whether an NVLink is active.
    ///
    /// # Errors
    /// [`NvmlError`]: "not supported" or "invalid argument" past the last link.
    pub fn nvlink_active(&self, link: u32) -> Result<bool, NvmlError> {
        let mut active = 0;
        call!(self.nvml, nvmlDeviceGetNvLinkState, self.handle, link, &mut active)?;
        Ok(active == 1)
    }

    /// Version of an NVLink, as numbered by NVML.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn nvlink_version(&self, link: u32) -> Result<u32, NvmlError> {
        let mut version = 0;
        call!(self.nvml, nvmlDeviceGetNvLinkVersion, self.handle, link, &mut version)?;
        Ok(version)
    }

    /// PCI address of the remote device of an NVLink: a GPU or an NVSwitch.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn nvlink_remote(&self, link: u32) -> Result<String, NvmlError> {
        // SAFETY: a plain C struct, for which all zeros is a valid value.
        let mut pci: sys::nvmlPciInfo_t = unsafe { std::mem::zeroed() };
        call!(self.nvml, nvmlDeviceGetNvLinkRemotePciInfo_v2, self.handle, link, &mut pci)?;
        Ok(text(&pci.busId).to_ascii_lowercase())
    }

    /// Compute and graphics processes without duplicates.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn processes(&self) -> Result<Vec<RunningProcess>, NvmlError> {
        let empty = sys::nvmlProcessInfo_t { pid: 0, usedGpuMemory: 0, gpuInstanceId: 0, computeInstanceId: 0 };
        let compute = list(empty, |count, items| {
            call!(self.nvml, nvmlDeviceGetComputeRunningProcesses_v3, self.handle, count, items)
        })?;
        let graphics = list(empty, |count, items| {
            call!(self.nvml, nvmlDeviceGetGraphicsRunningProcesses_v3, self.handle, count, items)
        });
        let mut found: Vec<RunningProcess> = Vec::new();
        for p in compute.into_iter().chain(graphics.unwrap_or_default()) {
            let known = |n: u64| (n != u64::MAX).then_some(n);
            let process = RunningProcess {
                pid: p.pid,
                memory: known(p.usedGpuMemory),
                gpu_instance: (p.gpuInstanceId != u32::MAX).then_some(p.gpuInstanceId),
            };
            if !found.iter().any(|f| f.pid == process.pid && f.gpu_instance == process.gpu_instance) {
                found.push(process);
            }
        }
        Ok(found)
    }

    /// Samples of (pid, multiprocessor utilisation in percent) taken after `since`, in microseconds of the Unix epoch.
    ///
    /// # Errors
    /// [`NvmlError`]: "not found" if no process ran.
    pub fn process_utilization(&self, since: u64) -> Result<Vec<(u32, u32)>, NvmlError> {
        let empty =
            sys::nvmlProcessUtilizationSample_t { pid: 0, timeStamp: 0, smUtil: 0, memUtil: 0, encUtil: 0, decUtil: 0 };
        let samples = list(empty, |count, items| {
            call!(self.nvml, nvmlDeviceGetProcessUtilization, self.handle, items, count, since)
        })?;
        Ok(samples.iter().filter(|s| s.pid != 0).map(|s| (s.pid, s.smUtil)).collect())
    }

    /// The closest common ancestor of two GPUs in the PCI hierarchy (`nvmlGpuTopologyLevel_t`).
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn common_ancestor(&self, other: &Device<'_>) -> Result<u32, NvmlError> {
        let mut level = 0;
        call!(self.nvml, nvmlDeviceGetTopologyCommonAncestor, self.handle, other.handle, &mut level)?;
        Ok(level)
    }

    /// Numbers of the CPUs near the GPU.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn cpu_affinity(&self) -> Result<Vec<u32>, NvmlError> {
        const WORDS: usize = 16;
        let mut mask = [0; WORDS];
        call!(self.nvml, nvmlDeviceGetCpuAffinity, self.handle, 16, mask.as_mut_ptr())?;
        let bits = std::ffi::c_ulong::BITS;
        let set = |n: &u32| mask[(n / bits) as usize] >> (n % bits) & 1 == 1;
        Ok((0..bits * 16).filter(set).collect())
    }
}
