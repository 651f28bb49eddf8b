//! Who may read what the agent knows of pods: those who send a token as [`slipway_core::node_access`] describes it. Which routes that are
//! is written beside the routes ([`crate::http`]); this is the policy that decides about callers.
//!
//! Metrics and health stay open, since Prometheus and the kubelet send no tokens.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use serde_json::json;
use slipway_access::{Caller, Guard, HostNames, Permission, Person, Policy, Refusal, Resource, Unavailable, Verb};
use slipway_core::node_access::{ACCOUNT, AUDIENCE, HEADER, user};
use tokio::sync::Semaphore;

use crate::cluster::{Cluster, ClusterError};

/// A token that was good is good for so long without another review.
const CACHED: Duration = Duration::from_secs(60);
/// Tokens whose review is remembered; beyond it all are forgotten, which only costs asking again.
const MAX_CACHED: usize = 64;
/// Reviews at once, so that nobody makes an agent flood the API server with wrong tokens.
const MAX_REVIEWS: usize = 4;
/// Time for a review, the wait for its turn included.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a token; service accounts' have about a thousand.
const MAX_TOKEN: usize = 16 * 1024;

type Review = Box<dyn Fn(String) -> BoxFuture<'static, Result<Option<String>, ClusterError>> + Send + Sync>;

/// Decides who may read the protected routes.
pub(crate) enum Gate {
    /// Whoever reaches the port: without a cluster the agent listens on this machine only.
    ThisMachine,
    /// Nobody, and why.
    Closed(&'static str),
    /// Holders of a token.
    Tokens(Tokens),
}

pub(crate) struct Tokens {
    review: Review,
    /// Whose tokens are accepted.
    user: String,
    /// When tokens were found good, by their digest: the tokens themselves are not kept.
    good: Mutex<HashMap<Vec<u8>, Instant>>,
    turns: Semaphore,
}

impl Gate {
    /// The gate of an agent that listens on `address`, of the installation in `namespace`.
    pub(crate) fn new<C: Cluster>(cluster: Option<Arc<C>>, namespace: Option<&str>, address: SocketAddr) -> Self {
        match (cluster, namespace) {
            (None, _) if address.ip().is_loopback() => Self::ThisMachine,
            (None, _) => Self::Closed("this agent is in no cluster, and listens beyond this machine"),
            (Some(_), None) => Self::Closed("this agent does not know the namespace of its installation"),
            (Some(cluster), Some(namespace)) => Self::Tokens(Tokens {
                review: Box::new(move |token| {
                    let cluster = Arc::clone(&cluster);
                    Box::pin(async move { cluster.user_of(&token, AUDIENCE).await })
                }),
                user: user(namespace),
                good: Mutex::default(),
                turns: Semaphore::new(MAX_REVIEWS),
            }),
        }
    }

    /// The guard of the agent's routes. Only an agent that trusts whoever reaches its port knows its names: a web page must not reach it
    /// under a name that points to this machine. In a cluster the API server's proxy passes on the `Host` of its own client.
    pub(crate) fn guard(self) -> Guard {
        let hosts = matches!(self, Self::ThisMachine).then(HostNames::default);
        Guard::new(Arc::new(self), "", hosts)
    }
}

impl Policy for Gate {
    fn token(&self, headers: &HeaderMap) -> Option<String> {
        // Not `Authorization`, which the API server's proxy keeps to itself.
        headers.get(HEADER).and_then(|v| v.to_str().ok()).map(str::to_owned)
    }

    fn authenticate<'a>(&'a self, token: Option<&'a str>) -> BoxFuture<'a, Result<Option<Caller>, Unavailable>> {
        Box::pin(async move {
            match self {
                Self::ThisMachine => Ok(Some(Caller::Owner)),
                Self::Closed(_) => Ok(Some(Caller::Anonymous)),
                Self::Tokens(tokens) => {
                    let name = tokens.holder(token).await.map_err(|error| Unavailable(error.to_string()))?;
                    Ok(name.map(|name| Caller::Person(Person { name, ..Person::default() })))
                }
            }
        })
    }

    fn allows<'a>(&'a self, caller: &'a Caller, wanted: &'a Permission) -> BoxFuture<'a, Result<bool, Unavailable>> {
        let reads = wanted.verb == Verb::Get && wanted.resource == Resource::Nodes;
        let may = match self {
            Self::ThisMachine => true,
            Self::Closed(_) => false,
            Self::Tokens(tokens) => reads && caller.name() == Some(tokens.user.as_str()),
        };
        Box::pin(std::future::ready(Ok(may)))
    }

    fn refuse(&self, refusal: Refusal, _: &HeaderMap) -> Response {
        let (status, code) = (refusal.status(), refusal.code());
        let error = match (self, refusal) {
            (Self::Closed(why), Refusal::Forbidden(_)) => (*why).to_owned(),
            (_, Refusal::Unauthenticated) => {
                format!("this agent asks for a token of {ACCOUNT} for the audience {AUDIENCE}")
            }
            // The agent has no setting to add names to.
            (_, Refusal::Misdirected(host)) => format!("this agent does not answer for the host '{host}'"),
            (_, refusal) => refusal.message(),
        };
        let hint = match code {
            // The token is not what is wrong.
            "auth.host" => "Use localhost or the address of this machine.".to_owned(),
            "auth.foreign" => "Open the agent's address itself, and not a page that asks it.".to_owned(),
            _ => format!(
                "Use slipway node ls, or kubectl create token {ACCOUNT} --audience {AUDIENCE}, sent in the header {HEADER}."
            ),
        };
        (status, Json(json!({"error": error, "code": code, "hint": hint}))).into_response()
    }
}

impl Tokens {
    /// Whose token this is; `None` for nobody's.
    async fn holder(&self, token: Option<&str>) -> Result<Option<String>, ClusterError> {
        let Some(token) = token.filter(|t| !t.is_empty() && t.len() <= MAX_TOKEN) else { return Ok(None) };
        let key = digest(&SHA256, token.as_bytes()).as_ref().to_vec();
        if self.good.lock().get(&key).is_some_and(|at| at.elapsed() < CACHED) {
            return Ok(Some(self.user.clone()));
        }
        let review = async {
            let turn = self.turns.acquire().await;
            // The semaphore is never closed.
            let _turn = turn.map_err(|e| ClusterError::Unreachable(e.to_string()))?;
            (self.review)(token.to_owned()).await
        };
        let reviewed = tokio::time::timeout(REVIEW_TIMEOUT, review).await;
        let late = |_| ClusterError::Unreachable(format!("no answer within {} s", REVIEW_TIMEOUT.as_secs()));
        let holder = reviewed.map_err(late).and_then(|r| r)?;
        if holder.as_ref() == Some(&self.user) {
            let mut good = self.good.lock();
            if good.len() >= MAX_CACHED {
                good.clear();
            }
            good.insert(key, Instant::now());
        }
        Ok(holder)
    }
}
