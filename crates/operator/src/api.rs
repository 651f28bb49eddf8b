//! The Kubernetes client. It reads, applies (server-side apply), deletes and watches objects of any kind as JSON. Every request except
//! watches goes through `Api::send`, which counts it and bounds its time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{
    DeleteParams, DynamicObject, EvictParams, ListParams, LogParams, Patch, PatchParams, PostParams, Preconditions,
};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind, WatchEvent};
use kube::runtime::events::{self, EventType, Recorder, Reporter};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Config};
use serde_json::Value;
use slipway_core::clock::now_ms;
use slipway_exec::LogQuery;
use tokio::sync::watch;

use crate::KubeError;
use crate::reader_tokens::ReaderTokens;

/// A kind of object and its place in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource<'a> {
    /// API group; empty for the core group.
    pub group: &'a str,
    /// API version without the group: `v1`.
    pub version: &'a str,
    /// Name in manifests: `Pod`.
    pub kind: &'a str,
    /// Name in URLs: `pods`.
    pub plural: &'a str,
}

/// `v1 Node`.
pub(crate) const NODE: Resource<'static> = Resource { group: "", version: "v1", kind: "Node", plural: "nodes" };
/// `v1 Pod`.
pub(crate) const POD: Resource<'static> = Resource { group: "", version: "v1", kind: "Pod", plural: "pods" };

impl Resource<'static> {
    /// The resource as stores of objects know it. Only its names matter, because the API server has its schema.
    pub fn stored(&self) -> Arc<slipway_objects::Resource> {
        Arc::new(slipway_objects::Resource::named(self.group, self.version, self.kind, self.plural))
    }
}

impl Resource<'_> {
    /// The `apiVersion` of objects: `group/version`, or the version alone in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    fn api_resource(&self) -> ApiResource {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(self.group, self.version, self.kind), self.plural)
    }
}

/// A client of one cluster's API server; cheap to clone.
#[derive(Clone)]
pub struct Api {
    client: Client,
    requests: Arc<AtomicU64>,
    recorder: Recorder,
    /// Cached tokens for requests to node agents.
    pub(crate) reader_tokens: ReaderTokens,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

/// Maximum bytes of an event's note. The API server rejects longer notes (`NoteLengthLimit` in the validation of `events.k8s.io`).
const MAX_EVENT_NOTE_BYTES: usize = 1024;
/// Timeout of one request, without watches and log streams.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a forbidden request waits for the API server to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
const READY_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Fails for a name that would not be one segment of the path of a request.
pub(crate) fn check_name(name: &str) -> Result<(), KubeError> {
    if matches!(name, "" | "." | "..") || name.contains(['/', '?', '#', '%', '\\']) {
        return Err(KubeError::Invalid(format!("'{name}' cannot be the name of an object")));
    }
    Ok(())
}

impl Api {
    /// Connects to the cluster that `kubectl` would use: the one of `kubeconfig` and `context` if given, else the cluster of this pod,
    /// `$KUBECONFIG`, or `~/.kube/config`.
    ///
    /// # Errors
    /// [`KubeError::NoConfig`] when no cluster is configured or the configuration is invalid.
    pub async fn connect(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Self, KubeError> {
        let invalid = |e: kube::config::KubeconfigError| KubeError::NoConfig(e.to_string());
        let mut config = if kubeconfig.is_some() || context.is_some() {
            let file = match kubeconfig {
                Some(path) => Kubeconfig::read_from(path),
                None => Kubeconfig::read(),
            };
            let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(file.map_err(invalid)?, &options).await.map_err(invalid)?
        } else {
            Config::infer().await.map_err(|e| KubeError::NoConfig(e.to_string()))?
        };
        config.connect_timeout = Some(Duration::from_secs(5));
        let client = Client::try_from(config).map_err(KubeError::from)?;
        Ok(Self::from_client(client))
    }

    pub(crate) fn from_client(client: Client) -> Self {
        let recorder = Recorder::new(client.clone(), Reporter::from("slipway"));
        Self { client, requests: Arc::default(), recorder, reader_tokens: ReaderTokens::default() }
    }

    /// A typed client for one namespace. Send its requests through [`Api::send`].
    pub(crate) fn typed<K>(&self, namespace: &str) -> kube::Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        kube::Api::namespaced(self.client.clone(), namespace)
    }

