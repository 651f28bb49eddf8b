//! Accelerators that programs other than runs hold, such as steps of pipelines. They share the machine with the runs of the executor.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::room::Demand;
use super::{Device, Inner, LocalProcesses, blocking, reconcile};
use crate::ExecError;

/// Interval at which a waiting program checks whether devices are free.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The leased devices by the name of their holder.
#[derive(Default)]
pub(super) struct Leases {
    held: Mutex<HashMap<String, Vec<Device>>>,
    /// Held while free devices are determined and given to a run or a program, so that no device is given away twice.
    pub(super) allocation: tokio::sync::Mutex<()>,
}

impl Leases {
    /// All devices that are held.
    pub(super) fn devices(&self) -> Vec<Device> {
        self.held.lock().values().flatten().cloned().collect()
    }
}

/// Devices that a program holds until this value is dropped.
#[must_use]
pub struct Lease {
    holder: String,
    devices: Vec<Device>,
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("holder", &self.holder).field("devices", &self.devices).finish_non_exhaustive()
    }
}

impl Lease {
    /// The devices.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.inner.leases.held.lock().remove(&self.holder);
        self.inner.changed.notify_one();
    }
}

impl LocalProcesses {
    /// Whether this machine has accelerators that runs can hold.
    ///
    /// # Errors
    /// [`ExecError::Io`] when the background task fails.
    pub async fn has_devices(&self) -> Result<bool, ExecError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || Ok(!inner.settings.accelerators.devices().is_empty())).await
    }

    /// Gives devices to a program, once they are free: for each name of a resource, such as `nvidia.com/gpu`, the number of devices. `holder`
    /// must be unique.
    ///
    /// # Errors
    /// [`ExecError::TooLarge`] if this machine has fewer devices.
    pub async fn lease(&self, holder: String, gpus: Vec<(String, u32)>) -> Result<Lease, ExecError> {
        let demand = Arc::new(Demand { processors: 0.0, bytes: 0.0, gpus });
        loop {
            let allocation = self.inner.leases.allocation.lock().await;
            let (inner, wanted) = (Arc::clone(&self.inner), Arc::clone(&demand));
            let chosen = blocking(move || {
                inner.capacity().check_fits(&wanted)?;
                let mut free = reconcile::free_capacity(&inner);
                // Negative amounts of processors and memory concern runs only.
                (free.processors, free.bytes) = (0.0, 0.0);
                Ok(free.shortfall(&wanted).is_empty().then(|| free.allocate(&wanted)))
            });
            if let Some(devices) = chosen.await? {
                return Ok(self.hold(holder, devices));
            }
            drop(allocation);
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Records that a program holds devices already: one that was started by an earlier process.
    pub fn hold(&self, holder: String, devices: Vec<Device>) -> Lease {
        self.inner.leases.held.lock().insert(holder.clone(), devices.clone());
        Lease { holder, devices, inner: Arc::clone(&self.inner) }
    }
}
