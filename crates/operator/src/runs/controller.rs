//! Reconciles runs with their pods. It is level-triggered: what is done follows from what is known, not from what woke it.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use slipway_core::clock::now_ms;
use slipway_exec::lifecycle::{self, Action, End, Seen};
use slipway_exec::{Phase, RunStatus, TokenRequest, Tracked, Tracker, tracked_id};
use tokio::sync::{mpsc, watch};

use super::known::{Known, Run};
use super::pod::{self, AttemptSecret, Pod};
use super::{Key, RUN, Settings, usage};
use crate::api::POD;
use crate::names::{self, RUN_LABEL};
use crate::queue::Queue;
use crate::{Api, KubeError, Resource};

/// Runs that are reconciled at the same time.
const WORKERS: usize = 16;
/// Events that may wait to be sent; more are dropped.
const EVENTS: usize = 1000;
/// How long a pod may wait for room before its program starts, in milliseconds: its token is valid for so much longer.
const MAX_WAIT_MS: i64 = 7 * 24 * 3_600_000;
/// How long a secret serves further attempts to create its pod, in milliseconds, when a quota refuses the pod for instance. Its token is
/// valid for so much longer, too. A new secret each time would fill the namespace; one for ever would expire before the pod starts.
const SECRET_REUSE_MS: i64 = 24 * 3_600_000;
const SECRET: Resource<'static> = Resource { group: "", version: "v1", kind: "Secret", plural: "secrets" };
/// Reasons of waiting that every pod goes through and that last a moment: not worth a write of the status.
const USUAL: [&str; 4] = ["", "ContainerCreating", "PodInitializing", "SchedulingGated"];

/// The controller of runs.
pub(super) struct Controller {
    api: Api,
    settings: Settings,
    tracker: Arc<dyn Tracker>,
    known: Known,
    queue: Queue<Key>,
    agents: usage::Agents,
    events: mpsc::Sender<Event>,
    /// Secrets whose pods are not created yet.
    secrets: Mutex<HashMap<Key, WaitingSecret>>,
    pub(super) reconciled: AtomicU64,
    pub(super) failed: AtomicU64,
}

/// The secret of an attempt whose pod is not created yet.
#[derive(Clone)]
struct WaitingSecret {
    run_uid: String,
    attempt: u32,
    created_at: i64,
    secret: AttemptSecret,
}

/// An event about a run, to be sent to the API server.
struct Event {
    about: Value,
    warning: bool,
    reason: String,
    message: String,
}

