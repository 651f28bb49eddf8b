//! The controller: reconciles runs with their pods. It is level-triggered: each action depends on the cached state, not on the event that
//! queued the run. What is to be done is decided by [`reconcile`](super::reconcile); here it is done.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use slipway_core::clock::now_ms;
use slipway_exec::lifecycle::{self, Observation};
use slipway_exec::{QueueSystem, RunStatus, TokenRequest, Tracked, Tracker};
use slipway_objects::controller::{self, ControlLoop, Source};
use slipway_objects::patch::Patch;
use slipway_objects::selector::LabelSelector;
use slipway_objects::store::{DeleteOptions, ObjectStore, Part, Propagation, Selection, WriteOptions};
use slipway_objects::{Error, Object, Resource};
use tokio::sync::mpsc;

use super::data::PodData;
use super::known::{Cache, Run};
use super::pod::{self, AttemptSecret, Pod};
use super::queues::{self, Queues, Unplaceable};
use super::reconcile::{Action, Observed, Rejection, Usage, needs_usage, reconcile};
use super::{Key, RUN, Settings, usage};
use crate::api::POD;
use crate::names::{self, RUN_LABEL};
use crate::{Api, ApiServer, KubeError};

/// How the loop of the controller works.
const LOOP: controller::Settings =
    controller::Settings { name: "the run controller", workers: 16, resync_interval: Duration::from_secs(3600) };
/// Maximum number of queued events; further ones are dropped.
const MAX_QUEUED_EVENTS: usize = 1000;
/// Maximum time for which a pod may wait for capacity, in milliseconds. Added to the lifetime of its token.
const MAX_SCHEDULING_WAIT_MS: i64 = 7 * 24 * 3_600_000;
/// How long a secret is reused while creating its pod is retried, for instance because of a quota, in milliseconds. Added to the lifetime
/// of its token. A new secret for each retry would fill the namespace; without this limit its token could expire before the pod starts.
const SECRET_REUSE_MS: i64 = 24 * 3_600_000;
const SECRET: crate::Resource<'static> =
    crate::Resource { group: "", version: "v1", kind: "Secret", plural: "secrets" };
/// Message of the event for a pod that Kueue does not manage.
const QUEUE_IGNORED: &str = "Kueue does not manage the pods of this namespace, so the run starts without waiting in its queue; enable the \
     integration \"pod\" and the namespace in Kueue's configuration";

/// The resources that the controller writes.
struct Kinds {
    runs: Arc<Resource>,
    pods: Arc<Resource>,
    pod_groups: Arc<Resource>,
    secrets: Arc<Resource>,
}

/// Reconciles all runs of a cluster while [`Controller::work`] is polled.
pub(super) struct Controller {
    store: ApiServer,
    kinds: Kinds,
    settings: Settings,
    tracker: Arc<dyn Tracker>,
    cache: Cache,
    control_loop: ControlLoop<Key>,
    agents: usage::Agents,
    queues: Queues,
    events: mpsc::Sender<Event>,
    /// Secrets whose pods are not created yet, keyed by run.
    secrets: Mutex<HashMap<Key, UnusedSecret>>,
}

/// The secret of an attempt whose pod is not created yet.
#[derive(Clone)]
struct UnusedSecret {
    run_uid: String,
    attempt: u32,
    /// In milliseconds since the Unix epoch.
    created_at: i64,
    secret: AttemptSecret,
}

/// An event about a run, to be sent to the API server.
struct Event {
    /// Reference to the run (`ObjectReference`).
    about: Value,
    warning: bool,
    reason: String,
    message: String,
}

impl Controller {
    pub(super) fn new(api: Api, settings: Settings, tracker: Arc<dyn Tracker>) -> Arc<Self> {
        let (events, mut queued) = mpsc::channel::<Event>(MAX_QUEUED_EVENTS);
        let event_api = api.clone();
        tokio::spawn(async move {
            while let Some(event) = queued.recv().await {
                let Event { about, warning, reason, message } = event;
                if let Err(error) = event_api.event(about, warning, &reason, &message).await {
                    tracing::debug!(%error, "cannot record an event");
                }
            }
        });
        let agents = usage::Agents::new(api.clone(), settings.namespace.clone());
        let queues = Queues::new(api.clone(), settings.default_queues.clone(), settings.retry_delay);
        let kinds = Kinds {
            runs: RUN.stored(),
            pods: POD.stored(),
            pod_groups: queues::VOLCANO_POD_GROUP.stored(),
            secrets: SECRET.stored(),
        };
        Arc::new(Self {
            store: ApiServer::new(api),
            kinds,
            agents,
            queues,
            settings,
            tracker,
            cache: Cache::default(),
            control_loop: ControlLoop::new(LOOP),
            events,
            secrets: Mutex::default(),
        })
    }

