//! Matrix product benchmarks with cuBLAS, and with cuBLASLt for fp8 and fp4 (NVFP4: blocks of 16 numbers with a scale in UE4M3).

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use cudarc::cublas::{CudaBlas, result as cublas, sys as cublas_sys};
use cudarc::cublaslt::{result as lt, sys as lt_sys};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, PushKernelArg};

use super::{Effort, Figure, Gpu, Libraries, cuda};
use crate::GpuError;
use crate::sheet::Precision;

/// A matrix product that can be computed repeatedly with cuBLAS.
pub(crate) struct Product<'g> {
    stream: &'g Arc<CudaStream>,
    blas: CudaBlas,
    precision: Precision,
    /// m, n and k.
    sizes: (c_int, c_int, c_int),
    a: CudaSlice<u8>,
    b: CudaSlice<u8>,
    c: CudaSlice<u8>,
}

impl Product<'_> {
    /// Operations of one product; a multiply-add counts as two.
    pub(crate) fn operations(&self) -> f64 {
        let (m, n, k) = self.sizes;
        2.0 * f64::from(m) * f64::from(n) * f64::from(k)
    }

    /// The matrix with the result.
    pub(crate) fn result(&self) -> &CudaSlice<u8> {
        &self.c
    }

    /// Queues the product `repeat` times, without waiting for it.
    pub(crate) fn enqueue(&mut self, repeat: usize) -> Result<(), GpuError> {
        use cublas_sys::{cublasComputeType_t as Compute, cudaDataType as Type};
        let (from, to, compute) = match self.precision {
            Precision::Fp64 => (Type::CUDA_R_64F, Type::CUDA_R_64F, Compute::CUBLAS_COMPUTE_64F),
            Precision::Fp32 => (Type::CUDA_R_32F, Type::CUDA_R_32F, Compute::CUBLAS_COMPUTE_32F),
            Precision::Tf32 => (Type::CUDA_R_32F, Type::CUDA_R_32F, Compute::CUBLAS_COMPUTE_32F_FAST_TF32),
            Precision::Fp16 => (Type::CUDA_R_16F, Type::CUDA_R_16F, Compute::CUBLAS_COMPUTE_32F),
            Precision::Bf16 => (Type::CUDA_R_16BF, Type::CUDA_R_16BF, Compute::CUBLAS_COMPUTE_32F),
            _ => (Type::CUDA_R_8I, Type::CUDA_R_32I, Compute::CUBLAS_COMPUTE_32I),
        };
        let (m, n, k) = self.sizes;
        // The scalars one and zero in the type of the accumulator.
        let (one64, zero64, one32, zero32, one_int, zero_int) = (1.0f64, 0.0f64, 1.0f32, 0.0f32, 1i32, 0i32);
        let pointer = |x: &f64| std::ptr::from_ref(x).cast::<c_void>();
        let (alpha, beta): (*const c_void, *const c_void) = match self.precision {
            Precision::Fp64 => (pointer(&one64), pointer(&zero64)),
            Precision::Int8 => (std::ptr::from_ref(&one_int).cast(), std::ptr::from_ref(&zero_int).cast()),
            _ => (std::ptr::from_ref(&one32).cast(), std::ptr::from_ref(&zero32).cast()),
        };
        let (a, _guard_a) = self.a.device_ptr(self.stream);
        let (b, _guard_b) = self.b.device_ptr(self.stream);
        let (c, _guard_c) = self.c.device_ptr_mut(self.stream);
        for _ in 0..repeat {
            // SAFETY: a is k x m (transposed), b is k x n and c is m x n in the given types; the scalars outlive the call.
            unsafe {
                cublas::gemm_ex(
                    *self.blas.handle(),
                    cublas_sys::cublasOperation_t::CUBLAS_OP_T,
                    cublas_sys::cublasOperation_t::CUBLAS_OP_N,
                    m,
                    n,
                    k,
                    alpha,
                    a as *const c_void,
                    from,
                    k,
                    b as *const c_void,
                    from,
                    k,
                    beta,
                    c as *mut c_void,
                    to,
                    m,
                    compute,
                    cublas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
                )
            }
            .map_err(cuda)?;
        }
        Ok(())
    }
}

