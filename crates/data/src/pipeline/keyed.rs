//! Entries by key that keep the order in which their keys were set first, as Python's dictionaries do.

use std::collections::HashMap;

/// The entries.
#[derive(Debug)]
pub(super) struct Keyed<T> {
    entries: Vec<(String, T)>,
    places: HashMap<String, usize>,
}

impl<T> Default for Keyed<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), places: HashMap::new() }
    }
}

impl<T> Keyed<T> {
    /// Whether a key was set.
    pub(super) fn has(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// Sets the value of a key; an earlier one is replaced.
    pub(super) fn set(&mut self, key: String, value: T) {
        match self.places.get(&key) {
            Some(place) => self.entries[*place].1 = value,
            None => {
                self.places.insert(key.clone(), self.entries.len());
                self.entries.push((key, value));
            }
        }
    }

    /// The entries in their order.
    pub(super) fn into_entries(self) -> Vec<(String, T)> {
        self.entries
    }
}
