//! The runs of this machine: cached in memory for reads, stored in files for the next server.
//!
//! The lock of the map is never held during file operations. Files of a run are written under the lock of that run. Methods marked
//! "Blocks." use the disk and must run on a thread that may block.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::NAMESPACE;
use super::data::DataState;
use super::supervisor;
use crate::manifest::{MAX_BYTES, Metadata};
use crate::status::QUEUED;
use crate::{ExecError, GpuUse, Phase, RunStatus, Submitted};

/// Maximum number of stored runs, finished ones included.
const MAX_RUNS: usize = 100_000;
/// Prefix of folders that are being deleted. The name of a run cannot have it.
const DELETED_PREFIX: &str = ".deleted-";

/// Writes a file atomically. [`slipway_core::files::replace`], except in tests that simulate a slow or full disk.
pub(super) type WriteFile = Box<dyn Fn(&Path, &[u8]) -> std::io::Result<()> + Send + Sync>;

/// Why a run is pending.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Waiting {
    /// In one CamelCase word; empty if nothing blocks the run.
    pub(super) reason: &'static str,
    /// In a sentence.
    pub(super) message: String,
}

impl Waiting {
    /// A run that waits for capacity, data or another attempt to start it.
    pub(super) fn queued(message: String) -> Self {
        Self { reason: QUEUED, message }
    }
}

/// A run and the in-memory state of its newest attempt.
pub(super) struct Entry {
    pub(super) run: Submitted,
    /// When the run was submitted, in milliseconds since the Unix epoch. Runs are started in this order.
    pub(super) submitted_at: i64,
    /// Number of the newest attempt; 0 before the first is started.
    pub(super) newest_attempt: u32,
    /// Whether this process has created the tracked run.
    pub(super) tracked: bool,
    /// Why the run is pending: missing capacity or an error.
    pub(super) waiting_for: Waiting,
    /// Whether the data of the run is on this machine.
    pub(super) data: DataState,
    /// GPU usage of the newest attempt so far.
    pub(super) gpus: Vec<GpuUse>,
    /// Whether to delete the run as soon as it has ended.
    pub(super) delete_when_finished: bool,
    /// Held while the files of this run are written.
    write_lock: Arc<Mutex<()>>,
}

impl Entry {
    fn new(run: Submitted, newest_attempt: u32) -> Self {
        let submitted_at = slipway_core::clock::parse_rfc3339(&run.manifest.metadata.creation_timestamp).unwrap_or(0);
        let gpus = run.status.current().map(|a| a.gpus.clone()).unwrap_or_default();
        Self {
            run,
            submitted_at,
            newest_attempt,
            tracked: false,
            waiting_for: Waiting::default(),
            data: DataState::default(),
            gpus,
            delete_when_finished: false,
            write_lock: Arc::default(),
        }
    }

    /// Whether an attempt was started and its end is not recorded yet.
    pub(super) fn is_active(&self) -> bool {
        let status = &self.run.status;
        let is_recorded = status.current().is_some_and(|a| a.number == self.newest_attempt && a.finished_at.is_some());
        self.newest_attempt > 0 && !status.phase.is_final() && !is_recorded
    }

    /// Whether the reconciler still has work to do for this run.
    fn is_unfinished(&self) -> bool {
        let expires = self.run.manifest.spec.ttl_seconds_after_finished.is_some();
        !self.run.status.phase.is_final() || self.delete_when_finished || !self.run.status.attributed || expires
    }

    /// The run with the reason why it is queued, which changes too often to be stored in the file.
    fn with_queue_reason(&self) -> Submitted {
        let mut run = self.run.clone();
        if run.status.phase == Phase::Pending && !self.waiting_for.reason.is_empty() {
            self.waiting_for.reason.clone_into(&mut run.status.reason);
            run.status.message.clone_from(&self.waiting_for.message);
        }
        run
    }
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, Entry>,
    /// Names that submissions in progress have reserved.
    reserved: BTreeSet<String>,
}

pub(super) struct Runs {
    folder: PathBuf,
    write: WriteFile,
    state: Mutex<State>,
    /// Notified after each deletion of a run.
    deleted: Notify,
    /// Keys of the runs that have changed since they were last taken.
    changed: Mutex<BTreeSet<String>>,
    /// Notified after each change of a run.
    has_changed: Notify,
}

/// The key of a run, which is also the name of its folder: its name, with the namespace and a dot before it unless that is [`NAMESPACE`].
/// Neither part has dots.
pub(super) fn key(namespace: &str, name: &str) -> String {
    match namespace {
        "" | NAMESPACE => name.to_owned(),
        namespace => format!("{namespace}.{name}"),
    }
}

/// The key of the run with this metadata.
pub(super) fn key_of(metadata: &Metadata) -> String {
    key(&metadata.namespace, &metadata.name)
}

