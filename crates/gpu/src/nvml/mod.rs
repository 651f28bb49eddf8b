//! NVML with Rust's types. The only module that calls the driver's library.
#![allow(unsafe_code)] // FFI: every call hands NVML pointers to locals that live through the call

pub mod codes;
mod device;
mod library;
mod mig;

use std::ffi::c_char;
use std::path::{Path, PathBuf};

use nvml_wrapper_sys::bindings as sys;

use crate::GpuError;
use library::Functions;
pub use library::SYMBOLS;
pub use mig::{ComputeInstance, GpuInstance, MigAttributes, Placement};

/// A call that NVML refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {} (NVML {code})", codes::describe(*code))]
pub struct NvmlError {
    /// The C function.
    pub call: &'static str,
    /// `nvmlReturn_t`.
    pub code: u32,
}

/// Calls a function of the library and checks its answer.
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

/// The library, initialised; shut down when dropped.
pub struct Nvml {
    functions: Functions,
}

/// A GPU, or a MIG device of one.
#[derive(Clone, Copy)]
pub struct Device<'a> {
    nvml: &'a Nvml,
    handle: sys::nvmlDevice_t,
}

/// Bytes of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// In use, the driver's own share not counted where it is told apart.
    pub used: u64,
    /// Free.
    pub free: u64,
}

/// Which clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// Of the streaming multiprocessors.
    Sm = 1,
    /// Of the memory.
    Memory = 2,
}

/// A process on a device, as NVML knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunningProcess {
    /// Process id in the host's namespace.
    pub pid: u32,
    /// Bytes of device memory; `None` where the driver does not tell.
    pub memory: Option<u64>,
    /// The MIG GPU instance it is in.
    pub gpu_instance: Option<u32>,
}

/// An event that was waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// PCI bus id of the device, empty if it cannot be asked any more.
    pub bus_id: String,
    /// `nvmlEventType...` bit.
    pub kind: u64,
    /// The XID for [`EVENT_XID`].
    pub data: u64,
    /// The MIG GPU instance it happened in; `None` when it is about the whole GPU.
    pub gpu_instance: Option<u32>,
}

/// What the driver says must be done before a GPU can be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing.
    None,
    /// A reset of the GPU.
    Reset,
    /// A reboot of the node.
    Reboot,
    /// Work that uses peers must end.
    DrainPeers,
    /// Work must end, then a reset.
    DrainAndReset,
}

/// The event type of XIDs.
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

