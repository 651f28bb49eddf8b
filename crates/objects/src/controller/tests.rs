//! Tests of the loop with the store in a database, and a controller that copies config maps with a label.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use parking_lot::Mutex;
use serde_json::json;
use slipway_store::Database;

use super::*;
use crate::Error;
use crate::embedded::Embedded;
use crate::meta::{ObjectMeta, OwnerReference};
use crate::seal::Sealer;
use crate::selector::LabelSelector;
use crate::store::{DeleteOptions, ListOptions, ObjectStore, Selection, WriteOptions};

/// Creates a copy `NAME-copy` of each config map with the label `copy`, and again if it is deleted.
struct Copier {
    store: Embedded,
    maps: Arc<Resource>,
    work: ControlLoop<ObjectKey>,
    /// Number of attempts that still panic, and then of those that still fail.
    faults: Mutex<(usize, usize)>,
    attempts: AtomicUsize,
}

impl Copier {
    async fn new(folder: &tempfile::TempDir, resync_interval: Duration) -> Arc<Self> {
        let database = Database::open(&folder.path().join("t.db"), &[crate::MIGRATION]).unwrap();
        let registry = crate::kinds::registry();
        let maps = registry.find("", "configmaps").unwrap().clone();
        let store = Embedded::open(database, registry, Some(Sealer::new(&[7; 32]))).await.unwrap();
        let settings = Settings { name: "copier", workers: 2, resync_interval };
        let (work, faults, attempts) = (ControlLoop::new(settings), Mutex::default(), AtomicUsize::new(0));
        Arc::new(Self { store, maps, work, faults, attempts })
    }

    fn start(self: &Arc<Self>) -> tokio::task::JoinHandle<()> {
        let copier = Arc::clone(self);
        tokio::spawn(async move {
            let queue = copier.work.queue();
            let selected = Selection { labels: LabelSelector::parse("copy").unwrap(), ..Selection::default() };
            let originals = Source::new(&copier.store, &copier.maps, selected, |change| {
                if let Change::Applied(object) = change {
                    queue.add(key_of(&object));
                }
            });
            let copies = Source::new(&copier.store, &copier.maps, Selection::default(), |change| {
                if let Change::Deleted(object) = change {
                    queue_owner(queue, &object, &copier.maps);
                }
            });
            copier.work.run(&*copier, vec![originals, copies]).await;
        })
    }

    async fn create(&self, name: &str) {
        let labels = [("copy".to_owned(), String::new())].into();
        let metadata = ObjectMeta { name: name.into(), labels, ..ObjectMeta::default() };
        let object = Object { metadata, ..Object::default() };
        self.store.create(&self.maps, "default", object, &WriteOptions::default()).await.unwrap();
    }

    async fn copied(&self, name: &str) -> Object {
        loop {
            if let Ok(copy) = self.store.get(&self.maps, "default", &format!("{name}-copy")).await {
                return copy;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn queue_owner(queue: &Queue<ObjectKey>, object: &Object, resource: &Resource) {
    if let Some(owner) = owner_of(object, resource) {
        queue.add(owner);
    }
}

impl Controller for Copier {
    type Key = ObjectKey;
    type Error = Error;

    async fn reconcile(&self, key: &ObjectKey) -> Result<(), Error> {
        self.attempts.fetch_add(1, Relaxed);
        {
            let mut faults = self.faults.lock();
            if faults.0 > 0 {
                faults.0 -= 1;
                drop(faults);
                panic!("injected panic");
            }
            if faults.1 > 0 {
                faults.1 -= 1;
                return Err(Error::BadRequest("injected fault".into()));
            }
        }
        let original = match self.store.get(&self.maps, &key.0, &key.1).await {
            Err(error) if error.is_not_found() => return Ok(()),
            result => result?,
        };
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            name: key.1.clone(),
            uid: original.metadata.uid,
            controller: Some(true),
            ..OwnerReference::default()
        };
        let metadata =
            ObjectMeta { name: format!("{}-copy", key.1), owner_references: vec![owner], ..ObjectMeta::default() };
        let copy = Object { metadata, body: original.body, ..Object::default() };
        match self.store.create(&self.maps, &key.0, copy, &WriteOptions::default()).await {
            Err(error) if error.is_taken() => Ok(()),
            result => result.map(drop),
        }
    }

    async fn all(&self) -> Vec<ObjectKey> {
        let page = self.store.list(&self.maps, &ListOptions::default()).await.unwrap();
        page.items.iter().filter(|object| object.metadata.labels.contains_key("copy")).map(key_of).collect()
    }

    fn is_expected(&self, error: &Error) -> bool {
        error.is_conflict()
    }
}

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn listed_created_and_owned_objects_are_reconciled() {
    let folder = tempfile::tempdir().unwrap();
    let copier = Copier::new(&folder, NEVER).await;
    copier.create("before").await;
    let work = copier.start();
    copier.copied("before").await;
    copier.create("after").await;
    let first = copier.copied("after").await;
    copier.store.delete(&copier.maps, "default", "after-copy", &DeleteOptions::default()).await.unwrap();
    assert_ne!(copier.copied("after").await.metadata.uid, first.metadata.uid);
    work.abort();
    let _ = work.await;
    // Another run of the same loop begins with a list.
    copier.create("between").await;
    let work = copier.start();
    copier.copied("between").await;
    work.abort();
}

#[tokio::test]
async fn failed_attempts_are_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let copier = Copier::new(&folder, NEVER).await;
    *copier.faults.lock() = (1, 1);
    let work = copier.start();
    copier.create("a").await;
    copier.copied("a").await;
    assert_eq!((copier.attempts.load(Relaxed), copier.work.attempts().1), (3, 2));
    work.abort();
}

#[tokio::test]
async fn everything_is_reconciled_again_at_intervals() {
    let folder = tempfile::tempdir().unwrap();
    let copier = Copier::new(&folder, Duration::from_millis(20)).await;
    copier.create("a").await;
    let work = copier.start();
    while copier.attempts.load(Relaxed) < 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    work.abort();
}

#[test]
fn only_the_controlling_owner_counts() {
    let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": "u"},
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "b", "uid": "v", "controller": true}]);
    let object: Object = serde_json::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "c", "namespace": "n", "ownerReferences": owner}}))
    .unwrap();
    let maps = crate::kinds::registry().find("", "configmaps").unwrap().clone();
    assert_eq!(owner_of(&object, &maps), Some(("n".into(), "b".into())));
    let secrets = crate::kinds::registry().find("", "secrets").unwrap().clone();
    assert_eq!(owner_of(&object, &secrets), None);
}
