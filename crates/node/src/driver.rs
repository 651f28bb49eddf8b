//! The current state of the NVIDIA driver and its GPUs. One thread watches the driver through NVML: it opens the driver, waits for XIDs,
//! polls the GPUs, writes the CDI specification, and then publishes the new state to subscribers. It reopens a driver that was unloaded and
//! reloaded. Only this thread publishes the state of GPUs. Other tasks read and change GPUs with [`Driver::with`], on blocking threads, which NVML
//! allows (NVML API reference, "NVML is thread-safe"); a [refresh](Driver::refresh) then publishes what they changed.
//!
//! Without this thread no fault would be detected. Therefore a thread that ended, or that hangs in an NVML call, counts as a missing
//! driver, and the agent exits with an error when the thread ends.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use slipway_gpu::GpuError;
use slipway_gpu::inventory::{FindingCode, Gpu, Inventory};
use slipway_gpu::mig::{self, Layout};
use slipway_gpu::nvml::{Event, Nvml, NvmlError, Watch, codes};
use slipway_gpu::topology::Topology;
use tokio::sync::watch;

use crate::health::{Faults, Policy, Reading};
use crate::{NodeError, cdi, pause};

/// A node's GPUs at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// The GPUs. A lost GPU stays in the inventory with its last known values.
    pub inventory: Inventory,
    /// The connections between the GPUs.
    pub topology: Topology,
    /// The current faults.
    pub faults: Faults,
    /// UUIDs of MIG devices and GPUs that are tested, or whose MIG layout is about to change; no new container may use them.
    pub draining: BTreeSet<String>,
    /// Why the CDI specification could not be written; `None` if it is up to date.
    pub cdi: Option<String>,
    /// MIG layouts of the cards that support MIG; empty if MIG is disabled on all GPUs.
    pub layouts: Vec<Layout>,
    /// UUIDs of MIG devices that were created for claims and are destroyed with them.
    pub claimed: BTreeSet<String>,
}

/// The position of a MIG instance: index of the GPU, profile, first memory slice.
pub type InstancePosition = (u32, String, u32);

impl Machine {
    /// Why a device must not be used now; `None` if it may be used. `parent` is the GPU of a MIG device.
    pub fn fault(&self, uuid: &str, parent: Option<&str>) -> Option<String> {
        if self.draining.contains(uuid) || parent.is_some_and(|p| self.draining.contains(p)) {
            return Some("it is drained for a change of its MIG layout or a test".into());
        }
        self.faults.fault(uuid, parent).map(|f| f.reason.clone())
    }
}

/// The state of the driver.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// The driver responds.
    Available(Box<Machine>),
    /// The driver is missing, with the reason.
    Missing(String),
}

impl State {
    /// The machine, if the driver is available.
    pub fn machine(&self) -> Option<&Machine> {
        match self {
            Self::Available(machine) => Some(machine),
            Self::Missing(_) => None,
        }
    }
}

/// Handle to the driver thread: publishes its state and runs work on NVML.
#[derive(Debug)]
pub struct Driver {
    state: watch::Sender<Arc<State>>,
    shared: Mutex<Shared>,
    /// Wakes the thread while it waits to reopen the driver.
    wake: Condvar,
    /// Whether the thread has ended.
    ended: watch::Sender<bool>,
    timeouts: Timeouts,
    /// Held while GPUs are drained.
    maintenance: tokio::sync::Mutex<()>,
}

/// Timeouts for the driver thread.
#[derive(Debug, Clone, Copy)]
struct Timeouts {
    /// For a requested refresh to complete.
    refresh: Duration,
    /// Without a heartbeat, after which the driver counts as missing. Opening a driver without persistence mode takes seconds per GPU.
    stall: Duration,
}

const TIMEOUTS: Timeouts = Timeouts { refresh: Duration::from_secs(30), stall: Duration::from_secs(120) };

/// State shared between the driver thread and its handle.
struct Shared {
    nvml: Option<Arc<Nvml>>,
    /// The NVML that was opened last. It is closed when its last user drops it.
    opened: Weak<Nvml>,
    /// UUIDs of GPUs that were reset, whose faults the thread has not updated yet.
    reset: BTreeSet<String>,
    draining: BTreeSet<String>,
    claimed: BTreeSet<InstancePosition>,
    /// Number of the last requested refresh.
    requested: u64,
    /// Number of the last completed refresh.
    completed: u64,
    stop: bool,
    last_heartbeat: Instant,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("draining", &self.draining).finish_non_exhaustive()
    }
}

