//! What is to be done about a run in a cluster: a pure function of the run, of its pods, and of what else is observed of it. It can be repeated
//! or interrupted at any moment, because each of its actions is visible in the next observation.
//!
//! A pod that has the finalizer is released only after the end of its attempt was recorded, so no end is lost.

use std::time::Duration;

use slipway_exec::lifecycle::{self, Observation, Outcome, TRANSIENT_REASONS};
use slipway_exec::status::QUEUED;
use slipway_exec::{GpuUse, Phase, RunStatus, tracked_id};

use super::data::PodData;
use super::known::Run;
use super::pod::Pod;

/// Maximum time after the end of a run to wait for complete usage, in milliseconds.
const USAGE_TIMEOUT_MS: i64 = 30_000;
/// Interval at which incomplete usage is read again, in milliseconds: agents notice the end of a pod some seconds later.
const USAGE_INTERVAL_MS: i64 = 2_000;
/// Maximum interval at which the position of a queued run is read again, in milliseconds.
const MAX_QUEUE_INTERVAL_MS: i64 = 300_000;

/// What is observed of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Observed<'a> {
    /// The run; `None` if it was deleted.
    pub(super) run: Option<&'a Run>,
    /// The pods that name the run, the newest attempt last. They may be those of an earlier run of the same name.
    pub(super) pods: &'a [Pod],
    /// Why the pod of the next attempt has just been rejected.
    pub(super) rejection: Option<&'a Rejection>,
    /// The GPU usage of the run; `None` if it was not read.
    pub(super) usage: Option<&'a Usage>,
}

/// Why a pod was not created.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Rejection {
    /// Creating the pod is retried. Reason in one CamelCase word, and message.
    Temporary(String, String),
    /// Creating the pod would be rejected again.
    Permanent(Outcome),
}

impl Rejection {
    /// The API server, or the system of the queue, rejects the pod.
    pub(super) fn invalid(message: String) -> Self {
        Self::Permanent(Outcome::CannotStart("Invalid".into(), message))
    }
}

/// The GPU usage of a run that has ended, as the agents of its nodes know it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Usage {
    /// No agent observed the GPUs of the run.
    Unobserved,
    /// Agents observed them.
    Observed {
        /// The usage of each attempt, by its number.
        gpus: Vec<(u32, Vec<GpuUse>)>,
        /// Whether all leases of the run have ended and were read.
        is_complete: bool,
    },
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Create the pod of an attempt. If it is rejected, the following actions are not carried out, but those for the rejection.
    Start {
        /// Number of the attempt, from 1.
        number: u32,
        /// Milliseconds until the deadline of the run; `None` if it has none.
        limit: Option<i64>,
        /// The data of the run in the pod.
        data: Box<PodData>,
    },
    /// Delete the pod of this name.
    DeletePod(String),
    /// Remove the finalizer from a pod, so that it can be deleted.
    ReleasePod(Box<Pod>),
    /// Create the tracked run, for an attempt with this number.
    BeginTracking(u32),
    /// Record the status in the tracked run with this id.
    EndTracking(String, Box<RunStatus>),
    /// Write the status of the run.
    SetStatus(Box<RunStatus>),
    /// Delete the run, because the time for which it is retained has passed.
    Delete,
    /// Reconcile again at this time, in milliseconds since the Unix epoch.
    RequeueAt(i64),
}

/// What is to be done about a run at the time `now`, in milliseconds since the Unix epoch. After `retry_delay`, creating a rejected pod is
/// retried; it is also the shortest interval at which the position of a queued run is read again.
pub(super) fn reconcile(observed: &Observed<'_>, retry_delay: Duration, now: i64) -> Vec<Action> {
    let is_own = |pod: &&Pod| observed.run.is_some_and(|run| run.submitted.manifest.metadata.uid == pod.run_uid);
    let (pods, orphans): (Vec<&Pod>, Vec<&Pod>) = observed.pods.iter().partition(is_own);
    let mut actions: Vec<Action> = orphans.into_iter().flat_map(delete_orphan).collect();
    let Some(run) = observed.run else { return actions };
    let retry_delay = i64::try_from(retry_delay.as_millis()).unwrap_or(i64::MAX);

    let newest = pods.last().copied();
    actions.extend(newest.and_then(|pod| queue_interval(pod, retry_delay, now)).map(Action::RequeueAt));
    let Next { status, actions: steps } = next(observed, retry_delay, now);
    actions.extend(steps);
    // A pod that is deleted before a kubelet accepted it never ends, so it is released here.
    let never_ends = |pod: &&Pod| pod.deleting && pod.has_finalizer && is_waiting(pod);
    actions.extend(newest.filter(never_ends).map(|pod| Action::ReleasePod(Box::new(pod.clone()))));
    actions.extend(record(run, observed.usage, status.clone(), now));
    actions.extend(
        pods.into_iter().filter(|pod| is_recorded(pod, &status)).cloned().map(Box::new).map(Action::ReleasePod),
    );
    actions.extend(attribute(run, observed.usage, now));
    actions
}