    /// Number of cached runs, of cached pods, of ready keys and of delayed keys.
    pub(super) fn sizes(&self) -> [usize; 4] {
        let ((runs, pods), (ready, delayed)) = (self.cache.size(), self.control_loop.queue().depth());
        [runs, pods, ready, delayed]
    }

    /// Number of successful and of failed reconciliations.
    pub(super) fn attempts(&self) -> (u64, u64) {
        self.control_loop.attempts()
    }

    /// The work of the leader: follows runs and pods and reconciles changed runs, until this future is dropped. Were runs reconciled before
    /// both lists are complete, every run would look podless and be restarted.
    pub(super) async fn work(self: Arc<Self>) {
        let queue = self.control_loop.queue();
        let (mut listed_runs, mut listed_pods) = (HashSet::new(), HashSet::new());
        let of_runs = Selection { labels: LabelSelector::having(RUN_LABEL), ..Selection::default() };
        let runs = Source::new(&self.store, &self.kinds.runs, Selection::default(), |change| {
            self.cache.apply_run(change, &mut listed_runs, queue);
        });
        let pods = Source::new(&self.store, &self.kinds.pods, of_runs, |change| {
            self.cache.apply_pod(change, &mut listed_pods, queue);
        });
        self.control_loop.run(&*self, vec![runs, pods]).await;
    }

    /// Replaces the observation of a pod that waits in a queue by what its system publishes about it.
    async fn explain_queue(&self, pod: &mut Pod) {
        let (Observation::Waiting { .. }, Some(queue), false) = (&pod.observation, &mut pod.queue, pod.deleting) else {
            return;
        };
        if let Some(observation) = self.queues.explain(&pod.namespace, queue).await {
            pod.observation = observation;
        }
    }

    /// Reads the GPU usage of a run, as far as the next step needs it.
    async fn usage(&self, key: &Key, observed: &Observed<'_>) -> Option<Usage> {
        match needs_usage(observed, now_ms())? {
            (status, true) => Some(self.agents.usage(key, &status).await),
            (status, false) => (!self.agents.observed_any(&status).await).then_some(Usage::Unobserved),
        }
    }

    /// Observes a run and carries out what is to be done, until the pod of an attempt is rejected. Returns why it was.
    async fn step(
        &self,
        key: &Key,
        run: Option<&Run>,
        rejection: Option<&Rejection>,
    ) -> Result<Option<Rejection>, KubeError> {
        let mut pods = self.cache.get(key).1;
        let is_own = |pod: &&mut Pod| run.is_some_and(|run| run.submitted.manifest.metadata.uid == pod.run_uid);
        if let Some(newest) = pods.iter_mut().rfind(is_own) {
            self.explain_queue(newest).await;
        }
        let mut observed = Observed { run, pods: &pods, rejection, usage: None };
        let usage = self.usage(key, &observed).await;
        observed.usage = usage.as_ref();
        for action in reconcile(&observed, self.settings.retry_delay, now_ms()) {
            let rejection = self.act(key, run, action).await?;
            if rejection.is_some() {
                return Ok(rejection);
            }
        }
        Ok(None)
    }

    /// Carries out an action. Returns why the pod of an attempt was rejected, if it was.
    async fn act(&self, key: &Key, run: Option<&Run>, action: Action) -> Result<Option<Rejection>, KubeError> {
        match (action, run) {
            (Action::Start { number, limit, data }, Some(run)) => {
                return Ok(self.start(run, number, limit, *data).await?.err());
            }
            (Action::DeletePod(name), _) => self.delete(&self.kinds.pods, &key.0, &name).await?,
            (Action::ReleasePod(pod), _) => self.release(key, &pod).await?,
            (Action::BeginTracking(number), Some(run)) => self.begin_tracking(run, number).await?,
            (Action::EndTracking(run_id, status), _) => {
                self.tracker.end(&key.0, &run_id, &status).await.map_err(KubeError::Invalid)?;
            }
            (Action::SetStatus(status), Some(run)) => self.write_status(run, &status).await?,
            (Action::Delete, Some(_)) => self.delete(&self.kinds.runs, &key.0, &key.1).await?,
            (Action::RequeueAt(at), _) => {
                let delay = u64::try_from(at - now_ms()).unwrap_or(0);
                self.control_loop.queue().add_after(key.clone(), Duration::from_millis(delay));
            }
            // The other actions are about a run that exists.
            (_, None) => {}
        }
        Ok(None)
    }

