//! Makes the changes of a plan. Each is recorded on disk before it is made; if one fails, those before it are undone.

use super::plan::{Change, Plan};
use super::record::{Entry, Lock, Record, Store};
use crate::GpuError;
use crate::nvml::{Nvml, NvmlError, codes};

/// Applies a plan, with the lock that was held while it was made.
///
/// # Errors
/// [`GpuError::Settings`] with the change that failed and the resulting state; [`GpuError::Io`] if the record cannot be written.
pub fn apply(nvml: &Nvml, plan: &Plan, store: &Store, _lock: &Lock) -> Result<(), GpuError> {
    let earlier = store.read()?;
    let mut record = earlier.clone();
    for (uuid, key) in &plan.settled {
        record.remove(uuid, *key);
    }
    let mut done: Vec<&Change> = Vec::new();
    let mut outcome = Ok(());
    for change in &plan.changes {
        outcome = step(nvml, change, &mut record, store);
        if outcome.is_err() {
            break;
        }
        done.push(change);
    }
    let Err(error) = outcome.and_then(|()| store.write(&record)) else { return Ok(()) };
    Err(GpuError::Settings { reason: error.to_string(), state: roll_back(nvml, &done, &earlier, store) })
}

/// Records a change, and makes it.
fn step(nvml: &Nvml, change: &Change, record: &mut Record, store: &Store) -> Result<(), GpuError> {
    let entries = record.gpus.entry(change.uuid.clone()).or_default();
    let before = change.from.or(change.setting.initial()).unwrap_or(change.to);
    let entry = entries.entry(change.setting).or_insert(Entry { before, set: None });
    entry.set = None;
    store.write(record)?;
    write(nvml, change, change.to).map_err(|e| {
        let hint = match e.code {
            codes::NO_PERMISSION => "; run it as root",
            codes::NOT_SUPPORTED => "; leave the setting out for this GPU",
            _ => "",
        };
        GpuError::Invalid(format!("GPU {}: {} {}: {e}{hint}", change.gpu, change.setting.path(), change.to))
    })?;
    if change.restores {
        record.remove(&change.uuid, change.setting);
    } else if let Some(entry) = record.gpus.get_mut(&change.uuid).and_then(|e| e.get_mut(&change.setting)) {
        entry.set = Some(change.to);
    }
    Ok(())
}

/// Sets a value on the GPU of a change. The index of a GPU may have changed since the plan, its UUID cannot.
fn write(nvml: &Nvml, change: &Change, value: super::Value) -> Result<(), NvmlError> {
    let device = nvml.device(change.gpu)?;
    if device.uuid()? != change.uuid {
        return Err(NvmlError { call: "nvmlDeviceGetUUID", code: codes::NOT_FOUND });
    }
    value.write(&device)
}

/// Undoes changes, and returns a description of the state.
fn roll_back(nvml: &Nvml, done: &[&Change], earlier: &Record, store: &Store) -> String {
    let mut errors = Vec::new();
    for change in done.iter().rev() {
        if let Some(value) = change.from.or(change.setting.initial())
            && let Err(e) = write(nvml, change, value)
        {
            errors.push(format!("GPU {}: {}: {e}", change.gpu, change.setting.path()));
        }
    }
    if errors.is_empty() {
        // With all changes undone, the earlier record is right again.
        errors.extend(store.write(earlier).err().map(|e| e.to_string()));
    }
    match (errors.is_empty(), done.len()) {
        (true, 0) => "nothing was changed".into(),
        (true, 1) => "the change before it was undone".into(),
        (true, n) => format!("the {n} changes before it were undone"),
        (false, _) => {
            format!("not all changes were undone ({}); retry with: slipway gpu settings undo", errors.join("; "))
        }
    }
}
