//! The control file, with which a test changes the simulated machine while it runs. It is reloaded whenever it has changed.
//!
//! ```text
//! xid GPU NUMBER [INSTANCE]   an XID of the GPU, or of one of its MIG GPU instances
//! lost GPU                    the GPU falls off the bus
//! action GPU NUMBER           NVML's recovery action: 0 none, 1 reset, 2 reboot, 3 drain peers, 4 drain and reset
//! fabric GPU STATE            the registration with the NVLink fabric: not-started, in-progress, completed or failed
//! utilization GPU PERCENT     utilization of the GPU
//! unloaded                    the driver is not loaded; it forgets settings
//! hang FUNCTION               calls of this NVML function do not return
//! ```
//!
//! Removing a line undoes its effect. XIDs are counted, so `xid` lines may only be added.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::fixture::{FabricState, Xid};

const CONTROL_FILE_VARIABLE: &str = "SLIPWAY_FAKE_NVML_CONTROL";

#[derive(Debug, Default)]
pub(crate) struct Control {
    /// Modification time and size of the file when it was last loaded.
    version: Option<(SystemTime, u64)>,
    pub(crate) events: Vec<Xid>,
    pub(crate) lost: BTreeSet<usize>,
    pub(crate) actions: BTreeMap<usize, u32>,
    pub(crate) utilization: BTreeMap<usize, u32>,
    pub(crate) fabric: BTreeMap<usize, FabricState>,
    pub(crate) unloaded: bool,
    pub(crate) hanging: BTreeSet<String>,
}

impl Control {
    /// Reloads the file if it has changed.
    pub(crate) fn refresh(&mut self) {
        let Some(path) = std::env::var_os(CONTROL_FILE_VARIABLE) else { return };
        let version = std::fs::metadata(&path).and_then(|m| Ok((m.modified()?, m.len()))).ok();
        if version == self.version {
            return;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        *self = Self { version, ..Self::default() };
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |at: usize| words.get(at).and_then(|w| w.parse::<u32>().ok());
            let Some(gpu) = number(1).map(|n| n as usize) else {
                match words.as_slice() {
                    ["unloaded"] => self.unloaded = true,
                    ["hang", function] => drop(self.hanging.insert((*function).to_owned())),
                    _ => {}
                }
                continue;
            };
            match (words[0], number(2)) {
                ("xid", Some(xid)) => {
                    self.events.push(Xid { after_ms: 0, gpu, xid: xid.into(), instance: number(3) });
                }
                ("fabric", _) => {
                    if let Some(state) = words.get(2).and_then(|w| w.parse().ok()) {
                        self.fabric.insert(gpu, state);
                    }
                }
                ("lost", _) => {
                    self.lost.insert(gpu);
                }
                ("action", Some(action)) => {
                    self.actions.insert(gpu, action);
                }
                ("utilization", Some(percent)) => {
                    self.utilization.insert(gpu, percent);
                }
                _ => {}
            }
        }
    }
}
