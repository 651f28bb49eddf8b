//! Builds the steps of each command and their dependencies. `runner` runs them.
//!
//! A list of steps is in topological order: each step comes after the steps that it needs.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::layers::{CLUSTER_LAYERS, MACHINE_LAYERS};
use crate::resource::Layer;
use crate::smoke;
use crate::spec::{Cluster, Machine, Role};

/// The action of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Create the machine at its provider or power it on, and wait until it accepts SSH connections.
    Machine,
    /// Apply the resources of these layers to the machine.
    Converge(Vec<Layer>),
    /// Join the machine to the cluster.
    Join {
        /// Join it as a worker, not as a control plane.
        worker: bool,
    },
    /// Run a smoke test.
    Smoke(smoke::Test),
    /// Drain the node, upgrade Kubernetes on it, and uncordon it.
    Upgrade,
    /// Drain the node and stop Kubernetes on it.
    Stop,
    /// Start Kubernetes on the machine and uncordon the node.
    Start,
    /// Power the machine off at its provider.
    PowerOff,
    /// Drain the node and remove it from the cluster.
    Leave,
    /// Roll back all changes of the machine.
    Erase,
    /// Delete the machine at its provider.
    Delete,
}

/// A step on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Unique id: the machine and a name, such as `cp1/base`.
    pub id: String,
    /// Name of the machine.
    pub host: String,
    /// Ids of the steps that must have succeeded before.
    pub needs: Vec<String>,
    /// The action.
    pub action: Action,
}

fn step(host: &str, name: &str, needs: Vec<String>, action: Action) -> Step {
    Step { id: format!("{host}/{name}"), host: host.into(), needs, action }
}

/// Options of an apply.
#[derive(Debug, Clone, Default)]
pub struct ApplyOptions {
    /// Apply only these layers; all if empty.
    pub only: Vec<Layer>,
    /// Number of machines to which the machine layers are applied before the rest.
    pub canary: usize,
    /// Run smoke tests afterwards.
    pub smoke: bool,
}

