//! Looks at every run again and again, and takes each one step further: starts what has room, reads GPUs, notes what ended.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use slipway_core::clock::now_ms;
use slipway_core::files;

use super::room::{Demand, Room};
use super::supervisor::{self, Task};
use super::{Device, Entry, Inner, LOOK, keep};
use crate::lifecycle::{self, Action, Seen};
use crate::{ExecError, GpuUse, Submitted, Tracked};

/// Between two readings of GPUs.
const SAMPLE: Duration = Duration::from_secs(2);

/// Looks at everything that has not ended, again and again, until the executor is gone.
pub(super) async fn follow(inner: Weak<Inner>) {
    loop {
        let Some(this) = inner.upgrade() else { return };
        let active = look(&this).await;
        if active && this.sampled.lock().elapsed() >= SAMPLE {
            sample(&this).await;
        }
        let changed = async {
            // Who holds the executor only through this future must not keep it alive for ever.
            tokio::select! {
                () = this.changed.notified() => {}
                () = tokio::time::sleep(if active { LOOK } else { Duration::from_secs(5) }) => {}
            }
        };
        changed.await;
    }
}

/// One look; says whether anything may change by itself.
async fn look(this: &Arc<Inner>) -> bool {
    let mut waiting: Vec<(i64, String)> = {
        let runs = this.runs.lock();
        runs.iter()
            .filter(|(_, e)| !e.run.status.phase.is_final() || e.removed || !e.run.status.attributed || lasts(e))
            .map(|(name, e)| (e.arrived, name.clone()))
            .collect()
    };
    waiting.sort();
    if waiting.is_empty() {
        return false;
    }
    let mut room = this.room();
    // First what runs takes its room, then those that wait are asked in their order.
    let mut seen = HashMap::new();
    for (_, name) in &waiting {
        let Some(number) = this.runs.lock().get(name).filter(|e| e.goes_on()).map(|e| e.started) else { continue };
        let folder = this.folder(name).join(number.to_string());
        let found = supervisor::look(&folder);
        if !matches!(found, Seen::Over { .. })
            && let Some(task) = task(&folder)
        {
            room.hold(task.demand.0, task.demand.1, &task.gpus);
        }
        seen.insert(name.clone(), found);
    }
    for (_, name) in &waiting {
        if let Err(error) = step(this, name, seen.remove(name), &mut room).await {
            let why = error.to_string();
            if let Some(entry) = this.runs.lock().get_mut(name).filter(|e| e.waits != why) {
                tracing::warn!(run = name, %error, "the run is looked at again and again");
                entry.waits = why;
            }
        }
    }
    true
}

/// Whether a finished run has a time after which it is forgotten.
fn lasts(entry: &Entry) -> bool {
    entry.run.manifest.spec.ttl_seconds_after_finished.is_some()
}

fn task(attempt: &Path) -> Option<Task> {
    serde_json::from_slice(&std::fs::read(attempt.join("task.json")).ok()?).ok()
}

/// Takes one run one step further, by what is seen of a try that goes on.
async fn step(this: &Arc<Inner>, name: &str, seen: Option<Seen>, room: &mut Room) -> Result<(), ExecError> {
    let known = this.runs.lock().get(name).map(|e| (e.run.clone(), e.started, e.tracked, e.removed));
    let Some((run, started, tracked, removed)) = known else { return Ok(()) };
    let folder = this.folder(name);
    let (mut status, action) =
        lifecycle::next(&run.manifest.spec, &run.status, seen.as_ref().map(|s| (started, s)), now_ms());
    let over = matches!(seen, Some(Seen::Over { .. }));
    if over && this.runs.lock().get(name).is_some_and(|e| !e.gpus.is_empty()) {
        sample(this).await;
    }
    if let Some(attempt) = status.attempts.iter_mut().find(|a| a.number == started) {
        attempt.gpus = this.runs.lock().get(name).map(|e| e.gpus.clone()).unwrap_or_default();
    }
    let mut waits = String::new();
    match action {
        Action::Start(number, limit) => {
            let demand = Demand::of(&run.manifest.spec);
            let lacks = room.lacks(&demand);
            let devices = room.take(&demand);
            if lacks.is_empty() {
                if !tracked {
                    begin(this, &run).await?;
                }
                let leases = !devices.is_empty();
                start(this, &run, number, limit, &demand, devices)?;
                if let Some(entry) = this.runs.lock().get_mut(name) {
                    entry.started = number;
                    entry.tracked = true;
                    entry.gpus.clear();
                }
                if leases {
                    sample(this).await;
                }
                this.changed.notify_one();
            } else {
                waits = format!("waits for {}", lacks.join(" and "));
            }
        }
        Action::Stop => supervisor::stop(&folder.join(started.to_string())),
        Action::Forget => return forget(this, name),
        Action::Nothing | Action::Wake(_) => {}
    }
    if status.phase.is_final() && !status.attributed {
        if !tracked {
            begin(this, &run).await?;
        }
        this.settings.tracker.end(&status.run_id, &status).await.map_err(ExecError::Unreachable)?;
        status.attributed = true;
    }
    if status.phase.is_final() && removed {
        return forget(this, name);
    }
    let mut runs = this.runs.lock();
    if let Some(entry) = runs.get_mut(name) {
        entry.waits = waits;
        if entry.run.status != status {
            entry.run.status = status;
            keep(&folder, &entry.run)?;
        }
    }
    Ok(())
}

