//! The driver as it is now. One thread talks to NVML: it opens it when it is there, waits for XIDs, looks at the GPUs, writes the
//! CDI specification, and then tells everybody else. A driver that is unloaded and loaded again is opened again.
//!
//! Without the thread nobody would learn of a fault any more, so its end, and a call of NVML that does not return, count as a driver
//! that is missing, and the agent ends with an error when the thread does.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use slipway_gpu::GpuError;
use slipway_gpu::inventory::{Gpu, Inventory, Severity};
use slipway_gpu::mig::{self, Layout};
use slipway_gpu::nvml::{Nvml, NvmlError, Watch, codes};
use slipway_gpu::topology::Topology;
use tokio::sync::watch;

use crate::health::{Faults, Policy, Reading};
use crate::{NodeError, cdi};

/// A node's GPUs at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// What there is. A GPU that was lost stays, as it was last seen.
    pub inventory: Inventory,
    /// How it is connected.
    pub topology: Topology,
    /// What is wrong.
    pub faults: Faults,
    /// MIG devices and GPUs that are about to change; nothing new may start on them.
    pub draining: BTreeSet<String>,
    /// Why containers cannot get devices by CDI, if they cannot.
    pub cdi: Option<String>,
    /// What MIG offers and holds, for cards that can do it.
    pub layouts: Vec<Layout>,
    /// UUIDs of MIG devices that come and go with claims.
    pub ours: BTreeSet<String>,
}

/// A MIG instance by where it is: index of the GPU, profile, first memory slice.
pub type Place = (u32, String, u32);

impl Machine {
    /// Why a device must not be used now.
    pub fn fault(&self, uuid: &str, parent: Option<&str>) -> Option<String> {
        if self.draining.contains(uuid) || parent.is_some_and(|p| self.draining.contains(p)) {
            return Some("its MIG layout is about to change".into());
        }
        self.faults.of(uuid, parent).map(|f| f.reason.clone())
    }
}

/// There, or missing and why.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// There.
    There(Box<Machine>),
    /// Missing, and why.
    Missing(String),
}

impl State {
    /// The machine, if the driver is there.
    pub fn machine(&self) -> Option<&Machine> {
        match self {
            Self::There(machine) => Some(machine),
            Self::Missing(_) => None,
        }
    }
}

/// Reaches the driver and tells what it is like.
#[derive(Debug)]
pub struct Driver {
    state: watch::Sender<Arc<State>>,
    shared: Mutex<Shared>,
    woken: Condvar,
    /// Whether the thread has ended.
    ended: watch::Sender<bool>,
    limits: Limits,
}

/// How long the thread is waited for.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// For a look that was asked for.
    refresh: Duration,
    /// Without a sign of life, after which the driver counts as missing. To open a driver without persistence mode takes seconds for
    /// each GPU.
    stall: Duration,
}

const LIMITS: Limits = Limits { refresh: Duration::from_secs(30), stall: Duration::from_secs(120) };

struct Shared {
    nvml: Option<Arc<Nvml>>,
    draining: BTreeSet<String>,
    ours: BTreeSet<Place>,
    /// Looks that were asked for, and those that were taken.
    asked: u64,
    taken: u64,
    stop: bool,
    /// The thread's last sign of life.
    alive: Instant,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("draining", &self.draining).finish_non_exhaustive()
    }
}

/// What the thread is told.
#[derive(Debug)]
pub struct Settings {
    /// In place of real GPUs.
    pub fixture: Option<String>,
    /// Which XIDs count.
    pub policy: Policy,
    /// Writes the CDI specification.
    pub cdi: cdi::Writer,
    /// Between two looks at the GPUs' health.
    pub look: Duration,
    /// MIG instances that were made for claims.
    pub ours: BTreeSet<Place>,
}

/// Between two full readings of everything.
const FULL: Duration = Duration::from_secs(30);
/// Between two tries to open the driver.
const REOPEN: Duration = Duration::from_secs(5);

