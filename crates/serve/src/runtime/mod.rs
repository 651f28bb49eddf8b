//! Runs ONNX models in this process: with ONNX Runtime when its library is found, otherwise with the built-in runtime.
//!
//! Invariant: one [`Runtime`] runs all models of a server, and a loaded model may be called from several threads at once.

mod builtin;
mod external_data;
mod onnx;
mod onnxruntime;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Error;
use crate::tensor::{Data, Tensor, TensorSpec};

/// A loaded model. `run` may be called from several threads at once.
pub trait Model: Send + Sync {
    /// Names, data types and shapes of the inputs.
    fn inputs(&self) -> &[TensorSpec];
    /// Names, data types and shapes of the outputs.
    fn outputs(&self) -> &[TensorSpec];
    /// Computes the outputs. The inputs have passed [`check_inputs`], so they match [`Model::inputs`] and its order.
    ///
    /// # Errors
    /// [`Error::Model`] when the computation fails.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error>;
}

/// Runs a model and converts a panic into an error.
///
/// # Errors
/// The model's, and [`Error::Model`] for a panic.
pub(crate) fn run_catching_panics(model: &dyn Model, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
    // Unwind safe: `run` takes the model by shared reference, so a panic cannot leave it in a partially modified state.
    catch_panics(|| model.run(inputs))
}

/// Runs `work` of a model runtime and converts a panic into [`Error::Model`]. `work` must not leave shared state partially modified.
fn catch_panics<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(Error::Model(format!("the model crashed: {}", text.unwrap_or("no message"))))
    })
}

/// The runtime that the user prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preference {
    /// ONNX Runtime if its library is found, otherwise the built-in runtime.
    #[default]
    Auto,
    /// ONNX Runtime; its absence is an error.
    Ort,
    /// Always the built-in runtime.
    Builtin,
}

impl std::str::FromStr for Preference {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => Ok(Self::Auto),
            "ort" => Ok(Self::Ort),
            // Earlier versions used tract as the built-in runtime, and existing settings name it.
            "builtin" | "tract" => Ok(Self::Builtin),
            other => Err(Error::Manifest(format!("runtime '{other}' is not auto, ort or builtin"))),
        }
    }
}

/// The runtime in use; cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    ort: Option<onnxruntime::OnnxRuntime>,
    /// One-line description for `slipway doctor`.
    about: Arc<str>,
}

impl Runtime {
    /// Chooses a runtime. `library` is the configured path of `libonnxruntime.so`. Without it, the Python environment
    /// (`$VIRTUAL_ENV`) and the system's library folders are searched.
    ///
    /// # Errors
    /// [`Error::Model`] when ONNX Runtime is required, by preference or by `library`, and cannot be loaded.
    pub fn choose(preference: Preference, library: Option<&Path>) -> Result<Self, Error> {
        if preference == Preference::Builtin {
            return Ok(Self { ort: None, about: "built-in (chosen by configuration)".into() });
        }
        let Some(path) = library.map(Path::to_owned).or_else(find_library) else {
            return match preference {
                Preference::Ort => Err(Error::Model(
                    "libonnxruntime.so was not found; set SLIPWAY_ONNXRUNTIME to its path (pip install onnxruntime installs it)"
                        .into(),
                )),
                _ => Ok(Self { ort: None, about: "built-in (no libonnxruntime.so found)".into() }),
            };
        };
        match onnxruntime::OnnxRuntime::load(&path) {
            Ok(ort) => {
                let about = format!("ONNX Runtime from {}", path.display()).into();
                Ok(Self { ort: Some(ort), about })
            }
            Err(error) if preference == Preference::Auto && library.is_none() => {
                tracing::warn!(path = %path.display(), %error, "cannot load ONNX Runtime; using the built-in runtime instead");
                Ok(Self { ort: None, about: format!("built-in ({} cannot be loaded)", path.display()).into() })
            }
            Err(error) => Err(error),
        }
    }

    /// One-line description of the runtime, with the library's path.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// The `platform` value in the protocol's model metadata.
    pub fn platform(&self) -> &'static str {
        if self.ort.is_some() { "onnx_onnxruntime" } else { "onnx_builtin" }
    }

    /// Loads the ONNX file at `path`. Concurrent calls share one copy of the weights.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`]; [`Error::ModelUnusable`] when the file is not a usable model, or has external data outside its folder;
    /// [`Error::Model`] when the file cannot be read.
    pub fn load(&self, path: &Path) -> Result<Arc<dyn Model>, Error> {
        let model = external_data::read_checked(path)?;
        let opened: Result<Arc<dyn Model>, Error> = match &self.ort {
            Some(ort) => {
                let without_shape = model.graph.iter().flat_map(onnx::Graph::without_shape).collect::<Vec<_>>();
                drop(model); // it may be large, and ONNX Runtime reads the file itself
                ort.open(path, &without_shape).map(|model| Arc::new(model) as _)
            }
            None => catch_panics(|| builtin::open(path, model).map(Arc::from)),
        };
        // The file was just read, so a runtime that rejects it objects to its content.
        opened.map_err(|error| match error {
            Error::Model(why) => Error::ModelUnusable(why),
            other => other,
        })
    }
}

