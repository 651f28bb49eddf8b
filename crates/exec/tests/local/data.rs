//! Tests of runs with `spec.data`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;
use slipway_exec::local::NAMESPACE;
use slipway_exec::{DataSource, DataVolume, ExecError, Executor, FetchedData, LogQuery, Manifest, Phase, UsedData};

use super::{TempDir, log, open, script, wait_for_phase, wait_until};

/// Data in a folder, which has one folder for each holder with a file for each path that it holds. A path that begins with `slow` is there as
/// soon as the file `go` exists.
pub(super) struct Shelf(pub(super) PathBuf);

impl Shelf {
    fn holders(folder: &Path) -> usize {
        std::fs::read_dir(folder.join("shelf/holders")).map_or(0, Iterator::count)
    }
}

impl DataSource for Shelf {
    fn fetch<'a>(
        &'a self,
        holder: &'a str,
        data: &'a DataVolume,
        progress: Box<dyn Fn(String) + Send + Sync>,
    ) -> BoxFuture<'a, Result<FetchedData, String>> {
        Box::pin(async move {
            let held = self.0.join("holders").join(holder);
            std::fs::create_dir_all(&held).unwrap();
            if data.path.starts_with("slow") {
                progress(format!("fetching {}: 1 of 2 files", data.path));
                let go = self.0.join("go");
                wait_until("go", || go.exists()).await;
            }
            let location = self.locations().join(&data.path);
            if !location.exists() {
                return Err(format!("{} does not track '{}'", data.repo, data.path));
            }
            // A branch moves with each request.
            let moved = || std::fs::read_dir(&held).unwrap().count().to_string();
            let commit = data.rev.clone().unwrap_or_else(moved);
            std::fs::write(held.join(commit.as_str()), "").unwrap();
            let used = UsedData {
                repo: data.repo.clone(),
                commit,
                path: data.path.clone(),
                digest: "d41d8cd98f00b204e9800998ecf8427e.dir".into(),
                ..UsedData::default()
            };
            Ok(FetchedData { used, location })
        })
    }

    fn release(&self, holder: &str) -> Result<(), String> {
        std::fs::remove_dir_all(self.0.join("holders").join(holder)).or(Ok(()))
    }

    fn release_others(&self, holders: &HashSet<String>) -> Result<(), String> {
        let present = std::fs::read_dir(self.0.join("holders")).into_iter().flatten().flatten();
        let names = present.map(|holder| holder.file_name().into_string().unwrap());
        names.filter(|name| !holders.contains(name)).try_for_each(|name| self.release(&name))
    }

    fn locations(&self) -> PathBuf {
        self.0.join("data")
    }
}

/// Puts data on the shelf of a test, whose folder is also the working directory of its runs.
fn put(folder: &Path, path: &str) {
    let place = folder.join("shelf/data").join(path);
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("name"), path).unwrap();
}

fn with_data(mut run: Manifest, folder: &Path, path: &str, mount_path: &str) -> Manifest {
    run.spec.working_dir = Some(folder.display().to_string());
    run.spec.data.push(DataVolume {
        repo: "/repo".into(),
        path: path.into(),
        mount_path: mount_path.into(),
        ..DataVolume::default()
    });
    run
}

pub(super) async fn run_gets_its_data_and_leaves_no_link(folder: TempDir) {
    let (runs, tracker) = open(&folder.0);
    put(&folder.0, "images");
    put(&folder.0, "labels");
    let marker = folder.0.join("marker").display().to_string();
    let text = format!(
        "cat data/images/name; echo \" $SLIPWAY_DATA\"; cat \"${{SLIPWAY_DATA#*:}}/name\"; [ -e {marker} ] || {{ touch {marker}; exit 3; }}"
    );
    let mut run = with_data(script("train", &text), &folder.0, "images", "data/./images");
    run = with_data(run, &folder.0, "labels", "/no/such/folder");
    run.spec.backoff_limit = 1;
    runs.submit(run, None).await.unwrap();
    let done = wait_for_phase(&runs, "train", Phase::Succeeded).await;
    let root = folder.0.display();
    for attempt in [1, 2] {
        let printed = log(&runs, "train", LogQuery { attempt: Some(attempt), ..LogQuery::default() }).await;
        assert_eq!(printed, format!("images {root}/data/images:{root}/shelf/data/labels\nlabels"));
    }
    assert_eq!(done.status.data.iter().map(|data| data.commit.as_str()).collect::<Vec<_>>(), ["0", "1"]);
    assert!(folder.0.join("data/images").symlink_metadata().is_err());
    assert_eq!(Shelf::holders(&folder.0), 0);
    let recorded = tracker.data.lock().unwrap().clone();
    assert_eq!(recorded, done.status.data, "every attempt is tracked with the versions of the first");
}

