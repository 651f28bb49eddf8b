//! Offers NVIDIA's GPUs and MIG devices to the kubelet. [`servers`] has the protocol, which both vendors share.

mod answer;
mod preferred;
pub mod servers;

pub use answer::Roots;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tonic::Status;

use self::servers::{Offered, Servers};
use crate::config::Config;
use crate::driver::State;
use crate::kubelet::device_plugin as api;
use crate::resources::{Offer, offers};
use crate::{NodeError, mps};

/// What the responses need besides the machine.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of the MPS daemons.
    pub mps: mps::Root,
    /// Root folder of the driver's files.
    pub roots: Roots,
}

/// An offered resource, with the state and configuration that it was derived from.
#[derive(Debug, Clone)]
struct Nvidia {
    offer: Offer,
    machine: Arc<State>,
    config: Arc<Config>,
    settings: Arc<Settings>,
}

impl Offered for Nvidia {
    fn resource(&self) -> &str {
        &self.offer.resource
    }

    fn devices(&self) -> Vec<api::Device> {
        let device =
            |(id, unit): (String, &crate::resources::Unit)| servers::device(id, unit.fault.is_none(), unit.numa);
        self.offer.identifiers().into_iter().map(device).collect()
    }

    fn withdraw(&mut self) {
        for unit in &mut self.offer.units {
            unit.fault = Some("the driver is not available".into());
        }
    }

    fn preferred(&self, request: &api::ContainerPreferredAllocationRequest) -> Option<Vec<String>> {
        Some(preferred::choose(
            &self.offer,
            &self.machine.machine()?.topology,
            self.config.shared_policy,
            &request.available_device_i_ds,
            &request.must_include_device_i_ds,
            usize::try_from(request.allocation_size).unwrap_or(0),
        ))
    }

    fn allocate(&self, ids: &[String]) -> Result<api::ContainerAllocateResponse, Status> {
        let Some(machine) = self.machine.machine() else {
            return Err(Status::unavailable("the driver is not available"));
        };
        let Settings { mps, roots } = &*self.settings;
        let context = answer::Context { offer: &self.offer, machine, config: &self.config, mps, roots };
        // NVIDIA's device plugin also returns the status code `Unknown` for every error.
        answer::allocate(&context, ids).map_err(Status::unknown)
    }
}

/// Offers resources to the kubelet until its task is dropped.
#[derive(Debug)]
pub struct Plugin {
    /// The kubelet's folder of sockets, usually `/var/lib/kubelet/device-plugins`.
    pub folder: PathBuf,
    /// What the responses need besides the machine.
    pub settings: Settings,
    /// Notified whenever devices were allocated.
    pub handed_out: Arc<Notify>,
}

impl Plugin {
    /// Starts, updates and stops one server per resource as the driver state and the configuration change.
    ///
    /// # Errors
    /// If a server panicked.
    pub async fn run(
        self,
        mut states: watch::Receiver<Arc<State>>,
        mut configs: watch::Receiver<Arc<Config>>,
    ) -> Result<(), NodeError> {
        let settings = Arc::new(self.settings);
        let mut servers = Servers::new(self.folder, self.handed_out);
        let mut last_error = String::new();
        loop {
            let state = states.borrow_and_update().clone();
            let config = configs.borrow_and_update().clone();
            // Pods may hold devices of a missing driver, so keep the devices and mark them unhealthy until it returns.
            if let Some(machine) = state.machine() {
                let offers = offers(machine, &config).unwrap_or_else(|why| {
                    if why != last_error {
                        tracing::error!(%why, "the MIG strategy does not fit this node; offering no devices");
                    }
                    last_error = why;
                    Vec::new()
                });
                let offered = |offer| Nvidia {
                    offer,
                    machine: Arc::clone(&state),
                    config: Arc::clone(&config),
                    settings: Arc::clone(&settings),
                };
                servers.offer(offers.into_iter().map(offered).collect());
            } else {
                servers.withdraw();
            }
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return Ok(()) },
                changed = configs.changed() => if changed.is_err() { return Ok(()) },
                error = servers.failure() => return Err(error),
            }
        }
    }
}
