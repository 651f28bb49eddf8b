//! The entities of the API, serialised like MLflow's protocol buffers: JSON with the proto field names, integers as
//! numbers, unset fields left out.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A key and a value: a tag or a parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Tag")]
pub struct KeyValue {
    /// The key, such as `mlflow.user`.
    pub key: String,
    /// The value; empty when the client sent none.
    #[serde(default, deserialize_with = "null_default")]
    pub value: String,
}

/// The lifecycle stages of experiments and runs.
pub mod stage {
    /// Not deleted.
    pub const ACTIVE: &str = "active";
    /// Marked as deleted; can be restored.
    pub const DELETED: &str = "deleted";
}

/// An experiment.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // the names are the protocol's own
pub struct Experiment {
    pub experiment_id: String,
    pub name: String,
    pub artifact_location: String,
    pub lifecycle_stage: String,
    pub last_update_time: i64,
    pub creation_time: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<KeyValue>,
    pub workspace: &'static str,
}

/// A run's metadata, without metrics, parameters and tags.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[allow(missing_docs)] // the names are the protocol's own
#[schemars(rename = "TrackedRun")]
pub struct RunInfo {
    pub run_id: String,
    pub run_uuid: String,
    pub run_name: String,
    pub experiment_id: String,
    pub user_id: String,
    pub status: String,
    pub start_time: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<i64>,
    pub artifact_uri: String,
    pub lifecycle_stage: String,
}

/// One point of a metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)] // the names are the protocol's own
pub struct Metric {
    pub key: String,
    #[serde(serialize_with = "double")]
    pub value: f64,
    pub timestamp: i64,
    pub step: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset_digest: Option<String>,
}

/// Serialises a double as protocol buffers do in JSON: NaN and the infinities are strings.
pub(crate) fn double<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_nan() {
        serializer.serialize_str("NaN")
    } else if value.is_infinite() {
        serializer.serialize_str(if *value > 0.0 { "Infinity" } else { "-Infinity" })
    } else {
        serializer.serialize_f64(*value)
    }
}

/// The metrics, parameters and tags of a run.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)] // the names are the protocol's own
pub struct RunData {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub params: Vec<KeyValue>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<KeyValue>,
}

/// A dataset.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)] // the names are the protocol's own
pub struct Dataset {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub digest: String,
    #[serde(default)]
    pub source_type: String,
    #[serde(default)]
    pub source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

/// A dataset as one run used it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "UsedDataset")]
pub struct DatasetInput {
    /// How it was used, such as `mlflow.data.context` = `training`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<KeyValue>,
    /// The dataset; required.
    pub dataset: Option<Dataset>,
}

/// A logged model that is an input of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModelInput {
    /// The logged model's id, such as `m-0123456789abcdef0123456789abcdef`.
    pub model_id: String,
}

/// A logged model that is an output of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModelOutput {
    /// The logged model's id, such as `m-0123456789abcdef0123456789abcdef`.
    pub model_id: String,
    /// The training step at which the model was logged.
    #[serde(default)]
    pub step: i64,
}

/// The inputs of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RunInputs {
    /// The datasets that the run used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dataset_inputs: Vec<DatasetInput>,
    /// The logged models that the run used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub model_inputs: Vec<ModelInput>,
}

/// The outputs of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RunOutputs {
    /// The logged models that the run created.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub model_outputs: Vec<ModelOutput>,
}

/// A run with its data.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// The metadata.
    pub info: RunInfo,
    /// The newest value of each metric, the parameters and the tags.
    pub data: RunData,
    /// Datasets and logged models that the run used.
    pub inputs: RunInputs,
    /// Logged models that the run created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outputs: Option<RunOutputs>,
}

/// An artifact or a folder of artifacts in a listing.
#[derive(Debug, Clone, Serialize)]
pub struct FileInfo {
    /// The path relative to the listed root.
    pub path: String,
    /// Whether it is a folder.
    pub is_dir: bool,
    /// The size in bytes; `None` for folders and empty files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_size: Option<u64>,
}

/// A registered model.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // the names are the protocol's own
pub struct RegisteredModel {
    pub name: String,
    pub creation_timestamp: i64,
    pub last_updated_timestamp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub latest_versions: Vec<ModelVersion>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<KeyValue>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Alias>,
}

/// An alias: a movable name for one version of a model.
#[derive(Debug, Clone, Serialize)]
pub struct Alias {
    /// The name, such as `champion`.
    pub alias: String,
    /// The number of the version to which the alias points.
    pub version: String,
}

/// A version of a registered model.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[allow(missing_docs)] // the names are the protocol's own
pub struct ModelVersion {
    pub name: String,
    pub version: String,
    pub creation_timestamp: i64,
    pub last_updated_timestamp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    pub current_stage: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    pub status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_link: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<KeyValue>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The URI of the artifacts; not part of the protocol's message.
    #[serde(skip)]
    pub storage_location: String,
}

/// A logged model (MLflow 3).
#[derive(Debug, Clone, Serialize)]
pub struct LoggedModel {
    /// The metadata.
    pub info: LoggedModelInfo,
    /// The parameters and metrics.
    pub data: LoggedModelData,
}

/// A logged model's metadata.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // the names are the protocol's own
pub struct LoggedModelInfo {
    pub model_id: String,
    pub experiment_id: String,
    pub name: String,
    pub creation_timestamp_ms: i64,
    pub last_updated_timestamp_ms: i64,
    pub artifact_uri: String,
    pub status: &'static str,
    pub model_type: String,
    pub source_run_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_message: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<KeyValue>,
}

/// The parameters and metrics of a logged model.
#[derive(Debug, Clone, Default, Serialize)]
pub struct LoggedModelData {
    /// The parameters, sorted by key.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub params: Vec<KeyValue>,
    /// All points of all metrics, sorted by key and time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
}

/// One page of a list.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The entities of this page.
    pub items: Vec<T>,
    /// The token for the next page; `None` on the last page.
    pub next_page_token: Option<String>,
}

/// Limits a search to metrics that were computed on this dataset.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)] // the names are the protocol's own
pub struct DatasetFilter {
    #[serde(default, deserialize_with = "null_default")]
    pub dataset_name: String,
    #[serde(default, deserialize_with = "null_default")]
    pub dataset_digest: String,
}

/// A clause of `order_by`.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)] // the names are the protocol's own
pub struct OrderBy {
    #[serde(default, deserialize_with = "null_default")]
    pub field_name: String,
    #[serde(default = "ascending")]
    pub ascending: bool,
    #[serde(default, deserialize_with = "null_default")]
    pub dataset_name: String,
    #[serde(default, deserialize_with = "null_default")]
    pub dataset_digest: String,
}

fn ascending() -> bool {
    true
}

/// Deserialises `null` as the default value.
pub(crate) fn null_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}
