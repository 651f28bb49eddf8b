//! The tests that every [`ObjectStore`] must pass. They run against slipway's own database, and, where `SLIPWAY_TEST_KUBECONFIG` names a
//! cluster, against its API server (`conformance/kube-api/contract.py` starts one).

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use slipway_core::ids::hex32;
use slipway_objects::embedded::Embedded;
use slipway_objects::kinds;
use slipway_objects::meta::{ObjectMeta, OwnerReference};
use slipway_objects::patch::Patch;
use slipway_objects::seal::Sealer;
use slipway_objects::selector::{FieldSelector, LabelSelector};
use slipway_objects::store::{
    ApplyOptions, DeleteOptions, Deletion, ListOptions, ObjectStore, Part, Propagation, Selection, WatchEvent,
    WatchOptions, WriteOptions,
};
use slipway_objects::{Error, Object, Resource};
use slipway_store::Database;

use super::ApiServer;
use crate::Api;
use crate::runs::{DEFINITION, RUN};

/// How long something that happens in the background may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A store, and a namespace in it for one test.
struct Home<S> {
    store: S,
    namespace: String,
    _folder: Option<tempfile::TempDir>,
}

async fn embedded() -> Home<Embedded> {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(&folder.path().join("t.db"), &[slipway_objects::MIGRATION]).unwrap();
    let store = Embedded::open(database, kinds::registry(), Some(Sealer::new(&[7; 32]))).await.unwrap();
    drop(store.spawn_collector());
    Home::in_new_namespace(store, Some(folder)).await
}

async fn api_server() -> Home<ApiServer> {
    let kubeconfig = std::env::var_os("SLIPWAY_TEST_KUBECONFIG").map(PathBuf::from);
    let kubeconfig = kubeconfig.expect("SLIPWAY_TEST_KUBECONFIG names the kubeconfig of a cluster");
    let store = ApiServer::new(Api::connect(Some(&kubeconfig), None).await.unwrap());
    define_runs(&store).await;
    Home::in_new_namespace(store, None).await
}

