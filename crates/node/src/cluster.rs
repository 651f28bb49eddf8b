//! What the agent asks of the API server. The binary hands in an implementation, so this crate needs no Kubernetes client and its
//! tests need no cluster.

use std::future::Future;

use serde_json::Value;
use slipway_core::Explain;
use tokio::sync::watch;

/// A kind of object and where it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Its name in manifests.
    pub kind: &'static str,
    /// Its name in URLs.
    pub plural: &'static str,
}

/// `v1 Node`.
pub const NODE: Kind = Kind { group: "", version: "v1", kind: "Node", plural: "nodes" };
/// `resource.k8s.io/v1 ResourceSlice`.
pub const RESOURCE_SLICE: Kind =
    Kind { group: "resource.k8s.io", version: "v1", kind: "ResourceSlice", plural: "resourceslices" };
/// `resource.k8s.io/v1 ResourceClaim`.
pub const RESOURCE_CLAIM: Kind =
    Kind { group: "resource.k8s.io", version: "v1", kind: "ResourceClaim", plural: "resourceclaims" };

impl Kind {
    /// `group/version`, or the version alone in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// The API server did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the message says it
pub enum ClusterError {
    #[error("the API server does not answer: {0}")]
    Unreachable(String),
    #[error("the API server refused: {message} ({code})")]
    Refused { code: u16, message: String },
}

impl Explain for ClusterError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "kube.unreachable",
            Self::Refused { .. } => "kube.refused",
        }
    }
}

/// What became of an eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// The pod is going, or was gone.
    Going,
    /// A disruption budget does not allow it now.
    Blocked,
}

/// The API server, seen by an agent.
pub trait Cluster: Send + Sync + 'static {
    /// An object; `None` when there is none of that name.
    fn get(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        name: &str,
    ) -> impl Future<Output = Result<Option<Value>, ClusterError>> + Send;

    /// Objects of a kind that a field selector chooses.
    fn list(&self, kind: Kind, fields: &str) -> impl Future<Output = Result<Vec<Value>, ClusterError>> + Send;

    /// Applies an object (server-side apply) as `manager`, whose fields it takes over; `status` applies to that subresource.
    fn apply(
        &self,
        kind: Kind,
        name: &str,
        manager: &str,
        status: bool,
        object: Value,
    ) -> impl Future<Output = Result<Value, ClusterError>> + Send;

    /// Deletes an object; no error when it is gone.
    fn delete(&self, kind: Kind, name: &str) -> impl Future<Output = Result<(), ClusterError>> + Send;

    /// Asks for a pod to be moved away.
    fn evict(&self, namespace: &str, pod: &str) -> impl Future<Output = Result<Eviction, ClusterError>> + Send;

    /// Tells what happened to an object.
    fn event(
        &self,
        about: Value,
        warning: bool,
        reason: &str,
        message: &str,
    ) -> impl Future<Output = Result<(), ClusterError>> + Send;

    /// The user who holds a token that was made for this audience (`authentication.k8s.io/v1 TokenReview`); `None` when it is no such
    /// token.
    fn user_of(&self, token: &str, audience: &str)
    -> impl Future<Output = Result<Option<String>, ClusterError>> + Send;

    /// The newest state of one object, for as long as the receiver lives; `None` until it is known and when it is gone.
    fn watch(&self, kind: Kind, name: &str) -> watch::Receiver<Option<Value>>;
}

/// A cluster for tests: it has no objects, and knows the users of some tokens.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Fake {
    /// Token and user.
    pub(crate) users: std::collections::BTreeMap<String, String>,
    /// Tokens that were asked about.
    pub(crate) asked: parking_lot::Mutex<Vec<String>>,
}

#[cfg(test)]
impl Cluster for Fake {
    async fn get(&self, _: Kind, _: Option<&str>, _: &str) -> Result<Option<Value>, ClusterError> {
        Ok(None)
    }
    async fn list(&self, _: Kind, _: &str) -> Result<Vec<Value>, ClusterError> {
        Ok(Vec::new())
    }
    async fn apply(&self, _: Kind, _: &str, _: &str, _: bool, object: Value) -> Result<Value, ClusterError> {
        Ok(object)
    }
    async fn delete(&self, _: Kind, _: &str) -> Result<(), ClusterError> {
        Ok(())
    }
    async fn evict(&self, _: &str, _: &str) -> Result<Eviction, ClusterError> {
        Ok(Eviction::Going)
    }
    async fn event(&self, _: Value, _: bool, _: &str, _: &str) -> Result<(), ClusterError> {
        Ok(())
    }
    fn watch(&self, _: Kind, _: &str) -> watch::Receiver<Option<Value>> {
        watch::channel(None).1
    }
    async fn user_of(&self, token: &str, audience: &str) -> Result<Option<String>, ClusterError> {
        assert_eq!(audience, slipway_core::node_access::AUDIENCE);
        self.asked.lock().push(token.to_owned());
        match token {
            "unreachable" => Err(ClusterError::Unreachable("this is part of the test".into())),
            token => Ok(self.users.get(token).cloned()),
        }
    }
}
