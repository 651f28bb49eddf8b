//! Decides whether a node is accepted, and whether the checks have to run, from what is on disk and the GPUs of the machine.

use std::time::Duration;

use slipway_gpu::accept::check::{Level, Report};
use slipway_gpu::inventory::Inventory;

use super::store::{Attempt, Subject};

/// Number of runs that may end without a report, such as because the machine loses power under load. A further run would end the same way.
pub const MAX_ATTEMPTS: u32 = 3;

/// Whether a node is accepted, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the comments of the variants describe their fields
pub enum Decision {
    /// The node has passed this level at `finished`, in milliseconds since the Unix epoch. `due`: it is time to repeat the checks.
    Accepted { level: Level, finished: i64, due: bool },
    /// The node has failed, for this reason. `due`: it is time to repeat the checks.
    Failed { reason: String, due: bool },
    /// The checks have not run on these GPUs, for this reason.
    Untested { reason: String },
}

impl Decision {
    /// Whether the checks have to run.
    pub fn is_due(&self) -> bool {
        match self {
            Self::Accepted { due, .. } | Self::Failed { due, .. } => *due,
            Self::Untested { .. } => true,
        }
    }
}

/// Maximum number of failed checks that a reason lists.
const MAX_LISTED: usize = 5;

/// The failed checks of a report in one line.
fn failures(report: &Report) -> String {
    let mut list: Vec<String> =
        report.failures().take(MAX_LISTED).map(|c| format!("{} of {}: {}", c.name, c.device, c.what)).collect();
    let more = report.failures().count().saturating_sub(MAX_LISTED);
    if more > 0 {
        list.push(format!("and {more} more"));
    }
    list.join("; ")
}

/// Decides for a machine at `now` (milliseconds since the Unix epoch). `every` is the interval of repetitions.
pub fn decide(
    report: Option<&Report>,
    attempt: Option<&Attempt>,
    inventory: &Inventory,
    level: Level,
    every: Option<Duration>,
    now: i64,
) -> Decision {
    let subject = Subject::from_inventory(inventory);
    if let Some(attempt) = attempt.filter(|a| a.subject == subject && a.count >= MAX_ATTEMPTS) {
        let reason = format!("{} runs at level {} ended without a report", attempt.count, attempt.level);
        return Decision::Failed { reason, due: false };
    }
    let untested = |reason: &str| Decision::Untested { reason: reason.into() };
    let Some(report) = report else { return untested("the GPUs have not been tested") };
    let tested = Subject::from_report(report);
    if report.simulated != inventory.simulated || !report.complete {
        return untested("the GPUs have not been tested");
    }
    if tested.gpus != subject.gpus {
        return untested("the machine has other GPUs than those that were tested");
    }
    if tested.driver != subject.driver {
        let (old, new) = (tested.driver, subject.driver);
        return Decision::Untested {
            reason: format!("the GPUs were tested with driver {old}, and the driver is {new}"),
        };
    }
    // MIG must be off for the checks of level 2 and above, so a node that uses it keeps its result.
    let uses_mig = inventory.gpus.iter().any(|g| g.mig.as_ref().is_some_and(|m| m.enabled));
    let age = Duration::from_millis(u64::try_from(now.saturating_sub(report.finished)).unwrap_or(0));
    let due = every.is_some_and(|every| age >= every) && !uses_mig;
    match report.passed_level() {
        Some(passed) if passed >= level => Decision::Accepted { level: passed, finished: report.finished, due },
        _ if !report.passed() => Decision::Failed { reason: failures(report), due },
        passed => {
            let passed = passed.map_or(0, Level::number);
            Decision::Untested { reason: format!("the GPUs have passed level {passed}, and level {level} is required") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::tests::report;
    use super::*;
    use crate::samples::{gpu, machine};
    use slipway_gpu::accept::check::Outcome;

    const WEEK: Duration = Duration::from_secs(7 * 86400);

    fn of(report: Option<&Report>, attempt: Option<&Attempt>, now: i64) -> Decision {
        let inventory = machine(vec![gpu(0, None), gpu(1, None)]).inventory;
        decide(report, attempt, &inventory, Level::LONG, Some(WEEK), now)
    }

    fn reason(decision: Decision) -> String {
        match decision {
            Decision::Untested { reason } => reason,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn only_a_passed_report_of_these_gpus_and_this_driver_accepts() {
        let passed = report(&["GPU-1", "GPU-0"], 3, Outcome::Pass, 1000);
        let accepted = |due| Decision::Accepted { level: Level::LONG, finished: 1000, due };
        assert_eq!(of(Some(&passed), None, 2000), accepted(false));
        let week = i64::try_from(WEEK.as_millis()).unwrap();
        assert_eq!(of(Some(&passed), None, 1000 + week), accepted(true));
        assert_eq!(of(Some(&passed), None, 0), accepted(false), "a clock that was set back");
        assert!(reason(of(None, None, 0)).contains("have not been tested"));
        assert!(reason(of(Some(&report(&["GPU-0", "GPU-9"], 3, Outcome::Pass, 0)), None, 0)).contains("other GPUs"));
        assert!(reason(of(Some(&report(&["GPU-0"], 3, Outcome::Pass, 0)), None, 0)).contains("other GPUs"));
        let older = Report { driver: "570.1".into(), ..passed.clone() };
        assert!(reason(of(Some(&older), None, 0)).contains("driver 570.1"));
        assert!(reason(of(Some(&Report { simulated: false, ..passed.clone() }), None, 0)).contains("not been tested"));
        assert!(reason(of(Some(&Report { complete: false, ..passed }), None, 0)).contains("not been tested"));
        let lower = report(&["GPU-0", "GPU-1"], 2, Outcome::Pass, 0);
        assert!(reason(of(Some(&lower), None, 0)).contains("passed level 2, and level 3"));
    }

    #[test]
    fn failed_and_unfinished_checks_do_not_accept() {
        for outcome in [Outcome::Fail, Outcome::CannotRun] {
            let failed = of(Some(&report(&["GPU-0", "GPU-1"], 3, outcome, 1000)), None, 2000);
            assert_eq!(failed, Decision::Failed { reason: "pcie of gpu 0: 7 GB/s".into(), due: false });
        }
        let warned = of(Some(&report(&["GPU-0", "GPU-1"], 3, Outcome::Warn, 1000)), None, 2000);
        assert!(matches!(warned, Decision::Accepted { .. }));
    }

    #[test]
    fn runs_that_never_end_are_given_up() {
        let inventory = machine(vec![gpu(0, None), gpu(1, None)]).inventory;
        let attempt =
            |count| Attempt { subject: Subject::from_inventory(&inventory), level: Level::LONG, started: 0, count };
        assert!(of(None, Some(&attempt(MAX_ATTEMPTS - 1)), 0).is_due());
        let given_up = of(None, Some(&attempt(MAX_ATTEMPTS)), 0);
        assert!(matches!(&given_up, Decision::Failed { reason, due: false } if reason.contains("3 runs at level 3")));
        let mut elsewhere = attempt(MAX_ATTEMPTS);
        elsewhere.subject.gpus.pop();
        assert!(of(None, Some(&elsewhere), 0).is_due(), "other GPUs");
    }

    #[test]
    fn nodes_that_use_mig_are_not_tested_again() {
        let passed = report(&["GPU-0"], 3, Outcome::Pass, 0);
        let inventory = machine(vec![gpu(0, Some(&["1g.10gb"]))]).inventory;
        assert!(!decide(Some(&passed), None, &inventory, Level::LONG, Some(WEEK), i64::MAX).is_due());
    }
}
