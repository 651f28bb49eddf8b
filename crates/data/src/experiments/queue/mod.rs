//! The queue of experiments. It is DVC's: stashes in Git, messages and results in `.dvc/tmp/exps`, so that both programs see and run what either
//! queued.
//!
//! A worker is a process without a terminal that takes one message after the other. It starts a process for each, which works in a folder of its own
//! and records the outcome itself. So a worker that is killed loses nothing, and for an experiment whose process was killed, the worker or the next
//! command records the failure.

mod broker;
mod control;
mod execute;
mod follow;
mod packed;
mod put;
mod records;
mod recover;
mod worker;
mod workspace;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use execute::{Execution, Open, execute, run_apart};
pub use follow::{Results, Show, logs, run_all};
pub use put::put;
pub use records::{Info, Process};
pub use worker::{Program, Workers, kill, run_worker, start, stop, workers};

use self::broker::{Broker, Message};
use self::records::Records;
use crate::error::DataError;
use crate::lock::Lock;
use crate::project::{DVC_DIR, Project};
use crate::revision::QUEUE;
use crate::scm::{Commit, Git, RefChange};

/// The stash of experiments that failed.
const FAILED: &str = "refs/exps/celery/failed";

/// An experiment in the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    dvc_root: String,
    scm_root: String,
    stash_ref: String,
    /// The commit with its files and arguments, which is also its id.
    pub stash_rev: String,
    /// The commit from which it derives.
    pub baseline_rev: String,
    branch: Option<String>,
    /// Its name.
    pub name: Option<String>,
    #[serde(default)]
    head_rev: Option<String>,
}

impl Entry {
    /// The message in a stash, from which DVC reads the entry again.
    fn stash_message(&self) -> String {
        let head = self.head_rev.as_deref().unwrap_or(&self.baseline_rev);
        let branch = self.branch.as_ref().map(|branch| format!(":{branch}")).unwrap_or_default();
        format!("dvc-exp:{head}:{}:{}{branch}", self.baseline_rev, self.name.as_deref().unwrap_or_default())
    }

    /// The beginning of its id, as users see it.
    pub fn short(&self) -> &str {
        self.stash_rev.get(..7).unwrap_or(&self.stash_rev)
    }
}

/// The state of an experiment in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaskState {
    /// A worker runs it.
    Running,
    /// It waits.
    Queued,
    /// It failed.
    Failed,
    /// There is an experiment with its result.
    Success,
}

impl TaskState {
    /// The word for users.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Queued => "Queued",
            Self::Failed => "Failed",
            Self::Success => "Success",
        }
    }
}

/// An experiment in the queue, and what is known of it.
#[derive(Debug, Clone)]
pub struct Task {
    /// The experiment.
    pub entry: Entry,
    /// Its state.
    pub state: TaskState,
    /// Where it runs or ran.
    pub info: Option<Info>,
    /// The process that runs or ran it.
    pub process: Option<Process>,
    /// The message; `None` if it runs without the queue.
    message: Option<Message>,
}

impl Task {
    /// Whether it runs without the queue.
    pub fn is_standalone(&self) -> bool {
        self.message.is_none()
    }

    /// The root of the project in which it runs, while there is one.
    pub fn place(&self) -> Option<PathBuf> {
        let info = self.info.as_ref().filter(|info| info.status >= records::status::RUNNING)?;
        let dvc_dir = Path::new(&info.root_dir).join(&info.dvc_dir);
        dvc_dir.is_dir().then(|| crate::config::normalise(&dvc_dir.join("..")))
    }

    /// The name for users: of the result, if there is one.
    pub fn name(&self) -> Option<&str> {
        let of_result = self.reference().and_then(|reference| reference.rsplit('/').next());
        of_result.or(self.entry.name.as_deref())
    }

    fn shown(&self) -> String {
        self.name().unwrap_or_else(|| self.entry.short()).to_owned()
    }

    /// The reference of the result.
    pub fn reference(&self) -> Option<&str> {
        self.info.as_ref()?.result_ref.as_deref()
    }
}

/// The queue of a project.
#[derive(Debug, Clone)]
pub struct Queue {
    /// The root of the project.
    root: PathBuf,
    git: Git,
    /// `.dvc/tmp/exps`
    folder: PathBuf,
    broker: Broker,
}

