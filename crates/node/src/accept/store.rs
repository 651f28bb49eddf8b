//! The files of acceptance in the agent's folder: the last report, and a record of the run that has begun and not ended.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use slipway_core::clock::now_ms;
use slipway_core::files;
use slipway_gpu::accept::check::{Level, Report};
use slipway_gpu::inventory::Inventory;

use crate::NodeError;

/// Maximum bytes that are read of a file; a report of 16 GPUs has about 100 kB.
const MAX_BYTES: u64 = 8 << 20;

/// The GPUs and the driver that a report or a run is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Version of the driver.
    pub driver: String,
    /// UUIDs of the GPUs, sorted.
    pub gpus: Vec<String>,
}

impl Subject {
    /// The GPUs of a machine.
    pub fn from_inventory(inventory: &Inventory) -> Self {
        let mut gpus: Vec<String> = inventory.gpus.iter().map(|g| g.uuid.clone()).collect();
        gpus.sort();
        Self { driver: inventory.driver.clone(), gpus }
    }

    /// The GPUs of a report.
    pub fn from_report(report: &Report) -> Self {
        let mut gpus: Vec<String> = report.gpus.iter().map(|g| g.uuid.clone()).collect();
        gpus.sort();
        Self { driver: report.driver.clone(), gpus }
    }
}

/// A run that has begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What it is about.
    pub subject: Subject,
    /// Its level.
    pub level: Level,
    /// Its start in milliseconds since the Unix epoch.
    pub started: i64,
    /// Number of runs for this subject that have begun since one has ended.
    pub count: u32,
}

/// The folder with the files.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

/// A run in progress. No other run can begin while it exists.
#[derive(Debug)]
pub struct Running {
    store: Store,
    _lock: File,
}

impl Store {
    /// The files in the agent's folder.
    pub fn new(home: &Path) -> Self {
        Self { folder: home.join("accept") }
    }

    /// Whether a run has ever begun.
    pub fn exists(&self) -> bool {
        self.folder.exists()
    }

    fn report_file(&self) -> PathBuf {
        self.folder.join("report.json")
    }

    fn attempt_file(&self) -> PathBuf {
        self.folder.join("running.json")
    }

    fn read(path: &Path) -> Result<Option<Vec<u8>>, NodeError> {
        match std::fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Ok(metadata) if metadata.len() > MAX_BYTES => {
                return Err(NodeError::Invalid(format!("{} is larger than {MAX_BYTES} bytes", path.display())));
            }
            _ => {}
        }
        files::read(path).map(Some).map_err(NodeError::io(path.display().to_string()))
    }

    /// The last report; `None` before the first.
    ///
    /// # Errors
    /// If the file cannot be read, or is no report of this version.
    pub fn report(&self) -> Result<Option<Report>, NodeError> {
        Self::read(&self.report_file())?.map(|bytes| Ok(Report::parse(&bytes)?)).transpose()
    }

    /// The run that has begun and not ended, if there is one.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn attempt(&self) -> Result<Option<Attempt>, NodeError> {
        // A file that is no attempt counts as none: the next run replaces it.
        Ok(Self::read(&self.attempt_file())?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Begins a run and records that.
    ///
    /// # Errors
    /// [`NodeError::Invalid`] while another run is in progress; if the folder cannot be written.
    pub fn begin(&self, subject: Subject, level: Level) -> Result<Running, NodeError> {
        std::fs::create_dir_all(&self.folder).map_err(NodeError::io(self.folder.display().to_string()))?;
        let path = self.folder.join("lock");
        let lock = File::options().create(true).write(true).truncate(false).open(&path);
        let lock = lock.map_err(NodeError::io(path.display().to_string()))?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => {
                NodeError::Invalid("another acceptance is running on this machine".into())
            }
            std::fs::TryLockError::Error(source) => NodeError::Io { what: path.display().to_string(), source },
        })?;
        let before = self.attempt()?.filter(|a| a.subject == subject && a.level == level).map_or(0, |a| a.count);
        let attempt = Attempt { subject, level, started: now_ms(), count: before + 1 };
        self.write(&self.attempt_file(), &attempt)?;
        Ok(Running { store: self.clone(), _lock: lock })
    }

    fn write<T: Serialize>(&self, path: &Path, value: &T) -> Result<(), NodeError> {
        let text = serde_json::to_vec_pretty(value).map_err(|e| NodeError::Invalid(e.to_string()))?;
        files::replace_as(path, &text, 0o600).map_err(NodeError::io(path.display().to_string()))
    }
}