/// Settings of the driver thread.
#[derive(Debug)]
pub struct Settings {
    /// A simulated fixture to use instead of real GPUs.
    pub fixture: Option<String>,
    /// Decides which XIDs are faults, and when a GPU has recovered.
    pub policy: Policy,
    /// Writes the CDI specification.
    pub cdi: cdi::Writer,
    /// Interval between two health polls of the GPUs.
    pub poll_interval: Duration,
    /// MIG instances that were created for claims.
    pub claimed: BTreeSet<InstancePosition>,
    /// The lock that another program holds while the driver must be closed; see [`pause`].
    pub pause: PathBuf,
}

/// Interval between two full readings of the inventory.
const INVENTORY_INTERVAL: Duration = Duration::from_secs(30);
/// Why there is no driver while another program resets GPUs, and the interval in which the agent checks whether it has finished.
const PAUSED: &str = "GPUs are being reset";
const PAUSE_INTERVAL: Duration = Duration::from_millis(500);
/// Delay between two attempts to open the driver.
const REOPEN_DELAY: Duration = Duration::from_secs(5);

impl Driver {
    /// Starts the driver thread. The caller must also await [`Self::wait_for_failure`], which supervises the thread.
    ///
    /// # Errors
    /// [`NodeError::Io`] if the thread cannot be spawned.
    pub fn start(settings: Settings) -> Result<Arc<Self>, NodeError> {
        Self::start_with(settings.claimed.clone(), TIMEOUTS, |driver| driver.run(settings))
    }

    fn start_with(
        claimed: BTreeSet<InstancePosition>,
        timeouts: Timeouts,
        run: impl FnOnce(&Self) + Send + 'static,
    ) -> Result<Arc<Self>, NodeError> {
        let initial = Arc::new(State::Missing("NVML has not been opened yet".into()));
        let shared = Shared {
            nvml: None,
            opened: Weak::new(),
            reset: BTreeSet::new(),
            draining: BTreeSet::new(),
            claimed,
            requested: 0,
            completed: 0,
            stop: false,
            last_heartbeat: Instant::now(),
        };
        let driver = Arc::new(Self {
            state: watch::Sender::new(initial),
            shared: Mutex::new(shared),
            wake: Condvar::new(),
            ended: watch::Sender::new(false),
            timeouts,
            maintenance: tokio::sync::Mutex::new(()),
        });
        let thread_driver = Arc::clone(&driver);
        // The join handle is not needed: the thread sets `ended` itself.
        let started = std::thread::Builder::new().name("driver".into()).spawn(move || {
            if catch_unwind(AssertUnwindSafe(|| run(&thread_driver))).is_err() {
                thread_driver.shared.lock().nvml = None;
                thread_driver.publish_missing("the driver thread panicked".into());
            }
            thread_driver.ended.send_replace(true);
        });
        started.map(|_| driver).map_err(NodeError::io("starting the driver thread"))
    }

    /// Completes with an error when the thread has ended, after which the agent must exit. Until then it supervises the thread and
    /// marks the driver as missing while an NVML call hangs.
    pub async fn wait_for_failure(&self) -> NodeError {
        let mut ended = self.ended.subscribe();
        loop {
            // The channel cannot be closed: `self` owns the sender.
            match tokio::time::timeout(self.timeouts.stall / 4, ended.wait_for(|ended| *ended)).await {
                Ok(_) => return NodeError::NoDriver("the driver thread has ended".into()),
                Err(_) => self.check_heartbeat(),
            }
        }
    }

    fn check_heartbeat(&self) {
        let silent = self.shared.lock().last_heartbeat.elapsed();
        if silent >= self.timeouts.stall && self.state.borrow().machine().is_some() {
            let why = format!("NVML has not responded for {} s", silent.as_secs());
            tracing::error!(%why, "the driver hangs");
            // No refresh completed, so only the state changes.
            self.state.send_replace(Arc::new(State::Missing(why)));
        }
    }

    /// Records that the thread is alive.
    fn heartbeat(&self) {
        self.shared.lock().last_heartbeat = Instant::now();
    }

