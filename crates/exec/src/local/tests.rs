//! What goes on when the disk is slow or fails. Runs that are really carried out are in `tests/local.rs`.

use std::sync::mpsc;

use futures_util::future::BoxFuture;

use super::*;
use crate::Tracked;

struct Nothing;

impl Accelerators for Nothing {
    fn devices(&self) -> Vec<Device> {
        Vec::new()
    }
    fn read(&self, devices: &[Device], _: f64) -> Vec<Option<Reading>> {
        vec![None; devices.len()]
    }
}

impl Tracker for Nothing {
    fn begin(&self, _: Tracked) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
    fn end<'a>(&'a self, _: &'a str, _: &'a str, _: &'a RunStatus) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

/// A folder that is deleted at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("slipway-exec-{}", ids::hex32()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn settings(&self) -> Settings {
        Settings {
            folder: self.0.join("runs"),
            secrets: self.0.join("secrets"),
            // It supervises nothing, so every attempt counts as lost.
            program: "/bin/true".into(),
            variables: Vec::new(),
            environment: Vec::new(),
            mint: None,
            room: Room { processors: 100.0, bytes: 0.0, devices: Vec::new() },
            accelerators: Arc::new(Nothing),
            tracker: Arc::new(Nothing),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What a supervisor still writes may be in the way; the folder is a temporary one.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A disk on which files of the run `slow` are written when the test says so: tells that one is to be written, and waits.
fn slow_disk() -> (WriteFile, tokio::sync::mpsc::UnboundedReceiver<()>, mpsc::Sender<()>) {
    let (reached, is_reached) = tokio::sync::mpsc::unbounded_channel();
    let (release, released) = mpsc::channel();
    let released = Mutex::new(released);
    let write = move |path: &Path, bytes: &[u8]| {
        if path.parent().is_some_and(|p| p.ends_with("slow")) {
            let _ = reached.send(()); // nobody listens any more at the end of the test
            // Not for ever, so that code that blocks the only thread fails the test.
            let _ = released.lock().recv_timeout(Duration::from_secs(5));
        }
        files::replace(path, bytes)
    };
    (Box::new(write), is_reached, release)
}

#[tokio::test]
async fn a_run_on_a_slow_disk_delays_no_other() {
    let folder = Folder::new();
    let (write, mut is_reached, release) = slow_disk();
    let runs = LocalProcesses::open_with(folder.settings(), write).unwrap();
    let own = runs.clone();
    let slow = tokio::spawn(async move { own.submit(Manifest::of("slow", ["true"]), None).await });
    is_reached.recv().await.unwrap();
    runs.submit(Manifest::of("quick", ["true"]), None).await.unwrap();
    assert_eq!(runs.get(NAMESPACE, "quick").await.unwrap().manifest.metadata.name, "quick");
    assert_eq!(runs.list(None).await.unwrap().len(), 1, "what is not on the disk yet is not shown");
    let taken = runs.submit(Manifest::of("slow", ["true"]), None).await.unwrap_err();
    assert!(matches!(taken, ExecError::Exists(_)), "the name is taken while the first one is written: {taken}");
    runs.cancel(NAMESPACE, "quick").await.unwrap();
    runs.remove(NAMESPACE, "quick").await.unwrap();
    assert!(!slow.is_finished(), "nobody waited for the slow disk");
    // From now on it is a disk like any other.
    drop(release);
    slow.await.unwrap().unwrap();
    assert_eq!(runs.list(None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_secret_that_does_not_come_delays_no_other() {
    let folder = Folder::new();
    let secret = folder.0.join("secrets/hub");
    std::fs::create_dir_all(&secret).unwrap();
    // Opening it waits for a writer, as a network disk waits that does not answer.
    let fifo = secret.join("token");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let path = fifo.clone();
    let (release, released) = mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        // Not for ever, so that code that blocks the only thread fails the test.
        let _ = released.recv_timeout(Duration::from_secs(5));
        // Open as soon as the secret is read. Who reads it next finds a file like any other.
        let mut writer = std::fs::File::options().write(true).open(&path).unwrap();
        files::replace(&path, b"secret").unwrap();
        std::io::Write::write_all(&mut writer, b"secret").unwrap();
    });
    let runs = LocalProcesses::open(folder.settings()).unwrap();
    let mut run = Manifest::of("slow", ["true"]);
    run.spec.env.push(crate::manifest::EnvVar {
        name: "TOKEN".into(),
        value: None,
        value_from: Some(serde_json::json!({"secretKeyRef": {"name": "hub", "key": "token"}})),
    });
    let own = runs.clone();
    let slow = tokio::spawn(async move { own.submit(run, None).await });
    runs.submit(Manifest::of("quick", ["true"]), None).await.unwrap();
    runs.cancel(NAMESPACE, "quick").await.unwrap();
    runs.remove(NAMESPACE, "quick").await.unwrap();
    assert!(!slow.is_finished(), "nobody waited for the secret");
    drop(release);
    slow.await.unwrap().unwrap();
    writer.join().unwrap();
}

#[tokio::test]
async fn a_run_that_cannot_be_written_is_refused_and_its_name_stays_free() {
    let folder = Folder::new();
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
    let refused = runs.submit(Manifest::of("train", ["true"]), None).await.unwrap_err();
    assert!(matches!(refused, ExecError::Io { .. }), "{refused}");
    assert!(runs.list(None).await.unwrap().is_empty());
    full.store(false, std::sync::atomic::Ordering::Relaxed);
    runs.submit(Manifest::of("train", ["true"]), None).await.unwrap();
}

#[tokio::test]
async fn what_a_killed_server_left_of_a_submission_and_of_a_removal_is_cleared_away() {
    let folder = Folder::new();
    let place = folder.0.join("runs");
    for file in ["half/.run.json.slipway", ".deleted-1/1/log", "odd/notes"] {
        let path = place.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "{").unwrap();
    }
    let runs = LocalProcesses::open(folder.settings()).unwrap();
    let mut left: Vec<_> = std::fs::read_dir(&place).unwrap().map(|f| f.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["odd"], "what is nobody's is left alone");
    runs.submit(Manifest::of("half", ["true"]), None).await.unwrap();
    let taken = runs.submit(Manifest::of("odd", ["true"]), None).await.unwrap_err();
    assert!(matches!(taken, ExecError::Exists(_)), "{taken}");
}
