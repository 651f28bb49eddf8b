//! The error type of this crate.

use std::path::PathBuf;

use slipway_core::Explain;

use crate::nvml::NvmlError;

/// An error from NVML, AMD SMI, CUDA, a benchmark, a change of MIG or settings, or a file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the error messages describe the variants
pub enum GpuError {
    #[error("NVML cannot be loaded from {path}: {reason}")]
    NoNvml { path: PathBuf, reason: String },
    #[error("AMD SMI cannot be loaded from {path}: {reason}")]
    NoAmdSmi { path: PathBuf, reason: String },
    #[error(transparent)]
    Amd(#[from] crate::amd::AmdError),
    #[error(transparent)]
    Nvml(#[from] NvmlError),
    #[error("there is no NVIDIA GPU in this machine")]
    NoGpu,
    #[error("CUDA: {0}")]
    Cuda(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{0}")]
    Impossible(String),
    #[error("{0}")]
    InUse(String),
    #[error("the MIG layout could not be changed: {reason}; {state}")]
    Apply { reason: String, state: String },
    #[error("the settings of the GPUs could not be changed: {reason}; {state}")]
    Settings { reason: String, state: String },
    #[error("the GPUs could not be reset: {0}")]
    Reset(String),
    #[error(transparent)]
    Store(#[from] slipway_store::StoreError),
}

impl GpuError {
    /// Wraps an I/O error; `what` is the path or the step that failed.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl Explain for GpuError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoNvml { .. } => "gpu.no_nvml",
            Self::NoAmdSmi { .. } => "gpu.no_amd_smi",
            Self::Amd(_) => "gpu.amd_smi",
            Self::Nvml(_) => "gpu.nvml",
            Self::NoGpu => "gpu.none",
            // Error 802 of CUDA: the GPU waits for its NVLink fabric.
            Self::Cuda(text) if text.contains("CUDA_ERROR_SYSTEM_NOT_READY") => "gpu.fabric",
            Self::Cuda(_) => "gpu.cuda",
            Self::Invalid(_) => "gpu.invalid",
            Self::Io { .. } => "gpu.io",
            Self::Impossible(_) => "gpu.mig_impossible",
            Self::InUse(_) => "gpu.in_use",
            Self::Apply { .. } => "gpu.mig_apply",
            Self::Settings { .. } => "gpu.settings",
            Self::Reset(_) => "gpu.reset",
            Self::Store(e) => e.code(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_802_of_cuda_is_explained_by_the_fabric() {
        let code = |text: &str| GpuError::Cuda(text.into()).code();
        assert_eq!(code("DriverError(CUDA_ERROR_SYSTEM_NOT_READY, \"system not yet initialized\")"), "gpu.fabric");
        assert_eq!(code("DriverError(CUDA_ERROR_NO_DEVICE, \"no CUDA-capable device is detected\")"), "gpu.cuda");
    }
}