impl Driver {
    /// Starts the thread. Whoever starts it waits for [`Self::failed`] too.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(settings: Settings) -> Result<Arc<Self>, NodeError> {
        Self::start_with(settings.ours.clone(), LIMITS, |driver| driver.work(settings))
    }

    fn start_with(
        ours: BTreeSet<Place>,
        limits: Limits,
        work: impl FnOnce(&Self) + Send + 'static,
    ) -> Result<Arc<Self>, NodeError> {
        let first = Arc::new(State::Missing("it was not looked for yet".into()));
        let shared = Shared {
            nvml: None,
            draining: BTreeSet::new(),
            ours,
            asked: 0,
            taken: 0,
            stop: false,
            alive: Instant::now(),
        };
        let driver = Arc::new(Self {
            state: watch::Sender::new(first),
            shared: Mutex::new(shared),
            woken: Condvar::new(),
            ended: watch::Sender::new(false),
            limits,
        });
        let own = Arc::clone(&driver);
        // The thread reports its own end, so its handle is not needed.
        let started = std::thread::Builder::new().name("driver".into()).spawn(move || {
            if catch_unwind(AssertUnwindSafe(|| work(&own))).is_err() {
                own.shared.lock().nvml = None;
                own.missing("the thread that talks to it panicked".into());
            }
            own.ended.send_replace(true);
        });
        started.map(|_| driver).map_err(NodeError::io("the driver's thread"))
    }

    /// Done when the thread has ended, with why: then nothing is known of the driver any more, and the agent has to end. Until then it
    /// watches over the thread: a driver that does not answer counts as missing for so long.
    pub async fn failed(&self) -> NodeError {
        let mut ended = self.ended.subscribe();
        loop {
            // The sender is a part of this driver, so it is there.
            match tokio::time::timeout(self.limits.stall / 4, ended.wait_for(|ended| *ended)).await {
                Ok(_) => return NodeError::NoDriver("the thread that talks to it has ended".into()),
                Err(_) => self.check_alive(),
            }
        }
    }

    fn check_alive(&self) {
        let silent = self.shared.lock().alive.elapsed();
        if silent >= self.limits.stall && self.state.borrow().machine().is_some() {
            let why = format!("it has not answered for {} s", silent.as_secs());
            tracing::error!(%why, "the driver hangs");
            // Nobody's look was taken, so only the state changes.
            self.state.send_replace(Arc::new(State::Missing(why)));
        }
    }

    /// Says that the thread is alive.
    fn beat(&self) {
        self.shared.lock().alive = Instant::now();
    }

    /// The newest state, now and whenever it changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    /// Ends the thread; it takes no more than one wait for events.
    pub fn stop(&self) {
        self.shared.lock().stop = true;
        self.woken.notify_all();
    }

    /// Runs something on NVML, on a thread that may block.
    ///
    /// # Errors
    /// [`NodeError::NoDriver`] when it is not open, and what the work gave.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Nvml) -> Result<T, GpuError> + Send + 'static,
    ) -> Result<T, NodeError> {
        let nvml = self.shared.lock().nvml.clone();
        let Some(nvml) = nvml else { return Err(NodeError::NoDriver("NVML is not open".into())) };
        let done = tokio::task::spawn_blocking(move || work(&nvml)).await;
        done.map_err(|e| NodeError::Invalid(e.to_string()))?.map_err(NodeError::Gpu)
    }

    /// Looks at everything now; done when everybody has been told.
    ///
    /// # Errors
    /// [`NodeError::NoDriver`] when the thread has ended, or does not answer in time.
    pub async fn refresh(&self) -> Result<(), NodeError> {
        let wanted = {
            let mut shared = self.shared.lock();
            shared.asked += 1;
            shared.asked
        };
        self.woken.notify_all();
        let (mut news, mut ended) = (self.state.subscribe(), self.ended.subscribe());
        let taken = async {
            while self.shared.lock().taken < wanted {
                // The thread sends after every look that was asked for; this driver holds the sender, so that it cannot be gone.
                let _ = news.changed().await;
            }
        };
        tokio::select! {
            () = taken => Ok(()),
            _ = ended.wait_for(|ended| *ended) => Err(NodeError::NoDriver("the thread that talks to it has ended".into())),
            () = tokio::time::sleep(self.limits.refresh) => {
                let seconds = self.limits.refresh.as_secs();
                Err(NodeError::NoDriver(format!("it was not looked at within {seconds} s")))
            }
        }
    }

    /// Sets what nothing new may start on, and tells everybody.
    ///
    /// # Errors
    /// As [`Self::refresh`].
    pub async fn drain(&self, uuids: BTreeSet<String>) -> Result<(), NodeError> {
        self.shared.lock().draining = uuids;
        self.refresh().await
    }

    /// Sets which MIG instances come and go with claims, and tells everybody.
    ///
    /// # Errors
    /// As [`Self::refresh`].
    pub async fn own(&self, places: BTreeSet<Place>) -> Result<(), NodeError> {
        self.shared.lock().ours = places;
        self.refresh().await
    }

    fn stopped(&self) -> bool {
        self.shared.lock().stop
    }

    fn work(&self, mut settings: Settings) {
        let mut faults = Faults::default();
        let mut known: Vec<Gpu> = Vec::new();
        while !self.stopped() {
            self.beat();
            match Nvml::find(settings.fixture.as_deref()) {
                Ok(nvml) => {
                    let nvml = Arc::new(nvml);
                    self.shared.lock().nvml = Some(Arc::clone(&nvml));
                    let why = self.follow(&nvml, &mut settings, &mut faults, &mut known);
                    self.shared.lock().nvml = None;
                    if self.stopped() {
                        return;
                    }
                    tracing::warn!(%why, "the driver went away");
                    self.missing(why);
                }
                Err(e) => self.missing(e.to_string()),
            }
            let mut shared = self.shared.lock();
            if !shared.stop {
                self.woken.wait_for(&mut shared, REOPEN);
            }
        }
    }

    fn missing(&self, why: String) {
        let asked = self.shared.lock().asked;
        self.tell(State::Missing(why), asked);
    }

    fn tell(&self, state: State, asked: u64) {
        self.shared.lock().taken = asked;
        self.state.send_replace(Arc::new(state));
    }

    /// Follows an open driver until it goes away; why it did.
    fn follow(&self, nvml: &Nvml, settings: &mut Settings, faults: &mut Faults, known: &mut Vec<Gpu>) -> String {
        let mut events = watch_all(nvml);
        let mut last_full: Option<Instant> = None;
        let mut last_look = Instant::now();
        while !self.stopped() {
            self.beat();
            let (asked, draining, ours) = {
                let shared = self.shared.lock();
                let asked = (shared.asked > shared.taken).then_some(shared.asked);
                (asked, shared.draining.clone(), shared.ours.clone())
            };
            let full = last_full.is_none_or(|at| at.elapsed() >= FULL) || asked.is_some();
            let mut changed = false;
            if full || last_look.elapsed() >= settings.look {
                if let Err(e) = nvml.count() {
                    return e.to_string();
                }
                last_look = Instant::now();
                changed = self.look(nvml, &settings.policy, faults, known);
            }
            if full || changed {
                let machine = match machine(nvml, settings, faults, known, draining, &ours) {
                    Ok(machine) => machine,
                    Err(e) => return e.to_string(),
                };
                last_full = Some(Instant::now());
                *known = machine.inventory.gpus.clone();
                let taken = self.shared.lock().taken;
                let asked = asked.unwrap_or(taken);
                self.tell(State::There(Box::new(machine)), asked);
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
                    let inside = gpu.mig.iter().flat_map(|m| &m.devices);
                    let slices: Vec<&str> = inside
                        .filter(|d| Some(d.gpu_instance) == event.gpu_instance)
                        .map(|d| d.uuid.as_str())
                        .collect();
                    tracing::warn!(gpu = gpu.uuid, xid = event.data, "the driver reports an error");
                    if slices.is_empty() {
                        faults.xid(&settings.policy, &event, &gpu.uuid, None, energy);
                    }
                    for slice in slices {
                        faults.xid(&settings.policy, &event, &gpu.uuid, Some(slice), energy);
                    }
                    last_full = None;
                }
                Ok(None) => {}
                Err(e) => {
                    // The set may be gone with a GPU; a new one has those that are left.
                    tracing::debug!(error = %e, "waiting for events");
                    std::thread::sleep(Duration::from_millis(200));
                    events = watch_all(nvml);
                }
            }
        }
        "the agent stops".into()
    }

    fn look(&self, nvml: &Nvml, policy: &Policy, faults: &mut Faults, known: &[Gpu]) -> bool {
        let mut changed = false;
        for gpu in known.iter().filter(|g| !g.uuid.is_empty()) {
            let reading = reading(nvml, gpu.index);
            let slices: Vec<&str> = gpu.mig.iter().flat_map(|m| &m.devices).map(|d| d.uuid.as_str()).collect();
            changed |= faults.look(policy, &gpu.uuid, &slices, &reading);
        }
        changed
    }
}

