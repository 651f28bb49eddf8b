//! NVML for simulated GPUs from a fixture, so that slipway's own code runs without a GPU. The binary links it and calls it through
//! [`simulator`]; other programs load the shared library as their `libnvidia-ml.so.1`. An executable does not export its symbols, so
//! the linked functions never replace those of a driver's library in the same process.
//!
//! The fixture is selected by [`slipwayFakeFixture`] before `nvmlInit`, or by `SLIPWAY_FAKE_NVML_FIXTURE` (a built-in
//! name or a file). `SLIPWAY_FAKE_NVML_STATE` names a file that stores MIG instances and settings across processes. Errors can be
//! injected with [`slipwayFakeInject`]. Semantics follow nvml.h: return codes, the two-call protocol, struct versions.
#![allow(unsafe_code)] // FFI: the C ABI of NVML; every pointer is checked for null, otherwise callers must follow nvml.h
#![allow(non_snake_case)] // NVML's own names
#![allow(clippy::missing_safety_doc)] // nvml.h documents the requirements of each function
#![allow(missing_docs)] // nvml.h documents the functions

mod accelerator;
mod control;
mod fixture;
mod state;
mod table;

use std::ffi::{CStr, c_char, c_uint, c_ulong, c_ulonglong};
use std::time::{Duration, Instant};

pub use accelerator::simulate;
pub use fixture::FIXTURES;
use nvml_wrapper_sys::bindings as sys;
use parking_lot::{Mutex, MutexGuard};
use slipway_gpu::nvml::codes;
use state::{EventSet, Gpu, NvmlResult, State};
pub use table::simulator;

static MACHINE: Mutex<Option<State>> = Mutex::new(None);
static SELECTED_FIXTURE: Mutex<Option<String>> = Mutex::new(None);
static INJECTED: Mutex<Vec<(String, u32)>> = Mutex::new(Vec::new());

const UNINITIALIZED: u32 = 1;
const INVALID: u32 = 2;
const VERSION: u32 = 25;

/// Handles encode the kind of object in the high bits, and its indices in the low bits.
const DEVICE: usize = 1 << 24;
const MIG_DEVICE: usize = 2 << 24;
const GPU_INSTANCE: usize = 3 << 24;
const COMPUTE_INSTANCE: usize = 4 << 24;
const EVENT_SET: usize = 5 << 24;

fn handle<T>(kind: usize, gpu: usize, instance: u32, compute: u32) -> *mut T {
    (kind | gpu << 16 | (instance as usize) << 8 | compute as usize) as *mut T
}

/// Decodes a handle of the given kind into GPU, GPU instance and compute instance.
fn parts<T>(kind: usize, handle: *mut T) -> Result<(usize, u32, u32), u32> {
    let number = handle as usize;
    let low = |n: usize| u32::try_from(n & 0xff).unwrap_or(0);
    if number >> 24 == kind >> 24 { Ok((number >> 16 & 0xff, low(number >> 8), low(number))) } else { Err(INVALID) }
}

/// The GPU index of a device handle; for a MIG device, that of its parent.
fn gpu_index(device: sys::nvmlDevice_t) -> Result<usize, u32> {
    parts(DEVICE, device).or_else(|_| parts(MIG_DEVICE, device)).map(|(gpu, ..)| gpu)
}

/// The GPU of a device handle; fails for a MIG device.
fn physical_gpu(state: &mut State, device: sys::nvmlDevice_t) -> Result<&mut Gpu, u32> {
    let (gpu, ..) = parts(DEVICE, device)?;
    state.gpu(gpu)
}

fn put<T>(to: *mut T, value: T) -> NvmlResult {
    if to.is_null() {
        return Err(INVALID);
    }
    // SAFETY: not null, and the caller must pass a pointer to a T.
    unsafe { to.write(value) };
    Ok(())
}

