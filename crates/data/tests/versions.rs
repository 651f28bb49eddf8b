//! Versions of data from real repositories.

#![allow(clippy::unwrap_used, clippy::panic)] // these are tests

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use slipway_data::DataError;
use slipway_data::commands::add::{self, add};
use slipway_data::commands::init::{self, init};
use slipway_data::project::Project;
use slipway_data::versions::{Depot, Fetched, Version, digests_at};

/// A project with a remote, and a depot.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// A project with the folder `images` of two files and the file `labels` in a first commit, tagged `v1`, and pushed.
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let project = place.project();
        std::fs::create_dir_all(project.join("images/big")).unwrap();
        place.git(&["init", "-q", "-b", "main"]);
        init(&project, init::Options::default()).unwrap();
        std::fs::write(project.join("images/a"), "a").unwrap();
        std::fs::write(project.join("images/big/b"), "bb").unwrap();
        std::fs::write(project.join("labels"), "cat,dog").unwrap();
        std::fs::write(project.join("params.yaml"), "lr: 1\n").unwrap();
        let remote = place.folder.path().join("remote");
        std::fs::write(
            project.join(".dvc/config"),
            format!("[core]\n    remote = store\n['remote \"store\"']\n    url = {}\n", remote.display()),
        )
        .unwrap();
        place.commit(&["images", "labels"], "v1");
        place
    }

    fn project(&self) -> PathBuf {
        self.folder.path().join("project")
    }

    fn url(&self) -> String {
        format!("file://{}", self.project().display())
    }

    fn git(&self, arguments: &[&str]) {
        let done = Command::new("git")
            .args(["-c", "user.name=me", "-c", "user.email=me@example.invalid"])
            .args(arguments)
            .current_dir(self.project())
            .status();
        assert!(done.unwrap().success(), "{arguments:?}");
    }

    /// Adds and commits data, and copies the cache to the remote.
    fn commit(&self, targets: &[&str], tag: &str) {
        let mut project = Project::open(&self.project(), &|_| ()).unwrap();
        let targets: Vec<String> = targets.iter().map(|target| (*target).to_owned()).collect();
        add(&mut project, &targets, &add::Options::default()).unwrap();
        self.git(&["add", "-A"]);
        self.git(&["commit", "-qm", tag]);
        self.git(&["tag", tag]);
        let done = Command::new("cp")
            .arg("-rT")
            .arg(self.project().join(".dvc/cache"))
            .arg(self.folder.path().join("remote"))
            .status();
        assert!(done.unwrap().success());
    }

    fn depot(&self, limit: Option<u64>) -> Depot {
        Depot::open(&self.folder.path().join("depot"), limit).unwrap()
    }
}

async fn fetch(depot: &Depot, repo: &str, rev: Option<&str>, path: &str, holder: &str) -> Result<Fetched, DataError> {
    let version = Version { repo: repo.into(), rev: rev.map(str::to_owned), path: path.into(), ..Version::default() };
    depot.fetch(&version, holder, &|_| ()).await
}

fn read(location: &Path) -> String {
    std::fs::read_to_string(location).unwrap()
}

#[tokio::test]
async fn versions_of_a_repository_are_fetched_once_and_are_read_only() {
    let place = Place::new();
    std::fs::write(place.project().join("images/a"), "A").unwrap();
    place.commit(&["images"], "v2");
    // Only the remote has the bytes.
    std::fs::remove_dir_all(place.project().join(".dvc/cache")).unwrap();
    let depot = place.depot(None);
    let first = fetch(&depot, &place.url(), Some("v1"), "images", "one").await.unwrap();
    assert_eq!((read(&first.location.join("a")), read(&first.location.join("big/b"))), ("a".into(), "bb".into()));
    assert_eq!((first.file.as_str(), first.files, first.size, first.received), ("images.dvc", 2, Some(3), 2));
    let newest = fetch(&depot, &place.url(), None, "images/", "two").await.unwrap();
    assert_eq!((read(&newest.location.join("a")), newest.received), ("A".into(), 1));
    assert_ne!(first.commit, newest.commit);
    // The same again needs nothing, and a part of a folder needs nothing new.
    std::fs::remove_dir_all(place.folder.path().join("remote")).unwrap();
    let again = fetch(&depot, &place.url(), Some(&first.commit), "images", "three").await.unwrap();
    assert_eq!(again, Fetched { received: 0, ..first.clone() });
    let part = fetch(&depot, &place.url(), Some("v1"), "images/big", "three").await.unwrap();
    assert_eq!(read(&part.location.join("b")), "bb");
    let file = fetch(&depot, &place.url(), Some("v1"), "images/big/b", "three").await.unwrap();
    assert_eq!(read(&file.location), "bb");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&first.location), mode(&first.location.join("a"))), (0o555, 0o444));
    let project = Project::open(&place.project(), &|_| ()).unwrap();
    let digests =
        |path: &str, rev: &str| digests_at(&project, path, Some(rev)).unwrap().into_iter().map(|d| d.to_string());
    assert_eq!(digests("images", "v1").collect::<Vec<_>>(), std::slice::from_ref(&first.digest));
    assert_eq!(digests("images.dvc", "v2").collect::<Vec<_>>(), [newest.digest]);
    assert!(matches!(digests_at(&project, "nothing", None), Err(DataError::Target(_))));
}