impl Queue {
    /// The queue of the project at `root`.
    fn open(root: &Path, git: &Git) -> Self {
        let folder = root.join(DVC_DIR).join("tmp/exps");
        Self { root: root.to_owned(), git: git.clone(), broker: Broker::new(folder.join("celery")), folder }
    }

    /// The queue of an open project.
    ///
    /// # Errors
    /// If it does not use Git, or there is no commit yet.
    pub fn of(project: &Project) -> Result<Self, DataError> {
        let (git, _) = crate::revision::repository(project.git.as_ref())?;
        Ok(Self::open(&project.root, git))
    }

    /// The queue of the project at `root`, which is not locked.
    ///
    /// # Errors
    /// If it does not use Git.
    pub fn at(root: &Path) -> Result<Self, DataError> {
        let git = Git::find(root, true);
        let git = git.ok_or_else(|| DataError::Git(format!("{} is not a git repository", root.display())))?;
        Ok(Self::open(root, &git))
    }

    /// When an experiment was queued.
    ///
    /// # Errors
    /// If Git does not have its commit any more.
    pub fn created(&self, task: &Task) -> Result<Commit, DataError> {
        self.git.commit_info(&task.entry.stash_rev)
    }

    /// Those of the names that are names of experiments in the queue.
    ///
    /// # Errors
    /// If a file of the queue cannot be read.
    pub fn named(&self, names: &[String]) -> Result<Vec<String>, DataError> {
        let tasks = self.tasks()?;
        let (_, missing) = Self::select(&tasks, names);
        Ok(names.iter().filter(|name| !missing.contains(name)).cloned().collect())
    }

    fn records(&self, entry: &Entry) -> Records {
        Records::new(&self.folder.join("run"), &entry.stash_rev)
    }

    /// Changes references under the lock that DVC takes for them.
    fn with_references<T>(
        &self,
        references: &[&str],
        change: impl FnOnce() -> Result<T, DataError>,
    ) -> Result<T, DataError> {
        std::fs::create_dir_all(&self.folder).map_err(DataError::io(&self.folder))?;
        let quiet = |_: &str| {};
        let lock = Lock::acquire(&self.folder, &quiet)?;
        let paths: Vec<&Path> = references.iter().map(Path::new).collect();
        lock.wait_for(&[], &paths, &quiet)?;
        let claim = lock.claim(&[], &paths, &quiet)?;
        let result = change();
        lock.withdraw(claim, &quiet)?;
        result
    }

    /// All experiments in the queue: first those that run, then those that wait, failed, succeeded.
    ///
    /// # Errors
    /// If a file of the queue cannot be read.
    pub fn tasks(&self) -> Result<Vec<Task>, DataError> {
        let mut tasks = Vec::new();
        for message in self.broker.queued()? {
            tasks.push(Task {
                entry: message.entry.clone(),
                state: TaskState::Queued,
                info: None,
                process: None,
                message: Some(message),
            });
        }
        for message in self.broker.taken()? {
            tasks.push(self.task(message)?);
        }
        tasks.sort_by_key(|task| task.state);
        Ok(tasks)
    }

