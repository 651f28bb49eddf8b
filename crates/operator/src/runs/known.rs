//! The cache of runs and their pods, filled by the watches and by the answers to our own writes.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures_util::{Stream, StreamExt};
use parking_lot::Mutex;
use serde_json::Value;
use slipway_exec::Submitted;

use super::Key;
use super::pod::Pod;
use crate::api::Change;
use crate::queue::Queue;

/// A run, and the version of its object.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Run {
    pub(super) version: u64,
    pub(super) submitted: Submitted,
    /// Whether it is being deleted.
    pub(super) leaving: bool,
}

impl Run {
    /// Reads an object.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn of(object: &Value) -> Result<Self, String> {
        let submitted = serde_json::from_value(object.clone()).map_err(|e| e.to_string())?;
        let leaving = object["metadata"]["deletionTimestamp"].is_string();
        Ok(Self { version: super::version(object), submitted, leaving })
    }

    pub(super) fn key(&self) -> Key {
        let metadata = &self.submitted.manifest.metadata;
        (metadata.namespace.clone(), metadata.name.clone())
    }
}

/// All runs and pods, by the run's namespace and name.
#[derive(Debug, Default)]
pub(super) struct Known {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    runs: HashMap<Key, Run>,
    pods: HashMap<Key, BTreeMap<String, Pod>>,
    /// Runs that exist and cannot be read. Their pods are left alone; they are no orphans.
    unreadable: HashSet<Key>,
}

impl Known {
    /// A run and its pods, the newest attempt last.
    pub(super) fn get(&self, key: &Key) -> (Option<Run>, Vec<Pod>) {
        let state = self.state.lock();
        let mut pods: Vec<Pod> = state.pods.get(key).map(|p| p.values().cloned().collect()).unwrap_or_default();
        pods.sort_by_key(|p| p.attempt);
        (state.runs.get(key).cloned(), pods)
    }

    /// The numbers of runs and pods.
    pub(super) fn size(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.runs.len(), state.pods.values().map(BTreeMap::len).sum())
    }

    /// Whether there is a run of that name that cannot be read.
    pub(super) fn is_unreadable(&self, key: &Key) -> bool {
        self.state.lock().unreadable.contains(key)
    }

    /// Stores a run, unless a newer version is known: the answer to a write may overtake the watch.
    pub(super) fn put_run(&self, run: Run) {
        let mut state = self.state.lock();
        let key = run.key();
        state.unreadable.remove(&key);
        if state.runs.get(&key).is_none_or(|known| known.version <= run.version) {
            state.runs.insert(key, run);
        }
    }

    /// Stores a pod, likewise.
    pub(super) fn put_pod(&self, pod: Pod) {
        let mut state = self.state.lock();
        let pods = state.pods.entry((pod.namespace.clone(), pod.run.clone())).or_default();
        if pods.get(&pod.name).is_none_or(|known| known.version <= pod.version) {
            pods.insert(pod.name.clone(), pod);
        }
    }

    pub(super) fn drop_run(&self, key: &Key) {
        let mut state = self.state.lock();
        state.runs.remove(key);
        state.unreadable.remove(key);
    }

    pub(super) fn drop_pod(&self, key: &Key, name: &str) {
        let mut state = self.state.lock();
        if let Some(pods) = state.pods.get_mut(key) {
            pods.remove(name);
            if pods.is_empty() {
                state.pods.remove(key);
            }
        }
    }

    /// Follows the runs without end; `ready` is called when a list is complete.
    pub(super) async fn follow_runs(&self, changes: impl Stream<Item = Change>, queue: &Queue<Key>, ready: impl Fn()) {
        let mut changes = std::pin::pin!(changes);
        let mut listed: HashSet<Key> = HashSet::new();
        while let Some(change) = changes.next().await {
            match change {
                Change::Begin => listed.clear(),
                Change::Is(object) => match Run::of(&object) {
                    Ok(run) => {
                        let key = run.key();
                        listed.insert(key.clone());
                        self.put_run(run);
                        queue.add(key);
                    }
                    Err(error) => {
                        tracing::warn!(run = %object["metadata"]["name"], error, "a run that cannot be read is left alone");
                        let key = key_of(&object);
                        listed.insert(key.clone());
                        self.state.lock().unreadable.insert(key);
                    }
                },
                Change::Gone(object) => {
                    let key = key_of(&object);
                    self.drop_run(&key);
                    queue.add(key);
                }
                Change::Complete => {
                    let gone: Vec<Key> = {
                        let state = self.state.lock();
                        state.runs.keys().chain(&state.unreadable).filter(|k| !listed.contains(*k)).cloned().collect()
                    };
                    for key in gone {
                        self.drop_run(&key);
                        queue.add(key);
                    }
                    ready();
                }
            }
        }
    }

    /// Follows the pods without end, likewise.
    pub(super) async fn follow_pods(&self, changes: impl Stream<Item = Change>, queue: &Queue<Key>, ready: impl Fn()) {
        let mut changes = std::pin::pin!(changes);
        let mut listed: HashSet<(String, String)> = HashSet::new();
        while let Some(change) = changes.next().await {
            match change {
                Change::Begin => listed.clear(),
                Change::Is(object) => {
                    if let Some(pod) = Pod::of(&object) {
                        listed.insert((pod.namespace.clone(), pod.name.clone()));
                        let key = (pod.namespace.clone(), pod.run.clone());
                        self.put_pod(pod);
                        queue.add(key);
                    }
                }
                Change::Gone(object) => {
                    if let Some(pod) = Pod::of(&object) {
                        let key = (pod.namespace, pod.run);
                        self.drop_pod(&key, &pod.name);
                        queue.add(key);
                    }
                }
                Change::Complete => {
                    let gone: Vec<(Key, String)> = {
                        let state = self.state.lock();
                        let all = state.pods.iter().flat_map(|(k, pods)| pods.keys().map(move |n| (k, n)));
                        all.filter(|(k, n)| !listed.contains(&(k.0.clone(), (*n).clone())))
                            .map(|(k, n)| (k.clone(), n.clone()))
                            .collect()
                    };
                    for (key, name) in gone {
                        self.drop_pod(&key, &name);
                        queue.add(key);
                    }
                    ready();
                }
            }
        }
    }
}

fn key_of(object: &Value) -> Key {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}
