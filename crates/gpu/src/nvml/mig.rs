//! NVML's calls on MIG: mode, GPU instances, compute instances.

use nvml_wrapper_sys::bindings as sys;

use super::{Device, NvmlError, call, list};

/// Where an instance lies, in memory slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Placement {
    /// The first slice.
    pub start: u32,
    /// How many.
    pub size: u32,
}

/// A GPU instance.
#[derive(Clone, Copy)]
pub struct GpuInstance<'a> {
    device: Device<'a>,
    handle: sys::nvmlGpuInstance_t,
}

/// A compute instance.
#[derive(Clone, Copy)]
pub struct ComputeInstance<'a> {
    device: Device<'a>,
    handle: sys::nvmlComputeInstance_t,
}

/// What NVML says about a kind of GPU instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // NVML's own names
pub struct ProfileInfo {
    pub id: u32,
    pub slices: u32,
    pub instances: u32,
    pub multiprocessors: u32,
    pub memory_mib: u64,
    pub jpeg: u32,
}

/// What a MIG device has of its GPU: of some it has its own, of some it shares with others in its GPU instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, schemars::JsonSchema)]
#[allow(missing_docs)] // NVML's own names
pub struct MigAttributes {
    pub multiprocessors: u32,
    pub memory_mib: u64,
    pub gpu_slices: u32,
    pub compute_slices: u32,
    pub copy_engines: u32,
    pub decoders: u32,
    pub encoders: u32,
    pub jpeg_engines: u32,
    pub ofa_engines: u32,
}

impl<'a> Device<'a> {
    /// Whether MIG is on, and whether it will be after a reset.
    ///
    /// # Errors
    /// NVML's; not supported on cards without MIG.
    pub fn mig_mode(&self) -> Result<(bool, bool), NvmlError> {
        let (mut now, mut later) = (0, 0);
        call!(self.nvml, nvmlDeviceGetMigMode, self.handle, &mut now, &mut later)?;
        Ok((now == 1, later == 1))
    }

    /// Turns MIG on or off; the answer is NVML's code of the activation (0, or what is still to be done).
    ///
    /// # Errors
    /// NVML's.
    pub fn set_mig_mode(&self, on: bool) -> Result<u32, NvmlError> {
        let mut activation = 0;
        call!(self.nvml, nvmlDeviceSetMigMode, self.handle, u32::from(on), &mut activation)?;
        Ok(activation)
    }

    /// MIG devices, as containers and CUDA see them.
    ///
    /// # Errors
    /// NVML's.
    pub fn mig_devices(&self) -> Result<Vec<Device<'a>>, NvmlError> {
        let mut most = 0;
        call!(self.nvml, nvmlDeviceGetMaxMigDeviceCount, self.handle, &mut most)?;
        let mut found = Vec::new();
        for index in 0..most {
            let mut handle = std::ptr::null_mut();
            match call!(self.nvml, nvmlDeviceGetMigDeviceHandleByIndex, self.handle, index, &mut handle) {
                Ok(()) => found.push(Device { nvml: self.nvml, handle }),
                Err(e) if e.code == super::codes::NOT_FOUND => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    /// The GPU instance of a MIG device.
    ///
    /// # Errors
    /// NVML's.
    pub fn gpu_instance_id(&self) -> Result<u32, NvmlError> {
        let mut id = 0;
        call!(self.nvml, nvmlDeviceGetGpuInstanceId, self.handle, &mut id)?;
        Ok(id)
    }

    /// The compute instance of a MIG device.
    ///
    /// # Errors
    /// NVML's.
    pub fn compute_instance_id(&self) -> Result<u32, NvmlError> {
        let mut id = 0;
        call!(self.nvml, nvmlDeviceGetComputeInstanceId, self.handle, &mut id)?;
        Ok(id)
    }

    /// What a MIG device has of its GPU.
    ///
    /// # Errors
    /// NVML's.
    pub fn mig_attributes(&self) -> Result<MigAttributes, NvmlError> {
        // SAFETY: plain C data, for which zeros are a value.
        let mut a: sys::nvmlDeviceAttributes_t = unsafe { std::mem::zeroed() };
        call!(self.nvml, nvmlDeviceGetAttributes_v2, self.handle, &mut a)?;
        Ok(MigAttributes {
            multiprocessors: a.multiprocessorCount,
            memory_mib: a.memorySizeMB,
            gpu_slices: a.gpuInstanceSliceCount,
            compute_slices: a.computeInstanceSliceCount,
            copy_engines: a.sharedCopyEngineCount,
            decoders: a.sharedDecoderCount,
            encoders: a.sharedEncoderCount,
            jpeg_engines: a.sharedJpegCount,
            ofa_engines: a.sharedOfaCount,
        })
    }

    /// What this GPU says about one of NVML's kinds of GPU instance (`NVML_GPU_INSTANCE_PROFILE_*`).
    ///
    /// # Errors
    /// NVML's; not supported for kinds it lacks.
    pub fn instance_profile(&self, kind: u32) -> Result<ProfileInfo, NvmlError> {
        // SAFETY: plain C data, for which zeros are a value.
        let mut info: sys::nvmlGpuInstanceProfileInfo_t = unsafe { std::mem::zeroed() };
        call!(self.nvml, nvmlDeviceGetGpuInstanceProfileInfo, self.handle, kind, &mut info)?;
        Ok(ProfileInfo {
            id: info.id,
            slices: info.sliceCount,
            instances: info.instanceCount,
            multiprocessors: info.multiprocessorCount,
            memory_mib: info.memorySizeMB,
            jpeg: info.jpegCount,
        })
    }

    /// Where an instance of this profile may lie.
    ///
    /// # Errors
    /// NVML's.
    pub fn possible_placements(&self, profile: u32) -> Result<Vec<Placement>, NvmlError> {
        let empty = sys::nvmlGpuInstancePlacement_t { start: 0, size: 0 };
        let found = list(empty, |count, items| {
            call!(self.nvml, nvmlDeviceGetGpuInstancePossiblePlacements_v2, self.handle, profile, items, count)
        })?;
        Ok(found.into_iter().map(|p| Placement { start: p.start, size: p.size }).collect())
    }

    /// The GPU instances of a profile that exist.
    ///
    /// # Errors
    /// NVML's.
    pub fn gpu_instances(&self, profile: u32) -> Result<Vec<GpuInstance<'a>>, NvmlError> {
        let found = list(std::ptr::null_mut(), |count, items| {
            call!(self.nvml, nvmlDeviceGetGpuInstances, self.handle, profile, items, count)
        })?;
        Ok(found.into_iter().map(|handle| GpuInstance { device: *self, handle }).collect())
    }

    /// Makes a GPU instance at a place.
    ///
    /// # Errors
    /// NVML's; insufficient resources when the place is taken.
    pub fn create_gpu_instance(&self, profile: u32, at: Placement) -> Result<GpuInstance<'a>, NvmlError> {
        let place = sys::nvmlGpuInstancePlacement_t { start: at.start, size: at.size };
        let mut handle = std::ptr::null_mut();
        call!(self.nvml, nvmlDeviceCreateGpuInstanceWithPlacement, self.handle, profile, &place, &mut handle)?;
        Ok(GpuInstance { device: *self, handle })
    }
}

