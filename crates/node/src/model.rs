//! Types about pods and devices that several modules share.

use std::collections::BTreeMap;

use serde::Serialize;
use slipway_gpu::inventory::MigDevice;
use slipway_gpu::mig::Instance;
use slipway_gpu::usage::Usage;

/// A container that holds a device, or a replica of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Holder {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// Resource name such as `nvidia.com/gpu`, or `claim:NAME` for a resource claim.
    pub resource: String,
    /// UUID of the device: `GPU-...` or `MIG-...`.
    pub device: String,
    /// Number of the replica, if the device is shared.
    pub replica: Option<u32>,
}

/// Whether a MIG device is in a GPU instance of the same GPU. GPU instances do not overlap, so their position identifies them; several devices
/// are in one instance if it is divided into compute instances.
pub(crate) fn is_in(device: &MigDevice, instance: &Instance) -> bool {
    instance.at.start == device.start && instance.at.size == device.size
}

/// All current holders with their usage.
pub type Held = BTreeMap<Holder, Usage>;
