//! The controller of runs on one machine: carries out objects of the kind Run with the executor of local processes, and keeps their status and
//! pods up to date. What is to be done is decided by [`reconcile`](super::reconcile); here it is done.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use slipway_core::clock::{now_ms, rfc3339};
use slipway_core::ids::hex32;
use slipway_exec::manifest::{API_VERSION, KIND};
use slipway_exec::{ExecError, Executor, LocalProcesses, Phase, RunStatus, Submitted, lifecycle, pod};
use slipway_objects::controller::{Change, ControlLoop, Controller, ObjectKey, Settings, Source, key_of, owner_of};
use slipway_objects::embedded::Embedded;
use slipway_objects::meta::ObjectMeta;
use slipway_objects::store::{DeleteOptions, ListOptions, ObjectStore, Part, Selection, WriteOptions};
use slipway_objects::{Error, Object, Resource};

use super::executor::ObjectRuns;
use super::reconcile::{Action, Observed, is_run_of, reconcile, rejected, status_of, without_finalizer};

/// How the loop of the controller works.
const LOOP: Settings =
    Settings { name: "the controller of runs", workers: 4, resync_interval: Duration::from_secs(300) };
/// Maximum bytes of the message of an event, as in a cluster.
const MAX_EVENT_BYTES: usize = 1024;

/// The resources that the controller reads and writes.
#[derive(Debug, Clone)]
pub(super) struct Kinds {
    pub(super) runs: Arc<Resource>,
    pub(super) pods: Arc<Resource>,
    pub(super) namespaces: Arc<Resource>,
    events: Arc<Resource>,
}

impl Kinds {
    fn of(store: &Embedded) -> Option<Self> {
        let find = |group: &str, plural: &str| store.registry().find(group, plural).cloned();
        Some(Self {
            runs: find("slipway.dev", "runs")?,
            pods: find("", "pods")?,
            namespaces: find("", "namespaces")?,
            events: find("", "events")?,
        })
    }
}

/// Why a step failed. It is repeated after a backoff.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Objects(#[from] Error),
    #[error(transparent)]
    Exec(#[from] ExecError),
}

/// Objects that the executor has no run for: not submitted yet, or refused.
pub(super) type UnacceptedRuns = Arc<Mutex<BTreeMap<ObjectKey, Submitted>>>;

/// The controller of runs on one machine.
pub(crate) struct RunController {
    store: Embedded,
    local: LocalProcesses,
    kinds: Kinds,
    unaccepted: UnacceptedRuns,
    control_loop: ControlLoop<ObjectKey>,
    /// The generations of objects whose changed specifications the executor refused, so that each refusal is reported once.
    refused: Mutex<HashMap<String, i64>>,
}

impl RunController {
    /// A controller for a store; `None` if the store has no runs.
    pub(crate) fn new(store: Embedded, local: LocalProcesses) -> Option<Self> {
        let kinds = Kinds::of(&store)?;
        let (unaccepted, refused) = (UnacceptedRuns::default(), Mutex::default());
        Some(Self { store, local, kinds, unaccepted, control_loop: ControlLoop::new(LOOP), refused })
    }

    /// The executor for runs that are submitted otherwise than as objects.
    pub(crate) fn executor(&self) -> ObjectRuns {
        ObjectRuns {
            store: self.store.clone(),
            local: self.local.clone(),
            kinds: self.kinds.clone(),
            unaccepted: Arc::clone(&self.unaccepted),
        }
    }

    /// Works until this future is dropped.
    pub(crate) async fn work(self) {
        let queue = self.control_loop.queue();
        let runs = Source::new(&self.store, &self.kinds.runs, Selection::default(), |change| {
            if let Change::Applied(run) | Change::Deleted(run) = change {
                queue.add(key_of(&run));
            }
        });
        let pods = Source::new(&self.store, &self.kinds.pods, Selection::default(), |change| {
            if let Change::Applied(pod) | Change::Deleted(pod) = change
                && let Some(run) = owner_of(&pod, &self.kinds.runs)
            {
                queue.add(run);
            }
        });
        tokio::join!(self.control_loop.run(&self, vec![runs, pods]), self.follow_processes());
    }

    async fn follow_processes(&self) {
        loop {
            for key in self.local.changes().await {
                self.control_loop.queue().add(key);
            }
        }
    }