    /// Subscribes to the state.
    pub fn subscribe(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    /// Stops the thread, after its current wait for events at the latest.
    pub fn stop(&self) {
        self.shared.lock().stop = true;
        self.wake.notify_all();
    }

    /// Runs `work` with NVML on a blocking thread.
    ///
    /// # Errors
    /// [`NodeError::NoDriver`] if NVML is not open, otherwise the error of `work`.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Nvml) -> Result<T, GpuError> + Send + 'static,
    ) -> Result<T, NodeError> {
        let nvml = self.shared.lock().nvml.clone();
        let Some(nvml) = nvml else { return Err(NodeError::NoDriver("NVML is not open".into())) };
        let done = tokio::task::spawn_blocking(move || work(&nvml)).await;
        done.map_err(|e| NodeError::Invalid(e.to_string()))?.map_err(NodeError::Gpu)
    }

    /// Reads everything now; completes when the new state has been published.
    ///
    /// # Errors
    /// [`NodeError::NoDriver`] if the thread has ended or does not complete the refresh in time.
    pub async fn refresh(&self) -> Result<(), NodeError> {
        let request = {
            let mut shared = self.shared.lock();
            shared.requested += 1;
            shared.requested
        };
        self.wake.notify_all();
        let (mut states, mut ended) = (self.state.subscribe(), self.ended.subscribe());
        let completed = async {
            while self.shared.lock().completed < request {
                // The thread publishes after every requested refresh. The channel cannot be closed: `self` owns the sender.
                let _ = states.changed().await;
            }
        };
        tokio::select! {
            () = completed => Ok(()),
            _ = ended.wait_for(|ended| *ended) => Err(NodeError::NoDriver("the driver thread has ended".into())),
            () = tokio::time::sleep(self.timeouts.refresh) => {
                let seconds = self.timeouts.refresh.as_secs();
                Err(NodeError::NoDriver(format!("no refresh completed within {seconds} s")))
            }
        }
    }

    /// Waits until no other task drains GPUs, and excludes them while the guard exists. Required for [`Self::drain`], which replaces the
    /// devices that another task drains.
    pub async fn maintenance(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.maintenance.lock().await
    }

    /// Sets the devices that no new container may use, and publishes the change.
    ///
    /// # Errors
    /// As [`Self::refresh`].
    pub async fn drain(&self, uuids: BTreeSet<String>) -> Result<(), NodeError> {
        self.shared.lock().draining = uuids;
        self.refresh().await
    }

    /// Sets the MIG instances that belong to claims, and publishes the change.
    ///
    /// # Errors
    /// As [`Self::refresh`].
    pub async fn set_claimed(&self, instances: BTreeSet<InstancePosition>) -> Result<(), NodeError> {
        self.shared.lock().claimed = instances;
        self.refresh().await
    }

