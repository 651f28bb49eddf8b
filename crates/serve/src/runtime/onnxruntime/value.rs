//! Tensors of ONNX Runtime, through its C API. The values of the `ort` crate describe themselves in full whenever they are created, which
//! takes several times as long as a small model.
#![allow(unsafe_code)] // FFI: every pointer passed to the C API points into a value that outlives the call

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};

use half::{bf16, f16};
use ort::sys::{ONNXTensorElementDataType as ElementType, OrtAllocatorType, OrtMemType, OrtMemoryInfo, OrtValue};

use super::{check, failed, strings};
use crate::Error;
use crate::tensor::{Data, DataType, Tensor};

/// The description of CPU memory, which each view of a tensor needs.
pub(super) struct CpuMemory(NonNull<OrtMemoryInfo>);

// SAFETY: the description is never modified.
unsafe impl Send for CpuMemory {}
// SAFETY: as above.
unsafe impl Sync for CpuMemory {}

impl CpuMemory {
    pub(super) fn new() -> Result<Self, Error> {
        let mut info = null_mut();
        let (kind, place) = (OrtAllocatorType::OrtDeviceAllocator, OrtMemType::OrtMemTypeDefault);
        // SAFETY: `info` receives the created description.
        check(unsafe { (ort::api().CreateCpuMemoryInfo)(kind, place, &raw mut info) })?;
        NonNull::new(info).map(Self).ok_or_else(|| failed("there is no description of CPU memory"))
    }
}

impl Drop for CpuMemory {
    fn drop(&mut self) {
        // SAFETY: this value owns the description.
        unsafe { (ort::api().ReleaseMemoryInfo)(self.0.as_ptr()) }
    }
}

/// A tensor. An input is a view of the elements of a [`Tensor`], except for strings, which are copied.
pub(super) struct Value<'a> {
    pointer: NonNull<OrtValue>,
    elements: PhantomData<&'a [u8]>,
}

impl Drop for Value<'_> {
    fn drop(&mut self) {
        // SAFETY: this value owns the tensor.
        unsafe { (ort::api().ReleaseValue)(self.pointer.as_ptr()) }
    }
}

fn element_type(datatype: DataType) -> ElementType {
    match datatype {
        DataType::Bool => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        DataType::Uint8 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        DataType::Uint16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        DataType::Uint32 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        DataType::Uint64 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        DataType::Int8 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        DataType::Int16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        DataType::Int32 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        DataType::Int64 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        DataType::Fp16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        DataType::Bf16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        DataType::Fp32 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        DataType::Fp64 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        DataType::Bytes => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
    }
}

impl<'a> Value<'a> {
    /// An input with the elements of a tensor.
    pub(super) fn of(memory: &CpuMemory, tensor: &'a Tensor) -> Result<Self, Error> {
        fn parts<T>(items: &[T]) -> (*mut c_void, usize) {
            (items.as_ptr().cast_mut().cast(), size_of_val(items))
        }
        let shape = dimensions(&tensor.shape)?;
        if tensor.data.len() != tensor.shape.iter().product::<usize>() {
            return Err(failed(format!("'{}' does not have as many elements as its shape", tensor.name)));
        }
        let (data, size) = match &tensor.data {
            Data::Bytes(items) => return strings::create(&shape, items),
            data => crate::each_data!(data, items => parts(items)),
        };
        let (kind, mut value) = (element_type(tensor.data.datatype()), null_mut());
        // SAFETY: `data` has `size` bytes, which hold the elements of this type and shape and outlive the view; ONNX Runtime does not
        // write into the inputs of a session.
        check(unsafe {
            let create = ort::api().CreateTensorWithDataAsOrtValue;
            create(memory.0.as_ptr(), data, size, shape.as_ptr(), shape.len(), kind, &raw mut value)
        })?;
        // SAFETY: the function created the value, and nothing else owns it.
        unsafe { Self::from_raw(value) }.ok_or_else(|| failed("an input was not created"))
    }

