//! GPU benchmarks through the CUDA driver: cuBLAS matrix products, slipway's kernels, transfers.
//!
//! All libraries are loaded at run time: libcuda is part of the driver, NVRTC and cuBLAS are part of a toolkit or Python
//! wheel. Benchmarks whose library is missing are skipped and reported. Times are measured by CUDA events around a few
//! milliseconds of work, after a warm-up; the L2 cache is overwritten before each sample. The method follows nvbandwidth
//! and the cuBLAS guide.
#![allow(unsafe_code)] // FFI: kernels, cuBLAS and copies take device pointers, which outlive the synchronisation of the stream

mod products;

use std::ffi::c_int;
use std::sync::Arc;
use std::time::Instant;

use cudarc::cublas::sys as cublas_sys;
use cudarc::cublaslt::sys as lt_sys;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, LaunchConfig, PushKernelArg,
    result as driver, sys,
};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};

use super::{Conditions, Effort, Figure, median};
use crate::GpuError;
use crate::nvml::{Clock, Nvml, codes};
use crate::sheet::{self, Card, Precision};
pub(crate) use products::Product;

const KERNELS: &str = include_str!("../kernels.cu");
/// Size in bytes of the arrays of the memory benchmarks; far larger than any L2 cache (B200: 126 MiB).
const ARRAY_BYTES: usize = 1 << 30;
/// Size in bytes of a transfer.
const TRANSFER_BYTES: usize = 256 << 20;

/// Which CUDA libraries are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[allow(missing_docs)] // the names are those of the libraries
pub struct Libraries {
    pub driver: bool,
    pub nvrtc: bool,
    pub cublas: bool,
    pub cublaslt: bool,
}

impl Libraries {
    /// Searches the library path of the dynamic loader.
    pub fn find() -> Self {
        // SAFETY: each call only opens its library.
        unsafe {
            Self {
                driver: sys::is_culib_present(),
                nvrtc: cudarc::nvrtc::sys::is_culib_present(),
                cublas: cublas_sys::is_culib_present(),
                cublaslt: lt_sys::is_culib_present(),
            }
        }
    }
}

pub(crate) fn cuda(error: impl std::fmt::Display) -> GpuError {
    GpuError::Cuda(error.to_string())
}

/// An open GPU.
pub(crate) struct Gpu<'n> {
    label: String,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    module: Option<Arc<CudaModule>>,
    card: Option<Card>,
    multiprocessors: u32,
    nvml: Option<(&'n Nvml, u32)>,
    flush: CudaSlice<u8>,
}

/// Runs all GPU benchmarks and returns device names and figures. `progress` is called with a description before each step, and
/// for each skipped benchmark.
///
/// # Errors
/// [`GpuError::NoGpu`] without a driver or a device; [`GpuError::Cuda`] if a CUDA call fails.
pub fn run(
    nvml: Option<&Nvml>,
    effort: Effort,
    mut progress: impl FnMut(&str),
) -> Result<(Vec<String>, Vec<Figure>), GpuError> {
    let libraries = Libraries::find();
    if !libraries.driver {
        return Err(GpuError::NoGpu);
    }
    let count = usize::try_from(CudaContext::device_count().map_err(cuda)?).unwrap_or(0);
    if count == 0 {
        return Err(GpuError::NoGpu);
    }
    if !libraries.nvrtc {
        progress(
            "NVRTC was not found, skipping the kernel benchmarks: pip install nvidia-cuda-nvrtc-cu12, and set LD_LIBRARY_PATH",
        );
    }
    if !libraries.cublas {
        progress(
            "cuBLAS was not found, skipping matrix products: pip install nvidia-cublas-cu12, and set LD_LIBRARY_PATH",
        );
    }
    let (mut names, mut figures, mut gpus) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..count {
        let gpu = Gpu::open(index, libraries, nvml)?;
        names.push(gpu.context.name().map_err(cuda)?);
        gpus.push(gpu);
    }
    for gpu in &gpus {
        if gpu.module.is_some() {
            figures.extend(gpu.kernels(effort, &mut progress)?);
        }
        if libraries.cublas {
            figures.extend(gpu.products(effort, libraries, &mut progress)?);
        }
        figures.extend(gpu.transfers(effort, &mut progress)?);
    }
    for from in &gpus {
        for to in gpus.iter().filter(|to| to.label != from.label) {
            progress(&format!("{} -> {}", from.label, to.label));
            figures.extend(peer(from, to, effort)?);
        }
    }
    Ok((names, figures))
}

