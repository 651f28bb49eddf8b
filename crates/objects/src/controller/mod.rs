//! The loop of a controller. A controller decides what is to be done about one object from what it observes; the loop around it is the same
//! for all controllers and all stores: it follows objects, queues what they concern, and reconciles each key until that succeeds.
//!
//! Invariant: nothing is reconciled before all followed lists are complete, so that an absent object is a deleted one.

mod follow;

use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use slipway_exec::queue::Queue;
use tokio::sync::watch;

use crate::object::Object;
use crate::resource::Resource;

pub use follow::{Change, Source, changes};

/// Namespace (empty for objects of the cluster) and name of an object.
pub type ObjectKey = (String, String);

/// The key of an object.
pub fn key_of(object: &Object) -> ObjectKey {
    (object.metadata.namespace.clone(), object.metadata.name.clone())
}

/// The key of the object of a resource that controls this one, which is in the same namespace; `None` if there is no such owner.
pub fn owner_of(object: &Object, resource: &Resource) -> Option<ObjectKey> {
    let owners = object.metadata.owner_references.iter();
    let mut controllers = owners.filter(|owner| owner.controller == Some(true));
    let owner = controllers.find(|owner| owner.kind == resource.kind && owner.api_version == resource.api_version())?;
    Some((object.metadata.namespace.clone(), owner.name.clone()))
}

/// What a controller does.
pub trait Controller: Send + Sync {
    /// What is reconciled; usually an [`ObjectKey`].
    type Key: Clone + Eq + Hash + Debug + Send + Sync;
    /// Why an attempt failed. It is repeated after a backoff.
    type Error: Display + Send;

    /// Moves what a key stands for one step towards its desired state. It is level-triggered: it depends on the current state, and not on the
    /// change that queued the key. No key is reconciled by two workers at once.
    fn reconcile(&self, key: &Self::Key) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// What is reconciled again at intervals, in case a change was missed.
    fn all(&self) -> impl Future<Output = Vec<Self::Key>> + Send;

    /// Whether an error is normal, such as that another client wrote first, and need not be logged.
    fn is_expected(&self, error: &Self::Error) -> bool;
}

/// How a loop works.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The name of the controller in the log.
    pub name: &'static str,
    /// Number of keys that are reconciled concurrently.
    pub workers: usize,
    /// Interval at which all keys are reconciled.
    pub resync_interval: Duration,
}

/// The loop of one controller. It outlives the times in which this process leads.
#[derive(Debug)]
pub struct ControlLoop<K> {
    settings: Settings,
    queue: Queue<K>,
    reconciled: AtomicU64,
    failed: AtomicU64,
}

impl<K: Clone + Eq + Hash + Debug + Send + Sync> ControlLoop<K> {
    /// A loop that does not work yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, queue: Queue::default(), reconciled: AtomicU64::new(0), failed: AtomicU64::new(0) }
    }

    /// The queue of keys. Sources add to it, and a controller adds what it wants to reconcile later.
    pub fn queue(&self) -> &Queue<K> {
        &self.queue
    }

    /// Number of successful and of failed attempts so far.
    pub fn attempts(&self) -> (u64, u64) {
        (self.reconciled.load(Relaxed), self.failed.load(Relaxed))
    }

    /// Follows the sources and reconciles queued keys, until the future is dropped. What is queued before this call is forgotten.
    pub fn run(&self, controller: &impl Controller<Key = K>, sources: Vec<Source<'_>>) -> impl Future<Output = ()> {
        // An earlier run may have been dropped during an attempt. Not a part of the future, so that nothing is lost that is queued before it
        // is polled.
        self.queue.clear();
        self.follow_and_work(controller, sources)
    }

    async fn follow_and_work(&self, controller: &impl Controller<Key = K>, sources: Vec<Source<'_>>) {
        let (complete, mut lists) = watch::channel(vec![false; sources.len()]);
        let follow = sources.into_iter().enumerate().map(|(i, source)| {
            let complete = &complete;
            async move { source.follow(|| complete.send_modify(|lists| lists[i] = true)).await }
        });
        let work = async {
            // Cannot fail: the sender lives as long as this future.
            let _ = lists.wait_for(|lists| lists.iter().all(|list| *list)).await;
            let workers = join_all((0..self.settings.workers).map(|_| self.work(controller)));
            tokio::join!(workers, self.resync(controller));
        };
        tokio::join!(join_all(follow), work);
    }

    async fn resync(&self, controller: &impl Controller<Key = K>) {
        loop {
            tokio::time::sleep(self.settings.resync_interval).await;
            for key in controller.all().await {
                self.queue.add(key);
            }
        }
    }

    /// Reconciles queued keys one after the other.
    async fn work<C: Controller<Key = K>>(&self, controller: &C) {
        let name = self.settings.name;
        loop {
            let key = self.queue.next().await;
            // A panic while one key is reconciled must not stop the others.
            let outcome = AssertUnwindSafe(controller.reconcile(&key)).catch_unwind().await;
            match &outcome {
                Ok(Ok(())) => {
                    self.reconciled.fetch_add(1, Relaxed);
                    self.queue.done(&key);
                    continue;
                }
                Ok(Err(error)) if controller.is_expected(error) => {}
                Ok(Err(error)) => tracing::warn!(controller = name, ?key, %error, "reconciling failed; retrying"),
                Err(_) => tracing::error!(controller = name, ?key, "reconciling panicked; retrying"),
            }
            self.failed.fetch_add(1, Relaxed);
            self.queue.failed(&key);
        }
    }
}

#[cfg(test)]
mod tests;