/// The status of a run whose GPU usage is to be read for the next step. With `false`, it is only needed whether any agent observed it.
pub(super) fn needs_usage(observed: &Observed<'_>, now: i64) -> Option<(RunStatus, bool)> {
    let run = observed.run.filter(|run| !run.submitted.status.attributed)?;
    if run.submitted.status.phase.is_final() {
        return Some((run.submitted.status.clone(), true));
    }
    let status = next(observed, 0, now).status;
    (status.phase.is_final() && requests_gpus(run)).then_some((status, false))
}

fn requests_gpus(run: &Run) -> bool {
    let spec = &run.submitted.manifest.spec;
    !spec.resources.gpus().is_empty() || !spec.resource_claims.is_empty()
}

fn is_waiting(pod: &Pod) -> bool {
    matches!(pod.observation, Observation::Waiting { .. })
}

/// Deletes a pod whose run does not exist any more, and ends the tracked run.
fn delete_orphan(pod: &Pod) -> Vec<Action> {
    let mut actions = Vec::new();
    if !pod.deleting {
        actions.push(Action::DeletePod(pod.name.clone()));
    }
    if pod.has_finalizer {
        let status = RunStatus { phase: Phase::Cancelled, reason: "Deleted".into(), ..RunStatus::default() };
        actions.push(Action::EndTracking(tracked_id(&pod.run_uid), Box::new(status)));
        actions.push(Action::ReleasePod(Box::new(pod.clone())));
    }
    actions
}

/// When the position of a pod that waits in a queue is read again: the controller watches pods, but not the objects of queues. Long waits
/// change seldom, so a thousand queued runs cause few requests.
fn queue_interval(pod: &Pod, retry_delay: i64, now: i64) -> Option<i64> {
    let queue = pod.queue.as_ref().filter(|_| !pod.deleting)?;
    let is_queued = matches!(&pod.observation, Observation::Waiting { reason, .. } if reason == QUEUED);
    let waited = now.saturating_sub(queue.created_at).max(0);
    is_queued.then(|| now + (waited / 10).min(MAX_QUEUE_INTERVAL_MS).max(retry_delay))
}

/// The next status of a run, and the actions that lead to it.
struct Next {
    status: RunStatus,
    actions: Vec<Action>,
}

/// The next step of a run that exists.
fn next(observed: &Observed<'_>, retry_delay: i64, now: i64) -> Next {
    let Some(run) = observed.run else { return Next { status: RunStatus::default(), actions: Vec::new() } };
    let submitted = &run.submitted;
    let uid = &submitted.manifest.metadata.uid;
    let newest = observed.pods.iter().rfind(|pod| pod.run_uid == *uid);
    let mut spec = submitted.manifest.spec.clone();
    // A run that is being deleted must not get another pod.
    spec.cancel |= run.deleting;
    let observation = newest.map(|pod| (pod.attempt, &pod.observation));
    let (mut status, action) = lifecycle::next(&spec, &submitted.status, observation, now);
    if let Some(Observation::Waiting { reason, .. }) = newest.map(|pod| &pod.observation)
        && TRANSIENT_REASONS.contains(&reason.as_str())
        && submitted.status.current().is_none_or(|attempt| attempt.finished_at.is_some())
    {
        status = submitted.status.clone();
        // The old reason explained why there was no pod. Now there is one.
        status.reason.clear();
        status.message.clear();
    }
    status.run_id = tracked_id(uid);
    status.data = slipway_exec::data::pinned(&spec.data);
    if let Some(queue) = newest.and_then(|pod| pod.queue.as_ref()) {
        let mut queue = queue.status.clone();
        queue.position = queue.position.filter(|_| status.phase == Phase::Pending);
        status.queue = Some(queue);
    }
    let mut actions = Vec::new();
    match action {
        lifecycle::Action::Nothing => {}
        lifecycle::Action::Start(number, limit) => match startable(run, observed.rejection) {
            Ok(data) => actions.push(Action::Start { number, limit, data }),
            Err(Rejection::Temporary(reason, message)) => {
                actions.push(Action::RequeueAt(now + retry_delay));
                (status.reason, status.message) = (reason, message);
            }
            Err(Rejection::Permanent(outcome)) => {
                let node = String::new();
                let ended = Observation::Finished { started_at: None, finished_at: now, node, outcome };
                status = lifecycle::next(&submitted.manifest.spec, &status, Some((number, &ended)), now).0;
            }
        },
        lifecycle::Action::Stop => {
            let pod = newest.filter(|pod| !pod.deleting);
            actions.extend(pod.map(|pod| Action::DeletePod(pod.name.clone())));
        }
        lifecycle::Action::RequeueAt(at) => actions.push(Action::RequeueAt(at)),
        lifecycle::Action::Delete => actions.push(Action::Delete),
    }
    Next { status, actions }
}

