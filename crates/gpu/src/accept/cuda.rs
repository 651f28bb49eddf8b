//! The measurements on real GPUs: CUDA, cuBLAS, the kernels of the benchmarks, and NCCL.
#![allow(unsafe_code)] // FFI: kernels take device pointers, which outlive the synchronisation of the stream

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::time::Instant;

use cudarc::driver::{CudaContext, CudaSlice, DevicePtrMut, PushKernelArg, sys};

use super::accelerator::{Accelerator, AllReduce, Group, Load, Loaded, MemoryTest, Need, Peer, Transfer, UniqueId};
use super::memory::{Mismatch, Tested};
use crate::GpuError;
use crate::bench::cuda::{Gpu, Libraries, cuda, nvml_index, peer};
use crate::bench::{Effort, Figure};
use crate::nccl::{self, Nccl};
use crate::nvml::Nvml;

/// Effort of the copies and of the memory bandwidth.
const EFFORT: Effort = Effort { samples: 9, matrix: 0 };
/// Rows of the square matrices of the load: large enough for the best rate, small enough for cards with 8 GB.
const ROWS: usize = 8192;
/// Time that one batch of products is meant to take: the GPU has the next batch before it ends this one.
const BATCH_SECONDS: f64 = 0.2;
/// Bytes of one allocation of the memory test.
const CHUNK_BYTES: usize = 1 << 30;
/// Bytes of the buffer of an all-reduce, with which its rate is that of the links (nccl-tests, `doc/PERFORMANCE.md`).
const REDUCE_BYTES: usize = 1 << 30;
/// All-reduces before the measured ones, and measured ones.
const REDUCES: (usize, usize) = (5, 20);
/// Numbers that are compared at each of some places of the result.
const COMPARED: usize = 1 << 16;

/// The GPUs of this machine.
pub struct Cuda {
    /// By index of NVML.
    gpus: BTreeMap<u32, Gpu<'static>>,
    libraries: Libraries,
    nccl: Option<Nccl>,
}

impl Cuda {
    /// Opens every GPU that CUDA and NVML both have.
    ///
    /// # Errors
    /// [`GpuError::NoGpu`] without the driver's CUDA library or a device, [`GpuError::Cuda`] if a GPU cannot be opened.
    pub fn open(nvml: &Nvml) -> Result<Self, GpuError> {
        let libraries = Libraries::find();
        if !libraries.driver {
            return Err(GpuError::NoGpu);
        }
        let count = usize::try_from(CudaContext::device_count().map_err(cuda)?).unwrap_or(0);
        let mut gpus = BTreeMap::new();
        for number in 0..count {
            let gpu = Gpu::open(number, libraries, None)?;
            if let Some(index) = nvml_index(nvml, gpu.context()) {
                gpus.insert(index, gpu);
            }
        }
        if gpus.is_empty() { Err(GpuError::NoGpu) } else { Ok(Self { gpus, libraries, nccl: Nccl::open() }) }
    }

    fn gpu(&self, index: u32) -> Result<&Gpu<'static>, GpuError> {
        let absent = || GpuError::Cuda(format!("CUDA does not have GPU {index}: check CUDA_VISIBLE_DEVICES"));
        self.gpus.get(&index).ok_or_else(absent)
    }

    fn nccl(&self) -> Result<&Nccl, GpuError> {
        self.nccl.as_ref().ok_or_else(|| GpuError::Cuda("NCCL was not found".into()))
    }
}

/// The median of the figure whose name ends with `what`.
fn median(figures: &[Figure], what: impl Fn(&Figure) -> bool) -> Result<f64, GpuError> {
    let figure = figures.iter().find(|f| what(f));
    figure.map(|f| f.median).ok_or_else(|| GpuError::Cuda("the benchmark has no result".into()))
}

impl Accelerator for Cuda {
    fn has(&self, need: Need) -> bool {
        match need {
            Need::Kernels => self.libraries.nvrtc,
            Need::Products => self.libraries.cublas,
            Need::Collectives => self.nccl.is_some(),
        }
    }

    fn transfer(&self, gpu: u32) -> Result<Transfer, GpuError> {
        let figures = self.gpu(gpu)?.transfers(EFFORT, &mut |_| {})?;
        let copy = |f: &Figure| f.what == "PCIe copy";
        Ok(Transfer {
            to_device: median(&figures, |f| copy(f) && f.device.starts_with("host"))?,
            to_host: median(&figures, |f| copy(f) && f.device.ends_with("host"))?,
        })
    }