/// Creates the definition of runs where the API server does not have it.
async fn define_runs(store: &ApiServer) {
    let definitions = crate::Resource {
        group: "apiextensions.k8s.io",
        version: "v1",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
    };
    let all = ListOptions { limit: 1, ..ListOptions::default() };
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    let mut is_applied = false;
    while let Err(error) = store.list(&resource(RUN.group, RUN.plural), &all).await {
        assert!(error.is_not_found() && tokio::time::Instant::now() < deadline, "{error}");
        if !is_applied {
            let definition: Value = serde_saphyr::from_str(DEFINITION).unwrap();
            store.api().apply(&definitions, None, "runs.slipway.dev", "test", false, &definition, false).await.unwrap();
            is_applied = true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn resource(group: &str, plural: &str) -> Arc<Resource> {
    Arc::clone(kinds::registry().find(group, plural).unwrap())
}

fn config_map(name: &str, data: Value) -> Object {
    let metadata = ObjectMeta { name: name.into(), ..ObjectMeta::default() };
    Object { metadata, body: [("data".to_owned(), data)].into_iter().collect(), ..Object::default() }
}

fn owned_by(owner: &Object, name: &str) -> Object {
    let mut object = config_map(name, json!({}));
    object.metadata.owner_references = vec![OwnerReference {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        name: owner.metadata.name.clone(),
        uid: owner.metadata.uid.clone(),
        block_owner_deletion: Some(true),
        ..OwnerReference::default()
    }];
    object
}

fn by(manager: &str) -> WriteOptions {
    WriteOptions { manager: manager.into(), ..WriteOptions::default() }
}

fn names(items: &[Object]) -> Vec<&str> {
    items.iter().map(|object| object.metadata.name.as_str()).collect()
}

fn version(object: &Object) -> i64 {
    object.metadata.resource_version.parse().unwrap()
}

/// The code, the reason and the message of an error.
fn described<T>(result: Result<T, Error>) -> (u16, String, String) {
    let Err(error) = result else { panic!("the request was not rejected") };
    let status = error.status();
    (status.code.unwrap(), status.reason.into_owned(), status.message)
}

fn told(code: u16, reason: &str, message: &str) -> (u16, String, String) {
    (code, reason.to_owned(), message.to_owned())
}

impl<S: ObjectStore> Home<S> {
    async fn in_new_namespace(store: S, folder: Option<tempfile::TempDir>) -> Self {
        let namespace = format!("contract-{}", &hex32()[..8]);
        let metadata = ObjectMeta { name: namespace.clone(), ..ObjectMeta::default() };
        let object = Object { metadata, ..Object::default() };
        store.create(&resource("", "namespaces"), "", object, &WriteOptions::default()).await.unwrap();
        Self { store, namespace, _folder: folder }
    }

    async fn create(&self, object: Object) -> Object {
        let created = self.store.create(&resource("", "configmaps"), &self.namespace, object, &by("test")).await;
        created.unwrap().object
    }

    async fn get(&self, name: &str) -> Result<Object, Error> {
        self.store.get(&resource("", "configmaps"), &self.namespace, name).await
    }

    async fn update(&self, object: Object) -> Result<Object, Error> {
        let name = object.metadata.name.clone();
        let maps = resource("", "configmaps");
        Ok(self.store.update(&maps, &self.namespace, &name, object, &by("test")).await?.object)
    }

    async fn patch(&self, name: &str, patch: Patch) -> Result<Object, Error> {
        let maps = resource("", "configmaps");
        Ok(self.store.patch(&maps, &self.namespace, name, &patch, &by("test")).await?.object)
    }

    async fn apply(&self, name: &str, manager: &str, data: Value, options: ApplyOptions) -> Result<Object, Error> {
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data});
        let options = ApplyOptions { write: WriteOptions { manager: manager.into(), ..options.write }, ..options };
        let maps = resource("", "configmaps");
        let written = self.store.apply(&maps, &self.namespace, name, &body, &options).await?;
        Ok(written.object)
    }

    async fn delete(&self, name: &str, options: DeleteOptions) -> Result<Deletion, Error> {
        self.store.delete(&resource("", "configmaps"), &self.namespace, name, &options).await
    }

    fn selection(&self, labels: &str, fields: &str) -> Selection {
        Selection {
            namespace: Some(self.namespace.clone()),
            labels: LabelSelector::parse(labels).unwrap(),
            fields: FieldSelector::parse(fields).unwrap(),
        }
    }

    async fn list(&self, labels: &str, fields: &str) -> Vec<Object> {
        let options = ListOptions { selection: self.selection(labels, fields), ..ListOptions::default() };
        self.store.list(&resource("", "configmaps"), &options).await.unwrap().items
    }

    /// Waits until an object is deleted.
    async fn deleted(&self, name: &str) {
        let gone = async {
            while self.get(name).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(TIMEOUT, gone).await.unwrap();
    }

    /// The events of a watch up to the first for which `is_last` holds: kind and name.
    async fn events(&self, options: WatchOptions, is_last: fn(&str) -> bool) -> Vec<String> {
        let mut events = pin!(self.store.watch(&resource("", "configmaps"), options).await.unwrap());
        let mut seen = Vec::new();
        while seen.last().is_none_or(|last: &String| !is_last(last)) {
            let event = tokio::time::timeout(TIMEOUT, events.next()).await.unwrap().unwrap();
            let of = |kind: &str, object: Object| format!("{kind} {}", object.metadata.name);
            seen.push(match event {
                WatchEvent::Added(object) => of("added", object),
                WatchEvent::Modified(object) => of("modified", object),
                WatchEvent::Deleted(object) => of("deleted", object),
                WatchEvent::Bookmark { initial_end, .. } => format!("bookmark {initial_end}"),
                WatchEvent::Failed(error) => panic!("{error}"),
            });
        }
        seen
    }
}

async fn objects_are_created_read_and_deleted<S: ObjectStore>(home: Home<S>) {
    let created = home.create(config_map("a", json!({"k": "1"}))).await;
    let meta = &created.metadata;
    assert_eq!((meta.name.as_str(), &meta.namespace, meta.uid.len()), ("a", &home.namespace, 36));
    assert_eq!((created.kind.as_str(), created.api_version.as_str()), ("ConfigMap", "v1"));
    assert_eq!(home.get("a").await.unwrap(), created);
    let maps = resource("", "configmaps");
    let taken = home.store.create(&maps, &home.namespace, config_map("a", json!({})), &by("test")).await;
    assert!(matches!(&taken, Err(Error::AlreadyExists { name, .. }) if name == "a"));
    assert_eq!(described(taken), told(409, "AlreadyExists", "configmaps \"a\" already exists"));
    let missing = home.get("missing").await;
    assert!(matches!(&missing, Err(Error::NotFound { name, .. }) if name == "missing"));
    assert_eq!(described(missing), told(404, "NotFound", "configmaps \"missing\" not found"));
    let elsewhere = home.store.create(&maps, "missing", config_map("a", json!({})), &by("test")).await;
    assert_eq!(described(elsewhere), told(404, "NotFound", "namespaces \"missing\" not found"));
    let Deletion::Deleted(deleted) = home.delete("a", DeleteOptions::default()).await.unwrap() else {
        panic!("nothing retains the object")
    };
    assert_eq!((&deleted.metadata.name, &deleted.metadata.uid), (&meta.name, &meta.uid));
    assert!(home.get("a").await.unwrap_err().is_not_found());
    assert!(home.delete("a", DeleteOptions::default()).await.unwrap_err().is_not_found());
}

async fn names_are_generated<S: ObjectStore>(home: Home<S>) {
    let mut object = config_map("", json!({}));
    object.metadata.generate_name = "run-".into();
    let (first, second) = (home.create(object.clone()).await, home.create(object).await);
    assert!(first.metadata.name.starts_with("run-") && first.metadata.name != second.metadata.name);
}

async fn versions_guard_updates<S: ObjectStore>(home: Home<S>) {
    let first = home.create(config_map("a", json!({"k": "1"}))).await;
    let mut changed = first.clone();
    changed.body.insert("data".into(), json!({"k": "2"}));
    let second = home.update(changed.clone()).await.unwrap();
    assert!(version(&second) > version(&first));
    let stale = home.update(changed.clone()).await;
    assert!(matches!(&stale, Err(Error::Conflict { .. })) && stale.unwrap_err().is_conflict());
    changed.metadata.resource_version.clear();
    assert_eq!(home.update(changed.clone()).await.unwrap().metadata.resource_version, second.metadata.resource_version);
    changed.metadata.name = "missing".into();
    changed.metadata.uid.clear();
    assert!(home.update(changed).await.unwrap_err().is_not_found());
}

async fn patches_of_every_kind_are_applied<S: ObjectStore>(home: Home<S>) {
    home.create(config_map("a", json!({"k": "1", "l": "1"}))).await;
    home.patch("a", Patch::Merge(json!({"data": {"k": null}}))).await.unwrap();
    home.patch("a", Patch::Json(json!([{"op": "add", "path": "/data/m", "value": "2"}]))).await.unwrap();
    let annotated = home.patch("a", Patch::Strategic(json!({"metadata": {"annotations": {"x": "y"}}}))).await.unwrap();
    assert_eq!(annotated.at(&["data"]), &json!({"l": "1", "m": "2"}));
    assert_eq!(annotated.metadata.annotations["x"], "y");
    let failed = home.patch("a", Patch::Json(json!([{"op": "test", "path": "/data/l", "value": "9"}]))).await;
    assert_eq!(failed.unwrap_err().status().code, Some(422));
    let unknown = Patch::Merge(json!({"odd": 1}));
    let maps = resource("", "configmaps");
    let written = home.store.patch(&maps, &home.namespace, "a", &unknown, &by("test")).await.unwrap();
    assert_eq!(written.warnings, ["unknown field \"odd\""]);
    let stale = json!({"metadata": {"resourceVersion": "1"}});
    assert!(home.patch("a", Patch::Merge(stale)).await.unwrap_err().is_conflict());
}

async fn configurations_are_applied<S: ObjectStore>(home: Home<S>) {
    let create = ApplyOptions { create: true, ..ApplyOptions::default() };
    let absent = home.apply("a", "first", json!({"k": "1"}), ApplyOptions::default()).await;
    assert_eq!(described(absent), told(404, "NotFound", "configmaps \"a\" not found"));
    home.apply("a", "first", json!({"k": "1", "l": "1"}), create.clone()).await.unwrap();
    let pruned = home.apply("a", "first", json!({"k": "1"}), ApplyOptions::default()).await.unwrap();
    assert_eq!(pruned.at(&["data"]), &json!({"k": "1"}));
    let Err(Error::ApplyConflict(conflicts)) = home.apply("a", "second", json!({"k": "2"}), create.clone()).await
    else {
        panic!("another manager has the field")
    };
    assert_eq!(
        (conflicts.len(), conflicts[0].field.as_str(), conflicts[0].manager.as_str()),
        (1, ".data.k", "\"first\"")
    );
    let dry_run = WriteOptions { dry_run: true, ..WriteOptions::default() };
    let forced = ApplyOptions { force: true, ..create };
    let dry = home.apply("a", "second", json!({"k": "2"}), ApplyOptions { write: dry_run, ..forced.clone() }).await;
    assert_eq!(dry.unwrap().at(&["data", "k"]), "2");
    assert_eq!(home.get("a").await.unwrap().at(&["data", "k"]), "1");
    let applied = home.apply("a", "second", json!({"k": "2"}), forced).await.unwrap();
    let managers = applied.metadata.managed_fields.unwrap();
    assert_eq!(applied.body["data"]["k"], "2");
    assert_eq!(managers.iter().map(|entry| entry.manager.as_str()).collect::<Vec<_>>(), ["second"]);
}

async fn invalid_objects_are_refused_with_the_same_words<S: ObjectStore>(home: Home<S>) {
    let maps = resource("", "configmaps");
    let invalid = home.store.create(&maps, &home.namespace, config_map("In_valid", json!({})), &by("test")).await;
    let Err(Error::Invalid { kind, name, errors, .. }) = &invalid else { panic!("{invalid:?}") };
    assert_eq!((kind.as_str(), name.as_str(), errors[0].field.as_str()), ("ConfigMap", "In_valid", "metadata.name"));
    let (code, reason, message) = described(invalid);
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    let start =
        "ConfigMap \"In_valid\" is invalid: metadata.name: Invalid value: \"In_valid\": a lowercase RFC 1123 subdomain";
    assert!(message.starts_with(start), "{message}");
}

async fn lists_are_selected_and_paged<S: ObjectStore>(home: Home<S>) {
    for (name, parity) in [("n0", "even"), ("n1", "odd"), ("n2", "even"), ("n3", "odd"), ("n4", "even")] {
        let mut object = config_map(name, json!({}));
        object.metadata.labels.insert("parity".into(), parity.into());
        home.create(object).await;
    }
    assert_eq!(names(&home.list("parity=odd", "").await), ["n1", "n3"]);
    assert_eq!(names(&home.list("parity notin (odd),!missing", "metadata.name!=n2").await), ["n0", "n4"]);
    assert_eq!(names(&home.list("", "metadata.name=n3").await), ["n3"]);
    let maps = resource("", "configmaps");
    let mut options = ListOptions { selection: home.selection("", ""), limit: 2, ..ListOptions::default() };
    let first = home.store.list(&maps, &options).await.unwrap();
    assert_eq!((names(&first.items), first.remaining), (vec!["n0", "n1"], Some(3)));
    home.delete("n3", DeleteOptions::default()).await.unwrap();
    options.continue_token = first.continue_token;
    let second = home.store.list(&maps, &options).await.unwrap();
    assert_eq!(names(&second.items), ["n2", "n3"], "all pages have the version of the first one");
    assert_eq!(second.resource_version, first.resource_version);
    let exact = ListOptions {
        selection: home.selection("", ""),
        exact_version: Some(first.resource_version),
        ..ListOptions::default()
    };
    assert_eq!(home.store.list(&maps, &exact).await.unwrap().items.len(), 5);
    assert_eq!(names(&home.list("", "").await), ["n0", "n1", "n2", "n4"]);
    let odd = ListOptions { selection: home.selection("", "spec.odd=1"), ..ListOptions::default() };
    assert_eq!(described(home.store.list(&maps, &odd).await).0, 400);
    let watch = WatchOptions { selection: odd.selection, ..WatchOptions::default() };
    assert_eq!(described(home.store.watch(&maps, watch).await.map(drop)).0, 400);
}

async fn watches_deliver_every_change<S: ObjectStore>(home: Home<S>) {
    let first = home.create(config_map("a", json!({"k": "1"}))).await;
    let mut watched = config_map("b", json!({}));
    watched.metadata.labels.insert("watched".into(), "yes".into());
    home.create(watched).await;
    home.patch("a", Patch::Merge(json!({"data": {"k": "2"}}))).await.unwrap();
    home.patch("b", Patch::Merge(json!({"metadata": {"labels": {"watched": "no"}}}))).await.unwrap();
    home.delete("a", DeleteOptions::default()).await.unwrap();
    let after = |labels: &str, fields: &str| WatchOptions {
        selection: home.selection(labels, fields),
        after: Some(version(&first)),
        ..WatchOptions::default()
    };
    let is_deleted = |event: &str| event.starts_with("deleted");
    let all = home.events(after("", ""), is_deleted).await;
    assert_eq!(all, ["added b", "modified a", "modified b", "deleted a"]);
    assert_eq!(home.events(after("watched=yes", ""), is_deleted).await, ["added b", "deleted b"]);
    assert_eq!(home.events(after("", "metadata.name=a"), is_deleted).await, ["modified a", "deleted a"]);
    let initial = WatchOptions {
        selection: home.selection("", "metadata.name=b"),
        send_initial_events: true,
        bookmarks: true,
        ..WatchOptions::default()
    };
    assert_eq!(home.events(initial, |event| event.starts_with("bookmark")).await, ["added b", "bookmark true"]);
    // Changes are also delivered while the watch is waiting for them.
    let later = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        home.create(config_map("c", json!({}))).await;
    };
    let selected = WatchOptions { selection: home.selection("", "metadata.name=c"), ..WatchOptions::default() };
    let (seen, ()) = tokio::join!(home.events(selected, |event| event.ends_with(" c")), later);
    assert_eq!(seen, ["added c"]);
}

async fn finalizers_and_preconditions_guard_deletions<S: ObjectStore>(home: Home<S>) {
    let mut held = config_map("a", json!({}));
    held.metadata.finalizers = vec!["example.com/hold".into()];
    let held = home.create(held).await;
    for options in [
        DeleteOptions { uid: Some("00000000-0000-0000-0000-000000000000".into()), ..DeleteOptions::default() },
        DeleteOptions { resource_version: Some("1".into()), ..DeleteOptions::default() },
    ] {
        assert!(home.delete("a", options).await.unwrap_err().is_conflict());
    }
    let dry_run = DeleteOptions { dry_run: true, ..DeleteOptions::default() };
    home.delete("a", dry_run).await.unwrap();
    assert!(!home.get("a").await.unwrap().metadata.is_deleting());
    let exact = DeleteOptions { uid: Some(held.metadata.uid.clone()), ..DeleteOptions::default() };
    let Deletion::Pending(pending) = home.delete("a", exact).await.unwrap() else { panic!("the finalizer holds it") };
    assert!(pending.metadata.is_deleting());
    home.patch("a", Patch::Merge(json!({"metadata": {"finalizers": null}}))).await.unwrap();
    home.deleted("a").await;
}

async fn dependents_follow_their_owner<S: ObjectStore>(home: Home<S>) {
    let with = |propagation| DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() };
    let owner = home.create(config_map("background", json!({}))).await;
    home.create(owned_by(&owner, "first")).await;
    home.delete("background", with(Propagation::Background)).await.unwrap();
    home.deleted("first").await;
    let owner = home.create(config_map("foreground", json!({}))).await;
    home.create(owned_by(&owner, "second")).await;
    let pending = home.delete("foreground", with(Propagation::Foreground)).await.unwrap();
    assert!(matches!(pending, Deletion::Pending(_)));
    home.deleted("foreground").await;
    assert!(home.get("second").await.unwrap_err().is_not_found());
    let owner = home.create(config_map("orphaning", json!({}))).await;
    home.create(owned_by(&owner, "third")).await;
    home.delete("orphaning", with(Propagation::Orphan)).await.unwrap();
    home.deleted("orphaning").await;
    assert!(home.get("third").await.unwrap().metadata.owner_references.is_empty());
}

