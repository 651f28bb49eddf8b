//! The record of changed settings, a file. It has the value before slipway's first change of each setting, and the value that slipway set
//! last. A change is recorded before it is made, so the record never misses one.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use slipway_core::files;

use super::{Key, Value};
use crate::GpuError;

/// Where the record of this machine is stored by default.
pub const DEFAULT_PATH: &str = "/var/lib/slipway/gpu-settings.json";
const VERSION: u32 = 1;

/// A changed setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The value before the first change.
    pub before: Value,
    /// The value that was set; `None` while the change is being made.
    pub set: Option<Value>,
}

/// The settings that were changed, by UUID of the GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// Identifies the start of the driver since which the clocks in `gpus` are locked.
    driver_start: String,
    /// The changed settings.
    pub gpus: BTreeMap<String, BTreeMap<Key, Entry>>,
}

/// Identifies the current start of the driver: the boot, and the inode of the module's folder in sysfs, which is new for each load of the
/// module.
fn driver_start() -> String {
    use std::os::unix::fs::MetadataExt;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let module = std::fs::metadata("/sys/module/nvidia").map_or(0, |m| m.ino());
    format!("{} {module}", boot.trim())
}

impl Default for Record {
    fn default() -> Self {
        Self { version: VERSION, driver_start: driver_start(), gpus: BTreeMap::new() }
    }
}

impl Record {
    /// The entry of a setting.
    pub fn entry(&self, uuid: &str, key: Key) -> Option<&Entry> {
        self.gpus.get(uuid)?.get(&key)
    }

    /// Removes the entry of a setting that has its earlier value again.
    pub(super) fn remove(&mut self, uuid: &str, key: Key) {
        if let Some(entries) = self.gpus.get_mut(uuid) {
            entries.remove(&key);
            if entries.is_empty() {
                self.gpus.remove(uuid);
            }
        }
    }

    /// Forgets which clocks are locked, because the driver or the GPU has been restarted. They are set again by the next change.
    pub fn forget_locks(&mut self) {
        for (key, entry) in self.gpus.values_mut().flatten() {
            if key.initial().is_some() {
                entry.set = None;
            }
        }
    }
}

/// The file of a record.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
}

/// Held while settings are changed, so that two programs do not change them at the same time.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Store {
    /// The record in this file, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn io(&self, source: std::io::Error) -> GpuError {
        GpuError::Io { what: self.path.display().to_string(), source }
    }

    /// Reads the record; an empty one if the file does not exist. Locks of an earlier start of the driver are forgotten.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] if the file is not a record; it must not be overwritten then, because it has the earlier values.
    pub fn read(&self) -> Result<Record, GpuError> {
        let bytes = match files::read(&self.path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Record::default()),
            Err(e) => return Err(self.io(e)),
        };
        let invalid = |why: String| {
            GpuError::Invalid(format!(
                "{}: not a record of GPU settings ({why}); restore it, or remove it to give up the undo",
                self.path.display()
            ))
        };
        let mut record: Record = serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
        if record.version != VERSION {
            return Err(invalid(format!("version {}", record.version)));
        }
        let start = driver_start();
        if record.driver_start != start {
            record.forget_locks();
            record.driver_start = start;
        }
        Ok(record)
    }

    /// Replaces the file atomically and flushes it to disk; removes it if the record is empty.
    ///
    /// # Errors
    /// [`GpuError::Io`] if the file cannot be written.
    pub fn write(&self, record: &Record) -> Result<(), GpuError> {
        if record.gpus.is_empty() {
            return match files::remove(&self.path) {
                Err(e) if e.kind() != ErrorKind::NotFound => Err(self.io(e)),
                _ => Ok(()),
            };
        }
        let text = serde_json::to_vec_pretty(record).map_err(|e| GpuError::Invalid(e.to_string()))?;
        files::replace_as(&self.path, &text, 0o644).map_err(|e| self.io(e))
    }

    /// Waits for no other program: fails if one is changing the settings.
    ///
    /// # Errors
    /// [`GpuError::InUse`] if another program holds the lock; [`GpuError::Io`] if the file cannot be created.
    pub fn lock(&self) -> Result<Lock, GpuError> {
        let path = self.path.with_extension("lock");
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| self.io(e))?;
        }
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
        let file = options.open(&path).map_err(|e| self.io(e))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            GpuError::InUse(format!("another program is changing the settings of GPUs (it holds {})", path.display()))
        })?;
        Ok(Lock { _file: file })
    }
}
