//! Artifacts in this server's object store, which clients access through the artifact proxy (`mlflow-artifacts:` URIs).

use slipway_store::StoreError;
use slipway_store::objects::Reader;

use super::Tracking;
use crate::model::FileInfo;
use crate::{Error, StoredLocation, artifact_path};

/// The entity to which artifacts belong.
#[derive(Debug, Clone, Copy)]
pub enum ArtifactRoot<'a> {
    /// A run, by its id.
    Run(&'a str),
    /// A logged model, by its id.
    LoggedModel(&'a str),
    /// A model version, by name and number.
    Version(&'a str, &'a str),
}

impl Tracking {
    /// The URI of the artifacts' location.
    ///
    /// # Errors
    /// No such run, logged model or version.
    pub fn artifact_location(&self, root: ArtifactRoot<'_>) -> Result<String, Error> {
        match root {
            ArtifactRoot::Run(id) => self.run_info(id).map(|r| r.artifact_uri),
            ArtifactRoot::LoggedModel(id) => self.logged_model(id, false).map(|m| m.info.artifact_uri),
            ArtifactRoot::Version(name, version) => self.version(name, version).map(|v| v.storage_location),
        }
    }

    /// The path in the object store of an artifact with this `path` relative to the root.
    ///
    /// # Errors
    /// A path that leaves the root, or a location that this server does not store.
    pub fn artifact_object(&self, root: ArtifactRoot<'_>, path: &str) -> Result<String, Error> {
        artifact_path::for_reading(path)?;
        Ok(StoredLocation::parse(&self.artifact_location(root)?)?.join(path))
    }

    /// Opens the object at a path in the object store.
    ///
    /// # Errors
    /// A path that leaves the store, a folder, or no such object.
    pub async fn open_artifact(&self, path: &str) -> Result<Reader, Error> {
        let mut result = Err(StoreError::NotFound(path.to_owned()));
        for candidate in self.candidates(path).await? {
            result = self.objects.get(&candidate).await;
            if !matches!(result, Err(StoreError::NotFound(_))) {
                break;
            }
        }
        Ok(result?)
    }

    /// Deletes the object or folder at a path in the object store. It is not an error if there is none.
    ///
    /// # Errors
    /// A path that leaves the store.
    pub async fn delete_artifact(&self, path: &str) -> Result<(), Error> {
        for candidate in self.candidates(path).await? {
            self.objects.delete(&candidate).await?;
        }
        Ok(())
    }

    /// Lists the folder `path` below the root. Returns the root's URI, and the entries with paths relative to the root.
    ///
    /// # Errors
    /// The errors of [`Tracking::artifact_object`].
    pub async fn list_artifacts(&self, root: ArtifactRoot<'_>, path: &str) -> Result<(String, Vec<FileInfo>), Error> {
        artifact_path::for_reading(path)?;
        let location = self.artifact_location(root)?;
        let files = self.list_folder(&StoredLocation::parse(&location)?.join(path), path).await?;
        Ok((location, files))
    }

    /// Lists a folder of the object store, with `prefix` before each name.
    ///
    /// # Errors
    /// A path that leaves the store.
    pub async fn list_folder(&self, folder: &str, prefix: &str) -> Result<Vec<FileInfo>, Error> {
        let prefix = prefix.trim_end_matches('/');
        let mut entries = Vec::new();
        for candidate in self.candidates(folder).await? {
            entries = self.objects.list(&candidate).await?;
            if !entries.is_empty() {
                break;
            }
        }
        Ok(entries
            .into_iter()
            .map(|e| FileInfo {
                path: match (prefix, artifact_path::display_name(&e.name)) {
                    ("", name) => name.into_owned(),
                    (prefix, name) => format!("{prefix}/{name}"),
                },
                is_dir: e.is_dir,
                // Protocol buffers omit a size of 0.
                file_size: (!e.is_dir && e.size > 0).then_some(e.size),
            })
            .collect())
    }

    /// The possible paths of an artifact in the object store, in order of preference: the decoded path; the literal path, because
    /// earlier versions did not decode percent-encodings; and the path whose names are displayed as this path
    /// ([`artifact_path::display_name`]).
    pub(super) async fn candidates(&self, path: &str) -> Result<Vec<String>, Error> {
        let decoded = artifact_path::for_reading(path)?;
        let mut found = vec![decoded.clone()];
        if path != decoded {
            found.push(path.to_owned());
        }
        if decoded.contains(char::REPLACEMENT_CHARACTER) {
            let mut stored_path = String::new();
            for part in decoded.split('/').filter(|part| !part.is_empty()) {
                let entries = if part.contains(char::REPLACEMENT_CHARACTER) {
                    self.objects.list(&stored_path).await?
                } else {
                    Vec::new()
                };
                let stored = entries.iter().find(|entry| artifact_path::display_name(&entry.name) == part);
                if !stored_path.is_empty() {
                    stored_path.push('/');
                }
                stored_path.push_str(stored.map_or(part, |entry| &entry.name));
            }
            if stored_path != decoded {
                found.push(stored_path);
            }
        }
        Ok(found)
    }
}
