//! Makes the cluster agree with the runs: level-triggered, by what is known, whatever it was that woke it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use slipway_core::clock::now_ms;
use slipway_exec::lifecycle::{self, Action, End, Seen};
use slipway_exec::{Phase, RunStatus, Tracked, Tracker, tracked_id};
use tokio::sync::{mpsc, watch};

use super::known::{Known, Run};
use super::pod::{self, Pod, RUN_LABEL, TOKEN_SECRET};
use super::{Key, RUN, Settings, usage};
use crate::api::POD;
use crate::queue::Queue;
use crate::{Api, KubeError, Resource};

/// Runs that are looked at at once.
const WORKERS: usize = 16;
/// Events that may wait to be told; more are left out.
const EVENTS: usize = 1000;
const SECRET: Resource<'static> = Resource { group: "", version: "v1", kind: "Secret", plural: "secrets" };
/// Waiting that takes a moment and needs no words.
const USUAL: [&str; 4] = ["", "ContainerCreating", "PodInitializing", "SchedulingGated"];

/// The controller of runs.
pub(super) struct Controller {
    api: Api,
    settings: Settings,
    tracker: Arc<dyn Tracker>,
    known: Known,
    queue: Queue<Key>,
    agents: usage::Agents,
    /// Namespaces that have the secret with the token.
    equipped: Mutex<HashSet<String>>,
    events: mpsc::Sender<Event>,
    pub(super) reconciled: AtomicU64,
    pub(super) failed: AtomicU64,
}

