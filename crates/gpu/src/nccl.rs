//! NCCL, NVIDIA's library of collectives between GPUs, loaded at run time. Only what an all-reduce needs.
//!
//! Source of names, types and numbers: `nccl.h` (NCCL 2). The functions here have had the same signatures since NCCL 2.0.
#![allow(unsafe_code)] // FFI: NCCL receives pointers to locals, and buffers and streams that the caller keeps alive

use std::ffi::{CStr, c_char, c_int, c_void};

use libloading::Library;

use crate::GpuError;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct UniqueId {
    pub(crate) internal: [u8; 128],
}

/// `ncclComm_t`.
type Handle = *mut c_void;
/// `ncclResult_t`.
type Code = c_int;

const FLOAT32: c_int = 7;
const SUM: c_int = 0;

/// The names under which NCCL is installed: by packages of distributions and wheels of Python.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The loaded library.
pub(crate) struct Nccl {
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> Code,
    comm_init_rank: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> Code,
    comm_destroy: unsafe extern "C" fn(Handle) -> Code,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> Code,
    group_start: unsafe extern "C" fn() -> Code,
    group_end: unsafe extern "C" fn() -> Code,
    get_error_string: unsafe extern "C" fn(Code) -> *const c_char,
    /// Keeps the functions valid.
    _library: Library,
}

/// The membership of one GPU in a group.
pub(crate) struct Communicator<'a> {
    nccl: &'a Nccl,
    handle: Handle,
}

impl Nccl {
    /// Opens the library; `None` if it is not installed.
    pub(crate) fn open() -> Option<Self> {
        NAMES.iter().find_map(|name| Self::open_from(name))
    }

    fn open_from(name: &str) -> Option<Self> {
        // SAFETY: NCCL's initialisers have no requirements, and each function has the signature of nccl.h.
        unsafe {
            let library = Library::new(name).ok()?;
            Some(Self {
                get_unique_id: *library.get(b"ncclGetUniqueId\0").ok()?,
                comm_init_rank: *library.get(b"ncclCommInitRank\0").ok()?,
                comm_destroy: *library.get(b"ncclCommDestroy\0").ok()?,
                all_reduce: *library.get(b"ncclAllReduce\0").ok()?,
                group_start: *library.get(b"ncclGroupStart\0").ok()?,
                group_end: *library.get(b"ncclGroupEnd\0").ok()?,
                get_error_string: *library.get(b"ncclGetErrorString\0").ok()?,
                _library: library,
            })
        }
    }

    fn check(&self, call: &str, code: Code) -> Result<(), GpuError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: NCCL returns a constant string for every code.
        let text = unsafe { CStr::from_ptr((self.get_error_string)(code)) };
        Err(GpuError::Cuda(format!("NCCL: {call}: {} ({code})", text.to_string_lossy())))
    }

    /// Creates the id of a group.
    pub(crate) fn unique_id(&self) -> Result<UniqueId, GpuError> {
        let mut id = UniqueId { internal: [0; 128] };
        // SAFETY: the pointer is to a local.
        let code = unsafe { (self.get_unique_id)(&mut id) };
        self.check("ncclGetUniqueId", code).map(|()| id)
    }

    /// Runs `work` as one group of calls, which NCCL starts together.
    pub(crate) fn group<T>(&self, work: impl FnOnce() -> Result<T, GpuError>) -> Result<T, GpuError> {
        // SAFETY: neither call has arguments.
        self.check("ncclGroupStart", unsafe { (self.group_start)() })?;
        let done = work();
        // A started group must be ended, also after an error.
        // SAFETY: as above.
        let ended = self.check("ncclGroupEnd", unsafe { (self.group_end)() });
        let done = done?;
        ended.map(|()| done)
    }

    /// Joins a group with the GPU whose context is current. Inside of [`Self::group`] the membership is valid once the group has ended.
    pub(crate) fn join(&self, ranks: usize, id: UniqueId, rank: usize) -> Result<Box<Communicator<'_>>, GpuError> {
        let int = |n: usize| c_int::try_from(n).map_err(|_| GpuError::Invalid(format!("{n} ranks are too many")));
        // In a group NCCL writes the handle only when the group ends, so the communicator must not move.
        let mut communicator = Box::new(Communicator { nccl: self, handle: std::ptr::null_mut() });
        // SAFETY: the pointer stays valid, because the communicator is on the heap.
        let code = unsafe { (self.comm_init_rank)(&raw mut communicator.handle, int(ranks)?, id, int(rank)?) };
        self.check("ncclCommInitRank", code).map(|()| communicator)
    }
}

impl Communicator<'_> {
    /// Sums `count` numbers (fp32) of each rank in place.
    ///
    /// # Safety
    /// `buffer` must be `count` numbers in the memory of this communicator's GPU, and live until `stream`, a CUDA stream of that GPU, has
    /// been synchronised.
    pub(crate) unsafe fn all_reduce(&self, buffer: u64, count: usize, stream: *mut c_void) -> Result<(), GpuError> {
        let pointer = buffer as *mut c_void;
        // SAFETY: the caller's promise; in place means that both pointers are equal.
        let code =
            unsafe { (self.nccl.all_reduce)(pointer.cast_const(), pointer, count, FLOAT32, SUM, self.handle, stream) };
        self.nccl.check("ncclAllReduce", code)
    }
}

impl Drop for Communicator<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: the handle was created by this library and is used no more. Nothing can be done about an error.
            let _ = unsafe { (self.nccl.comm_destroy)(self.handle) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_that_does_not_exist_is_none() {
        assert!(Nccl::open_from("libnccl-that-is-not-installed.so.2").is_none());
    }
}