async fn status_is_written_apart<S: ObjectStore>(home: Home<S>) {
    let runs = resource("slipway.dev", "runs");
    let run = |name: &str, fields: Value| -> Object {
        let mut value = json!({"apiVersion": "slipway.dev/v1", "kind": "Run", "metadata": {"name": name}});
        for (field, content) in fields.as_object().unwrap() {
            value[field] = content.clone();
        }
        serde_json::from_value(value).unwrap()
    };
    let spec = json!({"image": "a", "command": ["true"]});
    let new = run("a", json!({"spec": spec, "status": {"phase": "Running"}}));
    let created = home.store.create(&runs, &home.namespace, new, &by("test")).await.unwrap().object;
    assert_eq!((created.at(&["status"]), created.metadata.generation), (&Value::Null, 1));
    let status = WriteOptions { part: Part::Status, ..by("controller") };
    let mut changed = created.clone();
    changed.body.insert("status".into(), json!({"phase": "Running"}));
    changed.body["spec"]["cancel"] = json!(true);
    let written = home.store.update(&runs, &home.namespace, "a", changed, &status).await.unwrap().object;
    assert_eq!((written.at(&["status", "phase"]), written.at(&["spec", "cancel"])), (&json!("Running"), &Value::Null));
    let patch = Patch::Merge(json!({"status": {"phase": "Failed"}, "spec": {"cancel": true}}));
    let patched = home.store.patch(&runs, &home.namespace, "a", &patch, &by("test")).await.unwrap().object;
    assert_eq!((patched.at(&["status", "phase"]), patched.metadata.generation), (&json!("Running"), 2));
    let patched = home.store.patch(&runs, &home.namespace, "a", &patch, &status).await.unwrap().object;
    assert_eq!((patched.at(&["status", "phase"]), patched.metadata.generation), (&json!("Failed"), 2));
    let applied =
        json!({"apiVersion": "slipway.dev/v1", "kind": "Run", "metadata": {"name": "a"}, "status": {"reason": "R"}});
    let options = ApplyOptions { write: status, force: true, create: false };
    let applied = home.store.apply(&runs, &home.namespace, "a", &applied, &options).await.unwrap().object;
    assert_eq!(applied.at(&["status"]), &json!({"phase": "Failed", "reason": "R"}));
}

