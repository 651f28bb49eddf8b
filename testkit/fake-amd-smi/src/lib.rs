//! AMD SMI for simulated GPUs from a fixture, so that slipway's own code runs without a GPU. The binary links it and calls it through
//! [`simulator`]; other programs load the shared library as their `libamd_smi.so`.
//!
//! The fixture is selected by [`slipway_fake_amd_fixture`] before `amdsmi_init`, or by `SLIPWAY_FAKE_AMD_FIXTURE`. Structs have the layout
//! of amdsmi.h 26.5.
#![allow(unsafe_code)] // FFI: the C ABI of AMD SMI; every pointer is checked for null, otherwise callers must follow amdsmi.h
#![allow(clippy::missing_safety_doc)] // amdsmi.h documents the requirements of each function
#![allow(missing_docs)] // amdsmi.h documents the functions

mod files;
mod machine;

use std::ffi::{CStr, c_char};

pub use machine::NAMES;
use parking_lot::Mutex;
use slipway_gpu::amd::{Buffer, Functions, Handle, NOT_SUPPORTED, Simulator};

use crate::machine::{Gpu, Machine, pick};

/// Status codes of amdsmi.h.
const INVALID: u32 = 1;
const NOT_INITIALISED: u32 = 32;
/// AMD's PCI vendor ID.
const VENDOR: u32 = 0x1002;
/// `AMDSMI_TEMPERATURE_TYPE_HOTSPOT`, the only sensor of Instinct cards.
const HOTSPOT: u32 = 1;

struct State {
    fixture: Option<String>,
    machine: Option<Machine>,
}

static STATE: Mutex<State> = Mutex::new(State { fixture: None, machine: None });

/// Runs a function for a GPU and returns its status.
fn with_gpu(handle: Handle, call: impl FnOnce(&Machine, &Gpu, usize) -> Result<(), u32>) -> u32 {
    let state = STATE.lock();
    let Some(machine) = &state.machine else { return NOT_INITIALISED };
    // Handles are the numbers of the GPUs, from 1.
    let index = (handle as usize).wrapping_sub(1);
    match machine.gpus().get(index) {
        Some(gpu) => call(machine, gpu, index).err().unwrap_or(0),
        None => INVALID,
    }
}

/// Runs a function for a card. Of a partitioned card the first partition reports its sensors, and the others report none.
fn with_card(handle: Handle, call: impl FnOnce(&Machine, u32) -> Result<(), u32>) -> u32 {
    with_gpu(handle, |machine, gpu, _| if gpu.partition == 0 { call(machine, gpu.card) } else { Err(NOT_SUPPORTED) })
}

fn put<T>(to: *mut T, value: T) -> Result<(), u32> {
    if to.is_null() {
        return Err(INVALID);
    }
    // SAFETY: not null, and the caller must pass a pointer to a T.
    unsafe { to.write(value) };
    Ok(())
}

/// Writes the parts of a struct, and nothing else.
fn put_parts(to: *mut Buffer, parts: &[(usize, &[u8])]) -> Result<(), u32> {
    if to.is_null() {
        return Err(INVALID);
    }
    for (at, bytes) in parts {
        // SAFETY: not null, and the parts are inside the struct, which the caller provides.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast::<u8>().add(*at), bytes.len()) };
    }
    Ok(())
}

/// The value of a card in a list.
fn value<T: Copy + Default>(list: &[T], card: u32) -> T {
    pick(list, card).copied().unwrap_or_default()
}

/// The number of items, and the items if there is space for them.
fn put_handles(items: &[Handle], count: *mut u32, to: *mut Handle) -> u32 {
    if count.is_null() {
        return INVALID;
    }
    let Ok(length) = u32::try_from(items.len()) else { return INVALID };
    // SAFETY: not null; the caller passes the capacity in it.
    let capacity = unsafe { count.replace(length) };
    if !to.is_null() && capacity >= length {
        // SAFETY: not null, and the caller guarantees `capacity` items, which are enough.
        unsafe { std::ptr::copy_nonoverlapping(items.as_ptr(), to, items.len()) };
    }
    0
}

