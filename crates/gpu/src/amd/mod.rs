//! GPUs of AMD through AMD SMI, the management library of ROCm: identity, memory, temperature, power, utilization and memory errors. What
//! containers use of them comes from the kernel ([`devices`]).
//!
//! Source: amdsmi.h. This is the only module that calls AMD SMI; every pointer that it passes is valid for the duration of the call.
#![allow(unsafe_code)] // FFI: the C ABI of AMD SMI

pub mod devices;
mod library;
pub mod sysfs;

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;
pub use library::{BUFFER_BYTES, Buffer, Functions, Handle};

use self::sysfs::Sysfs;
use crate::GpuError;
use crate::inventory::{Ecc, Finding, FindingCode, Gpu, Inventory, Severity};

/// `AMDSMI_INIT_AMD_GPUS`.
const INIT_GPUS: u64 = 2;
/// `AMDSMI_PROCESSOR_TYPE_AMD_GPU`.
const TYPE_GPU: u32 = 1;
/// `AMDSMI_MEM_TYPE_VRAM`.
const MEMORY: u32 = 0;
/// The sensors of `amdsmi_temperature_type_t`, the hottest spot first, which Instinct cards report, then the edge.
const SENSORS: [u32; 2] = [1, 0];
/// `AMDSMI_TEMP_CURRENT`, `AMDSMI_TEMP_CRITICAL` and `AMDSMI_TEMP_EMERGENCY`.
const NOW: u32 = 0;
const CRITICAL: u32 = 5;
const EMERGENCY: u32 = 7;
/// Stream processors of a compute unit in all of AMD's architectures: an MI300X has 304 units and 19,456 stream processors (data sheet).
const CORES_PER_UNIT: u32 = 64;
/// `AMDSMI_STATUS_NOT_SUPPORTED`.
pub const NOT_SUPPORTED: u32 = 2;
/// `AMDSMI_STATUS_NOT_YET_IMPLEMENTED`.
const NOT_IMPLEMENTED: u32 = 3;
/// `AMDSMI_STATUS_FAIL_LOAD_SYMBOL`, also for a function that an older library lacks.
const NO_SYMBOL: u32 = 5;
/// Maximum number of sockets and of processors of a socket: 8 cards with 8 partitions each.
const MAX_HANDLES: u32 = 256;

/// A failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {} (AMD SMI status {code})", words(*code))]
pub struct AmdError {
    /// Name of the function.
    pub call: &'static str,
    /// `amdsmi_status_t`.
    pub code: u32,
}

/// The meaning of the status codes that occur in practice.
fn words(code: u32) -> &'static str {
    match code {
        NOT_SUPPORTED => "not supported by this GPU",
        10 => "permission denied: add the user to the groups video and render",
        18 | 32 => "not initialised",
        31 => "there is no such GPU",
        34 => "the driver amdgpu is not loaded: modprobe amdgpu",
        _ => "the call failed",
    }
}

/// Calls a function of the table. Without it the call fails as AMD SMI itself reports a missing symbol.
macro_rules! call {
    ($functions:expr, $name:ident $(, $argument:expr)*) => {
        match $functions.$name {
            // SAFETY: the signature is that of amdsmi.h, and the callers pass valid pointers.
            Some(function) => match unsafe { function($($argument),*) } {
                0 => Ok(()),
                code => Err(AmdError { call: stringify!($name), code }),
            },
            None => Err(AmdError { call: stringify!($name), code: NO_SYMBOL }),
        }
    };
}

/// An implementation of AMD SMI that is linked into the program.
#[derive(Clone, Copy)]
pub struct Simulator {
    functions: Functions,
    fixtures: &'static [&'static str],
    sysfs: fn(&str) -> Sysfs,
}

impl Simulator {
    /// A simulator, the names of its fixtures, and the files of the kernel on the machine of a fixture.
    ///
    /// # Safety
    /// The functions must follow amdsmi.h, and write at most [`BUFFER_BYTES`] to a [`Buffer`].
    pub const unsafe fn new(functions: Functions, fixtures: &'static [&'static str], sysfs: fn(&str) -> Sysfs) -> Self {
        Self { functions, fixtures, sysfs }
    }
}

