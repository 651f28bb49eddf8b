//! The steps between machines: what each does by itself, who joins whom, what the cluster as a whole gets.
//!
//! Steps ask before they act, so a plan that was cut off anywhere is gone on with by beginning again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::ClusterError;
use crate::converge::{Event, FOLDER};
use crate::layers::{self, BEFORE_JOINING, OF_THE_CLUSTER};
use crate::probe::quote;
use crate::resource::Layer;
use crate::spec::{Cluster, Machine, Role};
use crate::state::{Log, State};
use crate::transport::{Host, Program};

/// A machine's own part may install a driver.
const CONVERGE: Duration = Duration::from_secs(3600);
/// A machine that starts anew has so long to come back.
const RESTART: Duration = Duration::from_secs(600);
/// A node that joined has so long to be ready.
const READY: Duration = Duration::from_secs(300);
/// A short question.
const ASK: Duration = Duration::from_secs(60);
/// A machine that wants to start anew more often is in a circle.
const MOST_RESTARTS: u32 = 3;
/// Tokens run out, and nodes are not always ready to be joined.
const JOIN_ATTEMPTS: u32 = 3;

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Makes these layers of the machine as wanted.
    Converge(Vec<Layer>),
    /// Becomes a node.
    Join {
        /// Of a kind that runs pods only.
        worker: bool,
    },
}

/// A step, on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// `cp1/base`.
    pub id: String,
    /// The machine.
    pub host: String,
    /// Steps that must have succeeded before.
    pub needs: Vec<String>,
    /// What it does.
    pub action: Action,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Outcome {
    /// All was as wanted.
    Unchanged,
    /// So many things were changed.
    Changed {
        /// How many.
        changes: usize,
    },
    /// It failed.
    Failed {
        /// Why.
        reason: String,
    },
    /// A step that it needs failed.
    Skipped {
        /// Which.
        because: String,
    },
}

/// A step and its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// The step.
    pub step: String,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long it took.
    pub seconds: f64,
}

/// All that was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The cluster's name.
    pub cluster: String,
    /// Names the records of this change on the machines.
    pub change: String,
    /// In the order in which they ended.
    pub steps: Vec<Ended>,
    /// All of it.
    pub seconds: f64,
}

impl Report {
    /// Things that were changed.
    pub fn changed(&self) -> usize {
        self.steps.iter().map(|s| if let Outcome::Changed { changes } = s.outcome { changes } else { 0 }).sum()
    }

    /// The first failure, as the error of the whole.
    ///
    /// # Errors
    /// [`ClusterError::Failed`].
    pub fn result(&self) -> Result<(), ClusterError> {
        let reasons: Vec<String> = self
            .steps
            .iter()
            .filter_map(|s| {
                if let Outcome::Failed { reason } = &s.outcome { Some(format!("{}: {reason}", s.step)) } else { None }
            })
            .collect();
        let Some(first) = reasons.first() else { return Ok(()) };
        Err(ClusterError::Failed { failed: reasons.len(), steps: self.steps.len(), first: first.clone() })
    }
}

/// The steps of a cluster, each after those it needs. The first `canary` machines go before the rest.
pub fn steps(cluster: &Cluster, only: &[Layer], canary: usize) -> Vec<Step> {
    let chosen = |layers: &[Layer]| -> Vec<Layer> {
        layers.iter().copied().filter(|l| only.is_empty() || only.contains(l)).collect()
    };
    let machines = &cluster.spec.machines;
    let Some(first) = cluster.first() else { return Vec::new() };
    let mut out = Vec::new();
    let base = chosen(&BEFORE_JOINING);
    let canaries: Vec<String> = machines.iter().take(canary).map(|m| format!("{}/base", m.name)).collect();
    if !base.is_empty() {
        for (n, machine) in machines.iter().enumerate() {
            let needs = if n < canary { Vec::new() } else { canaries.clone() };
            out.push(Step {
                id: format!("{}/base", machine.name),
                host: machine.name.clone(),
                needs,
                action: Action::Converge(base.clone()),
            });
        }
    }
    let (mut control, mut workers): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    if only.is_empty() {
        let mut join = |machine: &Machine, worker: bool, after: &[String]| {
            let mut needs = vec![format!("{}/base", first.name), format!("{}/base", machine.name)];
            needs.extend_from_slice(after);
            let id = format!("{}/join", machine.name);
            out.push(Step { id: id.clone(), host: machine.name.clone(), needs, action: Action::Join { worker } });
            id
        };
        // One after the other: MicroK8s' control planes agree on each new one. A worker needs all of them.
        for machine in machines.iter().filter(|m| m.is(Role::ControlPlane) && *m != first) {
            let last = control.len().saturating_sub(1);
            control.push(join(machine, false, &control[last..]));
        }
        for machine in machines.iter().filter(|m| !m.is(Role::ControlPlane)) {
            workers.push(join(machine, true, &control));
        }
    }
    let whole = chosen(&OF_THE_CLUSTER);
    if !whole.is_empty() {
        let mut needs = [control, workers].concat();
        needs.extend((!base.is_empty()).then(|| format!("{}/base", first.name)));
        out.push(Step {
            id: format!("{}/cluster", first.name),
            host: first.name.clone(),
            needs,
            action: Action::Converge(whole),
        });
    }
    out
}

