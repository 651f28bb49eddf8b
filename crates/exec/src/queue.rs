//! The work queue of a controller, with the rules of client-go's `util/workqueue`: a key is queued at most once, no key is processed by
//! two workers at once, and failed keys are retried with exponential backoff.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Backoff after the first failure; it doubles with each further failure.
const BASE_BACKOFF: Duration = Duration::from_millis(100);
/// Maximum backoff.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// A queue of keys. Each key is queued at most once, so the queue is bounded by the number of keys.
#[derive(Debug)]
pub struct Queue<K> {
    state: Mutex<State<K>>,
    /// Notified when a key may have become ready.
    changed: Notify,
}

#[derive(Debug)]
struct State<K> {
    /// Keys to process now, in order.
    ready: VecDeque<K>,
    /// Keys in `ready`, and keys that were added while they are being processed.
    dirty: HashSet<K>,
    /// Keys that workers are processing.
    processing: HashSet<K>,
    /// Delayed keys by the time at which they become ready. The number distinguishes keys with the same time.
    delayed: BTreeMap<(Instant, u64), K>,
    /// The entry in `delayed` of each delayed key.
    due: HashMap<K, (Instant, u64)>,
    /// Consecutive failures of each key.
    failures: HashMap<K, u32>,
    counter: u64,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: Notify::new() }
    }
}

impl<K> Default for State<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            processing: HashSet::new(),
            delayed: BTreeMap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            counter: 0,
        }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// Queues a key for immediate processing.
    pub fn add(&self, key: K) {
        self.state.lock().add(key);
        self.changed.notify_one();
    }

    /// Queues a key for processing after a delay. If it is already delayed, the earlier time applies.
    pub fn add_after(&self, key: K, delay: Duration) {
        self.state.lock().add_at(key, Instant::now() + delay);
        self.changed.notify_one();
    }

    /// Waits for the next key. The caller must call [`Queue::done`] or [`Queue::failed`] after processing it.
    pub async fn next(&self) -> K {
        loop {
            let next_due = {
                let mut state = self.state.lock();
                let now = Instant::now();
                while let Some(entry) = state.delayed.first_entry().filter(|e| e.key().0 <= now) {
                    let key = entry.remove();
                    state.due.remove(&key);
                    state.add(key);
                }
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone());
                    if !state.ready.is_empty() {
                        // A notification wakes one worker only, so wake the next one for the next key.
                        self.changed.notify_one();
                    }
                    return key;
                }
                state.delayed.keys().next().map(|(at, _)| *at)
            };
            match next_due {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = self.changed.notified() => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    /// Reports that a key was processed successfully, and resets its backoff.
    pub fn done(&self, key: &K) {
        let mut state = self.state.lock();
        state.failures.remove(key);
        state.finished(key);
        drop(state);
        self.changed.notify_one();
    }

    /// Reports that processing a key failed, and retries it after its backoff.
    pub fn failed(&self, key: &K) {
        let mut state = self.state.lock();
        let failures = state.failures.entry(key.clone()).or_insert(0);
        *failures += 1;
        let backoff = BASE_BACKOFF.saturating_mul(1 << (*failures - 1).min(16)).min(MAX_BACKOFF);
        state.finished(key);
        state.add_at(key.clone(), Instant::now() + backoff);
        drop(state);
        self.changed.notify_one();
    }

    /// Removes all keys, including those that are being processed.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        *state = State { counter: state.counter, ..State::default() };
    }

    /// Number of ready keys, including those being processed, and number of delayed keys.
    pub fn depth(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.ready.len() + state.processing.len(), state.delayed.len())
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K) {
        if self.dirty.insert(key.clone()) && !self.processing.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn add_at(&mut self, key: K, at: Instant) {
        if let Some(existing) = self.due.get(&key).copied() {
            if existing.0 <= at {
                return;
            }
            self.delayed.remove(&existing);
        }
        self.counter += 1;
        self.due.insert(key.clone(), (at, self.counter));
        self.delayed.insert((at, self.counter), key);
    }

    fn finished(&mut self, key: &K) {
        self.processing.remove(key);
        // The key was added again while it was processed.
        if self.dirty.contains(key) {
            self.ready.push_back(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn key_is_queued_once_and_processed_by_one_worker() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert_eq!(queue.next().await, "b");
        // "a" was added while it was processed, so it is returned once more, but only after `done`.
        let early = tokio::time::timeout(Duration::from_secs(1), queue.next()).await;
        assert!(early.is_err());
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
        queue.done(&"a");
        queue.done(&"b");
        assert_eq!(queue.depth(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_exponentially() {
        let queue = Queue::default();
        queue.add(1);
        let mut key = queue.next().await;
        for backoff in [100, 200, 400, 800] {
            queue.failed(&key);
            let start = Instant::now();
            key = queue.next().await;
            assert_eq!(start.elapsed().as_millis(), backoff);
        }
        // Success resets the backoff.
        queue.done(&key);
        queue.add(1);
        key = queue.next().await;
        queue.failed(&key);
        let start = Instant::now();
        queue.next().await;
        assert_eq!(start.elapsed().as_millis(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn earliest_delay_applies() {
        let queue = Queue::default();
        for seconds in [9, 5, 7] {
            queue.add_after(1, Duration::from_secs(seconds));
        }
        let start = Instant::now();
        assert_eq!(queue.next().await, 1);
        assert_eq!((start.elapsed().as_secs(), queue.depth()), (5, (1, 0)));
    }
}
