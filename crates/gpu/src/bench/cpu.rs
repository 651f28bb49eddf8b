//! CPU benchmarks: multiply-adds with the widest vectors, matrix products, memory and caches.
//!
//! The memory benchmarks follow STREAM (McCalpin 1995): arrays of at least four times the last-level cache, all threads,
//! NUMA placement by first touch; bytes are counted as in STREAM (without write-allocate traffic).
#![allow(unsafe_code)] // calls vector instructions after detecting them, and `gemm`

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use super::{Effort, Figure};
use crate::GpuError;
use crate::sheet::Precision;

/// Number of independent multiply-add chains, enough to hide the latency (at least 4 cycles x 2 units).
const CHAINS: usize = 12;
/// Steps per chain in one sample of the multiply-add benchmark.
const STEPS: usize = 400_000;

/// Vector instruction set of the CPU, widest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vectors {
    /// AVX-512: 512-bit vectors.
    Avx512,
    /// AVX2 with FMA: 256-bit vectors.
    Avx2,
    /// The baseline instructions of the compilation target.
    Base,
}

impl Vectors {
    /// Detects the widest vectors of this CPU.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Base
    }

    /// Name for display, such as `AVX-512`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "AVX-512",
            Self::Avx2 => "AVX2 with FMA",
            Self::Base => "base instructions",
        }
    }
}

/// Defines a function that runs multiply-adds on `CHAINS` vectors of `$lanes` numbers and returns the number of operations.
#[cfg(target_arch = "x86_64")]
macro_rules! chains {
    ($name:ident, $feature:literal, $kind:ty, $lanes:literal, $set:ident, $fma:ident) => {
        #[target_feature(enable = $feature)]
        fn $name() -> f64 {
            use std::arch::x86_64::{$fma, $set};
            let factor = $set(black_box(0.999_999 as $kind));
            let addend = $set(black_box(0.000_001 as $kind));
            let mut sums = [$set(black_box(1.0 as $kind)); CHAINS];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = $fma(*sum, factor, addend);
                }
            }
            black_box(sums);
            (STEPS * CHAINS * $lanes * 2) as f64
        }
    };
}

#[cfg(target_arch = "x86_64")]
chains!(fp32_avx512, "avx512f", f32, 16, _mm512_set1_ps, _mm512_fmadd_ps);
#[cfg(target_arch = "x86_64")]
chains!(fp64_avx512, "avx512f", f64, 8, _mm512_set1_pd, _mm512_fmadd_pd);
#[cfg(target_arch = "x86_64")]
chains!(fp32_avx2, "avx2,fma", f32, 8, _mm256_set1_ps, _mm256_fmadd_ps);
#[cfg(target_arch = "x86_64")]
chains!(fp64_avx2, "avx2,fma", f64, 4, _mm256_set1_pd, _mm256_fmadd_pd);

/// Like `chains`, with separate multiplications and additions: without FMA instructions `mul_add` would call a library function.
macro_rules! plain {
    ($name:ident, $kind:ty, $lanes:literal) => {
        fn $name() -> f64 {
            let factor = black_box([0.999_999 as $kind; $lanes]);
            let addend = black_box([0.000_001 as $kind; $lanes]);
            let mut sums = [[1.0 as $kind; $lanes]; CHAINS];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    for lane in 0..$lanes {
                        sum[lane] = sum[lane] * factor[lane] + addend[lane];
                    }
                }
            }
            black_box(sums);
            (STEPS * CHAINS * $lanes * 2) as f64
        }
    };
}
plain!(fp32_base, f32, 4);
plain!(fp64_base, f64, 2);

fn multiply_adds(vectors: Vectors, precision: Precision) -> f64 {
    // SAFETY: `Vectors::detect` has verified that the CPU supports the instructions.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        match (vectors, precision) {
            (Vectors::Avx512, Precision::Fp64) => return fp64_avx512(),
            (Vectors::Avx512, _) => return fp32_avx512(),
            (Vectors::Avx2, Precision::Fp64) => return fp64_avx2(),
            (Vectors::Avx2, _) => return fp32_avx2(),
            (Vectors::Base, _) => {}
        }
    }
    let _ = vectors;
    if precision == Precision::Fp64 { fp64_base() } else { fp32_base() }
}

