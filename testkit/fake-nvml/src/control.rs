//! What a test does to the machine while it runs: a file of lines, read again whenever it has changed.
//!
//! ```text
//! xid GPU NUMBER [INSTANCE]   an error happens, to the whole GPU or to one of its MIG GPU instances
//! lost GPU                    the GPU falls off the bus
//! action GPU NUMBER           NVML's recovery action: 0 none, 1 reset, 2 reboot, 3 drain peers, 4 drain and reset
//! utilization GPU PERCENT     how busy it is
//! unloaded                    the driver is gone
//! ```
//!
//! A line that is taken out again undoes what it did; XIDs are counted, so they are only ever added.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::fixture::Xid;

const CONTROL: &str = "SLIPWAY_FAKE_NVML_CONTROL";

#[derive(Debug, Default)]
pub(crate) struct Control {
    read: Option<(SystemTime, u64)>,
    pub(crate) events: Vec<Xid>,
    pub(crate) lost: BTreeSet<usize>,
    pub(crate) actions: BTreeMap<usize, u32>,
    pub(crate) utilization: BTreeMap<usize, u32>,
    pub(crate) unloaded: bool,
}

impl Control {
    /// Reads the file where it has changed.
    pub(crate) fn refresh(&mut self) {
        let Some(path) = std::env::var_os(CONTROL) else { return };
        let now = std::fs::metadata(&path).and_then(|m| Ok((m.modified()?, m.len()))).ok();
        if now == self.read {
            return;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        *self = Self { read: now, ..Self::default() };
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |at: usize| words.get(at).and_then(|w| w.parse::<u32>().ok());
            let Some(gpu) = number(1).map(|n| n as usize) else {
                self.unloaded |= words == ["unloaded"];
                continue;
            };
            match (words[0], number(2)) {
                ("xid", Some(xid)) => {
                    self.events.push(Xid { after_ms: 0, gpu, xid: xid.into(), instance: number(3) });
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
