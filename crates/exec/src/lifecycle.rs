//! What happens next to a run: a function of its spec, its status so far, what is observed of its newest attempt, and the time.
//! It has no memory and no side effects, so an executor may call it as often as it likes, after any crash, and from any trigger.
//!
//! The rules are a job's (`batch/v1`): failures count against `backoffLimit`, with pauses that double; disruptions (evicted,
//! preempted, node lost) are tried again without counting, like a job's `podFailurePolicy` that ignores `DisruptionTarget`.

use crate::manifest::RunSpec;
use crate::status::{Attempt, Condition, Phase, RunStatus, Time};

/// The pause before the first retry, in milliseconds; it doubles with each failure.
const FIRST_BACKOFF_MS: i64 = 2_000;
/// The longest pause before a retry, in milliseconds.
const MAX_BACKOFF_MS: i64 = 300_000;
/// After so many disruptions something is wrong with the cluster rather than with luck.
const MAX_DISRUPTIONS: u32 = 20;
/// Attempts that a status keeps, the newest ones.
const MAX_ATTEMPTS_KEPT: usize = 10;

/// What is observed of the newest attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// It was not started, or not all of it: no room, no image, no quota.
    Waiting {
        /// One word.
        reason: String,
        /// A sentence.
        message: String,
    },
    /// Its program runs.
    Running {
        /// Since when.
        since: i64,
        /// Where.
        node: String,
    },
    /// It is over.
    Over {
        /// When its program started, if it did.
        since: Option<i64>,
        /// When it ended.
        at: i64,
        /// Where.
        node: String,
        /// How.
        end: End,
    },
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Exited(i32),
    /// By a signal, that nobody here sent.
    Signalled(i32),
    /// It took more memory than it may.
    OutOfMemory,
    /// Its time was over.
    TimedOut,
    /// It was ended because it should be.
    Stopped,
    /// Ended from outside, by no fault of its own: one word and a sentence.
    Disrupted(String, String),
    /// It can never start: one word and a sentence.
    Impossible(String, String),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing, until something is seen.
    Nothing,
    /// Start the attempt of this number, which may run for so many milliseconds.
    Start(u32, Option<i64>),
    /// End the newest attempt.
    Stop,
    /// Look again at this time.
    Wake(i64),
    /// Forget the run: its time after the end is over.
    Forget,
}

/// The next status, and what is to be done. `seen` is what is observed of the attempt of that number.
pub fn next(spec: &RunSpec, status: &RunStatus, seen: Option<(u32, &Seen)>, now: i64) -> (RunStatus, Action) {
    let mut status = status.clone();
    if status.phase.is_final() {
        let ended = status.completion_time.map_or(now, |t| t.0);
        let action = match spec.ttl_seconds_after_finished.map(|s| ended + i64::from(s) * 1000) {
            // Its GPUs' use is asked for first.
            Some(due) if due <= now && status.attributed => Action::Forget,
            Some(due) => Action::Wake(due.max(now + 1000)),
            None => Action::Nothing,
        };
        return (status, action);
    }
    // Once an attempt was observed to be over, what was written down of it stands.
    let newest = status.current().map(|a| (a.number, a.finished_at.is_some()));
    let (number, over) = newest.unwrap_or((0, true));
    let active = match seen {
        // An attempt was started that the status does not know yet: the status was lost, not the attempt.
        Some((n, seen)) if n > number => Some((n, seen)),
        Some((n, seen)) if n == number && !over => Some((n, seen)),
        _ => None,
    };
    match active {
        Some((n, Seen::Waiting { reason, message })) => {
            if n > number {
                status.attempts.push(Attempt { number: n, ..Attempt::default() });
            }
            say(&mut status, Phase::Pending, reason, message);
            (trimmed(status), if spec.cancel { Action::Stop } else { Action::Nothing })
        }
        Some((n, Seen::Running { since, node })) => {
            let attempt = attempt(&mut status, n);
            attempt.started_at.get_or_insert(Time(*since));
            attempt.node.clone_from(node);
            status.node.clone_from(node);
            status.start_time.get_or_insert(Time(*since));
            say(&mut status, Phase::Running, "Running", "");
            (trimmed(status), if spec.cancel { Action::Stop } else { Action::Nothing })
        }
        Some((n, Seen::Over { since, at, node, end })) => {
            let attempt = attempt(&mut status, n);
            if let Some(since) = since {
                attempt.started_at.get_or_insert(Time(*since));
            }
            attempt.finished_at = Some(Time(*at));
            attempt.node.clone_from(node);
            let (reason, message, code) = describe(end, spec);
            attempt.exit_code = code;
            attempt.reason.clone_from(&reason);
            attempt.message.clone_from(&message);
            status.node.clone_from(node);
            if let (Some(since), None) = (since, status.start_time) {
                status.start_time = Some(Time(*since));
            }
            judge(spec, &mut status, end, reason, message, *at, now)
        }
        None if !over => {
            // Handed over and gone without a trace: whoever ran it lost it.
            let end = End::Disrupted("Lost".into(), "it was started, and is nowhere to be found".into());
            let seen = Seen::Over { since: None, at: now, node: status.node.clone(), end };
            next(spec, &status, Some((number, &seen)), now)
        }
        None if spec.cancel => {
            finish(&mut status, Phase::Cancelled, "Cancelled", "it was cancelled before it started", now);
            (status, Action::Nothing)
        }
        None => start(spec, status, number + 1, now),
    }
}