/// Median run time in seconds of an m x n x k product on the first GPU, for `roofline --measure`.
///
/// # Errors
/// As [`run`]; [`GpuError::Cuda`] without cuBLAS.
pub fn measure_gemm(m: usize, n: usize, k: usize, precision: Precision) -> Result<f64, GpuError> {
    let libraries = Libraries::find();
    if !libraries.driver {
        return Err(GpuError::NoGpu);
    }
    if !libraries.cublas {
        return Err(GpuError::Cuda(
            "cuBLAS was not found: pip install nvidia-cublas-cu12, and set LD_LIBRARY_PATH".into(),
        ));
    }
    let gpu = Gpu::open(0, libraries, None)?;
    let samples = gpu.product(m, n, k, precision, Effort::QUICK.samples, libraries)?;
    let (rate, _) = median(samples).ok_or_else(|| GpuError::Cuda("the benchmark took no samples".into()))?;
    Ok(2.0 * (m as f64) * (n as f64) * (k as f64) / (rate * 1e12))
}

/// NVML's index of a CUDA device, matched by UUID because CUDA may order devices differently.
pub(crate) fn nvml_index(nvml: &Nvml, context: &CudaContext) -> Option<u32> {
    // The type of C's characters depends on the platform.
    let bytes = context.uuid().ok()?.bytes.map(|b| b.to_ne_bytes()[0]);
    let hex = slipway_core::hex::encode(&bytes);
    let hex_digits = |uuid: String| uuid.trim_start_matches("GPU-").replace('-', "").to_ascii_lowercase();
    (0..nvml.count().ok()?).find(|i| nvml.device(*i).and_then(|d| d.uuid()).is_ok_and(|uuid| hex_digits(uuid) == hex))
}