async fn begin(this: &Arc<Inner>, run: &Submitted) -> Result<(), ExecError> {
    this.settings.tracker.begin(Tracked::of(&run.manifest)).await.map_err(ExecError::Unreachable)
}

fn start(
    this: &Arc<Inner>,
    run: &Submitted,
    number: u32,
    limit: Option<i64>,
    demand: &Demand,
    gpus: Vec<Device>,
) -> Result<(), ExecError> {
    let spec = &run.manifest.spec;
    let mut variables = this.variables(&run.manifest)?;
    if !this.settings.accelerators.devices().is_empty() {
        // As in a pod, a program sees the GPUs that it asked for and no others.
        let uuids: Vec<&str> = gpus.iter().map(|d| d.uuid.as_str()).collect();
        let shown = if uuids.is_empty() { "void".to_owned() } else { uuids.join(",") };
        variables.insert(0, ("CUDA_VISIBLE_DEVICES".into(), uuids.join(",")));
        variables.insert(0, ("NVIDIA_VISIBLE_DEVICES".into(), shown));
    }
    let attempt = this.folder(&run.manifest.metadata.name).join(number.to_string());
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
    };
    let text = serde_json::to_vec(&task).map_err(|e| ExecError::Manifest(e.to_string()))?;
    files::replace(&attempt.join("task.json"), &text).map_err(ExecError::io("keeping the try"))?;
    supervisor::spawn(&this.settings.program, &attempt, &variables, &this.settings.withheld)
}

fn forget(this: &Arc<Inner>, name: &str) -> Result<(), ExecError> {
    std::fs::remove_dir_all(this.folder(name)).map_err(ExecError::io("removing the run"))?;
    this.runs.lock().remove(name);
    Ok(())
}

/// Adds to what the GPUs of running tries have done. It is called when a try begins and when it ends too, so that nobody is charged for
/// what was before him.
async fn sample(this: &Arc<Inner>) {
    let seconds = std::mem::replace(&mut *this.sampled.lock(), Instant::now()).elapsed().as_secs_f64();
    let running: Vec<(String, PathBuf)> = {
        let runs = this.runs.lock();
        let running = runs.iter().filter(|(_, e)| e.goes_on());
        running.map(|(name, e)| (name.clone(), this.folder(name).join(e.started.to_string()))).collect()
    };
    let held: Vec<(String, Vec<Device>)> =
        running.into_iter().filter_map(|(name, folder)| Some((name, task(&folder)?.gpus))).collect();
    let asked: Vec<Device> = held.iter().flat_map(|(_, devices)| devices.clone()).collect();
    if asked.is_empty() {
        return;
    }
    let accelerators = Arc::clone(&this.settings.accelerators);
    // NVML's calls may take milliseconds each.
    let read = tokio::task::spawn_blocking(move || accelerators.read(&asked, seconds)).await.unwrap_or_default();
    let mut read = read.into_iter();
    let mut runs = this.runs.lock();
    for (name, devices) in held {
        for device in devices {
            let reading = read.next().flatten();
            let (Some(entry), Some(reading)) = (runs.get_mut(&name), reading) else { continue };
            match entry.gpus.iter_mut().find(|g| g.device == device.uuid) {
                // The first reading is where it begins.
                None => entry.gpus.push(GpuUse { device: device.uuid, resource: device.resource, ..GpuUse::default() }),
                Some(used) => {
                    used.joules += reading.joules;
                    used.busy_seconds += reading.busy_seconds;
                    used.idle_seconds += reading.idle_seconds;
                }
            }
        }
    }
}
