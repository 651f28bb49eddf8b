//! Tests with a slow or failing disk. Tests that execute real programs are in `tests/local.rs`.

use std::sync::mpsc;

use futures_util::future::BoxFuture;

use super::*;
use crate::Tracked;

/// No GPUs, and a tracking store that ignores all calls.
struct Noop;

impl Accelerators for Noop {
    fn devices(&self) -> Vec<Device> {
        Vec::new()
    }
    fn read(&self, devices: &[Device], _: f64) -> Vec<Option<Reading>> {
        vec![None; devices.len()]
    }
}

impl Tracker for Noop {
    fn begin(&self, _: Tracked) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
    fn end<'a>(&'a self, _: &'a str, _: &'a str, _: &'a RunStatus) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

/// A temporary folder, deleted on drop.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("slipway-exec-{}", ids::hex32()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn settings(&self) -> Settings {
        Settings {
            folder: self.0.join("runs"),
            secrets: self.0.join("secrets"),
            references: None,
            // This program does not supervise anything, so every attempt counts as lost.
            program: "/bin/true".into(),
            variables: Vec::new(),
            environment: Vec::new(),
            mint: None,
            capacity: Capacity { processors: 100.0, bytes: 0.0, devices: Vec::new() },
            accelerators: Arc::new(Noop),
            tracker: Arc::new(Noop),
            data: None,
        }
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // May fail if a supervisor is still writing; then a temporary folder remains.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A disk on which a write to a file of the run `slow` signals the test and then waits until the test releases it.
fn slow_disk() -> (WriteFile, tokio::sync::mpsc::UnboundedReceiver<()>, mpsc::Sender<()>) {
    let (write_started, is_writing) = tokio::sync::mpsc::unbounded_channel();
    let (release, released) = mpsc::channel();
    let released = Mutex::new(released);
    let write = move |path: &Path, bytes: &[u8]| {
        if path.parent().is_some_and(|p| p.ends_with("slow")) {
            let _ = write_started.send(()); // fails at the end of the test, when the receiver is dropped
            // With a timeout, so that code that blocks the only thread fails the test.
            let _ = released.lock().recv_timeout(Duration::from_secs(5));
        }
        files::replace(path, bytes)
    };
    (Box::new(write), is_writing, release)
}

#[tokio::test]
async fn slow_write_of_one_run_does_not_delay_others() {
    let folder = TempDir::new();
    let (write, mut is_writing, release) = slow_disk();
    let runs = LocalProcesses::open_with(folder.settings(), write).unwrap();
    let executor = runs.clone();
    let slow = tokio::spawn(async move { executor.submit(Manifest::new("slow", ["true"]), None).await });
    is_writing.recv().await.unwrap();
    runs.submit(Manifest::new("quick", ["true"]), None).await.unwrap();
    assert_eq!(runs.get(NAMESPACE, "quick").await.unwrap().manifest.metadata.name, "quick");
    assert_eq!(runs.list(None).await.unwrap().len(), 1, "a run that is not written yet is not listed");
    let taken = runs.submit(Manifest::new("slow", ["true"]), None).await.unwrap_err();
    assert!(matches!(taken, ExecError::Exists(_)), "the name is reserved while the run is written: {taken}");
    runs.cancel(NAMESPACE, "quick").await.unwrap();
    runs.remove(NAMESPACE, "quick").await.unwrap();
    assert!(!slow.is_finished(), "other runs did not wait for the slow disk");
    // From now on writes are not delayed.
    drop(release);
    slow.await.unwrap().unwrap();
    assert_eq!(runs.list(None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn hanging_read_of_a_secret_does_not_delay_other_runs() {
    let folder = TempDir::new();
    let secret = folder.0.join("secrets/hub");
    std::fs::create_dir_all(&secret).unwrap();
    // Opening a FIFO waits for a writer, like a network disk that does not respond.
    let fifo = secret.join("token");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let path = fifo.clone();
    let (release, released) = mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        // With a timeout, so that code that blocks the only thread fails the test.
        let _ = released.recv_timeout(Duration::from_secs(5));
        // Opening waits until the secret is being read. The next reader finds a regular file.
        let mut writer = std::fs::File::options().write(true).open(&path).unwrap();
        files::replace(&path, b"secret").unwrap();
        std::io::Write::write_all(&mut writer, b"secret").unwrap();
    });
    let runs = LocalProcesses::open(folder.settings()).unwrap();
    let mut run = Manifest::new("slow", ["true"]);
    run.spec.env.push(crate::manifest::EnvVar {
        name: "TOKEN".into(),
        value: None,
        value_from: Some(serde_json::json!({"secretKeyRef": {"name": "hub", "key": "token"}})),
    });
    let executor = runs.clone();
    let slow = tokio::spawn(async move { executor.submit(run, None).await });
    runs.submit(Manifest::new("quick", ["true"]), None).await.unwrap();
    runs.cancel(NAMESPACE, "quick").await.unwrap();
    runs.remove(NAMESPACE, "quick").await.unwrap();
    assert!(!slow.is_finished(), "other runs did not wait for the secret");
    drop(release);
    slow.await.unwrap().unwrap();
    writer.join().unwrap();
}

#[tokio::test]
async fn failed_write_rejects_the_run_and_frees_its_name() {
    let folder = TempDir::new();
    let full = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_full = Arc::clone(&full);
    let write = move |path: &Path, bytes: &[u8]| {
        if is_full.load(std::sync::atomic::Ordering::Relaxed) {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        files::replace(path, bytes)
    };
    let runs = LocalProcesses::open_with(folder.settings(), Box::new(write)).unwrap();
    let error = runs.submit(Manifest::new("train", ["true"]), None).await.unwrap_err();
    assert!(matches!(error, ExecError::Io { .. }), "{error}");
    assert!(runs.list(None).await.unwrap().is_empty());
    full.store(false, std::sync::atomic::Ordering::Relaxed);
    runs.submit(Manifest::new("train", ["true"]), None).await.unwrap();
}

#[tokio::test]
async fn incomplete_submissions_and_deletions_are_cleaned_up_at_start() {
    let folder = TempDir::new();
    let runs_folder = folder.0.join("runs");
    for file in ["half/.run.json.slipway", ".deleted-1/1/log", "odd/notes"] {
        let path = runs_folder.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "{").unwrap();
    }
    let runs = LocalProcesses::open(folder.settings()).unwrap();
    let mut remaining: Vec<_> = std::fs::read_dir(&runs_folder).unwrap().map(|f| f.unwrap().file_name()).collect();
    remaining.sort();
    assert_eq!(remaining, ["odd"], "a folder with unknown files is kept");
    runs.submit(Manifest::new("half", ["true"]), None).await.unwrap();
    let taken = runs.submit(Manifest::new("odd", ["true"]), None).await.unwrap_err();
    assert!(matches!(taken, ExecError::Exists(_)), "{taken}");
}

#[tokio::test]
async fn namespaces_separate_runs_of_one_name() {
    let folder = TempDir::new();
    let runs = LocalProcesses::open(folder.settings()).unwrap();
    let mut other = Manifest::new("train", ["true"]);
    other.metadata.namespace = "team".into();
    other.metadata.uid = "u-1".into();
    runs.submit(Manifest::new("train", ["true"]), None).await.unwrap();
    let accepted = runs.submit_object(other.clone()).await.unwrap();
    assert_eq!(accepted.manifest.metadata.uid, "u-1");
    assert_eq!(runs.submit_object(other.clone()).await.unwrap().manifest.metadata.uid, "u-1", "accepted once");
    other.metadata.uid = "u-2".into();
    assert!(matches!(runs.submit_object(other).await, Err(ExecError::Exists(_))));
    let names = |listed: Vec<Submitted>| -> Vec<String> {
        listed.into_iter().map(|run| run.manifest.metadata.namespace).collect()
    };
    assert_eq!(names(runs.list(None).await.unwrap()).len(), 2);
    assert_eq!(names(runs.list(Some("team")).await.unwrap()), ["team"]);
    // A name with a dot must not lead into another namespace.
    assert!(matches!(runs.get(NAMESPACE, "team.train").await, Err(ExecError::NotFound(_))));
    assert!(folder.0.join("runs/team.train/run.json").exists());
    let mut changed = runs.changes().await;
    changed.sort();
    assert_eq!(changed, [("default".into(), "train".into()), ("team".into(), "train".into())]);
    runs.remove("team", "train").await.unwrap();
    assert_eq!(names(runs.list(None).await.unwrap()), ["default"]);
}
