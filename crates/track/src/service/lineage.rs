//! Lineage of a model version (its run and datasets), and resolution of a model URI to a file.

use schemars::JsonSchema;
use serde::Serialize;
use slipway_store::StoreError;

use super::Tracking;
use super::registry::alias_of_uri;
use super::runs::join_location;
use crate::model::{DatasetInput, ModelVersion, RunInfo};
use crate::{Error, StoredLocation, artifact_path, repo};

/// The origin of a model version.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Lineage {
    /// The registered version.
    pub version: ModelVersion,
    /// The run that created the version; `null` if it is unknown.
    pub run: Option<RunInfo>,
    /// The datasets that the run used, with their digests.
    pub datasets: Vec<DatasetInput>,
}

/// A model URI resolved to a location in the object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Registered name; empty for a URI outside the registry.
    pub name: String,
    /// Version number; empty for a URI outside the registry.
    pub version: String,
    /// The id of the run that created the model; empty if unknown.
    pub run_id: String,
    /// The model's file or folder.
    pub location: StoredLocation,
}

impl Tracking {
    /// The lineage of a model version.
    ///
    /// # Errors
    /// No such version, or an error of the store.
    pub fn lineage(&self, name: &str, version: &str) -> Result<Lineage, Error> {
        let version = self.version(name, version)?;
        let run = version.run_id.as_deref().filter(|id| !id.is_empty()).and_then(|id| self.run(id).ok());
        let (run, datasets) = run.map_or((None, Vec::new()), |r| (Some(r.info), r.inputs.dataset_inputs));
        Ok(Lineage { version, run, datasets })
    }

    /// The model versions that were created from these runs, as `(name, number)` keyed by run id.
    ///
    /// # Errors
    /// An error of the store.
    pub fn versions_of_runs(
        &self,
        run_ids: &[String],
    ) -> Result<std::collections::HashMap<String, Vec<(String, i64)>>, Error> {
        self.db.read_now(|c| repo::registry::versions_of_runs(c, run_ids))
    }

    /// Resolves a `models:/…`, `runs:/…` or `mlflow-artifacts:/…` URI to a location in the object store.
    ///
    /// # Errors
    /// A URI of another kind, an unknown run or version, or artifacts that this server does not store.
    pub fn resolve(&self, uri: &str) -> Result<Resolved, Error> {
        let unregistered = |run_id: &str, location: &str| {
            Ok(Resolved {
                name: String::new(),
                version: String::new(),
                run_id: run_id.to_owned(),
                location: StoredLocation::parse(location)?,
            })
        };
        if let Some(rest) = uri.strip_prefix("runs:/") {
            let (run_id, path) = rest.split_once('/').unwrap_or((rest, ""));
            artifact_path::for_reading(path)?;
            return unregistered(run_id, &join_location(&self.run_info(run_id)?.artifact_uri, path));
        }
        if uri.starts_with("mlflow-artifacts:") {
            return unregistered("", uri);
        }
        let version = match alias_of_uri(uri) {
            // Unlike in MLflow's API, an alias that does not exist is an object that does not exist.
            Some((name, alias)) => self
                .find_alias(name, alias)?
                .ok_or_else(|| Error::missing(format!("Registered model alias {alias} not found.")))?,
            None => self.resolve_model_uri(uri)?,
        };
        let resolved = match version.storage_location.strip_prefix("runs:/") {
            Some(_) => self.resolve(&version.storage_location)?,
            None => unregistered(&version.run_id.unwrap_or_default(), &version.storage_location)?,
        };
        Ok(Resolved { name: version.name, version: version.version, ..resolved })
    }

    /// The path of a local file or folder with the contents of an `mlflow-artifacts:` location. With a bucket it is a local copy.
    ///
    /// # Errors
    /// A location that this server does not store, or one without artifacts.
    pub async fn fetch(&self, location: &str) -> Result<std::path::PathBuf, Error> {
        let path = StoredLocation::parse(location)?;
        let mut result = Err(StoreError::NotFound(path.path().to_owned()));
        for candidate in self.candidates(path.path()).await? {
            result = self.objects.local_path(&candidate).await;
            if !matches!(result, Err(StoreError::NotFound(_))) {
                break;
            }
        }
        Ok(result?)
    }
}
