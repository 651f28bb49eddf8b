//! The reconciler: moves every unfinished run one step forward in each pass. It starts attempts for which there is capacity, reads GPU
//! usage, and records the end of attempts. It keeps no state of its own, so a failed step is retried in the next pass.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use slipway_core::clock::now_ms;
use slipway_core::files;

use super::references::CONFIG_ERROR;
use super::room::{Capacity, Demand};
use super::runs::{Waiting, key_of};
use super::supervisor::{self, Environment, Task};
use super::{Device, Inner, POLL_INTERVAL, blocking, data, environment};
use crate::lifecycle::{self, Action, Observation};
use crate::{ExecError, FetchedData, GpuUse, Submitted, TokenRequest, Tracked};

/// Timeout of one call to the tracking store.
const TRACKER_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval between two readings of GPU usage.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);
/// Interval between two passes while there are no unfinished runs.
const IDLE_INTERVAL: Duration = Duration::from_secs(5);

/// Reconciles all runs until the task is aborted. A panic in a pass is logged and does not end the task, because without it no run would
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
            tracing::error!(%error, "reconciling failed; retrying");
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

/// One pass over all unfinished runs; returns whether there are any.
async fn reconcile_all(this: &Arc<Inner>) -> Result<bool, ExecError> {
    let names = this.runs.unfinished();
    if names.is_empty() {
        return Ok(false);
    }
    let _allocation = this.leases.allocation.lock().await;
    // Subtract the demand of active attempts first, then give the rest to queued runs in the order of submission.
    let inner = Arc::clone(this);
    let (mut capacity, mut observed) = blocking(move || Ok(observe_active(&inner))).await?;
    for name in &names {
        // An error or a panic while reconciling one run must not stop the others.
        if let Err(error) = panic_as_error(reconcile_run(this, name, observed.remove(name), &mut capacity)).await {
            let waiting = Waiting::queued(error.to_string());
            let is_new =
                this.runs.with_entry(name, |e| std::mem::replace(&mut e.waiting_for, waiting.clone()) != waiting);
            if is_new == Some(true) {
                this.runs.mark_changed(name);
                tracing::warn!(run = name, %error, "reconciling the run failed; retrying");
            }
        }
    }
    Ok(true)
}

/// The capacity that neither runs nor leases occupy. Blocks.
pub(super) fn free_capacity(this: &Inner) -> Capacity {
    observe_active(this).0
}

/// The free capacity, and the observation of each active attempt by the name of its run. Blocks.
fn observe_active(this: &Inner) -> (Capacity, HashMap<String, Observation>) {
    let mut capacity = this.capacity();
    capacity.subtract(0.0, 0.0, &this.leases.devices());
    let mut observed = HashMap::new();
    for (name, number) in this.runs.active() {
        let folder = this.runs.folder(&name).join(number.to_string());
        let observation = supervisor::observe(&folder);
        if !matches!(observation, Observation::Finished { .. })
            && let Some(task) = task(&folder)
        {
            capacity.subtract(task.demand.0, task.demand.1, &task.gpus);
        }
        observed.insert(name, observation);
    }
    (capacity, observed)
}

/// The task of an attempt; `None` if it cannot be read.
fn task(attempt: &Path) -> Option<Task> {
    serde_json::from_slice(&std::fs::read(attempt.join("task.json")).ok()?).ok()
}

