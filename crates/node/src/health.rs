//! When a GPU is sick, and when it is well again.
//!
//! A fault is about a whole GPU, and then about everything cut from it: every MIG device, every replica; or about one MIG device.
//! It ends when the GPU answers, the driver asks for nothing, and nothing new has happened for a while. Source of the XIDs'
//! meanings: NVIDIA, "XID Errors" (GPU deployment and management documentation).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use slipway_gpu::nvml::{Event, Recovery};

/// XIDs that a program's own mistakes cause; the GPU goes on working. NVIDIA's device plugin passes over the same.
pub const OF_PROGRAMS: &[u64] = &[13, 31, 43, 45, 68, 109];
/// XIDs after which the GPU needs a reset, for drivers that do not tell what they need.
const NEED_RESET: &[u64] = &[46, 48, 62, 64, 74, 79, 95, 110, 119, 120, 136, 140, 143, 155, 156];

/// What is wrong with a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// In words, with the XID if there was one.
    pub reason: String,
    /// The XID, if one told of it.
    pub xid: Option<u64>,
    /// A short word for taints and metrics: `xid-79`, `lost`, `row-remap`, `reset-needed`.
    pub code: String,
    since: Instant,
    /// The energy counter when it happened; it starts again when the GPU is reset.
    energy: Option<f64>,
    needs_reset: bool,
}

/// How a GPU does at one look.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// It has fallen off the bus, or does not answer.
    pub lost: bool,
    /// What the driver asks for; `None` where it does not tell.
    pub recovery: Option<Recovery>,
    /// A memory row could not be remapped.
    pub remap_failed: bool,
    /// Joules since the driver was loaded or the GPU reset.
    pub energy: Option<f64>,
}

/// Which XIDs count, and how long a GPU must be quiet.
#[derive(Debug, Clone)]
pub struct Policy {
    /// XIDs that are passed over besides [`OF_PROGRAMS`].
    pub ignored: BTreeSet<u64>,
    /// No XID counts.
    pub disabled: bool,
    /// How long nothing must have happened before a GPU counts as well again.
    pub quiet: Duration,
}

impl Policy {
    /// From NVIDIA's variables: `DP_DISABLE_HEALTHCHECKS` is `all`, `xids`, or XIDs with commas between them;
    /// `DP_ENABLE_HEALTHCHECKS` takes XIDs out of those passed over.
    pub fn from_variables(disable: Option<&str>, enable: Option<&str>, quiet: Duration) -> Self {
        let numbers = |text: Option<&str>| -> BTreeSet<u64> {
            text.unwrap_or_default().split(',').filter_map(|w| w.trim().parse().ok()).collect()
        };
        let words = disable.unwrap_or_default().to_ascii_lowercase();
        let disabled = words.split(',').any(|w| matches!(w.trim(), "all" | "xids"));
        let mut ignored: BTreeSet<u64> = OF_PROGRAMS.iter().copied().chain(numbers(disable)).collect();
        for xid in numbers(enable) {
            ignored.remove(&xid);
        }
        Self { ignored, disabled, quiet }
    }
}

/// The faults of a node, by UUID.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Faults {
    found: BTreeMap<String, Fault>,
    /// The last XID of each GPU since the agent started.
    last: BTreeMap<String, u64>,
}

impl Faults {
    /// What is wrong with a device; `parent` is the GPU that a MIG device is cut from.
    pub fn of(&self, uuid: &str, parent: Option<&str>) -> Option<&Fault> {
        parent.and_then(|p| self.found.get(p)).or_else(|| self.found.get(uuid))
    }

    /// The last XID of a GPU, 0 when there was none.
    pub fn last_xid(&self, gpu: &str) -> u64 {
        self.last.get(gpu).copied().unwrap_or(0)
    }

    /// All faults, by UUID.
    pub fn all(&self) -> impl Iterator<Item = (&String, &Fault)> {
        self.found.iter()
    }

    /// An XID was reported. `gpu` is its GPU, `mig` the MIG device it is about, if it is about one alone.
    /// Answers whether anything changed.
    pub fn xid(&mut self, policy: &Policy, event: &Event, gpu: &str, mig: Option<&str>, energy: Option<f64>) -> bool {
        self.last.insert(gpu.to_owned(), event.data);
        if policy.disabled || policy.ignored.contains(&event.data) {
            return false;
        }
        let fault = Fault {
            reason: format!("XID {}{}", event.data, if mig.is_some() { " in this MIG device" } else { "" }),
            xid: Some(event.data),
            code: format!("xid-{}", event.data),
            since: Instant::now(),
            energy,
            needs_reset: NEED_RESET.contains(&event.data),
        };
        self.found.insert(mig.unwrap_or(gpu).to_owned(), fault).is_none()
    }

