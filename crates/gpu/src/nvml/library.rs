//! The table of NVML's C functions, loaded at run time. `libnvidia-ml.so.1` is part of the driver, so slipway does not link to it.
//!
//! Types come from `nvml-wrapper-sys`. A function that an older driver lacks is `None`; calling it returns
//! [`FUNCTION_NOT_FOUND`](super::codes::FUNCTION_NOT_FOUND), as NVML itself does.

use std::ffi::{c_char, c_uint, c_ulong, c_ulonglong};
use std::path::Path;

use libloading::Library;
use nvml_wrapper_sys::bindings::{
    nvmlComputeInstance_t, nvmlComputeInstanceInfo_t, nvmlComputeInstanceProfileInfo_t, nvmlDevice_t,
    nvmlDeviceAttributes_t, nvmlEventData_t, nvmlEventSet_t, nvmlFieldValue_t, nvmlGpuFabricInfo_t,
    nvmlGpuFabricInfoV_t, nvmlGpuInstance_t, nvmlGpuInstanceInfo_t, nvmlGpuInstancePlacement_t,
    nvmlGpuInstanceProfileInfo_t, nvmlGpuInstanceProfileInfo_v2_t, nvmlMemory_t, nvmlMemory_v2_t, nvmlPciInfo_t,
    nvmlProcessInfo_t, nvmlProcessUtilizationSample_t, nvmlReturn_t, nvmlUtilization_t,
};

/// Passes the name and the argument types of every NVML function that slipway calls to a macro. Code that is generated from this
/// one list, here and in a simulator, cannot miss a function.
#[macro_export]
macro_rules! nvml_functions {
    ($generate:ident) => {
        $generate! {
            nvmlInit_v2();
            nvmlShutdown();
            nvmlSystemGetDriverVersion(*mut c_char, c_uint);
            nvmlSystemGetNVMLVersion(*mut c_char, c_uint);
            nvmlSystemGetCudaDriverVersion_v2(*mut i32);
            nvmlSystemGetProcessName(c_uint, *mut c_char, c_uint);
            nvmlDeviceGetCount_v2(*mut c_uint);
            nvmlDeviceGetHandleByIndex_v2(c_uint, *mut nvmlDevice_t);
            nvmlDeviceGetName(nvmlDevice_t, *mut c_char, c_uint);
            nvmlDeviceGetUUID(nvmlDevice_t, *mut c_char, c_uint);
            nvmlDeviceGetSerial(nvmlDevice_t, *mut c_char, c_uint);
            nvmlDeviceGetMinorNumber(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetArchitecture(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetCudaComputeCapability(nvmlDevice_t, *mut i32, *mut i32);
            nvmlDeviceGetNumGpuCores(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetMemoryBusWidth(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetMemoryInfo(nvmlDevice_t, *mut nvmlMemory_t);
            nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t, *mut nvmlMemory_v2_t);
            nvmlDeviceGetUtilizationRates(nvmlDevice_t, *mut nvmlUtilization_t);
            nvmlDeviceGetClockInfo(nvmlDevice_t, c_uint, *mut c_uint);
            nvmlDeviceGetMaxClockInfo(nvmlDevice_t, c_uint, *mut c_uint);
            nvmlDeviceGetPowerUsage(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetPowerManagementLimit(nvmlDevice_t, *mut c_uint);
            nvmlDeviceSetPowerManagementLimit(nvmlDevice_t, c_uint);
            nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t, *mut c_uint, *mut c_uint);
            nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t, *mut c_ulonglong);
            nvmlDeviceGetTemperature(nvmlDevice_t, c_uint, *mut c_uint);
            nvmlDeviceGetTemperatureThreshold(nvmlDevice_t, c_uint, *mut c_uint);
            nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t, *mut c_ulonglong);
            nvmlDeviceGetEccMode(nvmlDevice_t, *mut c_uint, *mut c_uint);
            nvmlDeviceSetEccMode(nvmlDevice_t, c_uint);
            nvmlDeviceGetTotalEccErrors(nvmlDevice_t, c_uint, c_uint, *mut c_ulonglong);
            nvmlDeviceGetRemappedRows(nvmlDevice_t, *mut c_uint, *mut c_uint, *mut c_uint, *mut c_uint);
            nvmlDeviceGetPciInfo_v3(nvmlDevice_t, *mut nvmlPciInfo_t);
            nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetPcieReplayCounter(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetNvLinkState(nvmlDevice_t, c_uint, *mut c_uint);
            nvmlDeviceGetNvLinkVersion(nvmlDevice_t, c_uint, *mut c_uint);
            nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t, c_uint, *mut nvmlPciInfo_t);
            nvmlDeviceGetGpuFabricInfo(nvmlDevice_t, *mut nvmlGpuFabricInfo_t);
            nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t, *mut nvmlGpuFabricInfoV_t);
            nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t, *mut c_uint, *mut c_uint);
            nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t, c_uint, *mut c_uint, *mut c_uint);
            nvmlDeviceSetGpuLockedClocks(nvmlDevice_t, c_uint, c_uint);
            nvmlDeviceResetGpuLockedClocks(nvmlDevice_t);
            nvmlDeviceSetMemoryLockedClocks(nvmlDevice_t, c_uint, c_uint);
            nvmlDeviceResetMemoryLockedClocks(nvmlDevice_t);
            nvmlDeviceGetPersistenceMode(nvmlDevice_t, *mut c_uint);
            nvmlDeviceSetPersistenceMode(nvmlDevice_t, c_uint);
            nvmlDeviceGetComputeMode(nvmlDevice_t, *mut c_uint);
            nvmlDeviceSetComputeMode(nvmlDevice_t, c_uint);
            nvmlDeviceGetFieldValues(nvmlDevice_t, i32, *mut nvmlFieldValue_t);
            nvmlDeviceGetEncoderUtilization(nvmlDevice_t, *mut c_uint, *mut c_uint);
            nvmlDeviceGetDecoderUtilization(nvmlDevice_t, *mut c_uint, *mut c_uint);
            nvmlDeviceGetPerformanceState(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetFanSpeed(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t, *mut c_uint, *mut nvmlProcessInfo_t);
            nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t, *mut c_uint, *mut nvmlProcessInfo_t);
            nvmlDeviceGetProcessUtilization(nvmlDevice_t, *mut nvmlProcessUtilizationSample_t, *mut c_uint, c_ulonglong);
            nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t, nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetCpuAffinity(nvmlDevice_t, c_uint, *mut c_ulong);
            nvmlDeviceGetMigMode(nvmlDevice_t, *mut c_uint, *mut c_uint);
            nvmlDeviceSetMigMode(nvmlDevice_t, c_uint, *mut nvmlReturn_t);
            nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t, c_uint, *mut nvmlDevice_t);
            nvmlDeviceGetGpuInstanceId(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetComputeInstanceId(nvmlDevice_t, *mut c_uint);
            nvmlDeviceGetAttributes_v2(nvmlDevice_t, *mut nvmlDeviceAttributes_t);
            nvmlDeviceGetGpuInstanceProfileInfo(nvmlDevice_t, c_uint, *mut nvmlGpuInstanceProfileInfo_t);
            nvmlDeviceGetGpuInstanceProfileInfoV(nvmlDevice_t, c_uint, *mut nvmlGpuInstanceProfileInfo_v2_t);
            nvmlDeviceGetGpuInstancePossiblePlacements_v2(nvmlDevice_t, c_uint, *mut nvmlGpuInstancePlacement_t, *mut c_uint);
            nvmlDeviceGetGpuInstances(nvmlDevice_t, c_uint, *mut nvmlGpuInstance_t, *mut c_uint);
            nvmlDeviceCreateGpuInstanceWithPlacement(nvmlDevice_t, c_uint, *const nvmlGpuInstancePlacement_t, *mut nvmlGpuInstance_t);
            nvmlGpuInstanceGetInfo(nvmlGpuInstance_t, *mut nvmlGpuInstanceInfo_t);
            nvmlGpuInstanceDestroy(nvmlGpuInstance_t);
            nvmlGpuInstanceGetComputeInstanceProfileInfo(nvmlGpuInstance_t, c_uint, c_uint, *mut nvmlComputeInstanceProfileInfo_t);
            nvmlGpuInstanceGetComputeInstances(nvmlGpuInstance_t, c_uint, *mut nvmlComputeInstance_t, *mut c_uint);
            nvmlGpuInstanceCreateComputeInstance(nvmlGpuInstance_t, c_uint, *mut nvmlComputeInstance_t);
            nvmlComputeInstanceGetInfo_v2(nvmlComputeInstance_t, *mut nvmlComputeInstanceInfo_t);
            nvmlComputeInstanceDestroy(nvmlComputeInstance_t);
            nvmlEventSetCreate(*mut nvmlEventSet_t);
            nvmlEventSetFree(nvmlEventSet_t);
            nvmlDeviceGetSupportedEventTypes(nvmlDevice_t, *mut c_ulonglong);
            nvmlDeviceRegisterEvents(nvmlDevice_t, c_ulonglong, nvmlEventSet_t);
            nvmlEventSetWait_v2(nvmlEventSet_t, *mut nvmlEventData_t, c_uint);
        }
    };
}

macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        /// Every symbol that slipway looks up in NVML.
        pub const SYMBOLS: &[&str] = &[$(stringify!($name)),*];

        /// Pointers to NVML's functions, either of a loaded library or of a simulator that is linked into the program.
        #[derive(Clone, Copy)]
        #[allow(non_snake_case)] // the names are NVML's
        #[allow(missing_docs)] // nvml.h documents the functions
        pub struct Functions {
            $(pub $name: Option<unsafe extern "C" fn($($argument),*) -> nvmlReturn_t>,)*
            /// Only in simulators: selects the fixture of the next initialisation, given by a built-in name or a file path. It
            /// copies the text, and returns 0, or another code if there is no such fixture.
            pub slipwayFakeFixture: Option<unsafe extern "C" fn(*const c_char) -> nvmlReturn_t>,
        }

        impl LoadedLibrary {
            /// Opens the library and looks up every function.
            ///
            /// # Errors
            /// [`libloading::Error`] if the library cannot be loaded.
            pub(super) fn open(path: &Path) -> Result<Self, libloading::Error> {
                // SAFETY: loading runs the library's initialisers; those of NVML have no preconditions. The signatures
                // below are from nvml.h, and NVIDIA keeps them stable for a versioned name.
                unsafe {
                    let library = Library::new(path)?;
                    let functions = Functions {
                        $($name: library.get(concat!(stringify!($name), "\0").as_bytes()).ok().map(|s| *s),)*
                        slipwayFakeFixture: library.get(b"slipwayFakeFixture\0").ok().map(|s| *s),
                    };
                    Ok(Self { functions, library: Some(library) })
                }
            }
        }
    };
}

nvml_functions!(functions);

/// Functions, and the library that must stay loaded for as long as they are called.
pub(super) struct LoadedLibrary {
    pub(super) functions: Functions,
    /// `None` if the functions are part of the program.
    pub(super) library: Option<Library>,
}
