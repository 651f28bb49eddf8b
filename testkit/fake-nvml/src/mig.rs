//! MIG: mode, profiles, GPU instances, compute instances.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings as sys;
use slipway_gpu::nvml::{Placement, codes};

use super::{
    COMPUTE_INSTANCE, DEVICE, Device, GPU_INSTANCE, INVALID, MIG_DEVICE, dispatch, handle, parts, physical_gpu, put,
    put_list,
};

/// The last of NVML's GPU instance profile kinds (`NVML_GPU_INSTANCE_PROFILE_3_SLICE_GFX`).
const LAST_KIND: u32 = 17;
/// `NVML_ERROR_ARGUMENT_VERSION_MISMATCH`.
const VERSION_MISMATCH: u32 = 25;

/// The slices of a compute instance profile kind (`NVML_COMPUTE_INSTANCE_PROFILE_*`); 0 for an unknown kind.
fn compute_slices(kind: u32) -> u32 {
    [1, 2, 3, 4, 7, 8, 6, 1, 7].get(kind as usize).copied().unwrap_or(0)
}

exports! {
    nvmlDeviceGetMigMode(device: Device, current: *mut c_uint, pending: *mut c_uint) state {
        let gpu = physical_gpu(state, device)?;
        gpu.geometry()?;
        let on = u32::from(gpu.mig.enabled);
        put(current, on)?;
        put(pending, on)
    }
    nvmlDeviceSetMigMode(device: Device, mode: c_uint, activation: *mut u32) state {
        let gpu = physical_gpu(state, device)?;
        gpu.geometry()?;
        if mode > 1 { return Err(INVALID); }
        if !gpu.mig.instances.is_empty() && mode == 0 { return Err(codes::IN_USE); }
        if gpu.spec.processes.iter().any(|p| p.at.is_none()) { return put(activation, codes::IN_USE); }
        gpu.mig.enabled = mode == 1;
        put(activation, 0)?;
        state.save()
    }
    nvmlDeviceIsMigDeviceHandle(device: Device, to: *mut c_uint) state {
        let _ = &state;
        put(to, u32::from(parts(MIG_DEVICE, device).is_ok()))
    }
    nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device: Device, to: *mut Device) state {
        let _ = &state;
        put(to, handle(DEVICE, parts(MIG_DEVICE, device)?.0, 0, 0))
    }
    nvmlDeviceGetMigDeviceHandleByIndex(device: Device, index: c_uint, to: *mut Device) state {
        let gpu = physical_gpu(state, device)?;
        let (i, compute) = gpu.mig_devices().get(index as usize).copied().ok_or(codes::NOT_FOUND)?;
        put(to, handle(MIG_DEVICE, gpu.index, gpu.mig.instances[i].id, compute))
    }
    nvmlDeviceGetGpuInstanceId(device: Device, to: *mut c_uint) state {
        let _ = &state;
        put(to, parts(MIG_DEVICE, device)?.1)
    }
    nvmlDeviceGetComputeInstanceId(device: Device, to: *mut c_uint) state {
        let _ = &state;
        put(to, parts(MIG_DEVICE, device)?.2)
    }
    nvmlDeviceGetAttributes_v2(device: Device, to: *mut sys::nvmlDeviceAttributes_t) state {
        let (gpu, id, compute) = parts(MIG_DEVICE, device).map_err(|_| codes::NOT_SUPPORTED)?;
        let gpu = state.gpu(gpu)?;
        let instance = gpu.instance(id)?.clone();
        let p = gpu.geometry()?.profile(&instance.instance.profile).ok_or(codes::NOT_FOUND)?;
        let kind = instance.compute.iter().find(|(c, _)| *c == compute).map(|(_, kind)| *kind).ok_or(codes::NOT_FOUND)?;
        let slices = compute_slices(kind).min(p.compute);
        put(to, sys::nvmlDeviceAttributes_t {
            multiprocessorCount: p.multiprocessors * slices / p.compute, sharedCopyEngineCount: p.engines.copy,
            sharedDecoderCount: p.engines.decoders, sharedEncoderCount: p.engines.encoders, sharedJpegCount: p.engines.jpeg,
            sharedOfaCount: p.engines.ofa, gpuInstanceSliceCount: p.compute, computeInstanceSliceCount: slices, memorySizeMB: p.memory_mib,
        })
    }
    nvmlDeviceGetGpuInstanceProfileInfo(device: Device, kind: c_uint, to: *mut sys::nvmlGpuInstanceProfileInfo_t) state {
        if kind > LAST_KIND { return Err(INVALID); }
        let p = physical_gpu(state, device)?.geometry()?.profiles.iter().find(|p| p.kind == kind).ok_or(codes::NOT_SUPPORTED)?;
        put(to, sys::nvmlGpuInstanceProfileInfo_t {
            id: p.id, isP2pSupported: 0, sliceCount: p.compute, instanceCount: p.limit, multiprocessorCount: p.multiprocessors,
            copyEngineCount: p.engines.copy, decoderCount: p.engines.decoders, encoderCount: p.engines.encoders,
            jpegCount: p.engines.jpeg, ofaCount: p.engines.ofa, memorySizeMB: p.memory_mib,
        })
    }
    nvmlDeviceGetGpuInstanceProfileInfoV(device: Device, kind: c_uint, to: *mut sys::nvmlGpuInstanceProfileInfo_v2_t) state {
        if kind > LAST_KIND || to.is_null() { return Err(INVALID); }
        // SAFETY: not null, and the caller must pass a pointer to the structure, whose first field is its version.
        let version = unsafe { (*to).version };
        if version != size_of::<sys::nvmlGpuInstanceProfileInfo_v2_t>() as u32 | 2 << 24 { return Err(VERSION_MISMATCH); }
        let p = physical_gpu(state, device)?.geometry()?.profiles.iter().find(|p| p.kind == kind).ok_or(codes::NOT_SUPPORTED)?;
        let mut name = [0; 96];
        for (c, byte) in name.iter_mut().take(95).zip(format!("MIG {}", p.name).bytes()) {
            *c = byte as _;
        }
        put(to, sys::nvmlGpuInstanceProfileInfo_v2_t {
            version, id: p.id, isP2pSupported: 0, sliceCount: p.compute, instanceCount: p.limit,
            multiprocessorCount: p.multiprocessors, copyEngineCount: p.engines.copy, decoderCount: p.engines.decoders,
            encoderCount: p.engines.encoders, jpegCount: p.engines.jpeg, ofaCount: p.engines.ofa, memorySizeMB: p.memory_mib, name,
        })
    }
    nvmlDeviceGetGpuInstancePossiblePlacements_v2(device: Device, profile: c_uint, to: *mut sys::nvmlGpuInstancePlacement_t, count: *mut c_uint) state {
        let p = physical_gpu(state, device)?.geometry()?.profiles.iter().find(|p| p.id == profile).ok_or(INVALID)?;
        let all: Vec<_> = p.starts.iter().map(|s| sys::nvmlGpuInstancePlacement_t { start: *s, size: p.size }).collect();
        put_list(&all, count, to)
    }
    nvmlDeviceGetGpuInstanceById(device: Device, id: c_uint, to: *mut sys::nvmlGpuInstance_t) state {
        let gpu = physical_gpu(state, device)?;
        gpu.instance(id)?;
        put(to, handle(GPU_INSTANCE, gpu.index, id, 0))
    }
    nvmlGpuInstanceGetComputeInstanceById(instance: sys::nvmlGpuInstance_t, id: c_uint, to: *mut sys::nvmlComputeInstance_t) state {
        let (index, gpu_instance, _) = parts(GPU_INSTANCE, instance)?;
        if !state.gpu(index)?.instance(gpu_instance)?.compute.iter().any(|(c, _)| *c == id) { return Err(codes::NOT_FOUND); }
        put(to, handle(COMPUTE_INSTANCE, index, gpu_instance, id))
    }
    nvmlDeviceGetGpuInstances(device: Device, profile: c_uint, to: *mut sys::nvmlGpuInstance_t, count: *mut c_uint) state {
        let gpu = physical_gpu(state, device)?;
        if !gpu.mig.enabled { return Err(codes::NOT_SUPPORTED); }
        let name = gpu.geometry()?.profiles.iter().find(|p| p.id == profile).ok_or(INVALID)?.name.clone();
        let mine = gpu.mig.instances.iter().filter(|i| i.instance.profile == name);
        let all: Vec<sys::nvmlGpuInstance_t> = mine.map(|i| handle(GPU_INSTANCE, gpu.index, i.id, 0)).collect();
        put_list(&all, count, to)
    }
    nvmlDeviceCreateGpuInstanceWithPlacement(device: Device, profile: c_uint, at: *const sys::nvmlGpuInstancePlacement_t, to: *mut sys::nvmlGpuInstance_t) state {
        if at.is_null() { return Err(INVALID); }
        // SAFETY: not null, and the caller must pass a pointer to a placement.
        let at = unsafe { at.read() };
        let gpu = physical_gpu(state, device)?;
        let id = gpu.create(profile, Some(Placement { start: at.start, size: at.size }))?;
        put(to, handle(GPU_INSTANCE, gpu.index, id, 0))?;
        state.save()
    }
    nvmlDeviceCreateGpuInstance(device: Device, profile: c_uint, to: *mut sys::nvmlGpuInstance_t) state {
        let gpu = physical_gpu(state, device)?;
        let id = gpu.create(profile, None)?;
        put(to, handle(GPU_INSTANCE, gpu.index, id, 0))?;
        state.save()
    }
    nvmlGpuInstanceGetInfo(instance: sys::nvmlGpuInstance_t, to: *mut sys::nvmlGpuInstanceInfo_t) state {
        let (index, id, _) = parts(GPU_INSTANCE, instance)?;
        let gpu = state.gpu(index)?;
        let found = gpu.instance(id)?.instance.clone();
        let profile = gpu.geometry()?.profile(&found.profile).ok_or(codes::NOT_FOUND)?.id;
        let placement = sys::nvmlGpuInstancePlacement_t { start: found.at.start, size: found.at.size };
        put(to, sys::nvmlGpuInstanceInfo_t { device: handle(DEVICE, index, 0, 0), id, profileId: profile, placement })
    }
    nvmlGpuInstanceDestroy(instance: sys::nvmlGpuInstance_t) state {
        let (index, id, _) = parts(GPU_INSTANCE, instance)?;
        let gpu = state.gpu(index)?;
        let found = gpu.instance(id)?.clone();
        if !found.compute.is_empty() || gpu.busy(&found) { return Err(codes::IN_USE); }
        gpu.mig.instances.retain(|i| i.id != id);
        state.save()
    }
    nvmlGpuInstanceGetComputeInstanceProfileInfo(instance: sys::nvmlGpuInstance_t, kind: c_uint, _engine: c_uint, to: *mut sys::nvmlComputeInstanceProfileInfo_t) state {
        let (index, id, _) = parts(GPU_INSTANCE, instance)?;
        let gpu = state.gpu(index)?;
        let name = gpu.instance(id)?.instance.profile.clone();
        let p = gpu.geometry()?.profile(&name).ok_or(codes::NOT_FOUND)?;
        let slices = compute_slices(kind);
        if slices == 0 { return Err(INVALID); }
        if slices > p.compute || kind > 6 { return Err(codes::NOT_SUPPORTED); }
        put(to, sys::nvmlComputeInstanceProfileInfo_t {
            id: kind, sliceCount: slices, instanceCount: p.compute / slices, multiprocessorCount: p.multiprocessors * slices / p.compute,
            sharedCopyEngineCount: p.compute, sharedDecoderCount: 0, sharedEncoderCount: 0, sharedJpegCount: 0, sharedOfaCount: 0,
        })
    }
    nvmlGpuInstanceGetComputeInstances(instance: sys::nvmlGpuInstance_t, profile: c_uint, to: *mut sys::nvmlComputeInstance_t, count: *mut c_uint) state {
        let (index, id, _) = parts(GPU_INSTANCE, instance)?;
        let found = state.gpu(index)?.instance(id)?;
        let mine = found.compute.iter().filter(|(_, p)| *p == profile);
        let all: Vec<sys::nvmlComputeInstance_t> = mine.map(|(c, _)| handle(COMPUTE_INSTANCE, index, id, *c)).collect();
        put_list(&all, count, to)
    }
    nvmlGpuInstanceCreateComputeInstance(instance: sys::nvmlGpuInstance_t, profile: c_uint, to: *mut sys::nvmlComputeInstance_t) state {
        let (index, id, _) = parts(GPU_INSTANCE, instance)?;
        let gpu = state.gpu(index)?;
        let name = gpu.instance(id)?.instance.profile.clone();
        let capacity = gpu.geometry()?.profile(&name).ok_or(codes::NOT_FOUND)?.compute;
        let found = gpu.instance(id)?;
        let used: u32 = found.compute.iter().map(|(_, p)| compute_slices(*p)).sum();
        if compute_slices(profile) == 0 { return Err(INVALID); }
        if used + compute_slices(profile) > capacity { return Err(codes::INSUFFICIENT_RESOURCES); }
        let compute = (0..).find(|c| found.compute.iter().all(|(have, _)| have != c)).unwrap_or(0);
        found.compute.push((compute, profile));
        put(to, handle(COMPUTE_INSTANCE, index, id, compute))?;
        state.save()
    }
    nvmlComputeInstanceGetInfo_v2(instance: sys::nvmlComputeInstance_t, to: *mut sys::nvmlComputeInstanceInfo_t) state {
        let (index, id, compute) = parts(COMPUTE_INSTANCE, instance)?;
        let found = state.gpu(index)?.instance(id)?;
        let profile = found.compute.iter().find(|(c, _)| *c == compute).ok_or(codes::NOT_FOUND)?.1;
        put(to, sys::nvmlComputeInstanceInfo_t {
            device: handle(DEVICE, index, 0, 0), gpuInstance: handle(GPU_INSTANCE, index, id, 0), id: compute, profileId: profile,
            placement: sys::nvmlComputeInstancePlacement_t { start: 0, size: 1 },
        })
    }
    nvmlComputeInstanceDestroy(instance: sys::nvmlComputeInstance_t) state {
        let (index, id, compute) = parts(COMPUTE_INSTANCE, instance)?;
        let gpu = state.gpu(index)?;
        let found = gpu.instance(id)?.clone();
        if gpu.busy(&found) { return Err(codes::IN_USE); }
        gpu.instance(id)?.compute.retain(|(c, _)| *c != compute);
        state.save()
    }
}