/// The data for the pod of a run, unless it is known that the pod cannot be created.
fn startable(run: &Run, rejection: Option<&Rejection>) -> Result<Box<PodData>, Rejection> {
    if let Some(rejection) = rejection {
        return Err(rejection.clone());
    }
    let spec = &run.submitted.manifest.spec;
    if spec.image.is_none() {
        let message = "spec.image is missing: a run in a cluster needs an image".to_owned();
        return Err(Rejection::Permanent(Outcome::CannotStart("NoImage".into(), message)));
    }
    PodData::new(spec).map(Box::new).map_err(Rejection::invalid)
}

/// Writes the status of a run if it changed. The end of a run is recorded in the tracked run first.
fn record(run: &Run, usage: Option<&Usage>, mut status: RunStatus, now: i64) -> Vec<Action> {
    let before = &run.submitted.status;
    let mut actions = Vec::new();
    let has_ended = status.phase.is_final() && !before.phase.is_final();
    if has_ended {
        if before.attempts.is_empty() {
            actions.push(Action::BeginTracking(1));
        }
        actions.push(Action::EndTracking(status.run_id.clone(), Box::new(status.clone())));
        // If no agent observed the GPUs of this run, there is no usage to attribute.
        status.attributed = !requests_gpus(run) || usage == Some(&Usage::Unobserved);
    }
    let is_unattributed = has_ended && !status.attributed;
    if status != *before {
        actions.push(Action::SetStatus(Box::new(status)));
    }
    // The usage is read once the end is recorded, which must not wait for agents.
    actions.extend(is_unattributed.then_some(Action::RequeueAt(now)));
    actions
}

/// Whether a pod has the finalizer although the end of its attempt is in the status.
fn is_recorded(pod: &Pod, status: &RunStatus) -> bool {
    let oldest = status.attempts.first().map_or(u32::MAX, |attempt| attempt.number);
    let is_recorded = status.attempts.iter().any(|a| a.number == pod.attempt && a.finished_at.is_some());
    pod.has_finalizer && pod.is_finished() && (is_recorded || pod.attempt < oldest)
}

/// Attaches the GPU usage of a run, whose end is recorded, to the tracked run.
fn attribute(run: &Run, usage: Option<&Usage>, now: i64) -> Vec<Action> {
    let before = &run.submitted.status;
    let Some(usage) = usage.filter(|_| before.phase.is_final() && !before.attributed) else { return Vec::new() };
    let mut status = before.clone();
    if let Usage::Observed { gpus, is_complete } = usage {
        let ended = before.completion_time.map_or(0, |time| time.0);
        if !is_complete && now - ended < USAGE_TIMEOUT_MS {
            return vec![Action::RequeueAt(now + USAGE_INTERVAL_MS)];
        }
        for attempt in &mut status.attempts {
            if let Some((_, gpus)) = gpus.iter().find(|(number, _)| *number == attempt.number) {
                attempt.gpus.clone_from(gpus);
            }
        }
    }
    let recorded = Action::EndTracking(status.run_id.clone(), Box::new(status.clone()));
    status.attributed = true;
    vec![recorded, Action::SetStatus(Box::new(status))]
}

#[cfg(test)]
mod tests;
