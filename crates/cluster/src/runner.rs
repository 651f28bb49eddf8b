//! Runs the steps of a command, as many in parallel as their dependencies allow.
//!
//! Every step checks the actual state before it changes anything, so an interrupted command is resumed by running it again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::fleet::Fleet;
use crate::report::{Outcome, Report, StepReport};
use crate::state::Log;
use crate::steps::{Action, Step};
use crate::work::{MAX_CONCURRENCY, Progress, Work};
use crate::{ClusterError, join, machine, nodes, smoke};

/// How long a machine may take from power-on until it accepts SSH connections.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
/// Minimum interval between two saves of the intermediate report, which `slipway cluster status` and the web UI show.
const SAVE_INTERVAL: Duration = Duration::from_millis(500);

/// Runs all steps and returns their results. A step whose dependency failed is skipped.
pub(crate) async fn run(work: Arc<Work>, steps: Vec<Step>) -> Report {
    let began = Instant::now();
    let permits = Arc::new(Semaphore::new(MAX_CONCURRENCY));
    let (mut waiting, mut running) = (steps, JoinSet::new());
    let mut started: BTreeMap<String, (Step, Instant)> = BTreeMap::new();
    let mut ended: Vec<StepReport> = Vec::new();
    let mut saved_at: Option<Instant> = None;
    loop {
        let done: BTreeMap<&str, bool> = ended.iter().map(|e| (e.step.as_str(), e.outcome.succeeded())).collect();
        let (mut ready, mut skipped) = (Vec::new(), Vec::new());
        waiting.retain(|step| {
            if let Some(failed) = step.needs.iter().find(|n| done.get(n.as_str()) == Some(&false)) {
                skipped.push(step_report(step, Outcome::Skipped { because: failed.clone() }, began, began));
                return false;
            }
            let is_ready = step.needs.iter().all(|n| done.contains_key(n.as_str()));
            if is_ready {
                ready.push(step.clone());
            }
            !is_ready
        });
        for step in ready {
            let (work, permits) = (Arc::clone(&work), Arc::clone(&permits));
            started.insert(step.id.clone(), (step.clone(), Instant::now()));
            running.spawn(async move {
                let _permit = permits.acquire().await;
                work.send(Progress::Began { step: step.id.clone() });
                let since = Instant::now();
                let outcome =
                    run_step(&work, &step).await.unwrap_or_else(|e| Outcome::Failed { reason: e.to_string() });
                step_report(&step, outcome, began, since)
            });
        }
        // Other steps may depend on a skipped step, so their dependencies are checked again.
        let any_skipped = !skipped.is_empty();
        for report in skipped {
            work.send(Progress::Ended(report.clone()));
            ended.push(report);
        }
        if any_skipped {
            continue;
        }
        if saved_at.is_none_or(|at| at.elapsed() > SAVE_INTERVAL) {
            let in_progress = started.values().map(|(step, since)| step_report(step, Outcome::Running, began, *since));
            let pending =
                waiting.iter().map(|step| step_report(step, Outcome::Waiting, Instant::now(), Instant::now()));
            let current = build_report(&work, ended.iter().cloned().chain(in_progress).chain(pending).collect(), began);
            let total =
                work.before.clone().map_or_else(|| current.clone(), |before| before.followed_by(current.clone()));
            // Best effort: the intermediate report only feeds live viewers. The final report is saved by the caller, with errors handled.
            let _ = work.state.save("report", &total);
            saved_at = Some(Instant::now());
        }
        let Some(next) = running.join_next().await else { break };
        let report = next.unwrap_or_else(|e| StepReport {
            step: "?".into(),
            host: "?".into(),
            needs: Vec::new(),
            outcome: Outcome::Failed { reason: e.to_string() },
            began: 0.0,
            seconds: 0.0,
        });
        started.remove(&report.step);
        work.send(Progress::Ended(report.clone()));
        ended.push(report);
    }
    let current = build_report(&work, ended, began);
    match &work.before {
        Some(before) => before.clone().followed_by(current),
        None => current,
    }
}

