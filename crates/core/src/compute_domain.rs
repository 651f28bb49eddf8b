//! How a node joins a ComputeDomain. The node's agent sets a label and an annotation on its own Node object, and the controller of
//! ComputeDomains collects the members of each domain from them. So an agent needs no permission to write ComputeDomains.

use serde::{Deserialize, Serialize};

/// Label of a node and of a ResourceClaimTemplate: the UID of the ComputeDomain that they belong to. The name is that of NVIDIA's DRA driver.
pub const LABEL: &str = "resource.nvidia.com/computeDomain";
/// Annotation of a node with the label: a [`Member`] as JSON.
pub const MEMBER_ANNOTATION: &str = "slipway.dev/compute-domain";
/// Maximum number of nodes of one NVLink clique in a domain: the 18 compute trays of an NVL72 rack, which is also the limit of NVIDIA's
/// controller (`maxNodesPerIMEXDomain`).
pub const MAX_NODES_PER_CLIQUE: u32 = 18;

/// What a node reports about itself as a member of a ComputeDomain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// UID of the ComputeDomain.
    pub domain: String,
    /// The address at which the other nodes reach IMEX on this node.
    pub address: String,
    /// The node's NVLink domain and partition, as `UUID.NUMBER`; empty if it is in none.
    pub clique: String,
    /// Whether IMEX is ready on this node.
    pub ready: bool,
    /// Why it is not ready; empty while it starts.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub problem: String,
}
