//! The controller: reconciles runs with their pods. It is level-triggered: each action depends on the cached state, not on the event that
//! queued the run.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use slipway_core::clock::now_ms;
use slipway_exec::lifecycle::{self, Action, Observation, Outcome, TRANSIENT_REASONS};
use slipway_exec::{Phase, QueueSystem, RunStatus, TokenRequest, Tracked, Tracker, tracked_id};
use slipway_objects::controller::{self, ControlLoop, Source};
use slipway_objects::selector::LabelSelector;
use slipway_objects::store::Selection;
use tokio::sync::mpsc;

use super::data::PodData;
use super::known::{Cache, Run};
use super::pod::{self, AttemptSecret, Pod};
use super::queues::{self, Queues, Unplaceable};
use super::{Key, RUN, Settings, usage};
use crate::api::POD;
use crate::names::{self, RUN_LABEL};
use crate::{Api, ApiServer, KubeError, Resource};

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
/// Maximum interval at which the position of a queued run is read again.
const MAX_QUEUE_INTERVAL: Duration = Duration::from_secs(300);
const SECRET: Resource<'static> = Resource { group: "", version: "v1", kind: "Secret", plural: "secrets" };
/// Message of the event for a pod that Kueue does not manage.
const QUEUE_IGNORED: &str = "Kueue does not manage the pods of this namespace, so the run starts without waiting in its queue; enable the \
     integration \"pod\" and the namespace in Kueue's configuration";