impl Controller {
    pub(super) fn new(api: Api, settings: Settings, tracker: Arc<dyn Tracker>) -> Arc<Self> {
        let (events, mut told) = mpsc::channel::<Event>(EVENTS);
        let teller = api.clone();
        tokio::spawn(async move {
            while let Some(event) = told.recv().await {
                let Event { about, warning, reason, message } = event;
                if let Err(error) = teller.event(about, warning, &reason, &message).await {
                    tracing::debug!(%error, "an event was not recorded");
                }
            }
        });
        let agents = usage::Agents::new(api.clone(), settings.namespace.clone());
        Arc::new(Self {
            api,
            agents,
            settings,
            tracker,
            known: Known::default(),
            queue: Queue::default(),
            events,
            secrets: Mutex::default(),
            reconciled: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    /// Runs, pods, and keys that wait: now, and for their time.
    pub(super) fn sizes(&self) -> [usize; 4] {
        let ((runs, pods), (now, later)) = (self.known.size(), self.queue.depth());
        [runs, pods, now, later]
    }

    /// Watches runs and pods and reconciles what changed, until this future is dropped: the work of whoever leads.
    pub(super) async fn work(self: Arc<Self>) {
        // An earlier term of this process may have been dropped in the middle of a reconciliation.
        self.queue.clear();
        let (ready, all) = watch::channel((false, false));
        let runs = self.known.follow_runs(self.api.changes(&RUN, ""), &self.queue, || {
            ready.send_modify(|r| r.0 = true);
        });
        let pods = self.known.follow_pods(self.api.changes(&POD, RUN_LABEL), &self.queue, || {
            ready.send_modify(|r| r.1 = true);
        });
        let workers = async {
            // Start only after both lists are complete; otherwise every run would look as if it had no pod, and be started again.
            let mut all = all;
            let _ = all.wait_for(|(runs, pods)| *runs && *pods).await; // The sender lives as long as this future.
            let each = (0..WORKERS).map(|_| self.worker());
            futures_util::future::join_all(each).await;
        };
        tokio::join!(runs, pods, workers);
    }

    /// Reconciles one key after the other.
    async fn worker(&self) {
        loop {
            let key = self.queue.next().await;
            // A defect that one run meets does not stop the others.
            let reconciling = AssertUnwindSafe(self.reconcile(&key)).catch_unwind().await;
            match reconciling.unwrap_or_else(|_| Err(KubeError::Invalid("the code panicked".into()))) {
                Ok(()) => {
                    self.reconciled.fetch_add(1, Relaxed);
                    self.queue.done(&key);
                }
                Err(error) => {
                    self.failed.fetch_add(1, Relaxed);
                    // On a conflict somebody else wrote first, and the watch brings what; that is usual.
                    let conflict = matches!(error, KubeError::Refused { code: 409, .. });
                    if !conflict {
                        tracing::warn!(namespace = key.0, run = key.1, %error, "reconciling failed and is tried again");
                    }
                    self.queue.failed(&key);
                }
            }
        }
    }

    /// Makes one run and its pods agree.
    async fn reconcile(&self, key: &Key) -> Result<(), KubeError> {
        if self.known.is_unreadable(key) {
            return Ok(());
        }
        let (run, pods) = self.known.get(key);
        let uid = run.as_ref().map(|r| r.submitted.manifest.metadata.uid.clone());
        let (pods, strangers): (Vec<Pod>, Vec<Pod>) = pods.into_iter().partition(|p| uid.as_ref() == Some(&p.run_uid));
        for pod in strangers {
            self.orphan(key, &pod).await?;
        }
        let Some(run) = run else {
            self.secrets.lock().remove(key);
            return Ok(());
        };
        let (status, action) = self.next(&run, &pods, now_ms());
        let status = self.act(key, &run, &pods, status, action).await?;
        let status = self.write(&run, status).await?;
        self.release(key, &pods, &status).await?;
        if status.phase.is_final() && !status.attributed {
            self.attribute(key, &run, status).await?;
        }
        Ok(())
    }

    /// The next status and what is to be done.
    fn next(&self, run: &Run, pods: &[Pod], now: i64) -> (RunStatus, Action) {
        let submitted = &run.submitted;
        let newest = pods.last();
        let seen = newest.map(|p| (p.attempt, &p.seen));
        let mut spec = submitted.manifest.spec.clone();
        // A run that is being deleted gets no further pod.
        spec.cancel |= run.leaving;
        let (mut status, action) = lifecycle::next(&spec, &submitted.status, seen, now);
        if let Some(Seen::Waiting { reason, .. }) = newest.map(|p| &p.seen)
            && USUAL.contains(&reason.as_str())
            && submitted.status.current().is_none_or(|a| a.finished_at.is_some())
        {
            status = submitted.status.clone();
            // The reason was why there was no pod; now there is one.
            status.reason.clear();
            status.message.clear();
        }
        status.run_id = tracked_id(&submitted.manifest.metadata.uid);
        (status, action)
    }

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
                if let Err(why) = self.start(run, number, limit).await? {
                    let now = now_ms();
                    match why {
                        Refusal::ForNow(reason, message) => {
                            self.queue.add_after(key.clone(), self.settings.patience);
                            status.reason = reason;
                            status.message = message;
                        }
                        Refusal::ForGood(end) => {
                            let seen = Seen::Over { since: None, at: now, node: String::new(), end };
                            let spec = &run.submitted.manifest.spec;
                            status = lifecycle::next(spec, &status, Some((number, &seen)), now).0;
                        }
                    }
                }
            }
            Action::Stop => {
                if let Some(pod) = pods.last().filter(|p| !p.leaving) {
                    self.api.delete(&POD, Some(&key.0), &pod.name).await?;
                }
            }
            Action::Wake(at) => {
                let wait = u64::try_from(at - now_ms()).unwrap_or(0);
                self.queue.add_after(key.clone(), Duration::from_millis(wait));
            }
            Action::Forget => self.api.delete(&RUN, Some(&key.0), &key.1).await?,
        }
        // A pod that was deleted before it reached a kubelet never gets an end of its own.
        if let Some(pod) = pods.last().filter(|p| p.leaving && p.held)
            && matches!(pod.seen, Seen::Waiting { .. })
        {
            self.remove_finalizer(key, pod).await?;
        }
        Ok(status)
    }