#[tokio::test]
async fn local_repository_gives_what_its_cache_has() {
    let place = Place::new();
    std::fs::remove_dir_all(place.folder.path().join("remote")).unwrap();
    // What is not committed is not part of the version.
    std::fs::write(place.project().join("labels"), "changed").unwrap();
    let depot = place.depot(None);
    let path = place.project().display().to_string();
    let labels = fetch(&depot, &path, None, "labels", "one").await.unwrap();
    assert_eq!((read(&labels.location), labels.repo), ("cat,dog".into(), path.clone()));
    let project = Project::open(&place.project(), &|_| ()).unwrap();
    let parts = digests_at(&project, "images/big/b", None).unwrap();
    drop(project);
    assert_eq!(parts.len(), 3, "the file, its folder, and the tracked folder");
    // Files of Git are data, too.
    let parameters = fetch(&depot, &path, Some("main"), "params.yaml", "one").await.unwrap();
    assert_eq!((read(&parameters.location), parameters.file.as_str()), ("lr: 1\n".into(), ""));
}

#[tokio::test]
async fn what_cannot_be_fetched_is_explained() {
    let place = Place::new();
    let depot = place.depot(None);
    let error = async |rev: Option<&str>, path: &str| {
        fetch(&depot, &place.url(), rev, path, "one").await.unwrap_err().to_string()
    };
    let unknown = error(Some("v9"), "images").await;
    assert!(unknown.contains("v9") && unknown.contains("file://"), "{unknown}");
    let untracked = error(None, "pictures").await;
    assert!(untracked.contains("does not track 'pictures'") && untracked.contains("'images'"), "{untracked}");
    for path in ["../project/images", "images/none"] {
        assert!(error(None, path).await.contains("does not track"), "{path}");
    }
    std::fs::remove_dir_all(place.folder.path().join("remote")).unwrap();
    let missing = error(None, "images").await;
    assert!(
        missing.contains("objects of 'images'") && missing.contains("remote 'store' does not have it"),
        "{missing}"
    );
    let gone = fetch(&depot, "file:///no/such/repository", None, "images", "one").await.unwrap_err();
    assert!(matches!(gone, DataError::Repository { .. }), "{gone}");
}

#[tokio::test]
async fn object_that_was_changed_through_a_tree_is_received_again() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let depot = place.depot(None);
    let first = fetch(&depot, &place.url(), None, "images", "one").await.unwrap();
    let file = first.location.join("a");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&file, "x").unwrap();
    // The clock of the file system is coarse.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
    std::fs::File::options().write(true).open(&file).and_then(|file| file.set_modified(later)).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o444)).unwrap();
    let again = fetch(&depot, &place.url(), None, "images", "two").await.unwrap();
    assert_eq!((read(&again.location.join("a")), again.received), ("a".into(), 1));
}

#[tokio::test]
async fn unused_data_is_evicted_and_used_data_is_not() {
    let place = Place::new();
    std::fs::write(place.project().join("images/a"), "A").unwrap();
    place.commit(&["images"], "v2");
    let depot = place.depot(Some(1));
    let used = fetch(&depot, &place.url(), Some("v1"), "images", "one").await.unwrap();
    let labels = fetch(&depot, &place.url(), None, "labels", "two").await.unwrap();
    assert!(used.location.join("a").exists() && labels.location.exists(), "both are in use");
    depot.release("two").unwrap();
    let newest = fetch(&depot, &place.url(), Some("v2"), "images", "three").await.unwrap();
    assert!(!labels.location.exists() && used.location.join("a").exists() && newest.location.join("a").exists());
    // After a restart, what only unknown holders used is not in use.
    let depot = place.depot(Some(1));
    depot.release_unknown(|holder| holder == "three").unwrap();
    assert_eq!(fetch(&depot, &place.url(), None, "labels", "four").await.unwrap().received, 1);
    assert!(!used.location.exists() && newest.location.join("big/b").exists());
    assert_eq!(fetch(&depot, &place.url(), Some("v2"), "images", "five").await.unwrap().received, 0);
}
