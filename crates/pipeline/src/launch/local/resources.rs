//! Processors, memory and accelerators of this machine, which steps occupy while they execute. A step without settings occupies one slot; a
//! step that asks for more than the machine has fails at once.

use serde::{Deserialize, Serialize};
use slipway_exec::local::{Capacity, Device, Lease, environment};
use slipway_exec::manifest::Resources;
use slipway_exec::{ExecError, LocalProcesses};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use super::attempt::Attempt;
use crate::platform;

/// Unit in which memory is given to steps.
const MEMORY_UNIT: f64 = 1048576.0;
/// The file with what a started attempt occupies.
const RECORD: &str = "resources.json";

/// What a step asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Demand {
    /// Slots, one for each processor.
    slots: u32,
    /// Memory in MiB.
    memory: u32,
    /// Names of accelerators, and the number of each.
    accelerators: Vec<(String, u32)>,
}

impl Demand {
    pub(super) fn new(resources: &Resources) -> Self {
        let whole = |amount: f64| amount.ceil().clamp(0.0, f64::from(u32::MAX)) as u32;
        let amount = |name: &str, unit: f64| whole(resources.amount(name).unwrap_or(0.0) / unit);
        let accelerators = platform::accelerators(resources);
        Self { slots: amount("cpu", 1.0).max(1), memory: amount("memory", MEMORY_UNIT), accelerators }
    }

    /// Whether one slot is enough.
    pub(super) fn is_plain(&self) -> bool {
        self.slots <= 1 && self.memory == 0 && self.accelerators.is_empty()
    }
}

/// What an attempt occupies, until it is dropped.
#[derive(Debug)]
pub(super) struct Occupied<'a> {
    _slots: Option<SemaphorePermit<'a>>,
    _memory: Option<SemaphorePermit<'a>>,
    lease: Option<Lease>,
}

impl Occupied<'_> {
    /// The accelerators of the step.
    pub(super) fn devices(&self) -> &[Device] {
        self.lease.as_ref().map_or(&[], Lease::devices)
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    slots: u32,
    memory: u32,
    devices: Vec<Device>,
}

/// The resources of this machine.
#[derive(Debug)]
pub(super) struct Room {
    total: Capacity,
    slot_count: u32,
    slots: Semaphore,
    memory: Semaphore,
    /// The executor of runs, with which steps share the accelerators.
    runs: Option<LocalProcesses>,
    has_accelerators: OnceCell<bool>,
}

impl Room {
    /// `slot_count` is the number of steps without settings that execute at the same time.
    pub(super) fn new(slot_count: usize, runs: Option<LocalProcesses>) -> Self {
        let total = Capacity::detect();
        let slot_count = u32::try_from(slot_count.max(1)).unwrap_or(u32::MAX);
        let slots = Semaphore::new(slot_count as usize);
        let memory = Semaphore::new((total.bytes / MEMORY_UNIT) as usize);
        Self { total, slot_count, slots, memory, runs, has_accelerators: OnceCell::new() }
    }

