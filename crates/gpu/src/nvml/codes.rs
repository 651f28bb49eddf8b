//! Descriptions of NVML's numeric codes: return codes, throttle reasons, architectures.
//! Source: nvml.h (`nvmlReturn_t`, `nvmlClocksEventReasons`).

/// The device does not support the call.
pub const NOT_SUPPORTED: u32 = 3;
/// The user lacks the permission for the call.
pub const NO_PERMISSION: u32 = 4;
/// The requested object does not exist.
pub const NOT_FOUND: u32 = 6;
/// The buffer is too small; the returned count is the required size.
pub const INSUFFICIENT_SIZE: u32 = 7;
/// The NVIDIA kernel module is not loaded.
pub const DRIVER_NOT_LOADED: u32 = 9;
/// No event occurred within the timeout.
pub const TIMEOUT: u32 = 10;
/// The installed driver is too old to have the function.
pub const FUNCTION_NOT_FOUND: u32 = 13;
/// The driver does not know this version of a structure (`NVML_ERROR_ARGUMENT_VERSION_MISMATCH`).
pub const ARGUMENT_VERSION_MISMATCH: u32 = 25;
/// The device no longer responds on the PCI bus.
pub const GPU_IS_LOST: u32 = 15;
/// The device must be reset before it can be used.
pub const RESET_REQUIRED: u32 = 16;
/// Kernel module and library have different versions.
pub const VERSION_MISMATCH: u32 = 18;
/// The object is in use by a process.
pub const IN_USE: u32 = 19;
/// There is no capacity left for the object.
pub const INSUFFICIENT_RESOURCES: u32 = 23;

/// Describes a return code (`nvmlReturn_t`).
pub fn describe(code: u32) -> &'static str {
    match code {
        0 => "success",
        1 => "NVML is not initialised",
        2 => "invalid argument",
        NOT_SUPPORTED => "not supported by this device",
        NO_PERMISSION => "no permission",
        NOT_FOUND => "not found",
        INSUFFICIENT_SIZE => "the buffer is too small",
        8 => "a power cable is not attached",
        DRIVER_NOT_LOADED => "the NVIDIA kernel module is not loaded",
        TIMEOUT => "timeout",
        12 => "a library is missing",
        FUNCTION_NOT_FOUND => "not available in this driver version",
        14 => "the card's configuration memory (inforom) is damaged",
        GPU_IS_LOST => "the GPU has fallen off the bus",
        RESET_REQUIRED => "the GPU needs a reset",
        17 => "blocked by the operating system",
        VERSION_MISMATCH => "driver and library versions differ",
        IN_USE => "in use",
        20 => "out of memory",
        21 => "no data",
        INSUFFICIENT_RESOURCES => "insufficient resources",
        25 => "argument version mismatch",
        27 => "not ready",
        28 => "the GPU was not found",
        29 => "invalid state",
        _ => "unknown error",
    }
}

/// Throttle reasons: bit, description, and whether the reason indicates a problem (idle and user settings do not).
pub const THROTTLE_REASONS: &[(u64, &str, bool)] = &[
    (0x1, "idle", false),
    (0x2, "clocks set by the user", false),
    (0x4, "power limit", false),
    (0x8, "hardware slowdown", true),
    (0x10, "sync boost group", false),
    (0x20, "temperature (driver)", true),
    (0x40, "temperature (hardware)", true),
    (0x80, "external power brake", true),
    (0x100, "display clocks", false),
];

/// Descriptions of the reasons in a throttle mask.
pub fn throttle_reasons(mask: u64) -> Vec<&'static str> {
    THROTTLE_REASONS.iter().filter(|(bit, ..)| mask & bit != 0).map(|(_, reason, _)| *reason).collect()
}

/// The name of an architecture number (`nvmlDeviceArchitecture_t`).
pub fn architecture(number: u32) -> &'static str {
    match number {
        2 => "Kepler",
        3 => "Maxwell",
        4 => "Pascal",
        5 => "Volta",
        6 => "Turing",
        7 => "Ampere",
        8 => "Ada",
        9 => "Hopper",
        10 => "Blackwell",
        _ => "unknown",
    }
}
