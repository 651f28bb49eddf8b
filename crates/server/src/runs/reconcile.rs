//! What is to be done about a run: a pure function of its object, of the run that the executor has, and of the pods that are stored. It can be
//! repeated or interrupted at any moment, because each of its actions is visible in the next observation.
//!
//! The executor deletes a run only when its object is being deleted. So an object without a run was not submitted yet, unless its status says
//! that it was.

use serde_json::json;
use slipway_exec::lifecycle::{self, Observation, Outcome};
use slipway_exec::pod::FINALIZER;
use slipway_exec::{Manifest, RunSpec, RunStatus, Submitted};
use slipway_objects::Object;
use slipway_objects::meta::ObjectMeta;

use super::pods;

/// What is observed of a run.
pub(super) struct Observed<'a> {
    /// The object of the run.
    pub(super) object: Option<&'a Object>,
    /// The run of this name that the executor has.
    pub(super) run: Option<&'a Submitted>,
    /// The stored pods of the run.
    pub(super) pods: &'a [Object],
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Store the object of a run that was submitted otherwise.
    Import(Box<Object>),
    /// Submit the run to the executor.
    Submit(Box<Manifest>),
    /// Give the executor the changed specification of the run.
    ReplaceSpec(Box<RunSpec>),
    /// Stop the run, and delete it once it has ended.
    Remove,
    /// Write the status of the object.
    SetStatus(Box<RunStatus>),
    /// Create or change a pod.
    PutPod(Box<Object>),
    /// Let the deletion of the object complete.
    Release,
    /// Delete the object, because the time for which it is retained has passed.
    Delete,
    /// Reconcile again at this time, in milliseconds since the Unix epoch.
    RequeueAt(i64),
}

/// What is to be done about a run at the time `now`, in milliseconds since the Unix epoch.
pub(super) fn reconcile(observed: &Observed<'_>, now: i64) -> Vec<Action> {
    let Some(object) = observed.object else {
        return observed.run.map(|run| Action::Import(Box::new(object_of(run)))).into_iter().collect();
    };
    let status = status_of(object);
    let own = observed.run.filter(|run| is_run_of(object, run));
    match own {
        Some(run) => follow(object, &status, run, observed.pods, now),
        None if object.metadata.is_deleting() => {
            let held = observed.pods.iter().filter(|pod| pod.metadata.has_finalizer(FINALIZER));
            let mut actions: Vec<Action> = held.map(|pod| Action::PutPod(Box::new(without_finalizer(pod)))).collect();
            if object.metadata.has_finalizer(FINALIZER) {
                actions.push(Action::Release);
            }
            actions
        }
        None => begin(object, &status, observed.run, now),
    }
}

/// Whether the executor's run is that of the object, and not another one of its name.
pub(super) fn is_run_of(object: &Object, run: &Submitted) -> bool {
    run.manifest.metadata.uid == object.metadata.uid
}

/// The actions for a run that the executor does not have.
fn begin(object: &Object, status: &RunStatus, other: Option<&Submitted>, now: i64) -> Vec<Action> {
    if status.phase.is_final() {
        return expiry(object, status, now);
    }
    let manifest = match manifest_of(object) {
        Ok(manifest) => manifest,
        Err(error) => return vec![Action::SetStatus(Box::new(rejected(status, "Invalid", &error, now)))],
    };
    let next = if other.is_some() {
        let message = format!("another run of the name {:?} was submitted at the same time", manifest.metadata.name);
        rejected(status, "NameTaken", &message, now)
    } else if !status.attempts.is_empty() {
        rejected(status, "Lost", "the files of the run were deleted", now)
    } else if manifest.spec.cancel {
        lifecycle::next(&manifest.spec, status, None, now).0
    } else {
        return vec![Action::Submit(Box::new(manifest))];
    };
    vec![Action::SetStatus(Box::new(next))]
}

/// The actions for a run that the executor has.
fn follow(object: &Object, status: &RunStatus, run: &Submitted, stored: &[Object], now: i64) -> Vec<Action> {
    let mut actions = Vec::new();
    let is_deleting = object.metadata.is_deleting();
    if is_deleting {
        actions.push(Action::Remove);
    } else if let Ok(manifest) = manifest_of(object)
        && !run.status.phase.is_final()
    {
        let current = &run.manifest.spec;
        let desired = RunSpec { cancel: manifest.spec.cancel || current.cancel, ..manifest.spec };
        // The object, and not the executor, decides when the run is deleted.
        let current = RunSpec { ttl_seconds_after_finished: None, ..current.clone() };
        if desired != current {
            actions.push(Action::ReplaceSpec(Box::new(desired)));
        }
    }
    let next = published(&run.status);
    if *status != next {
        actions.push(Action::SetStatus(Box::new(next)));
    }
    for attempt in &run.status.attempts {
        let pod = pods::of_attempt(&run.manifest, &run.status, attempt);
        let known = stored.iter().find(|known| known.metadata.name == pod.metadata.name);
        let is_current = known.is_some_and(|known| is_same(known, &pod));
        // An object that is being deleted gets no more pods.
        if !is_current && (known.is_some() || !is_deleting) {
            actions.push(Action::PutPod(Box::new(pod)));
        }
    }
    if !is_deleting && run.status.attributed {
        actions.extend(expiry(object, &run.status, now));
    }
    actions
}