/// Reconciles all runs of a cluster while [`Controller::work`] is polled.
pub(super) struct Controller {
    api: Api,
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
        Arc::new(Self {
            api,
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
        let (store, queue) = (ApiServer::new(self.api.clone()), self.control_loop.queue());
        let (mut listed_runs, mut listed_pods) = (HashSet::new(), HashSet::new());
        let of_runs = Selection { labels: LabelSelector::having(RUN_LABEL), ..Selection::default() };
        let runs = Source::new(&store, &RUN.stored(), Selection::default(), |change| {
            self.cache.apply_run(change, &mut listed_runs, queue);
        });
        let pods = Source::new(&store, &POD.stored(), of_runs, |change| {
            self.cache.apply_pod(change, &mut listed_pods, queue);
        });
        self.control_loop.run(&*self, vec![runs, pods]).await;
    }

    /// Replaces the observation of a pod that waits in a queue by what its system publishes about it, and reads that again later: the
    /// controller watches pods, but not the objects of these systems.
    async fn explain_queue(&self, key: &Key, pod: &mut Pod) {
        let (Observation::Waiting { .. }, Some(queue), false) = (&pod.observation, &mut pod.queue, pod.deleting) else {
            return;
        };
        let Some(observation) = self.queues.explain(&pod.namespace, queue).await else { return };
        pod.observation = observation;
        // Long waits change seldom, so a thousand queued runs cause few requests.
        let waited = u64::try_from(now_ms().saturating_sub(queue.created_at)).unwrap_or(0);
        let delay = Duration::from_millis(waited / 10).min(MAX_QUEUE_INTERVAL).max(self.settings.retry_delay);
        self.control_loop.queue().add_after(key.clone(), delay);
    }

    /// The next status and action.
    fn next(&self, run: &Run, pods: &[Pod], now: i64) -> (RunStatus, Action) {
        let submitted = &run.submitted;
        let newest = pods.last();
        let observed = newest.map(|p| (p.attempt, &p.observation));
        let mut spec = submitted.manifest.spec.clone();
        // A run that is being deleted must not get another pod.
        spec.cancel |= run.deleting;
        let (mut status, action) = lifecycle::next(&spec, &submitted.status, observed, now);
        if let Some(Observation::Waiting { reason, .. }) = newest.map(|p| &p.observation)
            && TRANSIENT_REASONS.contains(&reason.as_str())
            && submitted.status.current().is_none_or(|a| a.finished_at.is_some())
        {
            status = submitted.status.clone();
            // The old reason explained why there was no pod. Now there is one.
            status.reason.clear();
            status.message.clear();
        }
        status.run_id = tracked_id(&submitted.manifest.metadata.uid);
        status.data = slipway_exec::data::pinned(&submitted.manifest.spec.data);
        if let Some(queue) = newest.and_then(|p| p.queue.as_ref()) {
            let mut queue = queue.status.clone();
            queue.position = queue.position.filter(|_| status.phase == Phase::Pending);
            status.queue = Some(queue);
        }
        (status, action)
    }

    /// Performs an action. Returns the status, changed if the action was rejected.
    async fn act(
        &self,
        key: &Key,
        run: &Run,
        pods: &[Pod],
        mut status: RunStatus,
        action: Action,
    ) -> Result<RunStatus, KubeError> {
        match action {
            Action::Nothing => {}
            Action::Start(number, limit) => {
                if let Err(rejection) = self.start(run, number, limit).await? {
                    let now = now_ms();
                    match rejection {
                        Rejection::Temporary(reason, message) => {
                            self.control_loop.queue().add_after(key.clone(), self.settings.retry_delay);
                            status.reason = reason;
                            status.message = message;
                        }
                        Rejection::Permanent(outcome) => {
                            let observation = Observation::Finished {
                                started_at: None,
                                finished_at: now,
                                node: String::new(),
                                outcome,
                            };
                            let spec = &run.submitted.manifest.spec;
                            status = lifecycle::next(spec, &status, Some((number, &observation)), now).0;
                        }
                    }
                }
            }
            Action::Stop => {
                if let Some(pod) = pods.last().filter(|p| !p.deleting) {
                    self.api.delete(&POD, Some(&key.0), &pod.name).await?;
                }
            }
            Action::RequeueAt(at) => {
                let delay = u64::try_from(at - now_ms()).unwrap_or(0);
                self.control_loop.queue().add_after(key.clone(), Duration::from_millis(delay));
            }
            Action::Delete => self.api.delete(&RUN, Some(&key.0), &key.1).await?,
        }
        // A pod that is deleted before a kubelet accepted it never ends, so release it here.
        if let Some(pod) = pods.last().filter(|p| p.deleting && p.has_finalizer)
            && matches!(pod.observation, Observation::Waiting { .. })
        {
            self.remove_finalizer(key, pod).await?;
        }
        Ok(status)
    }

    /// Creates the pod of an attempt. The inner error is the reason why the pod was rejected.
    async fn start(&self, run: &Run, number: u32, limit: Option<i64>) -> Result<Result<(), Rejection>, KubeError> {
        let submitted = &run.submitted;
        let metadata = &submitted.manifest.metadata;
        if submitted.manifest.spec.image.is_none() {
            let message = "spec.image is missing: a run in a cluster needs an image".to_owned();
            return Ok(Err(Rejection::Permanent(Outcome::CannotStart("NoImage".into(), message))));
        }
        let data = match PodData::new(&submitted.manifest.spec) {
            Ok(data) => data,
            Err(message) => return Ok(Err(Rejection::invalid(message))),
        };
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
                if let Err(rejection) = self.create_group(&metadata.namespace, &group).await? {
                    return Ok(Err(rejection));
                }
            }
            Err(message) => return Ok(Err(Rejection::invalid(message))),
        }
        let [object] = objects;
        match self.api.create(&POD, Some(&metadata.namespace), &object).await {
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
                let found = self.api.get(&POD, Some(&metadata.namespace), &name).await?;
                match found.as_ref().and_then(Pod::from_object) {
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
    async fn create_group(&self, namespace: &str, group: &Value) -> Result<Result<(), Rejection>, KubeError> {
        match self.api.create(&queues::VOLCANO_POD_GROUP, Some(namespace), group).await {
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
        self.api.create(&SECRET, Some(&metadata.namespace), &object).await?;
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

    /// Writes the status if it changed, and emits events about the changes. Fails with 409 if another client wrote since.
    async fn write_status(&self, run: &Run, mut status: RunStatus) -> Result<RunStatus, KubeError> {
        let before = &run.submitted.status;
        let needs_gpus = !run.submitted.manifest.spec.resources.gpus().is_empty()
            || !run.submitted.manifest.spec.resource_claims.is_empty();
        if status.phase.is_final() && !before.phase.is_final() {
            if run.submitted.status.attempts.is_empty() {
                self.begin_tracking(run, 1).await?;
            }
            let namespace = &run.submitted.manifest.metadata.namespace;
            self.tracker.end(namespace, &status.run_id, &status).await.map_err(KubeError::Invalid)?;
            // If no agent observed the GPUs of this run, there is no usage to attribute.
            status.attributed = !needs_gpus || !self.agents.observed_any(&status).await;
        }
        if status == *before {
            return Ok(status);
        }
        let metadata = &run.submitted.manifest.metadata;
        let patch =
            json!({"metadata": {"resourceVersion": run.version.to_string()}, "status": patch_of(before, &status)});
        let written = self.api.merge(&RUN, Some(&metadata.namespace), &metadata.name, true, &patch).await;
        let written = match written {
            // The run was deleted meanwhile; the watch will deliver the deletion.
            Err(KubeError::Refused { code: 404, .. }) => return Ok(status),
            other => other?,
        };
        if let Ok(run) = Run::from_object(&written) {
            self.cache.put_run(run);
        }
        self.emit_status_events(run, before, &status);
        Ok(status)
    }

    /// Removes the finalizer from pods whose end is recorded in the status.
    async fn release_finished_pods(&self, key: &Key, pods: &[Pod], status: &RunStatus) -> Result<(), KubeError> {
        for pod in pods.iter().filter(|p| p.has_finalizer && p.is_finished()) {
            let oldest = status.attempts.first().map_or(u32::MAX, |a| a.number);
            let is_recorded = status.attempts.iter().any(|a| a.number == pod.attempt && a.finished_at.is_some());
            if is_recorded || pod.attempt < oldest {
                self.remove_finalizer(key, pod).await?;
            }
        }
        Ok(())
    }

    /// Removes slipway's finalizer from a pod, so that it can be deleted.
    async fn remove_finalizer(&self, key: &Key, pod: &Pod) -> Result<(), KubeError> {
        // A merge patch replaces the whole list. The resource version makes it fail if another client has added a finalizer since.
        let patch =
            json!({"metadata": {"finalizers": pod.other_finalizers, "resourceVersion": pod.version.to_string()}});
        match self.api.merge(&POD, Some(&key.0), &pod.name, false, &patch).await {
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

    /// Deletes a pod whose run does not exist any more, and ends the tracked run.
    async fn delete_orphan(&self, key: &Key, pod: &Pod) -> Result<(), KubeError> {
        if !pod.deleting {
            self.api.delete(&POD, Some(&key.0), &pod.name).await?;
        }
        if !pod.has_finalizer {
            return Ok(());
        }
        let status = RunStatus { phase: Phase::Cancelled, reason: "Deleted".into(), ..RunStatus::default() };
        self.tracker.end(&pod.namespace, &tracked_id(&pod.run_uid), &status).await.map_err(KubeError::Invalid)?;
        self.remove_finalizer(key, pod).await
    }

    /// Reads the GPU usage of a run from the node agents and attaches it to the tracked run. Nodes without an agent are skipped.
    async fn attribute(&self, key: &Key, run: &Run, mut status: RunStatus) -> Result<(), KubeError> {
        let ended = status.completion_time.map_or(0, |t| t.0);
        match self.agents.fill_usage(key, &mut status).await {
            // Agents notice the end of a pod some seconds later, so retry until the timeout.
            usage::Completeness::Incomplete if now_ms() - ended < usage::USAGE_TIMEOUT_MS => {
                self.control_loop.queue().add_after(key.clone(), Duration::from_secs(2));
                return Ok(());
            }
            usage::Completeness::Incomplete | usage::Completeness::Complete => {}
        }
        self.tracker.end(&key.0, &status.run_id, &status).await.map_err(KubeError::Invalid)?;
        status.attributed = true;
        // The previous write changed the resource version. The cache holds the response to that write.
        let run = self.cache.get(key).0.unwrap_or_else(|| run.clone());
        self.write_status(&run, status).await?;
        Ok(())
    }

    /// Queues an event about a run.
    fn emit_event(&self, run: &Run, warning: bool, reason: &str, message: &str) {
        let metadata = &run.submitted.manifest.metadata;
        let about = json!({"apiVersion": "slipway.dev/v1", "kind": "Run", "name": metadata.name,
            "namespace": metadata.namespace, "uid": metadata.uid, "resourceVersion": run.version.to_string()});
        let event = Event { about, warning, reason: reason.to_owned(), message: message.to_owned() };
        let _ = self.events.try_send(event); // best effort: fails if too many events are queued
    }

    /// Emits an event if a run ended, or is pending for a new reason.
    fn emit_status_events(&self, run: &Run, before: &RunStatus, after: &RunStatus) {
        if let Some(is_warning) = lifecycle::event_of(before, after) {
            self.emit_event(run, is_warning, &after.reason, &after.message);
        }
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
        let (run, pods) = self.cache.get(key);
        let uid = run.as_ref().map(|r| r.submitted.manifest.metadata.uid.clone());
        let (mut pods, orphans): (Vec<Pod>, Vec<Pod>) =
            pods.into_iter().partition(|p| uid.as_ref() == Some(&p.run_uid));
        for pod in orphans {
            self.delete_orphan(key, &pod).await?;
        }
        let Some(run) = run else {
            self.secrets.lock().remove(key);
            return Ok(());
        };
        if let Some(newest) = pods.last_mut() {
            self.explain_queue(key, newest).await;
        }
        let (status, action) = self.next(&run, &pods, now_ms());
        let status = self.act(key, &run, &pods, status, action).await?;
        let status = self.write_status(&run, status).await?;
        self.release_finished_pods(key, &pods, &status).await?;
        if status.phase.is_final() && !status.attributed {
            self.attribute(key, &run, status).await?;
        }
        Ok(())
    }

    async fn all(&self) -> Vec<Key> {
        self.cache.keys()
    }

    fn is_expected(&self, error: &KubeError) -> bool {
        // Another client wrote first, and the watch delivers the new version.
        matches!(error, KubeError::Refused { code: 409, .. })
    }
}

/// Why a pod was not created.
enum Rejection {
    /// Creating the pod is retried. Reason in one CamelCase word, and message.
    Temporary(String, String),
    /// Creating the pod would be rejected again.
    Permanent(Outcome),
}

impl Rejection {
    /// The API server, or the system of the queue, rejects the pod.
    fn invalid(message: String) -> Self {
        Self::Permanent(Outcome::CannotStart("Invalid".into(), message))
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