pub(super) async fn run_without_its_data_fails(folder: TempDir) {
    let (runs, _) = open(&folder.0);
    runs.submit(with_data(script("train", "true"), &folder.0, "images", "images"), None).await.unwrap();
    let done = wait_for_phase(&runs, "train", Phase::Failed).await;
    assert_eq!((done.status.reason.as_str(), done.status.attempts.len()), ("DataUnavailable", 1));
    assert_eq!(done.status.message, "spec.data[0]: /repo does not track 'images'");
    assert_eq!(Shelf::holders(&folder.0), 0);
    put(&folder.0, "images");
    let mut other = with_data(script("other", "true"), &folder.0, "images", "images");
    other.spec.data[0].digest = Some("60b725f10c9c85c70d97880dfe8191b3".into());
    runs.submit(other, None).await.unwrap();
    let done = wait_for_phase(&runs, "other", Phase::Failed).await;
    assert!(done.status.message.contains("not 60b725f10c9c85c70d97880dfe8191b3"), "{}", done.status.message);
}

pub(super) async fn waiting_run_shows_progress_and_can_be_cancelled(folder: TempDir) {
    let (runs, _) = open(&folder.0);
    put(&folder.0, "slow");
    for name in ["first", "second"] {
        runs.submit(with_data(script(name, "cat slow/name"), &folder.0, "slow", "slow"), None).await.unwrap();
    }
    for name in ["first", "second"] {
        let expected = "fetching slow: 1 of 2 files";
        while runs.get(NAMESPACE, name).await.unwrap().status.message != expected {
            tokio::task::yield_now().await;
        }
    }
    runs.cancel(NAMESPACE, "first").await.unwrap();
    wait_for_phase(&runs, "first", Phase::Cancelled).await;
    // Runs without data do not wait for it.
    runs.submit(script("other", "true"), None).await.unwrap();
    wait_for_phase(&runs, "other", Phase::Succeeded).await;
    // A server that is started again continues.
    drop(runs);
    let (runs, _) = open(&folder.0);
    std::fs::write(folder.0.join("shelf/go"), "").unwrap();
    wait_for_phase(&runs, "second", Phase::Succeeded).await;
    assert_eq!(log(&runs, "second", LogQuery::default()).await, "slow");
}

pub(super) async fn data_replaces_nothing(folder: TempDir) {
    let (runs, _) = open(&folder.0);
    put(&folder.0, "a");
    put(&folder.0, "b");
    std::fs::write(folder.0.join("mine"), "mine").unwrap();
    let root = folder.0.display().to_string();
    for mount in ["mine", &format!("{root}/mine")] {
        let error = runs.submit(with_data(script("train", "true"), &folder.0, "a", mount), None).await.unwrap_err();
        assert!(matches!(&error, ExecError::Manifest(text) if text.contains("mine exists")), "{error}");
    }
    let text = "cat x/name; while [ ! -e go ]; do sleep 0.01; done";
    for (name, path) in [("first", "a"), ("same", "a")] {
        runs.submit(with_data(script(name, text), &folder.0, path, "x"), None).await.unwrap();
        wait_for_phase(&runs, name, Phase::Running).await;
    }
    // Another version at the same path has to wait until the path is free.
    runs.submit(with_data(script("other", text), &folder.0, "b", "x"), None).await.unwrap();
    while !runs.get(NAMESPACE, "other").await.unwrap().status.message.contains("uses other data") {
        tokio::task::yield_now().await;
    }
    std::fs::write(folder.0.join("go"), "").unwrap();
    for (name, path) in [("first", "a"), ("same", "a"), ("other", "b")] {
        wait_for_phase(&runs, name, Phase::Succeeded).await;
        assert_eq!(log(&runs, name, LogQuery::default()).await, path);
    }
    assert_eq!(std::fs::read_to_string(folder.0.join("mine")).unwrap(), "mine");
}
