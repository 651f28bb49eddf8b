//! Messages of responses. A field with its default value is left out, as protobuf's JSON mapping does it.

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use slipway_core::clock::rfc3339;

use super::failure::{Code, Failure};
use crate::entity::{
    Experiment, Pipeline, RecurringRun, Run, RuntimeConfig, Source, StateChange, StorageState, StoredSpec, Tags,
    Version,
};
use crate::model::RunState;
use crate::schedule::{Schedule, Trigger};
use crate::service::Service;

/// Milliseconds since the Unix epoch as RFC 3339; one that is not known is 1970, as upstream writes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time(pub(super) i64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&rfc3339(self.0))
    }
}

/// `google.rpc.Status`.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    pub(super) code: i32,
    pub(super) message: String,
}

impl Status {
    /// The status of something that failed for this reason; `None` for an empty one.
    pub(super) fn of_failure(reason: &str) -> Option<Self> {
        // 2 is `UNKNOWN`: the reason comes from the user's program.
        (!reason.is_empty()).then(|| Self { code: 2, message: reason.to_owned() })
    }
}

/// Parses the text of a stored specification without reading it.
pub(super) fn raw(spec: &StoredSpec) -> Result<Box<RawValue>, Failure> {
    RawValue::from_string(spec.text.to_string())
        .map_err(|error| Failure::new(Code::Internal, format!("the stored specification is damaged: {error}")))
}

#[derive(Serialize)]
pub(super) struct PipelineMessage<'a> {
    pipeline_id: &'a str,
    display_name: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    created_at: Time,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    #[serde(skip_serializing_if = "Tags::is_empty")]
    tags: &'a Tags,
}

impl<'a> PipelineMessage<'a> {
    pub(super) fn new(service: &Service, pipeline: &'a Pipeline) -> Self {
        Self {
            pipeline_id: &pipeline.pipeline_id,
            display_name: &pipeline.display_name,
            name: &pipeline.name,
            description: &pipeline.description,
            created_at: Time(pipeline.created_at),
            namespace: service.shown_namespace(&pipeline.namespace),
            tags: &pipeline.tags,
        }
    }
}

#[derive(Serialize)]
struct Url<'a> {
    pipeline_url: &'a str,
}

#[derive(Serialize)]
pub(super) struct VersionMessage<'a> {
    pipeline_id: &'a str,
    pipeline_version_id: &'a str,
    display_name: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    created_at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    package_url: Option<Url<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    code_source_url: &'a str,
    pipeline_spec: Box<RawValue>,
    #[serde(skip_serializing_if = "Tags::is_empty")]
    tags: &'a Tags,
}

impl<'a> VersionMessage<'a> {
    pub(super) fn new(version: &'a Version, spec: &StoredSpec) -> Result<Self, Failure> {
        let url = version.package_url.as_str();
        Ok(Self {
            pipeline_id: &version.pipeline_id,
            pipeline_version_id: &version.version_id,
            display_name: &version.display_name,
            name: &version.name,
            description: &version.description,
            created_at: Time(version.created_at),
            package_url: (!url.is_empty()).then_some(Url { pipeline_url: url }),
            code_source_url: &version.code_source_url,
            pipeline_spec: raw(spec)?,
            tags: &version.tags,
        })
    }
}

#[derive(Serialize)]
pub(super) struct ExperimentMessage<'a> {
    experiment_id: &'a str,
    display_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    created_at: Time,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    storage_state: StorageState,
    last_run_created_at: Time,
}

impl<'a> ExperimentMessage<'a> {
    pub(super) fn new(service: &Service, experiment: &'a Experiment) -> Self {
        Self {
            experiment_id: &experiment.experiment_id,
            display_name: &experiment.name,
            description: &experiment.description,
            created_at: Time(experiment.created_at),
            namespace: service.shown_namespace(&experiment.namespace),
            storage_state: experiment.storage_state,
            last_run_created_at: Time(experiment.last_run_created_at),
        }
    }
}

/// A state of a run or task and when it began.
#[derive(Serialize)]
pub(super) struct StatusMessage {
    pub(super) update_time: Time,
    pub(super) state: RunState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<Status>,
}

impl From<&StateChange> for StatusMessage {
    fn from(change: &StateChange) -> Self {
        Self { update_time: Time(change.at), state: change.state, error: Status::of_failure(&change.error) }
    }
}

#[derive(Serialize)]
struct ConfigMessage<'a> {
    #[serde(skip_serializing_if = "Map::is_empty")]
    parameters: &'a Map<String, Value>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pipeline_root: &'a str,
}

fn config(config: &RuntimeConfig) -> Option<ConfigMessage<'_>> {
    let is_empty = config.parameters.is_empty() && config.pipeline_root.is_empty();
    (!is_empty).then_some(ConfigMessage { parameters: &config.parameters, pipeline_root: &config.pipeline_root })
}

