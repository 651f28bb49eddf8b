//! Multi-instance GPUs: what a card offers, where instances go, and how one layout becomes another.

mod apply;
mod config;
mod geometry;
mod pack;
mod solve;

pub use apply::{Change, Layout, Plan, Wanted, apply, export, layout, maps, plan};
pub use config::{Config, DeviceRule, Devices};
pub use geometry::{Geometry, Instance, Profile, families, name_gigabytes};
pub use pack::{Packing, pack};
pub use solve::{Placed, Used, explain, known, parse, place, show};

/// The extended resource of whole GPUs.
pub const GPU_RESOURCE: &str = "nvidia.com/gpu";

/// The extended resource of a MIG profile: `1g.10gb+me` is `nvidia.com/mig-1g.10gb.me` (k8s-device-plugin, MIG strategy `mixed`).
pub fn resource(profile: &str) -> String {
    format!("nvidia.com/mig-{}", plain(profile))
}

/// A profile in names of resources and labels, which have no plus sign: `1g.10gb.me`.
pub fn plain(profile: &str) -> String {
    profile.replace('+', ".")
}