    /// Deletes an object in the background. Does nothing if it does not exist.
    async fn delete(&self, resource: &Resource, namespace: &str, name: &str) -> Result<(), KubeError> {
        let options = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        match self.store.delete(resource, namespace, name, &options).await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Creates an object in the form of JSON.
    async fn create(&self, resource: &Resource, namespace: &str, object: Value) -> Result<Value, KubeError> {
        let object: Object = serde_json::from_value(object).map_err(|e| KubeError::Invalid(e.to_string()))?;
        let created = self.store.create(resource, namespace, object, &WriteOptions::default()).await?;
        Ok(created.object.to_value())
    }

    /// Changes a part of an object by a JSON merge patch.
    async fn merge(
        &self,
        resource: &Resource,
        key: (&str, &str),
        part: Part,
        patch: Value,
    ) -> Result<Value, KubeError> {
        let options = WriteOptions { part, ..WriteOptions::default() };
        let changed = self.store.patch(resource, key.0, key.1, &Patch::Merge(patch), &options).await?;
        Ok(changed.object.to_value())
    }

    /// Creates the pod of an attempt. The inner error is the reason why the pod was rejected.
    async fn start(
        &self,
        run: &Run,
        number: u32,
        limit: Option<i64>,
        data: PodData,
    ) -> Result<Result<(), Rejection>, KubeError> {
        let submitted = &run.submitted;
        let metadata = &submitted.manifest.metadata;
        let placement = match self.queues.placement(&submitted.manifest).await? {
            Ok(placement) => placement,
            Err(Unplaceable::ForNow(reason, message)) => return Ok(Err(Rejection::Temporary(reason.into(), message))),
            Err(Unplaceable::Invalid(message)) => return Ok(Err(Rejection::invalid(message))),
        };
        self.begin_tracking(run, number).await?;
        let secret = match self.secret(run, number, limit).await {
            Ok(secret) => secret,
            Err(KubeError::Refused { code: 403, message }) => {
                return Ok(Err(self.classify_forbidden(&metadata.namespace, message)));
            }
            Err(error) => return Err(error),
        };
        // An attempt has one pod today. The group and its creation do not depend on the number of pods.
        let name = pod::name(&metadata.name, number);
        let mut objects = [pod::object(submitted, number, limit, &secret, data, &self.settings)];
        match placement.apply(&pod::gang(metadata, number, &name), &mut objects) {
            Ok(None) => {}
            Ok(Some(group)) => {
                if let Err(rejection) = self.create_group(&metadata.namespace, group).await? {
                    return Ok(Err(rejection));
                }
            }
            Err(message) => return Ok(Err(Rejection::invalid(message))),
        }
        let [object] = objects;
        match self.create(&self.kinds.pods, &metadata.namespace, object).await {
            Ok(created) => {
                self.secrets.lock().remove(&run.key());
                if let Some(pod) = Pod::from_object(&created) {
                    self.emit_event(run, false, "Created", &format!("pod {}", pod.name));
                    self.cache.put_pod(pod);
                }
                if placement.system() == Some(QueueSystem::Kueue) && !queues::is_managed(&created) {
                    self.emit_event(run, true, "QueueIgnored", QUEUE_IGNORED);
                }
                Ok(Ok(()))
            }
            Err(KubeError::Refused { code: 409, .. }) => {
                let found = match self.store.get(&self.kinds.pods, &metadata.namespace, &name).await {
                    Ok(found) => Pod::from_object(&found.to_value()),
                    Err(Error::NotFound { .. }) => None,
                    Err(error) => return Err(error.into()),
                };
                match found {
                    // The pod was created before, but the watch has not delivered it yet.
                    Some(pod) if pod.run_uid == metadata.uid => {
                        self.cache.put_pod(pod);
                        Ok(Ok(()))
                    }
                    _ => {
                        let message = format!("there is already a pod {name} that does not belong to this run");
                        Ok(Err(Rejection::Temporary("NameTaken".into(), message)))
                    }
                }
            }
            Err(KubeError::Refused { code: 403, message }) => {
                Ok(Err(self.classify_forbidden(&metadata.namespace, message)))
            }
            Err(KubeError::Refused { code: 400 | 422, message }) => Ok(Err(Rejection::invalid(message))),
            Err(error) => Err(error),
        }
    }

    /// Creates the pod group of an attempt before its pods. The group exists already if creating the pod was rejected before.
    async fn create_group(&self, namespace: &str, group: Value) -> Result<Result<(), Rejection>, KubeError> {
        match self.create(&self.kinds.pod_groups, namespace, group).await {
            Ok(_) | Err(KubeError::Refused { code: 409, .. }) => Ok(Ok(())),
            Err(KubeError::Refused { code: 403, message }) => Ok(Err(self.classify_forbidden(namespace, message))),
            Err(KubeError::Refused { code: 400 | 422, message }) => Ok(Err(Rejection::invalid(message))),
            Err(error) => Err(error),
        }
    }

    /// Creates the tracked run or records its new attempt.
    async fn begin_tracking(&self, run: &Run, attempt: u32) -> Result<(), KubeError> {
        let mut submitted = run.submitted.clone();
        submitted.status.data = slipway_exec::data::pinned(&submitted.manifest.spec.data);
        let tracked = Tracked::new(&submitted, attempt);
        self.tracker.begin(tracked).await.map_err(KubeError::Invalid)
    }

    /// The secret with the token of an attempt: a recent one whose pod is not created yet, or a new one. If the controller stops before it
    /// creates the pod, the unused secret is deleted with the run.
    async fn secret(&self, run: &Run, attempt: u32, limit: Option<i64>) -> Result<AttemptSecret, KubeError> {
        let (manifest, now) = (&run.submitted.manifest, now_ms());
        let metadata = &manifest.metadata;
        let unused = self.secrets.lock().get(&run.key()).cloned();
        let is_reusable = |s: &UnusedSecret| {
            s.run_uid == metadata.uid && s.attempt == attempt && now.saturating_sub(s.created_at) < SECRET_REUSE_MS
        };
        if let Some(unused) = unused.filter(is_reusable) {
            return Ok(unused.secret);
        }
        let ca = self.certificates().await?;
        let mut request = TokenRequest::new(manifest, attempt, limit, now);
        request.expires_at = request.expires_at.saturating_add(MAX_SCHEDULING_WAIT_MS + SECRET_REUSE_MS);
        let token = (self.settings.token)(request).await.map_err(KubeError::Invalid)?;
        let secret = AttemptSecret { name: pod::secret_name(metadata, attempt), has_ca: ca.is_some() };
        let object = pod::secret(metadata, attempt, &secret.name, &token, ca.as_deref(), &self.settings);
        // An existing secret of this name was created by another client. Then reconciling fails, and the retry uses another name.
        self.create(&self.kinds.secrets, &metadata.namespace, object).await?;
        let unused = UnusedSecret { run_uid: metadata.uid.clone(), attempt, created_at: now, secret: secret.clone() };
        self.secrets.lock().insert(run.key(), unused);
        Ok(secret)
    }

    /// The certificates with which runs verify the control plane; `None` if the certificates of the images suffice.
    async fn certificates(&self) -> Result<Option<String>, KubeError> {
        let Some(path) = &self.settings.ca_file else { return Ok(None) };
        match tokio::fs::read_to_string(path).await {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(KubeError::Invalid(format!("cannot read the certificates for runs: {}: {error}", path.display())))
            }
        }
    }