    /// A typed client for cluster-scoped objects. Send its requests through [`Api::send`].
    pub(crate) fn typed_cluster_scoped<K: kube::Resource<DynamicType = ()>>(&self) -> kube::Api<K> {
        kube::Api::all(self.client.clone())
    }

    fn dynamic(&self, resource: &Resource<'_>, namespace: Option<&str>) -> kube::Api<DynamicObject> {
        let api_resource = resource.api_resource();
        match namespace {
            Some(namespace) => kube::Api::namespaced_with(self.client.clone(), namespace, &api_resource),
            None => kube::Api::all_with(self.client.clone(), &api_resource),
        }
    }

    /// Number of requests sent so far, without watches.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Sends a request, counts it, and fails if there is no response within [`REQUEST_TIMEOUT`].
    pub(crate) async fn send<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Result<T, KubeError> {
        self.requests.fetch_add(1, Relaxed);
        match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(response) => response.map_err(KubeError::from),
            Err(_) => Err(KubeError::Unreachable(format!("no response within {} s", REQUEST_TIMEOUT.as_secs()))),
        }
    }

    /// Sends a request, and once more if it is forbidden before the API server is ready: one that has just started does not know all roles
    /// yet (<https://github.com/kubernetes/kubernetes/issues/121635>).
    ///
    /// # Errors
    /// An error of the API server; [`KubeError::Unreachable`] when the request is forbidden and the API server does not become ready.
    pub(crate) async fn when_ready<T, F>(&self, request: impl Fn() -> F) -> Result<T, KubeError>
    where
        F: Future<Output = Result<T, KubeError>>,
    {
        match request().await {
            Err(KubeError::Refused { code: 403, .. }) => {
                self.wait_until_ready().await?;
                request().await
            }
            other => other,
        }
    }

    /// Waits until the API server is ready, for at most [`READY_TIMEOUT`]. If it does not tell this account, it is taken to be ready then.
    async fn wait_until_ready(&self) -> Result<(), KubeError> {
        let started = tokio::time::Instant::now();
        loop {
            let request =
                http::Request::get("/readyz").body(Vec::new()).map_err(|e| KubeError::Invalid(e.to_string()))?;
            let answer = self.send(self.client.request_text(request)).await;
            let is_late = started.elapsed() >= READY_TIMEOUT;
            match answer {
                Ok(_) => return Ok(()),
                Err(KubeError::Refused { code: 401 | 403 | 404, .. }) if is_late => return Ok(()),
                Err(error) if is_late => {
                    return Err(KubeError::Unreachable(format!("the API server is not ready: {error}")));
                }
                Err(_) => tokio::time::sleep(READY_POLL_INTERVAL).await,
            }
        }
    }

    /// Sends a request, counts it, and returns the response whatever its status. The caller bounds the time until the response is read.
    pub(crate) async fn respond(
        &self,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, slipway_objects::Error> {
        self.requests.fetch_add(1, Relaxed);
        let response = self.client.send(request).await;
        response.map_err(|error| KubeError::from(error).into())
    }

    /// Sends the request of a watch, and fails if the response does not begin within [`REQUEST_TIMEOUT`].
    pub(crate) async fn follow(
        &self,
        request: http::Request<Vec<u8>>,
    ) -> kube::Result<impl Stream<Item = kube::Result<WatchEvent<Value>>> + Send + use<>> {
        match tokio::time::timeout(REQUEST_TIMEOUT, self.client.request_events(request)).await {
            Ok(events) => events,
            Err(elapsed) => Err(kube::Error::Service(elapsed.into())),
        }
    }

    /// Reads an object; `None` if it does not exist.
    ///
    /// # Errors
    /// An error of the API server.
    pub async fn get(
        &self,
        resource: &Resource<'_>,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Value>, KubeError> {
        check_name(name)?;
        let found = self.send(self.dynamic(resource, namespace).get_opt(name)).await?;
        found.map(to_json).transpose()
    }

    /// Lists the objects that match the field and label selectors, in pages of 500.
    ///
    /// # Errors
    /// An error of the API server.
    pub async fn list(
        &self,
        resource: &Resource<'_>,
        namespace: Option<&str>,
        fields: &str,
        labels: &str,
    ) -> Result<Vec<Value>, KubeError> {
        let api = self.dynamic(resource, namespace);
        let mut parameters = ListParams::default().fields(fields).labels(labels).limit(500);
        let mut found = Vec::new();
        loop {
            let page = self.send(api.list(&parameters)).await?;
            for object in page.items {
                found.push(to_json(object)?);
            }
            match page.metadata.continue_.filter(|c| !c.is_empty()) {
                Some(more) => parameters.continue_token = Some(more),
                None => return Ok(found),
            }
        }
    }

    /// Sends a GET request to a path of the API server, which may be a proxy path, and returns the response as JSON.
    ///
    /// # Errors
    /// An error of the API server; [`KubeError::Invalid`] when the response is not JSON.
    pub async fn read(&self, path: &str) -> Result<Value, KubeError> {
        self.request(http::Request::get(path), Vec::new()).await
    }

    /// Sends any request to the API server or to a proxy path, and returns the response as JSON.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) async fn request(&self, request: http::request::Builder, body: Vec<u8>) -> Result<Value, KubeError> {
        let request = request.body(body).map_err(|e| KubeError::Invalid(e.to_string()))?;
        self.send(self.client.request(request)).await
    }