/// The status for the object. The usage of GPUs changes all the time, so it is written once the attempt has ended.
fn published(status: &RunStatus) -> RunStatus {
    let mut status = status.clone();
    for attempt in status.attempts.iter_mut().filter(|attempt| attempt.finished_at.is_none()) {
        attempt.gpus.clear();
    }
    status
}

/// Whether a stored pod is up to date.
fn is_same(stored: &Object, pod: &Object) -> bool {
    let (stored_meta, meta) = (&stored.metadata, &pod.metadata);
    stored.body == pod.body
        && (&stored_meta.labels, &stored_meta.annotations) == (&meta.labels, &meta.annotations)
        // The garbage collector adds finalizers of its own.
        && stored_meta.has_finalizer(FINALIZER) == meta.has_finalizer(FINALIZER)
}

/// Deletes the object of a finished run when its time has passed.
fn expiry(object: &Object, status: &RunStatus, now: i64) -> Vec<Action> {
    let seconds = object.at(&["spec", "ttlSecondsAfterFinished"]).as_i64();
    let due = seconds.zip(status.completion_time).map(|(seconds, ended)| ended.0 + seconds * 1000);
    match due {
        Some(due) if due <= now => vec![Action::Delete],
        Some(due) => vec![Action::RequeueAt(due)],
        None => Vec::new(),
    }
}

/// The status of a run that can never start. `reason` is one word.
pub(super) fn rejected(status: &RunStatus, reason: &str, message: &str, now: i64) -> RunStatus {
    let number = status.current().map_or(1, |attempt| attempt.number + u32::from(attempt.finished_at.is_some()));
    let outcome = Outcome::CannotStart(reason.to_owned(), message.to_owned());
    let ended = Observation::Finished { started_at: None, finished_at: now, node: String::new(), outcome };
    lifecycle::next(&RunSpec::default(), status, Some((number, &ended)), now).0
}

/// The status of an object; the default if it cannot be read.
pub(super) fn status_of(object: &Object) -> RunStatus {
    serde_json::from_value(object.at(&["status"]).clone()).unwrap_or_default()
}

/// The manifest of a run, as the executor gets it. The error is a sentence.
fn manifest_of(object: &Object) -> Result<Manifest, String> {
    let mut manifest: Manifest = serde_json::from_value(object.to_value()).map_err(|error| error.to_string())?;
    // The object decides how long the run is retained: the executor must not delete a run before its end was recorded.
    manifest.spec.ttl_seconds_after_finished = None;
    Ok(manifest)
}

/// The object of a run that was submitted otherwise.
pub(super) fn object_of(run: &Submitted) -> Object {
    let metadata = &run.manifest.metadata;
    let body = [("spec".to_owned(), json!(run.manifest.spec)), ("status".to_owned(), json!(run.status))];
    Object {
        metadata: ObjectMeta {
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            generation: metadata.generation.unwrap_or(1),
            creation_timestamp: Some(metadata.creation_timestamp.clone()),
            labels: metadata.labels.clone(),
            annotations: metadata.annotations.clone(),
            ..ObjectMeta::default()
        },
        body: body.into_iter().collect(),
        ..Object::default()
    }
}