/// Searches the Python environment and the system's library folders for libonnxruntime, in order of preference.
pub(crate) fn find_library() -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    if let Some(environment) = std::env::var_os("VIRTUAL_ENV") {
        let lib = PathBuf::from(environment).join("lib");
        let pythons = std::fs::read_dir(&lib).into_iter().flatten().flatten();
        folders.extend(pythons.map(|e| e.path().join("site-packages/onnxruntime/capi")));
    }
    folders.extend(
        ["/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"]
            .map(PathBuf::from),
    );
    folders.into_iter().find_map(|folder| library_in(&folder))
}

/// The libonnxruntime in a folder; with several, the last one by name, which is the most specific version.
pub fn library_in(folder: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libonnxruntime.so")))
        .collect();
    found.sort();
    found.pop()
}

/// Validates a request's inputs against the model's and returns them in the model's order.
///
/// # Errors
/// [`Error::Invalid`] that names the tensor and the expected value.
pub fn check_inputs(specs: &[TensorSpec], mut inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
    if let Some(unknown) = inputs.iter().find(|t| specs.iter().all(|s| s.name != t.name)) {
        let known = specs.iter().map(|s| format!("'{}'", s.name)).collect::<Vec<_>>().join(", ");
        return Err(Error::Invalid(format!("unexpected input '{}'; the model takes {known}", unknown.name)));
    }
    let mut ordered = Vec::with_capacity(specs.len());
    for spec in specs {
        let Some(index) = inputs.iter().position(|t| t.name == spec.name) else {
            return Err(Error::Invalid(format!("input '{}' is missing", spec.name)));
        };
        let tensor = inputs.swap_remove(index);
        let found = tensor.data.datatype();
        if found != spec.datatype {
            return Err(Error::Invalid(format!(
                "input '{}': datatype {}, expected {}",
                spec.name,
                found.name(),
                spec.datatype.name()
            )));
        }
        if let Some(shape) = spec.shape.as_ref().filter(|shape| !shape_matches(&tensor.shape, shape)) {
            return Err(Error::Invalid(format!(
                "input '{}': shape {:?}, expected {shape:?} (-1 is any size)",
                spec.name, tensor.shape
            )));
        }
        ordered.push(tensor);
    }
    if let Some(duplicate) = inputs.first() {
        return Err(Error::Invalid(format!("input '{}' is given twice", duplicate.name)));
    }
    Ok(ordered)
}

fn shape_matches(actual: &[usize], expected: &[i64]) -> bool {
    let size_matches = |(actual, expected): (&usize, &i64)| *expected < 0 || i64::try_from(*actual) == Ok(*expected);
    actual.len() == expected.len() && actual.iter().zip(expected).all(size_matches)
}

/// Maximum number of elements of the inputs that warm up a model.
const MAX_WARM_UP_ELEMENTS: usize = 1 << 26;

/// Inputs of zeros with size 1 in every dynamic dimension, and with one dimension if none are declared, to warm up a model. `None` if the model declares inputs of more than
/// [`MAX_WARM_UP_ELEMENTS`], so that a model cannot exhaust the memory by its declarations.
pub fn zero_inputs(specs: &[TensorSpec]) -> Option<Vec<Tensor>> {
    let mut total = 0_usize;
    let mut inputs = Vec::with_capacity(specs.len());
    for spec in specs {
        let declared = spec.shape.as_deref().unwrap_or(&[1]);
        let shape: Vec<usize> = declared.iter().map(|d| usize::try_from(*d).unwrap_or(1)).collect();
        let count = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size))?;
        total = total.checked_add(count).filter(|total| *total <= MAX_WARM_UP_ELEMENTS)?;
        inputs.push(Tensor { name: spec.name.clone(), shape, data: Data::zeros(spec.datatype, count) });
    }
    Some(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DataType;

    #[test]
    fn inputs_without_declared_shape_take_any_shape() {
        let folder = crate::testing::folder();
        let path = folder.path().join("any.onnx");
        std::fs::write(&path, crate::testing::onnx::relu_of_any_shape()).unwrap();
        let model = crate::testing::builtin().load(&path).unwrap();
        assert_eq!((&model.inputs()[0].shape, &model.outputs()[0].shape), (&None, &None));
        for shape in [vec![], vec![3], vec![2, 3]] {
            let count = shape.iter().product();
            let x = Tensor { name: "x".into(), shape, data: Data::Fp32(vec![-1.0; count]) };
            let y = model.run(&check_inputs(model.inputs(), vec![x.clone()]).unwrap()).unwrap();
            assert_eq!((&y[0].shape, &y[0].data), (&x.shape, &Data::Fp32(vec![0.0; count])));
        }
    }

    #[test]
    fn warm_up_inputs_are_limited() {
        let spec =
            |shape: &[i64]| TensorSpec { name: "x".into(), datatype: DataType::Fp32, shape: Some(shape.to_vec()) };
        let inputs = zero_inputs(&[spec(&[-1, 3]), spec(&[])]).unwrap();
        assert_eq!(inputs.iter().map(|t| t.data.len()).collect::<Vec<_>>(), [3, 1]);
        for shape in [&[1 << 40][..], &[i64::MAX, i64::MAX], &[1 << 26, 2]] {
            assert!(zero_inputs(&[spec(shape)]).is_none(), "{shape:?}");
        }
        let half = || spec(&[(1 << 25) + 1]);
        assert!(zero_inputs(&[half(), half()]).is_none());
    }
}