impl Gpu<'_> {
    pub(super) fn products(
        &self,
        effort: Effort,
        libraries: Libraries,
        progress: &mut impl FnMut(&str),
    ) -> Result<Vec<Figure>, GpuError> {
        let mut figures = Vec::new();
        for precision in Precision::ALL {
            let mut size = 1024;
            while size <= effort.matrix {
                progress(&format!("{}: matrix product, {precision}, {size} x {size}", self.label));
                let samples = match self.product(size, size, size, precision, effort.samples, libraries) {
                    Ok(samples) => samples,
                    Err(error) => {
                        progress(&format!("{}: skipping matrix products in {precision}: {error}", self.label));
                        break;
                    }
                };
                let unit = if precision == Precision::Int8 { "TOP/s" } else { "TFLOP/s" };
                // Small products cannot occupy the whole card, so only the largest is graded.
                let peak = self.card.as_ref().and_then(|c| Some((c.peak(precision)?.tera, c.achievable(precision))));
                let peak = peak.filter(|_| size * 2 > effort.matrix);
                let seconds = samples.into_iter().map(|rate| 1.0 / rate).collect();
                let figure = self.rate("gemm", unit, 1.0, seconds, peak);
                figures.extend(figure.map(|f| Figure { precision: Some(precision), size: Some(size as u64), ..f }));
                size *= 2;
            }
        }
        Ok(figures)
    }

    /// A device buffer of pseudo-random numbers.
    fn filled(&self, numbers: usize, precision: Precision) -> Result<CudaSlice<u8>, GpuError> {
        let bytes = (numbers as f64 * precision.bytes()).ceil() as usize;
        let mut data = self.stream.alloc_zeros::<u8>(bytes).map_err(cuda)?;
        let kind: i32 = match precision {
            Precision::Fp64 => 0,
            Precision::Fp32 | Precision::Tf32 => 1,
            Precision::Fp16 => 2,
            Precision::Bf16 => 3,
            Precision::Fp8 => 4,
            // Every byte holds two valid numbers of fp4 (E2M1).
            Precision::Int8 | Precision::Fp4 | Precision::Fp6 => 5,
        };
        if self.module.is_some() {
            let n = if kind == 5 { bytes as u64 } else { numbers as u64 };
            let fill = self.function("fill")?;
            // SAFETY: `data` holds n numbers of this kind.
            unsafe { self.stream.launch_builder(&fill).arg(&mut data).arg(&n).arg(&kind).launch(self.grid(8, 256)) }
                .map_err(cuda)?;
        }
        Ok(data)
    }

    /// Samples of the rate of m x n x k products in 10^12 operations per second.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] if the GPU or the libraries do not support the format; [`GpuError::Cuda`] if a call fails.
    pub(super) fn product(
        &self,
        m: usize,
        n: usize,
        k: usize,
        precision: Precision,
        count: usize,
        libraries: Libraries,
    ) -> Result<Vec<f64>, GpuError> {
        let capability = self.context.compute_capability().map_err(cuda)?;
        if let Some(reason) = obstacle(precision, capability, libraries.cublaslt) {
            return Err(GpuError::Invalid(reason));
        }
        let operations = 2.0 * (m as f64) * (n as f64) * (k as f64);
        // Repeat for about 20 ms at 100 TFLOP/s, so that the overhead of the events is negligible.
        let repeat = (2e12 / operations).ceil().clamp(1.0, 200.0) as usize;
        let seconds = if matches!(precision, Precision::Fp8 | Precision::Fp4) {
            let (a, b) = (self.filled(m * k, precision)?, self.filled(k * n, precision)?);
            let mut c = self.stream.alloc_zeros::<u8>(m * n * 2).map_err(cuda)?;
            self.product_lt(m, n, k, precision, &a, &b, &mut c, count, repeat)?
        } else {
            let mut product = self.prepare(m, n, k, precision)?;
            self.samples(count, || product.enqueue(repeat))?
        };
        Ok(seconds.into_iter().map(|s| operations * repeat as f64 / s / 1e12).collect())
    }

    /// Allocates and fills the matrices of an m x n x k product with cuBLAS; not for fp8 and smaller formats.
    pub(crate) fn prepare(&self, m: usize, n: usize, k: usize, precision: Precision) -> Result<Product<'_>, GpuError> {
        let int = |x: usize| c_int::try_from(x).map_err(|_| GpuError::Invalid("the matrix is too large".into()));
        let output_bytes = precision.bytes().max(if precision == Precision::Int8 { 4.0 } else { 2.0 }) as usize;
        Ok(Product {
            stream: &self.stream,
            blas: CudaBlas::new(Arc::clone(&self.stream)).map_err(cuda)?,
            precision,
            sizes: (int(m)?, int(n)?, int(k)?),
            a: self.filled(m * k, precision)?,
            b: self.filled(k * n, precision)?,
            c: self.stream.alloc_zeros::<u8>(m * n * output_bytes).map_err(cuda)?,
        })
    }

    /// Runs fp8 or fp4 products with cuBLASLt, which requires a transposed first matrix; the result is bf16. All block scales of fp4 are
    /// one, so their order in tiles of 128 x 4 does not matter (cuBLAS documentation, "1D Block Scaling Factors Layout").
    #[allow(clippy::too_many_arguments)] // the arguments are those of cuBLASLt
    fn product_lt(
        &self,
        m: usize,
        n: usize,
        k: usize,
        precision: Precision,
        a: &CudaSlice<u8>,
        b: &CudaSlice<u8>,
        c: &mut CudaSlice<u8>,
        count: usize,
        repeat: usize,
    ) -> Result<Vec<f64>, GpuError> {
        use lt_sys::cudaDataType as Type;
        const WORKSPACE_BYTES: usize = 64 << 20;
        let mut workspace = self.stream.alloc_zeros::<u8>(WORKSPACE_BYTES).map_err(cuda)?;
        let kind = if precision == Precision::Fp4 { Type::CUDA_R_4F_E2M1 } else { Type::CUDA_R_8F_E4M3 };
        let scales = match precision {
            Precision::Fp4 => {
                let ones = |rows: usize| self.stream.clone_htod(&vec![ONE_UE4M3; scale_count(rows, k)]).map_err(cuda);
                Some((ones(m)?, ones(n)?))
            }
            _ => None,
        };
        let handle = lt::create_handle().map_err(cuda)?;
        let size = |x: usize| i64::try_from(x).unwrap_or(i64::MAX);
        let result = (|| {
            let operation = lt::create_matmul_desc(lt_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, Type::CUDA_R_32F)
                .map_err(cuda)?;
            let transposed = 1i32; // CUBLAS_OP_T
            // SAFETY: this attribute is an int.
            unsafe {
                lt::set_matmul_desc_attribute(
                    operation,
                    lt_sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                    std::ptr::from_ref(&transposed).cast(),
                    size_of::<i32>(),
                )
                .map_err(cuda)?;
            }
            if let Some((of_a, of_b)) = &scales {
                self.set_block_scales(operation, of_a, of_b)?;
            }
            let layout_a = lt::create_matrix_layout(kind, k as u64, m as u64, size(k)).map_err(cuda)?;
            let layout_b = lt::create_matrix_layout(kind, k as u64, n as u64, size(k)).map_err(cuda)?;
            let layout_c = lt::create_matrix_layout(Type::CUDA_R_16BF, m as u64, n as u64, size(m)).map_err(cuda)?;
            let preference = lt::create_matmul_pref().map_err(cuda)?;
            // SAFETY: this attribute is a size_t; the handles were created above.
            let heuristic = unsafe {
                lt::set_matmul_pref_attribute(
                    preference,
                    lt_sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                    std::ptr::from_ref(&WORKSPACE_BYTES).cast(),
                    size_of::<usize>(),
                )
                .map_err(cuda)?;
                lt::get_matmul_algo_heuristic(handle, operation, layout_a, layout_b, layout_c, layout_c, preference)
                    .map_err(cuda)?
            };
            let (one, zero) = (1.0f32, 0.0f32);
            let samples = self.samples(count, || {
                let (a, _guard_a) = a.device_ptr(&self.stream);
                let (b, _guard_b) = b.device_ptr(&self.stream);
                let (c, _guard_c) = c.device_ptr_mut(&self.stream);
                let (space, _guard_w) = workspace.device_ptr_mut(&self.stream);
                for _ in 0..repeat {
                    // SAFETY: the matrices have the layouts above, and the workspace has the given size.
                    unsafe {
                        lt::matmul(
                            handle,
                            operation,
                            std::ptr::from_ref(&one).cast(),
                            std::ptr::from_ref(&zero).cast(),
                            a as *const c_void,
                            layout_a,
                            b as *const c_void,
                            layout_b,
                            c as *const c_void,
                            layout_c,
                            c as *mut c_void,
                            layout_c,
                            &heuristic.algo,
                            space as *mut c_void,
                            WORKSPACE_BYTES,
                            self.stream.cu_stream().cast(),
                        )
                    }
                    .map_err(cuda)?;
                }
                Ok(())
            });
            // SAFETY: the handles were created above and are not used afterwards.
            unsafe {
                let _ = lt::destroy_matmul_pref(preference);
                for layout in [layout_a, layout_b, layout_c] {
                    let _ = lt::destroy_matrix_layout(layout);
                }
                let _ = lt::destroy_matmul_desc(operation);
            }
            samples
        })();
        // SAFETY: the handle was created above and is not used afterwards.
        unsafe {
            let _ = lt::destroy_handle(handle);
        }
        result
    }

    /// Sets the scales of both factors, one for each 16 numbers of a row.
    fn set_block_scales(
        &self,
        operation: lt_sys::cublasLtMatmulDesc_t,
        of_a: &CudaSlice<u8>,
        of_b: &CudaSlice<u8>,
    ) -> Result<(), GpuError> {
        use lt_sys::cublasLtMatmulDescAttributes_t as Attribute;
        let mode = lt_sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3;
        for (scales, mode_of, pointer_of) in [
            (of_a, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER),
            (of_b, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER),
        ] {
            let (pointer, _guard) = scales.device_ptr(&self.stream);
            // SAFETY: the mode is an enum of 32 bits, and the pointer is the address of device memory, of 64 bits.
            unsafe {
                lt::set_matmul_desc_attribute(operation, mode_of, std::ptr::from_ref(&mode).cast(), size_of::<u32>())
                    .map_err(cuda)?;
                lt::set_matmul_desc_attribute(
                    operation,
                    pointer_of,
                    std::ptr::from_ref(&pointer).cast(),
                    size_of::<u64>(),
                )
                .map_err(cuda)?;
            }
        }
        Ok(())
    }
}

