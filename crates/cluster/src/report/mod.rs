//! The report of a command: the outcome of each step. The last report of a cluster is stored, and shown by the CLI and the web UI.

pub mod html;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ClusterError;

/// The outcome of a step, or its state while the command is running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
#[schemars(rename = "ClusterStepOutcome")]
pub enum Outcome {
    /// The step waits for its dependencies.
    Waiting,
    /// The step is running, or was running when slipway was killed.
    Running,
    /// The machine was in the desired state already.
    Unchanged,
    /// The step changed something.
    Changed {
        /// Number of changes.
        changes: usize,
    },
    /// A smoke test passed.
    Passed {
        /// What the test observed, such as `gpu1: GPU 0: NVIDIA H100 80GB HBM3`.
        saw: String,
    },
    /// The step failed.
    Failed {
        /// The error message.
        reason: String,
    },
    /// The step was not attempted, because a step that it needs failed.
    Skipped {
        /// Id of the failed step.
        because: String,
    },
}

impl Outcome {
    /// Whether the step succeeded, so that steps that need it may begin.
    pub fn succeeded(&self) -> bool {
        matches!(self, Self::Unchanged | Self::Changed { .. } | Self::Passed { .. })
    }

    /// The outcome in one word, and its details, which may be empty: `("changed", "2 changes")`.
    pub fn words(&self) -> (&'static str, String) {
        match self {
            Self::Waiting => ("waiting", String::new()),
            Self::Running => ("running", String::new()),
            Self::Unchanged => ("unchanged", String::new()),
            Self::Changed { changes: 1 } => ("changed", "1 change".into()),
            Self::Changed { changes } => ("changed", format!("{changes} changes")),
            Self::Passed { saw } => ("passed", saw.clone()),
            Self::Failed { reason } => ("failed", reason.clone()),
            Self::Skipped { because } => ("skipped", format!("{because} failed")),
        }
    }
}

/// The report of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ClusterStep")]
pub struct StepReport {
    /// Id of the step, such as `cp1/base`.
    pub step: String,
    /// Name of its machine.
    pub host: String,
    /// Ids of the steps that it needs.
    pub needs: Vec<String>,
    /// The outcome, or the state while the command is running.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Start of the step, in seconds since the start of the command.
    pub began: f64,
    /// Duration in seconds.
    pub seconds: f64,
}

/// The report of a command that changes a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ClusterReport")]
pub struct Report {
    /// Name of the cluster.
    pub cluster: String,
    /// The command: `apply`, `upgrade`.
    pub verb: String,
    /// Name of the change in the machines' records: the start of the command in milliseconds since 1970.
    pub change: String,
    /// The steps, in the order in which they ended.
    pub steps: Vec<StepReport>,
    /// Duration of the command in seconds.
    pub seconds: f64,
}

impl Report {
    /// Number of changes of all steps.
    pub fn changed(&self) -> usize {
        self.steps.iter().map(|s| if let Outcome::Changed { changes } = s.outcome { changes } else { 0 }).sum()
    }

    /// Appends the report of steps that ran after these.
    #[must_use]
    pub fn followed_by(mut self, later: Self) -> Self {
        let offset = self.seconds;
        self.steps.extend(later.steps.into_iter().map(|s| StepReport { began: s.began + offset, ..s }));
        self.seconds += later.seconds;
        self
    }

    /// An error with the first failure, if a step failed.
    ///
    /// # Errors
    /// [`ClusterError::Failed`].
    pub fn result(&self) -> Result<(), ClusterError> {
        let reasons: Vec<String> = self
            .steps
            .iter()
            .filter_map(|s| {
                if let Outcome::Failed { reason } = &s.outcome { Some(format!("{}: {reason}", s.step)) } else { None }
            })
            .collect();
        let Some(first) = reasons.first() else { return Ok(()) };
        Err(ClusterError::Failed { failed: reasons.len(), steps: self.steps.len(), first: first.clone() })
    }
}
