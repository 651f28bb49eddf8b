//! The context that all steps of a command share, and the progress that they send while they run.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::Event;
use crate::fleet::Fleet;
use crate::report::{Report, StepReport};
use crate::spec::{Cluster, Machine};
use crate::state::State;
use crate::transport::{Connections, Host, Program};

/// Maximum number of machines that are probed or changed at the same time. More would only wait for the controller's processors.
pub(crate) const MAX_CONCURRENCY: usize = 64;

/// Progress of the steps.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // the names are enough
pub enum Progress {
    Began { step: String },
    Event { step: String, event: Event },
    Ended(StepReport),
}

/// The context that all steps of a command share.
pub struct Work {
    /// Name of the command, such as `apply`.
    pub verb: &'static str,
    /// The cluster, with the provisioned machines of its groups.
    pub cluster: Cluster,
    /// The machines by name, including those that are about to leave the cluster.
    pub hosts: BTreeMap<String, (Machine, Host)>,
    /// Opens connections to machines that are created during the command.
    pub connections: Arc<Connections>,
    /// The machines of the groups; `None` if the file has no groups.
    pub fleet: Option<Arc<Fleet>>,
    /// The program that is uploaded to the machines.
    pub program: Arc<Program>,
    /// The cluster's folder, for logs and reports.
    pub state: State,
    /// Name of the change in the machines' records: the start of the command in milliseconds since 1970.
    pub change: String,
    /// Receives the progress.
    pub watch: tokio::sync::mpsc::UnboundedSender<Progress>,
    /// Report of steps that ran earlier in the same command, and to which these steps are appended.
    pub before: Option<Report>,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("verb", &self.verb).field("change", &self.change).finish_non_exhaustive()
    }
}
