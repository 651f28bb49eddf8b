//! What all steps of a command share, and what they tell while they run.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::Event;
use crate::fleet::Fleet;
use crate::report::{Ended, Report};
use crate::spec::{Cluster, Machine};
use crate::state::State;
use crate::transport::{Connections, Host, Program};

/// How many machines are worked on at the same time; more would only wait for this machine's processors.
pub(crate) const AT_ONCE: usize = 64;

/// What a watcher is told.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // names say it
pub enum Progress {
    Began { step: String },
    Event { step: String, event: Event },
    Ended(Ended),
}

/// All that steps share.
pub struct Work {
    /// The command that was given: `apply`.
    pub verb: &'static str,
    /// The file.
    pub cluster: Cluster,
    /// Its machines.
    pub hosts: BTreeMap<String, (Machine, Host)>,
    /// How machines are spoken to.
    pub connections: Arc<Connections>,
    /// Who makes machines, where the file has groups.
    pub fleet: Option<Arc<Fleet>>,
    /// This program.
    pub program: Arc<Program>,
    /// Where logs and reports are kept.
    pub state: State,
    /// Names the records of this change.
    pub change: String,
    /// Who watches.
    pub watch: tokio::sync::mpsc::UnboundedSender<Progress>,
    /// What was done before these steps.
    pub before: Option<Report>,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("verb", &self.verb).field("change", &self.change).finish_non_exhaustive()
    }
}