    fn memory_bandwidth(&self, gpu: u32) -> Result<f64, GpuError> {
        let figures = self.gpu(gpu)?.memory(EFFORT, &mut |_| {})?;
        median(&figures, |f| matches!(f.what.as_str(), "HBM read" | "GDDR read" | "memory read"))
    }

    fn memory_test(&self, gpus: &[u32], test: &MemoryTest) -> Result<Vec<Tested>, GpuError> {
        let mut memories =
            gpus.iter().map(|g| Memory::new(self.gpu(*g)?, test.share)).collect::<Result<Vec<_>, _>>()?;
        for pattern in &test.patterns {
            for round in 0..pattern.rounds() {
                let (kind, parameter) = pattern.kernel(round);
                // Start a step on all GPUs before waiting for the first.
                for memory in &mut memories {
                    memory.write(kind, parameter)?;
                }
                for inverted in [0, 1] {
                    for memory in &mut memories {
                        memory.check(kind, parameter, inverted)?;
                    }
                }
                for memory in &mut memories {
                    if let Some(mismatch) = memory.collect()? {
                        memory.tested.first.get_or_insert((*pattern, mismatch));
                    }
                }
            }
        }
        Ok(memories.into_iter().map(|m| m.tested).collect())
    }

    fn load(&self, gpus: &[u32], load: &Load) -> Result<Vec<Loaded>, GpuError> {
        let gpus = gpus.iter().map(|g| self.gpu(*g)).collect::<Result<Vec<_>, _>>()?;
        let mut workers = gpus.iter().map(|g| Worker::new(g, load)).collect::<Result<Vec<_>, _>>()?;
        for worker in &mut workers {
            worker.begin()?;
        }
        let started = Instant::now();
        let mut phase = Instant::now();
        while started.elapsed() < load.duration {
            for worker in &mut workers {
                worker.next()?;
            }
            if let Some(pulse) = load.pulse.filter(|pulse| phase.elapsed() >= *pulse) {
                for worker in &mut workers {
                    worker.wait()?;
                }
                std::thread::sleep(pulse);
                phase = Instant::now();
            }
        }
        workers.into_iter().map(Worker::finish).collect()
    }

    fn peer(&self, from: u32, to: u32) -> Result<Peer, GpuError> {
        let figures = peer(self.gpu(from)?, self.gpu(to)?, EFFORT)?;
        let rate = median(&figures, |f| f.unit == "GB/s")?;
        Ok(Peer { rate, direct: figures.iter().any(|f| f.what == "peer copy") })
    }

    fn unique_id(&self) -> Result<UniqueId, GpuError> {
        Ok(self.nccl()?.unique_id()?.internal)
    }

