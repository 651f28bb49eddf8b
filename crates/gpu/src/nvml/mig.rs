//! NVML's MIG calls: mode, GPU instances and compute instances.

use nvml_wrapper_sys::bindings as sys;

use super::{Device, NvmlError, call, list};

/// The position of a GPU instance, in memory slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Placement {
    /// First memory slice, from 0.
    pub start: u32,
    /// Number of memory slices.
    pub size: u32,
}

/// A GPU instance: a hardware partition with its own memory.
#[derive(Clone, Copy)]
pub struct GpuInstance<'a> {
    device: Device<'a>,
    handle: sys::nvmlGpuInstance_t,
}

/// A compute instance: a partition of the compute slices of a GPU instance.
#[derive(Clone, Copy)]
pub struct ComputeInstance<'a> {
    device: Device<'a>,
    handle: sys::nvmlComputeInstance_t,
}

/// Engines of an instance beside the multiprocessors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize)]
#[allow(missing_docs)] // the names are NVML's
pub struct Engines {
    pub decoders: u32,
    pub encoders: u32,
    pub jpeg: u32,
    /// Optical flow accelerators.
    pub ofa: u32,
    pub copy: u32,
}

/// A [`ProfileInfo`] from either version of NVML's structure, which name these fields alike.
macro_rules! profile_info {
    ($info:expr, $name:expr) => {
        ProfileInfo {
            id: $info.id,
            slices: $info.sliceCount,
            instances: $info.instanceCount,
            multiprocessors: $info.multiprocessorCount,
            memory_mib: $info.memorySizeMB,
            engines: Engines {
                decoders: $info.decoderCount,
                encoders: $info.encoderCount,
                jpeg: $info.jpegCount,
                ofa: $info.ofaCount,
                copy: $info.copyEngineCount,
            },
            name: $name,
        }
    };
}

impl Engines {
    /// The media engines, which instances do not share: decoders, encoders, JPEG engines and optical flow accelerators.
    pub fn media(self) -> [u32; 4] {
        [self.decoders, self.encoders, self.jpeg, self.ofa]
    }
}

/// Properties of a GPU instance profile.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the names are NVML's
pub struct ProfileInfo {
    pub id: u32,
    pub slices: u32,
    pub instances: u32,
    pub multiprocessors: u32,
    pub memory_mib: u64,
    pub engines: Engines,
    /// The driver's name, such as `1g.10gb+me`; `None` before driver 525.
    pub name: Option<String>,
}

/// Resources of a MIG device. Memory and engines are shared with the other MIG devices in the same GPU instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, schemars::JsonSchema)]
#[allow(missing_docs)] // the names are NVML's
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
    /// Whether MIG is enabled now, and whether it is enabled after the next GPU reset.
    ///
    /// # Errors
    /// [`NvmlError`]: "not supported" on cards without MIG.
    pub fn mig_mode(&self) -> Result<(bool, bool), NvmlError> {
        let (mut current, mut pending) = (0, 0);
        call!(self.nvml, nvmlDeviceGetMigMode, self.handle, &mut current, &mut pending)?;
        Ok((current == 1, pending == 1))
    }

    /// Enables or disables MIG. Returns NVML's activation status: 0, or the code of the action still required.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn set_mig_mode(&self, on: bool) -> Result<u32, NvmlError> {
        let mut activation = 0;
        call!(self.nvml, nvmlDeviceSetMigMode, self.handle, u32::from(on), &mut activation)?;
        Ok(activation)
    }

    /// The MIG devices of this GPU, which containers and CUDA see as devices.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn mig_devices(&self) -> Result<Vec<Device<'a>>, NvmlError> {
        let mut max_count = 0;
        call!(self.nvml, nvmlDeviceGetMaxMigDeviceCount, self.handle, &mut max_count)?;
        let mut found = Vec::new();
        for index in 0..max_count {
            let mut handle = std::ptr::null_mut();
            match call!(self.nvml, nvmlDeviceGetMigDeviceHandleByIndex, self.handle, index, &mut handle) {
                Ok(()) => found.push(Device { nvml: self.nvml, handle }),
                Err(e) if e.code == super::codes::NOT_FOUND => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    /// Id of the GPU instance of a MIG device.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn gpu_instance_id(&self) -> Result<u32, NvmlError> {
        let mut id = 0;
        call!(self.nvml, nvmlDeviceGetGpuInstanceId, self.handle, &mut id)?;
        Ok(id)
    }

    /// Id of the compute instance of a MIG device.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn compute_instance_id(&self) -> Result<u32, NvmlError> {
        let mut id = 0;
        call!(self.nvml, nvmlDeviceGetComputeInstanceId, self.handle, &mut id)?;
        Ok(id)
    }

    /// Resources of a MIG device.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn mig_attributes(&self) -> Result<MigAttributes, NvmlError> {
        // SAFETY: a plain C struct, for which all zeros is a valid value.
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

    /// Properties of the GPU instance profile of this kind (`NVML_GPU_INSTANCE_PROFILE_*`).
    ///
    /// # Errors
    /// [`NvmlError`]: "not supported" if the GPU lacks the kind.
    pub fn instance_profile(&self, kind: u32) -> Result<ProfileInfo, NvmlError> {
        // SAFETY: a plain C struct, for which all zeros is a valid value.
        let mut info: sys::nvmlGpuInstanceProfileInfo_v2_t = unsafe { std::mem::zeroed() };
        // NVML_STRUCT_VERSION: the size of the structure, and its version in the top byte.
        info.version = size_of::<sys::nvmlGpuInstanceProfileInfo_v2_t>() as u32 | 2 << 24;
        match call!(self.nvml, nvmlDeviceGetGpuInstanceProfileInfoV, self.handle, kind, &mut info) {
            Ok(()) => {
                let name = super::text(&info.name);
                let name = name.trim().strip_prefix("MIG ").unwrap_or(name.trim()).to_owned();
                Ok(profile_info!(info, Some(name).filter(|n| !n.is_empty())))
            }
            // Drivers without the function, or with another version of the structure.
            Err(e) if matches!(e.code, super::codes::FUNCTION_NOT_FOUND | super::codes::ARGUMENT_VERSION_MISMATCH) => {
                self.instance_profile_without_name(kind)
            }
            Err(e) => Err(e),
        }
    }

    fn instance_profile_without_name(&self, kind: u32) -> Result<ProfileInfo, NvmlError> {
        // SAFETY: a plain C struct, for which all zeros is a valid value.
        let mut info: sys::nvmlGpuInstanceProfileInfo_t = unsafe { std::mem::zeroed() };
        call!(self.nvml, nvmlDeviceGetGpuInstanceProfileInfo, self.handle, kind, &mut info)?;
        Ok(profile_info!(info, None))
    }

    /// The positions that instances of a profile can have on an empty GPU.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn possible_placements(&self, profile: u32) -> Result<Vec<Placement>, NvmlError> {
        let empty = sys::nvmlGpuInstancePlacement_t { start: 0, size: 0 };
        let found = list(empty, |count, items| {
            call!(self.nvml, nvmlDeviceGetGpuInstancePossiblePlacements_v2, self.handle, profile, items, count)
        })?;
        Ok(found.into_iter().map(|p| Placement { start: p.start, size: p.size }).collect())
    }

    /// The existing GPU instances of a profile.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn gpu_instances(&self, profile: u32) -> Result<Vec<GpuInstance<'a>>, NvmlError> {
        let found = list(std::ptr::null_mut(), |count, items| {
            call!(self.nvml, nvmlDeviceGetGpuInstances, self.handle, profile, items, count)
        })?;
        Ok(found.into_iter().map(|handle| GpuInstance { device: *self, handle }).collect())
    }

    /// Creates a GPU instance at a position.
    ///
    /// # Errors
    /// [`NvmlError`]: "insufficient resources" if the position is occupied.
    pub fn create_gpu_instance(&self, profile: u32, at: Placement) -> Result<GpuInstance<'a>, NvmlError> {
        let place = sys::nvmlGpuInstancePlacement_t { start: at.start, size: at.size };
        let mut handle = std::ptr::null_mut();
        call!(self.nvml, nvmlDeviceCreateGpuInstanceWithPlacement, self.handle, profile, &place, &mut handle)?;
        Ok(GpuInstance { device: *self, handle })
    }
}