#[derive(Serialize)]
struct ReferenceMessage<'a> {
    pipeline_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pipeline_version_id: &'a str,
}

fn reference(source: &Source) -> Option<ReferenceMessage<'_>> {
    match source {
        Source::Inline { .. } => None,
        Source::Version { pipeline_id, version_id } => {
            Some(ReferenceMessage { pipeline_id, pipeline_version_id: version_id })
        }
        Source::Newest { pipeline_id } => Some(ReferenceMessage { pipeline_id, pipeline_version_id: "" }),
    }
}

/// `run_details`.
#[derive(Serialize)]
pub(super) struct Details<'a> {
    pub(super) task_details: &'a RawValue,
}

#[derive(Serialize)]
pub(super) struct RunMessage<'a> {
    experiment_id: &'a str,
    run_id: &'a str,
    display_name: &'a str,
    storage_state: StorageState,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pipeline_spec: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pipeline_version_reference: Option<ReferenceMessage<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime_config: Option<ConfigMessage<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_account: &'a str,
    created_at: Time,
    scheduled_at: Time,
    finished_at: Time,
    state: RunState,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) run_details: Option<Details<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    recurring_run_id: &'a str,
    state_history: Vec<StatusMessage>,
}

impl<'a> RunMessage<'a> {
    /// A run, with its specification if that is not a version's.
    pub(super) fn new(run: &'a Run, spec: Option<&StoredSpec>) -> Result<Self, Failure> {
        Ok(Self {
            experiment_id: &run.experiment_id,
            run_id: &run.run_id,
            display_name: &run.display_name,
            storage_state: run.storage_state,
            description: &run.description,
            pipeline_spec: spec.map(raw).transpose()?,
            pipeline_version_reference: reference(&run.source),
            runtime_config: config(&run.config),
            service_account: &run.service_account,
            created_at: Time(run.created_at),
            scheduled_at: Time(run.scheduled_at),
            finished_at: Time(run.finished_at),
            state: run.state,
            error: Status::of_failure(&run.error),
            run_details: None,
            recurring_run_id: &run.recurring_run_id,
            state_history: run.history.iter().map(StatusMessage::from).collect(),
        })
    }
}

#[derive(Serialize)]
struct CronMessage<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<Time>,
    cron: &'a str,
}

#[derive(Serialize)]
struct PeriodicMessage {
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<Time>,
    interval_second: String,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum TriggerMessage<'a> {
    CronSchedule(CronMessage<'a>),
    PeriodicSchedule(PeriodicMessage),
}

fn trigger(schedule: &Schedule) -> Option<TriggerMessage<'_>> {
    let time = |seconds: Option<i64>| seconds.map(|seconds| Time(seconds.saturating_mul(1000)));
    let (start_time, end_time) = (time(schedule.start), time(schedule.end));
    match &schedule.trigger {
        Trigger::Once => None,
        Trigger::Cron(cron) => Some(TriggerMessage::CronSchedule(CronMessage { start_time, end_time, cron })),
        Trigger::Every(seconds) => Some(TriggerMessage::PeriodicSchedule(PeriodicMessage {
            start_time,
            end_time,
            interval_second: seconds.to_string(),
        })),
    }
}

#[derive(Serialize)]
pub(super) struct RecurringRunMessage<'a> {
    recurring_run_id: &'a str,
    display_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pipeline_spec: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pipeline_version_reference: Option<ReferenceMessage<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime_config: Option<ConfigMessage<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_account: &'a str,
    max_concurrency: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    trigger: Option<TriggerMessage<'a>>,
    mode: &'static str,
    created_at: Time,
    updated_at: Time,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Status>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_catchup: bool,
    namespace: &'a str,
    experiment_id: &'a str,
}

impl<'a> RecurringRunMessage<'a> {
    pub(super) fn new(recurring: &'a RecurringRun, spec: Option<&StoredSpec>) -> Result<Self, Failure> {
        let (mode, status) = if recurring.enabled { ("ENABLE", "ENABLED") } else { ("DISABLE", "DISABLED") };
        Ok(Self {
            recurring_run_id: &recurring.recurring_run_id,
            display_name: &recurring.display_name,
            description: &recurring.description,
            pipeline_spec: spec.map(raw).transpose()?,
            pipeline_version_reference: reference(&recurring.source),
            runtime_config: config(&recurring.config),
            service_account: &recurring.service_account,
            max_concurrency: recurring.max_concurrency.to_string(),
            trigger: trigger(&recurring.schedule),
            mode,
            created_at: Time(recurring.created_at),
            updated_at: Time(recurring.updated_at),
            status,
            error: Status::of_failure(&recurring.error),
            no_catchup: !recurring.schedule.catch_up,
            namespace: &recurring.namespace,
            experiment_id: &recurring.experiment_id,
        })
    }
}
