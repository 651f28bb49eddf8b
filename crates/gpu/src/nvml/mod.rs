//! Safe Rust bindings to NVML, NVIDIA's management library. No other module calls the driver's library.
#![allow(unsafe_code)] // FFI: NVML receives only pointers to locals that outlive the call

pub mod codes;
mod device;
mod fabric;
mod library;
mod mig;
mod settings;
pub mod xid;

use std::ffi::c_char;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nvml_wrapper_sys::bindings as sys;

use crate::GpuError;
pub use fabric::{Fabric, FabricState};
use library::LoadedLibrary;
pub use library::{Functions, SYMBOLS};
pub use mig::{ComputeInstance, Engines, GpuInstance, MigAttributes, Placement};

/// An NVML call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {} (NVML {code})", codes::describe(*code))]
pub struct NvmlError {
    /// Name of the C function.
    pub call: &'static str,
    /// Return code (`nvmlReturn_t`), see [`codes`].
    pub code: u32,
}

/// Calls an NVML function and converts its return code to a `Result`.
macro_rules! call {
    ($nvml:expr, $name:ident $(, $argument:expr)*) => {
        match $nvml.functions.$name {
            None => Err($crate::nvml::NvmlError { call: stringify!($name), code: $crate::nvml::codes::FUNCTION_NOT_FOUND }),
            Some(function) => {
                // SAFETY: the signature is nvml.h's; handles came from this library, pointers are to locals.
                let code = unsafe { function($($argument),*) };
                if code == 0 { Ok(()) } else { Err($crate::nvml::NvmlError { call: stringify!($name), code }) }
            }
        }
    };
}
pub(crate) use call;

/// The loaded and initialised library. Dropping it shuts NVML down.
pub struct Nvml {
    functions: Functions,
    /// Keeps the library loaded; `None` for a simulator that is part of the program.
    _library: Option<libloading::Library>,
}

/// A simulator of GPUs that is linked into the program, for fixtures without a library file.
#[derive(Clone, Copy)]
pub struct Simulator(Functions);

impl Simulator {
    /// A simulator with these functions.
    ///
    /// # Safety
    /// The functions must follow nvml.h: they may only require of their callers what it requires.
    pub const unsafe fn new(functions: Functions) -> Self {
        Self(functions)
    }
}

/// The simulator of this program.
static SIMULATOR: OnceLock<Simulator> = OnceLock::new();

/// Sets the simulator that [`Nvml::find`] uses for fixtures. This crate is below the simulator, so the binary passes it in when it
/// starts. Only the first call has an effect.
pub fn set_simulator(simulator: Simulator) {
    SIMULATOR.get_or_init(|| simulator);
}

/// A GPU, or a MIG device of one.
#[derive(Clone, Copy)]
pub struct Device<'a> {
    nvml: &'a Nvml,
    handle: sys::nvmlDevice_t,
}

/// Memory of a device in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Total memory.
    pub total: u64,
    /// Used memory, without the memory reserved by the driver if the driver reports it separately.
    pub used: u64,
    /// Free memory.
    pub free: u64,
}

/// A clock domain, with NVML's number (`nvmlClockType_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// Clock of the streaming multiprocessors.
    Sm = 1,
    /// Clock of the memory.
    Memory = 2,
}

/// A process that uses a device, as reported by NVML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunningProcess {
    /// Process id in the host's namespace.
    pub pid: u32,
    /// Used device memory in bytes; `None` if the driver does not report it.
    pub memory: Option<u64>,
    /// Id of the MIG GPU instance that the process runs in.
    pub gpu_instance: Option<u32>,
}

/// An event returned by [`Watch::wait`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// PCI bus id of the device; empty if the device no longer responds.
    pub bus_id: String,
    /// The event type: one `nvmlEventType...` bit.
    pub kind: u64,
    /// The XID, if `kind` is [`EVENT_XID`].
    pub data: u64,
    /// Id of the affected MIG GPU instance; `None` if the whole GPU is affected.
    pub gpu_instance: Option<u32>,
    /// Id of the affected compute instance in it; `None` if the whole GPU instance is affected.
    pub compute_instance: Option<u32>,
}

/// The recovery action that the driver requires before a GPU can be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// No action.
    None,
    /// Reset the GPU.
    Reset,
    /// Reboot the node.
    Reboot,
    /// Stop all jobs that use peer-to-peer access.
    DrainPeers,
    /// Stop all jobs, then reset the GPU.
    DrainAndReset,
}

/// The event type bit of XIDs (`nvmlEventTypeXidCriticalError`).
pub const EVENT_XID: u64 = 8;

