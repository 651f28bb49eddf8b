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