    /// Takes ownership of a tensor; `None` for a null pointer.
    ///
    /// # Safety
    /// The pointer is null or points to a tensor that nothing else owns.
    pub(super) unsafe fn from_raw(pointer: *mut OrtValue) -> Option<Self> {
        NonNull::new(pointer).map(|pointer| Self { pointer, elements: PhantomData })
    }

    pub(super) fn as_ptr(&self) -> *mut OrtValue {
        self.pointer.as_ptr()
    }

    /// Copies shape and elements, which must be of this type.
    pub(super) fn extract(&self, datatype: DataType) -> Result<(Vec<usize>, Data), Error> {
        let (kind, shape) = self.describe()?;
        if kind != element_type(datatype) {
            return Err(failed(format!("an output has elements of {kind:?}, declared as {}", datatype.name())));
        }
        let count: usize = shape.iter().product();
        let mut data = null_mut();
        if datatype != DataType::Bytes {
            // SAFETY: the value is a tensor of numbers.
            check(unsafe { (ort::api().GetTensorMutableData)(self.as_ptr(), &raw mut data) })?;
        }
        macro_rules! copy {
            ($variant:ident, $t:ty) => {
                // SAFETY: the tensor has `count` elements of this type, and any bytes are valid for it.
                Data::$variant(unsafe { copy_elements::<$t>(data, count) })
            };
        }
        let data = match datatype {
            // SAFETY: as below. Any byte except 0 is true.
            DataType::Bool => Data::Bool(unsafe { copy_elements::<u8>(data, count) }.iter().map(|b| *b != 0).collect()),
            DataType::Uint8 => copy!(Uint8, u8),
            DataType::Uint16 => copy!(Uint16, u16),
            DataType::Uint32 => copy!(Uint32, u32),
            DataType::Uint64 => copy!(Uint64, u64),
            DataType::Int8 => copy!(Int8, i8),
            DataType::Int16 => copy!(Int16, i16),
            DataType::Int32 => copy!(Int32, i32),
            DataType::Int64 => copy!(Int64, i64),
            DataType::Fp16 => copy!(Fp16, f16),
            DataType::Bf16 => copy!(Bf16, bf16),
            DataType::Fp32 => copy!(Fp32, f32),
            DataType::Fp64 => copy!(Fp64, f64),
            DataType::Bytes => Data::Bytes(strings::read(self, count)?),
        };
        Ok((shape, data))
    }

    /// Element type and shape.
    fn describe(&self) -> Result<(ElementType, Vec<usize>), Error> {
        let api = ort::api();
        let mut info = null_mut();
        // SAFETY: the function rejects values that are not tensors.
        check(unsafe { (api.GetTensorTypeAndShape)(self.as_ptr(), &raw mut info) })?;
        let read = || {
            let (mut kind, mut rank) = (ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, 0);
            // SAFETY: `info` is the description that was just created.
            check(unsafe { (api.GetTensorElementType)(info, &raw mut kind) })?;
            // SAFETY: as above.
            check(unsafe { (api.GetDimensionsCount)(info, &raw mut rank) })?;
            let mut shape = vec![0_i64; rank];
            // SAFETY: as above, and `shape` has room for `rank` dimensions.
            check(unsafe { (api.GetDimensions)(info, shape.as_mut_ptr(), rank) })?;
            Ok((kind, shape.into_iter().map(|size| usize::try_from(size).unwrap_or(0)).collect()))
        };
        let described = read();
        // SAFETY: the description was created above, and is not used any more.
        unsafe { (api.ReleaseTensorTypeAndShapeInfo)(info) };
        described
    }
}

/// The dimensions in the form of the C API.
fn dimensions(shape: &[usize]) -> Result<Vec<i64>, Error> {
    shape.iter().map(|size| i64::try_from(*size).map_err(failed)).collect()
}

/// # Safety
/// `data` points to `count` elements, or `count` is 0.
unsafe fn copy_elements<T: Copy>(data: *mut c_void, count: usize) -> Vec<T> {
    if count == 0 || data.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts(data.cast::<T>(), count) }.to_vec()
}
