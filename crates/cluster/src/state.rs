//! The controller's files of a cluster: its lock, the ledger, the last report, and a log per machine. None of them contains a secret.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ClusterError;
use crate::lock::Lock;
use crate::report::Report;

/// A larger log is rotated. One rotated log is kept.
const MAX_LOG_BYTES: u64 = 16 << 20;

/// The folder of a cluster on the controller.
#[derive(Debug, Clone)]
pub struct State {
    folder: PathBuf,
}

impl State {
    /// Opens the folder of a cluster below slipway's home, and creates it if it is missing.
    ///
    /// # Errors
    /// [`ClusterError::Io`] when it cannot be created.
    pub fn open(home: &Path, cluster: &str) -> Result<Self, ClusterError> {
        let folder = home.join("clusters").join(cluster);
        let io_error = |e| ClusterError::io(folder.display().to_string())(e);
        std::fs::create_dir_all(folder.join("logs")).map_err(io_error)?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).map_err(io_error)?;
        Ok(Self { folder })
    }

    /// Takes the cluster's lock without waiting. It is released when the process ends.
    ///
    /// # Errors
    /// [`ClusterError::Locked`] with the holder's process id.
    pub fn lock(&self) -> Result<Lock, ClusterError> {
        Lock::acquire(&self.folder.join("lock"), Duration::ZERO)
    }

    /// Writes a document as `NAME.json`.
    ///
    /// # Errors
    /// [`ClusterError::Io`] when it cannot be written.
    pub fn save<T: Serialize>(&self, name: &str, document: &T) -> Result<(), ClusterError> {
        let path = self.folder.join(format!("{name}.json"));
        let text = serde_json::to_vec_pretty(document).map_err(|e| ClusterError::io(name)(e.into()))?;
        slipway_core::files::replace(&path, &text).map_err(ClusterError::io(path.display().to_string()))
    }

    /// Reads a document that slipway depends on, such as the ledger; `None` if there is no such file.
    ///
    /// # Errors
    /// [`ClusterError::Io`] when the file exists but cannot be read or parsed.
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ClusterError> {
        let path = self.folder.join(format!("{name}.json"));
        let io_error = ClusterError::io(path.display().to_string());
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| io_error(e.into())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error(e)),
        }
    }

    /// Reads a document that is only displayed; `None` also if it cannot be read or parsed.
    pub fn load_optional<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&std::fs::read(self.folder.join(format!("{name}.json"))).ok()?).ok()
    }

    /// Path of the file with the SSH host keys of provisioned machines.
    pub fn known_hosts(&self) -> PathBuf {
        self.folder.join("known_hosts")
    }

    /// Path of a machine's log.
    pub fn log_path(&self, host: &str) -> PathBuf {
        self.folder.join("logs").join(format!("{host}.log"))
    }

    /// Opens a machine's log for appending, and rotates it if it is too large.
    ///
    /// # Errors
    /// [`ClusterError::Io`] when it cannot be opened.
    pub fn log(&self, host: &str) -> Result<Log, ClusterError> {
        let path = self.log_path(host);
        if std::fs::metadata(&path).is_ok_and(|m| m.len() > MAX_LOG_BYTES) {
            // Best effort: if the rotation fails, the log keeps growing.
            let _ = std::fs::rename(&path, path.with_extension("log.1"));
        }
        let file = File::options().append(true).create(true).mode(0o600).open(&path);
        Ok(Log(Mutex::new(file.map_err(ClusterError::io(path.display().to_string()))?)))
    }
}

/// The last report of every cluster of this home, newest first.
pub fn reports(home: &Path) -> Vec<Report> {
    let folders = std::fs::read_dir(home.join("clusters")).into_iter().flatten().flatten();
    let mut out: Vec<Report> = folders.filter_map(|f| State { folder: f.path() }.load_optional("report")).collect();
    out.sort_by(|a, b| b.change.cmp(&a.change));
    out
}

/// A log file whose lines begin with the time.
#[derive(Debug)]
pub struct Log(Mutex<File>);

impl Log {
    /// Appends a line. Errors are ignored, because the work matters more than its log.
    pub fn line(&self, text: &str) {
        let now = slipway_core::clock::rfc3339(slipway_core::clock::now_ms());
        let _ = writeln!(self.0.lock(), "{now} {text}"); // for example, the disk may be full
    }
}