/// Told to who watches.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // names say it
pub enum Progress {
    Began { step: String },
    Event { step: String, event: Event },
    Ended(Ended),
}

/// All that steps share.
pub struct Work {
    /// The file.
    pub cluster: Cluster,
    /// Its machines.
    pub hosts: BTreeMap<String, (Machine, Host)>,
    /// This program.
    pub program: Program,
    /// Where logs are.
    pub state: State,
    /// Names the records of this change.
    pub change: String,
    /// What watches.
    pub watch: tokio::sync::mpsc::UnboundedSender<Progress>,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("change", &self.change).finish_non_exhaustive()
    }
}

/// Does all steps, as many at once as their order allows.
pub async fn apply(work: Arc<Work>, steps: Vec<Step>) -> Report {
    let began = Instant::now();
    let (mut waiting, mut running) = (steps, JoinSet::new());
    let mut ended: Vec<Ended> = Vec::new();
    loop {
        let done: BTreeMap<&str, bool> = ended
            .iter()
            .map(|e| (e.step.as_str(), matches!(e.outcome, Outcome::Unchanged | Outcome::Changed { .. })))
            .collect();
        let (mut ready, mut lost) = (Vec::new(), Vec::new());
        waiting.retain(|step| {
            if let Some(bad) = step.needs.iter().find(|n| done.get(n.as_str()) == Some(&false)) {
                lost.push(Ended {
                    step: step.id.clone(),
                    outcome: Outcome::Skipped { because: bad.clone() },
                    seconds: 0.0,
                });
                return false;
            }
            let now = step.needs.iter().all(|n| done.contains_key(n.as_str()));
            if now {
                ready.push(step.clone());
            }
            !now
        });
        for step in ready {
            let work = Arc::clone(&work);
            drop(work.watch.send(Progress::Began { step: step.id.clone() }));
            running.spawn(async move {
                let began = Instant::now();
                let outcome = match act(&work, &step).await {
                    Ok(0) => Outcome::Unchanged,
                    Ok(changes) => Outcome::Changed { changes },
                    Err(error) => Outcome::Failed { reason: error.to_string() },
                };
                Ended { step: step.id, outcome, seconds: began.elapsed().as_secs_f64() }
            });
        }
        // What was skipped may be what others wait for.
        let skipped = !lost.is_empty();
        for end in lost {
            drop(work.watch.send(Progress::Ended(end.clone())));
            ended.push(end);
        }
        if skipped {
            continue;
        }
        let Some(next) = running.join_next().await else { break };
        let end = next.unwrap_or_else(|e| Ended {
            step: "?".into(),
            outcome: Outcome::Failed { reason: e.to_string() },
            seconds: 0.0,
        });
        drop(work.watch.send(Progress::Ended(end.clone())));
        ended.push(end);
    }
    Report {
        cluster: work.cluster.metadata.name.clone(),
        change: work.change.clone(),
        steps: ended,
        seconds: began.elapsed().as_secs_f64(),
    }
}

async fn act(work: &Work, step: &Step) -> Result<usize, ClusterError> {
    let (machine, host) = work
        .hosts
        .get(&step.host)
        .ok_or_else(|| ClusterError::Host { host: step.host.clone(), reason: "it is not among the machines".into() })?;
    let log = work.state.log(&step.host)?;
    log.line(&format!("{} begins, change {}", step.id, work.change));
    let done = match &step.action {
        Action::Converge(layers) => converge(work, step, machine, host, layers, &log).await,
        Action::Join { worker } => join(work, machine, host, *worker, &log).await,
    };
    match &done {
        Ok(changes) => log.line(&format!("{} ended, {changes} changes", step.id)),
        Err(error) => log.line(&format!("{} failed: {error}", step.id)),
    }
    done
}

