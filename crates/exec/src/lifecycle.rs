//! The state machine of a run: a pure function from its spec, its status, the observation of its newest attempt, and the time to the
//! next status and action. It keeps no state and has no side effects, so an executor may call it any number of times, after any crash
//! and from any trigger.
//!
//! The rules are those of a job (`batch/v1`): failures count against `backoffLimit` and are retried with a backoff that doubles;
//! disruptions (eviction, preemption, loss of the node) are retried without counting, as with a `podFailurePolicy` that ignores
//! `DisruptionTarget`.

use crate::manifest::RunSpec;
use crate::status::{Attempt, Condition, Phase, QUEUED, RunStatus, Time};

/// Backoff before the first retry, in milliseconds; it doubles with each failure.
const FIRST_BACKOFF_MS: i64 = 2_000;
/// Maximum backoff before a retry, in milliseconds.
const MAX_BACKOFF_MS: i64 = 300_000;
/// Maximum disruptions of a run. More of them point to a fault of the cluster, so the run fails.
const MAX_DISRUPTIONS: u32 = 20;
/// Number of attempts retained in a status: the newest ones.
const MAX_RETAINED_ATTEMPTS: usize = 10;

/// Waiting reasons that every attempt passes through in a moment. They are worth neither a change of a status nor an event.
pub const TRANSIENT_REASONS: [&str; 5] = ["", "Starting", "ContainerCreating", "PodInitializing", "SchedulingGated"];

/// The observed state of an attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Observation {
    /// The program has not started yet, for instance because there is no capacity, no image or no quota.
    Waiting {
        /// Reason in one CamelCase word.
        reason: String,
        /// Explanation in a sentence; may be empty.
        message: String,
    },
    /// The program is running.
    Running {
        /// When the program started, in milliseconds since the Unix epoch.
        started_at: i64,
        /// Name of the node or machine.
        node: String,
    },
    /// The attempt has ended.
    Finished {
        /// When the program started, in milliseconds since the Unix epoch; `None` if it never started.
        started_at: Option<i64>,
        /// When the attempt ended, in milliseconds since the Unix epoch.
        finished_at: i64,
        /// Name of the node or machine; empty if the attempt never reached one.
        node: String,
        /// How the attempt ended.
        outcome: Outcome,
    },
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The program exited with this code.
    Exited(i32),
    /// A signal ended the program, and the executor did not send it.
    Signalled(i32),
    /// The program exceeded its memory limit.
    OutOfMemory,
    /// The attempt exceeded the deadline of the run.
    TimedOut,
    /// The executor stopped the attempt.
    Stopped,
    /// An external cause ended the attempt, such as an eviction. Reason in one CamelCase word, and message.
    Disrupted(String, String),
    /// The program can never start. Reason in one CamelCase word, and message.
    CannotStart(String, String),
}

/// What the executor has to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing, until the observation changes.
    Nothing,
    /// Start the attempt with this number. It may run for this many milliseconds; without limit if `None`.
    Start(u32, Option<i64>),
    /// Stop the newest attempt.
    Stop,
    /// Call [`next`] again at this time, in milliseconds since the Unix epoch.
    RequeueAt(i64),
    /// Delete the run: `ttlSecondsAfterFinished` has passed.
    Delete,
}