/// Something to be told about a run.
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
                    tracing::debug!(%error, "an event was not told");
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
            equipped: Mutex::default(),
            events,
            reconciled: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    /// Runs, pods, and keys that wait: now, and for their time.
    pub(super) fn sizes(&self) -> [usize; 4] {
        let ((runs, pods), (now, later)) = (self.known.size(), self.queue.depth());
        [runs, pods, now, later]
    }

    /// Follows everything and looks at what changed, until it is dropped.
    pub(super) async fn work(self: Arc<Self>) {
        // Whoever led before was stopped in the middle of things.
        self.queue.clear();
        let (ready, all) = watch::channel((false, false));
        let runs = self.known.follow_runs(self.api.changes(&RUN, ""), &self.queue, || {
            ready.send_modify(|r| r.0 = true);
        });
        let pods = self.known.follow_pods(self.api.changes(&POD, RUN_LABEL), &self.queue, || {
            ready.send_modify(|r| r.1 = true);
        });
        let workers = async {
            // Whoever knows the runs and not yet their pods would start them all again.
            let mut all = all;
            drop(all.wait_for(|(runs, pods)| *runs && *pods).await);
            let each = (0..WORKERS).map(|_| self.look_again_and_again());
            futures_util::future::join_all(each).await;
        };
        tokio::join!(runs, pods, workers);
    }

    async fn look_again_and_again(&self) {
        loop {
            let key = self.queue.next().await;
            match self.reconcile(&key).await {
                Ok(()) => {
                    self.reconciled.fetch_add(1, Relaxed);
                    self.queue.done(&key);
                }
                Err(error) => {
                    self.failed.fetch_add(1, Relaxed);
                    // Somebody else wrote first: the watch is about to tell what.
                    let conflict = matches!(error, KubeError::Refused { code: 409, .. });
                    if !conflict {
                        tracing::warn!(namespace = key.0, run = key.1, %error, "the run is looked at again");
                    }
                    self.queue.failed(&key);
                }
            }
        }
    }

    /// Looks at one run.
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
        let Some(run) = run else { return Ok(()) };
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
        // Whoever deletes a run and waits for its pods does not want another.
        spec.cancel |= run.leaving;
        let (mut status, action) = lifecycle::next(&spec, &submitted.status, seen, now);
        // What lasts a moment is not worth a write.
        if let Some(Seen::Waiting { reason, .. }) = newest.map(|p| &p.seen)
            && USUAL.contains(&reason.as_str())
            && submitted.status.current().is_none_or(|a| a.finished_at.is_some())
        {
            status = submitted.status.clone();
            // What it waited for before its pod was made.
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
        // A pod that was deleted before a kubelet had it never ends by itself.
        if let Some(pod) = pods.last().filter(|p| p.leaving && p.held)
            && matches!(pod.seen, Seen::Waiting { .. })
        {
            self.let_go(key, pod).await?;
        }
        Ok(status)
    }

    /// Makes the pod of a try, or says why there is none.
    async fn start(&self, run: &Run, number: u32, limit: Option<i64>) -> Result<Result<(), Refusal>, KubeError> {
        let submitted = &run.submitted;
        let metadata = &submitted.manifest.metadata;
        if submitted.manifest.spec.image.is_none() {
            let message = "spec.image is missing: in a cluster a run needs one".to_owned();
            return Ok(Err(Refusal::ForGood(End::Impossible("NoImage".into(), message))));
        }
        self.begin(run).await?;
        self.equip(&metadata.namespace).await?;
        let object = pod::object(submitted, number, limit, &self.settings.variables);
        match self.api.create(&POD, Some(&metadata.namespace), &object).await {
            Ok(made) => {
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
                    // Made before, and not seen yet; or not gone yet.
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
            Err(KubeError::Refused { code: 403, message }) => {
                let reason = if message.contains("exceeded quota") { "QuotaExceeded" } else { "Forbidden" };
                Ok(Err(Refusal::ForNow(reason.into(), message)))
            }
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

    /// Gives a namespace the token that its runs track with.
    async fn equip(&self, namespace: &str) -> Result<(), KubeError> {
        if self.equipped.lock().contains(namespace) {
            return Ok(());
        }
        let token = (self.settings.mint)(namespace);
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": TOKEN_SECRET, "namespace": namespace, "labels": {
                "app.kubernetes.io/name": "slipway", crate::install::INSTALLATION: self.settings.namespace,
            }},
            "stringData": {"token": token},
        });
        match self.api.apply(&SECRET, Some(namespace), TOKEN_SECRET, "slipway", false, &secret, false).await {
            // A namespace that is on its way out gets no secrets, nor will it get the pod.
            Ok(_) | Err(KubeError::Refused { code: 403 | 404, .. }) => {}
            Err(error) => return Err(error),
        }
        self.equipped.lock().insert(namespace.to_owned());
        Ok(())
    }

    /// Writes a status if it changed, and tells what changed. Somebody else's write in between makes it fail.
    async fn write(&self, run: &Run, mut status: RunStatus) -> Result<RunStatus, KubeError> {
        let before = &run.submitted.status;
        let needs_gpus = !run.submitted.manifest.spec.resources.gpus().is_empty()
            || !run.submitted.manifest.spec.resource_claims.is_empty();
        if status.phase.is_final() && !before.phase.is_final() {
            self.begin(run).await?;
            self.tracker.end(&status.run_id, &status).await.map_err(KubeError::Invalid)?;
            // What nobody saw there is no use in waiting for.
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
            // It was deleted meanwhile; the watch is about to tell.
            Err(KubeError::Refused { code: 404, .. }) => return Ok(status),
            other => other?,
        };
        if let Ok(run) = Run::of(&written) {
            self.known.put_run(run);
        }
        self.tell_changes(run, before, &status);
        Ok(status)
    }

    /// Lets pods go whose end is written down.
    async fn release(&self, key: &Key, pods: &[Pod], status: &RunStatus) -> Result<(), KubeError> {
        for pod in pods.iter().filter(|p| p.held && p.is_over()) {
            let oldest = status.attempts.first().map_or(u32::MAX, |a| a.number);
            let noted = status.attempts.iter().any(|a| a.number == pod.attempt && a.finished_at.is_some());
            if noted || pod.attempt < oldest {
                self.let_go(key, pod).await?;
            }
        }
        Ok(())
    }

    /// Takes our finalizer off a pod.
    async fn let_go(&self, key: &Key, pod: &Pod) -> Result<(), KubeError> {
        // A merge patch knows lists only whole; the version makes it fail when somebody added one meanwhile.
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
        self.tracker.end(&tracked_id(&pod.run_uid), &status).await.map_err(KubeError::Invalid)?;
        self.let_go(key, pod).await
    }

    /// Asks the agents what a run's GPUs did, and attaches it. An agent that is not there is not waited for.
    async fn attribute(&self, key: &Key, run: &Run, mut status: RunStatus) -> Result<(), KubeError> {
        let ended = status.completion_time.map_or(0, |t| t.0);
        match self.agents.tell(key, &mut status).await {
            // Agents see the end some seconds later.
            usage::Found::NotYet if now_ms() - ended < usage::PATIENCE_MS => {
                self.queue.add_after(key.clone(), Duration::from_secs(2));
                return Ok(());
            }
            usage::Found::NotYet | usage::Found::All => {}
        }
        self.tracker.end(&status.run_id, &status).await.map_err(KubeError::Invalid)?;
        status.attributed = true;
        // The version moved with the write before; what is known now is what that write answered.
        let run = self.known.get(key).0.unwrap_or_else(|| run.clone());
        self.write(&run, status).await.map(drop)
    }

    fn tell(&self, run: &Run, warning: bool, reason: &str, message: &str) {
        let metadata = &run.submitted.manifest.metadata;
        let about = json!({"apiVersion": "slipway.dev/v1", "kind": "Run", "name": metadata.name,
            "namespace": metadata.namespace, "uid": metadata.uid, "resourceVersion": run.version.to_string()});
        // An event is a courtesy: when there are too many, some are left out.
        drop(self.events.try_send(Event { about, warning, reason: reason.to_owned(), message: message.to_owned() }));
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
    /// It is tried again: one word and a sentence.
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
