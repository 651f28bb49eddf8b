//! What all handlers read from requests and write to responses.

use std::collections::BTreeMap;
use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use slipway_access::refusal::Refusal;
use slipway_access::{Decision, Resource, Verb};

use super::failure::{Code, Failure};
use crate::Error;
use crate::listing::ListRequest;
use crate::proto_json::{self, snake_case};

/// A JSON response.
pub(super) fn json_response(status: StatusCode, body: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.into()).into_response()
}

/// A message as response.
pub(super) fn respond(message: &impl Serialize) -> Response {
    match serde_json::to_vec(message) {
        Ok(body) => json_response(StatusCode::OK, body),
        Err(error) => Failure::new(Code::Internal, error.to_string()).into_response(),
    }
}

/// The response of an operation without a result.
pub(super) fn done() -> Response {
    json_response(StatusCode::OK, "{}")
}

/// A message in the body of a request.
pub(super) struct Input<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for Input<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let body = body(request, state).await?;
        proto_json::read(&body).map(Self).map_err(|reason| Failure::new(Code::InvalidArgument, reason))
    }
}

/// The body of a request.
pub(super) async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Failure> {
    Bytes::from_request(request, state)
        .await
        .map_err(|rejection| Failure::new(Code::InvalidArgument, rejection.body_text()).with_status(rejection.status()))
}

/// The query of a request; names may be in camel case.
pub(super) struct Query(BTreeMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let query = parts.uri.query().unwrap_or_default();
        let pairs = form_urlencoded::parse(query.as_bytes());
        Ok(Self(pairs.map(|(name, value)| (snake_case(&name), value.into_owned())).collect()))
    }
}

impl Query {
    /// The value of a parameter; empty without it.
    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Whether a parameter is `true`.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.text(name) {
            "" | "false" | "0" | "False" => Ok(false),
            "true" | "1" | "True" => Ok(true),
            other => Err(Failure::new(Code::InvalidArgument, format!("parameter {name}: {other:?} is not a boolean"))),
        }
    }

    /// The parameters of a list.
    pub(super) fn list(&self) -> Result<ListRequest, Failure> {
        let page_size = match self.text("page_size") {
            "" => 0,
            text => text.parse().map_err(|_| {
                Failure::new(Code::InvalidArgument, format!("parameter page_size: {text:?} is not an integer"))
            })?,
        };
        Ok(ListRequest {
            page_token: self.text("page_token").to_owned(),
            page_size,
            sort_by: self.text("sort_by").to_owned(),
            filter: self.text("filter").to_owned(),
        })
    }
}

/// Allows or refuses the caller an operation in a namespace.
pub(super) async fn authorize(decision: &Decision, verb: Verb, namespace: &str) -> Result<(), Failure> {
    authorize_for(decision, verb, Resource::Runs, namespace).await
}

/// An object that a request names by its id.
pub(super) struct Named<'a> {
    /// What it is, in the words of errors: `Run`.
    pub(super) kind: &'static str,
    pub(super) id: &'a str,
    pub(super) namespace: &'a str,
    /// What the request attempts.
    pub(super) attempt: &'a str,
}

/// [`authorize`] for an object that was found by its id. Whoever may not read it is told the same as if it did not exist.
pub(super) async fn authorize_named(decision: &Decision, verb: Verb, named: &Named<'_>) -> Result<(), Failure> {
    hidden(decision, authorize(decision, verb, named.namespace).await, named).await
}

/// [`authorize_named`] for the logs of a run.
pub(super) async fn authorize_logs(decision: &Decision, named: &Named<'_>) -> Result<(), Failure> {
    hidden(decision, authorize_for(decision, Verb::Get, Resource::RunLogs, named.namespace).await, named).await
}

async fn hidden(decision: &Decision, allowed: Result<(), Failure>, named: &Named<'_>) -> Result<(), Failure> {
    let Err(refused) = allowed else { return Ok(()) };
    if refused.code() != Code::PermissionDenied || authorize(decision, Verb::Get, named.namespace).await.is_ok() {
        return Err(refused);
    }
    let missing = Failure::from(Error::NotFound(format!("{} {} not found", named.kind, named.id)));
    Err(if named.attempt.is_empty() { missing } else { missing.context(named.attempt) })
}

async fn authorize_for(decision: &Decision, verb: Verb, resource: Resource, namespace: &str) -> Result<(), Failure> {
    decision.authorize(verb, resource, Some(namespace)).await.map_err(|refusal: Refusal| {
        Failure::from(refusal).context("Failed to authorize the request: Failed to authorize with API")
    })
}

/// The id and the action of `ID:ACTION`.
pub(super) fn action(path: &str) -> Result<(&str, &str), Failure> {
    path.rsplit_once(':').ok_or_else(|| Failure::new(Code::NotFound, "Not Found"))
}

/// The error for an action that an object does not have.
pub(super) fn unknown_action() -> Failure {
    Failure::new(Code::NotFound, "Not Found")
}
