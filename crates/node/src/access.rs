//! Access policy of the agent's HTTP routes. Routes with data about pods require a token as described in
//! [`slipway_core::node_access`]; which routes these are is declared in [`crate::http`].
//!
//! Metrics and health are public, because Prometheus and the kubelet send no tokens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use ring::digest::{SHA256, digest};
use serde_json::json;
use slipway_access::{Caller, Guard, HostNames, Permission, Person, Policy, Refusal, Resource, Unavailable, Verb};
use slipway_core::cache::TtlCache;
use slipway_core::node_access::{ACCOUNT, AUDIENCE, HEADER, user};
use tokio::sync::Semaphore;

use crate::cluster::{Cluster, ClusterError};

/// Time for which an accepted token is cached before it is reviewed again.
const TOKEN_CACHE_TTL: Duration = Duration::from_secs(60);
/// Maximum number of cached tokens.
const MAX_CACHED_TOKENS: usize = 64;
/// Maximum number of concurrent reviews, so that clients with invalid tokens cannot make the agent flood the API server.
const MAX_REVIEWS: usize = 4;
/// Timeout for a review, including the wait for a permit.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of a token in bytes; tokens of service accounts have about 1000.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Reviews a token with the API server and returns the user it belongs to.
type Review = Box<dyn Fn(String) -> BoxFuture<'static, Result<Option<String>, ClusterError>> + Send + Sync>;

/// Decides who may read the protected routes.
pub(crate) enum Gate {
    /// Allows every client: without a cluster the agent listens only on loopback.
    Loopback,
    /// Denies every client, for this reason.
    Closed(&'static str),
    /// Allows clients with a valid token.
    Tokens(Tokens),
}

/// Reviews tokens and caches accepted ones.
pub(crate) struct Tokens {
    review: Review,
    /// The user whose tokens are accepted.
    user: String,
    /// Accepted tokens, by their SHA-256 digests so that tokens are not kept in memory.
    accepted: TtlCache<Vec<u8>, ()>,
    permits: Semaphore,
}

impl Gate {
    /// Creates the gate of an agent that listens on `address` and belongs to the installation in `namespace`.
    pub(crate) fn new<C: Cluster>(cluster: Option<Arc<C>>, namespace: Option<&str>, address: SocketAddr) -> Self {
        match (cluster, namespace) {
            (None, _) if address.ip().is_loopback() => Self::Loopback,
            (None, _) => Self::Closed("this agent has no cluster and does not listen on loopback only"),
            (Some(_), None) => Self::Closed("this agent does not know the namespace of its installation"),
            (Some(cluster), Some(namespace)) => Self::Tokens(Tokens {
                review: Box::new(move |token| {
                    let cluster = Arc::clone(&cluster);
                    Box::pin(async move { cluster.user_of(&token, AUDIENCE).await })
                }),
                user: user(namespace),
                accepted: TtlCache::new(TOKEN_CACHE_TTL, MAX_CACHED_TOKENS),
                permits: Semaphore::new(MAX_REVIEWS),
            }),
        }
    }

    /// The guard of the agent's routes. Host names are checked only on loopback, where a web page must not reach the agent by DNS
    /// rebinding. In a cluster the API server's proxy forwards the `Host` header of its own client, so any name is valid.
    pub(crate) fn guard(self) -> Guard {
        let hosts = matches!(self, Self::Loopback).then(HostNames::default);
        Guard::new(Arc::new(self), "", hosts)
    }
}

impl Policy for Gate {
    fn token(&self, headers: &HeaderMap) -> Option<String> {
        // The API server's proxy does not forward `Authorization`, so the token has its own header.
        headers.get(HEADER).and_then(|v| v.to_str().ok()).map(str::to_owned)
    }

    fn authenticate<'a>(&'a self, token: Option<&'a str>) -> BoxFuture<'a, Result<Option<Caller>, Unavailable>> {
        Box::pin(async move {
            match self {
                Self::Loopback => Ok(Some(Caller::Owner)),
                Self::Closed(_) => Ok(Some(Caller::Anonymous)),
                Self::Tokens(tokens) => {
                    let name = tokens.holder(token).await.map_err(|error| Unavailable(error.to_string()))?;
                    Ok(name.map(|name| Caller::Person(Person { name, ..Person::default() })))
                }
            }
        })
    }

    fn allows<'a>(&'a self, caller: &'a Caller, wanted: &'a Permission) -> BoxFuture<'a, Result<bool, Unavailable>> {
        let is_read = wanted.verb == Verb::Get && wanted.resource == Resource::Nodes;
        let allowed = match self {
            Self::Loopback => true,
            Self::Closed(_) => false,
            Self::Tokens(tokens) => is_read && caller.name() == Some(tokens.user.as_str()),
        };
        Box::pin(std::future::ready(Ok(allowed)))
    }

    fn refuse(&self, refusal: Refusal, _: &HeaderMap) -> Response {
        let (status, code) = (refusal.status(), refusal.code());
        let error = match (self, refusal) {
            (Self::Closed(why), Refusal::Forbidden(_)) => (*why).to_owned(),
            (_, Refusal::Unauthenticated) => {
                format!("this agent requires a token of {ACCOUNT} for the audience {AUDIENCE}")
            }
            // The standard message refers to a setting for host names, which the agent does not have.
            (_, Refusal::Misdirected(host)) => format!("this agent does not serve the host '{host}'"),
            (_, refusal) => refusal.message(),
        };
        let hint = match code {
            // These errors are not caused by the token.
            "auth.host" => "Use localhost or the address of this machine.".to_owned(),
            "auth.foreign" => "Open the agent's address directly instead of from another page.".to_owned(),
            _ => format!(
                "Use slipway node ls, or kubectl create token {ACCOUNT} --audience {AUDIENCE}, sent in the header {HEADER}."
            ),
        };
        (status, Json(json!({"error": error, "code": code, "hint": hint}))).into_response()
    }
}

impl Tokens {
    /// The user that a token belongs to; `None` for a missing or invalid token.
    async fn holder(&self, token: Option<&str>) -> Result<Option<String>, ClusterError> {
        let Some(token) = token.filter(|t| !t.is_empty() && t.len() <= MAX_TOKEN_BYTES) else { return Ok(None) };
        let key = digest(&SHA256, token.as_bytes()).as_ref().to_vec();
        if self.accepted.get(&key).is_some() {
            return Ok(Some(self.user.clone()));
        }
        let review = async {
            let permit = self.permits.acquire().await;
            // The semaphore is never closed.
            let _permit = permit.map_err(|e| ClusterError::Unreachable(e.to_string()))?;
            (self.review)(token.to_owned()).await
        };
        let reviewed = tokio::time::timeout(REVIEW_TIMEOUT, review).await;
        let timed_out = |_| ClusterError::Unreachable(format!("no response within {} s", REVIEW_TIMEOUT.as_secs()));
        let holder = reviewed.map_err(timed_out).and_then(|r| r)?;
        if holder.as_ref() == Some(&self.user) {
            self.accepted.put(key, ());
        }
        Ok(holder)
    }
}
