//! The functions as a table, for a program that links this crate. It has every function that slipway calls, or it does not compile.

use slipway_gpu::nvml::{Functions, Simulator};

use crate::mig::*;
use crate::settings::*;
use crate::*;

macro_rules! table {
    ($($name:ident($($argument:ty),*);)*) => {
        const FUNCTIONS: Functions =
            Functions { $($name: Some($name),)* slipwayFakeFixture: Some(slipwayFakeFixture) };
    };
}

slipway_gpu::nvml_functions!(table);

/// The simulator for [`slipway_gpu::nvml::set_simulator`].
pub const fn simulator() -> Simulator {
    // SAFETY: the functions implement nvml.h; every other requirement is checked.
    unsafe { Simulator::new(FUNCTIONS) }
}