async fn events_are_the_same_objects_in_both_groups<S: ObjectStore>(home: Home<S>) {
    let (core, grouped) = (resource("", "events"), resource("events.k8s.io", "events"));
    let event: Object = serde_json::from_value(json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "type": "Normal", "note": "n",
        "regarding": {"kind": "ConfigMap", "name": "a", "namespace": home.namespace}, "reason": "R", "action": "A",
        "eventTime": "2026-01-01T00:00:00.000001Z", "reportingController": "slipway.dev/t", "reportingInstance": "i",
    }))
    .unwrap();
    home.store.create(&grouped, &home.namespace, event, &by("test")).await.unwrap();
    let read = home.store.get(&core, &home.namespace, "e").await.unwrap();
    assert_eq!((read.text(&["message"]), read.text(&["involvedObject", "name"])), ("n", "a"));
    let selection = home.selection("", "regarding.name=a");
    let page = home.store.list(&grouped, &ListOptions { selection, ..ListOptions::default() }).await.unwrap();
    assert_eq!(page.items[0].text(&["note"]), "n");
    let change = Patch::Merge(json!({"note": "changed"}));
    let refused = home.store.patch(&grouped, &home.namespace, "e", &change, &by("test")).await;
    let message = "Event \"e\" is invalid: message: Invalid value: \"changed\": field is immutable";
    assert_eq!(described(refused), told(422, "Invalid", message));
}

