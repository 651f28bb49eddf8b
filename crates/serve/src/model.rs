//! Model sources: the registry, or a file on the server's machine.
//!
//! Invariant: only [`ModelUri::Local`], which a manifest names, is opened as a path; a location from the registry never is.

use std::path::{Path, PathBuf};
use std::pin::Pin;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::Error;

/// URI schemes that the registry resolves.
const REGISTRY_SCHEMES: [&str; 3] = ["models", "runs", "mlflow-artifacts"];

/// The location of a deployment's model, as written in its manifest. Serialized as one string.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
pub enum ModelUri {
    /// `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/RUN/PATH` or `mlflow-artifacts:/PATH`, resolved by the registry.
    Registered(String),
    /// A file or folder on the server's machine: a path, or a `file://` URI.
    Local(PathBuf),
}

impl ModelUri {
    /// Parses a URI or a path.
    ///
    /// # Errors
    /// [`Error::Manifest`] for an empty string, a scheme that is not supported, or a `file://` URI without a local path.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Manifest("the model's uri is empty".into()));
        }
        let Some(scheme) = scheme(text) else {
            return Ok(Self::Local(PathBuf::from(text)));
        };
        if REGISTRY_SCHEMES.contains(&scheme) {
            return Ok(Self::Registered(text.to_owned()));
        }
        if scheme.eq_ignore_ascii_case("file") {
            let path = url::Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
            // Manifests are stored as JSON, which can only represent UTF-8 paths.
            let path = path.filter(|path| path.to_str().is_some());
            return path.map(Self::Local).ok_or_else(|| {
                Error::Manifest(format!("'{text}' is not a file on this machine; write file:///PATH or a plain path"))
            });
        }
        Err(Error::Manifest(format!(
            "'{text}': the scheme '{scheme}' is not supported; use models:/, runs:/ or mlflow-artifacts:/ \
             (write ./NAME for a file whose name contains a colon)"
        )))
    }
}

/// The scheme of a URI (RFC 3986, section 3.1), or `None` for a path.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once(':')?;
    let is_valid = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    is_valid.then_some(scheme)
}

impl TryFrom<String> for ModelUri {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(&text)
    }
}

impl From<ModelUri> for String {
    fn from(uri: ModelUri) -> Self {
        uri.to_string()
    }
}

impl std::fmt::Display for ModelUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registered(uri) => f.write_str(uri),
            Self::Local(path) => path.display().fmt(f),
        }
    }
}

/// Whether a manifest may name files on the server's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalPaths {
    /// The caller owns the server's machine, so it could read these files anyway.
    Allowed,
    /// Any other caller. Paths that the active revision already names may stay, because the owner put them there.
    Refused,
}

/// The registry that models come from. The server passes in its implementation.
pub trait ModelSource: Send + Sync {
    /// Resolves a [`ModelUri::Registered`] URI to the model that it currently points to.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`] when the registry has no such model, version, alias or run; [`Error::Manifest`] for a URI that the registry
    /// rejects; [`Error::Store`] when the registry fails.
    fn resolve(&self, uri: &str) -> Result<ResolvedModel, Error>;
    /// Downloads the model if necessary; returns a file or folder on this machine.
    ///
    /// # Errors
    /// As [`ModelSource::resolve`], for the model's artifacts.
    fn fetch<'a>(&'a self, model: &'a ResolvedModel) -> FetchFuture<'a>;
    /// A counter that increases whenever an alias or a version changes.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// The future of [`ModelSource::fetch`].
pub type FetchFuture<'a> = Pin<Box<dyn Future<Output = Result<PathBuf, Error>> + Send + 'a>>;

/// A resolved model and its origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ResolvedModel {
    /// Name in the registry; empty for a model that is not registered.
    pub name: String,
    /// Version in the registry; empty for a model that is not registered.
    pub version: String,
    /// Id of the run that produced the model; empty if unknown.
    pub run_id: String,
    /// Storage location, in the format of the source that resolved it. It is never interpreted as a local path.
    #[serde(skip)]
    pub location: String,
}

impl ResolvedModel {
    /// A model that is a file on this machine.
    pub(crate) fn local(path: &Path) -> Self {
        let location = path.display().to_string();
        Self { name: String::new(), version: String::new(), run_id: String::new(), location }
    }
}

/// The ONNX file of a model folder: `model.onnx`, or the only `.onnx` file in it or in `data/`.
///
/// # Errors
/// [`Error::ModelNotFound`] when nothing exists at the path; [`Error::ModelUnusable`] when there is no such file, or more than one.
pub fn model_file(path: &Path) -> Result<PathBuf, Error> {
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let mut found = Vec::new();
    for folder in [path.to_owned(), path.join("data")] {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        found.extend(entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "onnx")));
    }
    if let Some(default) = found.iter().find(|p| p.file_name().is_some_and(|n| n == "model.onnx")) {
        return Ok(default.clone());
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] if !path.exists() => Err(Error::ModelNotFound(format!("there is no file {}", path.display()))),
        [] => Err(Error::ModelUnusable(format!("there is no .onnx file in {}", path.display()))),
        many => Err(Error::ModelUnusable(format!(
            "there are {} .onnx files in {}; name one of them",
            many.len(),
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_parse_as_registered_models_or_local_paths() {
        for uri in ["models:/digits@champion", "models:digits", "runs:/abc/model", "mlflow-artifacts:/0/a"] {
            assert_eq!(ModelUri::parse(uri).unwrap(), ModelUri::Registered(uri.into()));
        }
        let local = [
            ("/srv/m.onnx", "/srv/m.onnx"),
            ("m.onnx", "m.onnx"),
            ("./models:/m", "./models:/m"),
            ("/tmp/a:b/model.onnx", "/tmp/a:b/model.onnx"),
            ("file:///srv/a%20b.onnx", "/srv/a b.onnx"),
            ("FILE:///srv/m.onnx", "/srv/m.onnx"),
        ];
        for (text, path) in local {
            let uri = ModelUri::parse(text).unwrap();
            assert_eq!(uri, ModelUri::Local(path.into()));
            assert_eq!(ModelUri::parse(&uri.to_string()).unwrap(), uri, "the stored form parses to the same URI");
        }
        for refused in ["", "s3://bucket/m.onnx", "http://host/m", "Models:/m", "file://host/m.onnx", "a:b.onnx"] {
            assert!(matches!(ModelUri::parse(refused), Err(Error::Manifest(_))), "{refused}");
        }
    }
}
