//! Processors, memory and accelerators of this machine, which steps occupy while they execute. A step without settings occupies one slot; a
//! step that asks for more than the machine has fails at once.

use serde::{Deserialize, Serialize};
use slipway_exec::local::{Capacity, Demand, Device, Lease, environment};
use slipway_exec::manifest::Resources;
use slipway_exec::{ExecError, LocalProcesses};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use super::attempt::Attempt;
use crate::platform::{self, whole};

/// Unit in which memory is given to steps.
const MEMORY_UNIT: f64 = 1048576.0;
/// The file with what a started attempt occupies.
const RECORD: &str = "resources.json";

/// What a step asks for. Pipelines name accelerators by any resource, or by their product.
pub(super) fn demand(resources: &Resources) -> Demand {
    Demand { gpus: platform::accelerators(resources), ..Demand::new(resources) }
}

/// Units of memory that a machine has.
fn memory_units(total: &Capacity) -> u32 {
    (total.bytes / MEMORY_UNIT) as u32
}

/// Slots of a step, one for each processor.
fn slots(demand: &Demand) -> u32 {
    whole(demand.processors).max(1)
}

/// Whether one slot is enough.
pub(super) fn is_plain(demand: &Demand) -> bool {
    slots(demand) <= 1 && demand.bytes <= 0.0 && demand.gpus.is_empty()
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
        let memory = Semaphore::new(memory_units(&total) as usize);
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
        if is_plain(demand) {
            let permit = self.slots.acquire().await.ok(); // the semaphore is never closed
            return Ok(Occupied { _slots: permit, _memory: None, lease: None });
        }
        let needs = |error: ExecError| match error {
            ExecError::TooLarge(reason) => {
                let what = reason.trim_start_matches("the run needs ");
                format!("the step needs {what}; set less in the pipeline, or run it on a larger machine")
            }
            other => other.to_string(),
        };
        // A small machine may be told to execute more steps at a time than it has processors.
        let processors = self.total.processors.max(f64::from(self.slot_count));
        let total = Capacity { processors, bytes: self.total.bytes, devices: Vec::new() };
        total.check_fits(&Demand { gpus: Vec::new(), ..demand.clone() }).map_err(needs)?;
        // All steps wait in this order, so none waits for another that waits for it.
        let lease = match &self.runs {
            _ if demand.gpus.is_empty() => None,
            Some(runs) => {
                let leased = runs.lease(attempt.folder.display().to_string(), demand.gpus.clone()).await;
                Some(leased.map_err(needs)?)
            }
            None => {
                total.check_fits(demand).map_err(needs)?;
                None
            }
        };
        let slots = slots(demand).min(self.slot_count);
        let memory = whole(demand.bytes / MEMORY_UNIT).min(memory_units(&self.total));
        let devices = lease.as_ref().map_or(Vec::new(), |lease| lease.devices().to_vec());
        let record = Record { slots, memory, devices };
        let memory = self.memory.acquire_many(memory).await.ok();
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
        let text = r#"{"limits": {"cpu": "1500m", "memory": "1G", "NVIDIA_TESLA_T4": "2"}}"#;
        let found = demand(&resources(text));
        assert_eq!(found, Demand { processors: 1.5, bytes: 1e9, gpus: vec![("nvidia.com/gpu".into(), 2)] });
        assert_eq!(slots(&found), 2);
        assert!(is_plain(&demand(&resources(r#"{"limits": {"cpu": "500m"}}"#))));
        let tpu = demand(&resources(r#"{"limits": {"cloud-tpus.google.com/v3": "8"}}"#));
        assert_eq!(tpu.gpus, [("cloud-tpus.google.com/v3".to_owned(), 8)]);
    }

    #[tokio::test]
    async fn step_that_needs_more_than_the_machine_has_fails_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let attempt = Attempt { folder: folder.path().to_owned() };
        let room = Room::new(2, None);
        for (text, reason) in [
            (r#"{"limits": {"cpu": "4000"}}"#, "4000 processors ("),
            (r#"{"limits": {"memory": "900Ti"}}"#, " of memory ("),
            (r#"{"limits": {"nvidia.com/gpu": "1"}}"#, "1 nvidia.com/gpu (0 available)"),
        ] {
            let error = room.occupy(&demand(&resources(text)), &attempt).await.unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[tokio::test]
    async fn what_a_started_attempt_occupies_is_known_to_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let attempt = Attempt { folder: folder.path().to_owned() };
        let demand = Demand { processors: 2.0, bytes: MEMORY_UNIT, gpus: Vec::new() };
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