    /// Waits until NVML is closed, after a [pause](crate::pause) was requested.
    ///
    /// # Errors
    /// [`NodeError::Invalid`] if it is still open after the timeout, for example because a call hangs.
    pub async fn wait_until_closed(&self, timeout: Duration) -> Result<(), NodeError> {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            let closed = {
                let shared = self.shared.lock();
                shared.nvml.is_none() && shared.opened.strong_count() == 0
            };
            if closed {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(NodeError::Invalid(format!("the agent did not close NVML within {} s", timeout.as_secs())));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Records that a GPU was reset, so that its fault can end.
    pub fn mark_reset(&self, uuid: &str) {
        self.shared.lock().reset.insert(uuid.to_owned());
    }

    fn stopped(&self) -> bool {
        self.shared.lock().stop
    }

    /// The main loop of the thread: opens the driver, monitors it until it fails, and reopens it.
    fn run(&self, mut settings: Settings) {
        let mut faults = Faults::default();
        let mut known: Vec<Gpu> = Vec::new();
        while !self.stopped() {
            self.heartbeat();
            if pause::is_requested(&settings.pause) {
                self.publish_missing(PAUSED.into());
                self.sleep(PAUSE_INTERVAL);
                continue;
            }
            match Nvml::find(settings.fixture.as_deref()) {
                Ok(nvml) => {
                    let nvml = Arc::new(nvml);
                    {
                        let mut shared = self.shared.lock();
                        shared.opened = Arc::downgrade(&nvml);
                        shared.nvml = Some(Arc::clone(&nvml));
                    }
                    let why = self.monitor(&nvml, &mut settings, &mut faults, &mut known);
                    self.shared.lock().nvml = None;
                    if self.stopped() {
                        return;
                    }
                    tracing::warn!(%why, "the driver is gone");
                    self.publish_missing(why);
                }
                Err(e) => self.publish_missing(e.to_string()),
            }
            if !pause::is_requested(&settings.pause) {
                self.sleep(REOPEN_DELAY);
            }
        }
    }

    /// Waits until the time is over, a refresh is requested, or the thread is stopped.
    fn sleep(&self, time: Duration) {
        let mut shared = self.shared.lock();
        if !shared.stop {
            self.wake.wait_for(&mut shared, time);
        }
    }

    /// Publishes a missing driver, which completes all requested refreshes.
    fn publish_missing(&self, why: String) {
        let requested = self.shared.lock().requested;
        self.publish(State::Missing(why), requested);
    }

    /// Publishes a state that completes the refresh requests up to number `completed`.
    fn publish(&self, state: State, completed: u64) {
        self.shared.lock().completed = completed;
        self.state.send_replace(Arc::new(state));
    }

    /// Monitors an open driver until it fails or the thread is stopped; returns the reason.
    fn monitor(&self, nvml: &Nvml, settings: &mut Settings, faults: &mut Faults, known: &mut Vec<Gpu>) -> String {
        let mut events = watch_all(nvml);
        let mut last_inventory: Option<Instant> = None;
        let mut last_poll = Instant::now();
        while !self.stopped() {
            self.heartbeat();
            if pause::is_requested(&settings.pause) {
                return PAUSED.into();
            }
            let (requested, draining, claimed) = {
                let mut shared = self.shared.lock();
                for uuid in std::mem::take(&mut shared.reset) {
                    faults.reset(&uuid);
                }
                let requested = (shared.requested > shared.completed).then_some(shared.requested);
                (requested, shared.draining.clone(), shared.claimed.clone())
            };
            let full = last_inventory.is_none_or(|at| at.elapsed() >= INVENTORY_INTERVAL) || requested.is_some();
            let mut changed = false;
            if full || last_poll.elapsed() >= settings.poll_interval {
                if let Err(e) = nvml.count() {
                    return e.to_string();
                }
                last_poll = Instant::now();
                changed = self.poll(nvml, &settings.policy, faults, known);
            }
            if full || changed {
                let machine = match machine(nvml, settings, faults, known, draining, &claimed) {
                    Ok(machine) => machine,
                    Err(e) => return e.to_string(),
                };
                last_inventory = Some(Instant::now());
                *known = machine.inventory.gpus.clone();
                let completed = self.shared.lock().completed;
                self.publish(State::Available(Box::new(machine)), requested.unwrap_or(completed));
            }
            let event = match &events {
                Some(events) => events.wait(200),
                None => {
                    std::thread::sleep(Duration::from_millis(200));
                    Ok(None)
                }
            };
            match event {
                Ok(Some(event)) => {
                    let Some(gpu) = known.iter().find(|g| g.bus_id == event.bus_id) else { continue };
                    let energy = nvml.device(gpu.index).and_then(|d| d.energy()).ok().map(|mj| mj as f64 / 1000.0);
                    let affected = affected(gpu, &event);
                    tracing::warn!(gpu = gpu.uuid, xid = event.data, "the driver reports an error");
                    if affected.is_empty() {
                        faults.record_xid(&settings.policy, &event, &gpu.uuid, None, energy);
                    }
                    for mig_device in affected {
                        faults.record_xid(&settings.policy, &event, &gpu.uuid, Some(mig_device), energy);
                    }
                    last_inventory = None;
                }
                Ok(None) => {}
                Err(e) => {
                    // The event set may be invalid because a GPU was lost; subscribe again to the remaining GPUs.
                    tracing::debug!(error = %e, "waiting for events");
                    std::thread::sleep(Duration::from_millis(200));
                    events = watch_all(nvml);
                }
            }
        }
        "the agent stops".into()
    }

    /// Polls the health of the known GPUs; returns whether any fault changed.
    fn poll(&self, nvml: &Nvml, policy: &Policy, faults: &mut Faults, known: &[Gpu]) -> bool {
        let mut changed = false;
        for gpu in known.iter().filter(|g| !g.uuid.is_empty()) {
            let reading = reading(nvml, gpu.index);
            let mig_devices: Vec<&str> = gpu.mig.iter().flat_map(|m| &m.devices).map(|d| d.uuid.as_str()).collect();
            changed |= faults.update(policy, &gpu.uuid, &mig_devices, &reading);
        }
        changed
    }
}

/// The MIG devices that an event is about; none if it is about the whole GPU.
fn affected<'g>(gpu: &'g Gpu, event: &Event) -> Vec<&'g str> {
    let devices = gpu.mig.iter().flat_map(|m| &m.devices);
    let is_affected = |d: &&slipway_gpu::inventory::MigDevice| {
        Some(d.gpu_instance) == event.gpu_instance && event.compute_instance.is_none_or(|ci| ci == d.compute_instance)
    };
    devices.filter(is_affected).map(|d| d.uuid.as_str()).collect()
}

