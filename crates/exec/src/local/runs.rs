//! All runs of this machine: in memory for those who read, in files for the next server.
//!
//! The lock of the map is held for memory only, never while a file is touched. Files of one run are written under that run's own lock.
//! Methods marked "blocks" use the disk and belong on a thread that may block.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::NAMESPACE;
use crate::manifest::MAX_BYTES;
use crate::{ExecError, GpuUse, Phase, Submitted};

/// Runs that are kept at once, finished ones included.
const MAX_RUNS: usize = 100_000;
/// Begins the names of folders that are being deleted. A run's name never begins like this.
const DELETED: &str = ".deleted-";

/// Writes a file whole or not at all. [`slipway_core::files::replace`], but for tests with a slow disk.
pub(super) type WriteFile = Box<dyn Fn(&Path, &[u8]) -> std::io::Result<()> + Send + Sync>;

/// A run, and what is known of its newest attempt.
pub(super) struct Entry {
    pub(super) run: Submitted,
    /// When it was submitted, in milliseconds since the Unix epoch; the order in which runs are started.
    pub(super) arrived: i64,
    /// Number of the newest attempt that was started; 0 before the first.
    pub(super) started: u32,
    /// Whether its tracked run was begun.
    pub(super) tracked: bool,
    /// Why it is pending; empty if nothing is in its way.
    pub(super) waits_for: String,
    /// What the newest attempt's GPUs have done.
    pub(super) gpus: Vec<GpuUse>,
    /// It is deleted as soon as it has ended.
    pub(super) removed: bool,
    /// Held while its files are written.
    writing: Arc<Mutex<()>>,
}

impl Entry {
    fn new(run: Submitted, started: u32) -> Self {
        let arrived = slipway_core::clock::parse_rfc3339(&run.manifest.metadata.creation_timestamp).unwrap_or(0);
        let gpus = run.status.current().map(|a| a.gpus.clone()).unwrap_or_default();
        Self {
            run,
            arrived,
            started,
            tracked: false,
            waits_for: String::new(),
            gpus,
            removed: false,
            writing: Arc::default(),
        }
    }

    /// Whether its newest attempt was started, and its end is not written down.
    pub(super) fn is_active(&self) -> bool {
        let status = &self.run.status;
        let noted = status.current().is_some_and(|a| a.number == self.started && a.finished_at.is_some());
        self.started > 0 && !status.phase.is_final() && !noted
    }

    /// Whether the reconciler has something left to do for it.
    fn is_unfinished(&self) -> bool {
        let expires = self.run.manifest.spec.ttl_seconds_after_finished.is_some();
        !self.run.status.phase.is_final() || self.removed || !self.run.status.attributed || expires
    }

    /// The run with what it waits for, which changes too often to be written down.
    fn shown(&self) -> Submitted {
        let mut run = self.run.clone();
        if run.status.phase == Phase::Pending && !self.waits_for.is_empty() {
            run.status.reason = "Queued".into();
            run.status.message.clone_from(&self.waits_for);
        }
        run
    }
}

#[derive(Default)]
struct Known {
    entries: BTreeMap<String, Entry>,
    /// Names of runs that are being written for the first time.
    arriving: BTreeSet<String>,
}

pub(super) struct Runs {
    folder: PathBuf,
    write: WriteFile,
    known: Mutex<Known>,
    /// Wakes those who wait for a run to be gone.
    deleted: Notify,
}

/// Keeps a name from being taken twice; frees it when the submission is over, however that ends.
struct Reservation<'a> {
    runs: &'a Runs,
    name: &'a str,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.runs.known.lock().arriving.remove(self.name);
    }
}

