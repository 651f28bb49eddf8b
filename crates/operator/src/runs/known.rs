//! The cache of runs and their pods, filled by watches and by the responses to the controller's own writes. A newer version of an object
//! is never replaced by an older one.

use std::collections::{BTreeMap, HashMap, HashSet};

use parking_lot::Mutex;
use serde_json::Value;
use slipway_exec::Submitted;
use slipway_exec::queue::Queue;
use slipway_objects::controller::{Change, key_of};

use super::Key;
use super::pod::Pod;
use crate::api::version;

/// A run and the resource version of its object.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Run {
    pub(super) version: u64,
    pub(super) submitted: Submitted,
    /// Whether the run is being deleted.
    pub(super) deleting: bool,
}

impl Run {
    /// Parses an object.
    ///
    /// # Errors
    /// A message that names the invalid field.
    pub(super) fn from_object(object: &Value) -> Result<Self, String> {
        let submitted = serde_json::from_value(object.clone()).map_err(|e| e.to_string())?;
        let deleting = object["metadata"]["deletionTimestamp"].is_string();
        Ok(Self { version: version(object), submitted, deleting })
    }

    pub(super) fn key(&self) -> Key {
        let metadata = &self.submitted.manifest.metadata;
        (metadata.namespace.clone(), metadata.name.clone())
    }
}

/// All runs and pods, keyed by the namespace and name of the run.
#[derive(Debug, Default)]
pub(super) struct Cache {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    runs: HashMap<Key, Run>,
    /// Pods of each run by the name of the pod.
    pods: HashMap<Key, BTreeMap<String, Pod>>,
    /// Runs that exist but cannot be parsed. Their pods are left unchanged, because they are not orphans.
    unreadable: HashSet<Key>,
}

impl Cache {
    /// A run and its pods, sorted by attempt with the newest last.
    pub(super) fn get(&self, key: &Key) -> (Option<Run>, Vec<Pod>) {
        let state = self.state.lock();
        let mut pods: Vec<Pod> = state.pods.get(key).map(|p| p.values().cloned().collect()).unwrap_or_default();
        pods.sort_by_key(|p| p.attempt);
        (state.runs.get(key).cloned(), pods)
    }

    /// Number of runs and number of pods.
    pub(super) fn size(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.runs.len(), state.pods.values().map(BTreeMap::len).sum())
    }

    /// Whether the run exists but cannot be parsed.
    pub(super) fn is_unreadable(&self, key: &Key) -> bool {
        self.state.lock().unreadable.contains(key)
    }

    /// Stores a run, unless a newer version is cached: the response to a write may arrive before older events of the watch.
    pub(super) fn put_run(&self, run: Run) {
        let mut state = self.state.lock();
        let key = run.key();
        state.unreadable.remove(&key);
        if state.runs.get(&key).is_none_or(|cached| cached.version <= run.version) {
            state.runs.insert(key, run);
        }
    }

    /// Stores a pod, unless a newer version is cached.
    pub(super) fn put_pod(&self, pod: Pod) {
        let mut state = self.state.lock();
        let pods = state.pods.entry((pod.namespace.clone(), pod.run.clone())).or_default();
        if pods.get(&pod.name).is_none_or(|cached| cached.version <= pod.version) {
            pods.insert(pod.name.clone(), pod);
        }
    }

    pub(super) fn remove_run(&self, key: &Key) {
        let mut state = self.state.lock();
        state.runs.remove(key);
        state.unreadable.remove(key);
    }

    pub(super) fn remove_pod(&self, key: &Key, name: &str) {
        let mut state = self.state.lock();
        if let Some(pods) = state.pods.get_mut(key) {
            pods.remove(name);
            if pods.is_empty() {
                state.pods.remove(key);
            }
        }
    }

    /// Applies a change of runs to the cache and queues the changed runs. `listed` has the keys of the current list.
    pub(super) fn apply_run(&self, change: Change, listed: &mut HashSet<Key>, queue: &Queue<Key>) {
        match change {
            Change::ListStarted => listed.clear(),
            Change::Applied(object) => {
                let key = key_of(&object);
                listed.insert(key.clone());
                match Run::from_object(&object.to_value()) {
                    Ok(run) => {
                        self.put_run(run);
                        queue.add(key);
                    }
                    Err(error) => {
                        tracing::warn!(namespace = key.0, run = key.1, error, "skipping a run that cannot be parsed");
                        self.state.lock().unreadable.insert(key);
                    }
                }
            }
            Change::Deleted(object) => {
                let key = key_of(&object);
                self.remove_run(&key);
                queue.add(key);
            }
            Change::ListCompleted => {
                let deleted: Vec<Key> = {
                    let state = self.state.lock();
                    state.runs.keys().chain(&state.unreadable).filter(|k| !listed.contains(*k)).cloned().collect()
                };
                for key in deleted {
                    self.remove_run(&key);
                    queue.add(key);
                }
            }
        }
    }

    /// Applies a change of pods to the cache and queues their runs. `listed` has the namespaces and names of the current list.
    pub(super) fn apply_pod(&self, change: Change, listed: &mut HashSet<(String, String)>, queue: &Queue<Key>) {
        match change {
            Change::ListStarted => listed.clear(),
            Change::Applied(object) => {
                if let Some(pod) = Pod::from_object(&object.to_value()) {
                    listed.insert((pod.namespace.clone(), pod.name.clone()));
                    let key = (pod.namespace.clone(), pod.run.clone());
                    self.put_pod(pod);
                    queue.add(key);
                }
            }
            Change::Deleted(object) => {
                if let Some(pod) = Pod::from_object(&object.to_value()) {
                    let key = (pod.namespace, pod.run);
                    self.remove_pod(&key, &pod.name);
                    queue.add(key);
                }
            }
            Change::ListCompleted => {
                let deleted: Vec<(Key, String)> = {
                    let state = self.state.lock();
                    let all = state.pods.iter().flat_map(|(k, pods)| pods.keys().map(move |n| (k, n)));
                    all.filter(|(k, n)| !listed.contains(&(k.0.clone(), (*n).clone())))
                        .map(|(k, n)| (k.clone(), n.clone()))
                        .collect()
                };
                for (key, name) in deleted {
                    self.remove_pod(&key, &name);
                    queue.add(key);
                }
            }
        }
    }

    /// The keys of all runs, and of all pods.
    pub(super) fn keys(&self) -> Vec<Key> {
        let state = self.state.lock();
        let without_run = state.pods.keys().filter(|key| !state.runs.contains_key(*key));
        state.runs.keys().chain(without_run).cloned().collect()
    }
}
