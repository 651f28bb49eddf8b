//! Compares desired settings with those of the cards, and checks them against the limits of each card before anything is changed.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use slipway_core::gpu_settings::Power;

use super::file::{Desired, Rule};
use super::record::Record;
use super::{Clocks, Key, Value, read, watts};
use crate::GpuError;
use crate::nvml::{Clock, Device, Nvml, NvmlError, codes};
use crate::selector::{self, Identity};

/// NVML's numbers of the generations whose clocks can be locked differently (`nvmlDeviceArchitecture_t`).
const VOLTA: u32 = 5;
const AMPERE: u32 = 7;
const HOPPER: u32 = 9;
/// Power limits that differ by less than this many milliwatts are equal, because drivers may round them.
const POWER_TOLERANCE: u32 = 500;

/// The power limits of a card in milliwatts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PowerRange {
    /// Lowest limit that can be set.
    pub min: u32,
    /// Highest limit that can be set.
    pub max: u32,
    /// The limit that the card starts with.
    pub default: u32,
}

/// A GPU with its settings and their limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Card {
    /// Index of the GPU.
    pub gpu: u32,
    /// UUID of the GPU.
    pub uuid: String,
    /// Product name.
    pub name: String,
    #[serde(skip)]
    architecture: u32,
    /// The settings that the card has; `None` for locked clocks that slipway has not set, which NVML cannot report.
    pub settings: BTreeMap<Key, Option<Value>>,
    /// Whether ECC is on now; it can differ from the setting until the next reset.
    pub ecc_active: Option<bool>,
    /// The limits of the power limit.
    pub power: Option<PowerRange>,
    /// The graphics clocks that the card supports.
    pub graphics: Option<Clocks>,
    /// The memory clocks that the card supports.
    pub memory: Option<Clocks>,
}

/// Lowest and highest of some clocks.
fn range(clocks: &[u32]) -> Option<Clocks> {
    Some(Clocks { min: *clocks.iter().min()?, max: *clocks.iter().max()? })
}

impl Card {
    fn read(gpu: u32, device: &Device<'_>, record: &Record) -> Result<Self, NvmlError> {
        let (uuid, name) = (device.uuid()?, device.name()?);
        let architecture = device.architecture().unwrap_or(0);
        let memory_clocks = device.supported_memory_clocks().unwrap_or_default();
        let graphics_clocks: Vec<u32> =
            memory_clocks.iter().flat_map(|m| device.supported_graphics_clocks(*m).unwrap_or_default()).collect();
        // Cards that do not list their clocks at least report the highest one.
        let up_to = |clock: Clock| device.max_clock(clock).ok().map(|max| Clocks { min: 1, max });
        let graphics = range(&graphics_clocks).or_else(|| up_to(Clock::Sm));
        let memory = range(&memory_clocks).or_else(|| up_to(Clock::Memory));
        let power = match (device.power_range(), device.power_default()) {
            (Ok((min, max)), Ok(default)) => Some(PowerRange { min, max, default }),
            _ => None,
        };
        let (mut settings, mut restarted) = (BTreeMap::new(), false);
        for key in Key::ALL {
            let supported = match key {
                Key::GraphicsClocks => architecture >= VOLTA && graphics.is_some(),
                // On Hopper the memory clock can only be set for the next start of the GPU, with a tool of the driver.
                Key::MemoryClocks => architecture >= AMPERE && architecture != HOPPER && memory.is_some(),
                Key::PowerLimit => power.is_some(),
                _ => true,
            };
            if !supported {
                continue;
            }
            let recorded = record.entry(&uuid, key).and_then(|e| e.set);
            if key.initial().is_some() {
                // A restart that took back another setting has removed the locks, too.
                settings.insert(key, recorded.filter(|_| !restarted));
            } else if let Some(value) = read(device, key)? {
                let is_volatile = key != Key::Ecc;
                restarted |= is_volatile && recorded.is_some_and(|set| !equal(Some(value), set));
                settings.insert(key, Some(value));
            }
        }
        let ecc_active = device.ecc().ok().map(|(current, _)| current);
        Ok(Self { gpu, uuid, name, architecture, settings, ecc_active, power, graphics, memory })
    }

