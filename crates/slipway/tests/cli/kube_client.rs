//! The Kubernetes API of the server with `kube`, the Rust client, unmodified.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::core::DynamicObject;
use kube::discovery::Discovery;
use kube::runtime::reflector::{ObjectRef, store};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, Config, Error, ResourceExt};
use serde_json::json;

use crate::support::Server;

/// Time limit of a test.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a test with a client of a new server.
fn with_client<F: Future<Output = ()>>(test: impl FnOnce(Client) -> F) {
    let server = Server::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let url = format!("http://{}", server.addresses().control).parse().unwrap();
        let mut config = Config::new(url);
        let token = std::fs::read_to_string(server.sandbox.home().join("token")).unwrap();
        config.auth_info.token = Some(token.trim().to_owned().into());
        let client = Client::try_from(config).unwrap();
        tokio::time::timeout(TIMEOUT, test(client)).await.expect("the test ends in time");
    });
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some(BTreeMap::from([("k".to_owned(), value.to_owned())])),
        ..ConfigMap::default()
    }
}

fn value(map: &ConfigMap) -> &str {
    map.data.as_ref().and_then(|data| data.get("k")).map_or("", String::as_str)
}

/// The reason of a refusal.
fn reason<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Api(status)) => status.reason,
        other => panic!("not refused by the server: {other:?}"),
    }
}

#[test]
fn objects_are_written_and_read() {
    with_client(async |client| {
        let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
        let created = maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
        assert!(created.uid().is_some() && created.resource_version().is_some());
        assert_eq!(reason(maps.create(&PostParams::default(), &config_map("a", "1")).await), "AlreadyExists");
        let mut changed = config_map("a", "2");
        changed.metadata.resource_version = created.resource_version();
        let replaced = maps.replace("a", &PostParams::default(), &changed).await.unwrap();
        assert_eq!(value(&replaced), "2");
        assert_eq!(reason(maps.replace("a", &PostParams::default(), &changed).await), "Conflict");
        let patch = Patch::Merge(json!({"metadata": {"labels": {"tier": "x"}}, "data": {"k": "3"}}));
        assert_eq!(value(&maps.patch("a", &PatchParams::default(), &patch).await.unwrap()), "3");
        let patch = Patch::Strategic(json!({"data": {"k": "4"}}));
        assert_eq!(value(&maps.patch("a", &PatchParams::default(), &patch).await.unwrap()), "4");
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        maps.create(&dry, &config_map("dry", "1")).await.unwrap();
        assert!(maps.get_opt("dry").await.unwrap().is_none());
        maps.create(&PostParams::default(), &config_map("b", "1")).await.unwrap();
        assert_eq!(maps.list(&ListParams::default().labels("tier in (x, y)")).await.unwrap().items.len(), 1);
        let first = maps.list(&ListParams::default().limit(1)).await.unwrap();
        let token = first.metadata.continue_.clone().unwrap();
        let second = maps.list(&ListParams::default().limit(1).continue_token(&token)).await.unwrap();
        assert_eq!((first.items[0].name_any(), second.items[0].name_any()), ("a".to_owned(), "b".to_owned()));
        let metadata = maps.get_metadata("a").await.unwrap();
        assert_eq!(metadata.labels()["tier"], "x");
        let secrets: Api<Secret> = Api::default_namespaced(client);
        let secret = Secret { string_data: Some(BTreeMap::from([("k".into(), "v".into())])), ..Secret::default() };
        let metadata = ObjectMeta { generate_name: Some("s-".into()), ..ObjectMeta::default() };
        let secret = secrets.create(&PostParams::default(), &Secret { metadata, ..secret }).await.unwrap();
        assert_eq!(secrets.get(&secret.name_any()).await.unwrap().data.unwrap()["k"].0, b"v");
    });
}

#[test]
fn reflectors_follow_changes() {
    with_client(async |client| {
        let maps: Api<ConfigMap> = Api::default_namespaced(client);
        maps.create(&PostParams::default(), &config_map("before", "1")).await.unwrap();
        for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
            let (reader, writer) = store();
            let stream = reflector(writer, watcher(maps.clone(), config)).applied_objects();
            let task = tokio::spawn(stream.try_for_each(|_| std::future::ready(Ok(()))));
            reader.wait_until_ready().await.unwrap();
            assert!(reader.get(&ObjectRef::new("before").within("default")).is_some());
            let seen = |name: &str, value: Option<&str>| {
                let (reader, key) = (reader.clone(), ObjectRef::new(name).within("default"));
                let value = value.map(str::to_owned);
                async move {
                    let is_seen = || reader.get(&key).map(|map| self::value(&map).to_owned()) == value;
                    while !is_seen() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            };
            maps.create(&PostParams::default(), &config_map("new", "1")).await.unwrap();
            seen("new", Some("1")).await;
            maps.patch("new", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "2"}}))).await.unwrap();
            seen("new", Some("2")).await;
            maps.delete("new", &DeleteParams::default()).await.unwrap();
            seen("new", None).await;
            task.abort();
        }
    });
}

#[test]
fn finalizers_and_owners_decide_about_deletions() {
    with_client(async |client| {
        let maps: Api<ConfigMap> = Api::default_namespaced(client);
        let mut owner = config_map("owner", "1");
        owner.metadata.finalizers = Some(vec!["example.com/hold".into()]);
        let owner = maps.create(&PostParams::default(), &owner).await.unwrap();
        let mut dependent = config_map("dependent", "1");
        dependent.metadata.owner_references = Some(vec![kube::Resource::owner_ref(&owner, &()).unwrap()]);
        maps.create(&PostParams::default(), &dependent).await.unwrap();
        let foreground =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() };
        let pending = maps.delete("owner", &foreground).await.unwrap().left().expect("a finalizer holds the object");
        assert!(pending.metadata.deletion_timestamp.is_some());
        while maps.get_opt("dependent").await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(maps.get_opt("owner").await.unwrap().is_some());
        let released = Patch::Json::<()>(
            serde_json::from_value(json!([{"op": "remove", "path": "/metadata/finalizers"}])).unwrap(),
        );
        maps.patch("owner", &PatchParams::default(), &released).await.unwrap();
        await_condition(maps.clone(), "owner", conditions::is_deleted(&owner.uid().unwrap())).await.unwrap();
        assert!(maps.get_opt("owner").await.unwrap().is_none());
    });
}

#[test]
fn kinds_are_discovered() {
    with_client(async |client| {
        let found = Discovery::new(client.clone()).run_aggregated().await.unwrap();
        let plain = Discovery::new(client.clone()).run().await.unwrap();
        for discovery in [found, plain] {
            let core = discovery.get("").unwrap();
            let (resource, capabilities) = core.recommended_kind("ConfigMap").unwrap();
            assert_eq!(capabilities.scope, kube::discovery::Scope::Namespaced);
            let dynamic: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &resource);
            assert!(dynamic.list(&ListParams::default()).await.is_ok());
        }
        let namespaces: Api<Namespace> = Api::all(client);
        let events = watcher(namespaces, watcher::Config::default()).default_backoff();
        let first = events.touched_objects().boxed().try_next().await.unwrap().unwrap();
        assert_eq!(first.name_any(), "default");
    });
}