impl Running {
    /// Ends the run. A report that does not cover the whole machine is not kept, and neither is one that passed a lower level than the
    /// kept one of the same GPUs, or one of simulated GPUs if there is one of real ones. Returns whether the report is kept.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn finish(self, report: &Report) -> Result<bool, NodeError> {
        let covers_more = |kept: &Report| {
            let same = Subject::from_report(kept) == Subject::from_report(report);
            let lower = report.passed() && kept.passed() && kept.level > report.level && same;
            lower || (report.simulated && !kept.simulated)
        };
        let keep = report.complete && !self.store.report().ok().flatten().is_some_and(|kept| covers_more(&kept));
        if keep {
            self.store.write(&self.store.report_file(), report)?;
        }
        self.abandon()?;
        Ok(keep)
    }

    /// Ends a run that could not start, such as because its request was invalid.
    ///
    /// # Errors
    /// If the record cannot be removed.
    pub fn abandon(self) -> Result<(), NodeError> {
        let path = self.store.attempt_file();
        files::remove(&path).map_err(NodeError::io(path.display().to_string()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use slipway_gpu::accept::check::{Check, Outcome, Tested, VERSION};

    /// A report of a machine with these GPUs.
    pub(crate) fn report(gpus: &[&str], level: u8, outcome: Outcome, finished: i64) -> Report {
        let tested = |(index, uuid): (u32, &&str)| Tested { index, uuid: (*uuid).into(), name: "NVIDIA H200".into() };
        Report {
            version: VERSION,
            simulated: true,
            machine: "n1".into(),
            driver: "580.95.05".into(),
            gpus: (0..).zip(gpus).map(tested).collect(),
            level: Level::try_from(level).unwrap(),
            complete: true,
            started: finished - 1000,
            finished,
            checks: vec![
                Check::new("driver", "machine", Outcome::Pass, "fine"),
                Check::new("pcie", "gpu 0", outcome, "7 GB/s"),
            ],
        }
    }

    pub(crate) fn store() -> (Store, PathBuf) {
        let home = std::env::temp_dir().join(format!("slipway-accept-{}", slipway_core::ids::hex32()));
        (Store::new(&home), home)
    }

    fn finish(store: &Store, report: &Report) -> bool {
        store.begin(Subject::from_report(report), report.level).unwrap().finish(report).unwrap()
    }

    #[test]
    fn runs_exclude_each_other_and_are_counted_until_one_ends() {
        let (store, home) = store();
        let subject = |gpu: &str| Subject { driver: "580.95.05".into(), gpus: vec![gpu.into()] };
        let level = Level::LONG;
        let running = store.begin(subject("GPU-1"), level).unwrap();
        assert!(store.begin(subject("GPU-1"), level).unwrap_err().to_string().contains("another acceptance"));
        drop(running); // as if the process had been killed
        assert_eq!(store.attempt().unwrap().unwrap().count, 1);
        drop(store.begin(subject("GPU-1"), level).unwrap());
        assert_eq!(store.attempt().unwrap().unwrap().count, 2);
        drop(store.begin(subject("GPU-2"), level).unwrap());
        assert_eq!(store.attempt().unwrap().unwrap().count, 1, "other GPUs start anew");
        assert_eq!(store.report().unwrap(), None);
        assert!(finish(&store, &report(&["GPU-2"], 3, Outcome::Pass, 5000)));
        assert_eq!(store.attempt().unwrap(), None);
        std::fs::remove_dir_all(home).unwrap();
    }

    #[test]
    fn lower_level_and_partial_reports_do_not_replace_a_higher_one() {
        let (store, home) = store();
        let long = report(&["GPU-1"], 3, Outcome::Pass, 5000);
        assert!(finish(&store, &long));
        assert!(!finish(&store, &report(&["GPU-1"], 1, Outcome::Pass, 6000)));
        assert!(!finish(&store, &Report { complete: false, ..report(&["GPU-1"], 4, Outcome::Fail, 6000) }));
        assert_eq!(store.report().unwrap(), Some(long));
        let failed = report(&["GPU-1"], 2, Outcome::Fail, 7000);
        assert!(finish(&store, &failed), "a failure counts at every level");
        let real = Report { simulated: false, ..report(&["GPU-7"], 1, Outcome::Pass, 8000) };
        assert!(finish(&store, &real) && !finish(&store, &report(&["GPU-1"], 4, Outcome::Fail, 9000)));
        assert_eq!(store.report().unwrap(), Some(real));
        std::fs::remove_dir_all(home).unwrap();
    }

    #[test]
    fn unreadable_report_is_an_error() {
        let (store, home) = store();
        std::fs::create_dir_all(&store.folder).unwrap();
        std::fs::write(store.report_file(), "{\"version\": 1}").unwrap();
        assert!(store.report().unwrap_err().to_string().contains("no acceptance report"));
        std::fs::remove_dir_all(home).unwrap();
    }
}