/// Moves one run one step forward. `observed` is the observation of its active attempt.
async fn reconcile_run(
    this: &Arc<Inner>,
    name: &str,
    observed: Option<Observation>,
    capacity: &mut Capacity,
) -> Result<(), ExecError> {
    let entry = this.runs.with_entry(name, |e| (e.run.clone(), e.newest_attempt, e.tracked, e.delete_when_finished));
    let Some((mut run, newest, tracked, delete_when_finished)) = entry else { return Ok(()) };
    let observed = observed.map(|observation| (newest, observation)).or_else(|| data::failure(this, name));
    let (mut status, action) =
        lifecycle::next(&run.manifest.spec, &run.status, observed.as_ref().map(|(n, o)| (*n, o)), now_ms());
    let finished = matches!(observed, Some((_, Observation::Finished { .. })));
    if finished && this.runs.with_entry(name, |e| !e.gpus.is_empty()) == Some(true) {
        sample(this).await?;
    }
    if let Some(attempt) = status.attempts.iter_mut().find(|a| a.number == newest) {
        attempt.gpus = this.runs.with_entry(name, |e| e.gpus.clone()).unwrap_or_default();
    }
    let mut waiting_for = Waiting::default();
    match action {
        Action::Start(number, limit) => match prepare(this, &run).await? {
            Prepared::Waiting(waiting) => waiting_for = waiting,
            Prepared::Ready(fetched, variables) => {
                let demand = Demand::new(&run.manifest.spec.resources);
                let missing = capacity.shortfall(&demand);
                let gpus = capacity.allocate(&demand);
                if missing.is_empty() {
                    pin(this, &mut run, &fetched).await?;
                    status.data.clone_from(&run.status.data);
                    if !tracked || number > 1 {
                        begin_tracking(this, &run, number).await?;
                    }
                    let has_gpus = !gpus.is_empty();
                    let (inner, run) = (Arc::clone(this), run.clone());
                    let variables = (fetched, variables);
                    blocking(move || start(&inner, &run, number, limit, &demand, gpus, variables)).await?;
                    if has_gpus {
                        sample(this).await?;
                    }
                    this.changed.notify_one();
                } else {
                    waiting_for = Waiting::queued(format!("waiting for {}", missing.join(" and ")));
                }
            }
        },
        Action::Stop => {
            let attempt = this.runs.folder(name).join(newest.to_string());
            blocking(move || {
                supervisor::stop(&attempt);
                Ok(())
            })
            .await?;
        }
        Action::Delete => return delete(this, name).await,
        Action::Nothing | Action::RequeueAt(_) => {}
    }
    if status.phase.is_final() && !status.attributed {
        if !tracked {
            begin_tracking(this, &run, 1).await?;
        }
        // Stops a transfer that is still going on.
        this.runs.with_entry(name, |e| e.data = data::DataState::Unknown);
        let (inner, ended) = (Arc::clone(this), run.clone());
        blocking(move || data::release(&inner, &ended)).await?;
        let namespace = &run.manifest.metadata.namespace;
        with_tracker_timeout(this.settings.tracker.end(namespace, &status.run_id, &status)).await?;
        status.attributed = true;
    }
    if status.phase.is_final() && delete_when_finished {
        return delete(this, name).await;
    }
    let changed = this.runs.with_entry(name, |e| {
        if e.waiting_for != waiting_for {
            e.waiting_for = waiting_for;
            this.runs.mark_changed(name);
        }
        e.run.status != status
    });
    if changed == Some(true) {
        let (inner, name) = (Arc::clone(this), name.to_owned());
        blocking(move || inner.runs.update(&name, |run| run.status = status)).await?;
    }
    Ok(())
}

async fn delete(this: &Arc<Inner>, name: &str) -> Result<(), ExecError> {
    let (inner, name) = (Arc::clone(this), name.to_owned());
    blocking(move || inner.runs.delete(&name)).await
}

async fn begin_tracking(this: &Arc<Inner>, run: &Submitted, attempt: u32) -> Result<(), ExecError> {
    with_tracker_timeout(this.settings.tracker.begin(Tracked::new(run, attempt))).await
}

/// Bounds a call to the tracking store, so that a slow store does not block all other runs. Both calls are safe to repeat.
async fn with_tracker_timeout(call: impl Future<Output = Result<(), String>>) -> Result<(), ExecError> {
    let timed_out = |_| format!("the tracking store did not respond within {} s", TRACKER_TIMEOUT.as_secs());
    tokio::time::timeout(TRACKER_TIMEOUT, call).await.map_err(timed_out).and_then(|r| r).map_err(ExecError::Unreachable)
}

