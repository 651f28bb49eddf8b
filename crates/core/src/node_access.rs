//! How the control plane identifies itself to node agents. An agent's routes that tell which pods hold which devices are for the
//! control plane and for administrators of the cluster: who asks sends a token of the service account [`ACCOUNT`], made for [`AUDIENCE`]
//! alone (`serviceaccounts/token` of the API server), and the agent has the API server review it. The account has no rights of its own,
//! so its tokens open nothing else; who may make them is a matter of the cluster's roles.

/// The audience of the tokens.
pub const AUDIENCE: &str = "slipway-node";
/// The service account, in the namespace of the installation.
pub const ACCOUNT: &str = "slipway-node-reader";
/// The header that carries the token. It is not `Authorization`, which the API server takes out of what it proxies.
pub const HEADER: &str = "x-slipway-node-token";

/// The account as the API server names its user.
pub fn user(namespace: &str) -> String {
    format!("system:serviceaccount:{namespace}:{ACCOUNT}")
}
