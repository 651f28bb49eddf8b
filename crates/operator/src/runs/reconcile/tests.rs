//! Tests of the decisions about a run, without a cluster.

use serde_json::{Value, json};
use slipway_exec::status::Time;
use slipway_exec::{Attempt, QueueStatus, QueueSystem, Submitted};

use super::super::pod;
use super::super::queues::PodQueue;
use super::*;
use crate::names::FINALIZER;

const NOW: i64 = 100_000;
const UID: &str = "00000000-0000-0000-0000-000000000001";
const RUN_ID: &str = "00000000000000000000000000000001";
const DELAY: Duration = Duration::from_millis(20);

fn run(spec: Value, status: RunStatus) -> Run {
    let metadata = json!({"name": "train", "namespace": "team", "uid": UID, "resourceVersion": "7"});
    let object = json!({"apiVersion": "slipway.dev/v1", "kind": "Run", "metadata": metadata, "spec": spec});
    let manifest = serde_json::from_value(object).unwrap();
    Run { version: 7, submitted: Submitted { manifest, status }, deleting: false }
}

fn pod(attempt: u32, observation: Observation) -> Pod {
    let name = pod::name("train", attempt);
    let labels =
        json!({"slipway.dev/run": "train", "slipway.dev/run-uid": UID, "slipway.dev/attempt": attempt.to_string()});
    let owners = json!([{"apiVersion": "slipway.dev/v1", "kind": "Run", "name": "train", "uid": UID}]);
    let metadata = json!({"name": name, "namespace": "team", "labels": labels, "ownerReferences": owners,
        "finalizers": [FINALIZER], "resourceVersion": "9"});
    Pod { observation, ..Pod::from_object(&json!({"metadata": metadata})).unwrap() }
}

fn waiting(reason: &str) -> Observation {
    Observation::Waiting { reason: reason.into(), message: String::new() }
}

fn running() -> Observation {
    Observation::Running { started_at: 90_000, node: "n1".into() }
}

fn finished(outcome: Outcome) -> Observation {
    Observation::Finished { started_at: Some(90_000), finished_at: 99_000, node: "n1".into(), outcome }
}

fn observed<'a>(run: &'a Run, pods: &'a [Pod]) -> Observed<'a> {
    Observed { run: Some(run), pods, rejection: None, usage: None }
}

fn actions(run: &Run, pods: &[Pod]) -> Vec<Action> {
    reconcile(&observed(run, pods), DELAY, NOW)
}

/// The status that the actions write.
fn written(actions: &[Action]) -> &RunStatus {
    let statuses: Vec<&RunStatus> =
        actions.iter().filter_map(|a| if let Action::SetStatus(status) = a { Some(&**status) } else { None }).collect();
    assert_eq!(statuses.len(), 1, "{actions:?}");
    statuses[0]
}

/// The run with the status that the actions write.
fn after(run: &Run, actions: &[Action]) -> Run {
    let mut run = run.clone();
    run.submitted.status = written(actions).clone();
    run
}

#[test]
fn new_run_gets_one_pod() {
    let new = run(json!({"image": "i", "activeDeadlineSeconds": 60}), RunStatus::default());
    let begun = actions(&new, &[]);
    assert!(matches!(begun[0], Action::Start { number: 1, limit: Some(60_000), .. }), "{begun:?}");
    assert_eq!((written(&begun).phase, written(&begun).run_id.as_str()), (Phase::Pending, RUN_ID));
    // The pod is observed before the status, or after it.
    let starting = [pod(1, waiting("ContainerCreating"))];
    for current in [&new, &after(&new, &begun)] {
        assert!(!actions(current, &starting).iter().any(|a| matches!(a, Action::Start { .. })));
    }
    let active = actions(&new, &[pod(1, running())]);
    assert_eq!((active.len(), written(&active).phase), (1, Phase::Running));
    assert_eq!(actions(&after(&new, &active), &[pod(1, running())]), []);
}

