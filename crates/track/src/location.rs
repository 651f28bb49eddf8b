//! Where models and artifacts may be.

use std::fmt;

use url::{ParseError, Url};

use crate::{Error, ErrorCode, artifact_path};

/// Schemes of places outside this server that MLflow's clients can read
/// (`mlflow/store/artifact/artifact_repository_registry.py`), and `az`, which slipway's own settings use.
const ELSEWHERE: &[&str] =
    &["s3", "r2", "b2", "gs", "wasbs", "abfss", "az", "ftp", "sftp", "dbfs", "hdfs", "viewfs", "http", "https"];

/// What kind of place a URI names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `mlflow-artifacts:`, the object store of this server.
    Stored,
    /// `runs:`, below the artifacts of a run.
    Run,
    /// `models:`, a registered version or a logged model.
    Model,
    /// `http:` or `https:`, which may be the artifact proxy of a server.
    Http,
    /// Another place that clients reach by themselves.
    Elsewhere,
    /// A path of the machine that reads it.
    Local,
}

/// Tells what kind of place a URI names; `None` for a scheme that names no place of artifacts.
pub(crate) fn kind(uri: &str) -> Option<Kind> {
    // The parser drops spaces and line breaks, which whoever reads the stored text later does not.
    if uri.trim() != uri || !artifact_path::is_printable(uri) {
        return None;
    }
    let parsed = match Url::parse(uri) {
        Ok(url) => url,
        Err(ParseError::RelativeUrlWithoutBase) => return Some(Kind::Local),
        Err(_) => return None,
    };
    match parsed.scheme() {
        "mlflow-artifacts" => Some(Kind::Stored),
        "runs" => Some(Kind::Run),
        "models" => Some(Kind::Model),
        "http" | "https" => Some(Kind::Http),
        "file" => Some(Kind::Local),
        // A drive of Windows.
        scheme if scheme.len() == 1 => Some(Kind::Local),
        scheme if ELSEWHERE.contains(&scheme) => Some(Kind::Elsewhere),
        _ => None,
    }
}

/// A place in the object store of this server. There is no other way to make one than from a `mlflow-artifacts:` URI, so it
/// never names a path of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLocation(String);

impl StoredLocation {
    /// Reads `mlflow-artifacts:/1/abc` or `mlflow-artifacts://host:port/1/abc`.
    ///
    /// # Errors
    /// [`ErrorCode::NotImplemented`] for a place that this server does not store; `INVALID_PARAMETER_VALUE` for a path that
    /// leaves the store.
    pub fn parse(uri: &str) -> Result<Self, Error> {
        let path = uri.strip_prefix("mlflow-artifacts:").map(|rest| match rest.strip_prefix("//") {
            Some(authority) => authority.split_once('/').map_or("", |(_, path)| path),
            None => rest,
        });
        let path = path.ok_or_else(|| {
            Error::new(
                ErrorCode::NotImplemented,
                format!("The artifacts are at {uri}, which this server does not serve; read them from there."),
            )
        })?;
        let path = path.split('?').next().unwrap_or_default().trim_matches('/');
        artifact_path::existing(path)?;
        Ok(Self(path.to_owned()))
    }

    /// The path in the object store, without a slash at either end.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// The path of `below` under this place.
    pub(crate) fn join(&self, below: &str) -> String {
        if below.is_empty() { self.0.clone() } else { format!("{}/{below}", self.0) }
    }
}

/// The location as a URI.
impl fmt::Display for StoredLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mlflow-artifacts:/{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_machine_are_recognised() {
        for local in
            ["/tmp/a:b/model.onnx", "model.onnx", "./a:b", "file:///etc/passwd", "FILE:/etc", "C:\\m", "c:/m", "//h/x"]
        {
            assert_eq!(kind(local), Some(Kind::Local), "{local}");
        }
        assert_eq!(kind("s3://bucket/m"), Some(Kind::Elsewhere));
        assert_eq!(kind("runs:/abc/m"), Some(Kind::Run));
        for unknown in ["tmp:/a", "javascript:x", " s3://b/x", "fi\nle:///etc/passwd", "data:,x", "ab:b:c", "unix:/x"] {
            assert_eq!(kind(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn stored_locations_are_paths_of_the_object_store() {
        let path = |uri| StoredLocation::parse(uri).map(|l| l.path().to_owned()).map_err(|e| e.code);
        assert_eq!(path("mlflow-artifacts:/1/a").unwrap(), "1/a");
        assert_eq!(path("mlflow-artifacts://h:1/1/a?x=y").unwrap(), "1/a");
        assert_eq!(path("s3://b/1"), Err(ErrorCode::NotImplemented));
        assert_eq!(path("/etc/passwd"), Err(ErrorCode::NotImplemented));
        assert_eq!(path("mlflow-artifacts:/../x"), Err(ErrorCode::InvalidParameterValue));
        assert_eq!(StoredLocation::parse("mlflow-artifacts:/1/a/").unwrap().to_string(), "mlflow-artifacts:/1/a");
    }
}
