//! What the agent's modules tell each other about pods and devices.

use std::collections::BTreeMap;

use serde::Serialize;
use slipway_gpu::usage::Use;

/// A container that holds a device, or a replica of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Holder {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container.
    pub container: String,
    /// `nvidia.com/gpu`, or the claim as `claim:NAME`.
    pub resource: String,
    /// `GPU-...` or `MIG-...`.
    pub device: String,
    /// Which replica of a shared device.
    pub replica: Option<u32>,
}

/// Who holds what, with how much it was used.
pub type Held = BTreeMap<Holder, Use>;
