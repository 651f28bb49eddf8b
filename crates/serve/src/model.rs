//! Where a model comes from: the registry, or a file of the server's machine.

use std::path::{Path, PathBuf};
use std::pin::Pin;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::Error;

/// Schemes of URIs that the registry resolves.
const REGISTERED: [&str; 3] = ["models", "runs", "mlflow-artifacts"];

/// Where a deployment's model is, as its manifest says. It is written and read as one string.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
pub enum ModelUri {
    /// `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/RUN/PATH` or `mlflow-artifacts:/PATH`, for the registry to resolve.
    Registered(String),
    /// A file or folder of the server's machine: a path, or a `file://` URI.
    Local(PathBuf),
}

impl ModelUri {
    /// Reads a URI or a path.
    ///
    /// # Errors
    /// [`Error::Manifest`] for an empty string, a scheme that is not supported, or a `file://` URI that names no path.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Manifest("the model's uri is empty".into()));
        }
        let Some(scheme) = scheme(text) else {
            return Ok(Self::Local(PathBuf::from(text)));
        };
        if REGISTERED.contains(&scheme) {
            return Ok(Self::Registered(text.to_owned()));
        }
        if scheme.eq_ignore_ascii_case("file") {
            let path = url::Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
            // A manifest is stored as JSON, which holds no path that is not UTF-8.
            let path = path.filter(|path| path.to_str().is_some());
            return path.map(Self::Local).ok_or_else(|| {
                Error::Manifest(format!(
                    "'{text}' names no file of this machine; write file:///PATH or the path itself"
                ))
            });
        }
        Err(Error::Manifest(format!(
            "'{text}': the scheme '{scheme}' is not supported; use models:/, runs:/ or mlflow-artifacts:/ \
             (a file whose name holds a colon is written ./NAME)"
        )))
    }
}

/// The scheme of a URI (RFC 3986, section 3.1), or nothing for a path.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once(':')?;
    let named = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    named.then_some(scheme)
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

/// Whether a manifest may name files of the server's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalPaths {
    /// The caller owns the server's machine, so it could read these files anyway.
    Allowed,
    /// The caller may be anybody. Paths that the deployment in force already names may stay, since the owner put them there.
    Refused,
}

/// Where registered models come from; the server hands in its registry.
pub trait ModelSource: Send + Sync {
    /// Says which model a URI of a scheme in [`ModelUri::Registered`] means now.
    ///
    /// # Errors
    /// Why it cannot, for people.
    fn resolve(&self, uri: &str) -> Result<ResolvedModel, String>;
    /// A file or folder of this machine with the model.
    ///
    /// # Errors
    /// Why it cannot, for people.
    fn fetch<'a>(&'a self, model: &'a ResolvedModel) -> Fetching<'a>;
    /// Changes when an alias or a version changed.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// A model on its way to this machine.
pub type Fetching<'a> = Pin<Box<dyn Future<Output = Result<PathBuf, String>> + Send + 'a>>;

/// A model and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ResolvedModel {
    /// Registered name; empty outside a registry.
    pub name: String,
    /// Version; empty outside a registry.
    pub version: String,
    /// The run that made it; empty if unknown.
    pub run_id: String,
    /// Where it is stored. Only the source that resolved it understands this; it is never taken for a path of this machine.
    #[serde(skip)]
    pub location: String,
}

impl ResolvedModel {
    /// A model that is a file of this machine.
    pub(crate) fn local(path: &Path) -> Self {
        let location = path.display().to_string();
        Self { name: String::new(), version: String::new(), run_id: String::new(), location }
    }
}

/// The ONNX file of a model folder: `model.onnx`, or the only `.onnx` file in it or in `data/`.
///
/// # Errors
/// [`Error::Model`] when there is none, or more than one to choose from.
pub fn model_file(path: &Path) -> Result<PathBuf, Error> {
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let mut found = Vec::new();
    for folder in [path.to_owned(), path.join("data")] {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        found.extend(entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "onnx")));
    }
    if let Some(usual) = found.iter().find(|p| p.file_name().is_some_and(|n| n == "model.onnx")) {
        return Ok(usual.clone());
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Error::Model(format!("there is no .onnx file in {}", path.display()))),
        many => Err(Error::Model(format!("there are {} .onnx files in {}; name one", many.len(), path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registered_models_and_local_paths_are_told_apart() {
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
            assert_eq!(ModelUri::parse(&uri.to_string()).unwrap(), uri, "what is stored is read as the same");
        }
        for refused in ["", "s3://bucket/m.onnx", "http://host/m", "Models:/m", "file://host/m.onnx", "a:b.onnx"] {
            assert!(matches!(ModelUri::parse(refused), Err(Error::Manifest(_))), "{refused}");
        }
    }
}
