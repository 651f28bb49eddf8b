//! Who may read what the agent knows of pods: those who send a token as [`slipway_core::node_access`] describes it.
//!
//! Metrics and health stay open, since Prometheus and the kubelet send no tokens.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use serde_json::json;
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

    async fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        match self {
            Self::ThisMachine => Ok(()),
            Self::Closed(why) => Err(Refusal::Forbidden((*why).to_owned())),
            Self::Tokens(tokens) => tokens.check(headers).await,
        }
    }
}

impl Tokens {
    async fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let token = headers.get(HEADER).and_then(|v| v.to_str().ok()).filter(|t| !t.is_empty() && t.len() <= MAX_TOKEN);
        let token = token.ok_or(Refusal::Unauthenticated)?;
        let key = digest(&SHA256, token.as_bytes()).as_ref().to_vec();
        if self.good.lock().get(&key).is_some_and(|at| at.elapsed() < CACHED) {
            return Ok(());
        }
        let review = async {
            let turn = self.turns.acquire().await;
            // The semaphore is never closed.
            let _turn = turn.map_err(|e| ClusterError::Unreachable(e.to_string()))?;
            (self.review)(token.to_owned()).await
        };
        let reviewed = tokio::time::timeout(REVIEW_TIMEOUT, review).await;
        let late = |_| ClusterError::Unreachable(format!("no answer within {} s", REVIEW_TIMEOUT.as_secs()));
        match reviewed.map_err(late).and_then(|r| r).map_err(Refusal::Unreachable)? {
            Some(user) if user == self.user => {}
            Some(user) => return Err(Refusal::Forbidden(format!("{user} may not read what this agent knows of pods"))),
            None => return Err(Refusal::Unauthenticated),
        }
        let mut good = self.good.lock();
        if good.len() >= MAX_CACHED {
            good.clear();
        }
        good.insert(key, Instant::now());
        Ok(())
    }
}

enum Refusal {
    Unauthenticated,
    Forbidden(String),
    Unreachable(ClusterError),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, code, error) = match self {
            Self::Unauthenticated => (
                StatusCode::UNAUTHORIZED,
                "auth.required",
                format!("this agent asks for a token of {ACCOUNT} for the audience {AUDIENCE}"),
            ),
            Self::Forbidden(why) => (StatusCode::FORBIDDEN, "auth.forbidden", why),
            Self::Unreachable(error) => (StatusCode::SERVICE_UNAVAILABLE, "kube.unreachable", error.to_string()),
        };
        let hint = format!(
            "Use slipway node ls, or kubectl create token {ACCOUNT} --audience {AUDIENCE}, sent in the header {HEADER}."
        );
        (status, Json(json!({"error": error, "code": code, "hint": hint}))).into_response()
    }
}

/// Lets a request through to a protected route, or refuses it.
pub(crate) async fn check(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    match gate.check(request.headers()).await {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}