/// Records which versions of data the run uses before its first attempt starts, so that later attempts use the same.
async fn pin(this: &Arc<Inner>, run: &mut Submitted, fetched: &[FetchedData]) -> Result<(), ExecError> {
    if run.status.data.len() == fetched.len() {
        return Ok(());
    }
    let (inner, name) = (Arc::clone(this), key_of(&run.manifest.metadata));
    let used: Vec<_> = fetched.iter().map(|data| data.used.clone()).collect();
    *run = blocking(move || inner.runs.update(&name, |run| run.status.data = used)).await?;
    Ok(())
}

/// Whether what a run needs besides capacity is there.
enum Prepared {
    /// Not yet.
    Waiting(Waiting),
    /// The data, and the variables of the executor and the manifest.
    Ready(Vec<FetchedData>, Environment),
}

/// Prepares the start of an attempt: data and variables.
async fn prepare(this: &Arc<Inner>, run: &Submitted) -> Result<Prepared, ExecError> {
    let data = match data::prepare(this, run)? {
        data::Step::Wait(reason) => return Ok(Prepared::Waiting(Waiting::queued(reason))),
        data::Step::Start(data) => data,
    };
    Ok(match this.variables(&run.manifest).await? {
        Ok(variables) => Prepared::Ready(data, variables),
        Err(unresolved) => Prepared::Waiting(Waiting { reason: CONFIG_ERROR, message: unresolved.message }),
    })
}

/// Starts an attempt with these GPUs, this data and these variables. It may run for `limit` milliseconds; no limit if `None`. Blocks.
fn start(
    this: &Inner,
    run: &Submitted,
    number: u32,
    limit: Option<i64>,
    demand: &Demand,
    gpus: Vec<Device>,
    (data, variables): (Vec<FetchedData>, Environment),
) -> Result<(), ExecError> {
    let (name, spec) = (&key_of(&run.manifest.metadata), &run.manifest.spec);
    let mut environment: Environment = environment::inherited(std::env::vars_os(), &this.settings.environment);
    let mut set = |(name, value): (String, String)| environment.push((name.into(), value.into()));
    if !this.settings.accelerators.devices().is_empty() {
        environment::of_devices(&gpus).into_iter().for_each(&mut set);
    }
    this.token(&TokenRequest::new(&run.manifest, number, limit, now_ms())).into_iter().for_each(&mut set);
    data::link(this, run, &data)?.into_iter().for_each(&mut set);
    environment.extend(variables);
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
        descriptors: super::descriptors::limit_for_runs(),
        log_limit: None,
    };
    let text = serde_json::to_vec(&task).map_err(|e| ExecError::Manifest(e.to_string()))?;
    files::replace(&attempt.join("task.json"), &text).map_err(ExecError::io("writing the attempt"))?;
    supervisor::spawn(&this.settings.program, &attempt, environment)?;
    this.runs.with_entry(name, |e| {
        e.newest_attempt = number;
        e.tracked = true;
        e.gpus.clear();
    });
    Ok(())
}

/// Adds the GPU usage since the previous call to the active attempts. It is also called when an attempt starts and when it ends, so that
/// usage before and after the attempt is not attributed to it.
async fn sample(this: &Arc<Inner>) -> Result<(), ExecError> {
    let inner = Arc::clone(this);
    // Each NVML call may take milliseconds.
    blocking(move || {
        add_readings(&inner);
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
            this.runs.with_entry(&name, |e| match e.gpus.iter_mut().find(|g| g.device == device.uuid) {
                // The first reading only sets the baseline.
                None => e.gpus.push(GpuUse { device: device.uuid, resource: device.resource, ..GpuUse::default() }),
                Some(usage) => {
                    usage.joules += reading.joules;
                    usage.busy_seconds += reading.busy_seconds;
                    usage.idle_seconds += reading.idle_seconds;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn call_to_a_hanging_tracking_store_times_out() {
        let error = with_tracker_timeout(std::future::pending()).await.unwrap_err();
        assert!(error.to_string().contains("within 30 s"), "{error}");
        let refused = with_tracker_timeout(async { Err("no".to_owned()) }).await.unwrap_err();
        assert_eq!(refused.to_string(), "no");
    }
}