    fn all_reduce(&self, gpus: &[u32], group: Option<&Group>) -> Result<AllReduce, GpuError> {
        let nccl = self.nccl()?;
        let gpus = gpus.iter().map(|g| self.gpu(*g)).collect::<Result<Vec<_>, _>>()?;
        let (id, ranks, first) = match group {
            Some(group) => (nccl::UniqueId { internal: group.id }, group.ranks, group.first),
            None => (nccl.unique_id()?, gpus.len(), 0),
        };
        let communicators = nccl.group(|| {
            let join = |(n, gpu): (usize, &&Gpu<'_>)| {
                gpu.context().bind_to_thread().map_err(cuda)?;
                nccl.join(ranks, id, first + n)
            };
            gpus.iter().enumerate().map(join).collect::<Result<Vec<_>, _>>()
        })?;
        let count = REDUCE_BYTES / size_of::<f32>();
        let mut buffers = Vec::new();
        for (n, gpu) in gpus.iter().enumerate() {
            // SAFETY: the memory is written below before it is read.
            let mut buffer = unsafe { gpu.stream().alloc::<f32>(count) }.map_err(cuda)?;
            // Rank r contributes r + 1, so every sum is n(n+1)/2.
            let value = (first + n + 1) as f32;
            let (pointer, guard) = buffer.device_ptr_mut(gpu.stream());
            // SAFETY: the buffer has `count` numbers of 32 bits.
            unsafe { sys::cuMemsetD32Async(pointer, value.to_bits(), count, gpu.stream().cu_stream()) }
                .result()
                .map_err(cuda)?;
            drop(guard);
            buffers.push(buffer);
        }
        let reduce = |buffers: &mut [CudaSlice<f32>]| {
            nccl.group(|| {
                for ((gpu, communicator), buffer) in gpus.iter().zip(&communicators).zip(buffers) {
                    gpu.context().bind_to_thread().map_err(cuda)?;
                    let (pointer, _guard) = buffer.device_ptr_mut(gpu.stream());
                    // SAFETY: the buffer has `count` numbers and lives until the streams are synchronised below.
                    unsafe { communicator.all_reduce(pointer, count, gpu.stream().cu_stream().cast::<c_void>()) }?;
                }
                Ok(())
            })
        };
        let synchronise = || gpus.iter().try_for_each(|g| g.stream().synchronize().map_err(cuda));
        reduce(&mut buffers)?;
        synchronise()?;
        let expected = (ranks * (ranks + 1)) as f32 / 2.0;
        let mut correct = true;
        for (gpu, buffer) in gpus.iter().zip(&buffers) {
            for place in 0..8 {
                let at = (count - COMPARED) / 7 * place;
                let part = gpu.stream().clone_dtoh(&buffer.slice(at..at + COMPARED)).map_err(cuda)?;
                correct &= part.iter().all(|sum| *sum == expected);
            }
        }
        for _ in 0..REDUCES.0 {
            reduce(&mut buffers)?;
        }
        synchronise()?;
        let started = Instant::now();
        for _ in 0..REDUCES.1 {
            reduce(&mut buffers)?;
        }
        synchronise()?;
        let seconds = started.elapsed().as_secs_f64() / REDUCES.1 as f64;
        let n = ranks as f64;
        Ok(AllReduce { bus: 2.0 * (n - 1.0) / n * REDUCE_BYTES as f64 / seconds / 1e9, correct })
    }
}

/// The tested memory of one GPU.
struct Memory<'g> {
    gpu: &'g Gpu<'static>,
    /// Allocations, each with its offset in bytes from the first.
    chunks: Vec<(u64, CudaSlice<u64>)>,
    /// Number of wrong words, and offset, written and read value of one of them.
    result: CudaSlice<u64>,
    tested: Tested,
}

impl<'g> Memory<'g> {
    /// Allocates a share of the free memory.
    fn new(gpu: &'g Gpu<'static>, share: f64) -> Result<Self, GpuError> {
        let result = gpu.stream().alloc_zeros::<u64>(4).map_err(cuda)?;
        let (free, _) = gpu.context().mem_get_info().map_err(cuda)?;
        let mut left = (free as f64 * share) as usize / 4096 * 4096;
        let (mut chunks, mut offset) = (Vec::new(), 0);
        while left > 0 {
            let bytes = left.min(CHUNK_BYTES);
            // SAFETY: every word is written before it is read.
            let Ok(chunk) = (unsafe { gpu.stream().alloc::<u64>(bytes / 8) }) else {
                // Fragments can prevent the last allocations; the report has the size that was tested.
                break;
            };
            chunks.push((offset, chunk));
            offset += bytes as u64;
            left -= bytes;
        }
        Ok(Self { gpu, chunks, result, tested: Tested { bytes: offset, ..Tested::default() } })
    }

    fn write(&mut self, kind: i32, parameter: u64) -> Result<(), GpuError> {
        let (kernel, grid) = (self.gpu.function("pattern_write")?, self.gpu.grid(16, 256));
        for (offset, chunk) in &mut self.chunks {
            let words = chunk.len() as u64;
            let mut launch = self.gpu.stream().launch_builder(&kernel);
            launch.arg(chunk).arg(&words).arg(&*offset).arg(&kind).arg(&parameter);
            // SAFETY: the chunk has this number of words, and the arguments match the kernel's parameters.
            unsafe { launch.launch(grid) }.map_err(cuda)?;
        }
        Ok(())
    }

