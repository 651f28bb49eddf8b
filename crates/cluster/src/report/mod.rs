//! What steps did.

pub mod html;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ClusterError;

/// How a step ended, or how far it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
#[schemars(rename = "ClusterStepOutcome")]
pub enum Outcome {
    /// It waits for others.
    Waiting,
    /// It is being done, or was when slipway was killed.
    Running,
    /// All was as wanted.
    Unchanged,
    /// So many things were changed.
    Changed {
        /// How many.
        changes: usize,
    },
    /// A test went well.
    Passed {
        /// What it saw.
        saw: String,
    },
    /// It failed.
    Failed {
        /// Why.
        reason: String,
    },
    /// A step that it needs failed.
    Skipped {
        /// Which.
        because: String,
    },
}

impl Outcome {
    /// Whether steps that need it may begin.
    pub fn went_well(&self) -> bool {
        matches!(self, Self::Unchanged | Self::Changed { .. } | Self::Passed { .. })
    }

    /// In a word, and what there is to say.
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

/// A step and its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ClusterStep")]
pub struct Ended {
    /// The step.
    pub step: String,
    /// Its machine.
    pub host: String,
    /// Steps that it needed.
    pub needs: Vec<String>,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Seconds after the beginning of all when it began.
    pub began: f64,
    /// How long it took.
    pub seconds: f64,
}

/// All that was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ClusterReport")]
pub struct Report {
    /// The cluster's name.
    pub cluster: String,
    /// What was asked for: `apply`, `upgrade`.
    pub verb: String,
    /// Names the records of this change on the machines; milliseconds since 1970.
    pub change: String,
    /// In the order in which they ended.
    pub steps: Vec<Ended>,
    /// All of it.
    pub seconds: f64,
}

impl Report {
    /// Things that were changed.
    pub fn changed(&self) -> usize {
        self.steps.iter().map(|s| if let Outcome::Changed { changes } = s.outcome { changes } else { 0 }).sum()
    }

    /// With what was done afterwards.
    #[must_use]
    pub fn followed_by(mut self, later: Self) -> Self {
        let offset = self.seconds;
        self.steps.extend(later.steps.into_iter().map(|s| Ended { began: s.began + offset, ..s }));
        self.seconds += later.seconds;
        self
    }

    /// The first failure, as the error of the whole.
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