impl<'a> GpuInstance<'a> {
    /// Id, profile id and position.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn info(&self) -> Result<(u32, u32, Placement), NvmlError> {
        // SAFETY: a plain C struct, for which all zeros is a valid value.
        let mut info: sys::nvmlGpuInstanceInfo_t = unsafe { std::mem::zeroed() };
        call!(self.device.nvml, nvmlGpuInstanceGetInfo, self.handle, &mut info)?;
        Ok((info.id, info.profileId, Placement { start: info.placement.start, size: info.placement.size }))
    }

    /// Id and slices of the compute instance profile of this kind (`NVML_COMPUTE_INSTANCE_PROFILE_*`), with shared engines.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn compute_profile(&self, kind: u32) -> Result<(u32, u32), NvmlError> {
        // SAFETY: a plain C struct, for which all zeros is a valid value.
        let mut info: sys::nvmlComputeInstanceProfileInfo_t = unsafe { std::mem::zeroed() };
        call!(self.device.nvml, nvmlGpuInstanceGetComputeInstanceProfileInfo, self.handle, kind, 0, &mut info)?;
        Ok((info.id, info.sliceCount))
    }

    /// The existing compute instances of a profile.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn compute_instances(&self, profile: u32) -> Result<Vec<ComputeInstance<'a>>, NvmlError> {
        let found = list(std::ptr::null_mut(), |count, items| {
            call!(self.device.nvml, nvmlGpuInstanceGetComputeInstances, self.handle, profile, items, count)
        })?;
        Ok(found.into_iter().map(|handle| ComputeInstance { device: self.device, handle }).collect())
    }

    /// Creates a compute instance.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn create_compute_instance(&self, profile: u32) -> Result<ComputeInstance<'a>, NvmlError> {
        let mut handle = std::ptr::null_mut();
        call!(self.device.nvml, nvmlGpuInstanceCreateComputeInstance, self.handle, profile, &mut handle)?;
        Ok(ComputeInstance { device: self.device, handle })
    }

    /// Destroys the GPU instance. Its compute instances must be destroyed first.
    ///
    /// # Errors
    /// [`NvmlError`]: "in use" while a process runs in it.
    pub fn destroy(self) -> Result<(), NvmlError> {
        call!(self.device.nvml, nvmlGpuInstanceDestroy, self.handle)
    }
}

impl ComputeInstance<'_> {
    /// Id and profile id.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn info(&self) -> Result<(u32, u32), NvmlError> {
        // SAFETY: a plain C struct, for which all zeros is a valid value.
        let mut info: sys::nvmlComputeInstanceInfo_t = unsafe { std::mem::zeroed() };
        call!(self.device.nvml, nvmlComputeInstanceGetInfo_v2, self.handle, &mut info)?;
        Ok((info.id, info.profileId))
    }

    /// Destroys the compute instance.
    ///
    /// # Errors
    /// [`NvmlError`]: "in use" while a process runs in it.
    pub fn destroy(self) -> Result<(), NvmlError> {
        call!(self.device.nvml, nvmlComputeInstanceDestroy, self.handle)
    }
}
