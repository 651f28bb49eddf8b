//! The seam between the checks and the GPUs: the measurements that need a GPU, as a trait. CUDA implements it for real GPUs, and a
//! simulator for those of a fixture; the checks are the same for both.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::memory::{Pattern, Tested};
use crate::GpuError;
use crate::nvml::Nvml;
use crate::sheet::Precision;

/// Something that a measurement needs and that can be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// NVRTC, which compiles the kernels of the memory test.
    Kernels,
    /// cuBLAS, for matrix products.
    Products,
    /// NCCL, for all-reduce.
    Collectives,
}

impl Need {
    /// What to install.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Kernels => {
                "install NVRTC: pip install nvidia-cuda-nvrtc-cu12 (or the package cuda-nvrtc-12-8), and set LD_LIBRARY_PATH"
            }
            Self::Products => {
                "install cuBLAS: pip install nvidia-cublas-cu12 (or the package libcublas-12-8), and set LD_LIBRARY_PATH"
            }
            Self::Collectives => {
                "install NCCL: apt install libnccl2, dnf install libnccl, or pip install nvidia-nccl-cu12, and set LD_LIBRARY_PATH"
            }
        }
    }

    /// The name of the missing library.
    pub fn library(self) -> &'static str {
        match self {
            Self::Kernels => "NVRTC (libnvrtc.so)",
            Self::Products => "cuBLAS (libcublas.so)",
            Self::Collectives => "NCCL (libnccl.so.2)",
        }
    }
}

/// Rates between host and GPU in GB/s (10^9 bytes per second), from and to pinned memory.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)] // the names are sufficient
pub struct Transfer {
    pub to_device: f64,
    pub to_host: f64,
}

/// The rate of copies from one GPU to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peer {
    /// GB/s in one direction.
    pub rate: f64,
    /// Whether the copy is direct; otherwise it passes through the host's memory.
    pub direct: bool,
}

/// A load of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Number format of the matrices.
    pub precision: Precision,
    /// Duration.
    pub duration: Duration,
    /// Load and idle for this time in turn, on all GPUs at once; `None` for a steady load.
    pub pulse: Option<Duration>,
}

/// What one GPU did under load.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Loaded {
    /// 10^12 operations per second over the time under load.
    pub tera: f64,
    /// Number of matrix products whose result was compared with that of the first; 0 if that needs something that is missing.
    pub compared: u64,
    /// Number of 64-bit words that differed.
    pub different: u64,
}

/// How much memory to test, and with what.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryTest {
    /// Patterns in the order in which they run.
    pub patterns: Vec<Pattern>,
    /// Share of the free memory, from 0 to 1.
    pub share: f64,
}

/// NCCL's unique id of a group, which rank 0 creates and all ranks need (`ncclUniqueId`).
pub type UniqueId = [u8; 128];

/// The part of an all-reduce between machines that this machine takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The id that all machines have.
    pub id: UniqueId,
    /// Number of ranks (GPUs) of all machines.
    pub ranks: usize,
    /// The rank of this machine's first GPU.
    pub first: usize,
    /// Number of machines.
    pub machines: usize,
}

/// The result of an all-reduce.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AllReduce {
    /// Bus bandwidth in GB/s: 2(n-1)/n times the bytes per rank and second, for n ranks (nccl-tests, `doc/PERFORMANCE.md`).
    pub bus: f64,
    /// Whether all sums were right.
    pub correct: bool,
}

/// GPUs that can be measured. GPUs are named by their indices of NVML.
pub trait Accelerator: Send + Sync {
    /// Whether what a measurement needs is there.
    fn has(&self, need: Need) -> bool;

    /// Copies between host and GPU.
    ///
    /// # Errors
    /// [`GpuError::Cuda`] if a call fails; so for all methods.
    fn transfer(&self, gpu: u32) -> Result<Transfer, GpuError>;

    /// Bandwidth of reading the GPU's memory in GB/s. Needs [`Need::Kernels`].
    ///
    /// # Errors
    /// See [`Accelerator::transfer`].
    fn memory_bandwidth(&self, gpu: u32) -> Result<f64, GpuError>;