fn put_text(to: *mut c_char, capacity: c_uint, text: &str) -> NvmlResult {
    if to.is_null() {
        return Err(INVALID);
    }
    if (capacity as usize) <= text.len() {
        return Err(codes::INSUFFICIENT_SIZE);
    }
    // SAFETY: the caller guarantees `capacity` bytes, and `text` with its final 0 fits into them.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}

/// NVML's two-call protocol: writes the number of items, and the items themselves if they fit.
fn put_list<T: Copy>(items: &[T], count: *mut c_uint, to: *mut T) -> NvmlResult {
    if count.is_null() {
        return Err(INVALID);
    }
    let len = c_uint::try_from(items.len()).map_err(|_| INVALID)?;
    // SAFETY: not null; the caller passes the capacity in it.
    let capacity = unsafe { count.replace(len) };
    if len == 0 {
        return Ok(());
    }
    if to.is_null() || capacity < len {
        return Err(codes::INSUFFICIENT_SIZE);
    }
    // SAFETY: not null, and the caller guarantees `capacity` items, which are enough.
    unsafe { std::ptr::copy_nonoverlapping(items.as_ptr(), to, items.len()) };
    Ok(())
}

fn injected(name: &str, state: Option<&State>) -> NvmlResult {
    let set = INJECTED.lock().iter().find(|(n, _)| n == name).map(|(_, code)| *code);
    let code = set.or_else(|| state.and_then(|s| s.fixture.inject.get(name).copied()));
    code.map_or(Ok(()), Err)
}

/// Runs an NVML function with the current state and returns its code, or an injected one.
fn dispatch(name: &str, call: impl FnOnce(&mut State) -> NvmlResult) -> u32 {
    let mut machine = MACHINE.lock();
    let state = loop {
        let Some(state) = machine.as_mut() else { return UNINITIALIZED };
        state.control.refresh();
        if !state.control.hanging.contains(name) {
            break state;
        }
        // Other functions respond while this one hangs.
        MutexGuard::unlocked(&mut machine, || std::thread::sleep(Duration::from_millis(5)));
    };
    if state.control.unloaded {
        state.unload();
        return codes::DRIVER_NOT_LOADED;
    }
    match injected(name, Some(state)).and_then(|()| call(state)) {
        Ok(()) => 0,
        Err(code) => code,
    }
}

fn init(name: &str) -> u32 {
    let mut machine = MACHINE.lock();
    if machine.is_none() {
        let selected = SELECTED_FIXTURE.lock().clone().or_else(|| std::env::var("SLIPWAY_FAKE_NVML_FIXTURE").ok());
        match State::load(selected.as_deref().unwrap_or("t4")) {
            Ok(state) => *machine = Some(state),
            Err(error) => {
                eprintln!("fake NVML: {error}");
                return codes::DRIVER_NOT_LOADED;
            }
        }
    }
    let Some(state) = machine.as_mut() else { return codes::DRIVER_NOT_LOADED };
    state.control.refresh();
    let unloaded = if state.control.unloaded {
        state.unload();
        Err(codes::DRIVER_NOT_LOADED)
    } else {
        Ok(())
    };
    match injected(name, Some(state)).and(unloaded) {
        Ok(()) => {
            state.users += 1;
            0
        }
        Err(code) => {
            // The next attempt starts a new machine, unless this one is in use.
            if state.users == 0 {
                *machine = None;
            }
            code
        }
    }
}

/// Selects the fixture of the next `nvmlInit`. Returns 0, or 2 if `name` is null or names no valid fixture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slipwayFakeFixture(name: *const c_char) -> u32 {
    if name.is_null() {
        return INVALID;
    }
    // SAFETY: not null, and the caller must pass a string that ends with 0.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    if let Err(error) = fixture::Fixture::load(&name) {
        eprintln!("fake NVML: {error}");
        return INVALID;
    }
    *SELECTED_FIXTURE.lock() = Some(name);
    0
}