static SIMULATOR: OnceLock<Simulator> = OnceLock::new();

/// Registers the simulator of this program; later calls have no effect.
pub fn set_simulator(simulator: Simulator) {
    let _ = SIMULATOR.set(simulator);
}

/// The simulator that has this fixture.
pub(crate) fn simulator_of(fixture: &str) -> Option<Simulator> {
    SIMULATOR.get().copied().filter(|simulator| simulator.fixtures.contains(&fixture))
}

/// The files of the kernel: of the machine, or those of a fixture; `None` if the fixture simulates no GPUs of AMD.
pub fn sysfs(fixture: Option<&str>) -> Option<Sysfs> {
    match fixture {
        None => Some(Sysfs::Folder("/sys".into())),
        Some(fixture) => simulator_of(fixture).map(|simulator| (simulator.sysfs)(fixture)),
    }
}

/// An open AMD SMI. Dropping it undoes one initialisation.
pub struct Amd {
    functions: Functions,
    /// Keeps the functions loaded; `None` if they are part of the program.
    _library: Option<Library>,
}

impl std::fmt::Debug for Amd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Amd").finish_non_exhaustive()
    }
}

impl Drop for Amd {
    fn drop(&mut self) {
        let _ = call!(self.functions, amdsmi_shut_down);
    }
}

impl Amd {
    /// Opens ROCm's library.
    ///
    /// # Errors
    /// [`GpuError::NoAmdSmi`] if it cannot be loaded, [`GpuError::Amd`] if initialisation fails.
    pub fn find() -> Result<Self, GpuError> {
        // ROCm's packages do not add their folder to the loader's search path.
        let paths = ["libamd_smi.so", "/opt/rocm/lib/libamd_smi.so"].map(PathBuf::from);
        let mut last = None;
        for path in paths {
            match Self::open(&path) {
                Err(error @ GpuError::NoAmdSmi { .. }) => last = Some(error),
                opened => return opened,
            }
        }
        Err(last.unwrap_or(GpuError::NoGpu))
    }

    /// Opens the library at `path`.
    ///
    /// # Errors
    /// As [`Amd::find`].
    pub fn open(path: &Path) -> Result<Self, GpuError> {
        let (functions, library) =
            library::open(path).map_err(|e| GpuError::NoAmdSmi { path: path.to_owned(), reason: e.to_string() })?;
        Ok(Self::initialise(functions, Some(library))?)
    }

    /// Opens ROCm's library, or the simulator that has this fixture.
    ///
    /// # Errors
    /// As [`Amd::find`] and [`Amd::open_simulator`].
    pub fn open_for(fixture: Option<&str>) -> Result<Self, GpuError> {
        let Some(fixture) = fixture else { return Self::find() };
        let unknown = || GpuError::Invalid(format!("there is no fixture '{fixture}' with GPUs of AMD"));
        Self::open_simulator(simulator_of(fixture).ok_or_else(unknown)?, fixture)
    }

    /// Opens a simulator with one of its fixtures.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] if there is no such fixture.
    pub fn open_simulator(simulator: Simulator, fixture: &str) -> Result<Self, GpuError> {
        let unknown = || GpuError::Invalid(format!("there is no fixture '{fixture}'"));
        let name = CString::new(fixture).map_err(|_| unknown())?;
        call!(simulator.functions, slipway_fake_amd_fixture, name.as_ptr()).map_err(|_| unknown())?;
        Ok(Self::initialise(simulator.functions, None)?)
    }

    fn initialise(functions: Functions, library: Option<Library>) -> Result<Self, AmdError> {
        call!(functions, amdsmi_init, INIT_GPUS)?;
        Ok(Self { functions, _library: library })
    }

    /// All GPUs, socket by socket. In a partitioned card every partition is a GPU.
    fn gpus(&self) -> Result<Vec<Handle>, AmdError> {
        let f = &self.functions;
        let sockets = handles(|count, to| call!(f, amdsmi_get_socket_handles, count, to))?;
        let mut out = Vec::new();
        for socket in sockets {
            for processor in handles(|count, to| call!(f, amdsmi_get_processor_handles, socket, count, to))? {
                let mut kind = 0;
                if call!(f, amdsmi_get_processor_type, processor, &mut kind).is_ok() && kind == TYPE_GPU {
                    out.push(processor);
                }
            }
        }
        Ok(out)
    }