    fn identity(&self) -> Identity<'_> {
        Identity { index: self.gpu, uuid: &self.uuid, name: &self.name }
    }

    /// The value for this card.
    fn resolve(&self, desired: Desired) -> Result<Value, String> {
        let key = match desired {
            Desired::Power(_) => Key::PowerLimit,
            Desired::Value(value) => value.key(),
        };
        let about = |text: &str| format!("GPU {} ({}) {text}", self.gpu, self.name);
        if !self.settings.contains_key(&key) {
            return Err(about(match key {
                Key::MemoryClocks if self.architecture == HOPPER => {
                    "is of the Hopper generation, whose memory clock cannot be locked while the driver runs: use \
                     nvidia-smi --lock-memory-clocks-deferred"
                }
                Key::GraphicsClocks | Key::MemoryClocks => "cannot lock this clock: leave it out for this GPU",
                _ => "does not have this setting: leave it out for this GPU",
            }));
        }
        let within = |clocks: Option<Clocks>, limits: Option<Clocks>| match (clocks, limits) {
            (Some(clocks), Some(limits)) if clocks.min < limits.min || clocks.max > limits.max => {
                Err(about(&format!("supports {limits}, not {clocks}")))
            }
            _ => Ok(()),
        };
        match (desired, self.power) {
            (Desired::Power(power), Some(limits)) => {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // positive; saturates
                let milliwatts = match power {
                    Power::Milliwatts(milliwatts) => milliwatts,
                    Power::Percent(percent) => (f64::from(limits.default) * percent / 100.0).round() as u32,
                    Power::Default => limits.default,
                };
                if (limits.min..=limits.max).contains(&milliwatts) {
                    return Ok(Value::PowerLimit(milliwatts));
                }
                Err(about(&format!(
                    "allows {} to {} (default {}), not {}",
                    watts(limits.min),
                    watts(limits.max),
                    watts(limits.default),
                    watts(milliwatts)
                )))
            }
            (Desired::Power(_), None) => Err(about("does not report its power limits")),
            (Desired::Value(value), _) => {
                match value {
                    Value::GraphicsClocks(clocks) => within(clocks, self.graphics)?,
                    Value::MemoryClocks(clocks) => within(clocks, self.memory)?,
                    _ => {}
                }
                Ok(value)
            }
        }
    }
}

/// Reads the settings of all GPUs that respond; the notes name the others.
///
/// # Errors
/// [`GpuError::Nvml`] if NVML cannot count the GPUs.
pub fn cards(nvml: &Nvml, record: &Record) -> Result<(Vec<Card>, Vec<String>), GpuError> {
    let (mut cards, mut notes) = (Vec::new(), Vec::new());
    for gpu in 0..nvml.count()? {
        match nvml.device(gpu).and_then(|device| Card::read(gpu, &device, record)) {
            Ok(card) => cards.push(card),
            Err(e) if e.code == codes::GPU_IS_LOST => notes.push(format!("GPU {gpu} has fallen off the bus; skipped")),
            Err(e) if e.code == codes::RESET_REQUIRED => notes.push(format!("GPU {gpu} needs a reset; skipped")),
            Err(e) => return Err(e.into()),
        }
    }
    Ok((cards, notes))
}

fn as_text<S: Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

fn as_optional_text<S: Serializer>(value: &Option<Value>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(|v| v.to_string()).serialize(serializer)
}

/// A planned change of a setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Index of the GPU.
    pub gpu: u32,
    /// UUID of the GPU.
    pub uuid: String,
    /// The setting.
    pub setting: Key,
    /// The current value; `None` for clocks whose lock is not known.
    #[serde(serialize_with = "as_optional_text")]
    pub from: Option<Value>,
    /// The new value.
    #[serde(serialize_with = "as_text")]
    pub to: Value,
    /// Whether this restores the value before slipway's first change.
    pub restores: bool,
}

/// The planned changes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Plan {
    /// The changes in the order in which they are made.
    pub changes: Vec<Change>,
    /// What the user should know, such as a GPU that does not respond.
    pub notes: Vec<String>,
    /// Recorded settings that are no longer desired and have their earlier value already.
    #[serde(skip)]
    pub settled: Vec<(String, Key)>,
}

/// The settings that a plan covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All: what was set before and is no longer desired gets its earlier value.
    Everything,
    /// Only the desired settings.
    Given,
}