#[tokio::test]
#[ignore = "needs an API server (conformance/kube-api/contract.py)"]
async fn in_cluster_repeated_events_are_recorded_as_a_series() {
    let home = api_server().await;
    let object = home.create(config_map("a", json!({}))).await;
    let about = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "namespace": home.namespace, "uid": object.metadata.uid});
    for _ in 0..2 {
        home.store.api().event(about.clone(), false, "Tested", "it was tested").await.unwrap();
    }
    let selection = home.selection("", "reason=Tested");
    let options = ListOptions { selection, ..ListOptions::default() };
    let page = home.store.list(&resource("events.k8s.io", "events"), &options).await.unwrap();
    assert_eq!((page.items.len(), page.items[0].at(&["series", "count"])), (1, &json!(2)));
}

/// A test of each script in each home.
macro_rules! contract {
    ($($script:ident)*) => {
        mod in_database {
            $(#[tokio::test] async fn $script() { super::$script(super::embedded().await).await; })*
        }
        mod in_cluster {
            $(
                #[tokio::test]
                #[ignore = "needs an API server (conformance/kube-api/contract.py)"]
                async fn $script() { super::$script(super::api_server().await).await; }
            )*
        }
    };
}

contract! {
    objects_are_created_read_and_deleted
    names_are_generated
    versions_guard_updates
    patches_of_every_kind_are_applied
    configurations_are_applied
    invalid_objects_are_refused_with_the_same_words
    lists_are_selected_and_paged
    watches_deliver_every_change
    finalizers_and_preconditions_guard_deletions
    dependents_follow_their_owner
    status_is_written_apart
    events_are_the_same_objects_in_both_groups
}
