//! What is to be looked at, and when: each key stands in it once, nobody looks at the same key twice at once, and what failed is
//! looked at again after pauses that grow. The rules are client-go's (`util/workqueue`).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The first pause after a failure; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A queue of keys. It holds each at most once, so it is never longer than there are keys.
#[derive(Debug)]
pub struct Queue<K> {
    state: Mutex<State<K>>,
    more: Notify,
}

#[derive(Debug)]
struct State<K> {
    ready: VecDeque<K>,
    /// Those in `ready`, and those that changed while somebody looks at them.
    wanted: HashSet<K>,
    working: HashSet<K>,
    /// By the time at which they become ready; the number tells apart what is due at once.
    later: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    counter: u64,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { state: Mutex::default(), more: Notify::new() }
    }
}

impl<K> Default for State<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            wanted: HashSet::new(),
            working: HashSet::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            counter: 0,
        }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// Has a key looked at as soon as there is time.
    pub fn add(&self, key: K) {
        self.state.lock().add(key);
        self.more.notify_one();
    }

    /// Has a key looked at when this time is over, unless it is looked at earlier.
    pub fn add_after(&self, key: K, wait: Duration) {
        self.state.lock().add_at(key, Instant::now() + wait);
        self.more.notify_one();
    }

    /// The next key; whoever takes it says [`Queue::done`] or [`Queue::failed`] afterwards.
    pub async fn next(&self) -> K {
        loop {
            let wait = {
                let mut state = self.state.lock();
                let now = Instant::now();
                while let Some(entry) = state.later.first_entry().filter(|e| e.key().0 <= now) {
                    let key = entry.remove();
                    state.due.remove(&key);
                    state.add(key);
                }
                if let Some(key) = state.ready.pop_front() {
                    state.wanted.remove(&key);
                    state.working.insert(key.clone());
                    if !state.ready.is_empty() {
                        // One notification wakes one worker; there is work for another.
                        self.more.notify_one();
                    }
                    return key;
                }
                state.later.keys().next().map(|(at, _)| *at)
            };
            match wait {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = self.more.notified() => {}
                },
                None => self.more.notified().await,
            }
        }
    }

    /// Somebody looked, and all is well.
    pub fn done(&self, key: &K) {
        let mut state = self.state.lock();
        state.failures.remove(key);
        state.finished(key);
        drop(state);
        self.more.notify_one();
    }

    /// Somebody looked, and it has to be tried again.
    pub fn failed(&self, key: &K) {
        let mut state = self.state.lock();
        let failures = state.failures.entry(key.clone()).or_insert(0);
        *failures += 1;
        let pause = FIRST_PAUSE.saturating_mul(1 << (*failures - 1).min(16)).min(LONGEST_PAUSE);
        state.finished(key);
        state.add_at(key.clone(), Instant::now() + pause);
        drop(state);
        self.more.notify_one();
    }

    /// Forgets everything, also who looks at what.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        *state = State { counter: state.counter, ..State::default() };
    }

    /// Keys that wait to be looked at now, and those that wait for their time.
    pub fn depth(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.ready.len() + state.working.len(), state.later.len())
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K) {
        if self.wanted.insert(key.clone()) && !self.working.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn add_at(&mut self, key: K, at: Instant) {
        if let Some(known) = self.due.get(&key).copied() {
            if known.0 <= at {
                return;
            }
            self.later.remove(&known);
        }
        self.counter += 1;
        self.due.insert(key.clone(), (at, self.counter));
        self.later.insert((at, self.counter), key);
    }

    fn finished(&mut self, key: &K) {
        self.working.remove(key);
        // It changed meanwhile.
        if self.wanted.contains(key) {
            self.ready.push_back(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_looked_at_once_and_by_one() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert_eq!(queue.next().await, "b");
        // It changed while it was looked at, so it comes once more, and not before.
        let early = tokio::time::timeout(Duration::from_secs(1), queue.next()).await;
        assert!(early.is_err());
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
        queue.done(&"a");
        queue.done(&"b");
        assert_eq!(queue.depth(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_and_longer() {
        let queue = Queue::default();
        queue.add(1);
        let mut key = queue.next().await;
        for pause in [100, 200, 400, 800] {
            queue.failed(&key);
            let begun = Instant::now();
            key = queue.next().await;
            assert_eq!(begun.elapsed().as_millis(), pause);
        }
        // What went well begins anew.
        queue.done(&key);
        queue.add(1);
        key = queue.next().await;
        queue.failed(&key);
        let begun = Instant::now();
        queue.next().await;
        assert_eq!(begun.elapsed().as_millis(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_time_counts() {
        let queue = Queue::default();
        for seconds in [9, 5, 7] {
            queue.add_after(1, Duration::from_secs(seconds));
        }
        let begun = Instant::now();
        assert_eq!(queue.next().await, 1);
        assert_eq!((begun.elapsed().as_secs(), queue.depth()), (5, (1, 0)));
    }
}
