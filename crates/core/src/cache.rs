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
        self.get_at(key, Instant::now())
    }

    /// Inserts an entry, or replaces the entry of this key.
    pub fn put(&self, key: K, value: V) {
        self.put_at(key, value, Instant::now());
    }

    fn is_valid(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) < self.ttl
    }

    fn get_at(&self, key: &K, now: Instant) -> Option<V> {
        let entries = self.entries.lock();
        entries.get(key).filter(|(since, _)| self.is_valid(*since, now)).map(|(_, value)| value.clone())
    }

    fn put_at(&self, key: K, value: V, now: Instant) {
        let mut entries = self.entries.lock();
        if entries.len() >= self.max_entries {
            entries.retain(|_, (since, _)| self.is_valid(*since, now));
        }
        if entries.len() >= self.max_entries {
            entries.clear();
        }
        entries.insert(key, (now, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_expire() {
        let cache = TtlCache::new(Duration::from_secs(20), 10);
        let now = Instant::now();
        cache.put_at("key", 1, now);
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!((cache.get_at(&"key", at(19)), cache.get_at(&"other", at(19))), (Some(1), None));
        assert_eq!(cache.get_at(&"key", at(20)), None);
    }

    #[test]
    fn size_is_bounded_and_expired_entries_are_dropped_first() {
        let cache = TtlCache::new(Duration::from_secs(3600), 100);
        for number in 0..1000 {
            cache.put(number, ());
            assert!(cache.get(&number).is_some() && cache.entries.lock().len() <= 100);
        }
        let cache = TtlCache::new(Duration::from_secs(5), 2);
        let now = Instant::now();
        let later = now + Duration::from_secs(6);
        cache.put_at("expired", (), now);
        cache.put_at("valid", (), later);
        cache.put_at("new", (), later);
        assert!(cache.get_at(&"valid", later).is_some() && cache.get_at(&"new", later).is_some());
    }
}
