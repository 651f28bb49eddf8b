//! The requests that the agent sends to the API server. The binary provides the implementation, so this crate needs no Kubernetes
//! client and its tests need no cluster.

use std::future::Future;

use serde_json::Value;
use slipway_core::Explain;
use tokio::sync::watch;

/// A Kubernetes resource type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version, such as `v1`.
    pub version: &'static str,
    /// Kind in manifests, such as `Node`.
    pub kind: &'static str,
    /// Plural in URLs, such as `nodes`.
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
/// `resource.nvidia.com/v1beta1 ComputeDomain` of NVIDIA's DRA driver.
pub const COMPUTE_DOMAIN: Kind =
    Kind { group: "resource.nvidia.com", version: "v1beta1", kind: "ComputeDomain", plural: "computedomains" };

impl Kind {
    /// `group/version`, or the version alone in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// A failed request to the API server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the error messages describe the variants
pub enum ClusterError {
    #[error("the API server does not respond: {0}")]
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

/// The result of an eviction request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// The pod is being deleted, or does not exist.
    Accepted,
    /// A pod disruption budget does not allow the eviction now.
    Blocked,
}

/// The API server, as the agent uses it.
pub trait Cluster: Send + Sync + 'static {
    /// Reads an object; `None` if it does not exist.
    fn get(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        name: &str,
    ) -> impl Future<Output = Result<Option<Value>, ClusterError>> + Send;

    /// Lists the objects of a kind that match a field selector.
    fn list(&self, kind: Kind, fields: &str) -> impl Future<Output = Result<Vec<Value>, ClusterError>> + Send;

    /// Applies an object (forced server-side apply) as field manager `manager`; `status` selects the status subresource.
    fn apply(
        &self,
        kind: Kind,
        name: &str,
        manager: &str,
        status: bool,
        object: Value,
    ) -> impl Future<Output = Result<Value, ClusterError>> + Send;

    /// Applies a JSON merge patch (RFC 7396). A patch with a resource version fails if the object has changed since that version.
    fn merge(&self, kind: Kind, name: &str, patch: Value) -> impl Future<Output = Result<Value, ClusterError>> + Send;

    /// Deletes an object; succeeds if it does not exist.
    fn delete(&self, kind: Kind, name: &str) -> impl Future<Output = Result<(), ClusterError>> + Send;

    /// Requests the eviction of a pod.
    fn evict(&self, namespace: &str, pod: &str) -> impl Future<Output = Result<Eviction, ClusterError>> + Send;

    /// Publishes an event about an object.
    fn event(
        &self,
        about: Value,
        warning: bool,
        reason: &str,
        message: &str,
    ) -> impl Future<Output = Result<(), ClusterError>> + Send;

    /// The user of a token that was issued for this audience (`authentication.k8s.io/v1 TokenReview`); `None` if the token is
    /// invalid.
    fn user_of(&self, token: &str, audience: &str)
    -> impl Future<Output = Result<Option<String>, ClusterError>> + Send;

    /// Watches one object for as long as the receiver exists; the value is `None` before the first response and after deletion.
    fn watch(&self, kind: Kind, namespace: Option<&str>, name: &str) -> watch::Receiver<Option<Value>>;
}

/// Objects by plural, namespace and name.
#[cfg(test)]
type FakeObjects = std::collections::BTreeMap<(String, String, String), watch::Sender<Option<Value>>>;

/// A cluster for tests: it stores objects by plural, namespace and name, and accepts some tokens.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Fake {
    /// Users by token.
    pub(crate) users: std::collections::BTreeMap<String, String>,
    /// Tokens that were reviewed.
    pub(crate) reviewed: parking_lot::Mutex<Vec<String>>,
    /// Objects; a watched one changes for its receivers too.
    pub(crate) objects: parking_lot::Mutex<FakeObjects>,
}

#[cfg(test)]
impl Fake {
    fn sender(&self, kind: Kind, namespace: Option<&str>, name: &str) -> watch::Sender<Option<Value>> {
        let key = (kind.plural.to_owned(), namespace.unwrap_or_default().to_owned(), name.to_owned());
        self.objects.lock().entry(key).or_insert_with(|| watch::channel(None).0).clone()
    }

    /// An object; `None` if it does not exist.
    pub(crate) fn read(&self, kind: Kind, namespace: Option<&str>, name: &str) -> Option<Value> {
        self.sender(kind, namespace, name).borrow().clone()
    }

    /// Creates, replaces or (`None`) deletes an object.
    pub(crate) fn put(&self, kind: Kind, namespace: Option<&str>, name: &str, object: Option<Value>) {
        self.sender(kind, namespace, name).send_replace(object);
    }
}

#[cfg(test)]
impl Cluster for Fake {
    async fn get(&self, kind: Kind, namespace: Option<&str>, name: &str) -> Result<Option<Value>, ClusterError> {
        Ok(self.sender(kind, namespace, name).borrow().clone())
    }
    async fn list(&self, kind: Kind, _: &str) -> Result<Vec<Value>, ClusterError> {
        let objects = self.objects.lock();
        Ok(objects.iter().filter(|(key, _)| key.0 == kind.plural).filter_map(|(_, o)| o.borrow().clone()).collect())
    }
    async fn apply(&self, kind: Kind, name: &str, _: &str, _: bool, object: Value) -> Result<Value, ClusterError> {
        self.put(kind, None, name, Some(object.clone()));
        Ok(object)
    }
    async fn merge(&self, _: Kind, _: &str, patch: Value) -> Result<Value, ClusterError> {
        Ok(patch)
    }
    async fn delete(&self, kind: Kind, name: &str) -> Result<(), ClusterError> {
        self.put(kind, None, name, None);
        Ok(())
    }
    async fn evict(&self, _: &str, _: &str) -> Result<Eviction, ClusterError> {
        Ok(Eviction::Accepted)
    }
    async fn event(&self, _: Value, _: bool, _: &str, _: &str) -> Result<(), ClusterError> {
        Ok(())
    }
    fn watch(&self, kind: Kind, namespace: Option<&str>, name: &str) -> watch::Receiver<Option<Value>> {
        self.sender(kind, namespace, name).subscribe()
    }
    async fn user_of(&self, token: &str, audience: &str) -> Result<Option<String>, ClusterError> {
        assert_eq!(audience, slipway_core::node_access::AUDIENCE);
        self.reviewed.lock().push(token.to_owned());
        match token {
            "unreachable" => Err(ClusterError::Unreachable("simulated by the test".into())),
            token => Ok(self.users.get(token).cloned()),
        }
    }
}