/// Subscribes to the events of all GPUs; `None` if that fails.
fn watch_all(nvml: &Nvml) -> Option<Watch<'_>> {
    let devices: Vec<_> = (0..nvml.count().ok()?).filter_map(|i| nvml.device(i).ok()).collect();
    nvml.watch(&devices).map_err(|e| tracing::warn!(error = %e, "the driver offers no events")).ok()
}

/// Reads the health of one GPU.
fn reading(nvml: &Nvml, index: u32) -> Reading {
    let lost = |e: &NvmlError| e.code == codes::GPU_IS_LOST;
    let device = match nvml.device(index) {
        Ok(device) => device,
        Err(e) => return Reading { lost: lost(&e), ..Reading::default() },
    };
    if device.memory().is_err_and(|e| lost(&e)) {
        return Reading { lost: true, ..Reading::default() };
    }
    Reading {
        lost: false,
        recovery: device.recovery().ok(),
        remap_failed: device.remapped_rows().is_ok_and(|(.., failed)| failed),
        // MIG instances do not use NVLink.
        fabric: device
            .fabric()
            .ok()
            .flatten()
            .filter(|_| !device.mig_mode().is_ok_and(|(enabled, _)| enabled))
            .and_then(|fabric| fabric.obstacle()),
        energy: device.energy().ok().map(|mj| mj as f64 / 1000.0),
    }
}

