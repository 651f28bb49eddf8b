//! Tests of the store on SQLite.

use std::collections::BTreeMap;
use std::pin::pin;

use futures_util::StreamExt;
use serde_json::{Value, json};
use slipway_store::Database;

use super::*;
use crate::meta::{FOREGROUND_FINALIZER, OwnerReference};
use crate::patch::Patch;
use crate::selector::LabelSelector;
use crate::store::{
    ApplyOptions, DeleteOptions, Deletion, ListOptions, Part, Propagation, Selection, WatchEvent, WatchOptions,
};

struct Fixture {
    store: Embedded,
    config_maps: Arc<Resource>,
    namespaces: Arc<Resource>,
    _folder: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(&folder.path().join("t.db"), &[crate::MIGRATION]).unwrap();
    let registry = crate::kinds::registry();
    let find = |plural: &str| registry.find("", plural).unwrap().clone();
    let (config_maps, namespaces) = (find("configmaps"), find("namespaces"));
    let store = Embedded::open(database, registry, Some(Sealer::new(&[7; 32]))).await.unwrap();
    Fixture { store, config_maps, namespaces, _folder: folder }
}

fn named(name: &str) -> Object {
    Object { metadata: ObjectMeta { name: name.into(), ..ObjectMeta::default() }, ..Object::default() }
}

impl Fixture {
    async fn create(&self, object: Object) -> Object {
        self.store.create(&self.config_maps, "default", object, &WriteOptions::default()).await.unwrap().object
    }

    async fn set(&self, name: &str, value: &str) -> Object {
        let patch = Patch::Merge(json!({"data": {"k": value}}));
        let options = WriteOptions::default();
        self.store.patch(&self.config_maps, "default", name, &patch, &options).await.unwrap().object
    }

    async fn delete(&self, name: &str, propagation: Propagation) -> Deletion {
        let options = DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() };
        self.store.delete(&self.config_maps, "default", name, &options).await.unwrap()
    }

    /// The names of all config maps.
    async fn names(&self) -> Vec<String> {
        let page = self.store.list(&self.config_maps, &ListOptions::default()).await.unwrap();
        page.items.into_iter().map(|object| object.metadata.name).collect()
    }

    /// Collects garbage until nothing changes.
    async fn collect(&self) {
        loop {
            let before = self.store.inner.database.read_now(repo::clock).unwrap();
            collector::round(&self.store).await.unwrap();
            if self.store.inner.database.read_now(repo::clock).unwrap() == before {
                return;
            }
        }
    }
}