// SAFETY: NVML is thread-safe (nvml.h, "NVML is thread-safe so it is safe to make simultaneous NVML calls from
// multiple threads"); the struct holds function pointers and no data of its own.
unsafe impl Send for Nvml {}
// SAFETY: as above.
unsafe impl Sync for Nvml {}

fn text(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> = buffer.iter().take_while(|c| **c != 0).map(|c| c.to_ne_bytes()[0]).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads a list with NVML's two-call protocol: query the count, then the items. Retries if the list grew in between.
fn list<T: Clone>(
    empty: T,
    mut read: impl FnMut(&mut u32, *mut T) -> Result<(), NvmlError>,
) -> Result<Vec<T>, NvmlError> {
    let mut count = 0;
    match read(&mut count, std::ptr::null_mut()) {
        Ok(()) if count == 0 => return Ok(Vec::new()),
        Ok(()) => {}
        Err(e) if e.code == codes::INSUFFICIENT_SIZE => {}
        Err(e) => return Err(e),
    }
    let mut last_error = NvmlError { call: "list", code: codes::INSUFFICIENT_SIZE };
    for _ in 0..4 {
        count += 4;
        let mut items = vec![empty.clone(); count as usize];
        match read(&mut count, items.as_mut_ptr()) {
            Ok(()) => {
                items.truncate(count as usize);
                return Ok(items);
            }
            Err(e) if e.code == codes::INSUFFICIENT_SIZE => last_error = e,
            Err(e) => return Err(e),
        }
    }
    Err(last_error)
}

fn load(path: &Path) -> Result<LoadedLibrary, GpuError> {
    LoadedLibrary::open(path).map_err(|e| GpuError::NoNvml { path: path.to_owned(), reason: e.to_string() })
}

impl Nvml {
    /// Opens the library at `path` and initialises it.
    ///
    /// # Errors
    /// [`GpuError::NoNvml`] if it cannot be loaded, [`GpuError::Nvml`] if initialisation fails.
    pub fn open(path: &Path) -> Result<Self, GpuError> {
        Ok(Self::initialise(load(path)?)?)
    }

    /// Opens the fake library at `path` with a fixture, given by a built-in name or a file path.
    ///
    /// # Errors
    /// As [`Nvml::open`]; [`GpuError::Invalid`] if the library is not the fake or there is no such fixture.
    pub fn open_fixture(path: &Path, fixture: &str) -> Result<Self, GpuError> {
        let loaded = load(path)?;
        if loaded.functions.slipwayFakeFixture.is_none() {
            let message = format!("{} is not the fake NVML library, which fixtures require", path.display());
            return Err(GpuError::Invalid(message));
        }
        Self::initialise_fixture(loaded, fixture)
    }

    /// Opens a simulator that is linked into the program, with a fixture as in [`Nvml::open_fixture`].
    ///
    /// # Errors
    /// [`GpuError::Invalid`] if there is no such fixture, [`GpuError::Nvml`] if initialisation fails.
    pub fn open_simulator(simulator: Simulator, fixture: &str) -> Result<Self, GpuError> {
        Self::initialise_fixture(LoadedLibrary { functions: simulator.0, library: None }, fixture)
    }

    fn initialise_fixture(loaded: LoadedLibrary, fixture: &str) -> Result<Self, GpuError> {
        let name = std::ffi::CString::new(fixture)
            .map_err(|_| GpuError::Invalid("a fixture name must not contain NUL bytes".into()))?;
        call!(loaded, slipwayFakeFixture, name.as_ptr())
            .map_err(|_| GpuError::Invalid(format!("there is no fixture '{fixture}'")))?;
        Ok(Self::initialise(loaded)?)
    }

    /// Initialises NVML. The value is created only afterwards, because dropping it undoes one initialisation.
    fn initialise(loaded: LoadedLibrary) -> Result<Self, NvmlError> {
        call!(loaded, nvmlInit_v2)?;
        Ok(Self { functions: loaded.functions, _library: loaded.library })
    }

    /// Locates and opens NVML: the driver's library for real GPUs, or the simulator of this program for a fixture.
    ///
    /// If `$SLIPWAY_NVML_LIB` is set, that library is opened in either case.
    ///
    /// # Errors
    /// As [`Nvml::open`] and [`Nvml::open_fixture`]; [`GpuError::Invalid`] for a fixture in a program without a simulator.
    pub fn find(fixture: Option<&str>) -> Result<Self, GpuError> {
        let from_env = std::env::var_os(slipway_core::env::NVML_LIB).filter(|v| !v.is_empty()).map(PathBuf::from);
        match (from_env, fixture) {
            (Some(path), Some(fixture)) => Self::open_fixture(&path, fixture),
            (Some(path), None) => Self::open(&path),
            (None, Some(fixture)) => {
                let simulator = SIMULATOR.get().ok_or_else(|| {
                    GpuError::Invalid("this program has no simulated GPUs, which fixtures require".into())
                })?;
                Self::open_simulator(*simulator, fixture)
            }
            (None, None) => {
                // On WSL the driver's libraries are outside the loader's search path.
                let wsl = Path::new("/usr/lib/wsl/lib/libnvidia-ml.so.1");
                Self::open(Path::new("libnvidia-ml.so.1"))
                    .or_else(|e| if wsl.exists() { Self::open(wsl) } else { Err(e) })
            }
        }
    }

    /// Whether these are simulated GPUs.
    pub fn is_simulated(&self) -> bool {
        self.functions.slipwayFakeFixture.is_some()
    }

    /// Driver version, such as `580.95.05`.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn driver_version(&self) -> Result<String, NvmlError> {
        let mut buffer = [0; 80];
        call!(self, nvmlSystemGetDriverVersion, buffer.as_mut_ptr(), 80)?;
        Ok(text(&buffer))
    }

    /// NVML version, such as `13.580.95.05`.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn nvml_version(&self) -> Result<String, NvmlError> {
        let mut buffer = [0; 80];
        call!(self, nvmlSystemGetNVMLVersion, buffer.as_mut_ptr(), 80)?;
        Ok(text(&buffer))
    }

    /// The newest CUDA version that the driver supports, as (major, minor).
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn cuda_version(&self) -> Result<(i32, i32), NvmlError> {
        let mut version = 0;
        call!(self, nvmlSystemGetCudaDriverVersion_v2, &mut version)?;
        Ok((version / 1000, version % 1000 / 10))
    }

    /// The name of a process that uses a device.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn process_name(&self, pid: u32) -> Result<String, NvmlError> {
        let mut buffer = [0; 1024];
        call!(self, nvmlSystemGetProcessName, pid, buffer.as_mut_ptr(), 1024)?;
        Ok(text(&buffer))
    }

    /// Number of GPUs.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn count(&self) -> Result<u32, NvmlError> {
        let mut count = 0;
        call!(self, nvmlDeviceGetCount_v2, &mut count)?;
        Ok(count)
    }

    /// The GPU with this index.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn device(&self, index: u32) -> Result<Device<'_>, NvmlError> {
        let mut handle = std::ptr::null_mut();
        call!(self, nvmlDeviceGetHandleByIndex_v2, index, &mut handle)?;
        Ok(Device { nvml: self, handle })
    }

    /// Starts to collect the XIDs of `devices`. Devices without event support are skipped.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn watch(&self, devices: &[Device<'_>]) -> Result<Watch<'_>, NvmlError> {
        let mut set = std::ptr::null_mut();
        call!(self, nvmlEventSetCreate, &mut set)?;
        let watch = Watch { nvml: self, set };
        for device in devices {
            let mut supported = 0;
            match call!(self, nvmlDeviceGetSupportedEventTypes, device.handle, &mut supported) {
                Ok(()) if supported & EVENT_XID != 0 => {
                    call!(self, nvmlDeviceRegisterEvents, device.handle, EVENT_XID, set)?;
                }
                Ok(()) => {}
                Err(e) if e.code == codes::NOT_SUPPORTED => {}
                Err(e) => return Err(e),
            }
        }
        Ok(watch)
    }
}

