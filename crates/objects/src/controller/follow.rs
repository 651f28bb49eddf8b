//! What a controller follows: a list of objects and then every change of it, forever.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};

use crate::object::Object;
use crate::resource::Resource;
use crate::store::{ObjectStore, Selection, WatchEvent, WatchOptions};

/// Delay before a watch that ended is started again; it doubles with each further failure.
const BASE_BACKOFF: Duration = Duration::from_millis(500);
/// Maximum delay.
const MAX_BACKOFF: Duration = Duration::from_secs(8);

/// A change of the objects that are followed.
#[derive(Debug)]
pub enum Change {
    /// A list starts. [`Change::Applied`] for every object follows, then [`Change::ListCompleted`].
    ListStarted,
    /// The object was listed, created or changed.
    Applied(Object),
    /// The object was deleted, or is no longer selected.
    Deleted(Object),
    /// The list is complete. Objects that were not in it have been deleted.
    ListCompleted,
}

/// Objects that a controller follows, and what it does with their changes.
pub struct Source<'a> {
    changes: BoxStream<'a, Change>,
    handle: Box<dyn FnMut(Change) + Send + 'a>,
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

impl<'a> Source<'a> {
    /// The selected objects of a resource. Each change is passed to `handle`, which usually queues a key.
    pub fn new<S: ObjectStore + Clone + 'a>(
        store: &S,
        resource: &Arc<Resource>,
        selection: Selection,
        handle: impl FnMut(Change) + Send + 'a,
    ) -> Self {
        Self { changes: changes(store.clone(), Arc::clone(resource), selection).boxed(), handle: Box::new(handle) }
    }

    /// Follows the objects until this future is dropped, and calls `complete` after each complete list.
    pub(super) async fn follow(mut self, complete: impl Fn()) {
        while let Some(change) = self.changes.next().await {
            let is_complete = matches!(change, Change::ListCompleted);
            (self.handle)(change);
            if is_complete {
                complete();
            }
        }
    }
}

struct Follower<S> {
    store: S,
    resource: Arc<Resource>,
    selection: Selection,
    events: Option<BoxStream<'static, WatchEvent>>,
    backoff: Duration,
}

/// The selected objects and then every change of them. The stream never ends: after a failure it begins with a new list.
pub fn changes<S: ObjectStore>(
    store: S,
    resource: Arc<Resource>,
    selection: Selection,
) -> impl Stream<Item = Change> + Send {
    let follower = Follower { store, resource, selection, events: None, backoff: BASE_BACKOFF };
    stream::unfold(follower, |mut follower| async move { Some((follower.next().await, follower)) })
}

impl<S: ObjectStore> Follower<S> {
    async fn next(&mut self) -> Change {
        loop {
            let Some(events) = &mut self.events else {
                let selection = self.selection.clone();
                let options = WatchOptions { selection, after: None, send_initial_events: true, bookmarks: true };
                match self.store.watch(&self.resource, options).await {
                    Ok(events) => {
                        self.events = Some(events.boxed());
                        return Change::ListStarted;
                    }
                    Err(error) => {
                        tracing::warn!(resource = ?self.resource, %error, "cannot watch objects; retrying");
                        self.wait().await;
                    }
                }
                continue;
            };
            match events.next().await {
                Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => return Change::Applied(object),
                Some(WatchEvent::Deleted(object)) => return Change::Deleted(object),
                Some(WatchEvent::Bookmark { initial_end: true, .. }) => {
                    self.backoff = BASE_BACKOFF;
                    return Change::ListCompleted;
                }
                Some(WatchEvent::Bookmark { .. }) => {}
                Some(WatchEvent::Failed(error)) => {
                    tracing::debug!(resource = ?self.resource, %error, "a watch failed; listing the objects again");
                    self.events = None;
                    self.wait().await;
                }
                None => {
                    self.events = None;
                    self.wait().await;
                }
            }
        }
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.backoff).await;
        self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
    }
}
