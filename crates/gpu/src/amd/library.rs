//! The table of AMD SMI's C functions, loaded at run time. `libamd_smi.so` is part of ROCm, so slipway does not link to it.
//!
//! AMD changes its structs from one major version to the next, and does not keep their old layout. So a struct is passed as a buffer that
//! is larger than the struct in any version, and only members are read whose place is the same in all versions or can be recognised.
//! Source: amdsmi.h, versions 24.7 (ROCm 6.3) and 26.5.

use std::ffi::{c_char, c_void};
use std::path::Path;

use libloading::Library;

/// A socket or a processor.
pub type Handle = *mut c_void;

/// Size of a [`Buffer`] in bytes; `amdsmi_asic_info_t` is the largest struct in use, with less than 1 KiB.
pub const BUFFER_BYTES: usize = 8192;

/// Memory for a struct of unknown size.
#[repr(C, align(16))]
#[derive(Clone, Copy)]
pub struct Buffer(pub [u8; BUFFER_BYTES]);

impl Buffer {
    /// A buffer of zeros.
    pub const EMPTY: Self = Self([0; BUFFER_BYTES]);

    /// The number at a place; 0 beyond the end.
    pub fn u32(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_ne_bytes)
    }

    /// The number at a place; 0 beyond the end.
    pub fn u64(&self, at: usize) -> u64 {
        let bytes = self.0.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_ne_bytes)
    }

    /// The text at a place, up to its final 0 and of at most 256 characters.
    pub fn text(&self, at: usize) -> String {
        let bytes = self.0.get(at..).unwrap_or_default().iter().copied().take(256).take_while(|b| *b != 0);
        String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).trim().to_owned()
    }
}

/// Passes the name and the argument types of every AMD SMI function that slipway calls to a macro. Code that is generated from this one
/// list, here and in a simulator, cannot miss a function.
#[macro_export]
macro_rules! amd_smi_functions {
    ($generate:ident) => {
        $generate! {
            amdsmi_init(u64);
            amdsmi_shut_down();
            amdsmi_get_socket_handles(*mut u32, *mut Handle);
            amdsmi_get_processor_handles(Handle, *mut u32, *mut Handle);
            amdsmi_get_processor_type(Handle, *mut u32);
            amdsmi_get_gpu_asic_info(Handle, *mut Buffer);
            amdsmi_get_gpu_device_bdf(Handle, *mut u64);
            amdsmi_get_gpu_device_uuid(Handle, *mut u32, *mut c_char);
            amdsmi_get_gpu_driver_info(Handle, *mut Buffer);
            amdsmi_get_gpu_memory_total(Handle, u32, *mut u64);
            amdsmi_get_gpu_memory_usage(Handle, u32, *mut u64);
            amdsmi_get_temp_metric(Handle, u32, u32, *mut i64);
            amdsmi_get_power_info(Handle, *mut Buffer);
            amdsmi_get_power_cap_info(Handle, u32, *mut Buffer);
            amdsmi_get_gpu_activity(Handle, *mut Buffer);
            amdsmi_get_gpu_enumeration_info(Handle, *mut Buffer);
            amdsmi_get_gpu_total_ecc_count(Handle, *mut Buffer);
        }
    };
}

macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        /// Pointers to AMD SMI's functions, either of a loaded library or of a simulator that is linked into the program.
        #[derive(Clone, Copy)]
        #[allow(missing_docs)] // amdsmi.h documents the functions
        pub struct Functions {
            $(pub $name: Option<unsafe extern "C" fn($($argument),*) -> u32>,)*
            /// Only in simulators: selects the fixture of the next initialisation by its name. It copies the text, and returns 0, or
            /// another code if there is no such fixture.
            pub slipway_fake_amd_fixture: Option<unsafe extern "C" fn(*const c_char) -> u32>,
        }

        /// Opens the library and looks up every function.
        ///
        /// # Errors
        /// [`libloading::Error`] if the library cannot be loaded.
        pub(super) fn open(path: &Path) -> Result<(Functions, Library), libloading::Error> {
            // SAFETY: loading runs the library's initialisers; those of AMD SMI have no preconditions. The signatures above are from
            // amdsmi.h, with a larger buffer in place of each struct.
            unsafe {
                let library = Library::new(path)?;
                let functions = Functions {
                    $($name: library.get(concat!(stringify!($name), "\0").as_bytes()).ok().map(|s| *s),)*
                    slipway_fake_amd_fixture: library.get(b"slipway_fake_amd_fixture\0").ok().map(|s| *s),
                };
                Ok((functions, library))
            }
        }
    };
}

amd_smi_functions!(functions);
