//! The context that all steps of a command share, and the progress that they send while they run.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

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
pub(crate) struct Work {
    /// Name of the command, such as `apply`.
    pub(crate) verb: &'static str,
    /// The cluster, with the provisioned machines of its groups.
    pub(crate) cluster: Cluster,
    /// The machines by name, including those that are about to leave the cluster.
    pub(crate) hosts: BTreeMap<String, (Machine, Host)>,
    /// Opens connections to machines that are created during the command.
    pub(crate) connections: Arc<Connections>,
    /// The machines of the groups; `None` if the file has no groups.
    pub(crate) fleet: Option<Arc<Fleet>>,
    /// The program that is uploaded to the machines.
    pub(crate) program: Arc<Program>,
    /// The cluster's folder, for logs and reports.
    pub(crate) state: State,
    /// Name of the change in the machines' records: the start of the command in milliseconds since 1970.
    pub(crate) change: String,
    /// Receives the progress; `None` if there is no observer.
    pub(crate) watch: Option<UnboundedSender<Progress>>,
    /// Report of steps that ran earlier in the same command, and to which these steps are appended.
    pub(crate) before: Option<Report>,
}

impl Work {
    /// Sends progress to the observer of the command, if there is one.
    pub(crate) fn send(&self, progress: Progress) {
        if let Some(watch) = &self.watch {
            let _ = watch.send(progress); // the observer may have ended
        }
    }
}
