//! Multi-instance GPUs (MIG): the instances that a card supports, their placement, and changes from one layout to another.

mod apply;
mod config;
mod families;
mod geometry;
mod name;
mod pack;
mod shape;
mod solve;

pub use apply::{Change, Desired, Layout, Plan, apply, export, layout, maps, plan};
pub use config::{Config, DeviceRule, Devices};
pub use families::families;
pub use geometry::{Geometry, Instance, Profile, name_gigabytes};
pub use name::{ProfileName, parse, show};
pub use pack::{Packing, pack};
pub use shape::{Shape, Shapes, fill, profiles, shapes};
pub use solve::{Placed, Used, explain, find_profile, place};

/// Name of the extended resource for whole GPUs.
pub const GPU_RESOURCE: &str = "nvidia.com/gpu";

/// Name of the extended resource for a MIG profile: `1g.10gb+me` is `nvidia.com/mig-1g.10gb.me` (k8s-device-plugin, MIG strategy `mixed`).
pub fn resource(profile: &str) -> String {
    format!("nvidia.com/mig-{}", name_part(profile))
}

/// A profile as part of a resource or label name, which cannot contain a plus sign: `1g.10gb+me` becomes `1g.10gb.me`.
pub fn name_part(profile: &str) -> String {
    profile.replace('+', ".")
}
