//! A cache of the objects of one kind, filled by a watch and by the responses to the controller's own writes. A newer version of an object
//! is never replaced by an older one.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use serde_json::Value;
use slipway_objects::controller::{self, Change};

use crate::api::{key_of, version};

/// Namespace (empty for cluster-scoped objects) and name of an object.
pub(super) type Key = (String, String);

#[derive(Debug, Default)]
pub(super) struct Cache {
    objects: Mutex<HashMap<Key, Value>>,
}

impl Cache {
    pub(super) fn get(&self, key: &Key) -> Option<Value> {
        self.objects.lock().get(key).cloned()
    }

    /// All objects that match.
    pub(super) fn find(&self, matches: impl Fn(&Value) -> bool) -> Vec<Value> {
        self.objects.lock().values().filter(|o| matches(o)).cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.objects.lock().len()
    }

    /// Stores an object, unless a newer version is cached.
    pub(super) fn put(&self, object: Value) {
        let mut objects = self.objects.lock();
        let key = key_of(&object);
        if objects.get(&key).is_none_or(|cached| version(cached) <= version(&object)) {
            objects.insert(key, object);
        }
    }

    /// Applies a change to the cache, and calls `changed` with each changed object as it was before and as it is now. `listed` has the keys of
    /// the current list.
    pub(super) fn apply(
        &self,
        change: Change,
        listed: &mut HashSet<Key>,
        changed: impl Fn(Option<&Value>, Option<&Value>),
    ) {
        match change {
            Change::ListStarted => listed.clear(),
            Change::Applied(object) => {
                let key = controller::key_of(&object);
                let (before, now) = (self.get(&key), object.to_value());
                listed.insert(key);
                self.put(now.clone());
                changed(before.as_ref(), Some(&now));
            }
            Change::Deleted(object) => {
                self.objects.lock().remove(&controller::key_of(&object));
                changed(Some(&object.to_value()), None);
            }
            Change::ListCompleted => {
                let deleted: Vec<Value> =
                    self.objects.lock().extract_if(|key, _| !listed.contains(key)).map(|(_, o)| o).collect();
                for object in deleted {
                    changed(Some(&object), None);
                }
            }
        }
    }

    /// The keys of all objects.
    pub(super) fn keys(&self) -> Vec<Key> {
        self.objects.lock().keys().cloned().collect()
    }
}
