//! Data versions on this machine: implements the executor's [`DataSource`] with a [`Depot`] in the state folder, and records which data a
//! tracked run used.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::json;
use slipway_core::Explain;
use slipway_data::DataError;
use slipway_data::versions::{Credentials, Depot, Version};
use slipway_exec::{DataSource, DataVolume, FetchedData, UsedData};
use slipway_track::model::{Dataset, DatasetInput, KeyValue};

/// `source_type` of datasets that a DVC repository tracks.
pub(crate) const SOURCE_TYPE: &str = "dvc";
/// Maximum characters of the name of a dataset in MLflow.
const MAX_NAME_CHARS: usize = 500;

/// The data of the runs of this machine.
pub(crate) struct LocalData(Arc<Depot>);

impl LocalData {
    /// Opens the depot in a folder, whose cache has at most `limit` bytes beside what is in use.
    pub(crate) fn open(folder: &Path, limit: Option<u64>) -> Result<Self, DataError> {
        Ok(Self(Arc::new(Depot::open(folder, limit)?)))
    }
}

/// The error and its remedy in one sentence, for the status of a run.
fn explained(error: &DataError) -> String {
    let hint = error.hint().map_or(String::new(), |hint| format!(" ({hint})"));
    format!("{error}{hint}")
}

impl DataSource for LocalData {
    fn fetch<'a>(
        &'a self,
        holder: &'a str,
        data: &'a DataVolume,
        progress: Box<dyn Fn(String) + Send + Sync>,
    ) -> BoxFuture<'a, Result<FetchedData, String>> {
        let version = Version {
            repo: data.repo.clone(),
            rev: data.rev.clone(),
            path: data.path.clone(),
            credentials: Credentials::default(),
        };
        let fetched = Arc::clone(&self.0).fetch_in_background(version, holder.to_owned(), progress);
        Box::pin(async move {
            let fetched = fetched.await.map_err(|error| explained(&error))?;
            let used = UsedData {
                repo: fetched.repo,
                commit: fetched.commit,
                path: fetched.path,
                file: fetched.file,
                digest: fetched.digest,
                size: fetched.size,
                files: Some(fetched.files),
            };
            Ok(FetchedData { used, location: fetched.location })
        })
    }

    fn release(&self, holder: &str) -> Result<(), String> {
        self.0.release(holder).map_err(|error| error.to_string())
    }

    fn release_others(&self, holders: &HashSet<String>) -> Result<(), String> {
        self.0.release_unknown(|holder| holders.contains(holder)).map_err(|error| error.to_string())
    }

    fn locations(&self) -> PathBuf {
        self.0.locations().to_owned()
    }
}

/// A version of data as a dataset of MLflow.
pub(crate) fn dataset(data: UsedData) -> DatasetInput {
    let UsedData { repo, commit, path, file, digest, size, files } = data;
    let source = json!({ "repo": repo, "commit": commit, "path": path, "file": file });
    let profile = json!({ "size": size, "num_files": files });
    // The end of a path says more than its beginning.
    let name: String = path.chars().skip(path.chars().count().saturating_sub(MAX_NAME_CHARS)).collect();
    let dataset = Dataset {
        name,
        digest,
        source_type: SOURCE_TYPE.into(),
        source: source.to_string(),
        schema: None,
        profile: Some(profile.to_string()),
    };
    let context = KeyValue { key: "mlflow.data.context".into(), value: "training".into() };
    DatasetInput { tags: vec![context], dataset: Some(dataset) }
}
