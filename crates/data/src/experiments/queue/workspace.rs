//! The record of the experiment that runs in the workspace. It has no place in the queue, but a file like the others by which `exp show` of either
//! program finds it.

use std::path::Path;

use super::Queue;
use super::records::{Info, Process, Records, status};
use crate::error::DataError;

/// The name of the record.
const NAME: &str = "workspace";

/// The experiment that this process runs in the workspace. It is recorded as long as this exists.
#[derive(Debug)]
pub(in crate::experiments) struct Recorded(Records);

impl Queue {
    fn of_workspace(&self) -> Records {
        Records::new(&self.folder.join("run"), NAME)
    }

    /// Records that this process runs an experiment in the workspace.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub(in crate::experiments) fn record_workspace(
        &self,
        baseline: &str,
        name: Option<&str>,
    ) -> Result<Recorded, DataError> {
        let recorded = Recorded(self.of_workspace());
        let info = Info { status: status::RUNNING, ..Info::new(self, self.git.root(), NAME, baseline, name) };
        recorded.0.set_info(&info)?;
        recorded.0.set_process(&Process::own(None))?;
        Ok(recorded)
    }

    /// The experiment that runs in the workspace.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub(in crate::experiments) fn in_workspace(&self) -> Result<Option<(Info, Process)>, DataError> {
        let records = self.of_workspace();
        let (Some(info), Some(process)) = (records.info()?, records.process()?) else { return Ok(None) };
        let is_running = info.status < status::SUCCESS && process.is_alive();
        Ok(is_running.then_some((info, process)))
    }
}

impl Info {
    /// What is known of an execution with the work tree `root` before it begins.
    pub(super) fn new(queue: &Queue, root: &Path, location: &str, baseline: &str, name: Option<&str>) -> Self {
        let below_root =
            |path: &Path| crate::config::relative_path(path, queue.git.root()).to_string_lossy().into_owned();
        Self {
            git_url: format!("file://{}", root.display()),
            baseline_rev: baseline.to_owned(),
            location: location.to_owned(),
            root_dir: root.to_string_lossy().into_owned(),
            dvc_dir: below_root(&queue.root.join(crate::project::DVC_DIR)),
            name: name.map(str::to_owned),
            wdir: Some(below_root(&queue.root)),
            result_hash: None,
            result_ref: None,
            result_force: false,
            status: status::PREPARING,
        }
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let _ = self.0.remove(); // Best effort: a record whose process is dead says nothing.
    }
}
