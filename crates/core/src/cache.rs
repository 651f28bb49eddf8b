//! A cache for the results of reviews and look-ups whose callers choose the keys: its size is bounded, and its entries expire.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A cache whose entries expire. A full cache drops its expired entries, or all entries if none has expired; this only costs repeated
/// requests.
#[derive(Debug)]
pub struct TtlCache<K, V> {
    ttl: Duration,
    max_entries: usize,
    entries: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Eq + Hash, V: Clone> TtlCache<K, V> {
    /// An empty cache of at most `max_entries` entries, each of which is valid for `ttl`.
    pub fn new(ttl: Duration, max_entries: usize) -> Self {
        Self { ttl, max_entries, entries: Mutex::default() }
    }

    /// The value of a key; `None` if there is no entry or it has expired.
    pub fn get(&self, key: &K) -> Option<V> {
        let entries = self.entries.lock();
        entries.get(key).filter(|(at, _)| at.elapsed() < self.ttl).map(|(_, value)| value.clone())
    }

    /// Inserts an entry, or replaces the entry of this key.
    pub fn put(&self, key: K, value: V) {
        let mut entries = self.entries.lock();
        if entries.len() >= self.max_entries {
            entries.retain(|_, (at, _)| at.elapsed() < self.ttl);
        }
        if entries.len() >= self.max_entries {
            entries.clear();
        }
        entries.insert(key, (Instant::now(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_expire() {
        let cache = TtlCache::new(Duration::from_millis(20), 10);
        cache.put("key", 1);
        assert_eq!((cache.get(&"key"), cache.get(&"other")), (Some(1), None));
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(cache.get(&"key"), None);
    }

    #[test]
    fn size_is_bounded_and_expired_entries_are_dropped_first() {
        let cache = TtlCache::new(Duration::from_secs(3600), 100);
        for number in 0..1000 {
            cache.put(number, ());
            assert!(cache.get(&number).is_some() && cache.entries.lock().len() <= 100);
        }
        let cache = TtlCache::new(Duration::from_millis(500), 2);
        cache.put("expired", ());
        std::thread::sleep(Duration::from_millis(600));
        cache.put("valid", ());
        cache.put("new", ());
        assert!(cache.get(&"valid").is_some() && cache.get(&"new").is_some());
    }
}
