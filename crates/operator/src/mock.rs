//! An in-memory API server for tests. It supports resource versions, watches, finalizers, owner references, conflicts and injected faults;
//! it has no schemas and no access control.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::Api;

/// Fault injected into a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    /// No fault.
    None,
    /// The request takes effect and gets its response late; both times count from when it was sent.
    Late { stored: Duration, responded: Duration },
    /// The request never arrives.
    Lost,
    /// The request takes effect after this time, but the response is lost.
    StoredAndLost(Duration),
    /// The request is rejected with this status code.
    Refused(u16),
}

/// Chooses the fault of a request by client, method and path.
type Faults = dyn Fn(&str, &str, &str) -> Fault + Send + Sync;
/// Responds to a request in place of the store, by method, path and body.
type Hook = dyn Fn(&str, &str, &Value) -> Option<(u16, Value)> + Send + Sync;
type MockResponse = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Key of an object: plural name of the kind, namespace, name.
type Key = (String, String, String);

pub(crate) struct MockCluster {
    state: Mutex<State>,
    faults: Mutex<Arc<Faults>>,
    hook: Mutex<Arc<Hook>>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    /// The resource version of the last change of each kind, keyed by plural name.
    changed: BTreeMap<String, u64>,
    /// Method and path of every request.
    requests: Vec<(String, String)>,
    watchers: Vec<Watcher>,
}

struct Watcher {
    plural: String,
    namespace: Option<String>,
    selector: String,
    sender: mpsc::UnboundedSender<Value>,
}

/// The resource that a path refers to.
struct Target {
    plural: String,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<String>,
}

fn parse_path(path: &str) -> Target {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let segments = match segments.as_slice() {
        ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
        other => other,
    };
    let (namespace, segments) = match segments {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
        other => (None, other),
    };
    let at = |n: usize| segments.get(n).map(|s| (*s).to_owned());
    Target { plural: at(0).unwrap_or_default(), namespace, name: at(1), subresource: at(2) }
}

/// Whether an object matches a label selector: `key`, `key=value`, or several separated by commas.
fn matches_selector(selector: &str, object: &Value) -> bool {
    selector.split(',').filter(|s| !s.is_empty()).all(|s| match s.split_once('=') {
        Some((key, value)) => object["metadata"]["labels"][key] == value,
        None => object["metadata"]["labels"][s].is_string(),
    })
}