/// The namespace and the name in a key.
fn parts(key: &str) -> (&str, &str) {
    key.split_once('.').unwrap_or((NAMESPACE, key))
}

/// Reserves a name for a submission in progress. Dropping it frees the name, whether the submission succeeded or failed.
struct Reservation<'a> {
    runs: &'a Runs,
    name: &'a str,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.runs.state.lock().reserved.remove(self.name);
    }
}

impl Runs {
    /// Reads all runs of a folder, which is created if it is missing. A run that cannot be read is logged and skipped. Blocks.
    pub(super) fn open(folder: PathBuf, write: WriteFile) -> Result<Self, ExecError> {
        std::fs::create_dir_all(&folder).map_err(ExecError::io("creating the folder of runs"))?;
        let mut entries = BTreeMap::new();
        for file in std::fs::read_dir(&folder).map_err(ExecError::io("reading the folder of runs"))?.flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            if name.starts_with(DELETED_PREFIX) {
                // A server was killed during this deletion.
                if let Err(error) = std::fs::remove_dir_all(file.path()) {
                    tracing::warn!(path = %file.path().display(), %error, "cannot remove the remaining files of a deleted run");
                }
                continue;
            }
            discard_incomplete_submission(&file.path());
            if !file.path().exists() {
                continue;
            }
            let text = std::fs::read(file.path().join("run.json")).unwrap_or_default();
            match serde_json::from_slice::<Submitted>(&text) {
                Ok(run) => {
                    let newest = newest_attempt(&file.path(), &run.status);
                    entries.insert(name, Entry::new(run, newest));
                }
                Err(error) => tracing::warn!(run = name, %error, "skipping a run that cannot be read"),
            }
        }
        let state = Mutex::new(State { entries, reserved: BTreeSet::new() });
        let changed = Mutex::new(state.lock().entries.keys().cloned().collect());
        Ok(Self { folder, write, state, deleted: Notify::new(), changed, has_changed: Notify::new() })
    }

    /// The folder of a run, whether or not it exists.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn get(&self, name: &str) -> Option<Submitted> {
        self.state.lock().entries.get(name).map(Entry::with_queue_reason)
    }

    /// All runs in the order of submission.
    pub(super) fn list(&self) -> Vec<Submitted> {
        let mut all: Vec<(i64, Submitted)> =
            self.state.lock().entries.values().map(|e| (e.submitted_at, e.with_queue_reason())).collect();
        all.sort_by_key(|(submitted_at, _)| *submitted_at);
        all.into_iter().map(|(_, run)| run).collect()
    }

    /// Records that a run has changed.
    pub(super) fn mark_changed(&self, key: &str) {
        self.changed.lock().insert(key.to_owned());
        self.has_changed.notify_one();
    }

    /// Waits until runs have changed since the last call, and returns their namespaces and names.
    pub(super) async fn changes(&self) -> Vec<(String, String)> {
        loop {
            let changed = std::mem::take(&mut *self.changed.lock());
            if !changed.is_empty() {
                let owned = |(namespace, name): (&str, &str)| (namespace.to_owned(), name.to_owned());
                return changed.iter().map(|key| owned(parts(key))).collect();
            }
            self.has_changed.notified().await;
        }
    }

    /// Accesses the in-memory entry of a run; `None` if the run does not exist.
    pub(super) fn with_entry<T>(&self, name: &str, use_entry: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.state.lock().entries.get_mut(name).map(use_entry)
    }

    /// Names of the runs that the reconciler still has work for, in the order of submission.
    pub(super) fn unfinished(&self) -> Vec<String> {
        let state = self.state.lock();
        let unfinished = state.entries.iter().filter(|(_, e)| e.is_unfinished());
        let mut names: Vec<(i64, String)> = unfinished.map(|(name, e)| (e.submitted_at, name.clone())).collect();
        drop(state);
        names.sort();
        names.into_iter().map(|(_, name)| name).collect()
    }

    /// Names of the runs with an active attempt, and the number of that attempt.
    pub(super) fn active(&self) -> Vec<(String, u32)> {
        let state = self.state.lock();
        state.entries.iter().filter(|(_, e)| e.is_active()).map(|(name, e)| (name.clone(), e.newest_attempt)).collect()
    }

    /// Adds a new run. Returns after the run was written to the disk. Blocks.
    pub(super) fn insert(&self, run: Submitted, submitted_at: i64) -> Result<(), ExecError> {
        let name = key_of(&run.manifest.metadata);
        let reservation = self.reserve(&name)?;
        let folder = self.folder(&name);
        if folder.exists() {
            return Err(already_exists(&name));
        }
        if let Err(error) = self.save(&run) {
            // Keep the name free. The folder holds nothing else, and the returned error already reports the disk's fault.
            let _ = std::fs::remove_dir_all(&folder);
            return Err(error);
        }
        let entry = Entry { submitted_at, ..Entry::new(run, 0) };
        self.state.lock().entries.insert(name.clone(), entry);
        drop(reservation);
        self.mark_changed(&name);
        Ok(())
    }

    fn reserve<'a>(&'a self, name: &'a str) -> Result<Reservation<'a>, ExecError> {
        let mut state = self.state.lock();
        if state.entries.contains_key(name) || state.reserved.contains(name) {
            return Err(already_exists(name));
        }
        if state.entries.len() + state.reserved.len() >= MAX_RUNS {
            return Err(ExecError::NotNow(format!("the limit of {MAX_RUNS} stored runs is reached; remove old ones")));
        }
        state.reserved.insert(name.to_owned());
        Ok(Reservation { runs: self, name })
    }

    /// Changes a run, first on the disk and then in memory. Changes of the same run are serialised. Blocks.
    pub(super) fn update(&self, name: &str, change: impl FnOnce(&mut Submitted)) -> Result<Submitted, ExecError> {
        let write_lock = self.with_entry(name, |e| Arc::clone(&e.write_lock)).ok_or_else(|| missing(name))?;
        let _guard = write_lock.lock();
        // Meanwhile the run may have been deleted and another one submitted under the same name.
        let if_same = |e: &mut Entry| Arc::ptr_eq(&e.write_lock, &write_lock).then(|| e.run.clone());
        let mut run = self.with_entry(name, if_same).flatten().ok_or_else(|| missing(name))?;
        change(&mut run);
        self.save(&run)?;
        let updated = self.with_entry(name, |e| {
            e.run = run;
            e.with_queue_reason()
        });
        self.mark_changed(name);
        updated.ok_or_else(|| missing(name))
    }

    /// Deletes a run and its files. Blocks.
    pub(super) fn delete(&self, name: &str) -> Result<(), ExecError> {
        let Some(write_lock) = self.with_entry(name, |e| Arc::clone(&e.write_lock)) else { return Ok(()) };
        let _guard = write_lock.lock();
        // Rename first: a partly deleted folder would look like a run that cannot be read.
        let trash = self.folder.join(format!("{DELETED_PREFIX}{}", slipway_core::ids::hex32()));
        match std::fs::rename(self.folder(name), &trash) {
            Ok(()) => std::fs::remove_dir_all(&trash).map_err(ExecError::io("deleting the run"))?,
            // The files were already deleted by hand.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(ExecError::io("deleting the run")(error)),
        }
        self.state.lock().entries.remove(name);
        self.deleted.notify_waiters();
        self.mark_changed(name);
        Ok(())
    }

    /// Waits until the run does not exist.
    pub(super) async fn wait_until_deleted(&self, name: &str) {
        loop {
            let mut deleted = std::pin::pin!(self.deleted.notified());
            // Register before the check, so that no deletion between the check and the wait is missed.
            deleted.as_mut().enable();
            if self.with_entry(name, |_| ()).is_none() {
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
        let path = self.folder(&key_of(&run.manifest.metadata)).join("run.json");
        (self.write)(&path, &text).map_err(ExecError::io("writing the run"))
    }
}

/// Deletes the folder of a submission during which the server was killed. Such a folder holds at most a partly written `run.json`; a
/// folder with any other content is left unchanged.
fn discard_incomplete_submission(folder: &Path) {
    if !folder.join("run.json").exists() {
        // Ignore errors: without the file, or with other files in the folder, there is nothing to discard.
        let _ = std::fs::remove_file(folder.join(".run.json.slipway"));
        let _ = std::fs::remove_dir(folder);
    }
}

/// The number of the newest attempt that was started; 0 if there is none. A server that was killed between the creation of an attempt's
/// files and the start of its supervisor leaves a folder of an attempt that never began, which is started as if the folder were missing.
fn newest_attempt(folder: &Path, status: &RunStatus) -> u32 {
    let recorded = status.current().map_or(0, |attempt| attempt.number);
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let started = files.filter_map(|file| {
        let number: u32 = file.file_name().to_str()?.parse().ok()?;
        (number <= recorded || supervisor::has_started(&file.path())).then_some(number)
    });
    started.max().unwrap_or(0)
}

fn already_exists(key: &str) -> ExecError {
    let (_, name) = parts(key);
    ExecError::Exists(format!(
        "there is already a run '{name}'; set metadata.generateName to have a unique name generated"
    ))
}

/// The error of a key without a run.
fn missing(key: &str) -> ExecError {
    let (namespace, name) = parts(key);
    not_found(namespace, name)
}

pub(super) fn not_found(namespace: &str, name: &str) -> ExecError {
    ExecError::NotFound(format!("there is no run '{name}' in namespace '{namespace}'"))
}