    /// Reads an object; `None` if it does not exist.
    async fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Option<Object>, Error> {
        match self.store.get(resource, namespace, name).await {
            Ok(object) => Ok(Some(object)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The stored pods of a run: those of the attempts in the status of its object and of the executor.
    async fn pods(&self, object: &Object, run: Option<&RunStatus>) -> Result<Vec<Object>, Error> {
        let status = status_of(object);
        let attempts = status.attempts.iter().chain(run.into_iter().flat_map(|run| &run.attempts));
        let mut numbers: Vec<u32> = attempts.map(|attempt| attempt.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let meta = &object.metadata;
        let mut pods = Vec::new();
        for number in numbers {
            let found = self.get(&self.kinds.pods, &meta.namespace, &pod::name(&meta.name, number)).await?;
            // Those of an earlier run of the name are deleted by the garbage collector.
            pods.extend(found.filter(|found| found.metadata.labels.get(pod::UID_LABEL) == Some(&meta.uid)));
        }
        Ok(pods)
    }

    async fn act(
        &self,
        key: &ObjectKey,
        object: Option<&Object>,
        pods: &[Object],
        action: Action,
    ) -> Result<(), StepError> {
        match (action, object) {
            (Action::Import(object), _) => match self.store.import(&self.kinds.runs, *object).await {
                // The other object is reconciled now.
                Ok(_) | Err(Error::AlreadyExists { .. }) => {}
                Err(error) => return Err(error.into()),
            },
            (Action::RequeueAt(at), _) => {
                let delay = u64::try_from(at - now_ms()).unwrap_or(0);
                self.control_loop.queue().add_after(key.clone(), Duration::from_millis(delay));
            }
            (Action::Submit(manifest), Some(object)) => match self.local.submit_object(*manifest).await {
                Ok(_) => {}
                Err(error) => self.rejected(object, error).await?,
            },
            (Action::ReplaceSpec(spec), Some(object)) => {
                let replaced = self.local.replace_spec(&key.0, &key.1, *spec).await;
                match replaced {
                    Ok(_) => {}
                    Err(error @ (ExecError::Manifest(_) | ExecError::TooLarge(_))) => {
                        let meta = &object.metadata;
                        let known = self.refused.lock().insert(meta.uid.clone(), meta.generation);
                        if known != Some(meta.generation) {
                            self.emit(object, true, "InvalidChange", &error.to_string()).await;
                        }
                    }
                    // It has just been deleted.
                    Err(ExecError::NotFound(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            // The executor deletes the run once its program has ended, and reports that as a change.
            (Action::Remove, _) => self.local.request_removal(&key.0, &key.1).await?,
            (Action::SetStatus(status), Some(object)) => self.set_status(object, &status).await?,
            (Action::PutPod(pod), Some(object)) => self.put_pod(object, *pod, pods).await?,
            (Action::Release, Some(object)) => {
                self.refused.lock().remove(&object.metadata.uid);
                let released = without_finalizer(object);
                self.write(&self.kinds.runs, released, Part::Main).await?;
            }
            (Action::Delete, Some(object)) => {
                let options = DeleteOptions { uid: Some(object.metadata.uid.clone()), ..DeleteOptions::default() };
                unless_deleted(self.store.delete(&self.kinds.runs, &key.0, &key.1, &options).await.map(drop))?;
            }
            // All other actions are about an object.
            (_, None) => {}
        }
        Ok(())
    }

    /// Records why a run was not accepted: the run has failed if it can never be accepted.
    async fn rejected(&self, object: &Object, error: ExecError) -> Result<(), StepError> {
        let reason = match &error {
            ExecError::Manifest(_) => "Invalid",
            ExecError::TooLarge(_) => "Unschedulable",
            ExecError::Exists(_) => "NameTaken",
            _ => {
                let status = RunStatus {
                    phase: Phase::Pending,
                    reason: "NotAccepted".into(),
                    message: error.to_string(),
                    ..status_of(object)
                };
                self.set_status(object, &status).await?;
                return Err(error.into());
            }
        };
        let status = rejected(&status_of(object), reason, &error.to_string(), now_ms());
        self.set_status(object, &status).await
    }

    /// Replaces an object that was read before, if it still is the same.
    async fn write(&self, resource: &Resource, object: Object, part: Part) -> Result<(), StepError> {
        let (namespace, name) = (object.metadata.namespace.clone(), object.metadata.name.clone());
        let options = WriteOptions { part, ..WriteOptions::default() };
        let written = self.store.update(resource, &namespace, &name, object, &options).await;
        match written.map(drop) {
            Err(Error::NotFound { .. }) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Writes the status of an object, with an event if the change is worth one.
    async fn set_status(&self, object: &Object, status: &RunStatus) -> Result<(), StepError> {
        let before = status_of(object);
        if before == *status {
            return Ok(());
        }
        let mut changed = object.clone();
        // Only this controller writes the status, so a change of another part in between does not matter.
        changed.metadata.resource_version.clear();
        changed.body.insert("status".into(), json!(status));
        self.write(&self.kinds.runs, changed, Part::Status).await?;
        if let Some(is_warning) = lifecycle::event_of(&before, status) {
            self.emit(object, is_warning, &status.reason, &status.message).await;
        }
        Ok(())
    }

    async fn put_pod(&self, run: &Object, pod: Object, known: &[Object]) -> Result<(), StepError> {
        let Some(known) = known.iter().find(|known| known.metadata.name == pod.metadata.name) else {
            let (namespace, name) = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
            self.store.create(&self.kinds.pods, &namespace, pod, &WriteOptions::default()).await?;
            self.emit(run, false, "Created", &format!("pod {name}")).await;
            return Ok(());
        };
        let others = known.metadata.finalizers.iter().filter(|finalizer| *finalizer != pod::FINALIZER);
        let metadata = ObjectMeta {
            finalizers: others.chain(&pod.metadata.finalizers).cloned().collect(),
            labels: pod.metadata.labels.clone(),
            annotations: pod.metadata.annotations.clone(),
            ..known.metadata.clone()
        };
        self.write(&self.kinds.pods, Object { metadata, ..pod }, Part::Main).await
    }

    /// Records an event about a run. Best effort, as in a cluster.
    async fn emit(&self, run: &Object, is_warning: bool, reason: &str, message: &str) {
        let meta = &run.metadata;
        let now = rfc3339(now_ms());
        let fields = json!({
            "involvedObject": {"apiVersion": API_VERSION, "kind": KIND, "name": meta.name, "namespace": meta.namespace,
                "uid": meta.uid, "resourceVersion": meta.resource_version},
            "type": if is_warning { "Warning" } else { "Normal" },
            "reason": reason,
            "message": message[..message.floor_char_boundary(MAX_EVENT_BYTES)],
            "source": {"component": "slipway"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        let event = Object {
            metadata: ObjectMeta {
                name: format!("{}.{}", meta.name, &hex32()[..16]),
                namespace: meta.namespace.clone(),
                ..ObjectMeta::default()
            },
            body: fields.as_object().cloned().unwrap_or_default(),
            ..Object::default()
        };
        if let Err(error) =
            self.store.create(&self.kinds.events, &meta.namespace, event, &WriteOptions::default()).await
        {
            tracing::debug!(%error, "cannot record an event");
        }
    }
}

impl Controller for RunController {
    type Key = ObjectKey;
    type Error = StepError;

    async fn reconcile(&self, key: &ObjectKey) -> Result<(), StepError> {
        let object = self.get(&self.kinds.runs, &key.0, &key.1).await?;
        let run = match self.local.get(&key.0, &key.1).await {
            Ok(run) => Some(run),
            Err(ExecError::NotFound(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let unaccepted = object.as_ref().filter(|object| run.as_ref().is_none_or(|run| !is_run_of(object, run)));
        match unaccepted.and_then(|object| serde_json::from_value(object.to_value()).ok()) {
            Some(unaccepted) => drop(self.unaccepted.lock().insert(key.clone(), unaccepted)),
            None => drop(self.unaccepted.lock().remove(key)),
        }
        let pods = match &object {
            Some(object) => self.pods(object, run.as_ref().map(|run| &run.status)).await?,
            None => Vec::new(),
        };
        let observed = Observed { object: object.as_ref(), run: run.as_ref(), pods: &pods };
        for action in reconcile(&observed, now_ms()) {
            self.act(key, object.as_ref(), &pods, action).await?;
        }
        Ok(())
    }

    async fn all(&self) -> Vec<ObjectKey> {
        match self.store.list(&self.kinds.runs, &ListOptions::default()).await {
            Ok(page) => page.items.iter().map(key_of).collect(),
            Err(error) => {
                tracing::warn!(%error, "cannot list runs");
                Vec::new()
            }
        }
    }

    fn is_expected(&self, error: &StepError) -> bool {
        // Another client wrote first.
        matches!(error, StepError::Objects(error) if error.is_conflict())
    }
}

/// Treats an object that is deleted already as done.
fn unless_deleted(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::NotFound { .. }) => Ok(()),
        other => other,
    }
}