/// Computes the next status and action. `observed` is the observation of the attempt with that number; `now` is in milliseconds since
/// the Unix epoch.
pub fn next(
    spec: &RunSpec,
    status: &RunStatus,
    observed: Option<(u32, &Observation)>,
    now: i64,
) -> (RunStatus, Action) {
    let mut status = status.clone();
    if status.phase.is_final() {
        let ended = status.completion_time.map_or(now, |t| t.0);
        let action = match spec.ttl_seconds_after_finished.map(|s| ended + i64::from(s) * 1000) {
            // Delete only after GPU usage has been attributed.
            Some(due) if due <= now && status.attributed => Action::Delete,
            Some(due) => Action::RequeueAt(due.max(now + 1000)),
            None => Action::Nothing,
        };
        return (status, action);
    }
    // The recorded end of an attempt is final: ignore later observations of it.
    let newest = status.current().map(|a| (a.number, a.finished_at.is_some()));
    let (number, finished) = newest.unwrap_or((0, true));
    let active = match observed {
        // The attempt was started, but the executor stopped before it wrote the status.
        Some((n, observation)) if n > number => Some((n, observation)),
        Some((n, observation)) if n == number && !finished => Some((n, observation)),
        _ => None,
    };
    match active {
        Some((n, Observation::Waiting { reason, message })) => {
            if n > number {
                status.attempts.push(Attempt { number: n, ..Attempt::default() });
            }
            set_phase(&mut status, Phase::Pending, reason, message);
            (trim_attempts(status), if spec.cancel { Action::Stop } else { Action::Nothing })
        }
        Some((n, Observation::Running { started_at, node })) => {
            let attempt = attempt(&mut status, n);
            attempt.started_at.get_or_insert(Time(*started_at));
            attempt.node.clone_from(node);
            status.node.clone_from(node);
            status.start_time.get_or_insert(Time(*started_at));
            set_phase(&mut status, Phase::Running, "Running", "");
            (trim_attempts(status), if spec.cancel { Action::Stop } else { Action::Nothing })
        }
        Some((n, Observation::Finished { started_at, finished_at, node, outcome })) => {
            let attempt = attempt(&mut status, n);
            if let Some(started_at) = started_at {
                attempt.started_at.get_or_insert(Time(*started_at));
            }
            attempt.finished_at = Some(Time(*finished_at));
            attempt.node.clone_from(node);
            let (reason, message, code) = describe(outcome, spec);
            attempt.exit_code = code;
            attempt.reason.clone_from(&reason);
            attempt.message.clone_from(&message);
            status.node.clone_from(node);
            if let (Some(started_at), None) = (started_at, status.start_time) {
                status.start_time = Some(Time(*started_at));
            }
            apply_outcome(spec, &mut status, outcome, reason, message, *finished_at, now)
        }
        None if !finished => {
            // The status says that the attempt was started, but nothing of it exists any more.
            let outcome = Outcome::Disrupted("Lost".into(), "the attempt was started but no longer exists".into());
            let lost = Observation::Finished { started_at: None, finished_at: now, node: status.node.clone(), outcome };
            next(spec, &status, Some((number, &lost)), now)
        }
        None if spec.cancel => {
            finish(&mut status, Phase::Cancelled, "Cancelled", "the run was cancelled before it started", now);
            (status, Action::Nothing)
        }
        None => start(spec, status, number + 1, now),
    }
}

/// Whether a change of a status is worth an event, with the reason and the message of the new status: the run ended, or it is pending for a
/// new reason. The value is whether the event is a warning.
pub fn event_of(before: &RunStatus, after: &RunStatus) -> Option<bool> {
    if before.phase != after.phase && after.phase.is_final() {
        return Some(after.phase == Phase::Failed);
    }
    let is_new = before.reason != after.reason && !TRANSIENT_REASONS.contains(&after.reason.as_str());
    (after.phase == Phase::Pending && is_new).then_some(after.reason != QUEUED)
}

/// Starts the next attempt, or waits until its backoff has passed.
fn start(spec: &RunSpec, mut status: RunStatus, number: u32, now: i64) -> (RunStatus, Action) {
    // Retry at once after the first disruption; back off when disruptions repeat, as when a kubelet keeps rejecting pods.
    let counted = status.failures + status.disruptions.saturating_sub(1);
    let due = status.current().and_then(|a| a.finished_at).map_or(0, |ended| ended.0 + backoff(counted));
    let deadline_from = |start: Time| spec.active_deadline_seconds.map(|s| start.0 + i64::from(s) * 1000);
    let deadline = status.start_time.and_then(deadline_from);
    if deadline.is_some_and(|d| d <= now.max(due)) {
        let message = deadline_message(spec);
        finish(&mut status, Phase::Failed, "DeadlineExceeded", &message, now);
        return (status, Action::Nothing);
    }
    if due > now {
        return (status, Action::RequeueAt(due));
    }
    let limit = deadline.map(|d| d - now).or_else(|| spec.active_deadline_seconds.map(|s| i64::from(s) * 1000));
    (status, Action::Start(number, limit))
}