    /// Makes the pod of an attempt, or says why there is none.
    async fn start(&self, run: &Run, number: u32, limit: Option<i64>) -> Result<Result<(), Refusal>, KubeError> {
        let submitted = &run.submitted;
        let metadata = &submitted.manifest.metadata;
        if submitted.manifest.spec.image.is_none() {
            let message = "spec.image is missing: in a cluster a run needs one".to_owned();
            return Ok(Err(Refusal::ForGood(End::Impossible("NoImage".into(), message))));
        }
        self.begin(run).await?;
        let secret = match self.secret(run, number, limit).await {
            Ok(secret) => secret,
            Err(KubeError::Refused { code: 403, message }) => {
                return Ok(Err(self.forbidden(&metadata.namespace, message)));
            }
            Err(error) => return Err(error),
        };
        let object = pod::object(submitted, number, limit, &secret, &self.settings);
        match self.api.create(&POD, Some(&metadata.namespace), &object).await {
            Ok(made) => {
                self.secrets.lock().remove(&run.key());
                if let Some(pod) = Pod::of(&made) {
                    self.tell(run, false, "Created", &format!("pod {}", pod.name));
                    self.known.put_pod(pod);
                }
                Ok(Ok(()))
            }
            Err(KubeError::Refused { code: 409, .. }) => {
                let name = pod::name(&metadata.name, number);
                let found = self.api.get(&POD, Some(&metadata.namespace), &name).await?;
                match found.as_ref().and_then(Pod::of) {
                    // It was made before and the watch has not told yet.
                    Some(pod) if pod.run_uid == metadata.uid => {
                        self.known.put_pod(pod);
                        Ok(Ok(()))
                    }
                    _ => {
                        let message = format!("there is a pod {name} already, which is not of this run");
                        Ok(Err(Refusal::ForNow("NameTaken".into(), message)))
                    }
                }
            }
            Err(KubeError::Refused { code: 403, message }) => Ok(Err(self.forbidden(&metadata.namespace, message))),
            Err(KubeError::Refused { code: 400 | 422, message }) => {
                Ok(Err(Refusal::ForGood(End::Impossible("Invalid".into(), message))))
            }
            Err(error) => Err(error),
        }
    }

    /// Begins the tracked run.
    async fn begin(&self, run: &Run) -> Result<(), KubeError> {
        if run.submitted.status.attempts.is_empty() {
            let tracked = Tracked::of(&run.submitted.manifest);
            self.tracker.begin(tracked).await.map_err(KubeError::Invalid)?;
        }
        Ok(())
    }

