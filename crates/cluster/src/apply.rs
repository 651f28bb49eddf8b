//! Does steps, as many at once as their order allows.
//!
//! Steps ask before they act, so work that was cut off anywhere is gone on with by beginning again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::fleet::Fleet;
use crate::report::{Ended, Outcome, Report};
use crate::state::Log;
use crate::steps::{Action, Step};
use crate::work::{AT_ONCE, Progress, Work};
use crate::{ClusterError, machine, nodes, smoke};

/// A machine that was just turned on has so long to answer.
const ANSWER: Duration = Duration::from_secs(300);
/// The report is kept while steps are done, so that others can watch; no more often than this.
const KEEP: Duration = Duration::from_millis(500);

/// Does all steps.
pub async fn apply(work: Arc<Work>, steps: Vec<Step>) -> Report {
    let began = Instant::now();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let (mut waiting, mut running) = (steps, JoinSet::new());
    let mut started: BTreeMap<String, (Step, Instant)> = BTreeMap::new();
    let mut ended: Vec<Ended> = Vec::new();
    let mut kept: Option<Instant> = None;
    loop {
        let done: BTreeMap<&str, bool> = ended.iter().map(|e| (e.step.as_str(), e.outcome.went_well())).collect();
        let (mut ready, mut lost) = (Vec::new(), Vec::new());
        waiting.retain(|step| {
            if let Some(bad) = step.needs.iter().find(|n| done.get(n.as_str()) == Some(&false)) {
                lost.push(end(step, Outcome::Skipped { because: bad.clone() }, began, began));
                return false;
            }
            let now = step.needs.iter().all(|n| done.contains_key(n.as_str()));
            if now {
                ready.push(step.clone());
            }
            !now
        });
        for step in ready {
            let (work, places) = (Arc::clone(&work), Arc::clone(&places));
            started.insert(step.id.clone(), (step.clone(), Instant::now()));
            running.spawn(async move {
                let _place = places.acquire().await;
                let _ = work.watch.send(Progress::Began { step: step.id.clone() }); // nobody need watch
                let since = Instant::now();
                let outcome = act(&work, &step).await.unwrap_or_else(|e| Outcome::Failed { reason: e.to_string() });
                end(&step, outcome, began, since)
            });
        }
        // What was skipped may be what others wait for.
        let skipped = !lost.is_empty();
        for end in lost {
            let _ = work.watch.send(Progress::Ended(end.clone())); // nobody need watch
            ended.push(end);
        }
        if skipped {
            continue;
        }
        if kept.is_none_or(|at| at.elapsed() > KEEP) {
            let going = started.values().map(|(step, since)| end(step, Outcome::Running, began, *since));
            let later = waiting.iter().map(|step| end(step, Outcome::Waiting, Instant::now(), Instant::now()));
            let now = report(&work, ended.iter().cloned().chain(going).chain(later).collect(), began);
            let whole = work.before.clone().map_or_else(|| now.clone(), |before| before.followed_by(now.clone()));
            // Only for `status` meanwhile; the report at the end is written again, and there an error counts.
            let _ = work.state.keep("report", &whole);
            kept = Some(Instant::now());
        }
        let Some(next) = running.join_next().await else { break };
        let end = next.unwrap_or_else(|e| Ended {
            step: "?".into(),
            host: "?".into(),
            needs: Vec::new(),
            outcome: Outcome::Failed { reason: e.to_string() },
            began: 0.0,
            seconds: 0.0,
        });
        started.remove(&end.step);
        let _ = work.watch.send(Progress::Ended(end.clone())); // nobody need watch
        ended.push(end);
    }
    let now = report(&work, ended, began);
    match &work.before {
        Some(before) => before.clone().followed_by(now),
        None => now,
    }
}

fn report(work: &Work, steps: Vec<Ended>, began: Instant) -> Report {
    Report {
        cluster: work.cluster.metadata.name.clone(),
        verb: work.verb.into(),
        change: work.change.clone(),
        steps,
        seconds: began.elapsed().as_secs_f64(),
    }
}

fn end(step: &Step, outcome: Outcome, all: Instant, since: Instant) -> Ended {
    Ended {
        step: step.id.clone(),
        host: step.host.clone(),
        needs: step.needs.clone(),
        outcome,
        began: since.saturating_duration_since(all).as_secs_f64(),
        seconds: since.elapsed().as_secs_f64(),
    }
}

async fn act(work: &Work, step: &Step) -> Result<Outcome, ClusterError> {
    let log = work.state.log(&step.host)?;
    log.line(&format!("{} begins, change {}", step.id, work.change));
    let done = outcome(work, step, &log).await;
    match &done {
        Ok(outcome) => log.line(&format!("{} ended: {}", step.id, said(outcome))),
        Err(error) => log.line(&format!("{} failed: {error}", step.id)),
    }
    done
}

fn said(outcome: &Outcome) -> String {
    let (word, about) = outcome.words();
    if about.is_empty() { word.to_owned() } else { format!("{word}, {about}") }
}

async fn outcome(work: &Work, step: &Step, log: &Log) -> Result<Outcome, ClusterError> {
    if let Action::Smoke(test) = &step.action {
        return Ok(Outcome::Passed { saw: smoke::run(work, test, log).await? });
    }
    let changes = match (&step.action, &work.fleet) {
        (Action::Machine, Some(fleet)) => made(work, fleet, &step.host, log).await?,
        (Action::PowerOff, Some(fleet)) => fleet.power_off(&step.host).await?,
        (Action::Delete, Some(fleet)) => fleet.delete(&step.host).await?,
        _ => on_machine(work, step, log).await?,
    };
    Ok(if changes == 0 { Outcome::Unchanged } else { Outcome::Changed { changes } })
}

async fn on_machine(work: &Work, step: &Step, log: &Log) -> Result<usize, ClusterError> {
    let (machine, host) = work
        .hosts
        .get(&step.host)
        .ok_or_else(|| ClusterError::Host { host: step.host.clone(), reason: "it is not among the machines".into() })?;
    match &step.action {
        Action::Converge(layers) => machine::converge(work, step, machine, host, layers, log).await,
        Action::Join { worker } => nodes::join(work, machine, host, *worker, log).await,
        Action::Upgrade => nodes::upgrade(work, step, machine, host, log).await,
        Action::Stop => nodes::stop(work, machine, host, log).await,
        Action::Start => nodes::start(work, machine, host, log).await,
        Action::Leave => nodes::leave(work, machine, host, log).await,
        Action::Erase => machine::erase(work, host, log).await,
        Action::Machine | Action::PowerOff | Action::Delete | Action::Smoke(_) => {
            Err(ClusterError::Host { host: step.host.clone(), reason: "no provider made it".into() })
        }
    }
}

/// A machine that is there, is on and answers.
async fn made(work: &Work, fleet: &Fleet, name: &str, log: &Log) -> Result<usize, ClusterError> {
    let (machine, changes) = fleet.ensure(name).await?;
    log.line(&format!("the machine is on, its address is {}", machine.address));
    let host = work.connections.host(&work.cluster, &machine)?;
    let until = Instant::now() + ANSWER;
    loop {
        match host.script("true", crate::control::ASK).await {
            Ok(_) => return Ok(changes),
            Err(error @ ClusterError::Unreachable { .. }) if Instant::now() < until => {
                log.line(&error.to_string());
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error),
        }
    }
}
