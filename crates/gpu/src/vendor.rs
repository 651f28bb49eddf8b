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
    if fixture.is_some_and(is_amd) {
        return Ok(Box::new(Amd::open_for(fixture)?));
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

/// The GPUs of AMD on a machine whose `first` inventory, of [`find`], is that of NVIDIA; `None` if it has none.
pub fn second(fixture: Option<&str>, first: &Result<Inventory, GpuError>) -> Option<Inventory> {
    let of_nvidia = first.as_ref().is_ok_and(|inventory| !inventory.nvml.is_empty());
    let amd = (fixture.is_none() && of_nvidia).then(Amd::find)?.ok()?;
    amd.inventory().ok().filter(|inventory| !inventory.gpus.is_empty())
}