/// A subscription to the XIDs of some devices. It queues events from its creation on, so none is lost between two waits.
pub struct Watch<'a> {
    nvml: &'a Nvml,
    set: sys::nvmlEventSet_t,
}

impl Watch<'_> {
    /// Waits for the next event; `None` after `milliseconds` without one.
    ///
    /// # Errors
    /// [`NvmlError`] if the call fails.
    pub fn wait(&self, milliseconds: u32) -> Result<Option<Event>, NvmlError> {
        // SAFETY: a plain C struct, for which all zeros is a valid value.
        let mut data: sys::nvmlEventData_t = unsafe { std::mem::zeroed() };
        match call!(self.nvml, nvmlEventSetWait_v2, self.set, &mut data, milliseconds) {
            Ok(()) => {
                let device = Device { nvml: self.nvml, handle: data.device };
                let bus_id = device.bus_id().unwrap_or_default();
                Ok(Some(Event {
                    bus_id,
                    kind: data.eventType,
                    data: data.eventData,
                    gpu_instance: (data.gpuInstanceId != u32::MAX).then_some(data.gpuInstanceId),
                    compute_instance: (data.computeInstanceId != u32::MAX).then_some(data.computeInstanceId),
                }))
            }
            Err(e) if e.code == codes::TIMEOUT => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let _ = call!(self.nvml, nvmlEventSetFree, self.set); // an error during cleanup cannot be handled
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        let _ = call!(self, nvmlShutdown); // an error during cleanup cannot be handled
    }
}