    /// The reason for a response 403 to a request of an attempt, with the remedy.
    fn classify_forbidden(&self, namespace: &str, message: String) -> Rejection {
        if message.contains("exceeded quota") {
            return Rejection::Temporary("QuotaExceeded".into(), message);
        }
        // The wording of RBAC. Other rejections, such as by pod security, do not mean that the namespace is not enabled.
        if message.contains("cannot create resource") {
            let command = names::enable_namespace(&self.settings.namespace, namespace);
            let message = format!("namespace {namespace} is not enabled for runs; this enables it: {command}");
            return Rejection::Temporary("NamespaceNotEnabled".into(), message);
        }
        Rejection::Temporary("Forbidden".into(), message)
    }

    /// Writes the status, and emits events about the changes. Fails with 409 if another client wrote since.
    async fn write_status(&self, run: &Run, status: &RunStatus) -> Result<(), KubeError> {
        let (before, metadata) = (&run.submitted.status, &run.submitted.manifest.metadata);
        let patch =
            json!({"metadata": {"resourceVersion": run.version.to_string()}, "status": patch_of(before, status)});
        let key = (metadata.namespace.as_str(), metadata.name.as_str());
        let written = match self.merge(&self.kinds.runs, key, Part::Status, patch).await {
            // The run was deleted meanwhile; the watch will deliver the deletion.
            Err(KubeError::Refused { code: 404, .. }) => return Ok(()),
            other => other?,
        };
        if let Ok(run) = Run::from_object(&written) {
            self.cache.put_run(run);
        }
        if let Some(is_warning) = lifecycle::event_of(before, status) {
            self.emit_event(run, is_warning, &status.reason, &status.message);
        }
        Ok(())
    }