/// The number one in UE4M3: exponent bias 7, no sign.
const ONE_UE4M3: u8 = 7 << 3;

/// Number of scales of a matrix with rows of `k` numbers: one per 16 numbers, in whole tiles of 128 rows and 4 scales.
fn scale_count(rows: usize, k: usize) -> usize {
    rows.next_multiple_of(128) * k.div_ceil(16).next_multiple_of(4)
}

/// Why products in this format are not measured; `None` if they are.
fn obstacle(precision: Precision, capability: (i32, i32), has_cublaslt: bool) -> Option<String> {
    let needs = |least: (i32, i32), cards: &str| {
        let (major, minor) = capability;
        (capability < least).then(|| {
            format!(
                "{precision} needs compute capability {}.{} ({cards}), the GPU has {major}.{minor}",
                least.0, least.1
            )
        })
    };
    let without_library = || (!has_cublaslt).then(|| format!("{precision} needs cuBLASLt, which was not found"));
    match precision {
        Precision::Fp4 => needs((10, 0), "Blackwell").or_else(without_library),
        Precision::Fp6 => Some("cuBLASLt has no products in fp6".into()),
        Precision::Fp8 => needs((8, 9), "Ada, Hopper").or_else(without_library),
        Precision::Bf16 | Precision::Tf32 => needs((8, 0), "Ampere"),
        Precision::Int8 => needs((6, 1), "Pascal"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_that_the_gpu_lacks_are_explained() {
        let h200 = |precision| obstacle(precision, (9, 0), true);
        assert_eq!(h200(Precision::Fp4).unwrap(), "fp4 needs compute capability 10.0 (Blackwell), the GPU has 9.0");
        assert!(h200(Precision::Fp6).unwrap().contains("no products in fp6"));
        assert!(h200(Precision::Fp8).is_none() && h200(Precision::Bf16).is_none());
        for capability in [(10, 0), (10, 3), (12, 0)] {
            assert_eq!(obstacle(Precision::Fp4, capability, true), None);
        }
        assert!(obstacle(Precision::Fp4, (10, 0), false).unwrap().contains("cuBLASLt"));
        assert!(obstacle(Precision::Fp8, (8, 0), true).is_some());
    }

    /// A 256 x 256 matrix has 16 scales per row; one row of 32 numbers takes a tile.
    #[test]
    fn scales_fill_whole_tiles() {
        assert_eq!((scale_count(256, 256), scale_count(1, 32)), (256 * 16, 128 * 4));
        assert_eq!(ONE_UE4M3, 0x38);
    }
}
