//! Steps that upgrade, stop, start and remove a node of the cluster. [`crate::join`] has the step that adds one.
//!
//! Each step checks the state of the node first, so an interrupted step is completed by running it again.
//!
//! Source: MicroK8s, "Create a multi-node cluster", "Upgrading a cluster" (drain, refresh, uncordon; control planes first); K3s, "High
//! Availability Embedded etcd", "Manual Upgrades".

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ClusterError;
use crate::control::{Control, QUERY_TIMEOUT};
use crate::distribution::Family;
use crate::layers::kubeadm;
use crate::resource::Layer;
use crate::shell::quote;
use crate::spec::{Distribution, Machine, minor};
use crate::state::Log;
use crate::steps::Step;
use crate::transport::Host;
use crate::work::Work;

/// Timeout of starting or stopping Kubernetes on a machine, and of joining and leaving a cluster.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(300);
/// Runs `microk8s` on the machine; `line` receives each line of its output. The arguments are shell text.
pub(crate) async fn run_microk8s(host: &Host, arguments: &str, line: impl FnMut(&str)) -> Result<(), ClusterError> {
    let script = format!("microk8s {arguments} </dev/null 2>&1");
    host.run("exec sh -s", script.as_bytes(), START_TIMEOUT, line).await
}

/// Runs `microk8s` on the machine and logs its output. An error contains the last line of the output.
async fn run_microk8s_logged(host: &Host, arguments: &str, log: &Log) -> Result<(), ClusterError> {
    run_logged(host, &format!("microk8s {arguments}"), log).await
}

/// Runs `systemctl` for a unit, and logs its output.
async fn run_systemctl(host: &Host, verb: &str, unit: &str, log: &Log) -> Result<(), ClusterError> {
    let explain = format!("systemctl status --no-pager --lines=5 {unit}");
    run_logged(host, &format!("systemctl {verb} {unit} || {{ s=$?; {explain}; exit $s; }}"), log).await
}

/// Runs shell commands, and logs their output. An error contains the first command and the last line of the output.
async fn run_logged(host: &Host, script: &str, log: &Log) -> Result<(), ClusterError> {
    let mut last = String::new();
    let input = format!("{{ {script}\n}} </dev/null 2>&1");
    let done = host
        .run("exec sh -s", input.as_bytes(), START_TIMEOUT, |line| {
            log.line(line);
            if !line.trim().is_empty() {
                last = line.trim().to_owned();
            }
        })
        .await;
    done.map_err(|error| match error {
        ClusterError::Host { host, .. } if !last.is_empty() => {
            let command = script.split(['|', ';']).next().unwrap_or_default().trim();
            ClusterError::Host { host, reason: format!("{command}: {last}") }
        }
        other => other,
    })
}

/// Checks that all nodes may be upgraded to the file's version: one minor version at a time, and no downgrade. Returns the current versions
/// by node name.
///
/// # Errors
/// [`ClusterError::Spec`] with the upgrade to do first, or an error when the cluster does not respond.
pub(crate) async fn may_upgrade(work: &Work) -> Result<BTreeMap<String, String>, ClusterError> {
    let kubernetes = &work.cluster.spec.kubernetes;
    let release = kubernetes.release();
    let desired = minor(release);
    let nodes = Control::first(work)?.nodes().await?;
    for (name, node) in &nodes {
        let (Some(current), Some(desired)) = (minor(&node.version), desired) else { continue };
        let invalid = |reason: String| Err(ClusterError::Spec { file: "spec.kubernetes".into(), reason });
        if current > desired {
            return invalid(format!("{name} is at {}, and Kubernetes cannot be downgraded to {release}", node.version));
        }
        if current.0 != desired.0 || desired.1 > current.1 + 1 {
            let next = match kubernetes.distribution {
                Distribution::Microk8s => format!("{}.{}/stable", current.0, current.1 + 1),
                Distribution::K3s | Distribution::Rke2 | Distribution::Kubeadm => {
                    format!("a version v{}.{}", current.0, current.1 + 1)
                }
            };
            return invalid(format!("{name} is at {}: one minor version at a time, next is --to {next}", node.version));
        }
    }
    Ok(nodes.into_iter().map(|(name, node)| (name, node.version)).collect())
}

/// Upgrades a node to the file's channel: drain, refresh, uncordon. Completes an upgrade that was interrupted before.
pub(crate) async fn upgrade(
    work: &Work,
    step: &Step,
    machine: &Machine,
    host: &Host,
    log: &Log,
) -> Result<usize, ClusterError> {
    let desired = minor(work.cluster.spec.kubernetes.release());
    let control = Control::connect(work, &machine.name).await?;
    let nodes = control.nodes().await?;
    let Some(node) = nodes.get(&machine.name) else {
        let reason = "it is not a node of the cluster; `slipway cluster apply` joins it".into();
        return Err(ClusterError::Host { host: machine.name.clone(), reason });
    };
    let outdated = work.cluster.spec.kubernetes.is_upgrade_from(&node.version);
    if outdated {
        control.check_healthy().await?;
        if nodes.len() > 1 {
            control.drain(&machine.name, log).await?;
        }
    }
    let changes = crate::machine::apply_layers(work, step, machine, host, &[Layer::Kubernetes], log).await?;
    control.wait_ready(&machine.name, desired, log).await?;
    if outdated || node.cordoned_by_slipway {
        control.uncordon(&machine.name).await?;
    }
    control.check_healthy().await?;
    Ok(changes + usize::from(node.cordoned_by_slipway && changes == 0))
}