impl Runs {
    /// Reads all runs of a folder, which is made if it is missing. A run that cannot be read is reported and left alone. Blocks.
    pub(super) fn open(folder: PathBuf, write: WriteFile) -> Result<Self, ExecError> {
        std::fs::create_dir_all(&folder).map_err(ExecError::io("making the folder of runs"))?;
        let mut entries = BTreeMap::new();
        for file in std::fs::read_dir(&folder).map_err(ExecError::io("reading the folder of runs"))?.flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            if name.starts_with(DELETED) {
                // A server was killed while it deleted this.
                if let Err(error) = std::fs::remove_dir_all(file.path()) {
                    tracing::warn!(path = %file.path().display(), %error, "what is left of a deleted run stays");
                }
                continue;
            }
            discard_unacknowledged(&file.path());
            if !file.path().exists() {
                continue;
            }
            let text = std::fs::read(file.path().join("run.json")).unwrap_or_default();
            match serde_json::from_slice::<Submitted>(&text) {
                Ok(run) => {
                    entries.insert(name, Entry::new(run, newest_attempt(&file.path())));
                }
                Err(error) => tracing::warn!(run = name, %error, "a run that cannot be read is left alone"),
            }
        }
        let known = Mutex::new(Known { entries, arriving: BTreeSet::new() });
        Ok(Self { folder, write, known, deleted: Notify::new() })
    }

    /// The folder of a run.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn get(&self, name: &str) -> Option<Submitted> {
        self.known.lock().entries.get(name).map(Entry::shown)
    }

    /// All runs, in the order in which they were submitted.
    pub(super) fn list(&self) -> Vec<Submitted> {
        let mut all: Vec<(i64, Submitted)> =
            self.known.lock().entries.values().map(|e| (e.arrived, e.shown())).collect();
        all.sort_by_key(|(arrived, _)| *arrived);
        all.into_iter().map(|(_, run)| run).collect()
    }

    /// Reads or changes what is only in memory of a run; `None` if there is none of that name.
    pub(super) fn with<T>(&self, name: &str, use_entry: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.known.lock().entries.get_mut(name).map(use_entry)
    }

    /// Names of the runs that the reconciler looks after, in the order in which they were submitted.
    pub(super) fn unfinished(&self) -> Vec<String> {
        let known = self.known.lock();
        let unfinished = known.entries.iter().filter(|(_, e)| e.is_unfinished());
        let mut names: Vec<(i64, String)> = unfinished.map(|(name, e)| (e.arrived, name.clone())).collect();
        drop(known);
        names.sort();
        names.into_iter().map(|(_, name)| name).collect()
    }

    /// Names of the runs with an active attempt, and its number.
    pub(super) fn active(&self) -> Vec<(String, u32)> {
        let known = self.known.lock();
        known.entries.iter().filter(|(_, e)| e.is_active()).map(|(name, e)| (name.clone(), e.started)).collect()
    }

    /// Takes in a new run, and is done when it is on the disk. Blocks.
    pub(super) fn insert(&self, run: Submitted, arrived: i64) -> Result<(), ExecError> {
        let name = run.manifest.metadata.name.clone();
        let reservation = self.reserve(&name)?;
        let folder = self.folder(&name);
        if folder.exists() {
            return Err(exists(&name));
        }
        if let Err(error) = self.save(&run) {
            // The name must stay free. Nothing else is in the folder; if it cannot be deleted the disk has said why.
            let _ = std::fs::remove_dir_all(&folder);
            return Err(error);
        }
        let entry = Entry { arrived, ..Entry::new(run, 0) };
        self.known.lock().entries.insert(name.clone(), entry);
        drop(reservation);
        Ok(())
    }

    fn reserve<'a>(&'a self, name: &'a str) -> Result<Reservation<'a>, ExecError> {
        let mut known = self.known.lock();
        if known.entries.contains_key(name) || known.arriving.contains(name) {
            return Err(exists(name));
        }
        if known.entries.len() + known.arriving.len() >= MAX_RUNS {
            return Err(ExecError::NotNow(format!("there are {MAX_RUNS} runs, and no more are kept; remove old ones")));
        }
        known.arriving.insert(name.to_owned());
        Ok(Reservation { runs: self, name })
    }

    /// Changes a run, first on the disk and then for those who read. Changes of one run happen one after the other. Blocks.
    pub(super) fn update(&self, name: &str, change: impl FnOnce(&mut Submitted)) -> Result<Submitted, ExecError> {
        let writing = self.with(name, |e| Arc::clone(&e.writing)).ok_or_else(|| missing(NAMESPACE, name))?;
        let _one_at_a_time = writing.lock();
        // While the lock was waited for the run may have been deleted, and another one may have its name.
        let same = |e: &mut Entry| Arc::ptr_eq(&e.writing, &writing).then(|| e.run.clone());
        let mut run = self.with(name, same).flatten().ok_or_else(|| missing(NAMESPACE, name))?;
        change(&mut run);
        self.save(&run)?;
        let shown = self.with(name, |e| {
            e.run = run;
            e.shown()
        });
        shown.ok_or_else(|| missing(NAMESPACE, name))
    }

    /// Deletes a run and its files. Blocks.
    pub(super) fn delete(&self, name: &str) -> Result<(), ExecError> {
        let Some(writing) = self.with(name, |e| Arc::clone(&e.writing)) else { return Ok(()) };
        let _one_at_a_time = writing.lock();
        // Renamed first: a folder of which a half is deleted would look like a run that cannot be read.
        let condemned = self.folder.join(format!("{DELETED}{}", slipway_core::ids::hex32()));
        match std::fs::rename(self.folder(name), &condemned) {
            Ok(()) => std::fs::remove_dir_all(&condemned).map_err(ExecError::io("deleting the run"))?,
            // Somebody deleted the files by hand.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(ExecError::io("deleting the run")(error)),
        }
        self.known.lock().entries.remove(name);
        self.deleted.notify_waiters();
        Ok(())
    }

    /// Waits until there is no run of this name.
    pub(super) async fn wait_until_deleted(&self, name: &str) {
        loop {
            let mut deleted = std::pin::pin!(self.deleted.notified());
            // From here on no deletion is missed, not even one between the look and the wait.
            deleted.as_mut().enable();
            if self.with(name, |_| ()).is_none() {
                return;
            }
            deleted.await;
        }
    }

    fn save(&self, run: &Submitted) -> Result<(), ExecError> {
        let text = serde_json::to_vec_pretty(run).map_err(|e| ExecError::Manifest(format!("the manifest: {e}")))?;
        if text.len() > 2 * MAX_BYTES {
            return Err(ExecError::Manifest("the manifest is too large".into()));
        }
        let path = self.folder(&run.manifest.metadata.name).join("run.json");
        (self.write)(&path, &text).map_err(ExecError::io("writing the run"))
    }
}

/// Deletes the folder of a submission during which the server was killed. It holds half of a `run.json` at most; one with anything else in
/// it is left alone.
fn discard_unacknowledged(folder: &Path) {
    if !folder.join("run.json").exists() {
        // Either may fail, because there is no such file or because there are others; then there is nothing to discard.
        let _ = std::fs::remove_file(folder.join(".run.json.slipway"));
        let _ = std::fs::remove_dir(folder);
    }
}

/// The number of the newest attempt that has a folder; 0 if none has.
fn newest_attempt(folder: &Path) -> u32 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|f| f.file_name().to_str()?.parse().ok()).max().unwrap_or(0)
}

fn exists(name: &str) -> ExecError {
    ExecError::Exists(format!("there is a run '{name}' already; metadata.generateName makes names up"))
}

pub(super) fn missing(namespace: &str, name: &str) -> ExecError {
    ExecError::NotFound(format!("there is no run '{name}' in namespace '{namespace}'"))
}
