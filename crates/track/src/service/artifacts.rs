//! Artifacts behind the proxy (`mlflow-artifacts:` URIs), as files of the object store.

use super::Tracking;
use crate::model::FileInfo;
use crate::{Error, ErrorCode, validate};

/// Whose artifacts are meant.
#[derive(Debug, Clone, Copy)]
pub enum ArtifactRoot<'a> {
    /// A run's.
    Run(&'a str),
    /// A logged model's.
    LoggedModel(&'a str),
    /// A registered version's: name and number.
    Version(&'a str, &'a str),
}

/// The object store's path of a proxied location: `mlflow-artifacts:/1/abc` and
/// `mlflow-artifacts://host:port/1/abc` are both `1/abc`.
pub(super) fn object_path(location: &str) -> Option<&str> {
    let rest = location.strip_prefix("mlflow-artifacts:")?;
    let path = match rest.strip_prefix("//") {
        Some(authority) => authority.split_once('/').map_or("", |(_, path)| path),
        None => rest,
    };
    Some(path.split('?').next().unwrap_or_default().trim_matches('/'))
}

/// The path in the object store of `path` below a location.
fn object_below(location: &str, path: &str) -> Result<String, Error> {
    let base = object_path(location).ok_or_else(|| {
        Error::new(
            ErrorCode::NotImplemented,
            format!("The artifacts are at {location}, which this server does not serve; read them from there."),
        )
    })?;
    Ok(if path.is_empty() { base.to_owned() } else { format!("{base}/{path}") })
}

impl Tracking {
    /// The location of the artifacts, as a URI.
    ///
    /// # Errors
    /// When there is no such run, logged model or version.
    pub fn artifact_location(&self, root: ArtifactRoot<'_>) -> Result<String, Error> {
        match root {
            ArtifactRoot::Run(id) => self.run_info(id).map(|r| r.artifact_uri),
            ArtifactRoot::LoggedModel(id) => self.logged_model(id, false).map(|m| m.info.artifact_uri),
            ArtifactRoot::Version(name, version) => self.version(name, version).map(|v| v.storage_location),
        }
    }

    /// The path in the object store of `path` below the root.
    ///
    /// # Errors
    /// A path that leaves the root; a location that this server does not store.
    pub fn artifact_object(&self, root: ArtifactRoot<'_>, path: &str) -> Result<String, Error> {
        validate::artifact_path(path)?;
        object_below(&self.artifact_location(root)?, path)
    }

    /// What is in the folder `path` below the root, paths relative to the root; and the root's location.
    ///
    /// # Errors
    /// As [`Tracking::artifact_object`].
    pub async fn list_artifacts(&self, root: ArtifactRoot<'_>, path: &str) -> Result<(String, Vec<FileInfo>), Error> {
        validate::artifact_path(path)?;
        let location = self.artifact_location(root)?;
        let files = self.list_folder(&object_below(&location, path)?, path).await?;
        Ok((location, files))
    }

    /// What is in a folder of the object store, with `prefix` before each name.
    ///
    /// # Errors
    /// A path that leaves the store.
    pub async fn list_folder(&self, folder: &str, prefix: &str) -> Result<Vec<FileInfo>, Error> {
        validate::artifact_path(folder)?;
        let prefix = prefix.trim_end_matches('/');
        let entries = self.objects.list(folder).await?;
        Ok(entries
            .into_iter()
            .map(|e| FileInfo {
                path: if prefix.is_empty() { e.name } else { format!("{prefix}/{}", e.name) },
                is_dir: e.is_dir,
                // Protocol buffers leave a size of 0 out.
                file_size: (!e.is_dir && e.size > 0).then_some(e.size),
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::object_path;

    #[test]
    fn proxied_locations_are_paths() {
        assert_eq!(object_path("mlflow-artifacts:/1/a"), Some("1/a"));
        assert_eq!(object_path("mlflow-artifacts://h:1/1/a?x=y"), Some("1/a"));
        assert_eq!(object_path("s3://b/1"), None);
    }
}
