//! Settings of GPUs as configuration: power limit, locked clocks, persistence, ECC and compute mode, with plan, apply and undo.
//!
//! A [plan](plan::Plan) compares the desired settings of a [file](file) with those of the cards. Before a setting is changed, its earlier
//! value is stored in a [record](record) on disk, so that it can be restored after a failure, a restart, or a `kill -9` at any moment.
//!
//! The driver forgets most settings when it is unloaded, and without persistence mode already when the last program closes the GPU. NVML
//! cannot report locked clocks; the record tells which were set since the driver was loaded.

pub mod apply;
pub mod file;
pub mod plan;
pub mod record;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use apply::apply;
pub use file::{Rule, parse};
pub use plan::{Card, Change, Plan, Scope, cards, plan};
pub use record::{Record, Store};
use slipway_core::gpu_settings::Clocks;
pub use slipway_core::gpu_settings::ComputeMode;

use crate::nvml::{Device, NvmlError, codes};

/// A setting of a GPU, in the order in which changes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Key {
    /// Whether the driver keeps the GPU initialized without clients.
    Persistence,
    /// Whether ECC is on after the next reset or reboot.
    Ecc,
    /// How many processes may use the GPU.
    ComputeMode,
    /// The power limit.
    PowerLimit,
    /// The range in which the graphics clock is locked.
    GraphicsClocks,
    /// The range in which the memory clock is locked.
    MemoryClocks,
}

impl Key {
    /// All settings.
    pub const ALL: [Self; 6] =
        [Self::Persistence, Self::Ecc, Self::ComputeMode, Self::PowerLimit, Self::GraphicsClocks, Self::MemoryClocks];

    /// The setting in the file, such as `lockedClocks.graphics`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Persistence => "persistence",
            Self::Ecc => "ecc",
            Self::ComputeMode => "computeMode",
            Self::PowerLimit => "powerLimit",
            Self::GraphicsClocks => "lockedClocks.graphics",
            Self::MemoryClocks => "lockedClocks.memory",
        }
    }

    /// What the driver assumes when it is loaded, if that is the same for all cards.
    fn initial(self) -> Option<Value> {
        match self {
            Self::GraphicsClocks => Some(Value::GraphicsClocks(None)),
            Self::MemoryClocks => Some(Value::MemoryClocks(None)),
            _ => None,
        }
    }
}

/// The value of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Value {
    /// See [`Key::Persistence`].
    Persistence(bool),
    /// See [`Key::Ecc`].
    Ecc(bool),
    /// See [`Key::ComputeMode`].
    ComputeMode(ComputeMode),
    /// In milliwatts.
    PowerLimit(u32),
    /// `None` if the graphics clock is not locked.
    GraphicsClocks(Option<Clocks>),
    /// `None` if the memory clock is not locked.
    MemoryClocks(Option<Clocks>),
}

/// Formats milliwatts as watts without needless digits.
pub(crate) fn watts(milliwatts: u32) -> String {
    format!("{} W", f64::from(milliwatts) / 1000.0)
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Persistence(on) | Self::Ecc(on) => f.write_str(if *on { "on" } else { "off" }),
            Self::ComputeMode(mode) => {
                let name = ComputeMode::NAMES.iter().find(|(_, m)| m == mode).map_or("", |(name, _)| name);
                f.write_str(name)
            }
            Self::PowerLimit(milliwatts) => f.write_str(&watts(*milliwatts)),
            Self::GraphicsClocks(Some(clocks)) | Self::MemoryClocks(Some(clocks)) => clocks.fmt(f),
            Self::GraphicsClocks(None) | Self::MemoryClocks(None) => f.write_str("not locked"),
        }
    }
}

impl Value {
    /// The setting that has this value.
    pub fn key(&self) -> Key {
        match self {
            Self::Persistence(_) => Key::Persistence,
            Self::Ecc(_) => Key::Ecc,
            Self::ComputeMode(_) => Key::ComputeMode,
            Self::PowerLimit(_) => Key::PowerLimit,
            Self::GraphicsClocks(_) => Key::GraphicsClocks,
            Self::MemoryClocks(_) => Key::MemoryClocks,
        }
    }

    /// Makes it the value of a GPU.
    fn write(&self, device: &Device<'_>) -> Result<(), NvmlError> {
        let range = |clocks: &Option<Clocks>| clocks.map(|c| (c.min, c.max));
        match self {
            Self::Persistence(on) => device.set_persistence(*on),
            Self::Ecc(on) => device.set_ecc(*on),
            Self::ComputeMode(mode) => device.set_compute_mode(mode.number()),
            Self::PowerLimit(milliwatts) => device.set_power_limit(*milliwatts),
            Self::GraphicsClocks(clocks) => device.lock_graphics_clocks(range(clocks)),
            Self::MemoryClocks(clocks) => device.lock_memory_clocks(range(clocks)),
        }
    }
}

/// Reads a setting of a GPU; `None` if the GPU does not have it, or if NVML cannot report it (locked clocks).
fn read(device: &Device<'_>, key: Key) -> Result<Option<Value>, NvmlError> {
    let value = match key {
        Key::Persistence => device.persistence().map(|mode| Value::Persistence(mode == 1)),
        Key::Ecc => device.ecc().map(|(_, pending)| Value::Ecc(pending)),
        Key::ComputeMode => device.compute_mode().map(|mode| Value::ComputeMode(ComputeMode::from_number(mode))),
        Key::PowerLimit => device.requested_power_limit().map(Value::PowerLimit),
        Key::GraphicsClocks | Key::MemoryClocks => return Ok(None),
    };
    match value {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.code, codes::NOT_SUPPORTED | codes::FUNCTION_NOT_FOUND) => Ok(None),
        Err(e) => Err(e),
    }
}
