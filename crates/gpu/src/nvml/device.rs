//! What a GPU, or a MIG device of one, tells.

use nvml_wrapper_sys::bindings as sys;

use super::{Clock, Device, Memory, NvmlError, Recovery, RunningProcess, call, codes, list, text};

/// Getters of one number.
macro_rules! numbers {
    ($($(#[$doc:meta])* $method:ident: $kind:ty = $name:ident $(($($before:expr),*))?;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// NVML's.
            pub fn $method(&self) -> Result<$kind, NvmlError> {
                let mut value: $kind = 0;
                call!(self.nvml, $name, self.handle $($(, $before)*)?, &mut value)?;
                Ok(value)
            }
        )*
    };
}

/// Getters of a text.
macro_rules! texts {
    ($($(#[$doc:meta])* $method:ident = $name:ident;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// NVML's.
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
        /// The product's name.
        name = nvmlDeviceGetName;
        /// `GPU-...`, or `MIG-...`.
        uuid = nvmlDeviceGetUUID;
        /// The board's serial number.
        serial = nvmlDeviceGetSerial;
    }

    numbers! {
        /// N of `/dev/nvidiaN`.
        minor_number: u32 = nvmlDeviceGetMinorNumber;
        /// NVML's number of the architecture.
        architecture: u32 = nvmlDeviceGetArchitecture;
        /// CUDA cores.
        cores: u32 = nvmlDeviceGetNumGpuCores;
        /// Bits of the memory bus.
        bus_width: u32 = nvmlDeviceGetMemoryBusWidth;
        /// Milliwatts drawn now.
        power: u32 = nvmlDeviceGetPowerUsage;
        /// Milliwatts allowed now.
        power_limit: u32 = nvmlDeviceGetEnforcedPowerLimit;
        /// Milliwatts allowed by default.
        power_default: u32 = nvmlDeviceGetPowerManagementDefaultLimit;
        /// Millijoules since the driver was loaded.
        energy: u64 = nvmlDeviceGetTotalEnergyConsumption;
        /// Degrees Celsius.
        temperature: u32 = nvmlDeviceGetTemperature(0);
        /// Degrees at which the hardware shuts down.
        temperature_shutdown: u32 = nvmlDeviceGetTemperatureThreshold(0);
        /// Degrees at which the hardware slows down.
        temperature_slowdown: u32 = nvmlDeviceGetTemperatureThreshold(1);
        /// Why clocks are held down, as bits.
        throttle: u64 = nvmlDeviceGetCurrentClocksThrottleReasons;
        /// Corrected memory errors since the driver was loaded.
        ecc_corrected: u64 = nvmlDeviceGetTotalEccErrors(0, 0);
        /// Uncorrected memory errors since the driver was loaded.
        ecc_uncorrected: u64 = nvmlDeviceGetTotalEccErrors(1, 0);
        /// PCIe generation now; cards lower it when idle.
        pcie_generation: u32 = nvmlDeviceGetCurrPcieLinkGeneration;
        /// The generation that card and slot reach.
        pcie_generation_max: u32 = nvmlDeviceGetMaxPcieLinkGeneration;
        /// PCIe lanes now.
        pcie_width: u32 = nvmlDeviceGetCurrPcieLinkWidth;
        /// The lanes of the card.
        pcie_width_max: u32 = nvmlDeviceGetMaxPcieLinkWidth;
        /// Packets sent again.
        pcie_replays: u32 = nvmlDeviceGetPcieReplayCounter;
        /// 1 when the driver stays loaded without users.
        persistence: u32 = nvmlDeviceGetPersistenceMode;
        /// 0 default, 2 prohibited, 3 exclusive process.
        compute_mode: u32 = nvmlDeviceGetComputeMode;
        /// P0 (fastest) to P15.
        performance_state: u32 = nvmlDeviceGetPerformanceState;
        /// Per cent of the fan's full speed.
        fan: u32 = nvmlDeviceGetFanSpeed;
    }

    /// Per cent of the video encoder's time.
    ///
    /// # Errors
    /// NVML's.
    pub fn encoder_utilization(&self) -> Result<u32, NvmlError> {
        let (mut used, mut period) = (0, 0);
        call!(self.nvml, nvmlDeviceGetEncoderUtilization, self.handle, &mut used, &mut period)?;
        Ok(used)
    }

    /// Per cent of the video decoder's time.
    ///
    /// # Errors
    /// NVML's.
    pub fn decoder_utilization(&self) -> Result<u32, NvmlError> {
        let (mut used, mut period) = (0, 0);
        call!(self.nvml, nvmlDeviceGetDecoderUtilization, self.handle, &mut used, &mut period)?;
        Ok(used)
    }

    /// Sets who may compute: 0 everybody, 3 one process (what MPS wants).
    ///
    /// # Errors
    /// NVML's; no permission for users.
    pub fn set_compute_mode(&self, mode: u32) -> Result<(), NvmlError> {
        call!(self.nvml, nvmlDeviceSetComputeMode, self.handle, mode)
    }

    /// What must be done before the GPU can be used again (`NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`, drivers from 570).
    ///
    /// # Errors
    /// NVML's; not supported by older drivers.
    pub fn recovery(&self) -> Result<Recovery, NvmlError> {
        // SAFETY: plain C data, for which zeros are a value.
        let mut field: sys::nvmlFieldValue_t = unsafe { std::mem::zeroed() };
        field.fieldId = sys::field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION;
        call!(self.nvml, nvmlDeviceGetFieldValues, self.handle, 1, &mut field)?;
        if field.nvmlReturn != 0 {
            return Err(NvmlError { call: "nvmlDeviceGetFieldValues", code: field.nvmlReturn });
        }
        // SAFETY: every variant of the union is a number that begins at its start; this field is an unsigned int.
        Ok(match unsafe { field.value.uiVal } {
            0 => Recovery::None,
            2 => Recovery::Reboot,
            3 => Recovery::DrainPeers,
            4 => Recovery::DrainAndReset,
            _ => Recovery::Reset,
        })
    }

    /// Major and minor.
    ///
    /// # Errors
    /// NVML's.
    pub fn compute_capability(&self) -> Result<(i32, i32), NvmlError> {
        let (mut major, mut minor) = (0, 0);
        call!(self.nvml, nvmlDeviceGetCudaComputeCapability, self.handle, &mut major, &mut minor)?;
        Ok((major, minor))
    }

    /// Memory; the driver's own share is told apart where the driver can.
    ///
    /// # Errors
    /// NVML's.
    pub fn memory(&self) -> Result<Memory, NvmlError> {
        // The version of a versioned struct: its size, and its number from bit 24 (nvml.h, NVML_STRUCT_VERSION).
        let version = u32::try_from(size_of::<sys::nvmlMemory_v2_t>()).unwrap_or(0) | 2 << 24;
        let mut memory = sys::nvmlMemory_v2_t { version, total: 0, reserved: 0, free: 0, used: 0 };
        match call!(self.nvml, nvmlDeviceGetMemoryInfo_v2, self.handle, &mut memory) {
            Ok(()) => return Ok(Memory { total: memory.total, used: memory.used, free: memory.free }),
            Err(e) if matches!(e.code, codes::FUNCTION_NOT_FOUND | codes::NOT_SUPPORTED | 25) => {}
            Err(e) => return Err(e),
        }
        let mut old = sys::nvmlMemory_t { total: 0, free: 0, used: 0 };
        call!(self.nvml, nvmlDeviceGetMemoryInfo, self.handle, &mut old)?;
        Ok(Memory { total: old.total, used: old.used, free: old.free })
    }

    /// Per cent of the last sample period in which a kernel ran, and in which memory was read or written.
    ///
    /// # Errors
    /// NVML's.
    pub fn utilization(&self) -> Result<(u32, u32), NvmlError> {
        let mut used = sys::nvmlUtilization_t { gpu: 0, memory: 0 };
        call!(self.nvml, nvmlDeviceGetUtilizationRates, self.handle, &mut used)?;
        Ok((used.gpu, used.memory))
    }

    /// MHz now.
    ///
    /// # Errors
    /// NVML's.
    pub fn clock(&self, which: Clock) -> Result<u32, NvmlError> {
        let mut clock = 0;
        call!(self.nvml, nvmlDeviceGetClockInfo, self.handle, which as u32, &mut clock)?;
        Ok(clock)
    }

    /// MHz at most.
    ///
    /// # Errors
    /// NVML's.
    pub fn max_clock(&self, which: Clock) -> Result<u32, NvmlError> {
        let mut clock = 0;
        call!(self.nvml, nvmlDeviceGetMaxClockInfo, self.handle, which as u32, &mut clock)?;
        Ok(clock)
    }

    /// The least and most milliwatts that may be allowed.
    ///
    /// # Errors
    /// NVML's.
    pub fn power_range(&self) -> Result<(u32, u32), NvmlError> {
        let (mut least, mut most) = (0, 0);
        call!(self.nvml, nvmlDeviceGetPowerManagementLimitConstraints, self.handle, &mut least, &mut most)?;
        Ok((least, most))
    }

    /// Whether ECC is on, and whether it will be after a reboot.
    ///
    /// # Errors
    /// NVML's.
    pub fn ecc(&self) -> Result<(bool, bool), NvmlError> {
        let (mut now, mut later) = (0, 0);
        call!(self.nvml, nvmlDeviceGetEccMode, self.handle, &mut now, &mut later)?;
        Ok((now == 1, later == 1))
    }

    /// Rows remapped for corrected and uncorrected errors, whether a remapping waits for a reset, whether one failed.
    ///
    /// # Errors
    /// NVML's.
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
        // SAFETY: plain C data, for which zeros are a value.
        let mut pci: sys::nvmlPciInfo_t = unsafe { std::mem::zeroed() };
        call!(self.nvml, nvmlDeviceGetPciInfo_v3, self.handle, &mut pci)?;
        Ok(pci)
    }

    /// PCI address as `domain:bus:device.function`, domain of eight digits.
    ///
    /// # Errors
    /// NVML's.
    pub fn bus_id(&self) -> Result<String, NvmlError> {
        Ok(text(&self.pci()?.busId).to_ascii_lowercase())
    }

    /// Device id and vendor id in one number, as `0x233010DE`.
    ///
    /// # Errors
    /// NVML's.
    pub fn pci_id(&self) -> Result<u32, NvmlError> {
        Ok(self.pci()?.pciDeviceId)
    }

    /// Whether an NVLink is up.
    ///
    /// # Errors
    /// NVML's; not supported or an invalid argument past the last link.
    pub fn nvlink_active(&self, link: u32) -> Result<bool, NvmlError> {
        let mut active = 0;
        call!(self.nvml, nvmlDeviceGetNvLinkState, self.handle, link, &mut active)?;
        Ok(active == 1)
    }

    /// The generation of an NVLink as NVML counts.
    ///
    /// # Errors
    /// NVML's.
    pub fn nvlink_version(&self, link: u32) -> Result<u32, NvmlError> {
        let mut version = 0;
        call!(self.nvml, nvmlDeviceGetNvLinkVersion, self.handle, link, &mut version)?;
        Ok(version)
    }

    /// PCI address of what an NVLink leads to: a GPU or a switch.
    ///
    /// # Errors
    /// NVML's.
    pub fn nvlink_remote(&self, link: u32) -> Result<String, NvmlError> {
        // SAFETY: plain C data, for which zeros are a value.
        let mut pci: sys::nvmlPciInfo_t = unsafe { std::mem::zeroed() };
        call!(self.nvml, nvmlDeviceGetNvLinkRemotePciInfo_v2, self.handle, link, &mut pci)?;
        Ok(text(&pci.busId).to_ascii_lowercase())
    }

    /// Processes that compute, and those that draw, each once.
    ///
    /// # Errors
    /// NVML's.
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

    /// Per cent of the multiprocessors' time by process, since `microseconds` of the Unix epoch.
    ///
    /// # Errors
    /// NVML's; not found when nothing ran.
    pub fn process_utilization(&self, since: u64) -> Result<Vec<(u32, u32)>, NvmlError> {
        let empty =
            sys::nvmlProcessUtilizationSample_t { pid: 0, timeStamp: 0, smUtil: 0, memUtil: 0, encUtil: 0, decUtil: 0 };
        let samples = list(empty, |count, items| {
            call!(self.nvml, nvmlDeviceGetProcessUtilization, self.handle, items, count, since)
        })?;
        Ok(samples.iter().filter(|s| s.pid != 0).map(|s| (s.pid, s.smUtil)).collect())
    }

    /// The level at which two GPUs meet, as NVML numbers it.
    ///
    /// # Errors
    /// NVML's.
    pub fn common_ancestor(&self, other: &Device<'_>) -> Result<u32, NvmlError> {
        let mut level = 0;
        call!(self.nvml, nvmlDeviceGetTopologyCommonAncestor, self.handle, other.handle, &mut level)?;
        Ok(level)
    }

    /// The processors near the GPU.
    ///
    /// # Errors
    /// NVML's.
    pub fn cpu_affinity(&self) -> Result<Vec<u32>, NvmlError> {
        const WORDS: usize = 16;
        let mut mask = [0; WORDS];
        call!(self.nvml, nvmlDeviceGetCpuAffinity, self.handle, 16, mask.as_mut_ptr())?;
        let bits = std::ffi::c_ulong::BITS;
        let set = |n: &u32| mask[(n / bits) as usize] >> (n % bits) & 1 == 1;
        Ok((0..bits * 16).filter(set).collect())
    }
}