fn build_report(work: &Work, steps: Vec<StepReport>, began: Instant) -> Report {
    Report {
        cluster: work.cluster.metadata.name.clone(),
        verb: work.verb.into(),
        change: work.change.clone(),
        steps,
        seconds: began.elapsed().as_secs_f64(),
    }
}

/// The report of a step that began at `since`, in a command that began at `command_began`.
fn step_report(step: &Step, outcome: Outcome, command_began: Instant, since: Instant) -> StepReport {
    StepReport {
        step: step.id.clone(),
        host: step.host.clone(),
        needs: step.needs.clone(),
        outcome,
        began: since.saturating_duration_since(command_began).as_secs_f64(),
        seconds: since.elapsed().as_secs_f64(),
    }
}

/// Runs a step, and logs its begin and its outcome in the log of its machine.
async fn run_step(work: &Work, step: &Step) -> Result<Outcome, ClusterError> {
    let log = work.state.log(&step.host)?;
    log.line(&format!("{} begins, change {}", step.id, work.change));
    let done = perform(work, step, &log).await;
    match &done {
        Ok(outcome) => log.line(&format!("{} ended: {}", step.id, describe(outcome))),
        Err(error) => log.line(&format!("{} failed: {error}", step.id)),
    }
    done
}

fn describe(outcome: &Outcome) -> String {
    let (word, details) = outcome.words();
    if details.is_empty() { word.to_owned() } else { format!("{word}, {details}") }
}

async fn perform(work: &Work, step: &Step, log: &Log) -> Result<Outcome, ClusterError> {
    if let Action::Smoke(test) = &step.action {
        return Ok(Outcome::Passed { saw: smoke::run(work, test, log).await? });
    }
    let changes = match (&step.action, &work.fleet) {
        (Action::Machine, Some(fleet)) => ensure_machine(work, fleet, &step.host, log).await?,
        (Action::PowerOff, Some(fleet)) => fleet.power_off(&step.host).await?,
        (Action::Delete, Some(fleet)) => fleet.delete(&step.host).await?,
        _ => run_on_machine(work, step, log).await?,
    };
    Ok(if changes == 0 { Outcome::Unchanged } else { Outcome::Changed { changes } })
}

async fn run_on_machine(work: &Work, step: &Step, log: &Log) -> Result<usize, ClusterError> {
    let (machine, host) = work
        .hosts
        .get(&step.host)
        .ok_or_else(|| ClusterError::Host { host: step.host.clone(), reason: "unknown machine".into() })?;
    match &step.action {
        Action::Converge(layers) => machine::apply_layers(work, step, machine, host, layers, log).await,
        Action::Join { worker } => join::join(work, machine, host, *worker, log).await,
        Action::Upgrade => nodes::upgrade(work, step, machine, host, log).await,
        Action::Stop => nodes::stop(work, machine, host, log).await,
        Action::Start => nodes::start(work, machine, host, log).await,
        Action::Leave => nodes::leave(work, machine, host, log).await,
        Action::Erase => machine::erase(work, host, log).await,
        Action::Machine | Action::PowerOff | Action::Delete | Action::Smoke(_) => Err(ClusterError::Host {
            host: step.host.clone(),
            reason: "the machine was not created by a provider".into(),
        }),
    }
}

/// Ensures that a machine exists, is powered on and accepts SSH connections. Returns the number of changes.
async fn ensure_machine(work: &Work, fleet: &Fleet, name: &str, log: &Log) -> Result<usize, ClusterError> {
    let (machine, changes) = fleet.ensure(name).await?;
    log.line(&format!("the machine is on, its address is {}", machine.address));
    let host = work.connections.host(&work.cluster, &machine)?;
    let deadline = Instant::now() + BOOT_TIMEOUT;
    loop {
        match host.script("true", crate::control::QUERY_TIMEOUT).await {
            Ok(_) => return Ok(changes),
            Err(error @ ClusterError::Unreachable { .. }) if Instant::now() < deadline => {
                log.line(&error.to_string());
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error),
        }
    }
}
