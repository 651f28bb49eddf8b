//! The managers of an object's fields, and their form in `metadata.managedFields`.

use std::collections::BTreeMap;

use serde_json::json;
use serde_json::value::to_raw_value;
use slipway_core::clock::{parse_rfc3339, rfc3339};

use super::element::quoted;
use super::set::Set;
use crate::meta::{FieldsV1, ManagedFieldsEntry};

/// The operation of managers whose fields are those that they apply.
pub(super) const APPLY: &str = "Apply";
/// The operation of managers whose fields are those that they changed.
pub(super) const UPDATE: &str = "Update";
/// The only form of sets of fields.
const FIELDS_V1: &str = "FieldsV1";
/// Maximum number of managers with the operation [`UPDATE`]. The oldest ones are combined.
const MAX_UPDATE_MANAGERS: usize = 10;
/// The manager that stands for the oldest ones.
const ANCIENT: &str = "ancient-changes";

/// What identifies a manager.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManagerId {
    /// The name that the client chose.
    pub manager: String,
    /// `Apply` or `Update`.
    pub operation: &'static str,
    /// The version of the objects that it wrote; empty for `Apply`, so that an applier remains the same in another version.
    pub api_version: String,
    /// The part of the object that it wrote; empty for the main part.
    pub subresource: String,
}

impl ManagerId {
    /// A manager that writes objects of a version.
    pub(super) fn new(manager: &str, operation: &'static str, api_version: &str, subresource: &str) -> Self {
        let manager = if manager.is_empty() { "unknown" } else { manager };
        Self {
            manager: manager.to_owned(),
            operation,
            api_version: if operation == APPLY { String::new() } else { api_version.to_owned() },
            subresource: subresource.to_owned(),
        }
    }

    /// A text by which managers are sorted.
    fn sort_key(&self) -> String {
        let mut text = format!("{{\"manager\":{},\"operation\":{:?}", json!(self.manager), self.operation);
        for (name, value) in [("apiVersion", &self.api_version), ("subresource", &self.subresource)] {
            if !value.is_empty() {
                text.push_str(&format!(",\"{name}\":{}", json!(value)));
            }
        }
        text + "}"
    }

    /// The manager in a message about a conflict.
    pub(super) fn describe(&self) -> String {
        let mut text = quoted(&self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {}", quoted(&self.subresource)));
        }
        if self.operation == UPDATE {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

/// The fields of one manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// The fields.
    pub set: Set,
    /// The version of the objects that the manager wrote.
    pub api_version: String,
    /// When the manager changed the object last, in milliseconds.
    pub time: Option<i64>,
}

/// The managers of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Managers(pub(super) BTreeMap<ManagerId, Owned>);

impl Managers {
    /// Reads the managers of an object.
    ///
    /// # Errors
    /// The first malformed entry.
    pub fn decode(entries: &[ManagedFieldsEntry]) -> Result<Self, String> {
        let mut managers = BTreeMap::new();
        for (i, entry) in entries.iter().enumerate() {
            let operation = match &*entry.operation {
                APPLY => APPLY,
                UPDATE => UPDATE,
                _ => return Err("operation must be `Apply` or `Update`".into()),
            };
            if entry.api_version.is_empty() {
                return Err("apiVersion must not be empty".into());
            }
            match &*entry.fields_type {
                FIELDS_V1 => {}
                "" => return Err(format!("missing fieldsType in managed fields entry {i}")),
                other => return Err(format!("invalid fieldsType {other:?} in managed fields entry {i}")),
            }
            let id = ManagerId {
                manager: entry.manager.clone(),
                operation,
                api_version: if operation == APPLY { String::new() } else { entry.api_version.clone() },
                subresource: entry.subresource.clone(),
            };
            let set = match &entry.fields_v1 {
                None => Set::default(),
                Some(fields) => {
                    serde_json::from_str(fields.text()).map_err(|error| format!("error decoding set: {error}"))?
                }
            };
            let time = entry.time.as_deref().and_then(parse_rfc3339);
            managers.insert(id, Owned { set, api_version: entry.api_version.clone(), time });
        }
        Ok(Self(managers))
    }

    /// The managers in the form of metadata; `None` if there are none.
    pub fn encode(&self) -> Option<Vec<ManagedFieldsEntry>> {
        let mut sorted: Vec<(&ManagerId, &Owned)> = self.0.iter().collect();
        let seconds = |owned: &Owned| owned.time.unwrap_or_default().div_euclid(1000);
        sorted.sort_by(|(p, x), (q, y)| {
            (p.operation, seconds(x), &p.manager, &x.api_version, &p.subresource).cmp(&(
                q.operation,
                seconds(y),
                &q.manager,
                &y.api_version,
                &q.subresource,
            ))
        });
        let entry = |(id, owned): (&ManagerId, &Owned)| ManagedFieldsEntry {
            manager: id.manager.clone(),
            operation: id.operation.to_owned(),
            api_version: owned.api_version.clone(),
            time: owned.time.map(rfc3339),
            fields_type: FIELDS_V1.to_owned(),
            fields_v1: Some(text_of(&owned.set)),
            subresource: id.subresource.clone(),
        };
        (!sorted.is_empty()).then(|| sorted.into_iter().map(entry).collect())
    }

    /// Whether there is no manager.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Combines the oldest managers with the operation [`UPDATE`] if there are too many.
    pub(super) fn cap(&mut self) {
        let mut updaters: Vec<(i64, String, ManagerId)> = self
            .0
            .iter()
            .filter(|(id, _)| id.operation == UPDATE)
            .map(|(id, owned)| (owned.time.unwrap_or_default().div_euclid(1000), id.sort_key(), id.clone()))
            .collect();
        let mut excess = updaters.len().saturating_sub(MAX_UPDATE_MANAGERS);
        if excess == 0 {
            return;
        }
        updaters.sort();
        let mut first_of: BTreeMap<String, ManagerId> = BTreeMap::new();
        for (_, _, id) in updaters {
            if excess == 0 {
                break;
            }
            let version = id.api_version.clone();
            let Some(first) = first_of.get(&version) else {
                first_of.insert(version, id);
                continue;
            };
            let ancient = ManagerId::new(ANCIENT, UPDATE, &version, "");
            if !self.0.contains_key(&ancient)
                && let Some(first) = self.0.remove(first)
            {
                self.0.insert(ancient.clone(), first);
            }
            let Some(merged) = self.0.remove(&id) else { continue };
            if let Some(bucket) = self.0.get_mut(&ancient) {
                bucket.set.extend(merged.set);
                bucket.time = merged.time;
            }
            excess -= 1;
        }
    }
}

/// The text of a set of paths.
fn text_of(set: &Set) -> FieldsV1 {
    FieldsV1::new(to_raw_value(set).expect("sets of paths are maps with text keys"))
}

/// Sorts managers as messages list them.
pub(super) fn sort_by_message<T>(managers: &mut [(ManagerId, T)]) {
    managers.sort_by_cached_key(|(id, _)| id.sort_key());
}
