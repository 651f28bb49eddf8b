//! Which steps there are, and which need which.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::layers::{BEFORE_JOINING, OF_THE_CLUSTER};
use crate::resource::Layer;
use crate::smoke;
use crate::spec::{Cluster, Machine, Role};

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Has the provider make the machine or turn it on; waits until it answers.
    Machine,
    /// Makes these layers of the machine as wanted.
    Converge(Vec<Layer>),
    /// Becomes a node.
    Join {
        /// Of a kind that runs pods only.
        worker: bool,
    },
    /// Tries something of the cluster.
    Smoke(smoke::Test),
    /// Drains, gets Kubernetes' next version, and comes back.
    Upgrade,
    /// Drains and stops Kubernetes.
    Stop,
    /// Starts Kubernetes, and takes pods again.
    Start,
    /// Has the provider turn it off.
    PowerOff,
    /// Drains and leaves the cluster.
    Leave,
    /// Takes every change of the machine back.
    Erase,
    /// Has the provider delete it.
    Delete,
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

fn step(host: &str, name: &str, needs: Vec<String>, action: Action) -> Step {
    Step { id: format!("{host}/{name}"), host: host.into(), needs, action }
}

/// What an apply is for.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Only these layers; all when none is named.
    pub only: Vec<Layer>,
    /// So many machines go before the rest.
    pub canary: usize,
    /// The cluster is tried afterwards.
    pub smoke: bool,
}