/// Whether Kubernetes is running on a machine.
async fn is_running(work: &Work, machine: &Machine, host: &Host) -> Result<bool, ClusterError> {
    let unit = match work.cluster.spec.kubernetes.distribution.family() {
        Family::Microk8s => {
            let script = "microk8s status --timeout 5 </dev/null 2>&1 | head -1; true";
            return Ok(host.script(script, QUERY_TIMEOUT).await?.contains("microk8s is running"));
        }
        Family::Rancher(rancher) => rancher.unit(machine),
        Family::Kubeadm => "kubelet",
    };
    let script = format!("systemctl is-active {unit} || true");
    Ok(host.script(&script, QUERY_TIMEOUT).await?.trim() == "active")
}

/// Drains the node if another node can take its pods, and stops Kubernetes. Returns the number of changes.
pub(crate) async fn stop(work: &Work, machine: &Machine, host: &Host, log: &Log) -> Result<usize, ClusterError> {
    if !is_running(work, machine, host).await? {
        return Ok(0);
    }
    let control = Control::connect(work, &machine.name).await?;
    let nodes = control.nodes().await?;
    // A drain of the last schedulable node would never end, because no other node can take its pods.
    if nodes.iter().any(|(name, node)| name != &machine.name && node.ready && !node.unschedulable) {
        control.drain(&machine.name, log).await?;
    } else if nodes.contains_key(&machine.name) {
        log.line("no other node can take its pods, so they are stopped with it");
    }
    match control.distribution.family() {
        Family::Microk8s => run_microk8s_logged(host, "stop", log).await?,
        Family::Rancher(rancher) => run_systemctl(host, "stop", rancher.unit(machine), log).await?,
        Family::Kubeadm => run_logged(host, kubeadm::STOP, log).await?,
    }
    Ok(1)
}

/// Starts Kubernetes, waits until the node is ready, and uncordons it if slipway had cordoned it. Returns the number of changes.
pub(crate) async fn start(work: &Work, machine: &Machine, host: &Host, log: &Log) -> Result<usize, ClusterError> {
    let was_down = !is_running(work, machine, host).await?;
    if was_down {
        match work.cluster.spec.kubernetes.distribution.family() {
            Family::Microk8s => {
                run_microk8s_logged(host, "start", log).await?;
                run_microk8s_logged(host, "status --wait-ready --timeout 240", log).await?;
            }
            Family::Rancher(rancher) => run_systemctl(host, "start", rancher.unit(machine), log).await?,
            Family::Kubeadm => run_systemctl(host, "start", "kubelet", log).await?,
        }
    }
    let control = Control::wait(work).await?;
    let node = control.wait_ready(&machine.name, None, log).await?;
    if node.cordoned_by_slipway {
        control.uncordon_after_start(&machine.name).await?;
    }
    Ok(usize::from(was_down) + usize::from(node.cordoned_by_slipway))
}

/// Removes a node from the cluster: drains it, lets it leave, and deletes the node. Returns the number of changes.
pub(crate) async fn leave(work: &Work, machine: &Machine, host: &Host, log: &Log) -> Result<usize, ClusterError> {
    let control = Control::connect(work, &machine.name).await?;
    if control.host.name == machine.name {
        let reason = "it is the last control plane; remove the whole cluster with `slipway cluster destroy`".into();
        return Err(ClusterError::Host { host: machine.name.clone(), reason });
    }
    if !control.nodes().await?.contains_key(&machine.name) {
        return Ok(0);
    }
    control.drain(&machine.name, log).await?;
    let family = control.distribution.family();
    let left = match family {
        Family::Microk8s => run_microk8s_logged(host, "leave", log).await,
        // The service is stopped for good, because it would register the node again. Deleting the node of a control plane removes it from
        // etcd too.
        Family::Rancher(rancher) => run_systemctl(host, "disable --now", rancher.unit(machine), log).await,
        Family::Kubeadm => run_logged(host, &kubeadm::leave(), log).await,
    };
    match left {
        Ok(()) => {}
        // The machine may no longer exist, so its node is removed from the cluster anyway.
        Err(ClusterError::Unreachable { reason, .. }) => log.line(&format!("the machine cannot be reached: {reason}")),
        Err(other) => return Err(other),
    }
    if control.nodes().await?.contains_key(&machine.name) {
        let name = quote(&machine.name);
        match family {
            Family::Microk8s => control.microk8s(&format!("remove-node {name} --force"), QUERY_TIMEOUT).await?,
            Family::Rancher(_) | Family::Kubeadm => {
                control.kubectl(&format!("delete node {name}"), b"", QUERY_TIMEOUT).await?
            }
        };
    }
    Ok(1)
}
