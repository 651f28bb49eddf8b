//! The reconciler: looks at every run that is not finished and takes each one step further. It starts what there is room for, reads GPUs,
//! and writes down what ended. It keeps no state of its own, so a step that failed is simply tried again.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use slipway_core::clock::now_ms;
use slipway_core::files;

use super::room::{Demand, Room};
use super::supervisor::{self, Environment, Task};
use super::{Device, Inner, POLL_INTERVAL, blocking, environment};
use crate::lifecycle::{self, Action, Seen};
use crate::{ExecError, GpuUse, Submitted, TokenRequest, Tracked};

/// Time that the tracking store has for one call.
const TRACKER_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two readings of GPUs.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);
/// Between two passes while nothing runs and nothing waits.
const IDLE_INTERVAL: Duration = Duration::from_secs(5);

/// Reconciles all runs until the task is aborted. A panic in a pass is logged, and the next pass comes: without this task no run would
/// start or end any more.
pub(super) async fn run(this: Arc<Inner>) {
    loop {
        let pass = async {
            let active = reconcile_all(&this).await?;
            if active && this.sampled.lock().elapsed() >= SAMPLE_INTERVAL {
                sample(&this).await?;
            }
            Ok(active)
        };
        let active = panic_as_error(pass).await.unwrap_or_else(|error| {
            tracing::error!(%error, "the runs could not be reconciled; trying again");
            true
        });
        tokio::select! {
            () = this.changed.notified() => {}
            () = tokio::time::sleep(if active { POLL_INTERVAL } else { IDLE_INTERVAL }) => {}
        }
    }
}

async fn panic_as_error<T>(work: impl Future<Output = Result<T, ExecError>>) -> Result<T, ExecError> {
    let panicked = |_| ExecError::Io { what: "reconciling".into(), source: std::io::Error::other("the code panicked") };
    AssertUnwindSafe(work).catch_unwind().await.map_err(panicked)?
}

/// One pass; says whether anything may change by itself.
async fn reconcile_all(this: &Arc<Inner>) -> Result<bool, ExecError> {
    let names = this.runs.unfinished();
    if names.is_empty() {
        return Ok(false);
    }
    // First what runs takes its room, then those that wait are asked in their order.
    let own = Arc::clone(this);
    let (mut room, mut seen) = blocking(move || Ok(observe_active(&own))).await?;
    for name in &names {
        // An error, or a panic, of one run is not the others' end.
        if let Err(error) = panic_as_error(step(this, name, seen.remove(name), &mut room)).await {
            let why = error.to_string();
            let is_new = this.runs.with(name, |e| std::mem::replace(&mut e.waits_for, why.clone()) != why);
            if is_new == Some(true) {
                tracing::warn!(run = name, %error, "the run's next step failed; trying again");
            }
        }
    }
    Ok(true)
}

/// The room that is left by what runs, and what is seen of each active attempt. Blocks.
fn observe_active(this: &Inner) -> (Room, HashMap<String, Seen>) {
    let mut room = this.room();
    let mut seen = HashMap::new();
    for (name, number) in this.runs.active() {
        let folder = this.runs.folder(&name).join(number.to_string());
        let found = supervisor::observe(&folder);
        if !matches!(found, Seen::Over { .. })
            && let Some(task) = task(&folder)
        {
            room.hold(task.demand.0, task.demand.1, &task.gpus);
        }
        seen.insert(name, found);
    }
    (room, seen)
}

fn task(attempt: &Path) -> Option<Task> {
    serde_json::from_slice(&std::fs::read(attempt.join("task.json")).ok()?).ok()
}

/// Takes one run one step further, by what is seen of its active attempt.
async fn step(this: &Arc<Inner>, name: &str, seen: Option<Seen>, room: &mut Room) -> Result<(), ExecError> {
    let known = this.runs.with(name, |e| (e.run.clone(), e.started, e.tracked, e.removed));
    let Some((run, started, tracked, removed)) = known else { return Ok(()) };
    let (mut status, action) =
        lifecycle::next(&run.manifest.spec, &run.status, seen.as_ref().map(|s| (started, s)), now_ms());
    let over = matches!(seen, Some(Seen::Over { .. }));
    if over && this.runs.with(name, |e| !e.gpus.is_empty()) == Some(true) {
        sample(this).await?;
    }
    if let Some(attempt) = status.attempts.iter_mut().find(|a| a.number == started) {
        attempt.gpus = this.runs.with(name, |e| e.gpus.clone()).unwrap_or_default();
    }
    let mut waits_for = String::new();
    match action {
        Action::Start(number, limit) => {
            let demand = Demand::of(&run.manifest.spec);
            let lacks = room.lacks(&demand);
            let gpus = room.take(&demand);
            if lacks.is_empty() {
                if !tracked {
                    begin(this, &run).await?;
                }
                let has_gpus = !gpus.is_empty();
                let (own, run) = (Arc::clone(this), run.clone());
                blocking(move || start(&own, &run, number, limit, &demand, gpus)).await?;
                if has_gpus {
                    sample(this).await?;
                }
                this.changed.notify_one();
            } else {
                waits_for = format!("waits for {}", lacks.join(" and "));
            }
        }
        Action::Stop => {
            let attempt = this.runs.folder(name).join(started.to_string());
            blocking(move || {
                supervisor::stop(&attempt);
                Ok(())
            })
            .await?;
        }
        Action::Forget => return delete(this, name).await,
        Action::Nothing | Action::Wake(_) => {}
    }
    if status.phase.is_final() && !status.attributed {
        if !tracked {
            begin(this, &run).await?;
        }
        let namespace = &run.manifest.metadata.namespace;
        tracked_in_time(this.settings.tracker.end(namespace, &status.run_id, &status)).await?;
        status.attributed = true;
    }
    if status.phase.is_final() && removed {
        return delete(this, name).await;
    }
    let changed = this.runs.with(name, |e| {
        e.waits_for = waits_for;
        e.run.status != status
    });
    if changed == Some(true) {
        let (own, name) = (Arc::clone(this), name.to_owned());
        blocking(move || own.runs.update(&name, |run| run.status = status)).await?;
    }
    Ok(())
}