    /// The secret with the token that an attempt tracks with; one that was created lately and has no pod yet, or a new one. What a
    /// controller leaves that is stopped between the two goes with the run.
    async fn secret(&self, run: &Run, attempt: u32, limit: Option<i64>) -> Result<AttemptSecret, KubeError> {
        let (manifest, now) = (&run.submitted.manifest, now_ms());
        let metadata = &manifest.metadata;
        let waiting = self.secrets.lock().get(&run.key()).cloned();
        let still_good = |w: &WaitingSecret| {
            w.run_uid == metadata.uid && w.attempt == attempt && now.saturating_sub(w.created_at) < SECRET_REUSE_MS
        };
        if let Some(waiting) = waiting.filter(still_good) {
            return Ok(waiting.secret);
        }
        let ca = self.certificates().await?;
        let mut request = TokenRequest::new(manifest, attempt, limit, now);
        request.expires_at = request.expires_at.saturating_add(MAX_WAIT_MS + SECRET_REUSE_MS);
        let token = (self.settings.token)(request).await.map_err(KubeError::Invalid)?;
        let secret = AttemptSecret { name: pod::secret_name(metadata, attempt), has_ca: ca.is_some() };
        let object = pod::secret(metadata, attempt, &secret.name, &token, ca.as_deref(), &self.settings);
        // A secret that has the name already is not ours: reconciling fails and goes on with another name.
        self.api.create(&SECRET, Some(&metadata.namespace), &object).await?;
        let waiting = WaitingSecret { run_uid: metadata.uid.clone(), attempt, created_at: now, secret: secret.clone() };
        self.secrets.lock().insert(run.key(), waiting);
        Ok(secret)
    }

    /// The certificates by which runs know the control plane; `None` where every image knows them.
    async fn certificates(&self) -> Result<Option<String>, KubeError> {
        let Some(path) = &self.settings.ca_file else { return Ok(None) };
        match tokio::fs::read_to_string(path).await {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(KubeError::Invalid(format!("the certificates for runs, {}: {error}", path.display()))),
        }
    }

    /// Why a request of an attempt was refused with 403, and what helps.
    fn forbidden(&self, namespace: &str, message: String) -> Refusal {
        if message.contains("exceeded quota") {
            return Refusal::ForNow("QuotaExceeded".into(), message);
        }
        // RBAC's own words; a refusal of another kind, such as pod security's, has nothing to do with the namespace.
        if message.contains("cannot create resource") {
            let command = names::enable_namespace(&self.settings.namespace, namespace);
            let message = format!("namespace {namespace} is not enabled for runs; this enables it: {command}");
            return Refusal::ForNow("NamespaceNotEnabled".into(), message);
        }
        Refusal::ForNow("Forbidden".into(), message)
    }

    /// Writes a status if it changed, and records events about what changed. It fails with 409 if somebody else wrote in between.
    async fn write(&self, run: &Run, mut status: RunStatus) -> Result<RunStatus, KubeError> {
        let before = &run.submitted.status;
        let needs_gpus = !run.submitted.manifest.spec.resources.gpus().is_empty()
            || !run.submitted.manifest.spec.resource_claims.is_empty();
        if status.phase.is_final() && !before.phase.is_final() {
            self.begin(run).await?;
            let namespace = &run.submitted.manifest.metadata.namespace;
            self.tracker.end(namespace, &status.run_id, &status).await.map_err(KubeError::Invalid)?;
            // If no agent observed this run's GPUs there is no usage to attribute.
            status.attributed = !needs_gpus || !self.agents.saw(&status).await;
        }
        if status == *before {
            return Ok(status);
        }
        let metadata = &run.submitted.manifest.metadata;
        let patch =
            json!({"metadata": {"resourceVersion": run.version.to_string()}, "status": patch_of(before, &status)});
        let written = self.api.merge(&RUN, Some(&metadata.namespace), &metadata.name, true, &patch).await;
        let written = match written {
            // It was deleted meanwhile; the watch brings that.
            Err(KubeError::Refused { code: 404, .. }) => return Ok(status),
            other => other?,
        };
        if let Ok(run) = Run::of(&written) {
            self.known.put_run(run);
        }
        self.tell_changes(run, before, &status);
        Ok(status)
    }

    /// Takes the finalizer off pods whose end is written down.
    async fn release(&self, key: &Key, pods: &[Pod], status: &RunStatus) -> Result<(), KubeError> {
        for pod in pods.iter().filter(|p| p.held && p.is_over()) {
            let oldest = status.attempts.first().map_or(u32::MAX, |a| a.number);
            let noted = status.attempts.iter().any(|a| a.number == pod.attempt && a.finished_at.is_some());
            if noted || pod.attempt < oldest {
                self.remove_finalizer(key, pod).await?;
            }
        }
        Ok(())
    }