/// Lets the machine make itself as wanted, over as many new starts as that takes.
async fn converge(
    work: &Work,
    step: &Step,
    machine: &Machine,
    host: &Host,
    layers: &[Layer],
    log: &Log,
) -> Result<usize, ClusterError> {
    let wanted = layers::wanted(&work.cluster, machine).only(layers);
    // Most machines are as wanted most of the time: they are asked from here, and nothing is put onto them.
    if wanted.check(&crate::plan::ask(host, &wanted, 0).await?).is_empty() {
        return Ok(0);
    }
    let document = serde_json::to_vec(&wanted).map_err(|e| ClusterError::io(step.id.clone())(e.into()))?;
    let mut changed = 0;
    for _ in 0..=MOST_RESTARTS {
        let program = host.push(&work.program).await?;
        let (mut failure, mut restart, mut done): (Option<String>, Option<String>, bool) = (None, None, false);
        let command =
            format!("exec {program} node converge --events --change {} --folder {FOLDER} -", quote(&work.change));
        let ran = host
            .run(&command, &document, CONVERGE, |line| {
                let Ok(event) = serde_json::from_str::<Event>(line) else {
                    log.line(line);
                    return;
                };
                log.line(&format!("{} {line}", step.id));
                match &event {
                    Event::Changed { .. } => changed += 1,
                    Event::Failed { resource, reason } if failure.is_none() => {
                        failure = Some(format!("{resource}: {reason}"))
                    }
                    Event::Refused { reason } if failure.is_none() => failure = Some(reason.clone()),
                    Event::Rebooting { reason, .. } => restart = Some(reason.clone()),
                    Event::Done { .. } => done = true,
                    _ => {}
                }
                drop(work.watch.send(Progress::Event { step: step.id.clone(), event }));
            })
            .await;
        if let Some(reason) = failure {
            return Err(ClusterError::Host { host: host.name.clone(), reason });
        }
        if restart.is_some() {
            start_anew(host, log).await?;
            changed += 1;
            continue;
        }
        ran?;
        if done {
            return Ok(changed);
        }
        return Err(ClusterError::Host {
            host: host.name.clone(),
            reason: "the connection ended before the work".into(),
        });
    }
    Err(ClusterError::Host {
        host: host.name.clone(),
        reason: format!("it wants to start anew again after {MOST_RESTARTS} times"),
    })
}

const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";

/// Starts a machine anew and waits until it is back.
async fn start_anew(host: &Host, log: &Log) -> Result<(), ClusterError> {
    let before = host.script(BOOT, ASK).await?;
    log.line("starts anew");
    // The connection goes with the machine.
    drop(host.script("systemctl reboot || reboot", ASK).await);
    let until = Instant::now() + RESTART;
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_secs(2)).await;
        if host.script(BOOT, ASK).await.is_ok_and(|now| now != before) {
            log.line("is back");
            return Ok(());
        }
    }
    Err(ClusterError::Unreachable {
        host: host.name.clone(),
        reason: format!("it did not come back within {} s of a new start", RESTART.as_secs()),
    })
}

/// Nodes of the cluster, and whether each is ready.
async fn nodes(first: &Host) -> Result<BTreeMap<String, bool>, ClusterError> {
    let template = "{range .items[*]}{.metadata.name} {.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}{end}";
    let script =
        format!("PATH=\"$PATH:/snap/bin\"; microk8s kubectl get nodes -o jsonpath={} </dev/null", quote(template));
    let text = first.script(&script, ASK).await?;
    Ok(text.lines().filter_map(|l| l.split_once(' ')).map(|(n, r)| (n.to_owned(), r.trim() == "True")).collect())
}

/// Where to join: an address of the first machine, with a token.
#[derive(Deserialize)]
struct Invitation {
    token: String,
    urls: Vec<String>,
}

