//! URIs of models and artifacts: which schemes are accepted, and which of them this server stores itself.

use std::fmt;

use url::{ParseError, Url};

use crate::{Error, ErrorCode, artifact_path};

/// URI schemes of external storage that MLflow's clients can read
/// (`mlflow/store/artifact/artifact_repository_registry.py`), and `az`, which slipway's own settings use.
const EXTERNAL_SCHEMES: &[&str] =
    &["s3", "r2", "b2", "gs", "wasbs", "abfss", "az", "ftp", "sftp", "dbfs", "hdfs", "viewfs", "http", "https"];

/// The kind of location that a URI names.
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
    /// Other external storage, which clients access directly.
    External,
    /// A path on the machine of the reader.
    Local,
}

/// The kind of location that a URI names; `None` for a scheme that cannot hold artifacts.
pub(crate) fn kind(uri: &str) -> Option<Kind> {
    // The URL parser ignores spaces and line breaks, but later readers of the stored text may not.
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
        // A drive letter of Windows.
        scheme if scheme.len() == 1 => Some(Kind::Local),
        scheme if EXTERNAL_SCHEMES.contains(&scheme) => Some(Kind::External),
        _ => None,
    }
}

/// A location in this server's object store. It can only be created from an `mlflow-artifacts:` URI, so it never names a path
/// outside of the object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLocation(String);

impl StoredLocation {
    /// Parses `mlflow-artifacts:/1/abc` or `mlflow-artifacts://host:port/1/abc`.
    ///
    /// # Errors
    /// [`ErrorCode::NotImplemented`] for a location outside of this server; `INVALID_PARAMETER_VALUE` for a path that leaves the
    /// store.
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
        artifact_path::for_reading(path)?;
        Ok(Self(path.to_owned()))
    }

    /// The path in the object store, without a leading or trailing slash.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// The path of `relative` below this location.
    pub(crate) fn join(&self, relative: &str) -> String {
        if relative.is_empty() { self.0.clone() } else { format!("{}/{relative}", self.0) }
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
    fn local_paths_are_recognised() {
        for local in
            ["/tmp/a:b/model.onnx", "model.onnx", "./a:b", "file:///etc/passwd", "FILE:/etc", "C:\\m", "c:/m", "//h/x"]
        {
            assert_eq!(kind(local), Some(Kind::Local), "{local}");
        }
        assert_eq!(kind("s3://bucket/m"), Some(Kind::External));
        assert_eq!(kind("runs:/abc/m"), Some(Kind::Run));
        for unknown in ["tmp:/a", "javascript:x", " s3://b/x", "fi\nle:///etc/passwd", "data:,x", "ab:b:c", "unix:/x"] {
            assert_eq!(kind(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn stored_locations_are_parsed() {
        let path = |uri| StoredLocation::parse(uri).map(|l| l.path().to_owned()).map_err(|e| e.code);
        assert_eq!(path("mlflow-artifacts:/1/a").unwrap(), "1/a");
        assert_eq!(path("mlflow-artifacts://h:1/1/a?x=y").unwrap(), "1/a");
        assert_eq!(path("s3://b/1"), Err(ErrorCode::NotImplemented));
        assert_eq!(path("/etc/passwd"), Err(ErrorCode::NotImplemented));
        assert_eq!(path("mlflow-artifacts:/../x"), Err(ErrorCode::InvalidParameterValue));
        assert_eq!(StoredLocation::parse("mlflow-artifacts:/1/a/").unwrap().to_string(), "mlflow-artifacts:/1/a");
    }
}
