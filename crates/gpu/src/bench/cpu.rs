//! The processor's ceilings, measured: multiply-adds with the widest vectors, matrix products, memory and caches.
//!
//! Memory follows STREAM (McCalpin 1995): arrays of at least four times the last cache, all threads, best placement
//! by first touch; bytes counted as STREAM counts them (no write-allocate traffic).
#![allow(unsafe_code)] // calls into code for vector instructions that were found present, and into `gemm`

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use super::{Effort, Figure};
use crate::GpuError;
use crate::sheet::Precision;

/// Independent chains of multiply-adds, enough to hide their latency (4 cycles x 2 units, and some).
const CHAINS: usize = 12;
/// Steps of one sample of multiply-adds.
const STEPS: usize = 400_000;

/// The vectors found, widest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vectors {
    /// 512 bits.
    Avx512,
    /// 256 bits.
    Avx2,
    /// What the compiler may assume.
    Base,
}

impl Vectors {
    /// What this processor has.
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

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "AVX-512",
            Self::Avx2 => "AVX2 with FMA",
            Self::Base => "base instructions",
        }
    }
}

/// A loop of multiply-adds on `CHAINS` vectors of `$lanes` numbers; the operations done.
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

/// Without fused instructions `mul_add` would call a function, so plain products and sums are timed.
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
    // SAFETY: the instructions were found present by `Vectors::detect`.
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

/// Runs `work` on all threads at once; seconds from the first start to the last end, and the sum of the answers.
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

/// Bytes of the caches of this processor: level and size, data and unified only.
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

/// The processor's model.
pub fn model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, n)| n.trim().to_owned()));
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Threads that may run at once.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Numbers from -0.5 to 0.5 by xorshift64 (Marsaglia 2003); which they are does not matter, but zeros would be unlike
/// work, and bit patterns taken at random would be full of the slow smallest numbers.
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

/// Seconds of each of some products of an m x k and a k x n matrix, after one for warmth.
fn products<T: Copy + 'static>(shape: (usize, usize, usize), samples: usize, of: impl Fn(f64) -> T) -> Vec<f64> {
    let (m, n, k) = shape;
    let threads = threads();
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    let a: Vec<T> = random(m * k, 1).map(&of).collect();
    let b: Vec<T> = random(k * n, 2).map(&of).collect();
    let mut c = vec![of(0.0); m * n];
    let stride = |rows: usize| isize::try_from(rows).unwrap_or(isize::MAX);
    let mut sample = |_| {
        let (to, x, y, zero, one) = (c.as_mut_ptr(), a.as_ptr(), b.as_ptr(), of(0.0), of(1.0));
        let started = Instant::now();
        // SAFETY: matrices in column-major order: c of m x n, a of m x k, b of k x n numbers, as allocated above.
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

/// Seconds of the median of an m x n x k product, for `roofline --measure`.
///
/// # Errors
/// [`GpuError::Invalid`] for formats other than fp32 and fp64.
pub fn measure_gemm(m: usize, n: usize, k: usize, precision: Precision) -> Result<f64, GpuError> {
    if !matches!(precision, Precision::Fp32 | Precision::Fp64) {
        return Err(GpuError::Invalid(format!(
            "a processor's products are measured in fp32 and fp64, not in {precision}"
        )));
    }
    let seconds = super::median(product_seconds((m, n, k), precision, Effort::QUICK.samples));
    seconds.map(|(median, _)| median).ok_or_else(|| GpuError::Invalid("nothing was measured".into()))
}

/// Sums `data` with enough independent chains to keep the loads coming.
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

/// The same with wide loads; eight sums, as loads come two a cycle and an addition takes four.
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
                    // SAFETY: the chunk has eight vectors; the load may be unaligned.
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
    // SAFETY: the instructions were found present by `Vectors::detect`.
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

struct Arrays {
    a: Vec<f64>,
    b: Vec<f64>,
    c: Vec<f64>,
}

/// Measures everything; `note` is called before each step.
pub fn run(effort: Effort, mut note: impl FnMut(&str)) -> Vec<Figure> {
    let (vectors, threads) = (Vectors::detect(), threads());
    let mut figures = Vec::new();
    for precision in [Precision::Fp32, Precision::Fp64] {
        note(&format!("multiply-adds, {precision}, {}", vectors.name()));
        let sample = |_| {
            let (seconds, operations) = together(threads, |_| multiply_adds(vectors, precision));
            operations / seconds / 1e12
        };
        let figure = Figure::new("fma", "cpu", "TFLOP/s", (0..effort.samples + 1).map(sample).skip(1).collect());
        figures.extend(figure.map(|f| Figure { precision: Some(precision), ..f }));
    }
    let n = effort.matrix.min(2048);
    for precision in [Precision::Fp32, Precision::Fp64] {
        note(&format!("matrix product, {precision}, {n} x {n}"));
        let operations = 2.0 * (n as f64).powi(3);
        let rates = product_seconds((n, n, n), precision, effort.samples).into_iter().map(|s| operations / s / 1e12);
        let figure = Figure::new("gemm", "cpu", "TFLOP/s", rates.collect());
        figures.extend(figure.map(|f| Figure { precision: Some(precision), size: Some(n as u64), ..f }));
    }
    figures.extend(memory(vectors, threads, effort, &mut note));
    figures
}

fn memory(vectors: Vectors, threads: usize, effort: Effort, note: &mut impl FnMut(&str)) -> Vec<Figure> {
    let caches = caches();
    let last = caches.last().map_or(32 << 20, |c| c.1);
    // Four times the last cache, at most 1 GiB an array, at least 64 MiB.
    let each = usize::try_from((last * 4).clamp(64 << 20, 1 << 30)).unwrap_or(1 << 26) / 8 / threads;
    note("memory");
    let arrays: Vec<std::sync::Mutex<Arrays>> = std::thread::scope(|scope| {
        // Each thread touches its own part first, so that it lies near it.
        let made: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| Arrays { a: vec![1.0; each], b: vec![2.0; each], c: vec![0.5; each] }))
            .collect();
        made.into_iter().filter_map(|m| m.join().ok()).map(std::sync::Mutex::new).collect()
    });
    let mut figures = Vec::new();
    let bytes = (each * 8) as f64;
    let mut kernel = |what: &str, moved: f64, work: &(dyn Fn(&mut Arrays) + Sync)| {
        let sample = |_| {
            let (seconds, _) = together(arrays.len(), |t| {
                // Nobody else has this thread's part.
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
        note(&format!("cache, level {level}"));
        // Half of it, as the other half is used by others; the last is shared by all threads.
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
    fn figures_are_positive_and_caches_are_ordered() {
        let figures = run(Effort { samples: 1, matrix: 256 }, |_| {});
        assert!(figures.len() >= 8, "{figures:?}");
        assert!(figures.iter().all(|f| f.median > 0.0 && f.median.is_finite()));
        assert!(caches().is_sorted());
    }
}
