//! Models in process: ONNX Runtime when a library is found, tract otherwise.

mod external_data;
mod onnxruntime;
mod tract;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Error;
use crate::tensor::{Data, Tensor, TensorSpec};

/// A loaded model. `run` may be called from several threads at once.
pub trait Model: Send + Sync {
    /// Names, types and shapes of its inputs.
    fn inputs(&self) -> &[TensorSpec];
    /// Names, types and shapes of its outputs.
    fn outputs(&self) -> &[TensorSpec];
    /// Computes the outputs. Inputs were checked against [`Model::inputs`] and stand in that order.
    ///
    /// # Errors
    /// [`Error::Model`] when the computation fails.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error>;
}

/// Runs a model and turns a panic in it into an error of this call.
///
/// # Errors
/// The model's, and [`Error::Model`] for a panic.
pub(crate) fn run_caught(model: &dyn Model, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
    // Asserting unwind safety is right: `run` takes the model by shared reference, so a panic leaves no half-written state behind.
    let run = std::panic::AssertUnwindSafe(|| model.run(inputs));
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(Error::Model(format!("the model crashed: {}", text.unwrap_or("no reason was given"))))
    })
}

/// Which runtime runs the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preference {
    /// ONNX Runtime when a library is found, tract otherwise.
    #[default]
    Auto,
    /// ONNX Runtime or nothing.
    Ort,
    /// tract.
    Tract,
}

impl std::str::FromStr for Preference {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => Ok(Self::Auto),
            "ort" => Ok(Self::Ort),
            "tract" => Ok(Self::Tract),
            other => Err(Error::Manifest(format!("runtime '{other}' is not auto, ort or tract"))),
        }
    }
}

/// The runtime in use; cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    ort: Option<onnxruntime::OnnxRuntime>,
    /// One line for `slipway doctor`.
    about: Arc<str>,
}

impl Runtime {
    /// Chooses a runtime. `library` is the path of `libonnxruntime.so`, if one was named; without it the usual
    /// places and the Python environment (`$VIRTUAL_ENV`) are searched.
    ///
    /// # Errors
    /// [`Error::Model`] when ONNX Runtime is insisted on and cannot be loaded.
    pub fn choose(preference: Preference, library: Option<&Path>) -> Result<Self, Error> {
        if preference == Preference::Tract {
            return Ok(Self { ort: None, about: "tract (chosen by configuration)".into() });
        }
        let Some(path) = library.map(Path::to_owned).or_else(find_library) else {
            return match preference {
                Preference::Ort => Err(Error::Model(
                    "no libonnxruntime.so was found; name one with SLIPWAY_ONNXRUNTIME (pip install onnxruntime brings one)"
                        .into(),
                )),
                _ => Ok(Self { ort: None, about: "tract (no libonnxruntime.so found)".into() }),
            };
        };
        match onnxruntime::OnnxRuntime::load(&path) {
            Ok(ort) => {
                let about = format!("ONNX Runtime from {}", path.display()).into();
                Ok(Self { ort: Some(ort), about })
            }
            Err(error) if preference == Preference::Auto && library.is_none() => {
                tracing::warn!(path = %path.display(), %error, "ONNX Runtime cannot be loaded; tract runs the models");
                Ok(Self { ort: None, about: format!("tract ({} cannot be loaded)", path.display()).into() })
            }
            Err(error) => Err(error),
        }
    }

    /// One line about what runs the models.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// The platform's name in the protocol's model metadata.
    pub fn platform(&self) -> &'static str {
        if self.ort.is_some() { "onnx_onnxruntime" } else { "onnx_tract" }
    }

    /// Loads the ONNX file at `path`. It is in memory once, however many calls run at once.
    ///
    /// # Errors
    /// [`Error::Model`] when it is no usable model, or takes weights from files outside its folder.
    pub fn load(&self, path: &Path) -> Result<Arc<dyn Model>, Error> {
        external_data::check(path)?;
        let model: Arc<dyn Model> = match &self.ort {
            Some(ort) => Arc::new(ort.open(path)?),
            None => Arc::new(tract::TractModel::open(path)?),
        };
        Ok(model)
    }
}

/// Places where a libonnxruntime is usually found, best first.
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

/// The libonnxruntime in a folder, if there is one.
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

/// Checks the request's inputs against the model's and puts them in its order.
///
/// # Errors
/// [`Error::Invalid`] that names the tensor and what was expected.
pub fn check_inputs(specs: &[TensorSpec], mut given: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
    if let Some(unknown) = given.iter().find(|t| specs.iter().all(|s| s.name != t.name)) {
        let known = specs.iter().map(|s| format!("'{}'", s.name)).collect::<Vec<_>>().join(", ");
        return Err(Error::Invalid(format!("unexpected input '{}'; the model takes {known}", unknown.name)));
    }
    let mut ordered = Vec::with_capacity(specs.len());
    for spec in specs {
        let Some(at) = given.iter().position(|t| t.name == spec.name) else {
            return Err(Error::Invalid(format!("input '{}' is missing", spec.name)));
        };
        let tensor = given.swap_remove(at);
        let found = tensor.data.datatype();
        if found != spec.datatype {
            return Err(Error::Invalid(format!(
                "input '{}': datatype {}, expected {}",
                spec.name,
                found.name(),
                spec.datatype.name()
            )));
        }
        let fits = tensor.shape.len() == spec.shape.len()
            && tensor.shape.iter().zip(&spec.shape).all(|(have, want)| *want < 0 || i64::try_from(*have) == Ok(*want));
        if !fits {
            return Err(Error::Invalid(format!(
                "input '{}': shape {:?}, expected {:?} (-1 is any size)",
                spec.name, tensor.shape, spec.shape
            )));
        }
        ordered.push(tensor);
    }
    if let Some(twice) = given.first() {
        return Err(Error::Invalid(format!("input '{}' is given twice", twice.name)));
    }
    Ok(ordered)
}

/// Inputs of zeros with every free dimension 1, to warm a model up.
pub fn example(specs: &[TensorSpec]) -> Vec<Tensor> {
    specs
        .iter()
        .map(|spec| {
            let shape: Vec<usize> = spec.shape.iter().map(|d| usize::try_from(*d).unwrap_or(1)).collect();
            let data = Data::zeros(spec.datatype, shape.iter().product());
            Tensor { name: spec.name.clone(), shape, data }
        })
        .collect()
}