    /// Tests the memory of several GPUs at once; results in the order of `gpus`. Needs [`Need::Kernels`].
    ///
    /// # Errors
    /// See [`Accelerator::transfer`].
    fn memory_test(&self, gpus: &[u32], test: &MemoryTest) -> Result<Vec<Tested>, GpuError>;

    /// Computes matrix products on several GPUs at once; results in the order of `gpus`. Needs [`Need::Products`].
    ///
    /// # Errors
    /// See [`Accelerator::transfer`].
    fn load(&self, gpus: &[u32], load: &Load) -> Result<Vec<Loaded>, GpuError>;

    /// Copies from one GPU to another.
    ///
    /// # Errors
    /// See [`Accelerator::transfer`].
    fn peer(&self, from: u32, to: u32) -> Result<Peer, GpuError>;

    /// Creates the id of a group of ranks. Needs [`Need::Collectives`].
    ///
    /// # Errors
    /// See [`Accelerator::transfer`].
    fn unique_id(&self) -> Result<UniqueId, GpuError>;

    /// Sums a buffer over these GPUs, or over all GPUs of a group of which these are a part. Needs [`Need::Collectives`].
    ///
    /// # Errors
    /// See [`Accelerator::transfer`].
    fn all_reduce(&self, gpus: &[u32], group: Option<&Group>) -> Result<AllReduce, GpuError>;
}

/// The GPUs of this machine, or why they cannot be measured.
pub type Hardware = Result<Arc<dyn Accelerator>, GpuError>;

/// Creates the simulator's accelerator.
pub type Simulate = fn() -> Result<Arc<dyn Accelerator>, GpuError>;

static SIMULATOR: OnceLock<Simulate> = OnceLock::new();

/// Sets what [`open`] returns for simulated GPUs. This crate is below the simulator, so the binary passes it in when it starts. Only the
/// first call has an effect.
pub fn set_simulator(simulate: Simulate) {
    SIMULATOR.get_or_init(|| simulate);
}

/// Opens the GPUs that `nvml` reports.
///
/// # Errors
/// [`GpuError::NoGpu`] without CUDA, [`GpuError::Cuda`] if it fails, [`GpuError::Invalid`] in a program without a simulator.
pub fn open(nvml: &Nvml) -> Hardware {
    if !nvml.is_simulated() {
        return Ok(Arc::new(super::cuda::Cuda::open(nvml)?));
    }
    match SIMULATOR.get() {
        Some(simulate) => simulate(),
        None => Err(GpuError::Invalid("this program has no simulated accelerator, which fixtures require".into())),
    }
}

/// How a measurement ended.
pub(super) enum Ended<T> {
    /// It returned.
    Done(Result<T, GpuError>),
    /// It did not return within this limit. Its thread still runs, and further measurements would wait for it.
    Hung(Duration),
}

/// Runs a measurement on a thread of its own, and calls `sample` at each interval until it ends, so that a GPU that hangs does not hang
/// the checks too.
pub(super) fn measure<T: Send + 'static>(
    accelerator: &Arc<dyn Accelerator>,
    limit: Duration,
    interval: Duration,
    mut sample: impl FnMut(),
    work: impl FnOnce(&dyn Accelerator) -> Result<T, GpuError> + Send + 'static,
) -> Ended<T> {
    let (sender, receiver) = channel();
    let accelerator = Arc::clone(accelerator);
    let started = std::thread::Builder::new().name("measurement".into()).spawn(move || {
        // The receiver is gone if the time limit was over.
        let _ = sender.send(work(&*accelerator));
    });
    if let Err(source) = started {
        return Ended::Done(Err(GpuError::Io { what: "starting a thread".into(), source }));
    }
    let deadline = Instant::now() + limit;
    loop {
        match receiver.recv_timeout(interval) {
            Ok(result) => return Ended::Done(result),
            Err(RecvTimeoutError::Disconnected) => {
                return Ended::Done(Err(GpuError::Cuda("the measurement ended with a panic".into())));
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => return Ended::Hung(limit),
            Err(RecvTimeoutError::Timeout) => sample(),
        }
    }
}
