//! The log of a pod: what the program of an attempt wrote to its standard output and standard error.

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use slipway_access::Verb;
use slipway_core::clock::{now_ms, parse_rfc3339};
use slipway_exec::pod::{ATTEMPT_LABEL, CONTAINER_NAME, RUN_LABEL};
use slipway_exec::{ExecError, LogQuery, LogStream};
use slipway_objects::embedded::Embedded;
use slipway_objects::store::ObjectStore;
use slipway_objects::{Error, Object};

use super::request::{Call, Parameters, Target};
use super::response::Failure;

pub(super) async fn respond(target: Target, store: Embedded, call: Call) -> Result<Response, Failure> {
    call.authorize(&target, Verb::Get).await?;
    let pod = store.get(&target.resource, &call.namespace, &call.name).await?;
    let (query, name) = (&call.query, &call.name);
    let container = query.text("container");
    if !matches!(container, "" | CONTAINER_NAME) {
        return Err(Error::BadRequest(format!("container {container} is not valid for pod {name}")).into());
    }
    if query.flag("previous") {
        let text = format!("previous terminated container {CONTAINER_NAME:?} in pod {name:?} not found");
        return Err(Error::BadRequest(text).into());
    }
    if query.flag("timestamps") {
        let text = "the program writes its log itself, without the time of each line".to_owned();
        return Err(Error::BadRequest(text).into());
    }
    let headers = [(header::CONTENT_TYPE, "text/plain"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    if !has_lines_since(&pod, query)? {
        return Ok(headers.into_response());
    }
    let unavailable = || Error::BadRequest("runs need a running server with authentication".to_owned());
    let executor = target.executor.as_ref().and_then(|executor| executor.get()).ok_or_else(unavailable)?;
    let label = |name: &str| pod.metadata.labels.get(name).map_or("", String::as_str);
    let options = LogQuery {
        attempt: label(ATTEMPT_LABEL).parse().ok(),
        follow: query.flag("follow"),
        tail: query.number("tailLines")?,
    };
    let log = executor.logs(&call.namespace, label(RUN_LABEL), options).await.map_err(|error| match error {
        ExecError::NotFound(_) => target.resource.not_found(name),
        ExecError::NotNow(_) => Error::BadRequest(format!(
            "container {CONTAINER_NAME:?} in pod {name:?} is waiting to start: ContainerCreating"
        )),
        other => Error::BadRequest(other.to_string()),
    })?;
    let body = match query.number("limitBytes")? {
        Some(limit) => Body::from_stream(limited(log, usize::try_from(limit).unwrap_or(usize::MAX))),
        None => Body::from_stream(log),
    };
    Ok((headers, body).into_response())
}

/// The first bytes of a log.
fn limited(log: LogStream, limit: usize) -> LogStream {
    let state = (log, limit);
    let next = |(mut log, left): (LogStream, usize)| async move {
        if left == 0 {
            return None;
        }
        match log.next().await? {
            Ok(bytes) => {
                let bytes: Bytes = bytes.slice(..bytes.len().min(left));
                let left = left - bytes.len();
                Some((Ok(bytes), (log, left)))
            }
            Err(error) => Some((Err(error), (log, 0))),
        }
    };
    stream::unfold(state, next).boxed()
}

/// Whether the log has lines after the time of a request. The lines have no times, so only those of the attempt decide.
fn has_lines_since(pod: &Object, query: &Parameters) -> Result<bool, Error> {
    let since = match (query.number("sinceSeconds")?, query.text("sinceTime")) {
        (None, "") => return Ok(true),
        (Some(seconds), _) => now_ms().saturating_sub(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000)),
        (None, text) => parse_rfc3339(text).ok_or_else(|| Error::BadRequest(format!("invalid sinceTime {text:?}")))?,
    };
    let state = &pod.at(&["status", "containerStatuses"])[0]["state"];
    let time = |state_name: &str, field: &str| state[state_name][field].as_str().and_then(parse_rfc3339);
    let started = time("running", "startedAt").or_else(|| time("terminated", "startedAt"));
    match (started, time("terminated", "finishedAt")) {
        (_, Some(finished)) if finished < since => Ok(false),
        // The times of a status are in whole seconds.
        (Some(started), _) if started + 1000 < since => Err(Error::BadRequest(
            "the program writes its log itself, without the time of each line, and it was started before that time; use tailLines".into(),
        )),
        _ => Ok(true),
    }
}
