//! The Kubernetes client: objects of any kind, as JSON, that are read, applied server-side, deleted and watched.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{DeleteParams, DynamicObject, EvictParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::events::{self, EventType, Recorder, Reporter};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Config};
use serde_json::Value;
use tokio::sync::watch;

use crate::KubeError;

/// A kind of object and where it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource<'a> {
    /// API group; empty for the core group.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Its name in manifests.
    pub kind: &'a str,
    /// Its name in URLs.
    pub plural: &'a str,
}

/// `v1 Node`.
pub(crate) const NODE: Resource<'static> = Resource { group: "", version: "v1", kind: "Node", plural: "nodes" };
/// `v1 Pod`.
pub(crate) const POD: Resource<'static> = Resource { group: "", version: "v1", kind: "Pod", plural: "pods" };

impl Resource<'_> {
    /// `group/version`, or the version alone in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    fn api_resource(&self) -> ApiResource {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(self.group, self.version, self.kind), self.plural)
    }
}

/// A cluster's API server.
#[derive(Clone)]
pub struct Api {
    client: Client,
    requests: Arc<AtomicU64>,
    recorder: Recorder,
    /// Tokens for node agents, kept for the next questions.
    pub(crate) reader_tokens: crate::nodes::ReaderTokens,
}

/// An event of a list that is followed by a watch.
#[derive(Debug)]
pub enum Change {
    /// A list begins: an [`Change::Is`] for every object follows, then [`Change::Complete`].
    Begin,
    /// The object exists; it is new, changed, or was listed.
    Is(Value),
    /// The object was deleted.
    Gone(Value),
    /// The list is complete: objects that were not in it do not exist any more.
    Complete,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

/// The API server refuses events with longer notes (`NoteLengthLimit` in the validation of `events.k8s.io`).
const MAX_EVENT_NOTE_BYTES: usize = 1024;
/// The longest that a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

impl Api {
    /// The cluster that `kubectl` would talk to: of `kubeconfig` and `context` where they are given, else the pod's own,
    /// `$KUBECONFIG`, `~/.kube/config`.
    ///
    /// # Errors
    /// [`KubeError::NoConfig`] when there is none.
    pub async fn connect(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Self, KubeError> {
        let refused = |e: kube::config::KubeconfigError| KubeError::NoConfig(e.to_string());
        let mut config = if kubeconfig.is_some() || context.is_some() {
            let file = match kubeconfig {
                Some(path) => Kubeconfig::read_from(path),
                None => Kubeconfig::read(),
            };
            let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(file.map_err(refused)?, &options).await.map_err(refused)?
        } else {
            Config::infer().await.map_err(|e| KubeError::NoConfig(e.to_string()))?
        };
        config.connect_timeout = Some(Duration::from_secs(5));
        let client = Client::try_from(config).map_err(KubeError::from)?;
        Ok(Self::of_client(client))
    }

    pub(crate) fn of_client(client: Client) -> Self {
        let recorder = Recorder::new(client.clone(), Reporter::from("slipway"));
        Self { client, requests: Arc::default(), recorder, reader_tokens: crate::nodes::ReaderTokens::default() }
    }

    /// Objects of a type in a namespace; requests go through [`Api::answered`].
    pub(crate) fn typed<K>(&self, namespace: &str) -> kube::Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        kube::Api::namespaced(self.client.clone(), namespace)
    }

    /// Objects of a type that lie in no namespace, likewise.
    pub(crate) fn typed_all<K: kube::Resource<DynamicType = ()>>(&self) -> kube::Api<K> {
        kube::Api::all(self.client.clone())
    }

    fn of(&self, resource: &Resource<'_>, namespace: Option<&str>) -> kube::Api<DynamicObject> {
        let about = resource.api_resource();
        match namespace {
            Some(namespace) => kube::Api::namespaced_with(self.client.clone(), namespace, &about),
            None => kube::Api::all_with(self.client.clone(), &about),
        }
    }