    /// The experiments that run in a folder of their own without the queue.
    ///
    /// # Errors
    /// If a record cannot be read.
    pub fn standalone(&self) -> Result<Vec<Task>, DataError> {
        let run = self.folder.join("standalone/run");
        let Ok(entries) = std::fs::read_dir(&run) else { return Ok(Vec::new()) };
        let mut tasks = Vec::new();
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            let records = Records::new(&run, &name);
            let (Some(info), Some(process)) = (records.info()?, records.process()?) else { continue };
            if info.status <= records::status::SUCCESS && process.is_alive() {
                let entry = Entry {
                    stash_rev: name,
                    baseline_rev: info.baseline_rev.clone(),
                    name: info.name.clone(),
                    ..Entry::default()
                };
                let (info, process) = (Some(info), Some(process));
                tasks.push(Task { entry, state: TaskState::Running, info, process, message: None });
            }
        }
        Ok(tasks)
    }

    fn task(&self, message: Message) -> Result<Task, DataError> {
        let records = self.records(&message.entry);
        let info = records.info()?;
        let has_result = info.as_ref().is_some_and(|info| info.result_hash.is_some());
        let state = match self.broker.outcome(&message.id)? {
            None => TaskState::Running,
            Some(_) if has_result => TaskState::Success,
            Some(_) => TaskState::Failed,
        };
        Ok(Task { entry: message.entry.clone(), state, info, process: records.process()?, message: Some(message) })
    }

    /// The tasks with these names or beginnings of ids, and the names that no task has.
    fn select<'a>(tasks: &'a [Task], names: &[String]) -> (Vec<&'a Task>, Vec<String>) {
        let (mut found, mut missing) = (Vec::<&Task>::new(), Vec::new());
        for name in names {
            let is_id = name.len() >= 4 && name.bytes().all(|b| b.is_ascii_hexdigit());
            let lower = name.to_ascii_lowercase();
            let by_name = tasks.iter().rev().find(|task| task.name() == Some(name));
            match by_name.or_else(|| tasks.iter().find(|task| is_id && task.entry.stash_rev.starts_with(&lower))) {
                Some(task) => found.push(task),
                None => missing.push(name.clone()),
            }
        }
        (found, missing)
    }

    /// Removes experiments from the queue, other than those that run, and returns the names.
    ///
    /// # Errors
    /// [`DataError::Invalid`] for a name that is not in the queue; then none is removed.
    pub fn remove(&self, names: &[String]) -> Result<Vec<String>, DataError> {
        let mut tasks = self.tasks()?;
        tasks.retain(|task| task.state != TaskState::Running);
        let (found, missing) = Self::select(&tasks, names);
        if !missing.is_empty() {
            return Err(unknown(&missing, "the name of an experiment in the queue that does not run"));
        }
        self.remove_tasks(&found)?;
        Ok(names.to_vec())
    }

    /// Removes all experiments in these states, and returns their names.
    ///
    /// # Errors
    /// If a file or reference cannot be removed.
    pub fn clear(&self, states: &[TaskState]) -> Result<Vec<String>, DataError> {
        let tasks = self.tasks()?;
        let found: Vec<&Task> =
            states.iter().flat_map(|state| tasks.iter().filter(move |task| task.state == *state)).collect();
        self.remove_tasks(&found)?;
        Ok(found.into_iter().map(Task::shown).collect())
    }

    fn remove_tasks(&self, tasks: &[&Task]) -> Result<(), DataError> {
        for task in tasks {
            let Some(message) = &task.message else { continue };
            match task.state {
                TaskState::Running => continue,
                // One that a worker took in between runs.
                TaskState::Queued if !self.broker.reject(message)? => continue,
                TaskState::Queued => {}
                TaskState::Failed | TaskState::Success => self.broker.purge(message)?,
            }
            self.drop_stashed(&task.entry, &[QUEUE, FAILED])?;
        }
        Ok(())
    }

    fn drop_stashed(&self, entry: &Entry, stashes: &[&str]) -> Result<(), DataError> {
        self.with_references(stashes, || stashes.iter().try_for_each(|stash| self.git.unstash(stash, &entry.stash_rev)))
    }

    /// Moves an experiment to the stash of those that failed.
    fn stash_failed(&self, entry: &Entry) -> Result<(), DataError> {
        self.with_references(&[QUEUE, FAILED], || {
            if !self.git.stashed(FAILED)?.iter().any(|known| known.commit == entry.stash_rev) {
                self.git.stash(FAILED, &entry.stash_rev, &format!("commit: {}", entry.stash_message()))?;
            }
            self.git.unstash(QUEUE, &entry.stash_rev)
        })
    }

    /// Removes what ended executions left behind: messages for the control of workers, and folders of experiments that do not run.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub fn clean(&self) -> Result<(), DataError> {
        self.recover()?;
        let run = self.folder.join("standalone/run");
        for name in std::fs::read_dir(&run).into_iter().flatten().flatten() {
            let name = name.file_name().to_string_lossy().into_owned();
            let records = Records::new(&run, &name);
            if records.process()?.is_some_and(|process| process.is_alive()) {
                continue;
            }
            if let Some(info) = records.info()? {
                execute::remove_place(self, &info)?;
            }
            records.remove()?;
            let reference = execute::temporary_reference(&name);
            if !self.git.references(&reference)?.is_empty() {
                self.git.change_references(&[RefChange::Delete(reference)])?;
            }
        }
        self.broker.clean()
    }
}

fn unknown(names: &[String], what: &str) -> DataError {
    let names = names.join("; ");
    DataError::Invalid(format!("'{names}' is not {what}; `queue status` lists the experiments in the queue"))
}