fn watch_all(nvml: &Nvml) -> Option<Watch<'_>> {
    let devices: Vec<_> = (0..nvml.count().ok()?).filter_map(|i| nvml.device(i).ok()).collect();
    nvml.watch(&devices).map_err(|e| tracing::warn!(error = %e, "the driver offers no events")).ok()
}

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
        energy: device.energy().ok().map(|mj| mj as f64 / 1000.0),
    }
}

fn machine(
    nvml: &Nvml,
    settings: &mut Settings,
    faults: &mut Faults,
    known: &[Gpu],
    draining: BTreeSet<String>,
    ours: &BTreeSet<Place>,
) -> Result<Machine, GpuError> {
    let mut inventory = Inventory::collect(nvml)?;
    for gpu in &mut inventory.gpus {
        // A lost GPU does not even tell its name; it stays what it was, and sick.
        let lost = gpu.uuid.is_empty()
            || gpu.findings.iter().any(|f| f.severity == Severity::Error && f.what.contains("XID 79"));
        if let Some(old) = known.iter().find(|k| k.index == gpu.index && !k.uuid.is_empty()).filter(|_| lost) {
            let findings = std::mem::take(&mut gpu.findings);
            *gpu = Gpu { findings, processes: Vec::new(), ..old.clone() };
            faults.look(&settings.policy, &gpu.uuid, &[], &Reading { lost: true, ..Reading::default() });
        }
    }
    let topology = Topology::collect(nvml, &inventory, std::path::Path::new("/sys"))?;
    faults.keep(|uuid| {
        inventory.gpus.iter().any(|g| g.uuid == uuid || g.mig.iter().flat_map(|m| &m.devices).any(|d| d.uuid == uuid))
    });
    let cdi = settings.cdi.write(&inventory).err().map(|e| e.to_string());
    let layouts = if inventory.gpus.iter().any(|g| g.mig.as_ref().is_some_and(|m| m.enabled)) {
        mig::layout(nvml)?
    } else {
        Vec::new()
    };
    let inside = |g: &Gpu| g.mig.iter().flat_map(|m| m.devices.clone()).map(|d| (g.index, d)).collect::<Vec<_>>();
    let ours = inventory
        .gpus
        .iter()
        .flat_map(inside)
        .filter(|(gpu, d)| ours.contains(&(*gpu, d.profile.clone(), d.start)))
        .map(|(_, d)| d.uuid)
        .collect();
    Ok(Machine { inventory, topology, faults: faults.clone(), draining, cdi, layouts, ours })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::mpsc;

    use super::*;
    use slipway_gpu::inventory::{Mig, MigDevice};
    use slipway_gpu::nvml::MigAttributes;
    use slipway_gpu::topology::Link;

    /// A GPU with MIG devices of these profiles, or without MIG.
    pub(crate) fn gpu(index: u32, profiles: Option<&[&str]>) -> Gpu {
        let device = |(n, profile): (usize, &&str)| MigDevice {
            uuid: format!("MIG-{index}-{n}"),
            profile: (*profile).to_owned(),
            gpu_instance: n as u32 + 1,
            compute_instance: 0,
            start: n as u32,
            size: 1,
            attributes: MigAttributes { multiprocessors: 14, memory_mib: 9728, ..MigAttributes::default() },
        };
        let mig =
            profiles.map(|p| Mig { enabled: true, pending: true, devices: p.iter().enumerate().map(device).collect() });
        Gpu {
            index,
            uuid: format!("GPU-{index}"),
            name: "NVIDIA A100-SXM4-80GB".into(),
            minor: Some(index),
            compute_capability: Some("8.0".into()),
            memory_total: Some(81920 << 20),
            mig,
            ..Gpu::default()
        }
    }

    /// A driver whose thread says that all is well, and panics when it is told to.
    pub(crate) fn that_panics() -> (Arc<Driver>, mpsc::Sender<()>) {
        let (tell, told) = mpsc::channel::<()>();
        let driver = Driver::start_with(BTreeSet::new(), LIMITS, move |driver| {
            driver.tell(State::There(Box::new(machine(vec![gpu(0, None)]))), 0);
            let _ = told.recv(); // a test that is over panics it as well
            panic!("this panic is part of the test");
        });
        (driver.unwrap(), tell)
    }

    #[tokio::test]
    async fn a_thread_that_panics_is_reported_and_leaves_no_healthy_state() {
        let (driver, tell) = that_panics();
        let mut states = driver.subscribe();
        states.wait_for(|s| s.machine().is_some()).await.unwrap();
        let asks = tokio::spawn({
            let driver = Arc::clone(&driver);
            async move { driver.drain(BTreeSet::new()).await }
        });
        tell.send(()).unwrap();
        assert!(driver.failed().await.to_string().contains("ended"));
        assert!(matches!(&**states.borrow(), State::Missing(why) if why.contains("panicked")));
        // The look that was asked for may have been answered by the last word of the thread; the next one is not.
        let _ = asks.await.unwrap();
        assert!(driver.refresh().await.unwrap_err().to_string().contains("ended"));
    }

    #[tokio::test]
    async fn a_driver_that_hangs_counts_as_missing_and_nobody_waits_for_it_for_ever() {
        let (release, released) = mpsc::channel::<()>();
        let limits = Limits { refresh: Duration::from_millis(50), stall: Duration::from_millis(100) };
        let hangs = move |driver: &Driver| {
            driver.tell(State::There(Box::new(machine(vec![gpu(0, None)]))), 0);
            let _ = released.recv(); // as a call of NVML that does not return
        };
        let driver = Driver::start_with(BTreeSet::new(), limits, hangs).unwrap();
        let mut states = driver.subscribe();
        states.wait_for(|s| s.machine().is_some()).await.unwrap();
        assert!(driver.refresh().await.unwrap_err().to_string().contains("not looked at"));
        let missing = states.wait_for(|s| s.machine().is_none());
        tokio::select! {
            error = driver.failed() => panic!("it hangs, and has not ended: {error}"),
            state = missing => assert!(matches!(&**state.unwrap(), State::Missing(why) if why.contains("not answered"))),
        }
        drop(release);
        driver.failed().await;
    }

    /// A machine with these GPUs, all well.
    pub(crate) fn machine(gpus: Vec<Gpu>) -> Machine {
        let count = gpus.len();
        let topology = Topology {
            simulated: true,
            gpus: Vec::new(),
            links: vec![vec![Link::System; count]; count],
            bus: vec![vec![Link::System; count]; count],
            numa: vec![Some(0); count],
            cpus: Vec::new(),
            nics: Vec::new(),
        };
        let inventory =
            Inventory { simulated: true, driver: "580.95.05".into(), nvml: String::new(), cuda: "13.0".into(), gpus };
        Machine {
            inventory,
            topology,
            faults: Faults::default(),
            draining: BTreeSet::new(),
            cdi: None,
            layouts: Vec::new(),
            ours: BTreeSet::new(),
        }
    }
}
