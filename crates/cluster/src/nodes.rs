//! Nodes come, change and go.
//!
//! Source: MicroK8s, "Create a multi-node cluster", "Upgrading a cluster" (drain, refresh, uncordon; control planes first).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::ClusterError;
use crate::control::{ASK, Control};
use crate::resource::Layer;
use crate::shell::quote;
use crate::spec::{Machine, minor};
use crate::state::Log;
use crate::steps::Step;
use crate::transport::Host;
use crate::work::Work;

/// MicroK8s starts, stops, joins and leaves within this.
const LONG: Duration = Duration::from_secs(300);
/// Tokens run out, and nodes are not always ready to be joined.
const JOIN_ATTEMPTS: u32 = 3;

/// Where to join: an address of a control plane, with a token.
#[derive(Deserialize)]
struct Invitation {
    token: String,
    urls: Vec<String>,
}

pub(crate) async fn join(
    work: &Work,
    machine: &Machine,
    host: &Host,
    worker: bool,
    log: &Log,
) -> Result<usize, ClusterError> {
    let control = Control::first(work)?;
    let wrong = |reason: String| ClusterError::Host { host: host.name.clone(), reason };
    if control.nodes().await?.contains_key(&machine.name) {
        return control.ready(&machine.name, None, log).await.map(|()| 0);
    }
    let mut last = None;
    for attempt in 1..=JOIN_ATTEMPTS {
        let seconds = work.cluster.spec.kubernetes.token_seconds;
        let answer = control.microk8s(&format!("add-node --token-ttl {seconds} --format json"), ASK).await?;
        let invitation: Invitation = serde_json::from_str(&answer)
            .map_err(|e| wrong(format!("microk8s add-node answered in another form: {e}")))?;
        let begins = format!("{}:", control.address);
        let url = invitation.urls.iter().find(|u| u.starts_with(&begins)).or(invitation.urls.first());
        let Some(url) = url else { return Err(wrong("microk8s add-node names no address".into())) };
        let role = if worker { " --worker" } else { "" };
        let mut said = String::new();
        let joined = here(host, &format!("join {}{role}", quote(url)), |line| {
            // The token is a key to the cluster.
            let line = line.replace(&invitation.token, "TOKEN");
            log.line(&line);
            said = line;
        })
        .await;
        match joined {
            Ok(()) => return control.ready(&machine.name, None, log).await.map(|()| 1),
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

/// `microk8s` on the machine itself.
async fn here(host: &Host, words: &str, line: impl FnMut(&str)) -> Result<(), ClusterError> {
    let script = format!("microk8s {words} </dev/null 2>&1");
    host.run("exec sh -s", script.as_bytes(), LONG, line).await
}

/// The same, whose output is logged, and told when it fails.
async fn logged(host: &Host, words: &str, log: &Log) -> Result<(), ClusterError> {
    let mut last = String::new();
    let done = here(host, words, |line| {
        log.line(line);
        last = line.to_owned();
    })
    .await;
    done.map_err(|error| match error {
        ClusterError::Host { host, .. } if !last.is_empty() => {
            ClusterError::Host { host, reason: format!("microk8s {words}: {last}") }
        }
        other => other,
    })
}

/// Whether all nodes may go to the file's version: one minor version at a time, and never back. Their versions, by name.
///
/// # Errors
/// [`ClusterError::Spec`] with what to do first, or when the cluster does not answer.
pub async fn may_upgrade(work: &Work) -> Result<BTreeMap<String, String>, ClusterError> {
    let channel = &work.cluster.spec.kubernetes.channel;
    let wanted = minor(channel);
    let nodes = Control::first(work)?.nodes().await?;
    for (name, node) in &nodes {
        let (Some(now), Some(wanted)) = (minor(&node.version), wanted) else { continue };
        let wrong = |reason: String| Err(ClusterError::Spec { file: "spec.kubernetes.channel".into(), reason });
        if now > wanted {
            return wrong(format!("{name} is at {}, and Kubernetes cannot go back to {channel}", node.version));
        }
        if now.0 != wanted.0 || wanted.1 > now.1 + 1 {
            let next = format!("{}.{}/stable", now.0, now.1 + 1);
            return wrong(format!("{name} is at {}: one minor version at a time, next is --to {next}", node.version));
        }
    }
    Ok(nodes.into_iter().map(|(name, node)| (name, node.version)).collect())
}

/// Brings a node to the file's channel. A node that was cut off in between is gone on with.
pub(crate) async fn upgrade(
    work: &Work,
    step: &Step,
    machine: &Machine,
    host: &Host,
    log: &Log,
) -> Result<usize, ClusterError> {
    let wanted = minor(&work.cluster.spec.kubernetes.channel);
    let control = Control::of(work, &machine.name).await?;
    let nodes = control.nodes().await?;
    let Some(node) = nodes.get(&machine.name) else {
        let reason = "it is no node of the cluster; `slipway cluster apply` joins it".into();
        return Err(ClusterError::Host { host: machine.name.clone(), reason });
    };
    let old = minor(&node.version) != wanted;
    if old {
        control.healthy().await?;
        if nodes.len() > 1 {
            control.drain(&machine.name, log).await?;
        }
    }
    let changes = crate::machine::converge(work, step, machine, host, &[Layer::Kubernetes], log).await?;
    control.ready(&machine.name, wanted, log).await?;
    if old || node.closed {
        control.open(&machine.name).await?;
    }
    control.healthy().await?;
    Ok(changes + usize::from(node.closed && changes == 0))
}

/// Whether MicroK8s runs on a machine.
async fn runs(host: &Host) -> Result<bool, ClusterError> {
    let question = "microk8s status --timeout 5 </dev/null 2>&1 | head -1; true";
    Ok(host.script(question, ASK).await?.contains("microk8s is running"))
}

pub(crate) async fn stop(work: &Work, machine: &Machine, host: &Host, log: &Log) -> Result<usize, ClusterError> {
    if !runs(host).await? {
        return Ok(0);
    }
    let control = Control::of(work, &machine.name).await?;
    let nodes = control.nodes().await?;
    // On the last node there is nobody who could take its pods.
    if nodes.iter().any(|(name, node)| name != &machine.name && node.ready && !node.unschedulable) {
        control.drain(&machine.name, log).await?;
    } else if nodes.contains_key(&machine.name) {
        log.line("nobody could take its pods: they end with it");
    }
    logged(host, "stop", log).await?;
    Ok(1)
}

pub(crate) async fn start(work: &Work, machine: &Machine, host: &Host, log: &Log) -> Result<usize, ClusterError> {
    let down = !runs(host).await?;
    if down {
        logged(host, "start", log).await?;
        logged(host, "status --wait-ready --timeout 240", log).await?;
    }
    let control = Control::of(work, "").await?;
    control.ready(&machine.name, None, log).await?;
    let closed = control.nodes().await?.get(&machine.name).is_some_and(|n| n.closed);
    if closed {
        control.open(&machine.name).await?;
    }
    Ok(usize::from(down) + usize::from(closed))
}

/// Drained, gone from the machine's side, and removed from the cluster's, whichever of these is left to do.
pub(crate) async fn leave(work: &Work, machine: &Machine, host: &Host, log: &Log) -> Result<usize, ClusterError> {
    let control = Control::of(work, &machine.name).await?;
    if control.host.name == machine.name {
        let reason = "it is the last control plane; `slipway cluster destroy` ends the whole cluster".into();
        return Err(ClusterError::Host { host: machine.name.clone(), reason });
    }
    if !control.nodes().await?.contains_key(&machine.name) {
        return Ok(0);
    }
    control.drain(&machine.name, log).await?;
    match logged(host, "leave", log).await {
        Ok(()) => {}
        // A machine that is gone for good is removed all the same.
        Err(ClusterError::Unreachable { reason, .. }) => log.line(&format!("it cannot be reached: {reason}")),
        Err(other) => return Err(other),
    }
    if control.nodes().await?.contains_key(&machine.name) {
        control.microk8s(&format!("remove-node {} --force", quote(&machine.name)), ASK).await?;
    }
    Ok(1)
}