/// The steps of an apply, each after those it needs.
pub fn apply(cluster: &Cluster, choice: &Choice) -> Vec<Step> {
    let chosen = |layers: &[Layer]| -> Vec<Layer> {
        layers.iter().copied().filter(|l| choice.only.is_empty() || choice.only.contains(l)).collect()
    };
    let machines = &cluster.spec.machines;
    let Some(first) = cluster.first() else { return Vec::new() };
    let mut out = Vec::new();
    let base = chosen(&BEFORE_JOINING);
    let canaries: Vec<String> = machines.iter().take(choice.canary).map(|m| format!("{}/base", m.name)).collect();
    if !base.is_empty() {
        for (n, machine) in machines.iter().enumerate() {
            let needs = if n < choice.canary { Vec::new() } else { canaries.clone() };
            out.push(step(&machine.name, "base", needs, Action::Converge(base.clone())));
        }
    }
    let (mut control, mut workers): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    if !chosen(&[Layer::Join]).is_empty() {
        let mut join = |machine: &Machine, worker: bool, after: &[String]| {
            let mut needs = Vec::new();
            if !base.is_empty() {
                needs.extend([format!("{}/base", first.name), format!("{}/base", machine.name)]);
            }
            needs.extend_from_slice(after);
            let new = step(&machine.name, "join", needs, Action::Join { worker });
            let id = new.id.clone();
            out.push(new);
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
    let mut last = [control, workers].concat();
    last.extend((!base.is_empty()).then(|| format!("{}/base", first.name)));
    let whole = chosen(&OF_THE_CLUSTER);
    if !whole.is_empty() {
        let new = step(&first.name, "cluster", last, Action::Converge(whole));
        last = vec![new.id.clone()];
        out.push(new);
    }
    if choice.smoke && !chosen(&[Layer::Smoke]).is_empty() {
        for test in smoke::tests(cluster) {
            let (host, name) = (test.host(cluster).to_owned(), test.name());
            out.push(step(&host, &name, last.clone(), Action::Smoke(test)));
        }
    }
    out
}

/// One node after the other, control planes first; so many workers at once.
pub fn upgrade(cluster: &Cluster, workers_at_once: usize) -> Vec<Step> {
    let machines = &cluster.spec.machines;
    let mut out: Vec<Step> = Vec::new();
    let mut last: Vec<String> = Vec::new();
    let mut wave = |machines: &[&Machine]| {
        let needs = std::mem::take(&mut last);
        for machine in machines {
            let new = step(&machine.name, "upgrade", needs.clone(), Action::Upgrade);
            last.push(new.id.clone());
            out.push(new);
        }
    };
    for machine in machines.iter().filter(|m| m.is(Role::ControlPlane)) {
        wave(&[machine]);
    }
    let workers: Vec<&Machine> = machines.iter().filter(|m| !m.is(Role::ControlPlane)).collect();
    for several in workers.chunks(workers_at_once.max(1)) {
        wave(several);
    }
    out
}

/// All machines that a provider makes.
pub fn machines(names: &[String]) -> Vec<Step> {
    names.iter().map(|name| step(name, "machine", Vec::new(), Action::Machine)).collect()
}

/// Machines that never got an address have nothing to drain or to take back: they are only deleted.
pub fn delete(names: &[String]) -> Vec<Step> {
    names.iter().map(|name| step(name, "delete", Vec::new(), Action::Delete)).collect()
}

/// Workers go down before control planes, and those one by one, the first last.
pub fn stop(cluster: &Cluster) -> Vec<Step> {
    let machines = &cluster.spec.machines;
    let mut out: Vec<Step> = Vec::new();
    let mut down = |machine: &Machine, needs: Vec<String>| {
        let stop = step(&machine.name, "stop", needs, Action::Stop);
        let mut last = stop.id.clone();
        out.push(stop);
        if machine.made.is_some() {
            let off = step(&machine.name, "power-off", vec![last], Action::PowerOff);
            last = off.id.clone();
            out.push(off);
        }
        last
    };
    let mut last: Vec<String> =
        machines.iter().filter(|m| !m.is(Role::ControlPlane)).map(|m| down(m, Vec::new())).collect();
    for machine in machines.iter().rev().filter(|m| m.is(Role::ControlPlane)) {
        last = vec![down(machine, std::mem::take(&mut last))];
    }
    out
}

/// Control planes come up together, since none is ready without the others; workers after them.
pub fn start(cluster: &Cluster) -> Vec<Step> {
    let machines = &cluster.spec.machines;
    let mut out: Vec<Step> = Vec::new();
    let mut up = |machine: &Machine, needs: &[String]| {
        // Addresses may be others than before.
        let base = step(&machine.name, "base", Vec::new(), Action::Converge(vec![Layer::System]));
        let needs = [std::slice::from_ref(&base.id), needs].concat();
        let start = step(&machine.name, "start", needs, Action::Start);
        let id = start.id.clone();
        out.extend([base, start]);
        id
    };
    let control: Vec<String> = machines.iter().filter(|m| m.is(Role::ControlPlane)).map(|m| up(m, &[])).collect();
    for machine in machines.iter().filter(|m| !m.is(Role::ControlPlane)) {
        up(machine, &control);
    }
    out
}

/// How a machine is given up: one that was made for us is deleted, any other is as it was before us.
fn give_up(machine: &Machine, mut needs: Vec<String>) -> Vec<Step> {
    let mut out = Vec::new();
    let adopted = machine.made.as_ref().map(|m| m.adopted);
    if adopted != Some(false) {
        let erase = step(&machine.name, "erase", needs, Action::Erase);
        needs = vec![erase.id.clone()];
        out.push(erase);
    }
    if adopted.is_some() {
        out.push(step(&machine.name, "delete", needs, Action::Delete));
    }
    out
}

/// These machines leave the cluster one by one, workers first, and are given up.
pub fn leave(machines: &[&Machine]) -> Vec<Step> {
    let mut out: Vec<Step> = Vec::new();
    let mut before: Vec<String> = Vec::new();
    let (control, workers): (Vec<&Machine>, Vec<&Machine>) =
        machines.iter().copied().partition(|m| m.is(Role::ControlPlane));
    for machine in workers.into_iter().chain(control.into_iter().rev()) {
        let leave = step(&machine.name, "leave", std::mem::take(&mut before), Action::Leave);
        before = vec![leave.id.clone()];
        out.push(leave);
        out.extend(give_up(machine, before.clone()));
    }
    out
}

/// All machines: nobody is left who would need them. What belongs to the cluster as a whole is taken back on the first, which goes before
/// the others while the cluster is still one.
pub fn destroy(machines: &[Machine]) -> Vec<Step> {
    let first = machines.iter().find(|m| m.is(Role::ControlPlane));
    let mut out = first.map(|m| give_up(m, Vec::new())).unwrap_or_default();
    let before: Vec<String> = out.iter().filter(|s| s.action == Action::Erase).map(|s| s.id.clone()).collect();
    for machine in machines.iter().filter(|m| Some(*m) != first) {
        out.extend(give_up(machine, before.clone()));
    }
    out
}

/// The steps on these machines only, without what others would have to do for them.
#[must_use]
pub fn on(steps: Vec<Step>, hosts: &BTreeSet<String>) -> Vec<Step> {
    kept(steps, |s| hosts.is_empty() || hosts.contains(&s.host))
}

/// The steps from this one on: it, and all that need it.
///
/// # Errors
/// The steps there are, when it is none of them.
pub fn from(steps: Vec<Step>, id: &str) -> Result<Vec<Step>, String> {
    if !steps.iter().any(|s| s.id == id) {
        let all = steps.into_iter().map(|s| s.id).collect::<Vec<_>>().join(", ");
        return Err(format!("there is no step '{id}'; there are {all}"));
    }
    let mut later: BTreeSet<String> = [id.to_owned()].into();
    // Steps stand after those they need.
    for step in &steps {
        if step.needs.iter().any(|n| later.contains(n)) {
            later.insert(step.id.clone());
        }
    }
    Ok(kept(steps, |s| later.contains(&s.id)))
}

fn kept(steps: Vec<Step>, keep: impl Fn(&Step) -> bool) -> Vec<Step> {
    let kept: Vec<Step> = steps.into_iter().filter(keep).collect();
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

    fn ids(steps: Vec<Step>) -> Vec<String> {
        steps.into_iter().map(|s| s.id).collect()
    }

    fn needs(steps: &[Step], id: &str) -> String {
        steps.iter().find(|s| s.id == id).unwrap().needs.join(" ")
    }

    #[test]
    fn control_planes_join_one_by_one_and_workers_after_them() {
        let cluster = Cluster::parse(FILE).unwrap();
        let steps = apply(&cluster, &Choice::default());
        assert_eq!(needs(&steps, "cp1/base"), "");
        assert_eq!(needs(&steps, "cp2/join"), "cp1/base cp2/base");
        assert_eq!(needs(&steps, "gpu1/join"), "cp1/base gpu1/base cp2/join");
        assert_eq!(needs(&steps, "cp1/cluster"), "cp2/join gpu1/join cp1/base");
    }

    #[test]
    fn a_part_is_done_without_the_rest() {
        let cluster = Cluster::parse(FILE).unwrap();
        let only = |layer| Choice { only: vec![layer], ..Choice::default() };
        assert_eq!(ids(apply(&cluster, &only(Layer::Gpu))), ["cp1/base", "cp2/base", "gpu1/base"]);
        assert_eq!(ids(apply(&cluster, &only(Layer::Join))), ["cp2/join", "gpu1/join"]);
        let canary = Choice { canary: 1, ..Choice::default() };
        let gpu = on(apply(&cluster, &canary), &["gpu1".to_owned()].into());
        assert_eq!(gpu[1].needs, ["gpu1/base"]);
        assert_eq!(apply(&cluster, &canary)[1].needs, ["cp1/base"]);
        let later = from(apply(&cluster, &Choice::default()), "cp2/join").unwrap();
        assert_eq!(ids(later.clone()), ["cp2/join", "gpu1/join", "cp1/cluster"]);
        assert!(later[0].needs.is_empty());
        assert!(from(later, "cp9/join").unwrap_err().contains("cp2/join, gpu1/join"));
    }

    #[test]
    fn nodes_are_upgraded_and_stopped_in_order() {
        let cluster = Cluster::parse(FILE).unwrap();
        let up = upgrade(&cluster, 2);
        assert_eq!(
            (needs(&up, "cp2/upgrade"), needs(&up, "gpu1/upgrade")),
            ("cp1/upgrade".into(), "cp2/upgrade".into())
        );
        let down = stop(&cluster);
        assert_eq!((needs(&down, "cp2/stop"), needs(&down, "cp1/stop")), ("gpu1/stop".into(), "cp2/stop".into()));
        assert_eq!(needs(&start(&cluster), "gpu1/start"), "gpu1/base cp1/start cp2/start");
        let all: Vec<&Machine> = cluster.spec.machines.iter().collect();
        assert_eq!(ids(leave(&all[1..])), ["gpu1/leave", "gpu1/erase", "cp2/leave", "cp2/erase"]);
        let mut made = cluster.spec.machines[2].clone();
        made.made = Some(crate::spec::Made { id: "7".into(), adopted: false });
        assert_eq!(ids(destroy(std::slice::from_ref(&made))), ["gpu1/delete"]);
        made.made = Some(crate::spec::Made { id: "7".into(), adopted: true });
        assert_eq!(ids(destroy(&[made])), ["gpu1/erase", "gpu1/delete"]);
        let all = destroy(&cluster.spec.machines);
        assert_eq!((all[0].id.as_str(), needs(&all, "gpu1/erase")), ("cp1/erase", "cp1/erase".into()));
    }
}