    /// How many requests were sent; watches do not count.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Sends a request, counts it, and bounds its time.
    pub(crate) async fn answered<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Result<T, KubeError> {
        self.requests.fetch_add(1, Relaxed);
        match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(answer) => answer.map_err(KubeError::from),
            Err(_) => Err(KubeError::Unreachable(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()))),
        }
    }

    /// An object; `None` when there is none of that name.
    ///
    /// # Errors
    /// The API server's.
    pub async fn get(
        &self,
        resource: &Resource<'_>,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Value>, KubeError> {
        let found = self.answered(self.of(resource, namespace).get_opt(name)).await?;
        found.map(value).transpose()
    }

    /// Objects that selectors choose, in pages of 500.
    ///
    /// # Errors
    /// The API server's.
    pub async fn list(
        &self,
        resource: &Resource<'_>,
        namespace: Option<&str>,
        fields: &str,
        labels: &str,
    ) -> Result<Vec<Value>, KubeError> {
        let api = self.of(resource, namespace);
        let mut parameters = ListParams::default().fields(fields).labels(labels).limit(500);
        let mut found = Vec::new();
        loop {
            let page = self.answered(api.list(&parameters)).await?;
            for object in page.items {
                found.push(value(object)?);
            }
            match page.metadata.continue_.filter(|c| !c.is_empty()) {
                Some(more) => parameters.continue_token = Some(more),
                None => return Ok(found),
            }
        }
    }

    /// What a path of the API server answers, as JSON; also of what it proxies.
    ///
    /// # Errors
    /// The API server's; [`KubeError::Invalid`] when the answer is no JSON.
    pub async fn read(&self, path: &str) -> Result<Value, KubeError> {
        self.request(http::Request::get(path), Vec::new()).await
    }

    /// What the API server, or what it proxies, answers to a request of any kind, as JSON.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) async fn request(&self, request: http::request::Builder, body: Vec<u8>) -> Result<Value, KubeError> {
        let request = request.body(body).map_err(|e| KubeError::Invalid(e.to_string()))?;
        self.answered(self.client.request(request)).await
    }

    /// Applies an object (server-side apply) as the field manager `manager`, which takes fields over from other managers. With `dry_run`
    /// nothing is stored, and the answer is what it would become.
    #[allow(clippy::too_many_arguments)] // each is a part of one request
    ///
    /// # Errors
    /// The API server's.
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
        let api = self.of(resource, namespace);
        let mut parameters = PatchParams::apply(manager).force();
        parameters.dry_run = dry_run;
        let patch = Patch::Apply(object);
        let applied = if status {
            self.answered(api.patch_status(name, &parameters, &patch)).await?
        } else {
            self.answered(api.patch(name, &parameters, &patch)).await?
        };
        value(applied)
    }

    /// Creates an object.
    ///
    /// # Errors
    /// The API server's; 409 when there is one of that name.
    pub async fn create(
        &self,
        resource: &Resource<'_>,
        namespace: Option<&str>,
        object: &Value,
    ) -> Result<Value, KubeError> {
        let object: DynamicObject =
            serde_json::from_value(object.clone()).map_err(|e| KubeError::Invalid(e.to_string()))?;
        value(self.answered(self.of(resource, namespace).create(&PostParams::default(), &object)).await?)
    }

    /// Changes an object, or its status (JSON merge patch, RFC 7386). A resource version in the patch makes it fail with 409 when
    /// somebody else was quicker.
    ///
    /// # Errors
    /// The API server's.
    pub async fn merge(
        &self,
        resource: &Resource<'_>,
        namespace: Option<&str>,
        name: &str,
        status: bool,
        patch: &Value,
    ) -> Result<Value, KubeError> {
        let api = self.of(resource, namespace);
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
        let changed = if status {
            self.answered(api.patch_status(name, &parameters, &patch)).await?
        } else {
            self.answered(api.patch(name, &parameters, &patch)).await?
        };
        value(changed)
    }

    /// The log of a pod with one container; with `follow` it goes on until the container ends.
    ///
    /// # Errors
    /// The API server's.
    pub async fn log(
        &self,
        namespace: &str,
        pod: &str,
        follow: bool,
        tail: Option<u64>,
    ) -> Result<impl futures_util::io::AsyncBufRead + Send + use<>, KubeError> {
        let api: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(self.client.clone(), namespace);
        let tail_lines = tail.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        let parameters = LogParams { follow, tail_lines, ..LogParams::default() };
        self.answered(api.log_stream(pod, &parameters)).await
    }

    /// All objects of a kind in all namespaces that a label selector chooses, and every change of them, without end. A watch that
    /// expired or broke is started again, with growing pauses.
    pub fn changes(&self, resource: &Resource<'_>, labels: &str) -> impl Stream<Item = Change> + Send + use<> {
        let config = watcher::Config::default().labels(labels).page_size(500);
        let stream = watcher::watcher(self.of(resource, None), config);
        kube::runtime::WatchStreamExt::backoff(stream, Pauses::default()).filter_map(|event| async {
            match event {
                Ok(Event::Init) => Some(Change::Begin),
                Ok(Event::Apply(object) | Event::InitApply(object)) => value(object).ok().map(Change::Is),
                Ok(Event::Delete(object)) => value(object).ok().map(Change::Gone),
                Ok(Event::InitDone) => Some(Change::Complete),
                Err(error) => {
                    tracing::debug!(%error, "watch");
                    None
                }
            }
        })
    }

    /// Deletes an object; no error when it is gone.
    ///
    /// # Errors
    /// The API server's.
    pub async fn delete(&self, resource: &Resource<'_>, namespace: Option<&str>, name: &str) -> Result<(), KubeError> {
        let api = self.of(resource, namespace);
        match self.answered(api.delete(name, &DeleteParams::background())).await {
            Ok(_) | Err(KubeError::Refused { code: 404, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Evicts a pod; false when a disruption budget does not allow it now.
    ///
    /// # Errors
    /// The API server's.
    pub async fn evict(&self, namespace: &str, pod: &str) -> Result<bool, KubeError> {
        let api: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(self.client.clone(), namespace);
        match self.answered(api.evict(pod, &EvictParams::default())).await {
            Ok(_) | Err(KubeError::Refused { code: 404, .. }) => Ok(true),
            Err(KubeError::Refused { code: 429, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Records what happened to an object (`events.k8s.io/v1 Event`), in the namespace `default` where the object has none. The same event
    /// again within six minutes is counted on the first one.
    ///
    /// # Errors
    /// The API server's.
    pub async fn event(&self, about: Value, warning: bool, reason: &str, message: &str) -> Result<(), KubeError> {
        let about: ObjectReference = serde_json::from_value(about).map_err(|e| KubeError::Invalid(e.to_string()))?;
        let event = events::Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(message[..message.floor_char_boundary(MAX_EVENT_NOTE_BYTES)].to_owned()),
            action: reason.to_owned(),
            secondary: None,
        };
        self.answered(self.recorder.publish(&event, &about)).await
    }

    /// The newest state of one object, for as long as a receiver lives; `None` until it is known and when it does not exist. A watch
    /// that expired or broke is started again, with growing pauses.
    pub fn watch(
        &self,
        resource: &Resource<'_>,
        namespace: Option<&str>,
        name: &str,
    ) -> watch::Receiver<Option<Value>> {
        let (sender, receiver) = watch::channel(None);
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let stream = watcher::watcher(self.of(resource, namespace), config);
        tokio::spawn(async move {
            let mut stream = std::pin::pin!(kube::runtime::WatchStreamExt::backoff(stream, Pauses::default()));
            let mut seen = false;
            loop {
                let event = tokio::select! {
                    event = stream.next() => event,
                    () = sender.closed() => return,
                };
                match event {
                    None => return,
                    Some(Err(error)) => tracing::debug!(%error, "watch"),
                    Some(Ok(Event::Apply(object) | Event::InitApply(object))) => {
                        seen = true;
                        if let Ok(object) = value(object) {
                            sender.send_replace(Some(object));
                        }
                    }
                    Some(Ok(Event::Init)) => seen = false,
                    Some(Ok(Event::Delete(_))) => {
                        sender.send_replace(None);
                    }
                    Some(Ok(Event::InitDone)) => {
                        // A list without the object: it was deleted while there was no watch.
                        if !seen {
                            sender.send_replace(None);
                        }
                    }
                }
            }
        });
        receiver
    }
}

/// Pauses before a watch is started again: from half a second to eight seconds, with a random half on top so that a thousand agents do
/// not come back at once. kube's own backoff grows to a minute, which is too long for a label that is set after an outage.
struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(Duration::from_millis(500))
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let chance = u32::from_str_radix(&slipway_core::ids::hex32()[..2], 16).unwrap_or(0);
        let pause = self.0 + self.0 * chance / 512;
        self.0 = (self.0 * 2).min(Duration::from_secs(8));
        Some(pause)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

fn value(object: DynamicObject) -> Result<Value, KubeError> {
    serde_json::to_value(object).map_err(|e| KubeError::Invalid(e.to_string()))
}