fn owned_by(owner: &Object, name: &str) -> Object {
    let reference = OwnerReference {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        name: owner.metadata.name.clone(),
        uid: owner.metadata.uid.clone(),
        block_owner_deletion: Some(true),
        ..OwnerReference::default()
    };
    let mut object = named(name);
    object.metadata.owner_references.push(reference);
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_patches_are_all_applied() {
    let fixture = fixture().await;
    fixture.create(named("a")).await;
    let writes = (0..16).map(|i| {
        let (store, resource) = (fixture.store.clone(), fixture.config_maps.clone());
        tokio::spawn(async move {
            let patch = Patch::Merge(json!({"data": {format!("k{i}"): "v"}}));
            store.patch(&resource, "default", "a", &patch, &WriteOptions::default()).await.unwrap();
        })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap();
    }
    let object = fixture.store.get(&fixture.config_maps, "default", "a").await.unwrap();
    assert_eq!(object.at(&["data"]).as_object().unwrap().len(), 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_of_two_managers_are_merged_and_conflict() {
    let fixture = fixture().await;
    let apply = async |manager: &str, data: Value, force: bool, dry_run: bool| {
        let write = WriteOptions { manager: manager.into(), dry_run, ..WriteOptions::default() };
        let options = ApplyOptions { write, force, create: true };
        let configuration = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
        fixture.store.apply(&fixture.config_maps, "default", "a", &configuration, &options).await
    };
    let managers = |object: &Object| {
        let entries = object.metadata.managed_fields.iter().flatten();
        entries.map(|entry| format!("{} {}", entry.manager, entry.operation)).collect::<Vec<_>>()
    };
    assert!(apply("one", json!({"k": "1"}), false, true).await.unwrap().is_created);
    assert!(fixture.names().await.is_empty());
    let created = apply("one", json!({"k": "1", "old": "x"}), false, false).await.unwrap();
    assert!(created.is_created && managers(&created.object) == ["one Apply"]);
    let same = apply("one", json!({"k": "1", "old": "x"}), false, false).await.unwrap();
    assert_eq!((same.is_created, &same.object), (false, &created.object));
    let conflict = apply("two", json!({"k": "2"}), false, false).await.unwrap_err();
    assert_eq!(conflict.to_string(), "Apply failed with 1 conflict: conflict with \"one\": .data.k");
    assert_eq!(conflict.status().code, Some(409));
    let forced = apply("two", json!({"k": "2"}), true, false).await.unwrap().object;
    assert_eq!((forced.at(&["data"]), managers(&forced).len()), (&json!({"k": "2", "old": "x"}), 2));
    let removed = apply("one", json!({}), false, false).await.unwrap().object;
    assert_eq!(removed.at(&["data"]), &json!({"k": "2"}));
    let patched = fixture.set("a", "3").await;
    // The first manager still applies the field `data`, but nothing in it.
    assert_eq!(managers(&patched), ["one Apply", "unknown Update"]);
    let odd = apply("two", json!({"k": 1}), true, false).await.unwrap_err();
    assert_eq!(odd.status().code, Some(500), "{odd}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_version_conflicts_and_equal_state_is_not_written() {
    let fixture = fixture().await;
    let first = fixture.create(named("a")).await;
    let second = fixture.set("a", "1").await;
    let options = WriteOptions::default();
    let stale = fixture.store.update(&fixture.config_maps, "default", "a", first, &options).await.unwrap_err();
    assert!(matches!(stale, Error::Conflict { .. }), "{stale}");
    let same = fixture.store.update(&fixture.config_maps, "default", "a", second.clone(), &options).await.unwrap();
    assert_eq!(same.object, second, "the version did not change");
    let mut other_uid = second.clone();
    other_uid.metadata.uid = "other".into();
    let error = fixture.store.update(&fixture.config_maps, "default", "a", other_uid, &options).await.unwrap_err();
    assert!(error.to_string().contains("UID in precondition: other"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_sees_every_change_once_and_only_selected_objects() {
    let fixture = fixture().await;
    let created = fixture.create(named("a")).await;
    let after = created.metadata.resource_version.parse().ok();
    let labels = LabelSelector::parse("on=yes").unwrap();
    let all = WatchOptions { after, ..WatchOptions::default() };
    let some = WatchOptions { selection: Selection { labels, ..Selection::default() }, ..all.clone() };
    let all = fixture.store.watch(&fixture.config_maps, all).await.unwrap();
    let some = fixture.store.watch(&fixture.config_maps, some).await.unwrap();
    let label = async |value: serde_json::Value| {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"on": value}}}));
        fixture.store.patch(&fixture.config_maps, "default", "a", &patch, &WriteOptions::default()).await.unwrap();
    };
    label(json!("yes")).await;
    fixture.set("a", "1").await;
    label(json!(null)).await;
    fixture.delete("a", Propagation::Background).await;
    let kind = |event: WatchEvent| match event {
        WatchEvent::Added(_) => "added",
        WatchEvent::Modified(_) => "modified",
        WatchEvent::Deleted(_) => "deleted",
        other => panic!("{other:?}"),
    };
    let seen: Vec<_> = pin!(all).take(4).map(kind).collect().await;
    assert_eq!(seen, ["modified", "modified", "modified", "deleted"]);
    let seen: Vec<_> = pin!(some).take(3).map(kind).collect().await;
    assert_eq!(seen, ["added", "modified", "deleted"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_at_a_compacted_version_fails_as_expired() {
    let fixture = fixture().await;
    fixture.create(named("a")).await;
    fixture.set("a", "1").await;
    fixture
        .store
        .inner
        .database
        .write(|c| {
            repo::compact(c, 0).and_then(|()| c.execute("UPDATE object_clock SET compacted = version", [0_i64; 0]))
        })
        .await
        .unwrap();
    let old = WatchOptions { after: Some(2), ..WatchOptions::default() };
    let mut watch = pin!(fixture.store.watch(&fixture.config_maps, old).await.unwrap());
    assert!(matches!(watch.next().await, Some(WatchEvent::Failed(Error::Expired(_)))));
    assert!(watch.next().await.is_none());
    let exact = ListOptions { exact_version: Some(2), ..ListOptions::default() };
    assert!(matches!(fixture.store.list(&fixture.config_maps, &exact).await, Err(Error::Expired(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_store_ends_its_watches() {
    let fixture = fixture().await;
    let watch = fixture.store.watch(&fixture.config_maps, WatchOptions::default()).await.unwrap();
    fixture.store.close();
    assert_eq!(pin!(watch).count().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn dependents_are_deleted_after_or_before_their_owner_or_retained() {
    let fixture = fixture().await;
    for propagation in [Propagation::Background, Propagation::Foreground, Propagation::Orphan] {
        let owner = fixture.create(named("owner")).await;
        let child = fixture.create(owned_by(&owner, "child")).await;
        fixture.create(owned_by(&child, "grandchild")).await;
        match (propagation, fixture.delete("owner", propagation).await) {
            (Propagation::Background, Deletion::Deleted(_)) => {}
            (Propagation::Foreground, Deletion::Pending(object)) => {
                assert!(object.metadata.has_finalizer(FOREGROUND_FINALIZER));
            }
            (Propagation::Orphan, Deletion::Pending(_)) => {}
            other => panic!("{other:?}"),
        }
        fixture.collect().await;
        if propagation == Propagation::Orphan {
            assert_eq!(fixture.names().await, ["child", "grandchild"]);
        } else {
            assert!(fixture.names().await.is_empty(), "{propagation:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dependent_of_two_owners_outlives_the_first() {
    let fixture = fixture().await;
    let (a, b) = (fixture.create(named("a")).await, fixture.create(named("b")).await);
    let mut child = owned_by(&a, "child");
    child.metadata.owner_references.extend(owned_by(&b, "child").metadata.owner_references);
    fixture.create(child).await;
    fixture.delete("a", Propagation::Background).await;
    fixture.collect().await;
    let child = fixture.store.get(&fixture.config_maps, "default", "child").await.unwrap();
    assert_eq!(child.metadata.owner_references.len(), 1);
    fixture.delete("b", Propagation::Background).await;
    fixture.collect().await;
    assert!(fixture.names().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_of_a_namespace_have_a_route_of_their_own() {
    let fixture = fixture().await;
    let (store, namespaces) = (&fixture.store, &fixture.namespaces);
    let write = |part: Part| WriteOptions { part, ..WriteOptions::default() };
    let with = |finalizers: &[&str]| {
        let mut namespace = named("n");
        namespace.body.insert("spec".into(), json!({"finalizers": finalizers}));
        namespace
    };
    store.create(namespaces, "", named("n"), &write(Part::Main)).await.unwrap();
    let finalizers = |namespace: &Object| namespace.at(&["spec"]).clone();
    let written = store.update(namespaces, "", "n", with(&[]), &write(Part::Main)).await.unwrap();
    assert_eq!(finalizers(&written.object), json!({"finalizers": ["kubernetes"]}));
    let held = with(&["kubernetes", "example.com/hold"]);
    let written = store.update(namespaces, "", "n", held, &write(Part::Finalizers)).await.unwrap();
    assert_eq!(finalizers(&written.object), json!({"finalizers": ["kubernetes", "example.com/hold"]}));
    let odd = store.update(namespaces, "", "n", with(&["odd"]), &write(Part::Finalizers)).await.unwrap_err();
    assert!(odd.to_string().contains("spec.finalizers[0]: Invalid value: \"odd\""), "{odd}");
    let deletion = store.delete(namespaces, "", "n", &DeleteOptions::default()).await.unwrap();
    assert!(matches!(deletion, Deletion::Pending(_)), "{deletion:?}");
    store.update(namespaces, "", "n", with(&[]), &write(Part::Finalizers)).await.unwrap();
    assert!(matches!(store.get(namespaces, "", "n").await, Err(Error::NotFound { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_namespace_accepts_nothing_and_disappears_when_it_is_empty() {
    let fixture = fixture().await;
    let options = WriteOptions::default();
    fixture.store.create(&fixture.namespaces, "", named("n"), &options).await.unwrap();
    let mut held = named("held");
    held.metadata.finalizers.push("example.com/hold".into());
    fixture.store.create(&fixture.config_maps, "n", held, &options).await.unwrap();
    let deletion = fixture.store.delete(&fixture.namespaces, "", "n", &DeleteOptions::default()).await.unwrap();
    let Deletion::Pending(namespace) = deletion else { panic!("{deletion:?}") };
    assert_eq!(namespace.text(&["status", "phase"]), "Terminating");
    fixture.collect().await;
    let refused = fixture.store.create(&fixture.config_maps, "n", named("new"), &options).await.unwrap_err();
    assert_eq!(refused.status().details.unwrap().causes[0].reason, "NamespaceTerminating");
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    fixture.store.patch(&fixture.config_maps, "n", "held", &release, &options).await.unwrap();
    fixture.collect().await;
    let gone = fixture.store.get(&fixture.namespaces, "", "n").await.unwrap_err();
    assert!(matches!(gone, Error::NotFound { .. }), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_complete_and_of_one_version() {
    let fixture = fixture().await;
    for i in 0..7 {
        let labels = BTreeMap::from([("odd".to_owned(), (i % 2 == 1).to_string())]);
        let mut object = named(&format!("c{i}"));
        object.metadata.labels = labels;
        fixture.create(object).await;
    }
    let labels = LabelSelector::parse("odd=true").unwrap();
    let selection = Selection { labels, ..Selection::default() };
    let mut options = ListOptions { selection, limit: 2, ..ListOptions::default() };
    let first = fixture.store.list(&fixture.config_maps, &options).await.unwrap();
    fixture.delete("c5", Propagation::Background).await;
    options.continue_token.clone_from(&first.continue_token);
    let second = fixture.store.list(&fixture.config_maps, &options).await.unwrap();
    let names: Vec<_> = first.items.iter().chain(&second.items).map(|object| &object.metadata.name).collect();
    assert_eq!(names, ["c1", "c3", "c5"]);
    assert_eq!((second.continue_token.as_str(), second.resource_version), ("", first.resource_version));
    options.continue_token = "odd".into();
    assert!(matches!(fixture.store.list(&fixture.config_maps, &options).await, Err(Error::BadRequest(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_need_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(&folder.path().join("t.db"), &[crate::MIGRATION]).unwrap();
    let store = Embedded::open(database, crate::kinds::registry(), None).await.unwrap();
    let secrets = store.registry().find("", "secrets").unwrap().clone();
    let refused = store.create(&secrets, "default", named("s"), &WriteOptions::default()).await.unwrap_err();
    assert!(matches!(refused, Error::Forbidden { .. }), "{refused}");
}

#[tokio::test]
async fn imported_object_keeps_its_identity_and_its_faults() {
    let f = fixture().await;
    let runs = f.store.registry().find("slipway.dev", "runs").unwrap().clone();
    let mut run = named("train");
    run.metadata.namespace = "default".into();
    run.metadata.uid = "u-1".into();
    run.body = json!({"spec": {"command": ["true"]}}).as_object().unwrap().clone();
    let created = f.store.create(&runs, "default", run.clone(), &WriteOptions::default()).await.unwrap_err();
    assert!(created.to_string().contains("spec.image: Required value"), "{created}");
    assert_eq!(f.store.import(&runs, run.clone()).await.unwrap().metadata.uid, "u-1");
    assert!(matches!(f.store.import(&runs, run).await, Err(Error::AlreadyExists { .. })));
    // The missing image does not prevent other changes, but another fault does.
    let patch = async |spec: serde_json::Value| {
        let patch = Patch::Merge(json!({"spec": spec}));
        f.store.patch(&runs, "default", "train", &patch, &WriteOptions::default()).await
    };
    let cancelled = patch(json!({"cancel": true})).await.unwrap().object;
    assert_eq!(cancelled.metadata.finalizers, ["slipway.dev/run"]);
    let refused = patch(json!({"cancel": false, "command": ["false"]})).await.unwrap_err().to_string();
    assert!(refused.contains("cannot be resumed") && refused.contains("the command cannot be changed"), "{refused}");
    assert!(!refused.contains("spec.image"), "{refused}");
}