    /// Applies an object (server-side apply) as the field manager `manager`, which takes over conflicting fields from other managers. With
    /// `status` the status subresource is applied. With `dry_run` nothing is stored, and the result is the object as it would become.
    #[allow(clippy::too_many_arguments)] // all are parts of one request
    ///
    /// # Errors
    /// An error of the API server.
    pub async fn apply(
        &self,
        resource: &Resource<'_>,
        namespace: Option<&str>,
        name: &str,
        manager: &str,
        status: bool,
        object: &Value,
        dry_run: bool,
    ) -> Result<Value, KubeError> {
        let api = self.dynamic(resource, namespace);
        let mut parameters = PatchParams::apply(manager).force();
        parameters.dry_run = dry_run;
        let patch = Patch::Apply(object);
        let applied = if status {
            self.send(api.patch_status(name, &parameters, &patch)).await?
        } else {
            self.send(api.patch(name, &parameters, &patch)).await?
        };
        to_json(applied)
    }

    /// Creates an object.
    ///
    /// # Errors
    /// An error of the API server; 409 when an object of that name exists.
    pub async fn create(
        &self,
        resource: &Resource<'_>,
        namespace: Option<&str>,
        object: &Value,
    ) -> Result<Value, KubeError> {
        let object: DynamicObject =
            serde_json::from_value(object.clone()).map_err(|e| KubeError::Invalid(e.to_string()))?;
        to_json(self.send(self.dynamic(resource, namespace).create(&PostParams::default(), &object)).await?)
    }

    /// Changes an object, or with `status` its status (JSON merge patch, RFC 7386). With a resource version in the patch, the request fails
    /// with 409 if another client has changed the object since.
    ///
    /// # Errors
    /// An error of the API server.
    pub async fn merge(
        &self,
        resource: &Resource<'_>,
        namespace: Option<&str>,
        name: &str,
        status: bool,
        patch: &Value,
    ) -> Result<Value, KubeError> {
        let api = self.dynamic(resource, namespace);
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
        let changed = if status {
            self.send(api.patch_status(name, &parameters, &patch)).await?
        } else {
            self.send(api.patch(name, &parameters, &patch)).await?
        };
        to_json(changed)
    }

    /// Streams the log of a pod with one container, as the query selects it; its attempt does not matter.
    ///
    /// # Errors
    /// An error of the API server.
    pub async fn log(
        &self,
        namespace: &str,
        pod: &str,
        query: LogQuery,
    ) -> Result<impl futures_util::io::AsyncBufRead + Send + use<>, KubeError> {
        let api: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(self.client.clone(), namespace);
        let parameters = LogParams {
            follow: query.follow,
            tail_lines: query.tail.map(|lines| i64::try_from(lines).unwrap_or(i64::MAX)),
            // The API server requires a positive number.
            since_seconds: query.since.map(|since| now_ms().saturating_sub(since).max(1).saturating_add(999) / 1000),
            timestamps: query.timestamps,
            ..LogParams::default()
        };
        self.send(api.log_stream(pod, &parameters)).await
    }

    /// Deletes an object. Does nothing if it does not exist.
    ///
    /// # Errors
    /// An error of the API server.
    pub async fn delete(&self, resource: &Resource<'_>, namespace: Option<&str>, name: &str) -> Result<(), KubeError> {
        self.delete_with(resource, namespace, name, DeleteParams::background()).await
    }