/// The steps of `slipway cluster apply`, after the machines of the groups were created.
pub fn apply(cluster: &Cluster, options: &ApplyOptions) -> Vec<Step> {
    let selected = |layers: &[Layer]| -> Vec<Layer> {
        layers.iter().copied().filter(|l| options.only.is_empty() || options.only.contains(l)).collect()
    };
    let machines = &cluster.spec.machines;
    let Some(first) = cluster.first() else { return Vec::new() };
    let mut out = Vec::new();
    let base = selected(&MACHINE_LAYERS);
    let canaries: Vec<String> = machines.iter().take(options.canary).map(|m| format!("{}/base", m.name)).collect();
    if !base.is_empty() {
        for (n, machine) in machines.iter().enumerate() {
            let needs = if n < options.canary { Vec::new() } else { canaries.clone() };
            out.push(step(&machine.name, "base", needs, Action::Converge(base.clone())));
        }
    }
    let (mut control, mut workers): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    if !selected(&[Layer::Join]).is_empty() {
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
        // Control planes join one after the other, because MicroK8s' database must agree on each new member. Workers join after them.
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
    let cluster_layers = selected(&CLUSTER_LAYERS);
    if !cluster_layers.is_empty() {
        let new = step(&first.name, "cluster", last, Action::Converge(cluster_layers));
        last = vec![new.id.clone()];
        out.push(new);
    }
    if options.smoke && !selected(&[Layer::Smoke]).is_empty() {
        for test in smoke::tests(cluster) {
            let (host, name) = (test.host(cluster).to_owned(), test.name());
            out.push(step(&host, &name, last.clone(), Action::Smoke(test)));
        }
    }
    out
}

/// The steps of `slipway cluster upgrade`: control planes one after the other, then workers in batches of `workers_at_once`.
pub fn upgrade(cluster: &Cluster, workers_at_once: usize) -> Vec<Step> {
    let machines = &cluster.spec.machines;
    let mut out: Vec<Step> = Vec::new();
    let mut last: Vec<String> = Vec::new();
    let mut add_wave = |machines: &[&Machine]| {
        let needs = std::mem::take(&mut last);
        for machine in machines {
            let new = step(&machine.name, "upgrade", needs.clone(), Action::Upgrade);
            last.push(new.id.clone());
            out.push(new);
        }
    };
    for machine in machines.iter().filter(|m| m.is(Role::ControlPlane)) {
        add_wave(&[machine]);
    }
    let workers: Vec<&Machine> = machines.iter().filter(|m| !m.is(Role::ControlPlane)).collect();
    for batch in workers.chunks(workers_at_once.max(1)) {
        add_wave(batch);
    }
    out
}

/// Steps that create these machines at their providers or power them on.
pub fn machines(names: &[String]) -> Vec<Step> {
    names.iter().map(|name| step(name, "machine", Vec::new(), Action::Machine)).collect()
}

/// Steps that delete these machines at their providers. For machines that never got an address, so that nothing was done on them.
pub fn delete(names: &[String]) -> Vec<Step> {
    names.iter().map(|name| step(name, "delete", Vec::new(), Action::Delete)).collect()
}

/// The steps of `slipway cluster stop`: workers first, then control planes one after the other in reverse order. Machines of a provider are
/// powered off too.
pub fn stop(cluster: &Cluster) -> Vec<Step> {
    let machines = &cluster.spec.machines;
    let mut out: Vec<Step> = Vec::new();
    let mut add_stop = |machine: &Machine, needs: Vec<String>| {
        let stop = step(&machine.name, "stop", needs, Action::Stop);
        let mut last = stop.id.clone();
        out.push(stop);
        if machine.provisioned.is_some() {
            let off = step(&machine.name, "power-off", vec![last], Action::PowerOff);
            last = off.id.clone();
            out.push(off);
        }
        last
    };
    let mut last: Vec<String> =
        machines.iter().filter(|m| !m.is(Role::ControlPlane)).map(|m| add_stop(m, Vec::new())).collect();
    for machine in machines.iter().rev().filter(|m| m.is(Role::ControlPlane)) {
        last = vec![add_stop(machine, std::mem::take(&mut last))];
    }
    out
}

/// The steps of `slipway cluster start`: all control planes in parallel, because none becomes ready without the others, and then workers.
pub fn start(cluster: &Cluster) -> Vec<Step> {
    let machines = &cluster.spec.machines;
    let mut out: Vec<Step> = Vec::new();
    let mut add_start = |machine: &Machine, needs: &[String]| {
        // The addresses of machines may have changed, so `/etc/hosts` is updated first.
        let base = step(&machine.name, "base", Vec::new(), Action::Converge(vec![Layer::System]));
        let needs = [std::slice::from_ref(&base.id), needs].concat();
        let start = step(&machine.name, "start", needs, Action::Start);
        let id = start.id.clone();
        out.extend([base, start]);
        id
    };
    let control: Vec<String> =
        machines.iter().filter(|m| m.is(Role::ControlPlane)).map(|m| add_start(m, &[])).collect();
    for machine in machines.iter().filter(|m| !m.is(Role::ControlPlane)) {
        add_start(machine, &control);
    }
    out
}

/// Steps that release a machine: a machine that slipway created is deleted, on any other the changes are rolled back.
fn release(machine: &Machine, mut needs: Vec<String>) -> Vec<Step> {
    let mut out = Vec::new();
    let adopted = machine.provisioned.as_ref().map(|p| p.adopted);
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

/// Steps that remove these machines from the cluster one after the other, workers first, and release them.
pub fn leave(machines: &[&Machine]) -> Vec<Step> {
    let mut out: Vec<Step> = Vec::new();
    let mut before: Vec<String> = Vec::new();
    let (control, workers): (Vec<&Machine>, Vec<&Machine>) =
        machines.iter().copied().partition(|m| m.is(Role::ControlPlane));
    for machine in workers.into_iter().chain(control.into_iter().rev()) {
        let leave = step(&machine.name, "leave", std::mem::take(&mut before), Action::Leave);
        before = vec![leave.id.clone()];
        out.push(leave);
        out.extend(release(machine, before.clone()));
    }
    out
}

/// The steps of `slipway cluster destroy`: all machines are released without draining. The first control plane is erased before the others,
/// because the resources of the cluster as a whole can only be rolled back while the cluster still works.
pub fn destroy(machines: &[Machine]) -> Vec<Step> {
    let first = machines.iter().find(|m| m.is(Role::ControlPlane));
    let mut out = first.map(|m| release(m, Vec::new())).unwrap_or_default();
    let before: Vec<String> = out.iter().filter(|s| s.action == Action::Erase).map(|s| s.id.clone()).collect();
    for machine in machines.iter().filter(|m| Some(*m) != first) {
        out.extend(release(machine, before.clone()));
    }
    out
}

/// Keeps only the steps on these machines, and drops dependencies on other steps. Keeps all steps if `hosts` is empty.
#[must_use]
pub fn on(steps: Vec<Step>, hosts: &BTreeSet<String>) -> Vec<Step> {
    retain(steps, |s| hosts.is_empty() || hosts.contains(&s.host))
}

/// Keeps only a step and the steps that need it, directly or indirectly.
///
/// # Errors
/// A message with the ids of all steps, if none has this id.
pub fn from(steps: Vec<Step>, id: &str) -> Result<Vec<Step>, String> {
    if !steps.iter().any(|s| s.id == id) {
        let all = steps.into_iter().map(|s| s.id).collect::<Vec<_>>().join(", ");
        return Err(format!("there is no step '{id}'; the steps are {all}"));
    }
    let mut later: BTreeSet<String> = [id.to_owned()].into();
    // One pass is enough, because each step comes after the steps that it needs.
    for step in &steps {
        if step.needs.iter().any(|n| later.contains(n)) {
            later.insert(step.id.clone());
        }
    }
    Ok(retain(steps, |s| later.contains(&s.id)))
}

/// Keeps the steps for which `keep` is true, and drops dependencies on all others.
fn retain(steps: Vec<Step>, keep: impl Fn(&Step) -> bool) -> Vec<Step> {
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
    fn control_planes_join_sequentially_and_before_workers() {
        let cluster = Cluster::parse(FILE).unwrap();
        let steps = apply(&cluster, &ApplyOptions::default());
        assert_eq!(needs(&steps, "cp1/base"), "");
        assert_eq!(needs(&steps, "cp2/join"), "cp1/base cp2/base");
        assert_eq!(needs(&steps, "gpu1/join"), "cp1/base gpu1/base cp2/join");
        assert_eq!(needs(&steps, "cp1/cluster"), "cp2/join gpu1/join cp1/base");
    }

    #[test]
    fn steps_can_be_limited_to_layers_hosts_and_later_steps() {
        let cluster = Cluster::parse(FILE).unwrap();
        let only = |layer| ApplyOptions { only: vec![layer], ..ApplyOptions::default() };
        assert_eq!(ids(apply(&cluster, &only(Layer::Gpu))), ["cp1/base", "cp2/base", "gpu1/base"]);
        assert_eq!(ids(apply(&cluster, &only(Layer::Join))), ["cp2/join", "gpu1/join"]);
        let canary = ApplyOptions { canary: 1, ..ApplyOptions::default() };
        let gpu = on(apply(&cluster, &canary), &["gpu1".to_owned()].into());
        assert_eq!(gpu[1].needs, ["gpu1/base"]);
        assert_eq!(apply(&cluster, &canary)[1].needs, ["cp1/base"]);
        let later = from(apply(&cluster, &ApplyOptions::default()), "cp2/join").unwrap();
        assert_eq!(ids(later.clone()), ["cp2/join", "gpu1/join", "cp1/cluster"]);
        assert!(later[0].needs.is_empty());
        assert!(from(later, "cp9/join").unwrap_err().contains("cp2/join, gpu1/join"));
    }

    #[test]
    fn nodes_are_upgraded_stopped_and_released_in_order() {
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
        let mut machine = cluster.spec.machines[2].clone();
        machine.provisioned = Some(crate::spec::Provisioned { id: "7".into(), adopted: false });
        assert_eq!(ids(destroy(std::slice::from_ref(&machine))), ["gpu1/delete"]);
        machine.provisioned = Some(crate::spec::Provisioned { id: "7".into(), adopted: true });
        assert_eq!(ids(destroy(&[machine])), ["gpu1/erase", "gpu1/delete"]);
        let all = destroy(&cluster.spec.machines);
        assert_eq!((all[0].id.as_str(), needs(&all, "gpu1/erase")), ("cp1/erase", "cp1/erase".into()));
    }
}
