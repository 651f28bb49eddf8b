//! One machine makes itself as wanted, over new starts where it needs them.

use std::time::{Duration, Instant};

use crate::ClusterError;
use crate::control::{ASK, Control};
use crate::event::Event;
use crate::layers;
use crate::resource::Layer;
use crate::resume::MOST_RESTARTS;
use crate::shell::FOLDER;
use crate::shell::quote;
use crate::spec::Machine;
use crate::state::Log;
use crate::steps::{Action, Step};
use crate::transport::Host;
use crate::work::{Progress, Work};

/// A machine's own part may install a driver.
const CONVERGE: Duration = Duration::from_secs(3600);
/// A machine that goes on by itself after a new start is waited for.
const WAIT_SECONDS: u64 = 1800;
const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";

/// Lets the machine make itself as wanted, over as many new starts as that takes.
pub(crate) async fn converge(
    work: &Work,
    step: &Step,
    machine: &Machine,
    host: &Host,
    layers: &[Layer],
    log: &Log,
) -> Result<usize, ClusterError> {
    let wanted = layers::wanted(&work.cluster, machine)?.only(layers);
    // Most machines are as wanted most of the time: they are asked from here, and nothing is put onto them.
    let facts = crate::ask::ask(host, &wanted, 0).await?;
    if wanted.check(&facts).is_empty() {
        return Ok(0);
    }
    let channel = &work.cluster.spec.kubernetes.channel;
    if step.action != Action::Upgrade
        && layers.contains(&Layer::Kubernetes)
        && let Some((now, then)) = crate::kinds::snap::moves(&facts, "microk8s", channel)
        // One that is no node yet has nothing to lose.
        && Control::first(work)?.nodes().await.is_ok_and(|nodes| nodes.contains_key(&machine.name))
    {
        return Err(ClusterError::Upgrade { host: machine.name.clone(), now, then });
    }
    let document = serde_json::to_vec(&wanted).map_err(|e| ClusterError::io(step.id.clone())(e.into()))?;
    let mut changed = 0;
    for _ in 0..=MOST_RESTARTS {
        let program = host.push(&work.program).await?;
        let (mut failure, mut restart, mut done): (Option<String>, Option<String>, bool) = (None, None, false);
        let command = format!(
            "exec {program} node converge --events --wait {} --change {} --folder {FOLDER} -",
            WAIT_SECONDS,
            quote(&work.change)
        );
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
                let _ = work.watch.send(Progress::Event { step: step.id.clone(), event }); // nobody need watch
            })
            .await;
        if let Some(reason) = failure {
            return Err(ClusterError::Host { host: host.name.clone(), reason });
        }
        if restart.is_some() {
            start_anew(host, Duration::from_secs(work.cluster.spec.system.restart_seconds), log).await?;
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

/// Starts a machine anew and waits until it is back.
async fn start_anew(host: &Host, limit: Duration, log: &Log) -> Result<(), ClusterError> {
    let before = host.script(BOOT, ASK).await?;
    log.line("starts anew");
    // The connection ends with the machine, so this fails; whether the machine restarted is seen by its boot identifier.
    let _ = host.script("systemctl reboot || reboot", ASK).await;
    let until = Instant::now() + limit;
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_secs(2)).await;
        if host.script(BOOT, ASK).await.is_ok_and(|now| now != before) {
            log.line("is back");
            return Ok(());
        }
    }
    Err(ClusterError::Unreachable {
        host: host.name.clone(),
        reason: format!("it did not come back within {} s of a new start", limit.as_secs()),
    })
}

/// Takes every change back that there is a record of, and what we put there ourselves.
pub(crate) async fn erase(work: &Work, host: &Host, log: &Log) -> Result<usize, ClusterError> {
    if host.script(&format!("ls {FOLDER}/journal 2>/dev/null | head -1; true"), ASK).await?.is_empty() {
        return Ok(0);
    }
    let program = host.push(&work.program).await?;
    let command = format!("exec {program} node converge --rollback --all --folder {FOLDER}");
    host.run(&command, b"", CONVERGE, |line| log.line(line)).await?;
    let ours = "rm -rf /var/lib/slipway/converge /var/lib/slipway/bin /var/lib/slipway/wanted; \
                systemctl disable --quiet slipway-converge 2>/dev/null; rm -f /etc/systemd/system/slipway-converge.service";
    host.script(ours, ASK).await?;
    Ok(1)
}