/// Selects the fixture of the next initialisation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slipway_fake_amd_fixture(name: *const c_char) -> u32 {
    if name.is_null() {
        return INVALID;
    }
    // SAFETY: not null, and the caller passes a text with a final 0.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    if Machine::load(&name).is_none() {
        return INVALID;
    }
    STATE.lock().fixture = Some(name);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_init(_flags: u64) -> u32 {
    let mut state = STATE.lock();
    let name = state.fixture.clone().or_else(|| std::env::var("SLIPWAY_FAKE_AMD_FIXTURE").ok());
    state.machine = Machine::load(name.as_deref().unwrap_or(NAMES[0]));
    if state.machine.is_some() { 0 } else { INVALID }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_shut_down() -> u32 {
    STATE.lock().machine = None;
    0
}

/// Every card is a socket, whose handle is that of its first GPU.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_get_socket_handles(count: *mut u32, to: *mut Handle) -> u32 {
    let gpus = STATE.lock().machine.as_ref().map(Machine::gpus);
    let Some(gpus) = gpus else { return NOT_INITIALISED };
    let first = gpus.iter().enumerate().filter(|(_, gpu)| gpu.partition == 0);
    let sockets: Vec<Handle> = first.map(|(index, _)| (index + 1) as Handle).collect();
    put_handles(&sockets, count, to)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_get_processor_handles(socket: Handle, count: *mut u32, to: *mut Handle) -> u32 {
    with_gpu(socket, |_, gpu, index| {
        let gpus: Vec<Handle> = (0..gpu.partitions as usize).map(|n| (index + 1 + n) as Handle).collect();
        match put_handles(&gpus, count, to) {
            0 => Ok(()),
            status => Err(status),
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_get_processor_type(gpu: Handle, to: *mut u32) -> u32 {
    with_gpu(gpu, |_, _, _| put(to, 1))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_get_gpu_asic_info(gpu: Handle, to: *mut Buffer) -> u32 {
    with_gpu(gpu, |machine, gpu, index| {
        let serial = format!("0x{:016X}\0", 0x1234_5678_9ABC_0000_u64 + u64::from(gpu.card));
        put_parts(
            to,
            &[
                (0, format!("{}\0", machine.name).as_bytes()),
                (256, &VENDOR.to_ne_bytes()),
                (260, b"Advanced Micro Devices Inc. [AMD/ATI]\0"),
                (516, &VENDOR.to_ne_bytes()),
                (520, &machine.device.to_ne_bytes()),
                (532, serial.as_bytes()),
                (788, &u32::try_from(index).unwrap_or(u32::MAX).to_ne_bytes()),
                (792, &(machine.compute_units / gpu.partitions).to_ne_bytes()),
                (800, &machine.architecture.to_ne_bytes()),
            ],
        )
    })
}

/// The function of the address is the number of the partition.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_get_gpu_device_bdf(gpu: Handle, to: *mut u64) -> u32 {
    with_gpu(gpu, |_, gpu, _| put(to, u64::from(Machine::bus(gpu.card) << 8 | gpu.partition)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_get_gpu_device_uuid(gpu: Handle, length: *mut u32, to: *mut c_char) -> u32 {
    with_gpu(gpu, |machine, _, gpu| {
        let text = format!("{:02x}ff{:04x}-0000-1000-80{:02x}-{:012x}\0", gpu, machine.architecture, gpu, gpu);
        if length.is_null() || to.is_null() {
            return Err(INVALID);
        }
        // SAFETY: not null; the caller passes the capacity in it.
        if (unsafe { length.read() } as usize) < text.len() {
            return Err(INVALID);
        }
        // SAFETY: not null, and the caller guarantees as many bytes, which are enough.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_get_gpu_driver_info(gpu: Handle, to: *mut Buffer) -> u32 {
    with_gpu(gpu, |machine, _, _| put_parts(to, &[(0, format!("{}\0", machine.driver).as_bytes()), (512, b"amdgpu\0")]))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_get_gpu_memory_total(gpu: Handle, kind: u32, to: *mut u64) -> u32 {
    with_gpu(gpu, |machine, gpu, _| {
        let bytes = (machine.memory_mib << 20) / u64::from(gpu.partitions);
        if kind == 0 { put(to, bytes) } else { Err(NOT_SUPPORTED) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_get_gpu_memory_usage(gpu: Handle, kind: u32, to: *mut u64) -> u32 {
    with_gpu(gpu, |machine, gpu, _| {
        let bytes = (value(&machine.memory_used_mib, gpu.card) << 20) / u64::from(gpu.partitions);
        if kind == 0 { put(to, bytes) } else { Err(NOT_SUPPORTED) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_get_temp_metric(gpu: Handle, sensor: u32, metric: u32, to: *mut i64) -> u32 {
    with_card(gpu, |machine, card| match (sensor, metric) {
        (HOTSPOT, 0) => put(to, value(&machine.temperature, card)),
        (HOTSPOT, 5) => put(to, machine.temperature_critical),
        (HOTSPOT, 7) => put(to, machine.temperature_emergency),
        _ => Err(NOT_SUPPORTED),
    })
}

/// The power of the socket, 64 bits, and then the current and the average power, of which Instinct cards report the first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_get_power_info(gpu: Handle, to: *mut Buffer) -> u32 {
    with_card(gpu, |machine, card| {
        let watts = value(&machine.power, card);
        let parts: [(usize, &[u8]); 3] =
            [(0, &u64::from(watts).to_ne_bytes()), (8, &watts.to_ne_bytes()), (12, &u32::MAX.to_ne_bytes())];
        put_parts(to, &parts)
    })
}

/// The current, the default, the DPM, the minimum and the maximum cap, in microwatts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_get_power_cap_info(gpu: Handle, _sensor: u32, to: *mut Buffer) -> u32 {
    with_card(gpu, |machine, _| {
        let cap = (machine.power_limit * 1_000_000).to_ne_bytes();
        put_parts(to, &[(0, &cap), (8, &cap), (16, &[0; 8]), (24, &[0; 8]), (32, &cap)])
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_get_gpu_activity(gpu: Handle, to: *mut Buffer) -> u32 {
    with_card(gpu, |machine, card| {
        let percent = value(&machine.utilization, card);
        let parts: [(usize, &[u8]); 3] =
            [(0, &percent.to_ne_bytes()), (4, &(percent / 2).to_ne_bytes()), (8, &u32::MAX.to_ne_bytes())];
        put_parts(to, &parts)
    })
}

/// The number of the render node, and that of the card.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_get_gpu_enumeration_info(gpu: Handle, to: *mut Buffer) -> u32 {
    with_gpu(gpu, |_, _, index| {
        let card = u32::try_from(index).unwrap_or(u32::MAX);
        put_parts(to, &[(0, &files::render(index).to_ne_bytes()), (4, &card.to_ne_bytes())])
    })
}

/// Correctable, uncorrectable and deferred errors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdsmi_get_gpu_total_ecc_count(gpu: Handle, to: *mut Buffer) -> u32 {
    with_gpu(gpu, |_, gpu, _| put_parts(to, &[(0, &[0; 8]), (8, &gpu.errors.to_ne_bytes()), (16, &[0; 8])]))
}

macro_rules! table {
    ($($name:ident($($argument:ty),*);)*) => {
        const FUNCTIONS: Functions =
            Functions { $($name: Some($name),)* slipway_fake_amd_fixture: Some(slipway_fake_amd_fixture) };
    };
}

slipway_gpu::amd_smi_functions!(table);

/// The simulator for [`slipway_gpu::amd::set_simulator`].
pub const fn simulator() -> Simulator {
    // SAFETY: the functions implement amdsmi.h, and write only members of its structs.
    unsafe { Simulator::new(FUNCTIONS, &NAMES, files::files) }
}

#[cfg(test)]
mod tests {
    use slipway_gpu::amd::Amd;
    use slipway_gpu::amd::devices::{self, Link};

    use super::*;

    #[test]
    fn every_value_of_a_fixture_is_read() {
        let amd = Amd::open_simulator(simulator(), "mi300xx8").unwrap();
        let inventory = amd.inventory().unwrap();
        assert!(inventory.simulated);
        assert_eq!((inventory.driver.as_str(), inventory.gpus.len()), ("6.12.12", 8));
        let gpu = &inventory.gpus[2];
        assert_eq!((gpu.index, gpu.name.as_str(), gpu.architecture.as_str()), (2, "AMD Instinct MI300X", "gfx942"));
        assert_eq!((gpu.bus_id.as_str(), gpu.cores), ("00000000:45:00.0", Some(19_456)));
        assert_eq!((gpu.memory_total, gpu.memory_used), (Some(192 << 30), Some(88 << 30)));
        assert_eq!((gpu.utilization_percent, gpu.memory_utilization_percent), (Some(97), Some(48)));
        assert_eq!((gpu.power_watts, gpu.power_limit_watts), (Some(702.0), Some(750.0)));
        assert_eq!((gpu.temperature_celsius, gpu.temperature_slowdown_celsius), (Some(72), Some(100)));
        assert_eq!(gpu.temperature_shutdown_celsius, Some(105));
        assert!(gpu.findings.is_empty(), "{:?}", gpu.findings);
        let unique: std::collections::BTreeSet<_> = inventory.gpus.iter().map(|gpu| &gpu.uuid).collect();
        assert_eq!(unique.len(), 8);
        drop(amd);
        assert!(Amd::open_simulator(simulator(), "mi1").is_err());
        let amd = Amd::open_simulator(simulator(), "mi355xx8").unwrap();
        let gpus = amd.inventory().unwrap().gpus;
        assert_eq!((gpus[7].architecture.as_str(), gpus[7].memory_total), ("gfx950", Some(288 << 30)));
        drop(amd);
        let amd = Amd::open_simulator(simulator(), "mi300xx8-cpx").unwrap();
        let gpus = amd.inventory().unwrap().gpus;
        let last = gpus.last().unwrap();
        assert_eq!((gpus.len(), last.minor, last.cores), (64, Some(191), Some(38 * 64)));
        assert_eq!((last.memory_total, last.power_watts), (Some(24 << 30), None));
        assert!(last.findings.is_empty(), "{:?}", last.findings);
    }

    #[test]
    fn devices_of_every_fixture_are_read() {
        let facts = |fixture: &str| {
            let devices = devices::devices(&files::files(fixture));
            let last = devices.last().unwrap().clone();
            let compute = last.compute.clone().unwrap();
            let partition = last.partition.as_ref().map(ToString::to_string).unwrap_or_default();
            let links = (devices[0].link(&last), compute.links.len());
            (devices.len(), last.id, partition, devices::family(compute.version), compute.simds, links)
        };
        let id = |text: &str| text.to_owned();
        assert_eq!(facts("mi300xx8"), (8, id("0000:e5:00.0"), id("spx_nps1"), Some("AI"), 1216, (Link::Xgmi, 7)));
        assert_eq!(facts("mi300xx8-cpx"), (64, id("amdgpu_xcp_55"), id("cpx_nps4"), Some("AI"), 152, (Link::Xgmi, 63)));
        assert_eq!(
            facts("mi300xx8-mixed"),
            (29, id("amdgpu_xcp_20"), id("cpx_nps1"), Some("AI"), 152, (Link::Xgmi, 28))
        );
        assert_eq!(facts("mi210x4"), (4, id("0000:65:00.0"), id(""), Some("AI"), 416, (Link::Pcie, 3)));
        assert_eq!(facts("rx7900xtxx2"), (2, id("0000:25:00.0"), id(""), Some("GC_11_0_0"), 192, (Link::Pcie, 1)));
    }
}
