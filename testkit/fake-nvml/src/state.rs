//! The state of the simulated machine: fixture, clock, MIG instances, settings. There is one machine per process.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use slipway_gpu::mig::{Geometry, Instance, Used};
use slipway_gpu::nvml::{Placement, codes};

use crate::control::Control;
use crate::fixture::{self, Fixture};
use crate::settings::Settings;

/// Names the file that stores MIG instances and settings, so that one command sees the changes of another.
const STATE_FILE_VARIABLE: &str = "SLIPWAY_FAKE_NVML_STATE";

/// The result of an NVML function; the error is its return code.
pub(crate) type NvmlResult = Result<(), u32>;

pub(crate) struct State {
    pub(crate) fixture: Fixture,
    pub(crate) gpus: Vec<Gpu>,
    started: Instant,
    /// Calls of `nvmlInit` without `nvmlShutdown`.
    pub(crate) users: u32,
    pub(crate) sets: Vec<EventSet>,
    /// Indices of GPUs that the accelerator loads.
    pub(crate) loaded: Vec<usize>,
    file: Option<PathBuf>,
    pub(crate) control: Control,
}

/// Registered devices, and the numbers of XIDs from the fixture and from the control file that were delivered.
#[derive(Debug, Clone, Default)]
pub(crate) struct EventSet {
    pub(crate) devices: Vec<usize>,
    pub(crate) scripted: usize,
    pub(crate) controlled: usize,
}

pub(crate) struct Gpu {
    pub(crate) spec: fixture::Gpu,
    pub(crate) index: usize,
    pub(crate) mig: Mig,
    pub(crate) geometry: Option<Geometry>,
    pub(crate) settings: Settings,
}