    /// One slot, if there is one now.
    pub(super) fn try_slot(&self) -> Option<Occupied<'_>> {
        let permit = self.slots.try_acquire().ok()?;
        Some(Occupied { _slots: Some(permit), _memory: None, lease: None })
    }

    /// Occupies what a step asks for, once it is free, and records it for a later process.
    ///
    /// # Errors
    /// Why the step can never get it.
    pub(super) async fn occupy(&self, demand: &Demand, attempt: &Attempt) -> Result<Occupied<'_>, String> {
        if demand.is_plain() {
            let permit = self.slots.acquire().await.ok(); // the semaphore is never closed
            return Ok(Occupied { _slots: permit, _memory: None, lease: None });
        }
        let mut missing = Vec::new();
        if f64::from(demand.slots) > self.total.processors.max(f64::from(self.slot_count)) {
            missing.push(format!("{} processors ({} available)", demand.slots, self.total.processors));
        }
        let memory = (self.total.bytes / MEMORY_UNIT) as u32;
        if demand.memory > memory {
            missing.push(format!("{} MiB of memory ({memory} MiB available)", demand.memory));
        }
        let needs =
            |what: &str| format!("the step needs {what}; set less in the pipeline, or run it on a larger machine");
        if !missing.is_empty() {
            return Err(needs(&missing.join(" and ")));
        }
        // All steps wait in this order, so none waits for another that waits for it.
        let lease = match (&self.runs, demand.accelerators.as_slice()) {
            (_, []) => None,
            (Some(runs), wanted) => {
                let leased = runs.lease(attempt.folder.display().to_string(), wanted.to_vec()).await;
                Some(leased.map_err(|error| match error {
                    ExecError::TooLarge(reason) => needs(reason.trim_start_matches("the run needs ")),
                    other => other.to_string(),
                })?)
            }
            (None, [(name, count), ..]) => return Err(needs(&format!("{count} {name} (0 available)"))),
        };
        let slots = demand.slots.min(self.slot_count);
        let record = Record {
            slots,
            memory: demand.memory,
            devices: lease.as_ref().map_or(Vec::new(), |lease| lease.devices().to_vec()),
        };
        let memory = self.memory.acquire_many(demand.memory).await.ok();
        let permit = self.slots.acquire_many(slots).await.ok();
        let text = serde_json::to_vec(&record).map_err(|error| error.to_string())?;
        attempt.write(RECORD, &text).map_err(|error| format!("recording the resources of the step: {error}"))?;
        Ok(Occupied { _slots: permit, _memory: memory, lease })
    }

    /// Occupies what an attempt has that an earlier process started, as far as it is free.
    pub(super) fn occupy_again(&self, attempt: &Attempt) -> Occupied<'_> {
        let record: Option<Record> =
            std::fs::read(attempt.path(RECORD)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let Record { slots, memory, devices } = record.unwrap_or(Record { slots: 1, ..Record::default() });
        let lease = match &self.runs {
            Some(runs) if !devices.is_empty() => Some(runs.hold(attempt.folder.display().to_string(), devices)),
            _ => None,
        };
        let (slots, memory) = (self.slots.try_acquire_many(slots).ok(), self.memory.try_acquire_many(memory).ok());
        Occupied { _slots: slots, _memory: memory, lease }
    }

    /// The variables with which a program sees only its accelerators, as in a pod.
    pub(super) async fn variables(&self, occupied: &Occupied<'_>) -> Vec<(String, String)> {
        let Some(runs) = &self.runs else { return Vec::new() };
        let found = self.has_accelerators.get_or_try_init(|| runs.has_devices()).await;
        if *found.unwrap_or(&false) { environment::of_devices(occupied.devices()) } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(text: &str) -> Resources {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn demands_are_rounded_up_and_products_are_gpus() {
        let demand = Demand::new(&resources(r#"{"limits": {"cpu": "1500m", "memory": "1G", "NVIDIA_TESLA_T4": "2"}}"#));
        let expected = Demand { slots: 2, memory: 954, accelerators: vec![("nvidia.com/gpu".into(), 2)] };
        assert_eq!(demand, expected);
        assert!(Demand::new(&resources(r#"{"limits": {"cpu": "500m"}}"#)).is_plain());
        let tpu = Demand::new(&resources(r#"{"limits": {"cloud-tpus.google.com/v3": "8"}}"#));
        assert_eq!(tpu.accelerators, [("cloud-tpus.google.com/v3".to_owned(), 8)]);
    }

    #[tokio::test]
    async fn step_that_needs_more_than_the_machine_has_fails_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let attempt = Attempt { folder: folder.path().to_owned() };
        let room = Room::new(2, None);
        for (text, reason) in [
            (r#"{"limits": {"cpu": "4000"}}"#, "4000 processors ("),
            (r#"{"limits": {"memory": "900Ti"}}"#, "MiB of memory ("),
            (r#"{"limits": {"nvidia.com/gpu": "1"}}"#, "1 nvidia.com/gpu (0 available)"),
        ] {
            let error = room.occupy(&Demand::new(&resources(text)), &attempt).await.unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[tokio::test]
    async fn what_a_started_attempt_occupies_is_known_to_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let attempt = Attempt { folder: folder.path().to_owned() };
        let demand = Demand { slots: 2, memory: 1, accelerators: Vec::new() };
        let first = Room::new(2, None);
        let held = first.occupy(&demand, &attempt).await.unwrap();
        assert!(first.try_slot().is_none());
        drop(held);
        assert!(first.try_slot().is_some());
        let second = Room::new(2, None);
        let _held = second.occupy_again(&attempt);
        assert!(second.try_slot().is_none());
    }
}