impl<'n> Gpu<'n> {
    pub(crate) fn open(index: usize, libraries: Libraries, nvml: Option<&'n Nvml>) -> Result<Self, GpuError> {
        let context = CudaContext::new(index).map_err(cuda)?;
        let stream = context.new_stream().map_err(cuda)?;
        let (major, minor) = context.compute_capability().map_err(cuda)?;
        let module = if libraries.nvrtc {
            let options = CompileOptions {
                options: vec![format!("--gpu-architecture=compute_{major}{minor}"), "--std=c++14".into()],
                ..CompileOptions::default()
            };
            let ptx = compile_ptx_with_opts(KERNELS, options).map_err(|e| GpuError::Cuda(format!("NVRTC: {e:?}")))?;
            Some(context.load_module(ptx).map_err(cuda)?)
        } else {
            None
        };
        let l2 = context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE).map_err(cuda)?;
        let flush = stream.alloc_zeros::<u8>(usize::try_from(l2).unwrap_or(0).max(1 << 20) * 2).map_err(cuda)?;
        let multiprocessors =
            context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).map_err(cuda)?;
        let name = context.name().map_err(cuda)?;
        Ok(Self {
            label: format!("gpu {index}"),
            card: sheet::find(&name),
            multiprocessors: u32::try_from(multiprocessors).unwrap_or(1),
            nvml: nvml.and_then(|n| Some((n, nvml_index(n, &context)?))),
            context,
            stream,
            module,
            flush,
        })
    }

    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Whether NVRTC has compiled the kernels.
    pub(crate) fn has_kernels(&self) -> bool {
        self.module.is_some()
    }

    /// A kernel of `kernels.cu`.
    pub(crate) fn function(&self, name: &str) -> Result<CudaFunction, GpuError> {
        let module = self.module.as_ref().ok_or_else(|| GpuError::Cuda("NVRTC was not found".into()))?;
        module.load_function(name).map_err(cuda)
    }

    fn conditions(&self) -> Option<Conditions> {
        let (nvml, index) = self.nvml?;
        let device = nvml.device(index).ok()?;
        Some(Conditions {
            clock_sm_mhz: device.clock(Clock::Sm).ok(),
            power_watts: device.power().ok().map(|mw| f64::from(mw) / 1000.0),
            temperature_celsius: device.temperature().ok(),
            throttle: codes::throttle_reasons(device.throttle().unwrap_or(0)).into_iter().map(str::to_owned).collect(),
        })
    }

    /// Run times of `work` in seconds, measured by CUDA events after one warm-up run.
    fn samples(&self, count: usize, mut work: impl FnMut() -> Result<(), GpuError>) -> Result<Vec<f64>, GpuError> {
        work()?;
        self.stream.synchronize().map_err(cuda)?;
        let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let mut seconds = Vec::new();
        for _ in 0..count {
            // SAFETY: the buffer belongs to this context and has this size.
            unsafe {
                let (pointer, _guard) = self.flush.device_ptr(&self.stream);
                driver::memset_d8_async(pointer, 0, self.flush.len(), self.stream.cu_stream()).map_err(cuda)?;
            }
            let start = self.stream.record_event(timed).map_err(cuda)?;
            work()?;
            let end = self.stream.record_event(timed).map_err(cuda)?;
            seconds.push(f64::from(start.elapsed_ms(&end).map_err(cuda)?) / 1000.0);
        }
        Ok(seconds)
    }

    /// A figure of `amount / seconds`. `peak` is (theoretical peak, achievable share); it adds a grade, and a likely cause if low.
    fn rate(&self, what: &str, unit: &str, amount: f64, seconds: Vec<f64>, peak: Option<(f64, f64)>) -> Option<Figure> {
        let mut figure = Figure::new(what, &self.label, unit, seconds.into_iter().map(|s| amount / s).collect())?;
        figure.conditions = self.conditions();
        if let Some((peak, achievable)) = peak {
            figure.peak = Some(peak);
            let grade = sheet::grade(figure.median, peak, achievable);
            figure.grade = Some(grade);
            if grade != sheet::Grade::Ok {
                let throttle =
                    figure.conditions.as_ref().map(|c| c.throttle.join(", ")).filter(|t| !t.is_empty() && t != "idle");
                let clock = figure.conditions.as_ref().and_then(|c| c.clock_sm_mhz).zip(self.card.as_ref());
                figure.cause = Some(match (throttle, clock) {
                    (Some(reasons), _) => format!("clocks were reduced: {reasons}"),
                    (None, Some((mhz, card))) if mhz * 100 < card.boost_mhz * 85 => {
                        format!("the clock was {mhz} of {} MHz", card.boost_mhz)
                    }
                    _ => "another process on the GPU, or a driver without this card's tuning".into(),
                });
            }
        }
        Some(figure)
    }

    pub(crate) fn grid(&self, blocks_per_multiprocessor: u32, threads: u32) -> LaunchConfig {
        LaunchConfig {
            grid_dim: (self.multiprocessors * blocks_per_multiprocessor, 1, 1),
            block_dim: (threads, 1, 1),
            shared_mem_bytes: 0,
        }
    }

    fn kernels(&self, effort: Effort, progress: &mut impl FnMut(&str)) -> Result<Vec<Figure>, GpuError> {
        let mut figures = Vec::new();
        let mut out = self.stream.alloc_zeros::<f64>(16).map_err(cuda)?;
        for (precision, name, steps) in [(Precision::Fp32, "fma_fp32", 4096i32), (Precision::Fp64, "fma_fp64", 128)] {
            progress(&format!("{}: multiply-adds, {precision}", self.label));
            let function = self.function(name)?;
            let grid = self.grid(8, 256);
            let seconds = self.samples(effort.samples, || {
                // SAFETY: the kernel's arguments are a pointer to at least one number, and the number of steps.
                unsafe { self.stream.launch_builder(&function).arg(&mut out).arg(&steps).launch(grid) }
                    .map_err(cuda)
                    .map(drop)
            })?;
            let operations = f64::from(grid.grid_dim.0) * 256.0 * f64::from(steps) * 16.0 * 8.0 * 2.0 / 1e12;
            // The kernel runs on the CUDA cores, so a peak of the tensor cores (fp64) does not apply.
            let peak = self.card.as_ref().and_then(|c| c.peak(precision)).filter(|p| !p.tensor).map(|p| (p.tera, 0.93));
            figures.extend(
                self.rate("fma", "TFLOP/s", operations, seconds, peak)
                    .map(|f| Figure { precision: Some(precision), ..f }),
            );
        }
        figures.extend(self.memory(effort, progress)?);
        progress(&format!("{}: launches", self.label));
        let nothing = self.function("nothing")?;
        let mut latencies = Vec::new();
        for _ in 0..effort.samples + 1 {
            let started = Instant::now();
            for _ in 0..100 {
                // SAFETY: the kernel has no arguments and does nothing.
                unsafe { self.stream.launch_builder(&nothing).launch(self.grid(1, 32)) }.map_err(cuda)?;
                self.stream.synchronize().map_err(cuda)?;
            }
            latencies.push(started.elapsed().as_secs_f64() * 1e6 / 100.0);
        }
        figures.extend(Figure::new("launch and wait", &self.label, "us", latencies.split_off(1)));
        Ok(figures)
    }

    pub(crate) fn memory(&self, effort: Effort, progress: &mut impl FnMut(&str)) -> Result<Vec<Figure>, GpuError> {
        let mut figures = Vec::new();
        progress(&format!("{}: memory", self.label));
        let (free, _) = self.context.mem_get_info().map_err(cuda)?;
        let bytes = ARRAY_BYTES.min(free / 8) / 4096 * 4096;
        let n = (bytes / 16) as u64;
        let mut arrays = Vec::new();
        for _ in 0..3 {
            arrays.push(self.stream.alloc_zeros::<u8>(bytes).map_err(cuda)?);
        }
        let mut out = self.stream.alloc_zeros::<f32>(16).map_err(cuda)?;
        let grid = self.grid(32, 256);
        let peak = self.card.as_ref().map(|c| (c.bandwidth(), c.achievable_bandwidth()));
        let gigabytes = bytes as f64 / 1e9;
        let level = self.card.as_ref().map_or("memory", |c| if c.bus_bits >= 1024 { "HBM" } else { "GDDR" });
        let [a, b, c] = arrays.as_mut_slice() else { return Ok(figures) };
        let (read, write, copy, triad) = (
            self.function("memory_read")?,
            self.function("memory_write")?,
            self.function("memory_copy")?,
            self.function("memory_triad")?,
        );
        // SAFETY (all four): the arrays hold n float4, and the arguments match the kernels' parameters.
        let seconds = self.samples(effort.samples, || {
            unsafe { self.stream.launch_builder(&read).arg(&*a).arg(&n).arg(&mut out).launch(grid) }
                .map_err(cuda)
                .map(drop)
        })?;
        figures.extend(self.rate(&format!("{level} read"), "GB/s", gigabytes, seconds, peak));
        let value = 0.5f32;
        let seconds = self.samples(effort.samples, || {
            // SAFETY: as above.
            unsafe { self.stream.launch_builder(&write).arg(&mut *c).arg(&n).arg(&value).launch(grid) }
                .map_err(cuda)
                .map(drop)
        })?;
        figures.extend(self.rate(&format!("{level} write"), "GB/s", gigabytes, seconds, peak));
        let seconds = self.samples(effort.samples, || {
            // SAFETY: as above.
            unsafe { self.stream.launch_builder(&copy).arg(&*a).arg(&mut *c).arg(&n).launch(grid) }
                .map_err(cuda)
                .map(drop)
        })?;
        figures.extend(self.rate(&format!("{level} copy"), "GB/s", 2.0 * gigabytes, seconds, peak));
        let seconds = self.samples(effort.samples, || {
            // SAFETY: as above.
            unsafe { self.stream.launch_builder(&triad).arg(&*a).arg(&*b).arg(&mut *c).arg(&n).launch(grid) }
                .map_err(cuda)
                .map(drop)
        })?;
        figures.extend(self.rate(&format!("{level} triad"), "GB/s", 3.0 * gigabytes, seconds, peak));

        let l2 = self.context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE).map_err(cuda)?;
        // Use a quarter of the L2: large L2 caches are split in halves, and the far half is slower.
        let (part, rounds) = ((u64::try_from(l2).unwrap_or(0) / 4 / 16).max(1024), 200i32);
        let function = self.function("l2_read")?;
        let seconds = self.samples(effort.samples, || {
            // SAFETY: `part` is less than n, and the arguments match the kernel's parameters.
            unsafe { self.stream.launch_builder(&function).arg(&*a).arg(&part).arg(&rounds).arg(&mut out).launch(grid) }
                .map_err(cuda)
                .map(drop)
        })?;
        let moved = part as f64 * 16.0 * f64::from(rounds) / 1e9;
        figures
            .extend(self.rate("L2 read", "GB/s", moved, seconds, None).map(|f| Figure { size: Some(part * 16), ..f }));
        let (function, rounds, grid) = (self.function("shared_read")?, 4096i32, self.grid(2, 1024));
        let seconds = self.samples(effort.samples, || {
            // SAFETY: a block has 1024 threads, and the kernel's tile has 1024 elements.
            unsafe { self.stream.launch_builder(&function).arg(&rounds).arg(&mut out).launch(grid) }
                .map_err(cuda)
                .map(drop)
        })?;
        let moved = f64::from(grid.grid_dim.0) * 1024.0 * f64::from(rounds) * 8.0 * 16.0 / 1e9;
        figures.extend(self.rate("shared memory read", "GB/s", moved, seconds, None));
        Ok(figures)
    }

    /// Measures copies between pinned host memory and the device, and the latency of a 4-byte copy.
    pub(crate) fn transfers(&self, effort: Effort, progress: &mut impl FnMut(&str)) -> Result<Vec<Figure>, GpuError> {
        progress(&format!("{}: transfers", self.label));
        let mut device = self.stream.alloc_zeros::<u8>(TRANSFER_BYTES).map_err(cuda)?;
        // SAFETY: the memory is written below before it is read; flags 0 means cached memory, which the host may read.
        let mut host = unsafe { self.context.alloc_pinned_with_flags::<u8>(TRANSFER_BYTES, 0) }.map_err(cuda)?;
        host.as_mut_slice().map_err(cuda)?.fill(1);
        let (up, down) = (format!("host -> {}", self.label), format!("{} -> host", self.label));
        let mut figures = Vec::new();
        let gigabytes = TRANSFER_BYTES as f64 / 1e9;
        let seconds = self.samples(effort.samples, || self.stream.memcpy_htod(&host, &mut device).map_err(cuda))?;
        figures.extend(Figure::new("PCIe copy", &up, "GB/s", seconds.into_iter().map(|s| gigabytes / s).collect()));
        let seconds = self.samples(effort.samples, || self.stream.memcpy_dtoh(&device, &mut host).map_err(cuda))?;
        figures.extend(Figure::new("PCIe copy", &down, "GB/s", seconds.into_iter().map(|s| gigabytes / s).collect()));
        let mut latencies = Vec::new();
        let four = [0u8; 4];
        for _ in 0..effort.samples + 1 {
            let started = Instant::now();
            for _ in 0..100 {
                let mut small = device.slice_mut(..4);
                self.stream.memcpy_htod(&four, &mut small).map_err(cuda)?;
                self.stream.synchronize().map_err(cuda)?;
            }
            latencies.push(started.elapsed().as_secs_f64() * 1e6 / 100.0);
        }
        figures.extend(Figure::new("copy of 4 bytes", &up, "us", latencies.split_off(1)));
        Ok(figures)
    }
}