/// Backoff in milliseconds before the next attempt, after this many unsuccessful attempts.
fn backoff(unsuccessful: u32) -> i64 {
    match unsuccessful {
        0 => 0,
        n => FIRST_BACKOFF_MS.saturating_mul(1 << (n - 1).min(20)).min(MAX_BACKOFF_MS),
    }
}

fn deadline_message(spec: &RunSpec) -> String {
    format!("the run exceeded its deadline of {} s", spec.active_deadline_seconds.unwrap_or(0))
}

/// Reason (one CamelCase word), message and exit code of an outcome.
fn describe(outcome: &Outcome, spec: &RunSpec) -> (String, String, Option<i32>) {
    match outcome {
        Outcome::Exited(0) => ("Completed".into(), String::new(), Some(0)),
        Outcome::Exited(code) => ("Error".into(), format!("the program exited with code {code}"), Some(*code)),
        Outcome::Signalled(signal) => {
            let hint = if *signal == 9 { ", possibly because the machine ran out of memory" } else { "" };
            // The exit code that a shell and the kubelet report for a signal.
            ("Error".into(), format!("the program was ended by signal {signal}{hint}"), Some(128 + signal))
        }
        Outcome::OutOfMemory => {
            let limit = spec.resources.limits.get("memory");
            let limit = limit.and_then(|q| serde_json::to_value(q).ok()).map_or(String::new(), |q| format!(" of {q}"));
            ("OOMKilled".into(), format!("the program exceeded its memory limit{limit}").replace('"', ""), Some(137))
        }
        Outcome::TimedOut => ("DeadlineExceeded".into(), deadline_message(spec), None),
        Outcome::Stopped => ("Cancelled".into(), "the run was cancelled".into(), None),
        Outcome::Disrupted(reason, message) | Outcome::CannotStart(reason, message) => {
            (reason.clone(), message.clone(), None)
        }
    }
}

/// Updates the run after an attempt has ended: final status, or next attempt.
fn apply_outcome(
    spec: &RunSpec,
    status: &mut RunStatus,
    outcome: &Outcome,
    reason: String,
    message: String,
    at: i64,
    now: i64,
) -> (RunStatus, Action) {
    match outcome {
        Outcome::Exited(0) => finish(status, Phase::Succeeded, &reason, "", at),
        _ if spec.cancel => finish(status, Phase::Cancelled, "Cancelled", "the run was cancelled", at),
        Outcome::TimedOut | Outcome::CannotStart(..) => finish(status, Phase::Failed, &reason, &message, at),
        Outcome::Disrupted(..) | Outcome::Stopped if status.disruptions < MAX_DISRUPTIONS => status.disruptions += 1,
        Outcome::Disrupted(..) | Outcome::Stopped => {
            let message =
                format!("the run was disrupted more than {MAX_DISRUPTIONS} times; the last disruption: {message}");
            finish(status, Phase::Failed, &reason, &message, at);
        }
        Outcome::Exited(_) | Outcome::Signalled(_) | Outcome::OutOfMemory => {
            status.failures += 1;
            if status.failures > spec.backoff_limit {
                let attempts = match spec.backoff_limit {
                    0 => String::new(),
                    _ => format!(" in the last of {} attempts", status.failures),
                };
                finish(status, Phase::Failed, &reason, &format!("{message}{attempts}"), at);
            } else {
                let message =
                    format!("{message}; attempt {} of {} follows", status.failures + 1, spec.backoff_limit + 1);
                set_phase(status, Phase::Pending, &reason, &message);
            }
        }
    }
    let status = std::mem::take(status);
    if status.phase.is_final() {
        return (trim_attempts(status), Action::Nothing);
    }
    let number = status.current().map_or(0, |a| a.number);
    let mut status = trim_attempts(status);
    if matches!(outcome, Outcome::Disrupted(..) | Outcome::Stopped) {
        set_phase(&mut status, Phase::Pending, &reason, &format!("{message}; the run will be restarted"));
    }
    start(spec, status, number + 1, now)
}

/// The entry of this attempt in the status, added if it is missing.
fn attempt(status: &mut RunStatus, number: u32) -> &mut Attempt {
    if status.current().is_none_or(|a| a.number != number) {
        status.attempts.push(Attempt { number, ..Attempt::default() });
    }
    status.attempts.last_mut().expect("one was pushed if there was none")
}

