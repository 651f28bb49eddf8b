//! Returns memory to the system that a large pipeline needed only while it was read: for a moment a hundred times the size of its text, of
//! which the allocator would keep what it has freed.
#![allow(unsafe_code)] // FFI: `malloc_trim` of the GNU C library

/// Bytes of a pipeline from which memory is returned. Smaller ones leave little, and returning it takes time.
const LARGE: usize = 256 << 10;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
unsafe extern "C" {
    fn malloc_trim(pad: usize) -> std::ffi::c_int;
}

/// Returns the memory that is free after a pipeline of this number of bytes was read.
pub(crate) fn release_after(bytes: usize) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if bytes >= LARGE {
        // SAFETY: the function has no preconditions and may be called from any thread; it changes only memory that is free.
        unsafe { malloc_trim(0) };
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = (bytes, LARGE);
}
