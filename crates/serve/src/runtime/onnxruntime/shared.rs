//! A session that several threads run at once.
//!
//! ONNX Runtime documents `Run` as safe to call from several threads on one session (`docs/reference/high-level-design.md`, "Multiple
//! threads can invoke the Run() method on the same inference session object"; microsoft/onnxruntime#114). The `ort` crate asks for an
//! exclusive reference all the same, because execution providers for accelerators broke that promise (pykeio/ort#402); with the CPU
//! provider, which is the only one used here, it holds. A session for each thread would hold the weights once for each core, so `Run`
//! is called through the C API here.
#![allow(unsafe_code)] // FFI: every pointer handed to `Run` points into a value that outlives the call

use std::ffi::{CString, c_char};
use std::ptr::{NonNull, null, null_mut};

use ort::AsPointer;
use ort::session::{Session, SessionInputValue};
use ort::value::DynValue;

use super::failed;
use crate::Error;

pub(super) struct SharedSession {
    session: Session,
    inputs: Names,
    outputs: Names,
}

/// Names as the C API takes them.
struct Names {
    /// Points into `_owned`, whose texts do not move when the list does.
    pointers: Vec<*const c_char>,
    _owned: Vec<CString>,
}

// SAFETY: the pointers lead to texts that this value owns and nobody changes.
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
    /// Takes a session that runs on the CPU.
    ///
    /// # Errors
    /// A name of an input or output that holds a NUL.
    pub(super) fn new(session: Session) -> Result<Self, Error> {
        let inputs = Names::new(session.inputs().iter().map(|i| i.name()))?;
        let outputs = Names::new(session.outputs().iter().map(|o| o.name()))?;
        Ok(Self { session, inputs, outputs })
    }

    /// Runs the model on inputs in the session's order; the outputs in its order.
    ///
    /// # Errors
    /// ONNX Runtime's, and a number of inputs that is not the session's.
    pub(super) fn run(&self, inputs: &[SessionInputValue<'_>]) -> Result<Vec<DynValue>, Error> {
        let names = &self.inputs.pointers;
        if inputs.len() != names.len() {
            return Err(failed(format!("{} inputs for a model of {}", inputs.len(), names.len())));
        }
        let values: Vec<*const ort::sys::OrtValue> = inputs.iter().map(|value| value.ptr()).collect();
        let mut found: Vec<*mut ort::sys::OrtValue> = vec![null_mut(); self.outputs.pointers.len()];
        // SAFETY: `names` and `values` hold one valid pointer for each input, `outputs` and `found` one for each output; all outlive the
        // call, which keeps none of them. The session may be run from several threads at once (see the module).
        let status = unsafe {
            (ort::api().Run)(
                self.session.ptr().cast_mut(),
                null(),
                names.as_ptr(),
                values.as_ptr(),
                values.len(),
                self.outputs.pointers.as_ptr(),
                found.len(),
                found.as_mut_ptr(),
            )
        };
        // Whatever was made is owned from here on, so that it is released in case of an error too.
        let allocator = self.session.allocator();
        let outputs: Vec<Option<DynValue>> = found
            .into_iter()
            // SAFETY: `Run` made the value, nobody else owns it, and the session's allocator is the one for CPU tensors.
            .map(|value| NonNull::new(value).map(|value| unsafe { DynValue::from_ptr(value, Some(allocator)) }))
            .collect();
        // SAFETY: the status is what `Run` returned, and it is read once.
        unsafe { ort::Error::result_from_status(status) }.map_err(failed)?;
        outputs.into_iter().map(|value| value.ok_or_else(|| failed("an output is missing"))).collect()
    }
}
