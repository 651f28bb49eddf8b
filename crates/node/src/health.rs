//! Decides when a GPU is unhealthy and when it has recovered.
//!
//! A fault affects either a whole GPU, with all its MIG devices and replicas, or a single MIG device. It ends when the GPU responds,
//! the driver requires no recovery action, and no new error has occurred for the quiet period. Source for the meaning of the
//! XIDs: [`slipway_gpu::nvml::xid`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use slipway_gpu::nvml::xid::{APPLICATION_XIDS, Action, Effect, XIDS, Xid};
use slipway_gpu::nvml::{Event, Recovery};

/// A fault of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// Description, such as `XID 79`.
    pub reason: String,
    /// The XID, if the fault was reported by one.
    pub xid: Option<u64>,
    /// Short code for taints, such as `xid-79`, `lost`, `row-remap`, `reset-needed`, `fabric`.
    pub code: String,
    since: Instant,
    /// The energy counter in joules at the time of the fault. A GPU reset sets the counter back to zero, which reveals the reset.
    energy: Option<f64>,
    needs_reset: bool,
    /// The recovery action that the driver requires; `None` if it does not report any.
    recovery: Option<Recovery>,
}

impl Fault {
    /// Whether a reset of the GPU ends the fault: the driver requires one, or, where it requires nothing else, the table of XIDs does.
    pub fn is_mended_by_reset(&self) -> bool {
        match self.recovery {
            Some(Recovery::Reset | Recovery::DrainAndReset) => true,
            Some(Recovery::Reboot | Recovery::DrainPeers) => false,
            Some(Recovery::None) | None => {
                let known = self.xid.map(Xid::new);
                known.is_some_and(|xid| xid.effect == Effect::Gpu && xid.action == Action::ResetGpu)
            }
        }
    }
}

/// The health of a GPU at one poll.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// Whether the GPU has fallen off the bus.
    pub lost: bool,
    /// The recovery action that the driver requires; `None` if the driver does not report it.
    pub recovery: Option<Recovery>,
    /// Whether a memory row could not be remapped.
    pub remap_failed: bool,
    /// Why the GPU is not registered with its NVLink fabric; `None` if it is, or needs not be.
    pub fabric: Option<String>,
    /// Energy in joules since the driver was loaded or the GPU was reset.
    pub energy: Option<f64>,
}

/// Decides which XIDs are faults, and how long a GPU must be without errors to recover.
#[derive(Debug, Clone)]
pub struct Policy {
    /// XIDs that are not faults; by default [`APPLICATION_XIDS`], and those after which nothing is lost.
    pub ignored: BTreeSet<u64>,
    /// XIDs that are faults although all others are ignored; only used if `disabled` is set.
    pub enabled: BTreeSet<u64>,
    /// Whether all XIDs except `enabled` are ignored.
    pub disabled: bool,
    /// Period without errors after which a GPU counts as healthy again.
    pub quiet: Duration,
}

impl Policy {
    /// Creates a policy from NVIDIA's environment variables: `DP_DISABLE_HEALTHCHECKS` is `all`, `xids` or a comma-separated list of
    /// XIDs to ignore; `DP_ENABLE_HEALTHCHECKS` lists XIDs not to ignore, or is `all`, and takes precedence.
    pub fn from_variables(disable: Option<&str>, enable: Option<&str>, quiet: Duration) -> Self {
        let numbers = |text: Option<&str>| -> BTreeSet<u64> {
            text.unwrap_or_default().split(',').filter_map(|w| w.trim().parse().ok()).collect()
        };
        let all = |text: Option<&str>| {
            let words = text.unwrap_or_default().to_ascii_lowercase();
            words.split(',').any(|w| matches!(w.trim(), "all" | "xids"))
        };
        if all(enable) {
            return Self { ignored: BTreeSet::new(), enabled: BTreeSet::new(), disabled: false, quiet };
        }
        let enabled = numbers(enable);
        let harmless = XIDS.iter().filter(|x| x.effect == Effect::Nothing).map(|x| x.number);
        let ignored = APPLICATION_XIDS.iter().copied().chain(harmless).chain(numbers(disable));
        let ignored = ignored.filter(|xid| !enabled.contains(xid)).collect();
        Self { ignored, enabled, disabled: all(disable), quiet }
    }

