//! Watches over HTTP: a response of JSON events, one per line, that ends after some time. Clients then continue at the version of the last
//! event.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde_json::json;
use slipway_core::clock::now_ms;
use slipway_objects::embedded::Embedded;
use slipway_objects::error::{FieldError, RequestOptions};
use slipway_objects::store::{WatchEvent, WatchOptions, parse_version};
use slipway_objects::{Encoded, Resource};

use super::handlers::MATCH;
use super::negotiation::prefers_yaml;
use super::request::{Call, Target};
use super::response::{Failure, View};

/// The least time after which a watch ends, in seconds, unless the client chooses another. Twice this time is the most.
const MIN_TIMEOUT: u64 = 1800;
/// The longest time that a client may choose, in seconds.
const MAX_TIMEOUT: u64 = 24 * 60 * 60;
/// The annotation of the bookmark behind the initial objects.
const INITIAL_END: &str = "k8s.io/initial-events-end";

pub(super) async fn respond(target: Target, store: Embedded, call: Call) -> Result<Response, Failure> {
    if prefers_yaml(&call.headers) {
        return Err(Failure::not_acceptable_stream());
    }
    let view = View::of(&call)?;
    let version = parse_version(call.query.text("resourceVersion"))?;
    let send_initial_events = call.query.flag("sendInitialEvents");
    if send_initial_events && call.query.text(MATCH) != "NotOlderThan" {
        let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        return Err(RequestOptions::List.invalid(vec![FieldError::forbidden(MATCH, detail)]).into());
    }
    let options = WatchOptions {
        selection: call.selection()?,
        // Version 0 stands for any version.
        after: version.filter(|version| *version > 0),
        send_initial_events,
        bookmarks: call.query.flag("allowWatchBookmarks"),
    };
    // Spread over time, so that clients which began together do not all return together.
    let spread = now_ms().unsigned_abs() % MIN_TIMEOUT;
    let timeout = call.query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0);
    let timeout = Duration::from_secs(timeout.unwrap_or(MIN_TIMEOUT + spread).min(MAX_TIMEOUT));
    let events = store.watch_texts(Arc::clone(&target.resource), options).await?;
    let is_first = AtomicBool::new(true);
    let lines = events.take_until(tokio::time::sleep(timeout)).map(move |event| {
        let line = line(&target.resource, view, event, is_first.swap(false, Ordering::Relaxed));
        Ok::<_, Infallible>(Bytes::from(line))
    });
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response())
}

/// The line of an event.
fn line(resource: &Resource, view: View, event: WatchEvent<Arc<Encoded>>, is_first: bool) -> Vec<u8> {
    let write =
        |kind: &str, object: &[u8]| [br#"{"type":""#, kind.as_bytes(), br#"","object":"#, object, b"}\n"].concat();
    let shown = |kind: &str, text: &Encoded| match view.text(resource, text, is_first) {
        Ok(object) => write(kind, &object),
        Err(error) => write("ERROR", json!(error.status()).to_string().as_bytes()),
    };
    match event {
        WatchEvent::Added(text) => shown("ADDED", &text),
        WatchEvent::Modified(text) => shown("MODIFIED", &text),
        WatchEvent::Deleted(text) => shown("DELETED", &text),
        WatchEvent::Bookmark { version, initial_end } => {
            let mut metadata = json!({"resourceVersion": version.to_string()});
            if initial_end {
                metadata["annotations"] = json!({ INITIAL_END: "true" });
            }
            let object = json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata});
            write("BOOKMARK", object.to_string().as_bytes())
        }
        WatchEvent::Failed(error) => write("ERROR", json!(error.status()).to_string().as_bytes()),
    }
}
