//! Steps of a single machine: runs the engine on it, reboots it where the engine requires that, and erases slipway's changes.

use std::time::{Duration, Instant};

use crate::ClusterError;
use crate::control::{Control, QUERY_TIMEOUT};
use crate::distribution::Family;
use crate::event::Event;
use crate::layers;
use crate::probe::Facts;
use crate::remote_probe::probe_host;
use crate::resource::{DesiredState, Layer};
use crate::resume::MAX_REBOOTS;
use crate::shell::FOLDER;
use crate::shell::quote;
use crate::spec::Machine;
use crate::state::Log;
use crate::steps::{Action, Step};
use crate::transport::{Host, Program};
use crate::work::{Progress, Work};

/// Timeout of one run of the engine, which may install a driver.
const CONVERGE_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long the engine waits for the lock of the machine, which an engine that continues by itself after a reboot may hold.
const LOCK_TIMEOUT_SECONDS: u64 = 1800;
/// Prints an identifier that changes with every boot.
const READ_BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

/// Applies these layers to the machine, and reboots it as often as the engine requires. Returns the number of changes.
pub(crate) async fn apply_layers(
    work: &Work,
    step: &Step,
    machine: &Machine,
    host: &Host,
    layers: &[Layer],
    log: &Log,
) -> Result<usize, ClusterError> {
    let desired = layers::desired_state(&work.cluster, machine)?.only(layers);
    // Most machines are in the desired state most of the time. A probe from the controller finds that out without uploading the engine.
    let facts = probe_host(host, &desired, 0).await?;
    if desired.check(&facts).is_empty() {
        return Ok(0);
    }
    if step.action != Action::Upgrade && layers.contains(&Layer::Kubernetes) {
        refuse_upgrade(work, machine, &desired, &facts).await?;
    }
    let document = serde_json::to_vec(&desired).map_err(|e| ClusterError::io(step.id.clone())(e.into()))?;
    let mut changed = 0;
    for _ in 0..=MAX_REBOOTS {
        let program = host.push(&work.program).await?;
        let (mut failure, mut reboot_reason, mut done): (Option<String>, Option<String>, bool) = (None, None, false);
        let command = format!(
            "exec {program} node converge --events --wait {} --change {} --folder {FOLDER} -",
            LOCK_TIMEOUT_SECONDS,
            quote(&work.change)
        );
        let ran = host
            .run(&command, &document, CONVERGE_TIMEOUT, |line| {
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
                    Event::Rebooting { reason, .. } => reboot_reason = Some(reason.clone()),
                    Event::Done { .. } => done = true,
                    _ => {}
                }
                work.send(Progress::Event { step: step.id.clone(), event });
            })
            .await;
        if let Some(reason) = failure {
            return Err(ClusterError::Host { host: host.name.clone(), reason });
        }
        if reboot_reason.is_some() {
            reboot(host, Duration::from_secs(work.cluster.spec.system.restart_seconds), log).await?;
            changed += 1;
            continue;
        }
        ran?;
        if done {
            return Ok(changed);
        }
        return Err(ClusterError::Host {
            host: host.name.clone(),
            reason: "the connection ended before the engine had finished".into(),
        });
    }
    Err(ClusterError::Host {
        host: host.name.clone(),
        reason: format!("it still requires a reboot after {MAX_REBOOTS} reboots"),
    })
}

/// Fails if these changes include another minor version of Kubernetes on a node of the cluster, which needs to be drained first. A machine
/// that is not a node yet runs no pods, so it needs no drain.
async fn refuse_upgrade(
    work: &Work,
    machine: &Machine,
    desired: &DesiredState,
    facts: &Facts,
) -> Result<(), ClusterError> {
    let kubernetes = &work.cluster.spec.kubernetes;
    let differs = |program: &str| desired.check(facts).iter().any(|(resource, _)| resource.id == program);
    let (now, then) = match kubernetes.distribution.family() {
        Family::Microk8s => match crate::kinds::snap::minor_version_change(facts, "microk8s", &kubernetes.channel) {
            Some(change) => change,
            None => return Ok(()),
        },
        Family::Rancher(rancher) if !differs(&format!("kubernetes/{}", rancher.name)) => return Ok(()),
        Family::Kubeadm if !differs("kubernetes/kubeadm") => return Ok(()),
        Family::Rancher(_) | Family::Kubeadm => (String::new(), kubernetes.version.clone()),
    };
    let Ok(nodes) = Control::first(work)?.nodes().await else { return Ok(()) };
    match nodes.get(&machine.name) {
        Some(node) if now.is_empty() && !kubernetes.is_upgrade_from(&node.version) => Ok(()),
        Some(node) => {
            let now = if now.is_empty() { node.version.clone() } else { now };
            Err(ClusterError::Upgrade { host: machine.name.clone(), now, then })
        }
        None => Ok(()),
    }
}

/// Reboots a machine and waits until it accepts connections again.
async fn reboot(host: &Host, timeout: Duration, log: &Log) -> Result<(), ClusterError> {
    let before = host.script(READ_BOOT_ID, QUERY_TIMEOUT).await?;
    log.line("reboots");
    // The reboot closes the connection, so the result is ignored. The boot identifier shows whether the machine rebooted.
    let _ = host.script("systemctl reboot || reboot", QUERY_TIMEOUT).await;
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        tokio::time::sleep(Duration::from_secs(2)).await;
        if host.script(READ_BOOT_ID, QUERY_TIMEOUT).await.is_ok_and(|now| now != before) {
            log.line("is back after the reboot");
            return Ok(());
        }
    }
    Err(ClusterError::Unreachable {
        host: host.name.clone(),
        reason: format!("it did not come back within {} s after a reboot", timeout.as_secs()),
    })
}

/// Rolls back the last recorded change of a machine. `line` receives each line of the engine's output.
pub(crate) async fn roll_back(host: &Host, program: &Program, line: impl FnMut(&str)) -> Result<(), ClusterError> {
    let program = host.push(program).await?;
    let command = format!("exec {program} node converge --rollback --folder {FOLDER}");
    host.run(&command, b"", CONVERGE_TIMEOUT, line).await
}

/// Rolls back every recorded change of a machine, and removes slipway's own files from it.
pub(crate) async fn erase(work: &Work, host: &Host, log: &Log) -> Result<usize, ClusterError> {
    if host.script(&format!("ls {FOLDER}/journal 2>/dev/null | head -1; true"), QUERY_TIMEOUT).await?.is_empty() {
        return Ok(0);
    }
    let program = host.push(&work.program).await?;
    let command = format!("exec {program} node converge --rollback --all --folder {FOLDER}");
    host.run(&command, b"", CONVERGE_TIMEOUT, |line| log.line(line)).await?;
    let cleanup = "rm -rf /var/lib/slipway/converge /var/lib/slipway/bin /var/lib/slipway/wanted; \
                systemctl disable --quiet slipway-converge 2>/dev/null; rm -f /etc/systemd/system/slipway-converge.service";
    host.script(cleanup, QUERY_TIMEOUT).await?;
    Ok(1)
}
