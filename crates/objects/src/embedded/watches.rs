//! Watches: the current objects or the changes after a version, and then every further change.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::feed::{Change, Head, read_log};
use super::{Embedded, lists};
use crate::encoded::Encoded;
use crate::error::Error;
use crate::repo;
use crate::resource::Resource;
use crate::store::{ListOptions, Selection, WatchEvent, WatchOptions};

/// The interval of bookmarks.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of changes that a watch takes from the feed at once.
const MAX_BATCH: usize = 256;

/// A running watch.
struct Watch {
    store: Embedded,
    resource: Arc<Resource>,
    /// The name under which the objects are stored.
    stored_as: String,
    selection: Selection,
    /// The version up to which changes were considered.
    cursor: i64,
    /// Events to be sent before anything else.
    pending: VecDeque<WatchEvent<Arc<Encoded>>>,
    head: watch::Receiver<Head>,
    /// When the next bookmark is due; `None` without bookmarks.
    bookmark_at: Option<Instant>,
    ended: bool,
}

impl Watch {
    /// The event of a change for this watch; `None` if the object is selected neither before nor after it.
    fn event(&self, change: &Change) -> Option<WatchEvent<Arc<Encoded>>> {
        let is_elsewhere =
            self.selection.namespace.as_ref().is_some_and(|namespace| *namespace != change.key.namespace);
        if is_elsewhere || change.key.resource != self.stored_as {
            return None;
        }
        // A state that cannot be read is not shown; reading the object itself reports the error.
        let shown = |state: &Option<Arc<Encoded>>| {
            let state = state.as_ref()?;
            let Some(conversion) = &self.resource.conversion else { return Some(Arc::clone(state)) };
            let mut object = state.object().ok()?.clone();
            (conversion.from_stored)(&mut object);
            Some(Arc::new(Encoded::from(object)))
        };
        let is_selected = |text: &&Arc<Encoded>| {
            self.selection.is_unconditional()
                || text.object().is_ok_and(|object| self.selection.matches(&self.resource, object))
        };
        let selected = |state: &Option<Arc<Encoded>>| shown(state).filter(|text| is_selected(&text));
        match (selected(&change.current), selected(&change.previous)) {
            (Some(object), None) => Some(WatchEvent::Added(object)),
            (Some(object), Some(_)) => Some(WatchEvent::Modified(object)),
            (None, Some(object)) => Some(WatchEvent::Deleted(object)),
            (None, None) => None,
        }
    }

    async fn changes(&self) -> Result<Vec<Arc<Change>>, Error> {
        let inner = &self.store.inner;
        match inner.feed.after(self.cursor, MAX_BATCH) {
            Some(changes) => Ok(changes),
            None => read_log(&inner.database, &inner.registry, &inner.codec, self.cursor).await,
        }
    }

    async fn next(&mut self) -> Option<WatchEvent<Arc<Encoded>>> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            // Read before the changes, so that a change which arrives in between wakes the wait below.
            let head = *self.head.borrow_and_update();
            if head.is_closed {
                return None;
            }
            match self.changes().await {
                Ok(changes) => {
                    for change in &changes {
                        self.cursor = change.version;
                        let event = self.event(change);
                        self.pending.extend(event);
                    }
                    if !changes.is_empty() {
                        continue;
                    }
                }
                Err(error) => {
                    self.ended = true;
                    return Some(WatchEvent::Failed(error));
                }
            }
            let due = self.bookmark_at.unwrap_or_else(|| Instant::now() + BOOKMARK_INTERVAL);
            match tokio::time::timeout_at(due, self.head.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => {
                    if let Some(at) = &mut self.bookmark_at {
                        *at = Instant::now() + BOOKMARK_INTERVAL;
                        return Some(WatchEvent::Bookmark { version: self.cursor, initial_end: false });
                    }
                }
            }
        }
    }
}

impl Embedded {
    /// Follows changes as [`ObjectStore::watch`](crate::store::ObjectStore::watch) does, with the texts of the objects, which all watches share.
    ///
    /// # Errors
    /// As there.
    pub async fn watch_texts(
        &self,
        resource: Arc<Resource>,
        options: WatchOptions,
    ) -> Result<impl Stream<Item = WatchEvent<Arc<Encoded>>> + Send + 'static, Error> {
        let WatchOptions { selection, after, send_initial_events, bookmarks } = options;
        selection.check(&resource)?;
        let mut pending = VecDeque::new();
        let mut ended = false;
        let cursor = match after {
            Some(version) if !send_initial_events => {
                let clock = self.inner.database.read_now(repo::clock)?;
                if version < clock.compacted {
                    pending.push_back(WatchEvent::Failed(lists::too_old(version, clock)));
                    ended = true;
                }
                version
            }
            _ => {
                let all = ListOptions { selection: selection.clone(), ..ListOptions::default() };
                let page = self.list_texts(&resource, &all).await?;
                pending.extend(page.items.into_iter().map(|text| WatchEvent::Added(Arc::new(text))));
                if send_initial_events && bookmarks {
                    let version = page.resource_version;
                    pending.push_back(WatchEvent::Bookmark { version, initial_end: true });
                }
                page.resource_version
            }
        };
        let watch = Watch {
            store: self.clone(),
            stored_as: resource.stored_as().to_string(),
            resource,
            selection,
            cursor,
            pending,
            head: self.inner.feed.subscribe(),
            bookmark_at: bookmarks.then(|| Instant::now() + BOOKMARK_INTERVAL),
            ended,
        };
        Ok(stream::unfold(watch, |mut watch| async move { watch.next().await.map(|event| (event, watch)) }).boxed())
    }
}