    /// Takes our finalizer off a pod, so that it can be deleted.
    async fn remove_finalizer(&self, key: &Key, pod: &Pod) -> Result<(), KubeError> {
        // A merge patch replaces the whole list; the version makes it fail when somebody added a finalizer meanwhile.
        let patch = json!({"metadata": {"finalizers": pod.others, "resourceVersion": pod.version.to_string()}});
        match self.api.merge(&POD, Some(&key.0), &pod.name, false, &patch).await {
            Ok(changed) => {
                match Pod::of(&changed) {
                    Some(pod) if !pod.leaving => self.known.put_pod(pod),
                    _ => self.known.drop_pod(key, &pod.name),
                }
                Ok(())
            }
            Err(KubeError::Refused { code: 404, .. }) => {
                self.known.drop_pod(key, &pod.name);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// A pod whose run is gone goes too, and the tracked run is ended.
    async fn orphan(&self, key: &Key, pod: &Pod) -> Result<(), KubeError> {
        if !pod.leaving {
            self.api.delete(&POD, Some(&key.0), &pod.name).await?;
        }
        if !pod.held {
            return Ok(());
        }
        let status = RunStatus { phase: Phase::Cancelled, reason: "Deleted".into(), ..RunStatus::default() };
        self.tracker.end(&pod.namespace, &tracked_id(&pod.run_uid), &status).await.map_err(KubeError::Invalid)?;
        self.remove_finalizer(key, pod).await
    }

    /// Asks the node agents what a run's GPUs did and attaches it to the tracked run. A node without an agent is not waited for.
    async fn attribute(&self, key: &Key, run: &Run, mut status: RunStatus) -> Result<(), KubeError> {
        let ended = status.completion_time.map_or(0, |t| t.0);
        match self.agents.tell(key, &mut status).await {
            // Agents notice the end of a pod some seconds later.
            usage::Found::NotYet if now_ms() - ended < usage::USAGE_WAIT_MS => {
                self.queue.add_after(key.clone(), Duration::from_secs(2));
                return Ok(());
            }
            usage::Found::NotYet | usage::Found::All => {}
        }
        self.tracker.end(&key.0, &status.run_id, &status).await.map_err(KubeError::Invalid)?;
        status.attributed = true;
        // The write before changed the version; the cache holds what that write answered.
        let run = self.known.get(key).0.unwrap_or_else(|| run.clone());
        self.write(&run, status).await?;
        Ok(())
    }

    /// Records an event about a run.
    fn tell(&self, run: &Run, warning: bool, reason: &str, message: &str) {
        let metadata = &run.submitted.manifest.metadata;
        let about = json!({"apiVersion": "slipway.dev/v1", "kind": "Run", "name": metadata.name,
            "namespace": metadata.namespace, "uid": metadata.uid, "resourceVersion": run.version.to_string()});
        let event = Event { about, warning, reason: reason.to_owned(), message: message.to_owned() };
        let _ = self.events.try_send(event); // Events are best effort: when too many wait, the rest is dropped.
    }

    fn tell_changes(&self, run: &Run, before: &RunStatus, after: &RunStatus) {
        if before.phase != after.phase && after.phase.is_final() {
            self.tell(run, after.phase == Phase::Failed, &after.reason, &after.message);
        } else if after.phase == Phase::Pending
            && before.reason != after.reason
            && !USUAL.contains(&after.reason.as_str())
        {
            self.tell(run, true, &after.reason, &after.message);
        }
    }
}

/// Why there is no pod.
enum Refusal {
    /// It is tried again later: reason and message.
    ForNow(String, String),
    /// It would be refused again.
    ForGood(End),
}

/// A merge patch from one status to the next: what is gone is null.
fn patch_of(before: &RunStatus, after: &RunStatus) -> Value {
    let (before, mut after) = (json!(before), json!(after));
    if let (Some(before), Some(after)) = (before.as_object(), after.as_object_mut()) {
        for key in before.keys() {
            if !after.contains_key(key) {
                after.insert(key.clone(), Value::Null);
            }
        }
    }
    after
}
