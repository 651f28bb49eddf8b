//! The status of a run, in the form of other Kubernetes statuses, so that `kubectl describe` and `kubectl wait` understand it.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use slipway_core::clock;

use crate::data::UsedData;
use crate::queueing::QueueStatus;

/// Reason of a pending run that waits for capacity or in a queue.
pub const QUEUED: &str = "Queued";

/// Phase of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "RunPhase")]
pub enum Phase {
    /// The run waits for capacity, for its container to start, or for the next attempt.
    #[default]
    Pending,
    /// The program is running.
    Running,
    /// The program exited with code 0.
    Succeeded,
    /// The run failed and will not be retried.
    Failed,
    /// The run was cancelled.
    Cancelled,
}

impl Phase {
    /// Whether the run has ended: no attempt will follow.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// A point in time in milliseconds since the Unix epoch; serialised as RFC 3339 with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub i64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let seconds = clock::rfc3339(self.0);
        let text = seconds.trim_end_matches('Z');
        serializer.serialize_str(&format!("{text}.{:03}Z", self.0.rem_euclid(1000)))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = clock::parse_rfc3339(&text);
        time.map(Self).ok_or_else(|| serde::de::Error::custom(format!("'{text}' is not an RFC 3339 timestamp")))
    }
}

impl JsonSchema for Time {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "date-time"})
    }
}

/// Status of a run and of its attempts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RunStatus {
    /// Current phase.
    pub phase: Phase,
    /// Reason for the phase, in one CamelCase word: `Completed`, `OOMKilled`, `QuotaExceeded`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Reason for the phase, in a sentence.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Id of the tracked run: 32 hexadecimal digits.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub run_id: String,
    /// Name of the node of the newest attempt.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// The queue of the newest attempt; absent if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueStatus>,
    /// When the program of the first attempt started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the run ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Number of attempts in which the program failed; they count against `backoffLimit`.
    #[serde(skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// Number of attempts that were disrupted: evicted, preempted, or lost with their node.
    #[serde(skip_serializing_if = "is_zero")]
    pub disruptions: u32,
    /// The newest ten attempts, newest last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
    /// The condition `Complete` or `Failed`, as in the status of a job.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The data that the run uses, in the order of `spec.data`. All attempts use the same versions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<UsedData>,
    /// Whether the GPU usage was collected and written to the tracked run.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub attributed: bool,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// One attempt to run the program.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(rename = "RunAttempt")]
pub struct Attempt {
    /// Number of the attempt, from 1.
    pub number: u32,
    /// Name of the node on which the attempt ran.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// When the program started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the attempt ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Exit code of the program; 128 plus the signal's number if a signal ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why the attempt ended, in one CamelCase word: `Completed`, `Error`, `Evicted`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why the attempt ended, in a sentence.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Usage of each GPU or MIG slice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuUse>,
}

/// Usage of one GPU or MIG slice during one attempt.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GpuUse {
    /// UUID of the device: `GPU-...` or `MIG-...`.
    pub device: String,
    /// Name of the resource as which it was requested: `nvidia.com/gpu`.
    pub resource: String,
    /// Energy in joules, split evenly among the holders of a shared device.
    pub joules: f64,
    /// Seconds in which the device computed.
    pub busy_seconds: f64,
    /// Seconds in which the device was idle.
    pub idle_seconds: f64,
}

/// A condition in the form of Kubernetes' `metav1.Condition`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "RunCondition")]
pub struct Condition {
    /// `Complete` or `Failed`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True` or `False`.
    pub status: String,
    /// Reason in one CamelCase word.
    pub reason: String,
    /// Explanation in a sentence.
    pub message: String,
    /// When the condition last changed.
    pub last_transition_time: Time,
}

impl RunStatus {
    /// The newest attempt; `None` before the first.
    pub fn current(&self) -> Option<&Attempt> {
        self.attempts.last()
    }
}
