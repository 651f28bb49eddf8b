//! The locks of a project, as DVC takes and honours them: `.dvc/tmp/lock` for the time of a command, and `.dvc/tmp/rwlock`, in which a running
//! `dvc repro` lists the paths that it reads and writes while it does not hold the first.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

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
    claims: Mutex<Claims>,
}

/// The paths that running stages of this process work on.
#[derive(Debug, Default)]
struct Claims {
    next: u64,
    all: Vec<(u64, Vec<String>, Vec<String>)>,
}

/// The record of the paths that a running stage works on.
#[derive(Debug)]
#[must_use = "a claim that is not withdrawn stops other processes until this one ends"]
pub struct Claim(u64);

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
        let lock = Self { file, folder: folder.to_owned(), claims: Mutex::default() };
        write_owner(&lock.file).map_err(DataError::io(&path))?;
        Ok(lock)
    }

    /// Releases the lock until [`Self::retake`].
    pub(crate) fn release(&self) -> Result<(), DataError> {
        rustix::fs::flock(&self.file, FlockOperation::Unlock).map_err(|e| DataError::io(&self.folder)(e.into()))
    }

    /// Takes the lock again after [`Self::release`].
    pub(crate) fn retake(&self, on_wait: &dyn Fn(&str)) -> Result<(), DataError> {
        let path = self.folder.join("lock");
        lock_file(&self.file, &path, on_wait)?;
        write_owner(&self.file).map_err(DataError::io(&path))
    }

    /// Records that a stage of this process reads and writes paths, so that other processes keep away from them while it runs.
    pub(crate) fn claim(&self, reads: &[&Path], writes: &[&Path], on_wait: &dyn Fn(&str)) -> Result<Claim, DataError> {
        let names = |paths: &[&Path]| paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let id = claims.next;
        claims.next += 1;
        claims.all.push((id, names(reads), names(writes)));
        self.write_claims(&claims, on_wait)?;
        Ok(Claim(id))
    }

    /// Removes a record of [`Self::claim`].
    pub(crate) fn withdraw(&self, claim: Claim, on_wait: &dyn Fn(&str)) -> Result<(), DataError> {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.all.retain(|(id, ..)| *id != claim.0);
        self.write_claims(&claims, on_wait)
    }

    /// Writes the claims of this process in the place of its old ones. Those of processes that have ended are removed.
    fn write_claims(&self, claims: &Claims, on_wait: &dyn Fn(&str)) -> Result<(), DataError> {
        let guard_path = self.folder.join("rwlock.lock");
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(&guard_path);
        let guard = open().map_err(DataError::io(&guard_path))?;
        lock_file(&guard, &guard_path, on_wait)?;
        write_owner(&guard).map_err(DataError::io(&guard_path))?;
        let path = self.folder.join("rwlock");
        let mut lock = self.read_rwlock(&path)?;
        let own = std::process::id().cast_signed();
        let is_kept = |info: &Info| info.pid != own && is_alive(info.pid);
        lock.write.retain(|_, info| is_kept(info));
        lock.read.values_mut().for_each(|infos| infos.retain(is_kept));
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        let info = || Info { pid: own, cmd: command.clone() };
        for (_, reads, writes) in &claims.all {
            for path in reads {
                let infos = lock.read.entry(path.clone()).or_default();
                if !infos.iter().any(|info| info.pid == own) {
                    infos.push(info());
                }
            }
            lock.write.extend(writes.iter().map(|path| (path.clone(), info())));
        }
        lock.read.retain(|_, infos| !infos.is_empty());
        let text = serde_json::to_vec(&lock).map_err(|error| DataError::file(&path, 0, error.to_string()))?;
        slipway_core::files::replace(&path, &text).map_err(DataError::io(&path))
    }

    fn read_rwlock(&self, path: &Path) -> Result<Rwlock, DataError> {
        let bytes = match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() <= MAX_BYTES => std::fs::read(path).map_err(DataError::io(path))?,
            Ok(_) => return Err(DataError::file(path, 0, "it is too large for a lock file")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Rwlock::default()),
            Err(error) => return Err(DataError::io(path)(error)),
        };
        parse_rwlock_file(&bytes).map_err(|reason| DataError::file(path, 0, reason))
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
        let entries = self.read_rwlock(&path)?.entries();
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

/// Records the process in a lock file, in DVC's form.
fn write_owner(mut file: &File) -> std::io::Result<()> {
    file.rewind()?;
    file.write_all(format!(" {}\n", std::process::id()).as_bytes())?;
    let length = file.stream_position()?;
    file.set_len(length)
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

#[derive(Serialize, Deserialize)]
struct Info {
    pid: i32,
    #[serde(default)]
    cmd: String,
}

#[derive(Default, Serialize, Deserialize)]
struct Rwlock {
    #[serde(default)]
    write: std::collections::BTreeMap<String, Info>,
    #[serde(default)]
    read: std::collections::BTreeMap<String, Vec<Info>>,
}

impl Rwlock {
    fn entries(self) -> Vec<Entry> {
        let entry = |path: String, info: Info, writes| Entry { path, pid: info.pid, command: info.cmd, writes };
        let reads =
            self.read.into_iter().flat_map(|(path, infos)| infos.into_iter().map(move |info| (path.clone(), info)));
        let writes = self.write.into_iter().map(|(path, info)| entry(path, info, true));
        writes.chain(reads.map(|(path, info)| entry(path, info, false))).collect()
    }
}

fn parse_rwlock_file(bytes: &[u8]) -> Result<Rwlock, String> {
    if bytes.trim_ascii().is_empty() {
        return Ok(Rwlock::default());
    }
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

/// The entries of the file `rwlock`.
#[cfg(test)]
pub(crate) fn parse_rwlock(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    parse_rwlock_file(bytes).map(Rwlock::entries)
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

    #[test]
    fn claims_of_other_processes_are_kept_and_those_of_dead_ones_removed() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::acquire(folder.path(), &|_| {}).unwrap();
        let parent = std::os::unix::process::parent_id();
        let file = folder.path().join("rwlock");
        let other = format!(
            r#"{{"read": {{"/p/in": [{{"pid": {parent}, "cmd": "dvc repro"}}, {{"pid": 2147483647, "cmd": "x"}}]}}}}"#
        );
        std::fs::write(&file, other).unwrap();
        let shown = || {
            let entries = parse_rwlock(&std::fs::read(&file).unwrap()).unwrap();
            let own = std::process::id().cast_signed();
            let shown = |entry: &Entry| format!("{} {} {}", entry.path, entry.writes, entry.pid == own);
            entries.iter().map(shown).collect::<Vec<_>>()
        };
        let (input, out) = (Path::new("/p/in"), Path::new("/p/out"));
        let first = lock.claim(&[input], &[out], &|_| {}).unwrap();
        let second = lock.claim(&[input], &[], &|_| {}).unwrap();
        assert_eq!(shown(), ["/p/out true true", "/p/in false false", "/p/in false true"]);
        lock.withdraw(first, &|_| {}).unwrap();
        assert_eq!(shown(), ["/p/in false false", "/p/in false true"]);
        lock.withdraw(second, &|_| {}).unwrap();
        assert_eq!(shown(), ["/p/in false false"]);
    }
}