    /// Removes slipway's finalizer from a pod, so that it can be deleted.
    async fn release(&self, key: &Key, pod: &Pod) -> Result<(), KubeError> {
        // A merge patch replaces the whole list. The resource version makes it fail if another client has added a finalizer since.
        let patch =
            json!({"metadata": {"finalizers": pod.other_finalizers, "resourceVersion": pod.version.to_string()}});
        match self.merge(&self.kinds.pods, (&key.0, &pod.name), Part::Main, patch).await {
            Ok(changed) => {
                match Pod::from_object(&changed) {
                    Some(pod) if !pod.deleting => self.cache.put_pod(pod),
                    _ => self.cache.remove_pod(key, &pod.name),
                }
                Ok(())
            }
            Err(KubeError::Refused { code: 404, .. }) => {
                self.cache.remove_pod(key, &pod.name);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Queues an event about a run.
    fn emit_event(&self, run: &Run, warning: bool, reason: &str, message: &str) {
        let metadata = &run.submitted.manifest.metadata;
        let about = json!({"apiVersion": "slipway.dev/v1", "kind": "Run", "name": metadata.name,
            "namespace": metadata.namespace, "uid": metadata.uid, "resourceVersion": run.version.to_string()});
        let event = Event { about, warning, reason: reason.to_owned(), message: message.to_owned() };
        let _ = self.events.try_send(event); // best effort: fails if too many events are queued
    }
}

impl controller::Controller for Controller {
    type Key = Key;
    type Error = KubeError;

    /// Moves one run and its pods one step towards the desired state.
    async fn reconcile(&self, key: &Key) -> Result<(), KubeError> {
        if self.cache.is_unreadable(key) {
            return Ok(());
        }
        let run = self.cache.get(key).0;
        if run.is_none() {
            self.secrets.lock().remove(key);
        }
        let mut rejection = None;
        loop {
            rejection = self.step(key, run.as_ref(), rejection.as_ref()).await?;
            // A rejected pod is an observation, too.
            if rejection.is_none() {
                return Ok(());
            }
        }
    }

    async fn all(&self) -> Vec<Key> {
        self.cache.keys()
    }

    fn is_expected(&self, error: &KubeError) -> bool {
        // Another client wrote first, and the watch delivers the new version.
        matches!(error, KubeError::Refused { code: 409, .. })
    }
}

/// A JSON merge patch (RFC 7386) from one status to the next: removed fields are null, also those of objects in fields.
fn patch_of(before: &RunStatus, after: &RunStatus) -> Value {
    let mut patch = json!(after);
    add_removed_fields(&json!(before), &mut patch);
    patch
}

fn add_removed_fields(before: &Value, after: &mut Value) {
    let (Some(before), Some(after)) = (before.as_object(), after.as_object_mut()) else { return };
    for (key, value) in before {
        match after.get_mut(key) {
            Some(kept) => add_removed_fields(value, kept),
            None => {
                after.insert(key.clone(), Value::Null);
            }
        }
    }
}