async fn delete(this: &Arc<Inner>, name: &str) -> Result<(), ExecError> {
    let (own, name) = (Arc::clone(this), name.to_owned());
    blocking(move || own.runs.delete(&name)).await
}

async fn begin(this: &Arc<Inner>, run: &Submitted) -> Result<(), ExecError> {
    tracked_in_time(this.settings.tracker.begin(Tracked::of(&run.manifest))).await
}

/// Waits for the tracking store, but not so long that all other runs wait with it. Both of its calls may be repeated.
async fn tracked_in_time(call: impl Future<Output = Result<(), String>>) -> Result<(), ExecError> {
    let late = |_| format!("the tracking store did not answer within {} s", TRACKER_TIMEOUT.as_secs());
    tokio::time::timeout(TRACKER_TIMEOUT, call).await.map_err(late).and_then(|r| r).map_err(ExecError::Unreachable)
}

/// Starts an attempt that may run for `limit` milliseconds, with these GPUs. Blocks.
fn start(
    this: &Inner,
    run: &Submitted,
    number: u32,
    limit: Option<i64>,
    demand: &Demand,
    gpus: Vec<Device>,
) -> Result<(), ExecError> {
    let (name, spec) = (&run.manifest.metadata.name, &run.manifest.spec);
    let mut environment: Environment = environment::inherited(std::env::vars_os(), &this.settings.environment);
    let mut set = |(name, value): (String, String)| environment.push((name.into(), value.into()));
    if !this.settings.accelerators.devices().is_empty() {
        // As in a pod, a program sees the GPUs that it asked for and no others.
        let uuids: Vec<&str> = gpus.iter().map(|d| d.uuid.as_str()).collect();
        let shown = if uuids.is_empty() { "void".to_owned() } else { uuids.join(",") };
        set(("NVIDIA_VISIBLE_DEVICES".into(), shown));
        set(("CUDA_VISIBLE_DEVICES".into(), uuids.join(",")));
    }
    this.token(&TokenRequest::new(&run.manifest, number, limit, now_ms())).into_iter().for_each(&mut set);
    this.variables(&run.manifest)?.into_iter().for_each(&mut set);
    let attempt = this.runs.folder(name).join(number.to_string());
    let (program, first) =
        spec.command.split_first().ok_or_else(|| ExecError::Manifest("spec.command is missing".into()))?;
    let task = Task {
        program: program.clone(),
        args: first.iter().chain(&spec.args).cloned().collect(),
        folder: spec.working_dir.as_deref().map(PathBuf::from),
        limit,
        grace: u64::from(spec.termination_grace_period_seconds.unwrap_or(30)) * 1000,
        gpus,
        demand: (demand.processors, demand.bytes),
        descriptors: super::descriptors::limit_of_runs(),
    };
    let text = serde_json::to_vec(&task).map_err(|e| ExecError::Manifest(e.to_string()))?;
    files::replace(&attempt.join("task.json"), &text).map_err(ExecError::io("writing the attempt"))?;
    supervisor::spawn(&this.settings.program, &attempt, environment)?;
    this.runs.with(name, |e| {
        e.started = number;
        e.tracked = true;
        e.gpus.clear();
    });
    Ok(())
}

/// Adds up what the GPUs of active attempts have done since the last call. It is called when an attempt begins and when it ends too, so
/// that nobody is charged for what was before or after.
async fn sample(this: &Arc<Inner>) -> Result<(), ExecError> {
    let own = Arc::clone(this);
    // NVML's calls may take milliseconds each.
    blocking(move || {
        add_readings(&own);
        Ok(())
    })
    .await
}

fn add_readings(this: &Inner) {
    let seconds = std::mem::replace(&mut *this.sampled.lock(), Instant::now()).elapsed().as_secs_f64();
    let gpus_of = |(name, number): (String, u32)| {
        let task = task(&this.runs.folder(&name).join(number.to_string()))?;
        Some((name, task.gpus))
    };
    let held: Vec<(String, Vec<Device>)> = this.runs.active().into_iter().filter_map(gpus_of).collect();
    let devices: Vec<Device> = held.iter().flat_map(|(_, devices)| devices.clone()).collect();
    if devices.is_empty() {
        return;
    }
    let mut readings = this.settings.accelerators.read(&devices, seconds).into_iter();
    for (name, devices) in held {
        for device in devices {
            let Some(reading) = readings.next().flatten() else { continue };
            this.runs.with(&name, |e| match e.gpus.iter_mut().find(|g| g.device == device.uuid) {
                // The first reading is where it begins.
                None => e.gpus.push(GpuUse { device: device.uuid, resource: device.resource, ..GpuUse::default() }),
                Some(used) => {
                    used.joules += reading.joules;
                    used.busy_seconds += reading.busy_seconds;
                    used.idle_seconds += reading.idle_seconds;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tracking_store_that_hangs_is_not_waited_for_for_ever() {
        let error = tracked_in_time(std::future::pending()).await.unwrap_err();
        assert!(error.to_string().contains("within 30 s"), "{error}");
        let refused = tracked_in_time(async { Err("no".to_owned()) }).await.unwrap_err();
        assert_eq!(refused.to_string(), "no");
    }
}