fn set_phase(status: &mut RunStatus, phase: Phase, reason: &str, message: &str) {
    status.phase = phase;
    reason.clone_into(&mut status.reason);
    message.clone_into(&mut status.message);
}

/// Moves the run to a final phase.
fn finish(status: &mut RunStatus, phase: Phase, reason: &str, message: &str, at: i64) {
    set_phase(status, phase, reason, message);
    status.completion_time = Some(Time(at));
    status.conditions = vec![Condition {
        kind: if phase == Phase::Succeeded { "Complete" } else { "Failed" }.into(),
        status: "True".into(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Time(at),
    }];
}

fn trim_attempts(mut status: RunStatus) -> RunStatus {
    let excess = status.attempts.len().saturating_sub(MAX_RETAINED_ATTEMPTS);
    status.attempts.drain(..excess);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(at: i64, outcome: Outcome) -> Observation {
        Observation::Finished { started_at: Some(at - 10), finished_at: at, node: "n".into(), outcome }
    }

    fn spec(change: impl FnOnce(&mut RunSpec)) -> RunSpec {
        let mut spec = RunSpec { command: vec!["a".into()], ..RunSpec::default() };
        change(&mut spec);
        spec
    }

    /// Applies a sequence of observations, as an executor would.
    fn replay(spec: &RunSpec, observations: &[(i64, Option<(u32, Observation)>)]) -> (RunStatus, Vec<Action>) {
        let mut status = RunStatus::default();
        let mut actions = Vec::new();
        for (now, observed) in observations {
            let (after, action) = next(spec, &status, observed.as_ref().map(|(n, o)| (*n, o)), *now);
            let repeated = next(spec, &after, observed.as_ref().map(|(n, o)| (*n, o)), *now);
            assert_eq!(repeated.0, after, "a repeated call changed {after:?}");
            status = after;
            actions.push(action);
        }
        (status, actions)
    }

    #[test]
    fn successful_run_passes_through_every_phase() {
        let running = Observation::Running { started_at: 90, node: "n".into() };
        let (status, actions) = replay(
            &spec(|_| ()),
            &[(0, None), (100, Some((1, running))), (200, Some((1, finished(190, Outcome::Exited(0)))))],
        );
        assert_eq!(actions, [Action::Start(1, None), Action::Nothing, Action::Nothing]);
        assert_eq!((status.phase, status.reason.as_str(), status.attempts.len()), (Phase::Succeeded, "Completed", 1));
        assert_eq!((status.start_time, status.completion_time), (Some(Time(90)), Some(Time(190))));
        assert_eq!(status.conditions[0].kind, "Complete");
    }

    #[test]
    fn failures_are_retried_with_backoff_up_to_the_limit() {
        let spec = spec(|s| s.backoff_limit = 2);
        let (status, actions) = replay(
            &spec,
            &[
                (0, None),
                (100, Some((1, finished(100, Outcome::Exited(1))))),
                (2100, Some((1, finished(100, Outcome::Exited(1))))),
                (3000, Some((2, finished(3000, Outcome::Signalled(9))))),
                (7000, Some((2, finished(3000, Outcome::Signalled(9))))),
                (8000, Some((3, finished(8000, Outcome::OutOfMemory)))),
            ],
        );
        assert_eq!(
            actions,
            [
                Action::Start(1, None),
                Action::RequeueAt(2100),
                Action::Start(2, None),
                Action::RequeueAt(7000),
                Action::Start(3, None),
                Action::Nothing
            ]
        );
        assert_eq!((status.phase, status.reason.as_str(), status.failures), (Phase::Failed, "OOMKilled", 3));
        assert_eq!(status.attempts.iter().map(|a| a.exit_code).collect::<Vec<_>>(), [Some(1), Some(137), Some(137)]);
    }

    #[test]
    fn disruptions_do_not_count_as_failures() {
        let evicted = Outcome::Disrupted("Evicted".into(), "the node was low on memory".into());
        let (status, actions) = replay(
            &spec(|_| ()),
            &[(0, None), (50, Some((1, finished(50, evicted)))), (60, Some((2, finished(60, Outcome::Exited(0)))))],
        );
        assert_eq!(actions, [Action::Start(1, None), Action::Start(2, None), Action::Nothing]);
        assert_eq!((status.phase, status.disruptions, status.failures), (Phase::Succeeded, 1, 0));
        // Repeated disruptions back off.
        let rejected = Outcome::Disrupted("UnexpectedAdmissionError".into(), "no such device".into());
        let observations: Vec<_> =
            (1..=3).map(|n| (i64::from(n) * 10, Some((n, finished(i64::from(n) * 10, rejected.clone()))))).collect();
        let (_, actions) = replay(&spec(|_| ()), &observations);
        assert_eq!(actions, [Action::Start(2, None), Action::RequeueAt(2020), Action::RequeueAt(4030)]);
    }

    #[test]
    fn lost_attempt_is_restarted() {
        let waiting = Observation::Waiting { reason: "Scheduling".into(), message: String::new() };
        let (status, actions) = replay(&spec(|_| ()), &[(0, None), (10, Some((1, waiting))), (20, None)]);
        assert_eq!(actions[2], Action::Start(2, None));
        assert_eq!((status.attempts[0].reason.as_str(), status.disruptions), ("Lost", 1));
    }

    #[test]
    fn run_fails_after_too_many_disruptions() {
        let spec = spec(|_| ());
        let mut status = RunStatus::default();
        for n in 1..=40 {
            let observation = finished(i64::from(n), Outcome::Disrupted("NodeLost".into(), "node lost".into()));
            status = next(&spec, &status, Some((n, &observation)), i64::from(n)).0;
        }
        assert_eq!((status.phase, status.attempts.len()), (Phase::Failed, MAX_RETAINED_ATTEMPTS));
        assert!(status.message.contains("20 times"), "{}", status.message);
    }

    #[test]
    fn deadline_covers_all_attempts() {
        let spec = spec(|s| {
            s.active_deadline_seconds = Some(3);
            s.backoff_limit = 5;
        });
        let (status, actions) = replay(&spec, &[(0, None), (1000, Some((1, finished(1000, Outcome::Exited(1)))))]);
        assert_eq!(actions[0], Action::Start(1, Some(3000)));
        // The program started at 990, so the deadline is at 3990.
        assert_eq!(actions[1], Action::RequeueAt(3000));
        let (status, action) = next(&spec, &status, None, 3000);
        assert_eq!(action, Action::Start(2, Some(990)));
        let (status, _) = next(&spec, &status, Some((2, &finished(3900, Outcome::TimedOut))), 3900);
        assert_eq!((status.phase, status.reason.as_str()), (Phase::Failed, "DeadlineExceeded"));
    }

    #[test]
    fn cancelling_ends_running_and_pending_runs() {
        let cancelled = spec(|s| s.cancel = true);
        assert_eq!(next(&cancelled, &RunStatus::default(), None, 0).0.phase, Phase::Cancelled);
        let running = Observation::Running { started_at: 1, node: "n".into() };
        let (status, action) = next(&cancelled, &RunStatus::default(), Some((1, &running)), 5);
        assert_eq!((status.phase, action), (Phase::Running, Action::Stop));
        let (status, _) = next(&cancelled, &status, Some((1, &finished(9, Outcome::Signalled(15)))), 9);
        assert_eq!((status.phase, status.attempts[0].exit_code), (Phase::Cancelled, Some(143)));
        // A program that exits with code 0 before it is stopped has succeeded.
        let (status, _) = next(&cancelled, &RunStatus::default(), Some((1, &finished(9, Outcome::Exited(0)))), 9);
        assert_eq!(status.phase, Phase::Succeeded);
    }

    #[test]
    fn finished_run_is_deleted_after_its_ttl() {
        let spec = spec(|s| s.ttl_seconds_after_finished = Some(1));
        let (mut status, action) =
            next(&spec, &RunStatus::default(), Some((1, &finished(100, Outcome::Exited(0)))), 100);
        assert_eq!(action, Action::Nothing);
        assert_eq!(next(&spec, &status, None, 200).1, Action::RequeueAt(1200));
        status.attributed = true;
        assert_eq!(next(&spec, &status, None, 1100).1, Action::Delete);
    }
}