fn equal(a: Option<Value>, b: Value) -> bool {
    match (a, b) {
        (Some(Value::PowerLimit(a)), Value::PowerLimit(b)) => a.abs_diff(b) < POWER_TOLERANCE,
        (a, b) => a == Some(b),
    }
}

/// Plans the changes; `count` is the number of GPUs of the machine, with those that do not respond.
///
/// # Errors
/// [`GpuError::Invalid`] with all settings that a card does not allow, each with its place and the limits of the card.
pub fn plan(cards: &[Card], count: u32, rules: &[Rule], record: &Record, scope: Scope) -> Result<Plan, GpuError> {
    let mut plan = Plan::default();
    let mut problems = Vec::new();
    for rule in rules {
        if let Some(index) = rule.gpus.missing_index(count) {
            problems.push(format!("{}: {}", rule.place, selector::missing(index, count)));
        } else if let Some(part) = rule.gpus.unmatched(cards.iter().map(Card::identity)) {
            plan.notes.push(format!("{}: no GPU of this machine is '{part}'", rule.place));
        }
    }
    for card in cards {
        let mut desired: BTreeMap<Key, Value> = BTreeMap::new();
        let covering = rules.iter().filter(|r| r.gpus.covers(card.identity()));
        let mut last: BTreeMap<Key, (&String, Desired)> = BTreeMap::new();
        for (place, wanted) in covering.flat_map(|r| &r.settings) {
            let key = if let Desired::Value(value) = wanted { value.key() } else { Key::PowerLimit };
            last.insert(key, (place, *wanted));
        }
        for (key, (place, wanted)) in last {
            match card.resolve(wanted) {
                Ok(value) => drop(desired.insert(key, value)),
                Err(reason) => problems.push(format!("{place}: {reason}")),
            }
        }
        plan.card(card, &desired, record, scope);
    }
    if !problems.is_empty() {
        return Err(GpuError::Invalid(problems.join("\n")));
    }
    if scope == Scope::Everything {
        let absent = record.gpus.keys().filter(|uuid| cards.iter().all(|c| c.uuid != **uuid));
        plan.notes.extend(absent.map(|uuid| format!("{uuid} does not respond or was removed; its record is kept")));
    }
    Ok(plan)
}

impl Plan {
    /// Adds the changes of one card.
    fn card(&mut self, card: &Card, desired: &BTreeMap<Key, Value>, record: &Record, scope: Scope) {
        let current = |key: Key| card.settings.get(&key).copied().flatten();
        let change = |to: Value, restores: bool| Change {
            gpu: card.gpu,
            uuid: card.uuid.clone(),
            setting: to.key(),
            from: current(to.key()),
            to,
            restores,
        };
        let mut changes: Vec<Change> =
            desired.values().filter(|to| !equal(current(to.key()), **to)).map(|to| change(*to, false)).collect();
        if scope == Scope::Everything {
            for (key, entry) in record.gpus.get(&card.uuid).into_iter().flatten() {
                if desired.contains_key(key) {
                    continue;
                }
                if equal(current(*key), entry.before) {
                    self.settled.push((card.uuid.clone(), *key));
                } else {
                    changes.push(change(entry.before, true));
                }
            }
        }
        // Without persistence mode the driver may drop the settings that follow, so it goes last.
        changes.sort_by_key(|c| (c.to == Value::Persistence(false), c.setting));
        let after = |key: Key| changes.iter().find(|c| c.setting == key).map(|c| c.to).or(current(key));
        let volatile = |value: &Value| !matches!(value, Value::Persistence(_) | Value::Ecc(_));
        if after(Key::Persistence) == Some(Value::Persistence(false)) && desired.values().any(volatile) {
            self.notes.push(format!(
                "GPU {}: persistence is off, so the driver forgets its settings when the last program closes it",
                card.gpu
            ));
        }
        if let (Some(Value::Ecc(on)), Some(now)) = (after(Key::Ecc), card.ecc_active)
            && on != now
        {
            let state = if on { "on" } else { "off" };
            self.notes.push(format!("GPU {}: ECC is {state} after the next GPU reset or reboot", card.gpu));
        }
        self.changes.append(&mut changes);
    }
}
