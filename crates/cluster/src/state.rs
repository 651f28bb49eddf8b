//! What is kept of a cluster on the controller: a lock, the last report, a log for each machine. No secrets.

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

/// A log is begun anew when it is longer; the one before is kept.
const MOST_LOG_BYTES: u64 = 16 << 20;

/// A cluster's folder.
#[derive(Debug, Clone)]
pub struct State {
    folder: PathBuf,
}

impl State {
    /// The folder of a cluster, below slipway's own.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(home: &Path, cluster: &str) -> Result<Self, ClusterError> {
        let folder = home.join("clusters").join(cluster);
        let wrong = |e| ClusterError::io(folder.display().to_string())(e);
        std::fs::create_dir_all(folder.join("logs")).map_err(wrong)?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).map_err(wrong)?;
        Ok(Self { folder })
    }

    /// Takes the lock, which ends with the process that holds it.
    ///
    /// # Errors
    /// [`ClusterError::Locked`] with who has it.
    pub fn lock(&self) -> Result<Lock, ClusterError> {
        Lock::take(&self.folder.join("lock"), Duration::ZERO)
    }

    /// Keeps a document.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep<T: Serialize>(&self, name: &str, document: &T) -> Result<(), ClusterError> {
        let path = self.folder.join(format!("{name}.json"));
        let text = serde_json::to_vec_pretty(document).map_err(|e| ClusterError::io(name)(e.into()))?;
        slipway_core::files::replace(&path, &text).map_err(ClusterError::io(path.display().to_string()))
    }

    /// A document that money or safety depends on; none when there never was one.
    ///
    /// # Errors
    /// [`ClusterError::Io`] when it is there and cannot be read, or is damaged.
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ClusterError> {
        let path = self.folder.join(format!("{name}.json"));
        let wrong = ClusterError::io(path.display().to_string());
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| wrong(e.into())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(wrong(e)),
        }
    }

    /// A document that is only shown; none also when it cannot be read.
    pub fn kept<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&std::fs::read(self.folder.join(format!("{name}.json"))).ok()?).ok()
    }

    /// Where SSH keys of machines that were made for us are.
    pub fn known_hosts(&self) -> PathBuf {
        self.folder.join("known_hosts")
    }

    /// Where a machine's log is.
    pub fn log_path(&self, host: &str) -> PathBuf {
        self.folder.join("logs").join(format!("{host}.log"))
    }

    /// A machine's log.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn log(&self, host: &str) -> Result<Log, ClusterError> {
        let path = self.log_path(host);
        if std::fs::metadata(&path).is_ok_and(|m| m.len() > MOST_LOG_BYTES) {
            // A log that cannot be moved away goes on growing, which stops nothing.
            let _ = std::fs::rename(&path, path.with_extension("log.1"));
        }
        let file = File::options().append(true).create(true).mode(0o600).open(&path);
        Ok(Log(Mutex::new(file.map_err(ClusterError::io(path.display().to_string()))?)))
    }
}

/// The last report of every cluster that was worked on from here, newest first.
pub fn reports(home: &Path) -> Vec<Report> {
    let folders = std::fs::read_dir(home.join("clusters")).into_iter().flatten().flatten();
    let mut out: Vec<Report> = folders.filter_map(|f| State { folder: f.path() }.kept("report")).collect();
    out.sort_by(|a, b| b.change.cmp(&a.change));
    out
}

/// A log of lines with the time.
#[derive(Debug)]
pub struct Log(Mutex<File>);

impl Log {
    /// Adds a line. A log that cannot be written stops nothing.
    pub fn line(&self, text: &str) {
        let now = slipway_core::clock::rfc3339(slipway_core::clock::now_ms());
        let _ = writeln!(self.0.lock(), "{now} {text}"); // on a full disk the work itself matters more than its log
    }
}
