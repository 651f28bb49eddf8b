//! String tensors of ONNX Runtime. Its C API copies strings by length, so any bytes pass through it unchanged; the functions of the `ort`
//! crate instead require UTF-8 without NUL.
#![allow(unsafe_code)] // FFI: every pointer passed to the C API points into a value that outlives the call

use std::ptr::null_mut;

use ort::AsPointer;
use ort::memory::Allocator;
use ort::value::{DynTensor, DynValue, TensorElementType};

use super::failed;
use crate::Error;

fn check(status: ort::sys::OrtStatusPtr) -> Result<(), Error> {
    // SAFETY: the status is what a function of the C API returned, and it is read once.
    unsafe { ort::Error::result_from_status(status) }.map_err(failed)
}

/// Creates a string tensor with a copy of these elements.
pub(super) fn create(shape: &[usize], items: &[Vec<u8>]) -> Result<DynTensor, Error> {
    let mut tensor = DynTensor::new(&Allocator::default(), TensorElementType::String, shape).map_err(failed)?;
    for (index, item) in items.iter().enumerate() {
        let mut buffer = null_mut();
        // SAFETY: the value is a string tensor, and the function checks the index.
        check(unsafe {
            (ort::api().GetResizedStringTensorElementBuffer)(tensor.ptr_mut(), index, item.len(), &raw mut buffer)
        })?;
        if !item.is_empty() {
            // SAFETY: the buffer belongs to the tensor and has room for exactly this many bytes.
            unsafe { std::ptr::copy_nonoverlapping(item.as_ptr(), buffer.cast::<u8>(), item.len()) };
        }
    }
    Ok(tensor)
}

/// Copies the `count` elements out of a string tensor.
pub(super) fn read(value: &DynValue, count: usize) -> Result<Vec<Vec<u8>>, Error> {
    let mut length = 0;
    // SAFETY: the function rejects values that are not string tensors.
    check(unsafe { (ort::api().GetStringTensorDataLength)(value.ptr(), &raw mut length) })?;
    let (mut content, mut offsets) = (vec![0_u8; length], vec![0_usize; count]);
    // SAFETY: both buffers have the lengths that are passed; the function rejects lengths that do not match the tensor.
    check(unsafe {
        let content = content.as_mut_ptr().cast();
        (ort::api().GetStringTensorContent)(value.ptr(), content, length, offsets.as_mut_ptr(), count)
    })?;
    // The end of the last element is not among the offsets.
    offsets.push(length);
    let bounds = offsets.windows(2).map(|bounds| content.get(bounds[0]..bounds[1]).map(<[u8]>::to_vec));
    bounds.collect::<Option<_>>().ok_or_else(|| failed("a string tensor has invalid offsets"))
}
