//! What became of a run, written as Kubernetes writes a status, so that `kubectl describe` and `kubectl wait` understand it.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use slipway_core::clock;

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "RunPhase")]
pub enum Phase {
    /// It waits: for room, for a device, for the next attempt.
    #[default]
    Pending,
    /// Its program runs.
    Running,
    /// Its program ended with code 0.
    Succeeded,
    /// It will not be tried again.
    Failed,
    /// It was ended because somebody asked.
    Cancelled,
}

impl Phase {
    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// A moment, in milliseconds since the Unix epoch; written as RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub i64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let whole = clock::rfc3339(self.0);
        let text = whole.trim_end_matches('Z');
        serializer.serialize_str(&format!("{text}.{:03}Z", self.0.rem_euclid(1000)))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = clock::parse_rfc3339(&text);
        time.map(Self).ok_or_else(|| serde::de::Error::custom(format!("'{text}' is no time")))
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

/// What became of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RunStatus {
    /// How far it is.
    pub phase: Phase,
    /// Why, in one word: `Completed`, `OOMKilled`, `QuotaExceeded`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why, in a sentence.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The tracked run.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub run_id: String,
    /// Where it runs, or ran last.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// When its program first started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Attempts that failed by their own fault.
    #[serde(skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// Attempts that were ended from outside: evicted, preempted, their node lost.
    #[serde(skip_serializing_if = "is_zero")]
    pub disruptions: u32,
    /// Its attempts, the newest last; of many only the newest ten are kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
    /// `Complete` and `Failed`, as a job has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// What its GPUs did was asked for and written to the tracked run.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub attributed: bool,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(rename = "RunAttempt")]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// Where.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// When its program started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Its exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why it ended, in one word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why it ended, in a sentence.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What its GPUs did.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuUse>,
}

/// What one GPU, or slice of it, did during one attempt.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GpuUse {
    /// `GPU-...` or `MIG-...`.
    pub device: String,
    /// As what it was asked for: `nvidia.com/gpu`.
    pub resource: String,
    /// Energy, shared evenly among the device's holders.
    pub joules: f64,
    /// Time in which it did something.
    pub busy_seconds: f64,
    /// Time in which it did nothing.
    pub idle_seconds: f64,
}

/// A condition, as Kubernetes has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "RunCondition")]
pub struct Condition {
    /// `Complete`, `Failed`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True` or `False`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// Since when.
    pub last_transition_time: Time,
}

impl RunStatus {
    /// The newest attempt.
    pub fn current(&self) -> Option<&Attempt> {
        self.attempts.last()
    }
}