    /// A look at a GPU: faults that it shows begin, those that are over end. `devices` are the MIG devices of it.
    /// Answers whether anything changed.
    pub fn look(&mut self, policy: &Policy, gpu: &str, devices: &[&str], reading: &Reading) -> bool {
        let seen = match reading {
            Reading { lost: true, .. } => Some(("lost", "the GPU has fallen off the bus".to_owned(), true)),
            Reading { recovery: Some(Recovery::Reset | Recovery::DrainAndReset), .. } => {
                Some(("reset-needed", "the driver asks for a reset of the GPU".into(), true))
            }
            Reading { recovery: Some(Recovery::Reboot), .. } => {
                Some(("reboot-needed", "the driver asks for a reboot of the node".into(), true))
            }
            Reading { recovery: Some(Recovery::DrainPeers), .. } => {
                Some(("peers", "the driver asks for work with peers to end".into(), false))
            }
            Reading { remap_failed: true, .. } => {
                Some(("row-remap", "a memory row could not be remapped".into(), true))
            }
            _ => None,
        };
        if let Some((code, reason, needs_reset)) = seen {
            // An XID that came before says more than the state that it left; its time of quiet starts when this ends.
            let known = self.found.entry(gpu.to_owned()).or_insert_with(|| Fault {
                reason: String::new(),
                xid: None,
                code: String::new(),
                since: Instant::now(),
                energy: reading.energy,
                needs_reset,
            });
            known.since = Instant::now();
            let new = known.reason.is_empty();
            if new {
                known.reason = reason;
                known.code = code.to_owned();
            }
            return new;
        }
        let before = self.found.len();
        for uuid in devices.iter().copied().chain([gpu]) {
            let over = self.found.get(uuid).is_some_and(|fault| {
                let reset = match (fault.energy, reading.energy) {
                    (Some(then), Some(now)) => now < then,
                    _ => false,
                };
                // A driver that tells says itself when a reset is still owed.
                let owed = fault.needs_reset && reading.recovery.is_none() && !reset && fault.code != "lost";
                !owed && fault.since.elapsed() >= policy.quiet
            });
            if over {
                self.found.remove(uuid);
            }
        }
        self.found.len() != before
    }

    /// Faults of MIG devices that are there no more end with them.
    pub fn keep(&mut self, there: impl Fn(&str) -> bool) {
        self.found.retain(|uuid, _| there(uuid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(quiet: u64) -> Policy {
        Policy::from_variables(None, None, Duration::from_millis(quiet))
    }

    fn xid(number: u64) -> Event {
        Event { bus_id: String::new(), kind: 8, data: number, gpu_instance: None }
    }

    fn well() -> Reading {
        Reading { recovery: Some(Recovery::None), energy: Some(100.0), ..Reading::default() }
    }

    #[test]
    fn a_fault_of_the_gpu_is_one_of_everything_cut_from_it() {
        let mut faults = Faults::default();
        assert!(faults.xid(&policy(0), &xid(79), "GPU-1", None, None));
        assert!(faults.of("MIG-1", Some("GPU-1")).is_some() && faults.of("GPU-1", None).is_some());
        assert!(faults.of("MIG-2", Some("GPU-2")).is_none());
        faults.xid(&policy(0), &xid(94), "GPU-2", Some("MIG-2"), None);
        assert!(faults.of("MIG-2", Some("GPU-2")).is_some() && faults.of("MIG-3", Some("GPU-2")).is_none());
    }

    #[test]
    fn programs_mistakes_are_passed_over() {
        let mut faults = Faults::default();
        for number in OF_PROGRAMS {
            assert!(!faults.xid(&policy(0), &xid(*number), "GPU-1", None, None));
        }
        assert_eq!(faults.last_xid("GPU-1"), 109);
        let strict = Policy::from_variables(Some("94"), Some("31"), Duration::ZERO);
        assert!(!faults.xid(&strict, &xid(94), "GPU-1", None, None));
        assert!(faults.xid(&strict, &xid(31), "GPU-1", None, None));
        let off = Policy::from_variables(Some("all"), None, Duration::ZERO);
        assert!(!faults.xid(&off, &xid(79), "GPU-2", None, None));
    }

    #[test]
    fn it_recovers_when_it_is_quiet_and_nothing_is_owed() {
        let mut faults = Faults::default();
        faults.xid(&policy(60_000), &xid(94), "GPU-1", None, Some(90.0));
        assert!(!faults.look(&policy(60_000), "GPU-1", &[], &well()), "not quiet for long enough");
        let asks = Reading { recovery: Some(Recovery::Reset), ..well() };
        assert!(!faults.look(&policy(0), "GPU-1", &[], &asks) && faults.of("GPU-1", None).is_some());
        assert!(faults.look(&policy(0), "GPU-1", &[], &well()) && faults.of("GPU-1", None).is_none());
    }

    #[test]
    fn an_old_driver_shows_a_reset_by_its_energy_counter() {
        let mut faults = Faults::default();
        faults.xid(&policy(0), &xid(48), "GPU-1", None, Some(90.0));
        let old = |energy| Reading { recovery: None, energy: Some(energy), ..Reading::default() };
        assert!(!faults.look(&policy(0), "GPU-1", &[], &old(95.0)));
        assert!(faults.look(&policy(0), "GPU-1", &[], &old(3.0)));
    }

    #[test]
    fn a_lost_gpu_comes_back() {
        let mut faults = Faults::default();
        let lost = Reading { lost: true, ..Reading::default() };
        assert!(faults.look(&policy(0), "GPU-1", &[], &lost) && !faults.look(&policy(0), "GPU-1", &[], &lost));
        assert_eq!(faults.of("GPU-1", None).unwrap().code, "lost");
        assert!(faults.look(&policy(0), "GPU-1", &[], &Reading::default()));
    }
}
