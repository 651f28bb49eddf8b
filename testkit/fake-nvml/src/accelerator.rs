//! The simulated GPUs as an accelerator, so that the checks of `slipway node accept` run without a GPU.
//!
//! Rates are the theoretical ones of the data sheet or the link, times the share that is reached in practice; `speed_percent` of the
//! fixture reduces them. The memory test runs on a small memory of the host, in which `memory_fault` keeps one bit at 0.

use std::sync::Arc;
use std::time::Duration;

use slipway_gpu::GpuError;
use slipway_gpu::accept::accelerator::{
    Accelerator, AllReduce, Group, Load, Loaded, MemoryTest, Need, Peer, Transfer, UniqueId,
};
use slipway_gpu::accept::memory::{self, Tested, Words};
use slipway_gpu::sheet::{self, Card};

use crate::MACHINE;
use crate::fixture::{Gpu, Library};

/// Share of a link's or a memory's rate that a copy reaches.
const COPY_SHARE: f64 = 0.87;
/// Duration of a load, whatever is requested: several intervals of the samples.
const LOAD: Duration = Duration::from_millis(150);
/// Words of the simulated memory.
const WORDS: usize = 1 << 12;

/// The GPUs of the selected fixture.
struct Simulated;

/// What the binary passes to [`slipway_gpu::accept::accelerator::set_simulator`].
///
/// # Errors
/// [`GpuError::Invalid`] before a fixture is open.
pub fn simulate() -> Result<Arc<dyn Accelerator>, GpuError> {
    if MACHINE.lock().is_none() {
        return Err(GpuError::Invalid("no fixture is open".into()));
    }
    Ok(Arc::new(Simulated))
}

/// The properties and the data sheet of a simulated GPU.
fn gpu(index: u32) -> Result<(Gpu, Option<Card>), GpuError> {
    let mut machine = MACHINE.lock();
    let state = machine.as_mut().ok_or_else(|| GpuError::Invalid("no fixture is open".into()))?;
    let at = usize::try_from(index).unwrap_or(usize::MAX);
    let gpu = state.gpu(at).map_err(|code| GpuError::Cuda(format!("GPU {index} does not respond (NVML {code})")))?;
    let spec = gpu.spec.clone();
    let card = sheet::find(&spec.name);
    Ok((spec, card))
}

fn speed(gpu: &Gpu) -> f64 {
    f64::from(gpu.speed_percent.unwrap_or(100)) / 100.0
}

/// The rate between GPUs in GB/s in one direction: that of the NVLinks that are up, else that of PCIe.
fn peer_rate(gpu: &Gpu, card: Option<&Card>) -> f64 {
    let up = gpu.nvlinks.saturating_sub(gpu.nvlinks_down);
    let nvlink = card.map_or(0.0, |c| f64::from(c.nvlink_gb_per_s) / 2.0);
    if up > 0 && nvlink > 0.0 {
        nvlink * f64::from(up) / f64::from(gpu.nvlinks) * COPY_SHARE * speed(gpu)
    } else {
        pcie_rate(gpu)
    }
}

fn pcie_rate(gpu: &Gpu) -> f64 {
    slipway_gpu::pci::bandwidth(gpu.pcie_generation, gpu.pcie_width).unwrap_or(0.0) * COPY_SHARE * speed(gpu)
}

/// Marks GPUs as loaded for as long as it exists.
struct Busy(Vec<usize>);

impl Busy {
    fn new(gpus: &[u32]) -> Self {
        let gpus: Vec<usize> = gpus.iter().filter_map(|g| usize::try_from(*g).ok()).collect();
        if let Some(state) = MACHINE.lock().as_mut() {
            state.loaded.extend(&gpus);
        }
        Self(gpus)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(state) = MACHINE.lock().as_mut() {
            state.loaded.retain(|g| !self.0.contains(g));
        }
    }
}

/// A memory in which one bit of a word can be stuck.
struct HostMemory {
    words: Vec<u64>,
    stuck: Option<u64>,
}

impl Words for HostMemory {
    fn len(&self) -> u64 {
        self.words.len() as u64
    }

    fn write(&mut self, word: u64, value: u64) {
        if let Some(at) = usize::try_from(word).ok().and_then(|w| self.words.get_mut(w)) {
            *at = value;
        }
    }

    fn read(&self, word: u64) -> u64 {
        let value = usize::try_from(word).ok().and_then(|w| self.words.get(w)).copied().unwrap_or(0);
        if self.stuck == Some(word * 8) { value & !1 } else { value }
    }
}

impl Accelerator for Simulated {
    fn has(&self, need: Need) -> bool {
        let library = match need {
            Need::Kernels => Library::Nvrtc,
            Need::Products => Library::Cublas,
            Need::Collectives => Library::Nccl,
        };
        MACHINE.lock().as_ref().is_some_and(|state| !state.fixture.missing_libraries.contains(&library))
    }

    fn transfer(&self, index: u32) -> Result<Transfer, GpuError> {
        let (gpu, _) = gpu(index)?;
        Ok(Transfer { to_device: pcie_rate(&gpu), to_host: pcie_rate(&gpu) })
    }

    fn memory_bandwidth(&self, index: u32) -> Result<f64, GpuError> {
        let (gpu, card) = gpu(index)?;
        Ok(card.map_or(0.0, |c| c.bandwidth() * c.achievable_bandwidth() * speed(&gpu)))
    }

    fn memory_test(&self, gpus: &[u32], test: &MemoryTest) -> Result<Vec<Tested>, GpuError> {
        let tested = |index: &u32| {
            let (gpu, _) = gpu(*index)?;
            let mut memory = HostMemory { words: vec![0; WORDS], stuck: gpu.memory_fault };
            Ok(memory::run(&mut memory, &test.patterns))
        };
        gpus.iter().map(tested).collect()
    }

    fn load(&self, gpus: &[u32], load: &Load) -> Result<Vec<Loaded>, GpuError> {
        let _busy = Busy::new(gpus);
        std::thread::sleep(LOAD.min(load.duration));
        let loaded = |index: &u32| {
            let (gpu, card) = gpu(*index)?;
            let rate = card.and_then(|c| Some(c.peak(load.precision)?.tera * c.achievable(load.precision)));
            let compared = if self.has(Need::Kernels) { 100 } else { 0 };
            Ok(Loaded { tera: rate.unwrap_or(0.0) * speed(&gpu), compared, different: gpu.wrong_results })
        };
        gpus.iter().map(loaded).collect()
    }

    fn peer(&self, from: u32, to: u32) -> Result<Peer, GpuError> {
        let ((a, card_a), (b, card_b)) = (gpu(from)?, gpu(to)?);
        let rate = peer_rate(&a, card_a.as_ref()).min(peer_rate(&b, card_b.as_ref()));
        Ok(Peer { rate, direct: true })
    }

    fn unique_id(&self) -> Result<UniqueId, GpuError> {
        Ok([7; 128])
    }

    fn all_reduce(&self, gpus: &[u32], _: Option<&Group>) -> Result<AllReduce, GpuError> {
        let mut bus = f64::INFINITY;
        for index in gpus {
            let (gpu, card) = gpu(*index)?;
            bus = bus.min(peer_rate(&gpu, card.as_ref()));
        }
        Ok(AllReduce { bus, correct: true })
    }
}
