//! Watches of an API server. It ends them after some minutes, and connections break; a watch continues at the version of the last event, so
//! its reader notices nothing. It ends for its reader only when the API server no longer retains that version, or rejects the request.

use std::collections::VecDeque;

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use kube::core::WatchEvent as Line;
use serde_json::Value;
use slipway_objects::store::{ListOptions, Part, Selection, WatchEvent, WatchOptions};
use slipway_objects::{Error, Object, Resource};

use super::requests::{self, Parameters, unreadable};
use super::{ApiServer, PAGE_SIZE};
use crate::KubeError;
use crate::api::WatchBackoff;

/// The time after which the API server ends a watch, in seconds. It must be less than the time after which the client treats a silent
/// connection as broken (295 s, the default of `kube`).
const TIMEOUT_SECONDS: &str = "290";
/// The events of one request.
type Lines = BoxStream<'static, Result<Line<Value>, kube::Error>>;

/// A running watch.
struct Watch {
    store: ApiServer,
    /// The names of the resource.
    resource: Resource,
    selection: Selection,
    /// Whether the reader gets bookmarks.
    bookmarks: bool,
    /// The next page of the initial objects; `None` once they are complete.
    listing: Option<ListOptions>,
    /// Whether a bookmark marks the end of the initial objects.
    marks_end: bool,
    /// The version up to which events were received.
    version: i64,
    /// Events to be returned before anything else.
    pending: VecDeque<WatchEvent>,
    lines: Option<Lines>,
    backoff: WatchBackoff,
    ended: bool,
}

