//! The locks of a project, as DVC takes and honours them: `.dvc/tmp/lock` for the time of a command, and `.dvc/tmp/rwlock`, in which a running
//! `dvc repro` lists the paths that it reads and writes while it does not hold the first.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde::Deserialize;

use crate::error::DataError;

/// Interval of polling the second lock.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Maximum bytes read of the file of the second lock.
const MAX_BYTES: u64 = 16 << 20;

/// The lock of a project; released when it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    folder: PathBuf,
}

impl Lock {
    /// Takes the lock of the project with this `.dvc/tmp` folder. While another process holds it, this waits, after a call of `on_wait`.
    ///
    /// # Errors
    /// If the file cannot be opened or locked.
    pub fn acquire(folder: &Path, on_wait: &dyn Fn(&str)) -> Result<Self, DataError> {
        let path = folder.join("lock");
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = open().map_err(DataError::io(&path))?;
        lock_file(&file, &path, on_wait)?;
        let mut lock = Self { file, folder: folder.to_owned() };
        lock.write_owner().map_err(DataError::io(&path))?;
        Ok(lock)
    }

    /// Records the process in the file, in DVC's form.
    fn write_owner(&mut self) -> std::io::Result<()> {
        self.file.rewind()?;
        self.file.write_all(format!(" {}\n", std::process::id()).as_bytes())?;
        let length = self.file.stream_position()?;
        self.file.set_len(length)
    }

    /// Waits until no other process works on the paths: none that writes one of `reads` or `writes`, none that reads one of `writes`. The
    /// lock is released while waiting, because the other process needs it to finish; the result says whether it was, so that the caller
    /// reads the state of the project again.
    ///
    /// # Errors
    /// If a file cannot be read or locked.
    pub fn wait_for(&self, reads: &[&Path], writes: &[&Path], on_wait: &dyn Fn(&str)) -> Result<bool, DataError> {
        let mut waited = false;
        while let Some(blocker) = self.blocker(reads, writes)? {
            if !waited {
                on_wait(&blocker);
            }
            waited = true;
            rustix::fs::flock(&self.file, FlockOperation::Unlock).map_err(|e| DataError::io(&self.folder)(e.into()))?;
            std::thread::sleep(POLL_INTERVAL);
            lock_file(&self.file, &self.folder.join("lock"), on_wait)?;
        }
        Ok(waited)
    }

    /// A running process that works on one of the paths.
    fn blocker(&self, reads: &[&Path], writes: &[&Path]) -> Result<Option<String>, DataError> {
        let path = self.folder.join("rwlock");
        let bytes = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() <= MAX_BYTES => std::fs::read(&path).map_err(DataError::io(&path))?,
            Ok(_) => return Err(DataError::file(&path, 0, "it is too large for a lock file")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DataError::io(&path)(error)),
        };
        let entries = parse_rwlock(&bytes).map_err(|reason| DataError::file(&path, 0, reason))?;
        let overlaps = |paths: &[&Path], path: &str| {
            let path = Path::new(path);
            paths.iter().any(|other| other.starts_with(path) || path.starts_with(other))
        };
        let blocks = |entry: &&Entry| {
            entry.pid != std::process::id().cast_signed()
                && (overlaps(writes, &entry.path) || (entry.writes && overlaps(reads, &entry.path)))
                && is_alive(entry.pid)
        };
        Ok(entries
            .iter()
            .find(blocks)
            .map(|entry| format!("{} (process {}) is working on {}", entry.command, entry.pid, entry.path)))
    }
}

fn lock_file(file: &File, path: &Path, on_wait: &dyn Fn(&str)) -> Result<(), DataError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => {}
        Err(error) => return Err(DataError::io(path)(error.into())),
    }
    let owner = std::fs::read_to_string(path).unwrap_or_default();
    on_wait(&format!("waiting for process {}, which holds {}", owner.trim(), path.display()));
    loop {
        match rustix::fs::flock(file, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(DataError::io(path)(error.into())),
        }
    }
}

fn is_alive(pid: i32) -> bool {
    rustix::process::Pid::from_raw(pid)
        .is_some_and(|pid| !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH)))
}

/// An entry of the second lock.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    path: String,
    pid: i32,
    command: String,
    writes: bool,
}

#[derive(Deserialize)]
struct Info {
    pid: i32,
    #[serde(default)]
    cmd: String,
}

#[derive(Deserialize)]
struct Rwlock {
    #[serde(default)]
    write: std::collections::BTreeMap<String, Info>,
    #[serde(default)]
    read: std::collections::BTreeMap<String, Vec<Info>>,
}

/// The entries of the file `rwlock`.
pub(crate) fn parse_rwlock(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    if bytes.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let lock: Rwlock = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let entry = |path: String, info: Info, writes| Entry { path, pid: info.pid, command: info.cmd, writes };
    let reads = lock.read.into_iter().flat_map(|(path, infos)| infos.into_iter().map(move |info| (path.clone(), info)));
    let writes = lock.write.into_iter().map(|(path, info)| entry(path, info, true));
    Ok(writes.chain(reads.map(|(path, info)| entry(path, info, false))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_running_processes_on_overlapping_paths_block() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::acquire(folder.path(), &|_| {}).unwrap();
        let parent = std::os::unix::process::parent_id();
        let text = format!(
            r#"{{"write": {{"/p/out": {{"pid": {parent}, "cmd": "dvc repro"}}, "/p/dead": {{"pid": 2147483647, "cmd": "x"}}}}, "read": {{"/p/in": [{{"pid": {parent}, "cmd": "dvc repro"}}]}}}}"#
        );
        std::fs::write(folder.path().join("rwlock"), text).unwrap();
        let blocked = |reads: &[&str], writes: &[&str]| {
            let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
            let (reads, writes) = (paths(reads), paths(writes));
            lock.blocker(
                &reads.iter().map(PathBuf::as_path).collect::<Vec<_>>(),
                &writes.iter().map(PathBuf::as_path).collect::<Vec<_>>(),
            )
            .unwrap()
            .is_some()
        };
        assert!(
            blocked(&["/p/out/file"], &[])
                && blocked(&[], &["/p/out"])
                && blocked(&[], &["/p"])
                && blocked(&[], &["/p/in"])
        );
        assert!(!blocked(&["/p/in"], &[]) && !blocked(&[], &["/p/dead"]) && !blocked(&["/p/other"], &["/q"]));
        assert_eq!(std::fs::read_to_string(folder.path().join("lock")).unwrap(), format!(" {}\n", std::process::id()));
    }
}