/// Runs `work` on all threads at once. Returns the seconds from the first start to the last end, and the sum of the results.
fn together(threads: usize, work: impl Fn(usize) -> f64 + Sync) -> (f64, f64) {
    let barrier = Barrier::new(threads);
    let results: Vec<(Instant, Instant, f64)> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|t| {
                let (barrier, work) = (&barrier, &work);
                scope.spawn(move || {
                    barrier.wait();
                    let started = Instant::now();
                    let done = work(t);
                    (started, Instant::now(), done)
                })
            })
            .collect();
        running.into_iter().filter_map(|handle| handle.join().ok()).collect()
    });
    let first = results.iter().map(|r| r.0).min();
    let last = results.iter().map(|r| r.1).max();
    let seconds = first.zip(last).map_or(f64::INFINITY, |(a, b)| (b - a).as_secs_f64());
    (seconds, results.iter().map(|r| r.2).sum())
}

/// Level and size in bytes of this CPU's data and unified caches.
pub fn caches() -> Vec<(u32, u64)> {
    let mut found: Vec<(u32, u64)> = Vec::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").into_iter().flatten().flatten() {
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        if read("type").trim() == "Instruction" {
            continue;
        }
        let size = read("size");
        let size = size.trim();
        let (digits, scale) = match size.as_bytes().last() {
            Some(b'K') => (&size[..size.len() - 1], 1024),
            Some(b'M') => (&size[..size.len() - 1], 1 << 20),
            _ => (size, 1),
        };
        if let (Ok(level), Ok(n)) = (read("level").trim().parse(), digits.parse::<u64>()) {
            found.push((level, n * scale));
        }
    }
    found.sort_unstable();
    found
}

/// Model name of the CPU.
pub fn model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, n)| n.trim().to_owned()));
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Number of threads that can run in parallel.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Pseudo-random numbers from -0.5 to 0.5 by xorshift64 (Marsaglia 2003). Zeros would not be representative, and random bit
/// patterns would include slow denormal numbers.
fn random(count: usize, seed: u64) -> impl Iterator<Item = f64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    })
    .take(count)
}

/// Seconds of each of `samples` products of an m x k and a k x n matrix, after one warm-up.
fn products<T: Copy + 'static>(shape: (usize, usize, usize), samples: usize, convert: impl Fn(f64) -> T) -> Vec<f64> {
    let (m, n, k) = shape;
    let threads = threads();
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    let a: Vec<T> = random(m * k, 1).map(&convert).collect();
    let b: Vec<T> = random(k * n, 2).map(&convert).collect();
    let mut c = vec![convert(0.0); m * n];
    let stride = |rows: usize| isize::try_from(rows).unwrap_or(isize::MAX);
    let mut sample = |_| {
        let (to, x, y, zero, one) = (c.as_mut_ptr(), a.as_ptr(), b.as_ptr(), convert(0.0), convert(1.0));
        let started = Instant::now();
        // SAFETY: the matrices are column-major and have the sizes allocated above: c is m x n, a is m x k, b is k x n.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                to,
                stride(m),
                1,
                false,
                x,
                stride(m),
                1,
                y,
                stride(k),
                1,
                zero,
                one,
                false,
                false,
                false,
                parallelism,
            );
        }
        started.elapsed().as_secs_f64()
    };
    let seconds = (0..samples + 1).map(&mut sample).skip(1).collect();
    black_box(&c);
    seconds
}

fn product_seconds(shape: (usize, usize, usize), precision: Precision, samples: usize) -> Vec<f64> {
    match precision {
        Precision::Fp64 => products(shape, samples, |x| x),
        _ => products(shape, samples, |x| x as f32),
    }
}

