//! How the control plane authenticates to node agents. Only the control plane and cluster administrators may call the agent's routes
//! that report which pods hold which devices: a request carries a token of the service account [`ACCOUNT`], issued only for
//! [`AUDIENCE`] (`serviceaccounts/token` of the API server), and the agent verifies it with a TokenReview. The account has no
//! permissions of its own, so its tokens open nothing else; the cluster's roles decide who may issue them.

/// The audience that the tokens are issued for; a token without it is rejected.
pub const AUDIENCE: &str = "slipway-node";
/// The name of the service account. It is in the namespace of the installation.
pub const ACCOUNT: &str = "slipway-node-reader";
/// The header that carries the token. It is not `Authorization`, because the API server removes that header from proxied requests.
pub const HEADER: &str = "x-slipway-node-token";

/// The account's user name in the API server: `system:serviceaccount:NAMESPACE:slipway-node-reader`.
pub fn user(namespace: &str) -> String {
    format!("system:serviceaccount:{namespace}:{ACCOUNT}")
}