#[test]
fn end_is_recorded_before_the_pod_is_released() {
    let attempts = vec![Attempt { number: 1, ..Attempt::default() }];
    let current = run(json!({"image": "i"}), RunStatus { attempts, ..RunStatus::default() });
    let ended = [pod(1, finished(Outcome::Exited(0)))];
    let steps = actions(&current, &ended);
    let [Action::EndTracking(id, tracked), Action::SetStatus(status), Action::ReleasePod(released)] = &steps[..] else {
        panic!("{steps:?}")
    };
    assert_eq!((id.as_str(), tracked.phase, tracked.attributed), (RUN_ID, Phase::Succeeded, false));
    assert_eq!((status.phase, status.attributed, released.name.as_str()), (Phase::Succeeded, true, "train-1"));
    // After a crash in between, the rest is done; then nothing.
    let recorded = after(&current, &steps);
    assert_eq!(actions(&recorded, &ended), [Action::ReleasePod(Box::new(ended[0].clone()))]);
    let kept = Pod { has_finalizer: false, ..ended[0].clone() };
    assert_eq!(actions(&recorded, &[kept]), []);
    // A run whose status was never written has no tracked run that is known to exist.
    assert_eq!(actions(&run(json!({"image": "i"}), RunStatus::default()), &ended)[0], Action::BeginTracking(1));
}

#[test]
fn rejected_pod_is_retried_or_fails_the_run() {
    let new = run(json!({"image": "i"}), RunStatus::default());
    let quota = Rejection::Temporary("QuotaExceeded".into(), "full".into());
    let retried = reconcile(&Observed { rejection: Some(&quota), ..observed(&new, &[]) }, DELAY, NOW);
    assert_eq!((&retried[0], retried.len()), (&Action::RequeueAt(NOW + 20), 2));
    assert_eq!((written(&retried).phase, written(&retried).reason.as_str()), (Phase::Pending, "QuotaExceeded"));
    let invalid = Rejection::invalid("no".into());
    let failed = reconcile(&Observed { rejection: Some(&invalid), ..observed(&new, &[]) }, DELAY, NOW);
    assert_eq!((written(&failed).phase, written(&failed).reason.as_str()), (Phase::Failed, "Invalid"));
    assert_eq!(failed[0], Action::BeginTracking(1));
    // What is known to be rejected is not requested.
    let without_image = actions(&run(json!({"command": ["a"]}), RunStatus::default()), &[]);
    assert_eq!((written(&without_image).reason.as_str(), without_image.len()), ("NoImage", 3));
    let unpinned = json!({"image": "i", "data": [{"repo": "r", "path": "x", "mountPath": "/x"}]});
    assert_eq!(written(&actions(&run(unpinned, RunStatus::default()), &[])).reason, "Invalid");
}

#[test]
fn cancelled_and_deleted_runs_stop_their_pods() {
    let mut deleting = run(json!({"image": "i"}), RunStatus::default());
    deleting.deleting = true;
    let cancelled = run(json!({"image": "i", "cancel": true}), RunStatus::default());
    for run in [&deleting, &cancelled] {
        assert_eq!(written(&actions(run, &[])).phase, Phase::Cancelled);
        let active = [pod(1, running())];
        assert_eq!(actions(run, &active)[0], Action::DeletePod("train-1".into()));
        let leaving = [Pod { deleting: true, ..active[0].clone() }];
        assert_eq!(actions(&after(run, &actions(run, &active)), &leaving), []);
        // No kubelet ends a pod that none accepted.
        let never_accepted = [Pod { deleting: true, ..pod(1, waiting("")) }];
        assert_eq!(actions(run, &never_accepted)[0], Action::ReleasePod(Box::new(never_accepted[0].clone())));
    }
}