/// Begins a watch. The first request is sent at once, so that one that is rejected is an error.
pub(super) async fn begin(
    store: &ApiServer,
    resource: &Resource,
    options: WatchOptions,
) -> Result<impl Stream<Item = WatchEvent> + Send + 'static, Error> {
    let WatchOptions { selection, after, send_initial_events, bookmarks } = options;
    let Resource { group, version: api_version, kind, plural, namespaced, .. } = *resource;
    let resource = Resource { namespaced, ..Resource::named(group, api_version, kind, plural) };
    let mut watch = Watch {
        store: store.clone(),
        resource,
        selection,
        bookmarks,
        listing: None,
        marks_end: send_initial_events && bookmarks,
        version: 0,
        pending: VecDeque::new(),
        lines: None,
        backoff: WatchBackoff::default(),
        ended: false,
    };
    match after.filter(|_| !send_initial_events) {
        None => {
            let selection = watch.selection.clone();
            watch.listing = Some(ListOptions { selection, limit: PAGE_SIZE, ..ListOptions::default() });
            watch.list().await?;
        }
        Some(version) => {
            watch.version = version;
            match watch.open().await {
                Ok(lines) => watch.lines = Some(lines),
                Err(error) if error.is_expired() => watch.fail(error),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(stream::unfold(watch, |mut watch| async move { watch.next().await.map(|event| (event, watch)) }).boxed())
}

/// Whether a request that failed with this error would fail again.
fn is_permanent(error: &Error) -> bool {
    error.status().code.is_some_and(|code| (400..500).contains(&code) && code != 429)
}

impl Watch {
    /// Reads the next page of the initial objects.
    async fn list(&mut self) -> Result<(), Error> {
        let Some(options) = &mut self.listing else { return Ok(()) };
        let page = self.store.page(&self.resource, options).await?;
        self.version = page.resource_version;
        self.pending.extend(page.items.into_iter().map(WatchEvent::Added));
        options.continue_token = page.continue_token;
        if options.continue_token.is_empty() {
            self.listing = None;
            if self.marks_end {
                self.pending.push_back(WatchEvent::Bookmark { version: self.version, initial_end: true });
            }
        }
        Ok(())
    }

    /// Sends the request for the events after the current version.
    async fn open(&mut self) -> Result<Lines, Error> {
        let mut parameters = Parameters::of_selection(&self.selection);
        parameters.add("watch", "true");
        // Bookmarks keep the version recent, so that a watch without events can continue.
        parameters.add("allowWatchBookmarks", "true");
        parameters.add("timeoutSeconds", TIMEOUT_SECONDS);
        parameters.add("resourceVersion", &self.version.to_string());
        let namespace = self.selection.namespace.as_deref().unwrap_or_default();
        let uri = requests::uri(&self.resource, namespace, "", Part::Main, &parameters)?;
        let request = http::Request::get(uri).body(Vec::new()).map_err(|error| Error::BadRequest(error.to_string()))?;
        Ok(self.store.api.follow(request).await.map_err(error_of)?.boxed())
    }

    /// Ends the watch with an error.
    fn fail(&mut self, error: Error) {
        self.pending.push_back(WatchEvent::Failed(error));
        self.ended = true;
    }

    async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            let failed = match &mut self.lines {
                _ if self.listing.is_some() => self.list().await.err(),
                Some(lines) => match lines.next().await {
                    Some(Ok(line)) => self.receive(line).err(),
                    Some(Err(error)) => Some(error_of(error)),
                    None => {
                        self.lines = None;
                        None
                    }
                },
                None => match self.open().await {
                    Ok(lines) => {
                        self.lines = Some(lines);
                        None
                    }
                    Err(error) => Some(error),
                },
            };
            match failed {
                None => {}
                Some(error) if is_permanent(&error) => self.fail(error),
                Some(error) => {
                    tracing::debug!(%error, resource = ?self.resource, "a watch broke; continuing it");
                    self.lines = None;
                    let delay = self.backoff.next().unwrap_or_default();
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    /// Takes one line of the response.
    fn receive(&mut self, line: Line<Value>) -> Result<(), Error> {
        self.backoff = WatchBackoff::default();
        let event: fn(Object) -> WatchEvent = match &line {
            Line::Added(_) => WatchEvent::Added,
            Line::Modified(_) => WatchEvent::Modified,
            _ => WatchEvent::Deleted,
        };
        match line {
            Line::Added(value) | Line::Modified(value) | Line::Deleted(value) => {
                self.version = requests::version(&value["metadata"])?;
                self.pending.push_back(event(requests::object(&self.resource, value)?));
            }
            Line::Bookmark(bookmark) => {
                let version = bookmark.metadata.resource_version.parse().map_err(unreadable)?;
                self.version = version;
                if self.bookmarks {
                    self.pending.push_back(WatchEvent::Bookmark { version, initial_end: false });
                }
            }
            Line::Error(status) => return Err(error_of(kube::Error::Api(status))),
        }
        Ok(())
    }
}

/// The error of a request of the client.
fn error_of(error: kube::Error) -> Error {
    match error {
        kube::Error::Api(status) => {
            let reported = serde_json::to_value(&status).map(|mut value| {
                value["kind"] = "Status".into();
                value["apiVersion"] = "v1".into();
                value
            });
            match reported.and_then(serde_json::from_value) {
                Ok(status) => Error::from_status(status),
                Err(_) => unreadable(status.message),
            }
        }
        other => KubeError::from(other).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use serde_json::json;
    use slipway_objects::store::ObjectStore;

    use super::*;
    use crate::mock::MockCluster;

    fn pods() -> Resource {
        Resource::named("", "v1", "Pod", "pods")
    }

    fn pod(name: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "team"}})
    }

    #[tokio::test(start_paused = true)]
    async fn broken_watch_continues_without_a_gap() {
        let cluster = MockCluster::new();
        cluster.put("pods", pod("a"));
        let store = ApiServer::new(cluster.api("test"));
        let options = WatchOptions { send_initial_events: true, bookmarks: true, ..WatchOptions::default() };
        let mut events = pin!(store.watch(&pods(), options).await.unwrap());
        let mut next = async || match events.next().await.unwrap() {
            WatchEvent::Added(object) => format!("added {}", object.metadata.name),
            WatchEvent::Bookmark { initial_end, .. } => format!("bookmark {initial_end}"),
            other => format!("{other:?}"),
        };
        assert_eq!((next().await, next().await), ("added a".into(), "bookmark true".into()));
        cluster.break_watches();
        let late = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            cluster.put("pods", pod("b"));
        };
        assert_eq!(tokio::join!(next(), late).0, "added b");
    }

    #[tokio::test]
    async fn version_that_is_not_retained_ends_the_watch() {
        let cluster = MockCluster::new();
        cluster.put("pods", pod("a"));
        cluster.put("pods", pod("b"));
        let store = ApiServer::new(cluster.api("test"));
        let options = WatchOptions { after: Some(1), ..WatchOptions::default() };
        let mut events = pin!(store.watch(&pods(), options).await.unwrap());
        assert!(matches!(events.next().await, Some(WatchEvent::Failed(error)) if error.is_expired()));
        assert!(events.next().await.is_none());
    }
}