/// The next attempt, if its time has come.
fn start(spec: &RunSpec, mut status: RunStatus, number: u32, now: i64) -> (RunStatus, Action) {
    // The first disruption is bad luck; one after the other, as when a kubelet turns pods away, is not to be hurried.
    let pauses = status.failures + status.disruptions.saturating_sub(1);
    let due = status.current().and_then(|a| a.finished_at).map_or(0, |ended| ended.0 + pause(pauses));
    let over = |start: Time| spec.active_deadline_seconds.map(|s| start.0 + i64::from(s) * 1000);
    let deadline = status.start_time.and_then(over);
    if deadline.is_some_and(|d| d <= now.max(due)) {
        let message = deadline_message(spec);
        finish(&mut status, Phase::Failed, "DeadlineExceeded", &message, now);
        return (status, Action::Nothing);
    }
    if due > now {
        return (status, Action::Wake(due));
    }
    let limit = deadline.map(|d| d - now).or_else(|| spec.active_deadline_seconds.map(|s| i64::from(s) * 1000));
    (status, Action::Start(number, limit))
}

/// The pause in milliseconds before the next attempt, after so many that ended badly.
fn pause(bad: u32) -> i64 {
    match bad {
        0 => 0,
        n => FIRST_BACKOFF_MS.saturating_mul(1 << (n - 1).min(20)).min(MAX_BACKOFF_MS),
    }
}

fn deadline_message(spec: &RunSpec) -> String {
    format!("it took longer than the {} s it may take", spec.active_deadline_seconds.unwrap_or(0))
}

/// One word, a sentence, and the exit code.
fn describe(end: &End, spec: &RunSpec) -> (String, String, Option<i32>) {
    match end {
        End::Exited(0) => ("Completed".into(), String::new(), Some(0)),
        End::Exited(code) => ("Error".into(), format!("the program ended with code {code}"), Some(*code)),
        End::Signalled(signal) => {
            let by = if *signal == 9 { ", as when the machine is out of memory" } else { "" };
            // What a shell says of it, and the kubelet too.
            ("Error".into(), format!("the program was ended by signal {signal}{by}"), Some(128 + signal))
        }
        End::OutOfMemory => {
            let limit = spec.resources.limits.get("memory");
            let limit = limit.and_then(|q| serde_json::to_value(q).ok()).map_or(String::new(), |q| format!(" of {q}"));
            (
                "OOMKilled".into(),
                format!("the program took more memory than its limit{limit}").replace('"', ""),
                Some(137),
            )
        }
        End::TimedOut => ("DeadlineExceeded".into(), deadline_message(spec), None),
        End::Stopped => ("Cancelled".into(), "it was cancelled".into(), None),
        End::Disrupted(reason, message) | End::Impossible(reason, message) => (reason.clone(), message.clone(), None),
    }
}

/// What the end of an attempt means for the run.
fn judge(
    spec: &RunSpec,
    status: &mut RunStatus,
    end: &End,
    reason: String,
    message: String,
    at: i64,
    now: i64,
) -> (RunStatus, Action) {
    match end {
        End::Exited(0) => finish(status, Phase::Succeeded, &reason, "", at),
        _ if spec.cancel => finish(status, Phase::Cancelled, "Cancelled", "it was cancelled", at),
        End::TimedOut | End::Impossible(..) => finish(status, Phase::Failed, &reason, &message, at),
        End::Disrupted(..) | End::Stopped if status.disruptions < MAX_DISRUPTIONS => status.disruptions += 1,
        End::Disrupted(..) | End::Stopped => {
            let message = format!("it was ended from outside {MAX_DISRUPTIONS} times, the last time: {message}");
            finish(status, Phase::Failed, &reason, &message, at);
        }
        End::Exited(_) | End::Signalled(_) | End::OutOfMemory => {
            status.failures += 1;
            if status.failures > spec.backoff_limit {
                let tries = match spec.backoff_limit {
                    0 => String::new(),
                    _ => format!("; it was tried {} times", status.failures),
                };
                finish(status, Phase::Failed, &reason, &format!("{message}{tries}"), at);
            } else {
                let again = format!("{message}; attempt {} of {} follows", status.failures + 1, spec.backoff_limit + 1);
                say(status, Phase::Pending, &reason, &again);
            }
        }
    }
    let status = std::mem::take(status);
    if status.phase.is_final() {
        return (trimmed(status), Action::Nothing);
    }
    let number = status.current().map_or(0, |a| a.number);
    let mut status = trimmed(status);
    if matches!(end, End::Disrupted(..) | End::Stopped) {
        say(&mut status, Phase::Pending, &reason, &format!("{message}; it starts again"));
    }
    start(spec, status, number + 1, now)
}

