//! Artifacts behind the proxy (`mlflow-artifacts:` URIs), as files of the object store.

use slipway_store::StoreError;
use slipway_store::objects::Reader;

use super::Tracking;
use crate::model::FileInfo;
use crate::{Error, StoredLocation, artifact_path};

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
        artifact_path::existing(path)?;
        Ok(StoredLocation::parse(&self.artifact_location(root)?)?.join(path))
    }

    /// Opens the object at a path of the object store.
    ///
    /// # Errors
    /// A path that leaves the store; nothing there, or a folder.
    pub async fn open_artifact(&self, path: &str) -> Result<Reader, Error> {
        let mut outcome = Err(StoreError::NotFound(path.to_owned()));
        for candidate in self.candidates(path).await? {
            outcome = self.objects.get(&candidate).await;
            if !matches!(outcome, Err(StoreError::NotFound(_))) {
                break;
            }
        }
        Ok(outcome?)
    }

    /// Removes the object or folder at a path of the object store; nothing there is no error.
    ///
    /// # Errors
    /// A path that leaves the store.
    pub async fn delete_artifact(&self, path: &str) -> Result<(), Error> {
        for candidate in self.candidates(path).await? {
            self.objects.delete(&candidate).await?;
        }
        Ok(())
    }

    /// What is in the folder `path` below the root, paths relative to the root; and the root's location.
    ///
    /// # Errors
    /// As [`Tracking::artifact_object`].
    pub async fn list_artifacts(&self, root: ArtifactRoot<'_>, path: &str) -> Result<(String, Vec<FileInfo>), Error> {
        artifact_path::existing(path)?;
        let location = self.artifact_location(root)?;
        let files = self.list_folder(&StoredLocation::parse(&location)?.join(path), path).await?;
        Ok((location, files))
    }

    /// What is in a folder of the object store, with `prefix` before each name.
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
                path: match (prefix, artifact_path::shown(&e.name)) {
                    ("", name) => name.into_owned(),
                    (prefix, name) => format!("{prefix}/{name}"),
                },
                is_dir: e.is_dir,
                // Protocol buffers leave a size of 0 out.
                file_size: (!e.is_dir && e.size > 0).then_some(e.size),
            })
            .collect())
    }

    /// Where an artifact of this path may be: as MLflow understands the path; literally, since earlier versions did not undo
    /// percent-encodings; and under a name that is shown differently from how it is stored ([`artifact_path::shown`]).
    pub(super) async fn candidates(&self, path: &str) -> Result<Vec<String>, Error> {
        let decoded = artifact_path::existing(path)?;
        let mut found = vec![decoded.clone()];
        if path != decoded {
            found.push(path.to_owned());
        }
        if decoded.contains(char::REPLACEMENT_CHARACTER) {
            let mut place = String::new();
            for part in decoded.split('/').filter(|part| !part.is_empty()) {
                let entries = if part.contains(char::REPLACEMENT_CHARACTER) {
                    self.objects.list(&place).await?
                } else {
                    Vec::new()
                };
                let stored = entries.iter().find(|entry| artifact_path::shown(&entry.name) == part);
                if !place.is_empty() {
                    place.push('/');
                }
                place.push_str(stored.map_or(part, |entry| &entry.name));
            }
            if place != decoded {
                found.push(place);
            }
        }
        Ok(found)
    }
}