/// Reads the full state of the machine, updates `faults`, and writes the CDI specification.
fn machine(
    nvml: &Nvml,
    settings: &mut Settings,
    faults: &mut Faults,
    known: &[Gpu],
    draining: BTreeSet<String>,
    claimed: &BTreeSet<InstancePosition>,
) -> Result<Machine, GpuError> {
    let mut inventory = Inventory::collect(nvml)?;
    for gpu in &mut inventory.gpus {
        // A lost GPU reports nothing, not even its name. It keeps its last known values and is marked unhealthy.
        let lost = gpu.uuid.is_empty() || gpu.findings.iter().any(|f| f.code == FindingCode::GpuLost);
        if let Some(last_known) = known.iter().find(|k| k.index == gpu.index && !k.uuid.is_empty()).filter(|_| lost) {
            let findings = std::mem::take(&mut gpu.findings);
            *gpu = Gpu { findings, processes: Vec::new(), ..last_known.clone() };
            faults.update(&settings.policy, &gpu.uuid, &[], &Reading { lost: true, ..Reading::default() });
        }
    }
    let topology = Topology::collect(nvml, &inventory, std::path::Path::new("/sys"))?;
    faults.retain(|uuid| {
        inventory.gpus.iter().any(|g| g.uuid == uuid || g.mig.iter().flat_map(|m| &m.devices).any(|d| d.uuid == uuid))
    });
    let cdi = settings.cdi.write(&inventory).err().map(|e| e.to_string());
    let layouts = if inventory.gpus.iter().any(|g| g.mig.as_ref().is_some_and(|m| m.enabled)) {
        mig::layout(nvml)?
    } else {
        Vec::new()
    };
    let mig_devices = |g: &Gpu| g.mig.iter().flat_map(|m| m.devices.clone()).map(|d| (g.index, d)).collect::<Vec<_>>();
    let claimed = inventory
        .gpus
        .iter()
        .flat_map(mig_devices)
        .filter(|(gpu, d)| claimed.contains(&(*gpu, d.profile.clone(), d.start)))
        .map(|(_, d)| d.uuid)
        .collect();
    Ok(Machine { inventory, topology, faults: faults.clone(), draining, cdi, layouts, claimed })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::samples::{compute_instances, fabric_machine, gpu, machine};
    use slipway_gpu::nvml::FabricState;

    /// A driver that publishes this machine with the drained devices, until it is stopped.
    pub(crate) fn responding_driver(machine: Machine) -> Arc<Driver> {
        Driver::start_with(BTreeSet::new(), TIMEOUTS, move |driver| {
            while !driver.stopped() {
                let (requested, draining) = {
                    let shared = driver.shared.lock();
                    (shared.requested, shared.draining.clone())
                };
                driver.publish(State::Available(Box::new(Machine { draining, ..machine.clone() })), requested);
                std::thread::sleep(Duration::from_millis(5));
            }
        })
        .unwrap()
    }

    /// A driver whose thread publishes a healthy machine, and panics when the sender sends or is dropped.
    pub(crate) fn panicking_driver() -> (Arc<Driver>, mpsc::Sender<()>) {
        let (trigger, triggered) = mpsc::channel::<()>();
        let driver = Driver::start_with(BTreeSet::new(), TIMEOUTS, move |driver| {
            driver.publish(State::Available(Box::new(machine(vec![gpu(0, None)]))), 0);
            let _ = triggered.recv(); // an error means that the test has ended
            panic!("this panic is part of the test");
        });
        (driver.unwrap(), trigger)
    }

    #[test]
    fn event_of_a_compute_instance_spares_its_neighbours() {
        let gpu = compute_instances();
        let event = |gpu_instance, compute_instance| Event {
            bus_id: String::new(),
            kind: 8,
            data: 94,
            gpu_instance,
            compute_instance,
        };
        assert_eq!(affected(&gpu, &event(Some(1), Some(1))), ["MIG-1-1"]);
        assert_eq!(affected(&gpu, &event(Some(1), None)), ["MIG-1-0", "MIG-1-1"]);
        assert!(affected(&gpu, &event(None, None)).is_empty());
    }

    /// A driver that publishes this machine and does nothing else.
    fn fixed_driver(machine: Machine) -> Arc<Driver> {
        let driver = Driver::start_with(BTreeSet::new(), TIMEOUTS, move |driver| {
            driver.publish(State::Available(Box::new(machine)), 0);
            while !driver.stopped() {
                driver.heartbeat();
                std::thread::sleep(Duration::from_millis(10));
            }
        })
        .unwrap();
        while driver.subscribe().borrow().machine().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        driver
    }

    /// The driver of a machine without an NVLink domain.
    pub(crate) fn plain_driver() -> Arc<Driver> {
        fixed_driver(machine(vec![gpu(0, None)]))
    }

    /// The driver of a machine in an NVLink clique.
    pub(crate) fn fabric_driver() -> Arc<Driver> {
        fixed_driver(fabric_machine(FabricState::Completed))
    }

    #[tokio::test]
    async fn panicked_thread_is_reported_and_publishes_missing() {
        let (driver, trigger) = panicking_driver();
        let mut states = driver.subscribe();
        states.wait_for(|s| s.machine().is_some()).await.unwrap();
        let drain = tokio::spawn({
            let driver = Arc::clone(&driver);
            async move { driver.drain(BTreeSet::new()).await }
        });
        trigger.send(()).unwrap();
        assert!(driver.wait_for_failure().await.to_string().contains("ended"));
        assert!(matches!(&**states.borrow(), State::Missing(why) if why.contains("panicked")));
        // The thread's last state may have completed the drain; a later refresh must fail.
        let _ = drain.await.unwrap();
        assert!(driver.refresh().await.unwrap_err().to_string().contains("ended"));
    }

    #[tokio::test]
    async fn hung_driver_is_missing_and_refresh_times_out() {
        let (release, released) = mpsc::channel::<()>();
        let timeouts = Timeouts { refresh: Duration::from_millis(50), stall: Duration::from_millis(100) };
        let hang = move |driver: &Driver| {
            driver.publish(State::Available(Box::new(machine(vec![gpu(0, None)]))), 0);
            let _ = released.recv(); // simulates an NVML call that does not return
        };
        let driver = Driver::start_with(BTreeSet::new(), timeouts, hang).unwrap();
        let mut states = driver.subscribe();
        states.wait_for(|s| s.machine().is_some()).await.unwrap();
        assert!(driver.refresh().await.unwrap_err().to_string().contains("no refresh completed"));
        let missing = states.wait_for(|s| s.machine().is_none());
        tokio::select! {
            error = driver.wait_for_failure() => panic!("the thread hangs, but has not ended: {error}"),
            state = missing => assert!(matches!(&**state.unwrap(), State::Missing(why) if why.contains("not responded"))),
        }
        drop(release);
        driver.wait_for_failure().await;
    }
}
