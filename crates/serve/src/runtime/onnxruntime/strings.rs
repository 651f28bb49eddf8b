//! String tensors of ONNX Runtime. Its C API copies strings by length, so any bytes pass through it unchanged; the functions of the `ort`
//! crate instead require UTF-8 without NUL.
#![allow(unsafe_code)] // FFI: every pointer passed to the C API points into a value that outlives the call

use std::ptr::null_mut;

use super::value::Value;
use super::{check, failed};
use crate::Error;

/// Creates a string tensor with a copy of these elements.
pub(super) fn create<'a>(shape: &[i64], items: &[Vec<u8>]) -> Result<Value<'a>, Error> {
    let api = ort::api();
    let (mut allocator, mut value) = (null_mut(), null_mut());
    // SAFETY: `allocator` receives the default allocator, which is never released.
    check(unsafe { (api.GetAllocatorWithDefaultOptions)(&raw mut allocator) })?;
    let kind = ort::sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING;
    // SAFETY: `value` receives the created tensor.
    check(unsafe { (api.CreateTensorAsOrtValue)(allocator, shape.as_ptr(), shape.len(), kind, &raw mut value) })?;
    // SAFETY: the function created the tensor, and nothing else owns it.
    let tensor = unsafe { Value::from_raw(value) }.ok_or_else(|| failed("a string tensor was not created"))?;
    for (index, item) in items.iter().enumerate() {
        let mut buffer = null_mut();
        // SAFETY: the value is a string tensor, and the function checks the index.
        check(unsafe {
            (api.GetResizedStringTensorElementBuffer)(tensor.as_ptr(), index, item.len(), &raw mut buffer)
        })?;
        if !item.is_empty() {
            // SAFETY: the buffer belongs to the tensor and has room for exactly this many bytes.
            unsafe { std::ptr::copy_nonoverlapping(item.as_ptr(), buffer.cast::<u8>(), item.len()) };
        }
    }
    Ok(tensor)
}

/// Copies the `count` elements out of a string tensor.
pub(super) fn read(value: &Value<'_>, count: usize) -> Result<Vec<Vec<u8>>, Error> {
    let mut length = 0;
    // SAFETY: the function rejects values that are not string tensors.
    check(unsafe { (ort::api().GetStringTensorDataLength)(value.as_ptr(), &raw mut length) })?;
    let (mut content, mut offsets) = (vec![0_u8; length], vec![0_usize; count]);
    // SAFETY: both buffers have the lengths that are passed; the function rejects lengths that do not match the tensor.
    check(unsafe {
        let content = content.as_mut_ptr().cast();
        (ort::api().GetStringTensorContent)(value.as_ptr(), content, length, offsets.as_mut_ptr(), count)
    })?;
    // The end of the last element is not among the offsets.
    offsets.push(length);
    let bounds = offsets.windows(2).map(|bounds| content.get(bounds[0]..bounds[1]).map(<[u8]>::to_vec));
    bounds.collect::<Option<_>>().ok_or_else(|| failed("a string tensor has invalid offsets"))
}