/// An object without the finalizer of runs.
pub(super) fn without_finalizer(object: &Object) -> Object {
    let mut object = object.clone();
    object.metadata.finalizers.retain(|finalizer| finalizer != FINALIZER);
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use slipway_exec::status::Time;
    use slipway_exec::{Attempt, Phase};

    fn object(spec: Value) -> Object {
        let value = json!({"apiVersion": "slipway.dev/v1", "kind": "Run", "spec": spec,
            "metadata": {"name": "train", "namespace": "default", "uid": "u-1", "finalizers": [FINALIZER]}});
        serde_json::from_value(value).unwrap()
    }

    fn with_status(mut object: Object, status: &RunStatus) -> Object {
        object.body.insert("status".into(), json!(status));
        object
    }

    fn deleting(mut object: Object) -> Object {
        object.metadata.deletion_timestamp = Some("2026-01-01T00:00:00Z".into());
        object
    }

    fn submitted(object: &Object, status: RunStatus) -> Submitted {
        Submitted { manifest: manifest_of(object).unwrap(), status }
    }

    fn running() -> RunStatus {
        let attempts = vec![Attempt { number: 1, started_at: Some(Time(1)), ..Attempt::default() }];
        RunStatus { phase: Phase::Running, attempts, ..RunStatus::default() }
    }

    fn actions(object: Option<&Object>, run: Option<&Submitted>, pods: &[Object]) -> Vec<Action> {
        reconcile(&Observed { object, run, pods }, 100_000)
    }

    fn final_status(actions: &[Action]) -> &RunStatus {
        match actions {
            [Action::SetStatus(status)] => status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn new_object_is_submitted_once() {
        let new = object(json!({"command": ["a"], "ttlSecondsAfterFinished": 5}));
        let [Action::Submit(manifest)] = &actions(Some(&new), None, &[])[..] else { panic!("not submitted") };
        assert_eq!((manifest.metadata.uid.as_str(), manifest.spec.ttl_seconds_after_finished), ("u-1", None));
        let run = submitted(&new, RunStatus::default());
        assert_eq!(actions(Some(&new), Some(&run), &[]), []);
        // A run that was started and is not there any more is not started again.
        let started = with_status(new, &running());
        let lost = actions(Some(&started), None, &[]);
        assert_eq!((final_status(&lost).phase, final_status(&lost).reason.as_str()), (Phase::Failed, "Lost"));
        let ended = with_status(started, final_status(&lost));
        assert_eq!(actions(Some(&ended), None, &[]), [Action::RequeueAt(105_000)]);
    }

    #[test]
    fn runs_that_cannot_start_fail_with_a_message() {
        let odd = object(json!({"command": ["a"], "env": [{"name": "A", "value": 1}]}));
        assert_eq!(final_status(&actions(Some(&odd), None, &[])).reason, "Invalid");
        let new = object(json!({"command": ["a"]}));
        let mut other = submitted(&new, RunStatus::default());
        other.manifest.metadata.uid = "u-2".into();
        assert_eq!(final_status(&actions(Some(&new), Some(&other), &[])).reason, "NameTaken");
        let cancelled = object(json!({"command": ["a"], "cancel": true}));
        assert_eq!(final_status(&actions(Some(&cancelled), None, &[])).phase, Phase::Cancelled);
    }

    #[test]
    fn status_and_pods_follow_the_run() {
        let new = object(json!({"command": ["a"]}));
        let run = submitted(&new, running());
        let [Action::SetStatus(status), Action::PutPod(pod)] = &actions(Some(&new), Some(&run), &[])[..] else {
            panic!("status and pod are not written")
        };
        let current = with_status(new, status);
        let pods = [(**pod).clone()];
        assert_eq!(actions(Some(&current), Some(&run), &pods), []);
        // A changed specification reaches the executor, and a cancellation is never undone.
        let mut changed = current.clone();
        changed.body["spec"]["backoffLimit"] = json!(3);
        let mut cancelled = run.clone();
        cancelled.manifest.spec.cancel = true;
        let [Action::ReplaceSpec(spec)] = &actions(Some(&changed), Some(&cancelled), &pods)[..] else {
            panic!("the specification is not replaced")
        };
        assert_eq!((spec.backoff_limit, spec.cancel), (3, true));
    }

    #[test]
    fn deletion_waits_for_the_program() {
        let new = object(json!({"command": ["a"]}));
        let run = submitted(&new, running());
        let leaving = deleting(with_status(new, &running()));
        assert_eq!(actions(Some(&leaving), Some(&run), &[]), [Action::Remove], "no pod is created any more");
        let pod = pods::of_attempt(&run.manifest, &run.status, &run.status.attempts[0]);
        let ended = actions(Some(&leaving), None, std::slice::from_ref(&pod));
        assert_eq!(ended, [Action::PutPod(Box::new(without_finalizer(&pod))), Action::Release]);
        assert_eq!(actions(Some(&without_finalizer(&leaving)), None, &[]), []);
    }

    #[test]
    fn finished_object_expires() {
        let ended = RunStatus {
            phase: Phase::Succeeded,
            completion_time: Some(Time(90_000)),
            attributed: true,
            ..RunStatus::default()
        };
        let expiring =
            |seconds: i64| with_status(object(json!({"command": ["a"], "ttlSecondsAfterFinished": seconds})), &ended);
        let run = submitted(&expiring(10), ended.clone());
        assert_eq!(actions(Some(&expiring(10)), Some(&run), &[]), [Action::Delete]);
        assert_eq!(actions(Some(&expiring(11)), Some(&run), &[]), [Action::RequeueAt(101_000)]);
    }

    #[test]
    fn run_submitted_otherwise_gets_an_object() {
        let run = submitted(&object(json!({"command": ["a"]})), running());
        let [Action::Import(object)] = &actions(None, Some(&run), &[])[..] else { panic!("no object") };
        assert_eq!((object.metadata.uid.as_str(), status_of(object)), ("u-1", running()));
        assert_eq!(actions(None, None, &[]), []);
    }
}