fn attempt(status: &mut RunStatus, number: u32) -> &mut Attempt {
    if status.current().is_none_or(|a| a.number != number) {
        status.attempts.push(Attempt { number, ..Attempt::default() });
    }
    status.attempts.last_mut().expect("one was pushed if there was none")
}

fn say(status: &mut RunStatus, phase: Phase, reason: &str, message: &str) {
    status.phase = phase;
    reason.clone_into(&mut status.reason);
    message.clone_into(&mut status.message);
}

/// Ends a run for good.
fn finish(status: &mut RunStatus, phase: Phase, reason: &str, message: &str, at: i64) {
    say(status, phase, reason, message);
    status.completion_time = Some(Time(at));
    status.conditions = vec![Condition {
        kind: if phase == Phase::Succeeded { "Complete" } else { "Failed" }.into(),
        status: "True".into(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Time(at),
    }];
}

fn trimmed(mut status: RunStatus) -> RunStatus {
    let many = status.attempts.len().saturating_sub(MAX_ATTEMPTS_KEPT);
    status.attempts.drain(..many);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(at: i64, end: End) -> Seen {
        Seen::Over { since: Some(at - 10), at, node: "n".into(), end }
    }

    fn spec(change: impl FnOnce(&mut RunSpec)) -> RunSpec {
        let mut spec = RunSpec { command: vec!["a".into()], ..RunSpec::default() };
        change(&mut spec);
        spec
    }

    /// Goes through what is seen, one after the other, as an executor would.
    fn live(spec: &RunSpec, seen: &[(i64, Option<(u32, Seen)>)]) -> (RunStatus, Vec<Action>) {
        let mut status = RunStatus::default();
        let mut actions = Vec::new();
        for (now, seen) in seen {
            let (after, action) = next(spec, &status, seen.as_ref().map(|(n, s)| (*n, s)), *now);
            // Asking again changes nothing.
            let again = next(spec, &after, seen.as_ref().map(|(n, s)| (*n, s)), *now);
            assert_eq!(again.0, after, "asking twice changed {after:?}");
            status = after;
            actions.push(action);
        }
        (status, actions)
    }

    #[test]
    fn a_run_starts_runs_and_ends() {
        let running = Seen::Running { since: 90, node: "n".into() };
        let (status, actions) =
            live(&spec(|_| ()), &[(0, None), (100, Some((1, running))), (200, Some((1, over(190, End::Exited(0)))))]);
        assert_eq!(actions, [Action::Start(1, None), Action::Nothing, Action::Nothing]);
        assert_eq!((status.phase, status.reason.as_str(), status.attempts.len()), (Phase::Succeeded, "Completed", 1));
        assert_eq!((status.start_time, status.completion_time), (Some(Time(90)), Some(Time(190))));
        assert_eq!(status.conditions[0].kind, "Complete");
    }

    #[test]
    fn failures_are_tried_again_with_pauses_up_to_the_limit() {
        let spec = spec(|s| s.backoff_limit = 2);
        let (status, actions) = live(
            &spec,
            &[
                (0, None),
                (100, Some((1, over(100, End::Exited(1))))),
                (2100, Some((1, over(100, End::Exited(1))))),
                (3000, Some((2, over(3000, End::Signalled(9))))),
                (7000, Some((2, over(3000, End::Signalled(9))))),
                (8000, Some((3, over(8000, End::OutOfMemory)))),
            ],
        );
        assert_eq!(
            actions,
            [
                Action::Start(1, None),
                Action::Wake(2100),
                Action::Start(2, None),
                Action::Wake(7000),
                Action::Start(3, None),
                Action::Nothing
            ]
        );
        assert_eq!((status.phase, status.reason.as_str(), status.failures), (Phase::Failed, "OOMKilled", 3));
        assert_eq!(status.attempts.iter().map(|a| a.exit_code).collect::<Vec<_>>(), [Some(1), Some(137), Some(137)]);
    }

    #[test]
    fn disruptions_do_not_count_as_failures() {
        let evicted = End::Disrupted("Evicted".into(), "the node was low on memory".into());
        let (status, actions) = live(
            &spec(|_| ()),
            &[(0, None), (50, Some((1, over(50, evicted)))), (60, Some((2, over(60, End::Exited(0)))))],
        );
        assert_eq!(actions, [Action::Start(1, None), Action::Start(2, None), Action::Nothing]);
        assert_eq!((status.phase, status.disruptions, status.failures), (Phase::Succeeded, 1, 0));
        // One disruption after the other is not hurried.
        let again = End::Disrupted("UnexpectedAdmissionError".into(), "no such device".into());
        let seen: Vec<_> =
            (1..=3).map(|n| (i64::from(n) * 10, Some((n, over(i64::from(n) * 10, again.clone()))))).collect();
        let (_, actions) = live(&spec(|_| ()), &seen);
        assert_eq!(actions, [Action::Start(2, None), Action::Wake(2020), Action::Wake(4030)]);
    }

    #[test]
    fn what_was_lost_is_started_again() {
        let waiting = Seen::Waiting { reason: "Scheduling".into(), message: String::new() };
        let (status, actions) = live(&spec(|_| ()), &[(0, None), (10, Some((1, waiting))), (20, None)]);
        assert_eq!(actions[2], Action::Start(2, None));
        assert_eq!((status.attempts[0].reason.as_str(), status.disruptions), ("Lost", 1));
    }

    #[test]
    fn disruptions_end_some_time() {
        let spec = spec(|_| ());
        let mut status = RunStatus::default();
        for n in 1..=40 {
            let seen = over(i64::from(n), End::Disrupted("NodeLost".into(), "gone".into()));
            status = next(&spec, &status, Some((n, &seen)), i64::from(n)).0;
        }
        assert_eq!((status.phase, status.attempts.len()), (Phase::Failed, MAX_ATTEMPTS_KEPT));
        assert!(status.message.contains("20 times"), "{}", status.message);
    }

    #[test]
    fn a_deadline_covers_all_tries() {
        let spec = spec(|s| {
            s.active_deadline_seconds = Some(3);
            s.backoff_limit = 5;
        });
        let (status, actions) = live(&spec, &[(0, None), (1000, Some((1, over(1000, End::Exited(1)))))]);
        assert_eq!(actions[0], Action::Start(1, Some(3000)));
        // The pause would end after the deadline (the program began at 990).
        assert_eq!(actions[1], Action::Wake(3000));
        let (status, action) = next(&spec, &status, None, 3000);
        assert_eq!(action, Action::Start(2, Some(990)));
        let (status, _) = next(&spec, &status, Some((2, &over(3900, End::TimedOut))), 3900);
        assert_eq!((status.phase, status.reason.as_str()), (Phase::Failed, "DeadlineExceeded"));
    }

    #[test]
    fn cancelling_ends_what_runs_and_what_waits() {
        let cancelled = spec(|s| s.cancel = true);
        assert_eq!(next(&cancelled, &RunStatus::default(), None, 0).0.phase, Phase::Cancelled);
        let running = Seen::Running { since: 1, node: "n".into() };
        let (status, action) = next(&cancelled, &RunStatus::default(), Some((1, &running)), 5);
        assert_eq!((status.phase, action), (Phase::Running, Action::Stop));
        let (status, _) = next(&cancelled, &status, Some((1, &over(9, End::Signalled(15)))), 9);
        assert_eq!((status.phase, status.attempts[0].exit_code), (Phase::Cancelled, Some(143)));
        // Whoever was quicker than the cancellation has succeeded.
        let (status, _) = next(&cancelled, &RunStatus::default(), Some((1, &over(9, End::Exited(0)))), 9);
        assert_eq!(status.phase, Phase::Succeeded);
    }

    #[test]
    fn what_is_over_is_forgotten_in_time() {
        let spec = spec(|s| s.ttl_seconds_after_finished = Some(1));
        let (mut status, action) = next(&spec, &RunStatus::default(), Some((1, &over(100, End::Exited(0)))), 100);
        assert_eq!(action, Action::Nothing);
        assert_eq!(next(&spec, &status, None, 200).1, Action::Wake(1200));
        status.attributed = true;
        assert_eq!(next(&spec, &status, None, 1100).1, Action::Forget);
    }
}
