//! What a run of a pipeline used: what its tasks reserved, and what was measured on their GPUs.

use schemars::JsonSchema;
use serde::Serialize;
use slipway_pipeline::tracker::tracked_id;
use slipway_pipeline::usage::Usage;
use slipway_track::Tracking;
use slipway_track::service::ViewType;

use crate::tracker::{GPU_BUSY_SECONDS, GPU_ENERGY_JOULES, GPU_IDLE_SECONDS, PARENT_TAG};

/// Maximum number of tasks whose measurements are added up.
const MAX_TASKS: i64 = 10_000;

/// What a run of a pipeline used.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PipelineUsage {
    /// What its tasks reserved while they ran.
    #[serde(flatten)]
    pub(super) reserved: Usage,
    /// What its GPUs did; null where nothing was measured. In a cluster, node agents measure the GPUs of a pod.
    pub(super) measured: Option<MeasuredGpus>,
}

/// What the GPUs of all attempts of a run did.
#[derive(Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "PipelineMeasuredGpus")]
pub(crate) struct MeasuredGpus {
    /// GPU seconds in which a kernel ran.
    busy_seconds: f64,
    /// GPU seconds in which none ran.
    idle_seconds: f64,
    /// Energy.
    joules: f64,
}

impl MeasuredGpus {
    /// Adds up what was logged to the tracked runs of the attempts; `None` if there is nothing, or it cannot be read.
    pub(super) async fn of_run(tracking: &Tracking, run_id: &str) -> Option<Self> {
        let parent = tracked_id(run_id, None);
        let experiment = tracking.run_info(&parent).ok()?.experiment_id;
        let filter = format!("tags.`{PARENT_TAG}` = '{parent}' AND metrics.`{GPU_BUSY_SECONDS}` >= 0");
        let found = tracking.search_runs(&[experiment], &filter, ViewType::ActiveOnly, MAX_TASKS, &[], None).await;
        let runs = found.inspect_err(|error| tracing::warn!(%error, "the usage of GPUs is not known")).ok()?.items;
        let mut total = Self::default();
        for metric in runs.iter().flat_map(|run| &run.data.metrics) {
            match metric.key.as_str() {
                GPU_BUSY_SECONDS => total.busy_seconds += metric.value,
                GPU_IDLE_SECONDS => total.idle_seconds += metric.value,
                GPU_ENERGY_JOULES => total.joules += metric.value,
                _ => {}
            }
        }
        (!runs.is_empty()).then_some(total)
    }
}
