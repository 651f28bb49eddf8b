//! The log of a pod: what the program of an attempt wrote to its standard output and standard error.

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde_json::json;
use slipway_access::Verb;
use slipway_core::clock::{now_ms, parse_rfc3339};
use slipway_exec::pod::{ATTEMPT_LABEL, CONTAINER_NAME, RUN_LABEL};
use slipway_exec::{ExecError, LogQuery, LogStream};
use slipway_objects::Error;
use slipway_objects::embedded::Embedded;
use slipway_objects::error::FieldError;
use slipway_objects::store::ObjectStore;

use super::request::{Call, Parameters, Target};
use super::response::Failure;

pub(super) async fn respond(target: Target, store: Embedded, call: Call) -> Result<Response, Failure> {
    call.authorize(&target, Verb::Get).await?;
    let (query, name) = (&call.query, &call.name);
    let Options { tail, limit, since } = Options::read(query, name)?;
    let pod = store.get(&target.resource, &call.namespace, name).await?;
    let container = query.text("container");
    if !matches!(container, "" | CONTAINER_NAME) {
        return Err(Error::BadRequest(format!("container {container} is not valid for pod {name}")).into());
    }
    if query.flag("previous") {
        let text = format!("previous terminated container {CONTAINER_NAME:?} in pod {name:?} not found");
        return Err(Error::BadRequest(text).into());
    }
    let headers = [(header::CONTENT_TYPE, "text/plain"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    let unavailable = || Error::BadRequest("runs need a running server with authentication".to_owned());
    let executor = target.executor.as_ref().and_then(|executor| executor.get()).ok_or_else(unavailable)?;
    let label = |name: &str| pod.metadata.labels.get(name).map_or("", String::as_str);
    let options = LogQuery {
        attempt: label(ATTEMPT_LABEL).parse().ok(),
        follow: query.flag("follow"),
        tail,
        since,
        timestamps: query.flag("timestamps"),
    };
    let log = executor.logs(&call.namespace, label(RUN_LABEL), options).await.map_err(|error| match error {
        ExecError::NotFound(_) => target.resource.not_found(name),
        ExecError::NotNow(_) => Error::BadRequest(format!(
            "container {CONTAINER_NAME:?} in pod {name:?} is waiting to start: ContainerCreating"
        )),
        other => Error::BadRequest(other.to_string()),
    })?;
    let body = match limit {
        Some(limit) => Body::from_stream(limited(log, limit)),
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

/// Which part of a log is requested, with the checks of the API server.
struct Options {
    tail: Option<u64>,
    /// Maximum bytes of the response.
    limit: Option<usize>,
    /// In milliseconds since the Unix epoch.
    since: Option<i64>,
}

impl Options {
    fn read(query: &Parameters, pod: &str) -> Result<Self, Error> {
        let (tail, limit) = (query.integer("tailLines")?, query.integer("limitBytes")?);
        let (seconds, time) = (query.integer("sinceSeconds")?, query.text("sinceTime"));
        let mut errors = Vec::new();
        let mut at_least = |field: &str, value: Option<i64>, minimum: i64| {
            if let Some(value) = value.filter(|value| *value < minimum) {
                let detail = if minimum == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
                errors.push(FieldError::invalid(field, &json!(value), detail));
            }
        };
        at_least("tailLines", tail, 0);
        at_least("limitBytes", limit, 1);
        if seconds.is_some() && !time.is_empty() {
            let detail = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.push(FieldError::forbidden("[]", detail));
        } else {
            at_least("sinceSeconds", seconds, 1);
        }
        if !errors.is_empty() {
            let (group, kind) = (String::new(), "PodLogOptions".to_owned());
            return Err(Error::Invalid { group, kind, name: pod.to_owned(), errors });
        }
        let since = match seconds {
            Some(seconds) => Some(now_ms().saturating_sub(seconds.saturating_mul(1000))),
            None if time.is_empty() => None,
            None => Some(parse_rfc3339(time).ok_or_else(|| Error::BadRequest(format!("invalid sinceTime {time:?}")))?),
        };
        // Neither is negative now.
        let tail = tail.map(i64::unsigned_abs);
        Ok(Self { tail, limit: limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)), since })
    }
}
