//! A session that several threads run at once.
//!
//! ONNX Runtime documents `Run` as safe to call from several threads on one session (`docs/reference/high-level-design.md`, "Multiple
//! threads can invoke the Run() method on the same inference session object"; microsoft/onnxruntime#114). The `ort` crate still requires
//! an exclusive reference, because execution providers for accelerators broke that guarantee (pykeio/ort#402). The CPU provider, the only
//! one used here, keeps it. One session per thread would hold a copy of the weights per core, so this module calls `Run` through the C
//! API on a shared session.
#![allow(unsafe_code)] // FFI: every pointer passed to `Run` points into a value that outlives the call

use std::ffi::{CString, c_char};
use std::ptr::{null, null_mut};

use ort::AsPointer;
use ort::session::Session;
use ort::sys::OrtValue;

use super::value::{CpuMemory, Value};
use super::{check, failed};
use crate::Error;
use crate::tensor::Tensor;

pub(super) struct SharedSession {
    session: Session,
    inputs: Names,
    outputs: Names,
    memory: CpuMemory,
}

/// Input or output names in the form of the C API.
struct Names {
    /// Point into `_owned`. A `CString` keeps its bytes on the heap, so moving the vector does not move them.
    pointers: Vec<*const c_char>,
    _owned: Vec<CString>,
}

// SAFETY: the pointers refer to strings that this value owns and that are never modified.
unsafe impl Send for Names {}
// SAFETY: as above.
unsafe impl Sync for Names {}

impl Names {
    fn new<'a>(names: impl Iterator<Item = &'a str>) -> Result<Self, Error> {
        let owned = names.map(CString::new).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        Ok(Self { pointers: owned.iter().map(|name| name.as_ptr()).collect(), _owned: owned })
    }
}

impl SharedSession {
    /// Wraps a session that runs on the CPU.
    ///
    /// # Errors
    /// An input or output name that contains NUL.
    pub(super) fn new(session: Session) -> Result<Self, Error> {
        let inputs = Names::new(session.inputs().iter().map(|i| i.name()))?;
        let outputs = Names::new(session.outputs().iter().map(|o| o.name()))?;
        Ok(Self { session, inputs, outputs, memory: CpuMemory::new()? })
    }

    /// Runs the model. Inputs and outputs are in the session's order.
    ///
    /// # Errors
    /// ONNX Runtime's, and a wrong number of inputs.
    pub(super) fn run(&self, inputs: &[Tensor]) -> Result<Vec<Value<'static>>, Error> {
        let names = &self.inputs.pointers;
        if inputs.len() != names.len() {
            return Err(failed(format!("{} inputs for a model of {}", inputs.len(), names.len())));
        }
        let inputs = inputs.iter().map(|tensor| Value::of(&self.memory, tensor)).collect::<Result<Vec<_>, _>>()?;
        let values: Vec<*const OrtValue> = inputs.iter().map(|value| value.as_ptr().cast_const()).collect();
        let mut results: Vec<*mut OrtValue> = vec![null_mut(); self.outputs.pointers.len()];
        // SAFETY: `names` and `values` hold one valid pointer per input, `outputs` and `results` one per output. All outlive the call,
        // which keeps none of them. The session may be run from several threads at once (see the module).
        let status = unsafe {
            (ort::api().Run)(
                self.session.ptr().cast_mut(),
                null(),
                names.as_ptr(),
                values.as_ptr(),
                values.len(),
                self.outputs.pointers.as_ptr(),
                results.len(),
                results.as_mut_ptr(),
            )
        };
        // Take ownership of all created values before checking the status, so that they are released in case of an error too.
        // SAFETY: `Run` created the values, and nothing else owns them.
        let outputs: Vec<Option<Value<'_>>> = results.into_iter().map(|v| unsafe { Value::from_raw(v) }).collect();
        check(status)?;
        outputs.into_iter().map(|value| value.ok_or_else(|| failed("an output is missing"))).collect()
    }
}