    /// The first value of the sensors that the GPU has, in degrees Celsius.
    fn temperature(&self, gpu: Handle, metric: u32) -> Result<u32, AmdError> {
        let mut last = AmdError { call: "amdsmi_get_temp_metric", code: NOT_SUPPORTED };
        for sensor in SENSORS {
            let mut value = 0;
            match call!(self.functions, amdsmi_get_temp_metric, gpu, sensor, metric, &mut value) {
                // amdsmi.h says millidegrees, but the library divides; no chip has 1000 degrees.
                Ok(()) => return Ok(u32::try_from(if value > 1000 { value / 1000 } else { value }).unwrap_or(0)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn gpu(&self, index: u32, handle: Handle) -> Gpu {
        let f = &self.functions;
        let mut found = Vec::new();
        let buffer = |call: &dyn Fn(*mut Buffer) -> Result<(), AmdError>| {
            let mut buffer = Buffer::EMPTY;
            call(&mut buffer).map(|()| buffer)
        };
        let number = |call: &dyn Fn(*mut u64) -> Result<(), AmdError>| {
            let mut number = 0;
            call(&mut number).map(|()| number)
        };
        let keep = &mut found;
        let asic = buffer(&|to| call!(f, amdsmi_get_gpu_asic_info, handle, to));
        keep.extend(asic.as_ref().err().filter(|error| !is_expected(**error)).map(|error| Finding {
            code: FindingCode::GpuLost,
            severity: Severity::Error,
            what: format!("the GPU does not respond: {error}"),
            remedy: "see the kernel's log: dmesg | grep -i amdgpu; reset the GPU or restart the machine".into(),
        }));
        let asic = asic.ok();
        let asic = asic.map(|buffer| Asic::read(&buffer)).unwrap_or_default();
        let power = value(buffer(&|to| call!(f, amdsmi_get_power_info, handle, to)), keep);
        let cap = value(buffer(&|to| call!(f, amdsmi_get_power_cap_info, handle, 0, to)), keep);
        // `amdsmi_power_cap_info_t`: current, default, DPM, minimum and maximum cap; on Linux in microwatts.
        let microwatts = |at: usize| cap.map(|cap| cap.u64(at) as f64 / 1e6).filter(|watts| *watts > 0.0);
        // `amdsmi_engine_usage_t`: the graphics engine and the memory controller, in percent.
        let activity = value(buffer(&|to| call!(f, amdsmi_get_gpu_activity, handle, to)), keep);
        let percent = |at: usize| activity.map(|activity| activity.u32(at)).filter(|percent| *percent <= 100);
        let ecc =
            value(buffer(&|to| call!(f, amdsmi_get_gpu_total_ecc_count, handle, to)), keep).map(|count| ecc(&count));
        keep.extend(ecc.as_ref().filter(|ecc| ecc.uncorrected > 0).map(|ecc| Finding {
            code: FindingCode::UncorrectedErrors,
            severity: Severity::Error,
            what: format!("{} uncorrected memory errors", ecc.uncorrected),
            remedy: "drain the node, reset the GPU (amd-smi reset --gpureset), and replace the card if the errors return"
                .into(),
        }));
        // The first member of `amdsmi_enumeration_info_t` is the number of the render node, and 0 or only ones if it is unknown.
        let places = buffer(&|to| call!(f, amdsmi_get_gpu_enumeration_info, handle, to)).ok();
        Gpu {
            index,
            minor: places.map(|places| places.u32(0)).filter(|render| *render != 0 && *render != u32::MAX),
            ecc,
            uuid: value(self.uuid(handle), keep).unwrap_or_default(),
            name: if asic.name.is_empty() { "unknown".into() } else { asic.name },
            serial: asic.serial,
            bus_id: value(number(&|to| call!(f, amdsmi_get_gpu_device_bdf, handle, to)), keep)
                .map(bus_id)
                .unwrap_or_default(),
            architecture: asic.architecture.unwrap_or_else(|| "unknown".into()),
            cores: asic.compute_units.and_then(|units| units.checked_mul(CORES_PER_UNIT)),
            memory_total: value(number(&|to| call!(f, amdsmi_get_gpu_memory_total, handle, MEMORY, to)), keep),
            memory_used: value(number(&|to| call!(f, amdsmi_get_gpu_memory_usage, handle, MEMORY, to)), keep),
            utilization_percent: percent(0),
            memory_utilization_percent: percent(4),
            power_watts: power.and_then(|power| watts(&power)),
            power_limit_watts: microwatts(0),
            power_default_watts: microwatts(8),
            power_range_watts: microwatts(24).zip(microwatts(32)),
            temperature_celsius: value(self.temperature(handle, NOW), keep),
            temperature_slowdown_celsius: value(self.temperature(handle, CRITICAL), keep),
            temperature_shutdown_celsius: value(self.temperature(handle, EMERGENCY), keep),
            findings: found,
            ..Gpu::default()
        }
    }

    fn uuid(&self, gpu: Handle) -> Result<String, AmdError> {
        // `AMDSMI_GPU_UUID_SIZE` is 38.
        let mut text = Buffer::EMPTY;
        let mut length = 64;
        call!(self.functions, amdsmi_get_gpu_device_uuid, gpu, &mut length, text.0.as_mut_ptr().cast())?;
        Ok(text.text(0))
    }
}

impl Amd {
    /// Whether these are simulated GPUs.
    pub fn is_simulated(&self) -> bool {
        self.functions.slipway_fake_amd_fixture.is_some()
    }

    /// Reads all GPUs. Errors of a single GPU become findings of that GPU.
    ///
    /// # Errors
    /// [`GpuError::Amd`] if the GPUs cannot be counted.
    pub fn inventory(&self) -> Result<Inventory, GpuError> {
        let handles = self.gpus()?;
        let mut driver = Buffer::EMPTY;
        if let Some(first) = handles.first() {
            let _ = call!(self.functions, amdsmi_get_gpu_driver_info, *first, &mut driver);
        }
        let gpus = (0..).zip(handles).map(|(index, handle)| self.gpu(index, handle)).collect();
        let simulated = self.is_simulated();
        // The version is the first member of `amdsmi_driver_info_t`.
        Ok(Inventory { simulated, driver: driver.text(0), nvml: String::new(), cuda: String::new(), gpus })
    }
}

/// Reads a list of handles: first their number, then the handles.
fn handles(mut read: impl FnMut(*mut u32, *mut Handle) -> Result<(), AmdError>) -> Result<Vec<Handle>, AmdError> {
    let mut count = 0;
    read(&mut count, std::ptr::null_mut())?;
    count = count.min(MAX_HANDLES);
    let mut out = vec![std::ptr::null_mut(); count as usize];
    if count > 0 {
        read(&mut count, out.as_mut_ptr())?;
    }
    out.truncate(count as usize);
    Ok(out)
}

/// Whether an error means that the card or an older library has no such value.
fn is_expected(error: AmdError) -> bool {
    [NOT_SUPPORTED, NOT_IMPLEMENTED, NO_SYMBOL].contains(&error.code)
}

/// The counters in `amdsmi_error_count_t`: correctable and uncorrectable errors of all blocks since the driver was loaded.
fn ecc(count: &Buffer) -> Ecc {
    Ecc { enabled: true, corrected: count.u64(0), uncorrected: count.u64(8), ..Ecc::default() }
}

/// The value of a call; `None` on error. Errors other than "not supported" become findings.
fn value<T>(result: Result<T, AmdError>, findings: &mut Vec<Finding>) -> Option<T> {
    result
        .map_err(|error| {
            let what = error.to_string();
            if !is_expected(error) && findings.iter().all(|finding| finding.what != what) {
                findings.push(Finding {
                    code: FindingCode::UnreadableValue,
                    severity: Severity::Warning,
                    what,
                    remedy: "see the kernel's log: dmesg | grep -i amdgpu".into(),
                });
            }
        })
        .ok()
}

/// The PCI address in `amdsmi_bdf_t`: 3 bits of the function, 5 of the device, 8 of the bus, 48 of the domain.
fn bus_id(bdf: u64) -> String {
    format!("{:08x}:{:02x}:{:02x}.{:x}", bdf >> 16, bdf >> 8 & 0xff, bdf >> 3 & 0x1f, bdf & 7)
}

/// The power in `amdsmi_power_info_t`, in watts. It begins with the current and the average power (32 bits each), to which newer versions
/// prepend the power that applies to the card (64 bits). A member that the card does not report has only ones, in 16 or 32 bits.
fn watts(info: &Buffer) -> Option<f64> {
    let valid = |watts: u32| (watts != u32::MAX && watts != 0xffff).then_some(f64::from(watts));
    let (first, second) = (info.u32(0), info.u32(4));
    // In the new layout the upper half of the first member is 0. In the old one it is the average; if that is 0, the lower half counts.
    let is_new = second == 0;
    if is_new {
        valid(first).or_else(|| valid(info.u32(8))).or_else(|| valid(info.u32(12)))
    } else {
        valid(first).or_else(|| valid(second))
    }
}

/// Members of `amdsmi_asic_info_t`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asic {
    name: String,
    serial: Option<String>,
    compute_units: Option<u32>,
    /// Such as `gfx942`.
    architecture: Option<String>,
}

impl Asic {
    /// Where the serial number, the compute units and the graphics version are: texts have 256 bytes in newer versions, and 64 or 32 in
    /// versions up to 24. The serial number, which begins with `0x`, shows which.
    const LAYOUTS: [(usize, usize, usize); 2] = [(532, 792, 800), (340, 376, 384)];

    fn read(info: &Buffer) -> Self {
        let name = info.text(0);
        let Some((serial, units, version)) =
            Self::LAYOUTS.into_iter().find(|(serial, ..)| info.text(*serial).starts_with("0x"))
        else {
            return Self { name, ..Self::default() };
        };
        let (units, version) = (info.u32(units), info.u64(version));
        Self {
            name,
            serial: Some(info.text(serial)),
            compute_units: (units != u32::MAX && units > 0).then_some(units),
            architecture: (version != u64::MAX && version > 0).then(|| format!("gfx{version:x}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(parts: &[(usize, &[u8])]) -> Buffer {
        let mut out = Buffer::EMPTY;
        for (at, bytes) in parts {
            out.0[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        out
    }

    #[test]
    fn chips_are_read_in_both_layouts() {
        let expected = Asic {
            name: "AMD Instinct MI300X".into(),
            serial: Some("0x1234".into()),
            compute_units: Some(304),
            architecture: Some("gfx942".into()),
        };
        for (serial, units, version) in Asic::LAYOUTS {
            let (number, gfx) = (304_u32.to_ne_bytes(), 0x942_u64.to_ne_bytes());
            let parts: [(usize, &[u8]); 4] =
                [(0, b"AMD Instinct MI300X"), (serial, b"0x1234"), (units, &number), (version, &gfx)];
            assert_eq!(Asic::read(&buffer(&parts)), expected);
        }
        assert_eq!(Asic::read(&buffer(&[(0, b"x")])), Asic { name: "x".into(), ..Asic::default() });
    }

    #[test]
    fn power_is_read_in_both_layouts() {
        let power = |numbers: [u32; 4]| {
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
            watts(&buffer(&[(0, &bytes)]))
        };
        // Version 24: current, average. MI300 reports the current power only, MI200 the average only.
        assert_eq!(power([700, u32::MAX, 0, 0]), Some(700.0));
        assert_eq!(power([0xffff, 300, 0, 0]), Some(300.0));
        assert_eq!(power([u32::MAX, 0xffff, 0, 0]), None);
        // Version 26: socket power (64 bits), current, average.
        assert_eq!(power([700, 0, 700, u32::MAX]), Some(700.0));
        assert_eq!(power([u32::MAX, 0, u32::MAX, 250]), Some(250.0));
    }

    #[test]
    fn addresses_are_written_as_by_the_other_vendor() {
        assert_eq!(bus_id(0x0001_0000_0000 | 0x1b << 8 | 2 << 3 | 1), "00010000:1b:02.1");
        assert_eq!(bus_id(0xc5 << 8), "00000000:c5:00.0");
    }
}
