//! The seam between the vendors of GPUs: what every vendor's management library can report.

use crate::GpuError;
use crate::amd::{self, Amd};
use crate::inventory::Inventory;
use crate::nvml::Nvml;

/// The management library of a vendor.
pub trait Vendor {
    /// Whether these are simulated GPUs.
    fn is_simulated(&self) -> bool;

    /// Reads all GPUs. Errors of a single GPU become findings of that GPU.
    ///
    /// # Errors
    /// [`GpuError`] if the GPUs cannot be counted.
    fn inventory(&self) -> Result<Inventory, GpuError>;
}

impl Vendor for Nvml {
    fn is_simulated(&self) -> bool {
        self.is_simulated()
    }

    fn inventory(&self) -> Result<Inventory, GpuError> {
        Inventory::collect(self)
    }
}

impl Vendor for Amd {
    fn is_simulated(&self) -> bool {
        self.is_simulated()
    }

    fn inventory(&self) -> Result<Inventory, GpuError> {
        self.inventory()
    }
}

/// Whether a fixture simulates GPUs of AMD.
pub fn is_amd(fixture: &str) -> bool {
    amd::simulator_of(fixture).is_some()
}

/// Opens the library of the machine's GPUs: NVIDIA's, else AMD's. A fixture is one of either vendor.
///
/// # Errors
/// As [`Nvml::find`] and [`Amd::open_simulator`]. On a machine without either library the error is that of NVIDIA's.
pub fn find(fixture: Option<&str>) -> Result<Box<dyn Vendor>, GpuError> {
    if let Some(fixture) = fixture
        && let Some(simulator) = amd::simulator_of(fixture)
    {
        return Ok(Box::new(Amd::open_simulator(simulator, fixture)?));
    }
    match Nvml::find(fixture) {
        Ok(nvml) => Ok(Box::new(nvml)),
        Err(error @ GpuError::NoNvml { .. }) if fixture.is_none() => match Amd::find() {
            Ok(amd) => Ok(Box::new(amd)),
            Err(GpuError::NoAmdSmi { .. }) => Err(error),
            Err(other) => Err(other),
        },
        Err(error) => Err(error),
    }
}
