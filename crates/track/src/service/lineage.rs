//! From a model version back to its run and data, and from a model URI to a file.

use schemars::JsonSchema;
use serde::Serialize;
use slipway_store::StoreError;

use super::Tracking;
use super::runs::below;
use crate::model::{DatasetInput, ModelVersion, RunInfo};
use crate::{Error, StoredLocation, artifact_path, repo};

/// Where a served model came from.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Lineage {
    /// The registered version.
    pub version: ModelVersion,
    /// The run that made it, if it is known.
    pub run: Option<RunInfo>,
    /// The datasets that the run used, with their digests.
    pub datasets: Vec<DatasetInput>,
}

/// A model URI brought down to a place in the object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Registered name; empty for a URI outside the registry.
    pub name: String,
    /// Version number; empty for a URI outside the registry.
    pub version: String,
    /// The run that made it; empty if unknown.
    pub run_id: String,
    /// The model's file or folder.
    pub location: StoredLocation,
}

impl Tracking {
    /// The lineage of a version.
    ///
    /// # Errors
    /// When there is no such version.
    pub fn lineage(&self, name: &str, version: &str) -> Result<Lineage, Error> {
        let version = self.version(name, version)?;
        let run = version.run_id.as_deref().filter(|id| !id.is_empty()).and_then(|id| self.run(id).ok());
        let (run, datasets) = run.map_or((None, Vec::new()), |r| (Some(r.info), r.inputs.dataset_inputs));
        Ok(Lineage { version, run, datasets })
    }

    /// Versions that runs became: for each run id, names and numbers.
    ///
    /// # Errors
    /// The store's.
    pub fn versions_of_runs(
        &self,
        run_ids: &[String],
    ) -> Result<std::collections::HashMap<String, Vec<(String, i64)>>, Error> {
        self.db.read_now(|c| repo::registry::versions_of_runs(c, run_ids))
    }

    /// Brings `models:/…`, `runs:/…` or `mlflow-artifacts:/…` down to a place in the object store.
    ///
    /// # Errors
    /// A URI of another kind; no such run or version; artifacts that this server does not store.
    pub fn resolve(&self, uri: &str) -> Result<Resolved, Error> {
        let outside = |run_id: &str, location: &str| {
            Ok(Resolved {
                name: String::new(),
                version: String::new(),
                run_id: run_id.to_owned(),
                location: StoredLocation::parse(location)?,
            })
        };
        if let Some(rest) = uri.strip_prefix("runs:/") {
            let (run_id, path) = rest.split_once('/').unwrap_or((rest, ""));
            artifact_path::existing(path)?;
            return outside(run_id, &below(&self.run_info(run_id)?.artifact_uri, path));
        }
        if uri.starts_with("mlflow-artifacts:") {
            return outside("", uri);
        }
        let version = self.resolve_model_uri(uri)?;
        let within = match version.storage_location.strip_prefix("runs:/") {
            Some(_) => self.resolve(&version.storage_location)?,
            None => outside(&version.run_id.unwrap_or_default(), &version.storage_location)?,
        };
        Ok(Resolved { name: version.name, version: version.version, ..within })
    }

    /// A file or folder of this machine that holds what is at an `mlflow-artifacts:` location.
    ///
    /// # Errors
    /// A location that this server does not store; nothing there.
    pub async fn fetch(&self, location: &str) -> Result<std::path::PathBuf, Error> {
        let path = StoredLocation::parse(location)?;
        let mut outcome = Err(StoreError::NotFound(path.path().to_owned()));
        for candidate in self.candidates(path.path()).await? {
            outcome = self.objects.local(&candidate).await;
            if !matches!(outcome, Err(StoreError::NotFound(_))) {
                break;
            }
        }
        Ok(outcome?)
    }
}