#[test]
fn pods_of_deleted_runs_are_deleted() {
    let orphan = Pod { run_uid: "00000000-0000-0000-0000-000000000002".into(), ..pod(1, running()) };
    let status = RunStatus { phase: Phase::Cancelled, reason: "Deleted".into(), ..RunStatus::default() };
    let id = "00000000000000000000000000000002".to_owned();
    let released = Action::ReleasePod(Box::new(orphan.clone()));
    let expected = [Action::DeletePod("train-1".into()), Action::EndTracking(id, Box::new(status)), released];
    let pods = [orphan];
    assert_eq!(reconcile(&Observed { run: None, pods: &pods, rejection: None, usage: None }, DELAY, NOW), expected);
    // A new run of the name is not affected.
    let new = run(json!({"image": "i"}), RunStatus::default());
    let steps = actions(&new, &pods);
    assert_eq!(steps[..3], expected);
    assert!(matches!(steps[3], Action::Start { number: 1, .. }), "{steps:?}");
}

#[test]
fn usage_is_attributed_after_the_end_is_recorded() {
    let spec = json!({"image": "i", "resources": {"limits": {"nvidia.com/gpu": 1}}});
    let current = run(spec, RunStatus::default());
    let ended = [Pod { has_finalizer: false, ..pod(1, finished(Outcome::Exited(0))) }];
    let pending = needs_usage(&observed(&current, &ended), NOW).unwrap();
    assert_eq!((pending.0.phase, pending.1), (Phase::Succeeded, false));
    let with =
        |run: &Run, usage: &Usage| reconcile(&Observed { usage: Some(usage), ..observed(run, &ended) }, DELAY, NOW);
    assert!(written(&with(&current, &Usage::Unobserved)).attributed);
    let steps = actions(&current, &ended);
    assert_eq!((written(&steps).attributed, steps.last()), (false, Some(&Action::RequeueAt(NOW))));

    let mut recorded = after(&current, &steps);
    assert!(needs_usage(&observed(&recorded, &ended), NOW).unwrap().1);
    let usage = |is_complete| Usage::Observed {
        gpus: vec![(1, vec![GpuUse { device: "GPU-1".into(), joules: 2.0, ..GpuUse::default() }])],
        is_complete,
    };
    assert_eq!(with(&recorded, &usage(false)), [Action::RequeueAt(NOW + 2_000)]);
    let steps = with(&recorded, &usage(true));
    assert_eq!((written(&steps).attributed, written(&steps).attempts[0].gpus[0].joules), (true, 2.0));
    assert!(matches!(&steps[0], Action::EndTracking(id, _) if id == RUN_ID));
    assert_eq!(needs_usage(&observed(&after(&recorded, &steps), &ended), NOW), None);
    // Agents that do not respond do not keep a run unattributed.
    recorded.submitted.status.completion_time = Some(Time(NOW - 30_000));
    assert!(written(&with(&recorded, &usage(false))).attributed);
}

#[test]
fn queued_run_shows_its_position_and_is_read_again() {
    let status = QueueStatus { name: "batch".into(), system: QueueSystem::Kueue, position: Some(3) };
    let object = json!({"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "batch"}}});
    let mut queue = PodQueue::from_object(&object).unwrap();
    (queue.status, queue.created_at) = (status.clone(), NOW - 50_000);
    let queued = [Pod { queue: Some(queue), ..pod(1, waiting(QUEUED)) }];
    let current = run(json!({"image": "i"}), RunStatus::default());
    let steps = actions(&current, &queued);
    assert_eq!((&steps[0], written(&steps).queue.as_ref()), (&Action::RequeueAt(NOW + 5_000), Some(&status)));
    let started = [Pod { observation: running(), ..queued[0].clone() }];
    let steps = actions(&current, &started);
    assert_eq!((steps.len(), written(&steps).queue.as_ref().unwrap().position), (1, None));
}

#[test]
fn expired_run_is_deleted() {
    let ended = RunStatus {
        phase: Phase::Succeeded,
        completion_time: Some(Time(90_000)),
        attributed: true,
        run_id: RUN_ID.into(),
        ..RunStatus::default()
    };
    let expiring = |seconds: u32| run(json!({"image": "i", "ttlSecondsAfterFinished": seconds}), ended.clone());
    assert_eq!(actions(&expiring(10), &[]), [Action::Delete]);
    assert_eq!(actions(&expiring(11), &[]), [Action::RequeueAt(101_000)]);
}