/// Median run time in seconds of an m x n x k product, for `roofline --measure`.
///
/// # Errors
/// [`GpuError::Invalid`] for formats other than fp32 and fp64.
pub fn measure_gemm(m: usize, n: usize, k: usize, precision: Precision) -> Result<f64, GpuError> {
    if !matches!(precision, Precision::Fp32 | Precision::Fp64) {
        return Err(GpuError::Invalid(format!(
            "CPU matrix products are measured only in fp32 and fp64, not in {precision}"
        )));
    }
    let seconds = super::median(product_seconds((m, n, k), precision, Effort::QUICK.samples));
    seconds.map(|(median, _)| median).ok_or_else(|| GpuError::Invalid("nothing was measured".into()))
}

/// Sums `data` with enough independent chains to be bound by loads.
fn sum(data: &[f64]) -> f64 {
    let mut sums = [0.0; 32];
    let chunks = data.chunks_exact(32);
    let rest: f64 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (s, v) in sums.iter_mut().zip(chunk) {
            *s += v;
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// Like `sum` with vector loads. Eight sums hide the latency: two loads per cycle, four cycles per addition.
#[cfg(target_arch = "x86_64")]
macro_rules! wide_sum {
    ($name:ident, $feature:literal, $lanes:literal, $zero:ident, $load:ident, $add:ident) => {
        #[target_feature(enable = $feature)]
        fn $name(data: &[f64]) -> f64 {
            use std::arch::x86_64::{$add, $load, $zero};
            let mut sums = [$zero(); 8];
            let chunks = data.chunks_exact($lanes * 8);
            let rest: f64 = chunks.remainder().iter().sum();
            for chunk in chunks {
                for (i, s) in sums.iter_mut().enumerate() {
                    // SAFETY: the chunk has eight vectors, and the load instruction accepts unaligned addresses.
                    *s = $add(*s, unsafe { $load(chunk.as_ptr().add(i * $lanes)) });
                }
            }
            black_box(sums);
            rest
        }
    };
}
#[cfg(target_arch = "x86_64")]
wide_sum!(sum_avx512, "avx512f", 8, _mm512_setzero_pd, _mm512_loadu_pd, _mm512_add_pd);
#[cfg(target_arch = "x86_64")]
wide_sum!(sum_avx2, "avx2", 4, _mm256_setzero_pd, _mm256_loadu_pd, _mm256_add_pd);

fn read(vectors: Vectors, data: &[f64]) -> f64 {
    // SAFETY: `Vectors::detect` has verified that the CPU supports the instructions.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        match vectors {
            Vectors::Avx512 => return sum_avx512(data),
            Vectors::Avx2 => return sum_avx2(data),
            Vectors::Base => {}
        }
    }
    let _ = vectors;
    sum(data)
}

/// One thread's part of the three STREAM arrays.
struct Arrays {
    a: Vec<f64>,
    b: Vec<f64>,
    c: Vec<f64>,
}

/// Runs all CPU benchmarks; `progress` is called with a description before each step.
pub fn run(effort: Effort, mut progress: impl FnMut(&str)) -> Vec<Figure> {
    let (vectors, threads) = (Vectors::detect(), threads());
    let mut figures = Vec::new();
    for precision in [Precision::Fp32, Precision::Fp64] {
        progress(&format!("multiply-adds, {precision}, {}", vectors.name()));
        let sample = |_| {
            let (seconds, operations) = together(threads, |_| multiply_adds(vectors, precision));
            operations / seconds / 1e12
        };
        let figure = Figure::new("fma", "cpu", "TFLOP/s", (0..effort.samples + 1).map(sample).skip(1).collect());
        figures.extend(figure.map(|f| Figure { precision: Some(precision), ..f }));
    }
    let n = effort.matrix.min(2048);
    for precision in [Precision::Fp32, Precision::Fp64] {
        progress(&format!("matrix product, {precision}, {n} x {n}"));
        let operations = 2.0 * (n as f64).powi(3);
        let rates = product_seconds((n, n, n), precision, effort.samples).into_iter().map(|s| operations / s / 1e12);
        let figure = Figure::new("gemm", "cpu", "TFLOP/s", rates.collect());
        figures.extend(figure.map(|f| Figure { precision: Some(precision), size: Some(n as u64), ..f }));
    }
    figures.extend(memory(vectors, threads, effort, &mut progress));
    figures
}