/// Measures copies between two GPUs: direct over NVLink or PCIe if peer access is possible, otherwise through the host.
pub(crate) fn peer(from: &Gpu<'_>, to: &Gpu<'_>, effort: Effort) -> Result<Vec<Figure>, GpuError> {
    let mut can_access: c_int = 0;
    // SAFETY: both devices are open; the result is written to a local variable.
    unsafe { sys::cuDeviceCanAccessPeer(&mut can_access, from.context.cu_device(), to.context.cu_device()) }
        .result()
        .map_err(cuda)?;
    if can_access == 1 {
        from.context.bind_to_thread().map_err(cuda)?;
        // SAFETY: both contexts are valid. The result is ignored because peer access may already be enabled.
        let _ = unsafe { sys::cuCtxEnablePeerAccess(to.context.cu_ctx(), 0) };
    }
    let source = from.stream.alloc_zeros::<u8>(TRANSFER_BYTES).map_err(cuda)?;
    let mut target = to.stream.alloc_zeros::<u8>(TRANSFER_BYTES).map_err(cuda)?;
    to.stream.synchronize().map_err(cuda)?;
    let (src, _guard_source) = source.device_ptr(&from.stream);
    let (dst, _guard_target) = target.device_ptr_mut(&to.stream);
    let seconds = from.samples(effort.samples, || {
        // SAFETY: both buffers have this size and outlive the synchronisation in `samples`.
        unsafe {
            driver::memcpy_peer_async(
                to.context.cu_ctx(),
                dst,
                from.context.cu_ctx(),
                src,
                TRANSFER_BYTES,
                from.stream.cu_stream(),
            )
        }
        .map_err(cuda)
    })?;
    let label = format!("{} -> {}", from.label, to.label);
    let what = if can_access == 1 { "peer copy" } else { "copy through the host" };
    let mut figures = Vec::new();
    let rates = seconds.into_iter().map(|s| TRANSFER_BYTES as f64 / 1e9 / s).collect();
    figures.extend(Figure::new(what, &label, "GB/s", rates));
    let mut latencies = Vec::new();
    for _ in 0..effort.samples + 1 {
        let started = Instant::now();
        for _ in 0..100 {
            // SAFETY: both buffers hold at least four bytes and outlive the synchronisation below.
            let copied = unsafe {
                driver::memcpy_peer_async(
                    to.context.cu_ctx(),
                    dst,
                    from.context.cu_ctx(),
                    src,
                    4,
                    from.stream.cu_stream(),
                )
            };
            copied.map_err(cuda)?;
            from.stream.synchronize().map_err(cuda)?;
        }
        latencies.push(started.elapsed().as_secs_f64() * 1e6 / 100.0);
    }
    figures.extend(Figure::new("copy of 4 bytes", &label, "us", latencies.split_off(1)));
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs all benchmarks if the machine has a GPU; otherwise expects an error.
    #[test]
    fn benchmarks_run_or_report_missing_gpu() {
        match run(None, Effort { samples: 1, matrix: 1024 }, |_| {}) {
            Ok((names, figures)) => assert!(!names.is_empty() && figures.iter().all(|f| f.median > 0.0)),
            Err(error) => assert!(matches!(error, GpuError::NoGpu | GpuError::Cuda(_)), "{error}"),
        }
    }
}