    /// Checks the values, or their complements; the first check writes the complements.
    fn check(&mut self, kind: i32, parameter: u64, inverted: i32) -> Result<(), GpuError> {
        let (kernel, grid) = (self.gpu.function("pattern_check")?, self.gpu.grid(16, 256));
        for (offset, chunk) in &mut self.chunks {
            let words = chunk.len() as u64;
            let mut launch = self.gpu.stream().launch_builder(&kernel);
            launch.arg(chunk).arg(&words).arg(&*offset).arg(&kind).arg(&parameter).arg(&inverted).arg(&mut self.result);
            // SAFETY: as above; the result has four words.
            unsafe { launch.launch(grid) }.map_err(cuda)?;
        }
        Ok(())
    }

    /// Waits for the checks, counts their mismatches and returns one of them.
    fn collect(&mut self) -> Result<Option<Mismatch>, GpuError> {
        let result = self.gpu.stream().clone_dtoh(&self.result).map_err(cuda)?;
        let [count, address, written, read] = result[..] else { return Ok(None) };
        if count == 0 {
            return Ok(None);
        }
        self.tested.mismatches += count;
        self.gpu.stream().memset_zeros(&mut self.result).map_err(cuda)?;
        Ok(Some(Mismatch { address, written, read }))
    }
}

/// One GPU under load. Two batches of products are queued, so that it never waits for the host.
struct Worker<'g> {
    gpu: &'g Gpu<'static>,
    product: crate::bench::cuda::Product<'g>,
    /// The result of the first product, and the number of words that differed from it; `None` without NVRTC.
    reference: Option<(CudaSlice<u8>, CudaSlice<u64>)>,
    /// Products of a batch.
    batch: usize,
    started: Instant,
    batches: u64,
}

impl<'g> Worker<'g> {
    fn new(gpu: &'g Gpu<'static>, load: &Load) -> Result<Self, GpuError> {
        let mut product = gpu.prepare(ROWS, ROWS, ROWS, load.precision)?;
        product.enqueue(1)?;
        gpu.stream().synchronize().map_err(cuda)?;
        let started = Instant::now();
        product.enqueue(4)?;
        gpu.stream().synchronize().map_err(cuda)?;
        let seconds = started.elapsed().as_secs_f64() / 4.0;
        let batch = (BATCH_SECONDS / seconds.max(1e-6)).ceil().clamp(1.0, 10_000.0) as usize;
        let reference = if gpu.has_kernels() {
            let copy = gpu.stream().clone_dtod(product.result()).map_err(cuda)?;
            Some((copy, gpu.stream().alloc_zeros::<u64>(1).map_err(cuda)?))
        } else {
            None
        };
        Ok(Self { gpu, product, reference, batch, started: Instant::now(), batches: 0 })
    }

    fn begin(&mut self) -> Result<(), GpuError> {
        self.started = Instant::now();
        self.enqueue()
    }

    fn enqueue(&mut self) -> Result<(), GpuError> {
        self.gpu.context().bind_to_thread().map_err(cuda)?;
        self.product.enqueue(self.batch)?;
        if let Some((reference, different)) = &mut self.reference {
            let (kernel, grid) = (self.gpu.function("compare")?, self.gpu.grid(8, 256));
            let words = (reference.len() / 8) as u64;
            let mut launch = self.gpu.stream().launch_builder(&kernel);
            launch.arg(self.product.result()).arg(&*reference).arg(&words).arg(different);
            // SAFETY: both results have this number of words, and the arguments match the kernel's parameters.
            unsafe { launch.launch(grid) }.map_err(cuda)?;
        }
        self.batches += 1;
        Ok(())
    }

    /// Queues the next batch, then waits for the end of the one before.
    fn next(&mut self) -> Result<(), GpuError> {
        let event = self.gpu.stream().record_event(None).map_err(cuda)?;
        self.enqueue()?;
        event.synchronize().map_err(cuda)?;
        Ok(())
    }

    fn wait(&self) -> Result<(), GpuError> {
        self.gpu.stream().synchronize().map_err(cuda)
    }

    fn finish(self) -> Result<Loaded, GpuError> {
        self.wait()?;
        let seconds = self.started.elapsed().as_secs_f64();
        let products = self.batches as f64 * self.batch as f64;
        let different = match &self.reference {
            Some((_, different)) => {
                self.gpu.stream().clone_dtoh(different).map_err(cuda)?.first().copied().unwrap_or(0)
            }
            None => 0,
        };
        let compared = if self.reference.is_some() { self.batches } else { 0 };
        Ok(Loaded { tera: products * self.product.operations() / seconds / 1e12, compared, different })
    }
}
