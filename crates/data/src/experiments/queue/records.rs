//! What is recorded of the execution of a queued experiment, in DVC's files: `NAME.run` says where it runs and what came of it, `NAME.json` which
//! process runs it. A third file is the lock that the processes of an execution hold, by which it is known whether they live.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// Maximum bytes read of a record.
const MAX_BYTES: u64 = 1 << 20;

/// The stages of an execution, in DVC's numbers.
pub(super) mod status {
    pub(crate) const PREPARING: u8 = 1;
    pub(crate) const RUNNING: u8 = 2;
    pub(crate) const SUCCESS: u8 = 3;
    pub(crate) const FAILED: u8 = 4;
    pub(crate) const FINISHED: u8 = 6;
}

/// Where an experiment runs, and its result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Info {
    pub(super) git_url: String,
    /// The commit from which the experiment derives.
    pub baseline_rev: String,
    pub(super) location: String,
    /// The folder of its work tree.
    pub root_dir: String,
    pub(super) dvc_dir: String,
    /// The name of the experiment.
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub(super) wdir: Option<String>,
    #[serde(default)]
    pub(super) result_hash: Option<String>,
    #[serde(default)]
    pub(super) result_ref: Option<String>,
    #[serde(default)]
    pub(super) result_force: bool,
    #[serde(default)]
    pub(super) status: u8,
}

/// The process of an execution or worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    /// Its id, which is also that of its group.
    pub pid: i32,
    #[serde(default)]
    stdin: Option<String>,
    /// The file of its output.
    #[serde(rename = "stdout", default)]
    pub log: Option<String>,
    #[serde(default)]
    stderr: Option<String>,
    /// Its exit code; `None` while it runs.
    #[serde(default)]
    pub returncode: Option<i32>,
}

impl Process {
    /// This process, whose output is written into the file `log`.
    pub(super) fn own(log: Option<&Path>) -> Self {
        Self {
            pid: std::process::id().cast_signed(),
            stdin: None,
            log: log.map(|log| log.to_string_lossy().into_owned()),
            stderr: None,
            returncode: None,
        }
    }

    /// Sends a signal to the process group. False if there is none any more.
    pub(super) fn signal_group(&self, signal: Signal) -> bool {
        Pid::from_raw(self.pid).is_some_and(|pid| rustix::process::kill_process_group(pid, signal).is_ok())
    }

    /// Sends a signal to the process. False if there is none any more.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        Pid::from_raw(self.pid).is_some_and(|pid| rustix::process::kill_process(pid, signal).is_ok())
    }

    pub(super) fn is_alive(&self) -> bool {
        Pid::from_raw(self.pid).is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
    }
}

/// The files of one execution.
#[derive(Debug, Clone)]
pub(super) struct Records {
    folder: PathBuf,
    name: String,
}

impl Records {
    pub(super) fn new(run: &Path, name: &str) -> Self {
        Self { folder: run.join(name), name: name.to_owned() }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.join(format!("{}.{suffix}", self.name))
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path("out")
    }

    pub(super) fn info(&self) -> Result<Option<Info>, DataError> {
        read(&self.path("run"))
    }

    pub(super) fn set_info(&self, info: &Info) -> Result<(), DataError> {
        write(&self.path("run"), info)
    }

    pub(super) fn process(&self) -> Result<Option<Process>, DataError> {
        read(&self.path("json"))
    }

    pub(super) fn set_process(&self, process: &Process) -> Result<(), DataError> {
        write(&self.path("json"), process)
    }

    /// Whether slipway executes or executed it; DVC does not have this file.
    pub(super) fn is_own(&self) -> bool {
        self.path("lock").exists()
    }

    /// Takes the lock of the execution; `None` while one of its processes holds it.
    pub(super) fn lock(&self) -> Result<Option<File>, DataError> {
        std::fs::create_dir_all(&self.folder).map_err(DataError::io(&self.folder))?;
        lock(&self.path("lock"))
    }

    pub(super) fn remove(&self) -> Result<(), DataError> {
        remove_folder(&self.folder)
    }
}

/// Opens a file and locks it; `None` if another process has locked it. Nothing is written into it, so that it is empty for a process that gets
/// it as its input.
pub(super) fn lock(path: &Path) -> Result<Option<File>, DataError> {
    let open = || File::options().read(true).append(true).create(true).open(path);
    let file = open().map_err(DataError::io(path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(DataError::io(path)(error.into())),
    }
}

/// The code in which Python shows how a process ended: the negative number of a signal.
pub(super) fn exit_code(status: ExitStatus) -> i32 {
    status.code().or(status.signal().map(|signal| -signal)).unwrap_or(-1)
}

pub(super) fn remove_folder(folder: &Path) -> Result<(), DataError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DataError::io(folder)(error)),
        _ => Ok(()),
    }
}

pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, DataError> {
    match std::fs::metadata(path) {
        Ok(file) if file.len() > MAX_BYTES => return Err(DataError::file(path, 0, "it is too large for a record")),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(DataError::io(path)(error)),
        _ => {}
    }
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DataError::io(path)(error)),
    };
    if bytes.is_empty() {
        return Ok(None); // DVC writes some of them in place.
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| DataError::file(path, error.line(), error.to_string()))
}

pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), DataError> {
    let text = serde_json::to_vec(value).map_err(|error| DataError::file(path, 0, error.to_string()))?;
    slipway_core::files::replace(path, &text).map_err(DataError::io(path))
}