    /// Whether an XID is a fault.
    fn is_fault(&self, xid: u64) -> bool {
        if self.disabled { self.enabled.contains(&xid) } else { !self.ignored.contains(&xid) }
    }
}

/// The faults of a node, keyed by device UUID.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Faults {
    found: BTreeMap<String, Fault>,
    /// The last XID of each GPU since the agent started, keyed by UUID.
    last: BTreeMap<String, u64>,
}

impl Faults {
    /// The fault of a device; `parent` is the GPU of a MIG device, whose fault takes precedence.
    pub fn fault(&self, uuid: &str, parent: Option<&str>) -> Option<&Fault> {
        parent.and_then(|p| self.found.get(p)).or_else(|| self.found.get(uuid))
    }

    /// The last XID of a GPU, or 0.
    pub fn last_xid(&self, gpu: &str) -> u64 {
        self.last.get(gpu).copied().unwrap_or(0)
    }

    /// All faults with their UUIDs.
    pub fn all(&self) -> impl Iterator<Item = (&String, &Fault)> {
        self.found.iter()
    }

    /// Records an XID of a GPU. `mig` is the affected MIG device, or `None` if the whole GPU is affected. Returns whether a fault
    /// was added.
    pub fn record_xid(
        &mut self,
        policy: &Policy,
        event: &Event,
        gpu: &str,
        mig: Option<&str>,
        energy: Option<f64>,
    ) -> bool {
        self.last.insert(gpu.to_owned(), event.data);
        if !policy.is_fault(event.data) {
            return false;
        }
        let known = Xid::new(event.data);
        let fault = Fault {
            reason: format!(
                "XID {}{}: {}",
                event.data,
                if mig.is_some() { " in this MIG device" } else { "" },
                known.meaning
            ),
            xid: Some(event.data),
            code: format!("xid-{}", event.data),
            since: Instant::now(),
            energy,
            needs_reset: known.needs_reset(),
            recovery: None,
        };
        self.found.insert(mig.unwrap_or(gpu).to_owned(), fault).is_none()
    }

    /// Updates the faults of a GPU and of its MIG devices (`devices`) from a reading. Returns whether a fault was added or removed.
    pub fn update(&mut self, policy: &Policy, gpu: &str, devices: &[&str], reading: &Reading) -> bool {
        let observed = match reading {
            Reading { lost: true, .. } => Some(("lost", "the GPU has fallen off the bus".to_owned(), true)),
            Reading { recovery: Some(Recovery::Reset | Recovery::DrainAndReset), .. } => {
                Some(("reset-needed", "the driver requires a GPU reset".into(), true))
            }
            Reading { recovery: Some(Recovery::Reboot), .. } => {
                Some(("reboot-needed", "the driver requires a node reboot".into(), true))
            }
            Reading { recovery: Some(Recovery::DrainPeers), .. } => {
                Some(("peers", "the driver requires jobs with peer-to-peer access to stop".into(), false))
            }
            Reading { remap_failed: true, .. } => {
                Some(("row-remap", "a memory row could not be remapped".into(), true))
            }
            Reading { fabric: Some(obstacle), .. } => Some(("fabric", obstacle.clone(), false)),
            _ => None,
        };
        if let Some((code, reason, needs_reset)) = observed {
            // Keep an earlier XID as the reason: it is more specific. The quiet period restarts with every bad reading.
            let fault = self.found.entry(gpu.to_owned()).or_insert_with(|| Fault {
                reason: String::new(),
                xid: None,
                code: String::new(),
                since: Instant::now(),
                energy: reading.energy,
                needs_reset,
                recovery: None,
            });
            fault.recovery = reading.recovery;
            fault.since = Instant::now();
            let new = fault.reason.is_empty();
            if new {
                fault.reason = reason;
                fault.code = code.to_owned();
            }
            return new;
        }
        if let Some(fault) = self.found.get_mut(gpu) {
            fault.recovery = reading.recovery;
        }
        let before = self.found.len();
        for uuid in devices.iter().copied().chain([gpu]) {
            let recovered = self.found.get(uuid).is_some_and(|fault| {
                let reset = match (fault.energy, reading.energy) {
                    (Some(then), Some(now)) => now < then,
                    _ => false,
                };
                // A driver that reports the recovery action also reports when a reset is still required.
                let reset_pending = fault.needs_reset && reading.recovery.is_none() && !reset && fault.code != "lost";
                !reset_pending && fault.since.elapsed() >= policy.quiet
            });
            if recovered {
                self.found.remove(uuid);
            }
        }
        self.found.len() != before
    }