/// What the state file has of a GPU.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Saved {
    #[serde(flatten)]
    mig: Mig,
    #[serde(default)]
    settings: Settings,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Mig {
    pub(crate) enabled: bool,
    pub(crate) instances: Vec<GpuInstance>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct GpuInstance {
    pub(crate) id: u32,
    pub(crate) instance: Instance,
    /// Ids and profile ids of the compute instances.
    pub(crate) compute: Vec<(u32, u32)>,
}

impl State {
    pub(crate) fn load(name: &str) -> Result<Self, String> {
        let (fixture, gpus) = Fixture::load(name)?;
        let file = std::env::var_os(STATE_FILE_VARIABLE).filter(|f| !f.is_empty()).map(PathBuf::from);
        let saved: Vec<Saved> = file
            .as_ref()
            .and_then(|f| std::fs::read(f).ok())
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let gpus = gpus
            .into_iter()
            .enumerate()
            .map(|(index, spec)| {
                let Saved { mig, settings } = saved.get(index).cloned().unwrap_or_default();
                Gpu { geometry: spec.mig.as_deref().and_then(Geometry::family), mig, spec, index, settings }
            })
            .collect();
        Ok(Self {
            fixture,
            gpus,
            started: Instant::now(),
            users: 0,
            sets: Vec::new(),
            loaded: Vec::new(),
            file,
            control: Control::default(),
        })
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Unloads the driver, which forgets most settings.
    pub(crate) fn unload(&mut self) {
        let forgotten: Vec<Settings> = self.gpus.iter().map(|g| g.settings.after_unload()).collect();
        if self.gpus.iter().zip(&forgotten).any(|(gpu, new)| gpu.settings != *new) {
            for (gpu, new) in self.gpus.iter_mut().zip(forgotten) {
                gpu.settings = new;
            }
            let _ = self.save(); // the caller reports that the driver is not loaded
        }
    }

    /// Saves MIG instances and settings for the next process, by an atomic rename.
    pub(crate) fn save(&self) -> NvmlResult {
        let Some(file) = &self.file else { return Ok(()) };
        let saved = |g: &Gpu| Saved { mig: g.mig.clone(), settings: g.settings.clone() };
        let all: Vec<Saved> = self.gpus.iter().map(saved).collect();
        let bytes = serde_json::to_vec(&all).map_err(|_| 999u32)?;
        let new = file.with_extension("new");
        std::fs::write(&new, bytes).and_then(|()| std::fs::rename(&new, file)).map_err(|_| 17)
    }

    /// A GPU by index; fails for a lost GPU.
    pub(crate) fn gpu(&mut self, index: usize) -> Result<&mut Gpu, u32> {
        let elapsed = self.elapsed();
        let gpu = self.gpus.get_mut(index).ok_or(2u32)?;
        match gpu.spec.lost_after_ms {
            Some(ms) if elapsed >= Duration::from_millis(ms) => Err(codes::GPU_IS_LOST),
            _ if self.control.lost.contains(&index) => Err(codes::GPU_IS_LOST),
            _ => Ok(gpu),
        }
    }

    /// Current throttle reasons of the fixture.
    pub(crate) fn throttle(&self, index: usize) -> u64 {
        let spec = &self.gpus[index].spec;
        let under_load = if self.utilization(index) > 0 { spec.throttle_under_load } else { 0 };
        spec.throttle | under_load
    }

    /// Current utilization in percent.
    pub(crate) fn utilization(&self, index: usize) -> u32 {
        if self.loaded.contains(&index) {
            return 100;
        }
        if let Some(set) = self.control.utilization.get(&index) {
            return *set;
        }
        let script = &self.gpus[index].spec.utilization;
        let second = usize::try_from(self.elapsed().as_secs()).unwrap_or(0);
        script.get(second % script.len().max(1)).copied().unwrap_or(0)
    }
}

impl Gpu {
    pub(crate) fn bus_id(&self) -> String {
        format!("00000000:{:02X}:00.0", 0x10 + 0x10 * self.index)
    }

    pub(crate) fn uuid(&self) -> String {
        format!("GPU-{:08x}-5117-4a75-8000-{:012x}", self.spec.pci_id, self.index)
    }

    pub(crate) fn geometry(&self) -> Result<&Geometry, u32> {
        self.geometry.as_ref().ok_or(codes::NOT_SUPPORTED)
    }

    pub(crate) fn instance(&mut self, id: u32) -> Result<&mut GpuInstance, u32> {
        self.mig.instances.iter_mut().find(|i| i.id == id).ok_or(codes::NOT_FOUND)
    }

    /// The UUID of a MIG device, which depends only on its GPU and placement.
    pub(crate) fn mig_uuid(&self, instance: &GpuInstance, compute: u32) -> String {
        let at = instance.instance.at;
        format!(
            "MIG-{:08x}-5117-4a75-8{:03x}-{:04x}{:04x}{:04x}",
            self.spec.pci_id, self.index, at.start, at.size, compute
        )
    }

    /// MIG devices as (index in `mig.instances`, id of the compute instance).
    pub(crate) fn mig_devices(&self) -> Vec<(usize, u32)> {
        let mut devices = Vec::new();
        for (i, instance) in self.mig.instances.iter().enumerate() {
            devices.extend(instance.compute.iter().map(|(id, _)| (i, *id)));
        }
        devices
    }

    /// Creates a GPU instance at a valid placement and returns its id.
    pub(crate) fn create(&mut self, profile_id: u32, at: Option<Placement>) -> Result<u32, u32> {
        if !self.mig.enabled {
            return Err(codes::NOT_SUPPORTED);
        }
        let geometry = self.geometry()?;
        let profile = geometry.profiles.iter().find(|p| p.id == profile_id).ok_or(2u32)?;
        let fits = |start: u32| {
            let instance = Instance::new(profile.name.clone(), Placement { start, size: profile.size });
            let all: Vec<Instance> = self.mig.instances.iter().map(|i| i.instance.clone()).chain([instance]).collect();
            Used::from_instances(&all, geometry).is_ok()
        };
        let start = match at {
            Some(at) if at.size != profile.size || !profile.starts.contains(&at.start) => return Err(2),
            Some(at) if fits(at.start) => at.start,
            Some(_) => return Err(codes::INSUFFICIENT_RESOURCES),
            None => profile.starts.iter().copied().find(|s| fits(*s)).ok_or(codes::INSUFFICIENT_RESOURCES)?,
        };
        let instance = Instance::new(profile.name.clone(), Placement { start, size: profile.size });
        // As on real GPUs, an instance of the full GPU gets id 0, and others start at 1.
        let first = u32::from(profile.size != geometry.memory);
        let id = (first..).find(|id| self.mig.instances.iter().all(|i| i.id != *id)).unwrap_or(first);
        self.mig.instances.push(GpuInstance { id, instance, compute: Vec::new() });
        Ok(id)
    }

    /// Whether a process of the fixture uses the instance.
    pub(crate) fn busy(&self, instance: &GpuInstance) -> bool {
        self.spec.processes.iter().any(|p| p.at == Some(instance.instance.at.start))
    }
}