/// Reads a list by NVML's two-call protocol: ask for the count, then for so many; again if it grew meanwhile.
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
    let mut last = NvmlError { call: "list", code: codes::INSUFFICIENT_SIZE };
    for _ in 0..4 {
        count += 4;
        let mut items = vec![empty.clone(); count as usize];
        match read(&mut count, items.as_mut_ptr()) {
            Ok(()) => {
                items.truncate(count as usize);
                return Ok(items);
            }
            Err(e) if e.code == codes::INSUFFICIENT_SIZE => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

impl Nvml {
    /// Opens the library at `path` and initialises it.
    ///
    /// # Errors
    /// [`GpuError::NoNvml`] when it cannot be loaded, [`GpuError::Nvml`] when it refuses to start.
    pub fn open(path: &Path) -> Result<Self, GpuError> {
        let functions =
            Functions::open(path).map_err(|e| GpuError::NoNvml { path: path.to_owned(), reason: e.to_string() })?;
        let nvml = Self { functions };
        call!(nvml, nvmlInit_v2)?;
        Ok(nvml)
    }

    /// Opens the fake library at `path` with a fixture: a built-in name, or a file.
    ///
    /// # Errors
    /// As [`Nvml::open`]; [`GpuError::Invalid`] when the library is no fake or refuses the fixture.
    pub fn open_fixture(path: &Path, fixture: &str) -> Result<Self, GpuError> {
        let functions =
            Functions::open(path).map_err(|e| GpuError::NoNvml { path: path.to_owned(), reason: e.to_string() })?;
        let name =
            std::ffi::CString::new(fixture).map_err(|_| GpuError::Invalid("a fixture's name has no zeros".into()))?;
        let choose = functions
            .slipwayFakeFixture
            .ok_or_else(|| GpuError::Invalid(format!("{} is no fake NVML; fixtures need one", path.display())))?;
        // SAFETY: the fake's own function, which copies the text.
        unsafe { choose(name.as_ptr()) };
        let nvml = Self { functions };
        call!(nvml, nvmlInit_v2).map_err(|e| match e.code {
            codes::DRIVER_NOT_LOADED => GpuError::Invalid(format!("there is no fixture '{fixture}'")),
            _ => e.into(),
        })?;
        Ok(nvml)
    }

    /// The machine's GPUs, or a fixture's through the fake library.
    ///
    /// The library is `$SLIPWAY_NVML_LIB` if that is set. Otherwise a fixture needs `libslipway_fake_nvml.so` beside
    /// the program or in `../lib/slipway`, and real GPUs the driver's `libnvidia-ml.so.1`.
    ///
    /// # Errors
    /// As [`Nvml::open`] and [`Nvml::open_fixture`].
    pub fn find(fixture: Option<&str>) -> Result<Self, GpuError> {
        let set = std::env::var_os(slipway_core::env::NVML_LIB).filter(|v| !v.is_empty()).map(PathBuf::from);
        let Some(fixture) = fixture else {
            if let Some(path) = set {
                return Self::open(&path);
            }
            // WSL keeps the driver's libraries apart.
            let wsl = Path::new("/usr/lib/wsl/lib/libnvidia-ml.so.1");
            return Self::open(Path::new("libnvidia-ml.so.1"))
                .or_else(|e| if wsl.exists() { Self::open(wsl) } else { Err(e) });
        };
        let folder = std::env::current_exe().ok().and_then(|p| p.parent().map(Path::to_owned)).unwrap_or_default();
        let name = "libslipway_fake_nvml.so";
        let usual = [folder.join(name), folder.join("../lib/slipway").join(name)];
        let path = set.or_else(|| usual.iter().find(|p| p.exists()).cloned()).unwrap_or_else(|| usual[0].clone());
        Self::open_fixture(&path, fixture)
    }

    /// Whether a fixture answers instead of a driver.
    pub fn is_simulated(&self) -> bool {
        self.functions.slipwayFakeFixture.is_some()
    }

    /// The driver's version, such as `580.95.05`.
    ///
    /// # Errors
    /// NVML's.
    pub fn driver_version(&self) -> Result<String, NvmlError> {
        let mut buffer = [0; 80];
        call!(self, nvmlSystemGetDriverVersion, buffer.as_mut_ptr(), 80)?;
        Ok(text(&buffer))
    }

    /// The library's version.
    ///
    /// # Errors
    /// NVML's.
    pub fn nvml_version(&self) -> Result<String, NvmlError> {
        let mut buffer = [0; 80];
        call!(self, nvmlSystemGetNVMLVersion, buffer.as_mut_ptr(), 80)?;
        Ok(text(&buffer))
    }

    /// The newest CUDA that the driver supports: major and minor.
    ///
    /// # Errors
    /// NVML's.
    pub fn cuda_version(&self) -> Result<(i32, i32), NvmlError> {
        let mut version = 0;
        call!(self, nvmlSystemGetCudaDriverVersion_v2, &mut version)?;
        Ok((version / 1000, version % 1000 / 10))
    }

    /// The name of a process that uses a device.
    ///
    /// # Errors
    /// NVML's.
    pub fn process_name(&self, pid: u32) -> Result<String, NvmlError> {
        let mut buffer = [0; 1024];
        call!(self, nvmlSystemGetProcessName, pid, buffer.as_mut_ptr(), 1024)?;
        Ok(text(&buffer))
    }

    /// How many GPUs there are.
    ///
    /// # Errors
    /// NVML's.
    pub fn count(&self) -> Result<u32, NvmlError> {
        let mut count = 0;
        call!(self, nvmlDeviceGetCount_v2, &mut count)?;
        Ok(count)
    }

    /// The GPU of that index.
    ///
    /// # Errors
    /// NVML's.
    pub fn device(&self, index: u32) -> Result<Device<'_>, NvmlError> {
        let mut handle = std::ptr::null_mut();
        call!(self, nvmlDeviceGetHandleByIndex_v2, index, &mut handle)?;
        Ok(Device { nvml: self, handle })
    }

    /// Begins to collect the XIDs of devices; those that offer no events are left out.
    ///
    /// # Errors
    /// NVML's.
    pub fn watch(&self, devices: &[Device<'_>]) -> Result<Watch<'_>, NvmlError> {
        let mut set = std::ptr::null_mut();
        call!(self, nvmlEventSetCreate, &mut set)?;
        let watch = Watch { nvml: self, set };
        for device in devices {
            let mut offered = 0;
            match call!(self, nvmlDeviceGetSupportedEventTypes, device.handle, &mut offered) {
                Ok(()) if offered & EVENT_XID != 0 => {
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

/// XIDs of some devices, collected from the moment it was made, so that none between two waits is lost.
pub struct Watch<'a> {
    nvml: &'a Nvml,
    set: sys::nvmlEventSet_t,
}

impl Watch<'_> {
    /// The next XID; `None` when none came in so many milliseconds.
    ///
    /// # Errors
    /// NVML's.
    pub fn wait(&self, milliseconds: u32) -> Result<Option<Event>, NvmlError> {
        // SAFETY: plain C data, for which zeros are a value.
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
                }))
            }
            Err(e) if e.code == codes::TIMEOUT => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let _ = call!(self.nvml, nvmlEventSetFree, self.set); // nothing is left to do if it fails
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        let _ = call!(self, nvmlShutdown); // nothing is left to do if it fails
    }
}