fn memory(vectors: Vectors, threads: usize, effort: Effort, progress: &mut impl FnMut(&str)) -> Vec<Figure> {
    let caches = caches();
    let last = caches.last().map_or(32 << 20, |c| c.1);
    // Four times the last-level cache per array, from 64 MiB to 1 GiB.
    let each = usize::try_from((last * 4).clamp(64 << 20, 1 << 30)).unwrap_or(1 << 26) / 8 / threads;
    progress("memory");
    let arrays: Vec<std::sync::Mutex<Arrays>> = std::thread::scope(|scope| {
        // Each thread initialises its own part, so that the pages are allocated on its NUMA node.
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| Arrays { a: vec![1.0; each], b: vec![2.0; each], c: vec![0.5; each] }))
            .collect();
        workers.into_iter().filter_map(|m| m.join().ok()).map(std::sync::Mutex::new).collect()
    });
    let mut figures = Vec::new();
    let bytes = (each * 8) as f64;
    let mut kernel = |what: &str, moved: f64, work: &(dyn Fn(&mut Arrays) + Sync)| {
        let sample = |_| {
            let (seconds, _) = together(arrays.len(), |t| {
                // Uncontended: only this thread uses its part.
                let mut own = arrays[t].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                work(&mut own);
                0.0
            });
            moved * arrays.len() as f64 / seconds / 1e9
        };
        figures.extend(Figure::new(what, "cpu", "GB/s", (0..effort.samples + 1).map(sample).skip(1).collect()));
    };
    kernel("DRAM read", bytes, &|a| {
        black_box(read(vectors, &a.a));
    });
    kernel("DRAM write", bytes, &|a| {
        black_box(&mut a.c).fill(black_box(0.25));
    });
    kernel("DRAM copy", 2.0 * bytes, &|a| {
        let Arrays { a, c, .. } = a;
        c.copy_from_slice(a);
        black_box(c);
    });
    kernel("DRAM triad", 3.0 * bytes, &|a| {
        let Arrays { a, b, c } = a;
        let factor = black_box(3.0);
        for ((c, a), b) in c.iter_mut().zip(a.iter()).zip(b.iter()) {
            *c = a + factor * b;
        }
        black_box(c);
    });
    drop(arrays);
    let last = caches.last().copied();
    for (level, size) in caches {
        progress(&format!("cache, level {level}"));
        // Use half of a cache to leave space for other data. The last-level cache is shared by all threads.
        let share = if Some((level, size)) == last { size / 2 / threads as u64 } else { size / 2 };
        let numbers = usize::try_from(share / 8).unwrap_or(1024).max(256);
        let repeat = ((64 << 20) / (numbers * 8)).max(4);
        let sample = |_| {
            let (seconds, _) = together(threads, |_| {
                let data = vec![1.0; numbers];
                let mut total = read(vectors, &data);
                for _ in 0..repeat {
                    total += read(vectors, black_box(&data));
                }
                black_box(total)
            });
            (repeat * numbers * 8 * threads) as f64 / seconds / 1e9
        };
        let figure = Figure::new(
            &format!("L{level} read"),
            "cpu",
            "GB/s",
            (0..effort.samples + 1).map(sample).skip(1).collect(),
        );
        figures.extend(figure.map(|f| Figure { size: Some((numbers * 8) as u64), ..f }));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_are_positive_and_caches_are_ordered() {
        let figures = run(Effort { samples: 1, matrix: 256 }, |_| {});
        assert!(figures.len() >= 8, "{figures:?}");
        assert!(figures.iter().all(|f| f.median > 0.0 && f.median.is_finite()));
        assert!(caches().is_sorted());
    }
}