    /// Records that a GPU was reset. Its fault ends after a quiet period, unless the driver still requires an action.
    pub fn reset(&mut self, gpu: &str) {
        if let Some(fault) = self.found.get_mut(gpu) {
            fault.needs_reset = false;
            fault.recovery = None;
            fault.since = Instant::now();
        }
    }

    /// Removes the faults of devices that no longer exist.
    pub fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.found.retain(|uuid, _| exists(uuid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(quiet: u64) -> Policy {
        Policy::from_variables(None, None, Duration::from_millis(quiet))
    }

    fn xid(number: u64) -> Event {
        Event { bus_id: String::new(), kind: 8, data: number, gpu_instance: None, compute_instance: None }
    }

    fn healthy() -> Reading {
        Reading { recovery: Some(Recovery::None), energy: Some(100.0), ..Reading::default() }
    }

    #[test]
    fn gpu_fault_affects_its_mig_devices() {
        let mut faults = Faults::default();
        assert!(faults.record_xid(&policy(0), &xid(79), "GPU-1", None, None));
        assert!(faults.fault("MIG-1", Some("GPU-1")).is_some() && faults.fault("GPU-1", None).is_some());
        assert!(faults.fault("MIG-2", Some("GPU-2")).is_none());
        faults.record_xid(&policy(0), &xid(94), "GPU-2", Some("MIG-2"), None);
        assert!(faults.fault("MIG-2", Some("GPU-2")).is_some() && faults.fault("MIG-3", Some("GPU-2")).is_none());
    }

    #[test]
    fn application_xids_are_ignored() {
        let mut faults = Faults::default();
        for number in APPLICATION_XIDS {
            assert!(!faults.record_xid(&policy(0), &xid(*number), "GPU-1", None, None));
        }
        assert_eq!(faults.last_xid("GPU-1"), 109);
        let strict = Policy::from_variables(Some("94"), Some("31"), Duration::ZERO);
        assert!(!faults.record_xid(&strict, &xid(94), "GPU-1", None, None));
        assert!(faults.record_xid(&strict, &xid(31), "GPU-1", None, None));
        let off = Policy::from_variables(Some("all"), None, Duration::ZERO);
        assert!(!faults.record_xid(&off, &xid(79), "GPU-2", None, None));
        let only = Policy::from_variables(Some("xids"), Some("79"), Duration::ZERO);
        assert!(faults.record_xid(&only, &xid(79), "GPU-3", None, None));
        assert!(!faults.record_xid(&only, &xid(48), "GPU-4", None, None));
        let every = Policy::from_variables(Some("all"), Some("all"), Duration::ZERO);
        assert!(faults.record_xid(&every, &xid(13), "GPU-5", None, None));
    }

    #[test]
    fn xids_after_which_nothing_is_lost_are_no_faults() {
        let mut faults = Faults::default();
        for number in [63, 92, 121, 154, 157] {
            assert!(!faults.record_xid(&policy(0), &xid(number), "GPU-1", None, None), "{number}");
        }
        for number in [46, 94, 119, 136, 140, 143, 145, 149, 150, 158, 999] {
            assert!(faults.record_xid(&policy(0), &xid(number), &format!("GPU-{number}"), None, None), "{number}");
        }
        assert!(faults.fault("GPU-149", None).unwrap().reason.contains("NVLink 5"));
    }

    #[test]
    fn gpu_recovers_after_quiet_period_without_pending_reset() {
        let mut faults = Faults::default();
        faults.record_xid(&policy(60_000), &xid(94), "GPU-1", None, Some(90.0));
        assert!(!faults.update(&policy(60_000), "GPU-1", &[], &healthy()), "the quiet period has not passed");
        let reset_required = Reading { recovery: Some(Recovery::Reset), ..healthy() };
        assert!(!faults.update(&policy(0), "GPU-1", &[], &reset_required) && faults.fault("GPU-1", None).is_some());
        assert!(faults.update(&policy(0), "GPU-1", &[], &healthy()) && faults.fault("GPU-1", None).is_none());
    }

    #[test]
    fn reset_is_detected_by_energy_counter_on_old_drivers() {
        let mut faults = Faults::default();
        faults.record_xid(&policy(0), &xid(48), "GPU-1", None, Some(90.0));
        let old = |energy| Reading { recovery: None, energy: Some(energy), ..Reading::default() };
        assert!(!faults.update(&policy(0), "GPU-1", &[], &old(95.0)));
        assert!(faults.update(&policy(0), "GPU-1", &[], &old(3.0)));
    }

    #[test]
    fn reset_mends_what_the_driver_or_the_table_says() {
        let mended = |number: Option<u64>, reading: &Reading| {
            let mut faults = Faults::default();
            if let Some(number) = number {
                faults.record_xid(&policy(60_000), &xid(number), "GPU-1", None, None);
            }
            faults.update(&policy(60_000), "GPU-1", &[], reading);
            faults.fault("GPU-1", None).unwrap().is_mended_by_reset()
        };
        let requires = |recovery| Reading { recovery: Some(recovery), ..healthy() };
        let old = Reading { recovery: None, ..healthy() };
        for number in [48, 62, 74, 95, 119, 143] {
            assert!(mended(Some(number), &old) && mended(Some(number), &healthy()), "{number}");
            assert!(!mended(Some(number), &requires(Recovery::Reboot)), "{number}");
        }
        for number in [54, 79, 94, 144, 167, 999] {
            assert!(!mended(Some(number), &old), "{number}");
        }
        assert!(mended(Some(144), &requires(Recovery::Reset)) && mended(None, &requires(Recovery::DrainAndReset)));
        assert!(!mended(None, &Reading { lost: true, ..Reading::default() }));
        assert!(!mended(None, &Reading { remap_failed: true, ..healthy() }));
        assert!(!mended(None, &requires(Recovery::DrainPeers)));
    }

    #[test]
    fn fault_ends_after_a_reset_of_the_agent_on_old_drivers() {
        let mut faults = Faults::default();
        faults.record_xid(&policy(0), &xid(48), "GPU-1", None, None);
        let old = Reading { recovery: None, ..healthy() };
        assert!(!faults.update(&policy(0), "GPU-1", &[], &old));
        faults.reset("GPU-1");
        assert!(faults.update(&policy(0), "GPU-1", &[], &old));
    }

    #[test]
    fn gpu_is_unhealthy_until_it_is_registered_with_its_fabric() {
        let mut faults = Faults::default();
        let waiting = Reading { fabric: Some("registration with the NVLink fabric in progress".into()), ..healthy() };
        assert!(faults.update(&policy(0), "GPU-1", &[], &waiting));
        let fault = faults.fault("GPU-1", None).unwrap();
        assert!(fault.code == "fabric" && fault.reason.contains("in progress"));
        assert!(faults.update(&policy(0), "GPU-1", &[], &healthy()) && faults.fault("GPU-1", None).is_none());
    }

    #[test]
    fn lost_gpu_recovers() {
        let mut faults = Faults::default();
        let lost = Reading { lost: true, ..Reading::default() };
        assert!(faults.update(&policy(0), "GPU-1", &[], &lost) && !faults.update(&policy(0), "GPU-1", &[], &lost));
        assert_eq!(faults.fault("GPU-1", None).unwrap().code, "lost");
        assert!(faults.update(&policy(0), "GPU-1", &[], &Reading::default()));
    }
}