async fn join(work: &Work, machine: &Machine, host: &Host, worker: bool, log: &Log) -> Result<usize, ClusterError> {
    let Some((founder, first)) = work.cluster.first().and_then(|m| work.hosts.get(&m.name)) else {
        return Err(ClusterError::Host {
            host: host.name.clone(),
            reason: "the first control plane is not among the machines".into(),
        });
    };
    let wrong = |reason: String| ClusterError::Host { host: host.name.clone(), reason };
    if nodes(first).await?.contains_key(&machine.name) {
        return wait_ready(first, machine, log).await.map(|()| 0);
    }
    let mut last = None;
    for attempt in 1..=JOIN_ATTEMPTS {
        let ask = format!(
            "PATH=\"$PATH:/snap/bin\"; microk8s add-node --token-ttl {} --format json </dev/null",
            work.cluster.spec.kubernetes.token_seconds
        );
        let answer = first.script(&ask, ASK).await?;
        let invitation: Invitation = serde_json::from_str(&answer)
            .map_err(|e| wrong(format!("microk8s add-node answered in another form: {e}")))?;
        let begins = format!("{}:", founder.internal());
        let url = invitation.urls.iter().find(|u| u.starts_with(&begins)).or(invitation.urls.first());
        let Some(url) = url else { return Err(wrong("microk8s add-node names no address".into())) };
        let role = if worker { " --worker" } else { "" };
        let script = format!("PATH=\"$PATH:/snap/bin\"; microk8s join {}{role} </dev/null 2>&1", quote(url));
        let mut said = String::new();
        let joined = host
            .run("exec sh -s", script.as_bytes(), READY, |line| {
                // The token is a key to the cluster.
                let line = line.replace(&invitation.token, "TOKEN");
                log.line(&line);
                said = line;
            })
            .await;
        match joined {
            Ok(()) => return wait_ready(first, machine, log).await.map(|()| 1),
            Err(ClusterError::Host { .. }) => {
                log.line(&format!("attempt {attempt} of {JOIN_ATTEMPTS} to join failed"));
                last = Some(wrong(format!("microk8s join: {said}")));
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            Err(other) => return Err(other),
        }
    }
    Err(last.unwrap_or_else(|| wrong("it was not joined".into())))
}

async fn wait_ready(first: &Host, machine: &Machine, log: &Log) -> Result<(), ClusterError> {
    let until = Instant::now() + READY;
    loop {
        if nodes(first).await?.get(&machine.name) == Some(&true) {
            log.line("the node is ready");
            return Ok(());
        }
        if Instant::now() > until {
            let reason = format!("the node is not ready after {} s; see `microk8s inspect` there", READY.as_secs());
            return Err(ClusterError::Host { host: machine.name.clone(), reason });
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The steps on these machines only, without what others would have to do for them.
#[must_use]
pub fn on(steps: Vec<Step>, hosts: &BTreeSet<String>) -> Vec<Step> {
    let kept: Vec<Step> = steps.into_iter().filter(|s| hosts.is_empty() || hosts.contains(&s.host)).collect();
    let ids: BTreeSet<String> = kept.iter().map(|s| s.id.clone()).collect();
    kept.into_iter()
        .map(|mut s| {
            s.needs.retain(|n| ids.contains(n));
            s
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    #[test]
    fn control_planes_join_one_by_one_and_workers_after_them() {
        let cluster = Cluster::parse(FILE).unwrap();
        let steps = steps(&cluster, &[], 0);
        let needs = |id: &str| steps.iter().find(|s| s.id == id).unwrap().needs.join(" ");
        assert_eq!(needs("cp1/base"), "");
        assert_eq!(needs("cp2/join"), "cp1/base cp2/base");
        assert_eq!(needs("gpu1/join"), "cp1/base gpu1/base cp2/join");
        assert_eq!(needs("cp1/cluster"), "cp2/join gpu1/join cp1/base");
    }

    #[test]
    fn a_part_is_done_without_the_rest() {
        let cluster = Cluster::parse(FILE).unwrap();
        let ids = |steps: Vec<Step>| steps.into_iter().map(|s| s.id).collect::<Vec<_>>();
        assert_eq!(ids(steps(&cluster, &[Layer::Gpu], 0)), ["cp1/base", "cp2/base", "gpu1/base"]);
        let gpu = on(steps(&cluster, &[], 1), &["gpu1".to_owned()].into());
        assert_eq!(gpu[1].needs, ["gpu1/base"]);
        assert_eq!(steps(&cluster, &[], 1)[1].needs, ["cp1/base"]);
    }
}