impl<'a> GpuInstance<'a> {
    /// Id, profile and place.
    ///
    /// # Errors
    /// NVML's.
    pub fn info(&self) -> Result<(u32, u32, Placement), NvmlError> {
        // SAFETY: plain C data, for which zeros are a value.
        let mut info: sys::nvmlGpuInstanceInfo_t = unsafe { std::mem::zeroed() };
        call!(self.device.nvml, nvmlGpuInstanceGetInfo, self.handle, &mut info)?;
        Ok((info.id, info.profileId, Placement { start: info.placement.start, size: info.placement.size }))
    }

    /// The id of the compute profile of so many slices (`NVML_COMPUTE_INSTANCE_PROFILE_*`), shared engines.
    ///
    /// # Errors
    /// NVML's.
    pub fn compute_profile(&self, kind: u32) -> Result<u32, NvmlError> {
        // SAFETY: plain C data, for which zeros are a value.
        let mut info: sys::nvmlComputeInstanceProfileInfo_t = unsafe { std::mem::zeroed() };
        call!(self.device.nvml, nvmlGpuInstanceGetComputeInstanceProfileInfo, self.handle, kind, 0, &mut info)?;
        Ok(info.id)
    }

    /// The compute instances of a profile that exist.
    ///
    /// # Errors
    /// NVML's.
    pub fn compute_instances(&self, profile: u32) -> Result<Vec<ComputeInstance<'a>>, NvmlError> {
        let found = list(std::ptr::null_mut(), |count, items| {
            call!(self.device.nvml, nvmlGpuInstanceGetComputeInstances, self.handle, profile, items, count)
        })?;
        Ok(found.into_iter().map(|handle| ComputeInstance { device: self.device, handle }).collect())
    }

    /// Makes a compute instance.
    ///
    /// # Errors
    /// NVML's.
    pub fn create_compute_instance(&self, profile: u32) -> Result<ComputeInstance<'a>, NvmlError> {
        let mut handle = std::ptr::null_mut();
        call!(self.device.nvml, nvmlGpuInstanceCreateComputeInstance, self.handle, profile, &mut handle)?;
        Ok(ComputeInstance { device: self.device, handle })
    }

    /// Removes the instance; its compute instances must be gone.
    ///
    /// # Errors
    /// NVML's; in use while a process runs in it.
    pub fn destroy(self) -> Result<(), NvmlError> {
        call!(self.device.nvml, nvmlGpuInstanceDestroy, self.handle)
    }
}

impl ComputeInstance<'_> {
    /// Id and profile.
    ///
    /// # Errors
    /// NVML's.
    pub fn info(&self) -> Result<(u32, u32), NvmlError> {
        // SAFETY: plain C data, for which zeros are a value.
        let mut info: sys::nvmlComputeInstanceInfo_t = unsafe { std::mem::zeroed() };
        call!(self.device.nvml, nvmlComputeInstanceGetInfo_v2, self.handle, &mut info)?;
        Ok((info.id, info.profileId))
    }

    /// Removes it.
    ///
    /// # Errors
    /// NVML's; in use while a process runs in it.
    pub fn destroy(self) -> Result<(), NvmlError> {
        call!(self.device.nvml, nvmlComputeInstanceDestroy, self.handle)
    }
}