/// Makes the function of that name fail with `code` from now on; 0 removes the injected error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slipwayFakeInject(name: *const c_char, code: u32) -> u32 {
    if name.is_null() {
        return INVALID;
    }
    // SAFETY: not null, and the caller must pass a string that ends with 0.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    let mut list = INJECTED.lock();
    list.retain(|(n, _)| *n != name);
    if code != 0 {
        list.push((name, code));
    }
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> u32 {
    init("nvmlInit_v2")
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> u32 {
    init("nvmlInitWithFlags")
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> u32 {
    let mut machine = MACHINE.lock();
    let Some(state) = machine.as_mut() else { return UNINITIALIZED };
    state.users -= 1;
    if state.users == 0 {
        *machine = None;
    }
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(code: u32) -> *const c_char {
    match code {
        0 => c"Success".as_ptr(),
        1 => c"Uninitialized".as_ptr(),
        2 => c"Invalid Argument".as_ptr(),
        3 => c"Not Supported".as_ptr(),
        4 => c"Insufficient Permissions".as_ptr(),
        6 => c"Not Found".as_ptr(),
        7 => c"Insufficient Size".as_ptr(),
        9 => c"Driver Not Loaded".as_ptr(),
        10 => c"Timeout".as_ptr(),
        13 => c"Function Not Found".as_ptr(),
        15 => c"GPU is lost".as_ptr(),
        19 => c"In use by another client".as_ptr(),
        23 => c"Insufficient Resources".as_ptr(),
        25 => c"Argument version mismatch".as_ptr(),
        _ => c"Unknown Error".as_ptr(),
    }
}

macro_rules! exports {
    ($($name:ident($($argument:ident: $kind:ty),*) $state:ident $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            pub(crate) unsafe extern "C" fn $name($($argument: $kind),*) -> u32 {
                dispatch(stringify!($name), |$state| $body)
            }
        )*
    };
}

// Declared after the macro, which they use.
mod mig;
mod settings;

type Device = sys::nvmlDevice_t;

/// Defines functions that return one number for a physical GPU.
macro_rules! numbers {
    ($($name:ident: $kind:ty = |$state:ident, $gpu:ident| $value:expr;)*) => {
        exports! { $($name(device: Device, to: *mut $kind) $state {
            let $gpu = parts(DEVICE, device)?.0;
            $state.gpu($gpu)?;
            put(to, $value)
        })* }
    };
}

fn spec(state: &State, gpu: usize) -> &fixture::Gpu {
    &state.gpus[gpu].spec
}

fn supported<T: Copy>(value: Option<T>) -> Result<T, u32> {
    value.ok_or(codes::NOT_SUPPORTED)
}

fn milliwatts(state: &State, gpu: usize) -> u32 {
    let (idle, limit) = (spec(state, gpu).power_idle * 1000, state.gpus[gpu].power_limit());
    idle + limit.saturating_sub(idle) / 100 * 9 / 10 * state.utilization(gpu)
}

numbers! {
    nvmlDeviceGetMinorNumber: c_uint = |state, gpu| { let _ = &state; c_uint::try_from(gpu).unwrap_or(0) };
    nvmlDeviceGetIndex: c_uint = |state, gpu| { let _ = &state; c_uint::try_from(gpu).unwrap_or(0) };
    nvmlDeviceGetArchitecture: c_uint = |state, gpu| spec(state, gpu).architecture;
    nvmlDeviceGetNumGpuCores: c_uint = |state, gpu| spec(state, gpu).cores;
    nvmlDeviceGetMemoryBusWidth: c_uint = |state, gpu| spec(state, gpu).bus_width;
    nvmlDeviceGetPowerUsage: c_uint = |state, gpu| milliwatts(state, gpu);
    nvmlDeviceGetPowerManagementDefaultLimit: c_uint = |state, gpu| { let a = spec(state, gpu); a.power_default.unwrap_or(a.power_limit) * 1000 };
    nvmlDeviceGetTotalEnergyConsumption: c_ulonglong = |state, gpu| {
        u64::from(milliwatts(state, gpu)) * (3600 + state.elapsed().as_secs())
    };
    nvmlDeviceGetCurrentClocksThrottleReasons: c_ulonglong = |state, gpu| {
        let idle = u64::from(state.utilization(gpu) == 0);
        if state.throttle(gpu) != 0 { state.throttle(gpu) } else { idle }
    };
    nvmlDeviceGetCurrPcieLinkGeneration: c_uint = |state, gpu| if state.utilization(gpu) == 0 { 1 } else { spec(state, gpu).pcie_generation };
    nvmlDeviceGetMaxPcieLinkGeneration: c_uint = |state, gpu| spec(state, gpu).pcie_generation;
    nvmlDeviceGetCurrPcieLinkWidth: c_uint = |state, gpu| spec(state, gpu).pcie_width;
    nvmlDeviceGetMaxPcieLinkWidth: c_uint = |state, gpu| { let a = spec(state, gpu); a.pcie_width_max.unwrap_or(a.pcie_width) };
    nvmlDeviceGetPcieReplayCounter: c_uint = |state, gpu| spec(state, gpu).pcie_replays;
    nvmlDeviceGetPerformanceState: c_uint = |state, gpu| if state.utilization(gpu) == 0 { 8 } else { 0 };
    nvmlDeviceGetFanSpeed: c_uint = |state, gpu| supported(spec(state, gpu).fan)?;
    nvmlDeviceGetMaxMigDeviceCount: c_uint = |state, gpu| {
        state.gpus[gpu].geometry.as_ref().map_or(0, |g| g.compute)
    };
    nvmlDeviceGetSupportedEventTypes: c_ulonglong = |state, gpu| { let _ = (&state, gpu); 0x1f };
}

/// The PCI record of a GPU with the given bus id.
fn pci(gpu: &Gpu, bus_id: &str) -> sys::nvmlPciInfo_t {
    let mut info = sys::nvmlPciInfo_t {
        busIdLegacy: [0; 16],
        domain: 0,
        bus: c_uint::try_from(0x10 + 0x10 * gpu.index).unwrap_or(0),
        device: 0,
        pciDeviceId: gpu.spec.pci_id,
        pciSubSystemId: 0x16c1_10de,
        busId: [0; 32],
    };
    for (to, from) in info.busId.iter_mut().zip(bus_id.bytes()) {
        *to = from as c_char;
    }
    for (to, from) in info.busIdLegacy.iter_mut().zip(bus_id[4..].bytes()) {
        *to = from as c_char;
    }
    info
}

/// The registration of a GPU with its NVLink fabric; the control file overrides the fixture's state.
fn fabric(state: &mut State, device: Device) -> Result<sys::nvmlGpuFabricInfoV_t, u32> {
    use fixture::FabricState;
    let gpu = physical_gpu(state, device)?;
    let (spec, index) = (gpu.spec.fabric.clone(), gpu.index);
    let spec = spec.ok_or(codes::NOT_SUPPORTED)?;
    let (number, status) = match state.control.fabric.get(&index).copied().unwrap_or(spec.state) {
        FabricState::NotStarted => (sys::NVML_GPU_FABRIC_STATE_NOT_STARTED, 0),
        FabricState::InProgress => (sys::NVML_GPU_FABRIC_STATE_IN_PROGRESS, 0),
        FabricState::Completed => (sys::NVML_GPU_FABRIC_STATE_COMPLETED, 0),
        FabricState::Failed => (sys::NVML_GPU_FABRIC_STATE_COMPLETED, 999),
    };
    let mut cluster = [0; 16];
    let digits = spec.cluster.unwrap_or_default();
    for (at, byte) in cluster.iter_mut().enumerate() {
        *byte = digits.get(2 * at..2 * at + 2).and_then(|d| u8::from_str_radix(d, 16).ok()).unwrap_or(0);
    }
    Ok(sys::nvmlGpuFabricInfoV_t {
        version: 0,
        clusterUuid: cluster,
        status,
        cliqueId: spec.clique,
        state: u8::try_from(number).unwrap_or(0),
        healthMask: spec.health,
        healthSummary: 0,
    })
}

fn pids(state: &mut State, device: Device) -> Result<Vec<sys::nvmlProcessInfo_t>, u32> {
    let index = gpu_index(device)?;
    let gpu = state.gpu(index)?;
    let instance_of =
        |at: Option<u32>| gpu.mig.instances.iter().find(|i| at == Some(i.instance.at.start)).map(|i| i.id);
    let one = |p: &fixture::Process| sys::nvmlProcessInfo_t {
        pid: p.pid,
        usedGpuMemory: p.memory_mib << 20,
        gpuInstanceId: instance_of(p.at).unwrap_or(u32::MAX),
        computeInstanceId: instance_of(p.at).map_or(u32::MAX, |_| 0),
    };
    // A process of an instance exists only while that instance exists.
    Ok(gpu.spec.processes.iter().filter(|p| p.at.is_none() || instance_of(p.at).is_some()).map(one).collect())
}

fn used_mib(gpu: &Gpu) -> u64 {
    gpu.spec.processes.iter().map(|p| p.memory_mib).sum()
}

exports! {
    nvmlSystemGetDriverVersion(to: *mut c_char, capacity: c_uint) state { put_text(to, capacity, &state.fixture.driver) }
    nvmlSystemGetNVMLVersion(to: *mut c_char, capacity: c_uint) state { put_text(to, capacity, &state.fixture.nvml) }
    nvmlSystemGetCudaDriverVersion(to: *mut i32) state { put(to, state.fixture.cuda) }
    nvmlSystemGetCudaDriverVersion_v2(to: *mut i32) state { put(to, state.fixture.cuda) }
    nvmlSystemGetProcessName(pid: c_uint, to: *mut c_char, capacity: c_uint) state {
        let mut all = state.gpus.iter().flat_map(|g| &g.spec.processes);
        let process = all.find(|p| p.pid == pid).ok_or(codes::NOT_FOUND)?;
        put_text(to, capacity, &process.name)
    }
    nvmlDeviceGetCount_v2(to: *mut c_uint) state { put(to, c_uint::try_from(state.gpus.len()).unwrap_or(0)) }
    nvmlDeviceGetHandleByIndex_v2(index: c_uint, to: *mut Device) state {
        state.gpu(index as usize)?;
        put(to, handle(DEVICE, index as usize, 0, 0))
    }
    nvmlDeviceGetHandleByUUID(uuid: *const c_char, to: *mut Device) state {
        if uuid.is_null() { return Err(INVALID); }
        // SAFETY: not null, and the caller must pass a string that ends with 0.
        let uuid = unsafe { CStr::from_ptr(uuid) }.to_string_lossy();
        for gpu in &state.gpus {
            if gpu.uuid() == uuid { return put(to, handle(DEVICE, gpu.index, 0, 0)); }
            for (i, compute) in gpu.mig_devices() {
                let instance = &gpu.mig.instances[i];
                if gpu.mig_uuid(instance, compute) == uuid { return put(to, handle(MIG_DEVICE, gpu.index, instance.id, compute)); }
            }
        }
        Err(codes::NOT_FOUND)
    }
    nvmlDeviceGetHandleByPciBusId_v2(bus_id: *const c_char, to: *mut Device) state {
        if bus_id.is_null() { return Err(INVALID); }
        // SAFETY: not null, and the caller must pass a string that ends with 0.
        let bus_id = unsafe { CStr::from_ptr(bus_id) }.to_string_lossy().to_ascii_uppercase();
        let gpu = state.gpus.iter().find(|g| g.bus_id() == bus_id).ok_or(codes::NOT_FOUND)?;
        put(to, handle(DEVICE, gpu.index, 0, 0))
    }
    nvmlDeviceGetName(device: Device, to: *mut c_char, capacity: c_uint) state {
        let index = gpu_index(device)?;
        let name = state.gpu(index)?.spec.name.clone();
        put_text(to, capacity, &name)
    }
    nvmlDeviceGetUUID(device: Device, to: *mut c_char, capacity: c_uint) state {
        if let Ok((gpu, id, compute)) = parts(MIG_DEVICE, device) {
            let gpu = state.gpu(gpu)?;
            let instance = gpu.instance(id)?.clone();
            return put_text(to, capacity, &gpu.mig_uuid(&instance, compute));
        }
        let uuid = physical_gpu(state, device)?.uuid();
        put_text(to, capacity, &uuid)
    }
    nvmlDeviceGetBrand(device: Device, to: *mut c_uint) state {
        let name = &physical_gpu(state, device)?.spec.name;
        put(to, if name.starts_with("Tesla") { 2 } else if name.contains("RTX") { 12 } else { 14 })
    }
    nvmlDeviceGetGpuFabricInfo(device: Device, to: *mut sys::nvmlGpuFabricInfo_t) state {
        let info = fabric(state, device)?;
        let (clusterUuid, status, cliqueId, state) = (info.clusterUuid, info.status, info.cliqueId, info.state);
        put(to, sys::nvmlGpuFabricInfo_t { clusterUuid, status, cliqueId, state })
    }
    nvmlDeviceGetGpuFabricInfoV(device: Device, to: *mut sys::nvmlGpuFabricInfoV_t) state {
        if to.is_null() { return Err(INVALID); }
        // SAFETY: not null; the version is the first field in all versions of the struct.
        let version = unsafe { to.cast::<c_uint>().read() };
        let info = sys::nvmlGpuFabricInfoV_t { version, ..fabric(state, device)? };
        if version as usize == size_of::<sys::nvmlGpuFabricInfo_v3_t>() | 3 << 24 { return put(to, info); }
        if version as usize != size_of::<sys::nvmlGpuFabricInfo_v2_t>() | 2 << 24 { return Err(VERSION); }
        let (clusterUuid, status, cliqueId, state, healthMask) = (info.clusterUuid, info.status, info.cliqueId, info.state, info.healthMask);
        put(to.cast(), sys::nvmlGpuFabricInfo_v2_t { version, clusterUuid, status, cliqueId, state, healthMask })
    }
    nvmlDeviceGetSerial(device: Device, to: *mut c_char, capacity: c_uint) state {
        let index = physical_gpu(state, device)?.index;
        put_text(to, capacity, &format!("165{:010}", 4_000 + index))
    }
    nvmlDeviceGetCudaComputeCapability(device: Device, major: *mut i32, minor: *mut i32) state {
        let [a, b] = physical_gpu(state, device)?.spec.compute_capability;
        put(major, a)?;
        put(minor, b)
    }
    nvmlDeviceGetMemoryInfo(device: Device, to: *mut sys::nvmlMemory_t) state {
        let gpu = physical_gpu(state, device)?;
        let (total, used) = (gpu.spec.memory_mib << 20, used_mib(gpu) << 20);
        put(to, sys::nvmlMemory_t { total, used: used + (600 << 20), free: total - used - (600 << 20) })
    }
    nvmlDeviceGetMemoryInfo_v2(device: Device, to: *mut sys::nvmlMemory_v2_t) state {
        if to.is_null() { return Err(INVALID); }
        // SAFETY: not null; the version is the first field in all versions of the struct.
        let version = unsafe { to.cast::<c_uint>().read() };
        if version as usize != size_of::<sys::nvmlMemory_v2_t>() | 2 << 24 { return Err(VERSION); }
        let gpu = physical_gpu(state, device)?;
        let (total, used, reserved) = (gpu.spec.memory_mib << 20, used_mib(gpu) << 20, 600 << 20);
        put(to, sys::nvmlMemory_v2_t { version, total, reserved, used, free: total - used - reserved })
    }
    nvmlDeviceGetUtilizationRates(device: Device, to: *mut sys::nvmlUtilization_t) state {
        let gpu = physical_gpu(state, device)?;
        // As on real GPUs, not supported while MIG is enabled.
        if gpu.mig.enabled { return Err(codes::NOT_SUPPORTED); }
        let index = gpu.index;
        let used = state.utilization(index);
        put(to, sys::nvmlUtilization_t { gpu: used, memory: used * 6 / 10 })
    }
    nvmlDeviceGetEncoderUtilization(device: Device, to: *mut c_uint, period: *mut c_uint) state {
        physical_gpu(state, device)?;
        put(to, 0)?;
        put(period, 1_000_000)
    }
    nvmlDeviceGetDecoderUtilization(device: Device, to: *mut c_uint, period: *mut c_uint) state {
        physical_gpu(state, device)?;
        put(to, 0)?;
        put(period, 1_000_000)
    }
    nvmlDeviceGetFieldValues(device: Device, count: i32, fields: *mut sys::nvmlFieldValue_t) state {
        let index = physical_gpu(state, device)?.index;
        if fields.is_null() || count < 1 { return Err(INVALID); }
        for at in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: the caller guarantees `count` fields.
            let field = unsafe { &mut *fields.add(at) };
            field.nvmlReturn = codes::NOT_SUPPORTED;
            if field.fieldId == sys::field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION {
                field.nvmlReturn = 0;
                field.valueType = 1; // NVML_VALUE_TYPE_UNSIGNED_INT
                field.value.uiVal = state.control.actions.get(&index).copied().unwrap_or(0);
            }
        }
        Ok(())
    }
    nvmlDeviceGetClockInfo(device: Device, which: c_uint, to: *mut c_uint) state {
        let index = physical_gpu(state, device)?.index;
        let (a, idle) = (spec(state, index), state.utilization(index) == 0);
        match which {
            0 | 1 => {
                let free = if idle { 345.min(a.clock_sm) } else if state.throttle(index) != 0 { a.clock_sm * 6 / 10 } else { a.clock_sm };
                put(to, settings::locked(free, state.gpus[index].settings.graphics_clocks))
            }
            2 => put(to, settings::locked(a.clock_memory, state.gpus[index].settings.memory_clocks)),
            3 => put(to, a.clock_sm * 8 / 10),
            _ => Err(INVALID),
        }
    }
    nvmlDeviceGetMaxClockInfo(device: Device, which: c_uint, to: *mut c_uint) state {
        let a = &physical_gpu(state, device)?.spec;
        match which {
            0 | 1 => put(to, a.clock_sm),
            2 => put(to, a.clock_memory),
            3 => put(to, a.clock_sm * 8 / 10),
            _ => Err(INVALID),
        }
    }
    nvmlDeviceGetTemperature(device: Device, sensor: c_uint, to: *mut c_uint) state {
        if sensor != 0 { return Err(INVALID); }
        let index = physical_gpu(state, device)?.index;
        let a = spec(state, index);
        let celsius = if state.throttle(index) & 0x60 != 0 { a.temperature_slowdown } else { a.temperature_idle + (a.temperature_slowdown - a.temperature_idle) * state.utilization(index) * 6 / 1000 };
        put(to, celsius)
    }
    nvmlDeviceGetTemperatureThreshold(device: Device, which: c_uint, to: *mut c_uint) state {
        let a = &physical_gpu(state, device)?.spec;
        match which {
            0 => put(to, a.temperature_shutdown),
            1 => put(to, a.temperature_slowdown),
            _ => Err(codes::NOT_SUPPORTED),
        }
    }
    nvmlDeviceGetTotalEccErrors(device: Device, kind: c_uint, _counter: c_uint, to: *mut c_ulonglong) state {
        let a = &physical_gpu(state, device)?.spec;
        supported(a.ecc.filter(|on| *on))?;
        put(to, if kind == 1 { a.ecc_uncorrected } else { a.ecc_uncorrected * 2 })
    }
    nvmlDeviceGetRemappedRows(device: Device, corrected: *mut c_uint, uncorrected: *mut c_uint, pending: *mut c_uint, failed: *mut c_uint) state {
        let a = &physical_gpu(state, device)?.spec;
        supported((a.architecture >= 7 && a.ecc.is_some()).then_some(()))?;
        put(corrected, 0)?;
        put(uncorrected, a.remapped_rows)?;
        put(pending, u32::from(a.remapping_pending))?;
        put(failed, 0)
    }
    nvmlDeviceGetPciInfo_v3(device: Device, to: *mut sys::nvmlPciInfo_t) state {
        let index = gpu_index(device)?;
        // The address of a lost GPU can still be read.
        let gpu = state.gpus.get(index).ok_or(INVALID)?;
        put(to, pci(gpu, &gpu.bus_id()))
    }
    nvmlDeviceGetPcieThroughput(device: Device, counter: c_uint, to: *mut c_uint) state {
        let index = physical_gpu(state, device)?.index;
        if counter > 1 { return Err(INVALID); }
        put(to, state.utilization(index) * 12_345 * (counter + 1))
    }
    nvmlDeviceGetNvLinkState(device: Device, link: c_uint, to: *mut c_uint) state {
        let a = &physical_gpu(state, device)?.spec;
        if a.nvlinks == 0 { return Err(codes::NOT_SUPPORTED); }
        if link >= a.nvlinks { return Err(INVALID); }
        put(to, u32::from(link + a.nvlinks_down < a.nvlinks))
    }
    nvmlDeviceGetNvLinkVersion(device: Device, link: c_uint, to: *mut c_uint) state {
        let a = &physical_gpu(state, device)?.spec;
        if link >= a.nvlinks { return Err(INVALID); }
        put(to, a.nvlink_version)
    }
    nvmlDeviceGetNvLinkRemotePciInfo_v2(device: Device, link: c_uint, to: *mut sys::nvmlPciInfo_t) state {
        let gpu = physical_gpu(state, device)?;
        if link >= gpu.spec.nvlinks { return Err(INVALID); }
        put(to, pci(gpu, &format!("00000000:{:02X}:00.0", 0xC0 + link / 3)))
    }
    nvmlDeviceGetComputeRunningProcesses_v3(device: Device, count: *mut c_uint, to: *mut sys::nvmlProcessInfo_t) state {
        let all = pids(state, device)?;
        put_list(&all, count, to)
    }
    nvmlDeviceGetGraphicsRunningProcesses_v3(device: Device, count: *mut c_uint, to: *mut sys::nvmlProcessInfo_t) state {
        physical_gpu(state, device)?;
        put_list(&[], count, to)
    }
    nvmlDeviceGetProcessUtilization(device: Device, to: *mut sys::nvmlProcessUtilizationSample_t, count: *mut c_uint, _since: c_ulonglong) state {
        let gpu = physical_gpu(state, device)?;
        if gpu.mig.enabled { return Err(codes::NOT_SUPPORTED); }
        let one = |p: &fixture::Process| sys::nvmlProcessUtilizationSample_t { pid: p.pid, timeStamp: 1, smUtil: p.sm, memUtil: p.sm / 2, encUtil: 0, decUtil: 0 };
        let all: Vec<_> = gpu.spec.processes.iter().map(one).collect();
        if all.is_empty() { return Err(codes::NOT_FOUND); }
        put_list(&all, count, to)
    }
    nvmlDeviceGetTopologyCommonAncestor(a: Device, b: Device, to: *mut c_uint) state {
        let (a, b) = (physical_gpu(state, a)?.index, physical_gpu(state, b)?.index);
        let numa = |i: usize| state.fixture.numa.get(i).copied().unwrap_or(0);
        // Pairs of GPUs share a PCIe switch, and all GPUs of a NUMA node a host bridge.
        put(to, if a == b { 0 } else if a / 2 == b / 2 && numa(a) == numa(b) { 10 } else if numa(a) == numa(b) { 40 } else { 50 })
    }
    nvmlDeviceGetCpuAffinity(device: Device, words: c_uint, to: *mut c_ulong) state {
        let index = physical_gpu(state, device)?.index;
        if to.is_null() { return Err(INVALID); }
        let (node, n) = (state.fixture.numa.get(index).copied().unwrap_or(0), state.fixture.cpus_per_node);
        for word in 0..words {
            let bit = |b: u32| (node * n..(node + 1) * n).contains(&(word * c_ulong::BITS + b));
            let value = (0..c_ulong::BITS).filter(|b| bit(*b)).fold(0, |v, b| v | 1 << b);
            // SAFETY: the caller guarantees `words` words.
            unsafe { to.add(word as usize).write(value) };
        }
        Ok(())
    }

    nvmlEventSetCreate(to: *mut sys::nvmlEventSet_t) state {
        state.sets.push(EventSet::default());
        put(to, (EVENT_SET | (state.sets.len() - 1)) as *mut _)
    }
    nvmlEventSetFree(set: sys::nvmlEventSet_t) state {
        let _ = &state;
        if (set as usize) >> 24 == EVENT_SET >> 24 { Ok(()) } else { Err(INVALID) }
    }
    nvmlDeviceRegisterEvents(device: Device, kinds: c_ulonglong, set: sys::nvmlEventSet_t) state {
        let index = parts(DEVICE, device)?.0;
        if kinds & !0x1f != 0 { return Err(codes::NOT_SUPPORTED); }
        let past = state.control.events.len();
        let set = state.sets.get_mut(set as usize & 0xffff).ok_or(INVALID)?;
        set.devices.push(index);
        // XIDs in the control file before the first registration are not delivered; those of the fixture all are.
        set.controlled = set.controlled.max(past);
        Ok(())
    }
}

/// Waits without holding the lock, so that other calls are not blocked.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: sys::nvmlEventSet_t,
    to: *mut sys::nvmlEventData_t,
    milliseconds: c_uint,
) -> u32 {
    let deadline = Instant::now() + Duration::from_millis(milliseconds.into());
    loop {
        let mut found = None;
        let code = dispatch("nvmlEventSetWait_v2", |state| {
            let elapsed = state.elapsed();
            let set = state.sets.get_mut(set as usize & 0xffff).ok_or(INVALID)?;
            let due = |e: &&fixture::Xid| set.devices.contains(&e.gpu) && elapsed >= Duration::from_millis(e.after_ms);
            found = state.fixture.events.iter().filter(due).nth(set.scripted).copied();
            if found.is_some() {
                set.scripted += 1;
            }
            while found.is_none() && set.controlled < state.control.events.len() {
                found = Some(state.control.events[set.controlled]).filter(|e| set.devices.contains(&e.gpu));
                set.controlled += 1;
            }
            Ok(())
        });
        if code != 0 {
            return code;
        }
        if let Some(event) = found {
            let data = sys::nvmlEventData_t {
                device: handle(DEVICE, event.gpu, 0, 0),
                eventType: slipway_gpu::nvml::EVENT_XID,
                eventData: event.xid,
                gpuInstanceId: event.instance.unwrap_or(u32::MAX),
                computeInstanceId: u32::MAX,
            };
            return put(to, data).err().unwrap_or(0);
        }
        if Instant::now() >= deadline {
            return codes::TIMEOUT;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