    /// Deletes the object with this UID, and not another one that has got its name since. Does nothing if it does not exist.
    ///
    /// # Errors
    /// An error of the API server: 409 if it is another one.
    pub async fn delete_exactly(
        &self,
        resource: &Resource<'_>,
        namespace: Option<&str>,
        name: &str,
        uid: &str,
    ) -> Result<(), KubeError> {
        let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        let parameters = DeleteParams { preconditions, ..DeleteParams::background() };
        self.delete_with(resource, namespace, name, parameters).await
    }

    async fn delete_with(
        &self,
        resource: &Resource<'_>,
        namespace: Option<&str>,
        name: &str,
        parameters: DeleteParams,
    ) -> Result<(), KubeError> {
        check_name(name)?;
        let api = self.dynamic(resource, namespace);
        match self.send(api.delete(name, &parameters)).await {
            Ok(_) | Err(KubeError::Refused { code: 404, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Evicts a pod. Returns false if a disruption budget does not allow it now.
    ///
    /// # Errors
    /// An error of the API server.
    pub async fn evict(&self, namespace: &str, pod: &str) -> Result<bool, KubeError> {
        let api: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(self.client.clone(), namespace);
        match self.send(api.evict(pod, &EvictParams::default())).await {
            Ok(_) | Err(KubeError::Refused { code: 404, .. }) => Ok(true),
            Err(KubeError::Refused { code: 429, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Records an event about an object (`events.k8s.io/v1 Event`), in the namespace `default` for cluster-scoped objects. A repetition
    /// within six minutes increases the count of the first event.
    ///
    /// # Errors
    /// An error of the API server.
    pub async fn event(&self, about: Value, warning: bool, reason: &str, message: &str) -> Result<(), KubeError> {
        let about: ObjectReference = serde_json::from_value(about).map_err(|e| KubeError::Invalid(e.to_string()))?;
        let event = events::Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(message[..message.floor_char_boundary(MAX_EVENT_NOTE_BYTES)].to_owned()),
            action: reason.to_owned(),
            secondary: None,
        };
        self.send(self.recorder.publish(&event, &about)).await
    }

    /// Watches one object as long as a receiver exists. The value is `None` until the object was read, and when it does not exist. A watch
    /// that expired or broke is restarted with backoff.
    pub fn watch(
        &self,
        resource: &Resource<'_>,
        namespace: Option<&str>,
        name: &str,
    ) -> watch::Receiver<Option<Value>> {
        let (sender, receiver) = watch::channel(None);
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let stream = watcher::watcher(self.dynamic(resource, namespace), config);
        tokio::spawn(async move {
            let mut stream = std::pin::pin!(kube::runtime::WatchStreamExt::backoff(stream, WatchBackoff::default()));
            let mut listed = false;
            loop {
                let event = tokio::select! {
                    event = stream.next() => event,
                    () = sender.closed() => return,
                };
                match event {
                    None => return,
                    Some(Err(error)) => tracing::debug!(%error, "watch failed; restarting it"),
                    Some(Ok(Event::Apply(object) | Event::InitApply(object))) => {
                        listed = true;
                        if let Ok(object) = to_json(object) {
                            sender.send_replace(Some(object));
                        }
                    }
                    Some(Ok(Event::Init)) => listed = false,
                    Some(Ok(Event::Delete(_))) => {
                        sender.send_replace(None);
                    }
                    Some(Ok(Event::InitDone)) => {
                        // The list does not contain the object: it was deleted while no watch was active.
                        if !listed {
                            sender.send_replace(None);
                        }
                    }
                }
            }
        });
        receiver
    }
}

/// Backoff before a watch is restarted: half a second to eight seconds, plus up to half of that at random, so that a thousand agents do
/// not reconnect at once. The default backoff of kube grows to a minute, which delays changes too long after an outage.
pub(crate) struct WatchBackoff(Duration);

impl Default for WatchBackoff {
    fn default() -> Self {
        Self(Duration::from_millis(500))
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let jitter = u32::from_str_radix(&slipway_core::ids::hex32()[..2], 16).unwrap_or(0);
        let delay = self.0 + self.0 * jitter / 512;
        self.0 = (self.0 * 2).min(Duration::from_secs(8));
        Some(delay)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// The resource version of an object. Resource versions increase and may be compared (KEP-5504, from Kubernetes 1.35).
pub(crate) fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Namespace (empty for cluster-scoped objects) and name of an object.
pub(crate) fn key_of(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn to_json(object: DynamicObject) -> Result<Value, KubeError> {
    serde_json::to_value(object).map_err(|e| KubeError::Invalid(e.to_string()))
}