impl MockCluster {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            faults: Mutex::new(Arc::new(|_, _, _| Fault::None)),
            hook: Mutex::new(Arc::new(|_, _, _| None)),
        })
    }

    /// Sets the function that chooses the fault of each further request, by client, method and path.
    pub(crate) fn faults(&self, faults: impl Fn(&str, &str, &str) -> Fault + Send + Sync + 'static) {
        *self.faults.lock() = Arc::new(faults);
    }

    /// Sets the function that may respond to further requests in place of the store, by method, path and body.
    pub(crate) fn respond_with(
        &self,
        hook: impl Fn(&str, &str, &Value) -> Option<(u16, Value)> + Send + Sync + 'static,
    ) {
        *self.hook.lock() = Arc::new(hook);
    }

    /// A client of this server. The function for faults gets the name `client`.
    pub(crate) fn api(self: &Arc<Self>, client: &str) -> Api {
        let (cluster, client) = (Arc::clone(self), client.to_owned());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (cluster, client) = (Arc::clone(&cluster), client.clone());
            async move { Ok::<_, Infallible>(cluster.serve(&client, request).await) }
        });
        Api::from_client(kube::Client::new(service, "default"))
    }

    async fn serve(self: Arc<Self>, client: &str, request: Request<Body>) -> MockResponse {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.map(|b| b.to_vec()).unwrap_or_default();
        let (method, path) = (parts.method.to_string(), parts.uri.path().to_owned());
        self.state.lock().requests.push((method.clone(), path.clone()));
        let faults = Arc::clone(&self.faults.lock());
        let fault = faults(client, &method, &path);
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let apply = move || {
            let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
            self.respond(&method, &path, &query, &body)
        };
        // A request takes effect whether or not its sender still waits for the response.
        match fault {
            Fault::None => apply(),
            Fault::Late { stored, responded } => {
                let (sender, receiver) = tokio::sync::oneshot::channel();
                tokio::spawn(async move {
                    tokio::time::sleep(stored).await;
                    let response = apply();
                    tokio::time::sleep(responded.saturating_sub(stored)).await;
                    let _ = sender.send(response); // fails if the client no longer waits
                });
                receiver.await.unwrap()
            }
            Fault::StoredAndLost(stored) => {
                tokio::spawn(async move {
                    tokio::time::sleep(stored).await;
                    let _ = apply(); // the fault is that the response is lost
                });
                std::future::pending().await
            }
            Fault::Lost => std::future::pending().await,
            Fault::Refused(code) => error_response(code, "refused by the test"),
        }
    }

    fn respond(&self, method: &str, path: &str, query: &str, body: &Value) -> MockResponse {
        let hook = Arc::clone(&self.hook.lock());
        if let Some((code, content)) = hook(method, path, body) {
            return json_response(code, &content);
        }
        let target = parse_path(path);
        let parameter = |name: &str| {
            let pairs = query.split('&').filter_map(|p| p.split_once('='));
            let found = pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
            found.unwrap_or_default().replace("%2F", "/").replace("%3D", "=").replace("%2C", ",")
        };
        let namespace = target.namespace.clone().unwrap_or_default();
        let key = |name: &str| (target.plural.clone(), namespace.clone(), name.to_owned());
        let mut state = self.state.lock();
        match (method, target.name.as_deref()) {
            ("GET", None) if matches!(parameter("watch").as_str(), "true" | "1") => {
                let (sender, receiver) = mpsc::unbounded_channel();
                let from: u64 = parameter("resourceVersion").parse().unwrap_or(0);
                if state.changed.get(&target.plural).is_some_and(|last| *last > from) {
                    // There is no history of changes, so a client that missed one has to list again.
                    let expired = status(410, "too old resource version");
                    let _ = sender.send(json!({"type": "ERROR", "object": expired})); // cannot fail: the receiver exists
                    drop(sender);
                    return stream(receiver);
                }
                let selector = parameter("labelSelector");
                state.watchers.push(Watcher { plural: target.plural, namespace: target.namespace, selector, sender });
                stream(receiver)
            }
            ("GET", None) => {
                let selector = parameter("labelSelector");
                let in_scope = |k: &Key| {
                    k.0 == target.plural && target.namespace.as_ref().is_none_or(|namespace| k.1 == *namespace)
                };
                let fields = parameter("fieldSelector");
                // The only supported field selector is the name.
                let has_name = |k: &Key| fields.strip_prefix("metadata.name=").is_none_or(|name| k.2 == name);
                let found =
                    state.objects.iter().filter(|(k, o)| in_scope(k) && has_name(k) && matches_selector(&selector, o));
                let items: Vec<Value> = found.map(|(_, o)| o.clone()).collect();
                let version = state.version.to_string();
                let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": version}, "items": items});
                json_response(200, &list)
            }
            ("GET", Some(name)) => match state.objects.get(&key(name)) {
                Some(object) => json_response(200, object),
                None => error_response(404, "not found"),
            },
            // Subresources such as the token of a service account do not exist here.
            ("POST", Some(_)) => error_response(404, "not found"),
            ("POST", None) => {
                let mut object = body.clone();
                let name = match object["metadata"]["name"].as_str() {
                    Some(name) => name.to_owned(),
                    None => {
                        let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default();
                        format!("{prefix}{}", state.version)
                    }
                };
                if state.objects.contains_key(&key(&name)) {
                    return error_response(409, "already exists");
                }
                object["metadata"]["name"] = json!(name);
                if !namespace.is_empty() {
                    object["metadata"]["namespace"] = json!(namespace);
                }
                object["metadata"]["uid"] = json!(format!("{:032x}", state.version + 1));
                object["metadata"]["creationTimestamp"] =
                    json!(slipway_core::clock::rfc3339(slipway_core::clock::now_ms()));
                json_response(201, &state.store(key(&name), object))
            }
            ("PUT" | "PATCH", Some(name)) => {
                let Some(before) = state.objects.get(&key(name)).cloned() else {
                    if query.contains("fieldManager") && method == "PATCH" {
                        return json_response(201, &state.store(key(name), body.clone()));
                    }
                    return error_response(404, "not found");
                };
                let expected = &body["metadata"]["resourceVersion"];
                if expected.is_string() && *expected != before["metadata"]["resourceVersion"] {
                    return error_response(409, "the object has been modified");
                }
                let mut object = if method == "PUT" { body.clone() } else { before.clone() };
                if method == "PATCH" {
                    let mut patch = body.clone();
                    if target.subresource.as_deref() == Some("status") {
                        patch = json!({"status": patch["status"]});
                    }
                    merge(&mut object, &patch);
                }
                let metadata = &object["metadata"];
                let has_finalizers = metadata["finalizers"].as_array().is_some_and(|f| !f.is_empty());
                if metadata["deletionTimestamp"].is_string() && !has_finalizers {
                    state.delete(&key(name));
                    return json_response(200, &object);
                }
                json_response(200, &state.store(key(name), object))
            }
            ("DELETE", Some(name)) => {
                let Some(mut object) = state.objects.get(&key(name)).cloned() else {
                    return error_response(404, "not found");
                };
                if object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()) {
                    if !object["metadata"]["deletionTimestamp"].is_string() {
                        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                        state.store(key(name), object.clone());
                    }
                } else {
                    state.delete(&key(name));
                }
                json_response(200, &object)
            }
            _ => error_response(405, "the mock does not support this request"),
        }
    }

    /// Creates or replaces an object, as another client would.
    pub(crate) fn put(&self, plural: &str, object: Value) -> Value {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = (plural.to_owned(), text("namespace"), text("name"));
        self.state.lock().store(key, object)
    }

    /// Changes an object by a merge patch, as another client would.
    pub(crate) fn change(&self, plural: &str, namespace: &str, name: &str, patch: Value) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let mut state = self.state.lock();
        let mut object = state.objects.get(&key).cloned().unwrap();
        merge(&mut object, &patch);
        state.store(key, object);
    }

    /// Deletes an object immediately, even if it has finalizers.
    pub(crate) fn remove(&self, plural: &str, namespace: &str, name: &str) {
        self.state.lock().delete(&(plural.to_owned(), namespace.to_owned(), name.to_owned()));
    }

    pub(crate) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state.lock().objects.get(&(plural.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Names of all objects of a kind, in all namespaces.
    pub(crate) fn names(&self, plural: &str) -> Vec<String> {
        self.state.lock().objects.keys().filter(|k| k.0 == plural).map(|k| k.2.clone()).collect()
    }

    /// Number of requests so far with this method for this kind.
    pub(crate) fn count(&self, method: &str, plural: &str) -> usize {
        let state = self.state.lock();
        state.requests.iter().filter(|(m, path)| m == method && parse_path(path).plural == plural).count()
    }

    /// Method and path of every request so far.
    pub(crate) fn requests(&self) -> Vec<(String, String)> {
        self.state.lock().requests.clone()
    }

    /// Ends all watches, as a restarting API server does.
    pub(crate) fn break_watches(&self) {
        self.state.lock().watchers.clear();
    }
}

impl State {
    fn store(&mut self, key: Key, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let existed = self.objects.insert(key.clone(), object.clone()).is_some();
        self.notify(&key, if existed { "MODIFIED" } else { "ADDED" }, &object);
        object
    }

    /// Deletes an object and the objects that it owns.
    fn delete(&mut self, key: &Key) {
        let Some(mut object) = self.objects.remove(key) else { return };
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.notify(key, "DELETED", &object);
        let owner = object["metadata"]["uid"].clone();
        let owns = |o: &Value| {
            let owners = o["metadata"]["ownerReferences"].as_array();
            owner.is_string() && owners.into_iter().flatten().any(|r| r["uid"] == owner)
        };
        let owned: Vec<Key> = self.objects.iter().filter(|(_, o)| owns(o)).map(|(k, _)| k.clone()).collect();
        for key in owned {
            let Some(mut object) = self.objects.get(&key).cloned() else { continue };
            if object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()) {
                object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                self.store(key, object);
            } else {
                self.delete(&key);
            }
        }
    }

    /// Sends an event to the watchers of an object.
    fn notify(&mut self, key: &Key, kind: &str, object: &Value) {
        self.changed.insert(key.0.clone(), self.version);
        self.watchers.retain(|w| {
            let is_watched = w.plural == key.0
                && w.namespace.as_ref().is_none_or(|namespace| *namespace == key.1)
                && matches_selector(&w.selector, object);
            !is_watched || w.sender.send(json!({"type": kind, "object": object})).is_ok()
        });
    }
}

/// Applies a JSON merge patch (RFC 7386).
fn merge(object: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut object[key.as_str()], value);
        }
    }
}

/// The response to a watch: one event per line.
fn stream(receiver: mpsc::UnboundedReceiver<Value>) -> MockResponse {
    let lines = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let event = receiver.recv().await?;
        let line = Bytes::from(format!("{event}\n"));
        Some((Ok::<_, Infallible>(http_body::Frame::data(line)), receiver))
    });
    Response::new(StreamBody::new(lines.boxed()).boxed_unsync())
}

fn json_response(code: u16, value: &Value) -> MockResponse {
    let body = http_body_util::Full::new(Bytes::from(value.to_string()));
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn error_response(code: u16, message: &str) -> MockResponse {
    json_response(code, &status(code, message))
}

/// The body of an error response of an API server.
pub(crate) fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        422 => "Invalid",
        _ => "InternalError",
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code})
}
